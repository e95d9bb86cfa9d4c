"""IDSDS: does the order of a map's cells foretell what the logit loses without each of them?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from backlit._errors import InputError, check_whole
from backlit.methods.base import Method
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.changed import Made, logit_of, run_changed, run_unchanged
from backlit.metrics.examples import Examples
from backlit.metrics.ranking import spearman


class SingleDeletion(Metric):
    """In-domain single deletion score, IDSDS (Hesse et al. 2024, Sec. 3): rank correlation of cells and what the logit loses.

    The image is cut into a grid. Each cell alone becomes zero in the network's own input, and the drop of the target's logit is
    compared with the cell's sum of the map. It is in-domain on a network that was trained on images without cells.

    Attributes:
        cells: Cells a side; 4 make 16 cells.
    """

    name = "idsds"
    title = "In-domain single deletion score (IDSDS)"
    summary = "rank correlation between the cells' sums of the map and the logit's drop without each cell"
    source = "Hesse et al. 2024, Sec. 3"
    higher_is_better = True
    range = (-1.0, 1.0)
    ties = "equal sums, and equal drops, share their mean rank"

    cells: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("cells", self.cells, low=2)

    @property
    def forward_passes(self) -> str:
        return f"0, and {self.cells**2 + 1} that all maps of an image share"

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        super().check(network, examples, methods)
        height, width = examples.inputs.shape[-2:]
        if min(height, width) < self.cells:
            raise InputError(
                f"cells must be at most {min(height, width)} for images of {height}x{width} pixels, but is {self.cells}. Use fewer."
            )

    def measure(self, case: Case) -> Scores:
        x = case.examples.inputs
        cell_of = cells_of(x.shape[-2], x.shape[-1], self.cells).to(x.device)
        drops = self._drops(case, cell_of)
        values, flat = {}, 0
        for name, heat in case.heat.items():
            # The sums of a constant map differ by rounding, which is no order.
            constant = heat.amax((1, 2, 3)) == heat.amin((1, 2, 3))
            sums = heat.new_zeros(len(x), self.cells**2, dtype=torch.float64)
            sums.index_add_(1, cell_of.flatten(), heat.flatten(1).double())
            values[name] = to_numbers(spearman(sums, drops).where(~constant, torch.nan))
            flat += int(constant.sum())
        unknown = ~drops.isfinite().all(1)
        counts = {
            "maps not scored: all pixels are equal": flat,
            "images not scored: the network's output is not finite": int(unknown.sum()),
            "images not scored: no cell changes the logit": int((~unknown & (drops == drops[:, :1]).all(1)).sum()),
        }
        return Scores(self, case.examples.names, values, counts=counts)

    def _drops(self, case: Case, cell_of: Tensor) -> Tensor:
        """Compute what the logit loses without each cell (n, cells), NaN where it is not finite."""
        examples, x = case.examples, case.examples.inputs
        many = self.cells**2

        def read(logits: Tensor, image: Tensor) -> Tensor:
            return logit_of(logits, case.explained[image])

        def without(jobs: slice) -> Made:
            job = torch.arange(jobs.start, jobs.stop, device=x.device)
            image = job // many
            return x[image] * (cell_of != (job % many).view(-1, 1, 1, 1)), image

        own = run_unchanged(case.network, examples, read, self.chunk)
        left = run_changed(case.network, examples, len(x) * many, without, read, self.chunk).view(-1, many)
        drops = own[:, None] - left
        return drops.where(drops.isfinite().all(1, keepdim=True), torch.nan)


def cells_of(height: int, width: int, cells: int) -> Int64[Tensor, "h w"]:
    """Number the cells of a grid and give each pixel its cell's; a side that is no multiple of ``cells`` is shared out evenly."""
    row, column = (torch.arange(side) * cells // side for side in (height, width))
    return row[:, None] * cells + column
