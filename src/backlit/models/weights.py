"""A network's state from a safetensors file: read, checked against the network, loaded. Pickles are never opened."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from backlit._errors import FileError, InputError, ModelStateError
from backlit._files import check_path, refusals
from backlit._json import parse
from backlit.models.preprocess import PreprocessOptions

State = Mapping[str, Tensor]

PREPROCESS_KEY = "backlit.preprocess"
CLASSES_KEY = "backlit.class_names"
_PICKLES = {".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar"}
_SHOWN = 4  # how many keys of each kind an error lists


@dataclass(frozen=True)
class Weights:
    """A state and what its file says beside it.

    ``preprocess`` comes from the metadata entry ``backlit.preprocess`` (JSON, the fields of `PreprocessOptions`),
    ``class_names`` from ``backlit.class_names`` (JSON, a list of strings).
    """

    source: str
    state: State
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    class_names: tuple[str, ...] = ()

    def rows(self, name: str) -> int | None:
        """Return the length of an entry's first dimension, such as a final layer's classes; None if it has none."""
        found = self.state.get(name)
        return None if found is None or not found.ndim else len(found)


def read_weights(path: str | Path) -> Weights:
    """Read a safetensors file onto the CPU.

    Raises:
        FileError: missing, a folder, empty, truncated, another format (a pickle among them), or unusable metadata.

    """
    check_path(path, "weights")
    path = Path(path)
    with refusals("weights"):
        there = path.is_file()
    if not there:
        found = "a folder" if path.is_dir() else "nothing there"
        raise FileError(f"weights: {str(path)!r} must be a .safetensors file, found {found}.")
    if path.stat().st_size == 0:
        raise FileError(f"weights: {str(path)!r} is empty (0 bytes). Copy or download it again.")
    if path.suffix.lower() in _PICKLES:
        raise FileError(
            f"weights: {str(path)!r} looks like a pickle, which can run code when it is opened; only safetensors files "
            "are read. Convert it once, if you trust it: "
            "safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'weights.safetensors')."
        )
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise FileError(
            f"weights: {str(path)!r} is not a readable safetensors file ({error}). It may be truncated or of "
            "another format; copy or download it again."
        ) from error
    preprocess = _entry(path, metadata, PREPROCESS_KEY, lambda value: PreprocessOptions.of(**value))
    names = _entry(path, metadata, CLASSES_KEY, _class_names)
    return Weights(str(path), state, preprocess or PreprocessOptions(), names or ())


def _class_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("it must be a list of names")
    return tuple(value)


def _entry(path: Path, metadata: Mapping[str, str], key: str, build: Callable[[Any], Any]) -> Any:
    if key not in metadata:
        return None
    try:
        return build(parse(metadata[key]))
    except (ValueError, TypeError) as error:
        raise FileError(f"weights: {str(path)!r}: its metadata entry {key!r} cannot be used: {error}") from error


def load_state(network: nn.Module, weights: Weights, ignored: tuple[str, ...] = ()) -> None:
    """Load ``weights`` into ``network``; keys that start with one of ``ignored`` may be there and are left out.

    ``num_batches_tracked`` may be missing: it counts training steps and no output depends on it.

    Raises:
        InputError: keys are missing or unexpected, or shapes differ; the first few of each are listed.
        ModelStateError: a value is NaN or Inf.

    """
    present = network.state_dict()
    own = {name: value for name, value in present.items() if isinstance(value, Tensor)}
    state = {name: value for name, value in weights.state.items() if not name.startswith(ignored or ("\0",))}
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    different = [
        f"{name} is {_describe(state[name])}, the network's {_describe(value)}"
        for name, value in own.items()
        if name in state and not is_lazy(value) and not _fits(state[name], value)
    ]
    if missing or unexpected or different:
        kinds = [("missing", missing), ("unexpected", unexpected), ("of another shape or type", different)]
        raise InputError(
            f"weights: {weights.source} does not fit {type(network).__name__}: "
            + "; ".join(_few(kind, names) for kind, names in kinds if names)
            + ". Check that the file belongs to this model."
        )
    check_finite(state, weights.source)
    ordered = OrderedDict(state)
    # Modules whose layout changed once read its version here (MNASNet refuses to load without). The keys and shapes
    # were just found to be the present layout's.
    ordered._metadata = present._metadata  # type: ignore[attr-defined]
    network.load_state_dict(ordered, strict=False)


def _fits(value: Tensor, own: Tensor) -> bool:
    # Old files hold numbers as (1,); torch loads them. Integers for real parameters are quantised: their scale is lost.
    same_shape = value.shape == own.shape or (own.ndim == 0 and value.shape == (1,))
    return same_shape and value.is_floating_point() == own.is_floating_point()


def _describe(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _few(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{more})"


def check_finite(state: State | Iterable[tuple[str, Tensor]], source: str = "the model") -> None:
    """Raise ModelStateError for the first parameter or buffer that holds NaN or Inf."""
    for name, value in state.items() if isinstance(state, Mapping) else state:
        if not (value.is_floating_point() or value.is_complex()):
            continue
        finite = torch.isfinite(value.float() if value.dtype.itemsize == 1 else value)  # float8 has no isfinite
        if not finite.all():
            bad = int((~finite).sum())
            raise ModelStateError(
                f"weights: {name!r} of {source} has {bad} NaN or Inf of {value.numel()} values; no output can be "
                "explained with them. Use a checkpoint from before the training diverged."
            )
