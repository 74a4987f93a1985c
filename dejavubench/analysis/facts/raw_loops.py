"""This library's own loops against the raw loops that were measured in turn with them."""

from __future__ import annotations

from dejavubench.analysis.facts.arm_destinations import run_destinations
from dejavubench.analysis.numbers import stats
from dejavubench.records import HELD_AGAINST, OVERHEAD_OF, Ceiling, Run
from dejavubench.records.destination_info import map_moving_loops, map_raw_loops


def map_own_raw_loops(run: Run) -> dict[str, str]:
    """Map each ceiling of this program's own code to its raw loop."""
    return HELD_AGAINST | map_raw_loops(run_destinations(run).values())


def compare_with_raw_loops(run: Run) -> dict[str, stats.Estimate]:
    """Return the rate of each own loop over that of its raw loop, pair by pair of samples."""
    ratios: dict[str, list[float]] = {}
    ceilings = {
        (rank, ceiling.point, ceiling.durability, ceiling.name): ceiling
        for rank, ceiling in run.records_of(Ceiling)
    }
    loops = map_own_raw_loops(run)
    for (rank, point_id, durability, name), ceiling in ceilings.items():
        raw_ceiling = ceilings.get((rank, point_id, durability, loops.get(name, "")))
        if raw_ceiling is not None:
            label = f"{name} / {raw_ceiling.name}" + (f", {durability}" if durability else "")
            ratios.setdefault(label, []).extend(
                # Sample n of both was measured in one turn, so their ratio is free of drift.
                own_rate / raw_rate
                for own_rate, raw_rate in zip(ceiling.samples, raw_ceiling.samples, strict=True)
            )
    return {name: stats.estimate(values) for name, values in ratios.items() if values}


def compute_own_shares(run: Run) -> dict[str, float]:
    """Return this program's own share of each naive loop's time, in percent: best against best."""
    best_us: dict[tuple[str, str | None], float] = {}
    for _, probe in run.records_of(Ceiling):
        key = (probe.name, probe.durability)
        # These probes are times in µs, so the smallest is the best.
        best_us[key] = min(best_us.get(key, probe.value), probe.value)
    shares = {}
    for overhead, loop in (OVERHEAD_OF | map_moving_loops(run_destinations(run).values())).items():
        if (overhead, None) in best_us:
            for (name, durability), loop_us in best_us.items():
                if name == loop:
                    label = name + (f", {durability}" if durability else "")
                    shares[label] = 100 * best_us[overhead, None] / loop_us
    return shares
