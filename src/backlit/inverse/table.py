"""Primitive -> inverse: the one table of what MIP-IN can go back through."""

from __future__ import annotations

from backlit.capture.canonical import Call
from backlit.capture.primitives import named
from backlit.inverse.closed import Closed, averaged_back, kept, moved_back

DENSE = named("dense")
CONVOLUTIONS = named("convolution") - named("transposed")
SUMS = named("adds")
MOVES = named("moves") - named("random", "resamples")  # which change values
_SELECTIONS = named(kind="selection")
_AVERAGES = named("averages", "scales")
_ACTIVATIONS = named(kind="activation") - named("signless")

CLOSED: dict[str, Closed] = {
    **dict.fromkeys((*_ACTIVATIONS, "dropout"), kept),
    **dict.fromkeys(_AVERAGES, averaged_back),
    **dict.fromkeys((*_SELECTIONS, *MOVES), moved_back),
}
"""The inverses that need no data."""

KEEPS_AN_IMAGE = MOVES | named("scales") | {"dropout"}
"""What leaves an image one: the same values elsewhere, or in another unit."""

NAMES = {
    **dict.fromkeys(DENSE, "regression"),
    **dict.fromkeys(CONVOLUTIONS, "transposed convolution"),
    **dict.fromkeys((*MOVES, "dropout"), "moved back"),
    **dict.fromkeys(_ACTIVATIONS, "gate"),
    **dict.fromkeys(_AVERAGES, "averaged back"),
    **dict.fromkeys(_SELECTIONS, "switches"),
}
"""What the coverage of a map calls each."""


def is_split(call: Call) -> bool:
    """Say whether a call adds two signals, so that its inverse splits a sum."""
    return call.primitive.name in SUMS and len(call.places) > 1


def name_of(call: Call) -> str:
    """Return what the coverage calls the inverse of this call."""
    return "split" if is_split(call) else NAMES[call.primitive.name]


def why_not(call: Call) -> str | None:
    """Say why a call has no inverse; None if it has one."""
    name, shapes = call.primitive.name, call.site.input_shapes
    if name in DENSE:
        return _why_no_product(call)
    if is_split(call):
        return None if shapes[0] == shapes[1] else "its two summands have different shapes"
    if name not in CLOSED:
        return None if name in CONVOLUTIONS else "there is none for it"
    chooses = call.site.kind == "selection" and call.primitive.has("chooses")
    return None if len(call.places) == 1 or name in MOVES or chooses else "it has several signals"


def _why_no_product(call: Call) -> str | None:
    signal, name = call.places[0][0], call.primitive.name
    left = "mat1" if name == "addmm" else "input"
    if len(call.places) > 1 or signal != left:
        return "only a product of the signal with a constant matrix on its right has one"
    if name == "matmul" and call["other"].dim() != 2:
        return "only a product with one matrix has one"
    return None
