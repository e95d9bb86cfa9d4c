"""Help, version and completion: at once, for they need neither torch nor anything else that is slow to import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from rich.console import Console

import backlit
from _commands import command
from backlit.cli import app, complete
from backlit.methods import BASELINES, METHODS
from backlit.metrics import METRICS
from backlit.models import model_names

SLOW = ("torch", "numpy", "matplotlib", "polars", "PIL", "safetensors", "jinja2", "torchvision", "rich.progress")
COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
CODE = f"""
import sys
import atexit
atexit.register(lambda: print("imported", [name for name in {SLOW!r} if name in sys.modules], file=sys.stderr))
sys.argv[0] = "backlit"
from backlit.cli import main
main()
"""


def call(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", **variables}
    command = [sys.executable, "-c", CODE, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_slow(words: list[str]) -> None:
    done = call(*words)
    assert done.returncode == 0
    assert "imported []" in done.stderr
    assert backlit.__version__ in done.stdout or "Usage: " in done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("backlit explain --method sal", {"saliency"}),
        (
            "backlit explain --method saliency,gradient",
            {"saliency,gradient", "saliency,gradient_rollout", "saliency,gradient_x_input"},
        ),
        ("backlit explain --model resnet1", {"resnet18", "resnet101"}),
        ("backlit compare --metric lerf", {"lerf_5", "lerf_100"}),
        ("backlit met", {"methods", "metrics"}),
    ],
)
def test_the_shell_completes_names(typed: str, offered: set[str]) -> None:
    words = {"_BACKLIT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = call(**words)
    assert set(done.stdout.split()) == offered
    assert "imported []" in done.stderr


def test_the_names_that_are_offered_are_those_that_there_are() -> None:
    assert tuple(method.name for method in METHODS + BASELINES) == complete.METHOD_NAMES
    assert tuple(metric.name for metric in METRICS) == complete.METRIC_NAMES
    assert {*complete.MODEL_NAMES} - {"timm:"} <= {*model_names()}


def test_the_package_gives_every_name_when_it_is_asked_for() -> None:
    code = (
        "import sys, backlit\n"
        "assert 'torch' not in sys.modules\n"
        "assert {*backlit.__all__} <= {*dir(backlit)}\n"
        "assert all(getattr(backlit, name) is not None for name in backlit.__all__)\n"
        "assert backlit.bench.compare.compare is backlit.compare\n"
        "assert backlit.data.CIFAR10 and backlit.inverse.Fitted and backlit.report and backlit.attribution\n"
        "from backlit import *\n"
        "assert GradCAM is backlit.methods.GradCAM\n"
        "assert not hasattr(backlit, 'GradCam')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("what", ["methods", "metrics"])
def test_listings_are_readable_at_any_width(what: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are whole, no line is cut or longer than the terminal, and each entry has its cost."""
    monkeypatch.setattr("backlit.cli.listings.console", lambda: Console(width=columns, soft_wrap=True))
    shown = command(what).stdout
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown
    known = METHODS + BASELINES if what == "methods" else METRICS
    for kind in known:
        (line,) = [line for line in shown.splitlines() if line.startswith((f"{kind.name} ", f" {kind.name} "))]
        assert any(cost in line for cost in ("run", *"0123456789"))


def test_a_method_and_a_metric_in_detail() -> None:
    shown = command("methods", "DMBP").stdout
    assert "Ruiz et al., ICCV 2021" in shown
    assert "  steps=200\n      Gradient steps.\n" in shown
    assert "  seed=0\n" in shown  # of every method
    assert "callback" not in shown
    assert "The short schedule: steps=20, lr=0.1, init=1.0." in command("methods", "fast").stdout
    shown = command("metrics", "energy-pointing-game").stdout
    assert "It needs boxes." in shown
    assert "Higher is better." in shown
    for kind in METHODS + BASELINES:
        assert command("methods", kind.name).returncode == 0
    for kind in METRICS:
        assert command("metrics", kind.name).returncode == 0
    done = command("methods", "dmpb")
    assert done.returncode == 2
    assert "Did you mean 'dmbp'" in done.stderr
