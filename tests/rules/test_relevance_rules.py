"""Relevance rules: against explicit matrices, captum, second order; what joins a layer; constants, gates, attention."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from _relevance_oracle import matrix, relevance

from backlit import InputError, UnsupportedOp, check_rule
from backlit.capture import Call, Shares, Tap, extend, propagate
from backlit.rules import TRUE, linear, presets
from backlit.rules import attention as attention_rules
from backlit.rules import relevance as tables
from backlit.rules.activation import secant
from backlit.rules.linear import AlphaBeta, ClassContrast, Epsilon, Flat, Gamma, LayerRule, WSquare, ZBox, ZPlus
from backlit.rules.norm import batch_norm, group_norm, layer_norm
from backlit.rules.pooling import proportional
from backlit.rules.structural import product, quotient, ratio, shared

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(2, 3, 3, padding=1, stride=2), (2, 6)),
    "conv2d": (nn.Conv2d(2, 4, 3, padding=1, stride=2), (2, 5, 4)),
    "dilated": (nn.Conv2d(2, 3, 2, dilation=2), (2, 4, 5)),
    "grouped": (nn.Conv2d(4, 6, 2, groups=2), (4, 3, 3)),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3, padding="same"), (3, 3, 4)),
    "even same": (nn.Conv2d(2, 2, 2, padding="same"), (2, 3, 3)),
    "conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 3, 2)),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 3, 2)),
    "grouped transposed": (nn.ConvTranspose2d(4, 4, 2, groups=2), (4, 2, 2)),
    "linear": (nn.Linear(7, 4), (7,)),
}
LOW, HIGH = -2.5, 3.0
RULES: dict[str, tuple[LayerRule, Any]] = {
    "epsilon": (Epsilon(0.1, relative=False), 0.1),
    "z_plus": (ZPlus(), None),
    "z_plus_bare": (ZPlus(bias=False), None),
    "alpha_beta": (AlphaBeta(2.0, 1.0, balanced=False), (2.0, 1.0)),
    "gamma": (Gamma(0.3), 0.3),
    "flat": (Flat(), None),
    "w_square": (WSquare(), None),
    "z_box": (ZBox(LOW, HIGH), None),
}


class Net(nn.Module):
    """A layer, a batch norm if wanted, and a flattening."""

    def __init__(self, layer: nn.Module, norm: bool) -> None:
        super().__init__()
        self.layer = layer
        out = getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0)
        kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        weight: Any = layer.weight
        self.norm = kinds[weight.dim()](out) if norm else nn.Identity()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for key, tensor in self.state_dict().items():
                if tensor.is_floating_point():
                    drawn = torch.randn(tensor.shape, generator=generator)
                    tensor.copy_(drawn.abs() + 0.5 if "var" in key else drawn)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)).flatten(1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", [False, True], ids=["", "batch norm"])
@pytest.mark.parametrize("sign", ["signed", "positive"])
def test_a_rule_is_its_papers_formula_on_the_layers_matrix(layer: str, rule: str, norm: bool, sign: str) -> None:
    module, shape = LAYERS[layer]
    net = Net(module, norm)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).clamp(LOW, HIGH)
    x = x.abs() if sign == "positive" else x
    ours, parameter = RULES[rule]
    run = propagate(net, x, tables.relevance("t", dense=ours, convolution=ours))
    seed = torch.randn(run.output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, unit = run.gradient(seed, to=(*run.inputs, run.unit))
    with torch.no_grad():
        b = net(torch.zeros(1, *shape, dtype=torch.float64))[0]
        w = matrix(lambda v: net(v) - b, shape)
        w = torch.where(w.abs() < 1e-13, 0, w)
        for n in range(2):
            r = seed[n] * run.output[n].detach()
            low, high = torch.full_like(x[n].flatten(), LOW), torch.full_like(x[n].flatten(), HIGH)
            expected = relevance(rule, w, b, x[n].flatten(), r, low, high, parameter)
            torch.testing.assert_close(found[n].flatten(), expected, rtol=1e-8, atol=1e-10)
            if rule in ("z_plus", "gamma"):  # what the inputs do not get, the biases have
                torch.testing.assert_close(unit[n], r.sum() - expected.sum(), rtol=1e-8, atol=1e-9)
    names = [row.rule for row in run.coverage.rows if row.primitive == "batch_norm"]
    assert names == (["joined to its layer"] if norm else [])


def test_the_norm_joins_only_a_layer_that_it_alone_reads() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            z = self.layer(x)
            return torch.cat([self.norm(z).flatten(1), z.flatten(1)], 1)

    net = Twice(nn.Conv2d(2, 3, 2), True)
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    run = propagate(net, x, tables.relevance("t", dense=Epsilon(), convolution=ZPlus()))
    assert [r.rule for r in run.coverage.rows if r.primitive == "batch_norm"] == ["batch_norm"]
    seed = torch.ones_like(run.output)
    (found, unit) = run.gradient(seed, to=(*run.inputs, run.unit))
    torch.testing.assert_close(found.flatten(1).sum(1) + unit, run.output.sum(1).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("several", [False, True])
def test_what_a_layer_put_out_is_let_go_once_its_rule_is_done(several: bool) -> None:
    """As autograd does with what it saved, so that memory falls on the way down; not if the graph is to stay."""
    alive: list[int] = []
    outputs: list[weakref.ref[Tensor]] = []

    def noting(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
        alive.append(sum(reference() is not None for reference in outputs))
        outputs.append(weakref.ref(output))
        return Epsilon()(g, inputs, output, call)

    convolution, norm = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)
    net = (
        nn.Sequential(convolution, norm, nn.ReLU(), nn.Conv2d(3, 3, 2), nn.Flatten(), nn.Linear(12, 3)).double().eval()
    )
    x, weights = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    for kept in (True, False):
        run = propagate(net, x, tables.relevance("t", dense=noting, convolution=noting))
        run.gradient(torch.stack([weights] * 2) if several else weights, retain_graph=kept)
        assert alive == ([0, 1, 2] if kept else [0, 0, 0])
        assert sum(reference() is not None for reference in outputs) == (3 if kept else 0)
        alive.clear()
        outputs.clear()


@pytest.mark.parametrize("preset", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma_box"])
def test_folding_or_joining_a_norm_is_the_same(preset: str) -> None:
    model = _normed()
    x, rules = torch.randn(2, 2, 5, 5, dtype=torch.float64), presets.RELEVANCE[preset]()
    weights = F.one_hot(torch.tensor([0, 2]), 3).double()
    joined, folded = propagate(model, x, rules), propagate(model, x, rules, fold=True)
    assert joined.coverage.count()["joined to its layer"] == 1
    for one, other in zip(
        joined.gradient(weights, to=(*joined.inputs, joined.unit)),
        folded.gradient(weights, to=(*folded.inputs, folded.unit)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_tap_reads_what_reaches_its_site_and_changes_nothing() -> None:
    model, rules = _normed(), presets.epsilon(1e-14)
    x, weights = torch.randn(2, 2, 5, 5, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2]
    read: dict[str, Tensor] = {}

    def tap(call: Call, output: Tensor) -> Tap | None:
        if call.site.primitive not in ("conv2d", "batch_norm"):
            return None

        def note(g: Tensor) -> tuple[Tensor, ...]:
            read[call.site.name] = g
            return ()

        return Tap((), note)

    tapped = propagate(model, x, rules, tap=tap)
    (found,) = tapped.gradient(weights, retain_graph=True)
    torch.testing.assert_close(found, propagate(model, x, rules).gradient(weights)[0])
    folded = propagate(model, x, rules, fold=True, tap=tap)  # the norm is an identity there, and no rule is asked
    torch.testing.assert_close(folded.gradient(weights)[0], found)
    tapped.gradient(weights)
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()  # what the norm hands to its layer
    torch.testing.assert_close(read["conv2d[0]"], read["batch_norm[0]"] * scale.view(1, -1, 1, 1))


def _normed() -> Any:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
            for values, low in ((self.norm.running_mean, -1.0), (self.norm.running_var, 0.5), (self.norm.weight, 0.5)):
                nn.init.uniform_(values, low, 2.0)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    torch.manual_seed(0)
    return Normed().double().eval().requires_grad_(False)


@pytest.mark.parametrize("rule", [ZPlus(), AlphaBeta(), AlphaBeta(balanced=False), Gamma(0.3)], ids=str)
@pytest.mark.parametrize("shape", [(3, 7), (3, 2, 7)], ids=["vectors", "tokens"])
@pytest.mark.parametrize("norm", [False, True], ids=["", "batch norm"])
def test_a_large_layer_is_the_same_in_blocks(
    rule: LayerRule, shape: tuple[int, ...], norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net(nn.Linear(7, 5), norm)
    if norm and len(shape) == 3:
        net = Net(nn.Linear(7, 2), norm)  # a norm's channels are the second dimension: the tokens
    table = tables.relevance("t", dense=rule, convolution=rule)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for at_once in (2**21, 7, 14, 34):  # the last block of five rows is smaller, or there is one a row
        monkeypatch.setattr(linear, "_AT_ONCE", at_once)
        run = propagate(net, x, table)
        seed = torch.linspace(-1, 1, run.output.numel(), dtype=torch.float64).view_as(run.output)
        found.append(run.gradient(seed, to=(*run.inputs, run.unit)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_outputs_without_contributions_of_one_sign_lose_nothing() -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, -2.0, -0.5], [1.0, 2.0, 3.0]]))
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    for rule in (ZPlus(), ZPlus(bias=False), AlphaBeta(), AlphaBeta(3.0, 2.0), Gamma()):
        run = propagate(nn.Sequential(layer), x, tables.relevance("t", dense=rule, convolution=rule))
        for j in range(2):
            (found,) = run.gradient(F.one_hot(torch.tensor([j]), 2).double(), retain_graph=True)
            torch.testing.assert_close(found, layer.weight[j : j + 1].detach() * x)
    literal = propagate(
        nn.Sequential(layer), x, tables.relevance("t", dense=AlphaBeta(balanced=False), convolution=None)
    )
    (found,) = literal.gradient(torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    assert float(found.sum()) == pytest.approx(2 * float(literal.output[0, 1]))


@pytest.mark.parametrize(
    ("rule", "peer"),
    [(Epsilon(1e-9, relative=False), EpsilonRule), (Gamma(0.25), GammaRule), (AlphaBeta(1.0, 0.0), Alpha1_Beta0_Rule)],
)
def test_equals_captum_on_sequential_networks(rule: LayerRule, peer: Any) -> None:
    """Captum's gamma and alpha-beta rules are for inputs above zero and have the bias in their own way: without biases."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False),
    ).double().eval()  # fmt: skip
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    target = net(x).argmax(1)
    run = propagate(net, x, tables.relevance("t", dense=rule, convolution=rule))
    (ours,) = run.gradient(F.one_hot(target, 3).double())
    for module in net:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.rule = peer()
        if isinstance(module, nn.Flatten):
            module.rule = EpsilonRule()
    theirs = LRP(net).attribute(x, target=target)
    if peer is GammaRule or peer is Alpha1_Beta0_Rule:  # theirs divides negative outputs by another sum
        assert bool((run.output.detach().gather(1, target[:, None]) > 0).all())
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-9)


X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "rule",
    [
        Epsilon(0.1),
        Epsilon(0.1, relative=False),
        ZPlus(),
        ZPlus(bias=False),
        AlphaBeta(),
        Gamma(),
        Flat(),
        WSquare(),
        ZBox(-4, 4),
        ClassContrast(),
    ],
    ids=lambda r: r.name,
)
@pytest.mark.parametrize(
    "operation",
    [nn.Conv2d(4, 3, 3, stride=2), nn.ConvTranspose2d(4, 2, 2), nn.Sequential(nn.Flatten(), nn.Linear(144, 5))],
    ids=["conv", "transposed", "linear"],
)
def test_second_order_goes_through_every_layer_rule(rule: LayerRule, operation: nn.Module) -> None:
    primitive = {"Conv2d": "conv2d", "ConvTranspose2d": "conv_transpose2d"}.get(type(operation).__name__, "linear")
    check_rule(rule, operation, X, primitive=primitive)
    check_rule(rule, operation, X.abs() + 0.1, primitive=primitive)


@pytest.mark.parametrize("rule", [ZPlus(), ZPlus(bias=False), Gamma()], ids=str)
def test_what_is_zero_where_it_stands_has_its_derivative(rule: LayerRule) -> None:
    """Work that comes to nothing is left out, but not where it is differentiated, nor for one of several weightings."""
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, -2.0, -0.5], [1.0, 2.0, 3.0]]))
        layer.bias.copy_(torch.tensor([-0.5, 0.5]))
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    run = propagate(nn.Sequential(layer), x, tables.relevance("t", dense=rule, convolution=rule))
    each = [run.gradient(seed[None], retain_graph=True)[0] for seed in torch.eye(2, dtype=torch.float64)]
    assert float(each[0].abs().sum()) > 1
    weights = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    (found,) = run.gradient(weights, create_graph=True)
    (slopes,) = torch.autograd.grad(found.sum(), weights)
    torch.testing.assert_close(slopes[0], torch.stack([e.sum() for e in each]))
    (both,) = run.gradient(torch.eye(2, dtype=torch.float64)[:, None])
    torch.testing.assert_close(both, torch.stack(each))


def test_second_order_goes_through_the_other_rules() -> None:
    check_rule(proportional, nn.MaxPool2d(3, 2, padding=1), X, primitive="max_pool2d")
    check_rule(secant, nn.SiLU(), X)
    check_rule(secant, torch.sigmoid, X + 1)
    check_rule(batch_norm, nn.BatchNorm2d(4), X, primitive="batch_norm")
    check_rule(layer_norm, nn.LayerNorm(6), X)
    check_rule(group_norm, nn.GroupNorm(2, 4), X)
    check_rule(group_norm, nn.InstanceNorm2d(4, affine=True), X)
    check_rule(ratio, nn.LocalResponseNorm(3), X)
    check_rule(product, lambda x: x * torch.sigmoid(x), X, primitive="product")
    check_rule(quotient, lambda x: x / (1 + x**2), X, primitive="quotient")
    check_rule(shared, lambda x: x @ x.transpose(-1, -2), X)
    for rule in (attention_rules.attention, attention_rules.held):
        check_rule(rule, lambda x: F.scaled_dot_product_attention(x, x, x), X, primitive="attention")


@pytest.mark.parametrize(
    ("operation", "conserves"),
    [
        (nn.SiLU(), 1), (nn.GELU(), 1), (nn.Hardswish(), 1), (nn.ReLU6(), 1), (nn.Tanh(), 1), (nn.ELU(), 1), (nn.PReLU(4), 1),
        (nn.LayerNorm(6, bias=False), 1), (nn.GroupNorm(2, 4), 1), (nn.InstanceNorm2d(4), 1), (nn.LocalResponseNorm(3), 1),
        (nn.AvgPool2d(2), 1), (nn.MaxPool2d(3, 2), 1), (nn.AdaptiveAvgPool2d(2), 1), (lambda x: x - 0.7 * x.flip(1), 1),
        (lambda x: x * torch.tanh(x), 1), (lambda x: x * x.mean((2, 3), keepdim=True), 1), (lambda x: x / (1 + x**2), 1),
        (lambda x: x @ x.transpose(-1, -2), 1), (lambda x: x.softmax(-1) @ x, 1), (lambda x: F.glu(x, 1), 1),
        (lambda x: F.scaled_dot_product_attention(x, x, x), 1), (lambda x: torch.cat([x, x[:, :1]], 1), 1),
        (lambda x: torch.maximum(x, x.flip(1)), 1), (lambda x: x.amax((2, 3)), 1), (lambda x: F.interpolate(x, scale_factor=2.0), 1),
        (lambda x: x.softmax(-1), 0),
    ],
)  # fmt: skip
def test_operations_without_constants_conserve(operation: Any, conserves: int) -> None:
    """After a layer, so that multipliers flow: what goes in comes out, for every operation; a softmax alone absorbs."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, bias=False)
            self.operation = operation if isinstance(operation, nn.Module) else None

        def forward(self, x: Tensor) -> Tensor:
            return operation(self.conv(x)).flatten(1)

    torch.manual_seed(0)
    run = propagate(Model().double().eval(), X, presets.epsilon())
    seed = torch.randn(run.output.shape, dtype=torch.float64)
    found, unit = run.gradient(seed, to=(*run.inputs, run.unit))
    total = (seed * run.output.detach()).flatten(1).sum(1)
    torch.testing.assert_close(found.flatten(1).sum(1), conserves * total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.flatten(1).sum(1) + unit, total, rtol=1e-5, atol=1e-6)


def test_constants_and_offsets_take_their_own_and_it_is_counted() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(6, 6)
            self.token = nn.Parameter(torch.randn(1, 4, 6, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.conv(x)) + 1.5  # f(0) is not 0
            x = torch.cat([self.token.expand(len(x), -1, -1, -1), x[..., 1:]], 3)
            return (self.fc(x) + self.token).log_softmax(-1).flatten(1)

    torch.manual_seed(0)
    run = propagate(Model().double().eval(), X, presets.epsilon())
    seed = torch.randn(run.output.shape, dtype=torch.float64)
    found, unit = run.gradient(seed, to=(*run.inputs, run.unit))
    total = (seed * run.output.detach()).sum(1)
    torch.testing.assert_close(found.flatten(1).sum(1) + unit, total, rtol=1e-5, atol=1e-6)
    assert float(unit.abs().min()) > 1e-3


def test_pixels_that_are_zero_have_relevance_through_a_normalisation_inside_the_network() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(4, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.pad((x - 0.3) / 0.5, (1, 1, 1, 1))[..., 1:, :].clamp(-5, 5)
            return self.fc(self.conv(x).relu().mean((2, 3)))

    torch.manual_seed(0)
    net = Model().double().eval()
    x = X.clone()
    x[:, :, 2:4] = 0
    for table in (presets.epsilon_plus_flat(), presets.deep_taylor_unbounded(), presets.deep_taylor(-20, 20)):
        run = propagate(net, x, table)
        (found,) = run.gradient(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
        assert float(found[:, :, 2:4].abs().min()) > 0
    assert run.coverage.count()["z_box"] == 1


def test_a_softmax_holds_or_propagates() -> None:
    table = presets.with_choices(presets.epsilon(), "attnlrp", None)
    net = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), _Attend(), nn.Flatten()).double().eval()
    runs = [propagate(net, X, t) for t in (table, presets.epsilon())]
    seed = torch.ones_like(runs[0].output)
    sums = [run.gradient(seed)[0].flatten(1).sum(1) for run in runs]
    total = runs[0].output.sum(1).detach()
    torch.testing.assert_close(sums[1], total, rtol=1e-5, atol=1e-6)
    assert float((sums[0] - total).abs().min()) > 1e-3  # AttnLRP's softmax rule does not conserve


class _Attend(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x.flip(-1), x)


def test_attnlrp_is_its_rules_one_after_the_other() -> None:
    """Prop. 3.1 and Eq. 14 by hand, in relevance: the values get half, the weights half, query and key half of that."""
    q, k, v = (
        torch.randn(1, 1, 3, 2, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)
    )
    s = (q @ k.mT / 2**0.5)[0, 0]
    a, o = s.softmax(-1), s.softmax(-1) @ v[0, 0]
    r = torch.randn(3, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * o
    r_a, r_v, r_q, r_k = (torch.zeros_like(t) for t in (a, v[0, 0], q[0, 0], k[0, 0]))
    for i in range(3):
        for d in range(2):
            for j in range(3):
                half = 0.5 * a[i, j] * v[0, 0, j, d] / o[i, d] * r[i, d]
                r_a[i, j] += half
                r_v[j, d] += half
    r_s = s * (r_a - a * r_a.sum(1, keepdim=True))
    for i in range(3):
        for j in range(3):
            for d in range(2):
                half = 0.5 * q[0, 0, i, d] * k[0, 0, j, d] / 2**0.5 / s[i, j] * r_s[i, j]
                r_q[i, d] += half
                r_k[j, d] += half

    class Attention(nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(*x).flatten(1)

    run = propagate(Attention(), (q, k, v), presets.gradient.but({"attention": attention_rules.attention}))
    found = run.gradient((r / o).view(1, -1))
    for m, x, expected in zip(found, (q, k, v), (r_q, r_k, r_v), strict=True):
        torch.testing.assert_close((m * x)[0, 0], expected)


def test_proportional_pools_share_by_value() -> None:
    x = torch.tensor([[[[1.0, 3.0], [0.0, -2.0]], [[-1.0, -3.0], [-5.0, -2.0]]]], dtype=torch.float64)
    run = propagate(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), x, presets.gradient.but({"max_pool2d": proportional}))
    (m,) = run.gradient(torch.ones(1, 2, dtype=torch.float64))
    torch.testing.assert_close(
        m * x, torch.tensor([[[[0.75, 2.25], [0, 0]], [[-1.0, 0], [0, 0]]]], dtype=torch.float64)
    )


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"alpha - beta = 1 .* are 2.0 and 0.5"):
        AlphaBeta(2.0, 0.5)
    for value in (0, -1e-6, "x", float("inf")):
        with pytest.raises(InputError, match="epsilon must be a positive number"):
            Epsilon(value)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"gamma must be a number of at least 0, but is -0\.1"):
        Gamma(-0.1)
    net = nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Flatten()).double()
    with pytest.raises(
        InputError, match=r"flat to layers that read the network's input, but 't' gives it to conv2d\[1\] at 2"
    ):
        propagate(net, X, tables.relevance("t", dense=Flat(), convolution=Flat()))
    run = propagate(net, X, presets.deep_taylor(-0.1, 0.1))
    with pytest.raises(InputError, match=r"low and high must bound the input, but it reaches from .*preprocess.bounds"):
        run.gradient(torch.ones_like(run.output))
    run = propagate(net, X, presets.deep_taylor((-9, -9, -9), 9))
    with pytest.raises(InputError, match=r"low must be a number, one for each channel, .* but has shape \(3, 1, 1\)"):
        run.gradient(torch.ones_like(run.output))
    with pytest.raises(InputError, match="attention_weights must be 'attnlrp' or 'held', but is 'no'"):
        tables.relevance("t", dense=TRUE, convolution=TRUE, attention_weights="no")  # type: ignore[arg-type]


def test_an_operation_that_the_table_does_not_know_is_an_error() -> None:
    extend(torch.erfinv, "other", "erfinv_of_relevance")
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3), _Erfinv()).double()
    with pytest.raises(UnsupportedOp, match=r"erfinv_of_relevance\[0\] at 2"):
        propagate(net, X, presets.epsilon())
    assert propagate(net, X, presets.epsilon().but({"erfinv_of_relevance": secant})).coverage.count()["secant"] == 2


class _Erfinv(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x.tanh())
