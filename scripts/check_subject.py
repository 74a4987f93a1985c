"""Refuse a commit whose subject is too long to be read in a list, or has no blank line below it."""

from __future__ import annotations

import sys
from pathlib import Path

MOST_CHARACTERS = 72


def problem(message: str) -> str | None:
    """Return what is wrong with a commit message, or None. Lines with # are git's own."""
    lines = [line for line in message.splitlines() if not line.startswith("#")]
    subject = lines[0] if lines else ""
    if not subject.strip():
        return "the commit has no subject"
    if len(subject) > MOST_CHARACTERS:
        return f"the subject has {len(subject)} characters; at most {MOST_CHARACTERS} are allowed"
    if len(lines) > 1 and lines[1].strip():
        return "the line below the subject must be blank"
    return None


if __name__ == "__main__":
    found = problem(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if found:
        sys.exit(found)
