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
import random
import types
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules

from backlit._callables import Local, class_of, code_of, token, told_by_name
from backlit._errors import InputError
from backlit._fingerprint import fingerprint, tensor_digest
from backlit._options import option_names
from backlit._version import __version__

_TOLD = ("callback", "progress")  # are told how far a run is, and change no number
_FREE = (*_TOLD, "chunk")  # a run may go on with another chunk: each image's result is its own
_LONGEST = 2000  # characters of one value; of a longer one, its digest
_FEW = 16  # numbers of a tensor that are told beside its digest, for whoever reads the record
_WITH_STATE = (
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    random.Random,
    Iterator,
)


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
    names = [name for name in option_names(options) if name not in (_FREE if exact else _TOLD)]
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


def kind_of(kind: type, options: Any, argument: str) -> dict[str, Any]:
    """Return what can change the numbers of a method or metric: its class, code and options.

    Args:
        kind: The class.
        options: A value of it, or its options: a dataclass.
        argument: What comes before an option's name in errors.

    Raises:
        InputError: If an option cannot be known again in another process.
    """
    return {
        "class": class_of(kind),
        "code": _Plain("class", exact=False, by_code=True).code(kind),
        "options": described(options, argument=argument, exact=True),
    }


def network_of(network: nn.Module) -> dict[str, Any]:
    """Return what a network computes: class, weights, architecture, attributes, hooks, and the code of its own forward passes."""
    return _Plain("model", exact=False, by_code=True).network(network)


_MODULE = frozenset(vars(nn.Module()))


class _Plain:
    """One walk through a value.

    Args:
        argument: What errors call the value.
        exact: Refuse what another process cannot know again.
        by_code: Tell what has no name by its code and content alone, instead of by which object it is.
    """

    def __init__(self, argument: str, exact: bool, *, by_code: bool = False) -> None:
        self._argument, self._exact, self._by_code = argument, exact, by_code
        self._inside: list[int] = []
        self._modules: dict[int, str] = {}  # of the networks that are being told, by path
        self._codes: dict[int, str] = {}

    def of(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if id(value) in self._inside:
            if self._exact:
                return self._nameless(value, "holds itself; give it without")
            return {"itself": len(self._inside) - self._inside.index(id(value))}
        self._inside.append(id(value))
        found = self._of(value)
        self._inside.pop()
        if isinstance(found, dict) and len(text := json.dumps(found)) > _LONGEST:
            name = getattr(value, "name", None)
            short = {"class": class_of(type(value)), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            return {**short, "name": name} if isinstance(name, str) else short
        return found

    def code(self, value: Any) -> str:
        """A digest of a function's or class's code, and of all that it was given."""
        if id(value) not in self._codes:
            walk = self if self._by_code else _Plain(self._argument, exact=False, by_code=True)
            walk._inside, walk._modules = self._inside, self._modules
            self._codes[id(value)] = code_of(value, walk.of)
        return self._codes[id(value)]

    def network(self, network: nn.Module) -> dict[str, Any]:
        """See :func:`network_of`."""
        modules = dict(network.named_modules())
        self._modules |= {id(module): path for path, module in modules.items()}
        kinds = sorted({type(module) for module in modules.values()}, key=class_of)
        codes = [[class_of(kind), self.code(kind)] for kind in kinds]
        attributes = [
            [path, name, self.of(value)]
            for path, module in modules.items()
            for name, value in _attributes(module).items()
            if name not in _MODULE
        ]
        hooks = [[path, self.of(_hooks(module))] for path, module in modules.items() if any(_hooks(module))]
        return {
            "class": class_of(type(network)),
            "weights": fingerprint(network),
            "architecture": _sha256(
                [code_of(str(network), self.of), codes, attributes, hooks, self.of(_hooks_of_all())]
            ),
        }

    def _of(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return {"enum": f"{class_of(type(value))}.{value.name}"}
        if isinstance(value, (float, int, str)):
            return _number_or_text(value)
        if isinstance(value, (list, tuple)) and not _has_more(value):
            return [self.of(v) for v in value]
        if isinstance(value, Mapping) and not _has_more(value):  # in its order, which may decide what comes first
            return {"mapping": [[self.of(k), self.of(v)] for k, v in value.items()]}
        if isinstance(value, AbstractSet) and not _has_more(value):
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
            if id(value) in self._modules:
                return {"module": self._modules[id(value)]}
            walk = self if self._by_code else _Plain(self._argument, exact=False, by_code=True)
            return {"network": walk.network(value)}
        if isinstance(value, functools.partial):
            return {"partial": [self.of(value.func), self.of(value.args), self.of(value.keywords)]}
        owner = getattr(value, "__self__", None)
        if isinstance(value, types.MethodType):
            of_class = isinstance(owner, type)  # whose code tells its methods
            return {"method": value.__name__ if of_class else self.of(value.__func__), "of": self.of(owner)}
        if isinstance(value, types.BuiltinMethodType) and not isinstance(owner, (types.ModuleType, type, type(None))):
            return {"method": value.__name__, "of": self.of(owner)}
        try:
            return told_by_name(value, self.code)
        except Local as error:
            if isinstance(value, (type, types.FunctionType)):
                why = f"{error}; write it with def at the top of a module, and give that function"
                return self._nameless(value, why)
        return self._object(value)

    def _object(self, value: Any) -> Any:
        if hasattr(type(value), "__plain__"):
            told = value.__plain__()
            return {k: self.of(v) for k, v in told.items()} if type(told) is dict else self.of(told)
        content = _content_of(value)
        if content is None:
            return self._nameless(
                value, "has no content that can be read; give numbers, texts, tensors, or a dataclass of them"
            )
        kind = type(value)
        try:
            told_by_name(kind, self.code)
        except Local as error:
            if self._exact:
                return self._nameless(value, f"is of a class that {error}; write the class at the top of a module")
        named = {"name": value.name} if isinstance(getattr(value, "name", None), str) else {}  # to be read
        return {**named, "class": class_of(kind), "code": self.code(kind), "content": self.of(content)}

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
        named = value if isinstance(value, (type, types.FunctionType)) else type(value)
        found = {"nameless": class_of(named), "code": self.code(named)}
        return found if self._by_code else {**found, "object": token(value)}


def _has_more(value: Any) -> bool:
    """Whether a list or mapping of a class of its own holds more than its elements."""
    return type(value) not in (list, tuple, dict, set, frozenset) and bool(getattr(value, "__dict__", None))


def _content_of(value: Any) -> list[Any] | dict[str, Any] | None:
    """What an object holds: its attributes and elements, or what its class takes along to a copy; None if that cannot be read."""
    kind = type(value)
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        try:
            made: Any = value.__reduce_ex__(4)
        except Exception:  # whatever its class says: it is not to be copied
            return None
        given, state, items, pairs = (*made[1:], None, None, None)[:4] if isinstance(made, tuple) else (made,) * 4
        return [given, state, list(items or ()), list(pairs or ())]
    slots = [n for k in kind.__mro__ for n, v in vars(k).items() if isinstance(v, types.MemberDescriptorType)]
    held = _attributes(value) | {name: getattr(value, name) for name in slots if hasattr(value, name)}
    inner = [list(value.items())] if isinstance(value, Mapping) else []
    inner += [list(value)] if isinstance(value, (list, tuple)) else []
    inner += [frozenset(value)] if isinstance(value, AbstractSet) else []
    if inner:
        return [held, *inner]
    return held if held or hasattr(value, "__dict__") else None


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object by name, but for what its cached properties keep."""
    kept = sorted(getattr(value, "__dict__", {}).items(), key=lambda item: str(item[0]))
    return {n: v for n, v in kept if not isinstance(getattr(type(value), str(n), None), functools.cached_property)}


def _hooks(module: nn.Module) -> list[list[Any]]:
    return [list(module._forward_pre_hooks.values()), list(module._forward_hooks.values())]


def _hooks_of_all() -> list[list[Any]]:
    return [list(all_modules._global_forward_pre_hooks.values()), list(all_modules._global_forward_hooks.values())]


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
        found = {"tensor": _kind(value.dtype, value.shape), "sha256": tensor_digest(value)}
        few = value.numel() <= _FEW and value.layout == torch.strided and not value.is_quantized
        return {**found, "values": [repr(v) for v in value.flatten().tolist()]} if few else found
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).tobytes()
        return {"array": _kind(value.dtype.str, value.shape), "sha256": hashlib.sha256(data).hexdigest()}
    if isinstance(value, np.generic):
        return {"array": _kind(value.dtype.str, ()), "value": repr(value.item())}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, types.ModuleType):
        return {"python module": value.__name__}
    if isinstance(value, complex):
        return {"complex": repr(value)}
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format, slice, range, PurePath)):
        return {type(value).__name__: str(value)}
    return None


def _kind(dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} ({', '.join(map(str, shape))})"


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
