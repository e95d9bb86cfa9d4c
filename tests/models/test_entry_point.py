from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from backlit._errors import InputError, ModelStateError
from backlit.models import Preprocess, load_model

SOURCE = """
    import torch
    from torch import nn
    from backlit.models import LoadedModel, Preprocess

    class Net(nn.Module):
        def __init__(self, channels=3, classes=4):
            super().__init__()
            self.conv = nn.Conv2d(channels, 2, 3)
            self.linear = nn.Linear(2, classes)
        def forward(self, x):
            return self.linear(self.conv(x).relu().mean((2, 3)))

    class Nets:
        small = Net

    def grey():
        return Net(channels=1)

    def loaded():
        return LoadedModel("own", Net(classes=2), Preprocess(size=(20, 24)), ("cat", "dog"))

    def picky():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))

    def maps():
        return nn.Conv2d(3, 2, 3)

    def pair():
        class Pair(Net):
            def forward(self, x):
                return x, x
        return Pair()

    def broken():
        raise RuntimeError("no such checkpoint")

    def number():
        return 3

    def infinite():
        net = Net()
        net.linear.bias.data[1] = float("inf")
        return net

    def drawing():
        class Drawing(Net):
            def forward(self, x):
                return super().forward(x + torch.rand(1))
        return Drawing()

    instance = Net()
"""


@pytest.fixture(name="module", autouse=True)
def _module(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Write a module of networks into the current folder; forget it afterwards."""
    (tmp_path / "my_nets.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    (tmp_path / "my_needy.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("my_nets", "my_broken", "my_needy"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["my_nets:Net", "my_nets:Nets.small"])
def test_a_module_from_the_current_folder(name: str) -> None:
    path = list(sys.path)
    model = load_model(name)
    assert sys.path == path
    assert model.name == name
    assert model.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert model.preprocess == Preprocess(size=(224, 224))
    assert not model.network.training


def test_grey_network_is_recognised() -> None:
    preprocess = load_model("my_nets:grey", size=28).preprocess
    assert preprocess == Preprocess(size=(28, 28), mean=(0.0,), std=(1.0,), channels=1)


def test_loaded_model_brings_its_own() -> None:
    model = load_model("my_nets:loaded", mean=0.5)
    assert model.class_names == ("cat", "dog")
    assert model.preprocess == Preprocess(size=(20, 24), mean=(0.5,) * 3)


@pytest.mark.parametrize("name", ["my_nets:Net", "my_nets:loaded"])
def test_weights_go_into_it(name: str, tmp_path) -> None:
    state = load_model(name).network.state_dict()
    state = {key: torch.full_like(value, 0.25) for key, value in state.items()}
    save_file(state, tmp_path / "w.safetensors")
    model = load_model(name, weights=tmp_path / "w.safetensors")
    assert all((p == 0.25).all() for p in model.network.parameters())
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"does not fit Net: 4 missing .*1 unexpected \(x\)"):
        load_model(name, weights=tmp_path / "other.safetensors")


def test_size_that_fits() -> None:
    assert len(load_model("my_nets:picky", size=8).class_names) == 5


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no_such_nets:build", "no module 'no_such_nets' for 'no_such_nets:build'; it must be installed or lie in"),
        ("my_nets.deeper:build", "importing 'my_nets.deeper' failed|no module 'my_nets.deeper'"),
        ("my_nets:Nett", r"module 'my_nets' has no 'Nett'\. Did you mean 'net"),
        ("my_nets:", "must be 'module:function', found 'my_nets:'"),
        (":build", "must be 'module:function', found ':build'"),
        ("my_broken:build", "importing 'my_broken' failed: ZeroDivisionError"),
        ("my_needy:build", "importing 'my_needy' failed: No module named 'a_package_that_is_not_there'"),
        ("my_nets:broken", "calling 'my_nets:broken' failed: RuntimeError: no such checkpoint"),
        ("my_nets:number", "'my_nets:number' must return a torch.nn.Module or a backlit LoadedModel, found int"),
        ("my_nets:instance", "'my_nets:instance' is a Net; it must be a function .or class. that returns a network"),
        ("my_nets:SOURCE_LINE", "has no 'SOURCE_LINE'"),
        ("my_nets:picky", r"cannot run on an input of shape \(1, 3, 224, 224\): .*Give its own size"),
        ("my_nets:maps", r"must return logits \(n, classes\), found \(1, 2, 222, 222\) for one image"),
        ("my_nets:pair", r"must return logits \(n, classes\), found tuple"),
    ],
)
def test_named_errors(name: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_model(name)


def test_infinite_weights() -> None:
    with pytest.raises(ModelStateError, match=r"'linear\.bias' of the model has 1 NaN or Inf of 4 values"):
        load_model("my_nets:infinite")


def test_random_is_refused() -> None:
    with pytest.raises(InputError, match="'random' has no meaning for 'my_nets:Net'"):
        load_model("my_nets:Net", weights="random")


def test_a_network_that_draws_is_refused() -> None:
    with pytest.raises(ModelStateError, match="draws at random"):
        load_model("my_nets:drawing")
