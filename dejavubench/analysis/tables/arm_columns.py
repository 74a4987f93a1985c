"""The leading columns of tables with several rows for each arm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dejavubench.analysis.facts.samples import ArmSamples
from dejavubench.analysis.tables.process_columns import Sizes
from dejavubench.records import Run


@dataclass
class ArmPhase:
    """The run, point, arm and phase that a row is about."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep, such as p000."]
    sizes: Sizes
    arm: Annotated[str, "Name of the arm: a destination and a level."]
    mode: Annotated[str, "Destination."]
    level: Annotated[str | None, "Level of DéjàVuLib's optimisations."]
    durability: Annotated[str | None, "Condition on which a chunk counts as written."]
    phase: Annotated[str, "prompt, tokens (all steps together) or, of overheads, total."]

    @classmethod
    def of_samples(cls, run: Run, samples: ArmSamples, phase: str) -> ArmPhase:
        """Return the leading columns of one arm in one phase."""
        arm = samples.info
        return cls(
            run=run.path.name,
            point=samples.point_info.id,
            sizes=Sizes.of_point(samples.point_info),
            arm=arm.name,
            mode=arm.mode,
            level=arm.level,
            durability=arm.durability,
            phase=phase,
        )
