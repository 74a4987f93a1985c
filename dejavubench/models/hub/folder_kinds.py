"""Recognising folders that do not hold plain weights of a text model, such as adapters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from dejavubench.models.hub.model_config import CONFIG, ModelConfig
from dejavubench.models.hub.tensor_file import READ_TYPES, CheckpointError, Header

ADAPTER = "adapter_config.json"
"""File of a PEFT adapter, which changes another folder's weights."""

QUANTISED_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "NVIDIA ModelOpt",
    "quanto_qmap.json": "Quanto",
}
"""Files that quantising tools leave beside the weights."""

QUANTISED_KEYS = ("quantization_config", "compression_config", "quantization")
"""Keys of the configuration of quantised models; the last one is MLX's."""

QUANTISED_NAMES = {
    r"\.qweight|\.qzeros|\.g_idx": "GPTQ or AWQ",
    r"\.SCB|\.weight_format|\.(nested_)?absmax|\.quant_map|\.quant_state\.\w+": "bitsandbytes",
    r"\.weight_(packed|shape|zero_point|g_idx|global_scale)": "compressed-tensors",
    r"\.weight_scale(_inv)?|\.[kv]_scale|\.scales?|\.(in|out)put_scale": "fp8 or int8",
}
"""Ends of tensors' names that only quantised folders have."""

MULTIMODAL_NAMES = (
    r"(model\.)?(language_model|text_model|vision_tower|vision_model|visual|vision_embed_tokens|image_newline"
    r"|multi_modal_projector|mm_projector|audio_tower|thinker)\."
)
MULTIMODAL_KEYS = ("vision_config", "text_config", "audio_config", "thinker_config")
"""Signs of a model of more than text, in tensor names and in ``config.json``."""

HUB_CACHE = re.compile(r"(?:models|datasets|spaces)--(?:.+?--)?(.+)")
"""The name of a repository's folder in a hub's cache; its revisions are under ``snapshots``."""


def find_model_name(folder: Path) -> str:
    """Return the name of a folder's model: its own, or in a hub's cache the repository's."""
    resolved_folder = folder.resolve()
    repository = HUB_CACHE.fullmatch(resolved_folder.parent.parent.name)
    return (
        repository[1]
        if repository and resolved_folder.parent.name == "snapshots"
        else resolved_folder.name
    )


def refuse_other_kinds(folder: Path, config: ModelConfig) -> None:
    """Raise CheckpointError if its configuration describes an adapter or quantised weights."""
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder}: {ADAPTER} shows that it is an adapter (PEFT), not a whole model. Merge it "
            "into its base model (merge_and_unload), and give the folder that save_pretrained "
            "writes"
        )
    for key in QUANTISED_KEYS:
        if config.content.get(key) is not None:
            method = config.read_object(key).content.get("quant_method")
            method_text = f" ({method})" if isinstance(method, str) else ""
            raise CheckpointError(
                f"{config.path}: {key} says that the weights are quantised{method_text}. {_PLAIN}"
            )
    for name, tool in QUANTISED_FILES.items():
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder}: {name} says that the weights are quantised ({tool}). {_PLAIN}"
            )
    index_name = config.content.get("transformers_weights")
    if index_name is not None:
        raise CheckpointError(
            f"{config.path}: transformers_weights {index_name!r} is not supported: other files' "
            "names"
        )


def make_unsupported_type_error(
    config: ModelConfig, supported_types: Iterable[str]
) -> CheckpointError:
    """Return the error for a ``model_type`` that is none of the known ones."""
    model_type = config.content.get("model_type")
    if any(key in config.content for key in MULTIMODAL_KEYS):
        return CheckpointError(
            f"{config.path}: {model_type!r} is a multimodal model, which is not supported; "
            f"text models are: {', '.join(supported_types)}"
        )
    return CheckpointError(
        f"{config.path}: models of type {model_type!r} are not supported; "
        f"{', '.join(supported_types)} are"
    )


def refuse_types(headers: Iterable[Header], spared_names: re.Pattern[str]) -> None:
    """Raise CheckpointError if a type is not read, unless its tensor is in ``spared_names``."""
    for header in headers:
        for name, dtype in header.types.items():
            if dtype not in READ_TYPES and not spared_names.fullmatch(name):
                tool = find_quantisation(header.types)
                raise CheckpointError(
                    f"{header.path}: tensor {name} is stored as {dtype}"
                    f"{f': the weights are quantised ({tool})' if tool else ''}. {_PLAIN}"
                )


def find_quantisation(tensor_names: Collection[str]) -> str | None:
    """Return the tool or format that gives tensors such names; None if they are plain."""
    return next(
        (
            tool
            for ends, tool in QUANTISED_NAMES.items()
            if any(re.search(f"({ends})$", name) for name in tensor_names)
        ),
        None,
    )


def recognise_other_weights(tensor_names: Collection[str], config: ModelConfig) -> str | None:
    """Return the kind of a folder with such tensors; None if it is not known."""
    # The surest signs come first: names that no other kind of folder has.
    if any(".lora_" in name or name.startswith("base_model.model.") for name in tensor_names):
        return "it holds an adapter (PEFT); merge it into its base model and give that folder"
    if tool := find_quantisation(tensor_names):
        return f"the weights are quantised ({tool}). {_PLAIN}"
    if any(re.match(MULTIMODAL_NAMES, name) for name in tensor_names):
        return "it holds a multimodal model, and reading only its text part is not supported"
    if any(re.match(r"(layers\.\d+|embed_tokens)\.", name) for name in tensor_names):
        return (
            "it holds a base model without a head, such as LlamaModel saves; "
            "load it with AutoModelForCausalLM and save that"
        )
    architectures = config.content.get("architectures")
    if (
        isinstance(architectures, list)
        and architectures
        and not re.search("ForCausalLM$|LMHeadModel$", str(architectures[0]))
    ):
        return (
            f"{CONFIG} says that it was saved from {architectures[0]}, "
            "not from a model that generates text"
        )
    return None


_PLAIN = (
    f"Only weights in {', '.join(sorted(READ_TYPES))} are read: "
    "save the model without quantisation."
)
