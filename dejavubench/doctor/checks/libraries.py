"""Libraries that move bytes: NCCL, NIXL, UCX; and the destinations that can run."""

from __future__ import annotations

from collections.abc import Iterator

from dejavubench.doctor.checks.check import HostCheck, JobCheck, RankCheck
from dejavubench.doctor.facts.job import HostFacts, Job, RankFacts
from dejavubench.doctor.findings import Finding, ok, warn


def judge_nccl(host: HostFacts) -> Iterator[Finding]:
    """Judge whether NCCL can be used, and name its ways between GPUs."""
    nccl = host.gpus.nccl
    # Without a GPU nothing was probed, and nothing is missing.
    if not host.gpus.gpus or nccl is None:
        yield ok("not needed without a GPU")
        return
    versions = ", ".join(f"{version} ({package})" for package, version in nccl.versions)
    if nccl.problem is not None:
        yield warn(
            f"{versions + ': ' if versions else ''}cannot be used: {nccl.problem}",
            "Install cupy: pip install 'dejavubench[cuda]'. Other destinations do not need it.",
        )
        return
    ways = []
    if nccl.between is not None:
        ways.append(f"GPU 0 to GPU 1 by {nccl.between}")
    if nccl.network is not None:
        ways.append(f"between hosts by {nccl.network}")
    yield ok("; ".join((versions, *ways)))


def judge_nixl(host: HostFacts) -> Iterator[Finding]:
    """Judge whether NIXL can be loaded and has a backend."""
    nixl = host.nixl
    if nixl.version is None:
        yield ok("not installed: pip install 'dejavubench[nixl]' adds this destination")
    elif nixl.problem is not None:
        yield warn(
            f"{nixl.version} cannot be loaded: {nixl.problem}",
            "Install it anew: pip install 'dejavubench[nixl]'.",
        )
    elif not nixl.backends:  # it loads, but could move nothing: a run would fail at its start
        yield warn(
            f"{nixl.version}: its agent has no backend; plug-ins {', '.join(nixl.plugins)}",
            "Set NIXL_PLUGIN_DIR to the folder that holds libplugin_UCX.so.",
        )
    else:
        backends = ", ".join(nixl.backends)
        plugins = ", ".join(nixl.plugins)
        yield ok(f"{nixl.version}: would use {backends}; plug-ins {plugins}")


def judge_ucx(rank: RankFacts) -> Iterator[Finding]:
    """Name the ways that UCX, loaded by MPI, takes to other ranks."""
    ucx = rank.ucx
    if ucx.unread is not None:
        yield ok(f"not read: {ucx.unread}")
    elif not ucx.loaded:
        yield ok("not used by this MPI library")
    else:
        ways = "; ".join(f"{path_kind}: {way}" for path_kind, way in ucx.paths)
        version = f"{ucx.version}, loaded" if ucx.version else "loaded"
        yield ok(f"{version} by MPI; {ways or 'no connection to another rank'}")


def judge_ucx_tool(host: HostFacts) -> Iterator[Finding]:
    """Show what the tool ``ucx_info`` says of the host."""
    yield ok("not found" if host.ucx_info is None else host.ucx_info)


def judge_destinations(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """List the destinations that can run here, and why the others cannot."""
    if not job.missing:
        return
    # No destination that is missing is a fault: which ones a user wants is not known here.
    ready_names = [name for name, reason in job.missing.items() if reason is None]
    lacking_reasons = [
        f"{name}: {reason}" for name, reason in job.missing.items() if reason is not None
    ]
    reading = f"can run here: {', '.join(ready_names)}"
    yield (
        job.everyone,
        ok(reading + (f". Not {'; '.join(lacking_reasons)}" if lacking_reasons else "")),
    )


CHECKS = (
    HostCheck("NCCL", judge_nccl),
    HostCheck("NIXL", judge_nixl),
    RankCheck("UCX", judge_ucx),
    HostCheck("ucx_info", judge_ucx_tool),
    JobCheck("destinations", judge_destinations),
)
