"""What a method gets for one chunk of a batch, and what it computes for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from backlit.capture import Coverage, Propagation, Trace
from backlit.methods.axes import Shape, as_they_were
from backlit.methods.inputs import pick, probability


@dataclass(frozen=True, eq=False)
class Job:
    """One chunk of n images and the classes to explain.

    Attributes:
        inputs: The images (n, c, h, w), one tensor for each input of the network.
        targets: Class indices (n, t); None for the predicted class.
        first: The number, in the whole batch, of the chunk's first image: what messages count from.
        images: How many images the whole batch has.
        copies: How many altered copies of the chunk's images ``inputs`` hold, one copy of all after the other.
        noisy: Whether noise was added to the inputs, which then may leave the bounds that the images keep.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor | None
    first: int = 0
    images: int | None = None
    copies: int = 1
    noisy: bool = False

    @property
    def classes(self) -> Tensor:
        """The targets, where they have been picked."""
        assert self.targets is not None
        return self.targets

    def __len__(self) -> int:
        return len(self.inputs[0])

    def one(self, i: int) -> Job:
        """The job of image i of the chunk alone."""
        rows = slice(i, i + 1)
        targets = None if self.targets is None else self.targets[rows]
        return Job(tuple(x[rows] for x in self.inputs), targets, self.first + i, self.images)

    def pick(self, output: Tensor) -> Tensor:
        """The targets (n, t) on the device of the output (n, k): the predicted classes, where none were asked for.

        Raises:
            InputError: If an index is none of the k classes.
        """
        return pick(output, self.targets)


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps that a method computes for one chunk of n images with t targets each.

    ``values`` and each part hold one tensor per input of the network, (t, n, c, h, w); ``targets`` is (n, t), ``output``,
    ``probability`` and each number of ``completeness`` (t, n), each ``trajectory`` (t, steps, n). ``activation_bytes`` is the
    size of one image's activations, from which the chunk size follows; ``notes`` say what the method chose, for the
    provenance.
    """

    values: tuple[Tensor, ...]
    targets: Tensor
    output: Tensor
    coverage: Coverage
    activation_bytes: float
    parts: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    trajectory: Mapping[str, Tensor] = field(default_factory=dict)
    completeness: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    probability: Tensor | None = None

    @classmethod
    def of(cls, values: tuple[Tensor, ...], logits: Tensor, targets: Tensor, **more: Any) -> Maps:
        """Maps with the targets' logits and probabilities, read from the network's output (n, k); ``more`` is the rest."""
        output = scores_of(logits, targets)
        return cls(values, targets, output, probability=probability(logits, targets), **more)

    @classmethod
    def of_run(cls, run: Propagation, values: tuple[Tensor, ...], targets: Tensor, **more: Any) -> Maps:
        """The same of a propagation, which knows its coverage and its activations as well."""
        size = activation_bytes(run.trace, run.inputs[0])
        return cls.of(values, run.output, targets, **{"coverage": run.coverage, "activation_bytes": size, **more})

    @classmethod
    def of_outputs(cls, output: Tensor, values: tuple[Tensor, ...], targets: Tensor, job: Job, **more: Any) -> Maps:
        """The same of plain forward passes, which tell no coverage; ``output`` (n, k) is the images' own."""
        size = guessed_bytes(job.inputs[0])
        return cls.of(values, output, targets, **{"coverage": Coverage(), "activation_bytes": size, **more})

    @classmethod
    def joined(cls, chunks: Sequence[Maps]) -> Maps:
        """The maps of all images, from those of their chunks; only the images' axis grows."""
        first = chunks[0]
        if len(chunks) == 1:
            return first

        def rows(read: Callable[[Maps], Tensor], dim: int = 1) -> Tensor:
            return torch.cat([read(chunk) for chunk in chunks], dim)

        inputs = range(len(first.values))
        return cls(
            values=tuple(rows(lambda c, i=i: c.values[i]) for i in inputs),
            targets=rows(lambda c: c.targets, dim=0),
            output=rows(lambda c: c.output),
            coverage=first.coverage,
            activation_bytes=first.activation_bytes,
            parts={k: tuple(rows(lambda c, i=i, k=k: c.parts[k][i]) for i in inputs) for k in first.parts},
            trajectory={k: _padded([c.trajectory[k] for c in chunks]) for k in first.trajectory},
            completeness={k: rows(lambda c, k=k: c.completeness[k]) for k in first.completeness},
            notes=first.notes,
            probability=None if first.probability is None else rows(lambda c: c.probability),  # type: ignore[arg-type, return-value]
        )

    def shaped(self, shapes: Sequence[Shape]) -> Maps:
        """The maps of signals and volumes, which were explained as images, in their own shapes; as they are, without any."""

        def own(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(map(as_they_were, values, shapes)) or values

        return replace(self, values=own(self.values), parts={k: own(part) for k, part in self.parts.items()})

    def of_images(self, order: Tensor) -> Maps:
        """The maps of these images, in this order."""

        def taken(values: Tensor, dim: int = 1) -> Tensor:
            return values.index_select(dim, order)

        return replace(
            self,
            values=tuple(taken(v) for v in self.values),
            targets=taken(self.targets, 0),
            output=taken(self.output),
            parts={k: tuple(taken(v) for v in part) for k, part in self.parts.items()},
            trajectory={k: taken(v, 2) for k, v in self.trajectory.items()},
            completeness={k: taken(v) for k, v in self.completeness.items()},
            probability=None if self.probability is None else taken(self.probability),
        )

    def less_others(self) -> Maps:
        """The first target's maps less the mean of all others', one target (n, 1): what a contrast of maps is."""

        def less(values: Tensor) -> Tensor:
            return values[:1] - values[1:].mean(0, keepdim=True)

        return replace(
            self,
            values=tuple(less(v) for v in self.values),
            targets=self.targets[:, :1],
            output=less(self.output),
            parts={k: tuple(less(v) for v in part) for k, part in self.parts.items()},
            trajectory={},
            completeness={},
            probability=None,
        )


def scores_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits of the targets (n, t) among the network's (n, k), as (t, n), without a graph."""
    return logits.detach().gather(1, targets).T


def activation_bytes(trace: Trace, x: Tensor) -> float:
    """Bytes of one image's activations: what its sites put out."""
    return sum(prod(site.output_shape) for site in trace) * x.element_size() / x.shape[0]


def guessed_bytes(x: Tensor) -> float:
    """A guess at the bytes of one image's activations, where no pass told."""
    return 64.0 * x[0].numel() * x.element_size()


def _padded(curves: list[Tensor]) -> Tensor:
    """Curves (t, steps, n) side by side; one that stopped early goes on with its last value."""
    steps = max(c.shape[1] for c in curves)
    return torch.cat([torch.cat([c, c[:, -1:].expand(-1, steps - c.shape[1], -1)], 1) for c in curves], 2)
