"""Print the changes of a version, as CHANGELOG.md has them; refuse one that is not ready.

    python scripts/release_notes.py v0.1.0

The tag must be that of the package's version, and CHANGELOG.md must have a dated section of it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

VERSION = re.compile(r'^__version__ = "(?P<version>[^"]+)"$', re.MULTILINE)

SECTION = re.compile(
    r"^## \[(?P<version>[^]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?\n(?P<changes>.*?)(?=^## |\Z)",
    re.MULTILINE | re.DOTALL,
)
"""A section of the changelog. That of changes which are not released yet has no date."""


class NotReadyError(Exception):
    """A version cannot be released. The message says why."""


def make_notes(tag: str, changelog: str, package: str) -> str:
    """Return the changes of a version.

    Args:
        tag: the version with a ``v`` before it.
        changelog: the text of CHANGELOG.md.
        package: the text of the module that has the package's version.

    Raises:
        NotReadyError: the tag is not that of the package's version, or the changelog has no dated
            section of the version, or one without a change.
    """
    version_line = VERSION.search(package)
    if version_line is None or tag != f"v{version_line['version']}":
        version = version_line["version"] if version_line else "unknown"
        raise NotReadyError(f"the tag is {tag}, and the package's version is {version}")
    sections = {section["version"]: section for section in SECTION.finditer(changelog)}
    section = sections.get(tag.removeprefix("v"))
    if section is None or section["date"] is None:
        raise NotReadyError(f"CHANGELOG.md has no dated section of {tag.removeprefix('v')}")
    changes = section["changes"].strip()
    if not changes:
        raise NotReadyError(f"CHANGELOG.md names no change of {tag.removeprefix('v')}")
    return changes


def main() -> None:
    """Print the notes of the tag that is the only argument."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/release_notes.py TAG")
    try:
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        package = (ROOT / "dejavubench/__init__.py").read_text(encoding="utf-8")
        print(make_notes(sys.argv[1], changelog, package))
    except NotReadyError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
