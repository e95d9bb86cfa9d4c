"""Fitted parameters as one object and one file: safetensors, with what they were fitted for and how."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from backlit._errors import FileError, InputError
from backlit._files import write_whole
from backlit._fingerprint import fingerprint
from backlit._json import JsonObject
from backlit._packed import pack, unpack
from backlit._plain import identity

_FILE = "backlit.fitted"
Layers = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """An artefact: what a method learned from data about one network.

    Attributes:
        kind: Which fit: "mip_in" or "pattern".
        layers: Tensors by layer and name.
        classes: The class indices that it covers, in the order of its rows.
        network: The network's fingerprint, of its weights as float32, so that a copy in another precision is the same.
        input_shapes: (c, h, w) of each input.
        facts: Options, layers with their samples, the data; plain JSON values.
    """

    kind: str
    layers: Layers
    classes: tuple[int, ...]
    network: str
    input_shapes: tuple[tuple[int, ...], ...]
    facts: JsonObject = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind} of {len(self.classes)} classes for network {self.network[:12]}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self}, layers: {', '.join(self.layers)})"

    def __plain__(self) -> JsonObject:
        """Return what tells these parameters from others, for the record of what was run."""
        tensors = flat(self.layers)
        key = tuple((name, id(t), 0 if t.is_inference() else t._version) for name, t in tensors.items())
        known = self.__dict__.get("_digest")
        if known is None or known[0] != key:  # they are large, and each explanation says what it used
            digest = identity([[name, t] for name, t in tensors.items()])
            known = self.__dict__["_digest"] = (key, digest)
        facts = {"classes": list(self.classes), "network": self.network, "input_shapes": list(self.input_shapes)}
        return {"fitted": str(self), **facts, "parameters": known[1]}

    @property
    def bytes(self) -> int:
        """The size of the parameters."""
        return sum(t.numel() * t.element_size() for t in flat(self.layers).values())

    def save(self, path: str | Path, argument: str = "path") -> None:
        """Write one safetensors file, with a checksum. Errors call it ``argument``.

        A file of the same kind is replaced, by a whole one; any other is not.

        Raises:
            FileError: If it cannot be written, or a file that is no fit of this kind has that name.
        """
        content = {
            "kind": self.kind,
            "layers": names_of(self.layers),
            "classes": list(self.classes),
            "network": self.network,
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "facts": self.facts,
        }
        check_free(path, self.kind, argument)
        write_whole(path, pack(_FILE, flat(self.layers), {"content": json.dumps(content)}), argument)

    @classmethod
    def load(cls, path: str | Path) -> Fitted:
        """Read what :meth:`save` wrote, to the CPU.

        Raises:
            FileError: If the file is missing, cut short, changed since, or holds nothing fitted of a known format.
        """
        tensors, metadata = unpack(
            path, _FILE, argument="fitted", what="parameters fitted by Backlit", way_out="Fit again with `backlit fit`."
        )
        try:
            content = json.loads(metadata["content"])
            layers, classes = nested(tensors, content["layers"]), tuple(content["classes"])
            shapes = tuple(tuple(shape) for shape in content["input_shapes"])
            fitted = cls(content["kind"], layers, classes, content["network"], shapes, content["facts"])
            fitted._check()
            return fitted
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FileError(f"fitted: the content of {str(path)!r} is damaged ({error}). Fit again.") from error

    def _check(self) -> None:
        """Refuse what :meth:`save` would not have written.

        Raises:
            ValueError: Says what.
        """
        whole = [*self.classes, *(side for shape in self.input_shapes for side in shape)]
        text = isinstance(self.kind, str) and isinstance(self.network, str)
        for sound, what in (
            (text, "its kind and network are no text"),
            (all(type(i) is int and i >= 0 for i in whole), "its classes and sizes are no whole numbers"),
            (0 < len(set(self.classes)) == len(self.classes), "its classes are none, or some twice"),
            (isinstance(self.facts, dict) and isinstance(self.facts.get("start"), str), "its facts name no start"),
        ):
            if not sound:
                raise ValueError(what)
        for name, tensor in flat(self.layers).items():
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} holds other than finite numbers")
            if self.kind == "mip_in" and (not tensor.dim() or len(tensor) != len(self.classes)):
                raise ValueError(f"{name} has not one row for each of {len(self.classes)} classes")

    def check_kind(self, kind: str) -> None:
        """Refuse another method's parameters.

        Raises:
            InputError: If they are of another kind.
        """
        if self.kind != kind:
            raise InputError(
                f"fitted must hold what `backlit fit --method {kind}` wrote, but holds {self.kind!r}. Give the other file."
            )

    def check_network(self, model: nn.Module) -> None:
        """Refuse another network.

        Raises:
            InputError: If the weights are not those that it was fitted for.
        """
        weights = weights_of(model)
        if weights != self.network:
            raise InputError(
                f"fitted belongs to another network: it was fitted for a {self.facts.get('model', 'network')} with the "
                f"fingerprint {self.network[:12]}, and this {type(model).__name__} has {weights[:12]}. Fit this one, or load the "
                "weights that were used."
            )

    def check_inputs(self, inputs: tuple[Tensor, ...]) -> None:
        """Refuse images of another size.

        Raises:
            InputError: With both sizes.
        """
        shapes = tuple(tuple(x.shape[1:]) for x in inputs)
        if shapes != self.input_shapes:
            raise InputError(
                f"inputs must have the size that was fitted, {_sizes(self.input_shapes)}, but have {_sizes(shapes)}. Scale "
                "them, or fit for this size."
            )

    def to(self, device: torch.device, dtype: torch.dtype) -> Layers:
        """Return the parameters on a device and in a dtype."""
        return {k: {name: t.to(device, dtype) for name, t in tensors.items()} for k, tensors in self.layers.items()}


def check_free(path: str | Path, kind: str, argument: str = "path") -> None:
    """See that a fit of this kind may be written to a file: there is none, or an earlier fit of the same kind.

    Raises:
        FileError: If something else is there.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    what = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "another file"
    if what == "another file":
        there = _kind_of(path)
        if there == kind:
            return
        what = what if there is None else f"a fit of {there}"
    raise FileError(
        f"{argument}: {str(path)!r} is {what}, and only an earlier fit of {kind} would be replaced. Choose another name, or "
        "move it away."
    )


def _kind_of(path: Path) -> str | None:
    """Return the kind of fit that a file holds; None if it is something else."""
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata()
        return json.loads(metadata["content"])["kind"] if _FILE in metadata else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def flat(layers: Layers) -> dict[str, Tensor]:
    """Return all tensors by the name "layer/name"."""
    return {f"{layer}/{name}": t for layer, tensors in layers.items() for name, t in tensors.items()}


def names_of(layers: Layers) -> dict[str, list[str]]:
    """Return the names of each layer's tensors."""
    return {layer: list(tensors) for layer, tensors in layers.items()}


def nested(tensors: Mapping[str, Tensor], names: Mapping[str, list[str]]) -> dict[str, dict[str, Tensor]]:
    """Return by layer and name what :func:`flat` put side by side."""
    return {layer: {name: tensors[f"{layer}/{name}"] for name in own} for layer, own in names.items()}


def weights_of(model: nn.Module) -> str:
    """Return the fingerprint of a network whatever the precision it was converted to."""
    return fingerprint(model, dtype=torch.float32)


def _sizes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes)
