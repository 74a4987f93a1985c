"""The table of measured machines: the shares of a ceiling that streams reached there.

``shipped.json`` is part of the package. ``scripts/make_shipped.py`` makes it from ``results/``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dejavubench.records import RecordError
from dejavubench.records.field_types import Model

SHIPPED_TABLE = "shipped"
"""Word that stands for the table of the package."""

SHIPPED_FILE = "shipped.json"
"""The table of measured machines; ``scripts/make_shipped.py`` makes it from ``results/``."""


class MeasuredArm(Model):
    """An arm of level 3 that was measured on a machine.

    Attributes:
        machine: name of the machine's folder, or else its processor.
        processor: name of the GPU that the model ran on, with the number of GPUs, or of the CPU.
        date: day of the run.
        run, run_id: folder and identity of the run.
        on_gpu: whether the model ran on a GPU.
        mode, durability, hosts: destination, and the columns of these names.
        chunk_bytes: mean size of a chunk.
        ceiling: name of the probe that bounds the destination; None if it was not measured.
        share_pct: rate of the stream alone, in percent of that ceiling.
        overhead_pct: paired overhead of TOTAL; None without a baseline.
        machine_digest: digest of the machine in the records; None in older ones.
    """

    machine: str
    processor: str
    date: str
    run: str
    run_id: str
    arm: str
    model: str
    on_gpu: bool
    mode: str
    durability: str | None = None
    hosts: str | None = None
    chunk_bytes: float
    ceiling: str | None = None
    share_pct: float | None = None
    overhead_pct: float | None = None
    machine_digest: str | None = None

    def is_same_machine(self, other_arm: MeasuredArm) -> bool:
        """Return whether another arm was measured on the same machine, by any sign of it."""
        # The records of a run may be copied, and a machine's folder may have any name.
        if self.machine == other_arm.machine or self.run_id == other_arm.run_id:
            return True
        return self.machine_digest is not None and self.machine_digest == other_arm.machine_digest

    def is_same_class(self, other_arm: MeasuredArm) -> bool:
        """Return whether another arm went the same way on a machine of the same class."""

        def key(arm: MeasuredArm) -> tuple[object, ...]:
            # The hosts, too: a share of a link within one host says nothing of one between hosts.
            return arm.on_gpu, arm.mode, arm.durability, arm.hosts, arm.ceiling

        return key(self) == key(other_arm)


@dataclass(frozen=True)
class MachineTable:
    """Arms that were measured on some machines.

    Attributes:
        name: ``shipped``, or the path that was given.
    """

    name: str
    arms: Sequence[MeasuredArm]


_ARMS = TypeAdapter(list[MeasuredArm])


def read_shipped_table() -> MachineTable:
    """Return the table of the package."""
    text = resources.files(__package__).joinpath(SHIPPED_FILE).read_text(encoding="utf-8")
    return MachineTable(SHIPPED_TABLE, _ARMS.validate_json(text))


def read_table(path: Path) -> MachineTable:
    """Read a table that ``scripts/make_shipped.py`` has written.

    Raises:
        RecordError: the file cannot be read, or is no such table.
    """
    try:
        return MachineTable(str(path), _ARMS.validate_json(path.read_bytes()))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    except ValidationError as error:
        complaint = error.errors(include_input=False, include_url=False)[0]
        key_path = "".join(f"{key}." for key in complaint["loc"]).removesuffix(".")
        problem = f"{key_path} {complaint['msg']}".strip()
        raise RecordError(
            f"{path} is no table of machines: {problem}. Give shipped, a folder of runs, or a "
            "table of scripts/make_shipped.py"
        ) from None


def format_arms(arms: Sequence[MeasuredArm]) -> str:
    """Return the arms as the text of a table's file."""
    documents = [arm.model_dump(mode="json", exclude_none=True) for arm in arms]
    return json.dumps(documents, indent=1, ensure_ascii=False) + "\n"
