"""One example of a call of every operation in the table, and every spelling of its arguments that torch takes.

An example names the arguments of the plain spelling, in order. `H` stands for the signal and `G` for a second one, both
(n, 2, 4, 4) before `shape` reshapes them. A new primitive needs an example under its name; an operation that shares a
primitive with others needs one under its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from backlit.capture.primitives import SPELLINGS


class Signal:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


H, G = Signal("H"), Signal("G")


def c(*shape: int) -> Tensor:
    """A constant, the same at each call."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def positive(*shape: int) -> Tensor:
    return c(*shape).abs() + 0.5


@dataclass(frozen=True)
class Example:
    arguments: dict[str, Any]
    shape: tuple[int, ...] = (2, 4, 4)
    unit: bool = False  # the signal lies between 0.1 and 0.9
    first: bool = False  # only the first image, without its axis
    plain: Example | None = None  # the same call by arguments in another order, as the plain spelling has them

    def signal(self, h: Tensor) -> Tensor:
        h = torch.sigmoid(h) * 0.8 + 0.1 if self.unit else h
        return h[0].flatten()[: prod(self.shape)].reshape(self.shape) if self.first else h.reshape(-1, *self.shape)


def of(shape: tuple[int, ...] = (2, 4, 4), *, unit: bool = False, first: bool = False, **arguments: Any) -> Example:
    return Example({"input": H, **arguments}, shape, unit, first)


FLAT, SEQ, VOL, TOKENS = (32,), (2, 16), (2, 2, 2, 4), (4, 8)
CONV = {"weight": c(4, 2, 3, 3), "bias": c(4), "stride": 1, "padding": 1, "dilation": 1, "groups": 1}
STATS = {"running_mean": c(2), "running_var": positive(2), "weight": c(2), "bias": c(2)}
MASK = c(2, 4, 4) > 0


def spatial(d: int) -> dict[str, list[Example]]:
    shape, k = {1: SEQ, 2: (2, 4, 4), 3: VOL}[d], (2,) * d
    weight, bias = c(4, 2, *k), c(4)
    sizes = {"kernel_size": 2, "stride": 2, "padding": 1}
    return {
        f"conv{d}d": [of(shape, weight=weight, bias=bias, stride=1, padding=1, dilation=1, groups=1)],
        f"conv_transpose{d}d": [
            of(shape, weight=c(2, 3, *k), bias=c(3), stride=2, padding=1, output_padding=0, groups=1, dilation=1)
        ],
        f"avg_pool{d}d": [of(shape, **sizes, ceil_mode=False, count_include_pad=True)],
        f"adaptive_avg_pool{d}d": [of(shape, output_size=2)],
        f"max_pool{d}d": [of(shape, **sizes, dilation=1, ceil_mode=False)],
        f"max_pool{d}d_with_indices": [of(shape, **sizes, dilation=1, ceil_mode=False)],
        f"adaptive_max_pool{d}d": [of(shape, output_size=2)],
        f"adaptive_max_pool{d}d_with_indices": [of(shape, output_size=2)],
    }


def normalised(mode: str, value: bool) -> list[Example]:
    """torch.batch_norm wants other arguments, in another order, than F.batch_norm."""
    rest = {mode: value, "momentum": 0.1, "eps": 1e-4}
    usual = of(**STATS, **rest)
    order = {name: STATS[name] for name in ("weight", "bias", "running_mean", "running_var")}
    return [usual, Example({"input": H, **order, **rest, "cudnn_enabled": False}, plain=usual)]


EXAMPLES: dict[str, list[Example]] = {
    **{name: [of()] for name in (
        "relu selu silu mish hardswish sigmoid tanh hardsigmoid logsigmoid softsign tanhshrink exp exp2 expm1 sin cos tan sinh cosh "
        "atan erf erfc sinc frac abs neg relu6 square"
    ).split()},
    **{name: [of(unit=True)] for name in "sqrt rsqrt log log2 log10 log1p asin acos reciprocal".split()},
    "leaky_relu": [of(negative_slope=0.2)],
    "prelu": [of(weight=positive(2))],
    "threshold": [of(threshold=0.1, value=0.3), of(threshold=0.0, value=0.0)],
    "elu": [of(alpha=0.7)],
    "celu": [of(alpha=0.7)],
    "gelu": [of(), of(approximate="tanh")],
    "softplus": [of(beta=1.5, threshold=15)],
    "rrelu": [of(lower=0.1, upper=0.3)],
    "hardtanh": [of(min_val=-0.5, max_val=0.7)],
    "clamp": [of(min=-0.3, max=0.4), of(min=0)],
    "clamp_min": [of(min=-0.3), of(min=0)],
    "clamp_max": [of(max=0.3)],
    "hardshrink": [of(lambd=0.2)],
    "softshrink": [of(lambd=0.2)],
    "logit": [of(unit=True, eps=1e-3)],
    "pow": [of(exponent=2), of(unit=True, exponent=1.5)],
    "linear": [of(FLAT, weight=c(5, 32), bias=c(5))],
    "addmm": [Example({"input": c(5), "mat1": H, "mat2": c(32, 5), "beta": 0.5, "alpha": 2}, FLAT), Example({"input": H, "mat1": c(2, 3), "mat2": c(3, 16)}, SEQ, first=True)],
    "baddbmm": [Example({"input": c(1, 4, 4), "batch1": H, "batch2": G, "beta": 0.5, "alpha": 2}, (4, 4)), Example({"input": H, "batch1": c(2, 4, 3), "batch2": c(2, 3, 4)}, first=True)],
    "addbmm": [Example({"input": H, "batch1": c(3, 2, 4), "batch2": c(3, 4, 4), "beta": 0.5, "alpha": 2}, (2, 4), first=True)],
    "addmv": [Example({"input": c(5), "mat": c(5, 32), "vec": H, "beta": 0.5, "alpha": 2}, FLAT, first=True)],
    "matmul": [of(FLAT, other=c(32, 5)), of(TOKENS, other=c(8, 3)), Example({"input": H, "other": G}, (4, 4))],
    "mm": [of(FLAT, other=c(32, 5))],
    "bmm": [Example({"input": H, "other": G}, (4, 4))],
    "mv": [of(FLAT, other=c(32))],
    "einsum": [Example({"equation": "ncs,ck->nks", "one": H, "two": c(2, 3)}, SEQ), Example({"equation": "ncs,ncs->nc", "one": H, "two": G}, SEQ), Example({"equation": "ncs,ncs,ncs->nc", "one": H, "two": G, "three": H}, SEQ)],
    "tensordot": [of(SEQ, other=c(2, 3), dims=([1], [0])), Example({"input": H, "other": G, "dims": ([1], [1])}, (4, 8), first=True)],
    "outer": [of(FLAT, first=True, other=c(3))],
    "ger": [of(FLAT, first=True, other=c(3))],
    "inner": [of(FLAT, other=c(5, 32))],
    "dot": [of(FLAT, first=True, other=c(32))],
    "vdot": [of(FLAT, first=True, other=c(32))],
    "kron": [of(FLAT, first=True, other=c(3))],
    "bilinear": [Example({"input1": H, "input2": c(1, 3).expand(2, 3)[:1], "weight": c(5, 32, 3), "bias": c(5)}, (1, 32), first=True)],
    "batch_norm": normalised("training", False),
    "instance_norm": [*normalised("use_input_stats", True), *normalised("use_input_stats", False)],
    "add": [of(other=c(2, 1, 1), alpha=2), Example({"input": H, "other": G})],
    "__add__": [of(other=c(2, 1, 1)), Example({"input": H, "other": G})],
    "__radd__": [of(other=2.0)],
    "sub": [of(other=c(2, 1, 1), alpha=2), Example({"input": H, "other": G})],
    "__sub__": [of(other=c(2, 1, 1))],
    "rsub": [of(other=c(2, 1, 1), alpha=2)],
    "__rsub__": [of(other=2.0)],
    "mul": [of(other=c(2, 1, 1)), Example({"input": H, "other": G})],
    "div": [of(other=positive(2, 1, 1)), Example({"input": H, "other": G}, unit=True), of(other=positive(2, 1, 1), rounding_mode=None)],
    "__rdiv__": [of(unit=True, other=2.0)],
    "__rmatmul__": [of((4, 8), other=c(3, 4))],
    "addcmul": [of(tensor1=c(2, 1, 1), tensor2=c(4, 4), value=0.5), Example({"input": c(2, 1, 1), "tensor1": H, "tensor2": c(4, 4)}), Example({"input": c(2, 1, 1), "tensor1": H, "tensor2": G})],
    "lerp": [of(end=c(2, 4, 4), weight=0.3), Example({"input": H, "end": G, "weight": positive(4, 4)})],
    "mean": [of(dim=(2, 3), keepdim=True), of(dim=1)],
    "sum": [of(dim=(2, 3), keepdim=True), of(dim=1)],
    "sum_to_size": [of(size=(2, 4, 1), first=True)],
    "cumsum": [of(dim=1)],
    "dropout": [of(p=0.5, training=False), of(SEQ, p=0.5, training=False)],
    "cat": [Example({"tensors": [H, G], "dim": 1})],
    "hstack": [Example({"tensors": [H, G]})],
    "vstack": [Example({"tensors": [H, G]}, (2, 4, 4), first=True)],
    "dstack": [Example({"tensors": [H, G]})],
    "column_stack": [Example({"tensors": [H, G]})],
    "stack": [Example({"tensors": [H, G], "dim": 1})],
    "pad": [of(pad=(1, 2), mode="constant", value=0.5)],
    "interpolate": [of(size=(6, 6), scale_factor=None, mode="bilinear", align_corners=False)],
    "upsample": [of(size=(6, 6), scale_factor=None, mode="bilinear", align_corners=False)],
    "grid_sample": [Example({"input": H, "grid": c(1, 3, 3, 2).tanh(), "mode": "bilinear", "padding_mode": "zeros", "align_corners": False}, (1, 2, 4, 4), first=True)],
    "reshape": [Example({"input": H, "shape": (-1, 8, 4)})],
    "view": [Example({"input": H, "size": (-1, 8, 4)})],
    "reshape_as": [of((32,), first=True, other=c(2, 16))],
    "view_as": [of((32,), first=True, other=c(2, 16))],
    "flatten": [of(start_dim=1, end_dim=2)],
    "squeeze": [of((2, 1, 16), dim=2), of((2, 1, 16), dim=(2,))],
    "unsqueeze": [of(dim=1)],
    "unflatten": [of(dim=2, sizes=(2, 2))],
    "pixel_shuffle": [of((4, 2, 4), upscale_factor=2)],
    "pixel_unshuffle": [of(downscale_factor=2)],
    "channel_shuffle": [of((4, 2, 4), groups=2)],
    "ravel": [of(first=True)],
    "permute": [of(dims=(0, 2, 3, 1))],
    "transpose": [of(dim0=1, dim1=2)],
    "swapaxes": [of(axis0=1, axis1=2)],
    "swapdims": [of(dim0=1, dim1=2)],
    "movedim": [of(source=1, destination=3)],
    "moveaxis": [of(source=1, destination=3)],
    "t": [of((4, 8), first=True)],
    "__get__": [of((4, 8), first=True)],
    "adjoint": [of()],
    "flip": [of(dims=(2, 3))],
    "fliplr": [of()],
    "flipud": [of(first=True)],
    "rot90": [of(k=1, dims=(2, 3))],
    "roll": [of(shifts=1, dims=2), of(shifts=(1, 2), dims=(2, 3))],
    "__getitem__": [Example({"input": H, "index": (slice(None), 1)}), Example({"input": H, "index": (slice(None), slice(None), slice(1, 3))})],
    "__iter__": [of(first=True)],
    "narrow": [of(dim=2, start=1, length=2)],
    "select": [of(dim=2, index=1)],
    "chunk": [of(chunks=2, dim=2)],
    "split": [of(split_size=2, dim=2)],
    "unbind": [of(dim=1)],
    "gather": [of((2, 4), first=True, dim=1, index=torch.tensor([[0, 2], [1, 1]]))],
    "take_along_dim": [of((2, 4), first=True, indices=torch.tensor([[0, 2], [1, 1]]), dim=1)],
    "index_select": [of(dim=2, index=torch.tensor([2, 0]))],
    "tensor_split": [of(indices_or_sections=2, dim=2)],
    "split_with_sizes": [of(split_sizes=[1, 3], dim=2)],
    "diagonal": [of(offset=0, dim1=2, dim2=3)],
    "tril": [of(diagonal=0)],
    "triu": [of(diagonal=0)],
    "expand": [Example({"input": H, "size": (-1, 2, 4, 4)})],
    "expand_as": [of((1, 4), first=True, other=c(3, 4))],
    "broadcast_to": [of((1, 4), first=True, size=(3, 4))],
    "repeat": [Example({"input": H, "repeats": (1, 2, 1, 1)})],
    "repeat_interleave": [of(repeats=2, dim=2)],
    "tile": [Example({"input": H, "dims": (1, 2, 1, 1)})],
    "clone": [of()],
    "contiguous": [of()],
    "to": [of(dtype=torch.float64)],
    "float": [of()],
    "double": [of()],
    "half": [of()],
    "bfloat16": [of()],
    "type": [of(dtype=torch.float64)],
    "type_as": [of(other=c(1))],
    "cpu": [of()],
    "positive": [of()],
    "unfold": [of(kernel_size=2, dilation=1, padding=1, stride=2), of(dimension=2, size=2, step=1)],
    "fold": [of((8, 4), output_size=(4, 4), kernel_size=(2, 2), dilation=1, padding=0, stride=2)],
    "where": [Example({"condition": MASK, "input": H, "other": c(2, 4, 4)}), Example({"condition": MASK, "input": H, "other": G}), of(condition=MASK, other=c(2, 4, 4))],
    "masked_fill": [of(mask=MASK, value=0.5)],
    "__setitem__": [Example({"input": H, "index": (slice(None), 0), "value": 0.5})],
    "copy": [of(src=G)],
    "zero": [of()],
    "fill": [of(value=0.5)],
    "put": [of(first=True, index=torch.tensor([0, 5]), source=c(2))],
    "index_copy": [of(dim=1, index=torch.tensor([1, 0]), source=G)],
    "index_fill": [of(dim=1, index=torch.tensor([1]), value=0.5)],
    "scatter": [of(dim=1, index=torch.ones(2, 1, 4, 4, dtype=torch.int64), src=c(2, 1, 4, 4))],
    "masked_scatter": [of(mask=MASK, source=G)],
    "maximum": [of(other=c(2, 4, 4)), Example({"input": H, "other": G}), of(other=torch.zeros(1, dtype=torch.float64))],
    "minimum": [of(other=c(2, 4, 4)), Example({"input": H, "other": G})],
    "amax": [of(dim=1, keepdim=True), of(dim=(2, 3))],
    "amin": [of(dim=1, keepdim=True), of(dim=(2, 3))],
    "max": [of(dim=1, keepdim=True), Example({"input": H, "other": G})],
    "min": [of(dim=1, keepdim=True), Example({"input": H, "other": G})],
    "sort": [of(dim=1, descending=True)],
    "msort": [of(first=True)],
    "topk": [of(k=2, dim=2, largest=False, sorted=True)],
    "kthvalue": [of(k=2, dim=2, keepdim=True)],
    "median": [of(dim=2, keepdim=True)],
    "cummax": [of(dim=2)],
    "cummin": [of(dim=2)],
    "softmax": [of(dim=1)],
    "log_softmax": [of(dim=1)],
    "logsumexp": [of(dim=1, keepdim=True), of(dim=(2, 3))],
    "logaddexp": [Example({"input": H, "other": G}), of(other=c(2, 4, 4))],
    "layer_norm": [of(normalized_shape=(4, 4), weight=c(4, 4), bias=c(4, 4), eps=1e-4)],
    "rms_norm": [of(normalized_shape=(4, 4), weight=c(4, 4), eps=1e-4)],
    "group_norm": [of(num_groups=1, weight=c(2), bias=c(2), eps=1e-4)],
    "local_response_norm": [of(size=2, alpha=1e-2, beta=0.7, k=1.1)],
    "norm": [of(p=2, dim=1, keepdim=True), of(p=3, dim=(2, 3))],
    "vector_norm": [of(p=2, dim=1, keepdim=True), of(p=3, dim=(2, 3))],
    "std": [of(dim=1, unbiased=False, keepdim=True), of(dim=(2, 3), correction=0)],
    "var": [of(dim=1, unbiased=False, keepdim=True), of(dim=(2, 3), correction=0)],
    "std_mean": [of(dim=1, unbiased=False, keepdim=True)],
    "var_mean": [of(dim=1, unbiased=False, keepdim=True)],
    "prod": [of(unit=True, dim=1, keepdim=True)],
    "cumprod": [of(unit=True, dim=1)],
    "cosine_similarity": [Example({"x1": H, "x2": G, "dim": 1, "eps": 1e-6}), Example({"x1": H, "x2": c(2, 4, 4), "dim": 1})],
    "glu": [of(dim=1)],
    "scaled_dot_product_attention": [Example({"query": H, "key": G, "value": H, "attn_mask": c(4, 4), "dropout_p": 0.0, "is_causal": False, "scale": 0.3}, (4, 8))],
    **{name: examples for d in (1, 2, 3) for name, examples in spatial(d).items()},
}  # fmt: skip
_SAME = {
    "clip": "clamp", "absolute": "abs", "__abs__": "abs", "__pow__": "pow", "expit": "sigmoid", "true_divide": "div", "divide": "div",
    "__truediv__": "div", "multiply": "mul", "__mul__": "mul", "__rmul__": "mul", "subtract": "sub", "negative": "neg", "__neg__": "neg",
    "concat": "cat", "concatenate": "cat", "__matmul__": "matmul", "fmax": "maximum", "fmin": "minimum", "dropout1d": "dropout",
    "dropout2d": "dropout", "dropout3d": "dropout", "alpha_dropout": "dropout", "__pos__": "positive", "cuda": "",
    "__rtruediv__": "__rdiv__", "log_sigmoid": "logsigmoid", "read_view": "",
}  # fmt: skip

# Other names that an argument may have somewhere, torch's own and NumPy's.
ALIASES: dict[str, tuple[str, ...]] = {
    "input": ("self", "x", "a", "x1", "tensor", "A"),
    "input1": ("input", "x1"),
    "other": ("x2", "mat2", "vec", "vec2", "b", "tensor2", "y", "exponent"),
    "dim": ("axis", "dims", "dim0"),
    "dims": ("dim", "axes", "axis"),
    "keepdim": ("keepdims",),
    "p": ("ord",),
    "training": ("train",),
    "tensors": ("arrays",),
    "x1": ("input", "x", "a"),
    "x2": ("other",),
    "min": ("a_min",),
    "max": ("a_max",),
    "src": ("other", "source"),
    "split_size": ("split_size_or_sections",),
    "unbiased": ("correction",),
    "shape": ("size",),
    "size": ("shape",),
    "negative_slope": ("alpha",),
    "mask": ("condition",),
}


def word_of(function: Any) -> str:
    """The bare name of a function: ``torch.special.expit`` is "expit", ``Tensor.relu_`` is "relu"."""
    name = function.__name__.removeprefix("special_").removeprefix("linalg_")
    name = name if name.startswith("__") else name.strip("_")
    return _SAME.get(name, name)


@dataclass(frozen=True)
class Spelled:
    """One spelling of an example: a function and how its arguments are given."""

    function: Any
    positional: tuple[Any, ...]
    named: dict[str, Any]
    in_place: bool

    def __str__(self) -> str:
        shown = [_shown(v) for v in self.positional] + [f"{k}={_shown(v)}" for k, v in self.named.items()]
        module = getattr(self.function, "__module__", None) or "Tensor"
        return f"{module}.{self.function.__name__}({', '.join(shown)})"

    def __call__(self, h: Tensor, g: Tensor) -> Tensor:
        target = h.clone() if self.in_place else h
        args = [_filled(v, target, g) for v in self.positional]
        kwargs = {k: _filled(v, target, g) for k, v in self.named.items()}
        result = self.function(*args, **kwargs)
        if self.function is Tensor.__setitem__:
            return target
        if isinstance(result, Tensor):
            return result
        floats = [r for r in result if r.is_floating_point()]
        return torch.cat([r.flatten(1) for r in floats], 1) if floats[0].dim() > 1 else torch.stack(list(floats))


def _filled(value: Any, h: Tensor, g: Tensor) -> Any:
    if isinstance(value, list):
        return [_filled(v, h, g) for v in value]
    return h if value is H else g if value is G else value.clone() if isinstance(value, Tensor) else value


def _shown(value: Any) -> str:
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def spellings(function: Any, example: Example) -> Iterator[Spelled]:
    """Candidates: the first k arguments by position, the others by name, with one name or all of them another."""
    names, values = list(example.arguments), list(example.arguments.values())
    in_place = SPELLINGS[function].inplace
    for k in range(len(names), -1, -1):
        rest = dict(zip(names[k:], values[k:], strict=True))
        yield Spelled(function, tuple(values[:k]), rest, in_place)
        for name in rest:
            for alias in ALIASES.get(name, ()):
                yield Spelled(
                    function, tuple(values[:k]), {alias if n == name else n: v for n, v in rest.items()}, in_place
                )
        numpy = {ALIASES[n][-1 if n in ("other",) else 0] if n in ("dim", "keepdim") else n: v for n, v in rest.items()}
        if numpy.keys() != rest.keys():
            yield Spelled(function, tuple(values[:k]), numpy, in_place)
    for k, value in enumerate(values):
        if isinstance(value, tuple) and k + 1 == len(values):
            yield Spelled(function, (*values[:k], *value), {}, in_place)
        if isinstance(value, tuple):
            yield Spelled(function, (*values[:k], list(value), *values[k + 1 :]), {}, in_place)
    lists = [i for i, v in enumerate(values) if isinstance(v, Signal)]
    if len(lists) > 1 and function.__name__ == "einsum":
        yield Spelled(function, (values[0], values[1:]), {}, in_place)


def accepted(function: Any, example: Example, like: Tensor | None = None) -> list[Spelled]:
    """The spellings for which torch itself runs, and gives this value."""
    values = [(spelled, value(spelled, example)) for spelled in spellings(function, example)]
    return [s for s, v in values if v is not None and (like is None or torch.equal(v.flatten(), like.flatten()))]


def plain(word: str, example: Example) -> Spelled | None:
    """The plain spelling: out of place, all by position where torch takes that."""
    example = example.plain or example
    functions = [f for f in SPELLINGS if word_of(f) == word and not SPELLINGS[f].inplace] or [
        f for f in SPELLINGS if word_of(f) == word
    ]
    return next((s for f in functions for s in accepted(f, example)), None)


def value(spelled: Spelled, example: Example) -> Tensor | None:
    h, g = (example.signal(s) for s in _values())
    try:
        return spelled(h.clone(), g.clone())
    except (TypeError, RuntimeError, ValueError, IndexError, AttributeError, AssertionError):
        return None


@cache
def _values() -> tuple[Tensor, Tensor]:
    return tuple(f(torch.linspace(-1, 5, 64, dtype=torch.float64)).reshape(2, 2, 4, 4) for f in (torch.sin, torch.cos))  # type: ignore[return-value]
