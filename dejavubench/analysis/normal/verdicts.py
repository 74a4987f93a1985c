"""An arm beside the measured machines of its class: low, within, high, or no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dejavubench.analysis.normal.machine_table import MachineTable, MeasuredArm
from dejavubench.analysis.number_texts import nbytes, signed_percent

ENOUGH = 3
"""Fewest machines of a class that make a range. One or two machines say little about others."""

ALIKE = 2.0
"""Largest ratio of the mean sizes of chunks that are compared: small chunks reach less. Two H200
reached 91 % of the bus with chunks of 8 MB, and 38 % with chunks of 2.3 MB."""

LOOK = "See where a chunk's time goes: process --long."

PAPER = (
    "The paper's figure 25 has at most 2 % for level 3 to a local SSD and a remote CPU "
    "(second-hand): VMs of 2 × A100-80GB with 40 Gb/s between them, fp16, prompts of 500 and 500 "
    "new tokens of OPT-13B, OPT-66B and BLOOM-176B."
)
"""The paper's own number, which stands beside every verdict."""

UNMEASURED = (
    "nothing is compared, because no share of a ceiling was measured. Runs without --no-ceilings "
    "measure it where the destination has one."
)
"""Reason of a missing verdict."""


class RangePlace(StrEnum):
    """Place of a share among those of measured machines."""

    LOW = "low"
    WITHIN = "within"
    HIGH = "high"
    NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class MachineRange:
    """The shares of a ceiling that one machine reached in a class.

    Attributes:
        dates: days of its first and last run.
    """

    machine: str
    dates: tuple[str, str]
    least: float
    most: float

    def __str__(self) -> str:
        first, last = self.dates
        days = first if first == last else f"{first} to {last}"
        return f"{_span(self.least, self.most)} on {self.machine} ({days})"


@dataclass(frozen=True)
class UnlikeMachines:
    """Machines of the same class whose chunks are too large or too small to compare.

    Attributes:
        smallest, largest: mean sizes of their runs' chunks, in bytes.
    """

    machines: int
    smallest: float
    largest: float

    def __str__(self) -> str:
        count = "1 machine was" if self.machines == 1 else f"{self.machines} machines were"
        ends = dict.fromkeys(nbytes(size) for size in (self.smallest, self.largest))
        return f"{count} measured, with chunks of {' to '.join(ends)}"


@dataclass(frozen=True)
class Normality:
    """An arm and the measured machines that it may be compared with, the slowest first.

    Attributes:
        unlike: machines that were left out because of their chunks; None without one.
    """

    arm: MeasuredArm
    others: list[MachineRange]
    unlike: UnlikeMachines | None = None

    @property
    def least(self) -> float | None:
        """Lowest share that was measured on these machines, in percent; None without one."""
        return min((other.least for other in self.others), default=None)

    @property
    def most(self) -> float | None:
        """Highest share that was measured on these machines, in percent; None without one."""
        return max((other.most for other in self.others), default=None)

    @property
    def place(self) -> RangePlace:
        """Place of the arm in the range; no verdict if too few machines were measured."""
        share, least, most = self.arm.share_pct, self.least, self.most
        if share is None or least is None or most is None or len(self.others) < ENOUGH:
            return RangePlace.NO_VERDICT
        if share < least:
            return RangePlace.LOW
        return RangePlace.HIGH if share > most else RangePlace.WITHIN


def normality_of(arm: MeasuredArm, table: MachineTable) -> Normality:
    """Return the machines that an arm may be compared with; its own is left out."""
    machines: dict[str, list[MeasuredArm]] = {}
    unlike: dict[str, list[float]] = {}
    for other in table.arms:
        # A copy of the run's records may stand under another name.
        mine = other.run_id == arm.run_id or other.machine == arm.machine
        if mine or not arm.same_class(other):
            continue
        if _chunk_size_ratio(arm, other) <= ALIKE:
            machines.setdefault(other.machine, []).append(other)
        else:
            unlike.setdefault(other.machine, []).append(other.chunk_bytes)
    ranges = [_range(machine, arms) for machine, arms in machines.items()]
    # A machine with several runs may have chunks of both kinds: then it is compared.
    sizes = [size for name in unlike.keys() - machines.keys() for size in unlike[name]]
    return Normality(
        arm,
        sorted(ranges, key=lambda each: (each.least, each.machine)),
        UnlikeMachines(len(unlike.keys() - machines.keys()), min(sizes), max(sizes))
        if sizes
        else None,
    )


def _range(machine: str, arms: Sequence[MeasuredArm]) -> MachineRange:
    shares = [arm.share_pct for arm in arms if arm.share_pct is not None]
    dates = sorted(arm.date for arm in arms)
    return MachineRange(machine, (dates[0], dates[-1]), min(shares), max(shares))


def _chunk_size_ratio(one: MeasuredArm, other: MeasuredArm) -> float:
    sizes = sorted((one.chunk_bytes, other.chunk_bytes))
    return sizes[1] / sizes[0] if sizes[0] else float("inf")


def _span(least: float, most: float) -> str:
    ends = dict.fromkeys(f"{share:.0f}" for share in (least, most))
    return f"{'–'.join(ends)} %"


# ---- sentences ----


def sentence(item: Normality) -> str:
    """Say where an arm falls among measured machines, and name them."""
    arm = item.arm
    where = ", ".join(filter(None, (arm.arm, arm.hosts)))
    if arm.share_pct is None:
        return f"{where}: {UNMEASURED}"
    rate = f"{arm.share_pct:.0f} % of {arm.ceiling} in chunks of {nbytes(arm.chunk_bytes)}"
    if item.least is None or item.most is None:
        if item.unlike is not None:
            size = nbytes(arm.chunk_bytes)
            return f"{where}: {rate}; {item.unlike}: too different from {size} to compare."
        return f"{where}: {rate}; no other machine of this class was measured."
    measured = ", ".join(map(str, item.others))
    if len(item.others) < ENOUGH:
        count = "one machine" if len(item.others) == 1 else f"{len(item.others)} machines"
        return f"{where}: {rate}; {count} measured {measured}: no verdict."
    span = _span(item.least, item.most)
    text = f"{where}: {rate}; on {len(item.others)} machines {span}: {item.place} ({measured})."
    return f"{text} {LOOK}" if item.place is RangePlace.LOW else text


def sentences(items: Sequence[Normality]) -> list[str]:
    """Return the sentences of a block, the paper's figure last; none without an arm.

    Of several points, the one with the lowest share of its ceiling speaks for an arm.
    """
    if not items:
        return ["No arm of level 3 was streamed alone in this run, so nothing can be compared."]
    lowest: dict[str, Normality] = {}
    for item in items:
        known = lowest.get(item.arm.arm)
        if known is None or _share(item) < _share(known):
            lowest[item.arm.arm] = item
    texts = [sentence(item) for item in lowest.values() if item.arm.share_pct is not None]
    unknown = [arm for arm, item in lowest.items() if item.arm.share_pct is None]
    missing = [f"{', '.join(unknown)}: {UNMEASURED}"] if unknown else []
    return [*texts, *missing, f"{PAPER} {_own_costs(items)}".rstrip()]


def _share(item: Normality) -> float:
    return float("inf") if item.arm.share_pct is None else item.arm.share_pct


def _own_costs(items: Sequence[Normality]) -> str:
    """Return this run's costs beside those of the paper, the largest of each arm."""
    costs: dict[str, float] = {}
    for item in items:
        if item.arm.overhead_pct is not None:
            cost = max(item.arm.overhead_pct, costs.get(item.arm.arm, item.arm.overhead_pct))
            costs[item.arm.arm] = cost
    if not costs:
        return ""
    models = ", ".join(dict.fromkeys(item.arm.model for item in items))
    # A cost that rounds to 0 has no sign.
    named = ", ".join(
        f"{arm} {signed_percent(round(cost, 2) + 0.0)} %" for arm, cost in costs.items()
    )
    return f"Here, {models} on {items[0].arm.processor}: {named}."
