"""House rule on references, for test_house.py: names in docstrings and comments lead somewhere."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

from conventions.source_tree import Module, modules, place_of

REFERENCE = re.compile(r":(meth|func|class|mod|data|attr|exc):`([^`]+)`")

NAME_IN_COMMENT = re.compile(r"`([A-Za-z_]\w+)(?:\(\))?`|(?<![\w.`])(_[a-z]\w*)")
"""A name in backticks of more than one letter, or a word with a leading underscore."""


def lost_references(root: Path) -> list[str]:
    """Return the references to names that the package does not define.

    A single word must be a class (no two have one name), a name in its file, a member of a base
    class, or a file beside it. Dotted words must be the end of a full name: of a module, of a name
    in it, or of a class's member.
    """
    names = {module.name: set(_defined(module)) for module in modules(root).values()}
    classes = _classes(root)
    endings = {
        ending
        for module_name, defined in names.items()
        for full in (module_name, *(f"{module_name}.{name}" for name in defined))
        for ending in _endings(full)
    }
    lost = []
    for module in modules(root).values():
        folder = module.name if module.path.stem == "__init__" else module.name.rpartition(".")[0]
        words = {name.rpartition(".")[2] for name in names[module.name]} | classes.keys()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                words |= _all_members(node, classes)
        for node, role, target in _find_references(module):
            word = target.lstrip("~.")
            is_word = word in words or f"{folder}.{word}" in names
            if not (word in endings if "." in target else is_word):
                lost.append(f"{place_of(module, node, root)}: :{role}:`{target}`")
    return lost


def lost_names(root: Path) -> list[str]:
    """Return the names in comments that lead nowhere.

    A word with a leading underscore must occur in the code of its file. A name in backticks must
    occur in the code of the package, or be a whole text there, as values of options and keys are.
    """
    words = {module.name: _words(module.text) for module in modules(root).values()}
    words_of_package = set().union(*words.values())
    return [
        f"{module.path.relative_to(root)}:{line}: {quoted or private}"
        for module in modules(root).values()
        for line, comment in _comments(module.text)
        for quoted, private in NAME_IN_COMMENT.findall(comment)
        if (quoted not in words_of_package if quoted else private not in words[module.name])
    ]


def _comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _words(text: str) -> set[str]:
    """Return the names and keywords of a file's code, and its texts of one word."""
    return {
        token.string.strip("\"'")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type in (tokenize.NAME, tokenize.STRING)
    }


def _find_references(module: Module) -> Iterator[tuple[ast.AST, str, str]]:
    """Yield each reference of the file: the text that it is in, its role and its target."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for role, target in REFERENCE.findall(node.value):
                yield node, role, target


def _endings(full: str) -> Iterator[str]:
    words = full.split(".")
    return (".".join(words[start:]) for start in range(len(words)))


def _defined(module: Module) -> Iterator[str]:
    """Yield the names of a file, imported ones too, and its classes' members as Class.member."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef):
            yield node.name
            yield from (f"{node.name}.{member}" for member in _members(node))
        else:
            yield from _bound(node)


def _members(class_: ast.ClassDef) -> Iterator[str]:
    """Yield the methods, fields and attributes of a class, those that its methods set too."""
    for statement in class_.body:
        yield from _bound(statement)
    for node in ast.walk(class_):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a definition or an assignment binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def _classes(root: Path) -> dict[str, ast.ClassDef]:
    """Return every class of the package by its name, which no other class has."""
    return {
        node.name: node
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }


def _all_members(class_: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> set[str]:
    """Return the members of a class and of its base classes."""
    bases = {ast.unparse(base).split("[")[0].rpartition(".")[2] for base in class_.bases}
    inherited = [_all_members(classes[name], classes) for name in bases if name in classes]
    return set(_members(class_)).union(*inherited)
