"""TR-GBP as Eq. 8 to 10 say it: each bias an input of ones behind filters filled with it, guided ReLUs, one class at a time.

A network for it hands its layers and its ReLUs to two functions, so that its forward pass can be run with the ones-inputs
made explicit. Nothing here knows Backlit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return g * (g > 0) * (z > 0)


def filled(module: nn.Module, ones: Tensor, bias: Tensor, normalise: bool) -> Tensor:
    """What the layer's filters, filled with the bias, make of a map of ones.

    With one channel of ones the filters have one as well; with the layer's own channels they have the layer's own shape.
    """
    if isinstance(module, nn.Linear):
        return ones @ (bias / (ones.shape[1] if normalise else 1)).expand(ones.shape[1], -1)
    if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        return ones * bias[:, None, None]
    assert isinstance(module, nn.modules.conv._ConvNd)
    kernel, d = module.kernel_size, len(module.kernel_size)
    groups = module.groups if ones.shape[1] > 1 else 1
    each = ones.shape[1] // groups  # channels that a filter reads
    elements = float(torch.tensor(kernel).prod()) * each if normalise else 1.0
    kernels = (bias / elements).view(-1, 1, *[1] * d) * torch.ones(len(bias), each, *kernel, dtype=bias.dtype)
    if "Transpose" in type(module).__name__:
        function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[d]
        turned = kernels.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        return function(
            ones, turned, None, module.stride, module.padding, module.output_padding, groups, module.dilation
        )
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[d]
    padding = module.padding
    if module.padding_mode != "zeros":
        sides = [p for p in reversed(padding) for _ in (0, 1)]
        ones, padding = F.pad(ones, sides, mode=module.padding_mode), 0
    return function(ones, kernels, None, module.stride, padding, module.dilation, groups)


def shift_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def summands(
    net: nn.Module, x: Tensor, target: Tensor, *, normalise: bool, fold: bool, pairs: dict[str, str], own: bool = False
) -> dict[str, Tensor]:
    """R^0 and every R^l of one class an image, R^l at the layer's own size. ``pairs`` says which norm follows which layer.

    ``own`` gives each input of ones as many channels as its layer reads; R^l is summed over them, as R^0 is over colours.
    """
    leaf = x.detach().clone().requires_grad_()
    ones: dict[str, Tensor] = {}

    def layer(name: str, module: nn.Module, z: Tensor) -> Tensor:
        y = module(z)
        bias = getattr(module, "bias", None)
        if isinstance(module, nn.BatchNorm2d):
            if fold and name in pairs.values():
                return y
            bias = shift_of(module)[1]
        if fold and name in pairs:
            scale, shift = shift_of(getattr(net, pairs[name]))
            # The norm multiplies what this adds by its scale; what must come out behind it is the folded bias.
            bias = (0 if bias is None else bias) + shift / scale
        if bias is None:
            return y
        channels = z.shape[1] if own and not isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) else 1
        size = (z.shape[0], channels) if isinstance(module, nn.Linear) else (z.shape[0], channels, *z.shape[2:])
        ones[name] = torch.ones(size, dtype=x.dtype, requires_grad=True)
        added = filled(module, ones[name], bias.detach(), normalise)
        return y + added - added.detach()  # the value stays the network's

    score = net(leaf, layer, GuidedReLU.apply).gather(1, target[:, None]).sum()
    grads = torch.autograd.grad(score, [leaf, *ones.values()])
    found = {"input": grads[0].sum(1, keepdim=True)}
    for name, grad in zip(ones, grads[1:], strict=True):
        grad = grad.sum(1, keepdim=True)
        found[name] = grad if grad.dim() == 4 else grad.flatten(1).mean(1)[:, None, None, None]
    return found


def tr_gbp(net: nn.Module, x: Tensor, target: Tensor, contrast: int | None, **options: Any) -> dict[str, Tensor]:
    """The summands of the map, enlarged and contrasted (Eq. 9 and 10)."""
    enlarge: Callable[[Tensor], Tensor] = lambda m: F.interpolate(m, x.shape[2:], mode="bilinear", align_corners=False)  # noqa: E731
    own = {k: enlarge(v) for k, v in summands(net, x, target, **options).items()}
    if contrast is None:
        return own
    top = net(x).topk(contrast).indices
    for i in range(contrast):
        for name, m in summands(net, x, top[:, i], **options).items():
            own[name] = own[name] - enlarge(m) / contrast
    return own
