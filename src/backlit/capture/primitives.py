"""Every spelling of an operation mapped to one primitive, with its kind, its traits and its arguments under one name each.

A primitive's kind says how the engine may treat it:

* ``affine``: affine in the signal (the tensors that depend on the network's input);
* ``activation``: elementwise and nonlinear, the place where rules and masks act;
* ``selection``: picks among its inputs (max-pool, maximum);
* ``other``: nonlinear in another way (softmax, layer norm, a product of two signals).

Its traits (:data:`backlit.capture.sites.Trait`) are the facts that rules and methods ask for. Each stands here, once, beside
the operation; nothing else lists operations or reads their names.

Add an operation with one row of ``_ROWS``, or, from outside, with :func:`extend`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import check
from backlit.capture.aliases import read_view
from backlit.capture.sites import Kind, Trait

Function = Callable[..., Any]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Primitive:
    """One operation: name, kind, out-of-place function, argument names ("" keeps arguments as they are spelled), traits.

    ``spatial`` is the number of dimensions that a convolution or a pool moves over, 0 of every other operation.
    """

    name: str
    kind: Kind
    function: Function
    signature: str = ""
    traits: frozenset[Trait] = frozenset()
    spatial: int = 0

    def has(self, *traits: Trait) -> bool:
        """Tell whether the operation has any of these traits."""
        return not self.traits.isdisjoint(traits)


@dataclass(frozen=True)
class Spelling:
    """How one function calls a primitive: its argument names, those that it fixes, and whether it writes in place."""

    primitive: str
    signature: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    inplace: bool = False


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
    """Return what attention's softmax reads."""
    if options.get("enable_gqa"):
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scale = options.get("scale")
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores


@dataclass(frozen=True)
class _Row:
    """A primitive as the table below writes it: ``facts`` are its kind and its traits, ``spelled`` its spellings."""

    name: str
    facts: str
    function: Function
    signature: str
    spelled: str
    spatial: int = 0

    @property
    def primitive(self) -> Primitive:
        """The row as a primitive; an activation is elementwise by its kind."""
        kind, *traits = self.facts.split()
        traits += ["elementwise"] * (kind == "activation")
        unknown = {kind, *traits}.difference(get_args(Kind), get_args(Trait))
        assert not unknown, f"{self.name}: {unknown} is no kind or trait"
        return Primitive(self.name, kind, self.function, self.signature, frozenset(traits), self.spatial)  # type: ignore[arg-type]


_OWNERS: dict[str, Any] = {"F": F, "t": torch, "T": Tensor, "S": torch.special, "L": torch.linalg}
_CONV = "weight bias stride padding dilation groups"
_CONV_T = "weight bias stride padding output_padding groups dilation"
_MAX = "kernel_size stride padding dilation ceil_mode return_indices"
_AVG = "kernel_size stride padding ceil_mode count_include_pad divisor_override"
_STATS = "running_mean running_var weight bias {} momentum eps"
_OTHER_STATS = "input weight bias running_mean running_var {} momentum eps cudnn_enabled:"  # as torch has them


def _named(facts: str, *calls: str) -> Iterator[_Row]:
    """Rows of operations that have one name wherever torch has them: the name, then the arguments behind the input."""
    for name, *arguments in map(str.split, calls):
        words = (name, f"{name}_with_indices")
        spelled = " ".join(f"{o}.{word}" for word in words for o in _OWNERS if hasattr(_OWNERS[o], word))
        yield _Row(name, facts, next(_functions(spelled))[0], " ".join(("input", *arguments)), spelled)


def _spatial(facts: str, *calls: str) -> Iterator[_Row]:
    """The same of operations that move over one, two or three dimensions, whose number stands in the name."""
    for call in calls:
        for d in (1, 2, 3):
            yield from (replace(row, spatial=d) for row in _named(facts, call.format(d)))


def _as_spelled(facts: str, **spelled: str) -> Iterator[_Row]:
    """Rows of operations whose calls are repeated as they were spelled: no rule reads their arguments."""
    for name, words in spelled.items():
        yield _Row(name, facts, next(_functions(words))[0], "", words)


def _functions(spelled: str, *, in_place: bool = True) -> Iterator[tuple[Function, str]]:
    """The functions that spellings such as "tT.relu" mean, with those that write in place, and their bare names."""
    for owners, _, word in (token.partition(".") for token in spelled.split()):
        names = (word, f"{word}_") if in_place else (word,)
        yield from ((getattr(_OWNERS[o], n), word) for o in owners for n in names if hasattr(_OWNERS[o], n))


# name, kind and traits, out-of-place function, argument names, spellings. In a spelling, F is torch.nn.functional, t is torch,
# T is torch.Tensor, S torch.special and L torch.linalg: "tT.relu" is torch.relu and Tensor.relu. Where a name with a trailing
# underscore exists, it writes in place.
_ROWS: tuple[_Row, ...] = (
    # Activations that rectify: they pass what is large and stop, or damp, what is small.
    *_named("activation rectifier piecewise homogeneous", "relu", "leaky_relu negative_slope", "prelu weight"),
    _Row("rrelu", "activation rectifier piecewise homogeneous random", _rrelu, "input lower upper training", "Ft.rrelu"),
    *_named("activation rectifier", "selu", "silu", "mish", "hardswish", "elu alpha", "celu alpha", "softplus beta threshold"),
    *_named("activation rectifier cancels", "gelu approximate"),
    *_named("activation rectifier piecewise", "threshold threshold value"),
    _Row("hardtanh", "activation rectifier piecewise clipped", F.hardtanh, "input min_val max_val", "F.hardtanh F.relu6"),
    _Row("clamp", "activation rectifier piecewise", torch.clamp, "input min max", "tT.clamp tT.clip tT.clamp_min tT.clamp_max"),
    # x * (x > 0), torch.where(x > 0, x, 0), x[x < 0] = 0
    _Row("gated", "activation rectifier piecewise chooses", torch.where, "", ""),
    # Activations that squash, shrink or bend.
    _Row("sigmoid", "activation gate", torch.sigmoid, "input", "FtT.sigmoid S.expit"),
    *_named("activation gate piecewise", "hardsigmoid"),
    *_named("activation gate signless", "erfc"),
    *_named("activation bounded", "tanh", "softsign", "erf"),
    *_named("activation bounded signless", "sin", "cos"),
    *_named("activation cancels", "tanhshrink"),
    *_named("activation piecewise homogeneous", "hardshrink lambd"),
    *_named("activation piecewise", "softshrink lambd"),
    *_named("activation piecewise signless", "frac"),
    *_named("activation", "logsigmoid", "sqrt", "rsqrt", "exp", "exp2", "expm1", "log1p", "sinh", "asin", "atan"),
    *_named("activation signless", "tan", "cosh", "acos", "sinc"),
    *_named("activation signless infinite", "log", "log2", "log10", "logit eps"),
    _Row("abs", "activation piecewise homogeneous signless", torch.abs, "input", "tT.abs tT.absolute T.__abs__"),
    _Row("pow", "activation signless", torch.pow, "input exponent", "tT.pow T.__pow__ tT.square"),
    # Affine layers.
    *_named("affine layer dense", "linear weight bias"),
    *_named("affine layer dense accumulates", "addmm mat1 mat2 * beta alpha"),
    *_named("affine layer accumulates", "baddbmm batch1 batch2 * beta alpha", "addbmm batch1 batch2 * beta alpha",
            "addmv mat vec * beta alpha"),
    *_named("affine elementwise scales norm", f"batch_norm {_STATS.format('training')}"),
    *_spatial("affine layer convolution", f"conv{{}}d {_CONV}"),
    *_spatial("affine layer convolution transposed", f"conv_transpose{{}}d {_CONV_T}"),
    _Row("matmul", "affine layer dense homogeneous", torch.matmul, "input other",
         "tTL.matmul T.__matmul__ T.__rmatmul__ tT.bmm tT.mm tT.mv"),
    *_as_spelled("affine layer homogeneous", einsum="t.einsum"),
    *_as_spelled("affine layer", tensordot="t.tensordot tT.outer tT.ger tT.inner tT.dot tT.vdot tT.kron F.bilinear"),
    # Affine arithmetic. Products, matrix products and quotients of two signals are not affine: see canonical.py.
    _Row("add", "affine elementwise adds scales carries", torch.add, "input other * alpha", "tT.add T.__add__ T.__radd__"),
    _Row("sub", "affine elementwise adds scales carries", _sub, "input other * alpha",
         "tT.sub tT.subtract T.__sub__ T.__rsub__ t.rsub"),
    _Row("mul", "affine elementwise scales carries homogeneous multiplies masks", torch.mul, "input other",
         "tT.mul tT.multiply T.__mul__ T.__rmul__"),
    _Row("div", "affine elementwise scales carries homogeneous multiplies", torch.div, "input other * rounding_mode",
         "tT.div tT.divide tT.true_divide T.__truediv__ T.__rtruediv__ tT.reciprocal"),
    _Row("neg", "affine elementwise scales carries homogeneous", torch.neg, "input", "tT.neg tT.negative T.__neg__"),
    *_named("affine elementwise blends", "addcmul tensor1 tensor2 * value", "lerp end weight"),
    *_spatial("affine pool averages homogeneous", f"avg_pool{{}}d {_AVG}"),
    *_spatial("affine pool adaptive averages homogeneous", "adaptive_avg_pool{}d output_size"),
    *_as_spelled("affine averages reduces homogeneous keeps", mean="tT.mean", sum="tT.sum T.sum_to_size tT.cumsum"),
    *_as_spelled("affine gathers homogeneous", unfold="F.unfold F.fold T.unfold"),
    *_named("affine gathers resamples homogeneous", "grid_sample grid mode padding_mode align_corners"),
    # Moves and copies.
    _Row("dropout", "affine moves copies carries homogeneous keeps random", torch.clone, "input p train:training",
         "Ft.dropout F.dropout1d F.dropout2d F.dropout3d Ft.alpha_dropout"),
    *_as_spelled("affine moves copies carries homogeneous keeps",
        copy="tT.clone T.contiguous T.to T.float T.double T.half T.bfloat16 T.type T.type_as T.cpu T.cuda tT.positive T.__pos__"),
    *_as_spelled(
        "affine moves views carries homogeneous keeps",
        reshape="tT.reshape T.view T.reshape_as T.view_as tT.flatten tT.squeeze tT.unsqueeze tT.unflatten F.pixel_shuffle "
        "F.pixel_unshuffle t.channel_shuffle tT.ravel",
        permute="tT.permute tT.transpose tT.movedim tT.moveaxis tT.t tT.swapaxes tT.swapdims tT.adjoint tT.flip tT.fliplr "
        "tT.flipud tT.rot90 tT.roll",
        expand="T.expand T.expand_as T.repeat tT.repeat_interleave tT.tile tT.broadcast_to",
    ),
    *_as_spelled(
        "affine moves views carries homogeneous",
        slice="T.__getitem__ T.__iter__ tT.narrow tT.select tT.chunk tT.split tT.unbind tT.gather tT.index_select "
        "tT.take_along_dim tT.tensor_split tT.split_with_sizes tT.diagonal tT.tril tT.triu",
    ),
    *_as_spelled("affine moves carries resamples homogeneous", interpolate="F.interpolate F.upsample"),
    *_as_spelled("affine moves stacks keeps", stack="t.stack",
                 cat="t.cat t.concat t.concatenate t.hstack t.vstack t.dstack t.column_stack"),
    *_as_spelled("affine moves fills", pad="F.pad"),
    *_as_spelled("affine moves fills carries masks elementwise", where="tT.where tT.masked_fill"),
    *_as_spelled(
        "affine moves fills carries masks",
        setitem="T.__setitem__ T.masked_fill_ T.copy_ T.zero_ T.fill_ T.index_copy_ T.index_fill_ T.scatter_ "
        "T.masked_scatter_ T.put_",
    ),
    # Selections.
    _Row("maximum", "selection elementwise chooses", torch.maximum, "input other", "tT.maximum tT.fmax"),
    _Row("minimum", "selection elementwise chooses least", torch.minimum, "input other", "tT.minimum tT.fmin"),
    *_named("selection reduces", "amax dim keepdim", "max dim keepdim other"),
    *_named("selection reduces least", "amin dim keepdim", "min dim keepdim other"),
    *_spatial("selection pool", f"max_pool{{}}d {_MAX}"),
    *_spatial("selection pool adaptive", "adaptive_max_pool{}d output_size return_indices"),
    *_as_spelled("selection", sort="tT.sort tT.msort tT.topk tT.kthvalue tT.median tT.cummax tT.cummin"),
    # Nonlinear in another way.
    *_named("other stays gate", "softmax dim dtype"),
    *_named("other stays", "log_softmax dim dtype", "local_response_norm size alpha beta k"),
    *_named("other stays norm", "layer_norm normalized_shape weight bias eps cudnn_enable:",
            "rms_norm normalized_shape weight eps", "group_norm num_groups weight bias eps cudnn_enabled:",
            f"instance_norm {_STATS.format('use_input_stats')}"),
    *_named("other reduces", "logsumexp dim keepdim"),
    *_named("other elementwise", "logaddexp other"),
    *_named("other", "glu dim", "cumprod dim"),
    *_as_spelled("other", norm="tT.norm L.norm L.vector_norm", std="tT.std t.std_mean", var="tT.var", var_mean="t.var_mean",
                 prod="tT.prod"),
    _Row("cosine_similarity", "other", F.cosine_similarity, "x1 x2 dim eps", "F.cosine_similarity"),
    _Row("product", "other elementwise bilinear", torch.mul, "input other", ""),
    _Row("quotient", "other elementwise", torch.div, "input other", ""),
    _Row("matrix_product", "other bilinear contracts", torch.matmul, "input other", ""),
    _Row("einsum_product", "other contracts", torch.einsum, "", ""),
    _Row("attention", "other contracts", _attention, "query key value attn_mask dropout_p is_causal * scale enable_gqa",
         "F.scaled_dot_product_attention"),
)  # fmt: skip

PRIMITIVES: tuple[Primitive, ...] = tuple(row.primitive for row in _ROWS)
BY_NAME: dict[str, Primitive] = {p.name: p for p in PRIMITIVES}


def named(*traits: Trait, kind: Kind | None = None) -> frozenset[str]:
    """Names of the operations with any of these traits, or with whatever traits, of one kind or all: keys of a rule table."""
    return frozenset(p.name for p in PRIMITIVES if (not traits or p.has(*traits)) and kind in (None, p.kind))


_T: Any = Tensor
ORDERS: frozenset[str] = frozenset("gt ge lt le greater greater_equal less less_equal sign sgn heaviside".split())
"""Comparisons by size: what they gate is rectified. Whether two are equal is none, nor whether a value is finite."""
LIKE: frozenset[Function] = frozenset({_T.expand_as, _T.reshape_as, _T.view_as, _T.to, _T.type_as})
"""Functions that read of a second tensor its shape, type or device, and not its values."""
# Spellings whose arguments say less, are named otherwise ("theirs:ours"), or stand in another order than the primitive's.
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "F.relu6": ("input inplace", {"min_val": 0.0, "max_val": 6.0}),
    "tT.square": ("input", {"exponent": 2}),
    "tT.clamp_max": ("input max", {}),
    "tT.reciprocal": ("input:other", {"input": 1.0}),
    "T.__rsub__ t.rsub T.__rtruediv__ T.__rmatmul__": ("input:other other:input * alpha", {}),
    "t.batch_norm": (_OTHER_STATS.format("training"), {}),
    "t.max_pool1d_with_indices": (f"input {_MAX}", {"return_indices": True}),
    "t.adaptive_max_pool1d": ("input output_size", {"return_indices": True}),
    "t.instance_norm": (_OTHER_STATS.format("use_input_stats"), {}),
}


def _spellings() -> Iterator[tuple[Any, Spelling]]:
    own = {function: told for spelled, told in _OWN.items() for function, _ in _functions(spelled)}
    for row in _ROWS:
        for function, word in _functions(row.spelled, in_place=bool(row.signature)):
            yield function, _spelling(row.name, own.get(function), row.signature, function, word)
    yield from ((transpose.__get__, Spelling("permute", "")) for transpose in (_T.T, _T.mT))
    yield from ((read_view, Spelling("slice", "")), (_T.put, Spelling("setitem", "")))


def _spelling(name: str, own: Any, signature: str, function: Any, word: str) -> Spelling:
    inplace = name == "setitem" or (function.__name__.endswith("_") and not function.__name__.endswith("__"))
    fixed: dict[str, Any] = {"return_indices": True} if word.endswith("_with_indices") else {}
    if own is not None:
        signature, fixed = own
    elif signature and isinstance(function, FunctionType):
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
        if all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters):  # written in Python: it knows its own arguments
            renamed = {"self": "input", "_stacklevel": ""}  # the second changes no value
            signature = " ".join(f"{p.name}:{renamed.get(p.name, p.name)}" for p in parameters)
    return Spelling(name, signature, fixed, inplace)


SPELLINGS: dict[Any, Spelling] = dict(_spellings())

SHADOWS: frozenset[Any] = frozenset({_T.detach, torch.detach, _T.data.__get__})
"""Functions whose result is the signal's memory without its gradient."""
CONSTANT: frozenset[Any] = frozenset(
    SHADOWS
    | {getattr(_T, f"new_{n}") for n in ("zeros", "ones", "full", "empty", "tensor")}
    | {getattr(torch, f"{n}_like") for n in ("zeros", "ones", "full", "empty", "rand", "randn")}
    | {getattr(o, n) for o in (torch, _T) for n in "sign sgn heaviside round floor ceil trunc fix".split()}
)
"""Functions whose result does not follow the signal, or follows it in steps: autograd takes it for a constant, and so do we."""


def extend(function: Function, kind: Kind, name: str, signature: str = "") -> None:
    """Teach Backlit an operation that it does not know.

    The methods then treat it by its kind: the gradient family takes its true derivative, DMBP its tangent. Where a method
    needs a rule for it, as the relevance family does for kind ``"other"``, give it as ``rules={name: rule}``.

    Args:
        function: What the network calls, as a ``TorchFunctionMode`` sees it; one that does not write in place.
        kind: How the engine may treat it: ``"affine"``, ``"activation"`` (elementwise), ``"selection"`` or ``"other"``.
        name: The primitive's name; rule tables use it.
        signature: Names of its arguments, separated by spaces, for rules that read them; "" keeps the call as it is
            spelled, whatever its arguments.

    Raises:
        InputError: If an argument is not as it must be, or the name is taken by another function.
    """
    written = getattr(function, "__name__", "")
    good = callable(function) and (not written.endswith("_") or written.endswith("__"))
    words = isinstance(signature, str) and f"_{signature}".replace(" ", "_").isidentifier()
    check(good, "function", written or function, "callable, and write nothing in place")
    check(kind in get_args(Kind), "kind", kind, f"one of {', '.join(get_args(Kind))}")
    check(isinstance(name, str) and name.isidentifier(), "name", name, "a word")
    check(words, "signature", signature, "names separated by spaces")
    own, known = SPELLINGS.get(function), BY_NAME.get(name)
    check(known is None or (own is not None and own.primitive == name), "name", known and known.name, "new")
    if known is None or known not in PRIMITIVES:
        BY_NAME[name] = _Row(name, kind, function, signature, "").primitive
        SPELLINGS[function] = Spelling(name, signature)
