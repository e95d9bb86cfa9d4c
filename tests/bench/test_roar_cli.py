"""`backlit roar` on a few made-up CIFAR-10 pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from backlit import BacklitError
from backlit.cli import app

FEW = ["--fractions", ".5,.9", "--seeds", "1", "--epochs", "1", "--width", "2"]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the binary layout: a label and 3 x 32 x 32 bytes a picture."""
    folder, random = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = random.integers(256, size=(12, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(12) % 10
        (folder / name).write_bytes(rows.tobytes())
    return folder


def call(*words: object) -> str:
    done = CliRunner().invoke(app, ["roar", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_table_and_files(cifar: Path, tmp_path: Path) -> None:
    words = ["--data", cifar, "--methods", "saliency,random,dmbp", "--option", "dmbp.steps=2", *FEW, "--limit", 30]
    said = call(*words, "--out", tmp_path / "out")
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table in said
    assert table.split()[:5] == ["Fraction", "Original", "Random", "saliency", "dmbp"]
    assert "50%" in table
    assert "90%" in table
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["protocol"]["data"]["train"]["images"] == 30
    assert found["protocol"]["data"]["test"]["images"] == 12
    assert len(found["rows"]) == 1 + 2 * 3
    assert call(*words, "--out", tmp_path / "out") == said  # nothing is left to do


def test_every_option_arrives(cifar: Path, tmp_path: Path) -> None:
    words = (
        "--fractions .25 --seeds 2 --epochs 2 --batch 16 --optimizer sgd --learning-rate .01 --weight-decay .2 --flip"
    )
    more = "--width 2 --dropout .5 --replacement zero --reduce abs --target label --mask-only"
    call("--data", cifar, "--methods", "gradient", *words.split(), *more.split(), "--out", tmp_path / "out")
    protocol = json.loads((tmp_path / "out" / "result.json").read_text())["protocol"]
    assert protocol["fractions"] == [0.25]
    assert protocol["seeds"] == [0, 1]
    assert protocol["options"]["replacement"] == "zero"
    assert protocol["options"]["reduce"] == "abs"
    assert protocol["options"]["target"] == "label"
    assert "gradient mask" in (tmp_path / "out" / "table.txt").read_text()
    training = protocol["options"]["training"]
    assert [training[k] for k in ("epochs", "batch", "optimizer", "flip")] == [2, 16, "sgd", True]
    assert [training[k] for k in ("learning_rate", "weight_decay")] == [0.01, 0.2]
    assert "Dropout(p=0.5" in protocol["network"]["architecture"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "saliency", "--fractions", "half"], "fractions must be numbers by comma, .* but are 'half'"),
        (["--methods", "saliency", "--fractions", "1.5"], "fractions must be different shares above 0 and below 1"),
        (["--methods", "salience"], "Did you mean 'saliency'"),
        (["--methods", "random"], "method must name one beside random"),
        (["--methods", "saliency", "--optimizer", "lion"], "optimizer must be 'adamw', 'adam' or 'sgd'"),
        (["--methods", "saliency", "--device", "abacus"], "device: 'abacus' cannot be used"),
    ],
)
def test_mistakes(cifar: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(BacklitError, match=message):
        call("--data", cifar, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(
        BacklitError, match=r"data must be a folder of CIFAR-10 or MNIST, but .* as CIFAR10: .* as MNIST: "
    ):
        call("--data", tmp_path, "--methods", "saliency", "--out", tmp_path / "out")
