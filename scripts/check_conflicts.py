"""Refuse files that hold the markers of a merge that was not finished.

``check_conflicts.py FILE…`` reads these files; a folder stands for all text files below it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# ``=======`` alone also underlines headings, so only the outer markers count.
MARKER = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)
"""A marker of a merge."""

SEARCHED_HIDDEN = (".ci", ".github")
"""Hidden folders that are searched as well."""

GENERATED = ("build", "figures", "logs")
"""Folders of generated files, which are not searched."""


def texts(folder: Path) -> Iterator[Path]:
    """Yield the files of a checkout, without what tools and runs leave in it."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            is_hidden = path.name.startswith(".") and path.name not in SEARCHED_HIDDEN
            if not is_hidden and path.name not in GENERATED and path.suffix != ".egg-info":
                yield from texts(path)
        else:
            yield path


def conflicts(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the place of each marker as ``file:line``."""
    for path in paths:
        if not path.is_file():
            continue
        # Compressed records are no UTF-8; a marker in them would be chance.
        text = path.read_bytes().decode("utf-8", errors="replace")
        yield from (
            f"{path}:{text.count(chr(10), 0, marker.start()) + 1}"
            for marker in MARKER.finditer(text)
        )


def main(arguments: list[str]) -> None:
    """Exit with the places of conflict markers in these files and folders, if there are any."""
    paths = [Path(name) for name in arguments]
    files = (file for path in paths for file in (texts(path) if path.is_dir() else [path]))
    if places := list(conflicts(files)):
        sys.exit("conflict markers:\n" + "\n".join(places))


if __name__ == "__main__":
    main(sys.argv[1:])
