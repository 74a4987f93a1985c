"""Ground floor: a Hugging Face folder: which model it holds, and under which names its files keep our tensors.

Neither torch nor MPI is needed to know that, nor to find out that a folder is broken: only the headers of its
safetensors files are read here. Names and layouts are those that ``save_pretrained`` of transformers writes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dejavubench.specs import ModelSpec

CONFIG = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

SAMPLE = 4096
"""Bytes at either end of each tensor that the identity is made of, beside the headers."""


class CheckpointError(ValueError):
    """A folder cannot be used; the message names the file and, where one is at fault, the tensor."""


# ---- what a file holds ----


@dataclass(frozen=True)
class Header:
    """One safetensors file: shapes of its tensors, and where their bytes are (https://github.com/huggingface/safetensors)."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    spans: Mapping[str, tuple[int, int]]
    digest: bytes

    @classmethod
    def read(cls, path: Path) -> Header:
        """Raises CheckpointError: it is no whole safetensors file."""
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= size - 8:
                    raise CheckpointError(f"{path}: no safetensors file, or one that is cut off in its header")
                raw = file.read(length)
            entries: dict[str, Any] = json.loads(raw)
            entries.pop("__metadata__", None)
            shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
            spans = {name: (8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1])
                     for name, entry in entries.items()}  # fmt: skip
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, IndexError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: its header is no safetensors header") from None
        for name, (_, stop) in spans.items():
            if stop > size:
                raise CheckpointError(f"{path}: tensor {name} ends at byte {stop}, the file at {size}: it is cut off")
        return cls(path, shapes, spans, hashlib.blake2b(raw, digest_size=16).digest())

    def sample(self) -> bytes:
        """A digest of both ends of every tensor."""
        digest = hashlib.blake2b(self.digest, digest_size=16)
        with self.path.open("rb") as file:
            for start, stop in sorted(self.spans.values()):
                for at in (start, max(start, stop - SAMPLE)):
                    file.seek(at)
                    digest.update(file.read(min(SAMPLE, stop - at)))
        return digest.digest()


# ---- where our tensors are ----


@dataclass(frozen=True)
class Stored:
    """How one of our tensors is kept.

    Attributes:
        name: in the files, without the family's prefix.
        transposed: as [in, out].
        part: it is this third of a fused query, key and value.
        interleaved: of a fused one: the elements of a head, whose query, key and value follow each other (BLOOM); 0:
            all queries come first, then all keys.
    """

    name: str
    transposed: bool = False
    part: int | None = None
    interleaved: int = 0


@dataclass(frozen=True)
class Family:
    """One architecture: its sizes from ``config.json``, and the names of its tensors.

    Attributes:
        prefixes: of all names in the files, one of them.
        requires: values of the configuration that are implemented; a key that is missing has them.
    """

    spec: Callable[[str, _Config], ModelSpec]
    names: Callable[[str, int], Stored]
    prefixes: tuple[str, ...]
    requires: Mapping[str, Any] = field(default_factory=dict)


class _Config:
    """``config.json``, read key by key."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self._path, self.content = path, content

    def size(self, *keys: str, default: int | None = None) -> int:
        """The first of these keys that is there."""
        value = next((self.content[key] for key in keys if self.content.get(key) is not None), default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self._path}: {keys[0]} must be a positive integer, not {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self._path}: {key} must be true or false, not {value!r}")
        return value

    def heads(self, hidden: int, *keys: str) -> tuple[int, int]:
        """Heads, and elements of each."""
        heads = self.size(*keys)
        if hidden % heads:
            raise CheckpointError(f"{self._path}: {heads} heads do not divide a width of {hidden}")
        return heads, hidden // heads


# ---- the families ----


def _gpt2_spec(name: str, config: _Config) -> ModelSpec:
    hidden = config.size("n_embd")
    heads, size = config.heads(hidden, "n_head")
    return ModelSpec(
        name,
        config.size("n_layer"),
        heads,
        size,
        config.size("vocab_size"),
        config.size("n_positions"),
        config.size("n_inner", default=4 * hidden),
    )


def _opt_spec(name: str, config: _Config) -> ModelSpec:
    hidden = config.size("hidden_size")
    heads, size = config.heads(hidden, "num_attention_heads")
    embed = config.size("word_embed_proj_dim", default=hidden)
    return ModelSpec(
        name,
        config.size("num_hidden_layers"),
        heads,
        size,
        config.size("vocab_size"),
        config.size("max_position_embeddings"),
        config.size("ffn_dim"),
        position_offset=2,
        activation="relu",
        norm_first=config.flag("do_layer_norm_before", True),
        embed_size=None if embed == hidden else embed,
    )


def _bloom_spec(name: str, config: _Config) -> ModelSpec:
    hidden = config.size("hidden_size", "n_embed")
    heads, size = config.heads(hidden, "n_head", "num_attention_heads")
    layers, vocab = config.size("n_layer", "num_hidden_layers"), config.size("vocab_size")
    return ModelSpec(name, layers, heads, size, vocab, None, 4 * hidden, position="alibi", embed_norm=True)


_QKV = {"query": 0, "key": 1, "value": 2}


def _gpt2_name(name: str, size: int) -> Stored:
    """Its linears are kept as [in, out] (``Conv1D``)."""
    if name in ("embedding", "position"):
        return Stored({"embedding": "wte.weight", "position": "wpe.weight"}[name])
    layer, part, kind = _split(name)
    if layer is None:
        return Stored(f"ln_f.{kind}")
    if part in _QKV:
        return Stored(f"h.{layer}.attn.c_attn.{kind}", kind == "weight", _QKV[part])
    theirs = {"norm1": "ln_1", "out": "attn.c_proj", "norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}[part]
    return Stored(f"h.{layer}.{theirs}.{kind}", kind == "weight" and not part.startswith("norm"))


def _opt_name(name: str, size: int) -> Stored:
    whole = {"embedding": "embed_tokens.weight", "position": "embed_positions.weight"}
    if name in whole:
        return Stored(whole[name])
    layer, part, kind = _split(name)
    if layer is None:
        return Stored(f"{'final_layer_norm' if part == 'final_norm' else part}.{kind}")  # project_in, project_out
    theirs = {
        **{part: f"self_attn.{letter}_proj" for part, letter in zip(_QKV, "qkv", strict=True)},
        **{"out": "self_attn.out_proj", "up": "fc1", "down": "fc2"},
        **{"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"},
    }[part]
    return Stored(f"layers.{layer}.{theirs}.{kind}")


def _bloom_name(name: str, size: int) -> Stored:
    if name == "embedding":
        return Stored("word_embeddings.weight")
    layer, part, kind = _split(name)
    if layer is None:
        theirs = {"embed_norm": "word_embeddings_layernorm", "final_norm": "ln_f"}[part]
        return Stored(f"{theirs}.{kind}")
    if part in _QKV:
        return Stored(f"h.{layer}.self_attention.query_key_value.{kind}", False, _QKV[part], size)
    theirs = {
        **{"norm1": "input_layernorm", "out": "self_attention.dense", "norm2": "post_attention_layernorm"},
        **{"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
    }[part]
    return Stored(f"h.{layer}.{theirs}.{kind}")


def _split(name: str) -> tuple[int | None, str, str]:
    """``layers.3.up.weight`` → (3, "up", "weight")."""
    if match := re.fullmatch(r"layers\.(\d+)\.(\w+)\.(\w+)", name):
        return int(match[1]), match[2], match[3]
    part, _, kind = name.partition(".")
    return None, part, kind


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        _gpt2_spec,
        _gpt2_name,
        ("transformer.", ""),
        {
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
    ),
    "opt": Family(
        _opt_spec,
        _opt_name,
        ("model.decoder.", "decoder."),
        {
            "activation_function": "relu",
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "_remove_final_layer_norm": False,
            "tie_word_embeddings": True,
        },
    ),
    "bloom": Family(
        _bloom_spec,
        _bloom_name,
        ("transformer.", ""),
        {
            "layer_norm_epsilon": 1e-5,
            "apply_residual_connection_post_layernorm": False,
            "tie_word_embeddings": True,
        },
    ),
}
"""By ``model_type``."""


# ---- a folder ----


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was found whole.

    Attributes:
        spec: its model, named like the folder.
        files: the file of each tensor that is needed, by its name there.
        stored: how each of our tensors is kept, with its full name.
        identity: 16 hex digits that differ for different files: of their headers and both ends of every tensor.
    """

    folder: Path
    spec: ModelSpec
    files: Mapping[str, Path]
    stored: Mapping[str, Stored]
    identity: str


@cache
def open_checkpoint(folder: Path) -> Checkpoint:
    """Look at a folder's configuration and at the headers of its files.

    Raises:
        CheckpointError: it is of another architecture, or something is missing, cut off or of another shape.
    """
    config = _read_config(folder)
    kind = config.content.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"{folder / CONFIG}: models of type {kind!r} are not supported; {known} are")
    for key, wanted in family.requires.items():
        value = config.content.get(key, wanted)
        if value != wanted:
            raise CheckpointError(f"{folder / CONFIG}: {kind} with {key} {value!r} is not supported, only {wanted!r}")
    spec = family.spec(folder.resolve().name, config)
    headers = _headers(folder)
    tensors = {name: header for header in headers for name in header.shapes}
    prefix = next((p for p in family.prefixes if any(name.startswith(p) for name in tensors)), family.prefixes[0])
    shapes = {name: shape for header in headers for name, shape in header.shapes.items()}
    stored: dict[str, Stored] = {}
    for ours, shape in spec.tensors.items():
        short = family.names(ours, spec.size_per_head)
        full = Stored(prefix + short.name, short.transposed, short.part, short.interleaved)
        stored[ours] = full
        if full.name not in tensors:
            raise CheckpointError(f"{folder}: tensor {full.name} is in none of its files")
        wanted_shape = _stored_shape(full, shape)
        if shapes[full.name] != wanted_shape:
            found = " × ".join(map(str, shapes[full.name]))
            raise CheckpointError(
                f"{tensors[full.name].path}: tensor {full.name} is {found or 'a scalar'}; by {CONFIG} it should be "
                f"{' × '.join(map(str, wanted_shape))}"
            )
    needed = {entry.name: tensors[entry.name].path for entry in stored.values()}
    digest = hashlib.blake2b(digest_size=8)
    for header in sorted(headers, key=lambda header: header.path.name):
        digest.update(header.sample())
    return Checkpoint(folder, spec, needed, stored, digest.hexdigest())


def _stored_shape(stored: Stored, shape: tuple[int, ...]) -> tuple[int, ...]:
    if stored.part is not None:
        shape = (3 * shape[0], *shape[1:])
    return shape[::-1] if stored.transposed else shape


def _read_config(folder: Path) -> _Config:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {CONFIG}: it is no Hugging Face folder") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise CheckpointError(f"{path}: it is no JSON") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: it is no JSON object")
    return _Config(path, content)


def _headers(folder: Path) -> list[Header]:
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{index}: it is no index of safetensors files") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{index}: it names {name!r}, which is no file of this folder")
            if not (folder / name).exists():
                raise CheckpointError(f"{index}: it names {name}, which is missing")
        return [Header.read(folder / name) for name in names]
    if (folder / WHOLE).exists():
        return [Header.read(folder / WHOLE)]
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder}: {pickled[0]} is a pickle, which can run code when it is read; write safetensors instead: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(…)"
        )
    raise CheckpointError(f"{folder} has neither {WHOLE} nor {INDEX}")
