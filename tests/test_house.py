"""The house rules: which package may import which, and how large files, classes and texts may be.

The finders are in the package ``conventions``. ``python tests/test_house.py`` prints the counts,
of this checkout or of the one named as argument.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import click
import pytest

from conventions.argument_rules import nameless_sizes
from conventions.comment_rules import unpunctuated_comments
from conventions.docstring_rules import unknown_documented_names
from conventions.house_counts import print_counts
from conventions.import_rules import (
    folder_imports,
    forbidden_imports,
    forbidden_imports_inside,
    top_level_modules,
)
from conventions.loop_rules import hidden_loop_names
from conventions.map_rules import map_gaps
from conventions.naming import (
    MOST_PLACES,
    joined_names,
    numbers_and_collections,
    participles,
    same_basenames,
    same_names,
    second_words,
    shadows,
    vague_names,
)
from conventions.references import lost_names, lost_references
from conventions.size_rules import (
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
from conventions.sleep_rules import sleeping_tests
from conventions.source_tree import PACKAGE, circles, graph
from conventions.text_rules import NAMELESS_HELP, nameless_docstrings, nameless_helps
from conventions.walk_rules import calls_of_a_step, count_lines, read_on_the_walk, walk_gaps
from helpers.paths import ROOT, TESTS

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
    "transports": ("dejavulib", "machine", "parallel", "records"),
    "config": ("dejavulib", "machine", "models", "records", "transports"),
    "planning": ("config", "dejavulib", "machine", "models"),
    "bench": (*ENGINE, "config", "planning", "transports"),
    "doctor": ("config", "dejavulib", "machine", "parallel", "transports", "watchdog"),
    "analysis": ("dejavulib", "records"),
    "cli": (*ENGINE, "analysis", "bench", "config", "doctor", "planning", "transports"),
}
"""The packages that each package may import. All may import the modules at top level."""

SAMPLES = ("facts", "numbers")
LIMITS = ("answers", "breakdown", *SAMPLES)
ANALYSIS_ARROWS: Mapping[str, tuple[str, ...]] = {
    "numbers": (),
    "scenarios": ("numbers",),
    "facts": ("numbers", "scenarios"),
    "integrity": ("facts",),
    "find_runs": ("integrity",),
    "continuable": ("integrity",),
    "trace": SAMPLES,
    "breakdown": SAMPLES,
    "prediction": ("breakdown", *SAMPLES),
    "answers": ("breakdown", *SAMPLES),
    "normal": ("answers",),
    "tables": (*LIMITS, "find_runs", "integrity", "normal", "scenarios"),
    "notes": (*LIMITS, "tables"),
    "reports": (*SAMPLES, "normal", "notes", "tables"),
    "comparison": (*LIMITS, "find_runs", "integrity", "notes", "reports", "tables"),
    "figures": (*LIMITS, "comparison", "prediction", "tables"),
    "page": ("comparison", "facts", "figures", "reports", "tables", "trace"),
    "reference": ("comparison", "figures", "reports", "tables"),
}
"""What each folder of analysis may import, and each module beside them that imports a folder."""

BENCH_ARROWS: Mapping[str, tuple[str, ...]] = {
    "engine": (),
    "assignment": (),
    "probes": (),
    "recording": ("engine",),
    "checks": ("assignment",),
    "environment": ("recording",),
    "profiling": ("engine", "recording"),
    "startup": ("assignment", "environment", "profiling", "recording"),
    "point": ("assignment", "engine", "profiling", "recording", "startup"),
    "failures": ("recording", "startup"),
    "scenarios": ("checks", "engine", "point", "profiling", "recording"),
    "earlier_tokens": ("checks", "startup"),
    "iteration": ("checks", "failures", "recording", "scenarios", "startup"),
    "extent_iteration": ("engine", "iteration", "point"),
    "ceiling_rounds": (
        *("extent_iteration", "iteration"),
        *("point", "probes", "recording", "scenarios"),
    ),
    "rounds": (
        *("ceiling_rounds", "earlier_tokens", "extent_iteration", "iteration"),
        *("engine", "point", "recording", "scenarios", "startup"),
    ),
    "start_message": ("assignment", "ceiling_rounds", "recording", "startup"),
    "run": (
        *("rounds", "start_message"),
        *("checks", "failures", "point", "recording", "scenarios", "startup"),
    ),
}
"""What each folder of bench may import, and each module beside them that imports a folder."""

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

CHECKS: Mapping[str, Callable[[Path], list[str]]] = {
    "functions named by a participle": participles,
    "names with another word than the glossary's": second_words,
    "imports against the arrows": partial(forbidden_imports, arrows=ARROWS),
    "imports against the arrows of analysis": partial(
        forbidden_imports_inside, package="analysis", arrows=ANALYSIS_ARROWS
    ),
    "imports against the arrows of bench": partial(
        forbidden_imports_inside, package="bench", arrows=BENCH_ARROWS
    ),
    f"files over {FILE_LINES} lines": long_files,
    f"classes over {CLASS_LINES} lines": long_classes,
    f"functions over {FUNCTION_LINES} lines": long_functions,
    f"test files over {TEST_FILE_LINES} lines": long_tests,
    "README or guides too long": long_texts,
    "docstrings that begin with What, Where or Return what": nameless_docstrings,
    "comments without a capital first or a full stop last": unpunctuated_comments,
    "references of docstrings that lead nowhere": lost_references,
    "names in comments that lead nowhere": lost_names,
    "help texts that begin with Of, If, Whether or What": nameless_helps,
    "class or alias names of two files": same_names,
    f"files of one name in more than {MOST_PLACES} places": same_basenames,
    "files whose names run words together": joined_names,
    "variables whose names say nothing": vague_names,
    "plurals that are both a number and a collection": numbers_and_collections,
    "names that hide an import or a definition": shadows,
    "names that hide the variable of a loop around them": hidden_loop_names,
    f"functions of more than {ARGUMENTS} arguments": many_arguments,
    f"chains of more than {HOPS} dots": long_chains,
    "calls of tests whose sizes have no names": nameless_sizes,
    "names in docstrings that the code does not have": unknown_documented_names,
    "sleeping tests": sleeping_tests,
}


def test_no_file_is_in_a_circle_of_imports() -> None:
    assert circles(graph()) == []


@pytest.mark.parametrize("package", ARROWS)
def test_no_folder_is_in_a_circle_of_imports(package: str) -> None:
    assert circles(folder_imports(package)) == []


@pytest.mark.parametrize("title", CHECKS)
def test_the_house_has_no(title: str) -> None:
    findings = CHECKS[title](ROOT)
    unexcused = [finding for finding in findings if finding.split(": ")[0] not in EXCEPTIONS]
    assert not unexcused, "\n".join(unexcused)


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
    assert [f"{name}: {text}" for name, text in helps.items() if NAMELESS_HELP.match(text)] == []


def test_tests_lie_in_folders_named_for_packages() -> None:
    counts = Counter(path.name for path in TESTS.rglob("test_*.py"))
    homes = {path.parent.name for path in TESTS.rglob("test_*.py") if path.parent != TESTS}
    assert homes <= {*ARROWS, "project"}
    assert [path.name for path in TESTS.glob("test_*.py")] == ["test_house.py"]
    assert [name for name, count in counts.items() if count > 1] == []


def test_few_modules_lie_beside_the_packages() -> None:
    assert len(top_level_modules()) <= TOP_LEVEL_MODULES, top_level_modules()


@pytest.mark.parametrize(
    "package", ["analysis", "config", "machine", "models.hub", "planning", "records", "transports"]
)
def test_a_package_needs_neither_torch_nor_mpi(package: str) -> None:
    program = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module('{PACKAGE}.{package}')\n"
        "for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(*sorted({'torch', 'mpi4py'} & set(sys.modules)))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert completed.stdout.split() == []


def test_every_package_has_its_arrows() -> None:
    packages = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert set(ARROWS) == packages


@pytest.mark.parametrize(
    ("package", "arrows"),
    [("analysis", ANALYSIS_ARROWS), ("bench", BENCH_ARROWS)],
    ids=["analysis", "bench"],
)
def test_the_layers_of_a_package_are_drawn_as_its_arrows_point(
    package: str, arrows: Mapping[str, tuple[str, ...]]
) -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    drawing = text.partition(f"### Layers of `{package}`")[2].split("```")[1].strip().splitlines()
    layers = {folder: number for number, line in enumerate(drawing) for folder in line.split()}
    folders = {path.parent.name for path in (ROOT / PACKAGE / package).glob("*/__init__.py")}
    assert set(layers) == folders
    assert folders <= set(arrows)
    upwards = [
        (folder, imported)
        for folder in folders
        for imported in arrows[folder]
        if imported in folders and layers[imported] <= layers[folder]
    ]
    assert upwards == []


def test_the_map_names_every_module_or_its_folder() -> None:
    assert map_gaps() == []


def test_the_clock_is_a_short_walk_from_the_command_line() -> None:
    assert not walk_gaps(WALK)
    assert len(WALK) <= WALK_FILES
    assert count_lines(WALK) <= WALK_LINES


def test_a_reader_of_the_walk_opens_few_files() -> None:
    files = read_on_the_walk()
    assert set(WALK) <= set(files)
    assert len(files) <= READ_FILES
    assert count_lines(files) < WALK_LINES


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
    places = {finding.split(": ")[0] for check in CHECKS.values() for finding in check(ROOT)}
    assert set(EXCEPTIONS) <= places, "an exception that nothing needs any more"
    assert all(len(reason.split()) > 3 for reason in EXCEPTIONS.values())


if __name__ == "__main__":
    checkout = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    print_counts(CHECKS, ARROWS, WALK, checkout, verbose=len(sys.argv) > 2)
