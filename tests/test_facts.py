"""A fact about an operation stands once, beside it in capture/primitives.py: no lists of names elsewhere, no name is parsed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from backlit.capture import PRIMITIVES
from backlit.capture.sites import Trait

SOURCE = Path(__file__).parents[1] / "src" / "backlit"
OPTIONS = frozenset("sum mean max min abs norm sigmoid softmax".split())
"""Primitives whose names are values of options, too."""
NAMES = {p.name for p in PRIMITIVES} - OPTIONS
FOLDERS = ("capture", "rules", "methods", "inverse")
FILES = [
    *(path for folder in FOLDERS for path in sorted((SOURCE / folder).glob("*.py"))),
    *(SOURCE / f"{name}.py" for name in ("_places", "_reach", "_features")),
]


def lists_of_names(tree: ast.Module) -> Iterator[int]:
    """Lines with a collection of two or more primitives; the keys of a table (a dictionary, ``dict.fromkeys``) are none."""
    keys = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict.fromkeys"
    }
    for node in ast.walk(tree):
        words: list[object] = []
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)) and id(node) not in keys:
            words = [e.value for e in node.elts if isinstance(e, ast.Constant)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split":
            words = [] if not isinstance(node.func.value, ast.Constant) else list(str(node.func.value.value).split())
        if len(NAMES.intersection(map(str, words))) > 1:
            yield node.lineno


def parsed_names(tree: ast.Module) -> Iterator[int]:
    """Lines that look into the letters of a primitive's name."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        aliases = _aliases(function)

        def is_name(node: ast.expr, aliases: set[str] = aliases) -> bool:
            text = ast.unparse(node)
            return text.endswith((".primitive", ".primitive.name", "p.name")) or text in aliases

        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
                asked = isinstance(node.left, ast.Constant) and is_name(node.comparators[0])
            elif isinstance(node, ast.Attribute):
                asked = node.attr in ("startswith", "endswith", "partition", "split") and is_name(node.value)
            else:
                asked = isinstance(node, ast.Subscript) and is_name(node.value)
            if asked:
                yield node.lineno  # type: ignore[attr-defined]


def _aliases(function: ast.FunctionDef) -> set[str]:
    """The variables of a function that are a primitive's name."""
    return {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for target, value in zip(_elements(node.targets[0]), _elements(node.value), strict=False)
        if isinstance(target, ast.Name) and ast.unparse(value).endswith((".primitive.name", ".primitive"))
    }


def _elements(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_operations_are_listed_in_one_place(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    listed = [] if path.name == "primitives.py" else list(lists_of_names(tree))
    assert not listed, f"lines {listed} list primitives: give them a trait in capture/primitives.py, and ask for it"
    assert not (parsed := list(parsed_names(tree))), f"lines {parsed} read the letters of a primitive's name"


def test_every_trait_is_told_of_an_operation_and_asked_for() -> None:
    told = {trait for p in PRIMITIVES for trait in p.traits}
    assert told == set(get_args(Trait))
    calls = [
        node
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("has", "named")
    ]
    asked = {a.value for call in calls for a in call.args if isinstance(a, ast.Constant)}
    assert told - asked == {"gate", "bounded", "clipped"}  # which rules/structural.py goes through
