"""Ground floor: prompts from a file, as token ids; neither torch nor MPI.

By the file's name: ``.csv`` has one prompt a line of token ids with commas between (FasterTransformer's
``start_ids.csv``); ``.jsonl`` one a line, a list of token ids or a string; in any other file each line is a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

Encode = Callable[[str], list[int]]
Ids = tuple[int, ...]


class PromptError(ValueError):
    """A file of prompts cannot be used; the message names the line."""


def read_prompts(path: Path, folder: Path | None) -> tuple[Ids, ...]:
    """The token ids of each prompt; those of texts by the tokenizer of the checkpoint's ``folder``.

    Raises:
        PromptError: the file cannot be read, has no prompt, or a line is none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() knows more ends than files have
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PromptError(f"{path}: not a text file in UTF-8") from None
    prompts = tuple(_prompts(path, lines, cache(lambda: _tokenizer(folder))))
    if not prompts:
        raise PromptError(f"{path}: holds no prompt")
    return prompts


def _prompts(path: Path, lines: list[str], tokenizer: Callable[[], Encode]) -> Iterator[Ids]:
    read = {".csv": _from_csv, ".jsonl": _from_json}.get(path.suffix, lambda line: line)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = read(line)
            ids = tuple(tokenizer()(prompt) if isinstance(prompt, str) else prompt)
        except ValueError as error:
            raise PromptError(f"{path}: line {number}: {error}") from None
        if not ids:
            raise PromptError(f"{path}: line {number}: has no tokens")
        yield ids


def _from_csv(line: str) -> list[int]:
    return [_id(field.strip()) for field in line.strip().rstrip(",").split(",")]


def _from_json(line: str) -> list[int] | str:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg}") from None
    if isinstance(value, list):
        return [_id(item) for item in value]
    if not isinstance(value, str):
        raise ValueError("neither a list of token ids nor a string")
    return value


def _id(item: Any) -> int:
    if isinstance(item, str) and item.isdecimal():
        return int(item)
    if isinstance(item, bool) or not isinstance(item, int) or item < 0:
        raise ValueError(f"{item!r} is no token id")
    return item


def _tokenizer(folder: Path | None) -> Encode:
    if folder is None:
        raise PromptError("prompts of text need --ckpt-path with a tokenizer; token ids (.csv, .jsonl) do without")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise PromptError(
            "prompts of text need transformers, which is not installed: pip install 'dejavubench[text]', or give "
            "token ids (.csv or .jsonl)"
        ) from None
    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - what is wrong with a tokenizer's files comes as anything
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise PromptError(f"{folder}: no tokenizer that transformers can load: {why}") from None
    return lambda text: list(loaded(text)["input_ids"])
