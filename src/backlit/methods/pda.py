"""PDA: how the evidence for a class changes when a window is drawn anew, given what is around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backlit._errors import InputError, check_whole
from backlit._random import stable_seed
from backlit.inverse.gaussians import KIND, GaussianOptions, PatchGaussians, fit_gaussians
from backlit.methods.account import wide
from backlit.methods.copies import target_scores
from backlit.methods.fitted import FittedMethod
from backlit.methods.job import Job, Maps
from backlit.methods.passes import ForwardOnly
from backlit.methods.windows import Windows, whole_windows

_RIDGE = 1e-6  # of the mean variance, on the covariance's diagonal: patches with constant pixels have none


@dataclass(frozen=True, eq=False)
class Conditional:
    """The windows of an image, and the Gaussian of each, given the patch around it.

    A window stands in the middle of its patch, or elsewhere in it near the image's border; ``kinds`` says which of the k
    places that is.

    Attributes:
        windows: The windows.
        inside: Each window's pixels, as indices into h * w, (windows, w * w).
        around: Each patch's pixels, (windows, q * q).
        kinds: Each window's place in its patch, (windows,).
        slopes: What a patch's pixels add to the window's mean, 0 for those inside: (k, c, w * w, q * q).
        roots: Triangular roots of the window's covariances, (k, c, w * w, w * w).
        means: The windows' own means, (k, c, w * w), and the patches', (c, q * q).
        bounds: Lowest and highest value of each pixel in the data, (c, h * w) each.
    """

    windows: Windows
    inside: Tensor
    around: Tensor
    kinds: Tensor
    slopes: Tensor
    roots: Tensor
    means: tuple[Tensor, Tensor]
    bounds: tuple[Tensor, Tensor]

    def drawn(self, x: Tensor, number: Tensor, noise: Tensor) -> Tensor:
        """Return copies (v, n, c, h, w) of images with windows ``number`` (v,) drawn anew by normal noise (v, c, w * w)."""
        kind, inside = self.kinds[number], self.inside[number]
        flat = wide(x).flatten(2)
        away = flat[:, :, self.around[number]] - self.means[1][:, None]  # (n, c, v, q * q)
        centre = self.means[0][kind][:, None] + torch.einsum("vcwq,ncvq->vncw", self.slopes[kind], away)
        values = centre + (self.roots[kind] @ noise[..., None])[:, None, ..., 0]
        low, high = (bound[:, inside].transpose(0, 1)[:, None] for bound in self.bounds)
        values = torch.maximum(torch.minimum(values, high), low).to(x)
        copies = x.flatten(2).expand(len(number), *x.shape[:2], -1).clone()
        copies.scatter_(3, inside[:, None, None].expand_as(values), values)
        return copies.unflatten(3, x.shape[-2:])


def conditional(gaussian: dict[str, Tensor], window: int, padding: int, stride: int, x: Tensor) -> Conditional:
    """Condition the Gaussian of patches on what is around each window of images x (n, c, h, w); in float64.

    Args:
        gaussian: "mean" (c, q * q), "covariance" (c, q * q, q * q), "low" and "high" (c, h, w).
        window: Pixels a side of a window.
        padding: Pixels around it; q is the window and both paddings.
        stride: Pixels between windows.
        x: Images.
    """
    (h, w), side = (x.shape[-2], x.shape[-1]), window + 2 * padding
    windows, rows, columns = whole_windows((h, w), window, stride, x)
    top, left = ((f - padding).clamp(min=0, max=s - side) for f, s in ((rows, h), (columns, w)))
    down, across = rows - top, columns - left
    places, kinds = (down[:, None] * side + across).flatten().unique(return_inverse=True)
    like = wide(x[:0])
    each = [_conditioned(gaussian, int(place) // side, int(place) % side, window, side) for place in places.cpu()]
    means, slopes, roots = (torch.stack(parts).to(like) for parts in zip(*each, strict=True))
    bounds = gaussian["low"].flatten(1).to(like), gaussian["high"].flatten(1).to(like)
    inside, around = _pixels(rows, columns, window, w), _pixels(top, left, side, w)
    return Conditional(windows, inside, around, kinds, slopes, roots, (means, gaussian["mean"].to(like)), bounds)


def _pixels(rows: Tensor, columns: Tensor, side: int, width: int) -> Tensor:
    """Return the indices of the pixels of squares that start at rows x columns, (squares, side * side)."""
    step = torch.arange(side, device=rows.device)
    down, across = (rows[:, None] + step) * width, columns[:, None] + step
    return (down[:, None, :, None] + across[None, :, None, :]).flatten(2).flatten(0, 1)


def _conditioned(
    gaussian: dict[str, Tensor], row: int, column: int, window: int, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, slopes and root of a window that starts at this row and column of its patch, for each channel."""
    mean, covariance = gaussian["mean"].double(), gaussian["covariance"].double()
    hidden = torch.zeros(side, side, dtype=torch.bool)
    hidden[row : row + window, column : column + window] = True
    hidden = hidden.flatten()
    size = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    covariance = covariance + (_RIDGE * size + torch.finfo(torch.float32).tiny) * torch.eye(
        side**2, dtype=torch.float64
    )
    own, cross = covariance[:, hidden][:, :, hidden], covariance[:, hidden][:, :, ~hidden]
    given = torch.linalg.solve(covariance[:, ~hidden][:, :, ~hidden], cross.mT).mT
    slopes = torch.zeros(len(mean), int(hidden.sum()), side**2, dtype=torch.float64)
    slopes[:, :, ~hidden] = given
    return mean[:, hidden], slopes, torch.linalg.cholesky(own - given @ cross.mT)


class PDA(ForwardOnly, FittedMethod[PatchGaussians]):
    """Prediction difference analysis (Zintgraf et al. 2017, Sec. 3): the weight of evidence of each window of pixels.

    A window is drawn anew several times from a Gaussian, fitted to patches of data, given the pixels around it. The map, one
    channel, is the mean over the windows that cover a pixel of log2 odds(p) - log2 odds(mean p'), p the class' probability
    for the image and p' for the draws: above 0 where the window speaks for the class. All images share the draws.

    Attributes:
        window: Pixels a side of the window; None for what was fitted, and it must be that.
        stride: Pixels between two windows: 1 in the authors' code. A larger one costs less by its square.
        samples: Draws of each window.
        examples: N of the Laplace correction, (p N + 1) / (N + classes), which keeps the odds finite: 100,000 in the
            authors' code.
        fitted: What :meth:`fit` returned, or a file that it or ``backlit fit`` wrote.
    """

    name = "pda"
    title = "PDA"
    summary = "change of the evidence when a window is drawn anew, given what is around it"
    source = "Zintgraf et al. 2017"
    answers = "How much evidence for the class does this pixel's neighbourhood hold that its surroundings do not?"
    needs = "forward passes alone; data to fit to"
    artefact = KIND
    fit_options = GaussianOptions
    learner = staticmethod(fit_gaussians)

    window: int | None = None
    stride: int = 1
    samples: int = 10
    examples: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("window", self.window, none=True)
        check_whole("stride", self.stride)
        check_whole("samples", self.samples, high=1_000_000)
        check_whole("examples", self.examples)
        if self.fitted is not None:
            self._check_window(int(self.learned.facts["window"]))

    def _check_window(self, fitted: int) -> None:
        if self.window is not None and self.window != fitted:
            raise InputError(
                f"window must be {fitted}, for which the Gaussian was fitted, but is {self.window}. Leave it out, or fit again: "
                f"PDA.fit(model, data, window={self.window}), or `backlit fit --method pda --window {self.window}`."
            )
        if self.stride > fitted:
            raise InputError(
                f"stride must be at most the window, {fitted} pixels, so that every pixel is covered, but is {self.stride}. Use a "
                "smaller stride, or fit a larger window."
            )

    @property
    def forward_passes(self) -> float:
        window = self.window or (10 if self.fitted is None else int(self.learned.facts["window"]))
        return 1.0 + self.samples * (-(-(224 - window) // self.stride) + 1) ** 2

    def explain(self, job: Job) -> Maps:
        inputs, facts = job.inputs, self.learned.facts
        self.learned.check_inputs(inputs)
        output, targets = self.clean(job)
        if output.shape[1] < 2:
            raise InputError(
                "model must have an output for each of several classes, for PDA compares probabilities, but has one output. Give "
                "it two, torch.cat([-y, y], 1) / 2, or use Occlusion."
            )
        sizes = int(facts["window"]), int(facts["padding"]), self.stride
        given = [conditional(dict(self.learned.layers[f"input {i}"]), *sizes, x) for i, x in enumerate(inputs)]

        def alter(i: int, block: slice) -> Tensor:
            number = torch.arange(block.start, block.stop, device=inputs[i].device) // self.samples
            return given[i].drawn(inputs[i], number, self._noise(given[i], block))

        counts = [len(c.windows) * self.samples for c in given]
        scores = self.copies_scores(job, targets, counts, alter, "probability")
        own = self._log_odds(wide(target_scores(output, targets, "probability")), output.shape[1])
        values = []
        for c, s, x in zip(given, scores, inputs, strict=True):
            mean = s.unflatten(1, (-1, self.samples)).mean(2)
            values.append(c.windows.mean(own - self._log_odds(mean, output.shape[1]))[:, :, None].to(x))
        return Maps.of_outputs(output, tuple(values), targets, job, notes={"fitted": str(self.learned)})

    def _log_odds(self, p: Tensor, classes: int) -> Tensor:
        """Return log2 of the odds of probabilities, corrected after Laplace for N examples (Sec. 3)."""
        p = (p * self.examples + 1) / (self.examples + classes)
        return (p / (1 - p)).log2()

    def _noise(self, c: Conditional, block: slice) -> Tensor:
        """Return the standard normal draws of copies ``block``, (v, c, w * w): each window's follow from its number alone."""
        first, last = block.start // self.samples, (block.stop - 1) // self.samples
        shape = (self.samples, *c.roots.shape[1:3])
        draws = []
        for number in range(first, last + 1):  # NumPy's: torch draws while the network runs are taken for the network's
            generator = np.random.default_rng(stable_seed("pda", self.seed, number))
            draws.append(torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)))
        start = block.start - first * self.samples
        return torch.cat(draws)[start : start + block.stop - block.start].to(c.roots)
