"""XRAI: its regions against plain loops and PAIR's library, its integrated gradients by hand, and what it needs."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backlit
from backlit import XRAI, InputError
from backlit.methods.base import NO_NETWORK
from backlit.methods.region import by_density, segments, widened

skimage = pytest.importorskip("skimage")
pytest.importorskip("skimage.segmentation")
pytest.importorskip("skimage.transform")


def _pictures() -> Tensor:
    """Two pictures of a few coloured shapes with some noise, of other sizes than the segmentation's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(2, 3, 60, 48, dtype=torch.float64)
    for one in x:
        for _ in range(7):
            top, left, high, wide = (int(v) for v in torch.randint(0, 40, (4,), generator=generator))
            one[:, top : top + high + 6, left : left + wide + 6] = torch.rand(3, 1, 1, generator=generator).double()
    return x + 0.05 * torch.rand(x.shape, generator=generator).double()


X = _pictures()


def net() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
    )
    model(X.float())
    return model.double().eval()


NET = net()
SCALES = XRAI(NO_NETWORK).scales


def attributions(x: Tensor, target: int, low: Tensor, high: Tensor, steps: int) -> Tensor:
    """Mean of integrated gradients of one image from black and from white, (1, c, h, w)."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros_like(x)
    for start in (low.expand_as(x), high.expand_as(x)):
        for node, weight in zip(nodes, weights, strict=True):
            point = (start + (node + 1) / 2 * (x - start)).requires_grad_()
            total += (x - start) * weight / 2 * torch.autograd.grad(NET(point)[0, target], point)[0] / 2
    return total


def by_loops(attribution: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Kapishnikov et al. 2019, Algorithm 1: always the region whose gain per added pixel is largest."""
    taken, result, left = np.zeros(attribution.shape, bool), np.full(attribution.shape, np.nan), list(masks)
    while left := [m for m in left if (m & ~taken).sum() >= 50]:
        gains = [attribution[m & ~taken].mean() for m in left]
        best = left.pop(int(np.argmax(gains)))
        result[best & ~taken] = max(gains)
        taken |= best
    result[~taken] = attribution[~taken].mean() if (~taken).any() else 0
    return result


@pytest.mark.parametrize("known", [False, True])
def test_xrai_is_the_papers(known: bool) -> None:
    bounds: dict[str, Any] = {"low": (-0.2, 0.0, -0.1), "high": 1.3} if known else {}
    targets = torch.tensor([[1, 4], [3, 0]])
    found = XRAI(NET, steps=5, **bounds).each(X, targets)
    for i, x in enumerate(X.split(1)):
        low = torch.tensor(bounds["low"], dtype=torch.float64).view(3, 1, 1) if known else x.amin((2, 3), keepdim=True)
        high = torch.full((3, 1, 1), 1.3, dtype=torch.float64) if known else x.amax((2, 3), keepdim=True)
        picture = (x - low) / (high - low) if known else x
        masks = widened(segments(picture[0], SCALES, skimage), 5).numpy()
        assert len(masks) > 6
        for t, one in enumerate(found):
            values = attributions(x, int(targets[i, t]), low, high, 5).amax(1)[0].numpy()
            expected = torch.from_numpy(by_loops(values, list(masks)))
            torch.testing.assert_close(one.values[i, 0], expected, rtol=1e-9, atol=1e-12)
            assert len(expected.unique()) > 3


def test_the_regions_are_pairs() -> None:
    xrai = pytest.importorskip("saliency.core.xrai")
    for i, x in enumerate(X):
        image = x.permute(1, 2, 0).numpy()
        theirs = xrai._get_segments_felzenszwalb(image)
        ours = widened(segments(x, SCALES, skimage), 5)
        assert np.array_equal(ours.numpy(), np.stack(theirs))
        given = torch.randn(3, 60, 48, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        expected = xrai.XRAI().GetMask(image, None, base_attribution=given.permute(1, 2, 0).numpy())
        found = by_density(given.amax(0).flatten(), ours.flatten(1)).view(60, 48)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_disk_grows_a_segment_as_morphology_does() -> None:
    from skimage.morphology import dilation, disk

    masks = torch.rand(5, 30, 21, generator=torch.Generator().manual_seed(2)) > 0.995
    for radius in (1, 3, 5):
        expected = np.stack([dilation(mask.numpy(), footprint=disk(radius)) for mask in masks])
        assert np.array_equal(widened(masks, radius).numpy(), expected)
    assert widened(masks, None) is masks


def test_what_no_region_adds_has_its_own_mean() -> None:
    values = torch.arange(200.0)
    masks = torch.stack([torch.arange(200) < 120, torch.arange(200) >= 160])  # the second is too small
    found = by_density(values, masks)
    assert found[:120].unique().tolist() == [values[:120].double().mean()]
    assert found[120:].unique().tolist() == [values[120:].double().mean()]


def test_a_loaded_model_knows_black_and_white() -> None:
    digits = backlit.load_model("digits")
    images, _ = backlit.models.digits.digits_images()
    x = digits.preprocess.batch(images[:2])
    low, high = digits.preprocess.bounds
    named = XRAI(digits, steps=3).attribute(x, 3)
    torch.testing.assert_close(named, XRAI(digits.network, steps=3, low=low, high=high).attribute(x, 3))
    assert named.shape == (2, 1, 32, 32)


def test_pictures_without_any_contrast() -> None:
    found = XRAI(NET, steps=2)(torch.ones_like(X), 1)
    assert bool((found.values == 0).all())
    assert XRAI(NET, steps=2, low=0, high=0)(X, 1).values.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer up to 1,000, but is 0"),
        ({"dilation": 0}, "dilation must be a positive integer up to 224 or None, but is 0"),
        ({"scales": ()}, r"scales must be positive numbers, \(100, 500\) for example, but is \(\)"),
        ({"scales": (50, 0)}, "scales must be positive numbers"),
        ({"scales": 50}, "scales must be positive numbers"),
        ({"low": "black"}, "low must be a number, one for each channel, or None, but is 'black'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        XRAI(NO_NETWORK, **options)


def test_bounds_that_do_not_fit_and_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"high must be a number, one for each channel.* but has shape"):
        XRAI(NET, steps=2, high=(1.0, 2.0))(X, 1)
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(
        InputError, match=r"XRAI needs scikit-image, which is not installed: pip install 'backlit\[regions\]'"
    ):
        XRAI(NET, steps=2)(X, 1)
