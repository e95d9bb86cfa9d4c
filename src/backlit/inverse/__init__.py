"""Backward networks and patterns: what a method learns from data about one network, and the file that keeps it."""

from backlit.inverse.artefact import Fitted
from backlit.inverse.fit import FitOptions, FitStep, InverseNetwork, fit_inverse

__all__ = ["FitOptions", "FitStep", "Fitted", "InverseNetwork", "fit_inverse"]
