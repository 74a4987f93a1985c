"""Conditions of the hosts by round: what others took, what limited, and which rounds to mark.

A round is **disturbed** on a host if other processes took more than :data:`MOST_OTHER_CORES`
processors, or the hypervisor more than :data:`MOST_STEAL_CORES`, averaged over the round's
iterations. The kernel counts in ticks, so less than :data:`UNMARKED_CPU_S` seconds per iteration
never mark a round. A round is **throttled** if a limit held a GPU's clock down for more than
:data:`MOST_LIMITED_SHARE` of an iteration, or right after it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from dejavubench.records import RecordError, Run
from dejavubench.records.conditions import HostLog, Window, read_conditions

MOST_OTHER_CORES = 0.2
"""Processors of other processes, on average over a round, above which it is disturbed. Kernel
threads that write to disks count among them, so a quiet machine is not at 0 either."""

MOST_STEAL_CORES = 0.05
"""Processors of the hypervisor, likewise. The bound is lower, because stolen time stops the job
itself."""

UNMARKED_CPU_S = 0.02
"""Seconds of CPU time per iteration that never mark a round: two of the kernel's ticks of 10 ms."""

MOST_LIMITED_SHARE = 0.01
"""Share of an iteration above which a limit on a GPU's clock throttles the round."""

MUCH_DISTURBED_SHARE = 0.5
"""Least share of the rounds that others disturb on a busy machine: then its median is disturbed."""

MUCH_TAKEN_SHARE = 0.1
"""Least share of the cores that others take on a busy machine. Small daemons stay below."""


def is_busy(
    disturbed_count: int, round_count: int, taken_core_count: float, granted_core_count: int | None
) -> bool:
    """Return whether others disturbed half of the rounds of a machine, and took much of it."""
    if not disturbed_count or not granted_core_count:
        return False
    is_disturbed = disturbed_count >= MUCH_DISTURBED_SHARE * round_count
    # Small daemons mark the rounds of a machine with many cores, and slow nothing.
    return is_disturbed and taken_core_count >= MUCH_TAKEN_SHARE * granted_core_count


@dataclass(frozen=True)
class HostRound:
    """The iterations of one round of a point on one host, or those of one arm in it."""

    windows: tuple[Window, ...]

    @property
    def wall_s(self) -> float:
        """Seconds of all iterations together."""
        return sum(window.wall_s for window in self.windows)

    def per_second(self, quantity: Callable[[Window], float | None]) -> float | None:
        """Return a quantity per second of the iterations; None if some window lacks it."""
        values = [value for window in self.windows if (value := quantity(window)) is not None]
        # A sum over some windows, over the time of all, would be too small.
        if len(values) < len(self.windows) or not self.wall_s:
            return None
        return sum(values) / self.wall_s

    @property
    def other_core_count(self) -> float | None:
        """Processors that other processes took, averaged."""
        return self.per_second(lambda window: window.other_cpu_s)

    @property
    def steal_core_count(self) -> float | None:
        """Processors that the hypervisor took, averaged."""
        return self.per_second(lambda window: window.steal_s)

    @property
    def is_disturbed_by_others(self) -> bool:
        """Whether other programs took a noticeable part of the processors."""
        return self._exceeds(self.other_core_count, MOST_OTHER_CORES)

    @property
    def is_disturbed_by_hypervisor(self) -> bool:
        """Whether the hypervisor took a noticeable part of the processors."""
        return self._exceeds(self.steal_core_count, MOST_STEAL_CORES)

    @property
    def is_disturbed(self) -> bool:
        """Whether the round is to be marked."""
        return self.is_disturbed_by_others or self.is_disturbed_by_hypervisor

    @property
    def limits(self) -> dict[str, None]:
        """Names of the limits that held a GPU's clock down, as keys in the order of the windows."""
        limits: dict[str, None] = {}
        for window in self.windows:
            # Reasons hold right after the iteration, whose own share the counters tell.
            shortest_s = MOST_LIMITED_SHARE * window.wall_s
            for gpu in window.gpus.values():
                limits |= dict.fromkeys(gpu.reasons or ())
                limits |= {
                    name: None
                    for name, seconds in (gpu.limited_s or {}).items()
                    if seconds > shortest_s
                }
        return limits

    def _exceeds(self, core_count: float | None, bound: float) -> bool:
        # Two ticks of the kernel per iteration: less can be rounding of its counters.
        least_s = UNMARKED_CPU_S * len(self.windows)
        return core_count is not None and core_count > bound and core_count * self.wall_s > least_s


@dataclass(frozen=True)
class HostRounds:
    """The conditions of one host of a run.

    Attributes:
        log: the file that its first rank has written.
        prefix: words that stand before its name.
    """

    log: HostLog
    prefix: str = ""

    @property
    def name(self) -> str:
        """Name of the host, as reports show it."""
        return self.prefix + self.log.host.host

    @property
    def core_count(self) -> int:
        """Number of processors that the job was granted here."""
        return len(self.log.host.cpus)

    @cached_property
    def rounds(self) -> dict[tuple[str, int], HostRound]:
        """Return each measured round by its point and number."""
        by_round: dict[tuple[str, int], list[Window]] = defaultdict(list)
        for window in self.log.windows:
            # Neither warm-ups nor idle windows mark a round.
            if window.round is not None and window.arm is not None:
                by_round[window.point, window.round].append(window)
        return {key: HostRound(tuple(windows)) for key, windows in by_round.items()}

    def select_point(self, point_id: str) -> HostRounds:
        """Return the conditions at one point alone."""
        windows = [window for window in self.log.windows if window.point == point_id]
        return replace(self, log=replace(self.log, windows=windows))

    def iterations_of_arm(self, point_id: str, arm_name: str) -> HostRound:
        """Return all measured iterations of an arm together."""
        return HostRound(
            tuple(
                window
                for window in self.log.windows
                if (window.point, window.arm) == (point_id, arm_name) and window.round is not None
            )
        )

    def window_of_round(self, point_id: str, arm_name: str, round_number: int) -> Window | None:
        """Return the window of one arm in one round; None if it was not written."""
        host_round = self.rounds.get((point_id, round_number))
        windows = () if host_round is None else host_round.windows
        return next((window for window in windows if window.arm == arm_name), None)

    def idle_windows(self, point_id: str) -> list[Window]:
        """Return the windows of a point in which the job did nothing."""
        return [
            window for window in self.log.windows if window.point == point_id and window.arm is None
        ]


def read_host_rounds(run: Run) -> list[HostRounds]:
    """Return the conditions of each host that recorded some; none for older records.

    Raises:
        RecordError: a file cannot be read, is of another run, or names what its run does not.
    """
    return join_sessions(read_session_rounds(run))


def join_sessions(sessions: Iterable[HostRounds]) -> list[HostRounds]:
    """Return the conditions of each host over all sessions, from those of each session."""
    by_host: dict[str, HostLog] = {}
    for log in (session.log for session in sessions):
        # A host has one log of all sessions, since no two of them share a round.
        earlier_log = by_host.get(log.host.host)
        windows = log.windows if earlier_log is None else [*earlier_log.windows, *log.windows]
        by_host[log.host.host] = replace(log, windows=windows)
    return [HostRounds(log) for log in by_host.values()]


def read_session_rounds(run: Run) -> list[HostRounds]:
    """Return the conditions of each host in each session, as :func:`read_host_rounds`."""
    is_continued = len(run.sessions) > 1
    return [
        HostRounds(log, f"session {session.number}, " if is_continued else "")
        for session in run.sessions
        for log in _read_logs(session)
    ]


def _read_logs(run: Run) -> list[HostLog]:
    """Read the files of one session, without the windows of iterations that do not count."""
    logs = read_conditions(run.path, run.number, run.damaged_files)
    for log in logs:
        require_of_run(log, run)
    return [
        replace(
            log,
            windows=[
                window
                for window in log.windows
                if window.iteration is None or run.holds(window.point, window.iteration)
            ],
        )
        for log in logs
    ]


def require_of_run(log: HostLog, run: Run) -> None:
    """Refuse the conditions of another run.

    Raises:
        RecordError: the file is of another run, or names a point or an arm that this one lacks.
    """
    if log.host.run_id != run.header.run_id:
        raise RecordError(f"{log.path} is of run {log.host.run_id}, not of this one")
    arms = {arm.name for arm in run.header.arms}
    points = {point.id for point in run.header.points}
    for window in log.windows:
        if window.point not in points or (window.arm is not None and window.arm not in arms):
            raise RecordError(
                f"{log.path} names point {window.point}, arm {window.arm}, which run.json does not"
            )


def find_rounds(
    hosts: Iterable[HostRounds], is_marked: Callable[[HostRound], object]
) -> set[tuple[str, int]]:
    """Return the rounds, as points and numbers, that some host marks."""
    return {
        key for host in hosts for key, host_round in host.rounds.items() if is_marked(host_round)
    }


def format_round_numbers(round_numbers: Sequence[int]) -> str:
    """Return numbers of rounds, counted from 1, with ranges: ``1–3, 7``."""
    spans: list[list[int]] = []
    for round_number in sorted(round_numbers):
        if spans and round_number == spans[-1][-1] + 1:
            spans[-1].append(round_number)
        else:
            spans.append([round_number])
    texts = [
        f"{span[0] + 1}" if len(span) == 1 else f"{span[0] + 1}–{span[-1] + 1}" for span in spans
    ]
    return ", ".join(texts)
