"""Torchvision's classification networks by name, with their preprocessing and class names; offline, if no download is asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import FileError, InputError, nearest
from backlit.models.download import fetch
from backlit.models.loaded import LoadedModel
from backlit.models.preprocess import Preprocess
from backlit.models.request import Request
from backlit.models.weights import Weights

_EXTRA = 'pip install "backlit[vision]"'
_IMAGENET = 1000
# The auxiliary heads only train; in eval mode their output is never seen.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Layouts of old checkpoints that torchvision still publishes, and what its modules call the same parameters today.
_RENAMED = (
    (re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(\.mlp)\.linear_2\."), r"\1.3."),
)


def names() -> tuple[str, ...]:
    """Return the names of torchvision's classification networks; none if torchvision is not installed."""
    try:
        models = _models()
    except InputError:
        return ()
    return tuple(models.list_models(module=models))


def load(request: Request, others: tuple[str, ...] = ()) -> LoadedModel:
    """Build ``request.name``; ``others`` are the names beside torchvision's, for the message about an unknown one.

    Without a file, the state comes from torch's own cache if the default weights are there already.

    Raises:
        InputError: torchvision is missing, the name is unknown, no weights are at hand, or they do not fit.
        FileError: the cached weights cannot be read, or are not what torchvision published.

    """
    models = _models(request.name)
    known = models.list_models(module=models)
    if request.name not in known:
        raise InputError(
            f"model: no model named {request.name!r}.{nearest(request.name, [*known, *others])} There are "
            f"{', '.join(map(repr, others))}, {len(known)} of torchvision ('resnet18', ...), 'timm:NAME' with the "
            "extra backlit[timm], and 'module:function' for a network of your own."
        )
    default = models.get_model_weights(request.name).DEFAULT
    request = _with_state(request, default)
    own = _preprocess(default.transforms())
    network = request.build(lambda: _network(models, request, request.preprocess(own)))
    classes = _classes(request, network)
    if classes != _IMAGENET:
        network = request.build(lambda: _network(models, request, request.preprocess(own), classes))
    class_names = request.class_names(tuple(default.meta["categories"]), classes)
    return request.finish(network, own, class_names, _AUXILIARY.get(request.name, ()))


def _models(name: str | None = None) -> ModuleType:
    try:
        from torchvision import models
    except ImportError as error:
        wanted = f" {name!r}, unless it is misspelt, is one of torchvision's models." if name else ""
        raise InputError(f"model:{wanted} torchvision cannot be imported ({error}): {_EXTRA}") from error
    return models


def _with_state(request: Request, default: Any) -> Request:
    if request.random:
        return request
    if request.weights is None:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(default.url).name
        if not cached.is_file() and request.told is not None:
            fetch(default.url, cached, default.meta.get("_file_size"), request.told)
        if not cached.is_file():
            request.refuse_untrained(
                f"{request.name} has no file given, and torchvision's default weights are not at {str(cached)!r}",
                "download=True (--download on the command line), which lets torchvision fetch them once",
            )
        request = replace(request, weights=_read_cached(cached))
    assert request.weights is not None
    return replace(request, weights=replace(request.weights, state=_present_names(request.weights.state)))


def _read_cached(path: Path) -> Weights:
    """Read a checkpoint that torchvision downloaded: its hash checked, and tensors only, no other pickled object."""
    published = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if published and not found.startswith(published[1]):
        raise FileError(
            f"weights: {str(path)!r} is not the file torchvision published (sha256 {found[:8]}..., expected "
            f"{published[1]}...). Delete it and download it again."
        )
    try:
        return Weights(str(path), torch.load(path, map_location="cpu", weights_only=True))
    except (
        Exception
    ) as error:  # many types; torch's own text advises weights_only=False, which would run a pickle's code
        raise FileError(
            f"weights: {str(path)!r} is damaged or holds more than tensors. Delete it and download it again."
        ) from error


def _present_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def _preprocess(transform: Any) -> Preprocess:
    """Translate torchvision's ImageClassification preset."""
    crop, resize = transform.crop_size[0], transform.resize_size[0]
    return Preprocess(
        size=(crop, crop),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        resize=resize,
        interpolation=transform.interpolation.value,
    )


def _network(models: ModuleType, request: Request, preprocess: Preprocess, classes: int = _IMAGENET) -> nn.Module:
    options: dict[str, Any] = {"num_classes": classes}
    if request.name in _AUXILIARY:
        # torchvision's published weights expect the transform, whoever loads them.
        options |= {"aux_logits": False, "transform_input": True, "init_weights": request.random}
    elif request.name.startswith("vit_"):
        options["image_size"] = preprocess.size[0]
    elif request.name.startswith("maxvit"):
        options["input_size"] = preprocess.size
    try:
        return models.get_model(request.name, weights=None, **options)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"model: torchvision cannot build {request.name} for size {preprocess.size}: {error}"
        ) from error


def _classes(request: Request, network: nn.Module) -> int:
    """Return how many classes the weights' final layer has, the layer being the network's last with 1000 outputs."""
    if request.weights is None:
        return _IMAGENET
    finals = [name for name, value in network.state_dict().items() if value.ndim and value.shape[0] == _IMAGENET]
    return request.weights.rows(finals[-1]) or _IMAGENET
