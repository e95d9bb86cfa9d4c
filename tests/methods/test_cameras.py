"""CAMERAS: slowly, from the paper, size by size."""

from __future__ import annotations

import pytest
import torch
from _map_networks import TARGET, deep_head, images, map_and_gradient
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import CAMERAS, HiResCAM, InputError, UnsupportedOp


def any_size() -> nn.Sequential:
    """A map smaller than the image, a head with a hidden layer, and images of any size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        body = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 40, 3, padding=1), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(160, 10), nn.ReLU(), nn.Linear(10, 4)]
        return nn.Sequential(*body, *head).double().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images()


def slow(network: nn.Sequential, x: Tensor, target: int, sizes: list[tuple[int, int]]) -> Tensor:
    """The map (1, h, w) of one image (c, h, w)."""
    h, w = x.shape[1:]
    features, grads = [], []
    for size in sizes:
        copy = x if size == (h, w) else F.interpolate(x[None], size, mode="bicubic")[0]
        a, g = map_and_gradient(network, copy, target)
        features.append(F.interpolate(a[None], (h, w), mode="bilinear")[0])
        grads.append(F.interpolate(g[None], (h, w), mode="bilinear")[0])
    mean_a, mean_g = sum(features) / len(sizes), sum(grads) / len(sizes)
    total = torch.zeros(h, w, dtype=torch.float64)
    for k in range(len(mean_a)):
        total += mean_a[k] * mean_g[k]
    return total.relu()[None]


def test_is_the_papers_fusion(x: Tensor) -> None:
    network = any_size()
    found = CAMERAS(network, steps=3, largest=2.0)(x, TARGET)
    for i, target in enumerate(TARGET.tolist()):
        expected = slow(network, x[i], target, [(12, 15), (18, 22), (24, 30)])
        torch.testing.assert_close(found.values[i], expected)
    assert float(found.values.amax((1, 2, 3)).min()) > 0
    torch.testing.assert_close(found.output, network(x)[range(3), TARGET].detach())
    assert found.provenance["layer"].startswith("relu[1] at 3")


def test_the_authors_sizes() -> None:
    method = CAMERAS(any_size())
    assert [round(224 * scale) for scale in method.scales] == list(range(224, 1000, 100))
    assert round(method.forward_passes) == round(3 * sum((s / 224) ** 2 for s in range(224, 1000, 100)))


def test_one_size_is_the_product_of_the_enlarged(x: Tensor) -> None:
    network = any_size()
    found = CAMERAS(network, steps=1).attribute(x, TARGET)
    for i, target in enumerate(TARGET.tolist()):
        torch.testing.assert_close(found[i], slow(network, x[i], target, [(12, 15)]))
    same = deep_head()  # whose map is as large as the image
    torch.testing.assert_close(CAMERAS(same, steps=1).attribute(x, TARGET), HiResCAM(same).attribute(x, TARGET).relu())


def test_smaller_copies_and_several_layers_targets_and_inputs(x: Tensor) -> None:
    network = any_size()
    found = CAMERAS(network, steps=2, largest=0.5).attribute(x, TARGET)
    torch.testing.assert_close(found[0], slow(network, x[0], 0, [(12, 15), (6, 8)]))
    each = [CAMERAS(network, steps=2, layer=name).attribute(x, TARGET) for name in ("1", "3")]
    fused = CAMERAS(network, steps=2, layer=("1", "3")).attribute(x, TARGET)
    torch.testing.assert_close(fused, sum(m / m.amax((1, 2, 3), keepdim=True) for m in each) / 2)

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = any_size(), any_size()

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return torch.cat([self.a(one), self.b(2 * other)], 1)

    net = Towers().eval()
    for t, explanations in enumerate(CAMERAS(net, steps=2).each((x, x), torch.tensor([[1, 6]] * 3))):
        tower, image, k = ((net.a, x, 1), (net.b, 2 * x, 2))[t]
        expected = CAMERAS(tower, steps=2).attribute(image, k)
        for one in explanations:
            torch.testing.assert_close(one.values, expected)


class Patches(nn.Module):
    """Patches as tokens, whose grid is looked for at each size; the same as a network of planes."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.embed, self.up, self.head = nn.Conv2d(3, 8, 3, 3), nn.Linear(8, 9), nn.Linear(9, 4)
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(x)
        t = t.flatten(2).transpose(1, 2) if self.tokens else t.permute(0, 2, 3, 1)
        t = torch.tanh(self.up(t))
        return self.head(t.flatten(1, -2).pow(2).mean(1))


def test_tokens_get_their_grid_at_each_size(x: Tensor) -> None:
    tokens, planes = (Patches(kind).double().eval() for kind in (True, False))
    found = CAMERAS(tokens, steps=2, largest=2.0)(x, TARGET)
    assert found.provenance["layer_axes"].startswith("(n, t, c), grid 4 x 5")
    torch.testing.assert_close(found.values, CAMERAS(planes, steps=2, largest=2.0).attribute(x, TARGET))
    assert float(found.values.max()) > 0


def test_a_network_of_one_size_says_so_and_the_ways_out_work(x: Tensor) -> None:
    message = (
        r"model must take images of other sizes for CAMERAS, but does not take 17 x 22 "
        r"\(.*mat1 and mat2 shapes cannot be multiplied.*\)\. Use steps=1 .* or LayerCAM"
    )
    with pytest.raises(InputError, match=message):
        CAMERAS(deep_head(), steps=8)(x, TARGET)
    assert CAMERAS(deep_head(), steps=1).attribute(x, TARGET).isfinite().all()


def test_bad_input(x: Tensor) -> None:
    with pytest.raises(InputError, match=r"steps must be a positive integer up to 1,000, but is 0"):
        CAMERAS(any_size(), steps=0)
    with pytest.raises(InputError, match=r"largest must be a number from 0.1 to 100 times the image, but is 0"):
        CAMERAS(any_size(), largest=0)
    with pytest.raises(InputError, match=r"grid must be None for CAMERAS, .* but is \(3, 4\). Leave it out"):
        CAMERAS(any_size(), layer="3", grid=(3, 4))
    with pytest.raises(UnsupportedOp, match="no feature map"):
        CAMERAS(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval())(torch.zeros(1, 3, 2, 2))


def test_precisions(x: Tensor) -> None:
    exact = CAMERAS(any_size(), steps=2).attribute(x, TARGET)
    for dtype, rounding in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        found = CAMERAS(any_size().to(dtype), steps=2).attribute(x.to(dtype), TARGET)
        assert found.dtype == dtype
        assert float((found.double() - exact).abs().max()) < rounding * float(exact.abs().max())
