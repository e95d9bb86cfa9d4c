"""Primitive -> inverse: the one table of what MIP-IN can go back through."""

from __future__ import annotations

from backlit.capture.canonical import Call
from backlit.capture.primitives import named
from backlit.inverse.closed import Closed, averaged_back, kept, switched_back

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
    **dict.fromkeys(_SELECTIONS, switched_back),
}
"""The inverses that need no data, of calls with one signal (a maximum may have two)."""

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


def name_of(call: Call) -> str:
    """What the coverage calls the inverse of this call."""
    return "split" if call.primitive.name in SUMS and len(call.places) > 1 else NAMES[call.primitive.name]


def why_not(call: Call) -> str | None:
    """Why a call has no inverse; None if it has one."""
    name = call.primitive.name
    shapes = call.site.input_shapes
    if name in DENSE:
        signal = call.places[0][0]
        if len(call.places) > 1 or signal not in ("input", "mat1") or (name == "addmm" and signal == "input"):
            return "only a product of the signal with a constant matrix on its right has one"
        if name == "matmul" and call["other"].dim() != 2:
            return "only a product with one matrix has one"
        return None
    if name in CONVOLUTIONS or name in MOVES:
        return None
    if name in SUMS and len(call.places) > 1:
        return None if shapes[0] == shapes[1] else "its two summands have different shapes"
    if name in CLOSED:
        two = call.site.kind == "selection" and call.primitive.has("chooses")
        return None if len(call.places) == 1 or two else "it has several signals"
    return "there is none for it"
