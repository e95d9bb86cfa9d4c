"""Searched masks: each step against the papers' formulas written slowly in float64, with autograd's gradients."""

from __future__ import annotations

from math import exp
from typing import Any

import pytest
import torch
from _small_networks import Pooled, Two
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import ExtremalPerturbation, InputError, MeaningfulPerturbation, ModelStateError, UnsupportedOp
from backlit._random import stable_seed
from backlit.methods.images import blurred
from backlit.methods.smooth_masks import SmoothMasks, area_loss, blurred_by, pyramid

X = torch.randn(2, 3, 13, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGETS = torch.tensor([[0, 2], [3, 1]])


def network(classes: int = 4) -> Pooled:
    return Pooled(classes, after=lambda h: F.gelu(h).square(), scale=0.1)


def read(logits: Tensor, k: int, score: str) -> Tensor:
    return logits.softmax(1)[0, k] if score == "probability" else logits[0, k]


def slow_perturbation(
    model: nn.Module, x: Tensor, k: int, steps: int, grid: Tensor, base: Tensor, score: str
) -> Tensor:
    """Return the mask (h, w) after some steps of Adam on Eq. 3, written out, for the options of the test below."""
    h, w = x.shape[1:]
    moves = torch.randint(
        3, (steps, 2), generator=torch.Generator().manual_seed(stable_seed("meaningful_perturbation", 5))
    )
    wide = [F.pad(i[None], (1, 1, 1, 1), mode="replicate")[0] for i in (x, base)]

    def mask_of(grid: Tensor) -> Tensor:
        rows = ((torch.arange(h) + 0.5) * len(grid) / h).long()
        columns = ((torch.arange(w) + 0.5) * grid.shape[1] / w).long()
        return blurred(grid[rows][:, columns][None, None], 0.1 * h)[0, 0]

    first = second = torch.zeros_like(grid)
    for t in range(1, steps + 1):
        grid = grid.detach().requires_grad_()
        mask, (down, across) = mask_of(grid), moves[t - 1].tolist()
        seen, hidden = (i[:, down : down + h, across : across + w] for i in wide)
        loss = read(model((seen * mask + hidden * (1 - mask))[None]), k, score)
        for i in range(len(grid)):
            for j in range(grid.shape[1]):
                a = grid[i + 1, j] - grid[i, j] if i + 1 < len(grid) else torch.tensor(0.0)
                b = grid[i, j + 1] - grid[i, j] if j + 1 < grid.shape[1] else torch.tensor(0.0)
                loss = loss + 1e-4 * (1 - grid[i, j]).abs() + 0.02 * (a**2 + b**2 + 1e-30) ** 1.5
        (g,) = torch.autograd.grad(loss, grid)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        step = first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        grid = (grid - 0.1 * step).clamp(0, 1).detach()
    return mask_of(grid)


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_meaningful_perturbations_are_the_papers(score: Any) -> None:
    model, base = network(), torch.rand(3, 13, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    made = MeaningfulPerturbation(
        model,
        score=score,
        baseline=base,
        cells=5,
        l1=1e-4,
        tv=0.02,
        smoothing=0.1,
        jitter=3,
        start="ones",
        steps=4,
        seed=5,
    )
    maps, hidden = made.each(X, TARGETS), []
    for t in range(2):
        for i in range(2):
            k = int(TARGETS[i, t])
            mask = slow_perturbation(model, X[i], k, 4, torch.ones(5, 5, dtype=torch.float64), base, score)
            torch.testing.assert_close(maps[t].values[i, 0], 1 - mask)
            hidden.append(1 - float(mask.min()))
            left = read(model((X[i] * mask + base * (1 - mask))[None]), k, score)
            torch.testing.assert_close(maps[t].completeness["left"][i], left.detach())
            torch.testing.assert_close(maps[t].completeness["area"][i], 1 - mask.mean())
    assert max(hidden) > 0.05


def test_the_first_disc_is_the_smallest_that_takes_the_score_away() -> None:
    x = torch.randn(2, 3, 56, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model = network()
    made = MeaningfulPerturbation(model, baseline="zero", cells=48, smoothing=0.0, l1=0.0, tv=0.0, steps=1, lr=1e-12)
    found = made(x, 2).values[:, 0]
    for i in range(2):
        scores, discs = [], []
        for radius in range(0, 175, 5):
            away = [[(a - 28) ** 2 + (b - 24) ** 2 for b in range(48)] for a in range(56)]
            disc = (torch.tensor(away) <= (radius * 48 / 224) ** 2).double()
            discs.append(blurred(disc[None, None], 10 * 48 / 224)[0, 0])
            scores.append(read(model((x[i] * (1 - discs[-1]))[None]), 2, "probability"))
        share = [(s - scores[-1]) / (scores[0] - scores[-1]) for s in scores]
        first = next(r for r, s in enumerate(share) if s < 0.01)
        rows = ((torch.arange(48) + 0.5) * 56 / 48).long()
        again = ((torch.arange(56) + 0.5) * 48 / 56).long()
        torch.testing.assert_close(found[i], discs[first][rows][again], atol=1e-9, rtol=0)
        assert first > 2


def slow_mask(grid: Tensor, h: int, w: int, step: int, sigma: float) -> Tensor:
    """Return the smooth maximum at each pixel over the cells around its own, one by one."""
    reach = 1 + -int(-sigma // step)
    rows = []
    for y in range(h):
        for x in range(w):
            total = count = torch.zeros((), dtype=torch.float64)
            for i in range(y // step - reach, y // step + reach + 1):
                for j in range(x // step - reach, x // step + reach + 1):
                    inside = 0 <= i < len(grid) and 0 <= j < grid.shape[1]
                    away = ((y - i * step - (step - 1) / 2) ** 2 + (x - j * step - (step - 1) / 2) ** 2) ** 0.5
                    value = exp(-2 * max(0.0, away / sigma - 0.5) ** 2) * (grid[i, j] if inside else grid.new_zeros(()))
                    total = total + value * (20 * value).exp()
                    count = count + (20 * value).exp()
            rows.append(total / count)
    return torch.stack(rows).view(h, w)


@pytest.mark.parametrize(("step", "sigma"), [(3, 6.0), (2, 5.0), (1, 3.0)])
def test_smooth_masks_and_their_gradient(step: int, sigma: float) -> None:
    h, w = 7, 9
    family = SmoothMasks.of((h, w), step, sigma, X)
    assert family.cells == (-(-h // step), -(-w // step))
    grid = torch.rand(
        2, *family.cells, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()
    masks = family(grid)
    expected = torch.stack([slow_mask(g, h, w, step, sigma) for g in grid])
    torch.testing.assert_close(masks, expected)
    g = torch.randn(2, h, w, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(masks, grid, g), torch.autograd.grad(expected, grid, g))


def test_masks_of_224_pixels_have_the_published_cells() -> None:
    steps: list[Any] = []
    model = network()
    large = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ExtremalPerturbation(model, steps=1, areas=(0.1,), callback=steps.append)(large)
    expected = SmoothMasks.of((224, 224), 7, 21.0, X)
    assert expected.cells == (32, 32)
    torch.testing.assert_close(steps[0].masks[0, 0], expected(torch.ones(1, 32, 32, dtype=torch.float64))[0])


def test_the_area_loss_ranks_the_pixels() -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    masks = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for area in (0.1, 0.25, 0.9):
        zeros = int(20 * (1 - area))
        for mask, loss in zip(masks, area_loss(masks, torch.full((3,), area, dtype=torch.float64), order), strict=True):
            values = sorted(mask.flatten().tolist())
            expected = sum((v - (place >= zeros)) ** 2 for place, v in enumerate(values)) / 20
            assert float(loss) == pytest.approx(expected)
    even = torch.full((1, 4, 5), 0.5, dtype=torch.float64).requires_grad_()
    (g,) = torch.autograd.grad(area_loss(even, torch.tensor([0.25], dtype=torch.float64), order), even)
    assert set((g < 0).flatten().nonzero().flatten().tolist()) == set(order[15:].tolist())
    exact = (torch.arange(20) >= 15).double().flip(0).view(1, 4, 5)
    assert float(area_loss(exact, torch.tensor([0.25], dtype=torch.float64), order)) == 0


def test_a_pixel_is_as_blurred_as_its_mask_says() -> None:
    levels = pyramid(X, 4.0, 5)
    for i, sigma in enumerate((4.0, 3.0, 2.0, 1.0)):
        torch.testing.assert_close(levels[i], blurred(X, sigma))
    assert torch.equal(levels[4], X)
    masks = torch.rand(3, 2, 13, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks[0, 0, 0, :3] = torch.tensor([0.0, 1.0, 0.5])
    copies = blurred_by(levels, masks)
    for v, n, i, j in torch.cartesian_prod(
        torch.arange(3), torch.arange(2), torch.arange(0, 13, 4), torch.arange(16)
    ).tolist():
        place = float(masks[v, n, i, j]) * 4
        low = min(int(place), 3)
        expected = levels[low, n, :, i, j] * (1 - place + low) + levels[low + 1, n, :, i, j] * (place - low)
        torch.testing.assert_close(copies[v, n, :, i, j], expected)


def test_gradients_that_are_no_numbers_end_in_a_plain_error() -> None:
    """A mask of NaN is at no level of the pyramid: its pixels are NaN, and the map is refused as any other one."""
    masks = torch.tensor([[[[torch.nan, 0.5], [0.0, 1.0]]]])
    found = blurred_by(torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 1, 1, 2, 2), masks)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([[torch.nan, 1.0], [0.0, 2.0]]), equal_nan=True)

    class Rootless(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + ((x - x).sum((1, 2, 3)) * 0).sqrt()[:, None]  # the slope of a root at 0

    for kind in (ExtremalPerturbation, MeaningfulPerturbation):
        with pytest.raises(
            ModelStateError,
            match="perturbation for image 0 is not finite: the gradient becomes NaN or infinite at sqrt",
        ):
            kind(Rootless().eval(), steps=3)(torch.rand(1, 3, 12, 12).double(), 1)


def test_extremal_perturbations_are_the_papers() -> None:
    model, areas, steps = network(), (0.1, 0.3, 0.6), 4
    order = torch.randperm(208, generator=torch.Generator().manual_seed(stable_seed("extremal_perturbation", 0)))
    made = ExtremalPerturbation(model, areas=areas, steps=steps, step=4, sigma=6.0, blur=3.0, levels=3, weight=30.0)
    maps = made.each(X, TARGETS)
    for t in range(2):
        for i in range(2):
            k, masks = int(TARGETS[i, t]), []
            levels = torch.stack([blurred(X[i : i + 1], s)[0] for s in (3.0, 2.0, 1.0)] + [X[i]])
            for area in areas:
                grid, momentum = torch.ones(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
                for step in range(steps + 1):
                    grid = grid.detach().requires_grad_()
                    mask = slow_mask(grid, 13, 16, 4, 6.0)
                    hats = (1 - (mask * 3 - torch.arange(4)[:, None, None]).abs()).clamp(min=0)  # weights of the levels
                    copy = (hats[:, None] * levels).sum(0)[None]
                    if step == steps:
                        break
                    logit = model(copy.flip(-1) if step % 2 == 0 else copy)[0, k]
                    wanted = (torch.arange(208) >= int(208 * (1 - area))).double()
                    loss = (
                        -logit
                        + 30 * 1.0035**step * (mask.flatten()[order].sort(stable=True).values - wanted).square().mean()
                    )
                    (g,) = torch.autograd.grad(loss, grid)
                    momentum = g if step == 0 else 0.9 * momentum + 0.1 * g
                    grid = (grid - 0.01 * momentum).clamp(0, 1)
                masks.append(mask.detach())
                torch.testing.assert_close(maps[t].parts[f"area {area:g}"][i, 0], masks[-1])
                torch.testing.assert_close(maps[t].completeness[f"score {area:g}"][i], model(copy)[0, k].detach())
                torch.testing.assert_close(maps[t].completeness[f"area {area:g}"][i], masks[-1].mean())
            torch.testing.assert_close(maps[t].values[i, 0], torch.stack(masks).mean(0))


def test_inputs_are_searched_in_turn() -> None:
    y = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    class One(nn.Module):
        """The same network of one of its inputs."""

        def __init__(self, first: bool) -> None:
            super().__init__()
            self.two, self.first = Two(network), first
            self.eval()

        def forward(self, z: Tensor) -> Tensor:
            other = y if self.first else X
            other = other.repeat(len(z) // 2, 1, 1, 1)
            return self.two(z, other) if self.first else self.two(other, z)

    for kind, options in ((MeaningfulPerturbation, {"cells": 4}), (ExtremalPerturbation, {"areas": (0.2, 0.4)})):
        both = kind(Two(network), steps=3, **options)((X, y), 1)
        for first, z, found in zip((True, False), (X, y), both, strict=True):
            alone = kind(One(first), steps=3, **options)(z, 1)
            torch.testing.assert_close(found.values, alone.values)
        name = "left of input 1" if kind is MeaningfulPerturbation else "score 0.4 of input 1"
        assert both[0].completeness[name].shape == (2,)


def test_blocks_chunks_and_one_copy_at_a_time_are_the_same() -> None:
    for kind, options in ((MeaningfulPerturbation, {"cells": 4}), (ExtremalPerturbation, {"areas": (0.2, 0.4, 0.6)})):
        seen: list[Any] = []
        whole = kind(network(), steps=4, callback=seen.append, **options).each(X, TARGETS)
        single = kind(network(), steps=4, chunk=2, **options).each(X, TARGETS)
        for one, other in zip(whole, single, strict=True):
            torch.testing.assert_close(one.values, other.values)
            for name, curve in one.trajectory.items():
                assert curve.shape == (4, 2), name
                torch.testing.assert_close(curve, other.trajectory[name])
        assert seen[-1].index == seen[-1].steps


def test_the_score_falls_and_stays() -> None:
    less = MeaningfulPerturbation(network(), score="logit", steps=60, baseline="zero", start="ones", l1=0.0, tv=0.0)(
        X, 2
    )
    assert (less.completeness["left"] < less.output).all()
    kept = ExtremalPerturbation(network(), steps=150, lr=0.1, areas=(0.3, 0.6), blur=5.0)(X, 2)
    torch.testing.assert_close(
        kept.completeness["area 0.3"], torch.full((2,), 0.3, dtype=torch.float64), atol=0.1, rtol=0
    )
    torch.testing.assert_close(
        kept.completeness["area 0.6"], torch.full((2,), 0.6, dtype=torch.float64), atol=0.1, rtol=0
    )


@pytest.mark.parametrize("kind", [MeaningfulPerturbation, ExtremalPerturbation])
def test_precisions_and_networks_of_one_output(kind: Any) -> None:
    options = {"cells": 4} if kind is MeaningfulPerturbation else {"areas": (0.2,)}
    expected = kind(network(), steps=3, **options).attribute(X, 1)
    for dtype, tolerance in ((torch.float32, 0.05), (torch.bfloat16, 0.3)):  # equal pixels are ranked by rounding
        values = kind(network().to(dtype), steps=3, **options).attribute(X.to(dtype), 1)
        assert values.dtype == dtype
        torch.testing.assert_close(values.double(), expected, rtol=0, atol=tolerance)
    one = kind(network(1), steps=3, score="probability", **options).attribute(X)
    assert torch.equal(one, kind(network(1), steps=3, score="logit", **options).attribute(X))

    class Severed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.net(x)

    with pytest.raises(UnsupportedOp, match=r"torch.no_grad inside the model, which cuts the gradient"):
        kind(Severed(), steps=3, **options)(X, 1)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MeaningfulPerturbation, {"steps": 0}, r"steps must be a positive integer up to 1,000,000, but is 0"),
        (MeaningfulPerturbation, {"lr": 0}, r"lr must be a positive number, but is 0"),
        (MeaningfulPerturbation, {"cells": 0}, r"cells must be a positive integer up to 1,000, but is 0"),
        (MeaningfulPerturbation, {"l1": -1.0}, r"l1 must be a number from 0 on, but is -1\.0"),
        (MeaningfulPerturbation, {"tv": "much"}, r"tv must be a number from 0 on, but is 'much'"),
        (
            MeaningfulPerturbation,
            {"smoothing": -0.1},
            r"smoothing must be a share of the side, from 0 to 1, but is -0\.1",
        ),
        (MeaningfulPerturbation, {"beta": 0}, r"beta must be a positive number, but is 0"),
        (MeaningfulPerturbation, {"jitter": 0}, r"jitter must be a positive integer up to 1,000, but is 0"),
        (MeaningfulPerturbation, {"start": "disc"}, r"start must be 'circle' or 'ones', but is 'disc'"),
        (MeaningfulPerturbation, {"baseline": "noise"}, r"baseline must be one of zero, blur, mean"),
        (MeaningfulPerturbation, {"score": "odds"}, r"score must be 'logit' or 'probability', but is 'odds'"),
        (MeaningfulPerturbation, {"seed": "x"}, r"seed must be an integer from"),
        (ExtremalPerturbation, {"areas": ()}, r"areas must be a tuple of different numbers between 0 and 1"),
        (ExtremalPerturbation, {"areas": (0.1, 1.0)}, r"areas must be .* both excluded, .* but is \(0\.1, 1\.0\)"),
        (ExtremalPerturbation, {"areas": (0.0,)}, r"areas must be .* but is \(0\.0,\)"),
        (ExtremalPerturbation, {"areas": (0.1, 0.1)}, r"areas must be a tuple of different numbers"),
        (ExtremalPerturbation, {"areas": 0.1}, r"areas must be a tuple .*, such as \(0\.05, 0\.1\), but is 0\.1"),
        (ExtremalPerturbation, {"levels": 0}, r"levels must be a positive integer up to 1,000, but is 0"),
        (ExtremalPerturbation, {"blur": 0}, r"blur must be a positive number up to 10,000, but is 0"),
        (ExtremalPerturbation, {"step": 0}, r"step must be a positive integer up to 10,000 or None, but is 0"),
        (ExtremalPerturbation, {"sigma": -1}, r"sigma must be a positive number up to 10,000 or None, but is -1"),
        (ExtremalPerturbation, {"weight": 0}, r"weight must be a positive number, but is 0"),
        (ExtremalPerturbation, {"momentum": 1.0}, r"momentum must be from 0 to below 1, but is 1\.0"),
        (ExtremalPerturbation, {"flip": 1}, r"flip must be True or False, but is 1"),
        (ExtremalPerturbation, {"smooth": 1.5}, r"smooth must be from 0 to below 1, but is 1\.5"),
    ],
)
def test_options_that_cannot_be_used_are_named(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(network(), **options)


def test_a_baseline_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"baseline must be shaped as one image, \(3, 13, 16\), .* but is \(3, 4, 4\)"):
        MeaningfulPerturbation(network(), baseline=torch.zeros(3, 4, 4), steps=2)(X)
