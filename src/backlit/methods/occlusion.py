"""Occlusion: what the score loses when a window slides over the image."""

from __future__ import annotations

import torch
from torch import Tensor

from backlit._errors import InputError, check_whole
from backlit.methods.axes import ROWS
from backlit.methods.images import baselines_of
from backlit.methods.job import Job, Maps
from backlit.methods.passes import Replacing
from backlit.methods.windows import Windows, check_window, sliding

_SHARE = 7  # windows side by side: 32 pixels of 224
_STRIDES = 4  # strides of a window: 8 pixels of 32


class Occlusion(Replacing):
    """Occlusion (Zeiler and Fergus 2014, Sec. 4.2): the mean drop of the score over the windows that cover a pixel.

    The map has one channel: a number for each pixel, above 0 where hiding it lowers the score.

    Attributes:
        window: Pixels a side; None for a seventh of each side of the image, 32 of 224. Where an image is narrower than that,
            the window is as narrow.
        stride: Pixels between two windows, at most the window; None for a quarter of it. A window that would reach over the
            far border is cut there, so that every pixel is covered.
    """

    axes = ROWS
    name = "occlusion"
    title = "Occlusion"
    summary = "drop of the score while a window hides the pixel"
    source = "Zeiler and Fergus 2014"
    answers = "How much does the score fall when the neighbourhood of this pixel is hidden?"

    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("window", self.window, none=True)
        check_whole("stride", self.stride, none=True)
        if self.stride is not None and self.window is not None:
            _check_stride(self.stride, self.window)

    @property
    def forward_passes(self) -> float:
        (height, _), (down, _) = self._geometry((224, 224), check=False)
        return 1.0 + (-(-(224 - height) // down) + 1) ** 2

    def explain(self, job: Job) -> Maps:
        inputs = job.inputs
        output, targets = self.clean(job)
        baselines = baselines_of(job, self.baseline)
        windows = [self._windows(x) for x in inputs]

        def alter(i: int, block: slice) -> Tensor:
            return torch.where(windows[i].masks(block)[:, None, None], baselines[i], inputs[i])

        own = self.scores_of_clean(output, targets)[:, None]
        scores = self.scores(job, targets, [len(w) for w in windows], alter)
        values = tuple(
            w.mean(own - s)[:, :, None].to(x) for w, s, x in zip(windows, scores, inputs, strict=True)
        )  # (t, n, 1, h, w)
        return Maps.of_outputs(output, values, targets, job)

    def _windows(self, x: Tensor) -> Windows:
        size = (x.shape[-2], x.shape[-1])
        return sliding(size, *self._geometry(size), x)

    def _geometry(self, size: tuple[int, int], *, check: bool = True) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the window's height and width in an image of this size, and the strides down and across."""
        if check and self.window is not None:
            check_window(self.window, size)
        height, width = (min(self.window or max(1, round(side / _SHARE)), side) for side in size)
        if self.stride is None:
            return (height, width), (max(1, height // _STRIDES), max(1, width // _STRIDES))
        if check:
            _check_stride(self.stride, max(height, width))
        return (height, width), (min(self.stride, height), min(self.stride, width))


def _check_stride(stride: int, window: int) -> None:
    """Refuse a stride that leaves pixels between the windows.

    Raises:
        InputError: With both.
    """
    if stride > window:
        raise InputError(
            f"stride must be at most the window, {window} pixels, so that every pixel is covered, but is {stride}. Use a smaller "
            "stride or a larger window."
        )
