"""Gradient descent on DMBP's masks: what each step computes, when an image stops, and what the masks give in the end."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backlit._errors import InputError, reason
from backlit.capture import FrozenNetwork, Site
from backlit.capture.forms import Scaled
from backlit.methods.masks import Masks, RMSprop

if TYPE_CHECKING:
    from backlit.methods.dmbp import DMBP
    from backlit.methods.job import Job

OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "rmsprop": lambda parameters, lr: RMSprop(parameters, lr=lr),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
}


def _optimizer(named: str | Callable[..., object], theta: Tensor, lr: float) -> torch.optim.Optimizer:
    """Make the optimizer of the masks.

    Raises:
        InputError: If a function is none that makes one.
    """
    make = OPTIMIZERS[named] if isinstance(named, str) else named
    try:
        made = make([theta], lr)
    except TypeError as error:
        raise InputError(
            f"optimizer must be a function of (parameters, lr), but calling it with both fails: {reason(error)}."
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(
            f"optimizer must be a function that returns a torch.optim.Optimizer, but returns {type(made).__name__}."
        )
    return made


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
class Found:
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
        return {
            "positive": self.positive,
            "negative": self.negative,
            "nuisance": nuisance,
            "positive_image": self._of_pixels("positive"),
            "negative_image": self._of_pixels("negative"),
            "gap": gap,
        }

    def _of_pixels(self, sign: str) -> Tensor:
        """What the inputs account for, of a part that holds biases as well, (n,)."""
        return sum((m.flatten(1).sum(1) for m in self.maps.get(sign, ())), torch.zeros_like(self.whole))


class Descent:
    """Gradient descent on the masks of n images, each for its own target; :meth:`step` is one step of it."""

    def __init__(
        self,
        options: DMBP,
        frozen: FrozenNetwork,
        chosen: list[tuple[Site, Scaled]],
        job: Job,
        target: Tensor,
    ) -> None:
        inputs = job.inputs
        dtype = options.dtype or inputs[0].dtype
        self._options, self._frozen, self._job = options, frozen, job
        self._n = inputs[0].shape[0]
        self._twice = tuple(torch.cat([x, x]).to(dtype).contiguous(memory_format=torch.channels_last) for x in inputs)
        self._index = torch.cat([target, target])[:, None]
        self._masks: Masks | None = None
        self._shared: Tensor | float = 0.0  # what Eq. 14 counts in both parts, and this descent in neither
        with torch.no_grad():
            self._whole = self._target_of(frozen(*self._twice))[0]
            if chosen:
                if options.last_bias == "half":
                    self._shared = self._unmasked({site.name for site, _ in chosen}) / 2
                self._masks = Masks(chosen, self._n, dtype)
                self._start(self._masks)
                self._moving = frozen.at(*self._twice, scaled={site.name for site, _ in chosen})
                self._optimizer = _optimizer(options.optimizer, self._masks.theta, options.lr)
                self._stopped = _Stopped(options.tolerance, self._masks)
        # No bound method is kept: the cycle would hold hundreds of megabytes until the collector looks.
        self._compiled = torch.compile(_traced, fullgraph=True, dynamic=False) if options.compile else None

    @torch.enable_grad()
    def run(self) -> Found:
        """Descend, and compute the maps of both signs."""
        if self._masks is None:  # "nd": the affine map itself
            maps, _, _ = self._maps()
            zero = torch.zeros_like(self._whole)
            return Found({"positive": maps["positive"]}, {}, self._whole, zero, self._whole)
        curves = self._descend()
        maps, positive, negative = self._maps()
        return Found(maps, curves, positive, negative, self._whole)

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
        with options.watched(options.steps, self._job) as done:
            for index in range(1, options.steps + 1):
                terms = self.step()
                for name, value in terms.items():
                    curves[name].append(value)
                done(index)
                if options.callback is not None:
                    options.callback(Step(index, options.steps, **terms, maps=self._current))
                if self._stopped.all:
                    break
        return {name: torch.stack(values) for name, values in curves.items()}

    def _target_of(self, output: Tensor) -> tuple[Tensor, Tensor]:
        scores = output.gather(1, self._index)[:, 0]
        return scores[: self._n] - self._shared, scores[self._n :] - self._shared

    def _unmasked(self, masked: Collection[str]) -> Tensor:
        """What the biases that no mask scales give the target, (n,): the output of a black image behind closed masks."""

        def activate(site: Site, form: Scaled, z: Tensor) -> Tensor:
            return torch.zeros_like(z) if site.name in masked else form(z)

        return self._target_of(self._frozen(*map(torch.zeros_like, self._twice), activate=activate))[0]

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
