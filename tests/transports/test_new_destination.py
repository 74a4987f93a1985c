"""A destination is added to the package by two files; nothing else changes, and the tests hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dejavubench.transports.registry import PLUGINS_VARIABLE
from helpers.paths import ROOT

LIBRARY_PART = '''
"""``tiny``: chunks are thrown away."""

from .base import Destination
from .registry import DESTINATIONS


class TinyDestination(Destination):
    entry = DESTINATIONS["tiny"]

    def begin(self, stream, tokens=None): ...
    def flush(self, stream, chunk, packed): ...
    def flush_extents(self, stream, chunk, extents, each_complete): ...
    def poll_completed(self, stream): ...
'''

TRANSPORT = """
from dejavubench.dejavulib.destinations.registry import DestinationEntry
from dejavubench.transports.base import Transport
from dejavubench.transports.connector import Connector


class TinyConnector(Connector):
    def open_source(self, context):
        from dejavubench.dejavulib.destinations.tiny import TinyDestination

        return TinyDestination()


class TinyTransport(Transport):
    entry = DestinationEntry("tiny", staged=False)
    label = "thrown away"
    help = "nowhere"

    def connector(self, rank):
        return TinyConnector(rank)


TRANSPORT = TinyTransport()
"""

EXPECTATIONS = (
    "tests/transports/test_transports.py",
    "tests/bench/test_connectors.py::test_every_destination_has_a_connector_of_its_own",
    "tests/cli/test_cli.py::test_bare_streaming_names_the_choices",
    "tests/transports/test_toy.py::test_an_entry_point_registers_the_toy",
    "tests/config/test_experiment.py",
)
"""The tests that say which destinations there are. Those that start jobs name theirs."""


@pytest.fixture(scope="module")
def with_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout with the two files of a new destination."""
    copy = tmp_path_factory.mktemp("checkout")
    unwanted = shutil.ignore_patterns("__pycache__", "*.csv", "*.npz")
    for folder in ("dejavubench", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", copy)
    library = copy / "dejavubench/dejavulib/destinations"
    transports = copy / "dejavubench/transports"
    (library / "tiny.py").write_text(LIBRARY_PART)
    (transports / "tiny.py").write_text(TRANSPORT)
    return copy


def run_python(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != PLUGINS_VARIABLE}
    return subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        cwd=copy,
        env={**environment, "PYTHONPATH": str(copy)},
        check=False,
    )


def test_the_new_destination_is_among_the_choices(with_tiny: Path) -> None:
    completed = run_python(with_tiny, "dejavubench", "run", "--help")
    assert "tiny (nowhere)" in " ".join(completed.stdout.split()), completed.stderr


def test_the_new_destination_is_planned_unless_it_had_to_be_verified(with_tiny: Path) -> None:
    words = ("dejavubench", "run", "--dry-run", "--streaming", "none,tiny", "--model", "gpt2")
    completed = run_python(with_tiny, *words, "--no-verify")
    assert (completed.returncode, completed.stderr) == (0, "")
    assert "tiny@3" in completed.stdout
    completed = run_python(with_tiny, *words)
    assert completed.returncode == 2
    assert completed.stderr == (
        "Error: --streaming tiny cannot be verified: no chunk can be read back from tiny. "
        "Add --no-verify\n"
    )


def test_the_tests_of_all_destinations_hold_with_the_new_one(with_tiny: Path) -> None:
    tests = (*EXPECTATIONS, "-k", "not neither_torch")
    completed = run_python(with_tiny, "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
    assert completed.returncode == 0, completed.stdout[-3000:]
