"""Options with which a method runs in a moment: what the tests over all methods run it with. A slow new method is one row."""

from __future__ import annotations

from typing import Any

from backlit.methods import BASELINES, METHODS, Method

EVERYWHERE = tuple(method for method in METHODS + BASELINES if not method.reads_attention)
"""The methods and baselines that take a network without attention."""

QUICK: dict[str, dict[str, Any]] = {
    "dmbp": {"steps": 3, "lr": 0.1},
    "lpr": {"steps": 3, "lr": 0.1},
    "lime": {"samples": 60, "segments": 8},
    "kernel_shap": {"samples": 60, "segments": 8},
    "occlusion": {"stride": 4, "window": 4},
    "rise": {"masks": 64},
    "cameras": {"steps": 2, "largest": 1.5},
    "integrated_gradients": {"steps": 4},
    "expected_gradients": {"samples": 4},
    "blur_ig": {"steps": 5},
    "guided_ig": {"steps": 4},
    "xrai": {"steps": 2, "scales": (250,)},
    "smooth_grad": {"samples": 3},
    "squared_smooth_grad": {"samples": 3},
    "var_grad": {"samples": 3},
    "pda": {"stride": 5, "samples": 2},
    "meaningful_perturbation": {"steps": 3},
    "extremal_perturbation": {"steps": 3, "areas": (0.1, 0.4)},
}
"""By the method's name; one that is not here runs with its defaults."""


def quick(method: type[Method], **more: Any) -> dict[str, Any]:
    """Options of a method that make it quick, and more that are given."""
    return {**QUICK.get(method.name, {}), **more}
