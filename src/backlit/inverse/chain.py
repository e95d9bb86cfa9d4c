"""The way back: from the logits' own values down to the start, one inverse after the other (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from backlit.inverse import table
from backlit.inverse.calls import Values
from backlit.inverse.part import InvertedPart, StepBack
from backlit.inverse.regressions import Parameters
from backlit.inverse.signals import Who

Learn = Callable[[StepBack, Sequence[Tensor], Sequence[Tensor]], None]
"""``learn(step, signals, targets)``: hear of a regression that has its signals but no parameters yet."""


@dataclass
class WayBack:
    """A walk from the logits of the classes in ``who`` down to the start's values.

    Attributes:
        part: The inverted part.
        values: A forward pass of it.
        fitted: Parameters of its regressions, by name.
        who: The class of each signal.
        bias: The source signal S_0; without it, the attribution A, whose inverses have no constants (Sec. 4.3).
        gate: Let pass only what was active in the forward pass (Eq. 9): local; without it, global.
        learn: Hears of the regressions that are not in ``fitted``, whose results are then missing (None).
        reconstructed: The reconstructions of the values that were reached, by slot.
        waiting: The slots whose values wait for a regression that is still to be learned.
    """

    part: InvertedPart
    values: Values
    fitted: Mapping[str, Parameters]
    who: Who
    bias: bool = True
    gate: bool = True
    learn: Learn = lambda step, signals, targets: None
    reconstructed: dict[int, list[Tensor]] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)

    def run(self) -> tuple[Tensor | None, ...]:
        """Return the reconstructions (k, n, ...) of the start's values."""
        self.reconstructed[self.part.output] = [self.values.output[None]]
        for step in self.part.steps:
            self._take(step)
        return tuple(None if slot in self.waiting else self._signal(slot) for slot in self.part.starts)

    def _take(self, step: StepBack) -> None:
        results = None if self.waiting.intersection(step.outputs) else self._inverted(step)
        for slot in step.outputs:
            self.reconstructed.pop(slot, None)
        if results is None:
            self.waiting.update(self.part.inside.intersection(step.sources))
            return
        for slot, result in zip(step.sources, results, strict=True):
            if slot in self.part.inside:
                self.reconstructed.setdefault(slot, []).append(result)

    def _signal(self, slot: int) -> Tensor | None:
        """Return the reconstruction of a value, gated; None if nothing that was inverted reads the value."""
        if slot not in self.reconstructed:
            return None
        (signal,) = self.reconstructed[slot]
        if not self.gate or slot in self.part.ungated:
            return signal
        return signal * (self.values.slots[slot] != 0).to(signal.dtype)  # a product with a bool takes far longer

    def _inverted(self, step: StepBack) -> list[Tensor] | None:
        values = [self.values.slots[slot] for slot in step.sources]
        if step.call is None:
            return self._regressed(step, self.reconstructed[step.sources[0]], values)
        signals = [self._signal(slot) for slot in step.outputs]
        if step.regression is None:
            return table.CLOSED[step.call.primitive.name](self.values.calls[step.name], values, signals, self.bias)
        (signal,) = (s for s in signals if s is not None)
        given = self.who.channels(signal, self.part.channels) if step.diagonal else signal
        return self._regressed(step, [given], values)

    def _regressed(self, step: StepBack, signals: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor] | None:
        assert step.regression is not None
        if step.name in self.fitted:
            return step.regression.apply(self.fitted[step.name], signals, self.who, bias=self.bias)
        self.learn(step, signals, values)
        return None
