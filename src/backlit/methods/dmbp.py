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
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backlit._errors import InputError, ModelStateError, UnsupportedOp
from backlit.capture import Coverage, CoverageRow, FrozenNetwork, Site, freeze
from backlit.capture.forms import Scaled
from backlit.methods.base import (
    MOST_STEPS,
    Maps,
    Method,
    Options,
    activation_bytes,
    check,
    check_positive,
    check_whole,
    is_number,
)
from backlit.methods.inputs import alike, pick, why_not
from backlit.methods.masks import Masks, RMSprop, doubled
from backlit.methods.sites import Sites, check_sites, is_wanted

Variant = Literal["all", "+,-", "+", "nd"]
OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "rmsprop": lambda parameters, lr: RMSprop(parameters, lr=lr),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
}


@dataclass(frozen=True)
class Step:
    """What a callback sees after each step: the step's number from 1, the terms of Eq. 9 and 10 per image (n,).

    ``maps()`` computes the map that the masks give at this point, (n, c, h, w); it costs a forward and a backward pass.
    """

    index: int
    steps: int
    loss: Tensor
    positive: Tensor
    negative: Tensor
    nuisance: Tensor
    maps: Callable[[], Tensor]


@dataclass(frozen=True)
class DMBPOptions(Options):
    """Options of DMBP; the defaults are the paper's (Sec. 4).

    Attributes:
        variant: Loss of Table 1: "all" (Eq. 10), "+,-" (without the nuisance), "+" (only -y+), "nd" (no masks, Eq. 5).
        steps: Gradient steps.
        lr: Step size.
        optimizer: "rmsprop", "adam", "sgd", or a function of (parameters, lr) that makes an elementwise optimizer.
        init: Start of theta; the masks start at sigmoid(init). A number, or "normal" for standard normal draws.
        sites: Which activations are masked: "rectifiers" (ReLU and its kin), "activations" (every elementwise one), a
            function of the site, or names of sites and modules.
        tolerance: Stop an image once its loss changes by less than this share of itself in a step; None: never.
        dtype: Precision of the optimisation; None for the model's.
        compile: Run the steps through torch.compile: slower to start, faster afterwards.
        callback: Called with a :class:`Step` after each step.
    """

    variant: Variant = "all"
    steps: int = 200
    lr: float = 0.01
    optimizer: str | Callable[[list[Tensor], float], torch.optim.Optimizer] = "rmsprop"
    init: float | Literal["normal"] = 0.0
    sites: Sites = "rectifiers"
    tolerance: float | None = None
    dtype: torch.dtype | None = None
    compile: bool = False
    callback: Callable[[Step], None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.variant in ("all", "+,-", "+", "nd"), "variant", self.variant, "'all', '+,-', '+' or 'nd'")
        check_whole("steps", self.steps, high=MOST_STEPS)
        check_positive("lr", self.lr)
        known = callable(self.optimizer) or (isinstance(self.optimizer, str) and self.optimizer in OPTIMIZERS)
        check(known, "optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}, or a function (parameters, lr)")
        check(is_number(self.init) or self.init == "normal", "init", self.init, "a number or 'normal'")
        check_positive("tolerance", self.tolerance, none=True)
        check(isinstance(self.compile, bool), "compile", self.compile, "True or False")
        good = self.callback is None or callable(self.callback)
        check(good, "callback", self.callback, "a function of a step, or None")
        check_sites(self.sites)
        floating = self.dtype is None or (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point)
        check(floating, "dtype", self.dtype, "a floating-point torch dtype or None")


class DMBP(Method):
    """Disentangled Masked Backpropagation (Ruiz et al., ICCV 2021). ``DMBP.fast(model)`` is the short schedule."""

    name = "dmbp"
    title = "DMBP"
    summary = "masks learned per image split the gradient into positive, negative and nuisance parts"
    source = "Ruiz et al., ICCV 2021"
    Options = DMBPOptions
    takes_rules = False
    memory_factor = 16.0

    @classmethod
    def fast(cls, model: nn.Module, **options: Any) -> DMBP:
        """The short schedule: 5 steps of 0.5, chosen by insertion (``benchmarks/dmbp_schedules.py``)."""
        return cls(model, **{"steps": 5, "lr": 0.5, **options})

    def explain(self, inputs: tuple[Tensor, ...], targets: Tensor | None) -> Maps:
        n = inputs[0].shape[0]
        frozen = self.frozen(inputs)
        targets = pick(frozen.output[:n], targets)
        output = frozen.output[:n].gather(1, targets).T.to(inputs[0].dtype)
        chosen = [] if self.options.variant == "nd" else self.chosen(frozen)
        found = [Descent(self.options, frozen, chosen, inputs, target).run() for target in targets.T]
        signs = ("positive", "negative") if chosen else ()
        return Maps(
            values=tuple(torch.stack([f.map(i) for f in found]) for i in range(len(inputs))),
            targets=targets,
            output=output,
            coverage=_coverage(frozen, {site.name for site, _ in chosen}),
            activation_bytes=activation_bytes(frozen.trace, torch.cat([inputs[0]] * 2)),
            parts={s: tuple(torch.stack([f.maps[s][i] for f in found]) for i in range(len(inputs))) for s in signs},
            trajectory={k: torch.stack([f.trajectory[k] for f in found]) for k in found[0].trajectory},
            completeness={k: torch.stack([f.terms(output[t])[k] for t, f in enumerate(found)]) for k in _TERMS},
        )

    def frozen(self, inputs: tuple[Tensor, ...]) -> FrozenNetwork:
        """The network frozen at the images, each twice, as the descent runs it."""
        kind: dict[str, Any] = {"dtype": self.options.dtype or inputs[0].dtype, "memory_format": torch.channels_last}
        twice = tuple(torch.cat([x, x]) for x in inputs)
        try:
            frozen = freeze(self.model, *twice)
            if alike(*frozen.output.chunk(2)):
                return frozen.to(**kind)
        except (UnsupportedOp, ModelStateError):
            raise
        except Exception:
            if why_not(self.model, twice) is None:
                raise
        # The network takes no more images at once, as with a constant for each.
        return freeze(self.model, *inputs).to(**kind).mapped(doubled, lambda value: torch.cat([value, value]))

    def chosen(self, frozen: FrozenNetwork) -> list[tuple[Site, Scaled]]:
        """The activations that get masks.

        Raises:
            InputError: If there is none.
        """
        wanted = self.options.sites
        found = [(site, form) for site, form in frozen.activations if is_wanted(site, wanted)]
        if found:
            return found
        there = ", ".join(site.name for site, _ in frozen.activations)
        way_out = (
            f"{there}. sites='activations' takes them all."
            if there
            else "none that is elementwise. Use GradientXInput."
        )
        raise InputError(
            f"sites must leave DMBP an activation to mask, but {wanted!r} matches none on the way to the output. The model "
            f"has: {way_out}"
        )


def descent(model: nn.Module, x: Tensor, target: Tensor, **options: Any) -> Descent:
    """The descent of ``DMBP(model, **options)`` on images x and targets (n,), step by step."""
    method = DMBP(model, **options)
    frozen = method.frozen((x,))
    return Descent(method.options, frozen, method.chosen(frozen), (x,), target)


_TERMS = ("positive", "negative", "nuisance", "gap")


def _coverage(frozen: FrozenNetwork, masked: Collection[str]) -> Coverage:
    def rule(site: Site) -> str:
        return "masked" if site.name in masked else "affine" if site.kind == "affine" else "frozen"

    return Coverage(
        tuple(CoverageRow(s.name, s.primitive, s.kind, s.module, s.spelling, rule(s)) for s in frozen.trace)
    )


@dataclass(frozen=True)
class _Found:
    """The outcome of one descent: maps per sign and input, curves (steps, n), and the terms of Eq. 9, (n,)."""

    maps: dict[str, tuple[Tensor, ...]]
    trajectory: dict[str, Tensor]
    positive: Tensor
    negative: Tensor
    whole: Tensor

    def map(self, i: int) -> Tensor:
        """Eq. 7 for input i: the sum over the signs."""
        return torch.stack([maps[i] for maps in self.maps.values()]).sum(0)

    def terms(self, output: Tensor) -> dict[str, Tensor]:
        """Eq. 9 with the nuisance from the affine map, so that the gap to the network's own output is a measurement."""
        nuisance = self.whole - self.positive - self.negative
        gap = output - self.positive - self.negative - nuisance
        return {"positive": self.positive, "negative": self.negative, "nuisance": nuisance, "gap": gap}


class Descent:
    """Gradient descent on the masks of n images, each for its own target; :meth:`step` is one step of it."""

    def __init__(
        self,
        options: DMBPOptions,
        frozen: FrozenNetwork,
        chosen: list[tuple[Site, Scaled]],
        inputs: tuple[Tensor, ...],
        target: Tensor,
    ) -> None:
        dtype = options.dtype or inputs[0].dtype
        self._options, self._frozen = options, frozen
        self._n = inputs[0].shape[0]
        self._twice = tuple(torch.cat([x, x]).to(dtype).contiguous(memory_format=torch.channels_last) for x in inputs)
        self._index = torch.cat([target, target])[:, None]
        self._masks: Masks | None = None
        with torch.no_grad():
            self._whole = self._target_of(frozen(*self._twice))[0]
            if chosen:
                self._masks = Masks(chosen, self._n, dtype)
                self._start(self._masks)
                self._moving = frozen.at(*self._twice, scaled={site.name for site, _ in chosen})
                make = options.optimizer if callable(options.optimizer) else OPTIMIZERS[options.optimizer]
                self._optimizer = make([self._masks.theta], options.lr)
                self._stopped = _Stopped(options.tolerance, self._masks)
        # No bound method is kept: the cycle would hold hundreds of megabytes until the collector looks.
        self._compiled = torch.compile(_traced, fullgraph=True, dynamic=False) if options.compile else None

    @torch.enable_grad()
    def run(self) -> _Found:
        """Descend, and compute the maps of both signs."""
        if self._masks is None:  # "nd": the affine map itself
            maps, _, _ = self._maps()
            zero = torch.zeros_like(self._whole)
            return _Found({"whole": maps["positive"]}, {}, self._whole, zero, self._whole)
        curves = self._descend()
        maps, positive, negative = self._maps()
        return _Found(maps, curves, positive, negative, self._whole)

    @torch.enable_grad()
    def step(self) -> dict[str, Tensor]:
        """One forward and one backward pass, one step of the optimizer; the terms of Eq. 10 before it, (n,) each."""
        masks = self._masks
        assert masks is not None
        run = self._compiled or _eager
        positive, negative = self._target_of(run(self._moving, masks))
        nuisance = self._whole - positive - negative
        loss = -positive
        if self._options.variant != "+":
            loss = loss + negative
        if self._options.variant == "all":
            loss = loss + nuisance.abs()
        masks.backward(loss.sum(), traced=self._options.compile)
        self._stopped.before(loss.detach())
        self._optimizer.step()
        self._stopped.restore()
        masks.refresh()
        terms = {"loss": loss, "positive": positive, "negative": negative, "nuisance": nuisance}
        return {name: value.detach() for name, value in terms.items()}

    def _start(self, masks: Masks) -> None:
        with torch.no_grad():
            if self._options.init == "normal":
                for part in masks.of_images(masks.theta):  # the same draws for every image, whatever its chunk
                    generator = torch.Generator().manual_seed(self._options.seed)
                    part.copy_(torch.randn(part.shape[1:], generator=generator).to(part))
            else:
                masks.theta.fill_(self._options.init)
        masks.refresh()

    def _descend(self) -> dict[str, Tensor]:
        options = self._options
        curves: dict[str, list[Tensor]] = {"loss": [], "positive": [], "negative": [], "nuisance": []}
        for index in range(1, options.steps + 1):
            terms = self.step()
            for name, value in terms.items():
                curves[name].append(value)
            if options.callback is not None:
                options.callback(Step(index, options.steps, **terms, maps=self._current))
            if self._stopped.all:
                break
        return {name: torch.stack(values) for name, values in curves.items()}

    def _target_of(self, output: Tensor) -> tuple[Tensor, Tensor]:
        scores = output.gather(1, self._index)[:, 0]
        return scores[: self._n], scores[self._n :]

    def _current(self) -> Tensor:
        maps, _, _ = self._maps()
        return maps["positive"][0] + maps["negative"][0]

    def _maps(self) -> tuple[dict[str, tuple[Tensor, ...]], Tensor, Tensor]:
        """Eq. 7 and 11: both signs' x * gradient, and y+ and y-, through the whole affine map."""
        n = self._n
        leaves = tuple(x.detach().requires_grad_() for x in self._twice)
        activate = None if self._masks is None else self._masks.activate
        positive, negative = self._target_of(self._frozen(*leaves, activate=activate))
        grads = torch.autograd.grad((positive + negative).sum(), leaves, allow_unused=True)
        products = [x.detach() * (0 if g is None else g) for x, g in zip(leaves, grads, strict=True)]
        maps = {
            "positive": tuple(p[:n].contiguous() for p in products),
            "negative": tuple(p[n:].contiguous() for p in products),
        }
        return maps, positive.detach(), negative.detach()


def _eager(network: FrozenNetwork, masks: Masks) -> Tensor:
    return network(activate=masks.activate)


def _traced(network: FrozenNetwork, masks: Masks) -> Tensor:
    return network(activate=masks.traced)


class _Stopped:
    """The images whose loss no longer moves: their masks stay as they are, whatever their neighbours still do."""

    def __init__(self, tolerance: float | None, masks: Masks) -> None:
        self._tolerance, self._masks = tolerance, masks
        self._last: Tensor | None = None
        self._done = torch.zeros(masks.n, dtype=torch.bool, device=masks.theta.device)
        self._kept: Tensor | None = None

    @property
    def all(self) -> bool:
        return self._tolerance is not None and bool(self._done.all())

    def before(self, loss: Tensor) -> None:
        if self._tolerance is None:
            return
        if self._last is not None:
            self._done |= (loss - self._last).abs() <= self._tolerance * self._last.abs()
        self._last = loss
        self._kept = self._masks.theta.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        if self._kept is None:
            return
        for new, old in zip(self._masks.of_images(self._masks.theta), self._masks.of_images(self._kept), strict=True):
            new[self._done] = old[self._done]
