"""From a spelled call to a :class:`Call`: the primitive it means, its arguments by name, the signals among them."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from torch import Tensor

from backlit._errors import UnsupportedOp
from backlit.capture.primitives import SPELLINGS, WRITERS, Arguments, Primitive
from backlit.capture.sites import Site

Place = tuple[str, int | None]
Tensors = Container[Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a primitive: its site, its arguments under their canonical names, and which of them are signals.

    A *signal* is a tensor that depends on the network's input. ``places`` says where the signals stand in
    ``arguments``: by name, and by position where the argument is a list (``cat``). ``spelled`` repeats the call as
    the network wrote it. ``joined`` are the calls that the engine gives to this one's rule as part of it, such as the
    batch norm that alone reads a convolution.
    """

    site: Site
    primitive: Primitive
    arguments: Arguments
    places: tuple[Place, ...]
    spelled: Callable[[], Any] = field(repr=False)
    inplace: bool = False
    joined: tuple[Call, ...] = ()

    @property
    def signals(self) -> tuple[Tensor, ...]:
        """The signals, in the order of ``places``."""
        return tuple(at(self.arguments, place) for place in self.places)

    @property
    def target(self) -> Tensor:
        """The tensor that a call in place writes to."""
        return self.arguments["input"] if "input" in self.arguments else self.arguments["#0"]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of that name, or ``default``."""
        return self.arguments.get(name, default)

    def run(self, *signals: Tensor, **changes: Any) -> Any:
        """Run the primitive, out of place, on other signals and with other parameters (``weight=...``)."""
        arguments = _put({**self.arguments, **changes}, self.places, signals)
        if self.primitive.signature:
            return self.primitive.function(**arguments)
        function = arguments.pop("function")
        positional = [arguments.pop(name) for name in list(arguments) if name.startswith("#")]
        if function in WRITERS:
            target = positional[0].clone()
            function(target, *positional[1:], **arguments)
            return target
        return function(*positional, **arguments)

    def with_signals(self, signals: tuple[Any, ...]) -> Call:
        """The same call on other signals; it can no longer be repeated as the network wrote it."""
        return replace(self, arguments=_put(self.arguments, self.places, signals), spelled=_released)

    def without_signals(self) -> Call:
        """The same call with its signals removed, so that keeping it keeps no activation alive."""
        return self.with_signals((None,) * len(self.places))


def _released() -> Any:
    raise RuntimeError("this call's signals were released; use run()")


def at(arguments: Arguments, place: Place) -> Tensor:
    """The argument at a place."""
    name, position = place
    return arguments[name] if position is None else arguments[name][position]


def _put(arguments: Arguments, places: tuple[Place, ...], signals: tuple[Any, ...]) -> Arguments:
    arguments = dict(arguments)
    for (name, position), signal in zip(places, signals, strict=True):
        if position is None:
            arguments[name] = signal
        else:
            items = list(arguments[name])
            items[position] = signal
            arguments[name] = items
    return arguments


def canonical(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], gates: Tensors) -> tuple[str, Arguments, bool]:
    """The primitive's name, the arguments by canonical name, and whether the call writes in place.

    ``gates`` holds the tensors that were made by comparing signals (``x > 0``).
    """
    spelling = SPELLINGS[func]
    name = spelling.primitive
    if spelling.signature:
        arguments = {**_bind(spelling.signature, args, kwargs), **spelling.fixed}
    else:
        arguments = {"function": func, **{f"#{i}": a for i, a in enumerate(args)}, **kwargs}
    inplace = bool(arguments.pop("inplace", False)) or spelling.inplace
    refine = _REFINEMENTS.get(name)
    if refine is not None:
        name, arguments = refine(name, arguments, gates)
    return name, arguments, inplace


def places_of(arguments: Arguments, live: Tensors) -> tuple[Place, ...]:
    """Where the signals stand among the arguments."""
    found: list[Place] = []
    for name, value in arguments.items():
        items = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
        found += [(name, i) for i, item in items if isinstance(item, Tensor) and item in live]
    return tuple(found)


_PARAMETERS = frozenset("weight bias running_mean running_var exponent min max gate grid attn_mask dim".split())
_TWO_SIGNALS = {"mul": "product", "matmul": "matrix_product", "einsum": "einsum_product"}


def name_by_signals(name: str, arguments: Arguments, places: tuple[Place, ...], where: str) -> str:
    """Name a call by its signals: the product of two is not affine, and a weight must not be one.

    Raises:
        UnsupportedOp: If a parameter of the operation depends on the network's input.
    """
    names = [n for n, _ in places]
    wrong = [n for n in names if n in _PARAMETERS]
    if name in ("addmm", "addcmul") and len(set(names) - {"input"}) > 1:
        wrong = names[-1:]
    if wrong:
        raise UnsupportedOp(
            f"{name} at {where}: its {wrong[0]} depends on the network's input, and Backlit takes only its input as the "
            "signal. Write the operation as products and sums of tensors."
        )
    if name == "div" and "other" in names:
        return "quotient"
    return _TWO_SIGNALS.get(name, name) if len(places) > 1 else name


def _bind(signature: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    names = _parsed(signature)
    if len(args) > len(names):
        raise UnsupportedOp(
            f"A call with {len(args)} positional arguments, of which Backlit knows {len(names)} ({signature}): pass the "
            "others by name."
        )
    arguments: Arguments = dict(zip(names, args, strict=False))
    renamed = {"input" if k == "self" else k: v for k, v in kwargs.items()}
    arguments.update((k, v) for k, v in renamed.items() if k in names or v is not None)
    arguments.pop("_stacklevel", None)
    return arguments


@cache
def _parsed(signature: str) -> tuple[str, ...]:
    return tuple(signature.split())


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 0 and not bool(value.any())
    return value is not None and value == 0


def _clamp(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    if arguments.get("max") is None and _is_zero(arguments.get("min")):
        return "relu", {"input": arguments["input"]}
    return name, arguments


def _threshold(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    if arguments["threshold"] == 0 and arguments["value"] == 0:
        return "relu", {"input": arguments["input"]}
    return name, arguments


def _maximum(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    for one, two in (("input", "other"), ("other", "input")):
        if name == "maximum" and _is_zero(arguments[two]) and not arguments[two].requires_grad:
            return "relu", {"input": arguments[one]}
        if arguments[one].grad_fn is not None and arguments[two].grad_fn is None:  # against a constant
            return "clamp", {"input": arguments[one], "min" if name == "maximum" else "max": arguments[two]}
    return name, arguments


def _max(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    if isinstance(arguments.get("dim"), Tensor):  # torch.max(x, y)
        arguments = {"input": arguments["input"], "other": arguments["dim"]}
    if "other" in arguments:
        return _maximum(f"{name}imum", arguments, gates)
    if arguments.get("dim") is None:
        return f"a{name}", {"input": arguments["input"]}
    return name, arguments


def _div(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    if arguments.get("rounding_mode") is not None:
        raise UnsupportedOp("A division that rounds its result has no gradient. Detach its input if that is meant.")
    return name, arguments


def _mul(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    for one, two in (("input", "other"), ("other", "input")):
        if isinstance(arguments[two], Tensor) and arguments[two] in gates:
            return "gate", {"input": arguments[one], "gate": arguments[two]}
    return name, arguments


def _masked(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    gated = any(isinstance(v, Tensor) and v in gates for v in arguments.values())
    return ("gated" if gated else name), arguments


_REFINEMENTS: dict[str, Callable[[str, Arguments, Tensors], tuple[str, Arguments]]] = {
    "clamp": _clamp,
    "threshold": _threshold,
    "maximum": _maximum,
    "minimum": _maximum,
    "max": _max,
    "min": _max,
    "div": _div,
    "mul": _mul,
    "where": _masked,
    "setitem": _masked,
}
