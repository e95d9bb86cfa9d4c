"""Patterns at sums and scales: networks that compute the same must have the same patterns, however they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from _fit_networks import drawn, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import InputError, PatternAttribution, PatternNet
from backlit.attribution import Attribution
from backlit.inverse import Fitted
from backlit.inverse.artefact import Layers
from backlit.methods.pattern import _shaped

METHODS = pytest.mark.parametrize("method", [PatternNet, PatternAttribution])
ESTIMATORS = pytest.mark.parametrize("estimator", ["linear", "two_component"])


class _Residual(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], depth: int = 4) -> None:
        super().__init__()
        self.first, self.last, self.join = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4 * 36, 3), join
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth))
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x).relu()
        for block in self.blocks:
            z = self.join(block(z), z).relu()
        return self.last(z.flatten(1))


def _weighted(one: float, other: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The sum as a grouped convolution, each group both summands of a channel."""
    weight = torch.tensor([one, other], dtype=torch.float64).view(1, 2, 1, 1).expand(4, -1, -1, -1)
    return lambda u, z: F.conv2d(torch.stack([u, z], 2).flatten(1, 2), weight, groups=4)


def _in_place(u: Tensor, z: Tensor) -> Tensor:
    u += z
    return u


SUMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[float, float]]] = {
    "add": (lambda u, z: u + z, (1, 1)),
    "add in place": (_in_place, (1, 1)),
    "alpha": (lambda u, z: torch.add(u, z, alpha=2), (1, 2)),
    "sub": (lambda u, z: u - z, (1, -1)),
    "rsub": (lambda u, z: torch.rsub(u, z), (-1, 1)),
    "broadcast": (lambda u, z: u + z.mean((2, 3), keepdim=True), (1, 1)),
}


def size(found: Attribution) -> Tensor:
    """The maps in the unit that they would have without their division."""
    return found.values * 10 ** found.completeness["log10_scale"].view(-1, 1, 1, 1)


@METHODS
@ESTIMATORS
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_the_convolution_that_computes_it(name: str, estimator: str, method: type[PatternNet]) -> None:
    join, (one, other) = SUMS[name]
    convolved = _weighted(one, other)
    if name == "broadcast":
        net, twin = _Residual(join), _Residual(lambda u, z: convolved(u, z.mean((2, 3), keepdim=True).expand_as(z)))
    else:
        net, twin = _Residual(join), _Residual(convolved)
    x = drawn(60, 2, 6, 6)
    torch.testing.assert_close(net(x), twin(x))
    ours = method(net, fitted=PatternNet.fit(net, x.split(25)), estimator=estimator)(x[:8], 1)
    theirs = method(twin, fitted=PatternNet.fit(twin, [x]), estimator=estimator)(x[:8], 1)
    torch.testing.assert_close(size(ours), size(theirs), rtol=1e-6, atol=1e-9)
    assert float(ours.values.abs().max()) > 0


@ESTIMATORS
def test_attribution_at_a_sum_is_that_of_a_dense_convolution_of_both(estimator: str) -> None:
    """With weight [I I] the other channels' weights are 0, so that only a channel's own slopes are left of ``w ⊙ a``."""
    eye = torch.eye(4, dtype=torch.float64)
    both = torch.cat([eye, eye], 1)[:, :, None, None]
    net, twin = _Residual(lambda u, z: u + z), _Residual(lambda u, z: F.conv2d(torch.cat([u, z], 1), both))
    x = drawn(60, 2, 6, 6)
    ours, theirs = (
        PatternAttribution(n, fitted=PatternNet.fit(n, [x]), estimator=estimator).attribute(x[:8], 1)
        for n in (net, twin)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_slopes_of_a_sum_add_up_to_one_and_follow_the_covariances() -> None:
    net, x = _Residual(lambda u, z: u + z, depth=1), drawn(60, 2, 6, 6)
    found = PatternNet.fit(net, x.split(7)).layers["add[0]"]
    assert set(found) == {"linear", "positive", "negative"}
    for slopes in found.values():
        assert slopes.shape == (4, 2)
        torch.testing.assert_close(slopes.sum(1), torch.ones(4, dtype=torch.float64))
    with torch.no_grad():
        z = net.first(x).relu()
        u = net.blocks[0](z)
    for c in range(4):
        a, y = u[:, c].flatten(), (u + z)[:, c].flatten()
        by_hand = ((a - a.mean()) * (y - y.mean())).mean() / y.var(unbiased=False)
        torch.testing.assert_close(found["linear"][c, 0], by_hand)


class _Scaled(nn.Module):
    """A batch norm behind a ReLU, which nothing can be folded into."""

    def __init__(self, scale: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.end, self.scale = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3), scale
        randomised(self)
        with torch.no_grad():
            self.norm.running_mean.uniform_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
            self.norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu()
        z = self.norm(z) if self.scale is None else self.scale(z)
        return self.end(self.b(z.relu()).relu().mean((2, 3)))


K = torch.tensor([100.0, 1.0, 0.01, 3.0], dtype=torch.float64)


@METHODS
@ESTIMATORS
def test_units_of_channels_before_a_batch_norm_do_not_matter(estimator: str, method: type[PatternNet]) -> None:
    net, twin, x = _Scaled(), _Scaled(), drawn(60, 2, 6, 6)
    with torch.no_grad():  # relu(k z) = k relu(z), and the norm undoes k
        twin.a.weight *= K.view(-1, 1, 1, 1)
        twin.a.bias *= K  # type: ignore[operator]
        twin.norm.running_mean *= K  # type: ignore[operator]
        twin.norm.running_var.copy_((net.norm.running_var + net.norm.eps) * K**2 - twin.norm.eps)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(net(x), twin(x))
    ours, theirs = (method(n, fitted=PatternNet.fit(n, [x]), estimator=estimator)(x[:8], 1) for n in (net, twin))
    torch.testing.assert_close(size(theirs), size(ours), rtol=1e-6, atol=1e-9)
    assert ours.coverage.count()["divided by the scale" if method is PatternNet else "passed"] == 1


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "mul": lambda z: z * K.view(-1, 1, 1),
    "mul from the left": lambda z: K.view(-1, 1, 1) * z,
    "div": lambda z: z / (1 / K.view(-1, 1, 1)),
    "neg": lambda z: -(z * -K.view(-1, 1, 1)),
    "rsub": lambda z: 2 - (2 - z * K.view(-1, 1, 1)),
    "alpha": lambda z: torch.add(torch.zeros(()).double(), z * (K.view(-1, 1, 1) / 2), alpha=2),
    "add": lambda z: z * K.view(-1, 1, 1) + 0.0,
}


@METHODS
@pytest.mark.parametrize("name", SCALES)
def test_a_scale_is_the_convolution_that_computes_it(name: str, method: type[PatternNet]) -> None:
    net = _Scaled(SCALES[name])
    twin = _Scaled(lambda z: F.conv2d(z, K.view(-1, 1, 1, 1), groups=4))
    x = drawn(60, 2, 6, 6)
    torch.testing.assert_close(net(x), twin(x))
    ours, theirs = (method(n, fitted=PatternNet.fit(n, [x]), estimator="linear")(x[:8], 1) for n in (net, twin))
    torch.testing.assert_close(size(ours), size(theirs), rtol=1e-6, atol=1e-9)


def test_a_scale_of_zero_gives_zero() -> None:
    net, x = _Scaled(lambda z: z * torch.tensor([1.0, 0, 0, 0]).view(-1, 1, 1)), drawn(60, 2, 6, 6)
    with torch.no_grad():
        net.a.weight[1:] = 1e3  # would show
    for method in (PatternNet, PatternAttribution):
        found = method(net, fitted=PatternNet.fit(net, [x])).attribute(x[:3], 1)
        assert bool(found.isfinite().all())
        assert float(found.abs().max()) > 0


def test_files_from_before_sums_had_patterns_are_refused(tmp_path: Path) -> None:
    net, x = _Residual(lambda u, z: u + z), drawn(40, 2, 6, 6)
    learned = PatternNet.fit(net, [x])

    def other(layers: Layers) -> Fitted:
        return Fitted("pattern", layers, learned.classes, learned.network, learned.input_shapes, learned.facts)

    old = other({name: layer for name, layer in learned.layers.items() if "add" not in name})
    old.save(tmp_path / "old.safetensors")
    with pytest.raises(InputError, match=r"fitted holds no patterns for add\[3\] .* before sums .* Fit again"):
        PatternNet(net, fitted=tmp_path / "old.safetensors")(x[:2], 1)
    cut = {name: {key: t[:2] for key, t in layer.items()} for name, layer in learned.layers.items()}
    with pytest.raises(
        InputError, match=r"must hold patterns of shape \(3, 144\) for linear\[0\] .*, but holds \(2, 144\)"
    ):
        PatternNet(net, fitted=other(cut))(x[:2], 1)


@METHODS
def test_maps_that_overflow_are_scaled(method: type[PatternNet]) -> None:
    """The patterns of one layer, made so large that float32 cannot hold the map, change its scale and not its shape."""
    net, x = _Residual(lambda u, z: u + z), drawn(60, 2, 6, 6)
    learned = PatternNet.fit(net, [x])
    expected = method(net, fitted=learned)(x[:4], 1)
    names = ("conv2d[0]", "linear[0]")  # what everything goes through
    large = {
        name: {key: t * (1e25 if name in names else 1.0) for key, t in layer.items()}
        for name, layer in learned.layers.items()
    }
    single = Fitted("pattern", large, learned.classes, learned.network, learned.input_shapes, learned.facts)
    found = method(net.float(), fitted=single)(x[:4].float(), 1)
    (shape,), largest = _shaped((expected.values[None],))
    torch.testing.assert_close(found.values, shape[0].float(), rtol=1e-3, atol=1e-4)
    unit = expected.completeness["log10_scale"] + (largest[0].log10() if method is PatternAttribution else 0)
    torch.testing.assert_close(found.completeness["log10_scale"], (unit + 50).float(), rtol=1e-5, atol=1e-3)


@METHODS
def test_one_image_that_overflows_leaves_the_others_alone(method: type[PatternNet]) -> None:
    net, x = _Residual(lambda u, z: u + z).float(), drawn(60, 2, 6, 6).float()
    explains = method(net, fitted=PatternNet.fit(net, [x]))
    large = x[:4].clone()
    large[2] *= 1e30  # its logit overflows no float32, its map does
    with torch.no_grad():
        net.last.weight *= 1e6
    explains = method(net, fitted=PatternNet.fit(net, [x]))
    together = explains.each(large, [[0, 1]] * 4)
    for t in (0, 1):
        for i in range(4):
            alone = explains(large[i : i + 1], t)
            torch.testing.assert_close(together[t].values[i], alone.values[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                together[t].completeness["log10_scale"][i], alone.completeness["log10_scale"][0], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_products_in_float32_keep_their_digits_far_from_zero(mean: float) -> None:
    x = drawn(200, 2, 6, 6) + mean
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    randomised(net)
    whole, single = PatternNet.fit(net, [x]), PatternNet.fit(net, [x], precision=torch.float32)
    for name, layer in whole.layers.items():
        for key, value in layer.items():
            gap = (single.layers[name][key] - value).abs().max()
            assert float(gap) <= 1e-4 * float(value.abs().max()), f"{key} of {name}"
