"""Learn a network's inverse from data: one pass over the data for each layer that has something to learn (Algorithm 1).

Memory: the moments of the layers that one pass learns, for as many classes at a time as fit into ``memory``, and one batch
of activations and signals; never more than one batch of samples. Classes that do not fit take passes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backlit._errors import InputError, check, check_word, is_number
from backlit._json import JsonObject
from backlit._warn import warn
from backlit.inverse.artefact import Fitted
from backlit.inverse.chain import WayBack
from backlit.inverse.data import Batch, Data, check_values
from backlit.inverse.fitting import FitStep, Fitting, Piece
from backlit.inverse.moments import Moments, Ridge, Solution, solve
from backlit.inverse.part import INPUT, InvertedPart, StepBack, find_part
from backlit.inverse.regressions import Dense, Regression
from backlit.inverse.signals import Who

_AT_ONCE = 2**22  # numbers of one block of regressors: 32 MiB in float64
_ABSENT = "has no samples", "Give data of it, or samples='all'"
_CONSTANT = "is constant on its samples", "Give more samples, or samples='all'"
Layers = dict[str, dict[str, Tensor]]


class InverseNetwork(Fitted):
    """A backward network of MIP-IN; :func:`fit_inverse` makes one."""


_CHOICES: dict[str, tuple[Any, Any]] = {
    "products": ("means", "sums"),
    "ridge_at": ("all", "dense"),
    "constant": (True, False),
}
"""What an option is that is not given: as built, and with ``reading="paper"``."""


@dataclass(frozen=True)
class FitOptions:
    """A choice of what is learned, and how.

    Attributes:
        classes: Indices of the classes to learn, None for all of the network's; those without samples, or with a constant
            logit, are then left out with a warning, where they are an error if they were asked for.
        start: Where the inverted part begins: "input"; "features", the last feature map (None is the same); "pooled", that
            map behind the last pool that leaves it more than one position, as VGG's (512, 7, 7) of Sec. 6.1.2; or the path of
            a module or a site (its last output).
        samples: Whose samples a class learns from: "all", or its "own" (by the data's labels; by the network's prediction
            where it has none).
        ridge: Lambda of Eq. 6.
        reading: "means" or "paper", what each of the next three options is that is not given: the first or the second of
            its values.
        products: The ridge is added to the "means" of products over the samples, so that it does not depend on their
            number, or to their "sums", as Eq. 6 prints them: it is then that many times weaker.
        ridge_at: Which layers have it: "all", or the "dense" ones alone. A convolution then has but the 1e-12 of its
            regressors' variance that solving takes. Residual sums and joins, which the paper has none of, keep it.
        constant: A convolution's inverse has a constant for each channel. Eq. 7 has none.
        memory: Bytes for the moments of the classes that are learned at once, and for solving with them.
        precision: Dtype of the products inside a batch, which are centred first; they are summed and solved in float64.
    """

    classes: Sequence[int] | None = None
    start: str | None = INPUT
    samples: Literal["all", "own"] = "all"
    ridge: float = 1e-3
    reading: Literal["means", "paper"] = "means"
    products: Literal["means", "sums"] | None = None
    ridge_at: Literal["all", "dense"] | None = None
    constant: bool | None = None
    memory: int = 2**30
    precision: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        precise = isinstance(self.precision, torch.dtype) and self.precision in (torch.float32, torch.float64)
        start = "'input', 'features', 'pooled', a module path or a site"
        check_word("samples", self.samples, ("all", "own"))
        check(is_number(self.ridge) and self.ridge >= 0, "ridge", self.ridge, "a number from 0 on")
        check(precise, "precision", self.precision, "torch.float32 or torch.float64")
        check(type(self.memory) is int and self.memory > 0, "memory", self.memory, "a positive number of bytes")
        check(self.start is None or isinstance(self.start, str), "start", self.start, start)
        check_word("reading", self.reading, ("means", "paper"))
        for name, values in _CHOICES.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, values[self.reading == "paper"])
            value = getattr(self, name)
            known = any(type(value) is type(v) and value == v for v in values)
            check(known, name, value, f"{values[0]!r} or {values[1]!r}")

    def ridge_of(self, regression: Regression) -> Ridge:
        """Return how a layer's inverse is regularised."""
        if regression.relative:
            return Ridge(self.ridge, relative=True)
        dense = isinstance(regression, Dense)
        bare = self.ridge_at == "dense" and not dense
        constant = dense or bool(self.constant)
        return Ridge(0.0 if bare else self.ridge, bare, self.products == "sums", constant)


def fit_inverse(
    model: nn.Module,
    data: Data,
    options: FitOptions,
    *,
    out: str | Path | None = None,
    description: str = "",
    progress: Callable[[FitStep], None] = lambda step: None,
) -> InverseNetwork:
    """Learn the inverse of the part of ``model`` from ``options.start`` to the logits.

    Args:
        model: The network, in eval mode. It is not changed.
        data: An iterable of batches, images (n, c, h, w) or (images, class indices), that can be gone through again.
        options: What to learn and how.
        out: A file for the result. While it is being learned, each finished layer is kept in a folder beside it
            (``OUT.parts``), from which the same call goes on after an interruption.
        description: Of the data, for the record.
        progress: Called after each batch.

    Raises:
        InputError: If an argument or a batch cannot be used; if a class that was asked for is not in the data (own
            samples) or its logit is constant.
        UnsupportedOp: If the part holds operations without an inverse; lists all of them.
        ModelStateError: If an activation is not finite; names the batch.
        FileError: If ``out`` cannot be written or is anything but an earlier fit of this kind, or its folder of parts belongs
            to another fit or is in use.
    """
    job = Fitting("mip_in", model, data, out, progress)
    part = find_part(model, job.sample, options.start)
    classes = _classes(options.classes, part.classes)
    fit = _Fit(job, part, options)
    facts = {
        "start": part.start,
        "asked": options.start,
        "samples": options.samples,
        "ridge": options.ridge,
        **{name: getattr(options, name) for name in ("reading", *_CHOICES)},
        "precision": str(options.precision).removeprefix("torch."),
        "description": description,
    }
    with job.begun({**facts, "classes": classes, "memory": options.memory}):
        chunks = [fit.learn(number, chunk) for number, chunk in enumerate(fit.chunks(classes))]
        if not job.passes:  # all of an interrupted call: are these the data that it learned from?
            for _ in job.batches(classes=fit.labelled):
                pass
        some = [layers for layers, learned in chunks if learned]
        if not some:
            raise InputError(
                "data must let at least one class be learned, but every logit is constant on it or has no samples."
            )
        layers = {
            name: {key: torch.cat([layers[name][key] for layers in some]) for key in sorted(some[0][name])}
            for name in part.regressions
        }
        facts |= {"layers": [fit.said[name] for name in part.regressions], "without_effect": _without_effect(part)}
        return job.result(InverseNetwork, layers, tuple(c for _, learned in chunks for c in learned), facts)


def _without_effect(part: InvertedPart) -> list[str]:
    """Return the options of ``reading`` that change nothing in this part, for it has no layer that they are about."""
    layers = [r for r in part.regressions.values() if not r.relative]
    idle = {
        "products": not layers,
        "ridge_at": all(isinstance(r, Dense) for r in layers),
        "constant": all(isinstance(r, Dense) for r in layers),
        "rectify": not part.gated,
    }
    return [name for name, nothing in idle.items() if nothing]


def _classes(wanted: Sequence[int] | None, count: int) -> list[int]:
    if wanted is None:
        return list(range(count))
    try:
        classes = [index(c) for c in wanted]
    except TypeError:
        classes = []
    wrong = isinstance(wanted, str) or any(not 0 <= c < count for c in classes)
    if not classes or wrong or len(set(classes)) < len(classes):
        shown = list(wanted)[:10] if isinstance(wanted, (list, tuple)) else wanted
        raise InputError(
            f"classes must be different class indices from 0 to {count - 1}, but are {shown!r}. None is all of them."
        )
    return classes


@dataclass
class _Fit:
    """A fit of one part; ``said`` is how well each layer was determined."""

    job: Fitting
    part: InvertedPart
    options: FitOptions
    said: dict[str, JsonObject] = field(default_factory=dict)

    @property
    def labelled(self) -> int | None:
        """The number of classes that the labels may name, where they are used."""
        return self.part.classes if self.options.samples == "own" else None

    def chunks(self, classes: list[int]) -> list[list[int]]:
        """Return the classes that are learned at once."""
        one = self.part.bytes_at_once
        if one > self.options.memory:
            warn(
                f"backlit: the moments of one class take {one:,} bytes, more than memory, which is {self.options.memory:,}; the "
                "classes are learned one after the other. Begin at a later layer to need less."
            )
        size = max(1, self.options.memory // one)
        return [classes[i : i + size] for i in range(0, len(classes), size)]

    def learn(self, number: int, classes: list[int]) -> tuple[Layers, list[int]]:
        """Learn all layers of these classes; return their parameters, and which classes could be learned."""
        layers: Layers = {}
        regressions = self.part.regressions
        while classes and len(layers) < len(regressions):
            name = f"{number}-{next(name for name in regressions if name not in layers)}"
            piece = self.job.read_finished(name) or self._learned(name, classes, layers)
            layers, classes = layers | piece.layers, piece.facts["classes"]
            self.said |= piece.facts["said"]
        return layers, classes

    def _learned(self, name: str, classes: list[int], layers: Layers) -> Piece:
        """Go through the data once, and solve what is known by now, without the classes that have nothing to learn."""
        moments = self._pass(classes, layers)
        alive = torch.tensor([bool(moments)] * len(classes), device=self.job.device)
        if not moments:  # no batch had a sample of them
            self._refuse(classes, classes, *_ABSENT)
        for step in self.part.steps:
            if step.diagonal and step.name in moments:
                alive = self._has_signal(classes, moments[step.name])
        learned, said = {}, {}
        for layer, of_all in moments.items():
            regression, of_some = self.part.regressions[layer], of_all.of(alive)
            solution = solve(of_some, self.options.ridge_of(regression), layer)
            parameters = regression.parameters(solution.weight, solution.bias)
            learned[layer] = {key: t.to(self.job.dtype) for key, t in parameters.items()}
            said[layer] = _say(layer, of_some, solution)
        some = [c for c, a in zip(classes, alive.tolist(), strict=True) if a]
        return self.job.keep(name, learned, {"classes": some, "said": said})

    def _pass(self, classes: list[int], layers: Layers) -> dict[str, Moments]:
        """Return the moments of every layer whose signals are known by now."""
        moments: dict[str, Moments] = {}
        fitted = {k: {n: t.to(self.job.device, self.job.dtype) for n, t in v.items()} for k, v in layers.items()}
        chosen = torch.tensor(classes, device=self.job.device)
        for batch in self.job.batches(moments, len(self.part.regressions), classes=self.labelled):
            if self.labelled and batch.labels is not None:
                batch = batch.rows(torch.isin(batch.labels, chosen).nonzero().flatten())
            if len(batch.inputs[0]):
                self._learn_from(batch, chosen, fitted, moments)
        return moments

    @torch.no_grad()
    def _learn_from(self, batch: Batch, classes: Tensor, fitted: Layers, moments: dict[str, Moments]) -> None:
        values = self.part.values(self.job.model, batch.inputs)
        check_values([values.output], "the logits", batch)
        ids = torch.arange(len(classes), device=classes.device)[:, None].expand(-1, len(values.output))
        images = torch.arange(ids.shape[1], device=classes.device)
        if self.labelled:
            labels = values.output.argmax(1) if batch.labels is None else batch.labels
            same = labels[:, None] == classes
            ids, images = same.to(torch.int64).argmax(1)[None], same.any(1).nonzero().flatten()
        who = Who(ids, classes)

        def learn(step: StepBack, signals: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
            check_values(targets, step.name, batch)
            assert step.regression is not None
            if step.name not in moments:
                moments[step.name] = Moments(
                    len(classes), step.regression.sizes, classes.device, self.options.precision
                )
            for one, block in who.for_learning(images, max(1, _AT_ONCE // (step.regression.row * len(signals[0])))):
                step.regression.learn(
                    moments[step.name], one, [s[:, block] for s in signals], [t[block] for t in targets]
                )

        WayBack(self.part, values, fitted, who, learn=learn).run()

    def _has_signal(self, classes: list[int], m: Moments) -> Tensor:
        """Return whether each class's logit varies over its samples.

        Raises:
            InputError: If one that was asked for by name does not.
        """
        count = m.count
        variance = m.ss[:, 0].diagonal(dim1=-2, dim2=-1).sum(-1) / count.clamp(min=1)
        constant = variance <= 1e-12 * m.mean_s[:, 0].square().sum(-1)
        for bad, why in ((count == 0, _ABSENT), (constant & (count > 0), _CONSTANT)):
            lost = [c for c, b in zip(classes, bad.tolist(), strict=True) if b]
            if lost:
                self._refuse(lost, classes, *why)
        return ~constant & (count > 0)

    def _refuse(self, lost: list[int], classes: list[int], why: str, way_out: str) -> None:
        text = f"the logit of class {', '.join(map(str, lost[:10]))}{' and others' * (len(lost) > 10)} {why}"
        if self.options.classes is not None:
            raise InputError(f"data: {text}, so there is nothing to learn for it. {way_out}, or leave the class out.")
        warn(f"backlit: {text}; {len(lost)} of {len(classes)} classes are left out. {way_out}.")


def _say(name: str, m: Moments, solution: Solution) -> JsonObject:
    """Return how well a layer was determined; warn if it hardly was."""
    q, some = m.sizes.unknowns, len(m.count) > 0
    if solution.condition is not None and q > 1:
        warn(
            f"backlit: {name} has {int(m.count.min())} samples for {q} unknowns and a constant; the condition number is "
            f"{solution.condition:.1e}, and the ridge decides what the samples do not. Give more samples."
        )
    return {
        "name": name,
        "samples": float(m.count.min()) if some else 0.0,
        "unknowns": q,
        "explained": float(solution.explained.mean()) if some else 0.0,
        "condition": solution.condition,
    }
