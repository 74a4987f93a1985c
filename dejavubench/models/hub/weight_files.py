"""Which files of a Hugging Face folder its tensors are taken from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dejavubench.models.hub.tensor_file import CheckpointError, Header, is_lfs_pointer
from dejavubench.text_file import TextFileError, read_json

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
UNFINISHED = ("*.incomplete", "*.part", "*.crdownload", "*.aria2")
"""Names of downloads under way, in the folder and in the hub's own folder."""


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a folder.

    Attributes:
        tensors: the file that each of them is taken from.
        strays: tensors that the index assigns to no file, and where they are.
    """

    headers: tuple[Header, ...]
    tensors: Mapping[str, Header]
    strays: Mapping[str, Header]
    notes: tuple[str, ...] = ()


def find_weights(folder: Path) -> WeightFiles:
    """Return the tensors of a folder; as in transformers a whole file comes before an index.

    Raises:
        CheckpointError: files are missing or broken.
    """
    single_file = folder / WHOLE
    index = folder / INDEX
    if single_file.is_file():
        header = Header.read(single_file)
        both_note = f"{folder} has both {WHOLE} and {INDEX}: {WHOLE} is used, as transformers does"
        return WeightFiles(
            (header,),
            dict.fromkeys(header.shapes, header),
            {},
            (both_note,) if index.exists() else (),
        )
    if index.exists():
        return _read_index(folder, index)
    raise CheckpointError(_explain_missing_weights(folder))


def read_present_headers(folder: Path) -> Iterator[Header]:
    """Return the headers of the files that are there; other files may be missing."""
    files = [folder / WHOLE]
    if not files[0].is_file():
        file_names = (
            sorted(set(_read_weight_map(folder / INDEX).values()))
            if (folder / INDEX).is_file()
            else []
        )
        files = [folder / name for name in file_names if Path(name).name == name]
    yield from (Header.read(path) for path in files if path.is_file() and not is_lfs_pointer(path))


def _read_index(folder: Path, index: Path) -> WeightFiles:
    """Return each tensor with the file that the index assigns to it; other copies do not count."""
    file_by_tensor = _read_weight_map(index)
    headers: dict[str, Header] = {}
    for name in sorted(set(file_by_tensor.values())):
        # A name with a folder in it could lead out of the checkpoint.
        if Path(name).name != name:
            raise CheckpointError(f"{index}: it names {name!r}, which is not a file of this folder")
        try:
            # A name that is too long for the file system is an error of its own.
            is_missing = not (folder / name).exists()
        except OSError as error:
            raise CheckpointError(f"{index}: it names {name[:80]!r}…: {error.strerror}") from None
        if is_missing:
            raise CheckpointError(
                f"{index}: it names {name}, which is missing{_describe_unfinished(folder)}"
            )
        headers[name] = Header.read(folder / name)
    for tensor, name in file_by_tensor.items():
        if tensor not in headers[name].shapes:
            raise CheckpointError(
                f"{index}: it assigns tensor {tensor} to {name}, which does not hold it"
            )
    tensors = {tensor: headers[name] for tensor, name in file_by_tensor.items()}
    strays = {
        tensor: header
        for header in headers.values()
        for tensor in header.shapes
        if tensor not in file_by_tensor
    }
    return WeightFiles(tuple(headers.values()), tensors, strays)


def _read_weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor, as the index assigns them."""
    try:
        content: Any = read_json(index)
    except TextFileError as error:
        raise CheckpointError(str(error)) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise CheckpointError(
            f"{index}: it is not an index of safetensors files: "
            "weight_map must name each tensor's file"
        )
    return weight_map


def _explain_missing_weights(folder: Path) -> str:
    """Return why a folder has no weights that can be read."""
    other_files = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    if other_files and other_files[0].startswith("adapter_"):
        return (
            f"{folder}: {other_files[0]} is an adapter (PEFT), not a whole model; "
            "merge it into its base model"
        )
    if other_files:
        return (
            f"{folder} has {', '.join(other_files[:3])}, but neither {WHOLE} nor {INDEX}, "
            "which names the files of tensors"
        )
    if pickled_files := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        return (
            f"{folder}: {pickled_files[0]} is a pickle, which can run code when it is read; "
            "write safetensors instead: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(…)"
        )
    if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
        return f"{folder}: {ggufs[0]} is a file of llama.cpp; only safetensors files are read"
    return f"{folder} has neither {WHOLE} nor {INDEX}{_describe_unfinished(folder)}"


def _describe_unfinished(folder: Path) -> str:
    """Return the end of a message about an interrupted download; empty if none was."""
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    # The hub's cache: a snapshot's files are links into ``blobs``, where downloads end.
    if folder.resolve().parent.name == "snapshots":
        places.append(folder.resolve().parent.parent / "blobs")
    unfinished_files = [
        path.name for place in places for pattern in UNFINISHED for path in place.glob(pattern)
    ]
    if unfinished_files:
        return f"; a download was interrupted ({min(unfinished_files)}): finish it"
    links = sorted(
        path.name
        for path in folder.glob("*.safetensors")
        if path.is_symlink() and not path.exists()
    )
    return f"; {links[0]} is a link to a missing file" if links else ""
