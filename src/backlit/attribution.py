"""The result of a method: frozen, with all that one needs to trust it or to doubt it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backlit._errors import FileError, InputError
from backlit._files import write_whole
from backlit._types import Heatmap
from backlit.capture import Coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Reduce = Literal["sum", "abs", "max", "norm"]
_FORMAT = "1"
_GROUPS = ("parts", "trajectory", "completeness")


@dataclass(frozen=True, eq=False)
class Attribution:
    """Attribution maps of n images, each for one target.

    Attributes:
        values: The maps (n, c, h, w), in units of the logit per pixel and channel for methods that split the logit.
        target: Class indices (n,), int64.
        output: The targets' logits in the network's own forward pass (n,).
        inputs: The images as the network took them (n, c, h, w), or None.
        parts: Further maps (n, c, h, w) by name, such as "positive" and "negative".
        trajectory: Curves over the steps of a learned method (steps, n), by name.
        completeness: Numbers (n,) that say what the map accounts for, by name; "gap" is what it should and does not.
        coverage: The rule of every site.
        provenance: Method, options, model fingerprint, versions, seed, seconds; plain JSON values.
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

    def __post_init__(self) -> None:
        if self.values.dim() != 4:
            raise InputError(f"values must be maps (n, c, h, w), but have shape {tuple(self.values.shape)}.")
        n = len(self.values)
        expected: list[tuple[str, Tensor, tuple[int, ...]]] = [
            ("target", self.target, (n,)),
            ("output", self.output, (n,)),
        ]
        expected += [(f"parts[{k!r}]", v, tuple(self.values.shape)) for k, v in self.parts.items()]
        expected += [(f"completeness[{k!r}]", v, (n,)) for k, v in self.completeness.items()]
        expected += [(f"trajectory[{k!r}]", v, (len(v), n)) for k, v in self.trajectory.items()]
        if self.inputs is not None:
            expected.append(("inputs", self.inputs, tuple(self.values.shape)))
        for name, tensor, shape in expected:
            if tuple(tensor.shape) != shape:
                raise InputError(f"{name} must have shape {shape} to go with values, but has {tuple(tensor.shape)}.")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int | slice) -> Attribution:
        """The attribution of these images alone; an index keeps the images' axis."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index must be below the number of images, {len(self)}, but is {index}")
            index = slice(index % len(self), index % len(self) + 1)
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
        )

    def __iter__(self) -> Iterator[Attribution]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        gap = self.completeness.get("gap")
        told = "" if gap is None else f", gap={float(gap.abs().max()):.2g}"
        return (
            f"Attribution({self.provenance.get('method', '?')}, values={tuple(self.values.shape)}, "
            f"target={self.target.tolist()}, output={[round(float(v), 3) for v in self.output]}{told}, {self.coverage})"
        )

    @classmethod
    def cat(cls, items: Sequence[Attribution]) -> Attribution:
        """One attribution of all images; coverage and provenance are the first one's.

        Raises:
            InputError: If there is none, or their parts differ.
        """
        if not items:
            raise InputError("items must hold at least one Attribution, but is empty.")
        first = items[0]
        for name in _GROUPS:
            if any(set(getattr(a, name)) != set(getattr(first, name)) for a in items):
                raise InputError(f"items must have the same {name}, but they differ; join results of one method only.")

        def joined(name: str, dim: int = 0) -> dict[str, Tensor]:
            return {k: torch.cat([getattr(a, name)[k] for a in items], dim) for k in getattr(first, name)}

        inputs = [a.inputs for a in items if a.inputs is not None]
        return cls(
            torch.cat([a.values for a in items]),
            torch.cat([a.target for a in items]),
            torch.cat([a.output for a in items]),
            torch.cat(inputs) if len(inputs) == len(items) else None,
            joined("parts"),
            joined("trajectory", 1),
            joined("completeness"),
            first.coverage,
            first.provenance,
        )

    def heatmap(self, reduce: Reduce = "sum") -> Heatmap:
        """One number a pixel, (n, 1, h, w): the sum over channels, of magnitudes ("abs"), the largest, or the l2 norm."""
        if reduce == "sum":
            return self.values.sum(1, keepdim=True)
        if reduce == "abs":
            return self.values.abs().sum(1, keepdim=True)
        if reduce == "max":
            return self.values.amax(1, keepdim=True)
        if reduce == "norm":
            return self.values.norm(dim=1, keepdim=True)
        raise InputError(f"reduce must be 'sum', 'abs', 'max' or 'norm', but is {reduce!r}.")

    def scale(self, percentile: float = 99.5) -> float:
        """The colour limit: this percentile of the heatmap's magnitude; 0 for a map of zeros."""
        if not 0 < percentile <= 100:
            raise InputError(f"percentile must be above 0 and at most 100, but is {percentile!r}.")
        magnitudes = self.heatmap().detach().float().abs().flatten().cpu().numpy()
        import numpy as np  # here: torch.quantile refuses large maps

        return float(np.percentile(magnitudes, percentile)) or float(magnitudes.max())

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, without loss; an existing file is replaced only by a whole one.

        Raises:
            FileError: If the file cannot be written.
        """
        tensors = {"values": self.values, "target": self.target, "output": self.output}
        if self.inputs is not None:
            tensors["inputs"] = self.inputs
        for name in _GROUPS:
            tensors |= {f"{name}/{k}": v for k, v in getattr(self, name).items()}
        metadata = {
            "backlit.attribution": _FORMAT,
            "coverage": json.dumps(self.coverage.to_json()),
            "provenance": json.dumps(dict(self.provenance)),
        }
        data = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata)
        write_whole(path, data)

    @classmethod
    def load(cls, path: str | Path) -> Attribution:
        """Read what :meth:`save` wrote, to the CPU.

        Raises:
            FileError: If the file is missing, cut short, or no attribution of a known version.
        """
        if not Path(path).is_file():
            raise FileError(f"path: there is no file {str(path)!r}.")
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        except (SafetensorError, OSError) as error:
            raise FileError(f"path: {str(path)!r} is no whole safetensors file ({error}). Write it again.") from error
        version = metadata.get("backlit.attribution")
        if version != _FORMAT:
            found = (
                "no attribution of Backlit"
                if version is None
                else f"of format {version}, and this Backlit reads {_FORMAT}"
            )
            raise FileError(f"path: {str(path)!r} is {found}. Save it again with Attribution.save.")
        groups: dict[str, dict[str, Tensor]] = {name: {} for name in _GROUPS}
        for key in list(tensors):
            group, slash, name = key.partition("/")
            if slash:
                groups[group][name] = tensors.pop(key)
        coverage = Coverage.from_json(json.loads(metadata["coverage"]))
        fields: dict[str, Any] = {**tensors, **groups}
        return cls(**fields, coverage=coverage, provenance=json.loads(metadata["provenance"]))

    def figure(self, images: Tensor | None = None, *, percentile: float = 99.5, parts: bool = True) -> Figure:
        """Image, map and overlay of each image, and its parts; see :func:`backlit.report.figure.draw`."""
        from backlit.report.figure import draw  # drawing stands above this layer, and loads matplotlib

        return draw(self, images, percentile=percentile, parts=parts)

    def show(self, images: Tensor | None = None, *, percentile: float = 99.5, parts: bool = True) -> None:
        """Show :meth:`figure` in a notebook or a window."""
        from matplotlib import pyplot as plt

        drawn = self.figure(images, percentile=percentile, parts=parts)
        manager = plt.figure(figsize=drawn.get_size_inches()).canvas.manager
        if manager is not None:
            manager.canvas.figure = drawn
            drawn.set_canvas(manager.canvas)
        plt.show()
