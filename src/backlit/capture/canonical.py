"""From a spelled call to a :class:`Call`: the primitive it means, its arguments by name, the signals among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from torch import Tensor

from backlit._errors import UnsupportedOp
from backlit.capture.primitives import BY_NAME, SPELLINGS, Arguments, Function, Primitive, named
from backlit.capture.sites import Site

Place = tuple[str, int | None]
Places = tuple[Place, ...]
Args = tuple[Any, ...]
Tensors = Callable[..., bool]


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
        return next(v for n in ("input", "#0", "other") if isinstance(v := self.arguments.get(n), Tensor))

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of that name, or ``default``."""
        return self.arguments.get(name, default)

    def run(self, *signals: Tensor, **changes: Any) -> Any:
        """Run the primitive, out of place, on other signals and with other parameters (``weight=...``)."""
        arguments = _put({**self.arguments, **changes}, self.places, signals)
        function = arguments.pop("function", self.primitive.function)
        positional = [arguments.pop(name) for name in list(arguments) if name.startswith("#")]
        if function is Tensor.view:  # the signal may lie otherwise in memory than the network's did
            positional[0] = positional[0].contiguous()
        if function in SPELLINGS and SPELLINGS[function].inplace:
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
        items = arguments[name]
        arguments[name] = signal if position is None else [*items[:position], signal, *items[position + 1 :]]
    return arguments


def canonical(func: Function, args: Args, kwargs: Arguments, gates: Tensors) -> tuple[str, Arguments, bool]:
    """The primitive's name, the arguments by canonical name, and whether the call writes in place.

    ``gates(gate, *signals)`` says whether a gate was made by comparing these signals (``x > 0``).
    """
    spelling = SPELLINGS[func]
    name = spelling.primitive
    if spelling.signature:
        arguments = {**_bind(func, spelling.signature, args, kwargs), **spelling.fixed}
    else:
        arguments = {"function": func, **{f"#{i}": a for i, a in enumerate(args)}, **kwargs}
    inplace = bool(arguments.pop("inplace", False)) or spelling.inplace
    refine = _REFINEMENTS.get(name)
    if refine is not None:
        name, arguments = refine(name, arguments, gates)
    return name, arguments, inplace


def places_of(arguments: Arguments, live: Tensors) -> tuple[Place, ...]:
    """Tell where the signals stand among the arguments."""
    found: list[Place] = []
    for name, value in arguments.items():
        items = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
        found += [(name, i) for i, item in items if isinstance(item, Tensor) and live(item)]
    return tuple(found)


_PARAMETERS = frozenset("weight bias running_mean running_var exponent min max grid attn_mask dim".split())
_TWO_SIGNALS = {"mul": "product", "matmul": "matrix_product", "einsum": "einsum_product", "tensordot": "einsum_product"}
_FACTORS = {"addmm": {"mat1", "mat2"}, "baddbmm": {"batch1", "batch2"}, "addbmm": {"batch1", "batch2"},
            "addmv": {"mat", "vec"}, "addcmul": {"tensor1", "tensor2"}}  # fmt: skip
"""Operations that add a product to their input: of two signals it is one, unless the input is a third."""


def name_by_signals(name: str, arguments: Arguments, places: tuple[Place, ...], where: str) -> str:
    """Name a call by its signals: the product of two is not affine, and a weight must not be one.

    Raises:
        UnsupportedOp: If a parameter of the operation depends on the network's input.
    """
    names = [n for n, _ in places]
    product = name in _FACTORS and _FACTORS[name] <= set(names)
    wrong = names[-1:] if product and "input" in names else [n for n in names if n in _PARAMETERS]
    if wrong:
        raise UnsupportedOp(
            f"{name} at {where}: its {wrong[0]} depends on the network's input, and Backlit takes only its input as the "
            "signal. Write the operation as products and sums of tensors."
        )
    if name == "div" and "other" in names:
        return "quotient"
    if product:
        arguments["function"] = BY_NAME[name].function
        return "einsum_product"
    return _TWO_SIGNALS.get(name, name) if len(places) > 1 else name


_OTHERWISE = {"axis": "dim", "keepdims": "keepdim", **dict.fromkeys(("x", "a", "x1"), "input")}
_OTHERWISE |= dict.fromkeys(("x2", "mat2", "vec"), "other")
"""NumPy's names for arguments, which torch takes as well, and those of ``mm`` and ``mv``."""


def _bind(func: Function, signature: str, args: Args, kwargs: Arguments) -> Arguments:
    """The arguments by their canonical names, whatever their spelling."""
    positional, named = _parsed(signature)
    arguments: Arguments = dict(zip(positional, args, strict=False))
    unknown = [f"argument {i + 1}" for i in range(len(positional), len(args))]
    for key, value in kwargs.items():
        name = named.get(key, named.get(_OTHERWISE.get(key, key)))
        if name is not None:
            arguments[name] = value
        elif value is not None:
            unknown.append(key)
    if unknown:
        raise UnsupportedOp(
            f"{func.__name__} is called with {', '.join(unknown)}, which Backlit does not know of it: it knows "
            f"{', '.join(named)}. Call it with these, by name."
        )
    arguments.pop("", None)
    return arguments


@cache
def _parsed(signature: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Canonical names of the arguments that may be given by position; spelled name -> canonical name of all."""
    tokens = [token for token in signature.split() if token != "*"]
    named = {theirs: ours if colon else theirs for theirs, colon, ours in (token.partition(":") for token in tokens)}
    count = len(signature.partition("*")[0].split())
    return tuple(named.values())[:count], named


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 0 and not bool(value.any())
    return value is not None and value == 0


def _rectifier(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    given = {k: v for k, v in arguments.items() if k != "input" and v is not None}
    is_relu = set(given) in ({"min"}, {"threshold", "value"}) and all(map(_is_zero, given.values()))
    return ("relu", {"input": arguments["input"]}) if is_relu else (name, arguments)


def _maximum(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    for one, two in (("input", "other"), ("other", "input")):
        if name == "maximum" and _is_zero(arguments[two]) and not arguments[two].requires_grad:
            return "relu", {"input": arguments[one]}
        if arguments[one].grad_fn is not None and arguments[two].grad_fn is None:  # against a constant
            return "clamp", {"input": arguments[one], "min" if name == "maximum" else "max": arguments[two]}
    return name, arguments


def _max(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    signal, dim = arguments["input"], arguments.get("dim")
    other = dim if isinstance(dim, Tensor) else arguments.get("other")  # torch.max(x, y)
    if other is not None:
        return _maximum(f"{name}imum", {"input": signal, "other": other}, gates)
    return (f"a{name}", {"input": signal}) if dim is None else (name, arguments)


def _softmax(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    if arguments.get("dim") is None:  # torch's own choice
        arguments["dim"] = 0 if arguments["input"].dim() in (0, 1, 3) else 1
    return name, arguments


def _instance_norm(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    # On running statistics it is a batch norm in all but name.
    return (name if arguments.pop("use_input_stats", True) else "batch_norm"), arguments


def _div(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    if arguments.pop("rounding_mode", None) is not None:
        raise UnsupportedOp("A division that rounds its result has no gradient. Detach its input if that is meant.")
    return name, arguments


def _masked(name: str, arguments: Arguments, gates: Tensors) -> tuple[str, Arguments]:
    gated = any(gates(v, *arguments.values()) for v in arguments.values())
    return ("gated", {"function": BY_NAME[name].function, **arguments}) if gated else (name, arguments)


_REFINEMENTS: dict[str, Callable[[str, Arguments, Tensors], tuple[str, Arguments]]] = {
    **dict.fromkeys(("clamp", "threshold"), _rectifier),
    **dict.fromkeys(("maximum", "minimum"), _maximum),
    **dict.fromkeys(("max", "min"), _max),
    "div": _div,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    "instance_norm": _instance_norm,
    **dict.fromkeys(named("masks"), _masked),
}
