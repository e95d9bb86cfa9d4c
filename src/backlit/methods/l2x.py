"""L2X: the cells of an image that say most of the network's output, picked by a network learned from data."""

from __future__ import annotations

import torch
from torch import Tensor

from backlit._forward import forward
from backlit.capture.refuse import check_output
from backlit.inverse.selector import Selector, SelectorOptions, chosen, fit_selector, spread
from backlit.methods.fitted import FittedMethod
from backlit.methods.job import Job, Maps


class L2X(FittedMethod[Selector]):
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
    fit_options = SelectorOptions
    learner = staticmethod(fit_selector)
    needs = "data to fit to"
    follows_target = False
    takes_rules = False
    traces = False

    @property
    def forward_passes(self) -> float:
        return 1.0

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
