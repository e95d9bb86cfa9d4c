"""A network and one number of what it computes: a contrast, a unit, a function of the output.

:class:`Scored` is the network followed by what makes that number, a network of one output: every method, metric and
comparison takes it as it takes any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backlit._errors import InputError, check
from backlit._forward import forward
from backlit._plain import plain
from backlit._state import check_module
from backlit.capture.refuse import check_output
from backlit.methods.around import Around, Context
from backlit.methods.chunks import first_size, run_in_chunks
from backlit.methods.cut import LastOutput, check_layer
from backlit.methods.inputs import check_class, chunk_of
from backlit.methods.job import Maps, guessed_bytes
from backlit.methods.named import Named, network_of
from backlit.methods.target import Contrast, OfOutput, Score, Unit, classes_of, is_score, label_of

if TYPE_CHECKING:
    from backlit.methods.base import Method


class Scored(Around):
    """A network followed by what makes one number of its output, or of a value inside: a network of one output (n, 1).

    Its modules have the paths that they have in the network, and its weights are the network's own.
    """

    def __init__(self, network: nn.Module, score: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]) -> None:
        super().__init__(network)
        self.score = score

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the score (n, 1) of each image.

        Raises:
            InputError: If that is not one number for each image.
        """
        scores = self.score(self.network, inputs)
        n = len(inputs[0])
        if (
            not isinstance(scores, Tensor)
            or not scores.is_floating_point()
            or tuple(scores.shape) not in ((n,), (n, 1))
        ):
            shape = (
                f"{scores.dtype} of shape {tuple(scores.shape)}"
                if isinstance(scores, Tensor)
                else type(scores).__name__
            )
            raise InputError(
                f"target: the function must return one number for each image, a tensor of shape ({n},), but returned {shape}. "
                "Take a mean or one entry of what is more: lambda output: output[:, 3].mean((1, 2))."
            )
        return scores if scores.dim() == 2 else scores[:, None]


@dataclass(frozen=True)
class Difference:
    """The score of a contrast whose classes are known."""

    index: int
    others: tuple[int, ...]

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        logits = network(*inputs)
        check_output(logits, len(inputs[0]))
        for index in (self.index, *self.others):
            check_class(index, logits.shape[1])
        if len(self.others) == 1:
            return logits[:, self.index : self.index + 1] - logits[:, self.others[0] : self.others[0] + 1]
        return logits[:, self.index : self.index + 1] - logits[:, list(self.others)].mean(1, keepdim=True)


@dataclass(frozen=True)
class _OfOutput:
    function: OfOutput

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.function(network(*inputs))


@dataclass(frozen=True)
class _OfUnit:
    unit: Unit

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        layer, index = self.unit.layer, self.unit.places
        check_layer(network, layer, "layer")
        with LastOutput(network, layer) as seen:
            network(*inputs)
        if seen.last is None:
            raise InputError(
                f"layer must name a module that puts out a tensor when the network runs, but {layer!r} put out none."
            )
        shape = tuple(seen.last.shape)
        if len(index) >= len(shape) or any(not -s <= i < s for i, s in zip(index, shape[1:], strict=False)):
            raise InputError(
                f"index must be a place in the output {shape} of {layer!r}, behind its first axis, but is {self.unit.index!r}."
            )
        values = seen.last[(slice(None), *index)]
        return values if values.dim() == 1 else values.flatten(1).mean(1)


def scored(model: Any, target: Score) -> Any:
    """A model whose one output is what ``target`` says, for metrics, comparisons and other tools: explain its class 0.

    Args:
        model: A network, or what ``load_model`` returned.
        target: A :class:`Contrast` of two classes, a :class:`Unit`, or a function of the network's output.

    Returns:
        A network of one output (n, 1); for a loaded model, a loaded model with this network and the score's name.

    Raises:
        InputError: If the target is none of these, or its classes cannot be found.
    """
    check(is_score(target), "target", target, "a Contrast, a Unit, or a function of the network's output")
    loaded = None if isinstance(model, nn.Module) else model
    network = network_of(model)
    check_module(network)
    if isinstance(target, Contrast) and target.top is not None:
        raise InputError(
            "target: the likeliest classes are other ones for each image, so they make no network of one output. Name the class: "
            "Contrast(a, b)."
        )
    return with_network(model, Scored(network, score_of(target, loaded)), label_of(target, loaded))


def with_network(model: Any, network: Scored, label: str) -> Any:
    """The scored network alone, for a bare network; for a loaded model the same with this network and its one label."""
    return network if isinstance(model, nn.Module) else replace(model, network=network, class_names=(label,))


def score_of(target: Score, loaded: Named | None) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    """Return the function of network and inputs that computes a target's number."""
    if isinstance(target, Contrast):
        index, less = classes_of(target, loaded)
        assert less is not None
        return Difference(index, (less,))
    return _OfUnit(target) if isinstance(target, Unit) else _OfOutput(target)


def likeliest_others(logits: Tensor, index: int, count: int) -> Tensor:
    """The ``count`` likeliest classes of each image but for one, (n, count), in the order of their indices.

    Raises:
        InputError: If there are not as many.
    """
    k = logits.shape[1]
    check_class(index, k)
    if count >= k:
        raise InputError(f"top must be at most {k - 1}, the number of other classes, but is {count}.")
    others = logits.detach().clone()
    others[:, index] = -torch.inf
    return others.topk(count).indices.sort(1).values


def maps_of_score(method: Method, inputs: tuple[Tensor, ...], target: Score, context: Context | None = None) -> Maps:
    """The maps of one score for every image, with one target; ``context`` goes with the images.

    Raises:
        InputError: If the method explains classes only, and the score is no contrast of them.
    """
    context = context or Context()
    notes: dict[str, Any] = {"score": label_of(target, method.loaded), "target": plain(target, argument="target")}
    index = 0
    if isinstance(target, Contrast):
        index, less = classes_of(target, method.loaded)
        notes["less"] = less if less is not None else f"top {target.top}"
        maps = _of_contrast(method, inputs, index, less, target, context)
    elif not method.takes_scores:
        raise InputError(
            f"target must be a class or a contrast of classes for {method.title}, which explains the network's own outputs, but is "
            f"{notes['score']!r}. Use another method."
        )
    else:
        network = Scored(method.network, score_of(target, method.loaded))
        maps = _scored(method, inputs, network, notes["score"], context)
    if "less" in notes and method.subtracts and method.kind_of_map == "one-sided":
        notes["kind"] = "contrast"  # one map less another has two sides
    targets = torch.full_like(maps.targets, index)
    return replace(maps, targets=targets, probability=None, notes={**maps.notes, **notes})


def _scored(method: Method, inputs: tuple[Tensor, ...], network: Scored, label: str, context: Context) -> Maps:
    zeros = torch.zeros(len(inputs[0]), 1, dtype=torch.long)
    return replace(method, model=with_network(method.model, network, label)).run(inputs, zeros, context)


def _logits(method: Method, inputs: tuple[Tensor, ...], context: Context) -> Tensor:
    """The network's logits of a whole batch (n, k), in chunks."""
    x, n = inputs[0], len(inputs[0])

    def run(rows: slice) -> Tensor:
        logits = forward(
            context.of(rows, n).bound(method.network, rows.stop - rows.start), *(part[rows] for part in inputs)
        )
        check_output(logits, rows.stop - rows.start)
        return logits

    fits = n <= first_size(method.chunk, x.device)
    chunk = method.chunk if context else n if fits else chunk_of(method.network, inputs, method.chunk)
    return torch.cat(run_in_chunks(run, lambda _: guessed_bytes(x), n=n, chunk=chunk, device=x.device))


def _of_contrast(
    method: Method,
    inputs: tuple[Tensor, ...],
    index: int,
    less: int | None,
    target: Contrast,
    context: Context,
) -> Maps:
    others = torch.full((len(inputs[0]), 1), 0 if less is None else less)
    if less is None:
        others = likeliest_others(_logits(method, inputs, context), index, target.top or 1).cpu()
    if method.subtracts:
        asked = torch.cat([torch.full_like(others[:, :1], index), others], 1)
        return method.run(inputs, asked, context).less_others()
    label = label_of(target, method.loaded)
    groups, group = others.unique(dim=0, return_inverse=True)  # images with the same classes run together
    chunks, order = [], []
    for i, classes in enumerate(groups.tolist()):
        rows = (group == i).nonzero().flatten()
        network = Scored(method.network, Difference(index, tuple(classes)))
        some = tuple(x[rows.to(x.device)] for x in inputs)
        chunks.append(_scored(method, some, network, label, context.of(rows, len(inputs[0]))))
        order.append(rows)
    return Maps.joined(chunks).of_images(torch.cat(order).argsort().to(inputs[0].device))
