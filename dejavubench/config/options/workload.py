"""Options of the requests: what is generated, and what the run is called."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import BaseModel, BeforeValidator

from dejavubench.config.options.field import OPTIONS_CONFIG, option
from dejavubench.config.options.option_types import (
    CountsOption,
    FolderOption,
    MaybeCountOption,
    as_name,
    as_text,
)
from dejavubench.records.figures import FIGURES, FigureName

CACHE_STEP = 32
"""Unless told otherwise a cache's positions are a multiple of this: kernels like such sizes."""

_option = partial(option, "Workload")


class WorkloadOptions(BaseModel):
    """The requests of a run, and its name."""

    model_config = OPTIONS_CONFIG

    name: Annotated[str, BeforeValidator(as_name)] = _option(
        "run",
        "NAME",
        "Name of the run's folder. With CONFIG: that file's name.",
        measured=False,
        is_text=True,
        stated=True,
    )
    figure: FigureName | None = _option(
        None,
        "FIGURE",
        f"Figure that the run is made for: {', '.join(FIGURES)}.",
        reset_on_restart=True,
        stated=True,
    )
    note: Annotated[str | None, BeforeValidator(as_text)] = _option(
        None,
        "TEXT",
        "Text to keep with the records and to show under the figures.",
        measured=False,
        is_text=True,
        stated=True,
    )
    resume: FolderOption = _option(
        None,
        "DIR",
        "Go on with the request that the run in DIR was killed in (it must have used --streaming "
        "disk --keep). Takes the place of CONFIG; other flags override the killed run's settings.",
        is_text=True,
        stated=True,
    )
    ubatch_size: CountsOption = _option(
        (1,),
        "N[,N…]",
        "Requests per microbatch.",
        stated=True,
    )
    input_len: CountsOption = _option(
        (1,),
        "P[,P…]",
        "Tokens of each random prompt.",
        stated=True,
    )
    prompts: FolderOption = _option(
        None,
        "FILE",
        "File with one prompt per line, instead of random prompts. Prompts are used in order, and "
        "again from the first. A line holds token ids: 1,2,3 in any file; [1, 2, 3] or "
        '{"prompt": [1, 2, 3]} in .jsonl. Or it holds text, which needs transformers and the '
        "tokenizer in --ckpt-path. Shorter prompts are padded on the left.",
        measured=False,  # the token ids are hashed in its place
        is_text=True,
    )
    output_len: CountsOption = _option(
        (32,),
        "T[,T…]",
        "New tokens per request, including the one that ends the prompt.",
        stated=True,
    )
    max_seq_len: MaybeCountOption = _option(
        None,
        "N",
        f"Positions of the cache. Default: P + T, rounded up to a multiple of {CACHE_STEP}.",
    )
