"""Functions and classes by their names and code, so that another process knows them again."""

from __future__ import annotations

import hashlib
import re
import sys
import types
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

_TOKENS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_CODE = (types.FunctionType, property, classmethod, staticmethod, int, float, str)
_BY_VERSION = ("torch", "numpy", "builtins")  # whose versions are recorded; torch changes its classes as it runs
_NO_CODE = ("__module__", "__doc__", "__qualname__", "__firstlineno__")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Local(Exception):
    """A function or class that cannot be found by its name; says why."""


def told_by_name(value: Any) -> dict[str, str]:
    """Return where a function or class is found, and a digest of its code.

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
        if isinstance(name, str) and _found(module, name) is value:
            return {"class" if isinstance(value, type) else "function": f"{module}.{name}", "code": code_of(value)}
    kind = "a lambda" if "<lambda>" in str(names[0]) else "local, or no longer what its module calls by its name"
    raise Local(f"is {kind}, so that no other process finds it by its name")


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def class_of(kind: Any) -> str:
    """The module and name of a class or function."""
    return f"{kind.__module__}.{kind.__qualname__}"


def code_of(value: Any) -> str:
    """Return a digest of the code of a function, of a class's own methods, or of a text; addresses do not count.

    What a function reads from its module, or calls, is not part of it.
    """
    return hashlib.sha256(repr(_content(value, set())).encode()).hexdigest()[:16]


def token(value: Any) -> str:
    """Return what tells this object from every other, in this and in any other process."""
    try:
        return _TOKENS.setdefault(value, uuid4().hex)
    except TypeError:  # it cannot be referred to weakly, or is not hashable
        return uuid4().hex


def _content(value: Any, seen: set[int]) -> Any:
    if str(getattr(value, "__module__", "")).partition(".")[0] in _BY_VERSION:
        return class_of(value if hasattr(value, "__qualname__") else type(value))
    value = getattr(value, "__wrapped__", value)
    if id(value) in seen:
        return "above"
    if isinstance(value, types.FunctionType):
        seen = seen | {id(value)}
        cells = [c.cell_contents for c in value.__closure__ or () if c != types.CellType()]
        given = [*(value.__defaults__ or ()), *sorted((value.__kwdefaults__ or {}).items(), key=str), *cells]
        return [_code(value.__code__), [_content(v, seen) for v in given]]
    if isinstance(value, type):
        seen = seen | {id(value)}
        own = [name for name, v in vars(value).items() if name not in _NO_CODE and isinstance(v, _CODE)]
        return [(name, _content(vars(value)[name], seen)) for name in sorted(own)]
    if isinstance(value, (property, classmethod, staticmethod)):
        inner = value.fget if isinstance(value, property) else value.__func__
        return _content(inner, seen | {id(value)})
    if isinstance(value, (int, float, complex, str, bytes, tuple, type(None), frozenset)):
        return _ADDRESS.sub("", repr(sorted(value, key=repr) if isinstance(value, frozenset) else value))
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _code(code: types.CodeType) -> Any:
    """The instructions and constants, without the places in the file."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _content(c, set()) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, constants]
