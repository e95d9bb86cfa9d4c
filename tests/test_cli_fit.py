"""`backlit fit`, and what takes its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import backlit
from _commands import command
from backlit._plain import plain
from backlit.cli.fit import Source, _data
from backlit.inverse import Fitted


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a digit."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = backlit.models.digits.digits_images()
    for i in range(24):
        (folder / str(int(labels[i]))).mkdir(exist_ok=True)
        Image.fromarray(images[i].numpy()).save(folder / str(int(labels[i])) / f"{i}.png")
    return folder


def test_fit_then_explain_then_trace(digits: Path, tmp_path: Path) -> None:
    inverse, patterns = tmp_path / "inverse.safetensors", tmp_path / "patterns.safetensors"
    done = command("fit", "--data", digits, "--classes", "7,6", "--limit", 20, "--batch", 8, "--out", inverse)
    assert done.returncode == 0, done.stderr
    assert "mip_in of 2 classes" in done.stdout
    done = command("fit", "--method", "pattern", "--limit", 20, "--out", patterns)
    assert done.returncode == 0, done.stderr
    read = Fitted.load(inverse)
    assert read.classes == (7, 6)
    assert read.facts["description"] == f"20 images of {digits} read as images"
    assert read.facts["data"]["batches"] == 3
    assert Fitted.load(patterns).facts["description"] == "20 embedded digits"

    out = tmp_path / "out"
    words = ["explain", next(digits.glob("7/*.png")), "--method", "mip_in,pattern_net,saliency", "--target", "7"]
    done = command(
        *words, "--fitted", inverse, "--fitted", patterns, "--option", "pattern_net.estimator=linear", "--out", out
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "summary.json").read_text())["maps"]
    assert [row["method"] for row in rows] == ["mip_in", "pattern_net", "saliency"]
    assert rows[0]["coverage"]["transposed convolution"] == 6
    assert rows[0]["provenance"]["options"]["fitted"] == json.loads(json.dumps(plain(read)))
    done = command("trace", "--method", "mip_in", "--fitted", inverse)
    assert "switches" in done.stdout
    assert "17 sites of digits under MIP-IN" in done.stdout.replace("\n", "")


def test_a_limit_is_spread_over_the_embedded_digits() -> None:
    assert backlit.models.digits.digits_images().labels.shape == (360,)
    source = Source(None, "images", None, 36, 64, train=True)
    (x, labels), *rest = _data(source, backlit.load_model("digits"))[0]
    _, every = backlit.models.digits.digits_images()
    assert not rest
    assert len(x) == 36
    assert torch.equal(labels, every[::10])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "IMAGE", "--method", "mip_in"], "mip_in learns from data first: `backlit fit --method mip_in"),
        (["explain", "IMAGE", "--method", "saliency", "--fitted", "FILE"], "no method that was asked for uses"),
        (["explain", "IMAGE", "--method", "pattern_net", "--fitted", "FILE"], "pattern_net learns from data first"),
        (["explain", "IMAGE", "--method", "mip_in", "--fitted", "IMAGE"], "no whole safetensors file"),
        (["fit", "--method", "mipin", "--out", "OUT"], "Did you mean 'mip_in'"),
        (["fit", "--method", "saliency", "--out", "OUT"], "method must be one that learns from data"),
        (["fit", "--classes", "a", "--out", "OUT"], "classes must be whole numbers by comma"),
        (["fit", "--classes", "10", "--out", "OUT"], "classes must be different class indices from 0 to 9"),
        (["fit", "--data", "DATA", "--read", "pictures", "--out", "OUT"], "read must be one of images, folder"),
        (["fit", "--data", "DATA", "--read", "folder", "--out", "OUT"], "has other classes than the 10 of digits"),
        (["fit", "--data", "none", "--out", "OUT"], "does not exist"),
        (["fit", "--start", "conv9", "--out", "OUT"], "Did you mean 'conv"),
        (
            ["fit", "--method", "pattern", "--ridge", "0.1", "--out", "OUT"],
            "--ridge is for mip_in; pattern has no such",
        ),
        (["fit", "--method", "pattern_net", "--classes", "1", "--out", "OUT"], "--classes is for mip_in; pattern"),
        (["fit", "--method", "pattern", "--start", "features", "--out", "OUT"], "--start is for mip_in; pattern"),
        (["fit", "--method", "pattern", "--samples", "all", "--out", "OUT"], "--samples is for mip_in; pattern"),
        (["fit", "--out", "DATA"], "out must be a file, but"),
        (["fit", "--model", "cifar_cnn", "--weights", "random", "--out", "OUT"], "name a folder"),
    ],
)
def test_what_cannot_be_used(digits: Path, tmp_path: Path, words: list[str], message: str) -> None:
    inverse = tmp_path / "inverse.safetensors"
    if "FILE" in words:
        command("fit", "--data", digits, "--classes", "7", "--start", "linear", "--limit", 12, "--out", inverse)
        command("fit", "--data", digits, "--classes", "7", "--start", "conv6", "--limit", 12, "--out", inverse)
    subset = tmp_path / "two"
    for name in ("0", "1"):
        (subset / name).mkdir(parents=True)
        Image.new("L", (32, 32)).save(subset / name / "x.png")
    named = {
        "IMAGE": next(digits.glob("7/*.png")),
        "FILE": inverse,
        "OUT": tmp_path / "out.safetensors",
        "DATA": subset,
    }
    done = command(*(named.get(word, word) for word in words))
    assert done.returncode in (1, 2)
    assert message in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_for_another_network_is_refused_before_any_image(digits: Path, tmp_path: Path) -> None:
    inverse = tmp_path / "inverse.safetensors"
    done = command("fit", "--data", digits, "--classes", "7", "--start", "conv6", "--limit", 12, "--out", inverse)
    assert done.returncode == 0, done.stderr
    done = command(
        "explain",
        digits,
        "--weights",
        "random",
        "--method",
        "mip_in",
        "--target",
        "7",
        "--fitted",
        inverse,
        "--out",
        tmp_path / "out",
    )
    assert done.returncode == 2
    assert "fitted belongs to another network" in done.stderr


def test_compare_takes_fitted_methods(digits: Path, tmp_path: Path) -> None:
    inverse = tmp_path / "inverse.safetensors"
    assert command("fit", "--data", digits, "--start", "conv6", "--limit", 12, "--out", inverse).returncode == 0
    done = command(
        "compare",
        "--methods",
        "random,mip_in",
        "--metrics",
        "morf_5",
        "--limit",
        2,
        "--fitted",
        inverse,
        "--out",
        tmp_path / "c",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c" / "report.html").is_file()


class TestOut:
    """What `--out` names is replaced only if it is the same fit, or with --force."""

    @pytest.mark.parametrize("content", [b"my thesis", b"", bytes(range(256))])
    def test_files_of_others_stay(self, tmp_path: Path, content: bytes) -> None:
        for name in ("thesis.txt", "linked.txt"):
            (tmp_path / name).write_bytes(content)
        (tmp_path / "link").symlink_to("linked.txt")
        for name in ("thesis.txt", "link"):
            for words in ((), ("--force",)):
                done = command("fit", "--method", "pattern", "--limit", 10, "--out", tmp_path / name, *words)
                assert done.returncode == 2
                assert "only an earlier fit of pattern would be replaced" in done.stderr
        assert (tmp_path / "thesis.txt").read_bytes() == (tmp_path / "linked.txt").read_bytes() == content
        assert (tmp_path / "link").is_symlink()

    def test_the_same_words_for_other_images_need_force(self, digits: Path, tmp_path: Path) -> None:
        """The folder's name and the number of its images do not tell that one of them is another."""
        folder, out = tmp_path / "data", tmp_path / "a.pattern"
        shutil.copytree(digits, folder)
        words = ("fit", "--method", "pattern", "--data", folder, "--out", out)
        for _ in range(2):
            assert command(*words).returncode == 0
        first = out.read_bytes()
        one = next(folder.rglob("*.png"))
        Image.new("L", (32, 32), 7).save(one)
        done = command(*words)
        assert done.returncode == 2
        assert "This one has another content of its images, or labels" in done.stderr
        assert out.read_bytes() == first
        assert command(*words, "--force").returncode == 0
        assert out.read_bytes() != first

    def test_another_fit_needs_force(self, tmp_path: Path) -> None:
        out = tmp_path / "a.pattern"
        words = ("fit", "--method", "pattern", "--out", out)
        assert command(*words, "--limit", 10).returncode == 0
        first = out.read_bytes()
        for others, name in (
            (("--limit", 20), "description"),
            (("--limit", 10, "--weights", "random"), "network"),
        ):
            done = command(*words, *others)
            assert done.returncode == 2
            assert f"This one has another {name}. Choose another name, or use --force to replace it" in done.stderr
            assert out.read_bytes() == first
        assert command(*words, "--limit", 10).returncode == 0  # the same
        done = command(*words, "--limit", 20, "--force")
        assert done.returncode == 0
        assert "--force replaces" in done.stdout
        assert "from 10 embedded digits" in done.stdout
        assert Fitted.load(out).facts["description"] == "20 embedded digits"

    def test_another_reading_needs_force(self, digits: Path, tmp_path: Path) -> None:
        out = tmp_path / "a.mip_in"
        words = ("fit", "--data", digits, "--classes", "7", "--start", "conv6", "--limit", 12, "--out", out)
        assert command(*words, "--reading", "paper").returncode == 0
        first = out.read_bytes()
        done = command(*words)
        assert done.returncode == 2
        assert "another reading and products and ridge_at and constant. Choose another name" in done.stderr
        assert out.read_bytes() == first


def test_patches_are_fitted_from_the_command_line(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits.pda"
    words = ["fit", "--method", "pda", "--data", digits, "--limit", 20, "--out", out]
    done = command(*words, "--window", 6, "--padding", 1)
    assert done.returncode == 0, done.stderr
    assert {k: Fitted.load(out).facts[k] for k in ("window", "padding", "taken")} == {
        "window": 6, "padding": 1, "taken": 2000,
    }  # fmt: skip
    done = command(*words, "--window", 5)
    assert "earlier fit: pda of 10 classes" in done.stderr.replace("\n", " ")
    done = command(*words[:3], "--ridge", "1", "--out", tmp_path / "b")
    assert "--ridge is for mip_in; pda has no such option. Leave it out." in done.stderr.replace("\n", " ")
    done = command("fit", "--window", 5, "--out", tmp_path / "b")
    assert "--window is for pda; mip_in has no such option" in done.stderr.replace("\n", " ")
