"""For all tests: the folders of this checkout."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PACKAGE = ROOT / "dejavubench"
CONFIGS = ROOT / "configs"
CONTRIB = ROOT / "contrib"
DOCS = ROOT / "docs"
RESULTS = ROOT / "results"
SCRIPTS = ROOT / "scripts"

DRIVERS = TESTS / "mpi"
"""Programs that tests run under mpirun."""

GOLDEN = TESTS / "golden"
"""Texts that an earlier program wrote."""

TOY = TESTS / "toy"
"""A destination from outside the package."""
