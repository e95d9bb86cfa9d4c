"""The true vector-Jacobian product of any call, computed by Backlit instead of by autograd: baseline and oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from backlit.capture import Call


def exact(grad_output: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs, by running the call again under autograd; differentiable to second order."""
    second = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = tuple(x if second and x.requires_grad else x.detach().requires_grad_() for x in inputs)
        # A leaf of its own for each input: the same tensor may stand in two places.
        leaves = tuple(x.view_as(x) for x in leaves)
        result = call.run(*leaves)
        if isinstance(result, Tensor):
            outputs, grads = [result], [grad_output]
        else:
            pairs = zip(result, grad_output, strict=True)
            outputs, grads = zip(*((r, g) for r, g in pairs if r.is_floating_point()), strict=True)
        return torch.autograd.grad(outputs, leaves, grads, create_graph=second, allow_unused=True)
