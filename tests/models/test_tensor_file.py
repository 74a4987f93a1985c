"""Headers of safetensors files: what the library refuses is refused early, with the tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dejavubench.text_file import LFS_POINTER
from helpers.model_folders import (
    INDEX,
    SHARDS,
    WHOLE,
    assert_unreadable,
    cut_off,
    edit,
    rewrite_header,
    shard,
    tiny,
    write_raw,
)

QUERY = "model.layers.0.self_attn.q_proj.weight"


def lie_about_a_type(folder: Path) -> str:
    edit(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].half()}))
    rewrite_header(folder / WHOLE, lambda header: header[QUERY].update(dtype="F32"))
    return (
        f"{WHOLE}: tensor {QUERY} of type F32, 32 × 32, takes 4096 bytes; the header gives it 2048"
    )


def unknown_type(folder: Path) -> str:
    rewrite_header(folder / WHOLE, lambda header: header[QUERY].update(dtype="F7"))
    return (
        f"{WHOLE}: tensor {QUERY} is stored as 'F7', "
        "a type that the safetensors library does not know"
    )


def negative_shape(folder: Path) -> str:
    rewrite_header(folder / WHOLE, lambda header: header[QUERY].update(shape=[-32, -32]))
    return rf"{WHOLE}: tensor {QUERY} has the impossible shape \[-32, -32\]"


def gap(folder: Path) -> str:
    write_raw(folder / WHOLE, {"a": ("F32", [1], 0, 4), "b": ("F32", [1], 8, 12)}, bytes(12))
    return f"{WHOLE}: tensor b begins at byte 8 of the data, the tensor before it ends at 4"


def overlap(folder: Path) -> str:
    write_raw(folder / WHOLE, {"a": ("F32", [2], 0, 8), "b": ("F32", [1], 4, 8)}, bytes(8))
    return f"{WHOLE}: tensor b begins at byte 4 of the data, the tensor before it ends at 8"


def bytes_behind_the_last_tensor(folder: Path) -> str:
    (folder / WHOLE).write_bytes((folder / WHOLE).read_bytes() + b"12345")
    return f"{WHOLE}: 5 bytes at its end belong to no tensor"


def shard_cut_off(folder: Path) -> str:
    shard(folder)
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:-5])
    return rf"{SHARDS[1]}: tensor .* it is cut off"


def header_of_a_list(folder: Path) -> str:
    (folder / WHOLE).write_bytes((2).to_bytes(8, "little") + b"[]")
    return f"{WHOLE}: Error while deserializing header"


def huge_header(folder: Path) -> str:
    (folder / WHOLE).write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    return f"{WHOLE}: not a safetensors file, or cut off in its header"


def deep_header(folder: Path) -> str:
    raw = b'{"a":' + b"[" * 100_000
    (folder / WHOLE).write_bytes(len(raw).to_bytes(8, "little") + raw)
    return f"{WHOLE}: Error while deserializing header"


def pointer(folder: Path) -> str:
    (folder / WHOLE).write_text(f"{LFS_POINTER}v1\noid sha256:0\nsize 9\n")
    return f"{WHOLE}: this is a Git LFS pointer, not the weights: run 'git lfs pull'"


def page(folder: Path) -> str:
    (folder / WHOLE).write_text("<!doctype html><html>rate limit</html>")
    return f"{WHOLE}: this is an HTML page"


def gguf(folder: Path) -> str:
    (folder / WHOLE).write_bytes(b"GGUF" + bytes(300))
    return f"{WHOLE}: this is a GGUF file"


def nothing(folder: Path) -> str:
    (folder / WHOLE).write_bytes(b"")
    return f"{WHOLE}: the file is empty"


def other_files(folder: Path) -> str:
    (folder / WHOLE).rename(folder / "consolidated.safetensors")
    return f"has consolidated.safetensors, but neither {WHOLE} nor {INDEX}"


def of_llama_cpp(folder: Path) -> str:
    (folder / WHOLE).rename(folder / "model-Q4_K_M.gguf")
    return "model-Q4_K_M.gguf is a file of llama.cpp"


HEADERS: list[Callable[[Path], str]] = [
    *(
        lie_about_a_type,
        unknown_type,
        negative_shape,
        gap,
        overlap,
        bytes_behind_the_last_tensor,
        cut_off,
    ),
    *(
        shard_cut_off,
        header_of_a_list,
        huge_header,
        deep_header,
        pointer,
        page,
        gguf,
        nothing,
        other_files,
    ),
    of_llama_cpp,
]


@pytest.mark.parametrize("damage", HEADERS, ids=lambda damage: damage.__name__)
def test_a_file_that_the_library_would_not_read_is_refused_before_anything_starts(
    damage: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "model")
    assert_unreadable(folder, damage(folder))
