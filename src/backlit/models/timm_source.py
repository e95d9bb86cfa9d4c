"""timm's networks, as ``timm:NAME``, with the preprocessing of their pretrained_cfg; offline, unless a download is asked for."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, cast

from torch import nn

from backlit._errors import InputError, nearest
from backlit.models.download import Told, fetch_from_hub
from backlit.models.loaded import LoadedModel
from backlit.models.preprocess import Crop, Interpolation, Preprocess
from backlit.models.request import Request
from backlit.models.weights import Weights, read_weights

PREFIX = "timm:"
_IMAGENET = 1000


def load(request: Request) -> LoadedModel:
    """Build timm's network for the classes of the weights file.

    Raises:
        InputError: timm is missing, the name is unknown, no weights are given, or they do not fit.

    """
    timm = _timm()
    name = request.name.removeprefix(PREFIX)
    if not timm.is_model(name):
        raise InputError(
            f"model: timm {timm.__version__} has no model named {name!r}.{nearest(name, timm.list_models())} "
            "timm.list_models() lists them."
        )
    if request.told is None:
        request.refuse_untrained(
            f"{request.name} has no file given",
            "download=True (--download on the command line), which lets timm's hub give them once",
        )
    network = request.build(lambda: timm.create_model(name, pretrained=False))
    cfg = cast("Mapping[str, Any]", network.pretrained_cfg)
    if request.told is not None:
        request = replace(request, weights=_published(request.name, network, cfg, request.told))
    classes = _classes(request, cfg)
    if classes is not None and classes != getattr(network, "num_classes", classes):
        network = request.build(lambda: timm.create_model(name, pretrained=False, num_classes=classes))
    count = _outputs(request.name, network)
    names = _imagenet_names() if count == _IMAGENET else ()
    return request.finish(network, _preprocess(cfg), request.class_names(names, count))


def _published(name: str, network: nn.Module, cfg: Mapping[str, Any], told: Told) -> Weights:
    """The weights that timm publishes for the network, if they are safetensors."""
    repository = cfg.get("hf_hub_id")
    if not repository:
        raise InputError(
            f"download: timm publishes no safetensors file for {name}, and nothing else is fetched. Give "
            "weights='FILE.safetensors'."
        )
    megabytes = sum(value.numel() * value.element_size() for value in network.state_dict().values()) / 1e6
    return read_weights(fetch_from_hub(repository, megabytes, told))


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise InputError(f'model: timm cannot be imported ({error}): pip install "backlit[timm]"') from error


def _classes(request: Request, cfg: Mapping[str, Any]) -> int | None:
    """Return how many classes the file's final layer has; None if it cannot be told (the keys' check comes later)."""
    layer = cfg.get("classifier")
    layer = layer[0] if isinstance(layer, tuple | list) and layer else layer  # distilled networks have two heads
    if request.weights is None or not layer:
        return None
    return request.weights.rows(f"{layer}.weight")


def _outputs(name: str, network: nn.Module) -> int:
    count = int(getattr(network, "num_classes", 0))
    if count < 1:
        raise InputError(f"model: {name} has no classifier (num_classes 0): there is no class to explain.")
    return count


def _preprocess(cfg: Mapping[str, Any]) -> Preprocess:
    channels, height, width = cfg["input_size"]
    interpolation: Interpolation = "bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic"
    crop: Crop = "stretch" if cfg.get("crop_mode") == "squash" else "center"
    return Preprocess(
        size=(height, width),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        channels=channels,
        resize=math.floor(min(height, width) / cfg.get("crop_pct", 1.0)),
        interpolation=interpolation,
        crop=crop,
    )


def _imagenet_names() -> tuple[str, ...]:
    info = importlib.import_module("timm.data").ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(_IMAGENET))
