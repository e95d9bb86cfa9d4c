"""LPR against the paper written out by hand, its second-order path, its options, and bad input."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from _lpr_oracle import Oracle, Small
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from _networks import ARCHITECTURES, SPELLINGS, build, images
from backlit import LPR, InputError, UnsupportedOp
from backlit.capture import Call, Site, propagate
from backlit.methods.lpr import Learning, LPRStep, Plugins
from backlit.rules.plugin import Plugin

TARGETS = [1, 4, 2]


@pytest.fixture(scope="module")
def net() -> Small:
    torch.manual_seed(0)
    return Small().double().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


VARIANTS = [
    *(
        {"reading": r, "reference": ref}
        for r in ("gradient", "gated", "multiplier", "features")
        for ref in (True, False)
    ),
    {"plugin": "channel"},
    {"plugin": "channel", "reading": "gated"},
    {"sign_aware": False},
    {"mask": "gaussian"},
    {"mask": "gaussian", "sigma": 0.7, "sign_aware": False},
    {"score": "probability"},
    {"alpha": 0.6, "beta": 0.4, "gamma": 4.0, "lam": 0.7, "lr": 0.05, "init": 0.5},
    {"colours": "each"},
    {"mask_loss": "sum", "lam": 1e-3},
    {"relative": False},
    {"start": "nll"},
    {"sites": "between_convolutions"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_it_is_the_papers_algorithm(net: Small, x: Tensor, options: dict) -> None:
    found = backlit.LPR(net, steps=4, **{"lr": 0.2, **options})(x, TARGETS)
    for i, target in enumerate(TARGETS):
        oracle = Oracle(net, x[i : i + 1], target, steps=4, **options)
        expected = oracle.run()
        torch.testing.assert_close(found.values[i : i + 1], expected, rtol=1e-6, atol=1e-9)
        curve = torch.stack([found.trajectory[k][:, i] for k in ("loss", "positive", "negative", "mask")], 1)
        torch.testing.assert_close(curve, torch.tensor(oracle.curve, dtype=torch.float64), rtol=1e-6, atol=1e-9)
        masks = oracle.masks(expected)
        names = ("mask_positive", "mask_negative") if options.get("sign_aware", True) else ("mask_positive",)
        assert tuple(found.parts) == names
        for name, mask in zip(names, masks, strict=False):
            torch.testing.assert_close(found.parts[name][i : i + 1], mask, rtol=1e-6, atol=1e-7)


def learning(model: nn.Module, x: tuple[Tensor, ...], target: Tensor, **options: Any) -> Learning:
    method = LPR(model, **options)
    plugins = Plugins(method, None)
    return Learning(method, propagate(model, x, plugins), plugins, target)


ACTIVATIONS = [nn.LeakyReLU(0.2), nn.GELU(), nn.SiLU(inplace=True), nn.Hardswish(), nn.ReLU6(), nn.Tanh(), nn.PReLU(4)]


class Other(nn.Module):
    """What else a gradient passes: grouped, dilated and transposed convolutions, norms, attention, a gated product."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.up, self.same = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, 4, 3, padding="same")
        self.round = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.act, self.norm, self.layer = activation, nn.GroupNorm(2, 4), nn.LayerNorm(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.a(x)))
        x = self.act(self.up(self.b(x)))
        x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        x = F.avg_pool2d(self.act(self.round(self.same(x))), 4).flatten(2).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(x, x, x)
        return self.fc(self.layer(x).mean(1))


def assert_second_order_is_right(step: Learning) -> None:
    """The parameters' gradient against central differences of the loss, through the whole step."""
    loss, _ = step.loss(step.maps(learn=True))
    thetas = [r.theta for r in step._plugins.rules.values() if r.theta is not None]
    grads = torch.autograd.grad(loss.sum(), thetas)
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in thetas]
    analytic = float(sum((g * d).sum() for g, d in zip(grads, directions, strict=True)))

    def moved(size: float) -> float:
        with torch.no_grad():
            for theta, d in zip(thetas, directions, strict=True):
                theta.add_(size * d)
        return float(step.loss(step.maps(learn=False))[0].detach().sum())

    numeric = (moved(1e-6) - moved(-2e-6)) / 2e-6
    assert analytic == pytest.approx(numeric, rel=1e-4, abs=1e-7)
    assert abs(analytic) > 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_second_order_goes_through_every_architecture(architecture: str) -> None:
    x = tuple(image + 0.3 for image in images(architecture))
    assert_second_order_is_right(learning(build(architecture, "module"), x, torch.tensor([0, 2])))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_second_order_goes_through_every_other_operation(activation: nn.Module) -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    for reading in ("gradient", "multiplier"):
        assert_second_order_is_right(
            learning(Other(activation).double().eval(), (x,), torch.tensor([0, 2]), reading=reading)
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spelling_makes_no_difference(architecture: str) -> None:
    x = images(architecture)
    x = x if len(x) > 1 else x[0]
    expected = backlit.LPR(build(architecture, "module"), steps=2).attribute(x, 1)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for spelling in SPELLINGS:
        found = backlit.LPR(build(architecture, spelling), steps=2).attribute(x, 1)
        for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "options", [{}, {"plugin": "channel"}, {"reading": "multiplier"}, {"mask": "gaussian"}], ids=str
)
def test_a_batch_equals_singles(net: Small, x: Tensor, options: dict) -> None:
    whole = backlit.LPR(net, steps=6, **options)(x, TARGETS)
    for i, target in enumerate(TARGETS):
        alone = backlit.LPR(net, steps=6, **options)(x[i : i + 1], target)
        torch.testing.assert_close(alone.values, whole.values[i : i + 1])
        torch.testing.assert_close(alone.trajectory["loss"][:, 0], whole.trajectory["loss"][:, i])


def test_learning_lowers_the_loss_of_every_image() -> None:
    digits = backlit.load_model("digits")
    found = backlit.LPR(digits.network)(digits.preprocess.batch(backlit.models.digits.digits_images().images[:4]))
    loss = found.trajectory["loss"]
    assert loss.shape == (40, 4)
    assert bool((loss[-5:].amin(0) < loss[0] - 0.2).all())


def test_the_image_is_run_once_and_both_masks_of_all_images_in_one_batch(net: Small, x: Tensor) -> None:
    sizes: list[int] = []
    hook = net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        backlit.LPR(net, steps=3)(x, TARGETS)
        sizes.clear()  # the first call also tries the memory layout, once a network
        backlit.LPR(net, steps=3)(x, TARGETS)
    finally:
        hook.remove()
    assert sizes == [3, 6, 6, 6]


def test_every_activation_is_covered_and_sites_choose(net: Small, x: Tensor) -> None:
    assert backlit.LPR(net, steps=1)(x).coverage.count()["learned"] == 2
    only = backlit.LPR(net, steps=1, sites="rectifiers")(x).coverage
    assert [row.rule for row in only.rows if row.primitive in ("relu", "silu")] == ["learned", "learned"]
    one = backlit.LPR(net, steps=1, sites=["silu[0]"])(x).coverage
    assert [row.rule for row in one.rows if row.primitive in ("relu", "silu")] == ["true", "learned"]


def test_a_squashing_activation_is_no_rectifier() -> None:
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    model = Other(nn.ReLU()).double().eval()
    for sites, rule in (("activations", "learned"), ("rectifiers", "true")):
        rows = backlit.LPR(model, steps=1, sites=sites)(x).coverage.rows
        assert {row.rule for row in rows if row.primitive == "sigmoid"} == {rule}
        assert {row.rule for row in rows if row.primitive == "relu"} == {"learned"}


def test_a_choice_between_two_signals_keeps_its_derivative() -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = F.relu(self.a(x))
            return self.fc(torch.where(z > 0.5, z, z**2).mean((2, 3)))

    found = backlit.LPR(Choice().eval(), steps=1)(torch.randn(2, 2, 8, 8))
    rules = {row.primitive: row.rule for row in found.coverage.rows}
    assert (rules["gated"], rules["relu"], rules["pow"]) == ("true", "learned", "learned")


def test_channels_stand_where_the_layer_puts_them() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.fc = nn.Conv2d(2, 6, 4, stride=4), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x)).flatten(2).transpose(1, 2)  # (n, 4 tokens, 6)
            return self.fc(F.gelu(self.mix(x)).mean(1))

    step = learning(Tokens().eval(), (torch.randn(2, 2, 8, 8),), torch.tensor([0, 1]), plugin="channel")
    step.step()
    shapes = [tuple(rule.theta.shape) for rule in step._plugins.rules.values()]
    assert shapes == [(2, 6, 1, 1), (2, 1, 5)]


def test_the_callback_sees_each_step(net: Small, x: Tensor) -> None:
    seen: list[LPRStep] = []
    found = backlit.LPR(net, steps=3, callback=seen.append)(x, TARGETS)
    assert [(s.index, s.steps) for s in seen] == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(torch.stack([s.loss for s in seen]), found.trajectory["loss"])
    torch.testing.assert_close(seen[2].map, backlit.LPR(net, steps=2)(x, TARGETS).values)


class Scaled:
    """A rule of a user's own: the true ReLU gate, times one learned number an image; infinite for one image in time."""

    def __init__(self, fails_at: int = 0) -> None:
        self.theta: Tensor | None = None
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor]:
        if self.theta is None:
            self.theta = g.new_ones((len(g), *[1] * (g.dim() - 1))).requires_grad_()
        self.calls += 1
        factor = torch.ones_like(self.theta)
        if self.calls == self.fails_at:
            factor[1] = float("inf")
        return (g * (inputs[0] > 0) * self.theta * factor,)


def test_a_rule_of_ones_own_is_learned(net: Small, x: Tensor) -> None:
    made: list[tuple[Site, Scaled]] = []

    def make(site: Site) -> Scaled:
        made.append((site, Scaled()))
        return made[-1][1]

    found = backlit.LPR(net, steps=3, plugin=make)(x, TARGETS)
    assert [site.name for site, _ in made] == ["relu[0]", "silu[0]"]
    assert found.coverage.count()["Scaled"] == 2
    assert all(rule.theta is not None and bool((rule.theta != 1).all()) for _, rule in made)


@pytest.mark.parametrize(
    ("call", "step", "when"),
    [(2, 2, "at step 2 of 3"), (4, 4, "after the last step")],
    ids=["while learning", "in the last map"],
)
def test_the_last_finite_map_is_returned_with_the_step(net: Small, x: Tensor, call: int, step: int, when: str) -> None:
    def make(site: Site) -> Any:
        return Scaled(fails_at=call if site.name == "relu[0]" else 0)

    with pytest.warns(RuntimeWarning, match=rf"image 1 is not finite {when}"):
        found = backlit.LPR(net, steps=3, plugin=make)(x, TARGETS)
    sound = backlit.LPR(net, steps=3, plugin=lambda site: Scaled())
    short = backlit.LPR(net, steps=step - 2, plugin=lambda site: Scaled()) if step > 2 else None
    torch.testing.assert_close(found.values[[0, 2]], sound(x, TARGETS).values[[0, 2]])
    if short is not None:
        torch.testing.assert_close(found.values[1], short(x, TARGETS).values[1])
    assert bool(found.values.isfinite().all())


def test_a_loss_that_is_not_finite_is_reported_at_its_step(net: Small, x: Tensor) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.passes = net, 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += len(x) == 6  # both masked images of all three
            factor = torch.ones(len(x), 1, dtype=x.dtype)
            if self.passes == 2 and len(x) == 6:
                factor[1] = float("inf")
            return self.net(x) * factor

    with pytest.warns(RuntimeWarning, match=r"image 1 is not finite at step 2 of 4"):
        found = backlit.LPR(Breaks().eval(), steps=4)(x, TARGETS)
    torch.testing.assert_close(found.values[1], backlit.LPR(net, steps=1)(x, TARGETS).values[1])
    torch.testing.assert_close(found.values[[0, 2]], backlit.LPR(net, steps=4)(x, TARGETS).values[[0, 2]])


def test_a_rule_that_keeps_no_contract_is_refused(net: Small, x: Tensor) -> None:
    def bare(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor]:
        return (g * (inputs[0] > 0),)

    one = Scaled()
    for plugin, message in (
        (lambda site: None, "plugin must make a new rule for each site"),
        (lambda site: one, "plugin must make a new rule for each site"),
        (lambda site: lambda *arguments: bare(*arguments), "plugin must set its attribute theta"),
    ):
        with pytest.raises(InputError, match=message):
            backlit.LPR(net, plugin=plugin)(x, TARGETS)


def test_a_callback_cannot_change_the_result(net: Small, x: Tensor) -> None:
    def spoil(step: LPRStep) -> None:
        step.loss.zero_()
        step.map.zero_()

    found = backlit.LPR(net, steps=2, callback=spoil)(x, TARGETS)
    expected = backlit.LPR(net, steps=2)(x, TARGETS)
    assert torch.equal(found.trajectory["loss"], expected.trajectory["loss"])
    assert torch.equal(found.values, expected.values)


class Mixed(nn.Module):
    """Layouts that change on the way: what comes channels last and what does not meet in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(10, 5, 3)
        self.tokens, self.fc = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.c(torch.cat([x, F.relu(self.b(x))], 1)))
        x = F.relu(self.tokens(x.flatten(2).permute(2, 0, 1)))  # tokens first
        return self.fc(F.relu(x.transpose(0, 1)).mean(1))


def test_a_step_of_adam_meets_each_parameter_with_its_own_gradient(x: Tensor) -> None:
    torch.manual_seed(0)
    step = learning(Mixed().double().eval(), (x.contiguous(memory_format=torch.channels_last),), torch.tensor(TARGETS))
    loss, _ = step.loss(step.maps(learn=True))
    rules = list(step._plugins.rules.values())
    grads = torch.autograd.grad(loss.sum(), [rule.theta for rule in rules])
    assert any(g.stride() != rule.theta.stride() for g, rule in zip(grads, rules, strict=True))
    step.step()
    for grad, rule in zip(grads, rules, strict=True):
        torch.testing.assert_close(rule.theta.detach(), 1 - 0.2 * grad / (grad.abs() + 1e-8))


def test_a_batch_equals_singles_where_layouts_change(x: Tensor) -> None:
    torch.manual_seed(0)
    net = Mixed().double().eval()
    whole = backlit.LPR(net, steps=4).attribute(x, TARGETS)
    for i, target in enumerate(TARGETS):
        torch.testing.assert_close(backlit.LPR(net, steps=4).attribute(x[i : i + 1], target)[0], whole[i])


def test_attention_with_heads_is_differentiated_twice() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, stride=4)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
            self.fc = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.layer(self.patch(x).flatten(2).transpose(1, 2)).mean(1))

    torch.manual_seed(0)
    net = Encoder().double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert_second_order_is_right(learning(net, (x,), torch.tensor([0, 2])))


def test_a_constant_map_is_reported_and_leaves_the_others_alone(net: Small, x: Tensor) -> None:
    black = x.clone()
    black[1] = 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = backlit.LPR(net, steps=3)(black, TARGETS)
    assert ["map of image 1 is constant" in str(w.message) for w in said] == [True]
    assert said[0].filename == __file__, "the caller's line"
    assert bool(found.trajectory["loss"].isfinite().all())
    assert not bool(found.values[1].any())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(found.values[[0, 2]], backlit.LPR(net, steps=3)(x, TARGETS).values[[0, 2]])


def test_a_logit_of_zero_is_no_scale() -> None:
    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            score = F.relu(self.conv(x)).mean((2, 3))
            return torch.stack([score[:, 0] - score[:, 0].detach(), score[:, 0], score[:, 1]], 1)

    x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = backlit.LPR(Zero().eval(), steps=3)(x, 0)
    assert bool(found.trajectory["loss"].isfinite().all())
    assert bool((found.output == 0).all())


def test_a_network_that_takes_another_way_for_zero_needs_no_reference() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            if bool((x.detach() - self.conv.bias.view(1, -1, 1, 1)).abs().sum() > 0):
                x = F.relu(x)
            return x.mean((2, 3))

    x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedOp, match=r"relu\[0\].*reference=False"):
        backlit.LPR(Fork().eval(), reading="multiplier")(x, 0)
    backlit.LPR(Fork().eval(), reading="multiplier", reference=False, steps=1)(x, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": True}, "steps must be a positive integer"),
        ({"reference": "off"}, "reference must be True or False"),
        ({"sign_aware": "no"}, "sign_aware must be True or False"),
        ({"sites": 5}, "sites must be 'rectifiers'"),
        ({"sites": torch.tensor(1)}, "sites must be 'rectifiers'"),
        ({"callback": 5}, "callback must be a function"),
        ({"reading": "tanh"}, "reading must be 'gradient', 'gated'"),
        ({"plugin": "pixel"}, "plugin must be 'element', 'channel'"),
        ({"mask": "hard"}, "mask must be"),
        ({"colours": "grey"}, "colours must be 'sum', 'each', or None, but is 'grey'"),
        ({"mask_loss": 1}, "mask_loss must be 'mean', 'sum', or None, but is 1"),
        ({"relative": 0}, "relative must be True or False, but is 0"),
        ({"start": "loss"}, "start must be 'logit', 'nll', or None, but is 'loss'"),
        ({"alpha": 1.2}, "alpha must be from 0 to 1"),
        ({"beta": -0.1}, "beta must be from 0 to 1"),
        ({"gamma": 0}, "gamma must be a positive"),
        ({"sigma": -1.0}, "sigma must be a positive"),
        ({"lam": -0.1}, "lam must be a number from 0"),
        ({"lr": float("inf")}, "lr must be a positive"),
        ({"init": 0}, "init must be a number other than 0"),
        ({"score": "loss"}, "score must be"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"lambda": 1}, "no option of LPR"),
    ],
    ids=str,
)
def test_options_are_checked(net: Small, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        backlit.LPR(net, **options)


def test_a_network_without_activations_is_refused(x: Tensor) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 3)).double().eval()
    with pytest.raises(InputError, match=r"has no activation.*GradientXInput"):
        backlit.LPR(linear)(x)


def test_sites_that_match_nothing_are_refused_with_what_there_is(net: Small, x: Tensor) -> None:
    with pytest.raises(InputError, match=r"'relu\[9\]' matches none of relu\[0\], silu\[0\]"):
        backlit.LPR(net, sites="relu[9]")(x)


def test_fast_is_half_the_steps_and_takes_other_options(net: Small, x: Tensor) -> None:
    fast = backlit.LPR.fast(net, reading="gated")
    assert fast(x, [0, 1, 2]).trajectory["loss"].shape == (20, 3)
    assert torch.equal(fast.attribute(x, 0), backlit.LPR(net, steps=20, reading="gated").attribute(x, 0))
    assert backlit.LPR.fast(net, steps=3)(x, 0).trajectory["loss"].shape == (3, 3)


def test_theta_is_made_from_the_options_start() -> None:
    rule = Plugin(init=0.3)
    (h,) = rule(torch.tensor([[2.0]]), (torch.tensor([[1.0]]),), torch.tensor([[1.0]]), None)  # type: ignore[arg-type]
    torch.testing.assert_close(h, torch.tanh(torch.tensor([[0.6]])))
