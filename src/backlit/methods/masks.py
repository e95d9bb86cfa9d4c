"""The masks of DMBP: one flat parameter for all sites and images, and the masked activations that read it.

Beyond the network's own forward and backward pass, a step costs what it moves through memory for the masks. So theta,
its masks and its gradient are one buffer each, laid out as the activations are in memory, and the gradient of a mask is
written where the optimizer reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backlit._errors import UnsupportedOp
from backlit.capture import Site
from backlit.capture.forms import Scaled
from backlit.capture.record import Node


@dataclass(frozen=True)
class _Part:
    """One site's views of the flat buffers, each shaped as the site's activation for the n images."""

    slope: Tensor
    positive: Tensor  # mask * slope
    negative: Tensor  # (1 - mask) * slope
    sigma: Tensor
    grad: Tensor
    offset: Tensor | None


class Masks:
    """Masks ``sigmoid(theta)`` at the given sites of a frozen network that holds each of its n images twice.

    In the first half of the batch an activation is scaled by its mask, in the second by one minus its mask.
    """

    def __init__(self, activations: Sequence[tuple[Site, Scaled]], n: int, dtype: torch.dtype) -> None:
        halves = [_first_half(site, form.slope, n) for site, form in activations]
        size = sum(h.numel() for h in halves)
        device = halves[0].device
        self.n = n
        self.theta = torch.zeros(size, dtype=dtype, device=device, requires_grad=True)
        self.theta.grad = torch.zeros(size, dtype=dtype, device=device)
        self._slope, self._sigma, self._positive, self._negative = (torch.empty_like(self.theta.grad) for _ in range(4))
        self._parts: dict[str, _Part] = {}
        start = 0
        for (site, form), half in zip(activations, halves, strict=True):
            offset = None if form.offset is None else form.offset[: half.shape[0]].to(dtype)
            part = _Part(
                slope=_view(self._slope, start, half),
                positive=_view(self._positive, start, half),
                negative=_view(self._negative, start, half),
                sigma=_view(self._sigma, start, half),
                grad=_view(self.theta.grad, start, half),
                offset=offset,
            )
            part.slope.copy_(half)
            self._parts[site.name] = part
            start += half.numel()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the masks from theta."""
        torch.sigmoid(self.theta, out=self._sigma)
        torch.mul(self._sigma, self._slope, out=self._positive)
        torch.sub(self._slope, self._positive, out=self._negative)

    def activate(self, site: Site, form: Scaled, z: Tensor) -> Tensor:
        """The masked activation of z, (2n, ...); sites without masks stay as they are frozen."""
        part = self._parts.get(site.name)
        return form(z) if part is None else _Masked.apply(z, self.theta, part)

    def traced(self, site: Site, form: Scaled, z: Tensor) -> Tensor:
        """The same as :meth:`activate` in plain operations, for torch.compile to fuse; theta's gradient by autograd."""
        part = self._parts.get(site.name)
        if part is None:
            return form(z)
        n = part.slope.shape[0]
        start = part.grad.storage_offset()
        mask = torch.sigmoid(
            self.theta[start : start + part.slope.numel()].as_strided(part.slope.shape, part.slope.stride(), start)
        )
        halves = [z[:n] * (mask * part.slope), z[n:] * ((1 - mask) * part.slope)]
        if part.offset is not None:
            halves = [halves[0] + mask * part.offset, halves[1] + (1 - mask) * part.offset]
        return torch.cat(halves)

    def backward(self, loss: Tensor, *, traced: bool) -> None:
        """Leave the loss's gradient in ``theta.grad``."""
        assert self.theta.grad is not None
        if traced:
            self.theta.grad.zero_()
            loss.backward()
            return
        loss.backward()  # fills the buffer with the gradients of the masks
        torch.ops.aten.sigmoid_backward.grad_input(self.theta.grad, self._sigma, grad_input=self.theta.grad)

    def of_images(self, flat: Tensor) -> list[Tensor]:
        """Each site's part of a buffer like theta, as views (n, ...) with one row an image."""
        views, start = [], 0
        for part in self._parts.values():
            view = _view(flat, start, part.slope)
            views.append(view if view.shape[0] == self.n else view.unflatten(0, (self.n, -1)))
            start += view.numel()
        return views


class RMSprop(torch.optim.Optimizer):
    """torch.optim.RMSprop with its defaults, for theta: in place, and not slowed by the many zeros in its gradient.

    The square root of torch takes up to eight times as long on zeros as on other numbers (MKL on a CPU), and most masks
    never get a gradient: their gate is closed. The inverse root does not.
    """

    def __init__(self, parameters: list[Tensor], lr: float, alpha: float = 0.99, eps: float = 1e-8) -> None:
        super().__init__(parameters, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for theta in group["params"]:
                self._update(theta, group["lr"], group["alpha"], group["eps"])

    def _update(self, theta: Tensor, lr: float, alpha: float, eps: float) -> None:
        state = self.state[theta]
        if not state:
            state.update({name: torch.zeros_like(theta) for name in ("square", "inverse", "step")})
        square, inverse, step, grad = state["square"], state["inverse"], state["step"], theta.grad
        assert grad is not None
        square.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
        torch.rsqrt(square, out=inverse).clamp_(max=1e30)
        torch.mul(grad, inverse, out=step)
        theta.addcdiv_(step, inverse.mul_(eps).add_(1), value=-lr)  # g / (sqrt(square) + eps)


class _Masked(torch.autograd.Function):
    """``[m; 1 - m] * (slope * z + offset)``. The mask's gradient goes straight into theta's buffer, not through autograd."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, part: _Part) -> Tensor:
        ctx.save_for_backward(z)
        ctx.part = part
        n = part.slope.shape[0]
        out = torch.empty_like(z)
        torch.mul(z[:n], part.positive, out=out[:n])
        torch.mul(z[n:], part.negative, out=out[n:])
        if part.offset is not None:
            on = part.sigma * part.offset
            out[:n] += on
            out[n:] += part.offset - on
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (z,) = ctx.saved_tensors
        part: _Part = ctx.part
        n = part.slope.shape[0]
        torch.mul(grad[:n], z[:n], out=part.grad)
        part.grad.addcmul_(grad[n:], z[n:], value=-1).mul_(part.slope)
        if part.offset is not None:
            part.grad.addcmul_(grad[:n] - grad[n:], part.offset)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        grad_z = torch.empty_like(grad)
        torch.mul(grad[:n], part.positive, out=grad_z[:n])
        torch.mul(grad[n:], part.negative, out=grad_z[n:])
        return grad_z, None, None


def doubled(node: Node) -> Node:
    """The node of n images as one of each of them twice, which computes the first copies and the second apart."""
    form = node.form
    if isinstance(form, Scaled):
        slope, offset = (None if v is None else torch.cat([v, v]) for v in (form.slope, form.offset))
        return replace(node, form=replace(form, slope=slope, offset=offset))

    def twice(*signals: Tensor) -> Any:
        first, second = (
            (form(*half) for half in zip(*(s.chunk(2) for s in signals), strict=True)) if signals else (form(),) * 2
        )
        if isinstance(first, Tensor):
            return torch.cat([first, second])
        return tuple(torch.cat(pair) for pair in zip(first, second, strict=True))

    return replace(node, form=twice)


def _first_half(site: Site, slope: Tensor, n: int) -> Tensor:
    """The slopes of the n images' first copies.

    Raises:
        UnsupportedOp: If the site does not hold the images in its first dimension.
    """
    if slope.shape[0] % (2 * n) == 0:
        half = slope[: slope.shape[0] // 2]
        # Both halves hold the same images; rounding may move a gate, so a few may differ.
        if torch.isclose(half.float(), slope[half.shape[0] :].float(), rtol=1e-2, atol=1e-3).float().mean() > 0.99:
            return half
    raise UnsupportedOp(
        f"{site} does not hold its images in the first dimension (its shape is {tuple(slope.shape)} for {2 * n} images), so "
        "they cannot be masked one by one. Leave it out: DMBP(model, sites=lambda site: ...)."
    )


def _view(flat: Tensor, start: int, like: Tensor) -> Tensor:
    """A part of a flat buffer with the shape of ``like`` and, where its memory has no gaps, its order in memory."""
    piece = flat[start : start + like.numel()]
    dense = like.is_contiguous() or (like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last))
    return piece.as_strided(like.shape, like.stride()) if dense else piece.view(like.shape)
