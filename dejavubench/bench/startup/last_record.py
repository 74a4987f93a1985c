"""The record that is written after everything is measured."""

from __future__ import annotations

from dejavubench import records
from dejavubench.bench.environment import clock_offset
from dejavubench.bench.startup.context import RunContext


def write_last_record(context: RunContext, are_all_verified: bool) -> None:
    """Write this rank's End record and close its file. Collective."""
    clock = clock_offset.measure(context.comms.verification, context.ranks.hosts)
    environment = context.conditions.outcome() | clock
    recorder = context.workspace.recorder
    # Nothing is measured any more, so both files are whole.
    seals = context.workspace.chunk_file.seal | context.sampler.seal
    recorder.write(
        records.End(
            status="ok" if are_all_verified else "failed",
            environment=environment,
            file_digests=seals,
        )
    )
    recorder.close()
