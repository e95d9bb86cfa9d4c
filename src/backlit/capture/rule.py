"""A rule as a value: its formula, and what the engine must know to apply it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from backlit.capture.canonical import Call


@dataclass(frozen=True)
class Shares:
    """What a rule gives to each input of a site, and what the site's biases and constants take.

    ``grads`` are the gradients of the inputs, None for none. ``absorbed`` is what is taken of ``grad_output * output``, with
    the images in its first dimension or its second; :meth:`Propagation.gradient` to ``unit`` sums it.
    """

    grads: tuple[Tensor | None, ...]
    absorbed: Tensor | None = None


Vjp = Callable[[Tensor, tuple[Tensor, ...], Tensor, Call], Sequence[Tensor | None] | Shares]
"""``vjp(grad_output, inputs, output, call)``: the gradients of the inputs, or :class:`Shares`."""


@dataclass(frozen=True)
class Rule:
    """A vector-Jacobian product that takes the place of a site's own.

    Wrap a rule with ``dataclasses.replace(rule, vjp=...)``: what the engine must know of it is kept.

    Attributes:
        vjp: The formula.
        name: What the coverage calls it.
        joins: Where a convolution or linear layer with a rule makes the input and nothing else reads it, the call is left to
            that layer's rule, which finds it in ``call.joined`` and gets its output as its own. Nothing is run twice for it.
        reads_output: Whether the formula reads ``output``; where it does not, second order costs less.
    """

    vjp: Vjp
    name: str
    joins: bool = False
    reads_output: bool = True

    @property
    def __wrapped__(self) -> Vjp:
        """The formula, for whoever looks under a decorator."""
        return self.vjp

    def __call__(self, grad_output: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
        result = self.vjp(grad_output, inputs, output, call)
        return result if isinstance(result, Shares) else Shares(tuple(result))


RuleLike = Rule | Vjp
"""A rule, or a formula that is one."""


def rule(*, joins: bool = False, reads_output: bool = True) -> Callable[[Vjp], Rule]:
    """Make a formula the rule of its name: ``@rule(joins=True)``."""
    return lambda vjp: Rule(vjp, formula_name(vjp), joins, reads_output)


def as_rule(given: RuleLike | None) -> Rule | None:
    """A formula as a rule; a rule as it is, and None, which is autograd's own derivative."""
    return given if given is None or isinstance(given, Rule) else Rule(given, formula_name(given))


def formula_name(vjp: Vjp) -> str:
    """The name of a function, or of an object's class if it has none."""
    return getattr(vjp, "__name__", type(vjp).__name__)
