"""Each relevance rule once more, slowly: a layer as an explicit matrix in float64, one output and one input at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def matrix(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix (outputs, inputs) of a linear function of one image (1, ...), column by column."""
    size = int(torch.tensor(shape).prod())
    columns = [linear(torch.eye(size, dtype=torch.float64)[i].view(1, *shape)).flatten() for i in range(size)]
    return torch.stack(columns, 1)


def relevance(rule: str, w: Tensor, b: Tensor, x: Tensor, r: Tensor, low: Tensor, high: Tensor, p: Any) -> Tensor:
    """Relevance of the inputs from r of the outputs, by the papers' formulas, in loops."""
    found = torch.zeros_like(x)
    z = w @ x + b
    for j in range(len(z)):
        c = [float(w[j, i] * x[i]) for i in range(len(x))]
        up, down = [max(v, 0.0) for v in c], [min(v, 0.0) for v in c]
        bias = float(b[j])
        if rule == "epsilon":
            share = [v / float(z[j] + p * (1 if z[j] >= 0 else -1)) for v in c]
        elif rule == "z_plus":
            share = _or_all(up, max(bias, 0), c)
        elif rule == "z_plus_bare":
            share = _or_all(up, 0.0, c)
        elif rule == "alpha_beta":
            alpha, beta = p
            share = [
                alpha * _over(u, sum(up) + max(bias, 0)) - beta * _over(d, sum(down) + min(bias, 0))
                for u, d in zip(up, down, strict=True)
            ]
        elif rule == "gamma":
            side, own = (up, max(bias, 0)) if z[j] > 0 else (down, min(bias, 0))
            share = [(v + p * s) / (sum(c) + bias + p * (sum(side) + own)) for v, s in zip(c, side, strict=True)]
        elif rule == "flat":
            share = [float(w[j, i] != 0) / int((w[j] != 0).sum()) for i in range(len(x))]
        elif rule == "w_square":
            share = [float(w[j, i] ** 2) / float((w[j] ** 2).sum()) for i in range(len(x))]
        elif rule == "z_box":
            q = [
                float(w[j, i] * x[i] - low[i] * max(float(w[j, i]), 0) - high[i] * min(float(w[j, i]), 0))
                for i in range(len(x))
            ]
            share = [v / sum(q) for v in q]
        else:
            raise ValueError(rule)
        for i in range(len(x)):
            found[i] += share[i] * r[j]
    return found


def _over(a: float, b: float) -> float:
    return a / b if b else 0.0


def _or_all(up: list[float], bias: float, c: list[float]) -> list[float]:
    """Shares of what speaks for an output; of all contributions where nothing does, so that no relevance is lost."""
    if sum(up) + bias > 0:
        return [v / (sum(up) + bias) for v in up]
    return [_over(v, sum(c)) for v in c]
