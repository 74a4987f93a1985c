"""An arm beside the measured machines of its class: low, within, high, or no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dejavubench.analysis.answers.difference_texts import format_noise
from dejavubench.analysis.answers.judgement import Noise
from dejavubench.analysis.normal.machine_table import MachineTable, MeasuredArm
from dejavubench.analysis.number_texts import format_nbytes, format_signed_percent

FEWEST_MACHINES = 3
"""Fewest machines of a class that make a range. One or two machines say little about others."""

LARGEST_CHUNK_RATIO = 2.0
"""Largest ratio of the mean sizes of chunks that are compared: small chunks reach less. Two H200
reached 91 % of the bus with chunks of 8 MB, and 38 % with chunks of 2.3 MB."""

WHERE_TO_LOOK = 'The table "where a chunk\'s time goes" of the long report shows what takes it.'
"""Advice beside a low share."""

PAPER_SENTENCE = (
    "The paper's figure 25 has at most 2 % for level 3 to a local SSD and a remote CPU "
    "(second-hand): VMs of 2 × A100-80GB with 40 Gb/s between them, fp16, prompts of 500 and 500 "
    "new tokens of OPT-13B, OPT-66B and BLOOM-176B."
)
"""The paper's own number, which stands beside every verdict."""

UNMEASURED_TEXT = "nothing is compared, because no share of a ceiling was measured."
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
    least_pct: float
    most_pct: float

    def __str__(self) -> str:
        first_date, last_date = self.dates
        days = first_date if first_date == last_date else f"{first_date} to {last_date}"
        return f"{_format_span(self.least_pct, self.most_pct)} on {self.machine} ({days})"


@dataclass(frozen=True)
class UnlikeMachines:
    """Machines of the same class whose chunks are too large or too small to compare.

    Attributes:
        smallest_chunk_bytes, largest_chunk_bytes: mean sizes of their runs' chunks.
    """

    machine_count: int
    smallest_chunk_bytes: float
    largest_chunk_bytes: float

    def __str__(self) -> str:
        count = (
            "1 machine was" if self.machine_count == 1 else f"{self.machine_count} machines were"
        )
        texts = dict.fromkeys(
            format_nbytes(size) for size in (self.smallest_chunk_bytes, self.largest_chunk_bytes)
        )
        return f"{count} measured, with chunks of {' to '.join(texts)}"


@dataclass(frozen=True)
class RunNoise:
    """The conditions under which the run itself was measured, as far as its records say.

    Attributes:
        busy_reason: what other programs took, in words, if that was much; a share then says little
            of the machine.
        floor: noise of two identical arms; None if it is unknown.
        is_cost_shown: whether the arm's overhead is told from that noise; None if undecided.
        ceilings_command: command that measures the ceilings of a run with ``--no-ceilings``; None
            of any other run.
    """

    busy_reason: str | None = None
    floor: Noise | None = None
    is_cost_shown: bool | None = None
    ceilings_command: str | None = None


UNKNOWN_NOISE = RunNoise()
"""Conditions of which nothing is known."""


@dataclass(frozen=True)
class Normality:
    """An arm and the measured machines that it may be compared with, the slowest first.

    Attributes:
        unlike_machines: machines that were left out because of their chunks; None without one.
        noise: the run's own conditions.
    """

    arm: MeasuredArm
    other_machines: list[MachineRange]
    unlike_machines: UnlikeMachines | None = None
    noise: RunNoise = UNKNOWN_NOISE

    @property
    def least_pct(self) -> float | None:
        """Lowest share that was measured on these machines, in percent; None without one."""
        return min((machine_range.least_pct for machine_range in self.other_machines), default=None)

    @property
    def most_pct(self) -> float | None:
        """Highest share that was measured on these machines, in percent; None without one."""
        return max((machine_range.most_pct for machine_range in self.other_machines), default=None)

    @property
    def place(self) -> RangePlace:
        """Place of the arm in the range; no verdict of few machines, or on a busy one."""
        share = self.arm.share_pct
        least_pct = self.least_pct
        most_pct = self.most_pct
        if self.noise.busy_reason is not None:
            return RangePlace.NO_VERDICT
        if (
            share is None
            or least_pct is None
            or most_pct is None
            or len(self.other_machines) < FEWEST_MACHINES
        ):
            return RangePlace.NO_VERDICT
        if share < least_pct:
            return RangePlace.LOW
        return RangePlace.HIGH if share > most_pct else RangePlace.WITHIN


def judge_normality(
    arm: MeasuredArm, table: MachineTable, noise: RunNoise = UNKNOWN_NOISE
) -> Normality:
    """Return the machines that an arm may be compared with; its own is left out."""
    # A machine may have other digests at other times, so one sign leaves out all of its runs.
    own_machines = {
        measured_arm.machine for measured_arm in table.arms if arm.is_same_machine(measured_arm)
    }
    machines: dict[str, list[MeasuredArm]] = {}
    chunk_bytes_by_unlike: dict[str, list[float]] = {}
    for measured_arm in table.arms:
        if measured_arm.machine in own_machines or not arm.is_same_class(measured_arm):
            continue
        if _compute_chunk_size_ratio(arm, measured_arm) <= LARGEST_CHUNK_RATIO:
            machines.setdefault(measured_arm.machine, []).append(measured_arm)
        else:
            chunk_bytes_by_unlike.setdefault(measured_arm.machine, []).append(
                measured_arm.chunk_bytes
            )
    ranges = [_range_of(machine, arms) for machine, arms in machines.items()]
    ranges.sort(key=lambda machine_range: (machine_range.least_pct, machine_range.machine))
    # A machine with several runs may have chunks of both kinds: then it is compared.
    unlike_machines = chunk_bytes_by_unlike.keys() - machines.keys()
    sizes = [size for machine in unlike_machines for size in chunk_bytes_by_unlike[machine]]
    left_out = UnlikeMachines(len(unlike_machines), min(sizes), max(sizes)) if sizes else None
    return Normality(arm, ranges, left_out, noise)


def _range_of(machine: str, arms: Sequence[MeasuredArm]) -> MachineRange:
    shares = [arm.share_pct for arm in arms if arm.share_pct is not None]
    dates = sorted(arm.date for arm in arms)
    return MachineRange(machine, (dates[0], dates[-1]), min(shares), max(shares))


def _compute_chunk_size_ratio(arm: MeasuredArm, other_arm: MeasuredArm) -> float:
    sizes = sorted((arm.chunk_bytes, other_arm.chunk_bytes))
    return sizes[1] / sizes[0] if sizes[0] else float("inf")


def _format_span(least_pct: float, most_pct: float) -> str:
    texts = dict.fromkeys(f"{share:.0f}" for share in (least_pct, most_pct))
    return f"{'–'.join(texts)} %"


# ---- sentences ----


def describe_arm(normality: Normality) -> str:
    """Describe where an arm falls among measured machines, and name them."""
    arm = normality.arm
    unlike_machines = normality.unlike_machines
    subject = ", ".join(filter(None, (arm.arm, arm.hosts)))
    if arm.share_pct is None:
        return f"{subject}: {_explain_unmeasured(normality)}"
    rate = f"{arm.share_pct:.0f} % of {arm.ceiling} in chunks of {format_nbytes(arm.chunk_bytes)}"
    if normality.least_pct is None or normality.most_pct is None:
        if unlike_machines is not None:
            size = format_nbytes(arm.chunk_bytes)
            return f"{subject}: {rate}; {unlike_machines}: too different from {size} to compare."
        return f"{subject}: {rate}; no other machine of this class was measured."
    machines_text = ", ".join(map(str, normality.other_machines))
    machine_count = len(normality.other_machines)
    busy_reason = normality.noise.busy_reason
    if machine_count < FEWEST_MACHINES:
        machines = "one machine" if machine_count == 1 else f"{machine_count} machines"
        reason = f"no verdict: needs {FEWEST_MACHINES} other machines, has {machine_count}"
        busy_text = "" if busy_reason is None else f"; the machine was busy: {busy_reason}"
        return f"{subject}: {rate}; {machines} measured {machines_text}: {reason}{busy_text}."
    verdict = str(normality.place)
    if busy_reason is not None:
        verdict = f"no verdict: the machine was busy: {busy_reason}"
    span = _format_span(normality.least_pct, normality.most_pct)
    text = f"{subject}: {rate}; on {machine_count} machines {span}: {verdict} ({machines_text})."
    return f"{text} {WHERE_TO_LOOK}" if normality.place is RangePlace.LOW else text


def _explain_unmeasured(normality: Normality) -> str:
    """Explain why an arm has no share of a ceiling, and how to measure it."""
    command = normality.noise.ceilings_command
    if command is None:
        return (
            f"{UNMEASURED_TEXT} The destination has no ceiling, or some source did not measure it."
        )
    # A command is the last word: a full stop after it would be copied with it.
    return f"{UNMEASURED_TEXT} The run had --no-ceilings. One more round with ceilings: {command}"


def describe_arms(normalities: Sequence[Normality]) -> list[str]:
    """Return the sentences of a block, the paper's figure last; none without an arm.

    Of several points, the one with the lowest share of its ceiling speaks for an arm.
    """
    if not normalities:
        return ["No arm of level 3 was streamed alone in this run, so nothing can be compared."]
    lowest_by_arm: dict[str, Normality] = {}
    for normality in normalities:
        arm_name = normality.arm.arm
        if arm_name not in lowest_by_arm or _share_of(normality) < _share_of(
            lowest_by_arm[arm_name]
        ):
            lowest_by_arm[arm_name] = normality
    texts = []
    unmeasured_arms: list[Normality] = []
    for normality in lowest_by_arm.values():
        if normality.arm.share_pct is None:
            unmeasured_arms.append(normality)
        else:
            texts.append(describe_arm(normality))
    if unmeasured_arms:
        arm_names = ", ".join(normality.arm.arm for normality in unmeasured_arms)
        texts.append(f"{arm_names}: {_explain_unmeasured(unmeasured_arms[0])}")
    return [*texts, f"{PAPER_SENTENCE} {_describe_own_costs(normalities)}".rstrip()]


def _share_of(normality: Normality) -> float:
    # An arm without a measured share must not speak for one that has it.
    return float("inf") if normality.arm.share_pct is None else normality.arm.share_pct


def _describe_own_costs(normalities: Sequence[Normality]) -> str:
    """Return this run's costs beside those of the paper, the largest of each arm."""
    costliest_by_arm: dict[str, tuple[float, Normality]] = {}
    for normality in normalities:
        arm_name = normality.arm.arm
        cost_pct = normality.arm.overhead_pct
        if cost_pct is None:
            continue
        if arm_name not in costliest_by_arm or cost_pct > costliest_by_arm[arm_name][0]:
            costliest_by_arm[arm_name] = cost_pct, normality
    if not costliest_by_arm:
        return ""
    models = ", ".join(dict.fromkeys(normality.arm.model for normality in normalities))
    costs = ", ".join(
        f"{arm_name} {format_signed_percent(cost_pct)} %{_relate_to_noise(normality.noise)}"
        for arm_name, (cost_pct, normality) in costliest_by_arm.items()
    )
    return f"Here, {models} on {normalities[0].arm.processor}: {costs}."


def _relate_to_noise(noise: RunNoise) -> str:
    """Return how a cost stands to its noise, so that noise is not read as a cost."""
    if noise.floor is None or noise.is_cost_shown is None:
        return " (noise unknown)"
    cost_text = "a cost" if noise.is_cost_shown else "no cost shown"
    return f" ({cost_text}, noise {format_noise(noise.floor)})"
