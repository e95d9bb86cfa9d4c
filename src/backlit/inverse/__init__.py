"""Backward networks and patterns: what a method learns from data about one network, and the file that keeps it."""

from backlit.inverse.artefact import Fitted
from backlit.inverse.fit import FitOptions, InverseNetwork, fit_inverse
from backlit.inverse.fitting import FitStep
from backlit.inverse.gaussians import GaussianOptions, PatchGaussians, fit_gaussians
from backlit.inverse.patterns import Patterns, fit_patterns

__all__ = [
    "FitOptions",
    "FitStep",
    "Fitted",
    "GaussianOptions",
    "InverseNetwork",
    "PatchGaussians",
    "Patterns",
    "fit_gaussians",
    "fit_inverse",
    "fit_patterns",
]
