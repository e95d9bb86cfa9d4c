"""A new method is one file and one entry, a new rule one function and one entry, a new operation one row."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import backlit

SOURCE = Path(backlit.__file__).parent
METHOD_FILE = '''
from torch import Tensor

from backlit.methods.gradient import Gradient


class SignTimesInput(Gradient):
    """The sign of the gradient times a power of the image.

    Attributes:
        power: Exponent of the image.
    """

    name, title = "sign_times_input", "Sign × input"
    kind, summary, source = "signed", "sign of the gradient times the image", "nowhere"

    power: int = 1

    def value(self, gradient: Tensor, x: Tensor) -> Tensor:
        return gradient.sign() * x**self.power
'''
METHOD = """
from pathlib import Path

import backlit, torch
from PIL import Image
from typer.testing import CliRunner
from backlit.cli import app
from backlit.methods import METHODS
from backlit.models.digits import digits_images

listed = CliRunner().invoke(app, ["methods"]).output
assert "sign_times_input" in listed, listed
shown = CliRunner().invoke(app, ["methods", "sign_times_input"]).output
assert "power=1" in shown and "Exponent of the image." in shown, shown
images, _ = digits_images()
Image.fromarray(images[0].squeeze().mul(255).byte().numpy() if images[0].is_floating_point() else images[0].squeeze().numpy()).save("digit.png")
done = CliRunner().invoke(app, ["explain", "digit.png", "--method", "sign_times_input", "--option", "power=2", "--out", "out"])
assert done.exit_code == 0, done.output
assert list(Path("out").glob("digit.sign_times_input.*.safetensors"))
model = backlit.load_model("digits")
found = METHODS[-1](model, power=2)(torch.rand(2, 1, 32, 32), backlit.Contrast(3, 8))
assert found.provenance["options"]["power"] == 2
print("done")
"""
RULE = """
import backlit, torch
from backlit.capture import propagate
from backlit.rules import presets

net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double()
x = torch.randn(2, 1, 2, 2, dtype=torch.float64)
run = propagate(net, x, presets.halved_gates)
plain = propagate(net, x, presets.gradient)
seed = torch.ones(2, 2, dtype=torch.float64)
assert torch.allclose(run.gradient(seed)[0], plain.gradient(seed)[0] / 2)
assert {row.rule for row in run.coverage.rows if row.primitive == "relu"} == {"halved"}
print("done")
"""
OPERATION = """
import backlit, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.b(torch.special.erfcx(self.a(x.flatten(1))))

torch.manual_seed(0)
net, x = Net().double(), torch.randn(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
true = torch.autograd.grad(net(x)[:, 1].sum(), x)[0]
for method in (backlit.Gradient(net), backlit.DMBP(net, steps=2, sites="activations"), backlit.LRP(net), backlit.DeepLIFT(net)):
    found = method(x.detach(), 1)
    assert found.values.isfinite().all()
    assert any(row.primitive == "erfcx" for row in found.coverage.rows)
assert torch.allclose(backlit.Gradient(net).attribute(x.detach(), 1), true)
print("done")
"""


def run_with(folder: Path, changed: dict[str, str], program: str) -> str:
    """Run a program on a copy of the package in which these files have these texts."""
    package = folder / "backlit"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in changed.items():
        (package / name).write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_change(name: str, before: str, after: str) -> str:
    """The text of a source file with one place changed."""
    text = (SOURCE / name).read_text(encoding="utf-8")
    assert text.count(before) == 1
    return text.replace(before, after)


def test_a_method_is_one_file_and_one_entry(tmp_path: Path) -> None:
    entry = with_change(
        "methods/__init__.py", "    Gradient,\n)\nBASELINES", "    Gradient,\n    SignTimesInput,\n)\nBASELINES"
    )
    entry = entry.replace("\nMETHODS:", "\nfrom backlit.methods.sign import SignTimesInput\n\nMETHODS:", 1)
    assert "done" in run_with(tmp_path, {"methods/sign.py": METHOD_FILE, "methods/__init__.py": entry}, METHOD)


def test_a_rule_is_one_function_and_one_entry(tmp_path: Path) -> None:
    text = (SOURCE / "rules" / "presets.py").read_text(encoding="utf-8")
    entry = (
        "\n\ndef halved(g, inputs, output, call):\n    return (g * (inputs[0] > 0) / 2,)\n\n\n"
        'halved_gates = gradient.but({"relu": halved}, "halved gates")\n'
    )
    assert "done" in run_with(tmp_path, {"rules/presets.py": text + entry}, RULE)


def test_an_operation_is_one_row(tmp_path: Path) -> None:
    row = with_change("capture/primitives.py", '"logit eps"', '"logit eps", "erfcx"')
    with pytest.raises(AssertionError, match="erfcx"):
        run_with(tmp_path / "before", {}, OPERATION)
    assert "done" in run_with(tmp_path / "after", {"capture/primitives.py": row}, OPERATION)
