"""IDSDS, sensitivity-n and IROF, against a pass for each changed image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from _oracles import distinct, softmax
from backlit import GradientXInput, InputError
from backlit.metrics import IROF, Examples, SensitivityN, SingleDeletion

SIDE = 14


@pytest.fixture
def logits_of(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(image)[None])[0].numpy()

    return run


class Broken(nn.Module):
    """A network that gives no number for changed copies of one image, told by its first pixel's sign and size."""

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.network, self.image = network, image

    def forward(self, x: Tensor) -> Tensor:
        alike = (x == self.image).float().mean((1, 2, 3))
        return torch.where(((alike > 0.05) & (alike < 1))[:, None], torch.nan, self.network(x))


@pytest.mark.parametrize("cells", [2, 4, 7])
def test_single_deletion_equals_the_protocol(cells: int, network: nn.Module, examples: Examples, logits_of) -> None:
    maps = {"a": distinct((4, 3, SIDE, SIDE), 1), "b": distinct((4, 1, SIDE, SIDE), 2)}
    found = SingleDeletion(cells=cells)(network, examples, maps).values
    inside = [[r * cells // SIDE for r in range(SIDE)].index(k) for k in range(cells)] + [SIDE]
    for name, given in maps.items():
        for i in range(4):
            image, target = examples.inputs[i].numpy(), int(examples.target[i])
            sums, drops = [], []
            for r in range(cells):
                for c in range(cells):
                    rows, columns = slice(inside[r], inside[r + 1]), slice(inside[c], inside[c + 1])
                    changed = image.copy()
                    changed[:, rows, columns] = 0
                    sums.append(given[i].numpy()[:, rows, columns].sum())
                    drops.append(logits_of(image)[target] - logits_of(changed)[target])
            np.testing.assert_allclose(found[name][i], spearmanr(sums, drops).statistic, atol=1e-12)


def test_cells_are_even_and_equal_where_the_side_allows(network: nn.Module, examples: Examples) -> None:
    from backlit.metrics.cells import cells_of

    assert torch.equal(cells_of(8, 8, 4).flatten().bincount(), torch.full((16,), 4))
    sizes = cells_of(14, 18, 4).flatten().bincount()
    assert len(sizes) == 16
    assert int(sizes.min()) == 3 * 4
    assert int(sizes.max()) == 4 * 5


def linear(examples: Examples) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 5)).double().eval()


def test_the_map_of_a_linear_network_is_perfect_and_its_negative_the_worst(examples: Examples) -> None:
    network = linear(examples)
    perfect = GradientXInput(network)(examples.inputs, examples.target).values
    for metric in (SingleDeletion(), SensitivityN(subsets=20, percentages=(5, 50))):
        scores = metric(network, examples, {"a": perfect, "b": -perfect, "c": perfect * 1e3 + 0})
        np.testing.assert_allclose(scores.values["a"], 1, atol=1e-6)
        np.testing.assert_allclose(scores.values["b"], -1, atol=1e-6)
        np.testing.assert_allclose(scores.values["c"], 1, atol=1e-6)


def test_sensitivity_n_equals_the_protocol(network: nn.Module, examples: Examples, logits_of) -> None:
    """The sets are read off the images that the network meets."""
    maps = {"a": distinct((4, 1, SIDE, SIDE), 1), "b": distinct((4, 3, SIDE, SIDE), 2)}
    seen: list[Tensor] = []

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return network(x)

    metric = SensitivityN(percentages=(10, 60), subsets=12, chunk=7)
    scores = metric(Seen().eval(), examples, maps)
    images = torch.cat(seen)
    for i in range(4):
        x, target = examples.inputs[i], int(examples.target[i])
        own = logits_of(x.numpy())[target]
        kept = (images == x) | (images == 0)
        mine = images[kept.all(3).all(2).all(1) & (images != x).any(3).any(2).any(1)]
        assert len(mine) == 24
        expected: dict[str, list[float]] = {name: [] for name in maps}
        for size, block in zip((round(0.1 * SIDE**2), round(0.6 * SIDE**2)), mine.split(12), strict=True):
            sets = [(image != x).any(0) for image in block]
            assert [int(s.sum()) for s in sets] == [size] * 12
            assert len({tuple(s.flatten().tolist()) for s in sets}) == 12
            drops = [own - logits_of(image.numpy())[target] for image in block]
            for name, given in maps.items():
                expected[name].append(pearsonr([float(given[i].sum(0)[s].sum()) for s in sets], drops).statistic)
        for name in maps:
            np.testing.assert_allclose(scores.curves[name][i], expected[name], atol=1e-9)
            np.testing.assert_allclose(scores.values[name][i], np.mean(expected[name]), atol=1e-9)


def coloured(n: int, side: int) -> Examples:
    """Images of a few areas, so that superpixels are several and not equally many."""
    low = distinct((n, 3, 4, 4), 8)
    x = nn.functional.interpolate(low, (side, side), mode="bilinear").float().double()
    return Examples(x, torch.arange(n) % 5)


def test_irof_equals_the_protocol(network: nn.Module, logits_of) -> None:
    from skimage.segmentation import slic

    examples = coloured(4, 26)
    maps = {"a": distinct((4, 3, 26, 26), 1), "b": distinct((4, 1, 26, 26), 2)}
    found = IROF(segments=12)(network, examples, maps).values
    numbers = set()
    for i in range(4):
        image, target = examples.inputs[i].numpy(), int(examples.target[i])
        unit = (image - image.min()) / (image.max() - image.min())
        labels = slic(unit.transpose(1, 2, 0), 12, 10.0, start_label=0, channel_axis=-1)
        pieces = sorted(set(labels.flatten()))
        numbers.add(len(pieces))
        for name, given in maps.items():
            heat = given[i].sum(0).numpy()
            order = sorted(pieces, key=lambda k: -heat[labels == k].mean())
            changed, curve = image.copy(), [1.0]
            for k in order:
                changed[:, labels == k] = image.mean((1, 2))[:, None]
                curve.append(softmax(logits_of(changed))[target] / softmax(logits_of(image))[target])
            area = sum((a + b) / 2 for a, b in pairwise(curve)) / len(order)
            np.testing.assert_allclose(found[name][i], 1 - area, atol=1e-6)
    assert len(numbers) > 1  # images with different numbers of superpixels


def test_equal_superpixels_are_drawn_and_all_maps_of_an_image_meet_the_same_draw(network: nn.Module) -> None:
    examples, zero = coloured(4, 26), torch.zeros(4, 1, 26, 26, dtype=torch.float64)
    first = IROF(segments=9)(network, examples, {"a": zero, "b": zero + 0.1})
    np.testing.assert_array_equal(first.values["a"], first.values["b"])
    other = IROF(segments=9, seed=1)(network, examples, {"a": zero}).values["a"]
    assert (other != first.values["a"]).any()


@pytest.mark.parametrize("metric", [SingleDeletion(), SensitivityN(subsets=5, percentages=(10,))], ids=lambda m: m.name)
def test_a_constant_map_has_no_order(metric, network: nn.Module, examples: Examples) -> None:
    heat = distinct((4, 1, SIDE, SIDE), 1)
    heat[1], heat[2] = 0, 0.1
    scores = metric(network, examples, {"a": heat})
    assert np.isnan(scores.values["a"]).tolist() == [False, True, True, False]
    assert "2 maps not scored: all pixels are equal" in scores.remarks


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (SingleDeletion(), "1 images not scored: the network's output is not finite"),
        (
            SensitivityN(subsets=5, percentages=(10,)),
            "1 maps not scored: the sums or the logits of some sets are all equal, or not finite",
        ),
        (IROF(segments=9), "1 images not scored: their probability is 0, or not finite"),
    ],
    ids=lambda v: v.name if not isinstance(v, str) else "",
)
def test_a_network_that_gives_no_number_is_counted(metric, said: str, network: nn.Module) -> None:
    examples = coloured(4, 26)
    scores = metric(Broken(network, examples.inputs[2]).eval(), examples, {"a": distinct((4, 1, 26, 26), 1)})
    assert np.isnan(scores.values["a"]).tolist() == [False, False, True, False]
    assert said in scores.remarks


def test_a_network_that_does_not_look_has_no_order() -> None:
    blind = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 5)).double().eval()
    blind[1].weight.data.zero_()
    examples = Examples(distinct((2, 3, SIDE, SIDE), 0), torch.tensor([0, 1]))
    scores = SingleDeletion()(blind, examples, {"a": distinct((2, 1, SIDE, SIDE), 1)})
    assert np.isnan(scores.values["a"]).all()
    assert "2 images not scored: no cell changes the logit" in scores.remarks


def test_bad_options_are_refused(network: nn.Module, examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    heat = {"a": distinct((4, 1, SIDE, SIDE), 1)}
    with pytest.raises(InputError, match=r"cells must be at most 14 for images of 14x14 pixels, but is 15. Use fewer"):
        SingleDeletion(cells=15)(network, examples, heat)
    with pytest.raises(InputError, match=r"cells must be an integer from 2, but is 1"):
        SingleDeletion(cells=1)
    with pytest.raises(InputError, match=r"percentages must be numbers above 0 and below 100"):
        SensitivityN(percentages=(0, 5))
    with pytest.raises(InputError, match=r"subsets must be an integer from 3 .* but is 2"):
        SensitivityN(subsets=2)
    with pytest.raises(
        InputError, match=r"segments must be at most 196, the pixels of an image, but is 197. Use fewer"
    ):
        IROF(segments=197)(network, examples, heat)
    with pytest.raises(InputError, match=r"activation must be 'softmax' or 'sigmoid'"):
        IROF(activation="none")  # type: ignore[arg-type]
    beyond = replace(examples, target=examples.target + 9, labels=None)
    for metric in (SingleDeletion(), SensitivityN(), IROF(segments=9)):
        with pytest.raises(InputError, match=r"target must be a class index from 0 to 4"):
            metric(network, beyond, heat)
    monkeypatch.setattr("backlit.metrics.irof.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs scikit-image, which is not installed: pip install 'backlit\[regions\]'"
    ):
        IROF()(network, examples, heat)
