"""Averages of any method over noisy copies of the image: mean, mean of squares, variance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import field, replace
from inspect import isabstract

import torch
from torch import Tensor

from backlit._errors import MOST_STEPS, InputError, check_positive, check_whole
from backlit._options import NO_OPTION
from backlit._random import image_bytes, stable_seed
from backlit.methods.account import wide
from backlit.methods.axes import ANY
from backlit.methods.base import NO_NETWORK, Kind, Method
from backlit.methods.copies import in_blocks, repeated
from backlit.methods.gradient import Gradient
from backlit.methods.images import content
from backlit.methods.job import Job, Maps

_TRAITS = (
    "axes",
    *("subtracts", "takes_scores", "traces", "memory_factor"),
    *("stops_at_map", "reads_map", "follows_target", "reads_attention", "explains_inside"),
)
_MAP = "<map>"
"""The name of the map among its parts, which no part has."""


class Averaged(Method):
    """A method made of the maps that another one gives for noisy copies of the image.

    Each of the other method's parts is averaged as its map is. Logit, probability and predicted class are those of the
    image itself, and the class explained is the same in all copies.

    Attributes:
        of: The method whose maps are averaged: its name ("lpr"), its class, or a method with its options, such as
            ``DMBP(model, steps=3)``; None for the gradient. By name or class it gets this method's ``seed``.
        samples: Number of noisy copies of each image.
        sigma: Standard deviation of the Gaussian noise, as a share of the image's own range: its largest value less its
            least, over all channels. The noise depends on the image's bytes and the seed alone.
        rules: Rules of your own by primitive, handed to the method that is averaged.
    """

    axes = ANY
    of: str | type[Method] | Method | None = None
    samples: int = 50
    sigma: float = 0.15

    inner: Method = field(default=None, init=False, metadata=NO_OPTION)  # type: ignore[assignment]
    """The method that is averaged, for this network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("samples", self.samples, high=MOST_STEPS)
        check_positive("sigma", self.sigma)
        of = self._without_network()
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "inner", self._bound(of))
        for trait in _TRAITS:  # those of the class are Gradient's
            object.__setattr__(self, trait, getattr(self.inner, trait))

    def _without_network(self) -> type[Method] | Method | None:
        """The option ``of``: a name's class, a method's value for no network, so that it goes along to another one.

        Raises:
            InputError: If it is no method, or one for another network.
        """
        of = _class_named(self.of) if isinstance(self.of, str) else self.of
        if of is None or (isinstance(of, type) and issubclass(of, Method) and not isabstract(of)):
            return of
        if not isinstance(of, Method):
            must = "a method's name, its class such as LRP, or a method with its options such as LRP(model, preset='epsilon')"
            raise InputError(f"of must be {must}, but is {content(of)}.")
        if of.network not in (NO_NETWORK, self.network):
            raise InputError(
                f"of must be made for the network that is explained, but {of.title} was made for another "
                f"{type(of.network).__name__}. Use dataclasses.replace(of, model=model)."
            )
        return of if of.network is NO_NETWORK else replace(of, model=NO_NETWORK)

    def _bound(self, of: type[Method] | Method | None) -> Method:
        """The method to average, for this network, with the rules of this one."""
        if not isinstance(of, Method):
            kind = Gradient if of is None else of
            return kind(self.model, seed=self.seed, chunk=self.chunk, rules=self.rules)
        rules = of.rules if self.rules is None else self.rules
        return replace(of, model=self.model, rules=rules)

    @property
    def forward_passes(self) -> float:
        return (self.samples + 1) * self.inner.forward_passes

    def explain(self, job: Job) -> Maps:
        clean = self.inner.explain(job)  # its scores and class, and the network's own errors
        noise, moments = _Noise(job.inputs, self.sigma, self.seed), _Moments()

        def run(block: slice) -> None:
            v = block.stop - block.start
            targets = repeated(clean.targets, v)
            copies = replace(job, inputs=noise.added(block), targets=targets, copies=v * job.copies, noisy=True)
            maps = self.inner.explain(copies)
            moments.add(block, {_MAP: maps.values, **maps.parts})

        in_blocks(self.network, run, self.samples, job.inputs, self.chunk)
        parts = {
            key: tuple(self.average(mean, squares / self.samples).to(dtype) for mean, squares, dtype in part)
            for key, part in moments.parts.items()
        }
        return replace(clean, values=parts.pop(_MAP), parts=parts, trajectory={}, completeness={})

    @abstractmethod
    def average(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The map, or a part of it, from its mean and variance over the noisy copies."""


class SmoothGrad(Averaged):
    """SmoothGrad (Smilkov et al. 2017): the mean of a method's maps over noisy copies of the image."""

    name = "smooth_grad"
    title = "SmoothGrad"
    kind = "magnitude"
    summary = "mean of any method's maps over noisy copies of the image"
    source = "Smilkov et al. 2017"
    answers = "What does the method's map have in common for images that differ by noise alone?"

    @property
    def kind_of_map(self) -> Kind:
        return self.inner.kind_of_map

    def average(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the mean."""
        return mean


class SquaredSmoothGrad(Averaged):
    """SmoothGrad squared, SQ-SG (Hooker et al. 2019): the mean of the squares of a method's maps over noisy copies."""

    name = "squared_smooth_grad"
    title = "Squared SmoothGrad"
    kind = "magnitude"
    summary = "mean square of any method's maps over noisy copies of the image"
    source = "Hooker et al. 2019"
    answers = "Where are the method's maps large, of either sign, for images that differ by noise alone?"

    def average(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the mean square."""
        return mean.square() + variance


class VarGrad(Averaged):
    """VarGrad (Adebayo et al. 2018): the variance of a method's maps over noisy copies of the image."""

    name = "var_grad"
    title = "VarGrad"
    kind = "magnitude"
    summary = "variance of any method's maps over noisy copies of the image"
    source = "Adebayo et al. 2018"
    answers = "Where do the method's maps change most for images that differ by noise alone?"

    def average(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the variance."""
        return variance


class _Noise:
    """Gaussian noise of unit variance times a share of each image's range, drawn on the CPU and the same on every device.

    Args:
        inputs: The images (n, c, h, w), one tensor for each input of the network.
        sigma: Standard deviation as a share of an image's range.
        seed: Seed of the noise, beside the image's bytes.
    """

    def __init__(self, inputs: tuple[Tensor, ...], sigma: float, seed: int) -> None:
        self._inputs = inputs
        self._sizes = [sigma * (x.amax((1, 2, 3)) - x.amin((1, 2, 3))).view(-1, 1, 1, 1) for x in inputs]
        self._seeds = [[stable_seed("noise", seed, i, image_bytes(one)) for one in x] for i, x in enumerate(inputs)]

    def added(self, block: slice) -> tuple[Tensor, ...]:
        """Copies ``block`` of all images with their noise, (v * n, c, h, w) for each input."""
        return tuple(
            (x + size * self._drawn(x, seeds, block)).flatten(0, 1)
            for x, size, seeds in zip(self._inputs, self._sizes, self._seeds, strict=True)
        )

    @staticmethod
    def _drawn(x: Tensor, seeds: list[int], block: slice) -> Tensor:
        shape = x.shape[1:]
        generators = [
            torch.Generator().manual_seed(stable_seed(s, k)) for k in range(block.start, block.stop) for s in seeds
        ]
        drawn = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return drawn.unflatten(0, (-1, len(x))).to(x)


class _Moments:
    """Means and sums of squared deviations, over copies that come in blocks, of a map and its parts.

    ``parts`` holds by name, for each input, the mean and the sum (t, n, c, h, w) in single precision at least, and the dtype
    of what was averaged.
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[Tensor, Tensor, torch.dtype]]] = {}

    def add(self, block: slice, parts: Mapping[str, tuple[Tensor, ...]]) -> None:
        """Add the copies of a block: tensors (t, v * n, c, h, w). The block that begins with copy 0 begins anew."""
        v = block.stop - block.start
        added = {key: [_moments(p, v) for p in part] for key, part in parts.items()}
        if block.start == 0:
            self.parts = added
            return
        for key, part in added.items():
            self.parts[key] = [
                _joined(one, block.start, other, v) for one, other in zip(self.parts[key], part, strict=True)
            ]


def _moments(values: Tensor, v: int) -> tuple[Tensor, Tensor, torch.dtype]:
    """Mean and sum of squared deviations of v copies, (t, v * n, ...)."""
    copies = wide(values).unflatten(1, (v, -1))
    mean = copies.mean(1)
    return mean, (copies - mean[:, None]).square().sum(1), values.dtype


def _joined(
    one: tuple[Tensor, Tensor, torch.dtype], a: int, other: tuple[Tensor, Tensor, torch.dtype], b: int
) -> tuple[Tensor, Tensor, torch.dtype]:
    """The moments of a and b copies together (Chan et al. 1979): no difference of large numbers is taken."""
    apart = other[0] - one[0]
    return one[0] + apart * (b / (a + b)), one[1] + other[1] + apart.square() * (a * b / (a + b)), one[2]


def _class_named(name: str) -> type[Method]:
    """The class of a method's name.

    Raises:
        InputError: If there is none.
    """
    from backlit.methods import BASELINES, METHODS  # which hold the classes of this file
    from backlit.methods.lookup import find_method

    try:
        return find_method(name, METHODS + BASELINES)
    except InputError as error:
        raise InputError(str(error).replace("method must", "of must", 1)) from None
