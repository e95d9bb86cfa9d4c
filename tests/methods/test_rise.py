"""RISE: its masks against an enlarged grid cut out by hand, its map against the paper's sum in a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from _small_networks import Pooled
from torch import Tensor, nn

from backlit import RISE, InputError
from backlit.methods.rise import RandomMasks

X = torch.randn(2, 3, 17, 22, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bilinear(grid: Tensor, y: float, x: float, size: tuple[float, float]) -> float:
    """Return the value of a grid enlarged to cells of this many pixels, at a pixel, edges repeated."""
    top, left = (y + 0.5) / size[0] - 0.5, (x + 0.5) / size[1] - 0.5
    total = 0.0
    for i in (int(np.floor(top)), int(np.floor(top)) + 1):
        for j in (int(np.floor(left)), int(np.floor(left)) + 1):
            weight = (1 - abs(top - i)) * (1 - abs(left - j))
            a, b = min(max(i, 0), len(grid) - 1), min(max(j, 0), len(grid) - 1)
            total += weight * float(grid[a, b])
    return total


def slow_masks(drawn: RandomMasks, cells: int, h: int, w: int) -> Tensor:
    """Return each mask pixel by pixel: grids enlarged to (cells + 1) times the size of a cell, cut out at the shifts."""
    cell = -(-h // cells), -(-w // cells)
    size = cell[0] * (cells + 1) / cells, cell[1] * (cells + 1) / cells
    masks = torch.zeros(len(drawn), h, w, dtype=torch.float64)
    for m, (grid, (down, across)) in enumerate(zip(drawn.grids, drawn.shifts.tolist(), strict=True)):
        for i in range(h):
            for j in range(w):
                masks[m, i, j] = bilinear(grid, down + i, across + j, size)
    return masks


def test_masks_are_enlarged_grids_cut_out_at_random() -> None:
    drawn = RandomMasks.drawn(9, 4, 0.5, 0, X)
    torch.testing.assert_close(drawn.of(slice(0, 9)), slow_masks(drawn, 4, 17, 22))
    many = RandomMasks.drawn(4000, 4, 0.3, 0, X)
    assert many.grids.mean().item() == pytest.approx(0.3, abs=0.01)
    assert many.of(slice(0, 4000)).mean((1, 2)).mean().item() == pytest.approx(0.3, abs=0.02)
    assert [int(s) for s in many.shifts.amin(0)] == [0, 0]
    assert [int(s) for s in many.shifts.amax(0)] == [4, 5]  # cells of 5 x 6 pixels
    counts = many.shifts[:, 0].bincount()
    assert int(counts.min()) > 700


@pytest.mark.parametrize("score", ["probability", "logit"])
@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_it_is_the_papers_sum(score: Any, baseline: float) -> None:
    model, p, n = Pooled(), 0.4, 23
    made = RISE(
        model,
        masks=n,
        cells=4,
        p=p,
        score=score,
        baseline=torch.full((3, 17, 22), baseline, dtype=torch.float64),
        seed=3,
    )
    maps = made.each(X, torch.tensor([[0, 2], [3, 1]]))
    masks = slow_masks(RandomMasks.drawn(n, 4, p, 3, X), 4, 17, 22)
    for t, targets in enumerate([(0, 3), (2, 1)]):
        for i, k in enumerate(targets):
            terms = []
            for mask in masks:
                logits = model((X[i] * mask + baseline * (1 - mask))[None])[0]
                value = logits.softmax(0)[k] if score == "probability" else logits[k]
                terms.append(value * mask / p)
            each = torch.stack(terms)
            torch.testing.assert_close(maps[t].values[i, 0], each.mean(0))  # Eq. 6
            torch.testing.assert_close(maps[t].parts["error"][i, 0], each.std(0) / n**0.5)


def test_the_error_is_that_of_other_draws() -> None:
    maps = [RISE(Pooled(), masks=200, cells=4, seed=s)(X[:1], 1) for s in range(30)]
    spread = torch.stack([m.values[0, 0] for m in maps]).std(0)
    said = torch.stack([m.parts["error"][0, 0] for m in maps]).mean(0)
    torch.testing.assert_close(spread.mean(), said.mean(), rtol=0.2, atol=0)


def test_all_images_share_the_masks_and_seeds_make_others() -> None:
    made = RISE(Pooled(), masks=40, cells=4)
    twice = made(torch.cat([X[:1], X[:1]]), 1).values
    torch.testing.assert_close(twice[0], twice[1])
    other = RISE(Pooled(), masks=40, cells=4, seed=1)(X, 1).values
    assert float((other[0] - twice[0]).abs().max()) > 1e-3


def test_the_network_need_not_be_differentiable() -> None:
    expected = RISE(Pooled(), masks=20, cells=4).attribute(X, 1)
    torch.testing.assert_close(RISE(Pooled(black=True), masks=20, cells=4).attribute(X, 1), expected)


def test_inputs_are_masked_in_turn() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Pooled()
            self.eval()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.net(x) * (1 + self.net(y).tanh())

    model, y = Two(), X[:, :, :9, :9].flip(0)
    first, second = RISE(model, masks=12, cells=3, score="logit").attribute((X, y), 1)
    assert second.shape == (2, 1, 9, 9)
    for values, x, run in ((first, X, lambda z: model(z, y)), (second, y, lambda z: model(X, z))):
        masks = RandomMasks.drawn(12, 3, 0.5, 0, x).of(slice(0, 12))
        expected = torch.stack([run(x * m)[:, 1, None, None] * m for m in masks]).mean(0) / 0.5
        torch.testing.assert_close(values[:, 0], expected)


def test_one_output_is_its_own_score_and_precisions_run() -> None:
    one = RISE(Pooled(1), masks=20, cells=4)
    assert torch.equal(one.attribute(X), RISE(Pooled(1), masks=20, cells=4, score="logit").attribute(X))
    expected = RISE(Pooled(), masks=20, cells=4).attribute(X, 1)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        values = RISE(Pooled().to(dtype), masks=20, cells=4).attribute(X.to(dtype), 1)
        assert values.dtype == dtype
        torch.testing.assert_close(values.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": 0}, r"masks must be a positive integer up to 10,000,000, but is 0"),
        ({"masks": 10.5}, r"masks must be a positive integer"),
        ({"cells": 0}, r"cells must be a positive integer up to 1,000, but is 0"),
        ({"p": 0}, r"p must be a number between 0 and 1, both excluded, but is 0"),
        ({"p": 1}, r"p must be a number between 0 and 1, both excluded, but is 1"),
        ({"p": "half"}, r"p must be a number between 0 and 1, both excluded, but is 'half'"),
        ({"seed": "a"}, r"seed must be an integer from"),
        ({"seed": True}, r"seed must be an integer from"),
        ({"score": 1}, r"score must be 'logit' or 'probability', but is 1"),
        ({"rules": {"relu": None}}, r"rules must be None for RISE, which propagates by no rules"),
    ],
)
def test_options_that_cannot_be_used_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RISE(Pooled(), **options)


def test_a_baseline_of_another_shape_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"baseline must be shaped as one image, \(3, 17, 22\), .* but is \(1, 17, 22\)"
    ):
        RISE(Pooled(), masks=4, baseline=torch.zeros(1, 17, 22))(X)
