"""RISE: the mean score of randomly masked images, weighted by the masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import check, check_whole, is_number
from backlit._random import stable_seed
from backlit.methods.account import wide
from backlit.methods.axes import ROWS
from backlit.methods.copies import Score
from backlit.methods.images import baselines_of
from backlit.methods.job import Job, Maps
from backlit.methods.passes import Replacing

_AT_ONCE = 2**22  # numbers of the masks that are summed at once: 16 MiB in float32


@dataclass(frozen=True, eq=False)
class RandomMasks:
    """A set of random masks of one size, each made when it is asked for.

    A mask is a grid of ``cells`` x ``cells`` zeros and ones, enlarged bilinearly to one cell more than the image on each side
    and cut out at a random place within a cell. Enlarging and cutting are one matrix for the rows and one for the columns.

    Attributes:
        grids: The grids (masks, cells, cells), zeros and ones.
        shifts: Where each is cut out, (masks, 2) pixels.
        rows: For each shift, how much a row of the mask has of each row of the grid: (shifts, h, cells).
        columns: The same of columns, (shifts, w, cells).
    """

    grids: Tensor
    shifts: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def drawn(cls, masks: int, cells: int, p: float, seed: int, x: Tensor) -> RandomMasks:
        """Draw the grids and shifts for images x (n, c, h, w), by a generator on the CPU: they are the same on every device."""
        sides = tuple(x.shape[-2:])
        generator = torch.Generator().manual_seed(stable_seed("rise", seed, masks, cells, p, *sides))
        grids = torch.rand(masks, cells, cells, generator=generator) < p
        sizes = torch.tensor([-(-side // cells) for side in sides])
        shifts = (torch.rand(masks, 2, generator=generator, dtype=torch.float64) * sizes).long()
        dtype = wide(x[:0]).dtype
        rows, columns = (_enlarging(side, cells).to(x.device, dtype) for side in sides)
        return cls(grids.to(x.device, dtype), shifts.to(x.device), rows, columns)

    def __len__(self) -> int:
        return len(self.grids)

    def of(self, block: slice) -> Tensor:
        """Return masks ``block``, (v, h, w) from 0 to 1."""
        down, across = self.shifts[block].unbind(1)
        return self.rows[down] @ self.grids[block] @ self.columns[across].mT

    def moments(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means over the masks of score times mask, and of its square, (t, n, h, w) each, of scores (t, masks, n)."""
        t, count, n = scores.shape
        weights = scores.transpose(1, 2).flatten(0, 1)  # (t * n, masks)
        h, w = self.rows.shape[1], self.columns.shape[1]
        size = max(1, _AT_ONCE // (h * w))
        first = second = weights.new_zeros(t * n, h * w)
        for start in range(0, count, size):
            block = slice(start, min(start + size, count))
            masks = self.of(block).to(weights).flatten(1)
            first = first + weights[:, block] @ masks
            second = second + weights[:, block].square() @ masks.square()
        return (first / count).view(t, n, h, w), (second / count).view(t, n, h, w)


def _enlarging(side: int, cells: int) -> Tensor:
    """Return the rows of ``side`` pixels cut from an enlarged grid, at each shift below a cell's size: (shifts, side, cells)."""
    size = -(-side // cells)
    one = torch.eye(cells, dtype=torch.float64)[None]
    enlarged = F.interpolate(one, (cells + 1) * size, mode="linear", align_corners=False)[0]
    return enlarged.unfold(1, side, 1)[:, :size].permute(1, 2, 0)


class RISE(Replacing):
    """RISE (Petsiuk et al. 2018, Eq. 6): sum of score times mask over the masks, over their number and p.

    The map has one channel: the mean score of the masked images in which the pixel is seen. All images share the masks.
    ``parts["error"]`` is the standard error of each pixel's mean that comes from the number of masks.

    Attributes:
        masks: Number of masks: 8,000, as the paper has for ResNet-50; it has 4,000 for VGG16.
        cells: Cells a side of a mask before it is enlarged.
        p: Probability that a cell is seen.
        score: What is read from the network's output: the target's "probability", as in the paper, or its "logit". A
            network of one output has no probability: its score is taken as it is.
    """

    axes = ROWS
    name = "rise"
    title = "RISE"
    kind = "one-sided"
    summary = "mean score of randomly masked images in which the pixel is seen"
    source = "Petsiuk et al. 2018"
    answers = "How high is the score, on average, when this pixel is seen and half of the image is hidden?"

    masks: int = 8000
    cells: int = 7
    p: float = 0.5
    score: Score = "probability"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("masks", self.masks, high=10_000_000)
        check_whole("cells", self.cells, high=1000)
        check(is_number(self.p) and 0 < self.p < 1, "p", self.p, "a number between 0 and 1, both excluded")

    @property
    def forward_passes(self) -> float:
        return 1.0 + self.masks

    def explain(self, job: Job) -> Maps:
        inputs = job.inputs
        output, targets = self.clean(job)
        baselines = baselines_of(job, self.baseline)
        masks = [RandomMasks.drawn(self.masks, self.cells, self.p, self.seed, x) for x in inputs]

        def alter(i: int, block: slice) -> Tensor:
            return torch.lerp(baselines[i], inputs[i], masks[i].of(block)[:, None, None].to(inputs[i]))

        scores = self.scores(job, targets, [len(m) for m in masks], alter)
        means = [m.moments(s) for m, s in zip(masks, scores, strict=True)]
        values = tuple((mean / self.p)[:, :, None].to(x) for (mean, _), x in zip(means, inputs, strict=True))
        error = tuple(self._error(*both)[:, :, None].to(x) for both, x in zip(means, inputs, strict=True))
        return Maps.of_outputs(output, values, targets, job, parts={"error": error})

    def _error(self, mean: Tensor, square: Tensor) -> Tensor:
        """Return the standard error of a mean over the masks, over p; one mask tells none."""
        variance = (square - mean.square()).clamp(min=0) / max(1, self.masks - 1)
        return variance.sqrt() / self.p
