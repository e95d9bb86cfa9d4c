"""Whatever an option is given, a method or a metric works with it or says in an error of Backlit's own why it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from _bad_values import refusals
from _methods import EVERYWHERE, QUICK
from backlit._errors import InputError
from backlit._options import option_names
from backlit.methods import CAMERAS, DMBP, LRP, MIPIN, BlurIG, GradientXInput, Method
from backlit.methods.base import NO_NETWORK
from backlit.metrics import METRICS, Examples, Insertion, Metric
from backlit.post import STEPS


class Small(nn.Module):
    """A classifier of images of 16 pixels, with all that methods look for: convolutions, activations, a pool, one layer on top."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", EVERYWHERE, ids=lambda kind: kind.name)
def test_methods_work_or_say_why_not(kind: type[Method], network: nn.Module, image: Tensor) -> None:
    def run(changed: dict[str, Any]) -> None:
        kind(network, **{**QUICK.get(kind.name, {}), **changed})(image, 1)

    assert not refusals(kind.__name__, option_names(kind), run)


@pytest.mark.parametrize("kind", METRICS, ids=lambda kind: kind.name)
def test_metrics_work_or_say_why_not(kind: type[Metric], network: nn.Module, image: Tensor) -> None:
    examples = Examples(
        image,
        torch.tensor([1]),
        labels=torch.tensor([[False, True, True]]),
        boxes=[torch.tensor([[2.0, 2, 9, 9]])],
        cells=torch.tensor([[0.0, 0, 8, 8]]),
    )
    method = GradientXInput(network)
    maps = method(image, 1)

    def run(changed: dict[str, Any]) -> None:
        kind(**changed)(network, examples, {"a": maps}, {"a": method})

    assert not refusals(kind.__name__, option_names(kind), run)


@pytest.mark.parametrize("kind", STEPS, ids=lambda kind: kind.name)
def test_post_steps_work_or_say_why_not(kind: Any, network: nn.Module, image: Tensor) -> None:
    maps = GradientXInput(network)(image, 1)
    assert not refusals(kind.__name__, option_names(kind), lambda changed: kind(**changed)(maps))


def test_a_refusal_says_what_may_be_given(network: nn.Module) -> None:
    for made, message in (
        (lambda: LRP(network, preset=np.zeros(3)), r"preset must be 'epsilon', .*, but is ndarray\(3,\)\."),
        (lambda: LRP(network, preset="espilon"), "Did you mean 'epsilon'"),
        (lambda: DMBP(network, lr=1e308), r"lr must be a positive number, but is 1e\+308\. Numbers reach to 1e\+15\."),
        (lambda: BlurIG(network, sigma=20_000), "sigma must be a positive number up to 10,000, but is 20000"),
        (lambda: LRP(network, epsilon=torch.ones(2)), r"epsilon must be a positive number, but is Tensor\(2,\)"),
        (lambda: CAMERAS(network, largest=1e9), "largest must be a number from 0.1 to 100 times the image"),
        (
            lambda: Insertion(score="logits"),
            "score must be 'probability', 'logit', 'logit_ratio' or 'change'.*Did you mean",
        ),
        (lambda: MIPIN(NO_NETWORK, rectify="all"), "rectify must be 'each', 'mean', or None, but is 'all'"),
    ):
        with pytest.raises(InputError, match=message):
            made()


def test_an_optimizer_of_ones_own_is_one(network: nn.Module, image: Tensor) -> None:
    sgd = DMBP(network, steps=2, optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr))
    assert torch.equal(sgd(image, 1).values, DMBP(network, steps=2, optimizer="sgd")(image, 1).values)
    with pytest.raises(
        InputError, match=r"optimizer must be a function of \(parameters, lr\), but calling it with both fails"
    ):
        DMBP(network, steps=2, optimizer=lambda v: v)(image, 1)
    with pytest.raises(InputError, match=r"returns a torch.optim.Optimizer, but returns int"):
        DMBP(network, steps=2, optimizer=lambda parameters, lr: 3)(image, 1)
