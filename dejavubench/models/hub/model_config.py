"""``config.json`` of a Hugging Face folder, read key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dejavubench.models.hub.tensor_file import CheckpointError
from dejavubench.text_file import TextFileError, read_json

CONFIG = "config.json"
"""Name of the file."""

LARGEST_INTEGER = 2**31 - 1
"""The largest size that is accepted; a larger one would take for ever to fail."""


class ModelConfig:
    """``config.json``, or an object in it.

    A value of the wrong kind raises CheckpointError, which names the key.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self.content = content

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """Read a folder's configuration.

        Raises:
            CheckpointError: there is no such folder, or no configuration in it that can be read.
        """
        path = folder / CONFIG
        try:
            if folder.is_file():
                raise CheckpointError(
                    f"{folder} is a file; give the folder that holds {CONFIG} and the weights"
                )
            if not folder.is_dir():
                raise CheckpointError(f"{folder} is not a folder")
            if not path.exists():
                raise CheckpointError(
                    f"{folder} has no {CONFIG}: {_explain_missing_config(folder)}"
                )
            content = read_json(path)
        except OSError as error:
            raise CheckpointError(f"{folder}: {error.strerror or error}") from None
        except TextFileError as error:
            raise CheckpointError(str(error)) from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: it is not a JSON object")
        return cls(path, content)

    def read_number(self, key: str, default: float | None) -> float:
        """Return a positive number.

        Args:
            default: the value if the key is absent or null; None if it must be there.

        Raises:
            CheckpointError: the value is no number, or out of range.
        """
        value = default if self.content.get(key) is None else self.content[key]
        # True and False are numbers in Python, but not in JSON.
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not 0 < value <= LARGEST_INTEGER**2
        ):
            raise CheckpointError(f"{self.path}: {key} must be a positive number, not {value!r}")
        return float(value)

    def read_size(self, *keys: str, default: int | None = None) -> int:
        """Return the value of the first of these keys that is there."""
        value = next(
            (self.content[key] for key in keys if self.content.get(key) is not None), default
        )
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not 1 <= value <= LARGEST_INTEGER
        ):
            raise CheckpointError(
                f"{self.path}: {keys[0]} must be a positive integer, not {value!r}"
            )
        return value

    def read_flag(self, key: str, default: bool) -> bool:
        """Return true or false; ``default`` if the key is absent.

        Raises:
            CheckpointError: the value is neither.
        """
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} must be true or false, not {value!r}")
        return value

    def read_object(self, key: str) -> ModelConfig:
        """Return an object in it; an empty one where the key is missing or null."""
        value = self.content.get(key)
        if not isinstance(value, dict | None):
            raise CheckpointError(f"{self.path}: {key} must be an object, not {value!r}")
        return ModelConfig(self.path, value or {})

    def read_heads(self, hidden_size: int, *keys: str) -> tuple[int, int]:
        """Return the number of heads, and the elements of each."""
        head_count = self.read_size(*keys)
        if hidden_size % head_count:
            raise CheckpointError(
                f"{self.path}: {head_count} heads do not divide a width of {hidden_size}"
            )
        return head_count, hidden_size // head_count


def _explain_missing_config(folder: Path) -> str:
    """Return a guess at a folder without a configuration."""
    if (folder / "adapter_config.json").exists():
        return (
            "it is an adapter (PEFT), not a whole model; "
            "merge it into its base model and give that folder"
        )
    if snapshots := sorted(path.parent for path in folder.glob(f"snapshots/*/{CONFIG}")):
        return f"it is a model's folder in a hub's cache; give {snapshots[-1]}"
    if gguf_files := sorted(path.name for path in folder.glob("*.gguf")):
        return (
            f"{gguf_files[0]} is a file of llama.cpp; give a Hugging Face folder with safetensors"
        )
    return "it is not a Hugging Face folder"
