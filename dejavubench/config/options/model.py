"""Options of the model that fills the cache."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator

from dejavubench import values
from dejavubench.config.options.field import OPTIONS_CONFIG, option
from dejavubench.config.options.option_types import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    CountOption,
    MaybeCountOption,
    as_folder,
    as_list,
    as_models,
    as_temperature,
    as_top_p,
)
from dejavubench.config.points import DataType, LayoutName
from dejavubench.models.hub.specs import CUSTOM

GivenType = Literal["auto", "fp32", "bf16", "fp16"]
"""Values of ``--inference-data-type``; ``auto`` takes what the device multiplies well."""

_option = partial(option, "Model")
_FOR_CUSTOM = f"With --model {CUSTOM}:"


class ModelOptions(BaseModel):
    """The model, its cache, and how tokens are drawn."""

    model_config = OPTIONS_CONFIG

    model: Annotated[tuple[str, ...], BeforeValidator(as_models)] = _option(
        (CUSTOM,),
        "NAME[,NAME…]",
        f"Sizes by name: gpt2, opt-13b, llama-3.1-8b, qwen3-8b, …, or {CUSTOM}.",
        stated=True,
    )
    layer_num: CountOption = _option(24, "N", f"{_FOR_CUSTOM} layers.")
    head_num: CountOption = _option(16, "N", f"{_FOR_CUSTOM} attention heads.")
    size_per_head: CountOption = _option(64, "N", f"{_FOR_CUSTOM} elements per head.")
    vocab_size: CountOption = _option(50304, "N", f"{_FOR_CUSTOM} rows of the embedding.")
    inference_data_type: Annotated[tuple[GivenType, ...], BeforeValidator(as_list)] = _option(
        ("auto",),
        "TYPE[,TYPE…]",
        "Type of weights and cache: fp32, bf16 or fp16. auto is fp16 on cuda, bf16 if the CPU "
        "computes in it, else fp32.",
        stated=True,
    )
    weights_data_type: GivenType | None = _option(
        None,
        "TYPE",
        "Type to round the weights through first. Default: the inference type alone.",
    )
    ckpt_path: Annotated[Path | None, BeforeValidator(as_folder)] = _option(
        None,
        "DIR",
        "Hugging Face folder with safetensors (GPT-2, OPT, BLOOM, Llama, Mistral, Qwen), instead "
        "of random weights.",
        measured=False,  # the identity of its weights is hashed in its place
        is_text=True,
    )
    kv_layout: Annotated[tuple[LayoutName, ...], BeforeValidator(as_list)] = _option(
        ("hnd",),
        "LAYOUT[,LAYOUT…]",
        "Layout of the KV cache: ft (FasterTransformer), hnd or nhd.",
        stated=True,
    )
    tensor_para_size: CountOption = _option(
        1,
        "N",
        "Tensor-parallel degree.",
        stated=True,
    )
    pipeline_para_size: CountOption = _option(
        1,
        "N",
        "Pipeline depth. As many microbatches are in flight as there are stages.",
        stated=True,
    )
    temperature: Annotated[float, BeforeValidator(as_temperature)] = _option(
        0.0,
        "X",
        f"Temperature to draw tokens at, {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}. 0 "
        "takes the most likely token.",
    )
    top_k: MaybeCountOption = _option(None, "N", "Draw from the N most likely tokens only.")
    top_p: Annotated[float | None, BeforeValidator(as_top_p)] = _option(
        None, "P", "Draw from the fewest most likely tokens whose probabilities add up to P."
    )
    seed: Annotated[int, BeforeValidator(partial(values.parse_count, least=0, most=2**63 - 1))] = (
        _option(0, "N", "Seed of weights, random prompts, draws and the order of arms.")
    )


__all__ = ["DataType", "GivenType", "ModelOptions"]
