"""Masks that are searched for: the smallest blur that takes the class away, the best view of a given area."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import MOST_PIXELS, check, check_positive, check_whole, check_word, is_number
from backlit._random import stable_seed
from backlit.methods.account import wide
from backlit.methods.copies import Score, in_blocks
from backlit.methods.images import Baseline, baselines_of, blurred, check_baseline
from backlit.methods.job import Job, Maps
from backlit.methods.searching import MaskSearch, Outcome, Search
from backlit.methods.smooth_masks import SmoothMasks, area_loss, blurred_by, pyramid

_RADII = (
    35  # discs that are tried, the largest reaching over three quarters of the shorter side: 0 to 170 of 224 pixels
)
_DISC = 5 / 224  # between two radii, as a share of the shorter side
_EDGE = 10 / 224  # standard deviation of a disc's edge
_LEFT = 0.01  # share of the score that the first disc may leave
_GROWTH = 1.0035  # of the area's weight, with each step
_TINY = 1e-10  # below which a squared slope counts as this: its root has a derivative there


class MeaningfulPerturbation(MaskSearch):
    """Meaningful perturbations (Fong and Vedaldi 2017, Eq. 3 and Sec. 4): the smallest blur that takes the class away.

    The map, one channel, is one minus the mask: 1 where the image must be hidden. The loss is the target's score, plus ``l1``
    times the sum of one minus the mask, plus ``tv`` times the sum of the length of its gradient to the power of ``beta``, over
    the mask's cells. ``completeness`` tells the score that is left under the mask ("left") and the share of the image that
    it hides ("area").

    Attributes:
        score: What is to fall: the target's "probability", as in the authors' code, or its "logit". A network of one
            output has no probability: its score is taken as it is.
        baseline: What stands where the mask hides the image: "blur" (a Gaussian of 10 pixels, as in the paper), "zero",
            "mean", a tensor for all images (c, h, w) or for each (n, c, h, w), a tuple of tensors for several inputs, or a
            function from images to baselines.
        cells: Cells a side of the mask; on smaller images as many as pixels.
        l1: Weight of the hidden area, a sum over cells.
        tv: Weight of the total variation, a sum over cells.
        beta: Power of the total variation.
        smoothing: Standard deviation of the Gaussian that the enlarged mask is blurred by, as a share of the image's
            shorter side; 5 of 224 pixels. 0: none.
        jitter: Number of pixels by which the image is moved at random under the mask, down and across; 1: none.
        start: The mask to start from: "circle", the smallest disc in the middle that takes 99 % of the score away, or
            "ones", nothing hidden.
    """

    name = "meaningful_perturbation"
    title = "Meaningful perturbation"
    summary = "smallest smooth mask that takes the class away"
    source = "Fong and Vedaldi 2017"
    answers = "Which is the smallest region that must be blurred for the class to vanish?"

    score: Score = "probability"
    baseline: Baseline = "blur"
    cells: int = 28
    l1: float = 1e-4
    tv: float = 1e-2
    beta: float = 3.0
    smoothing: float = 5 / 224
    jitter: int = 4
    start: Literal["circle", "ones"] = "circle"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline("baseline", self.baseline)
        check_whole("cells", self.cells, high=1000)
        for name in ("l1", "tv"):
            value = getattr(self, name)
            check(is_number(value) and value >= 0, name, value, "a number from 0 on")
        smoothing = self.smoothing
        check(is_number(smoothing) and 0 <= smoothing <= 1, "smoothing", smoothing, "a share of the side, from 0 to 1")
        check_positive("beta", self.beta)
        check_whole("jitter", self.jitter, high=1000)
        check_word("start", self.start, ("circle", "ones"))

    @property
    def forward_passes(self) -> float:
        return 2.0 + 3.0 * self.steps + _RADII * (self.start == "circle")

    def search(self, job: Job, i: int, targets: Tensor, block: slice) -> Search:
        """Begin the search for input i's masks."""
        x, base = job.inputs[i], baselines_of(job, self.baseline)[i]
        size = x.shape[-2:]
        shape = tuple(min(self.cells, side) for side in size)
        grids = torch.ones(*targets.shape, *shape, dtype=wide(x[:0]).dtype, device=x.device)
        if self.start == "circle":
            discs = self._discs(job, i, base, targets)
            grids = F.interpolate(discs.to(grids), shape, mode="nearest-exact")
        generator = torch.Generator().manual_seed(stable_seed("meaningful_perturbation", self.seed))
        moves = torch.randint(self.jitter, (self.steps, 2), generator=generator).tolist()
        before = (self.jitter - 1) // 2
        after = self.jitter - 1 - before
        wider = [F.pad(image, (before, after, before, after), mode="replicate") for image in (x, base)]

        def altered(masks: Tensor, step: int) -> Tensor:
            down, across = moves[step] if step >= 0 else (before, before)
            seen, hidden = (image[..., down : down + size[0], across : across + size[1]] for image in wider)
            return torch.lerp(hidden, seen, masks[:, :, None].to(x))

        return Search(grids, self._masks(size), altered, self._penalties, torch.optim.Adam([grids], lr=self.lr))

    def _masks(self, size: torch.Size) -> Callable[[Tensor], Tensor]:
        """Return what makes masks (v, n, h, w) of grids: enlarged cell by cell, and blurred."""
        sigma = self.smoothing * min(size)

        def enlarged(grids: Tensor) -> Tensor:
            masks = F.interpolate(grids, size, mode="nearest-exact")
            return blurred(masks, sigma) if sigma > 0 else masks

        return enlarged

    def _penalties(self, grids: Tensor, masks: Tensor, step: int) -> dict[str, Tensor]:
        """Return the weighted terms of Eq. 3 and of the total variation, (v, n) each."""
        down = F.pad(grids.diff(dim=2), (0, 0, 0, 1))
        across = F.pad(grids.diff(dim=3), (0, 1))
        slopes = (down.square() + across.square()).clamp(min=_TINY)
        return {
            "l1": self.l1 * (1 - grids).abs().sum((2, 3)),
            "tv": self.tv * slopes.pow(self.beta / 2).sum((2, 3)),
        }

    @torch.no_grad()
    def _discs(self, job: Job, i: int, base: Tensor, targets: Tensor) -> Tensor:
        """Return, for each target of each image, the mask (v, n, h, w) that hides the smallest disc that takes the score away."""
        x = job.inputs[i]
        side = min(x.shape[-2:])
        rows, columns = (torch.arange(s, device=x.device, dtype=x.dtype) - s // 2 for s in x.shape[-2:])
        radii = torch.arange(_RADII, device=x.device, dtype=x.dtype) * _DISC * side
        apart = rows.square()[:, None] + columns.square()
        masks = 1 - blurred((apart <= radii.square()[:, None, None]).to(x)[:, None], _EDGE * side)[:, 0]

        def run(block: slice) -> Tensor:
            copies = torch.lerp(base, x, masks[block][:, None, None])
            each = [self.scores_of(job, i, copies, t.expand(len(copies), -1)) for t in targets]
            return torch.stack(each, 1)

        scores = torch.cat(in_blocks(self.network, run, _RADII, job.inputs, self.chunk))  # (radii, v, n)
        enough = (scores - scores[-1]) / (
            scores[0] - scores[-1]
        ) < _LEFT  # nowhere, if nothing changes the score: 0 / 0
        first = torch.where(enough.any(0), enough.int().argmax(0), _RADII - 1)
        return masks[first]

    def maps_of(self, maps: Maps, job: Job, outcomes: list[Outcome]) -> Maps:
        """Return one minus the masks, with the scores that they leave."""
        values = tuple((1 - o.masks)[:, :, None].to(x) for o, x in zip(outcomes, job.inputs, strict=True))
        numbers: dict[str, Tensor] = {}
        curves: dict[str, Tensor] = {}
        for i, outcome in enumerate(outcomes):
            of = f" of input {i}" if len(outcomes) > 1 else ""
            numbers |= {f"left{of}": outcome.scores, f"area{of}": 1 - outcome.masks.mean((2, 3))}
            curves |= {f"{name}{of}": curve for name, curve in outcome.curves.items()}
        return replace(maps, values=values, completeness=numbers, trajectory=curves)


class ExtremalPerturbation(MaskSearch):
    """Extremal perturbations (Fong, Patrick and Vedaldi 2019): the view of a given area that keeps the score highest.

    The preservation game: for each area a smooth mask is searched for that shows this share of the image, and blurs the rest
    as far as it says. The map, one channel, is the mean of the masks: how many of the areas show a pixel. ``parts`` holds
    each mask ("area 0.1"), ``completeness`` the score that it keeps ("score 0.1") and the share that it shows ("area 0.1").

    Attributes:
        areas: Shares of the image to show, each above 0 and below 1.
        blur: Standard deviation, in pixels, of the Gaussian where nothing is shown.
        levels: How many blurs there are beside the image itself, from that one down; between two it is interpolated.
        step: Pixels between two cells of the mask; None for a share of the image's shorter side, 7 of 224.
        sigma: Smoothness of the mask in pixels; None for three steps.
        weight: Weight of the area's loss at the first step; it grows by 0.35 % with each step.
        momentum: Momentum of the descent, which a step's gradient is damped by, as well.
        flip: Mirror the masked image in every other step.
        smooth: Standard deviation of a Gaussian over the masks in the end, as a share of the shorter side; 0.09 in the
            authors' pointing game.
    """

    name = "extremal_perturbation"
    title = "Extremal perturbation"
    summary = "smooth masks of given areas that keep the score highest"
    source = "Fong et al. 2019"
    answers = "If only a given share of the image may be seen, which part keeps the score highest?"

    areas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    steps: int = 800
    lr: float = 0.01
    blur: float = 20.0
    levels: int = 7
    step: int | None = None
    sigma: float | None = None
    weight: float = 300.0
    momentum: float = 0.9
    flip: bool = True
    smooth: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_areas(self.areas)
        object.__setattr__(self, "areas", tuple(self.areas))
        check_positive("blur", self.blur, high=MOST_PIXELS)
        check_whole("levels", self.levels, high=1000)
        check_whole("step", self.step, high=MOST_PIXELS, none=True)
        check_positive("sigma", self.sigma, high=MOST_PIXELS, none=True)
        check_positive("weight", self.weight)
        check(is_number(self.momentum) and 0 <= self.momentum < 1, "momentum", self.momentum, "from 0 to below 1")
        check(isinstance(self.flip, bool), "flip", self.flip, "True or False")
        check(is_number(self.smooth) and 0 <= self.smooth < 1, "smooth", self.smooth, "from 0 to below 1")

    @property
    def forward_passes(self) -> float:
        return 1.0 + len(self.areas) * (1.0 + 3.0 * self.steps)

    @property
    def variants(self) -> int:
        """The number of masks for each target."""
        return len(self.areas)

    @property
    def sign(self) -> int:
        """-1: the score is to rise."""
        return -1

    def search(self, job: Job, i: int, targets: Tensor, block: slice) -> Search:
        """Begin the search for input i's masks."""
        x = job.inputs[i]
        step = self.step or max(1, round(min(x.shape[-2:]) / 32))
        like = wide(x[:0])
        family = SmoothMasks.of((x.shape[-2], x.shape[-1]), step, self.sigma or 3.0 * step, like)
        grids = torch.ones(*targets.shape, *family.cells, dtype=like.dtype, device=x.device)
        every = torch.tensor(self.areas, dtype=torch.float64).repeat(block.stop // len(self.areas) + 1)[block]
        areas = every.to(like)[:, None].expand(targets.shape).flatten()
        levels = pyramid(x, self.blur, self.levels + 1)
        generator = torch.Generator().manual_seed(stable_seed("extremal_perturbation", self.seed))
        order = torch.randperm(x[0, 0].numel(), generator=generator).to(x.device)

        def masks(grids: Tensor) -> Tensor:
            return family(grids.flatten(0, 1)).unflatten(0, grids.shape[:2])

        def altered(masks: Tensor, step: int) -> Tensor:
            copies = blurred_by(levels, masks)
            return copies.flip(-1) if self.flip and step >= 0 and step % 2 == 0 else copies

        def penalties(grids: Tensor, masks: Tensor, step: int) -> dict[str, Tensor]:
            weight = self.weight * _GROWTH**step
            return {"area loss": weight * area_loss(masks.flatten(0, 1), areas, order).view(grids.shape[:2])}

        optimizer = torch.optim.SGD([grids], lr=self.lr, momentum=self.momentum, dampening=self.momentum)
        return Search(grids, masks, altered, penalties, optimizer)

    def maps_of(self, maps: Maps, job: Job, outcomes: list[Outcome]) -> Maps:
        """Return the mean of the masks over the areas, each mask, and the scores that they keep."""
        count = len(self.areas)
        masks = [
            self._smoothed(o.masks).unflatten(0, (-1, count))[:, :, :, None] for o in outcomes
        ]  # (t, a, n, 1, h, w)
        values = tuple(m.mean(1).to(x) for m, x in zip(masks, job.inputs, strict=True))
        numbers: dict[str, Tensor] = {}
        curves: dict[str, Tensor] = {}
        parts: dict[str, tuple[Tensor, ...]] = {}
        for k, area in enumerate(self.areas):
            parts[f"area {area:g}"] = tuple(m[:, k].to(x) for m, x in zip(masks, job.inputs, strict=True))
            for i, outcome in enumerate(outcomes):
                of = f" {area:g}{f' of input {i}' if len(outcomes) > 1 else ''}"
                numbers |= {f"score{of}": outcome.scores[k::count], f"area{of}": outcome.masks[k::count].mean((2, 3))}
                curves |= {f"{name}{of}": curve[k::count] for name, curve in outcome.curves.items()}
        return replace(maps, values=values, parts=parts, completeness=numbers, trajectory=curves)

    def _smoothed(self, masks: Tensor) -> Tensor:
        sigma = self.smooth * min(masks.shape[-2:])
        return blurred(masks, sigma) if sigma > 0 else masks


def _check_areas(areas: tuple[float, ...]) -> None:
    """Refuse what is no tuple of different shares of an image.

    Raises:
        InputError: With what it must be.
    """
    shares = areas if isinstance(areas, (tuple, list)) else ()
    good = all(is_number(a) and 0 < a < 1 for a in shares) and 0 < len(set(shares)) == len(shares)
    check(good, "areas", areas, "a tuple of different numbers between 0 and 1, both excluded, such as (0.05, 0.1)")
