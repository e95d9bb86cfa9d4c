"""Every spelling of an operation mapped to one primitive, with its kind and its arguments under one name each.

A primitive's kind says how the engine may treat it:

* ``affine``: affine in the signal (the tensors that depend on the network's input);
* ``activation``: elementwise and nonlinear, the place where rules and masks act;
* ``selection``: picks among its inputs (max-pool, maximum);
* ``other``: nonlinear in another way (softmax, layer norm, a product of two signals).

Add an operation with one line of ``PRIMITIVES`` (or, from outside, with :func:`extend`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """One operation: its name, its kind, its out-of-place function, and its signature ("" keeps arguments as spelled)."""

    name: str
    kind: Kind
    function: Function
    signature: str = ""


@dataclass(frozen=True)
class Spelling:
    """How one torch function calls a primitive: its signature, arguments it fixes, and whether it writes in place."""

    primitive: str
    signature: str
    fixed: Mapping[str, Any]
    inplace: bool = False


_CONV = "input weight bias=None stride=1 padding=0 dilation=1 groups=1"
_CONV_T = "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1"
_MAX_POOL = "input kernel_size stride=None padding=0 dilation=1 ceil_mode=False return_indices=False"
_AVG_POOL = "input kernel_size stride=None padding=0 ceil_mode=False count_include_pad=True divisor_override=None"
_BATCH_NORM = "input running_mean running_var weight=None bias=None training=False momentum=0.1 eps=1e-05"
_INSTANCE_NORM = (
    "input running_mean=None running_var=None weight=None bias=None use_input_stats=True momentum=0.1 eps=1e-05"
)
_ATTENTION = "query key value attn_mask=None dropout_p=0.0 is_causal=False scale=None enable_gqa=False"


def _gate(input: Tensor, gate: Tensor) -> Tensor:  # noqa: A002  torch's own name for it
    return input * gate


def _threshold(input: Tensor, threshold: float, value: float) -> Tensor:  # noqa: A002
    return F.threshold(input, threshold, value)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:  # noqa: A002
    return F.hardtanh(input, min_val, max_val)


def _rrelu(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3) -> Tensor:  # noqa: A002
    return F.leaky_relu(input, (lower + upper) / 2)


def _add(input: Tensor, other: Tensor, alpha: float = 1) -> Tensor:  # noqa: A002
    return torch.add(input, other, alpha=alpha)


def _sub(input: Tensor, other: Tensor, alpha: float = 1) -> Tensor:  # noqa: A002
    return torch.sub(input, other, alpha=alpha) if isinstance(input, Tensor) else torch.rsub(other, input, alpha=alpha)


_P = Primitive
PRIMITIVES: tuple[Primitive, ...] = (
    # Activations that rectify: they pass what is large and stop (or damp) what is small.
    _P("relu", "activation", torch.relu, "input"),
    _P("leaky_relu", "activation", F.leaky_relu, "input negative_slope=0.01"),
    _P("rrelu", "activation", _rrelu, "input lower=0.125 upper=0.3333333333333333"),
    _P("prelu", "activation", torch.prelu, "input weight"),
    _P("threshold", "activation", _threshold, "input threshold value"),
    _P("elu", "activation", F.elu, "input alpha=1.0"),
    _P("celu", "activation", F.celu, "input alpha=1.0"),
    _P("selu", "activation", F.selu, "input"),
    _P("gelu", "activation", F.gelu, "input approximate='none'"),
    _P("silu", "activation", F.silu, "input"),
    _P("mish", "activation", F.mish, "input"),
    _P("hardswish", "activation", F.hardswish, "input"),
    _P("softplus", "activation", F.softplus, "input beta=1 threshold=20"),
    _P("hardtanh", "activation", _hardtanh, "input min_val=-1.0 max_val=1.0"),
    _P("clamp", "activation", torch.clamp, "input min=None max=None"),
    _P("gate", "activation", _gate, "input gate"),  # x * (x > 0)
    _P("gated", "activation", torch.where),  # torch.where(x > 0, x, 0), x[x < 0] = 0
    # Activations that squash or shrink.
    _P("sigmoid", "activation", torch.sigmoid, "input"),
    _P("hardsigmoid", "activation", F.hardsigmoid, "input"),
    _P("logsigmoid", "activation", F.logsigmoid, "input"),
    _P("tanh", "activation", torch.tanh, "input"),
    _P("softsign", "activation", F.softsign, "input"),
    _P("tanhshrink", "activation", F.tanhshrink, "input"),
    _P("hardshrink", "activation", F.hardshrink, "input lambd=0.5"),
    _P("softshrink", "activation", F.softshrink, "input lambd=0.5"),
    _P("abs", "activation", torch.abs, "input"),
    _P("pow", "activation", torch.pow, "input exponent"),
    _P("sqrt", "activation", torch.sqrt, "input"),
    _P("exp", "activation", torch.exp, "input"),
    # Affine layers.
    _P("conv1d", "affine", F.conv1d, _CONV),
    _P("conv2d", "affine", F.conv2d, _CONV),
    _P("conv3d", "affine", F.conv3d, _CONV),
    _P("conv_transpose1d", "affine", F.conv_transpose1d, _CONV_T),
    _P("conv_transpose2d", "affine", F.conv_transpose2d, _CONV_T),
    _P("conv_transpose3d", "affine", F.conv_transpose3d, _CONV_T),
    _P("linear", "affine", F.linear, "input weight bias=None"),
    _P("matmul", "affine", torch.matmul, "input other"),
    _P("addmm", "affine", torch.addmm, "input mat1 mat2"),
    _P("einsum", "affine", torch.einsum),
    _P("batch_norm", "affine", F.batch_norm, _BATCH_NORM),
    _P("avg_pool1d", "affine", F.avg_pool1d, _AVG_POOL.removesuffix(" divisor_override=None")),
    _P("avg_pool2d", "affine", F.avg_pool2d, _AVG_POOL),
    _P("avg_pool3d", "affine", F.avg_pool3d, _AVG_POOL),
    _P("adaptive_avg_pool1d", "affine", F.adaptive_avg_pool1d, "input output_size"),
    _P("adaptive_avg_pool2d", "affine", F.adaptive_avg_pool2d, "input output_size"),
    _P("adaptive_avg_pool3d", "affine", F.adaptive_avg_pool3d, "input output_size"),
    # Affine arithmetic; mul, matmul and div of two signals are not affine: see canonical.py.
    _P("add", "affine", _add, "input other alpha=1"),
    _P("sub", "affine", _sub, "input other alpha=1"),
    _P("mul", "affine", torch.mul, "input other"),
    _P("div", "affine", torch.div, "input other"),
    _P("neg", "affine", torch.neg, "input"),
    _P("addcmul", "affine", torch.addcmul, "input tensor1 tensor2 value=1"),
    _P("mean", "affine", torch.mean),
    _P("sum", "affine", torch.sum),
    _P("dropout", "affine", torch.clone, "input"),
    # Moves and copies.
    _P("cat", "affine", torch.cat),
    _P("stack", "affine", torch.stack),
    _P("pad", "affine", F.pad),
    _P("interpolate", "affine", F.interpolate),
    _P("reshape", "affine", torch.reshape),
    _P("permute", "affine", torch.permute),
    _P("slice", "affine", torch.select),
    _P("expand", "affine", torch.broadcast_to),
    _P("copy", "affine", torch.clone),
    _P("unfold", "affine", F.unfold),
    _P("where", "affine", torch.where),
    _P("setitem", "affine", torch.Tensor.__setitem__),
    # Selections.
    _P("max_pool1d", "selection", F.max_pool1d, _MAX_POOL),
    _P("max_pool2d", "selection", F.max_pool2d, _MAX_POOL),
    _P("max_pool3d", "selection", F.max_pool3d, _MAX_POOL),
    _P("adaptive_max_pool1d", "selection", F.adaptive_max_pool1d, "input output_size return_indices=False"),
    _P("adaptive_max_pool2d", "selection", F.adaptive_max_pool2d, "input output_size return_indices=False"),
    _P("adaptive_max_pool3d", "selection", F.adaptive_max_pool3d, "input output_size return_indices=False"),
    _P("maximum", "selection", torch.maximum, "input other"),
    _P("minimum", "selection", torch.minimum, "input other"),
    _P("amax", "selection", torch.amax, "input dim=() keepdim=False"),
    _P("amin", "selection", torch.amin, "input dim=() keepdim=False"),
    _P("max", "selection", torch.max, "input dim keepdim=False"),
    _P("min", "selection", torch.min, "input dim keepdim=False"),
    # Nonlinear in another way.
    _P("softmax", "other", torch.softmax, "input dim"),
    _P("log_softmax", "other", torch.log_softmax, "input dim"),
    _P("layer_norm", "other", F.layer_norm, "input normalized_shape weight=None bias=None eps=1e-05"),
    _P("group_norm", "other", F.group_norm, "input num_groups weight=None bias=None eps=1e-05"),
    _P("instance_norm", "other", F.instance_norm, _INSTANCE_NORM),
    _P("local_response_norm", "other", F.local_response_norm, "input size alpha=0.0001 beta=0.75 k=1.0"),
    _P("norm", "other", torch.linalg.vector_norm),
    _P("glu", "other", F.glu, "input dim=-1"),
    _P("product", "other", torch.mul, "input other"),
    _P("quotient", "other", torch.div, "input other"),
    _P("matrix_product", "other", torch.matmul, "input other"),
    _P("einsum_product", "other", torch.einsum),
    _P("attention", "other", F.scaled_dot_product_attention, _ATTENTION),
)
BY_NAME: dict[str, Primitive] = {p.name: p for p in PRIMITIVES}

RECTIFIERS: tuple[str, ...] = tuple(
    "relu leaky_relu rrelu prelu threshold elu celu selu gelu silu mish hardswish softplus hardtanh clamp gate gated".split()
)
"""The activations that gate a signal: guided back-propagation and deconvnet act on them, DMBP masks them."""

CONVOLUTIONS: tuple[str, ...] = tuple(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3))

SPELLINGS: dict[Any, Spelling] = {}


def _spell(primitive: str, *functions: Any, signature: str | None = None, inplace: bool = False, **fixed: Any) -> None:
    """Let ``functions`` mean ``primitive``; ``fixed`` are arguments that the spelling itself decides."""
    if signature is None:
        signature = BY_NAME[primitive].signature
    for function in functions:
        SPELLINGS[function] = Spelling(primitive, signature, fixed, inplace)


def extend(function: Function, kind: Kind, name: str, signature: str = "input") -> None:
    """Teach Backlit an operation that it does not know: ``function`` is what the network calls.

    Args:
        function: The torch function or method (as a ``TorchFunctionMode`` sees it).
        kind: How the engine may treat it; see the module's text.
        name: The primitive's name; rule tables use it.
        signature: Argument names with defaults, separated by spaces, e.g. ``"input weight bias=None"``.

    Raises:
        InputError: If the name is taken by another function.
    """
    known = BY_NAME.get(name)
    if known is not None and known.function is not function:
        raise InputError(f"name must be new, but {name!r} is already the primitive of {known.function}.")
    BY_NAME[name] = Primitive(name, kind, function, signature)
    _spell(name, function)


_T: Any = torch.Tensor
_OWN_INPLACE = "inplace=False"
for _name in (
    "relu",
    "silu",
    "mish",
    "selu",
    "hardswish",
    "hardsigmoid",
    "leaky_relu",
    "elu",
    "celu",
    "hardtanh",
    "rrelu",
):
    _p = BY_NAME[_name]
    _extra = "training=False " if _name == "rrelu" else ""
    _spell(_name, getattr(F, _name), signature=f"{_p.signature} {_extra}{_OWN_INPLACE}")
_spell("threshold", F.threshold, signature=f"input threshold value {_OWN_INPLACE}")
_spell("hardtanh", F.relu6, signature=f"input {_OWN_INPLACE}", min_val=0.0, max_val=6.0)
for _name in ("relu", "sigmoid", "tanh", "abs", "sqrt", "exp", "neg", "selu", "celu", "prelu", "hardshrink", "rrelu"):
    _spell(_name, *(getattr(o, _name) for o in (torch, _T) if hasattr(o, _name)))
for _name in ("relu", "sigmoid", "tanh", "abs", "sqrt", "exp", "neg", "selu", "celu", "rrelu"):
    _functions = [getattr(o, f"{_name}_") for o in (torch, _T) if hasattr(o, f"{_name}_")]
    _spell(_name, *_functions, inplace=True)
for _name in ("leaky_relu_", "elu_", "hardtanh_", "threshold_"):
    _spell(_name[:-1], getattr(F, _name), inplace=True)
_spell("gelu", F.gelu)
_spell("softplus", F.softplus)
_spell("logsigmoid", F.logsigmoid)
_spell("softsign", F.softsign)
_spell("tanhshrink", F.tanhshrink)
_spell("softshrink", F.softshrink)
_spell("threshold", torch.threshold)
_spell("sigmoid", F.sigmoid, torch.special.expit)
_spell("tanh", F.tanh)
_spell("clamp", torch.clamp_min, _T.clamp_min, signature="input min")
_spell("clamp", torch.clamp_min_, _T.clamp_min_, signature="input min", inplace=True)
_spell("clamp", torch.clamp, _T.clamp, torch.clip, _T.clip)
_spell("clamp", torch.clamp_, _T.clamp_, torch.clip_, _T.clip_, inplace=True)
_spell("clamp", torch.clamp_max, _T.clamp_max, signature="input max")
_spell("clamp", torch.clamp_max_, _T.clamp_max_, signature="input max", inplace=True)
_spell("pow", torch.pow, _T.pow, _T.__pow__)
_spell("pow", _T.pow_, _T.__ipow__, inplace=True)
_spell("pow", torch.square, _T.square, signature="input", exponent=2)

for _name in CONVOLUTIONS:
    _spell(_name, getattr(F, _name))
_spell("linear", F.linear)
_spell("matmul", torch.matmul, _T.matmul, _T.__matmul__, torch.bmm, _T.bmm, torch.mm, _T.mm, torch.mv, _T.mv)
_spell("matmul", _T.__rmatmul__, signature="other input")
_spell("addmm", torch.addmm, _T.addmm)
_spell("einsum", torch.einsum)
_spell("batch_norm", F.batch_norm)
_spell("instance_norm", F.instance_norm)
for _name in ("layer_norm", "group_norm", "local_response_norm", "glu"):
    _spell(_name, getattr(F, _name))
_spell("attention", F.scaled_dot_product_attention)
_spell("softmax", F.softmax, signature="input dim=None _stacklevel=3 dtype=None")
_spell("log_softmax", F.log_softmax, signature="input dim=None _stacklevel=3 dtype=None")
_spell("softmax", torch.softmax, _T.softmax, signature="input dim dtype=None")
_spell("log_softmax", torch.log_softmax, _T.log_softmax, signature="input dim dtype=None")
_spell("norm", torch.norm, _T.norm, torch.linalg.vector_norm, torch.linalg.norm)

for _d in ("1d", "2d", "3d"):
    for _name in (f"avg_pool{_d}", f"adaptive_avg_pool{_d}", f"adaptive_max_pool{_d}", f"max_pool{_d}"):
        _spell(_name, getattr(F, _name))
    _spell(f"max_pool{_d}", getattr(torch, f"max_pool{_d}"))
    for _name in (f"adaptive_max_pool{_d}", f"max_pool{_d}"):
        _with = BY_NAME[_name].signature.replace("return_indices=False", "return_indices=True")
        _spell(_name, getattr(F, f"{_name}_with_indices"), signature=_with, return_indices=True)
_spell("maximum", torch.maximum, _T.maximum)
_spell("minimum", torch.minimum, _T.minimum)
_spell("amax", torch.amax, _T.amax)
_spell("amin", torch.amin, _T.amin)
_spell("max", torch.max, _T.max)
_spell("min", torch.min, _T.min)

_spell("add", torch.add, _T.add, _T.__add__, _T.__radd__)
_spell("add", _T.add_, _T.__iadd__, inplace=True)
_spell("sub", torch.sub, _T.sub, _T.__sub__, torch.subtract, _T.subtract)
_spell("sub", _T.sub_, _T.__isub__, inplace=True)
_spell("sub", torch.rsub, _T.__rsub__, signature="other input alpha=1")
_spell("mul", torch.mul, _T.mul, _T.__mul__, _T.__rmul__, torch.multiply, _T.multiply)
_spell("mul", _T.mul_, _T.__imul__, inplace=True)
_spell("div", torch.div, _T.div, _T.__truediv__, torch.true_divide, _T.true_divide, torch.divide, _T.divide)
_spell("div", _T.div_, _T.__itruediv__, inplace=True)
_spell("div", _T.__rtruediv__, signature="other input")
_spell("addcmul", torch.addcmul, _T.addcmul)
_spell("neg", torch.negative, _T.negative)
_DROPOUT = f"input p=0.5 training=True {_OWN_INPLACE}"
_spell(
    "dropout",
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    signature=_DROPOUT,
)

# Spelled as they are: what matters is that they are affine, not what their arguments are called.
_AS_SPELLED: dict[str, tuple[Any, ...]] = {
    "mean": (torch.mean, _T.mean),
    "sum": (torch.sum, _T.sum, _T.sum_to_size),
    "cat": (torch.cat, torch.concat, torch.concatenate, torch.hstack, torch.vstack),
    "stack": (torch.stack,),
    "pad": (F.pad,),
    "interpolate": (F.interpolate, F.upsample, F.grid_sample),
    "reshape": (
        torch.reshape, _T.reshape, _T.view, _T.reshape_as, _T.view_as, torch.flatten, _T.flatten, torch.squeeze,
        _T.squeeze, torch.unsqueeze, _T.unsqueeze, torch.unflatten, _T.unflatten, F.pixel_shuffle, F.pixel_unshuffle,
        torch.channel_shuffle, torch.ravel, _T.ravel,
    ),
    "permute": (
        torch.permute, _T.permute, torch.transpose, _T.transpose, torch.movedim, _T.movedim, torch.t, _T.t,
        _T.T.__get__, _T.mT.__get__, torch.swapaxes, _T.swapaxes, torch.flip, _T.flip, torch.roll, _T.roll,
    ),
    "slice": (
        _T.__getitem__, torch.narrow, _T.narrow, torch.select, _T.select, torch.chunk, _T.chunk, torch.split, _T.split,
        torch.unbind, _T.unbind, torch.index_select, _T.index_select, torch.gather, _T.gather, _T.tensor_split,
        torch.tensor_split, _T.__iter__, torch.diagonal, _T.diagonal, torch.tril, _T.tril, torch.triu, _T.triu,
        _T.split_with_sizes, torch.split_with_sizes,
    ),
    "expand": (
        _T.expand, _T.expand_as, _T.repeat, torch.repeat_interleave, _T.repeat_interleave, torch.tile, _T.tile,
        torch.broadcast_to, _T.broadcast_to,
    ),
    "copy": (
        torch.clone, _T.clone, _T.contiguous, _T.to, _T.float, _T.double, _T.half, _T.bfloat16, _T.type_as, _T.cpu,
        _T.cuda, _T.type, _T.positive, _T.__pos__,
    ),
    "unfold": (F.unfold, F.fold, _T.unfold),
    "where": (torch.where, _T.where, torch.masked_fill, _T.masked_fill),
}  # fmt: skip
for _name, _functions in _AS_SPELLED.items():
    _spell(_name, *_functions, signature="")
WRITERS: tuple[Any, ...] = (_T.__setitem__, _T.masked_fill_, _T.copy_)
"""Functions that only exist in place."""
_spell("setitem", *WRITERS, signature="", inplace=True)

CONSTANT: frozenset[Any] = frozenset(
    {_T.detach, torch.detach, _T.data.__get__, _T.detach_}
    | {getattr(_T, f"new_{n}") for n in ("zeros", "ones", "full", "empty", "tensor")}
    | {getattr(torch, f"{n}_like") for n in ("zeros", "ones", "full", "empty", "rand", "randn")}
)
"""Functions whose result does not follow the signal, on purpose: autograd takes it for a constant, and so do we."""

del _name, _functions, _p, _d, _with, _extra
