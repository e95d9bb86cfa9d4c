"""Every spelling of an operation mapped to one primitive, with its kind and its arguments under one name each.

A primitive's kind says how the engine may treat it:

* ``affine``: affine in the signal (the tensors that depend on the network's input);
* ``activation``: elementwise and nonlinear, the place where rules and masks act;
* ``selection``: picks among its inputs (max-pool, maximum);
* ``other``: nonlinear in another way (softmax, layer norm, a product of two signals).

Add an operation with one row of ``_ROWS``, or, from outside, with :func:`extend`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError
from backlit.capture.sites import Kind

Function = Callable[..., Any]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Primitive:
    """One operation: name, kind, out-of-place function, argument names ("" keeps arguments as they are spelled)."""

    name: str
    kind: Kind
    function: Function
    signature: str = ""


@dataclass(frozen=True)
class Spelling:
    """How one function calls a primitive: its argument names, those that it fixes, and whether it writes in place."""

    primitive: str
    signature: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    inplace: bool = False


def _gate(input: Tensor, gate: Tensor) -> Tensor:  # noqa: A002  torch's own name for it
    return input * gate


def _rrelu(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3) -> Tensor:  # noqa: A002
    return F.leaky_relu(input, (lower + upper) / 2)


def _sub(input: Any, other: Any, alpha: float = 1) -> Tensor:  # noqa: A002
    return torch.sub(input, other, alpha=alpha) if isinstance(input, Tensor) else torch.rsub(other, input, alpha=alpha)


def _attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Scaled dot-product attention by its definition: torch's fused kernels have no second derivative."""
    if options.get("enable_gqa"):
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    return attention_scores(query, key, **options).softmax(-1) @ value


def attention_scores(
    query: Tensor, key: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **options: Any
) -> Tensor:
    """What attention's softmax reads."""
    if options.get("enable_gqa"):
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scale = options.get("scale")
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores


_Row = tuple[str, Kind, Function, str, str]
_CONV = "input weight bias stride padding dilation groups"
_CONV_T = "input weight bias stride padding output_padding groups dilation"
_MAX = "input kernel_size stride padding dilation ceil_mode return_indices"
_AVG = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
_STATS = "input running_mean running_var weight bias training momentum eps"


def _spatial(d: int) -> tuple[_Row, ...]:
    """The rows of operations on d spatial dimensions."""
    conv, transposed, average, maximum = f"conv{d}d", f"conv_transpose{d}d", f"avg_pool{d}d", f"max_pool{d}d"
    return (
        (conv, "affine", getattr(F, conv), _CONV, f"F.{conv}"),
        (transposed, "affine", getattr(F, transposed), _CONV_T, f"F.{transposed}"),
        (average, "affine", getattr(F, average), _AVG, f"F.{average}"),
        (f"adaptive_{average}", "affine", getattr(F, f"adaptive_{average}"), "input output_size", f"F.adaptive_{average}"),
        (maximum, "selection", getattr(F, maximum), _MAX, f"Ft.{maximum} F.{maximum}_with_indices"),
        (f"adaptive_{maximum}", "selection", getattr(F, f"adaptive_{maximum}"), "input output_size return_indices",
         f"F.adaptive_{maximum} F.adaptive_{maximum}_with_indices"),
    )  # fmt: skip


# name, kind, out-of-place function, argument names, spellings. In a spelling, F is torch.nn.functional, t is torch and T is
# torch.Tensor: "tT.relu" is torch.relu and Tensor.relu. Where a name with a trailing underscore exists, it writes in place.
_ROWS: tuple[_Row, ...] = (
    # Activations that rectify: they pass what is large and stop, or damp, what is small.
    ("relu", "activation", torch.relu, "input", "FtT.relu"),
    ("leaky_relu", "activation", F.leaky_relu, "input negative_slope", "F.leaky_relu"),
    ("rrelu", "activation", _rrelu, "input lower upper", "Ft.rrelu"),
    ("prelu", "activation", torch.prelu, "input weight", "FtT.prelu"),
    ("threshold", "activation", F.threshold, "input threshold value", "Ft.threshold"),
    ("elu", "activation", F.elu, "input alpha", "F.elu"),
    ("celu", "activation", F.celu, "input alpha", "Ft.celu"),
    ("selu", "activation", F.selu, "input", "Ft.selu"),
    ("gelu", "activation", F.gelu, "input approximate", "F.gelu"),
    ("silu", "activation", F.silu, "input", "F.silu"),
    ("mish", "activation", F.mish, "input", "F.mish"),
    ("hardswish", "activation", F.hardswish, "input", "F.hardswish"),
    ("softplus", "activation", F.softplus, "input beta threshold", "F.softplus"),
    ("hardtanh", "activation", F.hardtanh, "input min_val max_val", "F.hardtanh F.relu6"),
    ("clamp", "activation", torch.clamp, "input min max", "tT.clamp tT.clip tT.clamp_min tT.clamp_max"),
    ("gate", "activation", _gate, "input gate", ""),  # x * (x > 0)
    ("gated", "activation", torch.where, "", ""),  # torch.where(x > 0, x, 0), x[x < 0] = 0
    # Activations that squash, shrink or bend.
    ("sigmoid", "activation", torch.sigmoid, "input", "FtT.sigmoid"),
    ("hardsigmoid", "activation", F.hardsigmoid, "input", "F.hardsigmoid"),
    ("logsigmoid", "activation", F.logsigmoid, "input", "F.logsigmoid"),
    ("tanh", "activation", torch.tanh, "input", "FtT.tanh"),
    ("softsign", "activation", F.softsign, "input", "F.softsign"),
    ("tanhshrink", "activation", F.tanhshrink, "input", "F.tanhshrink"),
    ("hardshrink", "activation", F.hardshrink, "input lambd", "FtT.hardshrink"),
    ("softshrink", "activation", F.softshrink, "input lambd", "F.softshrink"),
    ("abs", "activation", torch.abs, "input", "tT.abs tT.absolute T.__abs__"),
    ("pow", "activation", torch.pow, "input exponent", "tT.pow T.__pow__ tT.square"),
    ("sqrt", "activation", torch.sqrt, "input", "tT.sqrt"),
    ("rsqrt", "activation", torch.rsqrt, "input", "tT.rsqrt"),
    ("exp", "activation", torch.exp, "input", "tT.exp"),
    # Affine layers.
    ("linear", "affine", F.linear, "input weight bias", "F.linear"),
    ("matmul", "affine", torch.matmul, "input other", "tT.matmul T.__matmul__ tT.bmm tT.mm tT.mv"),
    ("addmm", "affine", torch.addmm, "input mat1 mat2", "tT.addmm"),
    ("einsum", "affine", torch.einsum, "", "t.einsum"),
    ("batch_norm", "affine", F.batch_norm, _STATS, "F.batch_norm"),
    # Affine arithmetic. Products, matrix products and quotients of two signals are not affine: see canonical.py.
    ("add", "affine", torch.add, "input other alpha", "tT.add T.__add__ T.__radd__"),
    ("sub", "affine", _sub, "input other alpha", "tT.sub tT.subtract T.__sub__"),
    ("mul", "affine", torch.mul, "input other", "tT.mul tT.multiply T.__mul__ T.__rmul__"),
    ("div", "affine", torch.div, "input other", "tT.div tT.divide tT.true_divide T.__truediv__"),
    ("neg", "affine", torch.neg, "input", "tT.neg tT.negative T.__neg__"),
    ("addcmul", "affine", torch.addcmul, "input tensor1 tensor2 value", "tT.addcmul"),
    ("mean", "affine", torch.mean, "", "tT.mean"),
    ("sum", "affine", torch.sum, "", "tT.sum T.sum_to_size"),
    ("dropout", "affine", torch.clone, "input p training", "F.dropout F.dropout1d F.dropout2d F.dropout3d F.alpha_dropout"),
    # Moves and copies.
    ("cat", "affine", torch.cat, "", "t.cat t.concat t.concatenate t.hstack t.vstack"),
    ("stack", "affine", torch.stack, "", "t.stack"),
    ("pad", "affine", F.pad, "", "F.pad"),
    ("interpolate", "affine", F.interpolate, "", "F.interpolate F.upsample"),
    ("grid_sample", "affine", F.grid_sample, "input grid mode padding_mode align_corners", "F.grid_sample"),
    ("reshape", "affine", torch.reshape, "", "tT.reshape T.view T.reshape_as T.view_as tT.flatten tT.squeeze tT.unsqueeze "
     "tT.unflatten F.pixel_shuffle F.pixel_unshuffle t.channel_shuffle tT.ravel"),
    ("permute", "affine", torch.permute, "", "tT.permute tT.transpose tT.movedim tT.t tT.swapaxes tT.flip tT.roll"),
    ("slice", "affine", torch.select, "", "T.__getitem__ T.__iter__ tT.narrow tT.select tT.chunk tT.split tT.unbind tT.gather "
     "tT.index_select tT.tensor_split tT.split_with_sizes tT.diagonal tT.tril tT.triu"),
    ("expand", "affine", torch.broadcast_to, "", "T.expand T.expand_as T.repeat tT.repeat_interleave tT.tile tT.broadcast_to"),
    ("copy", "affine", torch.clone, "", "tT.clone T.contiguous T.to T.float T.double T.half T.bfloat16 T.type T.type_as T.cpu "
     "T.cuda tT.positive T.__pos__"),
    ("unfold", "affine", F.unfold, "", "F.unfold F.fold T.unfold"),
    ("where", "affine", torch.where, "", "tT.where tT.masked_fill"),
    ("setitem", "affine", Tensor.__setitem__, "", "T.__setitem__ T.masked_fill_ T.copy_"),
    # Selections.
    ("maximum", "selection", torch.maximum, "input other", "tT.maximum"),
    ("minimum", "selection", torch.minimum, "input other", "tT.minimum"),
    ("amax", "selection", torch.amax, "input dim keepdim", "tT.amax"),
    ("amin", "selection", torch.amin, "input dim keepdim", "tT.amin"),
    ("max", "selection", torch.max, "input dim keepdim", "tT.max"),
    ("min", "selection", torch.min, "input dim keepdim", "tT.min"),
    # Nonlinear in another way.
    ("softmax", "other", torch.softmax, "input dim dtype", "FtT.softmax"),
    ("log_softmax", "other", torch.log_softmax, "input dim dtype", "FtT.log_softmax"),
    ("layer_norm", "other", F.layer_norm, "input normalized_shape weight bias eps", "F.layer_norm"),
    ("group_norm", "other", F.group_norm, "input num_groups weight bias eps", "F.group_norm"),
    ("instance_norm", "other", F.instance_norm, _STATS.replace("training", "use_input_stats"), "F.instance_norm"),
    ("local_response_norm", "other", F.local_response_norm, "input size alpha beta k", "F.local_response_norm"),
    ("norm", "other", torch.linalg.vector_norm, "", "tT.norm"),
    ("glu", "other", F.glu, "input dim", "F.glu"),
    ("product", "other", torch.mul, "input other", ""),
    ("quotient", "other", torch.div, "input other", ""),
    ("matrix_product", "other", torch.matmul, "input other", ""),
    ("einsum_product", "other", torch.einsum, "", ""),
    ("attention", "other", _attention, "query key value attn_mask dropout_p is_causal scale enable_gqa",
     "F.scaled_dot_product_attention"),
    *(row for d in (1, 2, 3) for row in _spatial(d)),
)  # fmt: skip

PRIMITIVES: tuple[Primitive, ...] = tuple(Primitive(*row[:4]) for row in _ROWS)
BY_NAME: dict[str, Primitive] = {p.name: p for p in PRIMITIVES}
CONVOLUTIONS: tuple[str, ...] = tuple(p.name for p in PRIMITIVES if p.name.startswith("conv"))
RECTIFIERS: tuple[str, ...] = tuple(p.name for p in PRIMITIVES[: PRIMITIVES.index(BY_NAME["gated"]) + 1])
"""The activations that gate a signal: guided back-propagation and deconvnet act on them, DMBP masks them."""

LAYERS: tuple[str, ...] = (*CONVOLUTIONS, "linear", "matmul", "addmm", "einsum")
"""The affine operations that sum over weights; with two signals they are products, of other names."""

CARRIERS: frozenset[str] = frozenset(
    "reshape permute slice expand copy dropout interpolate where setitem mul div add sub neg".split()
)
"""What, on one signal, only moves, scales or shifts values that another operation made."""

_T: Any = Tensor
_OWNERS = {"F": F, "t": torch, "T": Tensor}
WRITERS: tuple[Function, ...] = (_T.__setitem__, _T.masked_fill_, _T.copy_)
"""Functions that only exist in place."""
LIKE: frozenset[Function] = frozenset({_T.expand_as, _T.reshape_as, _T.view_as, _T.to, _T.type_as})
"""Functions that read of a second tensor its shape, type or device, and not its values."""
# Spellings whose arguments say less, or stand in another order, than the primitive's.
_OWN: dict[Function, tuple[str, dict[str, Any]]] = {
    F.relu6: ("input inplace", {"min_val": 0.0, "max_val": 6.0}),
    torch.square: ("input", {"exponent": 2}),
    _T.square: ("input", {"exponent": 2}),
    torch.clamp_max: ("input max", {}),
    _T.clamp_max: ("input max", {}),
    torch.clamp_max_: ("input max", {}),
    _T.clamp_max_: ("input max", {}),
}
_REVERSED = {_T.__rsub__: "sub", torch.rsub: "sub", _T.__rtruediv__: "div", _T.__rmatmul__: "matmul"}


def _spellings() -> Iterator[tuple[Any, Spelling]]:
    for name, _, _, signature, spelled in _ROWS:
        for owners, _, word in (token.partition(".") for token in spelled.split()):
            for owner in (_OWNERS[letter] for letter in owners):
                for function in (getattr(owner, word), getattr(owner, f"{word}_", None) if signature else None):
                    if function is not None:
                        yield function, _spelling(name, signature, function, word)
    for function, name in _REVERSED.items():
        yield function, Spelling(name, "other input alpha")
    yield _T.T.__get__, Spelling("permute", "")
    yield _T.mT.__get__, Spelling("permute", "")


def _spelling(name: str, signature: str, function: Any, word: str) -> Spelling:
    inplace = function in WRITERS or (function.__name__.endswith("_") and not function.__name__.endswith("__"))
    own, fixed = _OWN.get(function, (signature, {}))
    if word.endswith("_with_indices"):
        fixed = {"return_indices": True}
    elif signature and isinstance(function, FunctionType) and function not in _OWN:
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
        if all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters):  # written in Python: it knows its own arguments
            own = " ".join(p.name for p in parameters)
    return Spelling(name, own, fixed, inplace)


SPELLINGS: dict[Any, Spelling] = dict(_spellings())

SHADOWS: frozenset[Any] = frozenset({_T.detach, torch.detach, _T.data.__get__})
"""Functions whose result is the signal's memory without its gradient."""
CONSTANT: frozenset[Any] = frozenset(
    SHADOWS
    | {getattr(_T, f"new_{n}") for n in ("zeros", "ones", "full", "empty", "tensor")}
    | {getattr(torch, f"{n}_like") for n in ("zeros", "ones", "full", "empty", "rand", "randn")}
)
"""Functions whose result does not follow the signal, on purpose: autograd takes it for a constant, and so do we."""


def extend(function: Function, kind: Kind, name: str, signature: str = "input") -> None:
    """Teach Backlit an operation that it does not know.

    Args:
        function: What the network calls, as a ``TorchFunctionMode`` sees it.
        kind: How the engine may treat it; see the module's text.
        name: The primitive's name; rule tables use it.
        signature: Names of its arguments, separated by spaces.

    Raises:
        InputError: If the name is taken by another function.
    """
    known = BY_NAME.get(name)
    if known is not None and known.function is not function:
        raise InputError(f"name must be new, but {name!r} is already the primitive of {known.function}.")
    BY_NAME[name] = Primitive(name, kind, function, signature)
    SPELLINGS[function] = Spelling(name, signature)
