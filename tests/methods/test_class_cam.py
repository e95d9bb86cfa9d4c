"""CAM: the classifier's weights on the map that the head averages, and every head that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _cam_networks import attend, build, embedded, mlp
from _map_networks import TARGET, deep_head, images, map_and_gradient, pooled_head
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from backlit import CAM, GradCAM, HiResCAM, InputError, UnsupportedOp


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images()


def test_is_the_papers_sum(x: Tensor) -> None:
    """Eq. 2, channel by channel: w is the linear layer's own; the mean of the map and the bias are the logit."""
    network = pooled_head()
    found = CAM(network)(x, TARGET)
    for i, target in enumerate(TARGET.tolist()):
        a, _ = map_and_gradient(network, x[i], target)
        expected = torch.zeros(a.shape[1:], dtype=torch.float64)
        for k in range(len(a)):
            expected += network[6].weight[target, k].detach() * a[k]
        torch.testing.assert_close(found.values[i, 0], expected)
    mean = found.values.mean((1, 2, 3)) + network[6].bias[TARGET].detach()
    torch.testing.assert_close(mean, found.output)
    assert float(found.values.min()) < 0 < float(found.values.max())
    assert found.provenance["kind"] == "signed"
    cut = CAM(network, relu=True)(x, TARGET)
    torch.testing.assert_close(cut.values, found.values.relu())
    assert cut.provenance["kind"] == "one-sided"


def test_is_grad_cam_but_for_the_number_of_places_and_the_cut(x: Tensor) -> None:
    network = pooled_head()
    found = CAM(network).attribute(x, TARGET)
    torch.testing.assert_close(found.relu(), 12 * 15 * GradCAM(network).attribute(x, TARGET))
    torch.testing.assert_close(found, 12 * 15 * HiResCAM(network).attribute(x, TARGET))


def test_equals_torchcam(x: Tensor) -> None:
    library = pytest.importorskip("torchcam.methods")
    network = pooled_head()
    with library.CAM(network, "3", fc_layer="6") as extractor:
        network(x)
        maps = extractor(TARGET.tolist(), normalized=False)[0]
    torch.testing.assert_close(CAM(network).attribute(x, TARGET)[:, 0], maps)


def test_torchcam_takes_any_head(x: Tensor) -> None:
    """The first linear layer's weights on a map that another network's head never averages."""
    library = pytest.importorskip("torchcam.methods")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        head = [nn.MaxPool2d((12, 15)), nn.Flatten(), nn.Linear(8, 4)]
        network = nn.Sequential(*pooled_head()[:4], *head).double().eval()
    with library.CAM(network, "3", fc_layer="6") as extractor:
        network(x)
        assert extractor(TARGET.tolist(), normalized=False)[0].isfinite().all()
    with pytest.raises(
        InputError, match=r"behind relu\[1\] at 3 .* max_pool2d\[0\] at 4 .* is not linear. Use GradCAM"
    ):
        CAM(network)(x, TARGET)


def body() -> list[nn.Module]:
    return [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()]


POOLS: dict[str, list[nn.Module]] = {
    "pool, linear": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)],
    "pool, dropout, two linear": [nn.AvgPool2d((12, 15)), nn.Flatten(), nn.Dropout(), nn.Linear(6, 5), nn.Linear(5, 4)],
    "pool, 1 x 1 convolution": [nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.Flatten()],
    "1 x 1 convolution, pool": [nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
    "pool, batch norm, linear": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 4)],
}


@pytest.mark.parametrize("head", POOLS)
def test_linear_heads_of_every_spelling(head: str, x: Tensor) -> None:
    """By the head itself: what a map adds to the logit when one of its places is raised, times the number of places."""
    network = nn.Sequential(*body(), *POOLS[head]).double().eval()
    found = CAM(network)(x, TARGET)
    assert found.provenance["layer"].startswith("relu[0] at 1")
    feature = network[:2](x).detach()
    zero = network[2:](torch.zeros_like(feature))
    expected = torch.stack([
        sum((network[2:](one)[0, k] - zero[0, k]).detach() * feature[i, c] for c, one in enumerate(torch.eye(6).double()[:, None, :, None, None].expand(6, 1, 6, 12, 15)))
        for i, k in enumerate(TARGET.tolist())
    ])  # fmt: skip
    torch.testing.assert_close(found.values[:, 0], expected)


def test_a_rectifier_before_the_pool_leaves_the_map_of_the_class(x: Tensor) -> None:
    """SqueezeNet: the head averages the rectified maps of the classes, which are then the map, and their mean the logit."""
    head = [nn.Dropout(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*body(), *head).double().eval()
    found = CAM(network)(x, TARGET)
    assert found.provenance["layer"].startswith("relu[1] at 4")
    assert found.provenance["layer_choice"] == "the map that the head averages, of the classes"
    torch.testing.assert_close(found.values[:, 0], network[:5](x)[range(3), TARGET].detach())
    torch.testing.assert_close(found.values.mean((1, 2, 3)), found.output)
    with pytest.raises(InputError, match=r"behind relu\[0\] at 1 .* relu\[1\] at 4 .* is not linear"):
        CAM(network, layer="1")(x, TARGET)


def skips(net: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
    early = F.relu(net.a(x))
    return net.wider(torch.cat([early.mean((2, 3)), F.relu(net.b(early)).mean((2, 3))], 1))


def image_too(net: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
    return net.l(F.relu(net.a(x)).mean((2, 3))) + x.mean((1, 2, 3))[:, None]


def one_layer(net: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
    return net.wide(F.adaptive_avg_pool2d(F.relu(net.a(x)), (3, 4)).flatten(1))


def hidden(net: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
    return net.square(F.relu(net.l(F.relu(net.a(x)).mean((2, 3)))))


def vit(net: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
    t = embedded(net, x, 1)
    return net.l((t + attend(net, net.norm(t)))[:, 0])


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (skips, "the score reads other values of the image beside it"),
        (image_too, "the score reads other values of the image beside it"),
        (one_layer, "its places have different weights there"),
        (hidden, r"relu\[1\] .* is not linear"),
        (vit, r"attention\[0\] .* is not linear"),
    ],
)
def test_other_heads_are_refused_and_the_ways_out_work(run: Callable[..., Tensor], why: str) -> None:
    net = build(run)
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    message = (
        rf"model must average a feature map over its places .* for CAM, but behind .* {why}. Use GradCAM.* or HiResCAM"
    )
    with pytest.raises(InputError, match=message):
        CAM(net)(x, 1)
    for way_out in (GradCAM, HiResCAM):
        assert way_out(net).attribute(x, 1).isfinite().all()


def test_tokens_that_are_averaged() -> None:
    """Swin's head: norm, mean over the tokens, linear."""

    def run(net: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
        t = embedded(net, x, 0)
        t = t + attend(net, net.norm(t))
        return net.l(see(net.norm2(t + mlp(net, t))).mean(1))

    net, seen = build(run), []
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    net.see = lambda h: seen.append(h) or h
    net(x)
    expected = (seen[0] @ net.l.weight[3]).unflatten(1, (3, 4))[:, None].detach()
    net.see = lambda h: h
    found = CAM(net)(x, 3)
    torch.testing.assert_close(found.values, F.interpolate(expected, (12, 16), mode="bilinear"))
    assert found.provenance["layer_axes"].endswith("grid 3 x 4")


class Towers(nn.Module):
    """Two images with a tower each, whose scores stand side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = pooled_head(), pooled_head()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([self.a(one), self.b(2 * other)], 1)


def test_each_target_has_the_map_of_its_own_tower(x: Tensor) -> None:
    net = Towers().eval()
    for t, explanations in enumerate(CAM(net).each((x, x), torch.tensor([[1, 6]] * 3))):
        expected = CAM(net.a).attribute(x if t == 0 else 2 * x, 1 if t == 0 else 2)
        for one in explanations:
            torch.testing.assert_close(one.values, expected)


def test_contrasts_are_differences_of_maps(x: Tensor) -> None:
    network = pooled_head()
    one, other = CAM(network).each(x, torch.tensor([[0, 2]] * 3))
    torch.testing.assert_close(CAM(network).attribute(x, backlit.Contrast(0, 2)), one.values - other.values)


def test_bad_input(x: Tensor) -> None:
    with pytest.raises(
        InputError, match=r"layer must be one layer for CAM, .* but is \('1', '3'\). GradCAM takes several"
    ):
        CAM(pooled_head(), layer=("1", "3"))
    with pytest.raises(InputError, match=r"relu must be True or False, but is 1"):
        CAM(pooled_head(), relu=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"layer must name a module or a site .* but is '33'"):
        CAM(pooled_head(), layer="33")(x, TARGET)
    with pytest.raises(UnsupportedOp, match="no feature map"):
        CAM(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval())(torch.zeros(1, 3, 2, 2))
    with pytest.raises(InputError, match="for CAM, but behind"):
        CAM(deep_head())(x, TARGET)


def test_precisions(x: Tensor) -> None:
    exact = CAM(pooled_head()).attribute(x, TARGET)
    for dtype, rounding in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        found = CAM(pooled_head().to(dtype)).attribute(x.to(dtype), TARGET)
        assert found.dtype == dtype
        assert float((found.double() - exact).abs().max()) < rounding * float(exact.abs().max())
