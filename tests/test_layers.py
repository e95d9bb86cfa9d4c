"""The direction of imports, and what the project must never name."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "backlit"
ORDER = [
    *(
        "_errors",
        "_other_names",
        "_options",
        "_types",
        "_version",
        "_warn",
        "_draws",
        "_forward",
        "_state",
        "_json",
        "_files",
        "_journal",
        "_lock",
        "_claim",
        "_store",
        "_fingerprint",
        "_packed",
        "_callables",
        "_layout",
        "_plain",
        "_random",
        "capture",
        "_places",
        "_reach",
        "_features",
        "rules",
        "attribution",
        "comparison",
    ),
    *("inverse", "methods", "metrics", "post", "models", "data", "report", "bench", "app", "cli"),
]
LOWER_MAY_REACH = {"attribution": {"report", "post"}}  # inside a function: drawing a figure, filtering a map


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "backlit" else None


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module == "backlit":
            found = [f"backlit.{alias.name}" for alias in node.names]
        for module in found:
            other = layer(module)
            if other is None or other in LOWER_MAY_REACH.get(own, ()):
                continue
            assert ORDER.index(other) <= ORDER.index(own), f"{own} imports {module}, which stands above it"


def test_every_layer_is_in_the_order() -> None:
    there = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert there - {"__init__", "__pycache__", "py.typed"} == set(ORDER)


def test_the_engine_stays_small() -> None:
    """What sees a network and runs it, with the table of operations; rules are content, and grow."""
    files = [*(SOURCE / "capture").glob("*.py"), SOURCE / "rules" / "table.py"]
    assert 1000 < sum(lines_of_code(p.read_text(encoding="utf-8")) for p in files) < 1810


def lines_of_code(source: str) -> int:
    """Lines that hold code: no docstrings, comments or blank lines."""
    documented = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented.update(range(node.lineno, (node.end_lineno or 0) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in silent]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - documented)
