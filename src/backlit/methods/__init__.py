"""The methods, in the one tuple that drives the command line, the docs and the property tests."""

from backlit.methods.base import Method, Options
from backlit.methods.cam import GradCAM, GuidedGradCAM
from backlit.methods.dmbp import DMBP
from backlit.methods.gradient import Deconvnet, Gradient, GradientXInput, GuidedBackprop, Saliency
from backlit.methods.lpr import LPR
from backlit.methods.random import Random

METHODS: tuple[type[Method], ...] = (
    Saliency,
    Gradient,
    GradientXInput,
    Deconvnet,
    GuidedBackprop,
    GradCAM,
    GuidedGradCAM,
    DMBP,
    LPR,
)
BASELINES: tuple[type[Method], ...] = (Random,)
"""What a comparison may add, though nobody would explain with it."""

__all__ = [
    "BASELINES",
    "DMBP",
    "LPR",
    "METHODS",
    "Deconvnet",
    "GradCAM",
    "Gradient",
    "GradientXInput",
    "GuidedBackprop",
    "GuidedGradCAM",
    "Method",
    "Options",
    "Random",
    "Saliency",
]
