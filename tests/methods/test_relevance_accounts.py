"""Relevance propagation where the account is easily wrong: images in other dimensions, rounding, several heads, messages."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from _relevance_networks import Net, drawn, quietly
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import LRP, DeepTaylor, ExcitationBackprop, InputError, UnsupportedOp
from backlit.capture import propagate
from backlit.methods.audit import audit
from backlit.rules import presets
from backlit.rules.linear import AlphaBeta, Epsilon, Gamma
from backlit.rules.pooling import proportional
from backlit.rules.relevance import relevance


def tokens_first(net: Net, x: Tensor) -> Tensor:
    z = net.a(x).relu().flatten(2).permute(2, 0, 1)  # (tokens, images, channels)
    return net.f(F.linear(z, net.b.weight[:, :, 0, 0], net.b.bias).relu() + 0.3).mean(0)


def patches(net: Net, x: Tensor) -> Tensor:
    z = x.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 3, 3)  # (images * patches, 3, 3, 3)
    return net.f(net.a(z).relu().mean((2, 3))).reshape(len(x), 4, 3).mean(1)


@pytest.mark.parametrize(
    ("forward", "n", "size"), [(tokens_first, 4, 2), (tokens_first, 3, 2), (patches, 4, 6), (patches, 3, 6)]
)
@pytest.mark.parametrize("epsilon", [1e-7, 0.3])
def test_biases_are_each_images_own_wherever_the_images_stand(
    forward: Callable[[Net, Tensor], Tensor], n: int, size: int, epsilon: float
) -> None:
    """Four tokens and four images; four channels and four images; and a rule that loses relevance on the way."""
    net, x = Net(forward), drawn(n, size)
    together = quietly(LRP(net, preset="epsilon", epsilon=epsilon, chunk=n), x, 1)
    for i in range(n):
        alone = quietly(LRP(net, preset="epsilon", epsilon=epsilon), x[i : i + 1], 1)
        for key in ("biases", "gap", "ratio"):
            torch.testing.assert_close(
                together.completeness[key][i],
                alone.completeness[key][0],
                rtol=1e-5,
                atol=1e-6,  # type: ignore[attr-defined]
            )


def one_by_one(net: Net, x: Tensor) -> Tensor:
    z = torch.stack([net.b(net.a(image).relu()).mean((1, 2)) for image in x])  # convolutions without a batch
    return torch.stack([net.f(features) for features in z])


def one_by_one_with_constants(net: Net, x: Tensor) -> Tensor:
    z = net.a(x).relu().mean((2, 3))
    return net.f(torch.stack([features + net.b.bias for features in z]))


@pytest.mark.parametrize("preset", ["epsilon", "epsilon_plus_flat", "epsilon_alpha2_beta1", "deep_taylor_unbounded"])
@pytest.mark.parametrize("forward", [one_by_one, one_by_one_with_constants])
def test_layers_that_see_one_image_without_a_batch(forward: Callable[[Net, Tensor], Tensor], preset: str) -> None:
    """As many images as features, so that no shape says which is which."""
    net, x = Net(forward), drawn(4)
    together = LRP(net, preset=preset)(x, 1)
    for i in range(4):
        alone = LRP(net, preset=preset)(x[i : i + 1], 1)
        torch.testing.assert_close(together.values[i], alone.values[0])
        for key in ("biases", "gap"):
            torch.testing.assert_close(together.completeness[key][i], alone.completeness[key][0], rtol=1e-5, atol=1e-6)


def columns(net: Net, x: Tensor) -> Tensor:
    h = net.a(x).relu().mean((2, 3))
    return (net.f.weight @ h.T + net.f.bias[:, None]).T


def columns_at_once(net: Net, x: Tensor) -> Tensor:
    return torch.addmm(net.f.bias[:, None], net.f.weight, net.a(x).relu().mean((2, 3)).T).T


def columns_with_factors(net: Net, x: Tensor) -> Tensor:
    h = net.a(x).relu().mean((2, 3)).T
    return torch.addmm(4 * net.f.bias[:, None], net.f.weight / 2, h, beta=0.25, alpha=2).T


def summed(net: Net, x: Tensor) -> Tensor:
    return torch.einsum("nf,of->on", net.a(x).relu().mean((2, 3)), net.f.weight).T + net.f.bias


def summed_maps(net: Net, x: Tensor) -> Tensor:
    return torch.einsum("of, n f ... -> o n ...", net.f.weight, net.a(x).relu()).mean((2, 3)).T + net.f.bias


def row_by_row(net: Net, x: Tensor) -> Tensor:
    h = net.a(x).relu().mean((2, 3))
    return torch.stack([h @ row + b for row, b in zip(net.f.weight, net.f.bias, strict=True)], 1)


def linear_row_by_row(net: Net, x: Tensor) -> Tensor:
    h = net.a(x).relu().mean((2, 3))
    return torch.stack([F.linear(h, row) + b for row, b in zip(net.f.weight, net.f.bias, strict=True)], 1)


@pytest.mark.parametrize("forward", [columns, columns_at_once, summed, summed_maps, row_by_row, linear_row_by_row])
@pytest.mark.parametrize("n", [3, 4])
def test_epsilon_is_of_the_image_alone_in_every_spelling_of_a_linear_layer(
    forward: Callable[[Net, Tensor], Tensor], n: int
) -> None:
    """Features above images, or one output at a time: the mean magnitude is never that of other images."""
    net, x = Net(forward), drawn(n) * torch.tensor([1.0, 10.0, 0.1, 3.0][:n]).view(-1, 1, 1, 1)
    together = quietly(LRP(net, preset="epsilon", epsilon=0.3, chunk=n), x, 1)
    for i in range(n):
        alone = quietly(LRP(net, preset="epsilon", epsilon=0.3), x[i : i + 1], 1)
        torch.testing.assert_close(together.values[i], alone.values[0])  # type: ignore[attr-defined]
        for key in ("biases", "gap"):
            torch.testing.assert_close(together.completeness[key][i], alone.completeness[key][0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("forward", [columns_at_once, columns_with_factors, columns, summed])
def test_epsilon_is_of_the_features_where_the_weights_stand_first_or_in_a_sum(
    forward: Callable[[Net, Tensor], Tensor],
) -> None:
    net, plain = Net(forward), Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))))
    if forward in (columns, summed):  # added later, the bias is no part of the layer
        for one in (net, plain):
            one.f.bias.data.zero_()
    found, expected = (quietly(LRP(one, preset="epsilon", epsilon=0.3), drawn(3)) for one in (net, plain))
    torch.testing.assert_close(found.values, expected.values)  # type: ignore[attr-defined]


@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-6])
def test_alpha_beta_tells_a_tiny_negative_part_from_rounding(share: float) -> None:
    """Thousands of contributions in single precision: what z - P leaves is then rounding, and the weights know better."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()).eval()
    net = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3)).eval()
    weight = net[2].weight.data
    weight[weight < 0] *= share
    x = drawn(1, 16)
    found = LRP(net, preset="epsilon_alpha2_beta1")(x.float(), 0)
    expected = LRP(net.double(), preset="epsilon_alpha2_beta1")(x, 0)
    off = (found.values.double() - expected.values).abs().sum() / expected.values.abs().sum()
    assert float(off) < 2e-6


@pytest.mark.parametrize("share", [0.02, 1e-3])
def test_alpha_beta_knows_a_small_negative_part_in_half_precision(share: float) -> None:
    """Where z - P would be rounding, and in single precision, where it is not."""
    w = torch.tensor([[1.0, 1.0, -share, -share]], dtype=torch.float64)
    net = (
        nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False)).double().eval()
    )
    with torch.no_grad():
        net[1].weight.copy_(w)
        net[3].weight.copy_(torch.tensor([[1.0], [2.0]]))
    x = torch.tensor([1.0, 0.5, 0.5, 1.0]).view(1, 1, 2, 2).double()
    table = relevance("t", dense=AlphaBeta(2.0, 1.0), convolution=None)
    z = 1.5 * (1 - share)
    for dtype, off in ((torch.float64, 1e-9), (torch.float32, 1e-3), (torch.bfloat16, 0.05)):
        found = quietly(LRP(net.to(dtype), rules=table), x.to(dtype), 0).values.flatten().double()  # type: ignore[attr-defined]
        expected = z / 1.5 * torch.tensor([2.0, 1.0, -0.5, -1.0]).double()
        torch.testing.assert_close(found, expected, rtol=off, atol=0)


@pytest.mark.parametrize(
    ("name", "pool", "shape"),
    [
        ("max_pool1d", nn.MaxPool1d(3, 2, padding=1), (2, 3, 9)),
        ("max_pool2d", nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (2, 3, 8, 7)),
        ("max_pool2d", nn.MaxPool2d(2, 1, dilation=2), (2, 3, 6, 6)),
        ("max_pool3d", nn.MaxPool3d(2), (2, 2, 4, 4, 4)),
        ("adaptive_max_pool2d", nn.AdaptiveMaxPool2d(3), (2, 3, 6, 9)),
    ],
)
def test_proportional_pools_of_every_kind(name: str, pool: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, dtype=torch.float64) + 0.1
    net = nn.Sequential(pool, nn.Flatten())
    run = propagate(net, x, presets.gradient.but({name: proportional}))
    seed = torch.rand(run.output.shape, dtype=torch.float64)
    (m,) = run.gradient(seed)
    torch.testing.assert_close((m * x).flatten(1).sum(1), (seed * run.output).sum(1).detach())
    (winner,) = propagate(net, x, presets.gradient).gradient(seed)
    assert int((m != 0).sum()) > int((winner != 0).sum())
    for i in range(5):  # one window alone: in proportion to the values
        one = torch.zeros_like(seed)
        one[0, i] = 1.0
        (alone,) = propagate(net, x, presets.gradient.but({name: proportional})).gradient(one)
        inside = alone != 0
        torch.testing.assert_close(alone[inside], (net(x)[0, i] / x[inside].sum()).expand(int(inside.sum())))


@pytest.mark.parametrize("method", [DeepTaylor, ExcitationBackprop])
def test_what_only_a_shift_made_is_the_shifts(method: type) -> None:
    """A layer whose inputs are all zero, without its bias in the sum: the norm's rounding is no contribution."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
        net[3].running_mean.normal_()
        net[3].running_var.uniform_(0.1, 3)
        net[3].bias.normal_()
    found = method(net.double().eval())(drawn(), 1)
    assert float(found.values.abs().max()) == 0
    whole = found.output if method is DeepTaylor else torch.ones(2).double()
    torch.testing.assert_close(found.completeness["biases"], whole)


def test_a_norm_that_is_read_twice_is_joined_and_the_next_one_is_not() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.a, self.one, self.two, self.f = (
                nn.Conv2d(3, 4, 3),
                nn.BatchNorm2d(4),
                nn.BatchNorm2d(4),
                nn.Linear(4, 3),
            )
            for norm in (self.one, self.two):
                norm.running_var.uniform_(0.5, 2)
                norm.running_mean.normal_()
                norm.weight.data.normal_()

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(self.a(x))
            return self.f((self.two(y) + y).relu().mean((2, 3)))

    net, x = Twice().double().eval(), drawn()
    for preset in ("epsilon", "z_plus"):
        found = LRP(net, preset=preset)(x, 1)
        torch.testing.assert_close(
            found.completeness["relevance"] + found.completeness["biases"], found.output, rtol=1e-5, atol=1e-8
        )
        assert found.coverage.count()["joined to its layer"] == 1


def test_a_warning_counts_the_images_of_the_batch_and_points_here() -> None:
    net, x = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))), bias=False), drawn(6)
    x[5] *= 1e-3
    x[:5] *= 10
    with pytest.warns(UserWarning, match=r"\(image 5, more than") as seen:
        LRP(net, rules=relevance("lossy", dense=Epsilon(1e-4, relative=False), convolution=Epsilon()), chunk=4)(x, 1)
    assert seen[0].filename == __file__


@pytest.mark.parametrize("preset", ["epsilon_plus_flat", "epsilon_gamma_box", "deep_taylor_unbounded", "z_plus"])
def test_the_audit_finds_no_leak_where_there_is_none(preset: str) -> None:
    """Relevance itself flows above the first layer, multipliers below it: each site's balance is in its own units."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.cat([(x - 0.1) / 0.2, x.flip(1)], 1), 2)
        return net.f(net.b(net.a(x[:, :3]).relu() + 0.1).relu().mean((2, 3)))

    x = drawn(1).round().clamp(-1, 1)
    leaks = audit(Net(forward), (x,), presets.RELEVANCE[preset](), 1)
    assert {"div[0]", "cat[0]", "avg_pool2d[0]", "conv2d[0]", "linear[0]"} <= {leak.site.name for leak in leaks}
    assert max(abs(leak.lost) for leak in leaks) < 1e-5
    assert max(abs(leak.lost) for leak in audit(Net(forward), (x,), presets.epsilon(0.5), 1)) > 1e-2


def test_shares_of_a_probability_are_of_the_logit() -> None:
    """Excitation backprop starts with 1, its sites with the logit: both are told as shares."""

    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).relu()
        h = h * h.detach().amax((1, 2, 3), keepdim=True)
        return 50 * net.f(
            torch.where(h > 0.5, h, -0.5).mean((2, 3))
        )  # the rule for gates passes what it made of others

    net, x = Net(forward, bias=False), drawn(1)
    with pytest.warns(UserWarning, match="neither in the map nor in the biases") as seen:
        found = ExcitationBackprop(net)(x)
    text = str(seen[0].message)
    headline, (first, *_) = float(text.split("%")[0].split()[-1]), text.split("lost at ")[1].split("; ")
    assert abs(float(found.completeness["gap"][0]) * 100) == pytest.approx(headline, abs=0.1)
    assert float(first.split()[-1].rstrip(".%")) == pytest.approx(headline, abs=0.2 * headline)


def test_rounding_of_a_vanishing_logit_is_no_leak() -> None:
    net = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3)))).float()
    for seed in range(8):
        x = drawn(1, seed=seed).float()
        with torch.no_grad():
            net.f.bias[1] -= net(x)[0, 1] * (1 - 1e-7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            LRP(net, preset="epsilon", tolerance=1e-3)(x, 1)


class Heads(nn.Module):
    """Two heads, whose logits stand side by side or are added up."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.a, self.one, self.two = nn.Conv2d(3, 32, 3), nn.Linear(32, 3), nn.Linear(32, 3)
        self.join = join
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu().mean((2, 3))
        return self.join(self.one(h), torch.stack([self.two(row * row) for row in h]))


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("join", [lambda u, v: torch.cat([u, v], 1), lambda u, v: torch.cat([v, u], 1), torch.add])
def test_the_contrast_starts_at_every_last_layer(join: Callable[[Tensor, Tensor], Tensor], target: int) -> None:
    """Two heads, of which one is called image by image: the class against its opposite sums to zero at each."""
    net, x = Heads(join), drawn(3)
    found = ExcitationBackprop(net, contrastive=True)(x, target)
    assert float(found.completeness["relevance"].abs().max()) < 1e-12
    assert float(found.values.abs().sum()) > 0.01
    for i in range(3):
        alone = ExcitationBackprop(net, contrastive=True)(x[i : i + 1], target)
        torch.testing.assert_close(found.values[i], alone.values[0])


def test_more_bad_options() -> None:
    net, x = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3)))), drawn()
    nan = float("nan")
    for make, message in (
        (lambda: AlphaBeta(nan, nan), "alpha and beta must be numbers"),
        (lambda: AlphaBeta(float("inf"), float("inf")), "alpha and beta must be numbers"),
        (lambda: Gamma(float("inf")), "gamma must be a number of at least 0, but is inf"),
        (lambda: LRP(net, gamma=-4), "gamma must be a number of at least 0, but is -4"),
        (lambda: LRP(net, gamma=0.5), "gamma must be left out with preset='epsilon_plus', which has no such rule"),
        (lambda: LRP(net, preset="z_plus", epsilon=0.1), "epsilon must be left out with preset='z_plus'"),
        (
            lambda: LRP(net, rules=presets.guided),
            "rules must be rules by primitive, a table made by .*, but is \"the table 'guided'\"",
        ),
        (lambda: DeepTaylor(net, low=torch.ones(3), high=2)(x), "they are a tensor from 1 to 1 and 2"),
        (lambda: LRP(net, low="black"), "low must be a number, one for each channel, or None, but is 'black'"),
        (lambda: DeepTaylor(net, high=[None, 1, 2]), "high must be a number, one for each channel, or None"),
        (lambda: relevance("t", dense="epsilon", convolution=None), "dense must be a rule, such as Epsilon"),  # type: ignore[arg-type]
        (lambda: relevance("t", dense=None, convolution=Epsilon), "convolution must be a rule"),  # type: ignore[arg-type]
        (lambda: DeepTaylor(net, low=[0.0] * 5, high=9)(x), "low must be a number, one for each channel"),
        (lambda: DeepTaylor(net, low=torch.zeros(5, 1, 6, 6), high=9)(x[:1]), "low must be a number, one for each"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    table = relevance("t", dense=Epsilon(), convolution=Epsilon())
    with pytest.raises(InputError, match=r"rules must be alone, .* but is 'a table, beside preset, pool"):
        LRP(net, rules=table, preset="z_plus", pool="proportional")
    with pytest.raises(UnsupportedOp, match="needs a layer with weights"):
        ExcitationBackprop(nn.Sequential(nn.ReLU(), nn.Flatten()), contrastive=True)(torch.rand(1, 1, 2, 2))
