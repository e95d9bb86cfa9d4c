"""DeepLIFT and DeepSHAP: the difference of the logit from a reference, shared out among the pixels that differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError
from backlit._forward import of_image
from backlit._options import NO_OPTION
from backlit._warn import Once, warn
from backlit.capture import propagate
from backlit.methods.audit import Leak, audit
from backlit.methods.base import Method, check, check_positive
from backlit.methods.inputs import alike
from backlit.methods.job import Job, Maps, scores_of
from backlit.methods.targets import gradients
from backlit.rules import RuleTable, lift
from backlit.rules.reference import Reference

Given = str | Tensor | tuple[Tensor, ...] | Callable[[Tensor], Tensor]
_BLUR = 10.0  # pixels, standard deviation: what the insertion protocol hides pixels with


class _Lift(Method):
    """One pass at the references, one at the images, one backward pass with multipliers between the two.

    Attributes:
        rule: "rescale", or "reveal_cancel", which follows positive and negative changes apart.
        tolerance: Warn, once, when the map misses the difference of the logits by this share of it.
    """

    source = "Shrikumar et al. 2017"
    cost = "2 passes"
    memory_factor = 8.0

    rule: Literal["rescale", "reveal_cancel"] = "rescale"
    tolerance: float = 0.01

    _said: Once = field(default_factory=Once, init=False, metadata=NO_OPTION)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.rule in ("rescale", "reveal_cancel"), "rule", self.rule, "'rescale' or 'reveal_cancel'")
        check_positive("tolerance", self.tolerance)

    def lifted(self, job: Job, references: tuple[Tensor, ...], *, each: int = 1) -> tuple[Maps, Tensor]:
        """Maps of images against as many references, and the logits at the references (t, n).

        An image stands there ``each`` times in a row.
        """
        inputs, reveal = job.inputs, self.rule == "reveal_cancel"
        reference = Reference(self.network, references, images=inputs, layers=reveal)
        run = propagate(self.network, inputs, self._table(reference))
        reference.check(run.trace)
        targets = job.pick(run.output)
        values = tuple(m * (x - r) for m, x, r in zip(gradients(run, targets), inputs, references, strict=True))
        output, start = (scores_of(logits, targets) for logits in (run.output, reference.output))
        maps = Maps.of_run(run, values, targets, completeness=_account(values, output, start))
        self._check_sum(job, references, maps, start, each)
        return maps, start

    def _table(self, reference: Reference) -> RuleTable:
        table = lift.table(reference, reveal_cancel=self.rule == "reveal_cancel")
        return table.over(self.rules)

    def _check_sum(self, job: Job, references: tuple[Tensor, ...], maps: Maps, start: Tensor, each: int) -> None:
        """Warn if a map misses its difference, and more than the logits' rounding; a tiny one counts as a thousandth of them."""
        gap, difference = maps.completeness["gap"].abs(), maps.completeness["difference"].abs()
        sizes = _wide(maps.output).abs(), _wide(start).abs()
        scale = torch.maximum(difference, 1e-3 * torch.maximum(*sizes)).clamp(min=torch.finfo(gap.dtype).tiny)
        share = gap / scale * (gap > torch.finfo(start.dtype).eps * sum(sizes))
        if not float(share.max()) > self.tolerance or not self._said.first():
            return
        inputs = job.inputs
        t, i = divmod(int(share.argmax()), share.shape[1])

        def audited(pairs: tuple[Tensor, ...], place: int) -> tuple[Leak, ...]:
            images, references = pairs[: len(inputs)], pairs[len(inputs) :]
            reference = Reference(self.network, references, images=images, every=True)
            table = self._table(reference)
            wanted = int(maps.targets[i, t])
            return audit(self.network, images, table, wanted, reference.changes, image=place)

        leaks = of_image(audited, (*inputs, *references), i)
        worst = sorted((x for x in leaks if abs(x.lost) > 0.01 * float(gap[t, i])), key=lambda x: -abs(x.lost))[:5]
        warn(
            f"{self.title}: the map misses {float(share[t, i]):.1%} of the difference from the reference (image "
            f"{job.first + i // each}, more than tolerance={self.tolerance:g}). The largest differences are at "
            f"{'; '.join(f'{x.site} {x.lost:+.3g}' for x in worst) or 'values that the network computes as constants'}."
        )


class DeepLIFT(_Lift):
    """DeepLIFT (Shrikumar et al. 2017): the map sums to the logit's difference from a reference, on any network.

    Attributes:
        reference: "zero" (the mean colour of the training set, for a normalised input), "blur" (a Gaussian of 10 pixels),
            "mean" (each image's mean colour), a tensor for all images (c, h, w) or for each (n, c, h, w), a tuple of
            tensors for several inputs, or a function from images to references, which gets a chunk of them at a time.
    """

    name = "deeplift"
    title = "DeepLIFT"
    kind = "signed"
    summary = "difference from a reference, by finite slopes instead of gradients"

    reference: Given = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.reference
        good = given in _REFERENCES if isinstance(given, str) else isinstance(given, (Tensor, tuple)) or callable(given)
        _require(
            good,
            "reference",
            given,
            f"one of {', '.join(_REFERENCES)}, a tensor (c, h, w) or (n, c, h, w), or a function from images to references",
        )

    def explain(self, job: Job) -> Maps:
        return self.lifted(job, references_of(job, self.reference))[0]


class DeepSHAP(_Lift):
    """DeepSHAP (Lundberg and Lee 2017): DeepLIFT's maps averaged over references.

    Attributes:
        references: Images (r, c, h, w) to compare with, such as some of the training set, or a tuple of as many for each
            input; None for each image's zero, blurred and mean reference.
    """

    name = "deep_shap"
    title = "DeepSHAP"
    kind = "signed"
    summary = "DeepLIFT averaged over a set of references"
    source = "Lundberg and Lee 2017"
    cost = "6 passes"

    references: Tensor | tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sets = self.sets
        good = all(isinstance(s, Tensor) and s.dim() == 4 and len(s) == len(sets[0]) > 0 for s in sets)
        must = "images (r, c, h, w), or a tuple of as many for each input"
        _require(good and (bool(sets) or self.references is None), "references", self.references, must)

    @property
    def sets(self) -> tuple[Tensor, ...]:
        """The sets that were given."""
        given = self.references
        return () if given is None else given if isinstance(given, tuple) else (given,)

    def explain(self, job: Job) -> Maps:
        sets = self._sets(job)  # (n, r, c, h, w) each
        n, r = sets[0].shape[:2]
        group = max(1, 16 // n)  # references of an image that run at once: as many pairs as fit in a chunk
        try:
            return self._averaged(job, sets, group)
        except Exception:
            if min(group, r) == 1:
                raise
        return self._averaged(job, sets, 1)  # a network may take no other number of images than n

    def _averaged(self, job: Job, sets: list[Tensor], group: int) -> Maps:
        """DeepLIFT's maps averaged over the references (n, r, c, h, w), of which ``group`` run at once."""
        n, r = sets[0].shape[:2]
        inputs, targets = job.inputs, job.targets
        first: Maps | None = None
        sums: list[Tensor] = []  # of the maps, then of the logits at the references
        for some in zip(*(s.split(group, 1) for s in sets), strict=True):
            each = some[0].shape[1]
            pairs = tuple(x.repeat_interleave(each, 0) for x in inputs)
            wanted = None if targets is None else targets.repeat_interleave(each, 0)
            maps, start = self.lifted(Job(pairs, wanted, job.first), tuple(s.flatten(0, 1) for s in some), each=each)
            copies = maps.output.unflatten(1, (n, each))
            if not alike(copies, copies[..., :1]):
                raise InputError(
                    "references must meet the same image, but the model gives it other logits elsewhere in the batch."
                )
            found = [_wide(v).unflatten(1, (n, each)).sum(2) for v in (*maps.values, start)]
            sums = [s + v for s, v in zip(sums, found, strict=True)] if sums else found
            if first is None:
                first = replace(
                    maps,
                    targets=maps.targets[::each],
                    output=maps.output[:, ::each],
                    probability=None if maps.probability is None else maps.probability[:, ::each],
                    activation_bytes=maps.activation_bytes * each,
                )
                targets = first.targets  # the predicted class, if none was asked for, whatever the group
        assert first is not None
        *values, start = (s / r for s in sums)
        values = tuple(v.to(x) for v, x in zip(values, inputs, strict=True))
        return replace(
            first, values=values, completeness=_account(values, first.output, start), notes={"references": r}
        )

    def _sets(self, job: Job) -> list[Tensor]:
        """References of each image, (n, r, c, h, w) for each input."""
        given, inputs = self.sets, job.inputs
        if not given:
            return [torch.stack([make(x) for make in _REFERENCES.values()], 1) for x in inputs]
        if not isinstance(self.references, tuple):
            given = given * len(inputs)
        if len(given) != len(inputs):
            raise InputError(f"references must be one set for each of {len(inputs)} inputs, but has {len(given)}.")
        return [_set_for(s, x) for s, x in zip(given, inputs, strict=True)]


def _set_for(references: Tensor, x: Tensor) -> Tensor:
    if references.shape[1:] != x.shape[1:]:
        raise InputError(
            f"references must be shaped as the images, (r, {', '.join(map(str, x.shape[1:]))}), but have shape "
            f"{tuple(references.shape)}. For inputs of several shapes give a tuple, a set for each."
        )
    return _finite("references", references).to(x)[None].expand(len(x), *references.shape)


def references_of(job: Job, given: Given) -> tuple[Tensor, ...]:
    """One reference for each image of each input, as constants.

    Raises:
        InputError: If a reference is not shaped as the images, or not finite.
    """
    inputs = job.inputs
    if isinstance(given, str):
        return tuple(_REFERENCES[given](x) for x in inputs)
    several = given if isinstance(given, tuple) else (given,)
    found = tuple(given(x) for x in inputs) if callable(given) else several
    if len(found) != len(inputs):
        raise InputError(f"reference must be one tensor for each of {len(inputs)} inputs, but has {len(found)}.")
    return tuple(_fitting(r, x, job, function=callable(given)) for r, x in zip(found, inputs, strict=True))


def _fitting(reference: Any, x: Tensor, job: Job, *, function: bool) -> Tensor:
    """A reference for each image: the same, or those of a function, or this chunk's of one for each image of the batch."""
    shape, one = _found(reference), tuple(x.shape[1:])
    n = len(x) if function else job.images or len(x)
    if shape not in (one, (1, *one), (n, *one)):
        way_out = (
            "A function is called with a chunk of the images; for fixed references give the tensor itself."
            if function
            else "For several references an image use DeepSHAP."
        )
        raise InputError(
            f"reference must be shaped as one image, {one}, or be one for each, {(n, *one)}, but is {shape}. {way_out}"
        )
    reference = _finite("reference", reference).to(x)
    if shape == (n, *one) and not function:
        reference = reference[job.first :][: len(x)]
    return reference.expand_as(x)


def _finite(name: str, given: Tensor) -> Tensor:
    if not bool(given.isfinite().all()):
        raise InputError(f"{name} must be finite, but {'hold' if name.endswith('s') else 'holds'} NaN or Inf.")
    return given.detach()


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


def _found(given: Any) -> Any:
    """What was given, for a message: never a tensor's values."""
    if isinstance(given, Tensor):
        return tuple(given.shape)
    if isinstance(given, (tuple, list)):
        return f"a {type(given).__name__} of {', '.join(str(_found(g)) for g in given) or 'nothing'}"
    return repr(given) if isinstance(given, (str, int, float)) else type(given).__name__


def _require(holds: bool, name: str, given: Any, must_be: str) -> None:
    if not holds:
        raise InputError(f"{name} must be {must_be}, but is {_found(given)}.")


def _wide(values: Tensor) -> Tensor:
    """At least single precision, for sums."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _account(values: tuple[Tensor, ...], output: Tensor, start: Tensor) -> dict[str, Tensor]:
    """The map's sum beside the logit's difference from the reference, (t, n)."""
    total = torch.stack([_wide(v).flatten(2).sum(2) for v in values]).sum(0)
    difference = _wide(output) - start
    ratio = torch.where(difference == 0, 1 + total, total / torch.where(difference == 0, 1, difference))
    return {"total": total, "difference": difference, "ratio": ratio, "gap": difference - total}
