"""The way back: from the logits' own values down to the start, one inverse after the other (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from backlit.inverse import table
from backlit.inverse.part import Part, Step, Values
from backlit.inverse.regressions import Parameters, Regression
from backlit.inverse.signals import Who

Learn = Callable[[str, Regression, Sequence[Tensor], Sequence[Tensor]], None]
"""``learn(name, regression, signals, targets)``: hear of a regression that has its signals but no parameters yet."""


def go_back(
    part: Part,
    values: Values,
    fitted: Mapping[str, Parameters],
    who: Who,
    *,
    bias: bool = True,
    gate: bool = True,
    learn: Learn | None = None,
) -> tuple[Tensor | None, ...]:
    """The reconstructions (k, n, ...) of the start's values from the logits of the classes in ``who``.

    Args:
        part: The inverted part.
        values: A forward pass of it.
        fitted: Parameters of its regressions, by name.
        who: The class of each signal.
        bias: The source signal S_0; without it, the attribution A, whose inverses have no constants (Sec. 4.3).
        gate: Let pass only what was active in the forward pass (Eq. 9): local; without it, global.
        learn: Hears of the regressions that are not in ``fitted``, whose results are then missing (None).
    """
    back = _Back(part, values, fitted, who, bias, gate, learn)
    return tuple(back.run())


class _Back:
    def __init__(
        self,
        part: Part,
        values: Values,
        fitted: Mapping[str, Parameters],
        who: Who,
        bias: bool,
        gate: bool,
        learn: Learn | None,
    ) -> None:
        self._part, self._values, self._fitted, self._who = part, values, fitted, who
        self._bias, self._gate, self._learn = bias, gate, learn
        self._found: dict[int, list[Tensor | None]] = {part.output: [values.output[None]]}

    def run(self) -> list[Tensor | None]:
        for step in self._part.steps:
            signals = [self._signal(slot) if slot in self._found else None for slot in step.outputs]
            blocked = any(s is None and slot in self._found for s, slot in zip(signals, step.outputs, strict=True))
            results = [None] * len(step.sources) if blocked else self._inverted(step, signals)
            for slot, inside, result in zip(step.sources, step.inside, results, strict=True):
                if inside:
                    self._found.setdefault(slot, []).append(result)
            for slot in step.outputs:
                self._found.pop(slot, None)
        return [self._signal(slot) if slot in self._found else None for slot in self._part.starts]

    def _signal(self, slot: int) -> Tensor | None:
        """The one reconstruction of a value, gated; None if something above it is still to be learned."""
        found = [s for s in self._found[slot] if s is not None]
        if len(found) < len(self._found[slot]):
            return None
        if slot in self._part.joins:
            join = self._part.joins[slot]
            joined = self._learned(join.name, join.regression, found, [self._values.slots[slot]])
            if joined is None:
                return None
            found = joined
        (signal,) = found
        if not self._gate or slot in self._part.ungated:
            return signal
        return signal * (self._values.slots[slot] != 0).to(signal.dtype)  # a product with a bool takes far longer

    def _inverted(self, step: Step, signals: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        name, call = step.call.primitive.name, self._values.calls[step.name]
        values = [self._values.slots[slot] for slot in step.sources]
        if step.regression is not None:
            given = [s for s in signals if s is not None]
            if step.diagonal:
                given = [self._who.channels(s, self._part.channels) for s in given]
            found = self._learned(step.name, step.regression, given, values)
            return [None] * len(step.sources) if found is None else found
        if name in table.MOVES:
            return self._part.move(step, self._values)(signals)
        return table.CLOSED[name](call, values, signals, self._bias)

    def _learned(
        self, name: str, regression: Regression, signals: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> list[Tensor] | None:
        if name in self._fitted:
            return regression.apply(self._fitted[name], signals, self._who, bias=self._bias)
        if self._learn is not None:
            self._learn(name, regression, signals, targets)
        return None
