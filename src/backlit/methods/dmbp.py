"""DMBP: Disentangled Masked Backpropagation (Ruiz et al., ICCV 2021).

Every activation gets a mask in [0, 1]; back-propagation scaled by the masks gives the positive part y+ of the logit,
scaled by one minus the masks the negative part y-, and y~ = y - y+ - y- is the nuisance. Per image, gradient descent on
the masks minimises Eq. 10,

    y- - y+ + |y~|

and the map is Eq. 7, x * grad F+ + x * grad F-. No backward pass is differentiated for it: y+ is also what the network
computes forwards when its gates and switches are frozen at x and each activation is scaled by its mask, biases included
(Eq. 14). So one step is one ordinary forward and backward pass through an affine network, both signs in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backlit._errors import (
    MOST_STEPS,
    InputError,
    ModelStateError,
    UnsupportedOp,
    check,
    check_positive,
    check_whole,
    check_word,
    is_number,
    is_word,
    shown,
)
from backlit._warn import warn
from backlit.capture import Coverage, CoverageRow, FrozenNetwork, Site, freeze
from backlit.capture.forms import Scaled
from backlit.methods.axes import ANY
from backlit.methods.branches import behind_sums, images_apart, with_layers
from backlit.methods.descent import OPTIMIZERS, Descent
from backlit.methods.inputs import alike, why_not
from backlit.methods.job import Job, Maps, activation_bytes, scores_of
from backlit.methods.masks import doubled
from backlit.methods.named import Named
from backlit.methods.sites import Sites, check_sites, is_wanted
from backlit.methods.steps import Stepped

Variant = Literal["all", "+,-", "+", "nd"]
BESIDE_SUMS = ("branches", "layers")
BEHIND_LAYERS = ("layers", "everywhere")
LEAST_SHARE = 0.01
"""Of the magnitude of y+ and y-: where the image's pixels account for less, a warning says so."""


class DMBP(Stepped):
    """Disentangled Masked Backpropagation (Ruiz et al., ICCV 2021). ``DMBP.fast(model)`` is the short schedule.

    The defaults are the paper's (Sec. 3.4 and 4), but for ``init``, which it does not give. ``callback`` is called with a
    :class:`~backlit.methods.descent.Step`.

    Attributes:
        variant: Loss of Table 1: "all" (Eq. 10), "+,-" (without the nuisance), "+" (only -y+), "nd" (no masks, Eq. 5).
        steps: Gradient steps.
        lr: Step size.
        optimizer: "rmsprop", "adam", "sgd", or a function of (parameters, lr) that makes an elementwise optimizer.
        init: Start of theta; the masks start at sigmoid(init). A number, or "normal" for standard normal draws.
        sites: What is masked: "rectifiers" (ReLU and its kin), "branches" (rectifiers but those that read a residual sum:
            Sec. 3.4 leaves the identity as it is), "layers" (those, and every layer but the last that none of them
            follows), "everywhere" (every rectifier, and every layer but the last that none follows: "after each
            convolutional and ReLU", Eq. 16), "activations" (every elementwise one), a function of the site, or names of
            sites and modules.
        last_bias: The biases that no mask scales, such as the last layer's: "both" counts them in y+ and in y-, as both
            backward passes of Sec. 3.3 do; "half" counts half of them in each.
        tolerance: Stop an image once its loss changes by less than this share of itself in a step; None: never.
        dtype: Precision of the optimisation; None for the model's.
        compile: Run the steps through torch.compile: slower to start, faster afterwards.
    """

    axes = ANY
    name = "dmbp"
    title = "DMBP"
    kind = "signed"
    summary = "masks learned per image split the gradient into positive, negative and nuisance parts"
    answers = "Which pixels raise the logit, which lower it, and what of the gradient says nothing?"
    source = "Ruiz et al., ICCV 2021"
    takes_rules = False
    memory_factor = 16.0

    variant: Variant = "all"
    steps: int = 200
    lr: float = 0.01
    optimizer: str | Callable[[list[Tensor], float], torch.optim.Optimizer] = "rmsprop"
    init: float | Literal["normal"] = 0.0
    sites: Sites = "layers"
    last_bias: Literal["both", "half"] = "both"
    tolerance: float | None = None
    dtype: torch.dtype | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("variant", self.variant, ("all", "+,-", "+", "nd"))
        check_whole("steps", self.steps, high=MOST_STEPS)
        check_positive("lr", self.lr)
        known = callable(self.optimizer) or is_word(self.optimizer, OPTIMIZERS)
        check(known, "optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}, or a function (parameters, lr)")
        check(is_number(self.init) or is_word(self.init, ("normal",)), "init", self.init, "a number or 'normal'")
        check_positive("tolerance", self.tolerance, none=True)
        check(isinstance(self.compile, bool), "compile", self.compile, "True or False")
        check_sites(self.sites)
        check_word("last_bias", self.last_bias, ("both", "half"))
        floating = self.dtype is None or (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point)
        check(floating, "dtype", self.dtype, "a floating-point torch dtype or None")

    @classmethod
    def fast(cls, model: nn.Module | Named, **options: Any) -> DMBP:
        """The short schedule: 20 steps of 0.1 from theta = 1, chosen by insertion (``benchmarks/readings.py dmbp``)."""
        return cls(model, **{"steps": 20, "lr": 0.1, "init": 1.0, **options})

    @property
    def forward_passes(self) -> float:
        return 3.0 if self.variant == "nd" else 3.0 + 6 * self.steps  # y+ and y-, forward and back

    def explain(self, job: Job) -> Maps:
        n, inputs = len(job), job.inputs
        frozen = self.frozen(inputs)
        logits = frozen.output[:n]
        targets = job.pick(logits)
        chosen = [] if self.variant == "nd" else self.chosen(frozen, inputs)
        ends = [Descent(self, frozen, chosen, job, target).run() for target in targets.T]
        signs = ("positive", "negative") if chosen else ()
        each = range(len(inputs))
        terms = [end.terms(output) for end, output in zip(ends, scores_of(logits, targets).to(inputs[0]), strict=True)]
        maps = Maps.of(
            tuple(torch.stack([end.map(i) for end in ends]) for i in each),
            logits,
            targets,
            coverage=_coverage(frozen, {site.name for site, _ in chosen}),
            activation_bytes=activation_bytes(frozen.trace, torch.cat([inputs[0]] * 2)),
            notes={"masks": _described(frozen, chosen)},
            parts={s: tuple(torch.stack([end.maps[s][i] for end in ends]) for i in each) for s in signs},
            trajectory={k: torch.stack([end.trajectory[k] for end in ends]) for k in ends[0].trajectory},
            completeness={k: torch.stack([own[k] for own in terms]) for k in _TERMS},
        )
        return replace(maps, output=maps.output.to(inputs[0]))

    def look_at(self, maps: Maps) -> None:
        """Warn where the image's own share of y+ and y- is near nothing."""
        if self.variant != "nd":
            _warn_of_biases(maps)

    def frozen(self, inputs: tuple[Tensor, ...]) -> FrozenNetwork:
        """The network frozen at the images, each twice, as the descent runs it."""
        kind: dict[str, Any] = {"dtype": self.dtype or inputs[0].dtype, "memory_format": torch.channels_last}
        twice = tuple(torch.cat([x, x]) for x in inputs)
        try:
            frozen = self._freeze(twice)
            if alike(*frozen.output.chunk(2)):
                return frozen.to(**kind)
        except (UnsupportedOp, ModelStateError):
            raise
        except Exception:
            if why_not(self.network, twice) is None:
                raise
        # The network takes no more images at once, as with a constant for each.
        frozen = self._freeze(inputs).to(**kind)
        return frozen.mapped(lambda node: (doubled(node),), lambda value: torch.cat([value, value]))

    def _freeze(self, inputs: tuple[Tensor, ...]) -> FrozenNetwork:
        frozen = freeze(self.network, *inputs)
        if self.sites not in BEHIND_LAYERS:
            return frozen
        is_masked = self._is_masked(frozen)
        return with_layers(frozen, {site.name for site, _ in frozen.activations if is_masked(site)})

    def _is_masked(self, frozen: FrozenNetwork) -> Callable[[Site], bool]:
        wanted = self.sites
        if wanted not in (*BESIDE_SUMS, *BEHIND_LAYERS):
            return lambda site: is_wanted(site, wanted)
        unmasked = behind_sums(frozen) if wanted in BESIDE_SUMS else ()
        return lambda site: site.has("layer") or (is_wanted(site, "rectifiers") and site.name not in unmasked)

    def chosen(self, frozen: FrozenNetwork, inputs: tuple[Tensor, ...]) -> list[tuple[Site, Scaled]]:
        """The activations and, with ``sites="layers"``, the layers that get masks.

        Raises:
            InputError: If there is none.
        """
        wanted, is_masked = self.sites, self._is_masked(frozen)
        found = [(site, form) for site, form in frozen.activations if is_masked(site)]
        if wanted in BEHIND_LAYERS:
            apart = images_apart(frozen, inputs)
            found = [(site, form) for site, form in found if not site.has("layer") or site.name in apart]
        if found:
            return found
        there = ", ".join(site.name for site, _ in frozen.activations)
        way_out = (
            f"{there}. sites='activations' takes them all."
            if there
            else "none that is elementwise. Use GradientXInput."
        )
        raise InputError(
            f"sites must leave DMBP an activation to mask, but {shown(wanted)} matches none on the way to the output. The model "
            f"has: {way_out}"
        )


def descent(model: nn.Module, x: Tensor, target: Tensor, **options: Any) -> Descent:
    """The descent of ``DMBP(model, **options)`` on images x and targets (n,), step by step."""
    method = DMBP(model, **options)
    frozen = method.frozen((x,))
    return Descent(method, frozen, method.chosen(frozen, (x,)), Job((x,), target[:, None]), target)


_TERMS = ("positive", "negative", "nuisance", "positive_image", "negative_image", "gap")


def _described(frozen: FrozenNetwork, chosen: list[tuple[Site, Scaled]]) -> str:
    """What has masks, in a few words: a reading that does not fit a network shows here as the one that it then is."""
    layers = sum(site.has("layer") for site, _ in chosen)
    rectifiers = sum(is_wanted(site, "rectifiers") for site, _ in frozen.activations)
    sums = len(behind_sums(frozen).intersection(site.name for site, _ in frozen.activations))
    return (
        f"{len(chosen) - layers} of {len(frozen.activations) - layers} activations ({rectifiers} rectifiers, {sums} behind "
        f"a residual sum), {layers} layer{'s' * (layers != 1)}"
    )


def _warn_of_biases(maps: Maps) -> None:
    """Say where the image's own share of y+ and y- is near nothing: their map then says little about the logit."""
    terms = {name: maps.completeness[name].double().abs() for name in _TERMS}
    whole, own = (terms["positive" + end] + terms["negative" + end] for end in ("", "_image"))
    dead = own < LEAST_SHARE * whole
    if not bool(dead.any()):
        return
    t, i = divmod(int(torch.where(dead, own / whole, torch.inf).argmin()), own.shape[1])
    warn(
        f"DMBP: of the {float(whole[t, i]):.4g} that y+ and y- hold of image {i} (logit {float(maps.output[t, i]):.3g}), its "
        f"pixels account for {float(own[t, i]):.3g} ({float(own[t, i] / whole[t, i]):.2%}); the rest are biases, so the map "
        f"says little of this logit ({int(dead.any(0).sum())} of {own.shape[1]} images are under {LEAST_SHARE:.0%}). The "
        "objective is unbounded below, and masks in a row dim the image: leave masks out (sites='branches'), start them "
        "nearer to 1 (init=2), or take fewer or smaller steps (steps, lr)."
    )


def _coverage(frozen: FrozenNetwork, masked: Collection[str]) -> Coverage:
    def rule(site: Site) -> str:
        return "masked" if site.name in masked else "affine" if site.kind == "affine" else "frozen"

    return Coverage(
        tuple(CoverageRow(s.name, s.primitive, s.kind, s.module, s.spelling, rule(s)) for s in frozen.trace)
    )
