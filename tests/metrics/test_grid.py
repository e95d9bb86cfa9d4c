"""DiFull, the rule for empty maps, and AggAtt, against slow selves."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import _oracles as slow
import backlit
from backlit import InputError
from backlit.methods import METHODS, Method
from backlit.methods.blind import Constant, Random
from backlit.metrics import DiFull, Examples, GridPointingGame
from backlit.metrics.aggregate import EDGES, aggregated
from backlit.report.aggregate import aggatt


class Half(nn.Module):
    """The network on a part of the image."""

    def __init__(self, network: nn.Module, cell: list[int]) -> None:
        super().__init__()
        self.network, self.cell = network, cell

    def forward(self, x: Tensor) -> Tensor:
        x0, y0, x1, y1 = self.cell
        return self.network(x[:, :, y0:y1, x0:x1])


def test_difull_explains_a_network_that_sees_the_targets_cell(network: nn.Module, examples: Examples) -> None:
    kinds: tuple[type[Method], ...] = (backlit.GradientXInput, backlit.Occlusion, backlit.LRP, Random)
    options: dict[str, Any] = {"occlusion": {"window": 3, "stride": 2}, "lrp": {"preset": "epsilon"}}
    methods = {k.name: k(network, **options.get(k.name, {})) for k in kinds}
    maps = {name: m(examples.inputs, examples.target) for name, m in methods.items()}
    before = list(vars(network))
    found = DiFull()(network, examples, maps, methods)
    assert list(vars(network)) == before
    assert examples.cells is not None
    for name, kind in zip(methods, kinds, strict=True):
        for i in range(4):
            cell = [int(edge) for edge in examples.cells[i]]
            half = kind(Half(copy.deepcopy(network), cell).eval(), **options.get(name, {}))
            heat = half.attribute(examples.inputs[i : i + 1], examples.target[i : i + 1]).sum(1)[0]
            expected = slow.positive_share(heat.numpy(), [cell]) if bool((heat > 0).any()) else 0.25
            assert found.values[name][i] == pytest.approx(expected, rel=1e-9), name
    # What follows the gradient cannot leave the cell; noise can.
    assert found.values["gradient_x_input"].min() == 1.0
    assert found.values["random"].max() < 0.5


def test_difull_is_not_the_grid_pointing_game(network: nn.Module, examples: Examples) -> None:
    methods = {"a": backlit.GradientXInput(network)}
    maps = {"a": methods["a"](examples.inputs, examples.target)}
    assert GridPointingGame()(network, examples, maps).values["a"].max() < 0.9
    assert DiFull()(network, examples, maps, methods).values["a"].min() == 1.0


def test_difull_keeps_the_paths_of_modules(network: nn.Module, examples: Examples) -> None:
    half = backlit.GradientXInput(network, rules={"relu": None})
    maps = {"a": half(examples.inputs, examples.target)}
    found = DiFull()(network, examples, maps, {"a": half})
    assert np.isfinite(found.values["a"]).all()


@pytest.mark.parametrize("kind", [backlit.GradCAM, backlit.FullGrad, backlit.TRGBP], ids=lambda k: k.name)
def test_difull_refuses_maps_of_inner_layers(kind: type[Method], network: nn.Module, examples: Examples) -> None:
    method = kind(network)
    maps = {"cam": method(examples.inputs, examples.target)}
    with pytest.raises(
        InputError, match=r"methods\['cam'\] must not be .* for DiFull: it lays a map of an inner layer over"
    ):
        DiFull()(network, examples, maps, {"cam": method})


def test_the_methods_that_lay_an_inner_map_over_the_image() -> None:
    assert {m.name for m in METHODS if m.reads_map} == {
        *("fullgrad", "bbp", "tr_gbp", "mip_in", "cam", "score_cam", "cameras", "pfv", "norm_grad"),
        *("grad_cam", "guided_grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam"),
        *("attention_rollout", "gradient_rollout", "legrad"),
    }
    cam, free = backlit.GradCAM, backlit.Gradient
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert [backlit.SmoothGrad(model, of=m).reads_map for m in (cam, free)] == [True, False]


def test_a_map_without_positive_relevance_gets_chance_or_zero(network: nn.Module, examples: Examples) -> None:
    heat = slow.distinct((4, 1, 14, 14), 1)
    heat[1] = 0
    heat[2] = -heat[2].abs()
    chance, zero = (GridPointingGame(empty=e)(network, examples, {"a": heat}) for e in ("chance", "zero"))
    assert chance.values["a"][1:3].tolist() == [0.25, 0.25]
    assert zero.values["a"][1:3].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(chance.values["a"][[0, 3]], zero.values["a"][[0, 3]])
    assert chance.remarks == ("2 maps of a without positive relevance: scored as a constant map is",)
    assert zero.remarks == ("2 maps of a without positive relevance: scored 0",)
    assert zero.protocol.title == "Grid pointing game (empty=zero)"
    with pytest.raises(InputError, match="empty must be 'chance' or 'zero', but is 'one'"):
        GridPointingGame(empty="one")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mosaic() -> Examples:
    x = torch.randn(220, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    cells = torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8]]).repeat(110, 1)
    return Examples(x, torch.zeros(220, dtype=torch.int64), cells=cells)


@pytest.mark.parametrize("cell", [0, 1])
def test_aggatt_is_the_mean_of_sorted_maps(cell: int, mosaic: Examples) -> None:
    heat = slow.distinct((220, 2, 8, 8), 4)
    heat[40:60] = 0  # equal shares
    heat[100:110] *= 0
    heat[100:110, :, 0, 0] = torch.arange(1.0, 11.0, dtype=torch.float64)[:, None]  # all inside, by how much
    edges = (0.0, 0.02, 0.05, 0.5, 0.95, 0.98, 1.0)
    found = aggregated(heat, mosaic, cell=cell, edges=edges)
    box = [0, 0, 4, 4] if cell == 0 else [4, 4, 8, 8]
    rows = []
    for i in range(cell, 220, 2):
        plane = heat[i].numpy().sum(0)
        positive = plane.clip(min=0)
        inside = positive[box[1] : box[3], box[0] : box[2]].sum()
        share = slow.positive_share(plane, [box]) if positive.sum() else 0.25
        rows.append((share, inside, -i, positive))
    rows.sort(key=lambda row: row[:3], reverse=True)
    for j in range(6):
        some = rows[round(edges[j] * 110) : round(edges[j + 1] * 110)]
        np.testing.assert_allclose(found.maps[j].numpy(), np.mean([r[3] for r in some], 0), rtol=1e-12)
        assert found.scores[j] == pytest.approx(np.mean([r[0] for r in some]))
        assert found.images[j] == len(some)
    assert sum(found.images) == 110
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert found.cell == tuple(box)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": (0, 0.5)}, r"edges must ascend from 0 to 1, but are \[0, 0.5\]"),
        ({"cell": 2}, "cell must be from 0 to 1, the cells that hold a target, but is 2"),
        ({"edges": (0, 0.001, 1)}, "edges leave a bin without an image: 110 mosaics .* the smallest bin holds 0.1%"),
    ],
)
def test_bins_that_cannot_be_are_refused(changes: dict[str, Any], message: str, mosaic: Examples) -> None:
    with pytest.raises(InputError, match=message):
        aggregated(slow.distinct((220, 1, 8, 8), 4), mosaic, **changes)
    with pytest.raises(InputError, match="examples must be mosaics with the target's cells"):
        aggregated(slow.distinct((220, 1, 8, 8), 4), Examples(mosaic.inputs, mosaic.target))


def test_the_picture_has_a_column_a_bin_and_frames_the_cell(mosaic: Examples) -> None:
    one = aggregated(Constant(nn.Flatten()).drawn(mosaic.inputs), mosaic, cell=1)
    picture = aggatt({"constant": one, "again": one})
    assert picture.shape[1] == 2 * 16 + 6 * 160 + 5 * 12
    assert len(EDGES) == 7
    assert picture.dtype == np.uint8
    left, top = 16 + 80, 16 + 18 + 80  # the upper left corner of the lower right cell
    assert picture[top + 40, left].tolist() == [22, 104, 214]
    assert picture[top + 40, left - 80].tolist() != [22, 104, 214]
