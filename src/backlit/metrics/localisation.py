"""Where the relevance lies: against boxes, against the image's border, against the cells of a mosaic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from backlit._errors import InputError, check, check_whole, is_number
from backlit.methods.base import Method
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.examples import Examples, inside
from backlit.metrics.ranking import average_ranks

_FLAT = "maps of {} without positive relevance: scored as a constant map is"


class _OnBoxes(Metric):
    """A share or a hit (n,) against the boxes of the target.

    Attributes:
        largest: Images whose boxes cover this share or more are not scored: there, any map is right.
        one_box: Images with several boxes are not scored.
    """

    higher_is_better = True
    range = (0.0, 1.0)
    needs = ("boxes",)

    largest: float = 1.0
    one_box: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(is_number(self.largest) and 0 < self.largest <= 1, "largest", self.largest, "above 0 and at most 1")
        check(isinstance(self.one_box, bool), "one_box", self.one_box, "True or False")

    def measure(self, case: Case) -> Scores:
        examples = case.examples
        assert examples.boxes is not None
        height, width = examples.inputs.shape[-2:]
        device = examples.inputs.device
        boxes = list(examples.boxes)
        area = torch.stack([inside(b, height, width) for b in boxes])
        fits, counts = self._fitting(torch.tensor([len(b) for b in boxes], device=device), area)
        values = {}
        for name, heat in case.heat.items():
            score, flat = self.score(heat[:, 0].double(), area, boxes)
            values[name] = to_numbers(torch.where(fits, score, torch.nan))
            counts[_FLAT.format(name)] = flat
        return Scores(self, examples.names, values, counts=counts)

    def _fitting(self, boxes: Tensor, area: Tensor) -> tuple[Tensor, dict[str, int]]:
        """Find the images that the protocol scores (n,), and count those that it leaves out, by reason."""
        covered = area.flatten(1).double().mean(1)
        reasons = {
            "they have no box": boxes == 0,
            "they have several boxes": (boxes > 1) & self.one_box,
            f"the box covers {self.largest:.0%} of the image or more": (covered >= self.largest) & (self.largest < 1),
            "the box holds no pixel": covered == 0,
        }
        fits, counts = torch.ones_like(boxes, dtype=torch.bool), {}
        for reason, out in reasons.items():
            counts[f"images not scored: {reason}"] = int((fits & out).sum())
            fits &= ~out
        return fits, counts

    def score(self, heat: Tensor, area: Tensor, boxes: list[Tensor]) -> tuple[Tensor, int]:
        """Compute the score (n,) of heatmaps (n, h, w), and how many of them had nothing to score."""
        raise NotImplementedError


class PointingGame(_OnBoxes):
    """Pointing game (Zhang et al. 2018; LPR, Sec. 4.2): does the map's maximum lie in a box of the target?

    Attributes:
        tolerance: Pixels by which the maximum may miss the box.
    """

    name = "pointing_game"
    title = "Pointing game"
    summary = "share of images whose largest value lies in, or within 15 pixels of, a box of the target"
    source = "Zhang et al. 2018; LPR, Sec. 4.2"
    ties = "the share of the equal maxima that hit: what a random choice among them gives on average"

    tolerance: float = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(is_number(self.tolerance) and self.tolerance >= 0, "tolerance", self.tolerance, "at least 0")

    def score(self, heat: Tensor, area: Tensor, boxes: list[Tensor]) -> tuple[Tensor, int]:
        near = torch.stack([_near(b, heat.shape[1], heat.shape[2], self.tolerance) for b in boxes])
        top = heat == heat.amax((1, 2), keepdim=True)
        return (top & near).sum((1, 2)) / top.sum((1, 2)).double(), 0


class EnergyPointingGame(_OnBoxes):
    """Energy-based pointing game (Wang et al. 2020; TR-GBP, Eq. 11): the share of positive relevance inside the box.

    By default it scores the paper's choice of images: one box, under half of the image.
    """

    name = "energy_pointing_game"
    title = "Energy-based pointing game"
    summary = "share of the positive relevance that lies inside the target's box"
    source = "Wang et al. 2020; TR-GBP, Eq. 11, Appendix C"

    largest: float = 0.5
    one_box: bool = True

    def score(self, heat: Tensor, area: Tensor, boxes: list[Tensor]) -> tuple[Tensor, int]:
        return positive_share(heat, area)


class BoxAccuracy(_OnBoxes):
    """Box accuracy (MIP-IN, Sec. 6.3): of the n largest values, n the pixels in the box, the share inside it.

    By default it scores the paper's choice of images: boxes under a third of the image.
    """

    name = "box_accuracy"
    title = "Box accuracy"
    summary = "share inside the box of as many top pixels as the box has"
    source = "MIP-IN, Sec. 6.3"
    ties = "equal values at the cut count by the share of them that is inside: the average over all orders"

    largest: float = 0.33

    def score(self, heat: Tensor, area: Tensor, boxes: list[Tensor]) -> tuple[Tensor, int]:
        flat, within = heat.flatten(1), area.flatten(1)
        n = within.sum(1, keepdim=True)
        cut = flat.sort(1, descending=True).values.gather(1, (n - 1).clamp(min=0))
        above, equal = flat > cut, flat == cut
        wanted = (n - above.sum(1, keepdim=True)).double()  # of the equal ones
        share = (equal & within).sum(1, keepdim=True) / equal.sum(1, keepdim=True).double()
        hits = (above & within).sum(1, keepdim=True) + wanted * share
        return (hits / n)[:, 0], 0


class BoundaryDependence(Metric):
    """Intensity of boundary dependence, IBD (TR-GBP, Eq. 12): the share of positive relevance in a 16-pixel border.

    Attributes:
        border: Width of the border, pixels.
    """

    name = "ibd"
    title = "Boundary dependence (IBD)"
    summary = "share of the positive relevance in the image's border"
    source = "TR-GBP, Eq. 12"
    higher_is_better = False
    range = (0.0, 1.0)

    border: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("border", self.border)

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        super().check(network, examples, methods)
        border, side = self.border, min(examples.inputs.shape[-2:])
        if 2 * border >= side:
            raise InputError(
                f"border must be under half of the image's side ({side} pixels), but is {border}: nothing would be left "
                f"inside. Give {self.name} a smaller one, such as border={max(1, side // 14)}."
            )

    def measure(self, case: Case) -> Scores:
        border, images = self.border, case.examples.inputs
        area = torch.ones(1, *images.shape[-2:], dtype=torch.bool, device=images.device)
        area[:, border:-border, border:-border] = False
        shares = {name: positive_share(v[:, 0].double(), area.expand(len(v), -1, -1)) for name, v in case.heat.items()}
        return Scores(
            self,
            case.examples.names,
            {name: to_numbers(share) for name, (share, _) in shares.items()},
            groups=self.right(case),
            counts={_FLAT.format(name): flat for name, (_, flat) in shares.items()},
        )

    def right(self, case: Case) -> np.ndarray | None:
        """Tell whether the network predicts each target; not needed for the share alone."""
        return None


class BoundaryAUC(BoundaryDependence):
    """ROC AUC of IBD as a sign of a wrong prediction (TR-GBP, Sec. 5.4), on the half of the images with the largest IBD.

    An image's positive class is that the network is wrong, and its score the IBD; the same number is the AUC of -IBD for
    being right. The examples' target must be the ground truth; the maps are those of the prediction: where that looked.
    """

    name = "ibd_auc"
    title = "IBD as a sign of error"
    summary = "area under the ROC of IBD for wrong predictions, among the half of images with the largest IBD"
    source = "TR-GBP, Sec. 5.4, Table 2"
    higher_is_better = True
    explains = "prediction"

    @property
    def forward_passes(self) -> str:
        return "1 that all maps of an image share"

    def right(self, case: Case) -> np.ndarray:
        return to_numbers(case.explained == case.examples.target)

    def statistic(self, values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Compute the AUC of each sample (d, n) -> (d,): NaN, undefined, where the larger half is all right or all wrong.

        Images whose IBD equals that at the cut are all kept.
        """
        assert groups is not None
        share, right = torch.from_numpy(values), torch.from_numpy(groups) > 0.5
        half = (share.shape[1] + 1) // 2
        kept = share >= share.sort(1, descending=True).values[:, half - 1 : half]
        ranks = average_ranks(share.masked_fill(~kept, -torch.inf)) + 1 - (~kept).sum(1, keepdim=True)  # among the kept
        bad, good = (kept & ~right).sum(1).double(), (kept & right).sum(1).double()
        area = ((ranks * (kept & ~right)).sum(1) - bad * (bad + 1) / 2) / (bad * good)  # Mann and Whitney's U
        return area.numpy()

    def remarks(self, scores: Scores) -> tuple[str, ...]:
        assert scores.groups is not None
        if 0 < scores.groups.mean() < 1:
            return ()
        which = "right" if scores.groups.all() else "wrong"
        said = f"undefined: all {len(scores.groups)} predictions are {which}"
        return (f"{said}; it needs images with their ground truth as target, some of them predicted wrong",)


def positive_share(heat: Float[Tensor, "n h w"], area: Bool[Tensor, "n h w"]) -> tuple[Float[Tensor, " n"], int]:
    """Compute the share of the positive relevance that lies in the area, and the number of maps that have none.

    Such a map gets the area's own share: what a constant map gets, and a random one on average.
    """
    positive = heat.clamp(min=0)
    total = positive.sum((1, 2))
    share = (positive * area).sum((1, 2)) / total
    empty = total == 0
    return torch.where(empty, area.double().mean((1, 2)).to(share.dtype), share), int(empty.sum())


def _near(boxes: Tensor, height: int, width: int, tolerance: float) -> Tensor:
    """Mark the pixels whose centres are inside a box, or at most ``tolerance`` (if there is any) from one, bool (h, w)."""
    if tolerance == 0:
        return inside(boxes, height, width)
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    x0, y0, x1, y1 = (b[:, None] for b in boxes.unbind(1))
    across = torch.maximum(x0 - x, x - x1).clamp(min=0)
    down = torch.maximum(y0 - y, y - y1).clamp(min=0)
    return (torch.hypot(down[:, :, None], across[:, None, :]) <= tolerance).any(0)
