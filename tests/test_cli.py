"""The command line as a user meets it: files, tables, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import backlit
from _commands import command
from backlit.cli import app
from backlit.cli.demo import SHOWN
from backlit.cli.settings import methods as chosen_methods
from backlit.methods import METHODS
from backlit.methods.lookup import find_method


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    images = backlit.models.digits.digits_images().images
    for i, name in enumerate(["a.png", "more/b.png", "more/a.png"]):
        Image.fromarray(images[i].numpy()).save(folder / name)
    return folder


def test_an_averaged_method_for_pixels_knows_black_and_white(digits: Path, tmp_path: Path) -> None:
    words = ("explain", digits / "a.png", "--method", "smooth_grad", "--option", "of=deep-taylor", "--target", 3)
    done = command(*words, "--option", "samples=2", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["maps"]
    model = backlit.load_model("digits")
    low, high = model.preprocess.bounds
    assert row["provenance"]["options"]["of"]["low"] == list(low)
    found = backlit.Attribution.load(tmp_path / "out" / row["map"])
    of = backlit.DeepTaylor(model.network, low=low, high=high)
    assert torch.equal(found.values, backlit.SmoothGrad(model.network, of=of, samples=2)(found.inputs, 3).values)


def test_rules_for_pixels_know_black_and_white(digits: Path, tmp_path: Path) -> None:
    """The box is that of the preprocessing, not each image's own range; an option overrides it."""
    black, white = backlit.load_model("digits", mean=0.3, std=0.6).preprocess.bounds
    words = (
        "explain",
        digits / "a.png",
        "--method",
        "deep_taylor",
        "--mean",
        0.3,
        "--std",
        0.6,
        "--target",
        3,
        "--out",
    )
    assert command(*words, tmp_path / "given").returncode == 0
    assert command(*words, tmp_path / "own", "--option", "low=None", "--option", "high=-0.0").returncode == 1
    (row,) = json.loads((tmp_path / "given" / "summary.json").read_text())["maps"]
    assert row["provenance"]["options"]["low"] == list(black)
    found = backlit.Attribution.load(tmp_path / "given" / row["map"])
    model = backlit.load_model("digits", mean=0.3, std=0.6)
    box = backlit.DeepTaylor(model.network, low=black, high=white)(found.inputs, 3)
    assert torch.equal(found.values, box.values)
    assert not torch.allclose(
        found.values, backlit.DeepTaylor(model.network, low=-2.0, high=3.0)(found.inputs, 3).values
    )


def test_explain_writes_pictures_maps_and_a_summary(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(
        "explain", digits, "--method", "dmbp,Gradient-X-Input", "--target", "top:2", "--option", "steps=3", "--out", out
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["maps"]) == 3 * 2 * 2
    assert summary["failures"] == []
    for row in summary["maps"]:
        explanation = backlit.Attribution.load(out / row["map"])
        assert explanation.target.tolist() == [row["target"]]
        assert np.array(Image.open(out / row["bare"])).shape == (256, 256, 3)
        height, width, _ = np.array(Image.open(out / row["picture"])).shape
        assert width > 3 * 256  # photograph, map and overlay side by side
        assert height > 256
    assert {row["provenance"]["options"].get("steps") for row in summary["maps"]} == {3, None}
    assert len({row["map"] for row in summary["maps"]}) == 12  # images of one name do not overwrite each other
    first = summary["maps"][0]
    assert first["probability"] >= summary["maps"][1]["probability"]
    assert set(first["completeness"]) == {"positive", "negative", "nuisance", "positive_image", "negative_image", "gap"}


def test_explain_goes_on_after_bad_images_and_lists_them(digits: Path, tmp_path: Path) -> None:
    (digits / "empty.png").write_bytes(b"")
    (digits / "cut.png").write_bytes((digits / "a.png").read_bytes()[:60])
    (digits / "text.jpg").write_text("no image")
    out = tmp_path / "out"
    done = command("explain", digits, digits / "missing.png", "--method", "saliency", "--out", out)
    assert done.returncode == 1
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["maps"]) == 3
    assert sorted(Path(f["image"]).name for f in summary["failures"]) == [
        "cut.png",
        "empty.png",
        "missing.png",
        "text.jpg",
    ]
    assert all(len(f["error"]) > 20 for f in summary["failures"])
    assert "4 failed" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "dmpb"], "Did you mean 'dmbp'"),
        (["--method", ""], "at least one method"),
        (["--target", "ten"], "has no class 'ten'"),
        (["--target", "10"], "has 10 classes"),
        (["--target", "top:11"], "top:K with K from 1 to 10"),
        (["--model", "resnet"], "resnet"),
        (["--model", "digits", "--weights", "none.safetensors"], "none.safetensors"),
        (["--option", "steps"], "must be KEY=VALUE"),
        (["--option", "stpes=3"], "Did you mean 'steps'"),
        (["--option", "steps=none"], "steps must be a positive integer up to 1,000,000, but is 'none'"),
        (["--mean", "a,b"], "mean must be numbers by comma"),
        (["--device", "gpu"], "gpu"),
        (["--dtype", "float8"], "float8"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(digits: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = command("explain", digits / "a.png", *words, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.png"):
        done = command("explain", path, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert str(path) in done.stderr
        assert not (tmp_path / "out").exists()


def test_unwritable_out(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("explain", digits, "--method", "saliency", "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert "out: cannot write" in done.stderr


def test_demo_writes_one_page_with_every_method(tmp_path: Path) -> None:
    done = command("demo", "--out", tmp_path / "demo", "--seed", 1)
    assert done.returncode == 0, done.stderr
    assert "index.html" in done.stdout
    html = (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")
    assert all(find_method(name, METHODS).title in html for name in SHOWN)
    assert "Scene: why" in html
    assert "http" not in html.replace("http-equiv", "")


def test_listings() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["methods"]).output
    assert all(method.name in listed.replace("│\n│ ", "") for method in METHODS)
    traced = command("trace", "--model", "digits", "--method", "guided_backprop").stdout
    assert "relu[5]" in traced
    assert "guided x6" in traced
    assert "masked x6" in command("trace", "--method", "dmbp").stdout
    assert backlit.__version__ in runner.invoke(app, ["--version"]).output


def test_options_go_to_the_methods_that_have_them() -> None:
    given = ["steps=4", "dmbp.lr=0.5", "saliency.chunk=2", "dtype=float64"]
    dmbp, saliency = chosen_methods("dmbp,saliency", given, 3)
    assert dmbp.options == {"seed": 3, "steps": 4, "lr": 0.5, "dtype": torch.float64}
    assert saliency.options == {"seed": 3, "chunk": 2}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("FALSE", False)])
def test_truth_values_may_be_written_small(text: str, value: bool) -> None:
    (guided,) = chosen_methods("guided_backprop", [f"times_input={text}"], 0)
    assert guided.options["times_input"] is value


def test_the_installed_script_runs() -> None:
    code = "from backlit.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert all(word in done.stdout for word in ("demo", "explain", "methods", "trace"))
