"""Named rule tables.

Each says what every primitive gets, so that an operation nobody thought of is an error. ``gradient`` is the true
gradient; guided back-propagation and deconvnet change the rectifiers (``RECTIFIERS``) and leave the rest true: the
papers define them for the ReLU, max-pools keep their switches, and a gate such as a sigmoid is no rectifier.
"""

from __future__ import annotations

from backlit.capture import PRIMITIVES, RECTIFIERS
from backlit.rules import activation
from backlit.rules.exact import exact as _exact
from backlit.rules.table import TRUE, RuleTable

gradient = RuleTable("gradient", dict.fromkeys((p.name for p in PRIMITIVES), TRUE))
exact = RuleTable("exact", {p.name: activation.derivative if p.kind == "activation" else _exact for p in PRIMITIVES})
guided = gradient.but(dict.fromkeys(RECTIFIERS, activation.guided), "guided")
deconvnet = gradient.but(dict.fromkeys(RECTIFIERS, activation.deconvnet), "deconvnet")

PRESETS: tuple[RuleTable, ...] = (gradient, exact, guided, deconvnet)
