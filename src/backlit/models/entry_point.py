"""A network of the user's own, as ``module:function``: imported, called, expected to return it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backlit._errors import BacklitError, InputError, nearest, reason
from backlit._forward import forward
from backlit.models.loaded import LoadedModel
from backlit.models.preprocess import Preprocess
from backlit.models.request import Request

_COLOUR = Preprocess(size=(224, 224))
_GREY = Preprocess(size=(224, 224), mean=(0.0,), std=(1.0,), channels=1)


def load(request: Request) -> LoadedModel:
    """Import and call ``module:function``; load the asked weights into what it returns.

    An ``nn.Module`` is taken with size 224, torchvision's normalisation (none if its first convolution has one
    channel) and numbered classes, unless the weights file or the caller says otherwise; it runs once, on zeros, to
    count its classes. A `LoadedModel` brings its own. The current folder can be imported from.

    Raises:
        InputError: the module or function is missing, fails, or returns something else; or the network cannot run.

    """
    if request.random:
        raise InputError(f"weights: 'random' has no meaning for {request.name!r}: its function chooses the weights.")
    with _importing_from_here():
        function = _find(request.name)
        made = _call(request, function)
    if isinstance(made, LoadedModel):
        loaded = request.finish(made.network, made.preprocess, made.class_names)
        count = _count_outputs(loaded)
        if made.class_names and len(made.class_names) != count:
            raise InputError(
                f"model: {request.name!r} names {len(made.class_names)} classes, but its network has {count} outputs. Give one "
                "name an output, or none."
            )
        return replace(loaded, class_names=request.class_names(made.class_names, count))
    loaded = request.finish(made, _GREY if _first_channels(made) == 1 else _COLOUR, ())
    return replace(loaded, class_names=request.class_names((), _count_outputs(loaded)))


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """Let the current folder be imported from, as ``python`` does and an installed command does not."""
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _find(name: str) -> Callable[[], Any]:
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise InputError(f"model: must be 'module:function', found {name!r}.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise InputError(
                f"model: no module {error.name!r} for {name!r}; it must be installed or lie in the current folder "
                f"({str(Path.cwd())!r})."
            ) from error
        raise InputError(f"model: importing {module_name!r} failed: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() in a module must not end the program as if all were done
        raise InputError(f"model: importing {module_name!r} failed: {reason(error)}") from error
    try:
        function = reduce(getattr, path.split("."), module)
    except AttributeError as error:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(f"model: module {module_name!r} has no {path!r}.{nearest(path, public)}") from error
    if not callable(function) or isinstance(function, nn.Module):
        raise InputError(
            f"model: {name!r} is a {type(function).__name__}; it must be a function (or class) that returns a network."
        )
    return function


def _call(request: Request, function: Callable[[], Any]) -> nn.Module | LoadedModel:
    try:
        made = request.build(function)
    except BacklitError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InputError(f"model: calling {request.name!r} failed: {reason(error)}") from error
    if not isinstance(made, nn.Module | LoadedModel):
        raise InputError(
            f"model: {request.name!r} must return a torch.nn.Module or a backlit LoadedModel, found "
            f"{type(made).__name__}."
        )
    return made


def _first_channels(network: nn.Module) -> int | None:
    convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    return next((convolution.in_channels for convolution in convolutions), None)


def _count_outputs(loaded: LoadedModel) -> int:
    shape = (1, loaded.preprocess.channels, *loaded.preprocess.size)
    try:
        output = forward(loaded.network, loaded.placed(torch.zeros(shape)))
    except (KeyboardInterrupt, BacklitError):
        raise
    except BaseException as error:
        raise InputError(
            f"model: {loaded.name!r} cannot run on an input of shape {shape}: {reason(error)}. Give its own size (and "
            "channels, mean, std), or return a LoadedModel."
        ) from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or output.shape[0] != 1 or output.shape[1] < 1:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(f"model: {loaded.name!r} must return logits (n, classes), found {found} for one image.")
    return output.shape[1]
