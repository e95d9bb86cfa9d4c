"""Learn a network's inverse from data: one pass over the data for each layer that has something to learn (Algorithm 1).

Memory: the moments of the layers that one pass learns, for as many classes at a time as fit into ``memory``, and one batch
of activations and signals; never more than one batch of samples. Classes that do not fit take passes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from operator import index
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backlit._errors import InputError
from backlit._files import absolute
from backlit._plain import network_of, versions
from backlit._version import __version__
from backlit._warn import warn
from backlit.inverse.artefact import Fitted, weights_of
from backlit.inverse.chain import go_back
from backlit.inverse.data import Batch, Data, Digest, batches, check_data, check_values
from backlit.inverse.moments import Moments, Ridge, solve
from backlit.inverse.part import INPUT, Part, find_part
from backlit.inverse.parts_folder import PartsFolder
from backlit.inverse.regressions import Dense, Regression
from backlit.inverse.signals import Who

_AT_ONCE = 2**22  # numbers of one block of regressors: 32 MiB in float64
_ABSENT = "has no samples", "Give data of it, or samples='all'"
_CONSTANT = "is constant on its samples", "Give more samples, or samples='all'"


class InverseNetwork(Fitted):
    """The backward network of MIP-IN; :func:`fit_inverse` makes one."""


@dataclass(frozen=True)
class FitStep:
    """How far a fit is: pass ``number`` (from 1) over the data learns ``layers``; ``samples`` are done of it."""

    number: int
    passes: int
    layers: tuple[str, ...]
    samples: int
    total: int | None


_CHOICES: dict[str, tuple[Any, Any]] = {
    "products": ("means", "sums"),
    "ridge_at": ("all", "dense"),
    "constant": (True, False),
}
"""What an option is that is not given: as built, and with ``reading="paper"``."""


@dataclass(frozen=True)
class FitOptions:
    """How an inverse is learned.

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
        if self.samples not in ("all", "own"):
            raise InputError(f"samples must be 'all' or 'own', but is {self.samples!r}.")
        if isinstance(self.ridge, bool) or not (isinstance(self.ridge, (int, float)) and 0 <= self.ridge < inf):
            raise InputError(f"ridge must be a number from 0 on, but is {self.ridge!r}.")
        if self.precision not in (torch.float32, torch.float64):
            raise InputError(f"precision must be torch.float32 or torch.float64, but is {self.precision!r}.")
        if not (isinstance(self.memory, int) and self.memory > 0):
            raise InputError(f"memory must be a positive number of bytes, but is {self.memory!r}.")
        if self.start is not None and not isinstance(self.start, str):
            raise InputError(
                f"start must be 'input', 'features', 'pooled', a module path or a site, but is {self.start!r}."
            )
        if self.reading not in ("means", "paper"):
            raise InputError(f"reading must be 'means' or 'paper', but is {self.reading!r}.")
        for name, values in _CHOICES.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, values[self.reading == "paper"])
            if not any(type(getattr(self, name)) is type(v) and getattr(self, name) == v for v in values):
                raise InputError(f"{name} must be {values[0]!r} or {values[1]!r}, but is {getattr(self, name)!r}.")

    def ridge_of(self, regression: Regression) -> Ridge:
        """How a layer's inverse is regularised."""
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
    check_data(data)
    out = None if out is None else absolute(out)
    first = next(iter(batches(data, model)))
    part = find_part(model, tuple(x[:2] for x in first.inputs), options.start)
    classes = _classes(options.classes, part.classes)
    fit = _Fit(model, data, options, part, first.inputs[0].device, first.inputs[0].dtype, progress)
    facts = {
        "model": type(model).__name__,
        "start": part.start,
        "asked": options.start,
        "samples": options.samples,
        "ridge": options.ridge,
        **{name: getattr(options, name) for name in ("reading", *_CHOICES)},
        "precision": str(options.precision).removeprefix("torch."),
        "description": description,
    }
    shapes = tuple(tuple(x.shape[1:]) for x in first.inputs)
    asked = {**facts, "network": weights_of(model), "classes": classes, "input_shapes": [list(s) for s in shapes]}
    asked["dtype"] = str(first.inputs[0].dtype)
    asked |= {"model": network_of(model), "device": first.inputs[0].device.type, "versions": versions()}
    with PartsFolder.beside(out, "mip_in", {**asked, "memory": options.memory}) as folder:
        fit.folder = folder
        found = [fit.run(number, chunk) for number, chunk in enumerate(fit.chunks(classes))]
        if not fit.passes:
            fit.look_through()
        names, some = list(part.regressions), [layers for chunk, layers in found if chunk]
        if not some:
            raise InputError(
                "data must let at least one class be learned, but every logit is constant on it or has no samples."
            )
        layers = {
            name: {key: torch.cat([layers[name][key] for layers in some]) for key in sorted(some[0][name])}
            for name in names
        }
        facts |= {
            "layers": [fit.said[name] for name in names],
            "without_effect": _without_effect(part),
            "data": asdict(fit.digest or Digest()),
            "versions": {"backlit": __version__, "torch": str(torch.__version__)},
        }
        learned = tuple(c for chunk, _ in found for c in chunk)
        inverse = InverseNetwork("mip_in", layers, learned, asked["network"], shapes, facts)
        if out is not None:
            inverse.save(out, "out")
    return inverse


def _without_effect(part: Part) -> list[str]:
    """The options of ``reading`` that change nothing in this part, for it has no layer that they are about."""
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
        found = list(wanted)[:10] if isinstance(wanted, (list, tuple)) else wanted
        raise InputError(
            f"classes must be different class indices from 0 to {count - 1}, but are {found!r}. None is all of them."
        )
    return classes


@dataclass
class _Fit:
    model: nn.Module
    data: Data
    options: FitOptions
    part: Part
    device: torch.device
    dtype: torch.dtype
    progress: Callable[[FitStep], None]
    folder: PartsFolder = field(default_factory=lambda: PartsFolder(None))
    digest: Digest | None = None
    passes: int = 0
    said: dict[str, dict[str, Any]] = field(default_factory=dict)

    def chunks(self, classes: list[int]) -> list[list[int]]:
        """The classes that are learned at once."""
        one = self.part.bytes_at_once
        if one > self.options.memory:
            warn(
                f"backlit: the moments of one class take {one:,} bytes, more than memory, which is {self.options.memory:,}; the "
                "classes are learned one after the other. Begin at a later layer to need less."
            )
        size = max(1, self.options.memory // one)
        return [classes[i : i + size] for i in range(0, len(classes), size)]

    def run(self, number: int, classes: list[int]) -> tuple[list[int], dict[str, dict[str, Tensor]]]:
        """Learn all layers of these classes; which of them could be learned, and their parameters."""
        regressions = self.part.regressions
        layers: dict[str, dict[str, Tensor]] = {}
        for name in regressions:
            found = self.folder.read(f"{number}-{name}")
            if found is None:
                continue
            layers[name], facts = found
            classes = facts["classes"]
            self._same_data(Digest(**facts["data"]))
            self.said[name] = facts["said"]
        while classes and len(layers) < len(regressions):
            learned = self._pass(classes, layers)
            if not learned:  # no batch had a sample of them
                self._refuse(classes, classes, *_ABSENT)
                return [], layers
            found, classes = self._solved(number, classes, learned)
            layers.update(found)
        return classes, layers

    def _pass(self, classes: list[int], layers: dict[str, dict[str, Tensor]]) -> dict[str, Moments]:
        """Go through the data once; the moments of every layer whose signals are known by now."""
        self.passes += 1
        digest, moments = Digest(), {}
        fitted = {k: {n: t.to(self.device, self.dtype) for n, t in v.items()} for k, v in layers.items()}
        chosen = torch.tensor(classes, device=self.device)
        for batch in self._batches():
            digest.add(batch)
            self._learn_from(batch, chosen, fitted, moments)
            step = FitStep(self.passes, len(self.part.regressions), tuple(moments), digest.samples, self._total())
            self.progress(step)
        self._same_data(digest)
        return moments

    def look_through(self) -> None:
        """A pass that only sees whether the data are those that all layers were learned from before an interruption."""
        digest = Digest()
        for batch in self._batches():
            digest.add(batch)
            self.progress(FitStep(1, 1, (), digest.samples, self._total()))
        self._same_data(digest)

    def _batches(self) -> Iterator[Batch]:
        labelled = self.part.classes if self.options.samples == "own" else None
        return batches(self.data, self.model, labelled, again=True)

    def _total(self) -> int | None:
        return None if self.digest is None else self.digest.samples

    def _learn_from(
        self, batch: Batch, classes: Tensor, fitted: dict[str, dict[str, Tensor]], moments: dict[str, Moments]
    ) -> None:
        own = self.options.samples == "own"
        if own and batch.labels is not None:
            batch = batch.rows(torch.isin(batch.labels, classes).nonzero().flatten())
            if not len(batch.inputs[0]):
                return
        values = self.part.values(self.model, batch.inputs)
        check_values([values.output], "the logits", batch)
        n = values.n
        if own:
            labels = values.output.argmax(1) if batch.labels is None else batch.labels
            same = labels[:, None] == classes
            known = same.any(1)
            ids = same.to(torch.int64).argmax(1)[None]
        else:
            known = torch.ones(n, dtype=torch.bool, device=classes.device)
            ids = torch.arange(len(classes), device=classes.device)[:, None].expand(-1, n)
        who = Who(ids, classes)

        def learn(name: str, regression: Regression, signals: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
            check_values(targets, name, batch)
            if name not in moments:
                moments[name] = Moments(len(classes), regression.sizes, classes.device, self.options.precision)
            for one, images in who.for_learning(max(1, _AT_ONCE // (regression.row * len(signals[0])))):
                images = images[known[images]]
                if len(images):
                    chosen, wanted = [s[:, images] for s in signals], [t[images] for t in targets]
                    regression.learn(moments[name], one, chosen, wanted)

        with torch.no_grad():
            go_back(self.part, values, fitted, who, learn=learn)

    def _solved(
        self, number: int, classes: list[int], moments: dict[str, Moments]
    ) -> tuple[dict[str, dict[str, Tensor]], list[int]]:
        """The parameters of what a pass learned, without the classes that have nothing to learn."""
        assert self.digest is not None
        alive = torch.ones(len(classes), dtype=torch.bool, device=self.device)
        for step in self.part.steps:
            if step.diagonal and step.name in moments:
                alive = self._has_signal(classes, moments[step.name])
        kept = [c for c, a in zip(classes, alive.tolist(), strict=True) if a]
        regressions = self.part.regressions
        solutions = {
            name: solve(m.of(alive), self.options.ridge_of(regressions[name]), name) for name, m in moments.items()
        }
        found: dict[str, dict[str, Tensor]] = {}
        for name, solution in solutions.items():
            parameters = regressions[name].parameters(solution.weight, solution.bias)
            found[name] = {k: t.to(self.dtype) for k, t in parameters.items()}
            self._say(name, moments[name].of(alive), solution)
            self.folder.write(
                f"{number}-{name}",
                found[name],
                {"classes": kept, "said": self.said[name], "data": asdict(self.digest)},
            )
        return found, kept

    def _has_signal(self, classes: list[int], m: Moments) -> Tensor:
        """Whether each class's logit varies over its samples.

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

    def _say(self, name: str, m: Moments, solution: Any) -> None:
        """Keep how well a layer was determined; warn if it hardly was."""
        q, some = m.sizes.unknowns, len(m.count) > 0
        self.said[name] = {
            "name": name,
            "samples": float(m.count.min()) if some else 0.0,
            "unknowns": q,
            "explained": float(solution.explained.mean()) if some else 0.0,
            "condition": solution.condition,
        }
        if solution.condition is not None and q > 1:
            warn(
                f"backlit: {name} has {int(m.count.min())} samples for {q} unknowns and a constant; the condition number is "
                f"{solution.condition:.1e}, and the ridge decides what the samples do not. Give more samples."
            )

    def _same_data(self, digest: Digest) -> None:
        """Every pass must see the same data.

        Raises:
            InputError: If this one did not.
        """
        if self.digest is None:
            self.digest = digest
        elif not self.digest.same(digest):
            raise InputError(
                f"data must be the same in every pass, but one had {self.digest} and another {digest} (of values and labels, "
                "whatever the order). Switch augmentation off, or remove the folder of parts of the earlier fit."
            )
