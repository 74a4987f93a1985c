"""The finders of ``conventions``: each finds what breaks its rule. And the ids of tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from conventions.argument_rules import nameless_sizes
from conventions.comment_rules import unpunctuated_comments
from conventions.docstring_rules import unknown_documented_names
from conventions.import_rules import forbidden_imports_inside
from conventions.loop_rules import hidden_loop_names
from conventions.map_rules import map_gaps
from conventions.naming import numbers_and_collections, shadows, vague_names
from conventions.references import lost_names, lost_references
from conventions.source_tree import PACKAGE, circles
from helpers.parameter_ids import LONGEST, parameter_id


def test_an_import_against_the_arrows_of_a_package_is_found(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE / "analysis"
    for folder, imported in (("facts", "texts"), ("tables", "facts"), ("numbers", "tables.rows")):
        (package / folder).mkdir(parents=True)
        (package / folder / "rows.py").write_text(f"import {PACKAGE}.analysis.{imported}\n")
        (package / folder / "__init__.py").touch()
    (package / "texts.py").touch()
    arrows = {"facts": (), "tables": ("facts",), "numbers": ()}
    assert forbidden_imports_inside(tmp_path, "analysis", arrows) == [
        "dejavubench.analysis.numbers.rows imports dejavubench.analysis.tables.rows"
    ]


def test_a_module_that_the_map_lacks_is_found(tmp_path: Path) -> None:
    leaf = tmp_path / PACKAGE / "bench" / "engine"
    leaf.mkdir(parents=True)
    for folder in (leaf, leaf.parent, leaf.parent.parent):
        (folder / "__init__.py").touch()
    (leaf / "clock.py").touch()  # its folder's line is enough
    (leaf.parent / "run.py").touch()
    (leaf.parent / "rounds.py").touch()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ARCHITECTURE.md").write_text(
        "## Structure\n```\n"
        f"{PACKAGE}/\n  bench/  one run\n    run.py  gone.py  the run\n    engine/  steps\n```\n"
    )
    assert map_gaps(tmp_path) == [
        f"no line for {PACKAGE}/bench/rounds.py",
        f"no such file: {PACKAGE}/bench/gone.py",
    ]


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
    assert [reference.split(": ")[1] for reference in lost_references(tmp_path)] == [
        ":meth:`end`",
        ":class:`.clock.Timer`",
    ]


def test_a_comment_that_is_no_whole_sentence_is_found(tmp_path: Path) -> None:
    file = tmp_path / PACKAGE / "clock.py"
    file.parent.mkdir()
    file.write_text('''\
# ---- times ----

# starts small.
start = 1  # beside code, a comment is free
# Begins well, and goes on
# without an end
# noqa: directives are free
# step_ready may begin a sentence (as a name of code does).
stop = """
# no comment
"""
''')
    assert unpunctuated_comments(tmp_path) == [
        "dejavubench/clock.py:3: starts small.",
        "dejavubench/clock.py:5: Begins well, and goes on without an end",
    ]


def test_a_name_in_a_comment_that_is_renamed_is_found(tmp_path: Path) -> None:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "sums.py").write_text("""
def _sum_ranks(): ...

# The residual joins inside of _sum, not of _sum_ranks or __init__; see `total` and `count()`.
# The layout `hnd` and the keyword `as` are names, too.
MARK = "# _text"
""")
    (folder / "total.py").write_text('total = "hnd" # _sum_ranks\nimport os as system\n')
    assert lost_names(tmp_path) == [
        f"{PACKAGE}/sums.py:4: _sum",
        f"{PACKAGE}/sums.py:4: count",
        f"{PACKAGE}/total.py:1: _sum_ranks",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (("--streaming", "mpi", 2), "--streaming mpi 2"),
        ({"rounds": 3, "verify": False}, "rounds=3 verify=False"),
        (ValueError("a long message"), "ValueError"),
        (range(2), "rows=0 1"),
        (True, "rows=True"),
        (None, "rows=None"),
        ((), "no rows"),
        ("x" * 100, "x" * (LONGEST - 3) + "..."),
        (print, None),
    ],
    ids=["flags", "options", "error", "numbers", "truth", "none", "empty", "long text", "function"],
)
def test_the_id_of_a_test_shows_its_parameters(value: object, shown: str | None) -> None:
    assert parameter_id(value, "rows") == shown


@pytest.mark.parametrize("folder", [PACKAGE, "tests", "scripts", "contrib"])
def test_a_variable_whose_name_says_nothing_is_found(folder: str, tmp_path: Path) -> None:
    file = tmp_path / folder / "deep" / "script.py"
    file.parent.mkdir(parents=True)
    file.write_text("""
ENOUGH = 3
ENOUGH_ROUNDS = 3

class Difference:
    where: str  # a key of records

def search(rows, which):
    for number, item in enumerate(rows):
        widest = number
    return sorted(rows, key=lambda it: it.done)
""")
    assert vague_names(tmp_path) == [
        f"{file.relative_to(tmp_path)}:{line}: {name}"
        for line, name in ((2, "ENOUGH"), (8, "which"), (9, "item"), (10, "widest"), (11, "it"))
    ]


@pytest.mark.parametrize("folder", [PACKAGE, "tests", "scripts", "contrib"])
def test_a_name_that_hides_another_is_found_unless_it_asks_for_a_fixture(
    folder: str, tmp_path: Path
) -> None:
    file = tmp_path / folder / "deep" / "script.py"
    file.parent.mkdir(parents=True)
    file.write_text("""
from helpers.waits import until

@pytest.fixture(scope="module")
def sink(): ...

def search(rows): ...

def count(sink, number):
    until = number
    return [search for search in sink]
""")
    assert shadows(tmp_path) == [
        f"{file.relative_to(tmp_path)}:{line}: {name}"
        for line, name in ((10, "until"), (11, "search"))
    ]


def test_a_comprehension_that_hides_the_variable_of_a_loop_is_found(tmp_path: Path) -> None:
    """The condition ``run.name == run.name`` would be true of every run."""
    file = tmp_path / PACKAGE / "twins.py"
    file.parent.mkdir()
    file.write_text("""
for run in runs:
    twin = next(run for run in others if run.name == run.name)

pairs = [(run, [run for run in others]) for run in runs]

def find(others):
    return {run: other for run in runs for other in others}
""")
    assert hidden_loop_names(tmp_path) == [
        f"{file.relative_to(tmp_path)}:{line}: run" for line in (3, 5)
    ]


def test_a_plural_that_is_a_number_and_a_collection_is_found(tmp_path: Path) -> None:
    for package, annotation in (("bench", "list[str]"), ("config", "int"), ("records", "str")):
        (tmp_path / PACKAGE / package).mkdir(parents=True)
        (tmp_path / PACKAGE / package / "orders.py").write_text(
            f"def order(arms: {annotation}): ..."
        )
    file = tmp_path / PACKAGE / "bench" / "turns.py"
    file.write_text("""
class Record:
    arms: int  # a key of records

class Turns:
    def __init__(self, arms: int | None, arm_count: int, nbytes: int, *arguments: int):
        self._arms: int = arms
        self._nbytes: list[int] = list(arguments)

    @property
    def arms(self) -> int: ...

    def order(self, arms: Sequence[str], steps: int): ...
""")
    assert numbers_and_collections(tmp_path) == [
        f"{file.relative_to(tmp_path)}:{line}: arms, a collection in {PACKAGE}/bench/orders.py"
        for line in (6, 7, 11)
    ]


def test_a_size_that_is_given_by_position_is_found(tmp_path: Path) -> None:
    file = tmp_path / "tests" / "deep" / "test_sizes.py"
    file.parent.mkdir(parents=True)
    file.write_text("""
by_position = kv_cache.KVGeometry(layers, 2, -1)
one_number = Stream(0, schedule)
by_name = KVGeometry(layers, requests=2, positions=True)
interval = Span(0, 2)
shape = torch.zeros(2, 3)
""")
    assert nameless_sizes(tmp_path) == [
        f"{file.relative_to(tmp_path)}:2: kv_cache.KVGeometry(layers, 2, -1)"
    ]


def test_a_documented_name_that_does_not_exist_is_found(tmp_path: Path) -> None:
    file = tmp_path / PACKAGE / "module.py"
    file.parent.mkdir()
    file.write_text('''
class Clock:
    """A clock.

    Args:
        now: returns seconds.

    Attributes:
        every: seconds between two ticks.
        base, sum: set below; it has
            more: lines.
    """

    base: int

    def __init__(self, now):
        self.sum, self.interval_s = 0, 1

class Watch(Clock, Protocol):
    """A watch.

    Attributes:
        base: of the base class.
        strap: of leather.
    """

class Attempt(ChartOfElsewhere):
    """Inherits what nobody here can read.

    Attributes:
        colour: of the bars.
    """

def wind(turns, *, back=False):
    """Wind it.

    Args:
        turns, times: how often.
        back: the other way round.

    Returns:
        tension: of the spring.
    """
''')
    assert unknown_documented_names(tmp_path) == [
        f"{PACKAGE}/module.py:{line}: {gap}"
        for line, gap in (
            (2, "Clock has no every"),
            (19, "Watch has no strap"),
            (34, "wind has no times"),
        )
    ]
