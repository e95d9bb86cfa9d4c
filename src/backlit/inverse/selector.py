"""A network that picks the cells of an image that say most of a network's output, learned from data (L2X, Chen et al. 2018).

Two networks are learned together. The *explainer* gives each cell of a grid a logit; k cells are drawn by the Gumbel-softmax,
so that the draw has a gradient. The *approximator* predicts the network's output from an image of which only those are seen.
Both minimise the cross-entropy of the prediction with the network's own probabilities, a bound on the mutual information
between the cells that are seen and the output (Sec. 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._errors import InputError, check, check_positive
from backlit._forward import forward
from backlit._random import stable_seed
from backlit.capture.refuse import check_output
from backlit.inverse.artefact import Fitted, Layers
from backlit.inverse.data import Batch, Data, check_values
from backlit.inverse.fitting import FitStep, Fitting, Piece

Parameters = Mapping[str, Tensor]
_DETAIL = 8  # pixels a side of a cell that the two networks read; more are averaged
_NETWORKS = ("explainer", "approximator")
_MOMENTS = ("first", "second")


class Selector(Fitted):
    """An artefact of an explainer and its approximator; :func:`fit_selector` makes one."""


@dataclass(frozen=True)
class SelectorOptions:
    """A choice of what is learned, and how.

    Attributes:
        k: Number of cells that are seen.
        grid: Cells a side.
        epochs: Passes over the data.
        lr: Of Adam.
        temperature: Of the Gumbel-softmax.
        width: Channels of both networks.
        seed: Of the first weights and the draws.
    """

    k: int = 4
    grid: int = 7
    epochs: int = 10
    lr: float = 1e-3
    temperature: float = 0.5
    width: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("k", "grid", "epochs", "width"):
            value = getattr(self, name)
            check(type(value) is int and 0 < value <= 1_000_000, name, value, "a positive integer")
        for name in ("lr", "temperature"):
            check_positive(name, getattr(self, name))
        check(type(self.seed) is int, "seed", self.seed, "an integer")
        if self.k > self.grid**2:
            raise InputError(
                f"k must be at most {self.grid**2}, the cells of a grid of {self.grid} a side, but is {self.k}. Pick fewer, or "
                "make the grid finer."
            )


def fit_selector(
    model: nn.Module,
    data: Data,
    options: SelectorOptions,
    *,
    out: str | Path | None = None,
    description: str = "",
    progress: Callable[[FitStep], None] = lambda step: None,
) -> Selector:
    """Learn an explainer and its approximator for one network.

    Args:
        model: The network, in eval mode. It is not changed.
        data: An iterable of batches, images (n, c, h, w) or (images, labels), whose labels are not used.
        options: What to learn, and how.
        out: A file for the result. Each finished pass is kept in a folder beside it (``OUT.parts``), from which the same call
            goes on after an interruption.
        description: Of the data, for the record.
        progress: Called after each batch.

    Raises:
        InputError: If an argument or a batch cannot be used, or the network takes several inputs.
        ModelStateError: If an output is not finite; names the batch.
        FileError: If ``out`` cannot be written or is anything but an earlier fit of this kind.
    """
    job = Fitting("l2x", model, data, out, progress)
    x = _checked(job.sample, options)
    output = forward(model, *job.sample)
    check_output(output, len(x))
    plain = asdict(options)
    with job.begun(plain):
        training = _Training(job, options, x, output.shape[1])
        for epoch in range(options.epochs):
            name = f"pass-{epoch + 1}"
            piece = job.read_finished(name)
            piece = training.epoch(name, epoch) if piece is None else piece
            training.take(piece)
        layers = {name: {k: v.detach() for k, v in training.networks[name].items()} for name in _NETWORKS}
        facts = {"start": "input", "description": description, **plain, **training.facts}
        return job.result(Selector, layers, tuple(range(output.shape[1])), facts)


def _checked(sample: tuple[Tensor, ...], options: SelectorOptions) -> Tensor:
    if len(sample) != 1:
        raise InputError(
            f"model must take one input to be explained by L2X, but takes {len(sample)}. Wrap it so that the others are constants."
        )
    h, w = sample[0].shape[-2:]
    if min(h, w) < options.grid:
        raise InputError(
            f"grid must be at most {min(h, w)} cells a side for images of {h}x{w}, but is {options.grid}. Use a coarser one."
        )
    return sample[0]


class _Training:
    """Both networks while they are learned, in single precision at least."""

    def __init__(self, job: Fitting, options: SelectorOptions, x: Tensor, classes: int) -> None:
        self.job, self.options = job, options
        self.dtype = torch.promote_types(job.dtype, torch.float32)
        self.facts: dict[str, float] = {}
        generator = torch.Generator().manual_seed(stable_seed("l2x", "weights", options.seed, options.width))
        cells = options.grid**2
        self.networks = {
            "explainer": _first_weights(x.shape[1], options, (1, options.width, 1, 1), cells, generator),
            "approximator": _first_weights(x.shape[1], options, (classes, options.width * cells), classes, generator),
        }
        for own in self.networks.values():
            for key, value in own.items():
                own[key] = value.to(job.device, self.dtype).requires_grad_()
        self.parameters = [p for own in self.networks.values() for p in own.values()]
        self.optimizer = torch.optim.Adam(self.parameters, options.lr)

    def epoch(self, name: str, number: int) -> Piece:
        """Go over the data once; keep what was learned."""
        generator = torch.Generator().manual_seed(stable_seed("l2x", "draws", self.options.seed, number))
        agreed = count = 0.0
        for batch in self.job.batches(_NETWORKS, self.options.epochs):
            agreed += self._step(batch, generator)
            count += len(batch.inputs[0])
        layers: dict[str, dict[str, Tensor]] = {
            n: {k: v.detach() for k, v in p.items()} for n, p in self.networks.items()
        }
        for moment, key in zip(_MOMENTS, ("exp_avg", "exp_avg_sq"), strict=True):
            layers[moment] = {str(i): self.optimizer.state[p][key] for i, p in enumerate(self.parameters)}
        steps = float(self.optimizer.state[self.parameters[0]]["step"])
        return self.job.keep(name, layers, {"steps": steps, "agreement": agreed / max(1.0, count)})

    def take(self, piece: Piece) -> None:
        """Go on from what was learned by a pass, this one's or an earlier call's."""
        self.facts = {"agreement": piece.facts["agreement"]}
        for name, own in self.networks.items():
            for key, value in own.items():
                value.data.copy_(piece.layers[name][key])
        for i, p in enumerate(self.parameters):
            first, second = (piece.layers[m][str(i)].to(p) for m in _MOMENTS)
            step = torch.tensor(piece.facts["steps"], dtype=torch.float32)
            self.optimizer.state[p] = {"step": step, "exp_avg": first.clone(), "exp_avg_sq": second.clone()}

    def _step(self, batch: Batch, generator: torch.Generator) -> float:
        """Learn from a batch; return in how many of its images both networks predict the same class."""
        (x,) = batch.inputs
        logits = forward(self.job.model, x)
        check_values([logits], "the logits", batch)
        chances, x = logits.to(self.dtype).softmax(1), x.to(self.dtype)
        with torch.enable_grad():
            cells = cell_logits(self.networks["explainer"], x, self.options.grid)
            seen = _drawn(cells, self.options, generator)
            predicted = predicted_logits(self.networks["approximator"], x * spread(seen, x), self.options.grid)
            loss = -(chances * predicted.log_softmax(1)).sum(1).mean()
            grads = torch.autograd.grad(loss, self.parameters)
        for p, grad in zip(self.parameters, grads, strict=True):
            p.grad = grad
        self.optimizer.step()
        return float((predicted.argmax(1) == logits.argmax(1)).sum())


def _first_weights(
    channels: int, options: SelectorOptions, last: tuple[int, ...], places: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weights of one network by He et al. 2015, biases of zero; ``places`` biases at the end."""
    width = options.width
    shapes = {"0": (width, channels, 3, 3), "1": (width, width, 3, 3), "2": (width, width, 3, 3), "3": last}
    made: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        made[f"weight{key}"] = drawn * sqrt(2 / drawn[0].numel())
        made[f"bias{key}"] = torch.zeros(places if key == "3" else width)
    return made


def _features(p: Parameters, x: Tensor, grid: int) -> Tensor:
    """What both networks read of images, (n, width, grid, grid)."""
    h, w = (grid * min(_DETAIL, side // grid) for side in x.shape[-2:])
    y = F.relu(F.conv2d(F.adaptive_avg_pool2d(x, (h, w)), p["weight0"], p["bias0"], padding=1))
    y = F.adaptive_avg_pool2d(F.relu(F.conv2d(y, p["weight1"], p["bias1"], padding=1)), grid)
    return F.relu(F.conv2d(y, p["weight2"], p["bias2"], padding=1))


def cell_logits(p: Parameters, x: Tensor, grid: int) -> Tensor:
    """Return the explainer's logits of the cells (n, grid * grid), row by row."""
    return F.conv2d(_features(p, x, grid), p["weight3"]).flatten(1) + p["bias3"]


def predicted_logits(p: Parameters, x: Tensor, grid: int) -> Tensor:
    """Return the approximator's logits of the classes (n, classes)."""
    return F.linear(_features(p, x, grid).flatten(1), p["weight3"], p["bias3"])


def spread(cells: Tensor, x: Tensor) -> Tensor:
    """Give each pixel the value of its cell: (n, grid * grid) to (n, 1, h, w)."""
    grid = round(sqrt(cells.shape[1]))
    return F.interpolate(cells.unflatten(1, (grid, grid))[:, None], x.shape[-2:], mode="nearest-exact")


def _drawn(logits: Tensor, options: SelectorOptions, generator: torch.Generator) -> Tensor:
    """Relaxed draws of k cells (n, cells): the largest of k draws of the concrete distribution (Sec. 3.4)."""
    n, cells = logits.shape
    noise = torch.rand(n, options.k, cells, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    gumbel = -torch.log(-torch.log(noise)).to(logits)
    return ((logits.log_softmax(1)[:, None] + gumbel) / options.temperature).softmax(2).amax(1)


def chosen(fitted: Fitted, layers: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each cell's probability (n, cells), and 1 for the k most likely cells."""
    grid, k = fitted.facts["grid"], fitted.facts["k"]
    chances = cell_logits(layers["explainer"], x, grid).softmax(1)
    best = torch.zeros_like(chances).scatter_(1, chances.topk(k, 1).indices, 1)
    return chances, best
