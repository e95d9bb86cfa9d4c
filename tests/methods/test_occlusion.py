"""Occlusion: against a slow loop over windows and pixels, against Captum, on networks that no other method could follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _small_networks import Two
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import InputError, Occlusion

X = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Net(nn.Module):
    """A small classifier of images of any size, which can be scripted."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, classes)
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).square().mean((2, 3)))


def slow(model: nn.Module, x: Tensor, target: int, window: int, stride: int, baseline: Tensor, read: Any) -> Tensor:
    """Return the mean drop over the windows that cover a pixel, window by window and pixel by pixel, (h, w)."""
    h, w = x.shape[-2:]
    total, count = torch.zeros(h, w, dtype=torch.float64), torch.zeros(h, w)
    own = read(model(x[None]))[0, target]
    top = 0
    while True:
        left = 0
        while True:
            hidden = x.clone()
            for i in range(top, min(top + window, h)):
                for j in range(left, min(left + window, w)):
                    hidden[:, i, j] = baseline[:, i, j]
            drop = own - read(model(hidden[None]))[0, target]
            total[top : top + window, left : left + window] += drop
            count[top : top + window, left : left + window] += 1
            if left + window >= w:
                break
            left += stride
        if top + window >= h:
            break
        top += stride
    return total / count


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (4, 3), (9, 5), (1, 1), (5, 5)])
def test_it_is_the_mean_drop_over_the_windows_that_cover_a_pixel(window: int, stride: int, score: Any) -> None:
    model, baseline = Net(), torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    made = Occlusion(model, window=window, stride=stride, score=score, baseline=baseline)
    maps = made.each(X, torch.tensor([[0, 2], [3, 1]]))
    read = (lambda o: o.softmax(1)) if score == "probability" else (lambda o: o)
    for t, targets in enumerate([(0, 3), (2, 1)]):
        for i, k in enumerate(targets):
            expected = slow(model, X[i], k, window, stride, baseline, read)
            torch.testing.assert_close(maps[t].values[i, 0], expected)


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (4, 3), (9, 5), (1, 1), (5, 5)])
def test_it_is_captums(window: int, stride: int) -> None:
    captum = pytest.importorskip("captum.attr")
    model = Net()
    expected = captum.Occlusion(model).attribute(
        X, (3, window, window), (3, stride, stride), baselines=0.25, target=torch.tensor([1, 2])
    )
    made = Occlusion(model, window=window, stride=stride, baseline=torch.full((3, 9, 12), 0.25, dtype=torch.float64))
    torch.testing.assert_close(made.attribute(X, torch.tensor([1, 2])).expand_as(expected), expected.double())


def test_windows_follow_from_the_size() -> None:
    model = Net()
    assert Occlusion(model)._geometry((224, 224)) == ((32, 32), (8, 8))
    assert Occlusion(model)._geometry((32, 32)) == ((5, 5), (1, 1))
    assert Occlusion(model, window=8)._geometry((1, 64)) == ((1, 8), (1, 2))
    assert Occlusion(model).forward_passes == 1 + 25**2
    assert Occlusion(model, window=14, stride=14).forward_passes == 1 + 16**2
    seen: list[Any] = []
    Occlusion(model, callback=seen.append)(X)
    assert seen[-1].index == seen[-1].steps == 9 * 11  # windows of 1 x 2 pixels, strides of 1
    assert Occlusion(model, window=12, stride=3)(X).values.isfinite().all()


def test_inputs_are_altered_in_turn() -> None:
    model, y = Two(Net), torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    first, second = Occlusion(model, window=3, stride=2).attribute((X, y), 1)

    def part(i: int, one: bool) -> Any:
        return lambda z: model(z, y[i : i + 1]) if one else model(X[i : i + 1], z)

    for i in range(2):
        zeros = [torch.zeros_like(X[i]), torch.zeros_like(y[i])]
        torch.testing.assert_close(first[i, 0], slow(part(i, True), X[i], 1, 3, 2, zeros[0], lambda o: o))
        torch.testing.assert_close(second[i, 0], slow(part(i, False), y[i], 1, 3, 2, zeros[1], lambda o: o))


class Black(nn.Module):
    """A network that no gradient passes through."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = Net(), how
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.net(x)
        return torch.from_numpy(self.net(x).numpy() * 1.0)


@pytest.mark.parametrize("how", ["no_grad", "numpy", "scripted", "traced", "compiled"])
def test_the_network_need_not_be_differentiable(how: str) -> None:
    made: Any = {
        "no_grad": lambda: Black("no_grad"),
        "numpy": lambda: Black("numpy"),
        "scripted": lambda: torch.jit.script(Net()),
        "traced": lambda: torch.jit.trace(Net(), X),
        "compiled": lambda: torch.compile(Net(), backend="eager"),
    }[how]()
    expected = Occlusion(Net(), window=4, stride=3)(X, 1)
    given = Occlusion(made, window=4, stride=3)(X, 1)
    torch.testing.assert_close(given.values, expected.values)
    torch.testing.assert_close(given.output, expected.output)


def test_one_output_is_its_own_score() -> None:
    one = Occlusion(Net(1), window=4, score="probability").attribute(X)
    assert torch.equal(one, Occlusion(Net(1), window=4).attribute(X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_run(dtype: torch.dtype) -> None:
    model = Net()
    expected = Occlusion(model, window=4).attribute(X, 1)
    model.to(dtype)
    values = Occlusion(model, window=4).attribute(X.to(dtype), 1)
    assert values.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, r"window must be a positive integer or None, but is 0"),
        ({"window": 3.5}, r"window must be a positive integer or None, but is 3\.5"),
        ({"stride": 0}, r"stride must be a positive integer or None, but is 0"),
        (
            {"window": 4, "stride": 5},
            r"stride must be at most the window, 4 pixels, so that every pixel is covered, but is 5",
        ),
        ({"score": "odds"}, r"score must be 'logit' or 'probability', but is 'odds'"),
        ({"baseline": "grey"}, r"baseline must be one of zero, blur, mean, a tensor"),
        ({"seed": "one"}, r"seed must be an integer"),
        ({"seed": 0.5}, r"seed must be an integer"),
        ({"callback": 3}, r"callback must be a function of a step, or None, but is 3"),
    ],
)
def test_options_that_cannot_be_used_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Occlusion(Net(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"window": 13},
            r"window must be at most 12 pixels for images of 9x12, but is 13\. Use a smaller window; None is",
        ),
        (
            {"stride": 3},
            r"stride must be at most the window, 2 pixels, .* but is 3\. Use a smaller stride or a larger window",
        ),
        (
            {"baseline": torch.zeros(3, 4, 4)},
            r"baseline must be shaped as one image, \(3, 9, 12\), .* but is \(3, 4, 4\)",
        ),
        ({"baseline": torch.full((3, 9, 12), torch.nan)}, r"baseline must be finite, but holds NaN or Inf"),
    ],
)
def test_options_that_do_not_fit_the_images_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Occlusion(Net(), **options)(X)
    Occlusion(Net(), window=12)(X)
