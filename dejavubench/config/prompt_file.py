"""Prompts from a file, as token ids. Neither torch nor MPI is needed.

The file has one prompt per line. Its suffix, in any case, says how lines are read:

- ``.csv``: token ids with commas between (FasterTransformer's ``start_ids.csv``).
- ``.jsonl``, ``.ndjson``: JSON in one of :data:`LINE_FORMS`.
- ``.json``: refused, as it is one document and not one prompt a line.
- others: token ids if every line has numbers and commas alone; else JSON if the first line is a
  JSON list or object and the name does not end in ``.txt``; else each line is a text.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dejavubench.text_file import TextFileError, parse_json, read_text
from dejavubench.values import format_one_line, format_value

Encode = Callable[[str], list[int]]
"""Turns a text into token ids, without special tokens."""

Ids = tuple[int, ...]
"""The token ids of one prompt."""

TokenReader = Callable[[str], list[int] | str]
"""Turns a line's content into token ids; gives a sentence if it cannot."""

LINE_FORMS = (
    'token ids as 1,2,3 (.csv), or as [1, 2, 3], {"prompt_token_ids": [1, 2, 3]} or '
    '{"prompt": [1, 2, 3]} (.jsonl). Or text: a line (.txt), or "text" or {"prompt": "text"} '
    "(.jsonl)"
)
"""The accepted forms of a line, as messages list them."""

ID_KEYS = ("prompt_token_ids",)
"""Keys of an object whose value must be token ids; the name is vLLM's."""

PROMPT_KEYS = (*ID_KEYS, "prompt")
"""Keys of an object that may hold a prompt (vLLM's names); the first one present counts."""

FOREIGN_KEYS = {
    "hash_ids": "a Mooncake trace, which has lengths and hashes but no tokens",
    "conversations": "a ShareGPT conversation, which does not say where the prompt ends",
    "messages": "a chat, whose text depends on a template",
}
"""Keys that tell files of other tools, and why such a file holds no prompt."""

MOST_NBYTES = 1 << 30
"""Largest file of prompts."""

LARGEST_ID = 2**31 - 1
"""Largest token id: ids are 32-bit integers in files and messages."""

_NUMERIC_LINE = re.compile(r"[\s,0-9+.eE-]*[0-9][\s,0-9+.eE-]*")
_WHOLE_NUMBER = re.compile("[0-9]{1,18}")

TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
"""A folder with a tokenizer has at least one of these files."""


class PromptError(ValueError):
    """A file of prompts cannot be used; the message names the line."""


def read_prompts(path: Path, folder: Path | None) -> tuple[Ids, ...]:
    """Return the token ids of each prompt.

    Args:
        path: the file.
        folder: the checkpoint, whose tokenizer reads prompts that are text.

    Raises:
        PromptError: the file cannot be read, has no prompt, or a line is none.
    """
    lines = _read_lines(path)
    prompts = tuple(_encode_prompts(path, lines, cache(lambda: _load_tokenizer(folder))))
    if not prompts:
        raise PromptError(f"{path}: has no prompt")
    return prompts


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a file or a pipe; more than :data:`MOST_NBYTES` are refused."""
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device"
            raise PromptError(f"{path} is {kind}, and not a file with one prompt per line")
        if status.st_size > MOST_NBYTES:
            raise PromptError(f"{path}: has {status.st_size} bytes; at most {MOST_NBYTES} are read")
        text = read_text(path)
    except FileNotFoundError:
        raise PromptError(f"{path} does not exist. Give a file with one prompt per line") from None
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror}") from None
    except TextFileError as error:
        raise PromptError(str(error)) from None
    # splitlines() would also split at form feeds and Unicode separators within a prompt.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _encode_prompts(path: Path, lines: list[str], tokenizer: Callable[[], Encode]) -> Iterator[Ids]:
    """Yield the token ids of each line; the tokenizer is loaded at the first text."""
    read = _choose_reader(path, lines)
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = read(line)
            ids = tuple(tokenizer()(prompt) if isinstance(prompt, str) else prompt)
        except ValueError as error:
            raise PromptError(f"{path}: line {line_number}: {error}") from None
        if not ids:
            raise PromptError(f"{path}: line {line_number}: has no tokens")
        yield ids


def _choose_reader(path: Path, lines: list[str]) -> TokenReader:
    """Return how the lines of this file are read."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise PromptError(
            f"{path}: a .json file is one document: give one prompt per line in a .jsonl file: "
            f"{LINE_FORMS}"
        )
    if suffix in (".jsonl", ".ndjson"):
        return _parse_json_line
    filled_lines = [line for line in lines if line.strip()]
    if suffix == ".csv" or (filled_lines and all(map(_NUMERIC_LINE.fullmatch, filled_lines))):
        return _parse_csv_line
    if filled_lines and suffix != ".txt" and _is_json(filled_lines[0]):
        return _parse_json_line
    return lambda line: line


def _is_json(line: str) -> bool:
    """Return whether a line is a whole list or object."""
    if line.lstrip()[:1] not in ("[", "{"):
        return False
    try:
        parse_json(line, "")
    except TextFileError:
        return False
    return True


def _parse_csv_line(line: str) -> list[int]:
    # NumPy and spreadsheets end lines with a comma or spaces.
    return [_parse_id(field.strip()) for field in re.sub(r"[\s,]+$", "", line).split(",")]


def _parse_json_line(line: str) -> list[int] | str:
    """Return the ids, or the text, of a line of JSON.

    Raises:
        ValueError: it holds no prompt; the message says why.
    """
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:  # a ValueError too, so it is caught before that
        raise ValueError(
            f"column {error.colno}: not JSON: {error.msg}; lines that are read: {LINE_FORMS}"
        ) from None
    except RecursionError:
        raise ValueError("not usable JSON: its brackets are nested too deeply") from None
    except ValueError:  # Python's limit on the digits of an integer
        raise ValueError("not usable JSON: a number has too many digits") from None
    if isinstance(value, dict):
        value = _read_prompt_of_object(value)
    if isinstance(value, list):
        return [_parse_id(token) for token in value]
    if not isinstance(value, str):
        raise ValueError(
            f"{format_value(value)} is not a prompt; lines that are read: {LINE_FORMS}"
        )
    return value


def _read_prompt_of_object(value: dict[str, Any]) -> Any:
    """Return the value under the key of the prompt."""
    for key in PROMPT_KEYS:
        if key in value:
            if key in ID_KEYS and not isinstance(value[key], list):
                raise ValueError(f"{key} {format_value(value[key])} is not a list of token ids")
            return value[key]
    foreign_reason = next((reason for key, reason in FOREIGN_KEYS.items() if key in value), None)
    complaint = (
        f"it is {foreign_reason}"
        if foreign_reason
        else f"an object with {', '.join(map(format_value, list(value)[:4])) or 'no keys'}"
    )
    raise ValueError(f"{complaint}; lines that are read: {LINE_FORMS}")


def _parse_id(token: Any) -> int:
    token_id = int(token) if isinstance(token, str) and _WHOLE_NUMBER.fullmatch(token) else token
    # Python's bool is a subclass of int, but true is no token.
    if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
        raise ValueError(f"{format_value(token)} is not a token id{_describe_hint(token)}")
    if token_id > LARGEST_ID:
        raise ValueError(f"{format_value(token)} is not a token id: it is larger than {LARGEST_ID}")
    return token_id


def _describe_hint(token: Any) -> str:
    if token == "":
        return ": there is nothing between two commas"
    if isinstance(token, str) and re.fullmatch(r"[0-9]+(\s+[0-9]+)+", token):
        return ": commas go between token ids"
    is_float = isinstance(token, float) or (
        isinstance(token, str) and re.fullmatch("[0-9.]+(e[+-]?[0-9]+)?", token)
    )
    return ": write whole numbers (numpy.savetxt does with fmt='%d')" if is_float else ""


# ---- text ----


def _load_tokenizer(folder: Path | None) -> Encode:
    """Load the checkpoint's tokenizer, from its folder alone and never from the network."""
    if folder is None:
        raise PromptError(
            f"prompts of text need --ckpt-path with a tokenizer; lines that are read: {LINE_FORMS}"
        )
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise PromptError(
            "prompts of text need transformers, which is not installed: pip install "
            "'dejavubench[text]', or give "
            "token ids (.csv or .jsonl)"
        ) from None
    if not any((folder / name).exists() for name in TOKENIZERS):
        raise PromptError(
            f"{folder} has no tokenizer that transformers can load: save the tokenizer there, or "
            f"give token ids; lines that are read: {LINE_FORMS}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - broken tokenizer files raise anything
        reason = format_one_line(str(error)) or type(error).__name__
        raise PromptError(
            f"{folder}: no tokenizer that transformers can load; give token ids, or save the "
            f"tokenizer there: {reason}"
        ) from None
    return lambda text: list(tokenizer(text)["input_ids"])
