"""Further arguments of the network, which are constants: with a row for each image, and without; every method, chunk and target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _methods import EVERYWHERE, quick
from backlit import DMBP, TRGBP, Contrast, DeepSHAP, Gradient, GradientXInput, InputError, Saliency, load_model
from backlit.methods import FittedMethod, Method
from backlit.methods.around import Bound, Context

N = 5
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 2, 8, 8, dtype=torch.float64, generator=GENERATOR)
META = torch.randn(N, 3, dtype=torch.float64, generator=GENERATOR)
EVERY = [m for m in EVERYWHERE if not issubclass(m, FittedMethod) and m.any_head]


class Net(nn.Module):
    """Images and, as further arguments, a row of numbers for each, a factor, and a word."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv, self.more = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.told, self.head = nn.Linear(3, 6), nn.Linear(6, 4)
        self.double().eval()

    def forward(self, x: Tensor, meta: Tensor, factor: float = 1.0, word: str = "mean") -> Tensor:
        assert len(meta) == len(x)
        inside = torch.relu(self.more(torch.relu(self.conv(x))))
        seen = inside.mean((2, 3)) if word == "mean" else inside.amax((2, 3))
        return self.head(torch.relu(seen + self.told(meta))) * factor


class Alone(nn.Module):
    """The network for one image, whose numbers it holds: as a user would wrap it without further arguments."""

    def __init__(self, net: Net, meta: Tensor) -> None:
        super().__init__()
        self.net, self.meta = net, meta

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, self.meta[None].expand(len(x), -1), 0.5)


def made(kind: type[Method], net: nn.Module, **options: Any) -> Method:
    return kind(net, **quick(kind, **({"contrast": 2} if kind is TRGBP else {}) | options))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", EVERY, ids=lambda m: m.name)
def test_every_method_hands_each_image_its_own_row(kind: type[Method]) -> None:
    net, target = Net(), torch.tensor([0, 3, 1, 2, 3])
    whole = made(kind, net, chunk=2)(X, target, additional_forward_args=(META, 0.5))
    for i in (0, 3):
        alone = made(kind, Alone(net, META[i]))(X[i : i + 1], int(target[i]))
        torch.testing.assert_close(whole.values[i], alone.values[0])
        torch.testing.assert_close(whole.output[i], alone.output[0])
    assert whole.provenance["model"] == "Net"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [m for m in EVERY if m.takes_scores], ids=lambda m: m.name)
@pytest.mark.parametrize("target", [Contrast(1, 2), Contrast(1, top=2), lambda y: y[:, 3]], ids=["a-b", "top", "f"])
def test_so_do_scores(kind: type[Method], target: Any) -> None:
    net = Net()
    arguments = (META[:3], 0.5)
    options = {"contrast": None} if kind is TRGBP else {}
    whole = made(kind, net, **options)(X[:3], target, additional_forward_args=arguments)
    alone = made(kind, Alone(net, META[1]), **options)(X[1:2], target)
    torch.testing.assert_close(whole.values[1], alone.values[0])


def test_one_value_alone_and_several_targets_of_an_image() -> None:
    net = Net()
    one, other = Gradient(net).each(X, [[0, 1]] * N, additional_forward_args=META)
    torch.testing.assert_close(one.values, Gradient(net).attribute(X, 0, additional_forward_args=META))
    torch.testing.assert_close(other.values, Gradient(net).attribute(X, 1, additional_forward_args=(META, 1.0, "mean")))
    assert not torch.allclose(one.values, Gradient(net).attribute(X, 0, additional_forward_args=(META, 1.0, "max")))


def test_references_and_doubled_batches_keep_the_rows() -> None:
    net = Net()
    references = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for method in (DeepSHAP(net, references=references), DMBP(net, steps=3, lr=0.1)):
        whole = method.attribute(X, 2, additional_forward_args=META)
        for i in range(N):
            one = method.attribute(X[i : i + 1], 2, additional_forward_args=META[i : i + 1])
            torch.testing.assert_close(whole[i], one[0])


def test_they_are_recorded_and_carry_no_gradient() -> None:
    net, meta = Net(), META.clone().requires_grad_()
    first = Gradient(net)(X, 0, additional_forward_args=(meta, 0.5))
    second = Gradient(net)(X, 0, additional_forward_args=(meta + 1, 0.5))
    told = "additional_forward_args"
    assert first.provenance[told] != second.provenance[told]
    assert meta.grad is None
    assert not first.values.requires_grad
    assert told not in Gradient(load_model("digits").network)(torch.rand(1, 1, 32, 32)).provenance


def test_a_batch_that_is_no_multiple_is_refused() -> None:
    bound = Bound(Net(), Context((META,)), N)
    torch.testing.assert_close(bound(torch.cat([X, X]))[N:], bound(X))
    for some in (X[:2], torch.cat([X, X[:1]])):
        with pytest.raises(InputError, match=rf"go with all of {N} images, but {len(some)} of them run alone.*chunk=1"):
            bound(some)


def test_what_does_not_run_says_so() -> None:
    with pytest.raises(InputError, match=r"inputs of shape \(5, 2, 8, 8\) do not run through the model"):
        Gradient(Net())(X, 0, additional_forward_args=META[:, :2])


@pytest.mark.parametrize(
    ("name", "say"),
    [
        ("baselines", "In Backlit that is the option baseline of the method"),
        ("n_steps", "In Backlit that is the option steps"),
        ("abs", "In Backlit that is the method: Saliency"),
        ("internal_batch_size", "the option chunk"),
        ("tagret", r"Did you mean 'target'\?"),
    ],
)
def test_names_of_other_libraries_say_what_to_write(name: str, say: str) -> None:
    method: Any = GradientXInput(Net())
    for call in (method, method.attribute):
        with pytest.raises(InputError, match=rf"'{name}' is no argument of .*, which takes inputs, target.*{say}"):
            call(X, 0, **{name: 3})
    if name != "tagret":
        with pytest.raises(InputError, match=rf"'{name}' is no option of Saliency: .*{say}"):
            Saliency(Net(), **{name: True})
