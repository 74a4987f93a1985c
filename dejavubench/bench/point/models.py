"""Loading this worker's part of each point's model, one model at a time."""

from __future__ import annotations

import gc

import torch

from dejavubench.bench.recording.progress_bar import ProgressBar
from dejavubench.bench.startup.context import RunContext
from dejavubench.config.points import Point
from dejavubench.dejavulib.kv_cache import KVLayout
from dejavubench.models.dtypes import dtype_of
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.shard import Shard
from dejavubench.models.loading import load_checkpoint
from dejavubench.models.weights import make_random_weights


class Models:
    """This rank's part of one model at a time; points of the same model share it.

    Args:
        progress_bar: says what is loaded and compiled.
    """

    def __init__(self, context: RunContext, progress_bar: ProgressBar) -> None:
        self._context = context
        self._progress_bar = progress_bar
        self._loaded_model: tuple[object, GPT] | None = None

    def load(self, point: Point) -> GPT:
        """Return the point's model, loaded and compiled."""
        # Points that differ in batch or lengths alone share the weights.
        key = (point.spec, point.data_type)
        if self._loaded_model is None or self._loaded_model[0] != key:
            self._loaded_model = None  # give its memory back before the next one is made
            give_memory_back()
            folder = self._context.experiment.ckpt_path
            weights = "random weights" if folder is None else f"weights of {folder}"
            self._progress_bar.announce(f"loading {point.spec.name}, {point.data_type}: {weights}")
            self._loaded_model = (key, load_model(self._context, point))
        model = self._loaded_model[1]
        # A decode step has a row per request, a prompt one per request and position.
        request_count = self._context.find_worker_view(point).sizes.ubatch_size
        layout = KVLayout(point.kv_layout)
        model.compile(
            layout,
            request_count,
            request_count * point.input_len,
            say=self._progress_bar.print_line,
        )
        return model


def load_model(context: RunContext, point: Point) -> GPT:
    """Make this worker's part, with weights of the checkpoint or from the experiment's seed."""
    assert context.collectives is not None
    plan = context.plan
    device = context.devices.own_device
    dtype = dtype_of(point.data_type)
    shard = Shard(*context.ranks.topology.shard())
    multiplied_dtype = context.devices.compute_dtype(dtype)
    model = GPT(
        spec=point.spec,
        shard=shard,
        dtype=dtype,
        compute_dtype=multiplied_dtype,
        collectives=context.collectives,
        device=device,
    )
    weights_data_type = plan.weights_data_type
    rounded_to = None if weights_data_type is None else dtype_of(weights_data_type)
    if plan.checkpoint is not None:
        load_checkpoint(model, plan.checkpoint, rounded_to)
    elif device.type == "cuda":  # drawn there, which is much faster than on the host
        model.load(
            make_random_weights(point.spec, plan.experiment.seed, device, multiplied_dtype),
            rounded_to,
        )
    else:
        model.load(make_random_weights(point.spec, plan.experiment.seed), rounded_to)
    return model


def give_memory_back() -> None:
    """Free the caches and graphs of a point before the next point makes its own."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
