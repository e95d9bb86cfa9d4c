"""What was run, as plain JSON values: the same for the same values, another for any other.

Tensors and arrays are told by a digest of their type, shape and bytes; functions by module, name and code; other objects by
their class and content. One representation serves the record of a result (provenance), the plan of a run that can go on, and
the question whether results belong together. Lists and tuples of the same elements are the same; 1, 1.0, True and "1" are not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
import types
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlit._callables import Local, class_of, code_of, token, told_by_name
from backlit._errors import InputError
from backlit._fingerprint import fingerprint, tensor_digest
from backlit._version import __version__

_CALLED_BACK = "callback"  # is told how far a run is, and changes no number
_FREE = (_CALLED_BACK, "chunk")  # a run may go on with another chunk: each image's result is its own
_LONGEST = 2000  # characters of one value; of a longer one, its digest
_WITH_STATE = (torch.Generator, np.random.Generator, np.random.RandomState, Iterator)


def described(options: Any, *, argument: str = "", exact: bool = False) -> dict[str, Any]:
    """Return the options (a dataclass) by name as plain JSON values; what is called back is none of them.

    Args:
        options: The options.
        argument: What comes before an option's name in errors.
        exact: For the plan of a run that can go on: whatever cannot be known again in another process is refused, and the
            chunk, which such a run may change, is left out.

    Raises:
        InputError: If ``exact``, and an option is a lambda, a local function, a generator, or holds one.
    """
    names = [f.name for f in fields(options) if f.name not in (_FREE if exact else (_CALLED_BACK,))]
    return {name: plain(getattr(options, name), argument=f"{argument}{name}", exact=exact) for name in names}


def without_free(options: Any) -> Any:
    """Take from recorded options what does not make two results different: callbacks and the chunk."""
    return {k: v for k, v in options.items() if k not in _FREE} if isinstance(options, Mapping) else options


def plain(value: Any, *, argument: str = "value", exact: bool = False) -> Any:
    """Return a value as JSON can hold it; see :func:`described`."""
    return _Plain(argument, exact).of(value)


def identity(value: Any, *, argument: str = "value") -> str:
    """Return the sha256 of what a value is; two different values have different ones.

    Raises:
        InputError: If it cannot be known again in another process.
    """
    return _sha256(plain(value, argument=argument, exact=True))


def versions() -> dict[str, str]:
    """Versions of what computes."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"backlit": __version__, "torch": str(torch.__version__), "numpy": np.__version__, "python": python}


def network_of(network: nn.Module) -> dict[str, Any]:
    """What a network computes: class, weights, architecture, plain attributes, and the code of its own forward passes."""
    architecture = code_of(str(network))
    kinds = sorted({kind for module in network.modules() for kind in type(module).__mro__}, key=class_of)
    codes = [code_of(kind) for kind in kinds]
    attributes = [
        (path, name, _Plain(name, exact=False, shallow=True).of(value))
        for path, module in network.named_modules()
        for name, value in sorted(vars(module).items())
        if name not in _MODULE and not isinstance(value, nn.Module)
    ]
    return {
        "class": class_of(type(network)),
        "weights": fingerprint(network),
        "architecture": _sha256([architecture, codes, attributes]),
    }


_MODULE = frozenset(vars(nn.Module()))


class _Plain:
    """One walk through a value; ``shallow`` tells an object by its class, and what has no name by its code alone."""

    def __init__(self, argument: str, exact: bool, *, shallow: bool = False) -> None:
        self._argument, self._exact, self._shallow = argument, exact, shallow
        self._inside: list[int] = []

    def of(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if id(value) in self._inside:
            return self._nameless(value, "holds itself; give it without")
        self._inside.append(id(value))
        found = self._of(value)
        self._inside.pop()
        if isinstance(found, dict) and len(text := json.dumps(found)) > _LONGEST:
            name = getattr(value, "name", None)
            short = {"class": class_of(type(value)), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            return {**short, "name": name} if isinstance(name, str) else short
        return found

    def _of(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return {"enum": f"{class_of(type(value))}.{value.name}"}
        if isinstance(value, (float, int, str)):
            return _number_or_text(value)
        if isinstance(value, (list, tuple)):
            return [self.of(v) for v in value]
        if isinstance(value, Mapping):  # in its order, which may decide what comes first
            return {"mapping": [[self.of(k), self.of(v)] for k, v in value.items()]}
        if isinstance(value, AbstractSet):
            return {"set": sorted((self.of(v) for v in value), key=json.dumps)}
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return {"array": _kind(value.dtype.str, value.shape), "values": self.of(value.tolist())}
        if (data := _data(value)) is not None:
            return data
        if isinstance(value, _WITH_STATE) and not isinstance(value, nn.Module):
            return self._nameless(value, "has a state that every use changes; give a seed, or a list")
        if callable(value) and not is_dataclass(type(value)):
            return self._callable(value)
        return self._object(value)

    def _callable(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return {"network": network_of(value)}
        if isinstance(value, functools.partial):
            return {"partial": [self.of(value.func), self.of(value.args), self.of(value.keywords)]}
        owner = getattr(value, "__self__", None)
        if isinstance(value, types.MethodType):
            return {"method": value.__name__, "of": self.of(owner)}
        if isinstance(value, types.BuiltinMethodType) and not isinstance(owner, (types.ModuleType, type, type(None))):
            return {"method": value.__name__, "of": self.of(owner)}
        try:
            return told_by_name(value)
        except Local as error:
            if isinstance(value, (type, types.FunctionType)):
                why = f"{error}; write it with def at the top of a module, and give that function"
                return self._nameless(value, why)
        return self._object(value)

    def _object(self, value: Any) -> Any:
        if hasattr(value, "__plain__"):
            return self.of(value.__plain__())
        if is_dataclass(value) and not isinstance(value, type):
            content = {f.name: getattr(value, f.name) for f in fields(value)}
        elif hasattr(value, "__dict__") and not self._shallow:
            content = vars(value)
        else:
            return self._nameless(
                value, "has no content that can be read; give numbers, texts, tensors, or a dataclass of them"
            )
        try:
            told_by_name(type(value))
        except Local as error:
            if self._exact:
                return self._nameless(value, f"is of a class that {error}; write the class at the top of a module")
        return {"class": class_of(type(value)), "code": code_of(type(value)), "content": self.of(content)}

    def _nameless(self, value: Any, why: str) -> Any:
        """Tell what cannot be known again: by which object it is, in this process.

        Raises:
            InputError: In a run that can go on.
        """
        if self._exact:
            raise InputError(
                f"{self._argument} must be something that can be known again when the run goes on, but "
                f"{getattr(value, '__qualname__', type(value).__qualname__)!r} {why}."
            )
        found = {"nameless": class_of(value if isinstance(value, (type, types.FunctionType)) else type(value))}
        found["code"] = code_of(value)
        return found if self._shallow else {**found, "object": token(value)}


def _number_or_text(value: Any) -> Any:
    """A number or text of a subclass, or one that JSON has not."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else {"float": repr(number)}


def _data(value: Any) -> Any:
    """Plain data, by kind; None if it is none."""
    if isinstance(value, Tensor):
        return {"tensor": _kind(value.dtype, value.shape), "sha256": tensor_digest(value)}
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).tobytes()
        return {"array": _kind(value.dtype.str, value.shape), "sha256": hashlib.sha256(data).hexdigest()}
    if isinstance(value, np.generic):
        return {"array": _kind(value.dtype.str, ()), "value": repr(value.item())}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, complex):
        return {"complex": repr(value)}
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format, slice, range, PurePath)):
        return {type(value).__name__: str(value)}
    return None


def _kind(dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} ({', '.join(map(str, shape))})"


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
