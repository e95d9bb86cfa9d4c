"""Boxes, borders and cells: against slow counting, and what a map of equal values gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import _oracles as slow
from backlit import InputError
from backlit.metrics import (
    BoundaryAUC,
    BoundaryDependence,
    BoxAccuracy,
    EnergyPointingGame,
    Examples,
    GridPointingGame,
    PointingGame,
)
from backlit.metrics.examples import inside


@pytest.fixture(scope="module")
def heat() -> Tensor:
    return slow.distinct((4, 3, 14, 14), 11)


def test_every_box_metric_equals_slow_counting(network: nn.Module, examples: Examples, heat: Tensor) -> None:
    energy = EnergyPointingGame(largest=1, one_box=False)(network, examples, {"a": heat}).values["a"]
    pointing = PointingGame(tolerance=1.5)(network, examples, {"a": heat}).values["a"]
    accuracy = BoxAccuracy(largest=1)(network, examples, {"a": heat}).values["a"]
    assert examples.boxes is not None
    hits = []
    for i in (0, 1, 3):
        boxes, one = examples.boxes[i].tolist(), heat[i].sum(0).numpy()
        np.testing.assert_allclose(energy[i], slow.positive_share(one, boxes))
        np.testing.assert_allclose(accuracy[i], slow.box_accuracy(one, boxes))
        hits.append(slow.pointing_hit(one, boxes, 1.5))
        assert pointing[i] == hits[-1]
    assert np.isnan([energy[2], pointing[2], accuracy[2]]).all()


def test_the_maximum_may_miss_the_box_by_the_tolerance(network: nn.Module) -> None:
    x = torch.zeros(1, 3, 14, 14, dtype=torch.float64)
    examples = Examples(x, torch.tensor([0]), boxes=[torch.tensor([[0.0, 0, 4, 4]])])
    for row, column, expected in ((3, 3, 1.0), (3, 7, 0.0), (3, 6, 1.0), (6, 6, 0.0), (5, 5, 1.0)):
        heat = torch.zeros(1, 1, 14, 14)
        heat[0, 0, row, column] = 1
        found = PointingGame(tolerance=2.5)(network, examples, {"a": heat}).values["a"][0]
        assert found == expected, (row, column)  # from (6.5, 6.5) it is 3.54 to the box's corner, from (5.5, 5.5) 2.12
    assert PointingGame().tolerance == 15


def test_the_papers_choose_their_images(network: nn.Module, examples: Examples, heat: Tensor) -> None:
    energy = EnergyPointingGame()(network, examples, {"a": heat})
    assert np.isfinite(energy.values["a"]).tolist() == [True, False, False, False]
    assert energy.remarks == (
        "1 images not scored: they have no box",
        "1 images not scored: they have several boxes",
        "1 images not scored: the box covers 50% of the image or more",
    )
    accuracy = BoxAccuracy()(network, examples, {"a": heat})
    assert np.isfinite(accuracy.values["a"]).tolist() == [True, True, False, False]  # the second's boxes cover 22 %
    assert accuracy.remarks == (
        "1 images not scored: they have no box",
        "1 images not scored: the box covers 33% of the image or more",
    )
    whole = Examples(examples.inputs, examples.target, boxes=[torch.tensor([[0.0, 0, 14, 14]])] * 4)
    assert PointingGame()(network, whole, {"a": heat}).values["a"].tolist() == [1.0] * 4


def test_a_constant_map_scores_as_a_random_one_does(network: nn.Module, examples: Examples) -> None:
    assert examples.boxes is not None
    share = np.array([float(inside(b, 14, 14).double().mean()) for b in examples.boxes])[[0, 1, 3]]
    for value in (0.0, 2.5, -1.0):
        flat = torch.full((4, 1, 14, 14), value, dtype=torch.float64)
        for metric in (PointingGame(tolerance=0), BoxAccuracy(largest=1), EnergyPointingGame(largest=1, one_box=False)):
            found = metric(network, examples, {"flat": flat}).values["flat"][[0, 1, 3]]
            np.testing.assert_allclose(found, share, err_msg=f"{metric.name} of {value}")
    found = EnergyPointingGame(largest=1)(network, examples, {"flat": torch.zeros(4, 1, 14, 14)})
    assert "4 maps of flat without positive relevance: scored as a constant map is" in found.remarks


def test_equal_values_at_the_cut_count_by_their_share(network: nn.Module) -> None:
    x = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    examples = Examples(x, torch.tensor([0]), boxes=[torch.tensor([[0.0, 0, 2, 2]])])
    heat = torch.zeros(1, 1, 4, 4)
    heat[0, 0, 0, 0] = heat[0, 0, 3, 3] = 2
    heat[0, 0, 0, 1] = heat[0, 0, 1, 3] = heat[0, 0, 2, 3] = 1  # two of these three make the four, one lies inside
    found = BoxAccuracy(largest=1)(network, examples, {"a": heat}).values["a"][0]
    assert found == pytest.approx((1 + 2 / 3) / 4)


def test_cells_and_borders_equal_slow_counting(network: nn.Module, examples: Examples, heat: Tensor) -> None:
    grid = GridPointingGame()(network, examples, {"a": heat}).values["a"]
    border = BoundaryDependence(border=3)(network, examples, {"a": heat}).values["a"]
    assert examples.cells is not None
    for i in range(4):
        one = heat[i].sum(0).numpy()
        np.testing.assert_allclose(grid[i], slow.positive_share(one, [examples.cells[i].tolist()]))
        np.testing.assert_allclose(1 - border[i], slow.positive_share(one, [[3, 3, 11, 11]]))


def test_the_oracle_map_of_a_mosaic_gets_one_and_its_opposite_nothing(network: nn.Module, examples: Examples) -> None:
    assert examples.cells is not None
    oracle = torch.stack([inside(c[None], 14, 14) for c in examples.cells])[:, None].double()
    found = GridPointingGame()(network, examples, {"oracle": oracle, "inverted": 1 - oracle, "flat": oracle * 0 + 1})
    assert found.values["oracle"].tolist() == [1] * 4
    assert found.values["inverted"].tolist() == [0] * 4
    np.testing.assert_allclose(found.values["flat"], 0.25)
    assert [name for name, _ in found.ranking()] == ["oracle", "flat", "inverted"]


def test_the_area_under_the_roc_is_that_of_scikit_learn() -> None:
    metric = BoundaryAUC(border=2)
    generator = np.random.default_rng(4)
    share, right = generator.random((3, 41)).round(2), generator.integers(2, size=(3, 41)).astype(float)
    found = metric.statistic(share, right)
    for i in range(3):
        top = share[i] >= np.sort(share[i])[-21]  # all that equal the last of the larger half
        assert found[i] == pytest.approx(roc_auc_score(1 - right[i][top], share[i][top]))


def test_ibd_tells_right_from_wrong_predictions(network: nn.Module) -> None:
    x = slow.distinct((40, 3, 14, 14), 3)
    predicted = network(x).argmax(1)
    wrong = torch.arange(40) % 2 == 0
    examples = Examples(x, torch.where(wrong, (predicted + 1) % 5, predicted))
    border = torch.ones(40, 1, 14, 14)
    border[:, :, 2:-2, 2:-2] = 0
    middle = 1 - border
    heat = torch.where(wrong[:, None, None, None], border + 0.5 * middle, border + middle)
    found = BoundaryAUC(border=2)(network, examples, {"a": heat})
    assert found.groups is not None
    assert (found.groups == (~wrong).numpy()).all()
    assert np.isnan(found.estimate("a").value)  # the larger half are the wrong ones alone
    sure = BoundaryAUC(border=2)(network, Examples(x, predicted), {"a": heat})
    assert sure.remarks[0].startswith(
        "undefined: all 40 predictions are right; it needs images with their ground truth"
    )
    scattered = slow.distinct((40, 1, 14, 14), 5).abs()
    e = BoundaryAUC(border=2)(network, examples, {"a": scattered}).estimate("a")
    assert 0 <= e.low <= e.value <= e.high <= 1


def test_a_border_without_an_inside_is_refused(network: nn.Module, examples: Examples, heat: Tensor) -> None:
    with pytest.raises(InputError, match=r"border must be under half of the image's side \(14 pixels\), but is 16"):
        BoundaryDependence()(network, examples, {"a": heat})


def test_what_the_data_lacks_is_named(network: nn.Module, examples: Examples, heat: Tensor) -> None:
    bare = Examples(examples.inputs, examples.target)
    with pytest.raises(InputError, match=r"Pointing game needs boxes of the target .*VOC and ImageNet"):
        PointingGame()(network, bare, {"a": heat})
    with pytest.raises(
        InputError, match=r"Grid pointing game needs the target's cell of a mosaic .*mosaics makes them"
    ):
        GridPointingGame()(network, bare, {"a": heat})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [torch.tensor([[0.0, 0, 15, 3]])] * 4}, r"boxes of 'a' must lie inside the image of 14 x 14"),
        ({"boxes": [torch.tensor([[5.0, 0, 5, 3]])] * 4}, r"boxes of 'a' must be x0, y0, x1, y1 .* empty"),
        ({"boxes": [torch.tensor([[torch.nan, 0, 5, 3]])] * 4}, r"boxes of 'a' must be x0, y0, x1, y1"),
        ({"boxes": [torch.zeros(0, 4)] * 3}, r"boxes must hold one tensor \(b, 4\) an image \(4\), but hold 3"),
        ({"boxes": [torch.zeros(4)] * 4}, r"boxes of 'a' must have shape \(b, 4\), but have \(4,\)"),
        ({"cells": torch.zeros(3, 4)}, r"cells must have shape \(4, 4\), but have \(3, 4\)"),
        ({"cells": torch.tensor([[0.0, 0, 7, 20]] * 4)}, r"cells of 'a' must lie inside"),
        ({"labels": torch.ones(4, 5)}, r"labels must be bool \(n, k\) with n = 4, but are torch.float32"),
        ({"labels": torch.ones(4, 1, dtype=torch.bool)}, r"target must be among the 1 classes of labels"),
        ({"target": torch.zeros(4)}, r"target must be one class index an image, int64 \(4,\), but is torch.float32"),
        ({"names": ["a", "a", "b", "c"]}, r"names must be 4 different names, one an image, but are 3"),
        ({"inputs": torch.zeros(4, 3, 14, 14, dtype=torch.uint8)}, r"inputs must be at least one normalised image"),
    ],
)  # fmt: skip
def test_examples_that_cannot_be_are_refused(examples: Examples, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Examples(**{**vars(examples), **changes})
