"""Refuse a commit whose message reads badly, says no reason, or is silent on tests on a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

MOST_CHARACTERS = 72
"""Longest subject of a commit."""

MOST_COLUMNS = 100
"""Longest line of a message's body, as of prose and code. An address may be longer."""

SCISSORS = re.compile(r"^# -+ >8 -+$", re.MULTILINE)
"""Line of git above the diff that ``commit --verbose`` shows below the message."""

UNFINISHED = ("wip", "fixup!", "squash!", "amend!")
"""First words of commits that are to be joined with another one before anybody sees them."""

GPU_FOLDERS = (
    "dejavubench/bench/engine/",
    "dejavubench/bench/point/",
    "dejavubench/bench/probes/",
    "dejavubench/bench/scenarios/",
    "dejavubench/dejavulib/",
    "dejavubench/models/",
    "dejavubench/parallel/",
    "dejavubench/transports/",
)
"""Folders whose code runs on a GPU, or drives it."""

CPU_FOLDERS = ("dejavubench/models/backends/cpu/", "dejavubench/models/hub/")
"""Folders among them whose code does not."""

GPU_NAME = re.compile(r"dejavubench/.*(gpu|cuda|nccl|nvtx)[^/]*$")
"""Files elsewhere in the package that say by their names that they are about GPUs."""

TRAILER = re.compile(
    r"^GPU-tested: +(not run, because \S|(?!(no|not|none|nothing)\b)\S)", re.MULTILINE
)
"""Word of the tests on a GPU: the device and what passed, or why they were not run."""


def find_problem(message: str, staged_paths: Iterable[str]) -> str | None:
    """Return what is wrong with the message of a commit of these paths, or None."""
    # Lines with # are git's own.
    written = SCISSORS.split(message)[0]
    lines = [line for line in written.splitlines() if not line.startswith("#")]
    gpu_path = next(filter(is_gpu_code, staged_paths), None)
    return find_bad_line(lines) or (gpu_path and find_missing_trailer(lines, gpu_path)) or None


def find_bad_line(lines: list[str]) -> str | None:
    """Return what is wrong with the subject or the body, or None."""
    subject = lines[0] if lines else ""
    if not subject.strip():
        return "the commit has no subject"
    if len(subject) > MOST_CHARACTERS:
        return f"the subject has {len(subject)} characters; at most {MOST_CHARACTERS} are allowed"
    if subject.split()[0].lower().rstrip(":") in UNFINISHED:
        return f"{subject.split()[0]} is no subject: join this commit with the one it fixes"
    if len(lines) > 1 and lines[1].strip():
        return "the line below the subject must be blank"
    if not any(line.strip() for line in lines[2:]) and not subject.startswith("Merge "):
        return "the message has no body: say why the change is made"
    for line in lines[2:]:
        if len(line) > MOST_COLUMNS and "://" not in line:
            return f"a line has {len(line)} characters; at most {MOST_COLUMNS} are allowed: {line}"
    return None


def is_gpu_code(path: str) -> bool:
    """Return whether a file of the repository holds code that runs on a GPU or drives it."""
    in_gpu_folder = path.startswith(GPU_FOLDERS) and not path.startswith(CPU_FOLDERS)
    return path.endswith((".py", ".cu")) and (in_gpu_folder or GPU_NAME.match(path) is not None)


def find_missing_trailer(lines: list[str], gpu_path: str) -> str | None:
    """Return what to add if the last paragraph does not say what was tested on a GPU, or None."""
    if lines[0].startswith("Merge "):
        return None
    last_paragraph = "\n".join(lines).strip().split("\n\n")[-1]
    if TRAILER.search(last_paragraph):
        return None
    return (
        f"{gpu_path} holds code for GPUs: end the message with 'GPU-tested: …', the device and "
        "what passed there, or with 'GPU-tested: not run, because …'"
    )


def list_staged_paths() -> list[str]:
    """Return the paths that the commit changes. Of a file that is moved, both places."""
    command = ["git", "diff", "--cached", "--name-only", "--no-renames", "-z"]
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return completed.stdout.split("\0")[:-1]


if __name__ == "__main__":
    written_message = Path(sys.argv[1]).read_text(encoding="utf-8")
    if why_refused := find_problem(written_message, list_staged_paths()):
        sys.exit(why_refused)
