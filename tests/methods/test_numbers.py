"""Numbers of options: whole ones are whole, finite ones finite, and what would not end is refused; for methods and metrics alike."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backlit import DMBP, LPR, InputError
from backlit.methods import BASELINES, METHODS, Random
from backlit.methods.base import NO_NETWORK
from backlit.metrics import METRICS, Deletion, Examples, Infidelity, Insertion, LeRF5, MaxSensitivity, MoRF5
from backlit.metrics.statistics import estimate, mean, mean_band

FIELDS: dict[str, Any] = {kind.name: kind for kind in (*METHODS, *BASELINES, *METRICS)}
OPTIONS: dict[str, Any] = {
    **{kind.name: partial(kind, NO_NETWORK) for kind in (*METHODS, *BASELINES)},
    **{kind.name: kind for kind in METRICS},
}
TYPES = [(name, f.name, str(f.type)) for name, kind in FIELDS.items() for f in fields(kind) if f.init]
WHOLE = [(name, option) for name, option, of in TYPES if of.startswith("int")]
REAL = [(name, option) for name, option, of in TYPES if of.startswith("float")]
TRUTH = [(name, option) for name, option, of in TYPES if of == "bool"]
STEPS = {("dmbp", "steps"), ("lpr", "steps")}
LEAST = {
    ("efficient_mprt", "bins"): [2, 3],
    ("idsds", "cells"): [2, 3],
    ("irof", "segments"): [2, 3],
    ("sensitivity_n", "subsets"): [3, 4],
}
NO_NUMBER: list[Any] = ["3", "nan", [3], (), {}, 1j, torch.tensor(3), np.float64("nan"), object(), b"3"]


def test_the_lists_hold_what_they_should() -> None:
    assert {("dmbp", "steps"), ("random", "seed"), ("insertion", "chunk"), ("tr_gbp", "contrast")} <= set(WHOLE)
    assert {("dmbp", "lr"), ("lrp", "epsilon"), ("insertion", "fraction"), ("infidelity", "noise")} <= set(REAL)
    assert {("lpr", "reference"), ("dmbp", "compile"), ("tr_gbp", "fold")} <= set(TRUTH)


@pytest.mark.parametrize(("kind", "option"), WHOLE)
def test_whole_numbers(kind: str, option: str) -> None:
    for value in [*NO_NUMBER, True, False, 1.5, 3.0, math.nan, math.inf, 2**70, -(2**70)]:
        if option not in ("seed", "samples") and (kind, option) not in STEPS and type(value) is int and value > 0:
            continue  # no more than there are images, pixels, layers or classes
        with pytest.raises(InputError, match=f"^{option} must be "):
            OPTIONS[kind](**{option: value})
    allowed = {"seed": [0, -1, -(2**63), 2**64 - 1], "blur_size": [1, 3]}.get(option, LEAST.get((kind, option), [1, 2]))
    beside = {"steps": None} if option == "pixels_per_step" else {}  # which say the same
    for value in allowed:
        assert getattr(OPTIONS[kind](**{option: value, **beside}), option) == value
    if option not in ("seed",):
        for value in (0, -1):
            with pytest.raises(InputError, match=f"^{option} must be "):
                OPTIONS[kind](**{option: value, **beside})


@pytest.mark.parametrize(("kind", "option"), REAL)
def test_real_numbers(kind: str, option: str) -> None:
    other = {"gamma": {"preset": "epsilon_gamma_box"}}.get(option, {}) if kind == "lrp" else {}
    for value in [*NO_NUMBER, True, math.nan, math.inf, -math.inf, 10**400]:
        with pytest.raises(InputError, match=f"^{option} must be "):
            OPTIONS[kind](**{option: value, **other})
    assert getattr(OPTIONS[kind](**{option: 0.5, **other}), option) == 0.5


@pytest.mark.parametrize(("kind", "option"), TRUTH)
def test_truth_values(kind: str, option: str) -> None:
    for value in ["True", 1, 0, None, [], 0.0]:
        with pytest.raises(InputError, match=f"^{option} must be "):
            OPTIONS[kind](**{option: value})
    for value in (True, False):
        assert getattr(OPTIONS[kind](**{option: value}), option) is value


@pytest.mark.parametrize("kind", [DMBP, LPR])
def test_steps_that_would_not_end_are_refused(kind: type) -> None:
    for steps in (10**9, 1_000_001):
        with pytest.raises(InputError, match=r"steps must be a positive integer up to 1,000,000, but is 1"):
            kind(NO_NETWORK, steps=steps)
    assert kind(NO_NETWORK, steps=1_000_000).steps == 1_000_000


@pytest.mark.parametrize("kind", [MaxSensitivity, Infidelity])
def test_samples_that_would_not_end_are_refused(kind: type) -> None:
    with pytest.raises(InputError, match=r"samples must be a positive integer up to 1,000,000"):
        kind(samples=10**9)


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)


X = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(0)) + 0.5
EXAMPLES = Examples(X, torch.tensor([0, 0]))
FLAT: dict[str, Any] = {"replacement": "zero"}


@pytest.mark.parametrize("kind", [Insertion, Deletion, MoRF5, LeRF5])
@pytest.mark.parametrize("steps", [10**9, 10**18, 31])
def test_no_more_steps_than_pixels(kind: type, steps: int) -> None:
    pixels = 2 if kind in (MoRF5, LeRF5) else 30  # 5 % of 30 pixels, rounded
    maps = {"a": torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(1))}
    found = kind(steps=steps, **FLAT)(Mean(), EXAMPLES, maps)
    exact = kind(steps=pixels, **FLAT)(Mean(), EXAMPLES, maps)
    assert found.curves["a"].shape == (2, pixels + 1)
    np.testing.assert_array_equal(found.curves["a"], exact.curves["a"])
    np.testing.assert_array_equal(found.values["a"], exact.values["a"])
    np.testing.assert_array_equal(found.positions, exact.positions)
    assert f"{pixels} steps of one pixel, of steps={steps:,}: there are no more pixels to change" in found.remarks
    assert not exact.remarks or "steps" not in " ".join(exact.remarks)


def test_seeds_as_torch_takes_them_run_everywhere() -> None:
    for seed in (-1, -(2**63), 2**64 - 1):
        assert Random(Mean(), seed=seed).attribute(X, 0).isfinite().all()
        assert np.isfinite(estimate(np.arange(20.0), None, mean, seed=seed).low)
        assert np.isfinite(mean_band(np.ones((20, 3)), seed=seed)[1]).all()
        found = Insertion(steps=3, seed=seed, **FLAT)(Mean(), EXAMPLES, {"a": X})
        assert np.isfinite(found.estimate("a").value)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)).eval()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) ** 2
    one, other = (DMBP(model, steps=2, init="normal", seed=seed).attribute(X, 0) for seed in (-1, 2))
    assert not torch.equal(one, other)
