"""A new metric is one file and one entry: the command line, the comparison and the listings know it then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import backlit

TOY = '''
from backlit.metrics.base import Case, Metric, Scores, to_numbers


class Largest(Metric):
    """The largest value of the map, over a power.

    Attributes:
        power: Exponent of the value.
    """

    name = "largest"
    title = "Largest value"
    summary = "largest value of the map"
    source = "nowhere"
    higher_is_better = True
    range = (float("-inf"), float("inf"))

    power: int = 1

    def measure(self, case: Case) -> Scores:
        values = {name: to_numbers(heat.amax((1, 2, 3)) ** self.power) for name, heat in case.heat.items()}
        return Scores(self, case.examples.names, values)
'''
RUN = """
import torch, backlit
from typer.testing import CliRunner
from backlit.cli import app
from backlit.metrics import Examples
from backlit.models.digits import digits_images

listed = CliRunner().invoke(app, ["metrics"]).output
assert "largest" in listed, listed
shown = CliRunner().invoke(app, ["metrics", "largest"]).output
assert "power=1" in shown and "Exponent of the value." in shown, shown
model = backlit.load_model("digits")
x = torch.stack([model.preprocess(image) for image in digits_images()[0][:2]])
found = backlit.compare(model, Examples(x, torch.tensor([0, 1])), ["gradient"], ["largest"])
assert found.ranking["metric"].to_list() == ["largest"]
print("measured")
"""


def test_a_metric_is_one_file_and_one_entry(tmp_path: Path) -> None:
    package = tmp_path / "backlit"
    shutil.copytree(Path(backlit.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "metrics" / "largest.py").write_text(TOY, encoding="utf-8")
    listed = package / "metrics" / "__init__.py"
    text = listed.read_text(encoding="utf-8")
    text = text.replace("METRICS:", "from backlit.metrics.largest import Largest\n\nMETRICS:", 1)
    listed.write_text(
        text.replace("METRICS: tuple[type[Metric], ...] = (", "METRICS: tuple[type[Metric], ...] = (\n    Largest,", 1),
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "measured" in done.stdout
