"""Rules of relevance propagation where no weights are: constants, products, quotients, and what stands before a layer.

g is the multiplier of the output (see :mod:`backlit.rules.linear`), m that of an input. Adds, concatenations, slices,
means and sums of signals need no rule here: their true derivative conserves the relevance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backlit.capture import Call, Rule, Shares
from backlit.capture.primitives import BY_NAME
from backlit.capture.sites import Trait
from backlit.rules.exact import exact
from backlit.rules.layer import difference

Result = tuple[Tensor | None, ...]


_GATES: tuple[Trait, ...] = ("gate", "bounded", "clipped")
"""Bounded functions by how surely their value is a gate; what is none of them comes last."""


def with_constants(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """The true derivative of an affine call; its constants (``x + c``, ``cat(token, x)``) take ``g c``, as biases do."""
    grads = exact(g, inputs, output, call)
    return Shares(grads, difference(g, output, inputs, grads))


def product(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """``a b`` of two signals: all to the one that is no gate; else half to each.

    A gate is the value of a bounded function (a sigmoid, whatever it was scaled by or reshaped to), where the other is none
    or a less bounded one; else the factor that is broadcast.
    """
    a, b = map(_openness, call.site.makers)
    if a == b:
        a, b = (x.numel() for x in inputs)
    if a == b:
        return shared(g, inputs, output, call)
    m = exact(g, inputs, output, call)
    return (m[0], None) if a > b else (None, m[1])


def _openness(maker: str) -> int:
    """How little a value of that primitive is known to be a gate."""
    primitive = BY_NAME.get(maker)
    return next((i for i, trait in enumerate(_GATES) if primitive is not None and primitive.has(trait)), len(_GATES))


def shared(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """A call that is linear in each of k signals: the true derivative over k, an even share (AttnLRP, Eq. 14)."""
    return tuple(None if m is None else m / len(inputs) for m in exact(g, inputs, output, call))


def shared_with_constants(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """A product to which a constant is added (``baddbmm(c, a, b)``): shared; the constant takes its own."""
    grads = shared(g, inputs, output, call)
    return Shares(grads, difference(g, output, inputs, grads))


def ratio(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """``m = g y / x``: all of it passes, of a function that is infinite at zero (log), or whose divisor is held."""
    x = inputs[0]
    return (g * torch.where(x == 0, 0, output / torch.where(x == 0, 1, x)),)


def by_degree(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """A product of k elements of one signal, or their variance (k = 2): the true derivative over k, as :func:`shared`."""
    name = call.primitive.name
    if name == "cumprod":
        k = torch.ones_like(output).cumsum(call["dim"])
    elif name == "prod":
        k = inputs[0].numel() // max(1, output.numel())
    else:
        k = 2
    several = not isinstance(output, Tensor)  # a mean beside the variance: linear
    return exact((g[0] / k, *g[1:]) if several else g / k, inputs, output, call)  # type: ignore[arg-type]


def quotient(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """``a / b``: all to the numerator; what has a signal in its denominator alone takes the relevance as a constant."""
    if len(inputs) == 1:
        return Shares((None,), g * output)
    return Shares((exact(g, inputs, output, call)[0], None))


def averaged(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """An average, a sum or windows of pixels: each output's relevance by their weights, whatever the values; conserved.

    An output that reads no pixel, as in a window beyond the edge, is a constant and takes its own.
    """
    ones = call.run(*(torch.ones_like(x) for x in inputs))
    none = ones == 0
    grads = exact(torch.where(none, 0, g / torch.where(none, 1, ones)), inputs, output, call)
    return Shares(grads, torch.where(none, g, 0))


def moved(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """Pixels beside constants (``cat(x, coordinates)``): relevance goes where each came from; the constants take theirs."""
    grads = exact(g, inputs, output, call)
    ones = tuple(torch.ones_like(x) for x in inputs)
    return Shares(grads, difference(g, torch.ones_like(output), ones, grads))


def passed(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """The same relevance, for elementwise calls on pixels such as a normalisation inside the network."""
    return (g.sum_to_size(inputs[0].shape),)


@dataclass(frozen=True)
class AtPixels:
    """The formula of a rule whose inputs, in part, are pixels: relevance instead of a multiplier goes to those.

    What no layer with weights has touched carries relevance itself, so that a pixel that is zero can have some.
    ``given`` says that the output is such, too.
    """

    rule: Rule
    pixels: tuple[bool, ...]
    given: bool

    def __call__(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
        if self.given:
            g = torch.where(output == 0, 0, g / torch.where(output == 0, 1, output))
        shares = self.rule(g, inputs, output, call)
        pairs = zip(shares.grads, inputs, self.pixels, strict=False)  # the engine checks their number
        return replace(shares, grads=tuple(m if m is None or not pixel else m * x for m, x, pixel in pairs))


def at_pixels(rule: Rule | None, pixels: tuple[bool, ...], *, given: bool) -> Rule:
    """The rule, or the true derivative, with relevance for those of its inputs that are pixels."""
    rule = rule or Rule(exact, "true")
    return replace(rule, vjp=AtPixels(rule, pixels, given))
