"""L2X: it picks what was planted, draws as the paper says, and its file goes with one network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backlit import L2X, FileError, InputError
from backlit.inverse.selector import Selector, SelectorOptions, _drawn, cell_logits, spread

QUICK = {"k": 1, "grid": 4, "epochs": 12, "lr": 5e-3, "width": 8}


class Planted(nn.Module):
    """The mean of one cell of 4 x 4 says the class; with ``two``, the sum of two."""

    def __init__(self, two: bool = False) -> None:
        super().__init__()
        self.weight, self.two = nn.Parameter(torch.ones(1)), two

    def forward(self, x: Tensor) -> Tensor:
        cells = nn.functional.avg_pool2d(x[:, 0], 4) * 8 * self.weight
        one, other = cells[:, 1, 2], cells[:, 3, 0]
        score = one + other if self.two else one
        return torch.stack([score, -score], 1)


def data(count: int = 10, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(64, 1, 16, 16, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def fitted() -> Selector:
    return L2X.fit(Planted().eval(), data(), **QUICK)


def test_picks_the_planted_cell(fitted: Selector) -> None:
    x = data(1, seed=9)[0][:8]
    found = L2X(Planted().eval(), fitted=fitted)(x)
    expected = torch.zeros(16, 16)
    expected[4:8, 8:12] = 1
    assert torch.equal(found.parts["mask_picked"], expected.expand(8, 1, 16, 16))
    assert bool((found.values.flatten(1).argmax(1).div(16, rounding_mode="floor") // 4 == 1).all())
    torch.testing.assert_close(found.values[:, 0, ::4, ::4].sum((1, 2)), torch.ones(8))
    assert fitted.facts["agreement"] > 0.9
    assert found.provenance["agreement"] == fitted.facts["agreement"]
    assert torch.equal(found.values, L2X(Planted().eval(), fitted=fitted).attribute(x, 1))  # the same for all classes


def test_picks_both_of_two_cells() -> None:
    fitted = L2X.fit(Planted(two=True).eval(), data(10), **{**QUICK, "k": 2}, temperature=2.0)
    picked = L2X(Planted(two=True).eval(), fitted=fitted)(data(1, seed=9)[0]).parts["mask_picked"][:, 0, ::4, ::4]
    assert float((picked[:, 1, 2] + picked[:, 3, 0] == 2).float().mean()) > 0.9


def test_draws_are_the_largest_of_k_of_the_concrete_distribution() -> None:
    options = SelectorOptions(k=3, grid=2, temperature=0.7)
    logits = torch.randn(2, 4, dtype=torch.float64)
    found = _drawn(logits, options, torch.Generator().manual_seed(5))
    noise = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for i in range(2):
        weights = logits[i].exp() / logits[i].exp().sum()
        rows = []
        for j in range(3):
            raw = [
                math.exp((math.log(float(weights[c])) - math.log(-math.log(float(noise[i, j, c])))) / 0.7)
                for c in range(4)
            ]
            rows.append([r / sum(raw) for r in raw])
        torch.testing.assert_close(found[i], torch.tensor(rows, dtype=torch.float64).amax(0))


def test_cells_cover_images_whose_sides_are_no_multiples() -> None:
    cells = spread(torch.arange(9.0)[None], torch.zeros(1, 1, 10, 7))
    assert cells.unique().numel() == 9
    assert cells.shape == (1, 1, 10, 7)
    assert float(cells[0, 0, 0, 0]) == 0
    assert float(cells[0, 0, -1, -1]) == 8


def test_an_interrupted_fit_goes_on_as_if_nothing_had_happened(tmp_path: Path, fitted: Selector) -> None:
    class Stop(Exception):
        pass

    def stop(step: object) -> None:
        if step.number == 3:  # type: ignore[attr-defined]
            raise Stop

    net, out = Planted().eval(), tmp_path / "a.l2x"
    with pytest.raises(Stop):
        L2X.fit(net, data(), out=out, progress=stop, **QUICK)
    passes: list[int] = []
    again = L2X.fit(net, data(), out=out, progress=lambda step: passes.append(step.number), **QUICK)
    assert max(passes) == 10  # of twelve, two had been done
    for key, value in fitted.layers["explainer"].items():
        assert torch.equal(again.layers["explainer"][key], value), key
    assert not Path(f"{out}.parts").exists()


def test_the_file_goes_with_its_network(tmp_path: Path, fitted: Selector) -> None:
    path = tmp_path / "a.l2x"
    fitted.save(path)
    x = data(1)[0][:2]
    assert torch.equal(
        L2X(Planted().eval(), fitted=path).attribute(x), L2X(Planted().eval(), fitted=fitted).attribute(x)
    )
    other = Planted().eval()
    nn.init.constant_(other.weight, 2)
    with pytest.raises(InputError, match="fitted belongs to another network"):
        L2X(other, fitted=path)
    with pytest.raises(InputError, match="inputs must have the size that was fitted, 1x16x16, but have 1x8x8"):
        L2X(Planted().eval(), fitted=path)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(FileError):
        L2X(Planted().eval(), fitted=tmp_path / "none")


def test_double_precision_and_half(fitted: Selector) -> None:
    x = data(1)[0][:2]
    exact = L2X(Planted().double().eval(), fitted=fitted).attribute(x.double())
    assert exact.dtype == torch.float64
    half = L2X(Planted().bfloat16().eval(), fitted=replace(fitted)).attribute(x.bfloat16())
    torch.testing.assert_close(half.double(), exact, atol=0.05, rtol=0.05)
    logits = cell_logits({k: v.double() for k, v in fitted.layers["explainer"].items()}, x.double(), 4)
    torch.testing.assert_close(exact[:, 0, ::4, ::4].flatten(1), logits.softmax(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a positive integer, but is 0"),
        ({"k": 17, "grid": 4}, "k must be at most 16, the cells of a grid of 4 a side, but is 17"),
        ({"grid": 20}, "grid must be at most 16 cells a side for images of 16x16, but is 20"),
        ({"epochs": 1.5}, "epochs must be a positive integer"),
        ({"lr": 0}, "lr must be a positive number"),
        ({"temperature": float("inf")}, "temperature must be a positive number"),
        ({"steps": 3}, "'steps' is no option of this fit: it has k, grid"),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        L2X.fit(Planted().eval(), data(1), **options)


def test_bad_data() -> None:
    with pytest.raises(InputError, match="data"):
        L2X.fit(Planted().eval(), [])

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x + y).flatten(1)[:, :2]

    with pytest.raises(InputError, match="model must take one input to be explained by L2X, but takes 2"):
        L2X.fit(Two().eval(), [((data(1)[0], data(1)[0]), torch.zeros(64, dtype=torch.long))])
    with pytest.raises(InputError, match=r"L2X must be fitted to data first: `backlit fit --method l2x"):
        L2X(Planted().eval())
