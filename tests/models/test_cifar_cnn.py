from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from backlit import GradientXInput, GuidedBackprop
from backlit._errors import InputError
from backlit.models import load_model
from backlit.models.cifar_cnn import CifarCNN


def test_four_convolutions_and_its_size() -> None:
    network = CifarCNN()
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 4
    assert sum(p.numel() for p in network.parameters()) == 591_274
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_other_images() -> None:
    assert CifarCNN(7, channels=1, size=28, width=8)(torch.zeros(1, 1, 28, 28)).shape == (1, 7)
    with pytest.raises(
        InputError, match="size must be a positive multiple of 4, which two max-pools divide, but is 30"
    ):
        CifarCNN(size=30)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    network = CifarCNN(width=4, dropout=0.5)
    x = torch.rand(2, 3, 32, 32)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_methods_see_every_activation() -> None:
    model = load_model("cifar_cnn", weights="random")
    x = torch.randn(2, 3, 32, 32)
    assert GuidedBackprop(model.network)(x, 3).coverage.count()["guided"] == 5
    found = GradientXInput(model.network)(x, 3)
    expected = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.network(expected)[:, 3].sum(), expected)
    assert torch.equal(found.values, x * gradient)


def test_needs_weights_and_takes_its_own(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="cifar_cnn comes without any"):
        load_model("cifar_cnn")
    network = CifarCNN(4, width=8)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = load_model("cifar_cnn", weights=tmp_path / "w.safetensors")
    assert model.class_names[-1] == "class 3"
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(model.network(x), network.eval()(x))
