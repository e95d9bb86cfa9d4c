"""The methods, in the one tuple that drives the command line, the docs and the property tests."""

from backlit.methods.base import Method, Options
from backlit.methods.dmbp import DMBP
from backlit.methods.gradient import Deconvnet, Gradient, GradientXInput, GuidedBackprop, Saliency

METHODS: tuple[type[Method], ...] = (Saliency, Gradient, GradientXInput, Deconvnet, GuidedBackprop, DMBP)

__all__ = [
    "DMBP",
    "METHODS",
    "Deconvnet",
    "Gradient",
    "GradientXInput",
    "GuidedBackprop",
    "Method",
    "Options",
    "Saliency",
]
