"""Options of the streaming: where the cache goes, at which level, and who receives it."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import BaseModel, BeforeValidator

from dejavubench import units, values
from dejavubench.config.options.field import OPTIONS_CONFIG, option
from dejavubench.config.options.option_types import (
    CountOption,
    FolderOption,
    MaybeCountOption,
    SweptCountOption,
    as_durabilities,
    as_levels,
    as_modes,
    as_peers,
    as_stores,
)
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS

BASELINE_VARIABLE = "DEJAVULIB_BASELINE"
"""The original's environment variable for the level."""

DESTINATIONS = "{destinations}"
"""Stands for all destinations in a help text. Plugins are loaded only when the help is shown."""

_option = partial(option, "Streaming")


class StreamingOptions(BaseModel):
    """Destinations, levels, sinks and staging."""

    model_config = OPTIONS_CONFIG

    streaming: Annotated[tuple[str, ...], BeforeValidator(as_modes)] = _option(
        ("none",),
        "MODE[,MODE…]",
        f"Destinations of the cache: {DESTINATIONS}.",
        stated=True,
    )
    peer: Annotated[tuple[str, ...], BeforeValidator(as_peers)] = _option(
        (),
        "ADDR:PORT[,…]",
        "With --streaming tcp: address of 'dejavubench sink'; one for all sources, or one each.",
        # The same measurement: the address says only where the sink happens to run.
        measured=False,
        # A restart streams to disk alone: options of sinks and of other destinations do not apply.
        reset_on_restart=True,
    )
    tcp_checksums: bool = _option(
        False,
        "",
        "Hash the chunks of tcp at both ends, in addition to TCP's own checksum.",
        reset_on_restart=True,
    )
    level: Annotated[tuple[str, ...], BeforeValidator(as_levels)] = _option(
        (DEFAULT_LEVEL,),
        "LEVEL[,LEVEL…]",
        f"Optimisation levels: {', '.join(LEVELS)}. Overrides ${BASELINE_VARIABLE}, which "
        "overrides CONFIG.",
        stated=True,
    )
    flush_interval: CountOption = _option(
        1,
        "N",
        "Tokens whose keys and values move as one, after the last of them. The stream then lags "
        "by up to N tokens, and a run that is killed loses up to N tokens.",
        added=True,  # hashes of older experiments were made without it
    )
    compare: bool = _option(
        False,
        "",
        "Add the two baselines that stream nothing.",
        reset_on_restart=True,
        stated=True,
    )
    durability: Annotated[tuple[str, ...], BeforeValidator(as_durabilities)] = _option(
        ("fdatasync",),
        "D[,D…]",
        "Moment at which a chunk on disk counts as written: after fdatasync, after a direct "
        "(O_DIRECT) write, or once in the page-cache.",
        stated=True,
    )
    nccl_loopback: bool = _option(
        False,
        "",
        "Let ranks share a GPU: a source and its sink, and the parts of one model. Results are "
        "labelled loopback.",
        reset_on_restart=True,
    )
    nccl_receives_ahead: Annotated[int, BeforeValidator(partial(values.parse_count, least=0))] = (
        _option(
            0,
            "N",
            "Receives that a sink of nccl issues before their chunks are announced, at most. The "
            "others wait for their announcements.",
            added=True,  # hashes of older experiments were made without it
            reset_on_restart=True,
        )
    )
    stream_dir: FolderOption = _option(
        None,
        "DIR",
        "Folder for the streamed files. Default: the run's own folder.",
        is_text=True,  # a comma is part of a folder's name
    )
    keep: bool = _option(False, "", "Keep the streamed files after the run.")
    sink_tensor_para_size: MaybeCountOption = _option(
        None,
        "N",
        "Tensor-parallel degree of the sinks. Default: that of the sources.",
        reset_on_restart=True,
        stated=True,
    )
    sink_pipeline_para_size: MaybeCountOption = _option(
        None,
        "N",
        "Pipeline depth of the sinks. Default: that of the sources.",
        reset_on_restart=True,
        stated=True,
    )
    sink_ubatch_size: MaybeCountOption = _option(
        None,
        "N",
        "Requests per microbatch of the sinks; must divide the requests in flight. Default: those "
        "of the sources.",
        reset_on_restart=True,
        stated=True,
    )
    handoff: bool = _option(
        False,
        "",
        "Give the sinks the model too, in their own setup, and let them continue where the sources "
        "stop.",
        reset_on_restart=True,
        stated=True,
    )
    handoff_tokens: CountOption = _option(
        1,
        "N",
        "With --handoff: new tokens that the sources generate, including the one that ends the "
        "prompt.",
        reset_on_restart=True,
        stated=True,
    )
    swap: Annotated[tuple[str, ...], BeforeValidator(as_stores)] = _option(
        (),
        "STORE[,STORE]",
        "Let microbatches take turns in --resident caches. The others wait in this store: host or "
        "disk.",
        reset_on_restart=True,
        stated=True,
    )
    resident: CountOption = _option(
        2,
        "N",
        "With --swap: caches in place, fewer than the pipeline has stages.",
        reset_on_restart=True,
    )
    staging_mib: SweptCountOption = _option(
        (16,), "MIB[,MIB…]", "Size of each staging slot, in MiB. Larger chunks are cut."
    )
    staging_slots: SweptCountOption = _option((4,), "N[,N…]", "Staging slots per source.")
    drain_timeout: Annotated[float, BeforeValidator(units.parse_seconds)] = _option(
        60.0, "TIME", "Fail the run if streaming makes no progress for this long."
    )
