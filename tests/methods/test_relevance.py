"""LRP, deep Taylor and excitation backprop: conservation on the matrix of networks, accounts, warnings, bad options."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _networks import ARCHITECTURES, SPELLINGS, build, images
from backlit import LRP, DeepTaylor, ExcitationBackprop, InputError, ModelStateError, UnsupportedOp
from backlit.capture import extend
from backlit.rules import TRUE, presets
from backlit.rules.exact import exact
from backlit.rules.linear import Epsilon, Gamma, ZBox
from backlit.rules.relevance import relevance

TARGET = torch.tensor([2, 0])
THREE = ("epsilon", "epsilon_alpha2_beta1", "epsilon_gamma_box")


def without_constants(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if key.endswith(("bias", "running_mean")):
                tensor.zero_()
    return net


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_spelling_gives_the_twins_map_and_account(architecture: str) -> None:
    xs = images(architecture)
    for preset in THREE:
        options = {"preset": preset, "low": -3.0, "high": 3.0}
        whole = LRP(build(architecture, "module"), **options)(xs, TARGET)
        for spelling in SPELLINGS:
            found = LRP(build(architecture, spelling), **options)(xs, TARGET)
            for ours, theirs in zip(found, whole, strict=True):
                torch.testing.assert_close(ours.values, theirs.values, rtol=1e-9, atol=1e-12)
                assert ours.coverage.count() == theirs.coverage.count()
        c = whole[0].completeness
        assert float((c["gap"] / whole[0].output).abs().max()) < 1e-4
        sums = torch.stack([w.values.flatten(1).sum(1) for w in whole]).sum(0)
        torch.testing.assert_close(sums, c["relevance"])
        torch.testing.assert_close(c["ratio"], sums / whole[0].output)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_relevance_is_conserved_where_nothing_is_constant(architecture: str) -> None:
    net, xs = without_constants(build(architecture, "module")), images(architecture)
    target = net(*xs).abs().argmax(1)
    methods = [LRP(net, preset=preset, low=-3.0, high=3.0) for preset in presets.RELEVANCE]
    for method in [*methods, DeepTaylor(net, bounded=False), LRP(net, preset="z_plus", pool="proportional")]:
        for one in method(xs, target)[:1]:
            on = one.output != 0
            constants = (one.completeness["biases"] / one.output)[on]
            whole = one.completeness["ratio"][on] + constants
            torch.testing.assert_close(whole, torch.ones(2).double()[on], rtol=1e-4, atol=1e-4)
            if architecture != "views":  # where the network adds 0.1
                assert float(constants.abs().max()) < 1e-9


def test_biases_take_what_the_map_misses() -> None:
    """The biases' share, from leaves of their own: with multipliers, each is the gradient to a bias times the bias."""
    net, (x,) = build("plain", "module"), images("plain")
    found = LRP(net, preset="epsilon", epsilon=1e-12)(x, TARGET)
    layers = [net.a, net.b, net.fc]
    leaves = [m.bias.detach().clone().requires_grad_() for m in layers]  # type: ignore[union-attr]
    named = {f"{n}.bias": leaf for n, leaf in zip("a b fc".split(), leaves, strict=True)}
    for i in range(2):
        out = torch.func.functional_call(net, named, (x[i : i + 1],))[0, TARGET[i]]
        taken = sum((g * b).sum() for g, b in zip(torch.autograd.grad(out, leaves), leaves, strict=True))
        torch.testing.assert_close(found.completeness["biases"][i], taken.detach(), rtol=1e-8, atol=1e-9)  # type: ignore[union-attr]
    assert float(found.completeness["biases"].abs().min()) > 1e-3


def test_images_in_another_dimension_are_told_apart_or_share_the_loss() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.one(x.flatten(2).permute(2, 0, 1)).relu()  # (positions, images, channels)
            z = self.two(z.reshape(-1, 6)).reshape(z.shape[0], -1, 3)
            return z.mean(0)

    torch.manual_seed(0)
    net, x = Sequence().double().eval(), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    together = LRP(net, preset="epsilon")(x, TARGET)
    for i in range(2):
        alone = LRP(net, preset="epsilon")(x[i : i + 1], TARGET[i : i + 1])
        torch.testing.assert_close(
            together.completeness["biases"][i], alone.completeness["biases"][0], rtol=1e-5, atol=1e-6
        )


def test_the_table_of_a_user_in_one_line() -> None:
    net, (x,) = build("plain", "module"), images("plain")
    table = relevance("mine", dense=Epsilon(), convolution=Gamma(0.1), first=ZBox(-3, 3)).where(
        lambda site: site.module == "b", Epsilon(0.01)
    )
    found = LRP(net, rules=table)(x, TARGET)
    assert [r.rule for r in found.coverage.rows if r.primitive in ("conv2d", "linear")] == [
        "z_box",
        "epsilon",
        "epsilon",
    ]
    assert found.provenance["rules"] == "mine"


def test_excitation_is_a_probability_whatever_the_logit() -> None:
    for architecture in ("plain", "fire", "dense"):
        net, (x,) = without_constants(build(architecture, "module")), images(architecture)
        found = ExcitationBackprop(net)(x, TARGET)
        on = found.output != 0
        torch.testing.assert_close(found.values.flatten(1).sum(1)[on], torch.ones(2).double()[on])
        scaled = LRP(net, preset="excitation_backprop").attribute(x, TARGET) / found.output.view(-1, 1, 1, 1)
        torch.testing.assert_close(found.values[on], scaled[on])


def test_excitation_is_zhangs_walk_by_hand() -> None:
    """P(i) = sum_j x_i w+_ij / sum_i x_i w+_ij P(j) (Eq. 2), and against the unit with negated weights (Sec. 3.3)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).double().eval()
    x = torch.rand(1, 1, 2, 2, dtype=torch.float64)
    h = net[:3](x).detach()[0]
    w1, w2 = net[1].weight.detach(), net[3].weight.detach()

    def walk(values: Tensor, weight: Tensor, p: Tensor) -> Tensor:
        shares = values * weight.clamp(min=0)
        return (shares / shares.sum(1, keepdim=True).clamp(min=1e-300)).T @ p

    top = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    expected = walk(x.flatten(), w1, walk(h, w2, top))
    torch.testing.assert_close(ExcitationBackprop(net).attribute(x, 1).flatten(), expected)
    contrast = walk(x.flatten(), w1, walk(h, w2, top) - walk(h, -w2, top))
    found = ExcitationBackprop(net, contrastive=True)(x, 1)
    torch.testing.assert_close(found.values.flatten(), contrast)
    assert abs(float(found.values.sum())) < 1e-12
    assert found.coverage.count()["contrast"] == 1


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2)
        return self.fc(F.scaled_dot_product_attention(x, x, x).mean(2))


def test_a_leak_warns_once_with_the_number_and_the_sites() -> None:
    torch.manual_seed(0)
    net, x = Mixture().double().eval(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    method = LRP(net, preset="epsilon", attention="attnlrp")
    with pytest.warns(
        UserWarning, match=r"LRP: \d+\.\d% of the output is neither .* lost at attention\[0\] at <model>"
    ):
        found = method(x, TARGET)
    assert float((found.completeness["gap"] / found.output).abs().max()) > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(x, TARGET)
        LRP(net, preset="epsilon", attention="attnlrp", tolerance=1e6)(x, TARGET)
        LRP(net, preset="epsilon")(x, TARGET)


def test_missing_rules_are_listed_all_at_once_with_the_way_out() -> None:
    extend(torch.erfinv, "other", "erfinv_of_relevance")

    class Odd(Mixture):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.erfinv(self.conv(x).tanh())
            return self.fc(torch.erfinv(x.tanh()).mean((2, 3)))

    x = torch.randn(2, 2, 5, 5)
    message = r"2 sites have no rule .*erfinv_of_relevance\[0\].*erfinv_of_relevance\[1\].*rules=\{'erfinv_of_relevance': rule"
    with pytest.raises(UnsupportedOp, match=message):
        LRP(Odd())(x)
    table = presets.epsilon().but({"erfinv_of_relevance": exact})
    LRP(Odd(), rules=table, tolerance=1e9)(x)


def test_relevance_that_overflows_names_its_site() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 2, bias=False)
    ).eval()
    with torch.no_grad():
        net[0].weight.fill_(1e-30)
        net[1].weight.copy_(torch.tensor([[1e30, -9.9e29], [1e30, -9.9e29]]).view(2, 2, 1, 1))
        net[3].weight.fill_(3e38)
    with pytest.raises(
        ModelStateError, match=r"relevance of image 0 overflows at \w+\[\d\] at \d .* in LRP\. Use float64"
    ):
        LRP(net, preset="z_plus")(torch.ones(1, 2, 1, 1), 0)


def test_bad_options_say_what_they_must_be() -> None:
    net = build("plain", "module")
    for options, message in (
        ({"preset": "epsilon_plas"}, "preset must be 'epsilon', .*Did you mean 'epsilon_plus'"),
        ({"epsilon": 0}, "epsilon must be a positive number, but is 0"),
        ({"preset": "epsilon_gamma_box", "gamma": -1}, "gamma must be a number of at least 0, but is -1"),
        (
            {"rules": presets.gradient},
            "rules must be rules by primitive, a table made by backlit.rules.relevance.relevance",
        ),
        ({"attention": "x"}, "attention must be 'held' or 'attnlrp'"),
        ({"pool": "x"}, "pool must be 'winner' or 'proportional'"),
        ({"tolerance": 0}, "tolerance must be a positive number"),
    ):
        with pytest.raises(InputError, match=message):
            LRP(net, **options)
    with pytest.raises(InputError, match="bounded must be True or False"):
        DeepTaylor(net, bounded="yes")
    with pytest.raises(InputError, match="contrastive must be True or False"):
        ExcitationBackprop(net, contrastive=1)
    with pytest.raises(UnsupportedOp, match="LRP needs a layer with weights"):
        LRP(nn.Sequential(nn.ReLU(), nn.Flatten()))(torch.rand(1, 1, 2, 2))
    assert TRUE is None


def test_the_preprocessing_knows_the_bounds() -> None:
    import backlit

    digits = backlit.load_model("digits")
    low, high = digits.preprocess.bounds
    shown = digits.preprocess.restore(torch.stack([torch.full((1, 2, 2), low[0]), torch.full((1, 2, 2), high[0])]))
    torch.testing.assert_close(shown, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2))
    x, _ = backlit.models.digits.digits_images()
    LRP(digits.network, preset="epsilon_gamma_box", low=low, high=high)(digits.preprocess.batch(x[:2]))


def test_options_are_recorded_as_numbers_and_names() -> None:
    net, (x,) = build("plain", "module"), images("plain")
    c, h, w = x.shape[1:]
    low, high = x.amin((0, 2, 3)) - 1, torch.full((c, h, w), 9.0)
    found = LRP(net, preset="epsilon_gamma_box", low=low, high=high)(x).provenance["options"]
    assert found["low"]["values"] == [repr(v) for v in low.tolist()]
    assert found["high"]["tensor"] == f"float32 {(c, h, w)}"
    assert "values" not in found["high"]  # too many to be read; its digest tells it
    assert (
        found["low"]["sha256"]
        == LRP(net, preset="epsilon_gamma_box", low=low.clone(), high=9.0)(x).provenance["options"]["low"]["sha256"]
    )
    assert LRP(net, rules=presets.epsilon_plus())(x).provenance["options"]["rules"]["name"] == "epsilon_plus"
