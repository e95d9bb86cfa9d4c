"""The presets of insertion and deletion: RISE's published evaluation written a second time, and what each preset says of itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

import _oracles as slow
from backlit import InputError
from backlit._options import options_of
from backlit.metrics import Deletion, Examples, Insertion
from backlit.metrics.replacement import folded_blur


def rise_kernel(size: int, sigma: float) -> np.ndarray:
    """A single pixel of a window, filtered by scipy, whose window reflects what would leave it."""
    pixel = np.zeros((size, size))
    pixel[size // 2, size // 2] = 1
    return gaussian_filter(pixel, sigma)


def rise_blur(x: np.ndarray, size: int, sigma: float) -> np.ndarray:
    kernel, (c, h, w), margin = rise_kernel(size, sigma), x.shape, size // 2
    out = np.zeros_like(x)
    for r in range(h):
        for q in range(w):
            for i in range(size):
                for j in range(size):
                    y, z = r + i - margin, q + j - margin
                    if 0 <= y < h and 0 <= z < w:
                        out[:, r, q] += kernel[i, j] * x[:, y, z]
    assert c == 3
    return out


def rise_scores(network: nn.Module, x: np.ndarray, heat: np.ndarray, mode: str, step: int) -> list[float]:
    """Probabilities of the predicted class while ``step`` pixels change at a time, most relevant first."""

    def probabilities(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return slow.softmax(network(torch.from_numpy(image)[None])[0].numpy())

    predicted = int(probabilities(x).argmax())
    blurred = rise_blur(x, 11, 5.0)
    start, finish = (blurred.copy(), x) if mode == "ins" else (x.copy(), np.zeros_like(x))
    pixels = heat.size
    order = sorted(range(pixels), key=lambda p: -heat.flat[p])
    scores = []
    for i in range(-(-pixels // step) + 1):
        scores.append(float(probabilities(start)[predicted]))
        for p in order[step * i : step * (i + 1)]:
            start.reshape(3, -1)[:, p] = finish.reshape(3, -1)[:, p]
    return scores


def rise_area(scores: list[float]) -> float:
    return (sum(scores) - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)


@pytest.mark.parametrize(("metric", "mode"), [(Insertion, "ins"), (Deletion, "del")])
def test_rise_is_its_authors_evaluation(metric: Any, mode: str, network: nn.Module, examples: Examples) -> None:
    others = Examples(
        examples.inputs, (network(examples.inputs).argmax(1) + 1) % 5
    )  # of the prediction, whatever the target
    heat = slow.distinct((4, 1, 14, 14), 1)
    scores = metric(preset="rise", pixels_per_step=45)(network, others, {"a": heat})  # 196 pixels: the last step has 16
    for i in range(4):
        expected = rise_scores(network, examples.inputs[i].numpy(), heat[i, 0].numpy(), mode, 45)
        np.testing.assert_allclose(scores.curves["a"][i], expected, rtol=1e-9)
        assert scores.values["a"][i] == pytest.approx(rise_area(expected), rel=1e-9)
    assert scores.positions is not None
    np.testing.assert_allclose(scores.positions, np.array([0, 45, 90, 135, 180, 196]) / 196)
    assert scores.notes == ()


def test_the_folded_blur_is_scipys_kernel() -> None:
    for size, sigma in ((11, 5.0), (7, 1.0), (5, 9.0)):
        x = slow.distinct((1, 3, 9, 12), 3)
        np.testing.assert_allclose(
            folded_blur(x, size, sigma)[0].numpy(), rise_blur(x[0].numpy(), size, sigma), rtol=1e-9
        )
    kernel = rise_kernel(11, 5.0)
    assert 1.06 < kernel.max() / kernel[5].min() < 1.08  # flat to 4 % around its mean, as its docstring says


def test_the_presets_have_the_constants_of_the_published_code() -> None:
    told = {
        (kind.name, name): {k: v for k, v in options_of(kind(preset=name)).items() if v != getattr(kind(), k)}
        for kind in (Insertion, Deletion)
        for name in ("dmbp", "rise", "latec")
    }
    rise = {"preset": "rise", "steps": None, "pixels_per_step": 224, "explains": "prediction"}
    latec = {"preset": "latec", "steps": None, "pixels_per_step": 50, "reduce": "max"}
    assert told == {
        ("insertion", "dmbp"): {},
        ("insertion", "rise"): {**rise, "replacement": "folded_blur", "blur_size": 11, "blur_sigma": 5.0},
        ("insertion", "latec"): {**latec, "blur_size": 15, "blur_sigma": 5.0},
        ("deletion", "dmbp"): {},
        ("deletion", "rise"): rise,
        ("deletion", "latec"): latec,
    }
    assert Deletion(preset="latec").replacement == "zero"
    assert Insertion(preset="rise").steps_on(torch.zeros(1, 3, 224, 224)) == 224


def test_each_option_of_a_preset_can_be_set() -> None:
    own = Insertion(preset="rise", steps=50, blur_size=51, blur_sigma=10.0, replacement="blur", explains="target")
    assert {**options_of(own), "preset": "dmbp"} == options_of(Insertion())
    assert Insertion(preset="rise", pixels_per_step=448).pixels_per_step == 448
    assert options_of(replace(Insertion(preset="latec"), seed=3)) == {
        **options_of(Insertion(preset="latec")),
        "seed": 3,
    }
    with pytest.raises(InputError, match="say the same in two ways, but are 9 and 224"):
        replace(Insertion(preset="rise"), steps=9)


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        (Insertion(), "Insertion (dmbp)"),
        (Insertion(preset="rise"), "Insertion (rise)"),
        (Insertion(preset="rise", reduce="abs", blur_size=51), "Insertion (rise, reduce=abs, blur_size=51)"),
        (Deletion(preset="latec", reduce="sum"), "Deletion (latec, reduce=sum)"),
        # Another preset's name on these options would be a lie.
        (
            replace(Deletion(preset="rise"), preset="dmbp"),
            "Deletion (dmbp, explains=prediction, steps=None, pixels_per_step=224)",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_title_says_the_preset_and_what_differs_from_it(metric: Insertion, title: str) -> None:
    assert metric.protocol.title == title
    assert metric.protocol.options["preset"] == metric.preset
