"""What a network calls, and how to run it with another backward pass or as the affine map that it is at one input."""

from backlit.capture.canonical import Call
from backlit.capture.freeze import FrozenNetwork, freeze
from backlit.capture.primitives import PRIMITIVES, Primitive, extend, named
from backlit.capture.propagate import Propagation, propagate
from backlit.capture.rule import Rule, RuleLike, Shares, rule
from backlit.capture.sites import Coverage, CoverageRow, Site, Trace
from backlit.capture.taps import Tap, Tapped

__all__ = [
    "PRIMITIVES",
    "Call",
    "Coverage",
    "CoverageRow",
    "FrozenNetwork",
    "Primitive",
    "Propagation",
    "Rule",
    "RuleLike",
    "Shares",
    "Site",
    "Tap",
    "Tapped",
    "Trace",
    "extend",
    "freeze",
    "named",
    "propagate",
    "rule",
]
