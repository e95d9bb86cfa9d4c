"""Rules of relevance propagation at softmax, attention and gated units (AttnLRP, Achtibat et al. 2024).

AttnLRP's softmax rule ``R_i = x_i (R_i - s_i sum_j R_j)`` (Prop. 3.1) is, for multipliers, the true derivative. It is a
Taylor expansion whose constant term takes the rest: relevance through the attention weights is **not** conserved.
Holding the weights (:func:`held`, Ali et al. 2022) conserves it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backlit.capture import Call, Shares
from backlit.rules.exact import exact

Result = tuple[Tensor | None, ...]


def attention(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """Half to the values, half to the weights by the softmax rule, of which half each to query and key."""
    names = [name for name, _ in call.places]
    weights = 0.5 if "value" in names and len(names) > 1 else 1.0
    each = weights / max(1, sum(name != "value" for name in names))
    shares = [weights if name == "value" else each for name in names]
    return tuple(m if m is None else share * m for share, m in zip(shares, exact(g, inputs, output, call), strict=True))


def held(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """All to the values: the attention weights are constants (Ali et al. 2022, Sec. 4.1)."""
    names = [name for name, _ in call.places]
    if "value" not in names:
        return constant(g, inputs, output, call)
    grads = exact(g, inputs, output, call)
    return Shares(tuple(m if name == "value" else None for m, name in zip(grads, names, strict=True)))


def mixture(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """A product of two signals of which one is made of a softmax: all to the other; else half to each."""
    mixing = [maker == "softmax" for maker in call.site.makers]
    grads = exact(g, inputs, output, call)
    if sum(mixing) != 1 or len(inputs) != 2:
        return tuple(None if m is None else m / len(inputs) for m in grads)
    return tuple(None if held else m for held, m in zip(mixing, grads, strict=True))


def constant(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """No relevance to the input: a softmax as a fixed gate or mixing. What does not go elsewhere is absorbed."""
    return Shares((None,) * len(inputs), g * output)


def log_softmax(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """``z - log sum exp z``: m = g, the second term is held."""
    return Shares((g,), g * (output - inputs[0]))


def glu(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """``a sigmoid(b)``: all to a."""
    dim = call.get("dim", -1)
    a, b = inputs[0].chunk(2, dim)
    return (torch.cat([g * torch.sigmoid(b), torch.zeros_like(g + a)], dim),)
