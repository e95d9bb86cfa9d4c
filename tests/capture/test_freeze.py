"""Frozen forms: each gives back the recorded value, and holds fixed what the docs say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from backlit import UnsupportedOp
from backlit.capture import freeze


class Between(nn.Module):
    def __init__(self, part: Callable[[Tensor], Tensor], dims: int = 2, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 4, 3, padding=1)
        self.fc, self.part = nn.LazyLinear(classes), part

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.part(self.conv(x)).flatten(1))


def built(part: Callable[[Tensor], Tensor], dims: int = 2) -> tuple[nn.Module, Tensor]:
    x = torch.randn(2, 2, *[6] * dims, generator=torch.Generator().manual_seed(1))
    model = Between(part, dims)
    model(x)
    return model.double().eval(), x.double()


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(4), nn.RReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Threshold(0.1, -2), nn.ELU(),
    nn.CELU(2.0), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Softplus(), nn.Sigmoid(),
    nn.Hardsigmoid(), nn.LogSigmoid(), nn.Tanh(), nn.Softsign(), nn.Tanhshrink(), nn.Hardshrink(), nn.Softshrink(),
    torch.abs, torch.square, lambda x: x**3, lambda x: x.exp(), lambda x: torch.sqrt(x.abs()), lambda x: torch.rsqrt(x**2 + 1), lambda x: x.clamp(-0.2, 0.3),
    lambda x: F.silu(x, inplace=True), lambda x: F.elu_(x), lambda x: x.sigmoid_(), lambda x: F.hardswish(x, inplace=True),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_keep_their_value(activation: Callable[[Tensor], Tensor]) -> None:
    model, x = built(activation)
    frozen = freeze(model, x)
    torch.testing.assert_close(frozen(x), model(x))
    # Affine: the map of a midpoint is the midpoint of the maps.
    y = torch.randn_like(x)
    torch.testing.assert_close(frozen((x + y) / 2), (frozen(x) + frozen(y)) / 2)
    assert len(frozen.activations) >= 1


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.ReLU6(), nn.Hardtanh(), nn.PReLU(4), nn.Softshrink(0.1)]
)
def test_piecewise_linear_ones_take_their_own_piece(activation: nn.Module) -> None:
    model, x = built(activation)
    leaf, frozen_leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    true = torch.autograd.grad(model(leaf).sum(), leaf)[0]
    torch.testing.assert_close(torch.autograd.grad(freeze(model, x)(frozen_leaf).sum(), frozen_leaf)[0], true)


def test_smooth_ones_take_the_secant_from_zero() -> None:
    for activation, at_zero, limit in ((nn.GELU(), 0.0, 0.5), (nn.Sigmoid(), 0.5, 0.25), (nn.Tanh(), 0.0, 1.0)):
        model, x = built(lambda z, f=activation: f(torch.cat([z, z * 0], 1)))
        ((_, form),) = freeze(model, x).activations
        z = torch.cat([model.conv(x), model.conv(x) * 0], 1)
        torch.testing.assert_close(form.slope[:, :4], ((activation(z) - at_zero) / z)[:, :4])
        torch.testing.assert_close(form.slope[:, 4:], torch.full_like(form.slope[:, 4:], limit))


POOLS: list[tuple[int, Callable[[Tensor], Any]]] = [
    (2, nn.MaxPool2d(3, 2, 1)), (2, nn.MaxPool2d(2, dilation=2)), (2, nn.MaxPool2d(3, 2, ceil_mode=True)),
    (2, lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), (2, nn.AdaptiveMaxPool2d((3, 2))), (2, nn.AvgPool2d(3, 2, 1)),
    (2, nn.AdaptiveAvgPool2d(4)), (2, lambda x: x.amax((2, 3))), (2, lambda x: x.max(1)[0]), (2, lambda x: x.max(2, keepdim=True)[0]),
    (2, lambda x: x.amin(1, keepdim=True)), (2, lambda x: torch.maximum(x, x.flip(1))), (2, lambda x: torch.minimum(x, x * 2)),
    (2, lambda x: torch.maximum(x, torch.ones(()).double())), (1, nn.MaxPool1d(2)), (1, nn.AvgPool1d(2)), (1, nn.AdaptiveMaxPool1d(3)),
    (3, nn.MaxPool3d(2)), (3, nn.AvgPool3d(2)), (3, nn.AdaptiveAvgPool3d(2)), (3, nn.AdaptiveMaxPool3d(2)),
    (2, lambda x: F.max_pool2d(torch.round(x), 3, 1, 1) if False else F.max_pool2d(F.relu(x), 3, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("dims", "pool"), POOLS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_pools_keep_their_value_and_their_gradient(
    dims: int, pool: Callable[[Tensor], Tensor], channels_last: bool
) -> None:
    model, x = built(pool, dims)
    frozen = freeze(model, x)
    if channels_last:
        frozen = frozen.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last) if dims == 2 else x
    torch.testing.assert_close(frozen(x), model(x))
    leaf, frozen_leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    true = torch.autograd.grad(model(leaf).sum(), leaf)[0]
    torch.testing.assert_close(torch.autograd.grad(frozen(frozen_leaf).sum(), frozen_leaf)[0], true)


OTHERS: list[Callable[[Tensor], Tensor]] = [
    nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([4, 6, 6]), nn.LayerNorm(6),
    nn.LocalResponseNorm(2), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True), lambda x: x * torch.sigmoid(x),
    lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), lambda x: x / (1 + x.abs()), lambda x: x * x, lambda x: 1 / (2 + x.abs()),
    lambda x: x.flatten(2).softmax(-1) @ x.flatten(2).mT, lambda x: F.scaled_dot_product_attention(x, x, x),
    lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3), lambda x: torch.einsum("nchw,nkhw->nck", x, x),
    lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), lambda x: F.pad(x, (1, 2)), lambda x: F.pixel_shuffle(x, 2),
    lambda x: torch.stack([x, -x]).sum(0) + 1 - 2 * x, lambda x: x.chunk(2, 1)[1].unsqueeze(0).squeeze(0), lambda x: torch.roll(x, 1, 2),
    lambda x: x[:, ::2].repeat(1, 2, 1, 1).transpose(2, 3).contiguous(), nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1),
]  # fmt: skip


@pytest.mark.parametrize("part", OTHERS)
def test_everything_else_keeps_its_value_and_is_affine(part: Callable[[Tensor], Tensor]) -> None:
    model, x = built(part)
    frozen = freeze(model, x)
    torch.testing.assert_close(frozen(x), model(x))
    y = torch.randn_like(x)
    torch.testing.assert_close(frozen((x + y) / 2), (frozen(x) + frozen(y)) / 2)


TANGENTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.glu(x, 1), lambda x: x.std(1), lambda x: torch.var(x, dim=(2, 3), correction=0), lambda x: torch.var_mean(x, 1)[0],
    lambda x: torch.cat(torch.std_mean(x, 1), 1), lambda x: torch.linalg.vector_norm(x, dim=(2, 3)), lambda x: x.norm(3, dim=1),
    lambda x: x.logsumexp(1), lambda x: torch.logaddexp(x, 2 * x), lambda x: x.prod(1), lambda x: x.cumprod(1), lambda x: x.sort(2)[0],
    lambda x: x.topk(2, 1)[0], lambda x: x.median(1)[0], lambda x: x.cummax(1)[0], lambda x: F.cosine_similarity(x, x.flip(1), 2),
    lambda x: F.lp_pool2d(x, 1, 2), lambda x: x.abs().log(), lambda x: torch.frac(x),
]  # fmt: skip


@pytest.mark.parametrize("part", TANGENTS)
def test_what_has_no_form_of_its_own_is_its_tangent(part: Callable[[Tensor], Tensor]) -> None:
    model, x = built(part)
    frozen = freeze(model, x)
    torch.testing.assert_close(frozen(x), model(x))
    leaf, other = x.clone().requires_grad_(), torch.randn_like(x).requires_grad_()
    (true,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    for at in (leaf, other):  # the same derivative everywhere: it is affine
        (ours,) = torch.autograd.grad(frozen(at)[:, 0].sum(), at)
        torch.testing.assert_close(ours, true)
    torch.testing.assert_close(freeze(model, x[:1])(other[:1]), frozen(other)[:1])


@pytest.mark.parametrize("part", [lambda x: x / x.norm(dim=1, keepdim=True), F.normalize, nn.RMSNorm((6, 6))])
def test_a_norm_holds_its_divisor(part: Callable[[Tensor], Tensor]) -> None:
    model, x = built(part)
    frozen = freeze(model, x)
    torch.testing.assert_close(frozen(x), model(x))
    assert backlit.GuidedBackprop(model).attribute(x, 0).shape == x.shape


def test_attention_layers_are_seen_through() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer, self.head = nn.Conv2d(2, 8, 2, 2), layer, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(x).flatten(2).mT).mean(1))

    torch.manual_seed(0)
    model, x = Tokens().double().eval(), torch.randn(2, 2, 6, 6).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    frozen = freeze(model, x)
    torch.testing.assert_close(frozen(x), model(x))
    assert "attention" in {s.primitive for s in frozen.trace}
    explanation = backlit.DMBP(model, steps=3)(x, 1)
    assert float(explanation.completeness["gap"].abs().max()) < 1e-10
    torch.testing.assert_close(backlit.DMBP(model, steps=3)(x[1:], 1).values[0], explanation.values[1])


def test_what_is_left_after_fixing_the_input_gives_the_same() -> None:
    model, x = built(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()))
    frozen = freeze(model, x)
    names = [site.name for site, _ in frozen.activations]
    rest = frozen.at(x, scaled=names[1:])

    def halved(site: Any, form: Any, z: Tensor) -> Tensor:
        return form(z) / 2 if site.name == names[1] else form(z)

    torch.testing.assert_close(rest(activate=halved), frozen(x, activate=halved))
    assert not torch.allclose(rest(activate=halved), frozen(x))
    assert len(rest.recording.nodes) < len(frozen.recording.nodes) - 2


def test_precision_follows() -> None:
    model, x = built(nn.SiLU())
    single = freeze(model.float(), x.float())
    double = single.to(dtype=torch.float64)
    assert double(x).dtype == torch.float64
    torch.testing.assert_close(double(x).float(), single(x.float()), rtol=1e-4, atol=1e-5)


def test_values_that_leave_the_batch_axis_are_refused_by_dmbp() -> None:
    model, x = built(lambda z: F.relu(z.transpose(0, 1)).transpose(0, 1))
    with pytest.raises(UnsupportedOp, match=r"does not hold its images in the first dimension.*sites="):
        backlit.DMBP(model, steps=1)(x, 0)


def test_offsets_are_judged_by_the_scale_of_their_layer() -> None:
    """A ReLU6 in a network of tiny values has offsets that matter; the rounding of a secant at large ones does not."""
    model, x = built(lambda z: z.mul(1e-18).clamp(0, 1e-19).mul(1e18))
    torch.testing.assert_close(freeze(model, x)(x), model(x))
    model, x = built(lambda z: torch.square(z * 1e4))
    ((_, form),) = freeze(model.float(), x.float()).activations
    assert form.offset is None
