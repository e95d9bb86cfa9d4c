"""DMBP: against the double-backward form in float64, Eq. 14 from independent bias terms, its options, its batches."""

from __future__ import annotations

import pytest
import torch
from _dmbp_oracle import DoubleBackward
from torch import nn
from torch.nn import functional as F

from backlit import DMBP, GradientXInput, InputError, Saliency
from backlit.methods.masks import RMSprop


class Net(nn.Module):
    """Biases, batch norm, residual add, concat, overlapping max-pool; ties come from the integer images below."""

    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.activation = activation
        self.conv1, self.bn1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(12, 5, 3, stride=2)
        self.bn3 = nn.BatchNorm2d(5)  # after the activation: it cannot fold
        self.fc = nn.Linear(5, 4)
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
            for norm in (self.bn1, self.bn2, self.bn3):
                norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
        self.double().eval()

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(F, self.activation)(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.act(self.bn1(self.conv1(x))), 3, stride=1, padding=1)
        x = self.act(self.bn2(self.conv2(x)) + x)
        x = torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 1)
        x = self.bn3(self.act(self.conv3(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def images(n: int = 3) -> torch.Tensor:
    return torch.randint(-2, 3, (n, 2, 9, 9), generator=torch.Generator().manual_seed(1)).double()


TARGET = torch.tensor([0, 2, 3])


@pytest.mark.parametrize("last_bias", ["both", "half"])
@pytest.mark.parametrize(
    ("sites", "init"), [("rectifiers", 0.0), ("branches", 0.0), ("layers", 0.0), ("everywhere", 1.0)]
)
@pytest.mark.parametrize("variant", ["all", "+,-", "+"])
def test_equals_the_double_backward_form(variant: str, sites: str, init: float, last_bias: str) -> None:
    net, x = Net(), images()
    oracle = DoubleBackward(net, x, TARGET, variant, sites=sites, init=init)
    oracle.shared = 0.5 if last_bias == "half" else 1.0
    losses = torch.stack([oracle.step() for _ in range(6)])
    options = {"steps": 6, "lr": 0.01, "sites": sites, "init": init, "last_bias": last_bias}
    ours = DMBP(net, variant=variant, **options)(x, TARGET)
    positive, negative = oracle.maps()
    torch.testing.assert_close(ours.trajectory["loss"], losses, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.parts["positive"], positive, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.parts["negative"], negative, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.values, positive + negative, rtol=1e-9, atol=1e-9)


def test_gradient_of_the_masks_equals_the_double_backward_one() -> None:
    net, x = Net(), images()
    oracle = DoubleBackward(net, x, TARGET, "all")
    oracle.step()
    ours: list[torch.Tensor] = []

    class Spy(RMSprop):
        def step(self, closure: None = None) -> None:
            ours.append(self.param_groups[0]["params"][0].grad.clone())
            super().step()

    DMBP(net, steps=1, optimizer=lambda parameters, lr: Spy(parameters, lr))(x, TARGET)
    theirs = torch.cat([t.grad.flatten() for t in oracle.theta.values()])
    # Ours lie as the activations lie in memory: compare what does not depend on the order.
    torch.testing.assert_close(ours[0].sort().values, theirs.sort().values, rtol=1e-9, atol=1e-12)
    assert theirs.abs().max() > 1e-6


def test_completeness_is_eq_14_with_bias_terms_computed_apart() -> None:
    net, x = Net(), images()
    ours = DMBP(net, steps=4)(x, TARGET)
    oracle = DoubleBackward(net, x, TARGET, "all")
    for _ in range(4):
        oracle.step()
    bias_positive, bias_negative = oracle.bias_terms()
    terms = ours.completeness
    torch.testing.assert_close(terms["positive"], ours.parts["positive"].flatten(1).sum(1) + bias_positive)
    torch.testing.assert_close(terms["negative"], ours.parts["negative"].flatten(1).sum(1) + bias_negative)
    assert bias_positive.abs().min() > 1e-4
    assert terms["gap"].abs().max() < 1e-12
    total = terms["positive"] + terms["negative"] + terms["nuisance"]
    torch.testing.assert_close(total, net(x).gather(1, TARGET[:, None])[:, 0])


def test_nd_is_gradient_times_input() -> None:
    net, x = Net(), images()
    expected = GradientXInput(net).attribute(x, TARGET)
    torch.testing.assert_close(DMBP(net, variant="nd").attribute(x, TARGET), expected)


@pytest.mark.parametrize(
    "activation", ["leaky_relu", "relu6", "hardtanh", "elu", "gelu", "silu", "hardswish", "softplus"]
)
def test_other_activations_are_split_without_a_gap(activation: str) -> None:
    net, x = Net(activation), images()
    ours = DMBP(net, steps=5, lr=0.1)(x, TARGET)
    assert ours.completeness["gap"].abs().max() < 1e-10
    loss = ours.trajectory["loss"]
    assert (loss[-1] < loss[0]).all()
    assert "masked" in ours.coverage.count()


@pytest.mark.parametrize("options", [{}, {"init": "normal"}, {"tolerance": 0.05}, {"optimizer": "adam"}, {"init": 0.5}])
def test_a_batch_equals_singles_and_chunks(options: dict) -> None:
    net, x = Net(), images()
    method = DMBP(net, steps=12, lr=0.05, **options)
    batch = method(x, TARGET)
    for i in range(3):
        torch.testing.assert_close(method(x[i : i + 1], TARGET[i : i + 1]).values[0], batch.values[i])
    chunked = DMBP(net, steps=12, lr=0.05, chunk=2, **options)(x, TARGET)
    torch.testing.assert_close(chunked.values, batch.values)
    torch.testing.assert_close(chunked.completeness["positive"], batch.completeness["positive"])


def test_tolerance_stops_each_image_by_itself() -> None:
    net, x = Net(), images()
    long = DMBP(net, steps=400, lr=0.05, tolerance=0.02)(x, TARGET)
    assert len(long.trajectory["loss"]) < 400
    assert DMBP(net, steps=10, tolerance=None)(x, TARGET).trajectory["loss"].shape == (10, 3)


def test_each_gives_every_target_its_own_map() -> None:
    net, x = Net(), images()
    method = DMBP(net, steps=5)
    first, second = method.each(x, [[0, 1], [2, 1], [3, 1]])
    torch.testing.assert_close(first.values, method(x, TARGET).values)
    torch.testing.assert_close(second.values, method(x, 1).values)
    assert not torch.allclose(first.values, second.values)


def test_callback_sees_steps_and_intermediate_maps() -> None:
    net, x = Net(), images()
    seen = []
    final = DMBP(net, steps=3, callback=lambda step: seen.append((step, step.maps())))(x, TARGET)
    assert [s.index for s, _ in seen] == [1, 2, 3]
    assert seen[0][0].steps == 3
    torch.testing.assert_close(seen[-1][1], final.values)
    assert not torch.allclose(seen[0][1], final.values)
    torch.testing.assert_close(seen[1][0].loss, final.trajectory["loss"][1])


def test_sites_choose_what_is_masked() -> None:
    net, x = Net(), images()
    every = DMBP(net, steps=3)(x, TARGET)
    assert every.coverage.count()["masked"] == 3
    one = DMBP(net, steps=3, sites=["relu[1]"])(x, TARGET)
    assert [r.site for r in one.coverage.rows if r.rule == "masked"] == ["relu[1]"]
    same = DMBP(net, steps=3, sites=lambda site: site.name == "relu[1]")(x, TARGET)
    torch.testing.assert_close(one.values, same.values)
    assert not torch.allclose(one.values, every.values)


def test_dtype_is_the_precision_of_the_optimisation() -> None:
    net, x = Net().float(), images().float()
    single, double = DMBP(net, steps=20, lr=0.1)(x, TARGET), DMBP(net, steps=20, lr=0.1, dtype=torch.float64)(x, TARGET)
    assert double.values.dtype == torch.float64
    torch.testing.assert_close(single.values.double(), double.values, rtol=1e-2, atol=1e-4)


def test_fast_is_twenty_steps() -> None:
    ours = DMBP.fast(Net())(images(), TARGET)
    assert ours.trajectory["loss"].shape == (20, 3)
    assert {k: ours.provenance["options"][k] for k in ("lr", "init")} == {"lr": 0.1, "init": 1.0}
    assert DMBP.fast(Net(), steps=2)(images(), TARGET).trajectory["loss"].shape == (2, 3)


def test_rmsprop_equals_torch_also_where_the_gradient_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, dtype=torch.float64, generator=generator)
    a, b = start.clone().requires_grad_(), start.clone().requires_grad_()
    ours, theirs = RMSprop([a], lr=0.1), torch.optim.RMSprop([b], lr=0.1)
    for _ in range(5):
        grad = torch.randn(50, dtype=torch.float64, generator=generator)
        grad[::2] = 0
        a.grad, b.grad = grad.clone(), grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert torch.equal(a[::2], start[::2])


@pytest.mark.slow
def test_compiled_steps_equal_eager_ones() -> None:
    net, x = Net(), images()
    torch.testing.assert_close(DMBP(net, steps=4, compile=True)(x, TARGET).values, DMBP(net, steps=4)(x, TARGET).values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "both"}, "variant must be .* but is 'both'"),
        ({"steps": 0}, "steps must be a positive integer up to 1,000,000, but is 0"),
        ({"lr": -1}, "lr must be a positive number"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of rmsprop"),
        ({"init": "zero"}, "init must be"),
        ({"tolerance": 0}, "tolerance must be"),
        ({"dtype": torch.int64}, "dtype must be"),
        ({"step": 3}, "no option of DMBP.*Did you mean 'steps'"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DMBP(Net(), **options)


def test_a_network_without_activations_is_refused() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(162, 4)).double().eval()
    with pytest.raises(InputError, match=r"must leave DMBP an activation to mask.*Use GradientXInput"):
        DMBP(linear)(images(), TARGET)
    assert Saliency(linear).attribute(images(), TARGET).shape == (3, 2, 9, 9)


def test_sites_that_match_nothing_are_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match=r"matches none.*relu\[0\]"):
        DMBP(Net(), sites=["layer9"])(images(), TARGET)
