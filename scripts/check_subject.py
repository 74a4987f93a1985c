"""Refuse a commit whose message does not read well in a list or a terminal, or says no reason."""

from __future__ import annotations

import re
import sys
from pathlib import Path

MOST_CHARACTERS = 72
"""Longest subject of a commit."""

MOST_COLUMNS = 100
"""Longest line of a message's body, as of prose and code. An address may be longer."""

SCISSORS = re.compile(r"^# -+ >8 -+$", re.MULTILINE)
"""Line of git above the diff that ``commit --verbose`` shows below the message."""

UNFINISHED = ("wip", "fixup!", "squash!", "amend!")
"""First words of commits that are to be joined with another one before anybody sees them."""


def problem(message: str) -> str | None:
    """Return what is wrong with a commit message, or None. Lines with # are git's own."""
    written = SCISSORS.split(message)[0]
    lines = [line for line in written.splitlines() if not line.startswith("#")]
    subject = lines[0] if lines else ""
    if not subject.strip():
        return "the commit has no subject"
    if len(subject) > MOST_CHARACTERS:
        return f"the subject has {len(subject)} characters; at most {MOST_CHARACTERS} are allowed"
    if subject.split()[0].lower().rstrip(":") in UNFINISHED:
        return f"{subject.split()[0]} is no subject: join this commit with the one it mends"
    if len(lines) > 1 and lines[1].strip():
        return "the line below the subject must be blank"
    if not any(line.strip() for line in lines[2:]) and not subject.startswith("Merge "):
        return "the message has no body: say why the change is made"
    for line in lines[2:]:
        if len(line) > MOST_COLUMNS and "://" not in line:
            return f"a line has {len(line)} characters; at most {MOST_COLUMNS} are allowed: {line}"
    return None


if __name__ == "__main__":
    why_refused = problem(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if why_refused:
        sys.exit(why_refused)
