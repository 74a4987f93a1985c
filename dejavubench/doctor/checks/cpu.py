"""The CPU: features and clock."""

from __future__ import annotations

from collections.abc import Iterator

from dejavubench.doctor.checks.check import HostCheck, JobCheck
from dejavubench.doctor.facts.job import HostFacts, Job
from dejavubench.doctor.findings import Finding, ok, warn

SAVING_POLICIES = ("powersave", "ondemand", "conservative")
"""Policies of the clock that let it fall between two steps."""


def judge_features(host: HostFacts) -> Iterator[Finding]:
    """Name the vector units of a host's CPU, and those it lacks."""
    cpu = host.cpu
    has_feature = {
        "AVX2": cpu.avx2,
        "AVX-512": cpu.avx512,
        "bf16": cpu.native_bf16,
        "AMX": cpu.amx,
    }
    present_features = [name for name, is_present in has_feature.items() if is_present]
    missing_features = [name for name, is_present in has_feature.items() if not is_present]
    reading = (
        f"{cpu.model}: {', '.join(present_features) or 'none of ' + ', '.join(missing_features)}"
    )
    if present_features and missing_features:
        reading += f"; not {', '.join(missing_features)}"
    if not cpu.native_bf16:
        reading += ". bf16 models compute in fp32"
    yield ok(reading)


def judge_same_cpu(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """Warn if the hosts have different CPUs."""
    # A dict keeps the order of the hosts. Ranks of one model wait for each other in every layer, so
    # the slower host sets the pace of all.
    models = dict.fromkeys(host.cpu.model for host in job.hosts)
    if len(models) > 1:
        yield (
            job.everyone,
            warn(
                f"hosts have different CPUs: {', '.join(models)}",
                "Keep all ranks that run the model on equal hosts.",
            ),
        )


def judge_governor(host: HostFacts) -> Iterator[Finding]:
    """Judge whether the CPU's clock may fall between two steps."""
    policy = host.cpu.governor
    if policy is None:  # as in most virtual machines, where the host's kernel decides
        yield ok("policy not shown by the kernel")
    elif policy in SAVING_POLICIES:
        advice = "Set it to performance: cpupower frequency-set -g performance."
        yield warn(f"policy {policy}: the clock falls whenever a core sleeps", advice)
    else:
        yield ok(f"policy {policy}")


CHECKS = (
    HostCheck("CPU features", judge_features),
    JobCheck("equal CPUs", judge_same_cpu),
    HostCheck("CPU clock", judge_governor),
)
