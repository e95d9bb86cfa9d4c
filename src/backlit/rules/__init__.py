"""Rules: formulas from the gradient of a site's output to the gradients of its inputs."""

from backlit.rules import presets
from backlit.rules.check import check_rule
from backlit.rules.table import TRUE, RuleTable

__all__ = ["TRUE", "RuleTable", "check_rule", "presets"]
