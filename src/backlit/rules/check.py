"""The checker that Backlit's own tests use, for rules of yours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import NoneType

import torch
from torch import Tensor, nn

from backlit._errors import RuleMismatch, check, check_type, shown
from backlit.capture import RuleLike, propagate
from backlit.rules import presets
from backlit.rules.table import RuleTable

_TOLERANCE = 1e-6


def check_rule(
    rule: RuleLike,
    operation: Callable[[Tensor], Tensor],
    inputs: Tensor | Sequence[Tensor],
    *,
    primitive: str | None = None,
    true_gradient: bool = False,
) -> None:
    """Check a rule on one operation: shapes, dtype, independence of the images, and second order.

    Args:
        rule: ``rule(grad_output, inputs, output, call) -> gradients of the inputs``, or a :class:`backlit.capture.Rule`.
        operation: What the rule is for, a module or a function such as ``torch.relu``; it may call several operations.
        inputs: Example images (n, ...), n >= 2, or several such inputs; they are used in float64.
        primitive: The primitive that gets the rule. By default every nonlinear one, or, if the operation has none, all.
        true_gradient: Also compare with autograd: the rule claims to be the true derivative.

    Raises:
        RuleMismatch: With what disagrees, where, and by how much.
        InputError: If an argument cannot be used.
    """
    xs = tuple(x.detach().double() for x in _checked(inputs))
    check(callable(rule), "rule", rule, "a function rule(grad_output, inputs, output, call)")
    check_type("true_gradient", true_gradient, bool, "True or False")
    check(callable(operation), "operation", operation, "a module or a function of tensors")
    check_type("primitive", primitive, (str, NoneType), "the name of a primitive or None")
    model = _Flat(operation).eval()
    table = _table(rule, model, xs, primitive)
    run = propagate(model, xs, table)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(run.output.shape, generator=generator, dtype=torch.float64)
    grads = run.gradient(weights, create_graph=True)
    for i, (grad, x) in enumerate(zip(grads, xs, strict=True)):
        if grad.shape != x.shape or not bool(grad.isfinite().all()):
            raise RuleMismatch(
                f"Input {i}: the gradient must be finite and {tuple(x.shape)}, but is {tuple(grad.shape)}: {grad}."
            )
    if true_gradient:
        _compare_with_autograd(model, xs, weights, grads)
    _check_images(model, xs, table, weights, grads)
    _check_second_order(model, xs, table, weights)


def _checked(inputs: object) -> tuple[Tensor, ...]:
    """The example inputs as a tuple.

    Raises:
        InputError: If they are none.
    """
    several = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs) if isinstance(inputs, (tuple, list)) else ()
    dense = all(isinstance(x, Tensor) and not x.is_meta and x.layout == torch.strided for x in several)
    real = dense and all(x.dim() > 1 and x.numel() and not x.is_complex() for x in several)
    same = real and len({len(x) for x in several}) == 1
    check(same, "inputs", inputs, "images (n, ...) with n of at least 2, or several such inputs with as many")
    return several


class _Flat(nn.Module):
    def __init__(self, operation: Callable[..., Tensor]) -> None:
        super().__init__()
        self.operation = operation.double() if isinstance(operation, nn.Module) else operation

    def forward(self, *xs: Tensor) -> Tensor:
        return self.operation(*xs).flatten(1)


def _table(rule: RuleLike, model: nn.Module, xs: tuple[Tensor, ...], primitive: str | None) -> RuleTable:
    trace = propagate(model, xs, presets.gradient).trace
    names = {s.primitive for s in trace}
    chosen = {primitive} if primitive else {s.primitive for s in trace if s.kind != "affine"} or names - {"reshape"}
    if not chosen <= names:
        raise RuleMismatch(
            f"primitive must be one that the operation calls ({', '.join(sorted(names))}), but is {shown(primitive)}."
        )
    return presets.gradient.but(dict.fromkeys(chosen, rule), "checked")


def _compare_with_autograd(
    model: nn.Module, xs: tuple[Tensor, ...], weights: Tensor, grads: tuple[Tensor, ...]
) -> None:
    leaves = tuple(x.clone().requires_grad_() for x in xs)
    for i, (ours, true) in enumerate(zip(grads, torch.autograd.grad(model(*leaves), leaves, weights), strict=True)):
        gap = float((ours - true).abs().max())
        if gap > _TOLERANCE * (1 + float(true.abs().max())):
            raise RuleMismatch(f"Input {i}: the rule differs from the true gradient by {gap:.3g}.")


def _check_images(
    model: nn.Module, xs: tuple[Tensor, ...], table: RuleTable, weights: Tensor, grads: tuple[Tensor, ...]
) -> None:
    for n in range(xs[0].shape[0]):
        alone = propagate(model, tuple(x[n : n + 1] for x in xs), table).gradient(weights[n : n + 1])
        for i, (one, batch) in enumerate(zip(alone, grads, strict=True)):
            gap = float((one[0] - batch[n]).abs().max())
            if gap > _TOLERANCE * (1 + float(batch[n].abs().max())):
                raise RuleMismatch(
                    f"Input {i}: image {n}'s gradient changes by {gap:.3g} with its neighbours in the batch."
                )


def _check_second_order(model: nn.Module, xs: tuple[Tensor, ...], table: RuleTable, weights: Tensor) -> None:
    """Compare the derivative of the rule's result with central differences, along one direction of the inputs."""
    generator = torch.Generator().manual_seed(1)
    directions = tuple(torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in xs)
    readers = tuple(torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in xs)

    def read(step: float) -> float:
        run = propagate(model, tuple(x + step * d for x, d in zip(xs, directions, strict=True)), table)
        return float(sum((g * r).sum() for g, r in zip(run.gradient(weights), readers, strict=True)))

    run = propagate(model, xs, table)
    first = sum((g * r).sum() for g, r in zip(run.gradient(weights, create_graph=True), readers, strict=True))
    analytic = 0.0
    if isinstance(first, Tensor) and first.requires_grad:
        seconds = torch.autograd.grad(first, run.inputs, allow_unused=True)
        analytic = sum(float((s * d).sum()) for s, d in zip(seconds, directions, strict=True) if s is not None)
    numeric = (read(1e-6) - read(-1e-6)) / 2e-6
    if abs(analytic - numeric) > 1e-4 * (1 + abs(numeric)):
        raise RuleMismatch(
            f"Second order: the rule's derivative is {analytic:.6g}, central differences give {numeric:.6g}. Compute the "
            "rule with differentiable operations on its arguments (no .data, no in-place writes)."
        )
