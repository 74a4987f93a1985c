"""Parts of a report on the machine: ceilings, GPU, hosts and staging memory."""

from __future__ import annotations

import re

from dejavubench.analysis.facts import raw_loops, source_ranks
from dejavubench.analysis.facts.arm_destinations import loopback_of, run_destinations
from dejavubench.analysis.number_texts import format_nbytes
from dejavubench.analysis.tables.report_part import RunPart, make_notes_alone
from dejavubench.records import Ceiling, CopyWays, Note, NoteKind, RankInfo, Run

CEILINGS = NoteKind("ceilings", "info")
"""Kind of the note on the best value of each ceiling."""

RAW_LOOPS = NoteKind("raw-loops", "info")
"""Kind of the note on the library's rates relative to raw loops."""

OWN_SHARES = NoteKind("own-shares", "info")
"""Kind of the note on this program's own share of naive copies and messages."""

STAGING = NoteKind("staging", "info")
"""Kind of the note on staging memory."""

HOSTS = NoteKind("hosts", "info")
"""Kind of the note on the ranks of each host, and on a limited link."""

GPU = NoteKind("gpu", "info")
"""Kind of the note on drivers and libraries of the GPU."""

COPY_WAYS = NoteKind("copy-ways", "info")
"""Kind of the note on how chunks leave the GPU."""

LOOPBACK = NoteKind("loopback", "warning")
"""Kind of the note on ranks that share a GPU, so that their rate is none of a remote GPU."""

NO_MPS = NoteKind("no-mps", "warning")
"""Kind of the note on ranks that take turns on a GPU."""


def _note_ceilings(run: Run) -> list[Note]:
    """Name the best value of each ceiling, over all ranks and points."""
    best_ceilings: dict[tuple[str, str | None], Ceiling] = {}
    for _, ceiling in run.records_of(Ceiling):
        best_so_far = best_ceilings.get((ceiling.name, ceiling.durability))
        if best_so_far is None or (
            ceiling.value < best_so_far.value
            if ceiling.unit == "us"
            else ceiling.value > best_so_far.value
        ):
            # A ceiling is what the machine can do, so anything slower was disturbed.
            best_ceilings[ceiling.name, ceiling.durability] = ceiling
    if not best_ceilings:
        return []
    texts = [
        f"{ceiling.name} {_describe_ceiling(ceiling)} ({ceiling.shape})"
        for ceiling in best_ceilings.values()
    ]
    return [CEILINGS.note(f"ceilings: {'; '.join(texts)}")]


def _describe_ceiling(ceiling: Ceiling) -> str:
    if ceiling.unit == "GFLOP/s" and ceiling.value >= 1000:
        return f"{ceiling.value / 1000:.4g} TFLOP/s"
    return f"{ceiling.value:.4g} {ceiling.unit.replace('us', 'µs')}"


def _note_raw_loops(run: Run) -> list[Note]:
    texts = [
        f"{loops} {100 * ratio.median:.1f} [{100 * ratio.low:.1f}, {100 * ratio.high:.1f}] % "
        f"({ratio.sample_count} pairs)"
        for loops, ratio in raw_loops.compare_with_raw_loops(run).items()
    ]
    if not texts:
        return []
    text = f"library's rate relative to a raw loop measured in turn with it: {'; '.join(texts)}"
    return [RAW_LOOPS.note(text)]


def _note_own_shares(run: Run) -> list[Note]:
    texts = [f"{name} {share:.0f} %" for name, share in raw_loops.compute_own_shares(run).items()]
    if not texts:
        return []
    text = f"program's own share of each copy or message at the naive levels: {', '.join(texts)}"
    return [OWN_SHARES.note(text)]


DMA_SHARE = re.compile(r" \(([0-9.]+) of the kernel's time\)")
"""End of a recorded way: time of strided DMA over that of the kernel."""


def _note_gpu(run: Run) -> list[Note]:
    """Note what drives the GPU, and how chunks leave it."""
    if not source_ranks.ran_on_gpu(run):
        return []
    environment = run.header.facts
    gpu = environment.gpu
    link = f"PCIe {gpu.pcie_generation}.0 × {gpu.pcie_width}" if gpu.pcie_generation else None
    versions = (("driver", gpu.driver), ("CUDA", gpu.cuda), ("NCCL", gpu.nccl))
    facts = [
        *(f"{software} {version}" for software, version in versions if version),
        link,
        {True: "MPS runs", False: "no MPS", None: None}[gpu.mps],
        {True: "MPI takes device memory", False: "MPI takes host memory only", None: None}[
            environment.cuda_aware_mpi
        ],
    ]
    ways: dict[str, None] = {}
    layouts = {point.id: point.kv_layout for point in run.header.points}
    for _, record in run.records_of(CopyWays):
        ways |= dict.fromkeys(
            f"{layouts[record.point]} {phase}: {_describe_way(way)}"
            for phase, way in record.ways.items()
        )
    facts_text = ", ".join(fact for fact in facts if fact)
    notes = [GPU.note(f"GPU: {facts_text}")] if facts_text else []
    if ways:
        notes.append(COPY_WAYS.note(f"how chunks leave the GPU: {'; '.join(ways)}"))
    return notes


def _describe_way(way: str) -> str:
    """Return a recorded way of chunks as a reader understands it without the source."""
    return DMA_SHARE.sub(r", which took \1 times as long as the packing kernel", way)


def _note_loopback(run: Run) -> list[Note]:
    """Warn that ranks of one GPU share it, or even take turns on it."""
    if any(loopback_of(run, arm) for arm in run.header.arms):
        text = (
            "loopback on one GPU: both ranks share its processors and memory, so this is no rate "
            "of a remote GPU"
        )
    elif groups := _group_sharing_ranks(run):
        numbers = " and ranks ".join(", ".join(map(str, group)) for group in groups)
        text = (
            f"loopback: ranks {numbers} share a GPU, its processors and its memory, so no time is "
            "that of a GPU per rank"
        )
    else:
        return []
    notes = [LOOPBACK.note(text)]
    environment = run.header.facts
    if environment.gpu.mps is False:
        notes.append(
            NO_MPS.note("NO MPS: the ranks take turns on the GPU, which itself slows the model")
        )
    return notes


def _group_sharing_ranks(run: Run) -> list[list[int]]:
    """Return the groups of ranks that share a GPU, as NCCL was told; one per GPU."""
    loopbacks = [info.facts.nccl_loopback for _, info in run.records_of(RankInfo)]
    return next((loopback.ranks for loopback in loopbacks if loopback is not None), [])


def _note_hosts(run: Run) -> list[Note]:
    """Note which ranks are on which host, and the rate that the link is limited to."""
    ranks: dict[str, list[str]] = {}
    for rank, info in run.records_of(RankInfo):
        ranks.setdefault(info.host, []).append(f"{info.role} {rank}")
    destinations = run_destinations(run)
    external_modes = {
        arm.mode: None
        for arm in run.header.arms
        if arm.mode in destinations and destinations[arm.mode].external_sink
    }
    peers = run.header.experiment.get("peer") or ()
    texts = [f"{', '.join(ranks_of_host)} on {host}" for host, ranks_of_host in ranks.items()]
    texts += [f"{mode} to {peer}" for mode in external_modes for peer in peers]
    link = run.header.experiment.get("link")
    link_text = f"; link between them: {link}" if link else ""
    note = HOSTS.note(f"hosts: {'; '.join(texts)}{link_text}")
    return [note] if len(ranks) > 1 or link else []


def _note_staging(run: Run) -> list[Note]:
    texts = []
    for memory, key in (("", "staging_nbytes"), (" on its device", "staging_device_nbytes")):
        nbytes_by_role: dict[str, int] = {}
        for _, info in run.records_of(RankInfo):
            # Ranks of one role may hold different layers, so the largest bounds them all.
            nbytes_by_role[info.role] = max(nbytes_by_role.get(info.role, 0), getattr(info, key))
        texts += [
            f"{format_nbytes(size)} per {role}{memory}"
            for role, size in nbytes_by_role.items()
            if size
        ]
    return [STAGING.note(f"staging memory, at most: {', '.join(texts)}")] if texts else []


# ---- the parts ----

MACHINE = RunPart(
    "machine",
    "ceilings, staging memory and hosts",
    make_notes_alone(
        lambda run_data: [
            note
            for make_notes in (
                _note_ceilings,
                _note_raw_loops,
                _note_own_shares,
                _note_staging,
                _note_hosts,
            )
            for note in make_notes(run_data.run)
        ]
    ),
    (CEILINGS, RAW_LOOPS, OWN_SHARES, STAGING, HOSTS),
    is_long=True,
)
DEVICE = RunPart(
    "gpu",
    "the GPU",
    make_notes_alone(lambda run_data: [*_note_gpu(run_data.run), *_note_loopback(run_data.run)]),
    (GPU, COPY_WAYS, LOOPBACK, NO_MPS),
    is_long=True,
)
