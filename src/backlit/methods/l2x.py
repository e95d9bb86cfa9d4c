"""L2X: the cells of an image that say most of the network's output, picked by a network learned from data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from backlit._forward import forward
from backlit.capture.refuse import check_output
from backlit.inverse import FitStep
from backlit.inverse.data import Data
from backlit.inverse.selector import Selector, SelectorOptions, chosen, fit_selector, spread
from backlit.methods.fitted import FittedMethod, check_fit
from backlit.methods.job import Job, Maps
from backlit.methods.named import Named
from backlit.methods.steps import told_of_fit


class L2X(FittedMethod):
    """L2X (Chen et al. 2018): the probability of each cell of a grid to be among those that say most of the output.

    The explainer was learned to pick k cells from which another network predicts the output best, for all classes at once: the
    map is the same for all targets, and a contrast of two of them is zero. ``parts["mask_picked"]`` is 1 in the k most likely
    cells. It takes one small forward pass, beside the network's own.

    Attributes:
        fitted: What :meth:`fit` returned, or a file that it or ``backlit fit`` wrote.
    """

    name = "l2x"
    title = "L2X"
    kind = "one-sided"
    summary = "cells that say most of the output, picked by a network learned from data"
    source = "Chen et al. 2018"
    answers = "Which cells of the image, seen alone, tell most of the network's output?"
    artefact = "l2x"
    needs = "data to fit to"
    follows_target = False
    takes_rules = False
    traces = False

    @property
    def forward_passes(self) -> float:
        return 1.0

    @classmethod
    def fit(
        cls,
        model: nn.Module | Named,
        data: Data,
        *,
        out: str | Path | None = None,
        description: str = "",
        progress: Callable[[FitStep], None] | bool = False,
        **options: int | float,
    ) -> Selector:
        """Learn the explainer; see :class:`backlit.inverse.selector.SelectorOptions` for the options.

        ``progress`` is called after each batch; True says on the error stream how far it is.
        """
        network = check_fit(model, options, [f.name for f in fields(SelectorOptions)])
        made = SelectorOptions(**options)  # type: ignore[arg-type]
        with told_of_fit(cls.title, progress) as tell:
            return fit_selector(network, data, out=out, description=description, progress=tell, options=made)

    @torch.no_grad()
    def explain(self, job: Job) -> Maps:
        (x,) = job.inputs
        self.learned.check_inputs(job.inputs)
        output = forward(self.network, x)
        check_output(output, len(job))
        targets = job.pick(output)
        chances, best = chosen(self.learned, self.parameters(x), x)

        def maps(cells: Tensor) -> tuple[Tensor, ...]:
            return (spread(cells, x).expand(targets.shape[1], -1, -1, -1, -1).clone(),)

        notes = {"fitted": str(self.learned), "agreement": self.learned.facts["agreement"]}
        return Maps.of_outputs(output, maps(chances), targets, job, parts={"mask_picked": maps(best)}, notes=notes)
