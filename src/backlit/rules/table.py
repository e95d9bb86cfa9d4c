"""Rule tables: which rule each site gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from backlit._errors import UnsupportedOp
from backlit.capture import Rule, RuleLike, Site
from backlit.capture.rule import as_rule
from backlit.capture.sites import Kind

Predicate = Callable[[Site], bool]

TRUE: None = None
"""The entry for "the true derivative, by autograd itself": nothing is wrapped, nothing is recomputed."""

_NONE: Any = object()


@dataclass(frozen=True)
class RuleTable:
    """Primitive (and, before it, site predicate) -> rule. What is not in the table is an error, never a plain gradient.

    ``choices`` are tried first, in order; they see the whole site, so a rule may depend on the module path or the
    position: ``table.where(lambda site: site.module == "features.0", rule)``. ``kinds`` are tried last: what a primitive
    gets that was declared with :func:`backlit.capture.extend`.
    """

    name: str
    rules: Mapping[str, RuleLike | None]
    choices: tuple[tuple[Predicate, RuleLike | None], ...] = ()
    kinds: Mapping[Kind, RuleLike | None] = field(default_factory=dict)

    def rule_for(self, site: Site) -> tuple[str, Rule | None]:
        """Name and rule of a site.

        Raises:
            UnsupportedOp: If the table has no rule for it.
        """
        entry = self._entry(site)
        if entry is _NONE:
            raise UnsupportedOp(
                f"{site} has no rule in the table {self.name!r}. Give the method one, rules={{{site.primitive!r}: rule}}: a "
                "function rule(grad_output, inputs, output, call) that returns the inputs' gradients, or None for the true "
                "derivative."
            )
        rule = as_rule(entry)
        return rule_name(rule), rule

    def _entry(self, site: Site) -> Any:
        default = self.rules.get(site.primitive, self.kinds.get(site.kind, _NONE))
        return next((rule for matches, rule in self.choices if matches(site)), default)

    def but(self, rules: Mapping[str, RuleLike | None], name: str | None = None) -> Self:
        """The same table with other rules for some primitives."""
        return replace(self, name=name or self.name, rules={**self.rules, **rules})

    def over(self, rules: Mapping[str, RuleLike | None] | None) -> Self:
        """The same table with these rules by primitive before everything else."""
        choices = [(lambda site, p=p: site.primitive == p, rule) for p, rule in (rules or {}).items()]
        return replace(self, choices=(*choices, *self.choices))

    def where(self, matches: Predicate, rule: RuleLike | None) -> Self:
        """The same table with ``rule`` at the sites that match, before everything else."""
        return replace(self, choices=((matches, rule), *self.choices))

    def missing(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """The sites that the table has no rule for."""
        return tuple(s for s in sites if self._entry(s) is _NONE)


def rule_name(rule: Rule | None) -> str:
    """The name that coverage reports for a rule."""
    return "true" if rule is None else rule.name
