"""Rules of relevance propagation where no weights are: constants, products, quotients, and what stands before a layer.

g is the multiplier of the output (see :mod:`backlit.rules.linear`), m that of an input. Adds, concatenations, slices,
means and sums of signals need no rule here: their true derivative conserves the relevance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlit.capture import Call, Rule
from backlit.rules.exact import exact
from backlit.rules.layer import difference
from backlit.rules.table import rule_name

Result = tuple[Tensor | None, ...]


def with_constants(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """The true derivative of an affine call; its constants (``x + c``, ``cat(token, x)``) take ``g c``, as biases do."""
    grads = exact(g, inputs, output, call)
    return (*grads, difference(g, output, inputs, grads))


with_constants.absorbs = True  # type: ignore[attr-defined]


def product(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """``a b`` of two signals: all to the larger factor where the other is broadcast, a gate; else half to each."""
    a, b = inputs
    if a.shape == b.shape:
        return shared(g, inputs, output, call)
    m = exact(g, inputs, output, call)
    return (m[0], None) if a.numel() > b.numel() else (None, m[1])


def shared(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """A call that is linear in each of k signals: the true derivative over k, an even share (AttnLRP, Eq. 14)."""
    return tuple(None if m is None else m / len(inputs) for m in exact(g, inputs, output, call))


def quotient(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """``a / b``: all to the numerator; what has a signal in its denominator alone takes the relevance as a constant."""
    if len(inputs) == 1:
        return None, g * output
    return exact(g, inputs, output, call)[0], None, None


quotient.absorbs = True  # type: ignore[attr-defined]


def passed(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """The same relevance, for elementwise calls on pixels such as a normalisation inside the network."""
    return (g.sum_to_size(inputs[0].shape),)


@dataclass(frozen=True)
class AtPixels:
    """A rule whose inputs, in part, are pixels: relevance instead of a multiplier goes to those.

    What no layer with weights has touched carries relevance itself, so that a pixel that is zero can have some.
    ``given`` says that the output is such, too.
    """

    rule: Rule | None
    pixels: tuple[bool, ...]
    given: bool

    @property
    def __name__(self) -> str:
        return rule_name(self.rule)

    @property
    def absorbs(self) -> bool:
        """As the rule does."""
        return getattr(self.rule, "absorbs", False)

    def __call__(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
        if self.given:
            g = torch.where(output == 0, 0, g / torch.where(output == 0, 1, output))
        found = tuple((self.rule or exact)(g, inputs, output, call))
        pairs = zip(found, inputs, self.pixels, strict=False)
        mine = tuple(m if m is None or not pixel else m * x for m, x, pixel in pairs)
        return (*mine, *found[len(inputs) :])
