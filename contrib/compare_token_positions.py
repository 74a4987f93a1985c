"""How much slower each token of a request is than without streaming, by its place in the request.

    python contrib/compare_token_positions.py logs/fig25-20261130T111726Z

The first token is computed before any chunk of a token is under way, so it shows what streaming
costs that moves nothing. With ``--flush-interval`` N, a chunk is under way in every Nth token.
Beside it: how long the model's process was off the CPU in a request, which is what it has waited.

Differences are paired within rounds: a token against the geometric mean of the same token of
``none`` and ``none#2``. Only the first source of a run is read.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import click

from dejavubench.records import Microbatch, Run, read_run

BASELINES = ("none", "none#2")


def requests(run: Run) -> dict[str, dict[int, Microbatch]]:
    """Return each arm's measured requests by round."""
    requests_by_arm: dict[str, dict[int, Microbatch]] = defaultdict(dict)
    for rank, microbatch in run.records_of(Microbatch):
        if rank == 0 and microbatch.round is not None:
            requests_by_arm[microbatch.arm][microbatch.round] = microbatch
    return requests_by_arm


def differences(
    arm: dict[int, Microbatch], rounds_of_baselines: list[dict[int, Microbatch]]
) -> list[list[float]]:
    """Return, per round, the milliseconds by which each token took longer."""
    rounds = [
        round_number
        for round_number in arm
        if all(round_number in rounds_of_rank for rounds_of_rank in rounds_of_baselines)
    ]
    rows = []
    for round_number in rounds:
        first_ms, other_ms = (
            rounds_of_rank[round_number].token_ms for rounds_of_rank in rounds_of_baselines
        )
        pairs = zip(arm[round_number].token_ms, first_ms, other_ms, strict=True)
        rows.append([token - (a * b) ** 0.5 for token, a, b in pairs])
    return rows


def off_core_ms(microbatch: Microbatch) -> float:
    """Return the milliseconds of a request in which the model's process had no core or slept."""
    return microbatch.total_ms - microbatch.cpu_model_s * 1e3


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Print the medians over the rounds of the run in FOLDER."""
    arms = requests(read_run(folder))
    for arm, microbatches in arms.items():
        rows = differences(microbatches, [arms[name] for name in BASELINES])
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        off_core = statistics.median(
            off_core_ms(microbatch) for microbatch in microbatches.values()
        )
        click.echo(
            f"{arm}: off the CPU {off_core:.1f} ms; ms more per token, from the first one on:"
        )
        click.echo("  " + " ".join(f"{value:+.2f}" for value in medians))


if __name__ == "__main__":
    main()
