"""LPR against the paper written out by hand, its second-order path, its options, and bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import backlit
from _lpr_oracle import Oracle, Small
from backlit.capture import propagate
from backlit.methods.lpr import LPROptions, Learning, Plugins, smoothed

TARGETS = [1, 4, 2]


@pytest.fixture(scope="module")
def net() -> Small:
    torch.manual_seed(0)
    return Small().double().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


VARIANTS = [
    *(
        {"reading": r, "reference": ref}
        for r in ("gradient", "gated", "multiplier", "features")
        for ref in (True, False)
    ),
    {"plugin": "channel"},
    {"plugin": "channel", "reading": "gated"},
    {"sign_aware": False},
    {"mask": "gaussian"},
    {"mask": "gaussian", "sigma": 0.7, "sign_aware": False},
    {"score": "probability"},
    {"alpha": 0.6, "beta": 0.4, "gamma": 4.0, "lam": 0.7, "lr": 0.05, "init": 0.5},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_it_is_the_papers_algorithm(net: Small, x: Tensor, options: dict) -> None:
    found = backlit.LPR(net, steps=4, **{"lr": 0.2, **options})(x, TARGETS)
    for i, target in enumerate(TARGETS):
        oracle = Oracle(net, x[i : i + 1], target, steps=4, **options)
        expected = oracle.run()
        torch.testing.assert_close(found.values[i : i + 1], expected, rtol=1e-6, atol=1e-9)
        curve = torch.stack([found.trajectory[k][:, i] for k in ("loss", "positive", "negative", "mask")], 1)
        torch.testing.assert_close(curve, torch.tensor(oracle.curve, dtype=torch.float64), rtol=1e-6, atol=1e-9)
        masks = oracle.masks(expected)
        names = ("mask_positive", "mask_negative") if options.get("sign_aware", True) else ("mask_positive",)
        assert tuple(found.parts) == names
        for name, mask in zip(names, masks, strict=False):
            torch.testing.assert_close(found.parts[name][i : i + 1], mask, rtol=1e-6, atol=1e-7)
