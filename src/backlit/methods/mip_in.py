"""MIP-IN: a backward network, learned from data, that reconstructs the input from one logit."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from backlit._errors import InputError, check_word
from backlit._forward import of_image
from backlit.inverse import FitOptions, InverseNetwork, fit_inverse
from backlit.inverse.calls import Values
from backlit.inverse.chain import WayBack
from backlit.inverse.part import INPUT, InvertedPart, find_part
from backlit.inverse.regressions import Parameters
from backlit.inverse.signals import Who
from backlit.methods.base import Target
from backlit.methods.fitted import FittedMethod
from backlit.methods.images import enlarged
from backlit.methods.inputs import check_images, check_targets, pick
from backlit.methods.job import Job, Maps, activation_bytes
from backlit.methods.target import indices_of


class MIPIN(FittedMethod[InverseNetwork]):
    """MIP-IN (Jing et al. 2021): the attribution that a learned inverse network gives to the input for one logit.

    The map is A, the inverse network without its constants (Sec. 4.3), adapted to the image by the gates of its own forward
    pass (Eq. 9). ``parts`` hold the source signal S_0 ("source") and A without the gates ("global"). Where the inverted part
    begins at a feature map, all three are averaged over channels and enlarged, and A is rectified (Sec. 6.1.2).

    Attributes:
        rectify: Where the inverted part begins at a feature map: rectify "each" channel of A before the mean over channels,
            or the "mean" itself once it is enlarged, as Sec. 6.1.2 says. None: as the fit's ``reading``.
        fitted: What :meth:`fit` returned, or a file that it or ``backlit fit`` wrote.
    """

    reads_map = True
    name = "mip_in"
    title = "MIP-IN"
    kind = "signal"
    summary = "what a backward network learned from data reconstructs from the logit"
    answers = "Which part of the image holds what the network keeps of it for this class?"
    source = "Jing et al. 2021"
    artefact = "mip_in"
    fit_options = FitOptions
    learner = staticmethod(fit_inverse)
    takes_rules = False
    gives_source = True
    memory_factor = 8.0

    rectify: Literal["each", "mean"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("rectify", self.rectify, ("each", "mean"), none=True)

    def explain(self, job: Job) -> Maps:
        inputs = job.inputs
        part, values, fitted = self._prepared(inputs)
        targets = job.pick(values.output)
        who = self._who(targets)

        def back(*, bias: bool, gate: bool) -> tuple[Tensor, ...]:
            found = WayBack(part, values, fitted, who, bias=bias, gate=gate).run()
            none = (
                x.new_zeros(()).expand(targets.shape[1], *x.shape) for x in inputs
            )  # of an input that nothing reads
            return tuple(zeros if s is None else s for s, zeros in zip(found, none, strict=False))

        local, source, everywhere = (
            back(bias=False, gate=True),
            back(bias=True, gate=True),
            back(bias=False, gate=False),
        )
        if part.gated:
            sizes = [x.shape[-2:] for x in inputs]
            of_mean = (self.rectify or _RECTIFIED[self.learned.facts.get("reading", "means")]) == "mean"
            local, everywhere = (
                tuple(_enlarged(s, size).relu() if of_mean else _enlarged(s.relu(), size) for size in sizes)
                for (s,) in (local, everywhere)
            )
            source = tuple(_enlarged(source[0], size) for size in sizes)
        return Maps.of(
            local,
            values.output,
            targets,
            coverage=part.coverage(),
            activation_bytes=activation_bytes(part.calls.lean.trace, inputs[0]),
            parts={"source": source, "global": everywhere},
            notes={"start": part.start, "fitted": str(self.learned), **self._reading()},
        )

    @torch.no_grad()
    def signals(self, inputs: Tensor | tuple[Tensor, ...], target: Target = None) -> tuple[Tensor, Tensor]:
        """Source signal and attribution where the inverted part begins, (n, ...) each: S_0 and A, before any averaging.

        Arguments and errors are those of a call for a map.
        """
        inputs = check_images(inputs, self.network)
        targets = check_targets(indices_of(target, self.loaded), len(inputs[0]), several=False)
        part, values, fitted = self._prepared(inputs)
        who = self._who(pick(values.output, targets))
        source, attribution = (WayBack(part, values, fitted, who, bias=bias).run()[0] for bias in (True, False))
        assert source is not None
        assert attribution is not None
        return source[0], attribution[0]

    def _prepared(self, inputs: tuple[Tensor, ...]) -> tuple[InvertedPart, Values, dict[str, Parameters]]:
        self.learned.check_inputs(inputs)
        start = self.learned.facts["start"]
        with torch.no_grad():
            part = of_image(lambda some, _: find_part(self.network, some, start), inputs)
            values = part.values(self.network, inputs)
        fitted = self.parameters(inputs[0])
        missing = [name for name in part.regressions if name not in fitted]
        if missing:
            raise InputError(f"fitted lacks the layers {', '.join(missing)} of this network. Fit it again.")
        for name, regression in part.regressions.items():
            for key, shape in regression.shapes(len(self.learned.classes)).items():
                if key not in fitted[name] or fitted[name][key].shape != shape:
                    found = tuple(fitted[name][key].shape) if key in fitted[name] else "missing"
                    raise InputError(
                        f"fitted must hold a {key} of shape {tuple(shape)} for {name}, but it is {found}. Fit again."
                    )
        return part, values, dict(fitted)

    def _reading(self) -> dict[str, Any]:
        facts = self.learned.facts  # of a fit that is older than its readings: as they were then
        return {"reading": facts.get("reading", "means"), "without_effect": list(facts.get("without_effect", []))}

    def _who(self, targets: Tensor) -> Who:
        classes = torch.tensor(self.learned.classes, device=targets.device)
        return Who(self.places(targets).T, classes)


_RECTIFIED = {"means": "each", "paper": "mean"}
"""What each reading of a fit rectifies."""


def _enlarged(signal: Tensor, size: Any) -> Tensor:
    """The mean over channels of signals (t, n, c, h, w), bilinearly enlarged."""
    if signal.dim() != 5:
        raise InputError(
            f"fitted begins at a value of shape {tuple(signal.shape[2:])}, which is no feature map (c, h, w) and cannot be drawn. "
            "Use MIPIN.signals for the bare signals, or fit from a feature map."
        )
    return enlarged(signal.mean(2, keepdim=True), size)


__all__ = ["INPUT", "MIPIN"]
