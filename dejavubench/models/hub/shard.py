"""Which part of a model one worker holds; torch is not needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from dejavubench.dejavulib.kv_cache import Span
from dejavubench.models.hub.model_spec import ModelSpec

Cut = tuple[Span, ...]
"""One span for each axis of a full tensor."""


@dataclass(frozen=True)
class Shard:
    """The layers of one pipeline stage, and of each layer the part of one tensor rank.

    Tensor ranks split queries, keys, values and the MLP's inner columns, and the vocabulary's rows
    (Shoeybi et al. 2019, arXiv 1909.08053).

    Raises:
        ValueError: a rank is outside its group.
    """

    stage: int = 0
    stage_count: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.stage < self.stage_count and 0 <= self.tensor_rank < self.tensor_size):
            raise ValueError(
                f"not a part of {self.stage_count} stages × {self.tensor_size} tensor ranks: {self}"
            )

    @property
    def is_first_stage(self) -> bool:
        """Whether this worker embeds tokens."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this worker computes logits and chooses tokens."""
        return self.stage == self.stage_count - 1

    def layers(self, spec: ModelSpec) -> Span:
        """Return the numbers of this stage's layers, counted over the whole model.

        Raises:
            ValueError: there are more stages than layers.
        """
        cuts = spec.layer_cuts(self.stage_count)
        return Span(cuts[self.stage], cuts[self.stage + 1])

    def heads(self, spec: ModelSpec) -> Span:
        """Return the numbers of the heads of keys and values; each has ``spec.group`` query heads.

        Raises:
            ValueError: the tensor-parallel size does not divide them.
        """
        noun = "heads" if spec.group == 1 else "KV heads"
        return self._cut_evenly(spec.kv_heads, f"{spec.kv_heads} {noun} of {spec.name}")

    def ffn(self, spec: ModelSpec) -> Span:
        """Return the inner columns of the MLP.

        Raises:
            ValueError: the tensor-parallel size does not divide them.
        """
        return self._cut_evenly(spec.ffn_size, f"MLP of {spec.name}, {spec.ffn_size} wide,")

    def vocab(self, spec: ModelSpec) -> Span:
        """Return the rows of the vocabulary; the first ranks have one more where it is uneven.

        Raises:
            ValueError: the vocabulary has fewer rows than there are tensor ranks.
        """
        shortest_row_count, longer_rank_count = divmod(spec.vocab_size, self.tensor_size)
        if shortest_row_count == 0:
            raise ValueError(
                f"a vocabulary of {spec.vocab_size} cannot be split over "
                f"{self.tensor_size} tensor ranks"
            )
        start = self.tensor_rank * shortest_row_count + min(self.tensor_rank, longer_rank_count)
        return Span(start, start + shortest_row_count + (self.tensor_rank < longer_rank_count))

    def outer_cuts(self, spec: ModelSpec) -> dict[str, Cut]:
        """Return which part of each tensor outside the layers this worker holds, by our names.

        The first stage has the whole embedding, the last one this rank's rows of the head. A tied
        head is the embedding's rows: a worker that is first and last holds them once.
        """
        cuts: dict[str, Cut] = {}
        if self.is_first_stage:
            cuts |= {name: _cut_whole(shape) for name, shape in spec.first_tensors.items()}
        if self.is_last_stage:
            cuts |= {name: _cut_whole(shape) for name, shape in spec.last_tensors.items()}
            if not (self.is_first_stage and spec.tied):
                width = Span(0, spec.embed_size or spec.hidden)
                cuts["embedding" if spec.tied else "head"] = (self.vocab(spec), width)
        return cuts

    def layer_cuts(self, spec: ModelSpec) -> dict[str, Cut]:
        """Return which part of each tensor of a layer this worker holds, by names in the layer."""
        keys = self.heads(spec).scale(spec.size_per_head)
        parts = {"keys": keys, "queries": keys.scale(spec.group), "ffn": self.ffn(spec)}
        cuts: dict[str, Cut] = {}
        for name, shape in spec.layer_tensors.items():
            linear, _, parameter = name.partition(".")
            cut = _cut_whole(shape)
            if linear in _CUT_ROWS:
                cut = (parts[_CUT_ROWS[linear]], *cut[1:])
            elif linear in _CUT_COLUMNS and parameter == "weight":
                cut = (cut[0], parts[_CUT_COLUMNS[linear]])
            elif linear in _CUT_COLUMNS and self.tensor_rank != 0:
                continue  # the ranks' outputs are summed: one rank alone adds the bias
            cuts[name] = cut
        return cuts

    def count_parameters(self, spec: ModelSpec) -> int:
        """Return how many weights this worker holds."""
        outer_count = _count_elements(self.outer_cuts(spec).values())
        layer_count = _count_elements(self.layer_cuts(spec).values())
        return outer_count + self.layers(spec).size * layer_count

    def _cut_evenly(self, total: int, subject: str) -> Span:
        share_size, remainder = divmod(total, self.tensor_size)
        if remainder:
            raise ValueError(
                f"the {subject} cannot be divided evenly over {self.tensor_size} tensor-parallel "
                "ranks"
            )
        return Span(self.tensor_rank * share_size, (self.tensor_rank + 1) * share_size)


_CUT_ROWS = {"query": "queries", "key": "keys", "value": "keys", "gate": "ffn", "up": "ffn"}
_CUT_COLUMNS = {"out": "queries", "down": "ffn"}
"""A layer's linears that are split by outputs, and by inputs; every rank has the norms."""


def count_most_parameters(spec: ModelSpec, tensor_size: int, stage_count: int) -> int:
    """Return how many weights the worker holds that holds most of them.

    Raises:
        ValueError: the model cannot be split like this.
    """
    # Of its stage tensor rank 0 has most, and no inner stage has more layers than the first one.
    ends = {Shard(stage, stage_count, 0, tensor_size) for stage in (0, stage_count - 1)}
    return max(shard.count_parameters(spec) for shard in ends)


def _cut_whole(shape: tuple[int, ...]) -> Cut:
    return tuple(Span(0, size) for size in shape)


def _count_elements(cuts: Iterable[Cut]) -> int:
    return sum(prod(span.size for span in cut) for cut in cuts)
