"""Protocols that score maps, in the one tuple that drives the command line, the docs and the property tests."""

from backlit.metrics.base import Metric, MetricOptions, Protocol, Scores
from backlit.metrics.examples import Examples

__all__ = ["Examples", "Metric", "MetricOptions", "Protocol", "Scores"]
