"""Average drop, increase and gain, against a pass for each image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from _oracles import distinct, softmax
from backlit import GradientXInput, InputError, Saliency
from backlit.metrics import AverageDrop, AverageGain, AverageIncrease, Examples

SIDE = 14
METRICS = (AverageDrop, AverageIncrease, AverageGain)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_equal_to_the_definitions(activation: str, rectify: bool, network: nn.Module, examples: Examples) -> None:
    maps = {"a": distinct((4, 1, SIDE, SIDE), 1), "b": distinct((4, 3, SIDE, SIDE), 2).abs()}
    against = GradientXInput(network)(examples.inputs, examples.target).heatmap("sum")
    maps["c"] = (
        against > against.flatten(1).quantile(0.05, 1).view(4, 1, 1, 1)
    ).double()  # hides what speaks against it
    probability = softmax if activation == "softmax" else sigmoid
    found = {kind: kind(activation=activation, rectify=rectify)(network, examples, maps).values for kind in METRICS}
    seen = set()
    for name, given in maps.items():
        for i in range(4):
            heat = given[i].sum(0).numpy()
            heat = np.maximum(heat, 0) if rectify else heat
            mask = (heat - heat.min()) / (heat.max() - heat.min())
            image = examples.inputs[i].numpy()
            with torch.no_grad():
                logits = [network(torch.from_numpy(x)[None])[0].numpy() for x in (image, image * mask)]
            before, after = (probability(v)[int(examples.target[i])] for v in logits)
            seen.add(bool(after > before))
            for kind, expected in (
                (AverageDrop, max(0, before - after) / before),
                (AverageIncrease, float(after > before)),
                (AverageGain, max(0, after - before) / (1 - before)),
            ):
                np.testing.assert_allclose(found[kind][name][i], expected, rtol=1e-10, atol=1e-14)
    assert seen == {True, False}  # both sides of the clamps


@pytest.mark.parametrize("kind", METRICS, ids=lambda m: m.name)
def test_negative_values_hide_as_zero_does_where_they_are_rectified(
    kind, network: nn.Module, examples: Examples
) -> None:
    heat = distinct((4, 1, SIDE, SIDE), 1)
    heat[3] = -heat[3].abs()
    scores = kind()(network, examples, {"a": heat})
    np.testing.assert_array_equal(scores.values["a"], kind()(network, examples, {"a": heat.clamp(min=0)}).values["a"])
    assert np.isnan(scores.values["a"]).tolist() == [False, False, False, True]
    other = AverageDrop(rectify=False)(network, examples, {"a": heat}).values["a"]
    assert (other != AverageDrop()(network, examples, {"a": heat}).values["a"]).all()


@pytest.mark.parametrize("kind", METRICS, ids=lambda m: m.name)
def test_a_constant_map_makes_no_mask(kind, network: nn.Module, examples: Examples) -> None:
    heat = distinct((4, 1, SIDE, SIDE), 1)
    heat[1], heat[3] = 0, 2.5
    scores = kind()(network, examples, {"a": heat})
    assert np.isnan(scores.values["a"]).tolist() == [False, True, False, True]
    assert "2 maps not scored: all pixels are equal, which makes no mask" in scores.remarks


@pytest.mark.parametrize("kind", METRICS, ids=lambda m: m.name)
def test_a_network_that_gives_no_number_is_counted(kind, examples: Examples) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = x.mean((2, 3)) * torch.tensor([9.0, 0, -9])
            return torch.where(
                x.new_tensor([True] * len(x))[:, None] * (x[:, :1, 0, 0] == examples.inputs[2, 0, 0, 0]) > 0,
                torch.nan,
                logits,
            )

    scores = kind()(Broken().eval(), replace(examples, labels=None), {"a": distinct((4, 1, SIDE, SIDE), 1)})
    assert np.isnan(scores.values["a"]).tolist() == [False, False, True, False]
    assert "1 maps not scored: the image's probability is 0, or not finite" in scores.remarks


def test_they_ask_for_maps_of_the_prediction(network: nn.Module, examples: Examples) -> None:
    other = replace(examples, target=(examples.target + 1) % 5, labels=None)
    given = Saliency(network)(examples.inputs, other.target)
    with pytest.raises(InputError, match=r"maps\['a'\] must explain the classes that the network predicts"):
        AverageDrop()(network, other, {"a": given})
    with pytest.raises(InputError, match=r"rectify must be True or False, but is 1"):
        AverageDrop(rectify=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"activation must be 'softmax' or 'sigmoid', but is 'relu'"):
        AverageGain(activation="relu")  # type: ignore[arg-type]
