"""Score-CAM: channels weighted by the score of the image that they mask, in forward passes alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import check
from backlit._layout import fast_layout
from backlit.methods.account import wide
from backlit.methods.cam import ActivationMap, distinct
from backlit.methods.cam_layers import Layer, notes_of
from backlit.methods.job import Job, Maps, activation_bytes
from backlit.methods.passes import Alter, Passes


class ScoreCAM(ActivationMap, Passes):
    """Score-CAM (Wang et al. 2020): ReLU of the feature map's channels, weighted by the score of the image under each of them.

    A channel is enlarged, stretched to 0 to 1, and multiplied into the image; no gradient is taken. By default, as in the
    paper, the weights are a softmax of the logits over the channels (from which a baseline's logit, subtracted from each,
    cancels). A channel with one value everywhere masks nothing and has no weight. Several inputs are masked in turn.

    Attributes:
        softmax: Put the scores through a softmax over the channels. False takes them as they are: with
            ``score="probability"`` that is what the authors' published code does.
    """

    name = "score_cam"
    title = "Score-CAM"
    kind = "one-sided"
    summary = "last feature map, its channels weighted by the score of the image under each"
    source = "Wang et al. 2020"
    answers = "Which region of the last feature map raises the score, when the image is seen through its channels?"
    needs = "forward passes, a feature map"
    traces = True
    memory_factor = 6.0

    softmax: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(isinstance(self.softmax, bool), "softmax", self.softmax, "True or False")

    @property
    def forward_passes(self) -> float:
        return 513.0  # of a last map of 512 channels

    def explain(self, job: Job) -> Maps:
        run = self.clean_run(job.inputs)
        output, targets = run.output.detach(), job.pick(run.output)
        chosen = self.layers(run, targets)
        features = {v: v.layout.arrange(run.kept[v.site.name].output.detach()) for v in distinct(chosen)}
        known = {"coverage": run.coverage, "activation_bytes": activation_bytes(run.trace, job.inputs[0])}
        del run  # and its graph
        maps = {layer: self._maps_by_input(job, targets, feature) for layer, feature in features.items()}
        values = tuple(self._value(i, x, targets, chosen, maps) for i, x in enumerate(job.inputs))
        return Maps.of(values, output, targets, notes=notes_of(chosen), **known)

    def _value(
        self,
        i: int,
        x: Tensor,
        targets: Tensor,
        chosen: Sequence[dict[int, Layer]],
        maps: dict[Layer, list[Tensor]],
    ) -> Tensor:
        return self.enlarged_to(x, targets, chosen, {layer: own[i] for layer, own in maps.items()})

    def _maps_by_input(self, job: Job, targets: Tensor, feature: Tensor) -> list[Tensor]:
        """The map (t, n, 1, h, w) of a feature map (n, c, h, w), by the scores of each input under its channels."""
        varied = feature.amax((2, 3)) > feature.amin((2, 3))  # (n, c)
        channels = varied.any(0).nonzero().flatten()  # of any image: the others mask nothing
        if not len(channels):
            return [feature.new_zeros(*targets.T.shape, 1, *feature.shape[2:])] * len(job.inputs)
        feature, varied = feature[:, channels], varied[:, channels]
        scores = self.scores(job, targets, [len(channels)] * len(job.inputs), self._masking(job, feature))
        return [(self._weights(s, varied) * wide(feature)).sum(2, keepdim=True).relu() for s in scores]

    def _masking(self, job: Job, feature: Tensor) -> Alter:
        images = job.inputs
        if len(images) == 1:
            images = (fast_layout(self.network, images[0]),)

        def alter(i: int, block: slice) -> Tensor:
            x, (v, n) = images[i], (block.stop - block.start, len(feature))
            masks = channel_masks(feature[:, block], x.shape[-2:]).transpose(0, 1).unsqueeze(2)
            layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
            copies = torch.empty((v * n, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)
            torch.mul(masks, x, out=copies.unflatten(0, (v, n)))
            return copies

        return alter

    def _weights(self, scores: Tensor, varied: Tensor) -> Tensor:
        """The channels' weights (t, n, c, 1, 1), from the scores (t, c, n) of the images under them."""
        scores = scores.transpose(1, 2)[..., None, None]
        varied = varied[..., None, None]
        if not self.softmax:
            return scores * varied
        return scores.masked_fill(~varied, -torch.inf).softmax(2).nan_to_num(0)  # NaN: no channel varies


def channel_masks(feature: Tensor, size: Sequence[int]) -> Tensor:
    """Channels (n, c, h, w) at the image's size, each stretched to 0 to 1; one of a single value is 0."""
    masks = F.interpolate(feature, tuple(size), mode="bilinear")
    least = masks.amin((2, 3), keepdim=True)
    spread = masks.amax((2, 3), keepdim=True) - least
    return (masks - least) / torch.where(spread == 0, 1, spread)
