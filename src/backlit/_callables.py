"""Functions and classes by their names and code, so that another process knows them again."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

_TOKENS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_WRITTEN = (types.FunctionType, type)
_CONSTANT = (int, float, complex, str, bytes, tuple, frozenset, Tensor, np.ndarray)
_DATA = (*_CONSTANT, list, dict, set)
_CODE = (*_DATA, types.FunctionType, property, functools.cached_property, classmethod, staticmethod)
_CHECKERS = ("jaxtyping", "beartype")
_BY_VERSION = ("torch", "numpy", "builtins")  # whose versions are recorded; torch changes its classes as it runs
_BASES_BY_VERSION = (*_BY_VERSION, "backlit")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Local(Exception):
    """A function or class that cannot be found by its name; says why."""


def told_by_name(value: Any, code: Callable[[Any], str]) -> dict[str, str]:
    """Return where a function or class is found, and a digest of its code, as ``code`` makes it.

    Raises:
        Local: If it is not found there: a lambda, a function inside another one, or an object without a name.
    """
    owner = getattr(value, "__objclass__", getattr(value, "__self__", None))
    names = [getattr(value, key, None) for key in ("__qualname__", "__name__")]
    if isinstance(owner, type):  # a method of a class that is written in C
        return {"function": f"{class_of(owner)}.{names[1]}"}
    module = getattr(value, "__module__", None) or getattr(owner, "__name__", None)
    if not isinstance(module, str):
        raise Local("has no name")
    for name in names:
        if isinstance(name, str) and _is_there(module, name, value):
            return {"class" if isinstance(value, type) else "function": f"{module}.{name}", "code": code(value)}
    kind = "a lambda" if "<lambda>" in str(names[0]) else "local, or no longer what its module calls by its name"
    raise Local(f"is {kind}, so that no other process finds it by its name")


def _is_there(module: str, name: str, value: Any) -> bool:
    """Whether the name is the value's in its module, by itself or under a decorator that shows what it wraps."""
    there = _found(module, name)
    return there is value or getattr(there, "__wrapped__", None) is value


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def class_of(kind: Any) -> str:
    """The module and name of a class or function."""
    return f"{kind.__module__}.{kind.__qualname__}"


def code_of(value: Any, tell: Callable[[Any], Any]) -> str:
    """Return a digest of the code of a function, or of a class and its bases.

    To the code belong what it was given (defaults, the variables of a closure, a class's own values) and, of its own module,
    the functions, classes, numbers, texts and tensors that it reads. What it reads from other modules does not.

    Args:
        value: The function, class, or text.
        tell: Turns a value that the code was given into plain JSON values.
    """
    return hashlib.sha256(json.dumps(_content(value, tell, {})).encode()).hexdigest()[:16]


def token(value: Any) -> str:
    """Return what tells this object from every other, in this and in any other process."""
    try:
        return _TOKENS.setdefault(value, uuid4().hex)
    except TypeError:  # it cannot be referred to weakly, or is not hashable
        return uuid4().hex


def _content(value: Any, tell: Callable[[Any], Any], seen: dict[int, int]) -> Any:
    if isinstance(value, _DATA):
        return _ADDRESS.sub("", value) if isinstance(value, str) else tell(value)
    if str(getattr(value, "__module__", "")).partition(".")[0] in _BY_VERSION:
        return class_of(value if hasattr(value, "__qualname__") else type(value))
    value = _unwrapped(value)
    if id(value) in seen:
        return ["as", seen[id(value)]]
    if isinstance(value, types.FunctionType):
        seen[id(value)] = len(seen)
        cells = [c.cell_contents for c in value.__closure__ or () if c != types.CellType()]
        given = tell([value.__defaults__, value.__kwdefaults__, cells])
        return [_code(value.__code__), given, [(n, _content(v, tell, seen)) for n, v in _reads(value)]]
    if isinstance(value, type):
        seen[id(value)] = len(seen)
        own = [n for n, v in sorted(vars(value).items()) if isinstance(v, _CODE) and not _is_python_s(n, v)]
        bases = [_base(base, tell, seen) for base in value.__bases__]
        return [bases, [(name, _content(vars(value)[name], tell, seen)) for name in own]]
    if isinstance(value, property):
        return [_content(f, tell, seen) for f in (value.fget, value.fset)]
    if isinstance(value, (classmethod, staticmethod, functools.cached_property)):
        return _content(getattr(value, "__func__", getattr(value, "func", None)), tell, seen)
    return tell(value)


def _base(base: type, tell: Callable[[Any], Any], seen: dict[int, int]) -> Any:
    return class_of(base) if base.__module__.partition(".")[0] in _BASES_BY_VERSION else _content(base, tell, seen)


def _is_python_s(name: str, value: Any) -> bool:
    """Whether Python itself keeps something under the name, such as ``__doc__`` or ``__slotnames__``."""
    return name.startswith("__") and name.endswith("__") and isinstance(value, _DATA)


def _unwrapped(value: Any) -> Any:
    """The function under a type checker's, which is there or not as the process likes, or under a cache."""
    while (inner := getattr(value, "__wrapped__", None)) is not None and not isinstance(value, type):
        if isinstance(value, types.FunctionType):
            if str(value.__globals__.get("__name__")).partition(".")[0] not in _CHECKERS:
                break
        elif isinstance(value, (classmethod, staticmethod)):
            break
        value = inner
    return value


def _reads(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function reads from its own module, by name: functions and classes that are written there, and constants."""
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        written = _unwrapped(value) if hasattr(type(value), "__wrapped__") else value  # of a rule, its formula
        of_module = isinstance(written, _WRITTEN) and written.__module__ == function.__module__
        if of_module or (isinstance(value, _CONSTANT) and not name.startswith("__")):
            yield name, value


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)


def _code(code: types.CodeType) -> Any:
    """The instructions and constants, without the places in the file."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, constants]


def _constant(value: Any) -> str:
    return repr(sorted(value, key=repr) if isinstance(value, frozenset) else value)
