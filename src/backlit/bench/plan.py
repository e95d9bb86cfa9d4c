"""What a comparison is asked to do, checked before anything is computed or written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import InputError
from backlit._fingerprint import tensor_digest
from backlit._forward import forward
from backlit._json import JsonObject
from backlit._layout import fast_layout
from backlit._plain import identity, kind_of, network_of, versions
from backlit.capture.refuse import check_model
from backlit.methods import BASELINES, METHODS, Method
from backlit.methods.inputs import check_images
from backlit.methods.lookup import find_method
from backlit.metrics import Examples, Metric
from backlit.metrics.lookup import find_metric
from backlit.models import LoadedModel

BLOCK = 8  # images that are explained and scored together: what an interruption costs at most
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,59}")


@dataclass(frozen=True, eq=False)
class Plan:
    """Methods x images x metrics, in blocks of images.

    Attributes:
        network: The network, in eval mode.
        loaded: The model that it came with; None if it was given bare.
        examples: The images, their targets and the ground truth, on one device.
        methods: The methods by name.
        metrics: The metrics, each another one.
        classes: Number of classes to explain of each image.
        shown: Number of images whose maps the result holds.
        target: What the examples' targets are, in words.
    """

    network: nn.Module
    loaded: LoadedModel | None
    examples: Examples
    methods: Mapping[str, Method]
    metrics: Sequence[Metric]
    classes: int
    shown: int
    target: str

    def check(self) -> None:
        """Refuse what could only fail later.

        Raises:
            InputError: If an argument cannot be used, or the examples lack what a metric needs.
            ModelStateError: If the network is in train mode.
        """
        check_images(self.examples.inputs, self.network)
        if not isinstance(self.classes, int) or self.classes < 1:
            raise InputError(f"classes must be a positive number of classes an image, but is {self.classes!r}.")
        if not isinstance(self.shown, int) or self.shown < 0:
            raise InputError(f"shown must be a number of images from 0 on, but is {self.shown!r}.")
        for name, method in self.methods.items():
            _check_method(name, method, self.network)
        check_model(self.network, (self.examples.inputs,))
        for metric in self.metrics:
            metric.check(self.network, self.examples, self.methods)
        self._check_truth(self.logits.shape[1])

    def _check_truth(self, classes: int) -> None:
        low, high = int(self.examples.target.min()), int(self.examples.target.max())
        if low < 0 or high >= classes:
            raise InputError(
                f"target must be class indices from 0 to {classes - 1}, but reaches from {low} to {high}; the model has "
                f"{classes} classes."
            )
        if self.examples.labels is not None and self.examples.labels.shape[1] != classes:
            raise InputError(
                f"labels must have one column a class of the model ({classes}), but have {self.examples.labels.shape[1]}."
            )

    @property
    def model(self) -> str:
        """The model's name."""
        return self.loaded.name if self.loaded else type(self.network).__name__

    @cached_property
    def blocks(self) -> list[slice]:
        """The blocks of images, in order."""
        n = len(self.examples)
        return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]

    @cached_property
    def logits(self) -> Tensor:
        """The network's logits of all images (n, k).

        Raises:
            InputError: If it gives something else.
        """
        x = self.examples.inputs
        outputs = [forward(self.network, x[block]) for block in self.blocks]
        if not all(isinstance(y, Tensor) and y.dim() == 2 for y in outputs):
            kind = tuple(outputs[0].shape) if isinstance(outputs[0], Tensor) else type(outputs[0]).__name__
            raise InputError(f"model must give logits (n, k), but gives {kind}. Wrap it so that it returns them alone.")
        return torch.cat(outputs).float()

    @cached_property
    def targets(self) -> Tensor:
        """The classes to explain (n, t): the target first, then the likeliest others."""
        target, k = self.examples.target, self.logits.shape[1]
        others = self.logits.scatter(1, target[:, None], -torch.inf).topk(min(self.classes, k) - 1).indices
        return torch.cat([target[:, None], others], 1)

    def images(self, block: slice) -> Tensor:
        """Return the images of a block in the layout that is fastest for the network."""
        return fast_layout(self.network, self.examples.inputs[block])

    def words(self, block: slice) -> str:
        """Say which images a block holds."""
        return f"images {block.start + 1} to {block.stop} of {len(self.examples)}"

    def asked(self) -> JsonObject:
        """Tell what makes two comparisons the same, as plain JSON values.

        Raises:
            InputError: If an option cannot be known again by another process.
        """
        examples = self.examples
        return {
            "versions": versions(),
            "model": self.model,
            "network": network_of(self.network),
            "images": list(examples.names),
            "pixels": tensor_digest(examples.inputs),
            "dtype": str(examples.inputs.dtype).removeprefix("torch."),
            "device": examples.inputs.device.type,
            "matmul precision": torch.get_float32_matmul_precision(),
            "truth": identity([examples.labels, examples.boxes, examples.cells]),
            "targets": self.targets.tolist(),
            "target": self.target,
            "methods": {name: _asked(m, f"methods[{name!r}].") for name, m in self.methods.items()},
            "metrics": {m.name: _asked(m, f"metrics: {m.name}.") for m in self.metrics},
            "block": BLOCK,
        }


def methods_of(
    network: nn.Module, methods: Sequence[str | type[Method]] | Mapping[str, Method | type[Method]], seed: int
) -> dict[str, Method]:
    """Make methods by name, from names, classes, or methods by names of the user's own.

    Raises:
        InputError: If there is none, or a name is unknown.
    """
    if isinstance(methods, str):
        raise InputError(f"methods must be a list of names, or methods by name, but is the text {methods!r}.")
    if isinstance(methods, Mapping):
        named = {name: m(network, seed=seed) if isinstance(m, type) else m for name, m in methods.items()}
    else:
        kinds = [m if isinstance(m, type) else _kind(m) for m in methods]
        named = {kind.name: kind(network, seed=seed) for kind in kinds}
    if not named:
        raise InputError("methods must name at least one method, but is empty.")
    return named


def _kind(name: Any) -> type[Method]:
    if not isinstance(name, str):
        raise InputError(
            f"methods must be names or classes, but hold {type(name).__name__}; give method objects by name: {{'name': object}}."
        )
    return find_method(name, METHODS + BASELINES)


def metrics_of(metrics: Sequence[str | Metric | type[Metric]], seed: int) -> list[Metric]:
    """Make metrics from names, classes or metrics.

    Raises:
        InputError: If a name is unknown, or a metric there twice.
    """
    if isinstance(metrics, str):
        raise InputError(f"metrics must be a list of names or metrics, but is the text {metrics!r}.")
    kinds = [find_metric(m) if isinstance(m, str) else m for m in metrics]
    made = [m(seed=seed) if isinstance(m, type) else m for m in kinds]
    names = [m.name for m in made]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f"metrics must be different, but {twice!r} is there twice. Compare twice for two protocols.")
    return made


def _check_method(name: str, method: Any, network: nn.Module) -> None:
    if not isinstance(method, Method):
        raise InputError(f"methods[{name!r}] must be a method, but is {type(method).__name__}.")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"methods must have names of letters, digits, '_', '-' and '.', at most 60: they become file "
            f"names. One is {name!r}."
        )
    if method.network is not network:
        raise InputError(f"methods[{name!r}] must explain the model that is compared, but was made for another one.")


def _asked(one: Method | Metric, argument: str) -> JsonObject:
    """Tell what can change the numbers of a method or metric.

    Raises:
        InputError: If an option cannot be known again by another process.
    """
    try:
        return kind_of(type(one), one, argument)
    except InputError as error:
        raise InputError(f"{error} Or keep nothing on the disk (out=None).") from error
