"""The result of a method: frozen, with all that one needs to trust it or to doubt it."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from backlit._errors import FileError, InputError, check, check_type, check_word, is_number, is_several, shown
from backlit._files import write_whole
from backlit._packed import pack, unpack
from backlit._plain import without_free
from backlit._types import Heatmap
from backlit.capture.sites import Coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Reduce = Literal["sum", "abs", "max", "norm"]
_FILE = "backlit.attribution"
_GROUPS = ("parts", "trajectory", "completeness")


@dataclass(frozen=True, eq=False)
class Attribution:
    """Attribution maps of n images, each for one target.

    Attributes:
        values: The maps (n, c, h, w), of signals (n, c, t), of volumes (n, c, d, h, w); in units of the logit per pixel and
            channel for methods that split the logit.
        target: Class indices (n,), int64.
        output: The targets' logits in the network's own forward pass (n,).
        inputs: The images as the network took them, as many and as large as the maps; or None.
        parts: Further maps (n, c, h, w) by name, such as "positive" and "negative"; "mask..." are shares from 0 to 1.
        trajectory: Curves over the steps of a learned method (steps, n), by name.
        completeness: Numbers (n,) that say what the map accounts for, by name; "gap" is what it should and does not.
        coverage: The rule of every site.
        provenance: Method, options, model fingerprint, versions, seed, seconds; plain JSON values.
        labels: A name for each image's target, where the network's class names are known; or None.
        probability: The targets' probabilities in the same forward pass (n,), or None.
    """

    values: Tensor
    target: Tensor
    output: Tensor
    inputs: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    trajectory: Mapping[str, Tensor] = field(default_factory=dict)
    completeness: Mapping[str, Tensor] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    probability: Tensor | None = None

    def __post_init__(self) -> None:
        self._check_types()
        for name in (
            *_GROUPS,
            "provenance",
        ):  # copies: what the caller does to its dictionary later changes nothing here
            object.__setattr__(self, name, dict(getattr(self, name)))
        if self.values.dim() not in (3, 4, 5):
            must = "maps (n, c, h, w), or those of signals (n, c, t) or of volumes (n, c, d, h, w)"
            raise InputError(f"values must be {must}, but have shape {tuple(self.values.shape)}.")
        n = len(self.values)
        expected: list[tuple[str, Tensor, tuple[int, ...]]] = [
            ("target", self.target, (n,)),
            ("output", self.output, (n,)),
        ]
        expected += [(f"parts[{k!r}]", v, tuple(self.values.shape)) for k, v in self.parts.items()]
        expected += [(f"completeness[{k!r}]", v, (n,)) for k, v in self.completeness.items()]
        expected += [(f"trajectory[{k!r}]", v, (*v.shape[:1], n)) for k, v in self.trajectory.items()]
        if self.probability is not None:
            expected.append(("probability", self.probability, (n,)))
        if self.inputs is not None:  # a class activation map has one channel, whatever the image has
            expected.append(("inputs", self.inputs, (n, *self.inputs.shape[1:2], *self.values.shape[2:])))
        for name, tensor, shape in expected:
            if tuple(tensor.shape) != shape:
                raise InputError(f"{name} must have shape {shape} to go with values, but has {tuple(tensor.shape)}.")
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(self.labels, n))
        if not self.values.is_floating_point():
            raise InputError(f"values must be floating point, but are {self.values.dtype}.")
        if self.target.dtype != torch.int64:
            raise InputError(f"target must hold class indices as torch.int64, but holds {self.target.dtype}.")

    def _check_types(self) -> None:
        for name in ("values", "target", "output"):
            check_type(name, getattr(self, name), Tensor, "a tensor")
        for name in ("inputs", "probability"):
            check_type(name, getattr(self, name), (Tensor, NoneType), "a tensor or None")
        for name in (*_GROUPS, "provenance"):
            check_type(name, getattr(self, name), Mapping, "a mapping, such as a dictionary")
        for group in _GROUPS:
            for key, value in getattr(self, group).items():
                check_type(f"{group}[{key!r}]", value, Tensor, "a tensor")
        check_type("coverage", self.coverage, Coverage, "a Coverage")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int | slice) -> Attribution:
        """The attribution of these images alone; an index keeps the images' axis, coverage and provenance stay."""
        if not isinstance(index, slice):
            i = operator.index(index)
            if not -len(self) <= i < len(self):
                raise IndexError(f"index must be below the number of images, {len(self)}, but is {i}")
            index = slice(i % len(self), i % len(self) + 1)
        return Attribution(
            self.values[index],
            self.target[index],
            self.output[index],
            None if self.inputs is None else self.inputs[index],
            {k: v[index] for k, v in self.parts.items()},
            {k: v[:, index] for k, v in self.trajectory.items()},
            {k: v[index] for k, v in self.completeness.items()},
            self.coverage,
            self.provenance,
            None if self.labels is None else self.labels[index],
            None if self.probability is None else self.probability[index],
        )

    def __iter__(self) -> Iterator[Attribution]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        n = len(self)
        facts = [
            str(self.provenance.get("method", "?")),
            f"{n} image{'s' * (n != 1)} of {'x'.join(str(size) for size in self.values.shape[1:])}",
            f"target={_few(self.target.tolist() if self.labels is None else self.labels)}",
            f"output={_few([f'{v:.4g}' for v in self.output.tolist()])}",
        ]
        if n and "gap" in self.completeness:
            facts.append(f"gap={float(self.completeness['gap'].abs().max()):.2g}")
        if self.coverage.rows:
            facts.append(f"coverage: {self.coverage}")
        return f"Attribution({', '.join(facts)})"

    @classmethod
    def cat(cls, items: Sequence[Attribution]) -> Attribution:
        """One attribution of all images; coverage and provenance (with its seconds) are the first one's.

        Raises:
            InputError: If there is none, or they are of different methods, options, models, parts or sizes.
        """
        if not items:
            raise InputError("items must hold at least one Attribution, but is empty.")
        first = items[0]
        for name, kind in _kind(first).items():
            found = next((k[name] for k in map(_kind, items) if k[name] != kind), kind)
            if found != kind:
                raise InputError(
                    f"items must have the same {name} to be joined, but one has {kind!r} and another {found!r}; "
                    "join results of one method on one model only."
                )

        def joined(name: str, dim: int = 0) -> dict[str, Tensor]:
            return {k: torch.cat([getattr(a, name)[k] for a in items], dim) for k in getattr(first, name)}

        inputs = [a.inputs for a in items if a.inputs is not None]  # all of them, or none; so are the next two
        labels = [a.labels for a in items if a.labels is not None]
        chances = [a.probability for a in items if a.probability is not None]
        return cls(
            torch.cat([a.values for a in items]),
            torch.cat([a.target for a in items]),
            torch.cat([a.output for a in items]),
            torch.cat(inputs) if inputs else None,
            joined("parts"),
            joined("trajectory", 1),
            joined("completeness"),
            first.coverage,
            first.provenance,
            tuple(chain.from_iterable(labels)) if labels else None,
            torch.cat(chances) if chances else None,
        )

    def heatmap(self, reduce: Reduce = "sum") -> Heatmap:
        """One number a pixel, (n, 1, h, w): the sum over channels, of magnitudes ("abs"), the largest, or the l2 norm."""
        check_word("reduce", reduce, get_args(Reduce))
        if reduce == "sum":
            return self.values.sum(1, keepdim=True)
        if reduce == "abs":
            return self.values.abs().sum(1, keepdim=True)
        if reduce == "max":
            return self.values.amax(1, keepdim=True)
        return self.values.norm(dim=1, keepdim=True)

    def low_pass(self, cutoff: float = 15 / 112, **options: Any) -> Attribution:
        """Cut the map's high spatial frequencies; see :class:`backlit.post.LowPass` for the options."""
        from backlit.post import LowPass  # which stands above this layer

        return LowPass(cutoff=cutoff, **options)(self)

    def smooth(self, sigma: float = 3.0, **options: Any) -> Attribution:
        """Smooth the map by a Gaussian; see :class:`backlit.post.Smooth` for the options."""
        from backlit.post import Smooth

        return Smooth(sigma=sigma, **options)(self)

    def scale(self, percentile: float = 99.5) -> float:
        """The colour limit: this percentile of the heatmap's magnitude, its largest where that is 0; 0 for a map of zeros.

        Raises:
            InputError: If the percentile is out of range, or the map holds NaN or infinity.
        """
        return self.scale_used(percentile)[0]

    def scale_used(self, percentile: float = 99.5) -> tuple[float, float]:
        """:meth:`scale`, and the percentile that it is in the end: 100 where the wanted one is 0 because the map is sparse."""
        check(is_number(percentile) and 0 < percentile <= 100, "percentile", percentile, "above 0 and at most 100")
        ordered = (
            self.heatmap().detach().cpu().double().abs().flatten().sort().values
        )  # torch.quantile has a size limit
        if not len(ordered):
            return 0.0, percentile
        if not bool(ordered[-1].isfinite()):  # NaN sorts last
            raise InputError("values must be finite to be given colours, but hold NaN or infinity.")
        below, rest = divmod(percentile / 100 * (len(ordered) - 1), 1)
        low, high = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
        limit = float(low + (high - low) * rest)
        return (limit, percentile) if limit > 0 else (float(ordered[-1]), 100)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, without loss, with a checksum.

        An existing file is replaced, but only by a whole one; a link of that name is replaced, and not followed.

        Raises:
            FileError: If the file cannot be written.
            InputError: If the provenance holds what JSON cannot.
        """
        write_whole(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that :meth:`save` writes.

        Raises:
            InputError: If the provenance holds what JSON cannot.
        """
        tensors = {"values": self.values, "target": self.target, "output": self.output}
        if self.inputs is not None:
            tensors["inputs"] = self.inputs
        if self.probability is not None:
            tensors["probability"] = self.probability
        for name in _GROUPS:
            tensors |= {f"{name}/{k}": v for k, v in getattr(self, name).items()}
        try:
            provenance = json.dumps(self.provenance)
        except (TypeError, ValueError) as error:
            raise InputError(f"provenance must hold plain JSON values to be saved, but: {error}.") from error
        coverage = json.dumps(self.coverage.to_json())
        order = json.dumps(list(tensors))  # which safetensors does not keep
        texts = {"order": order, "coverage": coverage, "provenance": provenance}
        if self.labels is not None:
            texts["labels"] = json.dumps(self.labels)
        return pack(_FILE, tensors, texts)

    @classmethod
    def load(cls, path: str | Path) -> Attribution:
        """Read what :meth:`save` wrote, to the CPU.

        Raises:
            FileError: If the file is missing, cut short, changed since it was written, or no attribution of a known version.
        """
        tensors, metadata = unpack(
            path, _FILE, argument="path", what="attribution of Backlit", way_out="Save it again with Attribution.save."
        )
        try:
            return cls(**_sorted_out(tensors, metadata))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:  # InputError is a ValueError
            raise FileError(
                f"path: {str(path)!r} says it is an attribution, but its content is damaged ({error}). Save it again."
            ) from error

    def figure(
        self,
        images: Tensor | None = None,
        *,
        class_names: Sequence[str] | None = None,
        scale: float | Literal["own", "shared"] = "own",
        percentile: float = 99.5,
        parts: bool = True,
        opacity: float = 0.85,
    ) -> Figure:
        """Draw a row for each image: the image, map and overlay, and its parts.

        Args:
            images: (n, c, h, w) in [0, 1] to show; None takes the network's inputs.
            class_names: A name for each output of the network; None takes ``labels``.
            scale: Where the colours end: "own", each map at its own; "shared", all at the largest of these; or a number.
            percentile: Of a map's magnitude: its own limit.
            parts: Also show the parts.
            opacity: Of the overlay, from 0 to 1.

        Raises:
            InputError: If there is no image, or an argument does not fit.
        """
        from backlit.report.rows import Look, draw  # drawing stands above this layer, and loads matplotlib

        return draw(self, images, Look(class_names, scale, percentile, parts, opacity))

    def show(self, images: Tensor | None = None, **look: Any) -> None:
        """Show :meth:`figure` in a notebook or a window; the arguments are the same."""
        from matplotlib import pyplot as plt  # a notebook or a window shows pyplot's own figures only

        from backlit.report.rows import Look, draw

        draw(self, images, Look(**look), into=plt.figure())
        plt.show()

    def _repr_html_(self) -> str:
        from backlit.report.notebook import as_html

        return as_html(self)

    def _repr_png_(self) -> bytes | None:
        from backlit.report.notebook import as_png

        return as_png(self)


def _checked_labels(labels: Sequence[str], n: int) -> tuple[str, ...]:
    must = f"labels must be {n} class names, one for each image"
    if not is_several(labels) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{must}, but are {shown(labels)}.")
    if len(labels) != n:
        raise InputError(f"{must}, but are {len(labels)}.")
    return tuple(labels)


def _few(items: Sequence[Any]) -> str:
    """The first four items of a list, and that there are more."""
    return f"[{', '.join(str(item) for item in items[:4])}{', ...' * (len(items) > 4)}]"


def _kind(one: Attribution) -> dict[str, Any]:
    """What two attributions must share to be rows of one."""
    named = {name: one.provenance.get(name) for name in ("method", "options", "model", "fingerprint", "post")}
    steps = {name: len(curve) for name, curve in one.trajectory.items()}
    named["options"] = without_free(named["options"])
    groups = {"parts": sorted(one.parts), "trajectory": steps, "completeness": sorted(one.completeness)}
    there = {name: getattr(one, name) is not None for name in ("inputs", "labels", "probability")}
    return {**named, "size": tuple(one.values.shape[1:]), **there, **groups}


def _sorted_out(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, Any]:
    """A file's content as the fields of an Attribution."""
    found: dict[str, Any] = {name: {} for name in _GROUPS}
    for key in json.loads(metadata["order"]):
        group, slash, name = key.partition("/")
        if slash:
            found[group][name] = tensors[key]
        else:
            found[key] = tensors[key]
    found["coverage"] = Coverage.from_json(json.loads(metadata["coverage"]))
    found["provenance"] = json.loads(metadata["provenance"])
    if "labels" in metadata:  # which files of earlier versions have not
        found["labels"] = json.loads(metadata["labels"])
    return found
