"""House rule on comments, for test_house.py: they begin with a capital and end like a sentence.

Headings such as ``# ---- costs ----`` and directives to tools are no sentences, and free.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conventions.source_tree import PACKAGE
from helpers.paths import ROOT

FOLDERS = (PACKAGE, "tests", "scripts", "contrib")

FREE = re.compile(r"#!|# ----|#\s*(type|noqa|fmt|ruff|mypy|pragma)\b")
"""Beginnings of headings and directives."""

LOWER_CASE_WORD = re.compile(r"[a-z]+(?![\w.(/[-])")
"""A beginning without a capital. Names of code such as ``step_ready`` and ``bf16`` do not match."""

SENTENCE_END = re.compile(r"[.:?!…][)\"'’”`]*$")


@dataclass(frozen=True)
class Comment:
    """Comment lines that follow each other, joined."""

    line: int
    text: str


def unpunctuated_comments(root: Path = ROOT) -> list[str]:
    """Return comments on lines of their own without a capital first or a full stop last."""
    return [
        f"{path.relative_to(root)}:{comment.line}: {comment.text[:60]}"
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
        for comment in _find_comments(path.read_text())
        if LOWER_CASE_WORD.match(comment.text) or not SENTENCE_END.search(comment.text)
    ]


def _find_comments(text: str) -> Iterator[Comment]:
    """Yield the comments of a file that stand on lines of their own."""
    first_line, column, parts = 0, 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        line, token_column = token.start
        is_free = FREE.match(token.string) is not None
        if parts and (is_free or (line, token_column) != (first_line + len(parts), column)):
            yield Comment(first_line, " ".join(parts).strip())
            parts = []
        if is_free:
            continue
        if not parts:
            first_line, column = line, token_column
        parts.append(token.string.lstrip("#").strip())
    if parts:
        yield Comment(first_line, " ".join(parts).strip())
