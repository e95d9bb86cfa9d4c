"""Backward networks and patterns: what a method learns from data about one network, and the file that keeps it."""

from backlit.inverse.artefact import Fitted
from backlit.inverse.fit import FitOptions, InverseNetwork, fit_inverse
from backlit.inverse.fitting import FitStep
from backlit.inverse.gaussians import GaussianOptions, PatchGaussians, fit_gaussians
from backlit.inverse.patterns import PatternOptions, Patterns, fit_patterns
from backlit.inverse.selector import Selector, SelectorOptions, fit_selector

__all__ = [
    "FitOptions",
    "FitStep",
    "Fitted",
    "GaussianOptions",
    "InverseNetwork",
    "PatchGaussians",
    "PatternOptions",
    "Patterns",
    "Selector",
    "SelectorOptions",
    "fit_gaussians",
    "fit_inverse",
    "fit_patterns",
    "fit_selector",
]
