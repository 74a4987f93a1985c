"""House rules on names, for test_house.py: of functions, classes, variables and files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from conventions.source_tree import PACKAGE, modules, syntax_trees
from helpers.paths import ROOT

KEYS_OF_FILES: Mapping[str, tuple[str, ...]] = {
    "ubatch": ("ubatch", "ubatch_size", "sink_ubatch_size"),  # microbatch
    "takeover": (),  # handover
    "take_over": (),
    "handed": ("handed_over",),
    "resume": ("resume", "resumed_run", "resumed_at_token"),  # restart
}
"""Words beside the glossary's: the names in which flags and keys of files have fixed them."""

PARTICIPLE = re.compile(r"_?[a-z]{2,}ed")

VERBS = ("embed", "feed", "need", "proceed", "seed", "speed")
"""Names of one word that end like a participle and are none."""

FIXTURE = re.compile(r"pytest\.fixture\b")

DATA = ("property", "setter")
"""Ends of the decorators that make a method a value, which may be an adjective."""


def names(node: ast.AST) -> Iterator[str]:
    """Yield the name that a node binds or reads, whatever it is a name of."""
    for field in ("id", "arg", "attr", "name"):
        if isinstance(name := getattr(node, field, None), str):
            yield name


def second_words(root: Path) -> list[str]:
    """Return the names that hold a word beside the glossary's, and are no key of a file."""
    return [
        f"{module.path.relative_to(root)}:{getattr(node, 'lineno', 1)}: {name}"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        for name in names(node)
        for word, keys in KEYS_OF_FILES.items()
        if word in name.lower() and name not in keys
    ]


def participles(root: Path) -> list[str]:
    """Return the functions whose whole name is a participle: it says neither deed nor thing."""
    return [
        f"{module.path.relative_to(root)}:{node.lineno}: {node.name}"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and PARTICIPLE.fullmatch(node.name)
        and node.name.lstrip("_") not in VERBS
        and not any(ast.unparse(decorator).endswith(DATA) for decorator in node.decorator_list)
    ]


# ---- classes and variables ----


def _type_names(tree: ast.Module) -> Iterator[str]:
    """Yield the public classes and type aliases of a module: ``X = Literal[...]``, ``NewType``."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            if not node.name.startswith("_"):
                yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            assigned = [target.id for target in targets if isinstance(target, ast.Name)]
            # Constants are written in capitals, variables in small letters.
            yield from (name for name in assigned if name[0].isupper() and not name.isupper())


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


VAGUE = re.compile(
    # Words of grammar.
    r"across|apiece|at|by|each|every|everywhere|further|here|how|instead|it|near|nowhere|of|often"
    r"|otherwise|since|so|to|unlike|what|where|which"
    # Verbs that fit any value.
    r"|done|found|given|got|held|known|made|said|seen|told|took|wanted"
    # Nouns that fit any value.
    r"|foo|item|misc|obj|object|stuff|temp|thing|tmp|var"
)
"""Names that say nothing of any thing. A field of a record keeps the name that files have."""

ADJECTIVES = frozenset(
    word
    for word in Path(__file__).with_name("adjectives.txt").read_text().splitlines()
    if not word.startswith("#")
)
"""Adjectives that are no names: ``widest`` does not say of what.

A list, as suffixes do not tell them apart: ``expected`` is a name here, and ``reading`` a noun.
"""

VAGUE_CONSTANT = re.compile(
    r"_?(BLOCK|BUSY|ENOUGH|EVERY|FEW|LOOK|MOST|NEW|NOTHING|SAID|SHORT|SOME|SPIN|WORDS)"
)
"""Names of constants that say neither thing nor unit: ``MOST`` does not say of what."""

NAMED_BY_US = (PACKAGE, "tests", "scripts", "contrib")
"""Folders whose variables must have names that say something and hide nothing."""


def vague_names(root: Path = ROOT) -> list[str]:
    """Return the variables, constants and arguments whose names say nothing."""
    return [
        f"{path.relative_to(root)}:{getattr(node, 'lineno', 1)}: {name}"
        for path, tree in syntax_trees(root, NAMED_BY_US).items()
        for node in ast.walk(tree)
        for name in _bound(node)
        if (_is_vague(name) and not _is_field(tree, node)) or VAGUE_CONSTANT.fullmatch(name)
    ]


def _is_vague(name: str) -> bool:
    return name in ADJECTIVES or VAGUE.fullmatch(name) is not None


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the name that a node binds: of a variable or an argument."""
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
        f"{path.relative_to(root)}:{getattr(node, 'lineno', 1)}: {name}"
        for path, tree in syntax_trees(root, NAMED_BY_US).items()
        for module_names in [set(_module_names(tree))]
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        for name in _bound(node)
        if name in module_names
    ]


def _module_names(tree: ast.Module) -> Iterator[str]:
    """Yield what a module imports or defines at top level, but for fixtures.

    A test asks for a fixture by an argument of its name.
    """
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            # ``import a.b`` binds ``a`` alone.
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ClassDef) or (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_fixture(node)
        ):
            yield node.name


def _is_fixture(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(FIXTURE.match(ast.unparse(decorator)) for decorator in function.decorator_list)


# ---- numbers and collections ----

PLURAL = re.compile(r"(?!.*(bytes|_[mn]?s)$)[a-z_]*[a-rt-z]s")
"""Plurals of things. Bytes and seconds are units, of which there is always a number."""

COLLECTION = re.compile(
    r"(list|tuple|dict|set|frozenset|deque|defaultdict|range|array"
    r"|Sequence|Mapping|Iterable|Iterator|Collection)\b"
)
"""Begin of an annotation that names a collection."""

NUMBERS_OF_THE_LIBRARY = ("slots", "steps")
"""Plurals that are numbers in public calls of the library, and collections elsewhere."""


def numbers_and_collections(root: Path = ROOT) -> list[str]:
    """Return the plurals that are an int here and a collection elsewhere in the same package.

    A number of things is called ``thing_count``. A field of a class keeps the name that files have.
    """
    numbers: list[tuple[str, str, Path, int]] = []
    collections: dict[tuple[str, str], Path] = {}
    for module in modules(root).values():
        path = module.path.relative_to(root)
        for node, name, annotation in _annotated_names(module.tree):
            text = ast.unparse(annotation).removesuffix(" | None")
            if not PLURAL.fullmatch(name) or name in NUMBERS_OF_THE_LIBRARY:
                continue
            if COLLECTION.match(text):
                collections.setdefault((module.room, name), path)
            elif text == "int" and not _is_field(module.tree, node):
                numbers.append((module.room, name, path, node.lineno))
    return [
        f"{path}:{line}: {name}, a collection in {collections[package, name]}"
        for package, name, path, line in sorted(numbers, key=lambda number: number[2:])
        if (package, name) in collections
    ]


def _annotated_names(
    tree: ast.Module,
) -> Iterator[tuple[ast.arg | ast.expr | ast.FunctionDef, str, ast.expr]]:
    """Yield the arguments, variables and properties that have a type, without underscores before.

    The types of ``*arguments`` and ``**options`` are those of single values, so both are left out.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            for argument in (*node.posonlyargs, *node.args, *node.kwonlyargs):
                if argument.annotation is not None:
                    yield argument, argument.arg.lstrip("_"), argument.annotation
        elif isinstance(node, ast.AnnAssign):
            for name in names(node.target):
                yield node.target, name.lstrip("_"), node.annotation
        elif (
            isinstance(node, ast.FunctionDef)
            and node.returns is not None
            and any(ast.unparse(decorator).endswith(DATA) for decorator in node.decorator_list)
        ):
            yield node, node.name.lstrip("_"), node.returns


# ---- files ----

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


def same_basenames(root: Path = ROOT) -> list[str]:
    """Return the names of files that are found in too many places."""
    places: dict[str, set[str]] = {}
    for path in (root / PACKAGE).rglob("*.py"):
        folder = path.parent.relative_to(root / PACKAGE)
        if folder == Path("cli"):  # a file is named after its command there
            continue
        family = next((group for group in FAMILIES if _is_in(folder, group)), (str(folder),))
        places.setdefault(path.stem, set()).add(" + ".join(family))
    return [
        f"{name}: {', '.join(sorted(folders))}"
        for name, folders in sorted(places.items())
        if len(folders) > MOST_PLACES and name not in NAMED_ALIKE
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


def _is_in(folder: Path, family: Iterable[str]) -> bool:
    return any(folder.is_relative_to(member) for member in family)
