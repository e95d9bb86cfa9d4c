"""The baselines of every comparison: maps that do not look at the network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import check_positive
from backlit._forward import forward
from backlit._random import image_bytes, stable_seed
from backlit.capture.refuse import check_output
from backlit.methods.axes import ANY
from backlit.methods.base import Method
from backlit.methods.job import Job, Maps


class Blind(Method):
    """A map that does not look at the network, which runs once for the score alone."""

    axes = ANY
    kind = "noise"
    needs = "nothing"
    source = "baseline"
    follows_target = False
    takes_rules = False
    traces = False

    @property
    def forward_passes(self) -> float:
        return 1.0

    def explain(self, job: Job) -> Maps:
        output = forward(self.network, *job.inputs)
        check_output(output, len(job))
        targets = job.pick(output)
        maps = (self.drawn(x) for x in job.inputs)
        values = tuple(m.expand(targets.shape[1], *m.shape).clone() for m in maps)
        return Maps.of_outputs(output, values, targets, job)

    def drawn(self, x: Tensor) -> Tensor:
        """Draw the map of each image, like the images (n, c, ...) or of one channel; it does not depend on the batch."""
        raise NotImplementedError


class Random(Blind):
    """Uniform noise from -1 to 1, drawn for each image from the seed and its bytes: what a map is worth that looks at nothing."""

    name = "random"
    title = "Random"
    summary = "noise that looks at neither image nor network"
    answers = "What is a map worth that looks at nothing?"

    def drawn(self, x: Tensor) -> Tensor:
        """Draw noise (n, c, ...)."""
        seeds = [stable_seed("random", self.seed, image_bytes(image)) for image in x]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = [torch.rand(x.shape[1:], generator=g, dtype=torch.float64) for g in generators]
        return (torch.stack(noise) * 2 - 1).to(x)


class Constant(Blind):
    """One everywhere: a protocol that orders equal pixels by the memory, or a share by the area, shows in its score."""

    name = "constant"
    title = "Constant"
    summary = "one everywhere"
    answers = "What does a protocol give a map that says nothing?"

    def drawn(self, x: Tensor) -> Tensor:
        """Return ones (n, 1, ...)."""
        return torch.ones_like(x[:, :1])


class Centre(Blind):
    """A Gaussian around the middle of the image: photographs show their object there, and a metric should not live on it.

    Attributes:
        sigma: Standard deviation of the Gaussian along each axis, as a share of its length.
    """

    name = "centre"
    title = "Centre"
    summary = "a Gaussian around the middle of the image"
    answers = "What is a map worth that knows only where photographers put the object?"

    sigma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("sigma", self.sigma)

    def drawn(self, x: Tensor) -> Tensor:
        """Return the Gaussian (n, 1, ...), 1 in the middle."""
        bump = torch.ones_like(x[:, :1])
        for axis in range(2, x.dim()):
            size = x.shape[axis]
            places = torch.arange(1 - size, size, 2, dtype=x.dtype, device=x.device) / (2 * size)  # alike on both sides
            shape = [size if i == axis else 1 for i in range(x.dim())]
            bump = bump * torch.exp(-(places / self.sigma).square() / 2).view(shape)
        return bump


class Edges(Blind):
    """The magnitude of the image's Sobel gradient, of the mean over channels: an edge detector (Adebayo et al. 2018, Sec. 5)."""

    axes = (4,)
    name = "edges"
    title = "Edges"
    summary = "edges of the image, by a Sobel filter"
    answers = "What is a map worth that knows the image, and no network?"

    def drawn(self, x: Tensor) -> Tensor:
        """Return the magnitudes (n, 1, h, w); at the image's border its outer pixels go on."""
        rise = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        grey = F.pad(x.mean(1, keepdim=True), [1] * 4, mode="replicate")
        across, down = F.conv2d(grey, torch.stack([rise, rise.T])[:, None]).unbind(1)
        return torch.hypot(across, down)[:, None]
