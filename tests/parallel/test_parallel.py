"""The roles of ranks, and a split model under a real mpirun."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dejavubench.parallel.topology import ShardPlace, Topology
from helpers.jobs import run
from helpers.paths import DRIVERS

REQUESTS, VOCABULARY = 3, 101
"""Requests of a microbatch and words of the models in mpi/split_model.py."""

Outcomes = dict[tuple[str, str], dict[str, Any]]
"""Tokens and logits of the split model and the unsplit one, by family and waiting policy."""

# ---- topology ----


def test_the_first_ranks_are_sources_and_the_others_sinks() -> None:
    ranks = [Topology(size=8, rank=rank, tensor_size=2, stage_count=2) for rank in range(8)]
    assert [place.role for place in ranks] == ["source"] * 4 + ["sink"] * 4
    assert [place.worker_index for place in ranks] == [0, 1, 2, 3] * 2
    assert [place.stage for place in ranks] == [0, 0, 1, 1] * 2
    assert [place.tensor_rank for place in ranks] == [0, 1, 0, 1] * 2
    assert ranks[0].has_sinks
    assert list(ranks[0].sources) == [0, 1, 2, 3]
    assert list(ranks[0].sinks) == [4, 5, 6, 7]
    assert ranks[2].shard() == ShardPlace(stage=1, stage_count=2, tensor_rank=0, tensor_size=2)


def test_sinks_of_another_setup_have_roles_of_their_own() -> None:
    ranks = [
        Topology(
            size=7, rank=rank, tensor_size=2, stage_count=2, sink_tensor_size=1, sink_stage_count=3
        )
        for rank in range(7)
    ]
    assert [place.role for place in ranks] == ["source"] * 4 + ["sink"] * 3
    assert [place.worker_index for place in ranks] == [0, 1, 2, 3, 0, 1, 2]
    assert [place.stage for place in ranks] == [0, 0, 1, 1, 0, 1, 2]
    assert [place.tensor_rank for place in ranks] == [0, 1, 0, 1, 0, 0, 0]
    assert not Topology(
        size=4, rank=0, tensor_size=2, stage_count=2, sink_tensor_size=1, sink_stage_count=3
    ).has_sinks
    with pytest.raises(ValueError, match="runs on 4 ranks, or with sinks on 7; there are 8"):
        Topology(
            size=8, rank=0, tensor_size=2, stage_count=2, sink_tensor_size=1, sink_stage_count=3
        )


def test_ranks_for_the_sources_alone_have_no_sinks() -> None:
    place = Topology(size=4, rank=3, tensor_size=2, stage_count=2)
    assert (place.has_sinks, place.role, len(place.sinks)) == (False, "source", 0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 0, 1, 1), "runs on 1 ranks, or with sinks on 2; there are 3"),
        ((2, 0, 2, 2), "runs on 4 ranks, or with sinks on 8; there are 2"),
        ((0, 0, 1, 1), "there are 0"),
        ((2, 2, 1, 1), "no rank 2 of 2"),
        ((2, -1, 1, 1), "no rank -1"),
        ((2, 0, 0, 1), "must be positive"),
    ],
)
def test_impossible_places_are_refused(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology(*sizes)


# ---- under mpirun ----


def output_of(folder: Path, ranks: int, script: str, *args: object) -> str:
    """Return the output of the script; fail with its stderr."""
    driver = ("-m", "mpi4py", str(DRIVERS / script))  # an exception on one rank aborts all
    return run(folder, ranks, *args, driver=driver).stdout


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Outcomes]:
    """Return a function that runs a setup's job once; see :data:`Outcomes`."""

    @cache
    def of_setup(tensor_size: int, stages: int) -> Outcomes:
        folder = tmp_path_factory.mktemp("split")
        lines = output_of(folder, tensor_size * stages, "split_model.py", tensor_size, stages)
        documents = map(json.loads, lines.splitlines())
        return {(document["family"], document["wait"]): document for document in documents}

    return of_setup


@pytest.mark.mpi
@pytest.mark.parametrize("wait", ["spin", "yield"])
@pytest.mark.parametrize("family", ["gpt2", "opt-post-norm", "bloom"])
@pytest.mark.parametrize(("tensor_size", "stages"), [(2, 1), (1, 2), (2, 2)])
def test_split_model_equals_the_unsplit_one(
    tensor_size: int,
    stages: int,
    family: str,
    wait: str,
    outcomes: Callable[[int, int], Outcomes],
) -> None:
    outcome = outcomes(tensor_size, stages)[family, wait]
    assert len(outcome["tokens"]) == len(outcome["logits"]) == tensor_size
    for tokens in outcome["tokens"]:  # of every tensor rank
        assert tokens == outcome["expected_tokens"]
    expected = torch.tensor(outcome["expected_logits"])  # [microbatch, B, vocabulary]
    # Two ranks share the vocabulary as 51 and 50 words.
    logits = torch.cat([torch.tensor(part) for part in outcome["logits"]], dim=-1)
    assert logits.shape == expected.shape == (stages, REQUESTS, VOCABULARY)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.mpi
def test_collectives_of_mpi_are_right(tmp_path: Path) -> None:
    assert output_of(tmp_path, 4, "collectives.py") == "all well\n"
