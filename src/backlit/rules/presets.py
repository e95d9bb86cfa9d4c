"""Named rule tables.

Each says what every primitive gets, so that an operation nobody thought of is an error. ``gradient`` is the true
gradient; guided back-propagation and deconvnet change the rectifiers and leave the rest true: the
papers define them for the ReLU, max-pools keep their switches, and a gate such as a sigmoid is no rectifier.

The tables of relevance propagation have the names that users of iNNvestigate and zennit know; those with a bound or a
parameter are functions. ``RELEVANCE`` lists them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from backlit.capture import PRIMITIVES, RuleLike, named
from backlit.capture.sites import Kind
from backlit.rules import activation, attention, norm, structural
from backlit.rules.exact import exact as _exact
from backlit.rules.linear import AlphaBeta, Bound, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from backlit.rules.relevance import RelevanceTable, relevance
from backlit.rules.table import TRUE, RuleTable

_TRUE_OF_ALL: dict[Kind, RuleLike | None] = dict.fromkeys(get_args(Kind), TRUE)
_EXACT_OF_ALL: dict[Kind, RuleLike | None] = dict.fromkeys(get_args(Kind), _exact)

gradient = RuleTable("gradient", dict.fromkeys((p.name for p in PRIMITIVES), TRUE), kinds=_TRUE_OF_ALL)
exact = RuleTable(
    "exact",
    {p.name: activation.derivative if p.kind == "activation" else _exact for p in PRIMITIVES},
    kinds=_EXACT_OF_ALL,
)
guided = gradient.but(dict.fromkeys(named("rectifier"), activation.guided), "guided")
deconvnet = gradient.but(dict.fromkeys(named("rectifier"), activation.deconvnet), "deconvnet")

_smooth = {p.name for p in PRIMITIVES if p.kind == "activation"} - named("piecewise", "homogeneous")
libra = gradient.but(
    {
        **dict.fromkeys(_smooth, activation.secant),
        "layer_norm": norm.layer_norm,
        "group_norm": norm.group_norm,
        "instance_norm": norm.group_norm,
        "rms_norm": norm.rms_norm,
        "softmax": attention.constant,
        "attention": attention.held,
        "glu": attention.glu,
        "product": structural.shared,
        "quotient": structural.quotient,
        **dict.fromkeys(("matrix_product", "einsum_product"), attention.mixture),
    },
    "libra",
).where(lambda site: site.primitive == "softmax" and len(site.input_shapes[0]) == 2, TRUE)
"""LibraGrad (Mehri et al. 2025): softmax, deviations of norms and gates are held, products of two signals halved. A softmax over
rows (n, k) is no attention, but probabilities: it keeps its derivative."""

PRESETS: tuple[RuleTable, ...] = (gradient, exact, guided, deconvnet, libra)


def epsilon(value: float = 1e-7) -> RelevanceTable:
    """Epsilon everywhere (Bach et al. 2015)."""
    return relevance("epsilon", dense=Epsilon(value), convolution=Epsilon(value))


def epsilon_plus(value: float = 1e-7) -> RelevanceTable:
    """Epsilon in dense layers, z+ in convolutions."""
    return relevance("epsilon_plus", dense=Epsilon(value), convolution=ZPlus())


def epsilon_plus_flat(value: float = 1e-7) -> RelevanceTable:
    """Epsilon in dense layers, z+ in convolutions, flat in the first layer."""
    return relevance("epsilon_plus_flat", dense=Epsilon(value), convolution=ZPlus(), first=Flat())


def epsilon_alpha2_beta1(value: float = 1e-7) -> RelevanceTable:
    """Epsilon in dense layers, alpha 2 and beta 1 in convolutions."""
    return relevance("epsilon_alpha2_beta1", dense=Epsilon(value), convolution=AlphaBeta(2.0, 1.0))


def epsilon_alpha2_beta1_flat(value: float = 1e-7) -> RelevanceTable:
    """Epsilon in dense layers, alpha 2 and beta 1 in convolutions, flat in the first layer."""
    return relevance("epsilon_alpha2_beta1_flat", dense=Epsilon(value), convolution=AlphaBeta(2.0, 1.0), first=Flat())


def epsilon_gamma_box(
    low: Bound | None = None,
    high: Bound | None = None,
    value: float = 1e-7,
    gamma: float = 0.25,
    strict: bool = True,
) -> RelevanceTable:
    """Epsilon in dense layers, gamma in convolutions, z-box between ``low`` and ``high`` in the first layer."""
    box = ZBox(low, high, strict)
    return relevance("epsilon_gamma_box", dense=Epsilon(value), convolution=Gamma(gamma), first=box)


def z_plus() -> RelevanceTable:
    """z+ in every layer: alpha 1, beta 0."""
    return relevance("z_plus", dense=ZPlus(), convolution=ZPlus())


def deep_taylor(low: Bound | None = None, high: Bound | None = None, strict: bool = True) -> RelevanceTable:
    """Deep Taylor decomposition for pixels between ``low`` and ``high`` (Montavon et al. 2017, Sec. 4): z+, then z-box."""
    return _decomposed("deep_taylor", ZBox(low, high, strict))


def deep_taylor_unbounded() -> RelevanceTable:
    """Deep Taylor decomposition for inputs without bounds: z+, then w-square."""
    return _decomposed("deep_taylor_unbounded", WSquare())


def excitation_backprop() -> RelevanceTable:
    """Excitation backprop (Zhang et al. 2016, Eq. 2): winning probabilities by positive weights, without biases."""
    return _decomposed("excitation_backprop", None)


def _decomposed(name: str, first: WSquare | ZBox | None) -> RelevanceTable:
    bare = ZPlus(bias=False)
    return relevance(name, dense=bare, convolution=bare, first=first)


def with_choices(table: RelevanceTable, attention_weights: str, pool: RuleLike | None) -> RelevanceTable:
    """The table with AttnLRP's rules for attention ("attnlrp"), and with another rule at max-pools, if asked for."""
    if attention_weights == "attnlrp":
        products = dict.fromkeys(("matrix_product", "einsum_product"), structural.shared)
        table = table.but({"attention": attention.attention, "softmax": TRUE, **products})
    return table if pool is None else table.but(dict.fromkeys(named("pool", kind="selection"), pool))


RELEVANCE: dict[str, Callable[..., RelevanceTable]] = {
    f.__name__: f
    for f in (
        epsilon,
        epsilon_plus,
        epsilon_plus_flat,
        epsilon_alpha2_beta1,
        epsilon_alpha2_beta1_flat,
        epsilon_gamma_box,
        z_plus,
        deep_taylor,
        deep_taylor_unbounded,
        excitation_backprop,
    )
}
