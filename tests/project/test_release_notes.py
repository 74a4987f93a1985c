"""`scripts/release_notes.py`: what a release says, and which ones are refused."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from dejavubench import __version__
from helpers.paths import ROOT, SCRIPTS

CHANGELOG = """# Changelog

## [Unreleased]

### Added

- A level.

## [0.2.0] - 2026-12-02

### Changed

- A flag.

## [0.1.0] - 2026-12-01

- The first one.
"""

PACKAGE = '"""A package."""\n\n__version__ = "0.2.0"\n'


def print_notes(
    tag: str, changelog: str = CHANGELOG, package: str = PACKAGE
) -> subprocess.CompletedProcess[str]:
    """Run the script on a changelog and a package that take the place of the repository's."""
    make = (
        "import sys; sys.path.insert(0, sys.argv[1]); import release_notes\n"
        "try: print(release_notes.make_notes(*sys.argv[2:]))\n"
        "except release_notes.NotReadyError as error: sys.exit(str(error))"
    )
    return subprocess.run(
        [sys.executable, "-c", make, str(SCRIPTS), tag, changelog, package],
        capture_output=True,
        text=True,
    )


def test_the_notes_are_the_changes_of_that_version_alone() -> None:
    completed = print_notes("v0.2.0")
    assert completed.returncode == 0
    assert completed.stdout == "### Changed\n\n- A flag.\n"


@pytest.mark.parametrize(
    ("tag", "changelog", "message"),
    [
        ("v0.1.0", CHANGELOG, "the tag is v0.1.0, and the package's version is 0.2.0"),
        ("0.2.0", CHANGELOG, "the tag is 0.2.0, and the package's version is 0.2.0"),
        (
            "v0.2.0",
            CHANGELOG.replace(" - 2026-12-02", ""),
            "CHANGELOG.md has no dated section of 0.2.0",
        ),
        (
            "v0.2.0",
            CHANGELOG.replace("0.2.0", "0.3.0"),
            "CHANGELOG.md has no dated section of 0.2.0",
        ),
        (
            "v0.2.0",
            "## [0.2.0] - 2026-12-02\n\n## [0.1.0] - 2026-12-01\n\n- The first one.\n",
            "CHANGELOG.md names no change of 0.2.0",
        ),
    ],
    ids=["another version", "no v", "no date", "no section", "no change"],
)
def test_a_version_that_is_not_ready_is_refused(tag: str, changelog: str, message: str) -> None:
    completed = print_notes(tag, changelog)
    assert completed.returncode == 1
    assert completed.stderr.strip() == message


def test_the_changelog_of_this_version_can_be_released_or_is_still_unreleased() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    command = [sys.executable, str(SCRIPTS / "release_notes.py"), f"v{__version__}"]
    completed = subprocess.run(command, capture_output=True, text=True)
    if f"## [{__version__}]" in changelog:
        assert completed.returncode == 0, completed.stderr
        assert re.search(r"^- ", completed.stdout, re.MULTILINE)
    else:
        assert completed.stderr.strip() == f"CHANGELOG.md has no dated section of {__version__}"
        assert "## [Unreleased]" in changelog
