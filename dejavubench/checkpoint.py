"""Ground floor: a Hugging Face folder: which model it holds, and in which of its files our tensors are.

Neither torch nor MPI is needed to know that, nor to find out that a folder is broken: only the headers of its
safetensors files are read here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dejavubench.families import FAMILIES, CheckpointError, Config, Family, Stored
from dejavubench.specs import ModelSpec

CONFIG = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

SAMPLE = 4096
"""Bytes at either end of each tensor that the identity is made of, beside the headers."""


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


def read_spec(folder: Path) -> ModelSpec:
    """A folder's model by its configuration alone: the weights need not be there.

    Raises:
        CheckpointError: it is of another architecture, or has no configuration that can be read.
    """
    return _family_and_spec(folder)[1]


@cache
def open_checkpoint(folder: Path) -> Checkpoint:
    """Look at a folder's configuration and at the headers of its files.

    Raises:
        CheckpointError: it is of another architecture, or something is missing, cut off or of another shape.
    """
    family, spec = _family_and_spec(folder)
    headers = _headers(folder)
    tensors = {name: header for header in headers for name in header.shapes}
    prefix = next((p for p in family.prefixes if any(name.startswith(p) for name in tensors)), family.prefixes[0])
    stored: dict[str, Stored] = {}
    for ours, shape in spec.tensors.items():
        short = family.names(ours, spec.size_per_head)
        full = replace(short, name=prefix + short.name)
        stored[ours] = full
        if full.name not in tensors:
            raise CheckpointError(f"{folder}: tensor {full.name} is in none of its files")
        header, wanted_shape = tensors[full.name], _stored_shape(full, shape)
        if header.shapes[full.name] != wanted_shape:
            found = " × ".join(map(str, header.shapes[full.name]))
            raise CheckpointError(
                f"{header.path}: tensor {full.name} is {found or 'a scalar'}; by {CONFIG} it should be "
                f"{' × '.join(map(str, wanted_shape))}"
            )
    needed = {entry.name: tensors[entry.name].path for entry in stored.values()}
    digest = hashlib.blake2b(digest_size=8)
    for header in sorted(headers, key=lambda header: header.path.name):
        digest.update(header.sample())
    return Checkpoint(folder, spec, needed, stored, digest.hexdigest())


def _family_and_spec(folder: Path) -> tuple[Family, ModelSpec]:
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
    return family, family.spec(folder.resolve().name, config)


def _stored_shape(stored: Stored, shape: tuple[int, ...]) -> tuple[int, ...]:
    if stored.part is not None:
        shape = (3 * shape[0], *shape[1:])
    return shape[::-1] if stored.transposed else shape


def _read_config(folder: Path) -> Config:
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
    return Config(path, content)


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
