"""Rule tables: which rule each site gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from backlit._errors import UnsupportedOp
from backlit.capture import Rule, Site

Predicate = Callable[[Site], bool]

TRUE: None = None
"""The entry for "the true derivative, by autograd itself": nothing is wrapped, nothing is recomputed."""


@dataclass(frozen=True)
class RuleTable:
    """Primitive (and, before it, site predicate) -> rule. What is not in the table is an error, never a plain gradient.

    ``choices`` are tried first, in order; they see the whole site, so a rule may depend on the module path or the
    position: ``table.where(lambda site: site.module == "features.0", rule)``.
    """

    name: str
    rules: Mapping[str, Rule | None]
    choices: tuple[tuple[Predicate, Rule | None], ...] = ()

    def rule_for(self, site: Site) -> tuple[str, Rule | None]:
        """Name and rule of a site.

        Raises:
            UnsupportedOp: If the table has no rule for it.
        """
        for matches, rule in self.choices:
            if matches(site):
                return rule_name(rule), rule
        if site.primitive not in self.rules:
            raise UnsupportedOp(
                f"{site} has no rule in the table {self.name!r}. Give it one: table.but({{{site.primitive!r}: rule}}), or "
                "TRUE for its true derivative."
            )
        rule = self.rules[site.primitive]
        return rule_name(rule), rule

    def but(self, rules: Mapping[str, Rule | None], name: str | None = None) -> Self:
        """The same table with other rules for some primitives."""
        return replace(self, name=name or self.name, rules={**self.rules, **rules})

    def where(self, matches: Predicate, rule: Rule | None) -> Self:
        """The same table with ``rule`` at the sites that match, before everything else."""
        return replace(self, choices=((matches, rule), *self.choices))

    def missing(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """The sites that the table has no rule for."""
        return tuple(s for s in sites if s.primitive not in self.rules and not any(m(s) for m, _ in self.choices))


def rule_name(rule: Rule | None) -> str:
    """The name that coverage reports for a rule."""
    return "true" if rule is None else getattr(rule, "__name__", type(rule).__name__)
