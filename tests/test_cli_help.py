"""Help, version and completion: at once, for they need neither torch nor anything else that is slow to import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import backlit
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
        ("backlit explain --method saliency,gradient", {"saliency,gradient", "saliency,gradient_x_input"}),
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
