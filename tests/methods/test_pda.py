"""PDA: the fit against NumPy, the conditionals by inverse matrices, the map in a loop over windows with the same draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _small_networks import Pooled
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import PDA, InputError
from backlit._random import stable_seed
from backlit.inverse import Fitted
from backlit.methods.pda import conditional

G = torch.Generator().manual_seed(1)
X = torch.randn(2, 2, 7, 9, generator=G, dtype=torch.float64)
DATA = torch.randn(40, 2, 7, 9, generator=G, dtype=torch.float64).cumsum(3)  # neighbours depend on each other
BATCHES = list(zip(DATA.split(8), (torch.arange(40) % 3).split(8), strict=True))


def network(classes: int = 3, *, black: bool = False) -> Pooled:
    return Pooled(classes, channels=2, after=F.gelu, black=black)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return PDA.fit(network(), BATCHES, window=3, padding=1, patches=50)


def test_the_fit_is_that_of_the_patches(fitted: Fitted) -> None:
    layers = fitted.layers["input 0"]
    patches: list[list[Any]] = [[], []]
    for number, image in enumerate(DATA):
        generator = torch.Generator().manual_seed(stable_seed("pda", 0, number))
        for u, v in torch.rand(50, 2, generator=generator, dtype=torch.float64).tolist():
            row, column = int(u * 3), int(v * 5)
            for c in range(2):
                patches[c].append(image[c, row : row + 5, column : column + 5].flatten().numpy())
    for c in range(2):
        rows = np.array(patches[c])
        np.testing.assert_allclose(layers["mean"][c], rows.mean(0), atol=1e-12)
        np.testing.assert_allclose(layers["covariance"][c], np.cov(rows.T), atol=1e-9)
    assert torch.equal(layers["low"], DATA.amin(0))
    assert torch.equal(layers["high"], DATA.amax(0))
    assert {k: fitted.facts[k] for k in ("window", "padding", "patches", "taken")} == {
        "window": 3, "padding": 1, "patches": 50, "taken": 2000,
    }  # fmt: skip
    other = PDA.fit(network(), [DATA[:7], DATA[7:]], window=3, padding=1, patches=50).layers["input 0"]
    torch.testing.assert_close(other["covariance"], layers["covariance"])


def slow_conditional(layers: Any, x: Tensor, c: int, top: int, left: int) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of a 3 x 3 window of channel c, given the rest of its 5 x 5 patch, by inverse matrices."""
    row, column = min(max(top - 1, 0), 2), min(max(left - 1, 0), 4)
    inside = [(i, j) for i in range(5) for j in range(5) if 0 <= row + i - top < 3 and 0 <= column + j - left < 3]
    outside = [(i, j) for i in range(5) for j in range(5) if (i, j) not in inside]
    a, b = ([5 * i + j for i, j in places] for places in (inside, outside))
    s = layers["covariance"][c] + 1e-6 * layers["covariance"][c].diagonal().mean() * torch.eye(25, dtype=torch.float64)
    mu = layers["mean"][c]
    away = torch.stack([x[c, row + i, column + j] for i, j in outside]) - mu[b]
    gain = s[a][:, b] @ torch.linalg.inv(s[b][:, b])
    return mu[a] + gain @ away, s[a][:, a] - gain @ s[b][:, a]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_are_drawn_given_their_surroundings(fitted: Fitted, stride: int) -> None:
    layers = dict(fitted.layers["input 0"])
    made = conditional(layers, 3, 1, stride, X)
    tops, lefts = ([*range(0, s - 3, stride), s - 3] for s in (7, 9))
    assert len(made.windows) == len(tops) * len(lefts)
    assert (made.windows.rows.sum(0) > 0).all()
    wide = {**layers, "low": torch.full_like(layers["low"], -1e9), "high": torch.full_like(layers["high"], 1e9)}
    free = conditional(wide, 3, 1, stride, X)
    zero = torch.zeros(len(made.windows), 2, 9, dtype=torch.float64)
    copies = free.drawn(X, torch.arange(len(made.windows)), zero)
    for number, (top, left) in enumerate((t, s) for t in tops for s in lefts):
        for c in range(2):
            root = made.roots[made.kinds[number], c]
            for i in range(2):
                mean, covariance = slow_conditional(layers, X[i], c, top, left)
                torch.testing.assert_close(copies[number, i, c, top : top + 3, left : left + 3].flatten(), mean)
            torch.testing.assert_close(root @ root.mT, covariance)
        same = torch.ones(7, 9, dtype=torch.bool)
        same[top : top + 3, left : left + 3] = False
        assert torch.equal(copies[number][..., same], X[..., same])


def test_draws_have_the_conditional_moments_and_stay_within_the_data(fitted: Fitted) -> None:
    layers = dict(fitted.layers["input 0"])
    noise = torch.randn(20000, 2, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wide = {**layers, "low": torch.full_like(layers["low"], -1e9), "high": torch.full_like(layers["high"], 1e9)}
    drawn = conditional(wide, 3, 1, 2, X).drawn(X[:1], torch.full((20000,), 5), noise)[:, 0, 1, 2:5, 2:5].flatten(1)
    mean, covariance = slow_conditional(layers, X[0], 1, 2, 2)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), covariance, atol=0.08 * float(covariance.max()), rtol=0)
    kept = conditional(layers, 3, 1, 2, X).drawn(X[:1], torch.full((20000,), 5), 50 * noise)[:, 0, :, 2:5, 2:5]
    assert torch.equal(kept.amin(0), layers["low"][:, 2:5, 2:5])
    assert torch.equal(kept.amax(0), layers["high"][:, 2:5, 2:5])


@pytest.mark.parametrize("stride", [1, 3])
def test_the_map_is_the_mean_weight_of_evidence(fitted: Fitted, stride: int) -> None:
    model, samples, n = network(), 4, 50
    made = PDA(model, fitted=fitted, stride=stride, samples=samples, examples=n, seed=7)
    targets = torch.tensor([[0, 2], [1, 1]])
    maps = made.each(X, targets)
    layers = dict(fitted.layers["input 0"])
    roots = conditional(layers, 3, 1, stride, X)
    tops, lefts = ([*range(0, s - 3, stride), s - 3] for s in (7, 9))

    def odds(p: Tensor) -> Tensor:
        p = (p * n + 1) / (n + 3)
        return torch.log2(p / (1 - p))

    for i in range(2):
        total, count = torch.zeros(3, 7, 9, dtype=torch.float64), torch.zeros(7, 9)
        own = odds(model(X[i : i + 1]).softmax(1)[0])
        for number, (top, left) in enumerate((t, s) for t in tops for s in lefts):
            generator = np.random.default_rng(stable_seed("pda", 7, number))
            noise = torch.from_numpy(generator.standard_normal((samples, 2, 9), dtype=np.float32)).double()
            chances = []
            for s in range(samples):
                copy = X[i].clone()
                for c in range(2):
                    mean, covariance = slow_conditional(layers, X[i], c, top, left)
                    root = roots.roots[roots.kinds[number], c]
                    torch.testing.assert_close(torch.linalg.cholesky(covariance), root)
                    values = (mean + root @ noise[s, c]).view(3, 3)
                    place = (c, slice(top, top + 3), slice(left, left + 3))
                    copy[place] = values.clamp(layers["low"][place], layers["high"][place])
                chances.append(model(copy[None]).softmax(1)[0])
            evidence = own - odds(torch.stack(chances).mean(0))
            total[:, top : top + 3, left : left + 3] += evidence[:, None, None]
            count[top : top + 3, left : left + 3] += 1
        for t in range(2):
            torch.testing.assert_close(maps[t].values[i, 0], total[targets[i, t]] / count)
    assert torch.equal(
        made(X, 1).values, PDA(model, fitted=fitted, stride=stride, samples=4, examples=n, seed=7)(X, 1).values
    )
    assert not torch.equal(
        made(X, 1).values, PDA(model, fitted=fitted, stride=stride, samples=4, examples=n)(X, 1).values
    )


def test_it_needs_no_gradient_and_reads_its_file(fitted: Fitted, tmp_path: Path) -> None:
    expected = PDA(network(), fitted=fitted, stride=3, samples=2).attribute(X, 1)
    fitted.save(tmp_path / "fit")
    torch.testing.assert_close(
        PDA(network(black=True), fitted=tmp_path / "fit", stride=3, samples=2).attribute(X, 1), expected
    )
    single = PDA(network().float(), fitted=tmp_path / "fit", stride=3, samples=2).attribute(X.float(), 1)
    torch.testing.assert_close(single.double(), expected, atol=0.02, rtol=0)
    low = network().bfloat16()
    own = PDA.fit(low, [DATA.bfloat16()], window=3, padding=1, patches=50)
    half = PDA(low, fitted=own, stride=3, samples=2).attribute(X.bfloat16(), 1)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


def test_inputs_are_altered_in_turn() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.eval()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.net(x) + 2 * self.net(y)

    small = DATA[:, :, :6, :6]
    fit = PDA.fit(Two(), [((DATA[:20], small[:20]), torch.arange(20) % 3)], window=2, padding=1, patches=40)
    assert list(fit.layers) == ["input 0", "input 1"]
    first, second = PDA(Two(), fitted=fit, stride=2, samples=2).attribute((X, X[:, :, :6, :6]), 1)
    assert first.shape == (2, 1, 7, 9)
    assert second.shape == (2, 1, 6, 6)


def test_sizes_follow_from_the_images() -> None:
    for side, window in ((8, 1), (32, 5), (70, 10), (224, 10)):
        images = torch.randn(3, 2, side, side, generator=G, dtype=torch.float64)
        facts = PDA.fit(network(), [images], patches=2).facts
        assert (facts["window"], facts["padding"]) == (window, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"window": 4},
            r"window must be 3, for which the Gaussian was fitted, but is 4\. Leave it out, or fit again: .*window=4",
        ),
        ({"stride": 4}, r"stride must be at most the window, 3 pixels, so that every pixel is covered, but is 4"),
        ({"stride": 0}, r"stride must be a positive integer, but is 0"),
        ({"samples": 0}, r"samples must be a positive integer up to 1,000,000, but is 0"),
        ({"examples": 0}, r"examples must be a positive integer, but is 0"),
        ({"window": 2.5}, r"window must be a positive integer or None, but is 2\.5"),
        ({"seed": "x"}, r"seed must be an integer from"),
        ({"fitted": None}, r"PDA must be fitted to data first: `backlit fit --method pda --data DIR --out FILE`"),
        ({"fitted": 3}, r"fitted must be what PDA\.fit returned, or its file, but is int"),
    ],
)
def test_options_that_cannot_be_used_are_named(fitted: Fitted, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PDA(network(), **{"fitted": fitted, **options})
    PDA(network(), fitted=fitted, window=3, stride=3)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            BATCHES,
            {"window": 8},
            r"window must leave room for its padding all around in images of 7x9, but is 8 with a padding",
        ),
        (BATCHES, {"window": 0}, r"window must be a positive integer up to 10,000 or None, but is 0"),
        (BATCHES, {"padding": -1}, r"padding must be an integer from 0 up to 10,000 or None, but is -1"),
        (BATCHES, {"patches": 0}, r"patches must be a positive integer up to 1,000,000, but is 0"),
        (
            BATCHES,
            {"windows": 3},
            r"'windows' is no option of this fit: it has window, padding, patches, seed\. Did you mean",
        ),
        ([], {}, r"data must"),
        (DATA, {}, r"data must be batches, but is one tensor"),
    ],
)
def test_fits_that_cannot_be_are_named(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PDA.fit(network(), data, **options)


def test_one_output_and_other_networks_and_sizes_are_refused(fitted: Fitted) -> None:
    one = network(1)
    alone = PDA.fit(one, [DATA], window=3, padding=1)
    with pytest.raises(
        InputError, match=r"model must have an output for each of several classes, .* but has one output"
    ):
        PDA(one, fitted=alone)(X)
    with pytest.raises(InputError, match=r"fitted belongs to another network"):
        PDA(network(4), fitted=fitted)
    with pytest.raises(InputError, match=r"inputs must have the size that was fitted, 2x7x9, but have 2x6x9"):
        PDA(network(), fitted=fitted)(X[:, :, :6])
