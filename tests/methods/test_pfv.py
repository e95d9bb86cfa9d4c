"""Principal feature visualisation: slowly, from the paper, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _map_networks import TARGET, images
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import PFV, InputError, UnsupportedOp


def vgg() -> nn.Sequential:
    """Three stages, each ending in a max pool: the paper's layers are what the pools read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        stages = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
        last = [nn.MaxPool2d(2), nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3)]
        return nn.Sequential(*stages, *last, nn.Flatten(), nn.Linear(10, 4)).double().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images()


def slow(last: Tensor, earlier: list[Tensor], size: tuple[int, int], count: int = 3) -> Tensor:
    """Components of one image's map (c, h, w), enlarged, times the enlarged sums of the earlier maps (c, h, w)."""
    rows = last.flatten(1).T.numpy()
    rows = rows - rows.mean(0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    found = []
    for k in np.argsort(-values)[:count]:
        vector = vectors[:, k] * np.sign(vectors[np.abs(vectors[:, k]).argmax(), k])
        found.append(torch.from_numpy(rows @ vector).reshape(last.shape[1:]))
    result = F.interpolate(torch.stack(found)[None], size, mode="bilinear")[0]
    return result * sum(F.interpolate(a.sum(0)[None, None], size, mode="bilinear")[0, 0] for a in earlier)


def test_is_the_papers_product(x: Tensor) -> None:
    network = vgg()
    found = PFV(network)(x, TARGET)
    assert found.values.shape == (3, 3, 12, 15)
    assert found.provenance["layer"].startswith("relu[2] at 7")
    for i in range(3):
        maps = [network[:k](x[i : i + 1]).detach()[0] for k in (2, 5, 8)]
        torch.testing.assert_close(found.values[i], slow(maps[2], maps[:2], (12, 15)))
    torch.testing.assert_close(found.output, network(x)[range(3), TARGET].detach())


def test_named_layers_are_the_ones_that_weigh(x: Tensor) -> None:
    network = vgg()
    maps = [network[:k](x[:1]).detach()[0] for k in (2, 5, 8)]
    found = PFV(network, layer=("1", "4"), components=2).attribute(x, TARGET)
    torch.testing.assert_close(found[0], slow(maps[1], maps[:1], (12, 15), 2))
    one = PFV(network, layer="1").attribute(x, TARGET)  # before which nothing is made smaller
    torch.testing.assert_close(one[0] * maps[0].sum(0), slow(maps[0], [maps[0]], (12, 15)))


def test_knows_no_class_and_no_neighbour(x: Tensor) -> None:
    network = vgg()
    whole = PFV(network).attribute(x, TARGET)
    one, other = PFV(network).each(x, torch.tensor([[0, 3]] * 3))
    torch.testing.assert_close(one.values, whole)
    torch.testing.assert_close(other.values, whole)
    torch.testing.assert_close(PFV(network).attribute(x[1:2], 0)[0], whole[1])


def test_strides_count_as_pools_do(x: Tensor) -> None:
    strided = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                            nn.Flatten(), nn.Linear(7, 4)).double().eval()  # fmt: skip
    maps = [strided[:k](x[:1]).detach()[0] for k in (2, 4)]
    torch.testing.assert_close(PFV(strided).attribute(x, TARGET)[0], slow(maps[1], maps[:1], (12, 15)))


def test_a_constant_map_and_more_components_than_there_are(x: Tensor) -> None:
    network = vgg()
    found = PFV(network, components=14).attribute(x, TARGET)
    assert found.shape == (3, 14, 12, 15)
    assert not found[:, 10:].any()  # of 9 places, or 10 channels
    with torch.no_grad():
        network[6].weight.zero_()
    assert not PFV(network).attribute(x, TARGET).any()
    for dtype in (torch.float32, torch.bfloat16):
        assert PFV(vgg().to(dtype)).attribute(x.to(dtype), 1).dtype == dtype


def test_bad_input(x: Tensor) -> None:
    with pytest.raises(InputError, match=r"components must be a positive integer up to 10,000, but is 0"):
        PFV(vgg(), components=0)
    with pytest.raises(InputError, match=r"layer\[0\] must name a module or a site .* but is '77'"):
        PFV(vgg(), layer=("77", "7"))(x, TARGET)
    with pytest.raises(UnsupportedOp, match="no feature map"):
        PFV(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval())(torch.zeros(1, 3, 2, 2))
