"""Arithmetic and memory traffic that a microbatch cannot do without."""

from __future__ import annotations

from dataclasses import dataclass

from dejavubench.analysis.facts.source_ranks import ran_on_gpu
from dejavubench.records import PointInfo, RankInfo, Run
from dejavubench.units import ITEMSIZE


@dataclass(frozen=True)
class Work:
    """Least work of one microbatch of a point, over all workers.

    Attributes:
        prompt_flop: operations of the prompt's products: every weight of the layers with every
            position, the head with each request's last position, and half of a full attention,
            since no position sees a later one.
        token_nbytes: bytes that the middle decode step reads: every weight once, and the keys and
            values of the positions seen. None if the type of the weights was not recorded.
    """

    prompt_flop: float
    token_nbytes: float | None


def compute_work(run: Run, point: PointInfo) -> Work:
    """Return the work of a run's point."""
    return compute_least_work(point, find_weights_itemsize(run, point))


def compute_least_work(point: PointInfo, itemsize: int | None) -> Work:
    """Compute the work from a point's sizes.

    Args:
        itemsize: bytes read for one weight; None if they are not known.
    """
    query_width = point.head_num * point.size_per_head
    batch = point.ubatch_size
    key_width = (point.kv_head_num or point.head_num) * point.size_per_head
    # 12 h² weights per layer: 4 h² of attention, 8 h² of an MLP that is four times as wide. Records
    # of other families state layer_weights.
    layer_weight_count = point.layer_weights or 12 * point.layer_num * query_width**2
    # Older records have no head_weights.
    # A head that is tied to the embedding counts, too: it is read for each token.
    head_weight_count = point.head_weights or min(
        point.vocab_size * query_width, point.parameters - layer_weight_count
    )
    # Each position meets the layers, the last one the head as well.
    prompt_weight_count = point.input_len * layer_weight_count + head_weight_count
    # QKᵀ and PV: 2 products of P² · h multiply-adds each, halved by causality. The 2 of flop = 2 ·
    # multiply-adds comes below.
    attention = point.layer_num * query_width * point.input_len**2
    # The first decode step sees P + 1 positions, the last one P + T − 1.
    mean_position_count = point.input_len + point.output_len / 2
    # Bytes of one position in one request: K and V of all layers.
    cached_nbytes = 2 * point.layer_num * key_width * ITEMSIZE[point.data_type]
    return Work(
        prompt_flop=2 * batch * (prompt_weight_count + attention),
        token_nbytes=None
        if itemsize is None
        else (layer_weight_count + head_weight_count) * itemsize
        + batch * mean_position_count * cached_nbytes,
    )


def find_weights_itemsize(run: Run, point: PointInfo) -> int | None:
    """Return the bytes read for one weight; None if older records do not tell.

    In older records, weights on a CPU had the type that the CPU multiplied: bf16 if all ranks had
    bf16 instructions, else fp32.
    """
    if point.weight_nbytes is not None:
        return point.weight_nbytes
    if ran_on_gpu(run) or point.data_type == "fp32":
        return ITEMSIZE[point.data_type]
    if point.data_type == "fp16":
        return 4
    bf16_by_rank = [info.facts.native_bf16 for _, info in run.records_of(RankInfo)]
    if not bf16_by_rank or None in bf16_by_rank:
        return None
    return 2 if all(bf16_by_rank) else 4
