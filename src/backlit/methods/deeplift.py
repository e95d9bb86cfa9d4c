"""DeepLIFT and DeepSHAP: the difference of the logit from a reference, shared out among the pixels that differ."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Literal

import torch
from torch import Tensor

from backlit._errors import InputError, check_positive, check_word
from backlit._forward import of_image
from backlit._options import NO_OPTION
from backlit._warn import Once, warn
from backlit.capture import propagate
from backlit.methods.account import account, wide
from backlit.methods.audit import Leak, audit
from backlit.methods.axes import ANY
from backlit.methods.base import Method
from backlit.methods.copies import repeated
from backlit.methods.images import (
    BASELINE_IMAGES,
    Baseline,
    References,
    baselines_of,
    check_baseline,
    check_references,
    reference_sets,
    sets_of,
)
from backlit.methods.inputs import alike
from backlit.methods.job import Job, Maps, scores_of
from backlit.methods.targets import gradients
from backlit.rules import RuleTable, lift
from backlit.rules.reference import Reference


class _Lift(Method):
    """One pass at the references, one at the images, one backward pass with multipliers between the two.

    Attributes:
        rule: "rescale", or "reveal_cancel", which follows positive and negative changes apart.
        tolerance: Warn, once, when the map misses the difference of the logits by this share of it.
    """

    axes = ANY
    source = "Shrikumar et al. 2017"
    memory_factor = 8.0

    rule: Literal["rescale", "reveal_cancel"] = "rescale"
    tolerance: float = 0.01

    _said: Once = field(default_factory=Once, init=False, metadata=NO_OPTION)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("rule", self.rule, ("rescale", "reveal_cancel"))
        check_positive("tolerance", self.tolerance)

    @property
    def forward_passes(self) -> float:
        return 4.0

    def lifted(self, job: Job, references: tuple[Tensor, ...], *, images: int | None = None) -> tuple[Maps, Tensor]:
        """Maps of images against as many references, and the logits at the references (t, n).

        They are copies of ``images`` images, all of them once and then again.
        """
        inputs, reveal = job.inputs, self.rule == "reveal_cancel"
        reference = Reference(self.network, references, images=inputs, layers=reveal)
        run = propagate(self.network, inputs, self._table(reference))
        reference.check(run.trace)
        targets = job.pick(run.output)
        values = tuple(m * (x - r) for m, x, r in zip(gradients(run, targets), inputs, references, strict=True))
        output, start = (scores_of(logits, targets) for logits in (run.output, reference.output))
        maps = Maps.of_run(run, values, targets, completeness=account(values, output, start))
        self._check_sum(job, references, maps, start, images or len(job))
        return maps, start

    def _table(self, reference: Reference) -> RuleTable:
        table = lift.table(reference, reveal_cancel=self.rule == "reveal_cancel")
        return table.over(self.rules)

    def _check_sum(self, job: Job, references: tuple[Tensor, ...], maps: Maps, start: Tensor, images: int) -> None:
        """Warn if a map misses its difference, and more than the logits' rounding; a tiny one counts as a thousandth of them."""
        gap, difference = maps.completeness["gap"].abs(), maps.completeness["difference"].abs()
        sizes = wide(maps.output).abs(), wide(start).abs()
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
            f"{job.first + i % images}, more than tolerance={self.tolerance:g}). The largest differences are at "
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
    answers = "Which pixels make the logit differ from that of a reference?"

    reference: Baseline = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline("reference", self.reference)

    def explain(self, job: Job) -> Maps:
        return self.lifted(job, baselines_of(job, self.reference, "reference"))[0]


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
    answers = "Which pixels make the logit differ from those of several references?"
    source = "Lundberg and Lee 2017"

    references: References = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_references(self.references)

    @property
    def forward_passes(self) -> float:
        sets = sets_of(self.references)
        return 4.0 * (len(sets[0]) if sets else len(BASELINE_IMAGES))

    def explain(self, job: Job) -> Maps:
        sets = reference_sets(job, self.references)  # (n, r, c, h, w) each
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
            pairs = tuple(repeated(x, each) for x in inputs)
            wanted = None if targets is None else repeated(targets, each)
            maps, start = self.lifted(
                Job(pairs, wanted, job.first), tuple(s.transpose(0, 1).flatten(0, 1) for s in some), images=n
            )
            copies = maps.output.unflatten(1, (each, n))
            if not alike(copies, copies[:, :1]):
                raise InputError(
                    "references must meet the same image, but the model gives it other logits elsewhere in the batch."
                )
            found = [wide(v).unflatten(1, (each, n)).sum(1) for v in (*maps.values, start)]
            sums = [s + v for s, v in zip(sums, found, strict=True)] if sums else found
            if first is None:
                first = replace(
                    maps,
                    targets=maps.targets[:n],
                    output=maps.output[:, :n],
                    probability=None if maps.probability is None else maps.probability[:, :n],
                    activation_bytes=maps.activation_bytes * each,
                )
                targets = first.targets  # the predicted class, if none was asked for, whatever the group
        assert first is not None
        *values, start = (s / r for s in sums)
        values = tuple(v.to(x) for v, x in zip(values, inputs, strict=True))
        return replace(first, values=values, completeness=account(values, first.output, start), notes={"references": r})
