"""Real architectures: `exact` is autograd's gradient, the forward is the network's own, freezing keeps the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import backlit
from backlit.capture import freeze, propagate
from backlit.rules import presets

SMALL = [
    "squeezenet1_0",
    "resnet18",
    "vgg11_bn",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x0_5",
]
LARGE = [
    "vgg16",
    "resnet50",
    "densenet121",
    "mobilenet_v3_large",
    "googlenet",
    "inception_v3",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
]
SIZES = {"inception_v3": 96, "vit_b_16": 224}


def randomised(name: str) -> nn.Module:
    """The network with random weights, batch norm statistics, and nothing that starts at zero."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = getattr(torchvision.models, name)(**options).eval().double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(0, 0.05)
            parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchvision(name: str) -> None:
    model, size = randomised(name), SIZES.get(name, 64)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    assert_exact(model, x, F.one_hot(torch.tensor([3, 5]), 1000).double(), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "file", "options"),
    [
        ("squeezenet1_0", "squeezenet1_0-imagenet", {"size": 227}),
        ("mobilenet_v2", "mobilenet_v2-imagenet", {"size": 225, "mean": 0.5, "std": 0.5}),
        ("cifar_resnet20", "resnet20-cifar10", {}),
    ],
)
def test_real_networks_on_real_images(shared: Path, name: str, file: str, options: dict[str, Any]) -> None:
    loaded = backlit.load_model(name, weights=shared / "models" / f"{file}.safetensors", dtype="float64", **options)
    for parameter in loaded.network.parameters():
        parameter.requires_grad_(False)
    paths = sorted((shared / "data" / "ilsvrc2012-val").glob("*/*.JPEG"))[:200:100]
    from backlit.data.images import load_batch

    x = load_batch(paths, loaded.preprocess).double()
    assert_exact(loaded.network, x, F.one_hot(torch.tensor([3, 5]), len(loaded.class_names)).double(), rtol=1e-10)
    explanation = backlit.DMBP(loaded.network, steps=2)(x)
    assert float(explanation.completeness["gap"].abs().max()) < 1e-8


def assert_exact(model: nn.Module, x: torch.Tensor, weights: torch.Tensor, rtol: float) -> None:
    leaf = x.clone().requires_grad_()
    plain = model(leaf)
    (true,) = torch.autograd.grad(plain, leaf, weights)
    run = propagate(model, x, presets.exact)
    assert torch.equal(run.output, plain)
    scale = float(true.abs().max())
    assert scale > 0
    torch.testing.assert_close(run.gradient(weights)[0] / scale, true / scale, rtol=rtol, atol=rtol)
    frozen = freeze(model, x)
    torch.testing.assert_close(frozen(x), plain.detach(), rtol=1e-9, atol=1e-9 * float(plain.detach().abs().max()))
    assert torch.equal(frozen.output, plain.detach())
