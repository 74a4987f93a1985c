"""Reasons why a run has no times of the chunks of an iteration."""

from __future__ import annotations

from dejavubench.analysis.facts.source_ranks import list_source_ranks
from dejavubench.analysis.trace.choice import TraceError
from dejavubench.records import Run
from dejavubench.records.names import name_chunk_file, rank_of_chunk_file


def require_undamaged(run: Run) -> None:
    """Refuse damaged files of chunks' times: a trace without some chunks would mislead.

    Raises:
        TraceError: the message names each damaged file.
    """
    damage = [
        reason for name, reason in run.damaged_files.items() if rank_of_chunk_file(name) is not None
    ]
    if damage:
        raise TraceError("\n".join(f"times of chunks are damaged: {reason}" for reason in damage))


def explain_missing_times(run: Run) -> str:
    """Explain why an arm's chunks have no times: the setting, an old program, or the files."""
    setting = run.header.experiment.get("chunk_times")
    if setting is False:
        return "the run recorded no times of chunks (--no-chunk-times)"
    if setting is None:
        return "the program that wrote the run is too old for times of chunks"
    states = [
        _describe_file_state(run, name_chunk_file(rank, session.number))
        for session in run.sessions
        for rank in sorted(list_source_ranks(run))
    ]
    return "; ".join(states)


def _describe_file_state(run: Run, name: str) -> str:
    path = run.path / name
    if not path.exists():
        return f"{name} is missing"
    if not path.stat().st_size:
        return f"{name} is empty"
    return f"{name} has no times of this iteration"
