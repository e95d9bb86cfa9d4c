"""The class activation maps by gradient: slowly, from each paper, and against other libraries."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _cam_networks import attend, build, embedded, mlp
from _map_networks import TARGET, deep_head, images, map_and_gradient, pooled_head
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from backlit import GradCAM, GradCAMPlusPlus, HiResCAM, InputError, LayerCAM, NormGrad, UnsupportedOp, XGradCAM
from backlit.methods import Method

Slow = Callable[[Tensor, Tensor], Tensor]


def _plus_plus(a: Tensor, g: Tensor, *, normalise: bool = False) -> Tensor:
    """Eq. 7 and 19, with the second and the third derivative of exp(S) written out, but for the factor exp(S)."""
    cam = torch.zeros(a.shape[1:], dtype=torch.float64)
    for k in range(len(a)):
        alphas = torch.zeros_like(a[k])
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                second, third = float(g[k, i, j]) ** 2, float(g[k, i, j]) ** 3
                below = 2 * second + float(a[k].sum()) * third
                alphas[i, j] = second / (below if below != 0 else 1)
        if normalise:  # as the authors' code: by the sum over places whose first derivative is positive
            total = float(alphas[g[k] > 0].sum())
            alphas = alphas / (total if total != 0 else 1)
        cam += (alphas * g[k].relu()).sum() * a[k]
    return cam.relu()


def _xgrad(a: Tensor, g: Tensor) -> Tensor:
    cam = torch.zeros(a.shape[1:], dtype=torch.float64)
    for k in range(len(a)):
        total = float(a[k].sum())
        cam += (float((a[k] * g[k]).sum()) / total if total else 0) * a[k]
    return cam.relu()


def _hires(a: Tensor, g: Tensor) -> Tensor:
    return sum((a[k] * g[k] for k in range(len(a))), torch.zeros(a.shape[1:], dtype=torch.float64))


def _layer(a: Tensor, g: Tensor) -> Tensor:
    return sum((a[k] * g[k].relu() for k in range(len(a))), torch.zeros(a.shape[1:], dtype=torch.float64)).relu()


def _norm_grad(kind: str) -> Slow:
    """The norm of each place's share of the gradient of the weights of a layer that is put behind the map, by autograd."""

    def slow(a: Tensor, g: Tensor) -> Tensor:
        h, w = a.shape[1:]
        found = torch.zeros(h, w, dtype=torch.float64)
        patches = F.unfold(a[None], 3, padding=1)[0]  # (c * 9, h * w)
        for i in range(h):
            for j in range(w):
                u = i * w + j
                if kind == "conv1x1":  # y_u = W x_u
                    share = torch.outer(g[:, i, j], a[:, i, j])
                elif kind == "conv3x3":
                    share = torch.outer(g[:, i, j], patches[:, u])
                elif kind == "scaling":  # y_u = s * x_u
                    share = g[:, i, j] * a[:, i, j]
                else:  # y_u = x_u + b
                    share = g[:, i, j]
                found[i, j] = math.sqrt(float((share**2).sum()))
        return found

    return slow


def _grad_cam(a: Tensor, g: Tensor) -> Tensor:
    return sum((a[k] * g[k].mean() for k in range(len(a))), torch.zeros(a.shape[1:], dtype=torch.float64)).relu()


SLOW: dict[str, tuple[type[Method], dict[str, Any], Slow]] = {
    "grad_cam": (GradCAM, {}, _grad_cam),
    "grad_cam_plus_plus": (GradCAMPlusPlus, {}, _plus_plus),
    "grad_cam_plus_plus, normalised": (
        GradCAMPlusPlus,
        {"normalise": True},
        lambda a, g: _plus_plus(a, g, normalise=True),
    ),
    "xgrad_cam": (XGradCAM, {}, _xgrad),
    "hires_cam": (HiResCAM, {}, _hires),
    "hires_cam, rectified": (HiResCAM, {"relu": True}, lambda a, g: _hires(a, g).relu()),
    "layer_cam": (LayerCAM, {}, _layer),
    **{
        f"norm_grad, {k}": (NormGrad, {"identity": k}, _norm_grad(k)) for k in ("conv1x1", "conv3x3", "scaling", "bias")
    },
}
EVERY = (GradCAM, GradCAMPlusPlus, XGradCAM, HiResCAM, LayerCAM, NormGrad)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return deep_head()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images()


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("layer", [3, 2, 0])
def test_is_its_papers_formula(name: str, layer: int, network: nn.Sequential, x: Tensor) -> None:
    """On activations, and on a convolution's own output, which has both signs."""
    kind, options, slow = SLOW[name]
    found = kind(network, layer=str(layer), **options)(x, TARGET)
    for i, target in enumerate(TARGET.tolist()):
        expected = slow(*map_and_gradient(network, x[i], target, layer))
        torch.testing.assert_close(found.values[i, 0], expected)
    assert found.values.abs().amax((1, 2, 3)).min() > 0
    if layer == 3:
        torch.testing.assert_close(kind(network, **options).attribute(x, TARGET), found.values)


@pytest.mark.parametrize("name", SLOW)
def test_the_map_is_enlarged_bilinearly(name: str, x: Tensor) -> None:
    kind, options, slow = SLOW[name]
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(60, 7), nn.ReLU(), nn.Linear(7, 4)).double().eval()
    found = kind(network, **options).attribute(x, TARGET)
    for i, target in enumerate(TARGET.tolist()):
        coarse = slow(*map_and_gradient(network, x[i], target, 4))
        assert coarse.shape == (3, 4)
        torch.testing.assert_close(found[i], F.interpolate(coarse[None, None], x.shape[2:], mode="bilinear")[0])


def test_grad_cam_plus_plus_of_a_denominator_of_zero_is_the_authors_one() -> None:
    """2 + g * sum(A) = 0: their code then divides by 1."""
    a = torch.tensor([[[-2.0, 0.5]]], dtype=torch.float64)
    g = torch.tensor([[[[4 / 3, 1.0]]]], dtype=torch.float64)
    found = GradCAMPlusPlus(pooled_head()).weighed(a[None], g[None])
    assert found.isfinite().all()
    weight = float(g[0, 0, 0, 0]) ** 3 + 1 / (2 - 1.5)
    torch.testing.assert_close(found[0, 0, 0], (weight * a[0]).relu())
    assert float(found.max()) > 1


def test_xgrad_cam_of_a_channel_of_both_signs_that_sums_to_zero_leaves_it_out() -> None:
    a = torch.tensor([[[[-1.0, 1.0]], [[1.0, 2.0]]]], dtype=torch.float64)
    g = torch.tensor([[[[[3.0, 5.0]], [[1.0, 1.0]]]]], dtype=torch.float64)
    torch.testing.assert_close(XGradCAM(pooled_head()).weighed(a, g), a[None, :, 1:])


def test_a_constant_map_changes_nothing_in_norm_grads_product() -> None:
    one, flat = torch.rand(1, 2, 1, 3, 4, generator=torch.Generator().manual_seed(1)), torch.full((1, 2, 1, 3, 4), 0.3)
    method = NormGrad(pooled_head())
    torch.testing.assert_close(method.fused([one, flat]), method.fused([one]))


def test_a_channel_that_sums_to_zero_and_a_dead_map_give_numbers(x: Tensor) -> None:
    network = deep_head()
    with torch.no_grad():
        network[2].weight[0].zero_()
        network[2].bias[0] = 0
    for kind in EVERY:
        assert kind(network).attribute(x, TARGET).isfinite().all()
    with torch.no_grad():
        network[2].weight.zero_()
        network[2].bias.fill_(-1)
    for kind in EVERY:
        for layer in (None, ("3", "1")):
            found = kind(network, layer=layer).attribute(x, TARGET)
            assert found.isfinite().all(), (kind, layer)
        assert not kind(network).attribute(x, TARGET).any()


def test_with_a_pool_and_one_linear_layer_the_family_is_one_map(x: Tensor) -> None:
    """The gradient is w / (h * w) everywhere, so that four formulas of five agree."""
    network = pooled_head()
    whole = HiResCAM(network).attribute(x, TARGET)
    torch.testing.assert_close(GradCAM(network).attribute(x, TARGET), whole.relu())
    torch.testing.assert_close(XGradCAM(network).attribute(x, TARGET), whole.relu())
    logits = network(x).gather(1, TARGET[:, None])[:, 0].detach()
    torch.testing.assert_close(whole.sum((1, 2, 3)) + network[6].bias[TARGET].detach(), logits)
    assert not torch.allclose(LayerCAM(network).attribute(x, TARGET), whole.relu())


class TestOtherLibraries:
    """Theirs where they are right; where they are not, the test says by how much."""

    @pytest.fixture
    def theirs(self) -> Callable[..., Tensor]:
        library = pytest.importorskip("pytorch_grad_cam")
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def run(kind: str, network: nn.Sequential, x: Tensor, layers: tuple[int, ...] = (3,)) -> Tensor:
            with getattr(library, kind)(network, [network[i] for i in layers]) as cam:
                return torch.from_numpy(cam(x, [ClassifierOutputTarget(k) for k in TARGET.tolist()]))[:, None].double()

        return run

    @staticmethod
    def stretched(maps: Tensor) -> Tensor:
        least, largest = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        return (maps - least) / (largest - least)

    @pytest.mark.parametrize("name", ["GradCAM", "XGradCAM", "LayerCAM", "HiResCAM"])
    def test_equal_to_pytorch_grad_cam(
        self, name: str, theirs: Callable[..., Tensor], network: nn.Sequential, x: Tensor
    ) -> None:
        ours = getattr(backlit, name)(network).attribute(x, TARGET).relu()
        torch.testing.assert_close(self.stretched(ours), theirs(name, network, x), atol=2e-6, rtol=0)

    def test_grad_cam_plus_plus_there_adds_a_millionth_to_squared_gradients(
        self, theirs: Callable[..., Tensor], network: nn.Sequential, x: Tensor
    ) -> None:
        """Equal for a score of large gradients; of small ones the constant decides."""
        large, small = deep_head(), deep_head()
        with torch.no_grad():
            for net, scale in ((large, 1e4), (small, 1e-3)):
                net[8].weight.mul_(scale)
        for net, low, high in ((large, 0, 2e-6), (small, 0.01, 1)):
            ours = self.stretched(GradCAMPlusPlus(net).attribute(x, TARGET))
            worst = float((ours - theirs("GradCAMPlusPlus", net, x)).abs().max())
            assert low <= worst <= high, worst

    def test_the_mean_of_several_layers_there(self, theirs: Callable[..., Tensor], x: Tensor) -> None:
        """Theirs stretches each map to 0 to 1; ours divides by the largest, so that what is 0 stays 0."""
        network = deep_head()
        with torch.no_grad():
            network[8].weight.mul_(1e3)  # theirs adds 1e-7 to the largest value
        ours = GradCAM(network, layer=("3", "1")).attribute(x, TARGET)
        each = [GradCAM(network, layer=one).attribute(x, TARGET) for one in ("3", "1")]
        torch.testing.assert_close(ours, sum(m / m.amax((1, 2, 3), keepdim=True) for m in each) / 2)
        assert all(float(m.amin((1, 2, 3)).max()) == 0 for m in each)  # then the two are one
        torch.testing.assert_close(self.stretched(ours), theirs("GradCAM", network, x, (3, 1)), atol=2e-6, rtol=0)

    def test_equal_to_torchcam(self, network: nn.Sequential, x: Tensor) -> None:
        library = pytest.importorskip("torchcam.methods")
        for name in ("GradCAM", "XGradCAM", "LayerCAM"):
            with getattr(library, name)(network, "3") as extractor:
                maps = extractor(TARGET.tolist(), network(x), normalized=False)[0]
            ours = getattr(backlit, name)(network).attribute(x, TARGET)[:, 0]
            torch.testing.assert_close(ours, maps, rtol=1e-6, atol=1e-9)

    def test_grad_cam_plus_plus_of_torchcam_is_another_formula(self, network: nn.Sequential, x: Tensor) -> None:
        """Its division writes to a copy: the weights are the sums of g^2 relu(g), with no alpha."""
        library = pytest.importorskip("torchcam.methods")
        with library.GradCAMpp(network, "3") as extractor:
            maps = extractor(TARGET.tolist(), network(x), normalized=False)[0]
        for i, target in enumerate(TARGET.tolist()):
            a, g = map_and_gradient(network, x[i], target)
            weights = (g**2 * g.relu()).sum((1, 2))
            torch.testing.assert_close(maps[i], (weights[:, None, None] * a).sum(0).relu())
        ours = GradCAMPlusPlus(network).attribute(x, TARGET)
        assert float((self.stretched(ours) - self.stretched(maps[:, None])).abs().max()) > 0.05


class TestSeveralLayers:
    @pytest.mark.parametrize("kind", EVERY, ids=lambda m: m.name)
    def test_are_one_map_by_the_methods_rule(self, kind: type[Method], network: nn.Sequential, x: Tensor) -> None:
        names = ("1", "relu[1]")
        each = [kind(network, layer=name).attribute(x, TARGET) for name in names]
        tops = [m / m.abs().amax((1, 2, 3), keepdim=True) for m in each]
        expected = (tops[0] + tops[1]) / 2
        if kind is LayerCAM:
            expected = torch.maximum(*(torch.tanh(2 * m) for m in tops))
        if kind is NormGrad:
            lows = [m.amin((1, 2, 3), keepdim=True) for m in each]
            spans = [(m - low, m.amax((1, 2, 3), keepdim=True) - low) for m, low in zip(each, lows, strict=True)]
            expected = spans[0][0] / spans[0][1] * spans[1][0] / spans[1][1]
        found = kind(network, layer=names)(x, TARGET)
        torch.testing.assert_close(found.values, expected)
        assert found.provenance["layer"].startswith("relu[0] at 1")
        assert "; relu[1] at 3" in found.provenance["layer"]
        assert found.provenance["options"]["layer"] == ["1", "relu[1]"]

    def test_gamma_of_layer_cam(self, network: nn.Sequential, x: Tensor) -> None:
        tops = [LayerCAM(network, layer=name).attribute(x, TARGET) for name in ("1", "3")]
        tops = [torch.tanh(0.7 * m / m.amax((1, 2, 3), keepdim=True)) for m in tops]
        found = LayerCAM(network, layer=("1", "3"), gamma=0.7).attribute(x, TARGET)
        torch.testing.assert_close(found, torch.maximum(*tops))

    def test_one_name_in_a_tuple_is_fused_alone_or_as_it_is(self, network: nn.Sequential, x: Tensor) -> None:
        one = GradCAM(network, layer=("1",)).attribute(x, TARGET)
        torch.testing.assert_close(one, GradCAM(network, layer="1").attribute(x, TARGET))

    def test_of_different_sizes_are_enlarged_first(self, x: Tensor) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).double().eval()  # fmt: skip
        each = [HiResCAM(net, layer=name).attribute(x, TARGET) for name in ("1", "4")]
        expected = sum(m / m.abs().amax((1, 2, 3), keepdim=True) for m in each) / 2
        torch.testing.assert_close(HiResCAM(net, layer=["1", "4"]).attribute(x, TARGET), expected)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (
                ("1", "33"),
                r"layer\[1\] must name a module or a site with a feature map .* but is '33'.*Did you mean '3'",
            ),
            (("9.1", "3"), r"layer\[0\] must name a module or a site"),
            ((), r"layer must be a module path, a site, a tuple of them, or None, but is \(\)"),
            (("1", 3), r"layer must be a module path, a site, a tuple of them, or None, but is \('1', 3\)"),
            (3, r"layer must be a module path, a site, a tuple of them, or None, but is 3"),
        ],
    )
    def test_bad_names(self, layer: Any, message: str, network: nn.Sequential, x: Tensor) -> None:
        with pytest.raises(InputError, match=message):
            LayerCAM(network, layer=layer)(x, TARGET)

    def test_how_to_read_them_holds_for_each(self) -> None:
        def run(net: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
            t = embedded(net, x, 1)
            t = t + attend(net, net.norm(t))
            return net.l(net.norm2(t + mlp(net, t)).mean(1))

        net = build(run)
        x = torch.randn(2, 3, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        found = GradCAM(net, layer=("norm", "norm2"), grid=(3, 4), channels="last")(x, 1)
        single = [GradCAM(net, layer=n).attribute(x, 1) for n in ("norm", "norm2")]
        torch.testing.assert_close(found.values, sum(m / m.amax((1, 2, 3), keepdim=True) for m in single) / 2)
        assert found.provenance["layer_choice"] == "named, axes as given"
        with pytest.raises(InputError, match=r"channels and grid must fit the output .* of layer\[0\] 'norm'"):
            GradCAM(net, layer=("norm", "norm2"), grid=(9, 4))(x, 1)


class Towers(nn.Module):
    """Two images, each with a tower of its own; classes 0 and 1 read the first, the others the second."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.a, self.b = deep_head(), deep_head()
            self.c = nn.Conv2d(3, 3, 1).double()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([self.a(one)[:, :2], self.b(self.c(other))[:, 2:]], 1)


@pytest.mark.parametrize("kind", EVERY, ids=lambda m: m.name)
def test_targets_that_read_other_branches_get_their_own_layer_and_inputs_a_map_each(kind: type[Method]) -> None:
    net, x = Towers().eval(), images()
    other = F.interpolate(x, (12, 15)).flip(0)
    for t, target in enumerate((0, 3)):
        found = kind(net).each((x, other), torch.tensor([[0, 3]] * 3))[t]
        tower = net.a if target == 0 else nn.Sequential(net.c, *net.b)
        expected = kind(tower).attribute(x if target == 0 else other, target)
        for one in found:
            torch.testing.assert_close(one.values, expected)


@pytest.mark.parametrize("kind", EVERY, ids=lambda m: m.name)
def test_tokens_get_their_grid_back(kind: type[Method]) -> None:
    def run(net: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
        t = embedded(net, x, 1)
        t = t + attend(net, net.norm(t))
        return net.l(net.norm2(t + mlp(net, t))[:, 1:].mean(1))

    net = build(run)
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = kind(net)(x, torch.tensor([1, 3]))
    assert "grid 3 x 4" in found.provenance["layer_axes"]
    assert found.values.shape == (2, 1, 12, 16)
    assert float(found.values.abs().max()) > 0


@pytest.mark.parametrize("kind", EVERY, ids=lambda m: m.name)
def test_half_precision_runs(kind: type[Method], network: nn.Sequential, x: Tensor) -> None:
    half = deep_head().bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kind(half).attribute(x.bfloat16(), TARGET)
    assert found.dtype == torch.bfloat16
    exact = kind(network).attribute(x, TARGET)
    assert float(torch.corrcoef(torch.stack([found.double().flatten(), exact.flatten()]))[0, 1]) > 0.9


@pytest.mark.parametrize("kind", EVERY, ids=lambda m: m.name)
def test_a_network_without_feature_maps_says_so(kind: type[Method]) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    with pytest.raises(UnsupportedOp, match="no feature map"):
        kind(flat)(torch.zeros(1, 3, 2, 2))


def test_bad_options(network: nn.Sequential) -> None:
    with pytest.raises(InputError, match=r"identity must be 'conv1x1', 'conv3x3', 'scaling' or 'bias', but is 'conv'"):
        NormGrad(network, identity="conv")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"gamma must be a positive number, but is 0"):
        LayerCAM(network, gamma=0)
    for kind, option in ((GradCAMPlusPlus, "normalise"), (HiResCAM, "relu")):
        with pytest.raises(InputError, match=rf"{option} must be True or False, but is 1"):
            kind(network, **{option: 1})  # type: ignore[arg-type]
