"""The library on its own: what it imports, its public API, and the examples of its pages."""

from __future__ import annotations

import ast
import doctest
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dejavubench import dejavulib
from helpers.jobs import run
from helpers.paths import DOCS, PACKAGE

EXAMPLE = DOCS / "stream_transformers.py"


LIBRARY = PACKAGE / "dejavulib"
LIFTED = "lifted_out"
"""The name under which the folder is used in a test."""

ALONE = """
import sys

class Barrier:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] != "dejavubench", f"{name} was imported"

sys.meta_path.insert(0, Barrier())
sys.path.insert(0, sys.argv[1])
"""
"""Makes an interpreter fail that imports anything of the package around the library."""

EVERY_MODULE = f"""
import importlib, pkgutil, {LIFTED}

for module in pkgutil.walk_packages({LIFTED}.__path__, "{LIFTED}."):
    importlib.import_module(module.name)
for name in {LIFTED}.__all__:
    getattr({LIFTED}, name)
print(len({LIFTED}.__all__), "names")
"""

DOCTEST = f"""
import doctest, {LIFTED}

failed, attempted = doctest.testmod({LIFTED})
assert attempted > 15
sys.exit(failed)
"""


def imported_modules(path: Path) -> set[str]:
    """Return the modules that a file imports, at any depth, relative ones by their full name."""
    module_names = set()
    package = ["dejavubench", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parent_package = package[: len(package) + 1 - node.level] if node.level else []
            module_names.add(".".join([*parent_package, *filter(None, [node.module])]))
        elif isinstance(node, ast.Import):
            module_names |= {alias.name for alias in node.names}
    return {name for name in module_names if name.startswith("dejavubench")}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_library_imports_nothing_of_the_package_around_it() -> None:
    files = sorted(LIBRARY.rglob("*.py"))
    assert len(files) > 10
    foreign = {
        f"{path.name}: {name}"
        for path in files
        for name in imported_modules(path)
        if not name.startswith("dejavubench.dejavulib")
    }
    assert not foreign


def test_the_library_imports_itself_by_relative_names_alone() -> None:
    absolute = [
        path.name
        for path in LIBRARY.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level
        if (node.module or "").startswith("dejavubench")
    ]
    assert not absolute


@pytest.mark.parametrize("code", [EVERY_MODULE, DOCTEST], ids=["every module", "the example"])
def test_the_folder_works_elsewhere_under_another_name(code: str, tmp_path: Path) -> None:
    shutil.copytree(LIBRARY, tmp_path / LIFTED, ignore=shutil.ignore_patterns("__pycache__"))
    api = tmp_path / LIFTED / "__init__.py"
    text = api.read_text(encoding="utf-8")
    assert "from dejavubench.dejavulib import" in text  # in the example of its docstring
    api.write_text(text.replace("dejavubench.dejavulib", LIFTED), encoding="utf-8")
    completed = run_python("-c", ALONE + code, str(tmp_path))
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_the_example_of_the_docstring_works() -> None:
    failed, attempted = doctest.testmod(dejavulib)
    assert failed == 0
    assert attempted > 15


def test_every_public_name_is_declared_for_type_checkers_and_at_run_time() -> None:
    tree = ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    aliases = [alias for node in imports for alias in node.names]
    assert len(aliases) > 40
    assert [alias.name for alias in aliases if alias.asname != alias.name] == []
    assert [alias.name for alias in aliases] == dejavulib.__all__
    for name in dejavulib.__all__:
        assert getattr(dejavulib, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'NoSuchName'"):
        dejavulib.NoSuchName  # noqa: B018


def test_levels_and_the_registry_load_neither_torch_nor_mpi() -> None:
    code = (
        "import sys\n"
        "from dejavubench.dejavulib import LEVELS, KVGeometry\n"
        "from dejavubench.dejavulib.destinations import registry\n"
        "print({'torch', 'mpi4py', 'pydantic'} & set(sys.modules))\n"
    )
    completed = run_python("-c", code)
    assert (completed.returncode, completed.stdout.strip()) == (0, "set()"), completed.stderr


BOTH_EXAMPLES = """
import runpy
import sys

right, wrong = sys.argv[1:]
runpy.run_path(right, run_name="__main__")
try:
    runpy.run_path(wrong, run_name="__main__")
except AssertionError:
    print("the sink has other tokens")
"""


@pytest.mark.mpi
def test_the_example_streams_a_transformers_cache_and_would_see_a_missing_layer(
    tmp_path: Path,
) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    line = "    lib.receive_all([receiver])\n"
    assert line in text
    wrong_example, driver = tmp_path / "wrong.py", tmp_path / "both.py"
    wrong_example.write_text(
        text.replace(line, f"{line}    cache.v[2, 1].zero_()\n"), encoding="utf-8"
    )
    driver.write_text(BOTH_EXAMPLES)
    job = run(tmp_path, 2, EXAMPLE, wrong_example, driver=(driver,))
    assert job.stdout == (
        "98304 bytes streamed; the next 12 tokens of each request are the same\n"
        "the sink has other tokens\n"
    )


def test_the_example_is_as_short_as_the_page_says() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 80
