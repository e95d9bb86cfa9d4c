"""LPR: Learned Propagation Rules (Yang et al., ECCV 2020).

The backward pass of every activation is a plugin module G with parameters (``rules/plugin.py``); everything else keeps
its true derivative. Per image, Adam on the parameters minimises Eq. 10:

    g    gradient of the target's logit to the image x, with G at every activation            Sec. 3.2
    A    sum over channels of g * x                                                           Eq. 3
    Â    (A - min A) / (max A - min A)                                                        Fig. 4
    M^p  1 - sigmoid(gamma (Â - alpha)): hides what speaks for the target                     Eq. 4
    M^n  sigmoid(gamma (Â - beta)): hides what speaks against it                              Eq. 5
    L    F(x M^p) - F(x) + F(x) - F(x M^n) + lam (|1 - M^p| + |1 - M^n|)                      Eq. 7 to 10

The forward pass of x is run once; a step is one backward pass by G, one forward and backward pass of both masked images
of all images in one batch, and one pass back through the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backlit._errors import (
    MOST_STEPS,
    InputError,
    UnsupportedOp,
    check,
    check_positive,
    check_whole,
    check_word,
    is_number,
    is_word,
)
from backlit._forward import forward, unchanged
from backlit._layout import fast_layout
from backlit._plain import plain
from backlit._types import Heatmap
from backlit._warn import warn
from backlit.capture import Call, Propagation, Rule, Site, named, propagate
from backlit.capture.record import record
from backlit.capture.refuse import check_output
from backlit.capture.rule import as_rule
from backlit.capture.watch import Watch
from backlit.methods.axes import ANY
from backlit.methods.branches import between_convolutions
from backlit.methods.job import Job, Maps
from backlit.methods.named import Named
from backlit.methods.sites import Sites, check_sites, is_wanted
from backlit.methods.steps import Stepped
from backlit.rules import presets
from backlit.rules.adjoint import adjoint
from backlit.rules.exact import exact
from backlit.rules.plugin import READINGS, Plugin
from backlit.rules.table import rule_name

# Attention by its definition: torch's fused kernels have no second derivative.
_TRUE = presets.gradient.but({**dict.fromkeys(named("convolution"), adjoint), "attention": exact})


@dataclass(frozen=True)
class LPRStep:
    """What a callback sees after each step: its number from 1, the terms of Eq. 7 to 10 per image (n,), before the step.

    ``map`` is the map that they were computed from, (n, 1, h, w), of the first input if there are several. The images are
    those of one chunk; chunks come one after the other, and for each chunk its targets.
    """

    index: int
    steps: int
    loss: Tensor
    positive: Tensor
    negative: Tensor
    mask: Tensor
    map: Tensor


PAPER = "paper"
_CHOICES: dict[str, tuple[Any, Any]] = {
    "colours": ("sum", "each"),
    "mask_loss": ("mean", "sum"),
    "relative": (True, False),
    "start": ("logit", "nll"),
    "sites": ("activations", "between_convolutions"),
}
"""What an option is that is not given: with any reading, and with ``reading="paper"``."""


class LPR(Stepped):
    """Learned Propagation Rules (Yang et al., ECCV 2020). The map has one channel: a number for each pixel.

    ``LPR.fast(model)`` is a short schedule. The defaults are the paper's (Sec. 4.2) where it says one. ``callback`` is called
    with an :class:`LPRStep`.

    Attributes:
        reading: What G computes, of the four readings in ``rules/plugin.py``: "gradient", "gated", "multiplier", "features";
            or "paper", the printed text wherever it can be followed: G as "features", and the second value of each of the
            next four options and of ``sites``.
        colours: "sum": A is summed over the image's channels, so that a mask hides whole pixels; "each": Eq. 3 as it stands,
            a mask for each channel. The map then has the image's channels.
        mask_loss: The norm in Eq. 9: the "mean" over pixels, or the "sum" that it is.
        relative: Divide F by the magnitude of F(x), so that ``lam`` weighs alike for every image; False: Eq. 7 and 8.
        start: What the backward pass starts from: the "logit" (Sec. 3.1), or the negative log likelihood "nll" (Sec. 4.2),
            with its sign turned: positive speaks for the class.
        plugin: "element": a parameter for each element of a feature map (the paper's second architecture); "channel": C a
            layer (the first); or a function of the site that makes a rule with an attribute ``theta``, which is None until
            the rule first runs, and its parameters from then on, one row an image.
        reference: Subtract the features of an all-zero image (DeepLIFT's reference), in the readings that look at features.
        sign_aware: Both terms of the loss; without it M^p's alone (the ablation of Fig. 9).
        mask: "sigmoid" (Eq. 4 and 5) or "gaussian" (Eq. 6).
        alpha: Centre of M^p, on the scale of Â.
        beta: Centre of M^n.
        gamma: Steepness of both.
        sigma: Standard deviation of the Gaussian in pixels; the paper gives none.
        lam: Weight of the mask loss (lambda).
        score: F: the target's "logit" or its "probability".
        steps: Steps of Adam; the paper gives none.
        lr: Step size.
        init: Start of theta; the paper gives none.
        sites: Which activations get a plugin: "activations" (every elementwise one), "between_convolutions" (those with a
            convolution before and behind them: "within two convolution layers", Sec. 4.2), "rectifiers", a function of
            the site, or names of sites and modules.
    """

    axes = ANY
    name = "lpr"
    title = "LPR"
    kind = "signed"
    summary = "propagation rules at the activations, learned per image by hiding what they find"
    answers = "Which pixels, once hidden, lose the class, and which stood in its way?"
    source = "Yang et al., ECCV 2020"
    memory_factor = 7.0

    reading: str = "gradient"
    colours: Literal["sum", "each"] | None = None
    mask_loss: Literal["mean", "sum"] | None = None
    relative: bool | None = None
    start: Literal["logit", "nll"] | None = None
    plugin: Literal["element", "channel"] | Callable[[Site], Any] = "element"
    reference: bool = True
    sign_aware: bool = True
    mask: Literal["sigmoid", "gaussian"] = "sigmoid"
    alpha: float = 0.75
    beta: float = 0.25
    gamma: float = 10.0
    sigma: float = 2.0
    lam: float = 0.1
    score: Literal["logit", "probability"] = "logit"
    steps: int = 40
    lr: float = 0.2
    init: float = 1.0
    sites: Sites | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("reading", self.reading, (*READINGS, PAPER))
        for name in ("colours", "mask_loss", "start"):
            check_word(name, getattr(self, name), _CHOICES[name], none=True)
        known = callable(self.plugin) or is_word(self.plugin, ("element", "channel"))
        check(known, "plugin", self.plugin, "'element', 'channel', or a function that makes a rule for a site")
        check_word("mask", self.mask, ("sigmoid", "gaussian"))
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            check(is_number(value) and 0 <= value <= 1, name, value, "from 0 to 1, the scale of Â")
        for name in ("gamma", "sigma", "lr"):
            check_positive(name, getattr(self, name))
        check(is_number(self.lam) and self.lam >= 0, "lam", self.lam, "a number from 0")
        check(is_number(self.init) and self.init != 0, "init", self.init, "a number other than 0, where nothing moves")
        check_word("score", self.score, ("logit", "probability"))
        check_whole("steps", self.steps, high=MOST_STEPS)
        for name in ("reference", "sign_aware"):
            check(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        check(self.relative is None or isinstance(self.relative, bool), "relative", self.relative, "True or False")
        check_sites(self.choice("sites"))

    def choice(self, name: str) -> Any:
        """Return an option as it was given, or as the reading has it."""
        given = getattr(self, name)
        return _CHOICES[name][self.reading == PAPER] if given is None else given

    def recorded(self) -> dict[str, Any]:
        """The options, those that were not given as the reading has them."""
        return super().recorded() | {name: plain(self.choice(name)) for name in _CHOICES}

    @property
    def formula(self) -> str:
        """The formula of G, a name in ``READINGS``: the paper's words are those of "features"."""
        return "features" if self.reading == PAPER else self.reading

    @classmethod
    def fast(cls, model: nn.Module | Named, **options: Any) -> LPR:
        """The short schedule: 20 steps, half as many, chosen by MoRF and LeRF (``benchmarks/readings.py lpr_steps``)."""
        return cls(model, **{"steps": 20, "lr": 0.2, **options})

    @property
    def forward_passes(self) -> float:
        return 3.0 + 6 * self.steps

    def explain(self, job: Job) -> Maps:
        inputs = job.inputs
        fast = tuple(fast_layout(self.network, x) for x in inputs) if len(inputs) == 1 else inputs
        plugins = Plugins(self, self._reference(fast), self._between(fast))
        run = propagate(self.network, fast, plugins)
        if not plugins.rules:
            raise InputError(
                f"sites must leave LPR an activation to learn a rule for, but {self.choice('sites')!r} matches none of "
                f"{', '.join(s.name for s in run.trace.of_kind('activation')) or 'none: the network has no activation'}. "
                "Use GradientXInput for a network without activations."
            )
        targets = job.pick(run.output)
        ends = [Learning(self, run, plugins, target, job).run() for target in targets.T]
        names = ("mask_positive", "mask_negative") if self.sign_aware else ("mask_positive",)
        each = range(len(inputs))
        return Maps.of_run(
            run,
            tuple(torch.stack([end.maps[i] for end in ends]) for i in each),
            targets,
            parts={name: tuple(torch.stack([end.masks[i][name] for end in ends]) for i in each) for name in names},
            trajectory={k: torch.stack([end.trajectory[k] for end in ends]) for k in ends[0].trajectory},
        )

    def _reference(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor] | None:
        """What every activation reads when the images are zero, by its site; None where the reading does not ask."""
        if not self.reference or READINGS[self.formula].held is None or callable(self.plugin):
            return None
        found: dict[str, Tensor] = {}

        def note(call: Any, signals: tuple[Tensor, ...], result: Any) -> Any:
            if call.site.kind == "activation":
                found[call.site.name] = signals[0]
            return call.without_signals().run

        record(self.network, tuple(torch.zeros_like(x) for x in inputs), note)
        return found

    def _between(self, inputs: tuple[Tensor, ...]) -> frozenset[str] | None:
        """Names of the activations between two convolutions; None where ``sites`` asks for others."""
        if self.choice("sites") != "between_convolutions":
            return None
        recording, _ = record(self.network, inputs, lambda call, *_: call.without_signals().run)
        return between_convolutions(recording)


class Plugins:
    """The rule table of LPR: G at every chosen activation, the true derivative at every other site.

    ``between`` names the chosen ones, where it is given; else ``options.sites`` describes them.
    """

    def __init__(
        self, options: LPR, reference: dict[str, Tensor] | None, between: frozenset[str] | None = None
    ) -> None:
        self.rules: dict[str, Any] = {}
        self._options, self._reference, self._between = options, reference, between
        self._channel = 1

    def rule_for(self, site: Site) -> tuple[str, Rule | None]:
        """A new plugin for a chosen activation of one signal, the true derivative's rule for every other site."""
        if site.has("convolution", "dense"):  # the channels of what follows stand where the layer puts them
            self._channel = 1 if site.has("convolution") else -1
        given = self._options.rules or {}
        if site.primitive in given:
            rule = as_rule(given[site.primitive])
            return rule_name(rule), rule
        if site.kind != "activation" or len(site.input_shapes) != 1 or not self._wants(site):
            return _TRUE.rule_for(site)
        plugin = self._made(site)
        self.rules[site.name] = plugin
        rule = plugin.rule if isinstance(plugin, Plugin) else as_rule(plugin)
        return rule_name(rule), rule

    def _wants(self, site: Site) -> bool:
        if self._between is not None:
            return site.name in self._between
        return is_wanted(site, self._options.choice("sites"))

    def _made(self, site: Site) -> Any:
        options = self._options
        if callable(options.plugin):
            rule = options.plugin(site)
            if not callable(rule) or any(rule is other for other in self.rules.values()):
                raise InputError(
                    f"plugin must make a new rule for each site, rule(g, inputs, output, call), but made {rule!r} for {site}."
                )
            return rule
        z0 = None if self._reference is None else self._reference.get(site.name)
        if self._reference is not None and (z0 is None or tuple(z0.shape) != site.input_shapes[0]):
            raise UnsupportedOp(
                f"{site} has no counterpart when the image is zero: the network takes another way then. Use "
                "reference=False."
            )
        channel = self._channel if options.plugin == "channel" else None
        return Plugin(options.formula, channel=channel, init=options.init, reference=z0)


@dataclass(frozen=True)
class _Found:
    """Maps, masks by name, each (n, 1, h, w) for each input, and curves (steps, n)."""

    maps: tuple[Tensor, ...]
    masks: tuple[dict[str, Tensor], ...]
    trajectory: dict[str, Tensor]


class _Watched(Watch):
    """The network's own forward pass, with its writes in place made out of place."""

    def visit(self, call: Call) -> Any:
        return call.spelled()

    @classmethod
    def forward(cls, model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """The logits of the inputs, through which their graph goes on."""
        with unchanged(model, inputs):
            return cls(model, inputs).follow(model, inputs)


class Learning:
    """Adam on the plugins of n images, each with its own parameters and target (n,); :meth:`step` is one step."""

    def __init__(
        self, options: LPR, run: Propagation, plugins: Plugins, target: Tensor, job: Job | None = None
    ) -> None:
        self._options, self._model, self._run, self._plugins = options, options.network, run, plugins
        self._job = job or Job(run.inputs, target[:, None])
        self._inputs = tuple(x.detach() for x in run.inputs)
        self._target = target
        self._weights = nn.functional.one_hot(target, run.output.shape[1]).to(run.output.dtype)
        if options.choice("start") == "nll":  # the derivative of the log likelihood: positive speaks for the target
            self._weights = self._weights - run.output.detach().softmax(1)
        self._whole = self._score(run.output.detach(), 1)[0]
        self._optimizer: torch.optim.Optimizer | None = None
        self._watched = False
        self._apart = False
        self._finite = torch.ones(len(target), dtype=torch.bool, device=target.device)
        self._failed = torch.zeros(len(target), dtype=torch.long, device=target.device)  # the step, from 1
        for rule in plugins.rules.values():
            rule.theta = None

    @torch.enable_grad()
    def run(self) -> _Found:
        """All steps, the map that they end in, and its masks."""
        curves: dict[str, list[Tensor]] = {}
        last: tuple[Tensor, ...] = ()
        steps = self._options.steps
        with self._options.watched(steps, self._job) as done:
            for index in range(1, steps + 1):
                maps, terms = self.step()
                last = self._finite_of(maps, last, index, terms["loss"])
                for name, value in terms.items():
                    curves.setdefault(name, []).append(value)
                done(index)
                if self._options.callback is not None:
                    copies = {k: v.clone() for k, v in terms.items()}
                    self._options.callback(LPRStep(index, steps, **copies, map=maps[0].clone()))
        last = self._finite_of(self.maps(learn=False), last, self._options.steps + 1)
        self._warn(last)
        masks = tuple(self._masks(a) for a in last)
        return _Found(last, masks, {name: torch.stack(values) for name, values in curves.items()})

    def maps(self, *, learn: bool) -> tuple[Heatmap, ...]:
        """A of each input (Eq. 3), from the parameters as they are; with the graph behind it if it is to be learned from."""
        grads = self._run.gradient(self._weights, create_graph=learn, retain_graph=True)
        products = (g * x for g, x in zip(grads, self._inputs, strict=True))
        return tuple(p.sum(1, keepdim=True) if self._options.choice("colours") == "sum" else p for p in products)

    def step(self) -> tuple[tuple[Heatmap, ...], dict[str, Tensor]]:
        """One step of Adam; the maps and the terms of Eq. 10 before it, (n,) each."""
        try:
            maps, terms, thetas, grads = self._gradients()
        except RuntimeError as error:
            if self._watched or not any(word in str(error) for word in ("inplace", "in-place", "derivative")):
                raise
            self._watched = True  # autograd cannot follow the network's own writes in place, or its heaviside
            maps, terms, thetas, grads = self._gradients()
        if self._optimizer is None:
            fused = self._target.device.type in ("cpu", "cuda")
            self._optimizer = torch.optim.Adam(thetas, lr=self._options.lr, fused=fused)
        for theta, grad in zip(thetas, grads, strict=True):
            # The fused kernel walks through memory and takes no account of strides: both must have the same.
            theta.grad = None if grad is None else torch.empty_like(theta).copy_(grad)
        self._optimizer.step()
        return tuple(a.detach() for a in maps), terms

    def _gradients(self) -> tuple[tuple[Heatmap, ...], dict[str, Tensor], list[Tensor], tuple[Tensor | None, ...]]:
        """The maps, the terms of the loss, the plugins' parameters, and the loss's gradients to these."""
        maps = self.maps(learn=True)
        loss, terms = self.loss(maps)
        thetas = [r.theta for r in self._plugins.rules.values() if getattr(r, "theta", None) is not None]
        if not thetas:
            raise InputError(
                "plugin must set its attribute theta, tensors that require a gradient, when it runs, and sites must leave LPR "
                f"an activation that the logit depends on, but none of {', '.join(self._plugins.rules)} has parameters now."
            )
        return maps, terms, thetas, torch.autograd.grad(loss.sum(), thetas, allow_unused=True)

    def loss(self, maps: tuple[Heatmap, ...]) -> tuple[Float[Tensor, " n"], dict[str, Tensor]]:
        """Eq. 10 of these maps for each image, and its terms."""
        masks = [self._masks(a) for a in maps]
        names = list(masks[0])
        masked = tuple(torch.cat([x * m[k] for k in names]) for x, m in zip(self._inputs, masks, strict=True))
        scores = self._score(self._logits(masked, len(names)), len(names))
        norm = torch.sum if self._options.choice("mask_loss") == "sum" else torch.mean
        hidden = torch.stack([torch.stack([norm(1 - m[k], (1, 2, 3)) for k in names]).sum(0) for m in masks]).sum(0)
        positive = scores[0] - self._whole
        negative = self._whole - scores[1] if len(names) > 1 else torch.zeros_like(positive)
        loss = positive + negative + self._options.lam * hidden
        terms = {"loss": loss, "positive": positive, "negative": negative, "mask": hidden}
        return loss, {name: value.detach() for name, value in terms.items()}

    def _logits(self, masked: tuple[Tensor, ...], times: int) -> Tensor:
        """The logits of masked images, all at once; the n of each mask by themselves where the network takes no more."""
        if not self._apart:
            try:
                output = self._forward(masked)
                check_output(output, len(masked[0]))
                return output
            except Exception:
                if times == 1:
                    raise
                self._apart = True
        parts = zip(*(x.chunk(times) for x in masked), strict=True)
        return torch.cat([self._forward(part) for part in parts])

    def _forward(self, images: tuple[Tensor, ...]) -> Tensor:
        return _Watched.forward(self._model, images) if self._watched else forward(self._model, *images, grad=True)

    def _score(self, output: Tensor, times: int) -> Tensor:
        """F of the n images, each ``times`` times in the batch, (times, n).

        With ``relative`` a logit is divided by its magnitude for x, so that the mask loss weighs alike for every image; where
        that is less than a hundredth of the largest logit's, by this, for a logit may be zero.
        """
        index = self._target.repeat(times)[:, None]
        if self._options.score == "probability":
            return output.softmax(1).gather(1, index).view(times, -1)
        if not self._options.choice("relative"):
            return output.gather(1, index).view(times, -1)
        logits = self._run.output.detach()
        scale = torch.maximum(logits.gather(1, self._target[:, None])[:, 0].abs(), logits.abs().amax(1) / 100)
        return output.gather(1, index).view(times, -1) / scale.clamp(min=torch.finfo(scale.dtype).tiny)

    def _masks(self, a: Heatmap) -> dict[str, Heatmap]:
        """Eq. 4 and 5, or Eq. 6, of the map A."""
        options = self._options
        low, high = a.amin((1, 2, 3), keepdim=True), a.amax((1, 2, 3), keepdim=True)
        spread = high - low
        scaled = (a - low) / torch.where(spread > 0, spread, 1)  # a constant map has no scale: its masks do not move
        if options.mask == "sigmoid":
            positive = 1 - torch.sigmoid(options.gamma * (scaled - options.alpha))
            negative = torch.sigmoid(options.gamma * (scaled - options.beta))
        else:
            # As printed, Eq. 6 would keep what M^p must hide; it is read as the smoothed map in Eq. 4's place.
            negative = smoothed(scaled, options.sigma)
            positive = 1 - negative
        return (
            {"mask_positive": positive, "mask_negative": negative}
            if options.sign_aware
            else {"mask_positive": positive}
        )

    def _finite_of(
        self, maps: tuple[Tensor, ...], last: tuple[Tensor, ...], index: int, loss: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """These maps where map and loss of an image have been finite so far, the last such one elsewhere."""
        finite = torch.stack([a.flatten(1).isfinite().all(1) for a in maps]).all(0)
        keep = self._finite & finite
        if last:
            maps = tuple(torch.where(keep[:, None, None, None], a, b) for a, b in zip(maps, last, strict=True))
        now = keep if loss is None else keep & loss.isfinite()
        self._failed = torch.where(self._finite & ~now, index, self._failed)
        self._finite = now
        return maps

    def _warn(self, maps: tuple[Tensor, ...]) -> None:
        first, steps = self._job.first, self._options.steps
        for i in (~self._finite).nonzero().flatten().tolist():
            step = int(self._failed[i])
            when = f"at step {step} of {steps}" if step <= steps else "after the last step"
            _say(
                f"loss or map of image {first + i} is not finite {when}; its last finite map is returned. Use a smaller lr."
            )
        constant = torch.stack([a.amax((1, 2, 3)) == a.amin((1, 2, 3)) for a in maps]).all(0)
        if bool(constant.any()):
            which = ", ".join(str(first + i) for i in constant.nonzero().flatten().tolist())
            _say(
                f"the map of image {which} is constant, so its scaled map (Eq. 4) is undefined and nothing was learned from it. "
                "Is the image zero, or does the target not depend on it?"
            )


def _say(text: str) -> None:
    warn(f"LPR: {text}", RuntimeWarning)


def smoothed(a: Heatmap, sigma: float) -> Heatmap:
    """Eq. 6: the Gaussian mean of each pixel's neighbours, by their distance in pixels, over all of them."""

    def weights(size: int) -> Tensor:
        at = torch.arange(size, device=a.device, dtype=a.dtype)
        near = torch.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2))
        return near / near.sum(1, keepdim=True)

    return weights(a.shape[2]) @ a @ weights(a.shape[3]).T
