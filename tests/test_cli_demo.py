"""`backlit demo`'s photographs: which, by which network, and what the page says of methods that cannot explain them."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import backlit
from backlit import FileError, InputError
from backlit.cli import photographs
from backlit.cli.photographs import Photographs, asked_for, explained
from backlit.cli.progress import paced
from backlit.cli.settings import Compute
from backlit.methods import DMBP, MIPIN, GradCAM, Saliency
from backlit.models import at_hand
from backlit.models.at_hand import AT_HAND
from backlit.report.page import Cell, NoCell

demo = import_module("backlit.cli.demo")  # the package has a command of that name
CPU = Compute("cpu", "float32", 0)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(backlit.models.digits.demo_scenes().images[0].numpy()).save(path)
    return path


@pytest.fixture
def nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))


@pytest.mark.usefixtures("nothing_cached")
def test_what_is_missing_is_named(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"weights needs the network that they are of: --model squeezenet1_0"):
        asked_for([], None, "weights.safetensors", CPU)
    with pytest.raises(
        InputError, match=r"image: no network for photographs is at hand.*--model squeezenet1_0 --weights"
    ):
        asked_for([photo], None, None, CPU)
    monkeypatch.setattr(photographs, "sample_photographs", list)
    with pytest.raises(InputError, match=r"image must name photographs to explain, for scikit-image"):
        asked_for([], "digits", None, CPU)
    assert asked_for([], None, None, CPU) is None  # digits alone
    with pytest.raises(FileError, match="nowhere"):
        asked_for([photo.with_name("nowhere.png")], "digits", None, CPU)


def test_the_first_network_whose_weights_are_there_is_taken(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def load(name: str, **_: Any) -> backlit.LoadedModel:
        tried.append(name)
        if name == AT_HAND[0]:
            raise InputError("not there")
        if name == AT_HAND[1]:
            raise FileError("damaged")
        return backlit.load_model("digits")

    monkeypatch.setattr(at_hand, "load_model", load)
    found = asked_for([photo], None, None, CPU)
    assert found is not None
    assert tried == list(AT_HAND[:3])
    assert found.files == [photo]


@pytest.mark.usefixtures("nothing_cached")
def test_weights_are_fetched_only_when_asked(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def load(name: str, *_: Any, download: bool) -> backlit.LoadedModel:
        loads.append((name, download))
        return backlit.load_model("digits")

    monkeypatch.setattr(photographs, "load", load)
    asked_for([photo], "resnet50", None, CPU)
    asked_for([photo], None, None, CPU, download=True)
    assert loads == [("resnet50", False), (AT_HAND[0], True)]


def test_scikit_images_photographs_are_taken_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "skimage"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError  # it is not to be imported")
    for name in ("chelsea.png", "coffee.png", "page.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "data" / name)
    monkeypatch.delitem(sys.modules, "skimage", raising=False)  # the real one
    monkeypatch.syspath_prepend(str(tmp_path))
    found = asked_for([], "digits", None, CPU)
    assert found is not None
    assert [f.name for f in found.files] == ["chelsea.png", "coffee.png"]


def test_photographs_are_explained_for_what_is_predicted_and_a_method_that_cannot_says_why(photo: Path) -> None:
    loaded = backlit.load_model("digits")
    with paced(Console(quiet=True), 4) as pace:
        (made,) = explained(Photographs([photo], loaded), [DMBP, MIPIN, GradCAM, Saliency], CPU, pace)
    x = loaded.preprocess(photo)[None]
    with torch.no_grad():
        predicted = int(loaded.network(x).argmax())
    assert made.title == f"Photograph: why {predicted}?"
    assert "photo.png, digits, probability " in made.subtitle
    dmbp, mip_in, grad_cam, saliency = made.cells
    assert mip_in == NoCell("MIP-IN", "it learns from data first: backlit fit")
    assert all(isinstance(c, Cell) for c in (grad_cam, saliency))
    assert isinstance(dmbp, Cell)
    short = DMBP.fast(loaded)(x, predicted)
    assert dict(dmbp.facts)["positive"] == f"{float(short.completeness['positive'][0]):.3g}"


def test_a_method_that_a_network_has_nothing_for_does_not_stop_the_others(photo: Path) -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1024, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1))

    digits = backlit.load_model("digits")
    flat = backlit.LoadedModel("flat", Flat().eval(), digits.preprocess, digits.class_names)
    with paced(Console(quiet=True), 2) as pace:
        (made,) = explained(Photographs([photo], flat), [GradCAM, Saliency], CPU, pace)
    missing, drawn = made.cells
    assert isinstance(missing, NoCell)
    assert "feature map" in missing.why
    assert isinstance(drawn, Cell)


def test_the_page_begins_with_photographs(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SHOWN", ("saliency", "grad_cam"))
    page = demo.run(tmp_path / "demo", CPU, Photographs([photo], backlit.load_model("digits")))
    html = page.read_text(encoding="utf-8")
    assert 0 < html.index("Photograph: why") < html.index("Digit: why")
    assert html.index("<strong>Grad-CAM</strong>") < html.index("<strong>Saliency</strong>")
    assert "First photographs" in html
    assert "for no network for photographs is at hand" not in capsys.readouterr().out
    demo.run(tmp_path / "demo", CPU)
    assert "First photographs" not in page.read_text(encoding="utf-8")
    said = " ".join(capsys.readouterr().out.split())
    assert "no network for photographs is at hand; for yours: backlit demo --image PHOTO.jpg" in said
