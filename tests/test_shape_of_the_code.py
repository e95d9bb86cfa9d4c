"""What the code looks like in numbers, none of which may rise: ``python tests/test_shape_of_the_code.py`` prints them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest

from test_layers import SOURCE, lines_of_code

Function = ast.FunctionDef | ast.AsyncFunctionDef
HEADLESS = tuple("Of What Where Whether Which Who Whose Why How From For In On With Those".split())
"""How a docstring starts that is no sentence: neither with a verb, as a function's, nor with an article, as a class's."""

BOUNDS = {
    "lines of code of the longest file": 365,
    "lines of code of the longest function": 64,
    "branches of a function, 90th percentile": 6,
    "public docstrings without a head": 40,
    "lines with the word found": 383,
    "lines with Any": 401,
    "public class names defined twice": 8,
}
"""Present numbers, rounded up a little: lower one when the code gets below it, and raise none."""


@pytest.mark.parametrize("name", BOUNDS)
def test_no_number_rises(name: str) -> None:
    value, where = measured()[name]
    assert value <= BOUNDS[name], f"{name}: {value}, {where}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a, b):\n    return a", 0),
        ("def f(a, b):\n    if a and b or b:\n        return 1\n    elif b:\n        return 2", 4),
        ("def f(a):\n    for x in a:\n        while x:\n            x -= 1", 2),
        ("def f(a):\n    return [x if x else 1 for x in a if x if x > 2]", 3),
        ("def f(a):\n    try:\n        a()\n    except (KeyError, ValueError):\n        pass", 1),
        ("def f(a):\n    match a:\n        case 1:\n            pass\n        case 2:\n            pass", 2),
    ],
)
def test_branches_are_counted(source: str, expected: int) -> None:
    assert branches(ast.parse(source).body[0]) == expected


def test_docstrings_without_a_head_are_counted() -> None:
    source = (
        'class A:\n    """Of a class."""\n    def f(self):\n        """Whether so."""\n    def _g(self):\n        """What."""\n'
        'def h():\n    """Return what it is."""\ndef k():\n    """Offer more."""\n'
    )
    assert [name for name, _ in headless(ast.parse(source))] == ["A", "f"]


@cache
def measured() -> dict[str, tuple[int, str]]:
    """Return each number, and where it comes from."""
    texts = {path.relative_to(SOURCE): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    functions = [
        (f"{path} {node.name}", node, dedent(ast.get_source_segment(texts[path], node, padded=True) or ""))
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]
    files = [(lines_of_code(text), str(path)) for path, text in texts.items()]
    lengths = [(lines_of_code(source), name) for name, _, source in functions]
    branched = sorted((branches(node), name) for name, node, _ in functions)
    without_head = [(path, *found) for path, tree in trees.items() for found in headless(tree)]
    classes = Counter(
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    twice = sorted(name for name, count in classes.items() if count > 1)
    by_file = Counter(str(path) for path, *_ in without_head)
    return {
        "lines of code of the longest file": max(files),
        "lines of code of the longest function": max(lengths),
        "branches of a function, 90th percentile": branched[len(branched) * 9 // 10],
        "public docstrings without a head": (len(without_head), f"most in {by_file.most_common(3)}"),
        "lines with the word found": _lines(texts, r"\bfound\b"),
        "lines with Any": _lines(texts, r"\bAny\b"),
        "public class names defined twice": (len(twice), ", ".join(twice)),
    }


def branches(function: ast.AST) -> int:
    """Return how many ways there are through a function beside the first: what it chooses, repeats and catches."""
    count = 0
    for node in ast.walk(function):
        if isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += len(node.ifs)
        else:
            count += isinstance(node, (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case))
    return count


def headless(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the public classes and functions whose docstring begins with no verb and no article, and its first line."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, Function)) and not node.name.startswith("_"):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if first.split(" ")[0] in HEADLESS:
                yield node.name, first


def _lines(texts: dict[Path, str], pattern: str) -> tuple[int, str]:
    counts = Counter(
        {str(path): sum(bool(re.search(pattern, line)) for line in text.splitlines()) for path, text in texts.items()}
    )
    return counts.total(), f"most in {counts.most_common(3)}"


if __name__ == "__main__":
    for number, (amount, place) in measured().items():
        print(f"{amount:6}  {number} (at most {BOUNDS[number]}): {place}")
