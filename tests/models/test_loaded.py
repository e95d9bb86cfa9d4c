from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from backlit._errors import FileError, InputError
from backlit.models import LoadedModel, Preprocess
from backlit.models.weights import read_weights

NAMES = ("tench", "tabby", "Egyptian cat", "tiger cat", "crane", "crane", "wine bottle, flask", "7")
MODEL = LoadedModel("net", nn.Linear(2, 8), Preprocess(size=(4, 4)), NAMES)


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("tabby", 1),
        ("TABBY ", 1),
        ("egyptian_cat", 2),
        ("egyptian  CAT", 2),
        ("2", 2),
        (" 0 ", 0),
        (3, 3),
        (np.int64(4), 4),
        (torch.tensor(5), 5),
        ("flask", 6),
        ("wine bottle, flask", 6),
        ("7", 7),
    ],
)
def test_class_index(label, index: int) -> None:
    assert MODEL.class_index(label) == index


@pytest.mark.parametrize(
    ("label", "match"),
    [
        ("tabbi", r"net has no class 'tabbi'\. The nearest: 'tabby' \(1\)"),
        ("cat", r"The nearest: 'Egyptian cat' \(2\), 'tiger cat' \(3\)"),
        ("xylophone", r"no class 'xylophone'\. Give one of its 8 class names or an index"),
        ("", r"no class ''\. Give one of its 8"),
        ("crane", "'crane' names 2 classes of net; give an index: 4, 5"),
        (8, r"net has 8 classes, 0\.\.7; found 8"),
        ("8", r"net has 8 classes, 0\.\.7; found 8"),
        (-1, "found -1"),
        ("-1", "found -1"),
        (1.0, r"must be a class name or an index, found 1\.0 \(float\)"),
        (True, r"must be a class name or an index, found True \(bool\)"),
        (None, r"found None \(NoneType\)"),
    ],
)
def test_refused_targets(label, match: str) -> None:
    with pytest.raises(InputError, match=match):
        MODEL.class_index(label)


def test_save_keeps_everything(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_text("an older file")
    MODEL.save(path)
    weights = read_weights(path)
    assert weights.class_names == NAMES
    assert weights.preprocess.apply(Preprocess(size=(9, 9), resize=10)) == MODEL.preprocess
    assert torch.equal(weights.state["weight"], MODEL.network.get_parameter("weight"))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert path.stat().st_mode & 0o444 == 0o444


def test_saves_tied_weights(tmp_path) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    LoadedModel("tied", nn.Sequential(first, second), MODEL.preprocess, ("a", "b")).save(tmp_path / "w.safetensors")
    assert len(read_weights(tmp_path / "w.safetensors").state) == 4


def test_failed_save_leaves_nothing_behind(tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileError, match=r"path: cannot write '.*/taken'"):
        MODEL.save(tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_unwritable_path(tmp_path) -> None:
    with pytest.raises(FileError, match=r"path: cannot write '.*/no/w\.safetensors'"):
        MODEL.save(tmp_path / "no" / "w.safetensors")
