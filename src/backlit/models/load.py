"""One door to every network: `load_model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backlit._errors import InputError, check_type, is_word, nearest, shown
from backlit.models import cifar, cifar_cnn, digits, entry_point, timm_source, torchvision_source
from backlit.models.download import Told
from backlit.models.loaded import LoadedModel
from backlit.models.preprocess import PreprocessOptions
from backlit.models.request import RANDOM, Request
from backlit.models.weights import read_weights

_OWN = {digits.NAME: digits.load, cifar.NAME: cifar.load, cifar_cnn.NAME: cifar_cnn.load}
_LONG = 200  # characters of what a backend says of a device
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def model_names() -> tuple[str, ...]:
    """Return every name that `load_model` takes as it is: Backlit's own, then torchvision's (if it is installed)."""
    return (*_OWN, *torchvision_source.names())


def load_model(
    name: str,
    *,
    weights: Path | str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    download: bool | Told = False,
    **preprocessing: Any,
) -> LoadedModel:
    """Return a network ready to be explained, in eval mode, with its preprocessing and class names.

    Args:
        name: "digits" (embedded), "cifar_resnet20", "cifar_cnn", a torchvision classification network ("resnet18"), "timm:NAME", or
            "module:function" that returns a network or a `LoadedModel`.
        weights: a safetensors file; None for the network's own (the embedded ones, or torchvision's default weights if
            torch's cache has them already); "random" to measure speed.
        device: where the network goes.
        dtype: what its parameters become: "float32", "float64", "bfloat16", "float16" or torch's own.
        download: let torchvision or timm fetch the weights that they publish, once, where they are not on this machine; or a
            function that is told, before that, what is fetched, how large it is, and where to. Never without.
        preprocessing: fields of `PreprocessOptions` (size, mean, std, resize, interpolation, crop, channels) that
            replace the network's own and the weights file's.

    Raises:
        InputError: unknown name, missing extra, weights that do not fit or are not given, unusable option or device.
        FileError: the weights file cannot be read, or the published one not be fetched.
        ModelStateError: a parameter is NaN or Inf.

    """
    check_type("name", name, str, "the name of a model, such as 'resnet18'")
    options = PreprocessOptions.of(**preprocessing)
    target, kind = _device(device), _dtype(dtype)
    random = is_word(weights, (RANDOM,))
    read = None if weights is None or random else read_weights(weights)
    loaded = _load(Request(name, read, random, options, _told(name, weights, download)))
    return replace(loaded, network=loaded.network.to(device=target, dtype=kind))


def _told(name: str, weights: Path | str | None, download: bool | Told) -> Told | None:
    if download is False:
        return None
    if name in _OWN or (":" in name and not name.startswith(timm_source.PREFIX)):
        raise InputError(
            f"download: only torchvision and timm publish weights, and {name!r} is none of theirs. Leave it out."
        )
    if weights is not None:
        raise InputError(
            f"download: weights are given, {str(weights)!r}, so nothing is to be fetched. Leave one of them out."
        )
    return download if callable(download) else lambda said: None


def _load(request: Request) -> LoadedModel:
    if request.name in _OWN:
        return _OWN[request.name](request)
    if request.name.startswith(timm_source.PREFIX):
        return timm_source.load(request)
    if ":" in request.name:
        return entry_point.load(request)
    return torchvision_source.load(request, others=tuple(_OWN))


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"dtype: must be one of {', '.join(_DTYPES)}, found {shown(name)}.{nearest(name, _DTYPES)}")
    return getattr(torch, name)


def _device(device: str | torch.device) -> torch.device:
    at_hand: Sequence[str] = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    found, said = None, ""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
        said = "it holds no values" if found.type == "meta" else ""
    except Exception as error:  # each backend that is not there raises its own
        said = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]  # some list every backend
    if found is None or said:
        raise InputError(
            f"device: {shown(str(device))} cannot be used ({said[:_LONG]}). At hand: {', '.join(at_hand)}."
        )
    return found
