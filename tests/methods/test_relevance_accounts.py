"""Relevance propagation where the account is easily wrong: images in other dimensions, constants, gates, pixels, messages."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import DMBP, LRP, DeepTaylor, ExcitationBackprop, GuidedBackprop, InputError, UnsupportedOp
from backlit.capture import propagate
from backlit.methods.audit import audit
from backlit.rules import presets
from backlit.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, LayerRule, WSquare, ZBox
from backlit.rules.pooling import proportional
from backlit.rules.relevance import relevance


class Net(nn.Module):
    """Two convolutions and a linear layer in float64, and a forward pass of its own."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], bias: bool = True, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a = nn.Conv2d(channels, 4, 3, padding=1, bias=bias)
        self.b = nn.Conv2d(4, 4, 1, bias=bias)
        self.f = nn.Linear(4, 3, bias=bias)
        self._forward = forward
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def drawn(n: int = 2, size: int = 6, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quietly(method: object, *arguments: object) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method(*arguments)  # type: ignore[operator]


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


def test_a_network_that_ends_in_a_softmax_is_refused() -> None:
    net = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))).softmax(1))
    for method in (LRP(net), DeepTaylor(net), ExcitationBackprop(net)):
        with pytest.raises(UnsupportedOp, match=r"ends in softmax\[0\] .* probabilities are held: the map is zero"):
            method(drawn())
    GuidedBackprop(net)(drawn())

    def aside(net: Net, x: Tensor) -> Tensor:
        y = net.f(net.a(x).relu().mean((2, 3)))
        net.probabilities = y.softmax(1)  # type: ignore[assignment]  no part of the output
        return y

    assert float(LRP(Net(aside)).attribute(drawn()).abs().max()) > 0


def _written(h: Tensor, s: Tensor, values: Tensor | float) -> Tensor:
    s = s + 0.0
    s[:, :1] = values
    return h * s


def _squashed_through_a_view(h: Tensor, s: Tensor) -> Tensor:
    z = h + 0.0
    z[:, :].sigmoid_()
    return h * z


@pytest.mark.parametrize(
    "spelled",
    [
        lambda h, w: h * w.to(h),
        lambda h, w: h * w.type_as(h),
        lambda h, w: w.expand_as(h) * h,
        lambda h, w: h * w.expand(len(h), -1, 6, 6).reshape_as(h),
        lambda h, w: h * w.expand(len(h), -1, 6, 6).contiguous().view_as(other=h),
        lambda h, w: h + (w.expand_as(h) - 1) * h,
        lambda h, w: F.conv2d(h, w.view(4, 1, 1, 1).to(h), groups=4),  # as a weight, too
    ],
)
@pytest.mark.parametrize("method", [LRP, DeepTaylor, DMBP])
def test_a_constant_shaped_like_a_signal_is_a_constant(
    spelled: Callable[[Tensor, Tensor], Tensor], method: type
) -> None:
    """It takes the signal's shape or type, none of its values: the product has one signal, the sum a bias."""
    scale = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64).view(1, 4, 1, 1)
    plain, other = (
        quietly(
            method(Net(lambda net, x, act=act: net.f((act(net.a(x).relu(), scale) + 0.1).mean((2, 3))))), drawn(), 1
        )
        for act in (lambda h, w: h * w, spelled)
    )
    torch.testing.assert_close(other.values, plain.values)  # type: ignore[attr-defined]
    added = Net(lambda net, x: net.f((net.a(x).relu() + scale.expand_as(net.a(x))).mean((2, 3))))
    assert float(LRP(added)(drawn(), 1).completeness["gap"].abs().max()) < 1e-6
    masked = Net(lambda net, x: net.f(torch.where((scale > 1).expand_as(h := net.a(x).relu()), h, 0).mean((2, 3))))
    assert "gated[0]" not in {site.name for site in propagate(masked, drawn(), presets.gradient).trace}


@pytest.mark.parametrize(
    ("product", "maker"),
    [
        (lambda h, s: h * (1 - s), "sigmoid"),
        (lambda h, s: h * (s + h), "add"),
        (lambda h, s: h * torch.where(torch.arange(6) < 3, s, 0), "sigmoid"),
        (lambda h, s: h * torch.where(h > 1, s, h), "gated"),
        (lambda h, s: _written(h, s, 0.0), "sigmoid"),
        (lambda h, s: _written(h, s, h[:, :1]), "setitem"),
        (lambda h, s: h * torch.cat([s, h], 1)[:, 2:6], "cat"),
        (_squashed_through_a_view, "sigmoid"),
    ],
)
def test_a_factor_knows_what_made_its_values(product: Callable[..., Tensor], maker: str) -> None:
    """Through what moves, scales and shifts one signal; a sum of two, or one written into another, is a new value."""
    net = Net(
        lambda net, x: net.f(product(net.a(x).relu(), net.b(x[:, :1].expand(-1, 4, -1, -1)).sigmoid()).mean((2, 3)))
    )
    trace = propagate(net, drawn(), presets.gradient).trace
    assert trace["product[0]"].makers == ("relu", maker)


@pytest.mark.parametrize(
    "gated",
    [
        lambda h, y: h * y,
        lambda h, y: h * y.expand_as(h),
        lambda h, y: y.expand_as(h) * h,
        lambda h, y: h * (2 * y).expand(-1, -1, *h.shape[2:]) / 2,
        lambda h, y: h * y.view(len(h), 4, 1, 1).repeat(1, 1, *h.shape[2:]),
    ],
)
@pytest.mark.parametrize("size", [6, 1])
def test_a_gate_is_one_in_every_spelling_and_at_every_size(gated: Callable[..., Tensor], size: int) -> None:
    """Squeeze and excitation: the sigmoid gets none, also where both factors have one shape."""

    def forward(net: Net, x: Tensor, gate: Callable[..., Tensor]) -> Tensor:
        h = net.a(x).relu()
        return net.f(gate(h, net.b(h.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3)))

    x = drawn(2, size)
    net = Net(lambda net, x: forward(net, x, gated), bias=False)
    found = LRP(net, preset="epsilon")(x, 1)
    torch.testing.assert_close(found.completeness["ratio"], torch.ones(2).double(), rtol=1e-5, atol=1e-5)
    h = net.a(x).relu().detach()
    held = net.b(h.mean((2, 3), keepdim=True)).sigmoid().detach()
    fixed = Net(lambda net, x: net.f((net.a(x).relu() * held).mean((2, 3))), bias=False)
    torch.testing.assert_close(found.values, LRP(fixed, preset="epsilon")(x, 1).values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "weights",
    [
        lambda s: s.softmax(-1),
        lambda s: s.softmax(-1) * 0.9,
        lambda s: F.dropout(s.softmax(-1), 0.5, training=False).transpose(-1, -2).contiguous().transpose(-1, -2),
    ],
)
def test_attention_weights_are_known_by_where_they_come_from(
    weights: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).relu().flatten(2).transpose(1, 2)
        mixed = weights(8 * h @ h.transpose(1, 2)) @ h
        return net.f(mixed).mean(1)

    for size in (3, 1):  # one token has the weight 1
        net, x = Net(forward, bias=False).to(dtype), drawn(2, size).to(dtype)
        found = quietly(LRP(net, preset="epsilon_plus"), x, 1)
        off = 1e-3 if dtype != torch.bfloat16 else 0.1
        assert float((found.completeness["ratio"] - 1).abs().max()) < off  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "mask",
    [
        lambda u, m: u.masked_fill(m, -1e9),
        lambda u, m: u.masked_fill(m, -torch.inf),
        lambda u, m: torch.where(m, -torch.inf, u),
        lambda u, m: u + torch.zeros_like(u).masked_fill(m, -torch.inf) + 0.0,
    ],
)
@pytest.mark.parametrize("attention", ["held", "attnlrp"])
def test_masked_attention_has_a_finite_account(mask: Callable[..., Tensor], attention: str) -> None:
    """Infinity times the zero that reaches it is nothing, neither in the account nor in the warning's."""

    def forward(net: Net, x: Tensor) -> Tensor:
        t = net.a(x).flatten(2).mT
        u = mask(t @ t.mT, torch.ones(36, 36, dtype=torch.bool).triu(1))
        return net.f((t + u.softmax(-1) @ t).mean(1))

    fused = Net(lambda net, x: net.f(((t := net.a(x).flatten(2).mT) + _causal(t)).mean(1)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = LRP(Net(forward), attention=attention)(drawn(), 1)
        expected = LRP(fused, attention=attention)(drawn(), 1)
    for key in ("biases", "gap", "ratio"):
        torch.testing.assert_close(found.completeness[key], expected.completeness[key], rtol=1e-5, atol=1e-6)
    messages = [str(w.message) for w in caught]
    assert len(messages) == (2 if attention == "attnlrp" else 0)
    assert not any("nan" in m for m in messages)


def _causal(t: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(t, t, t, is_causal=True, scale=1.0)


def test_averages_of_pixels_share_by_their_weights_alone() -> None:
    """A pool before the first layer: no division by what it put out, which may vanish."""
    for average in (
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, padding=1),
        lambda x: F.adaptive_avg_pool2d(x, 4),
    ):
        net = Net(lambda net, x, average=average: net.f(net.a(average(x)).relu().mean((2, 3))), bias=False)
        x = drawn(2, 6)
        x[:, :, :2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # an average of 0
        found = DeepTaylor(net, bounded=False)(x, 1)
        torch.testing.assert_close(found.completeness["ratio"], torch.ones(2).double())
        signs = found.values * found.output.sign()[:, None, None, None]
        assert float(signs.min()) >= -1e-12
        bare = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))), bias=False)
        below = DeepTaylor(bare, bounded=False)(average(x), 1).values
        with torch.enable_grad():
            leaf = torch.zeros_like(x).requires_grad_()
            scale = average(torch.ones_like(x))
            (expected,) = torch.autograd.grad(average(leaf), leaf, below / scale)
        torch.testing.assert_close(found.values, expected)
    grey = Net(lambda net, x: net.f(net.a(x.mean(1, keepdim=True)).relu().mean((2, 3))), bias=False, channels=1)
    found = DeepTaylor(grey, bounded=False)(drawn(), 1)
    torch.testing.assert_close(found.values[:, 0], found.values[:, 2])
    torch.testing.assert_close(found.completeness["ratio"], torch.ones(2).double())


def by_unfolding(net: Net, x: Tensor) -> Tensor:
    return (F.unfold(x, 3, padding=1).mT @ net.a.weight.flatten(1).T).mT


def by_views(net: Net, x: Tensor) -> Tensor:
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
    return (windows @ net.a.weight.flatten(1).T).permute(0, 3, 1, 2).flatten(2)


def by_folding(net: Net, x: Tensor) -> Tensor:
    return net.a(F.fold(F.unfold(x, 2, stride=2), 6, 2, stride=2)).flatten(2)


def by_sampling(net: Net, x: Tensor) -> Tensor:
    grid = F.affine_grid(torch.eye(2, 3).to(x).expand(len(x), 2, 3), list(x.shape), align_corners=True)
    return net.a(F.grid_sample(x, grid, align_corners=True)).flatten(2)


@pytest.mark.parametrize("way", [by_unfolding, by_views, by_folding, by_sampling])
@pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox(-2, 2), Epsilon()])
def test_pixels_that_are_zero_have_relevance_however_the_first_layer_gets_them(
    way: Callable[[Net, Tensor], Tensor], rule: LayerRule
) -> None:
    """Windows cut by hand are a convolution; what they read beyond the edge is the constants'."""
    table = relevance("t", dense=Epsilon(), convolution=Epsilon(), first=rule)
    x = drawn().round().clamp(-1, 1)
    assert bool((x == 0).any())
    plain, other = (
        LRP(Net(lambda net, x, cut=cut: net.f(cut(net, x).relu().mean(2)), bias=False), rules=table)(x, 1)
        for cut in (lambda net, x: net.a(x).flatten(2), way)
    )
    edge = 1 if way in (by_unfolding, by_views) else 0  # there the padding is a signal like any other
    inside = (..., slice(2 * edge, 6 - 2 * edge), slice(2 * edge, 6 - 2 * edge))
    torch.testing.assert_close(other.values[inside], plain.values[inside])
    assert float(other.completeness["gap"].abs().max()) < 1e-5 * float(other.output.abs().max())


@pytest.mark.parametrize("preset", ["epsilon_plus_flat", "epsilon_gamma_box", "deep_taylor_unbounded"])
def test_a_first_layer_without_one_tensor_of_weights_gives_pixels_relevance(preset: str) -> None:
    """No weights, or two: the pixels still get relevance, not multipliers."""
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for gray in (
        lambda x: torch.einsum("nchw->nhw", x),
        lambda x: torch.einsum("nchw,c,c->nhw", x, weights, weights),
    ):
        net = Net(lambda net, x, gray=gray: net.f(net.a(gray(x)[:, None]).relu().mean((2, 3))), channels=1)
        found = LRP(net, preset=preset)(drawn(), 1)
        assert float(found.completeness["gap"].abs().max()) < 1e-6


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
        lambda x: torch.cat([x[:, 1:], torch.ones_like(x[:, :1])], 1),
        lambda x: torch.where(torch.arange(6) < 3, x, 0.5),
        lambda x: F.fold(F.unfold(x, 3, padding=1), 6, 3, padding=1),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: (x - 0.1) / 0.2,
    ],
)
@pytest.mark.parametrize("preset", ["epsilon_plus", "epsilon_plus_flat", "deep_taylor_unbounded"])
def test_several_classes_at_once_before_the_first_layer(cut: Callable[[Tensor], Tensor], preset: str) -> None:
    net, x = Net(lambda net, x: net.f(net.a(cut(x)).relu().mean((2, 3)))), drawn()
    together = LRP(net, preset=preset).each(x, [[0, 1], [2, 0]])
    for t, target in enumerate(([0, 2], [1, 0])):
        alone = LRP(net, preset=preset)(x, target)
        torch.testing.assert_close(together[t].values, alone.values)
        torch.testing.assert_close(together[t].completeness["biases"], alone.completeness["biases"])


def test_a_sum_of_pixels_is_their_mean() -> None:
    """Whichever way it is written: not by values, which may cancel."""
    x = drawn().round().clamp(-1, 1)
    ways = (
        lambda x: x.mean(1, keepdim=True),
        lambda x: x.sum(1, keepdim=True) / 3,
        lambda x: (x / 3).sum(1, keepdim=True),
    )
    nets = [Net(lambda net, x, way=way: net.f(net.a(way(x)).relu().mean((2, 3))), channels=1) for way in ways]
    for preset in ("epsilon_plus", "epsilon_plus_flat", "deep_taylor"):
        found, *others = (LRP(net, preset=preset)(x, 1) for net in nets)
        for other in others:
            torch.testing.assert_close(other.values, found.values)
            assert float(other.completeness["gap"].abs().max()) < 1e-6


def test_coordinates_beside_the_pixels_take_their_own_share() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        rows = torch.linspace(-1, 1, 6, dtype=x.dtype).view(1, 1, 6, 1).expand(len(x), 1, 6, 6)
        return net.f(net.a(torch.cat([x, rows], 1)).relu().mean((2, 3)))

    net, x = Net(forward, bias=False, channels=3), drawn(channels=2)
    whole = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))), bias=False)
    rows = torch.linspace(-1, 1, 6, dtype=x.dtype).view(1, 1, 6, 1).expand(2, 1, 6, 6)
    for preset in ("epsilon", "epsilon_plus", "epsilon_plus_flat"):
        found = LRP(net, preset=preset)(x, 1)
        both = LRP(whole, preset=preset)(torch.cat([x, rows], 1), 1).values
        torch.testing.assert_close(found.values, both[:, :2])
        torch.testing.assert_close(found.completeness["biases"], both[:, 2:].sum((1, 2, 3)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "constant",
    [
        lambda h: F.pad(h, [1, 1, 1, 1], value=1.0),
        lambda h: torch.where(torch.arange(6) % 2 == 0, h, torch.full((), 0.5, dtype=h.dtype)),
        lambda h: h.masked_fill(torch.arange(6) % 2 == 0, 0.5),
        lambda h: torch.addcmul(torch.ones(6, dtype=h.dtype), h, torch.full((6,), 2.0, dtype=h.dtype)),
        lambda h: h + 1 / (1 + h),
        lambda h: h + (1 + h) ** -0.5,
        lambda h: h + h.exp(),
    ],
)
def test_constants_on_the_way_are_biases(constant: Callable[[Tensor], Tensor]) -> None:
    net = Net(lambda net, x: net.f(net.b(constant(net.a(x).relu())).mean((2, 3))), bias=False)
    found = LRP(net, preset="epsilon")(drawn(), 1)
    c = found.completeness
    assert float(c["biases"].abs().min()) > 1e-3
    torch.testing.assert_close(c["relevance"] + c["biases"], found.output, rtol=1e-5, atol=1e-7)


def test_a_power_without_a_value_at_zero_is_a_divisor() -> None:
    """RMS norm by hand, in three spellings."""
    one = Net(lambda net, x: net.f((h := net.a(x).relu()).mul((h.pow(2).mean(1, True) + 1e-5).pow(-0.5)).mean((2, 3))))
    two = Net(lambda net, x: net.f((h := net.a(x).relu()).div((h.pow(2).mean(1, True) + 1e-5) ** 0.5).mean((2, 3))))
    three = Net(lambda net, x: net.f((h := net.a(x).relu()).mul((h.pow(2).mean(1, True) + 1e-5).rsqrt()).mean((2, 3))))
    found, *others = (quietly(LRP(net, preset="epsilon"), drawn(), 1) for net in (one, two, three))
    for other in others:
        torch.testing.assert_close(found.values, other.values)  # type: ignore[attr-defined]


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


def test_a_box_is_that_of_the_networks_input() -> None:
    """A normalisation inside the network: black and white are what it makes of them."""
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).view(3, 1, 1)
    inside = Net(lambda net, x: net.f(net.a((x - mean) / 0.2).relu().mean((2, 3))))
    outside = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))))
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    low, high = (-mean / 0.2).flatten().tolist(), ((1 - mean) / 0.2).flatten().tolist()
    expected = DeepTaylor(outside, low=low, high=high)((x - mean) / 0.2, 1).values
    torch.testing.assert_close(DeepTaylor(inside, low=0.0, high=1.0)(x, 1).values, expected)
    found = LRP(inside, preset="epsilon_gamma_box", low=0, high=[1.0, 1.0, 1.0])(x, 1).values
    theirs = LRP(outside, preset="epsilon_gamma_box", low=low, high=high)((x - mean) / 0.2, 1).values
    torch.testing.assert_close(found, theirs)
    negative = Net(lambda net, x: net.f(net.a((mean - x) / 0.2).relu().mean((2, 3))))  # white is below black
    bounds = {"low": ((mean - 1) / 0.2).flatten().tolist(), "high": (mean / 0.2).flatten().tolist()}
    expected = DeepTaylor(outside, **bounds)((mean - x) / 0.2, 1).values
    torch.testing.assert_close(DeepTaylor(negative, low=0.0, high=1.0)(x, 1).values, expected)


def test_a_value_a_little_outside_of_the_box_is_its_own_bound() -> None:
    """Noise that a sensitivity test adds may leave the box; the rule's contributions stay positive."""
    net = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))), bias=False)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64) * 1.1 - 0.05
    found = DeepTaylor(net, low=0.0, high=1.0)(x, 1)
    assert float((found.values * found.output.sign()[:, None, None, None]).min()) >= 0
    torch.testing.assert_close(found.completeness["ratio"], torch.ones(2).double())
    with pytest.raises(InputError, match="low and high must bound the input, but it reaches from"):
        DeepTaylor(net, low=0.3, high=1.0)(x, 1)


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


def test_an_image_without_any_signal_has_a_map_of_zeros() -> None:
    net = Net(lambda net, x: net.f(net.b(net.a(x).relu()).relu().mean((2, 3))), bias=False)
    for preset in presets.RELEVANCE:
        assert float(LRP(net, preset=preset).attribute(torch.zeros(1, 3, 6, 6).double(), 1).abs().max()) == 0


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
    found = ExcitationBackprop.contrastive(net)(x, target)
    assert float(found.completeness["relevance"].abs().max()) < 1e-12
    assert float(found.values.abs().sum()) > 0.01
    for i in range(3):
        alone = ExcitationBackprop.contrastive(net)(x[i : i + 1], target)
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
        (lambda: LRP(net, rules=presets.guided), "rules must be a table made by .*, but is \"the table 'guided'\""),
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
