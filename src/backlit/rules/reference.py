"""What the operations of a network read and give at DeepLIFT's reference, and whether it goes the same way there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import UnsupportedOp
from backlit.capture import Call, Site, Trace
from backlit.capture.record import record

Tensors = tuple[Tensor, ...]


class Reference:
    """What every operation that is not affine reads and gives at the reference.

    With ``layers`` those of weights, too, which reveal-cancel compares; with ``every`` all, for the audit. A mask that the
    network makes of its input by comparing, and lays on another signal, is a constant: at the reference, too, it is that
    of ``images``.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensors,
        *,
        images: Tensors | None = None,
        layers: bool = False,
        every: bool = False,
    ) -> None:
        masks = _masks(model, images) if images is not None and _masks(model, inputs) else {}
        self._values: dict[str, tuple[Site, Tensors, Any]] = {}

        def keep(call: Call, signals: Tensors, result: Any) -> Callable[..., Any]:
            if every or call.site.kind != "affine" or (layers and call.site.has("layer")):
                self._values[call.site.name] = (call.site, signals, result)
            return call.without_signals().run

        def held(call: Call) -> Call:
            if call.site.name not in masks:
                return call
            changed = replace(call, arguments={**call.arguments, **masks[call.site.name]})
            return replace(changed, spelled=lambda: _held_to(changed, call.signals))

        recording, self.output = record(model, inputs, keep, held)
        self.trace: Trace = recording.trace

    def of(self, call: Call) -> tuple[Tensors, Any]:
        """Inputs and output of the same call at the reference.

        Raises:
            UnsupportedOp: If the network took another way there.
        """
        site, inputs0, output0 = self._values.get(call.site.name, (None, (), None))
        if site is None or not _alike(site, call.site):
            raise _another_way(call.site, site)
        return inputs0, output0

    def check(self, trace: Trace) -> None:
        """Refuse a network that took another way at the reference than ``trace``, be it by affine operations alone.

        Raises:
            UnsupportedOp: With the first site that differs.
        """
        for site, site0 in zip_longest(trace, self.trace):
            if site is None or site0 is None or not _alike(site, site0):
                raise _another_way(site, site0)

    def changes(self, inputs: Tensors, output: Any, call: Call) -> tuple[Tensors, Tensor]:
        """Return what a call's inputs and output (of the last one, if others are joined to it) differ by from the reference."""
        inputs0, output0 = self.of(call)
        if call.joined:
            _, output0 = self.of(call.joined[-1])
        y, y0 = (output, output0) if isinstance(output, Tensor) else (output[0], output0[0])
        return tuple(x - x0 for x, x0 in zip(inputs, inputs0, strict=True)), y - y0


def _held_to(call: Call, signals: Tensors) -> Any:
    """Run a call under the mask of the images.

    Raises:
        UnsupportedOp: If it takes as many values as a mask chooses, and others were chosen at the reference.
    """
    try:
        return call.run(*signals)
    except (RuntimeError, IndexError) as error:
        raise UnsupportedOp(
            f"{call.site} writes as many values as a mask chooses of the image, and at the reference there are others, so the two "
            "cannot be compared. Write the choice elementwise: torch.where(mask, value, signal)."
        ) from error


def _masks(model: nn.Module, inputs: Tensors) -> dict[str, dict[str, Tensor]]:
    """The masks that affine calls lay on signals, by site and argument: tensors of zeros and ones, or of signs."""
    found: dict[str, dict[str, Tensor]] = {}

    def note(call: Call, signals: Tensors, result: Any) -> Callable[..., Any]:
        if call.primitive.has("masks"):
            given = {k: v for k, v in call.arguments.items() if isinstance(v, Tensor) and (k, None) not in call.places}
            masks = {
                k: v for k, v in given.items() if v.dtype == torch.bool or bool(torch.isin(2 * v, _HALVES.to(v)).all())
            }
            if masks:
                found[call.site.name] = masks
        return call.without_signals().run

    record(model, inputs, note)
    return found


_HALVES = torch.arange(-2, 3)


def _alike(site: Site, other: Site) -> bool:
    return (site.name, site.module, site.input_shapes) == (other.name, other.module, other.input_shapes)


def _another_way(site: Site | None, site0: Site | None) -> UnsupportedOp:
    where, instead = site or "the output", site0 or "none"
    return UnsupportedOp(
        f"{where} was not called alike for the reference (there: {instead}): the network's way depends on the values, so input "
        "and reference cannot be compared. Choose a reference for which the network takes the same way."
    )
