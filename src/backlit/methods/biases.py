"""The additive constants of a forward pass, as inputs of the network: what TR-GBP, FullGrad and BBp have in common.

A site computes y from its signals z. With J its derivative there, ``y - J z`` is what it adds of its own: the bias of a
convolution, the shift of a batch norm, the 6 of a ReLU6 that is cut off, the curvature of a GELU; nothing at a ReLU, a
max-pool or a move. Since <g, J z> is what the signals get, Euler's identity holds through the whole network:

    F_t(x) = <dF_t/dx, x> + sum over sites of <dF_t/dy, y - J z>

exactly, whatever the architecture.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._errors import UnsupportedOp
from backlit._forward import of_image
from backlit.capture import Call, Propagation, Tap, Trace, propagate
from backlit.capture.forms import derivative_along
from backlit.methods.base import Method
from backlit.methods.inputs import check_takes, why_not
from backlit.methods.job import Job, Maps
from backlit.rules import RuleTable
from backlit.rules.exact import exact
from backlit.rules.layer import finite

Reader = Callable[[Call, Tensor], Tap | None]
"""``reader(call, output)``: what is read off the gradient of a site's output."""


def bias_of(call: Call) -> Tensor | None:
    """The constant that a layer adds, so shaped that it broadcasts to its output; None if it has none.

    Layers are convolutions, linear layers and norms (of a batch norm on its running statistics: the shift); a constant
    that the network adds or subtracts counts as one.
    """
    name, bias = call.primitive.name, call.get("bias")
    if call.primitive.has("convolution"):
        return None if bias is None else bias.view(-1, *[1] * call.primitive.spatial)
    if name == "batch_norm":
        z = call.signals[0]
        return call.run(z.new_zeros(1, z.shape[1], *[1] * (z.dim() - 2)))[0]
    if call.primitive.has("norm") and name != "layer_norm":
        return None if bias is None else bias.view(-1, *[1] * (call.signals[0].dim() - 2))
    if call.primitive.has("accumulates"):
        return None if ("input", None) in call.places else _at_zero(call)
    if call.primitive.has("adds"):
        return None if len(call.places) > 1 else _at_zero(call)
    return bias if call.primitive.has("dense", "norm") else None


def offset(call: Call, output: Tensor) -> Tensor | None:
    """``y - J z`` of a site, so shaped that it broadcasts to its output y; None where it is zero by its nature."""
    name, kind = call.primitive.name, call.site.kind
    if call.primitive.has("homogeneous") or kind == "selection":  # f(z) = J z
        return None
    if kind == "affine":
        known = call.primitive.has("convolution", "scales") or name == "linear"
        return bias_of(call) if known else _constants(call)
    if name == "gated":  # affine once the condition is given
        return _at_zero(call)
    if call.primitive.has("bilinear"):  # J z counts each factor once
        return -output
    signals = call.signals
    if kind == "activation" and len(signals) == 1 and signals[0].shape == output.shape:
        (slope,) = exact(torch.ones_like(output), signals, output, call)
        return output if slope is None else output - slope * signals[0]
    (along,) = derivative_along(call, signals, tuple(finite(s) for s in signals))
    return output - along


def _constants(call: Call) -> Tensor | None:
    """What an affine call that is no layer adds: the constants among what it joins or writes."""
    if call.primitive.has("stacks"):
        joined_ones = next(v for v in call.arguments.values() if isinstance(v, (list, tuple)))
        return None if len(joined_ones) == len(call.places) else _at_zero(call)
    return _at_zero(call)


def _at_zero(call: Call) -> Tensor:
    return finite(call.run(*(torch.zeros_like(s) for s in call.signals)))


def check_told(trace: Trace) -> None:
    """Refuse what adds terms to two outputs at once.

    Raises:
        UnsupportedOp: With the site.
    """
    for site in trace:
        if site.primitive == "var_mean":
            raise UnsupportedOp(
                f"{site} computes a variance and a mean at once, and what it adds can be read off one output alone. Write "
                "x.var(...) and x.mean(...)."
            )


class ImagesMoved(Exception):
    """A site's first axis does not count the images, so that its terms cannot be told apart by image."""


def with_biases(
    model: nn.Module, inputs: tuple[Tensor, ...], table: RuleTable, reader: Reader, *, fold: bool = False
) -> Propagation:
    """Propagate with a tap wherever ``reader`` puts one.

    Raises:
        ImagesMoved: If there are several images, and a site on the way has them elsewhere than in its first axis.
    """
    n = inputs[0].shape[0]

    def tap(call: Call, output: Tensor) -> Tap | None:
        if n > 1 and output.shape[:1] != (n,):
            raise ImagesMoved(str(call.site))
        return reader(call, output)

    run = propagate(model, inputs, table, fold=fold, tap=tap)
    if n > 1 and not _apart(run.trace, of_image(lambda some, _: propagate(model, some, table).trace, inputs), n):
        raise ImagesMoved
    return run


def _apart(together: Trace, alone: Trace, n: int) -> bool:
    """Whether each site has its images in the first axis: equal sizes would hide another one, so one image alone tells.

    A network that goes another way with one image tells nothing. One that takes no image alone gives both traces of all n:
    then images may have moved where axes are permuted, and another axis than the first is as long as they are many.
    """
    sites = list(together)
    if [site.input_shapes for site in sites] == [site.input_shapes for site in alone]:
        permuted = next((i for i, site in enumerate(sites) if site.primitive == "permute"), len(sites))
        return not any(n in site.output_shape[1:] for site in sites[permuted:])
    shapes = [(1, *site.output_shape[1:]) for site in together]
    same = [site.name for site in together] == [site.name for site in alone]
    return not same or shapes == [site.output_shape for site in alone]


class Channels:
    """Where a value has its channels: behind a convolution in the second axis, behind a linear layer in the last."""

    def __init__(self) -> None:
        self.last = False

    def behind(self, call: Call) -> None:
        """Hear of the calls in order."""
        if call.primitive.has("convolution") or call.primitive.name == "batch_norm":
            self.last = False
        elif call.primitive.has("dense") or call.primitive.name == "layer_norm":
            self.last = True


def propagated(run: Propagation, classes: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """The gradients of the classes (n, m) at the leaves, (m, n, ...) each, all through the one graph.

    One backward pass a class: torch's batched gradients run the convolutions one class after the other, too, and then
    copy them together, which took 1.4 times as long (ResNet-50, 5 classes of 8 images).
    """
    weights = F.one_hot(classes.T, run.output.shape[1]).to(run.output.dtype)
    found = [run.gradient(w, to=leaves, retain_graph=True) for w in weights]
    return [torch.stack(maps) for maps in zip(*found, strict=True)]


class BiasMethod(Method):
    """A method with taps: it runs one image at a time where the network moves the images' axis, as attention does."""

    reads_map = True

    def explain(self, job: Job) -> Maps:
        try:
            return self.explain_together(job)
        except ImagesMoved:
            plain = why_not(self.network, job.inputs)
            if plain is not None:
                raise plain from None
            check_takes(self.network, job.inputs, job.one(0).inputs)
            return Maps.joined([self.explain_together(job.one(i)) for i in range(len(job))])

    @abstractmethod
    def explain_together(self, job: Job) -> Maps:
        """Maps of one chunk from one forward pass.

        Raises:
            ImagesMoved: If that cannot be.
        """


def site_names(sites: list[Any]) -> list[str]:
    """A name for each site: its module's path, with the site where a module has several; the site where there is none."""
    modules = [site.module for site in sites]
    return [
        site.name
        if not site.module
        else site.module
        if modules.count(site.module) == 1
        else f"{site.module} {site.name}"
        for site in sites
    ]
