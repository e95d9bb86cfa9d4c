"""Tables of relevance propagation: a rule for each role of a layer, and one for everything else.

>>> table = relevance("mine", dense=Epsilon(), convolution=Gamma(0.25), first=ZBox(low, high))

is a whole table: every primitive has an entry, and what is not in it is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backlit._errors import InputError
from backlit.capture import PRIMITIVES, Rule, RuleLike, Site, named
from backlit.capture.rule import as_rule
from backlit.capture.sites import Kind
from backlit.rules import activation, attention, norm, structural
from backlit.rules.linear import PixelRule
from backlit.rules.table import TRUE, RuleTable, rule_name

_OTHERS: dict[str, RuleLike | None] = {
    **{p.name: TRUE for p in PRIMITIVES if p.kind in ("affine", "selection")},
    **{p.name: activation.secant for p in PRIMITIVES if p.kind == "activation"},
    **dict.fromkeys(named("homogeneous", kind="activation"), TRUE),  # which passes the relevance
    "gated": TRUE,
    "batch_norm": norm.batch_norm,
    "layer_norm": norm.layer_norm,
    "group_norm": norm.group_norm,
    "instance_norm": norm.group_norm,
    "rms_norm": norm.rms_norm,
    **dict.fromkeys(named("infinite"), structural.ratio),
    "local_response_norm": structural.ratio,
    **dict.fromkeys(("norm", "std"), TRUE),
    **dict.fromkeys(("var", "var_mean", "prod", "cumprod"), structural.by_degree),
    **dict.fromkeys(("logsumexp", "logaddexp"), structural.with_constants),
    "cosine_similarity": norm.cosine_similarity,
    "softmax": TRUE,
    "log_softmax": attention.log_softmax,
    "attention": attention.attention,
    "glu": attention.glu,
    "product": structural.product,
    "quotient": structural.quotient,
    "matrix_product": structural.shared,
    "einsum_product": structural.shared,
}

_KINDS: dict[Kind, RuleLike | None] = {
    "affine": structural.with_constants,
    "activation": activation.secant,
    "selection": TRUE,
}


@dataclass(frozen=True)
class RelevanceTable(RuleTable):
    """A rule table for multipliers (see :mod:`backlit.rules.linear`), with relevance itself at the pixels.

    What no layer with weights has touched (the input, and a normalisation or a crop inside the network) carries
    relevance, so that rules for pixels can give some to a pixel that is zero.
    """

    def rule_for(self, site: Site) -> tuple[str, Rule | None]:
        """Name and rule of a site.

        Raises:
            UnsupportedOp: If the table has no rule for it.
            InputError: If a rule for pixels stands where no pixels are read.
        """
        name, rule = super().rule_for(site)
        pixels = tuple(depth == 0 for depth in site.depths)
        given = rule is not None and isinstance(rule.vjp, PixelRule)
        if given and not (all(pixels) and site.has("layer")):
            raise InputError(
                f"rules must give {name} to layers that read the network's input, but {self.name!r} gives it to {site}. It "
                "shares relevance without regard to the values, so it would reach units that are off. Use first=..."
            )
        if given or not any(pixels):
            return name, rule
        rule = _at_pixels(site, rule, pixels)
        return rule_name(rule), rule


def _at_pixels(site: Site, rule: Rule | None, pixels: tuple[bool, ...]) -> Rule | None:
    """The rule of a site of whose inputs some are pixels."""
    untouched = all(pixels) and not site.has("layer")
    if untouched and site.has("averages", "gathers"):
        return as_rule(structural.averaged)
    if untouched and site.has("moves"):
        return None if rule is TRUE else as_rule(structural.moved)
    if untouched and len(pixels) == 1 and site.kind in ("affine", "activation") and site.has("elementwise"):
        return as_rule(structural.passed)
    return structural.at_pixels(rule, pixels, given=untouched)


def relevance(
    name: str,
    *,
    dense: RuleLike | None,
    convolution: RuleLike | None,
    first: RuleLike | None = None,
    pool: RuleLike | None = TRUE,
    attention_weights: Literal["attnlrp", "held"] = "held",
) -> RelevanceTable:
    """A table from the roles of layers.

    Args:
        name: The table's name, for messages.
        dense: The rule of linear layers, and of matrix products with constants.
        convolution: The rule of convolutions.
        first: The rule of the layers that read the network's input, if it is another.
        pool: The rule of max-pools; TRUE is winner-takes-all, :func:`backlit.rules.pooling.proportional` the other.
        attention_weights: "held" takes softmax and attention weights as constants (Ali et al. 2022), which conserves
            relevance; "attnlrp" propagates through them (Achtibat et al. 2024), which does not.

    Further rules by primitive or predicate: ``table.but({"conv2d": rule})``, ``table.where(lambda site: ..., rule)``.
    """
    for role, rule in (("dense", dense), ("convolution", convolution), ("first", first), ("pool", pool)):
        if rule is not None and (isinstance(rule, type) or not callable(rule)):
            raise InputError(
                f"{role} must be a rule, such as Epsilon() or ZPlus() of backlit.rules.linear, or None for the true "
                f"derivative, but is {rule!r}."
            )
    rules = {
        **_OTHERS,
        **dict.fromkeys(named("layer"), dense),
        **dict.fromkeys(named("convolution"), convolution),
        **dict.fromkeys(named("pool", kind="selection"), pool),
    }
    if attention_weights == "held":
        rules |= {"attention": attention.held, "softmax": attention.constant}
        rules |= dict.fromkeys(("matrix_product", "einsum_product"), attention.mixture)
    elif attention_weights != "attnlrp":
        raise InputError(f"attention_weights must be 'attnlrp' or 'held', but is {attention_weights!r}.")
    table = RelevanceTable(name, rules, kinds=_KINDS).where(_adds_constants, structural.with_constants)
    table = table.where(_adds_to_product, structural.shared_with_constants)
    return table if first is None else table.where(reads_pixels, first)


def reads_pixels(site: Site) -> bool:
    """Tell whether the site is a first layer: one with weights and none before it."""
    return site.has("layer") and max(site.depths, default=1) == 0


def _adds_to_product(site: Site) -> bool:
    """``baddbmm(c, a, b)`` of two signals and a constant."""
    return site.primitive == "einsum_product" and site.constants


def _adds_constants(site: Site) -> bool:
    """``x + c``, also for numbers, pads and masks; ``cat`` and ``stack`` with tensors that do not depend on the input."""
    if site.has("stacks", "blends"):
        return site.constants
    return site.has("fills") or (site.has("adds") and len(site.input_shapes) == 1)
