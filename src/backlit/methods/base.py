"""What every method shares: options, checks, chunks, and the Attribution around the result."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from backlit._errors import BacklitError, InputError, check, check_whole, nearest, shown
from backlit._fingerprint import fingerprint
from backlit._options import NO_OPTION, Configured, options_of
from backlit._other_names import says_what_to_write
from backlit._plain import described, plain, without_free
from backlit._state import check_module
from backlit._version import __version__
from backlit.attribution import Attribution
from backlit.capture import RuleLike
from backlit.capture.primitives import BY_NAME
from backlit.capture.refuse import check_model
from backlit.methods.around import Context, further_arguments
from backlit.methods.axes import IMAGES, as_images, shapes_of
from backlit.methods.broken import broken_at
from backlit.methods.chunks import first_size, out_of_memory, run_in_chunks
from backlit.methods.cut import cut_at, output_at
from backlit.methods.inputs import check_axes, check_images, check_runs, check_targets, chunk_of, not_finite
from backlit.methods.job import Job, Maps, guessed_bytes
from backlit.methods.named import Named, in_place, network_of
from backlit.methods.scored import maps_of_score
from backlit.methods.target import Score, indices_of, is_score

Target = int | str | Sequence[int] | Sequence[str] | Tensor | Score | None
Beside = tuple[object, str | None]
"""The network's further arguments, and the layer whose output is explained."""
Kind = Literal["signed", "contrast", "one-sided", "magnitude", "signal", "noise"]
"""What a value of a map says: "signed", for the class or against it; "contrast", more or less for it than for others;
"one-sided", for the class or nothing; "magnitude", how much a pixel matters, for or against; "signal", an estimate of the
part of the image that the score follows; "noise", nothing."""


def check_common(chunk: object, seed: object) -> None:
    """Refuse what is no chunk size, or no seed as torch takes them.

    Raises:
        InputError: With what it must be.
    """
    check_whole("chunk", chunk, none=True)
    whole = isinstance(seed, int) and not isinstance(seed, bool) and -(2**63) <= seed < 2**64
    check(whole, "seed", seed, "an integer from -2**63 to 2**64 - 1")


class NoNetwork(nn.Module):
    """A stand-in for the network of a method of which only the options are looked at: it cannot run."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Refuse.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "model must be a network, but this method was made without one: dataclasses.replace(method, model=...)."
        )


NO_NETWORK = NoNetwork()


class Method(Configured, ABC):
    """A way to attribute a network's output to its input: a frozen dataclass, whose fields are its options.

    Call it on images and targets for an :class:`~backlit.Attribution`, or use :meth:`attribute` for the bare tensor, as
    Captum does. The model is never changed; one method object may serve several threads.

    Attributes:
        model: The network, in eval mode, or what ``load_model`` returned, which knows the names of its classes.
        chunk: Number of images that run at once; None lets it follow from the memory that is free.
        seed: Seed of whatever the method draws; recorded with the result.
        rules: Rules of your own by primitive, ``{"softmax": rule}``, put over the method's own table; None in the place of
            a rule is the true derivative.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    kind: ClassVar[Kind] = "magnitude"
    """What its maps say with the default options; :attr:`kind_of_map` knows the others."""
    subtracts: ClassVar[bool] = False
    """Whether a contrast is one class's map less another's, as of a method that has more to do with a class than its logit."""
    takes_scores: ClassVar[bool] = True
    """Whether the method explains any number of the network, and not its own outputs alone."""
    takes_rules: ClassVar[bool] = True
    """Whether the method propagates by rules, so that the option ``rules`` says something to it."""
    traces: ClassVar[bool] = True
    """Whether the method follows the network's operations, all of which must then be known, and tells its coverage; one that
    only runs the network takes scripted and compiled ones as well."""
    stops_at_map: ClassVar[bool] = False
    """Whether the method propagates no further than to a feature map: what stands before it changes nothing but its values."""
    reads_map: ClassVar[bool] = False
    """Whether the method lays values of an inner layer over the image, whose places then are that layer's."""
    any_head: ClassVar[bool] = True
    """Whether the method explains scores made in any way of the last features; one that does not says which it explains."""
    own_size: ClassVar[bool] = True
    """Whether the network need take images of no other size than those that are explained."""
    follows_target: ClassVar[bool] = True
    """Whether the map is another one for another class; some look at the image's features alone."""
    reads_attention: ClassVar[bool] = False
    """Whether it reads the attention of a transformer, and refuses a network without."""
    answers: ClassVar[str] = ""
    """The question that its map answers, a sentence for the table of all methods."""
    needs: ClassVar[str] = "gradients"
    """What it needs beside images and a network, in a few words for the same table."""
    explains_inside: ClassVar[bool] = True
    """Whether it explains the output of an inner layer (``at``) as it does images."""
    axes: ClassVar[tuple[int, ...]] = IMAGES
    """How many axes its inputs may have."""
    gives_source: ClassVar[bool] = False
    """Whether its maps come with a source signal, ``parts["source"]``."""
    memory_factor: ClassVar[float] = 4.0
    """Bytes that an image takes at the peak, over the bytes of its activations in one forward pass."""

    model: nn.Module | Named = field(kw_only=False, metadata=NO_OPTION)
    chunk: int | None = None
    seed: int = 0
    rules: Mapping[str, RuleLike | None] | None = None

    def __post_init__(self) -> None:
        check_module(self.network)
        check_common(self.chunk, self.seed)
        self._check_rules()
        if self.rules is not None and not self.takes_rules:
            raise InputError(
                f"rules must be None for {self.title}, which propagates by no rules, but {list(self.rules)} are given. "
                "Leave the option out."
            )

    def _check_rules(self) -> None:
        must = "rules by primitive, {'softmax': rule}, each a function rule(grad_output, inputs, output, call) or None"
        if self.rules is None:
            return
        check(isinstance(self.rules, Mapping), "rules", self.rules, must)
        for primitive, rule in self.rules.items():
            check(rule is None or (callable(rule) and not isinstance(rule, type)), "rules", self.rules, must)
            if primitive not in BY_NAME:
                raise InputError(
                    f"rules must name primitives, as `backlit trace` lists them, but {shown(primitive)} is none."
                    f"{nearest(str(primitive), BY_NAME)} An operation of your own is declared by backlit.capture.extend."
                )

    @property
    def forward_passes(self) -> float:
        """Tell about how many forward passes a map of one image and class costs; a pass back counts as two."""
        return 3.0

    @property
    def network(self) -> nn.Module:
        """The network that is explained."""
        return network_of(self.model)

    @property
    def loaded(self) -> Named | None:
        """The model with the names of its classes, where it was given so."""
        return None if isinstance(self.model, nn.Module) else self.model

    @says_what_to_write
    def __call__(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        *,
        additional_forward_args: object = None,
        at: str | None = None,
    ) -> Any:
        """Explain the score of one target per image.

        Args:
            inputs: Images (n, c, h, w) as the network takes them, on its device; or a tuple, if it takes several inputs.
            target: A class index, or one per image; None for the class that the network predicts. Of a method that was given
                a :class:`~backlit.LoadedModel`, class names as well, and "zebra - tiger" for a contrast. Instead of a class, for
                all images: a :class:`~backlit.Contrast`, a :class:`~backlit.Unit` inside the network, or a function of the
                network's output that gives one number for each image.
            additional_forward_args: What the network takes after the images, as constants that are not explained: one value or
                a tuple. A tensor with a row for each image follows its images into chunks and copies; anything else is
                handed on as it is.
            at: Path of a module whose output is explained in the place of the images, such as "features.12": the map has a value
                for each of its numbers, (n, c, h, w), of tokens (n, c, t, 1), of a vector (n, c, 1, 1).

        Returns:
            An :class:`~backlit.Attribution`; for a tuple of inputs, a tuple with one for each.

        Raises:
            InputError: If an argument cannot be used.
            ModelStateError: If the model is in train mode, draws at random, writes to its own tensors, is on another device,
                or holds NaN.
            UnsupportedOp: If an operation of the model cannot be seen or has no rule.
        """
        return self._explained(inputs, target, (additional_forward_args, at), several=False)[0]

    @says_what_to_write
    def each(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Sequence[Sequence[int]] | Sequence[Sequence[str]] | Tensor,
        *,
        additional_forward_args: object = None,
        at: str | None = None,
    ) -> tuple[Any, ...]:
        """Explain t targets per image, (n, t) class indices or names, from the same forward pass; one result per target."""
        return self._explained(inputs, targets, (additional_forward_args, at), several=True)

    @says_what_to_write
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        *,
        additional_forward_args: object = None,
        at: str | None = None,
    ) -> Any:
        """The map alone: a tensor shaped as ``inputs`` (one channel for class activation maps), or a tuple of them."""
        _, maps = self._maps(inputs, target, (additional_forward_args, at), several=False)
        values = tuple(v[0] for v in maps.values)
        return values if isinstance(inputs, tuple) else values[0]

    @abstractmethod
    def explain(self, job: Job) -> Maps:
        """Compute the maps of one chunk."""

    def look_at(self, maps: Maps) -> None:
        """Warn of what the maps of the whole batch show; nothing by default."""

    def _explained(self, inputs: Any, target: Any, beside: Beside, *, several: bool) -> tuple[Any, ...]:
        start = time.perf_counter()
        tensors, maps = self._maps(inputs, target, beside, several=several)
        provenance = {**self._provenance(time.perf_counter() - start, tensors[0]), **maps.notes}
        count = range(maps.targets.shape[1])
        labels = [(maps.notes["score"],) * len(tensors[0])] if "score" in maps.notes else self._labels(maps.targets)
        results = tuple(
            tuple(
                _attribution(maps, t, i, x, provenance, None if labels is None else labels[t])
                for i, x in enumerate(tensors)
            )
            for t in count
        )
        return results if isinstance(inputs, tuple) else tuple(r[0] for r in results)

    def _maps(self, inputs: Any, target: Any, beside: Beside, *, several: bool) -> tuple[tuple[Tensor, ...], Maps]:
        tensors = tuple(x.detach() for x in check_images(inputs, self.network, self.axes))  # the caller's graph is cut
        check_model(self.network, tensors, seen=self.traces)
        target = indices_of(target, self.loaded)
        context = Context(further_arguments(beside[0]))
        if beside[1] is not None:
            tensors, context = self._inside(tensors, beside[1], context)
        shapes = shapes_of(tensors)
        explained, context = tuple(map(as_images, tensors)) if shapes else tensors, replace(context, shapes=shapes)
        if shapes:
            bound = context.bound(self.network, len(tensors[0]))
            check_axes(bound, explained, shapes, outputs=several or not is_score(target))
        if is_score(target) and not several:
            maps = maps_of_score(self, explained, target, context)
        else:
            maps = self.run(explained, check_targets(target, len(tensors[0]), several=several), context)
        maps = maps.shaped(shapes)
        told = {
            "at": beside[1],
            "additional_forward_args": plain(context.arguments, argument="additional_forward_args"),
        }
        return tensors, replace(maps, notes={**maps.notes, **{name: value for name, value in told.items() if value}})

    def _inside(self, images: tuple[Tensor, ...], layer: str, context: Context) -> tuple[tuple[Tensor, ...], Context]:
        """What a layer puts out for the images, and the context in which that is explained.

        Raises:
            InputError: If there is no such layer, or the method explains images alone.
        """
        if not self.explains_inside:
            raise InputError(
                f"at must be None for {self.title}, which explains images alone, but is {shown(layer)}. Use another method."
            )
        n = len(images[0])
        cut = cut_at(context.of(slice(1), n).bound(self.network, 1), layer, images)

        def output(rows: slice) -> Tensor:
            network = context.of(rows, n).bound(self.network, rows.stop - rows.start)
            return output_at(network, cut, tuple(x[rows] for x in images))

        size = guessed_bytes(images[0])
        parts = run_in_chunks(output, lambda _: size, n=n, chunk=self.chunk, device=images[0].device)
        return (torch.cat(parts),), replace(context, cut=cut, images=images)

    def run(self, inputs: tuple[Tensor, ...], targets: Tensor | None, context: Context | None = None) -> Maps:
        """Compute the maps of a whole batch in chunks, for class indices (n, t) or the predicted class; checked to be finite.

        ``context`` is what the network needs beside the inputs.
        """
        context = context or Context()
        maps = Maps.joined(self._chunks(inputs, targets, context))
        self._check_finite(maps, inputs, context)
        self.look_at(maps)
        return maps

    def _chunks(self, tensors: tuple[Tensor, ...], targets: Tensor | None, context: Context) -> list[Maps]:
        """The maps of all chunks; of all images as one chunk where the network takes no fewer."""
        n, device = tensors[0].shape[0], tensors[0].device

        def explain(rows: slice) -> Maps:
            some = tuple(x[rows] for x in tensors)
            return self._with(context.of(rows, n), len(some[0])).explain(
                Job(some, None if targets is None else targets[rows], rows.start, n)
            )

        chunk = n
        if context:
            chunk = self.chunk
        elif n > first_size(self.chunk, device):
            chunk = chunk_of(self.network, tensors, self.chunk)

        try:
            return run_in_chunks(
                explain,
                lambda maps: maps.activation_bytes * self.memory_factor * maps.targets.shape[1],
                n=n,
                chunk=chunk,
                device=device,
            )
        except BacklitError:
            raise
        except Exception as error:
            if not out_of_memory(error):
                check_runs(self._with(context, n).network, tensors, error)
            raise

    def _with(self, context: Context, n: int) -> Self:
        """The method for the network that takes n images' inputs alone."""
        return replace(self, model=in_place(self.model, context.bound(self.network, n))) if context else self

    def _check_finite(self, maps: Maps, inputs: tuple[Tensor, ...], context: Context) -> None:
        if not bool(maps.output.isfinite().all()):
            raise not_finite(self.network, "The model's output")
        sound = torch.stack([v.isfinite().flatten(2).all(2) for v in maps.values]).all(0)
        if not bool(sound.all()):
            t, i = (~sound).nonzero()[0].tolist()
            image, n = slice(i, i + 1), len(inputs[0])
            network = context.of(image, n).bound(self.network, 1)
            site = broken_at(network, tuple(x[image] for x in inputs), int(maps.targets[i, t]))
            raise not_finite(self.network, f"The map of {self.title} for image {i}", site)

    def recorded(self) -> dict[str, Any]:
        """The options as they are recorded with a result, as JSON can hold them."""
        return described(self)

    def __plain__(self) -> dict[str, object]:
        """What the method is as an option of another one: its class and options, and its network if it has one."""
        model = {} if self.model is NO_NETWORK else {"model": self.model}
        return {"method": type(self), **model, **without_free(options_of(self))}

    @property
    def kind_of_map(self) -> Kind:
        """Tell what the maps say with this method's own options."""
        return self.kind

    def _labels(self, targets: Tensor) -> list[tuple[str, ...]] | None:
        """The class names of targets (n, t), a tuple for each of t; None where none are known."""
        if self.loaded is None:
            return None
        names = self.loaded.class_names
        return [tuple(names[k] if k < len(names) else f"class {k}" for k in column) for column in targets.T.tolist()]

    def _provenance(self, seconds: float, x: Tensor) -> dict[str, Any]:
        return {
            "method": self.name,
            "kind": self.kind_of_map,
            "options": self.recorded(),
            "model": type(self.network).__name__,
            "fingerprint": fingerprint(self.network),
            "seed": self.seed,
            "versions": {"backlit": __version__, "torch": str(torch.__version__)},
            "device": str(x.device),
            "dtype": str(x.dtype).removeprefix("torch."),
            "seconds": round(seconds, 4),
            **({} if self.loaded is None else {"pixels": [list(bound) for bound in self.loaded.preprocess.bounds]}),
        }


def _attribution(
    maps: Maps, t: int, i: int, x: Tensor, provenance: dict[str, Any], labels: tuple[str, ...] | None
) -> Attribution:
    return Attribution(
        values=maps.values[i][t],
        target=maps.targets[:, t],
        output=maps.output[t],
        inputs=x.detach(),
        parts={k: v[i][t] for k, v in maps.parts.items()},
        trajectory={k: v[t] for k, v in maps.trajectory.items()},
        completeness={k: v[t] for k, v in maps.completeness.items()},
        coverage=maps.coverage,
        provenance=provenance,
        labels=labels,
        probability=None if maps.probability is None else maps.probability[t],
    )
