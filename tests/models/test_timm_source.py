"""timm is an optional extra: its interface is played by a stand-in here, and by itself where it is installed."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backlit._errors import InputError
from backlit.models import load_model

CFG = {
    "input_size": (3, 176, 160),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "classifier": "fc",
}


class _Net(nn.Module):
    def __init__(self, num_classes: int, cfg: dict) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        self.num_classes = num_classes
        self.pretrained_cfg = cfg

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))


@pytest.fixture(name="cfg")
def _timm(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Put a stand-in for timm in place and return the pretrained_cfg of its network."""
    cfg = dict(CFG)
    timm, data = ModuleType("timm"), ModuleType("timm.data")
    timm.__version__ = "1.0"  # type: ignore[attr-defined]
    timm.is_model = lambda name: name == "tinynet"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["tinynet"]  # type: ignore[attr-defined]

    def create_model(name: str, pretrained: bool, num_classes: int = 1000) -> nn.Module:
        assert not pretrained
        network = _Net(num_classes, cfg)
        network.num_classes = cfg.get("outputs", num_classes)
        return network

    timm.create_model = create_model  # type: ignore[attr-defined]
    describe = SimpleNamespace(index_to_description=lambda i: "tabby, tabby cat" if i == 281 else f"name {i}")
    data.ImageNetInfo = lambda: describe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    return cfg


def test_preprocessing_of_the_cfg(cfg: dict) -> None:
    preprocess = load_model("timm:tinynet", weights="random").preprocess
    assert preprocess.size == (176, 160)
    assert preprocess.resize == 182  # floor(160 / 0.875)
    assert preprocess.interpolation == "bicubic"
    assert preprocess.crop == "center"
    assert (preprocess.mean, preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_squash_is_stretch(cfg: dict) -> None:
    cfg.update(crop_mode="squash", interpolation="bilinear")
    preprocess = load_model("timm:tinynet", weights="random").preprocess
    assert (preprocess.crop, preprocess.interpolation) == ("stretch", "bilinear")


def test_imagenet_names(cfg: dict) -> None:
    model = load_model("timm:tinynet", weights="random")
    assert model.class_index("tabby") == 281
    assert model.name == "timm:tinynet"


def test_state_from_a_file(cfg: dict, tmp_path) -> None:
    network = _Net(5, cfg)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = load_model("timm:tinynet", weights=tmp_path / "w.safetensors")
    assert torch.equal(model.network.get_parameter("fc.weight"), network.fc.weight)
    assert model.class_names == tuple(f"class {i}" for i in range(5))


def test_never_downloads(cfg: dict) -> None:
    with pytest.raises(InputError, match=r"timm:tinynet has no file given.*weights='FILE.safetensors'"):
        load_model("timm:tinynet")


def test_unknown_name(cfg: dict) -> None:
    with pytest.raises(InputError, match=r"timm 1\.0 has no model named 'tinynett'\. Did you mean 'tinynet'\?"):
        load_model("timm:tinynett")


def test_no_classifier(cfg: dict) -> None:
    cfg["outputs"] = 0
    with pytest.raises(InputError, match=r"timm:tinynet has no classifier \(num_classes 0\)"):
        load_model("timm:tinynet", weights="random")


def test_missing_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm cannot be imported .*pip install \"backlit\[timm\]\""):
        load_model("timm:resnet18", weights="random")


def test_timm_itself(tmp_path) -> None:
    timm = pytest.importorskip("timm", reason="the extra backlit[timm] is not installed")
    network = timm.create_model("resnet10t", pretrained=False, num_classes=4)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = load_model("timm:resnet10t", weights=tmp_path / "w.safetensors")
    x = torch.rand(1, 3, *model.preprocess.size)
    assert torch.equal(model.network(x), network.eval()(x))
    assert model.preprocess.size == (176, 176)
    assert load_model("timm:resnet10t", weights="random").class_index("tabby") == 281
