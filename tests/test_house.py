"""The house rules: which package may import which, and how large files, classes and texts may be.

``python tests/test_house.py`` prints the counts, of this checkout or of the one named as argument.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import click
import pytest

from helpers.naming import participles, second_words
from helpers.paths import ROOT, TESTS
from helpers.references import lost_references
from helpers.size_rules import (
    ARGUMENTS,
    CLASS_LINES,
    FILE_LINES,
    FUNCTION_LINES,
    HOPS,
    TEST_FILE_LINES,
    long_chains,
    long_classes,
    long_files,
    long_functions,
    long_tests,
    long_texts,
    many_arguments,
)
from helpers.source_tree import PACKAGE, circles, graph, modules, place_of

TOP_LEVEL_MODULES = 5
WALK_FILES = 8
READ_FILES = 13
WALK_LINES = 2000
MOST_EXCEPTIONS = 5

EXCEPTIONS: Mapping[str, str] = {
    "dejavubench/config/options/field.py::option": "its keywords are what an option may say",
}
"""Reasons for larger parts, by ``file``, ``file::Class`` or ``file::function``. At most five."""

ENGINE = ("parallel", "watchdog", "models", "dejavulib", "machine", "records")
ARROWS: Mapping[str, tuple[str, ...]] = {
    "machine": (),
    "dejavulib": (),
    "records": ("machine",),
    "parallel": ("dejavulib", "machine"),
    "watchdog": ("dejavulib", "machine"),
    "models": ("dejavulib", "machine"),
    "transports": ("dejavulib", "parallel", "records"),
    "config": ("dejavulib", "machine", "models", "records", "transports"),
    "planning": ("config", "dejavulib", "machine", "models"),
    "bench": (*ENGINE, "config", "planning", "transports"),
    "doctor": ("config", "dejavulib", "machine", "parallel", "transports", "watchdog"),
    "analysis": ("dejavulib", "records"),
    "cli": (*ENGINE, "analysis", "bench", "config", "doctor", "planning", "transports"),
}
"""The packages that each package may import. All may import the modules at top level."""

ROOT_ABOVE_FOLDERS = ("bench",)
"""Packages whose folders import no module that lies beside them. In the other packages a folder may
share base modules with its parent, but no two folders side by side import each other."""

FAMILIES = (
    ("dejavulib/destinations", "transports"),  # a module or package per destination
    ("machine", "doctor/facts", "doctor/checks"),  # read, gathered and judged under one name
    ("models/backends",),  # CPU and CUDA
)
"""Folders whose files are named alike on purpose; those of a family count as one place."""

NAMED_ALIKE = ("__init__", "registry")
"""Names of files that each package may have."""

SHORTEST_WORD = 3
"""Letters of the shortest part of a file's name that counts as a word."""

ENGLISH = ("checkpoint", "workload")
"""Words of English that are two words of other names together."""

MOST_PLACES = 2
"""Places in which a file of one name may be found: a reader searches for files by name."""

WALK = (
    "cli/run.py",
    "bench/run.py",
    "bench/rounds.py",
    "bench/iteration.py",
    "bench/scenarios/registry.py",
    "bench/scenarios/plain.py",
    "bench/engine/batch_maker.py",
    "bench/engine/clock.py",
)
"""The files that one request passes from the command line to the clock, in order."""

# ---- imports ----


def folders(package: str, root: Path = ROOT) -> dict[str, set[str]]:
    """Return the folders of a package that each of its folders imports; see ROOT_ABOVE_FOLDERS."""
    known = modules(root)
    edges: dict[str, set[str]] = {}
    for name, targets in graph(root).items():
        here = known[name].path
        if known[name].room != package or here.name == "__init__.py":  # which only passes names on
            continue
        for there in (known[at].path.parent for at in targets if known[at].room == package):
            nested = here.parent.is_relative_to(there) or there.is_relative_to(here.parent)
            if there != here.parent and (not nested or package in ROOT_ABOVE_FOLDERS):
                edges.setdefault(str(here.parent.relative_to(root)), set()).add(
                    str(there.relative_to(root))
                )
    return edges


def arrows(root: Path = ROOT) -> Counter[tuple[str, str]]:
    """Return how many imports lead from one package, or top-level module, to another one."""
    known = modules(root)
    return Counter(
        (known[name].room, known[at].room)
        for name, targets in graph(root).items()
        for at in targets
        if known[name].room != known[at].room
    )


def top_level(root: Path = ROOT) -> list[str]:
    """Return the modules that lie beside the packages."""
    own = {"__init__.py", "__main__.py"}
    return sorted(path.name for path in (root / PACKAGE).glob("*.py") if path.name not in own)


def forbidden_arrows(root: Path = ROOT) -> list[str]:
    """Return each import that the table of arrows does not allow, as a line."""
    known = modules(root)
    ground = {Path(name).stem for name in top_level(root)} | {""}
    wrong = []
    for name, targets in graph(root).items():
        here = known[name].room
        for at in sorted(targets):
            there = known[at].room
            allowed = here == there or there in ground or name == f"{PACKAGE}.__main__"
            if not allowed and there not in ARROWS.get(here, ()):
                wrong.append(f"{name} imports {at}")
    return wrong


# ---- the walk to the clock ----


def walk(root: Path = ROOT) -> tuple[list[str], int]:
    """Return the gaps in the walk to the clock, and the lines of its files together."""
    paths = [root / PACKAGE / name for name in WALK]
    if missing := [f"no file {path.relative_to(root)}" for path in paths if not path.exists()]:
        return missing, 0
    names = [".".join((PACKAGE, *Path(name).with_suffix("").parts)) for name in WALK]
    gaps = [
        f"{one} does not import {other}"
        for one, other in pairwise(names)
        if other not in graph(root)[one]
    ]
    return gaps, sum(path.read_text().count("\n") for path in paths)


def read_on_the_walk(root: Path = ROOT) -> list[str]:
    """Return the files that the walk in ARCHITECTURE has a reader open, in its order."""
    page = (root / "docs" / "ARCHITECTURE.md").read_text()
    table = re.split(r"\n##+ ", page.partition("## The walk of one request")[2])[0]
    return re.findall(r"^\| `(\S+\.py)` \|", table, re.MULTILINE)


def calls_of_a_step(root: Path = ROOT) -> list[tuple[str, str, str]]:
    """Return (class, method, file) of each line of the call trees in ARCHITECTURE."""
    page = (root / "docs" / "ARCHITECTURE.md").read_text()
    return re.findall(r"^[│├└─ ]*(_?[A-Z]\w+)\.(\w+) +(\S+\.py)", page, re.MULTILINE)


# ---- texts ----

DOCSTRING = re.compile(r"(What|Where|Return what|Yield what)\b")
HELP = re.compile(r"(Of|If|Whether|What)\b")


def bad_docstrings(root: Path = ROOT) -> list[str]:
    """Return docstrings, of attributes as well, that begin with a word that names nothing."""
    wrong = []
    for module in modules(root).values():
        for node in ast.walk(module.tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
                and DOCSTRING.match(node.value.value.lstrip())
            ):
                first = node.value.value.strip().splitlines()[0]
                wrong.append(f"{place_of(module, node, root)}: {first}")
    return wrong


def _helps(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the help texts of options: arguments named ``help`` or ``description``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("help", "short_help", "description"):
            value = node.value
            if isinstance(value, ast.JoinedStr) and value.values:
                value = value.values[0]
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value


def bad_helps(root: Path = ROOT) -> list[str]:
    """Return help texts that begin with a word that names nothing."""
    return [
        f"{place_of(module, value, root)}: {str(value.value)[:60]}"
        for module in modules(root).values()
        for value in _helps(module.tree)
        if HELP.match(str(value.value))
    ]


def _type_names(tree: ast.Module) -> Iterator[str]:
    """Yield the public classes and type aliases of a module: ``X = Literal[...]``, ``NewType``."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        # Constants are written in capitals, variables in small letters.
        yield from (name for name in names if name[0].isupper() and not name.isupper())


def same_names(root: Path = ROOT) -> list[str]:
    """Return the names that public classes and type aliases of two files share."""
    homes: dict[str, set[str]] = {}
    for module in modules(root).values():
        for name in _type_names(module.tree):
            homes.setdefault(name, set()).add(str(module.path.relative_to(root / PACKAGE)))
    return [
        f"{name}: {', '.join(sorted(files))}"
        for name, files in sorted(homes.items())
        if len(files) > 1
    ]


VAGUE = ("found", "at", "of", "it", "made", "told")
"""Names that say nothing of the thing. A field of a record keeps the name that files have."""


def vague_names(root: Path = ROOT) -> list[str]:
    """Return the variables and arguments whose names say nothing."""
    return [
        f"{place_of(module, node, root)}: {name}"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        for name in _bound(node)
        if name in VAGUE and not _is_field(module.tree, node)
    ]


def _bound(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg


def _is_field(tree: ast.Module, node: ast.AST) -> bool:
    """Return whether a name is bound by an annotation in the body of a class."""
    return any(
        isinstance(statement, ast.AnnAssign) and statement.target is node
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for statement in owner.body
    )


def shadows(root: Path = ROOT) -> list[str]:
    """Return the names bound in functions that hide an import or a definition of their file."""
    return [
        f"{place_of(module, node, root)}: {name}"
        for module in modules(root).values()
        for known in [set(_module_names(module.tree))]
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        for name in _bound(node)
        if name in known
    ]


def _module_names(tree: ast.Module) -> Iterator[str]:
    """Yield what a module imports or defines at top level."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            # ``import a.b`` binds ``a`` alone.
            yield from (each.asname or each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def same_basenames(root: Path = ROOT) -> list[str]:
    """Return the names of files that are found in too many places."""
    places: dict[str, set[str]] = {}
    for path in (root / PACKAGE).rglob("*.py"):
        folder = path.parent.relative_to(root / PACKAGE)
        if folder == Path("cli"):  # a file is named after its command there
            continue
        family = next((one for one in FAMILIES if _is_in(folder, one)), (str(folder),))
        places.setdefault(path.stem, set()).add(" + ".join(family))
    return [
        f"{name}: {', '.join(sorted(found))}"
        for name, found in sorted(places.items())
        if len(found) > MOST_PLACES and name not in NAMED_ALIKE
    ]


def joined_names(root: Path = ROOT) -> list[str]:
    """Return the files whose name runs two words together, each of them a word of another name."""
    paths = list((root / PACKAGE).rglob("*.py"))
    words = {word for path in paths for word in path.stem.split("_") if len(word) >= SHORTEST_WORD}
    return [
        str(path.relative_to(root))
        for path in paths
        for word in path.stem.split("_")
        if word not in ENGLISH
        and any(word[:cut] in words and word[cut:] in words for cut in range(len(word)))
    ]


MAY_SLEEP = ("helpers/waits.py", "mpi/")
"""Where tests may sleep: in waits that have a deadline, and in place of a slow or dead rank."""


def sleeping_tests(root: Path = ROOT) -> list[str]:
    """Return the calls of ``sleep`` in tests: a fixed time is too long, or too short when busy.

    A test waits by ``until`` and ``stays`` of ``helpers.waits``.
    """
    tests = root / "tests"
    return [
        f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted(tests.rglob("*.py"))
        if not str(path.relative_to(tests)).startswith(MAY_SLEEP)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]


def _is_in(folder: Path, family: Iterable[str]) -> bool:
    return any(folder.is_relative_to(member) for member in family)


# ---- tests ----

CHECKS: Mapping[str, Callable[[Path], list[str]]] = {
    "functions named by a participle": participles,
    "names with another word than the glossary's": second_words,
    "imports against the arrows": forbidden_arrows,
    f"files over {FILE_LINES} lines": long_files,
    f"classes over {CLASS_LINES} lines": long_classes,
    f"functions over {FUNCTION_LINES} lines": long_functions,
    f"test files over {TEST_FILE_LINES} lines": long_tests,
    "README or guides too long": long_texts,
    "docstrings that begin with What, Where or Return what": bad_docstrings,
    "help texts that begin with Of, If, Whether or What": bad_helps,
    "class or alias names of two files": same_names,
    f"files of one name in more than {MOST_PLACES} places": same_basenames,
    "files whose names run words together": joined_names,
    f"variables named {', '.join(VAGUE)}": vague_names,
    "names that hide an import or a definition": shadows,
    "references of docstrings that lead nowhere": lost_references,
    f"functions of more than {ARGUMENTS} arguments": many_arguments,
    f"chains of more than {HOPS} dots": long_chains,
    "sleeping tests": sleeping_tests,
}


def test_no_file_is_in_a_circle_of_imports() -> None:
    assert circles(graph()) == []


@pytest.mark.parametrize("package", ARROWS)
def test_no_folder_is_in_a_circle_of_imports(package: str) -> None:
    assert circles(folders(package)) == []


@pytest.mark.parametrize("what", CHECKS)
def test_the_house_has_no(what: str) -> None:
    found = [each for each in CHECKS[what](ROOT) if each.split(": ")[0] not in EXCEPTIONS]
    assert not found, "\n".join(found)


def test_the_help_of_every_option_begins_with_a_verb_or_a_noun() -> None:
    from dejavubench.cli import main as main_command

    context = click.Context(main_command)
    helps = {
        f"{name} {option.opts[0]}": option.help or ""
        for name in main_command.list_commands(context)
        if (command := main_command.get_command(context, name)) is not None
        for option in command.params
        if isinstance(option, click.Option)
    }
    assert len(helps) > 60
    assert [f"{name}: {text}" for name, text in helps.items() if HELP.match(text)] == []


def test_tests_lie_in_folders_named_for_packages() -> None:
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    homes = {path.parent.name for path in TESTS.rglob("test_*.py") if path.parent != TESTS}
    assert homes <= {*ARROWS, "project"}
    assert [path.name for path in TESTS.glob("test_*.py")] == ["test_house.py"]
    assert [name for name, count in names.items() if count > 1] == []


def test_few_modules_lie_beside_the_packages() -> None:
    assert len(top_level()) <= TOP_LEVEL_MODULES, top_level()


@pytest.mark.parametrize(
    "package", ["analysis", "config", "machine", "models.hub", "planning", "records", "transports"]
)
def test_a_package_needs_neither_torch_nor_mpi(package: str) -> None:
    program = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module('{PACKAGE}.{package}')\n"
        "for found in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "    importlib.import_module(found.name)\n"
        "print(*sorted({'torch', 'mpi4py'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_every_package_has_its_arrows() -> None:
    packages = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert set(ARROWS) == packages


def test_the_clock_is_a_short_walk_from_the_command_line() -> None:
    gaps, lines = walk()
    assert not gaps
    assert len(WALK) <= WALK_FILES
    assert lines <= WALK_LINES


def test_a_reader_of_the_walk_opens_few_files() -> None:
    names = read_on_the_walk()
    assert set(WALK) <= set(names)
    assert len(names) <= READ_FILES
    lines = sum((ROOT / PACKAGE / name).read_text().count("\n") for name in names)
    assert lines < WALK_LINES


def test_the_call_tree_of_a_step_names_methods_that_exist() -> None:
    calls = calls_of_a_step()
    assert len(calls) > 12
    for owner, method, name in calls:
        tree = ast.parse((ROOT / PACKAGE / name).read_text())
        methods = {
            function.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.name == owner
            for function in ast.walk(node)
            if isinstance(function, ast.FunctionDef)
        }
        assert method in methods, f"{owner}.{method} in {name}"


def test_exceptions_are_few_and_still_needed() -> None:
    assert len(EXCEPTIONS) <= MOST_EXCEPTIONS
    found = {each.split(": ")[0] for check in CHECKS.values() for each in check(ROOT)}
    assert set(EXCEPTIONS) <= found, "an exception that nothing needs any more"
    assert all(len(reason.split()) > 3 for reason in EXCEPTIONS.values())


def test_a_circle_is_found_behind_a_lazy_import() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set[str]()}
    assert circles(edges) == [["a", "b", "c"]]


def test_a_reference_to_a_renamed_method_is_found(tmp_path: Path) -> None:
    file = tmp_path / PACKAGE / "clock.py"
    file.parent.mkdir()
    file.write_text('''
class Clock:
    """It ends at :meth:`stop`, not at :meth:`end`; see :mod:`clock` and :class:`.clock.Timer`."""

    def stop(self) -> None: ...
''')
    assert [each.split(": ")[1] for each in lost_references(tmp_path)] == [
        ":meth:`end`",
        ":class:`.clock.Timer`",
    ]


def main() -> None:
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    verbose = len(sys.argv) > 2
    found = circles(graph(root))
    print(f"{len(found):4} circles of files: {'; '.join(' '.join(each) for each in found)}")
    rings = [each for package in ARROWS for each in circles(folders(package, root))]
    print(f"{len(rings):4} circles of folders: {'; '.join(' '.join(each) for each in rings)}")
    print(f"{len(top_level(root)):4} modules at top level: {' '.join(top_level(root))}")
    for what, check in CHECKS.items():
        wrong = check(root)
        print(f"{len(wrong):4} {what}")
        for each in wrong if verbose or len(wrong) <= 40 else ():
            print(f"       {each}")
    print(f"     README: {(root / 'README.md').read_text().count(chr(10))} lines")
    gaps, lines = walk(root)
    print(f"     to the clock: {len(WALK)} files, {lines} lines {'; '.join(gaps)}")
    for (here, there), count in sorted(arrows(root).items()):
        print(f"     {here or PACKAGE} -> {there or PACKAGE}: {count}")


if __name__ == "__main__":
    main()
