"""What a comparison is asked to do, checked before anything is computed or written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import InputError, check, check_type, shown
from backlit._fingerprint import tensor_digest
from backlit._forward import forward
from backlit._json import JsonObject
from backlit._layout import fast_layout
from backlit._plain import identity, kind_of, network_of, versions
from backlit.bench.record import Task
from backlit.bench.setting import LONGEST, read_setting
from backlit.capture.refuse import check_model
from backlit.methods import BASELINES, METHODS, Method
from backlit.methods.inputs import check_images
from backlit.methods.lookup import find_method
from backlit.metrics import Examples, Metric
from backlit.metrics.base import WHO_HAS_IT
from backlit.metrics.lookup import find_metric
from backlit.models import LoadedModel

BLOCK = 8  # images that are explained and scored together: what an interruption costs at most
_SEVERAL = (Sequence, Set, Mapping, Iterator)  # an array or a tensor holds no names
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{LONGEST - 1}}}")


@dataclass(frozen=True, eq=False)
class Plan:
    """Methods x images x metrics, in blocks of images.

    Attributes:
        network: The network, in eval mode.
        loaded: The model that it came with; None if it was given bare.
        examples: The images, their targets and the ground truth, on one device.
        methods: The methods by name.
        metrics: The metrics by name.
        classes: Number of classes to explain of each image.
        shown: Number of images whose maps the result holds.
        target: What the examples' targets are, in words.
    """

    network: nn.Module
    loaded: LoadedModel | None
    examples: Examples
    methods: Mapping[str, Method]
    metrics: Mapping[str, Metric]
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
        check_counts(self.classes, self.shown)
        for name, method in self.methods.items():
            _check_method(name, method, self.network)
        check_model(self.network, (self.examples.inputs,))
        for name, metric in self.metrics.items():
            _check_name("metrics", name)
            metric.check(self.network, self.examples, self.methods)
            self._check_sources(metric)
        self._check_truth(self.logits.shape[1])

    def _check_sources(self, metric: Metric) -> None:
        if "source" in metric.needs and not any(method.gives_source for method in self.methods.values()):
            raise InputError(
                f"{metric.title} needs {WHO_HAS_IT['source']}, but none of the methods has one: {', '.join(self.methods)}. Add "
                "one that has, or leave this metric out."
            )

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

    @property
    def tasks(self) -> list[Task]:
        """The work that is given out at once, in order: block by block, each method."""
        return [Task(method, number) for number in range(len(self.blocks)) for method in self.methods]

    def number_of(self, start: int) -> int | None:
        """Return the number of the block that starts with this image; None if none does."""
        return start // BLOCK if start % BLOCK == 0 and 0 <= start < len(self.examples) else None

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
        """The classes to explain (n, t): the target first, then the likeliest others.

        One of the first two is the prediction: where a metric asks for its map, two are explained even if one is to be shown.
        """
        target, k = self.examples.target, self.logits.shape[1]
        asked = max(self.classes, 2) if any(m.explains == "prediction" for m in self.metrics.values()) else self.classes
        others = self.logits.scatter(1, target[:, None], -torch.inf).topk(min(asked, k) - 1).indices
        return torch.cat([target[:, None], others], 1)

    def explained_by(self, metric: Metric, block: slice) -> Tensor:
        """Say which column of the block's targets (n,) the maps are of that a metric scores."""
        if metric.explains == "target" or self.targets.shape[1] == 1:
            return torch.zeros(len(self.targets[block]), dtype=torch.int64)
        first, second = self.logits[block].gather(1, self.targets[block, :2]).unbind(1)
        return (second > first).long().cpu()

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
            **self.computes(),
            "images": list(examples.names),
            "pixels": tensor_digest(examples.inputs),
            "truth": identity([examples.labels, examples.boxes, examples.cells]),
            "targets": self.targets.tolist(),
            "target": self.target,
        }

    def computes(self) -> JsonObject:
        """Tell what computes, whatever the images: this must be the same in every process of a run.

        Raises:
            InputError: If an option cannot be known again by another process.
        """
        return {
            "versions": versions(),
            "model": self.model,
            "network": network_of(self.network),
            "dtype": str(self.examples.inputs.dtype).removeprefix("torch."),
            "device": self.examples.inputs.device.type,
            "matmul precision": torch.get_float32_matmul_precision(),
            "methods": {name: _asked(m, f"methods[{name!r}].") for name, m in self.methods.items()},
            "metrics": {name: _asked(m, f"metrics: {name}.") for name, m in self.metrics.items()},
            "block": BLOCK,
        }


def check_counts(classes: object, shown: object) -> None:
    """Refuse what is no number of classes to explain, or of images to show.

    Raises:
        InputError: With what it must be.
    """
    whole = type(classes) is int and classes > 0
    check(whole, "classes", classes, "a positive number of classes an image")
    check(type(shown) is int and shown >= 0, "shown", shown, "a number of images from 0 on")


def methods_of(
    network: nn.Module, methods: Sequence[str | type[Method]] | Mapping[str, Method | type[Method]], seed: int
) -> dict[str, Method]:
    """Make methods by name, from names, classes, or methods by names of the user's own.

    Raises:
        InputError: If there is none, or a name is unknown.
    """
    if isinstance(methods, str):
        raise InputError(f"methods must be a list of names, or methods by name, but is the text {shown(methods)}.")
    check_type("methods", methods, _SEVERAL, "a list of names, or methods by name")
    if isinstance(methods, Mapping):
        _refuse_classes("methods", methods, Method)
        named = {name: m(network, seed=seed) if isinstance(m, type) else m for name, m in methods.items()}
    else:
        made = [_method(m, network, seed) for m in methods]
        named = dict(made)
    if not named:
        raise InputError("methods must name at least one method, but is empty.")
    return named


def _refuse_classes(argument: str, named: Mapping[str, object], kind: type) -> None:
    """Refuse a class that is no method, or no metric, before it is called."""
    for name, given in named.items():
        right = not isinstance(given, type) or issubclass(given, kind)
        check(right, f"{argument}[{name!r}]", given, f"a {kind.__name__.lower()} or a class of them")


def _method(asked: Any, network: nn.Module, seed: int) -> tuple[str, Method]:
    if isinstance(asked, type) and issubclass(asked, Method):
        return asked.name, asked(network, seed=seed)
    if not isinstance(asked, str):
        raise InputError(
            f"methods must be names or classes, but hold {type(asked).__name__}; give method objects by name: {{'name': object}}."
        )
    setting = read_setting(asked, "methods")
    kind = find_method(setting.of, METHODS + BASELINES)
    return setting.name(kind.name), kind(network, **{"seed": seed, **setting.options})


def metrics_of(
    metrics: Sequence[str | Metric | type[Metric]] | Mapping[str, Metric | type[Metric]], seed: int
) -> dict[str, Metric]:
    """Make metrics by name, from names, classes, metrics, or metrics by names of the user's own.

    Raises:
        InputError: If a name is unknown, or there twice.
    """
    if isinstance(metrics, str):
        raise InputError(f"metrics must be a list of names or metrics, but is the text {shown(metrics)}.")
    check_type("metrics", metrics, _SEVERAL, "a list of names or metrics, or metrics by name")
    if isinstance(metrics, Mapping):
        _refuse_classes("metrics", metrics, Metric)
        named = [(name, m(seed=seed) if isinstance(m, type) else m) for name, m in metrics.items()]
        for name, metric in named:
            check_type(f"metrics[{name!r}]", metric, Metric, "a metric")
    else:
        named = [_metric(m, seed) for m in metrics]
    names = [name for name, _ in named]
    if (twice := next((n for n in names if names.count(n) > 1), None)) is not None:
        raise InputError(
            f"metrics must be different, but {twice!r} is there twice. Give two settings of one by names of your own: "
            "{'name': metric}."
        )
    return dict(named)


def _metric(asked: object, seed: int) -> tuple[str, Metric]:
    if isinstance(asked, type) and issubclass(asked, Metric):
        return asked.name, asked(seed=seed)
    if isinstance(asked, Metric):
        return asked.name, asked
    if not isinstance(asked, str):
        raise InputError(f"metrics must be names, classes or metrics, but hold {type(asked).__name__}.")
    setting = read_setting(asked, "metrics")
    kind = find_metric(setting.of)
    return setting.name(kind.name), kind(**{"seed": seed, **setting.options})


def _check_name(argument: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{argument} must have names of letters, digits, '_', '-' and '.', at most {LONGEST}: they become file names. One is "
            f"{shown(name)}."
        )


def _check_method(name: str, method: Any, network: nn.Module) -> None:
    if not isinstance(method, Method):
        raise InputError(f"methods[{name!r}] must be a method, but is {type(method).__name__}.")
    _check_name("methods", name)
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
