"""Does the map follow the class, and does it stand still when the image hardly moves?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from backlit._errors import MOST_STEPS, InputError, check, check_positive, check_whole, check_word
from backlit._forward import forward, of_image
from backlit._random import image_bytes, stable_seed
from backlit.attribution import Attribution
from backlit.methods.base import Method
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.examples import Examples
from backlit.metrics.similarity import scaled


class ClassSensitivity(Metric):
    """Class sensitivity (MIP-IN, Sec. 6.4.2, Fig. 9): the l2 distance between the maps of one image for two classes.

    Attributes:
        classes: The two classes that every image is explained for; None draws them from the seed. The paper drew 981 and 589.
        scale: "max" divides each map by its largest magnitude first, for methods in different units have no common
            distance; "none" leaves the maps as they are.
    """

    name = "class_sensitivity"
    title = "Class sensitivity"
    summary = "mean l2 distance between the maps of the same image for two classes"
    source = "MIP-IN, Sec. 6.4.2"
    higher_is_better = True
    range = (0.0, np.inf)
    needs = ("methods",)

    classes: tuple[int, int] | None = None
    scale: Literal["max", "none"] = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("scale", self.scale, ("max", "none"))
        given = self.classes
        pair = isinstance(given, (tuple, list)) and len(given) == 2 and all(type(c) is int for c in given)
        check(given is None or (pair and given[0] != given[1]), "classes", given, "two different class indices or None")

    @property
    def forward_passes(self) -> str:
        return "those of the method for two classes"

    def measure(self, case: Case) -> Scores:
        examples = case.examples
        classes = self._classes(case.network, examples)
        targets = torch.tensor(classes).expand(len(examples), 2)
        values = {}
        for name in case.heat:
            with torch.enable_grad():
                pair = case.methods[name].each(examples.inputs, targets)
            first, second = (self._unit(a.heatmap(self.reduce).double()) for a in pair)
            values[name] = to_numbers((first - second).flatten(1).norm(dim=1))
        return Scores(self, examples.names, values, notes=(f"classes {classes[0]} and {classes[1]}",))

    def _unit(self, heat: Tensor) -> Tensor:
        return scaled(heat) if self.scale == "max" else heat

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        super().check(network, examples, methods)
        self._classes(network, examples)

    def _classes(self, network: nn.Module, examples: Examples) -> tuple[int, int]:
        k = int(of_image(lambda some, _: forward(network, *some), (examples.inputs,)).shape[1])
        if k < 2:
            raise InputError(f"{self.title} needs a network with at least two classes, but this one has {k}.")
        if self.classes is None:
            generator = torch.Generator().manual_seed(self.seed)
            first, second = torch.randperm(k, generator=generator)[:2].tolist()
            return first, second
        wrong = [c for c in self.classes if not 0 <= c < k]
        if wrong:
            raise InputError(f"classes must be indices from 0 to {k - 1}, but hold {wrong[0]}.")
        return self.classes


class _ByCaptum(Metric):
    """A metric that Captum computes."""

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        super().check(network, examples, methods)
        _captum()


def _generator(purpose: str, seed: int, image: Tensor) -> torch.Generator:
    """A stream of the image's own: every map of it meets the same noise, and no other image does."""
    return torch.Generator().manual_seed(stable_seed(purpose, seed, image_bytes(image)))


_AT_ONCE = 64  # noisy images that run together: memory does not grow with the number of samples


def _captum() -> Any:
    try:
        from captum import metrics
    except ImportError as error:
        raise InputError("This metric runs Captum's: pip install 'backlit[compare]'.") from error
    return metrics


class MaxSensitivity(_ByCaptum):
    """Max-sensitivity (Yeh et al. 2019, Definition 3.1): the largest relative change of the map near the image, by Captum.

    Attributes:
        radius: Largest magnitude of the uniform noise around the image, in units of the network's input.
        samples: Number of noisy images for each image.
    """

    name = "max_sensitivity"
    title = "Max-sensitivity"
    summary = "largest relative change of the map under noise that is too small to see"
    source = "Yeh et al. 2019, Definition 3.1 (Captum)"
    higher_is_better = False
    range = (0.0, np.inf)
    needs = ("methods",)

    radius: float = 0.02
    samples: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("radius", self.radius)
        check_whole("samples", self.samples, high=MOST_STEPS)

    @property
    def forward_passes(self) -> str:
        return f"those of the method, {self.samples + 1} times"

    def measure(self, case: Case) -> Scores:
        examples = case.examples
        values = {
            name: np.array([self._one(case.methods[name], examples, i) for i in range(len(examples))])
            for name in case.heat
        }
        return Scores(self, examples.names, values)

    def _one(self, method: Method, examples: Examples, i: int) -> float:
        """One image alone, with noise of its own."""

        def explain(x: tuple[Tensor, ...] | Tensor) -> tuple[Tensor]:  # Captum would go through a bare tensor's rows
            with torch.enable_grad():
                return (method.attribute(x[0] if isinstance(x, tuple) else x, int(examples.target[i])),)

        generator = _generator("max-sensitivity", self.seed, examples.inputs[i])

        def noisy(x: Tensor, radius: float = 0.0) -> Tensor:
            noise = torch.rand(x.shape, generator=generator, dtype=torch.float64) * 2 - 1
            return x + (noise * self.radius).to(x)

        largest = _captum().sensitivity_max(
            explain,
            examples.inputs[i : i + 1],
            perturb_func=noisy,
            n_perturb_samples=self.samples,
            max_examples_per_batch=_AT_ONCE,
        )
        return float(largest[0])


class Infidelity(_ByCaptum):
    """Infidelity (Yeh et al. 2019, Definition 2.1): squared error of the map as a linear model of noise, by Captum.

    It scores the values themselves, each channel; a map of one channel is spread evenly over the image's.

    Attributes:
        noise: Standard deviation of the Gaussian noise that is subtracted from the image, in units of the network's input.
        samples: Number of noisy images for each image.
        normalise: Scale each map by the factor that fits best, so that methods in other units can be compared.
    """

    name = "infidelity"
    title = "Infidelity"
    summary = "squared error with which the map, as a linear model, foretells the logit's change under noise"
    source = "Yeh et al. 2019, Definition 2.1 (Captum)"
    higher_is_better = False
    range = (0.0, np.inf)

    noise: float = 0.2
    samples: int = 10
    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("noise", self.noise)
        check(isinstance(self.normalise, bool), "normalise", self.normalise, "True or False")
        check_whole("samples", self.samples, high=MOST_STEPS)

    @property
    def forward_passes(self) -> str:
        return f"{self.samples + 1}"

    def measure(self, case: Case) -> Scores:
        examples, values = case.examples, {}
        for name, scored in case.maps.items():
            full = (scored.values if isinstance(scored, Attribution) else scored).to(examples.inputs)
            if full.shape[1] == 1:
                full = (full / examples.inputs.shape[1]).expand_as(examples.inputs)
            values[name] = np.array([self._one(case.network, examples, full, i) for i in range(len(examples))])
        return Scores(self, examples.names, values)

    def _one(self, network: nn.Module, examples: Examples, full: Tensor, i: int) -> float:
        """One image alone, with noise of its own, the same for all its maps."""
        generator = _generator("infidelity", self.seed, examples.inputs[i])

        def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) * self.noise
            return noise, x - noise

        error = _captum().infidelity(
            partial(forward, network),
            perturb,
            examples.inputs[i : i + 1],
            full[i : i + 1],
            target=examples.target[i : i + 1],
            n_perturb_samples=self.samples,
            max_examples_per_batch=_AT_ONCE,
            normalize=self.normalise,
        )
        return float(error[0])
