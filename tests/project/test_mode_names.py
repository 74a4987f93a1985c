"""No code outside the registry asks for a destination by its name."""

from __future__ import annotations

import ast

import pytest

from conventions.asked_names import asked_constants
from dejavubench.records.destination_info import SWAP_PREFIX
from dejavubench.transports import registry
from helpers.paths import PACKAGE

BUILT_IN = registry.list_builtin_transports()
NAMES = {
    *(destination.name for destination in BUILT_IN),
    *(f"swap-{destination.name}" for destination in BUILT_IN if destination.swapped_label),
    *(destination.loopback.name for destination in BUILT_IN if destination.loopback),
}

FILES_WITH_MODES = ("transports/", "dejavulib/destinations/", "records/destination_info.py")
"""Files that may name modes: transports, the library's entries, the table for older records."""

OTHER_MEANINGS = {"bench/environment/facts.py": {"nccl"}}
"""Keys of a document that are no destinations: the version of the library NCCL in a record."""


def find_mode_names(text: str) -> list[tuple[int, str]]:
    """Return the line and the name of each place in a source text that asks for a destination."""
    constants = (constant for constant, _ in asked_constants(ast.parse(text)))
    names = NAMES | {SWAP_PREFIX}
    return sorted(
        {
            (constant.lineno, str(constant.value))
            for constant in constants
            if constant.value in names
        }
    )


def test_no_mode_is_named_outside_the_registry() -> None:
    offences = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module_path = path.relative_to(PACKAGE).as_posix()
        if not module_path.startswith(FILES_WITH_MODES):
            offences += [
                f"{module_path}:{line}: {name}"
                for line, name in find_mode_names(path.read_text())
                if name not in OTHER_MEANINGS.get(module_path, ())
            ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    "text",
    [
        'x = mode == "mpi"',
        'x = mode in ("host", "disk")',
        'x = mode not in {"tcp"}',
        'REMOTE = frozenset({"nccl"})',
        'COPY_S = {"nixl": 1e-5}',
        'match mode:\n case "swap-disk":\n  pass',
        'match mode:\n case "none" | "tcp":\n  pass',
        'x = mode.startswith("nccl")',
        'x = mode.startswith("swap-")',
        'x = sessions["mpi"]',
        'x = ceilings.get("host")',
    ],
)
def test_code_that_asks_for_a_mode_by_its_name_is_found(text: str) -> None:
    assert len(find_mode_names(text)) >= 1


def test_mode_names_in_plain_texts_are_allowed() -> None:
    assert find_mode_names('print("mpi", "none"); x = mode == "none"; y = "tcp" + "s"') == []
