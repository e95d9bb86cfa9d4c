"""The code in the README and the docs runs."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import backlit
from backlit._options import option_names
from backlit._other_names import HERE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [
    p for p in PAGES if "```python" in p.read_text(encoding="utf-8") or "   ```python" in p.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda p: p.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    code = "\n".join(re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in blocks)
    exec(compile(code, str(page), "exec"), {})  # one page is one program


def test_the_packages_own_example_runs() -> None:
    results = doctest.testmod(backlit)
    assert results.attempted >= 5
    assert results.failed == 0


def test_what_other_libraries_have_is_here() -> None:
    names = set(re.findall(r"backlit\.(\w+)", (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")))
    assert len(names) > 20
    assert all(hasattr(backlit, name) for name in names), names - set(dir(backlit))


def test_every_name_of_another_library_leads_to_what_is_here() -> None:
    for said in HERE.values():
        for option in re.findall(r"\boption (\w+)", said):
            assert any(option in option_names(method) for method in backlit.METHODS), option


def test_the_readme_lists_every_method() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for method in backlit.METHODS:
        assert f"| `{method.name}` |" in text
        assert method.summary in text or method is backlit.Gradient


def test_the_metrics_page_is_what_the_metrics_say() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    for path, text in made.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/make_reference.py"


def test_the_reference_names_what_is_there() -> None:
    names = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 20
    for name in names:
        home, _, last = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ImportError:
            assert hasattr(importlib.import_module(home), last), name


def test_at_least_four_pages_have_code() -> None:
    assert len(WITH_CODE) >= 4
