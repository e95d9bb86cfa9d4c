"""DeepLIFT's rules: multipliers between an input and a reference, complete at every operation.

g is the multiplier of the output; a rule returns multipliers m with ``sum_i m_i (x_i - x0_i) = g (y - y0)``, which makes
the map sum to the difference of the logits. Affine operations need none: their true derivative does it. The subscript 0
marks the reference's value of a thing. An operation that is linear in each of two signals takes both at their mid-points;
others are written as such products and elementwise functions, each with its secant:

* an elementwise f: ``dy / dx``, f' near x0 (Shrikumar et al. 2017, Eq. 12, rescale);
* softmax: ``dy_i = L_i (dz_i - sum_j L_j dz_j / sum_j L_j)``, L the logarithmic mean of y and y0;
* norms: ``d(c r) = dc (r + r0) / 2 + dr (c + c0) / 2`` with ``r = 1 / sigma``, ``dr = -dv r r0 / (sigma + sigma0)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlit._errors import UnsupportedOp
from backlit.capture import PRIMITIVES, Call, Rule, RuleLike, Shares, named, rule
from backlit.capture.primitives import attention_scores
from backlit.capture.sites import Kind
from backlit.rules import activation, norm
from backlit.rules.exact import exact
from backlit.rules.layer import Layer
from backlit.rules.linear import Part, over
from backlit.rules.reference import Reference, Tensors
from backlit.rules.table import TRUE, RuleTable

Result = tuple[Tensor | None, ...]


Formula = Callable[[Tensor, Tensors, Any, Tensors, Any, Call], Result]
"""``formula(g, inputs, output, inputs0, output0, call) -> multipliers``."""


def lifted(formula: Formula, reference: Reference, *, joins: bool = False) -> Rule:
    """A formula as a rule, with the reference's values."""

    def vjp(g: Any, inputs: Tensors, output: Any, call: Call) -> Result:
        return formula(g, inputs, output, *reference.of(call), call)

    return Rule(vjp, formula.__name__, joins)


def table(reference: Reference, *, reveal_cancel: bool) -> RuleTable:
    """DeepLIFT's rules for the values of one reference."""
    rules: dict[str, RuleLike | None] = {p.name: TRUE for p in PRIMITIVES if p.kind == "affine"}
    kinds: dict[Kind, RuleLike | None] = {"affine": TRUE, "activation": lifted(rescale, reference)}
    for primitive in PRIMITIVES:
        if primitive.kind == "activation":
            rules[primitive.name] = lifted(rescale, reference, joins=reveal_cancel)
        elif primitive.name in _FORMULAS:
            rules[primitive.name] = lifted(_FORMULAS[primitive.name], reference)
        elif primitive.has("pool") and primitive.kind == "selection":
            rules[primitive.name] = lifted(largest, reference)
    if reveal_cancel:
        rules |= {name: RevealCancel(reference) for name in named("layer")} | {"batch_norm": _normed}
    return RuleTable("reveal_cancel" if reveal_cancel else "rescale", rules, kinds=kinds)


@rule(joins=True)
def _normed(g: Tensor, inputs: Tensors, output: Tensor, call: Call) -> Shares:
    return Shares(norm.batch_norm(g, inputs, output, call).grads)


def secant(x: Tensor, y: Tensor, x0: Tensor, y0: Tensor, call: Call | Callable[[Tensor], Tensor]) -> Tensor:
    """``(y - y0) / (x - x0)`` of an elementwise function; f' at the mid-point where the two agree to the rounding of y.

    There the quotient is mostly rounding, f' is not, and the sum still misses no more than y's own rounding: near x0 in
    every precision, and never across a kink or a jump.
    """
    dx, dy, middle = x - x0, y - y0, (x + x0) / 2
    if isinstance(call, Call):
        (slope,) = activation.derivative(torch.ones_like(y), (middle,), y, call)  # which reads no output
        assert slope is not None
    else:
        slope = call(middle)
    slope = slope.nan_to_num(0, 0, 0)
    rounding = torch.finfo(x.dtype).eps * (y.abs() + y0.abs())
    if x.dtype in (torch.float16, torch.bfloat16):  # computed in single precision, rounded once
        rounding = rounding / 2
    elif isinstance(call, Call) and call.primitive.has("cancels"):
        rounding = rounding + 2 * torch.finfo(x.dtype).eps * (x.abs() + x0.abs())
    same = (dy - slope * dx).abs() <= rounding
    return torch.where(same, slope, dy / torch.where(same, 1, dx))


def rescale(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """``g dy / dx`` (Shrikumar et al. 2017, Sec. 3.5.2)."""
    if len(x) != 1 or x[0].shape != y.shape:
        raise UnsupportedOp(
            f"{call.site} chooses between several signals by their values, which DeepLIFT has no rule for. Write it with "
            "activations (relu, clamp), or give the primitive a rule of your own."
        )
    return (g * secant(x[0], y, x0[0], y0, call),)


def largest(g: Any, x: Tensors, y: Any, x0: Tensors, y0: Any, call: Call) -> Result:
    """Max-pool and maximum over dimensions: ``max(y, y0) - y0`` to x's winner, ``y - max(y, y0)`` to the reference's.

    The winner differs from its reference wherever it gets something, and overlapping windows add up.
    """
    several = not isinstance(y, Tensor)
    g, y, y0 = (g[0], y[0], y0[0]) if several else (g, y, y0)
    between = torch.minimum(y, y0) if call.primitive.has("least") else torch.maximum(y, y0)

    def to_winners(s: Tensor, at: Tensor) -> Tensor:
        output = call.run(at)
        grads = (s, *(None for _ in output[1:])) if several else s
        (found,) = exact(grads, (at,), output, call)  # type: ignore[arg-type]
        assert found is not None
        return found

    given = to_winners(g * (between - y0), x[0]) + to_winners(g * (y - between), x0[0])
    return (given * over(1, x[0] - x0[0]),)


def larger(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """Maximum and minimum of two signals: ``max(a, b) = b + relu(a - b)``, and the minimum is the rest of a + b."""
    d, d0 = x[0] - x[1], x0[0] - x0[1]
    share = secant(d, d.clamp(min=0), d0, d0.clamp(min=0), _step)
    if call.primitive.has("least"):
        share = 1 - share
    return (g * share).sum_to_size(x[0].shape), (g * (1 - share)).sum_to_size(x[1].shape)


def _step(z: Tensor) -> Tensor:
    """The ReLU's slope."""
    return (z > 0).to(z.dtype)


def middle(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """Linear in each of two signals, or quadratic in one: the derivative at the mid-points.

    ``d(ab) = da (b + b0) / 2 + db (a + a0) / 2``.
    """
    if len(x) > 2:
        raise UnsupportedOp(
            f"{call.site} is a product of {len(x)} signals, and DeepLIFT has a rule for two. Split it into products of two."
        )
    middles = tuple((a + a0) / 2 for a, a0 in zip(x, x0, strict=True))
    return exact(g, middles, call.run(*middles), call)


def quotient(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """``a / b = a r`` with ``dr = -db r r0``."""
    r, r0 = 1 / x[-1], 1 / x0[-1]
    if len(x) == 1:
        return ((-g * call["input"] * r * r0).sum_to_size(x[0].shape),)
    a, a0 = x[0], x0[0]
    return (g * (r + r0) / 2).sum_to_size(a.shape), (-g * (a + a0) / 2 * r * r0).sum_to_size(x[1].shape)


def _logarithmic_mean(u: Tensor, u0: Tensor) -> Tensor:
    """``(y - y0) / (u - u0)`` for y = exp(u), without overflow; zero where both are masked."""
    d = (u - u0).abs()
    d = torch.where(d.isfinite(), d, 0)
    flat = d < torch.finfo(d.dtype).eps
    return torch.maximum(u, u0).exp() * torch.where(flat, 1, -torch.expm1(-d) / torch.where(flat, 1, d))


def _softmax(g: Tensor, u: Tensor, u0: Tensor, dim: int) -> Tensor:
    """The multipliers of the scores, from those of their softmax and its logarithms."""
    means = _logarithmic_mean(u, u0)
    return means * (g - (g * means).sum(dim, keepdim=True) / means.sum(dim, keepdim=True))


def softmax(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """``m_i = L_i (g_i - sum_j g_j L_j / sum_j L_j)``."""
    dim = call["dim"]
    return (_softmax(g, x[0].log_softmax(dim), x0[0].log_softmax(dim), dim),)


def log_softmax(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """``m_i = g_i - L_i sum_j g_j / sum_j L_j``."""
    dim = call["dim"]
    means = _logarithmic_mean(y, y0)
    return (g - means * g.sum(dim, keepdim=True) / means.sum(dim, keepdim=True),)


def _scaled_by_size(g: Tensor, c: Tensor, c0: Tensor, eps: float) -> Tensor:
    """Multipliers of c for ``y = c / sqrt(mean(c^2) + eps)``, over the last dimension."""
    sigma, sigma0 = ((v.square().mean(-1, keepdim=True) + eps).sqrt() for v in (c, c0))
    fall = -1 / (sigma * sigma0 * (sigma + sigma0))  # d(1 / sigma) / d(variance)
    return g * (1 / sigma + 1 / sigma0) / 2 + (c + c0) * fall * (g * (c + c0) / 2).mean(-1, keepdim=True)


def _scaled_by_deviation(g: Tensor, c: Tensor, c0: Tensor, eps: float) -> Tensor:
    """Multipliers of z, where c = z - mean(z)."""
    m = _scaled_by_size(g, c, c0, eps)
    return m - m.mean(-1, keepdim=True)


def rms_norm(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """The norm as a product of the signal and 1 / its root mean square."""
    d, eps = len(call["normalized_shape"]), call.get("eps")
    g = g if call.get("weight") is None else g * call["weight"]
    flat, flat0 = (v.flatten(-d) for v in (x[0], x0[0]))
    m = _scaled_by_size(g.reshape(flat.shape), flat, flat0, torch.finfo(flat.dtype).eps if eps is None else eps)
    return (m.reshape(x[0].shape),)


def layer_norm(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """The norm as a product of the centred signal and 1 / sigma."""
    d = len(call["normalized_shape"])
    g = g if call.get("weight") is None else g * call["weight"]
    flat = [v.flatten(-d) for v in (x[0], x0[0])]
    centred = [v - v.mean(-1, keepdim=True) for v in flat]
    m = _scaled_by_deviation(g.reshape(flat[0].shape), centred[0], centred[1], call.get("eps", 1e-5))
    return (m.reshape(x[0].shape),)


def group_norm(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """The same within each group of channels; an instance norm has as many groups as channels."""
    z = x[0]
    weight = call.get("weight")
    g = g if weight is None else g * weight.view(-1, *[1] * (z.dim() - 2))
    shape = (z.shape[0], call.get("num_groups") or z.shape[1], -1)
    flat = [v.reshape(shape) for v in (z, x0[0])]
    centred = [v - v.mean(-1, keepdim=True) for v in flat]
    m = _scaled_by_deviation(g.reshape(flat[0].shape), centred[0], centred[1], call.get("eps", 1e-5))
    return (m.reshape(z.shape),)


def local_response_norm(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """``y = x p(d)``, ``d = k + alpha mean(x^2)`` over neighbouring channels, ``p(d) = d^-beta``."""
    size, alpha, beta, k = call["size"], call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("k", 1.0)

    def around(v: Tensor, before: int) -> Tensor:
        ends = [v.new_zeros(v.shape[0], c, *v.shape[2:]) for c in (before, size - 1 - before)]
        return torch.cat([ends[0], v, ends[1]], 1).unfold(1, size, 1).mean(-1)

    d, d0 = (k + alpha * around(v.square(), size // 2) for v in (x[0], x0[0]))
    p, p0 = d**-beta, d0**-beta
    slope = secant(d, p, d0, p0, lambda v: -beta * v ** (-beta - 1))
    s = g * (x[0] + x0[0]) / 2 * slope * alpha
    return (g * (p + p0) / 2 + around(s, size - 1 - size // 2) * (x[0] + x0[0]),)


def length(g: Any, x: Tensors, y: Any, x0: Tensors, y0: Any, call: Call) -> Result:
    """A root of squares, ``y = sqrt(q(x))``, as a Euclidean norm or a standard deviation: ``dy = dq / (y + y0)``.

    dq is exact with the derivative of q at the middle of x and x0. What is linear beside it (a mean) keeps its derivative.
    """
    several = not isinstance(y, Tensor)
    at = (x[0] + x0[0]) / 2

    def root(v: Tensor) -> Tensor:
        found = call.run(v)
        return found[0] if several else found

    y, y0 = (y[0], y0[0]) if several else (y, y0)
    rtol = min(0.1, 1e4 * torch.finfo(at.dtype).eps)
    if not torch.allclose(root(2 * at).square() + root(x[0] - x0[0]).square(), 2 * (y.square() + y0.square()), rtol):
        raise UnsupportedOp(
            f"{call.site} is no root of squares, and DeepLIFT has no rule for other norms. Give it one: "
            f"rules={{{call.primitive.name!r}: rule}}, None for the true derivative."
        )
    tiny = torch.finfo(at.dtype).tiny
    scaled = (g[0] if several else g) * root(at).clamp(min=tiny) * 2 / (y + y0).clamp(min=tiny)
    return exact((scaled, *g[1:]) if several else scaled, (at,), call.run(at), call)  # type: ignore[arg-type]


def logsumexp(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """``y = log S``: ``dy = sum L(e^x, e^x0) dx / L(S, S0)``, L the logarithmic mean; over dimensions, or of two signals."""
    dims = call.get("dim", ())
    if not call.get("keepdim", False):
        n = x[0].dim()
        for dim in sorted(d % n for d in ((dims,) if isinstance(dims, int) else dims)):
            g, y, y0 = (v.unsqueeze(dim) for v in (g, y, y0))
    top = torch.maximum(y, y0)
    s = g / _logarithmic_mean(y - top, y0 - top)
    return tuple((s * _logarithmic_mean(a - top, a0 - top)).sum_to_size(a.shape) for a, a0 in zip(x, x0, strict=True))


def glu(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """``a s``, s the sigmoid of b."""
    dim = call.get("dim", -1)
    (a, b), (a0, b0) = x[0].chunk(2, dim), x0[0].chunk(2, dim)
    s, s0 = b.sigmoid(), b0.sigmoid()
    slope = secant(b, s, b0, s0, lambda z: z.sigmoid() * (-z).sigmoid())
    return (torch.cat([g * (s + s0) / 2, g * (a + a0) / 2 * slope], dim),)


def attention(g: Tensor, x: Tensors, y: Tensor, x0: Tensors, y0: Tensor, call: Call) -> Result:
    """Two products and a softmax."""
    names = [name for name, _ in call.places]
    given, given0 = dict(zip(names, x, strict=True)), dict(zip(names, x0, strict=True))
    q, k, v = (_tensor(given.get(n, call[n])) for n in ("query", "key", "value"))
    q0, k0, v0 = (_tensor(given0.get(n, call[n])) for n in ("query", "key", "value"))
    options: dict[str, Any] = {
        o: call.arguments[o] for o in ("attn_mask", "is_causal", "scale", "enable_gqa") if o in call.arguments
    }
    repeats = q.shape[-3] // v.shape[-3] if call.get("enable_gqa") else 1
    u, u0 = (attention_scores(a, b, **options).log_softmax(-1) for a, b in ((q, k), (q0, k0)))
    mean_value = ((v + v0) / 2).repeat_interleave(repeats, -3) if repeats > 1 else (v + v0) / 2
    m_value = ((u.exp() + u0.exp()) / 2).transpose(-2, -1) @ g
    if repeats > 1:
        m_value = m_value.unflatten(-3, (-1, repeats)).sum(-3)
    m_scores = _softmax(g @ mean_value.transpose(-2, -1), u, u0, -1)
    second = torch.is_grad_enabled()
    with torch.enable_grad():
        at, to = (
            m if second and m.requires_grad else m.detach().requires_grad_() for m in ((q + q0) / 2, (k + k0) / 2)
        )
        scores = attention_scores(at, to, **options)
        m_query, m_key = torch.autograd.grad(scores, (at, to), m_scores, create_graph=second)
    found = {"query": m_query, "key": m_key, "value": m_value}
    return tuple(found[name] for name in names)


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


_FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(("amax", "amin", "max", "min"), largest),
    **dict.fromkeys(("maximum", "minimum"), larger),
    **dict.fromkeys(("product", "matrix_product", "einsum_product"), middle),
    "quotient": quotient,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "instance_norm": group_norm,
    "local_response_norm": local_response_norm,
    "rms_norm": rms_norm,
    **dict.fromkeys(("norm", "std"), length),
    **dict.fromkeys(("logsumexp", "logaddexp"), logsumexp),
    **dict.fromkeys(("var", "var_mean"), middle),
    "glu": glu,
    "attention": attention,
}


@dataclass(frozen=True)
class RevealCancel:
    """Positive and negative parts apart through the activation that a layer alone feeds (Shrikumar et al. 2017, 3.5.3).

    P and N are what raises and what lowers z from its reference: ``dy+ = [f(z0 + P) - f(z0) + f(z0 + P + N) - f(z0 + N)]
    / 2``, dy- alike; contributions above zero get ``dy+ / P``, the mean of two secants, those below ``dy- / N``. An
    activation that something else feeds, such as a residual add, has no contributions by sign to tell apart and keeps the
    rescale rule, and so does a condition written in the network where it is no ReLU's.
    """

    reference: Reference

    @property
    def __name__(self) -> str:
        return "reveal_cancel"

    def __call__(self, g: Tensor, inputs: Tensors, output: Tensor, call: Call) -> Result:
        after = call.joined[-1] if call.joined and call.joined[-1].site.kind == "activation" else None
        layer = Layer.of(call, inputs)
        if layer is None or after is None:
            return exact(g, inputs, output, call) if layer is None else (layer.transposed(g, layer.weight),)
        (x0,), _ = self.reference.of(call)
        (z0,), y0 = self.reference.of(after)
        changes = Layer(inputs[0] - x0, layer.weight, None, call, layer.place)
        up, down = Part.of(changes, 1), Part.of(changes, -1)
        z_up, z_down, z = z0 + up.z, z0 + down.z, z0 + up.z + down.z
        written = after.primitive.name == "gated"  # its condition is that of the values that were seen
        f, slope = (torch.relu, _step) if written else (after.run, after)
        y_up, y_down, y = f(z_up), f(z_down), f(z)
        s_up = g * (secant(z_up, y_up, z0, y0, slope) + secant(z, y, z_down, y_down, slope)) / 2
        s_down = g * (secant(z_down, y_down, z0, y0, slope) + secant(z, y, z_up, y_up, slope)) / 2
        if written:
            is_relu = (y0 == f(z0)) & ((output - y).abs() <= 1e-4 * (z0.abs() + up.z - down.z))
            plain = g * secant(z, output, z0, y0, after)
            s_up, s_down = torch.where(is_relu, s_up, plain), torch.where(is_relu, s_down, plain)
        m = up.transposed(s_up) + down.transposed(s_down)
        still = changes.x == 0
        if bool(still.any()):
            m = torch.where(still, layer.transposed((s_up + s_down) / 2, layer.weight), m)
        return (m,)
