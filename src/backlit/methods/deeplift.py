"""DeepLIFT and DeepSHAP: the difference of the logit from a reference, shared out among the pixels that differ."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError
from backlit.capture import propagate
from backlit.methods.audit import audit
from backlit.methods.base import Maps, Method, Options, activation_bytes, check
from backlit.methods.inputs import pick
from backlit.rules import lift

Given = str | Tensor | tuple[Tensor, ...] | Callable[[Tensor], Tensor]
_BLUR = 10.0  # pixels, standard deviation: what the insertion protocol hides pixels with


@dataclass(frozen=True)
class LiftOptions(Options):
    """Options of DeepLIFT and DeepSHAP.

    Attributes:
        rule: "rescale", or "reveal_cancel", which follows positive and negative changes apart.
        tolerance: Warn, once, when the map misses the difference of the logits by this share of it.
    """

    rule: Literal["rescale", "reveal_cancel"] = "rescale"
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.rule in ("rescale", "reveal_cancel"), "rule", self.rule, "'rescale' or 'reveal_cancel'")
        good = isinstance(self.tolerance, (int, float)) and self.tolerance > 0
        check(good, "tolerance", self.tolerance, "a positive number")


@dataclass(frozen=True)
class DeepLIFTOptions(LiftOptions):
    """Options of DeepLIFT.

    Attributes:
        reference: "zero" (the mean colour of the training set, for a normalised input), "blur" (a Gaussian of 10 pixels),
            "mean" (each image's mean colour), one tensor (c, h, w) for all images, a tuple of them for several inputs, or
            a function from images to references.
    """

    reference: Given = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_given("reference", self.reference)


@dataclass(frozen=True)
class DeepSHAPOptions(LiftOptions):
    """Options of DeepSHAP.

    Attributes:
        references: Images (r, c, h, w) to compare with, such as some of the training set; None for each image's zero,
            blurred and mean reference.
    """

    references: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        good = self.references is None or (isinstance(self.references, Tensor) and self.references.dim() == 4)
        found = tuple(self.references.shape) if isinstance(self.references, Tensor) else self.references
        check(
            good and (self.references is None or len(self.references) > 0), "references", found, "images (r, c, h, w)"
        )


class _Lift(Method):
    """One pass at the references, one at the images, one backward pass with multipliers between the two."""

    source = "Shrikumar et al. 2017"
    memory_factor = 8.0

    def __init__(self, model: torch.nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        self._warned = False

    def lifted(
        self, inputs: tuple[Tensor, ...], references: tuple[Tensor, ...], targets: Tensor | None
    ) -> tuple[Maps, Tensor]:
        """Maps of images against as many references, and the logits at the references (t, n)."""
        reveal = self.options.rule == "reveal_cancel"
        reference = lift.Reference(self.model, references, layers=reveal)
        table = lift.table(reference, reveal_cancel=reveal)
        run = propagate(self.model, inputs, table)
        targets = pick(run.output, targets)
        weights = F.one_hot(targets.T, run.output.shape[1]).to(run.output.dtype)
        grads = run.gradient(weights if len(weights) > 1 else weights[0])
        grads = grads if len(weights) > 1 else tuple(g[None] for g in grads)
        values = tuple(m * (x - r) for m, x, r in zip(grads, inputs, references, strict=True))
        output, start = (o.detach().gather(1, targets).T for o in (run.output, reference.output))
        completeness = _account(values, output, start)
        gap = completeness["gap"].abs()
        share = gap / completeness["difference"].abs().clamp(
            min=1e-3 * float(output.abs().max() + start.abs().max()) + 1e-30
        )
        if not self._warned and float(share.max()) > self.options.tolerance:
            self._warned = True
            t, i = divmod(int(share.argmax()), share.shape[1])
            one = lift.Reference(self.model, tuple(r[i : i + 1] for r in references), layers=reveal)
            found = audit(
                self.model,
                tuple(x[i : i + 1] for x in inputs),
                lift.table(one, reveal_cancel=reveal),
                int(targets[i, t]),
            )
            worst = sorted((x for x in found if x.lost), key=lambda x: -abs(x.lost))[:5]
            warnings.warn(
                f"{self.title}: the map misses {float(share[t, i]):.1%} of the difference from the reference (image {i}, more "
                f"than tolerance={self.options.tolerance:g}). The largest differences are at "
                f"{'; '.join(f'{x.site} {x.lost:+.3g}' for x in worst) or 'values that the network computes as constants'}.",
                stacklevel=6,
            )
        maps = Maps(
            values=values,
            targets=targets,
            output=output,
            coverage=run.coverage,
            activation_bytes=activation_bytes(run.trace, inputs[0]),
            completeness=completeness,
        )
        return maps, start


class DeepLIFT(_Lift):
    """DeepLIFT (Shrikumar et al. 2017): the map sums to the logit's difference from a reference, on any network."""

    name = "deeplift"
    title = "DeepLIFT"
    summary = "difference from a reference, by finite slopes instead of gradients"
    Options: ClassVar[type[Options]] = DeepLIFTOptions

    def explain(self, inputs: tuple[Tensor, ...], targets: Tensor | None) -> Maps:
        return self.lifted(inputs, references_of(inputs, self.options.reference), targets)[0]


class DeepSHAP(_Lift):
    """DeepSHAP (Lundberg and Lee 2017): DeepLIFT's maps averaged over references."""

    name = "deep_shap"
    title = "DeepSHAP"
    summary = "DeepLIFT averaged over a set of references"
    source = "Lundberg and Lee 2017"
    Options: ClassVar[type[Options]] = DeepSHAPOptions

    def explain(self, inputs: tuple[Tensor, ...], targets: Tensor | None) -> Maps:
        n = len(inputs[0])
        sets = [self._references(x) for x in inputs]  # (n, r, ...)
        group = max(1, 16 // n)
        found: list[Maps] = []
        starts: list[Tensor] = []
        counts = [min(group, sets[0].shape[1] - i) for i in range(0, sets[0].shape[1], group)]
        for i, count in zip(range(0, sets[0].shape[1], group), counts, strict=True):  # as many pairs as fit in a chunk
            pairs = tuple(x.repeat_interleave(count, 0) for x in inputs)
            others = tuple(s[:, i : i + count].flatten(0, 1) for s in sets)
            wanted = None if targets is None else targets.repeat_interleave(count, 0)
            maps, start = self.lifted(pairs, others, wanted)
            found.append(maps)
            starts.append(start.view(len(start), n, count).sum(2))
        r = sum(counts)
        values = tuple(
            torch.stack([m.values[j].unflatten(1, (n, c)).sum(2) for m, c in zip(found, counts, strict=True)]).sum(0)
            / r
            for j in range(len(inputs))
        )
        first, count = found[0], counts[0]
        output = first.output[:, ::count]
        return Maps(
            values=values,
            targets=first.targets[::count],
            output=output,
            coverage=first.coverage,
            activation_bytes=first.activation_bytes * count,
            completeness=_account(values, output, torch.stack(starts).sum(0) / r),
            notes={"references": r},
        )

    def _references(self, x: Tensor) -> Tensor:
        given = self.options.references
        if given is None:
            return torch.stack([references_of((x,), name)[0] for name in ("zero", "blur", "mean")], 1)
        if given.shape[1:] != x.shape[1:]:
            raise InputError(
                f"references must be shaped as the images, (r, {', '.join(map(str, x.shape[1:]))}), but have shape "
                f"{tuple(given.shape)}."
            )
        return given.to(x)[None].expand(len(x), *given.shape)


def references_of(inputs: tuple[Tensor, ...], given: Given) -> tuple[Tensor, ...]:
    """One reference for each image of each input.

    Raises:
        InputError: If a reference is not shaped as the images, or not finite.
    """
    if isinstance(given, str):
        return tuple(_REFERENCES[given](x) for x in inputs)
    several = given if isinstance(given, tuple) else (given,)
    found = tuple(given(x) for x in inputs) if callable(given) else several
    if len(found) != len(inputs):
        raise InputError(f"reference must be one tensor for each of {len(inputs)} inputs, but has {len(found)}.")
    return tuple(_fitting(r, x, per_image=callable(given)) for r, x in zip(found, inputs, strict=True))


def _fitting(reference: Any, x: Tensor, *, per_image: bool) -> Tensor:
    one = isinstance(reference, Tensor) and tuple(reference.shape) in (tuple(x.shape[1:]), (1, *x.shape[1:]))
    each = per_image and isinstance(reference, Tensor) and reference.shape == x.shape
    if not one and not each:
        found = tuple(reference.shape) if isinstance(reference, Tensor) else type(reference).__name__
        raise InputError(
            f"reference must be shaped as one image, {tuple(x.shape[1:])}, but is {found}. For one reference an image give a "
            "function from images to references; for several references an image use DeepSHAP."
        )
    if not bool(reference.isfinite().all()):
        raise InputError("reference must be finite, but holds NaN or Inf.")
    return reference.to(x).expand_as(x)


def _blurred(x: Tensor) -> Tensor:
    """A Gaussian of 10 pixels, edges mirrored as far as they reach."""
    for dim in (-2, -1):
        radius = min(int(3 * _BLUR), x.shape[dim] - 1)
        offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        kernel = torch.exp(-(offsets**2) / (2 * _BLUR**2))
        pad = (0, 0, radius, radius) if dim == -2 else (radius, radius, 0, 0)
        rows = F.pad(x, pad, mode="reflect")
        shape = (1, 1, -1, 1) if dim == -2 else (1, 1, 1, -1)
        weight = (kernel / kernel.sum()).view(shape).expand(x.shape[1], -1, -1, -1)
        x = F.conv2d(rows, weight, groups=x.shape[1])
    return x


_REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "blur": _blurred,
    "mean": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
}


def _check_given(name: str, given: Any) -> None:
    good = given in _REFERENCES if isinstance(given, str) else isinstance(given, (Tensor, tuple)) or callable(given)
    check(
        good,
        name,
        given,
        f"one of {', '.join(_REFERENCES)}, a tensor (c, h, w), or a function from images to references",
    )


def _account(values: tuple[Tensor, ...], output: Tensor, start: Tensor) -> dict[str, Tensor]:
    """The map's sum beside the logit's difference from the reference, (t, n)."""
    total = torch.stack([v.flatten(2).sum(2) for v in values]).sum(0)
    difference = output - start
    ratio = torch.where(difference == 0, 1 + total, total / torch.where(difference == 0, 1, difference))
    return {"total": total, "difference": difference, "ratio": ratio, "gap": difference - total}
