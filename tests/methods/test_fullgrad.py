"""FullGrad: its decomposition is the logit on every architecture; its map is the authors' processing of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from _networks import ARCHITECTURES, SIX, SPELLINGS, build, images
from backlit import FullGrad, InputError
from backlit.methods.biases import offset
from backlit.methods.fullgrad import spread

TARGET = torch.tensor([2, 0])


def assert_complete(net: nn.Module, xs: Tensor | tuple[Tensor, ...], target: Any, **options: Any) -> None:
    found = FullGrad(net, **options)(xs, target)
    for one in found if isinstance(found, tuple) else (found,):
        assert float((one.completeness["gap"] / one.output).abs().max()) < 1e-9
        given = sum(one.completeness[k] for k in ("input", "layers", "others"))
        torch.testing.assert_close(given, one.output)
        if "unplaced" in one.completeness and not isinstance(found, tuple):
            torch.testing.assert_close(one.values.sum((1, 2, 3)) + one.completeness["unplaced"], one.output)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_decomposition_is_the_logit_whatever_the_spelling(architecture: str) -> None:
    for spellings in (SPELLINGS, SIX):
        for spelling in spellings:
            net = build(architecture, spelling, spellings)
            assert_complete(net, images(architecture), TARGET)
            assert_complete(net, images(architecture), TARGET, process="raw", biases="all")


ZOO = ["resnet18", "mobilenet_v3_small", "efficientnet_b0"]
LARGE = ["resnet50", "densenet121", "convnext_tiny", "vit_b_16", "swin_t", "mobilenet_v3_large", "googlenet", "vgg16"]


@pytest.mark.parametrize("name", [*ZOO, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_decomposition_is_the_logit_on_torchvisions_networks(name: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": True} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(**options).eval().double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(0, 0.05)
    size = 224 if name == "vit_b_16" else 64
    assert_complete(model, torch.randn(2, 3, size, size, dtype=torch.float64), torch.tensor([3, 5]), process="raw")


ODD: dict[str, nn.Module] = {
    "smooth": nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.Mish()
    ),
    "squashed": nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Softplus()),
    "pieces": nn.Sequential(nn.Conv2d(2, 4, 3), nn.Hardswish(), nn.Hardsigmoid(), nn.Softshrink(), nn.PReLU()),
    "norms": nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ELU(), nn.InstanceNorm2d(4, affine=True), nn.LocalResponseNorm(2)
    ),
    "softmax": nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softmax(1), nn.GLU(1)),
    "transposed": nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.ReLU6(), nn.ReflectionPad2d(1)),
    "constants": nn.Sequential(nn.ConstantPad2d(1, 2.5), nn.Conv2d(2, 4, 3), nn.Threshold(0.2, -1.0)),
}


@pytest.mark.parametrize("name", ODD)
def test_the_decomposition_is_the_logit_with_any_activation(name: str) -> None:
    torch.manual_seed(0)
    layers = ODD[name]
    net = nn.Sequential(layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(3)).double().eval()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    net(x)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    assert_complete(net, x, TARGET, process="raw", biases="all")


class Arithmetic(nn.Module):
    """Products, quotients, powers, constants joined and written, maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(6, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.3) / 1.7
        y = self.conv(x)
        y = y * torch.sigmoid(y.mean((2, 3), keepdim=True)) + 1 / (1 + y**2) - y.exp().clamp(max=2)
        y = torch.maximum(y, 0.5 - y)
        y = torch.where(y > 1, y, y**2)
        y = torch.cat([y, self.token.expand(len(y), -1, -1, -1), torch.ones_like(y[:, :1])], 1)
        y = y / (1 + y.abs().sum(1, keepdim=True))
        y[:, 0, 0] = 3.0
        return torch.addmm(self.fc.bias, y.mean((2, 3)), self.fc.weight.T) @ torch.eye(3, dtype=y.dtype)


def test_the_decomposition_is_the_logit_through_arithmetic() -> None:
    torch.manual_seed(0)
    net = Arithmetic().double().eval()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    assert_complete(net, x, TARGET, process="raw", biases="all")
    found = FullGrad(net)(x, TARGET)
    assert float(found.completeness["others"].abs().min()) > 1e-3


def _small() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).double().eval()
    for name, tensor in net.state_dict().items():
        if "running_mean" in name or name.endswith("bias"):
            nn.init.normal_(tensor)
    return net


def _terms(net: nn.Sequential, x: Tensor, target: int) -> list[Tensor]:
    """Slowly, for one image: gradient times input, and gradient times bias of each convolution and the batch norm."""
    values = [x.clone().requires_grad_()]
    for module in net:
        values.append(module(values[-1]))
    grads = torch.autograd.grad(values[-1][0, target], values)
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    biases = {1: net[0].bias, 2: shift, 4: net[3].bias}
    terms = [grads[0] * x, *(grads[i] * b[:, None, None] for i, b in biases.items())]
    return [t[0].detach() for t in terms]


def test_the_decomposition_is_the_logit_with_masked_attention() -> None:
    """A mask of minus infinity adds nothing that reaches the logit."""

    class Masked(nn.Module):
        def __init__(self, mask: Any) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc, self.mask = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), mask

        def forward(self, x: Tensor) -> Tensor:
            t = self.conv(x).flatten(2).mT
            u = self.mask(t @ t.mT, torch.ones(16, 16, dtype=torch.bool).triu(1))
            return self.fc((t + u.softmax(-1) @ t).mean(1))

    for mask in (
        lambda u, m: u.masked_fill(m, -torch.inf),
        lambda u, m: torch.where(m, -torch.inf, u),
        lambda u, m: u + torch.zeros_like(u).masked_fill(m, -torch.inf),
    ):
        assert_complete(
            Masked(mask).double().eval(), torch.randn(2, 1, 6, 6, dtype=torch.float64), TARGET, process="raw"
        )


def test_the_map_is_the_authors_processing() -> None:
    net = _small()
    x = torch.randn(2, 3, 17, 21, dtype=torch.float64)
    found = FullGrad(net, layers=True)(x, TARGET)
    assert list(found.parts) == ["input", "0", "1", "3"]
    for i, target in enumerate(TARGET.tolist()):
        for part, term in zip(found.parts.values(), _terms(net, x[i : i + 1], target), strict=True):
            size = term.abs()
            size = size - size.min()
            size = size / (size.max() + 1e-6)
            map_ = F.interpolate(size[None], x.shape[2:], mode="bilinear", align_corners=True).sum(1)
            torch.testing.assert_close(part[i], map_)
    torch.testing.assert_close(found.values, sum(found.parts.values()))


def test_raw_maps_keep_sign_and_sum() -> None:
    net = _small()
    x = torch.randn(2, 3, 17, 21, dtype=torch.float64)
    found = FullGrad(net, process="raw", layers=True)(x, TARGET)
    for i, target in enumerate(TARGET.tolist()):
        for name, term in zip(found.parts, _terms(net, x[i : i + 1], target), strict=True):
            torch.testing.assert_close(found.parts[name][i].sum(), term.sum())
        torch.testing.assert_close(found.parts["input"][i, 0], _terms(net, x[i : i + 1], target)[0].sum(0))
    torch.testing.assert_close(found.completeness["unplaced"], net[7].bias[TARGET].detach())


@pytest.mark.parametrize("size", [(3, 4), (20, 5), (1, 1), (7, 9), (8, 3)])
def test_spreading_keeps_each_positions_sum(size: tuple[int, int]) -> None:
    x = torch.zeros(1, 1, 7, 9, dtype=torch.float64)
    for position in range(size[0] * size[1]):
        plane = torch.zeros(size[0] * size[1], dtype=torch.float64)
        plane[position] = 2.0
        torch.testing.assert_close(spread(plane.view(1, 1, 1, *size), x).sum(), torch.tensor(2.0, dtype=torch.float64))


def test_what_adds_nothing_has_no_offset() -> None:
    """By their nature, not because the offset happens to be small: such sites must cost nothing."""
    from backlit.capture import Call, propagate
    from backlit.rules import presets

    found: dict[str, bool] = {}

    def look(call: Call, output: Tensor) -> None:
        found[call.site.name] = offset(call, output) is None

    propagate(build("bottleneck", "module"), images("bottleneck")[0], presets.gradient, tap=look)
    assert {name for name, nothing in found.items() if not nothing} == {
        *(f"conv2d[{i}]" for i in range(4)),
        *(f"batch_norm[{i}]" for i in range(4)),
        "linear[0]",
    }


def test_bad_options() -> None:
    net = _small()
    with pytest.raises(InputError, match="process must be 'published' or 'raw', but is 'abs'"):
        FullGrad(net, process="abs")
    with pytest.raises(InputError, match="biases must be 'layers' or 'all', but is 'none'"):
        FullGrad(net, biases="none")


def test_the_decomposition_is_the_logit_on_a_real_network(shared: Any) -> None:
    """MobileNetV2 with its real weights and images: ReLU6, whose cut-offs the published method leaves out."""
    import backlit
    from backlit.data.images import load_batch

    file = shared / "models" / "mobilenet_v2-imagenet.safetensors"
    model = backlit.load_model("mobilenet_v2", weights=file, dtype="float64", size=225, mean=0.5, std=0.5)
    paths = sorted((shared / "data" / "ilsvrc2012-val").glob("*/*.JPEG"))[:200:100]
    x = load_batch(paths, model.preprocess).double()
    assert_complete(model.network, x, None)
    found = FullGrad(model.network)(x)
    assert float((found.completeness["others"] / found.output).abs().min()) > 1e-3


class Stacked(nn.Module):
    """Two values stacked in front of the images, who are two as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x).mean((2, 3)), self.b(x).mean((2, 3))])
        return self.fc(nn.functional.gelu(both)).mean(0)


@pytest.mark.parametrize("method", [backlit.FullGrad, backlit.TRGBP, backlit.BBp])
def test_images_that_another_axis_hides_are_told_apart(method: type[backlit.methods.Method]) -> None:
    torch.manual_seed(0)
    net = Stacked().double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    options = {"contrast": 2} if method is backlit.TRGBP else {}
    together = method(net, **options)(x, 1)
    for i in range(2):
        alone = method(net, **options)(x[i : i + 1], 1)
        torch.testing.assert_close(alone.values, together.values[i : i + 1])
        for name, value in alone.completeness.items():
            torch.testing.assert_close(value[0], together.completeness[name][i])


def test_terms_behind_a_linear_layer_have_no_place_in_the_image() -> None:
    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.fc = nn.Conv2d(2, 6, 3), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(nn.functional.gelu(self.mix(self.conv(x).permute(0, 2, 3, 1))).mean((1, 2)))

    torch.manual_seed(0)
    net = ChannelsLast().double().eval()
    found = backlit.FullGrad(net, process="raw", biases="all", layers=True)(torch.randn(2, 2, 8, 8).double(), 1)
    assert list(found.parts) == ["input", "conv"]
    torch.testing.assert_close(found.values.sum((1, 2, 3)) + found.completeness["unplaced"], found.output)
