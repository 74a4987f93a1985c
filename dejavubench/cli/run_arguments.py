"""The command line of ``dejavubench run``, and the plan that is read from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavubench.cli.results import ResultFile
from dejavubench.config.options.machine import RANK_TIMEOUT
from dejavubench.errors import UsageError

if TYPE_CHECKING:
    from dejavubench.config.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Arguments that a user typed. Nothing is read before :meth:`read_plan`.

    Attributes:
        config: the TOML file.
        continued_folder: folder of the run that this session goes on with, in place of ``config``.
        point_ids: the points to measure alone; None: all.
        overrides: values of options by key, which win over ``config``.
        result_file: the file for the results.
        gate: targets decide about the exit status.
        dry_run: the plan is described and not measured.
        uses_old_flag: --restart-request was given by its old name, --resume.
    """

    config: Path | None
    continued_folder: Path | None
    point_ids: tuple[str, ...] | None
    overrides: Mapping[str, Any]
    result_file: ResultFile | None
    gate: bool
    dry_run: bool
    uses_old_flag: bool

    def read_plan(self) -> Plan:
        """Read the files and return the plan. Under a launcher, rank 0 alone calls this.

        Raises:
            UsageError: arguments cannot go together, or a file cannot be used.
        """
        if not self.uses_old_flag:
            return self._read_plan()
        try:
            return self._read_plan()
        except UsageError as error:
            raise UsageError(
                f"{error}. --resume is the old name of --restart-request. To go on with a sweep, "
                "use --continue DIR"
            ) from None

    def read_rank_timeout(self) -> float:
        """Return the timeout that this rank can read for itself; rank 0 reports what is wrong."""
        from dejavubench.config.loading import read_experiment

        try:
            return read_experiment(self.config, self.overrides, os.environ).experiment.rank_timeout
        except UsageError:
            return RANK_TIMEOUT

    def _read_plan(self) -> Plan:
        from dejavubench.config.resolve import load, load_continued_run

        if self.result_file is not None:
            self.result_file.check()
        folder = self.continued_folder
        if folder is None:
            plan = load(self.config, self.overrides, os.environ, self.dry_run, self.point_ids)
        elif self.config is None:
            from dejavubench.analysis.continuable import check_can_continue

            plan = load_continued_run(
                folder, self.point_ids, self.overrides, self.dry_run, check_can_continue
            )
        else:
            raise UsageError(
                f"{self.config} cannot be combined with --continue, which takes its settings from "
                f"the run in {folder}. Drop one of them"
            )
        if self.gate:
            _require_targets(plan)
        return plan


def _require_targets(plan: Plan) -> None:
    """Refuse a gate that could never pass.

    Raises:
        UsageError: there is no target, or no arm whose overhead could be held against it.
    """
    if plan.experiment.target_overhead is None:
        raise UsageError("--gate needs a target. Add --target-overhead, such as 2%")
    streaming = [arm for arm in plan.unskipped_arms if arm.is_streaming]
    if not streaming or len(streaming) == len(plan.unskipped_arms):
        raise UsageError(
            "--gate needs overheads: an arm that streams and baselines beside it. Add "
            + ("--compare" if streaming else "--streaming, such as host")
        )
