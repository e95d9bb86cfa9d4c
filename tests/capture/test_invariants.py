"""The model as it was, threads, many targets, kept sites, batch norm folding."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import _properties as properties
from _networks import build, images
from backlit import UnsupportedOp
from backlit.capture import freeze, propagate
from backlit.rules import presets


class Interrupted(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.net, self.error = build("bottleneck", "module in place"), error
        self.net.layer_hook = None

    def forward(self, x: Tensor) -> Tensor:
        self.net(x)
        raise self.error("in the middle")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_untouched_after_an_error(error: type[BaseException]) -> None:
    model, (x,) = Interrupted(error), images("bottleneck")
    before, image, state = properties.fingerprint(model), x.clone(), torch.get_rng_state()
    for attempt in (lambda: propagate(model, x, presets.guided), lambda: freeze(model, x)):
        with pytest.raises(error, match="in the middle"):
            attempt()
    assert properties.fingerprint(model) == before
    assert torch.equal(x, image)
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        torch.overrides._get_current_function_mode() is None
        if hasattr(torch.overrides, "_get_current_function_mode")
        else True
    )


def test_an_input_that_is_written_in_place_stays_the_users() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(128, 3)).double()
    (x,) = images("plain")
    before = x.clone()
    propagate(model, x, presets.guided).gradient(torch.ones(2, 3).double())
    freeze(model, x)(x)
    assert torch.equal(x, before)
    assert not x.requires_grad


def test_none_of_200_maps_is_wrong_with_a_second_thread_on_the_model() -> None:
    net, (x,) = build("residual", "F.relu in place"), images("residual")
    weights = {t: F.one_hot(torch.tensor([t, t]), 3).double() for t in (0, 1)}
    expected = {
        (t, table.name): propagate(net, x, table).gradient(weights[t])[0]
        for t in (0, 1)
        for table in (presets.guided, presets.gradient)
    }
    wrong = []

    def work(t: int, table: object) -> None:
        for _ in range(100):
            if not torch.equal(propagate(net, x, table).gradient(weights[t])[0], expected[t, table.name]):  # type: ignore[attr-defined]
                wrong.append(t)

    threads = [threading.Thread(target=work, args=case) for case in ((0, presets.guided), (1, presets.gradient))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not torch.equal(expected[0, "guided"], expected[0, "gradient"])


@pytest.mark.parametrize("table", presets.PRESETS, ids=lambda t: t.name)
def test_many_targets_cost_one_forward_pass(table: presets.RuleTable) -> None:
    calls = 0

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("fire", "F.relu")

        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return self.net(x)

    net, (x,) = Counted(), images("fire")
    run = propagate(net, x, table)
    every = torch.eye(3, dtype=torch.float64)[:, None].expand(3, 2, 3)
    (together,) = run.gradient(every, retain_graph=True)
    assert calls == 1
    assert together.shape == (3, *x.shape)
    for t in range(3):
        torch.testing.assert_close(together[t], run.gradient(every[t], retain_graph=True)[0])


def test_kept_sites_come_with_their_calls() -> None:
    net, (x,) = build("plain", "F.relu"), images("plain")
    run = propagate(net, x, presets.gradient, keep=lambda site: site.primitive == "conv2d")
    assert sorted(run.kept) == ["conv2d[0]", "conv2d[1]"]
    kept = run.kept["conv2d[0]"]
    assert torch.equal(kept.call["bias"], net.a.bias)
    torch.testing.assert_close(kept.output, net.a(x))
    (grad,) = torch.autograd.grad(run.output.sum(), kept.output)
    assert grad.shape == kept.output.shape


def test_sites_know_their_modules_and_shapes() -> None:
    net, (x,) = build("nested", "module"), images("nested")
    trace = propagate(net, x, presets.gradient).trace
    assert trace["conv2d[1]"].module == "nest.0.1"
    assert trace["relu[0]"].module == "acts.0"
    assert trace["relu[0]"].output_shape == (2, 4, 8, 8)
    assert trace["conv2d[0]"].input_shapes == ((2, 2, 8, 8),)
    assert [s.name for s in trace.of_kind("activation")] == ["relu[0]", "relu[1]"]
    assert "nest.0.1" in str(trace)
    with pytest.raises(KeyError, match="no site 'relu"):
        trace["relu[9]"]


class Folding(nn.Module):
    def __init__(self, layer: nn.Module, norm: nn.Module, use_twice: bool = False) -> None:
        super().__init__()
        self.layer, self.norm, self.use_twice = layer, norm, use_twice
        generator = torch.Generator().manual_seed(0)
        self.double().eval()
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if tensor.is_floating_point():
                    drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.copy_(drawn.abs() + 0.5 if "var" in name else drawn)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        y = self.norm(z)
        return (F.relu(y + z) if self.use_twice else F.relu(y)).flatten(1)


FOLDS = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    (nn.Conv2d(4, 6, 3, bias=False, dilation=2, padding="same"), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    (nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), (2, 3, 9)),
    (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3, affine=False), (2, 2, 4, 4, 4)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    (nn.Linear(5, 4), nn.BatchNorm1d(4), (3, 5)),
    (nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), (3, 5)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), FOLDS)
def test_batch_norm_folds_into_what_feeds_it(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = Folding(layer, norm)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, folded = propagate(model, x, presets.guided), propagate(model, x, presets.guided, fold=True)
    torch.testing.assert_close(folded.output, plain.output)
    weights = torch.randn(plain.output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(folded.gradient(weights), plain.gradient(weights))
    kept = propagate(model, x, presets.guided, fold=True, keep=lambda s: s.index == 0).kept
    site = next(name for name in kept if not name.startswith(("batch", "relu", "reshape")))
    assert kept[site].call["bias"] is not None
    assert not torch.equal(kept[site].call["weight"], model.layer.weight)
    frozen = freeze(model, x)
    torch.testing.assert_close(frozen(x), plain.output)
    primitives = [node.call.primitive.name for node in frozen.recording.nodes]
    assert "batch_norm" not in primitives


def test_batch_norm_that_nothing_can_absorb_stays() -> None:
    (x,) = images("norm after activation")
    net = build("norm after activation", "module")
    assert [n.call.primitive.name for n in freeze(net, x).recording.nodes].count("batch_norm") == 2
    twice = Folding(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), use_twice=True)
    names = [n.call.primitive.name for n in freeze(twice, x).recording.nodes]
    assert names.count("batch_norm") == 1
    torch.testing.assert_close(propagate(twice, x, presets.gradient, fold=True).output, twice(x))


def test_a_linear_layer_whose_outputs_are_not_the_norms_channels_keeps_it() -> None:
    for features in (4, 6):  # with 4, the shapes alone would let it fold
        model = Folding(nn.Linear(4, features), nn.BatchNorm1d(4))
        x = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        frozen = freeze(model, x)
        torch.testing.assert_close(frozen(x), model(x))
        assert "batch_norm" in [n.call.primitive.name for n in frozen.recording.nodes]
        torch.testing.assert_close(propagate(model, x, presets.guided, fold=True).output, model(x))


def test_a_layer_whose_output_is_read_by_other_means_keeps_its_norm() -> None:
    class Peeking(Folding):
        def forward(self, x: Tensor) -> Tensor:
            z = self.layer(x)
            return self.read(self.norm(z), z).flatten(1)

    (x,) = images("plain")
    for read in (
        lambda y, z: y + z.detach(),
        lambda y, z: y * (z > 0),
        lambda y, z: y if float(z[0, 0, 0, 0]) > 0 else -y,
    ):
        model = Peeking(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
        model.read = read
        torch.testing.assert_close(propagate(model, x, presets.gradient, fold=True).output, model(x))
        torch.testing.assert_close(freeze(model, x)(x), model(x))


def test_a_fold_that_the_probe_contradicts_is_not_made() -> None:
    model = Folding(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    model.norm.running_var.fill_(float("inf"))
    (x,) = images("plain")
    model.norm.running_mean.fill_(float("inf"))
    names = [n.call.primitive.name for n in freeze(model, x).recording.nodes]
    assert "batch_norm" in names


class _Keeping(nn.Module):
    """LeViT's and TinyViT's: biases are gathered from a weight once, and kept for the next passes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.bias = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Parameter(torch.randn(9))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.bias[torch.tensor([4, 0, 8, 4])] * 2
        return self.fc((torch.relu(self.conv(x)) + self.kept[:, None, None]).mean((2, 3)))


def test_what_a_network_made_of_its_weights_and_keeps_is_a_constant() -> None:
    torch.manual_seed(0)
    net, x = _Keeping().eval(), torch.randn(2, 3, 6, 6)
    for _ in range(2):
        run = propagate(net, x, presets.gradient)
        torch.testing.assert_close(run.output, net(x))
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(net(leaf).sum(), leaf)
        torch.testing.assert_close(run.gradient(torch.ones_like(run.output))[0], expected)


def test_what_a_network_made_of_an_image_and_keeps_is_refused() -> None:
    torch.manual_seed(0)
    net, x = _Keeping().eval(), torch.randn(2, 3, 6, 6)
    net.kept = net.conv(x).mean((0, 2, 3)) + net.bias[:4]
    torch.testing.assert_close(propagate(net, x, presets.gradient).output, net(x))  # x needs no gradient: weights alone
    net.kept = net.conv(x.requires_grad_()).mean((0, 2, 3)) + net.bias[:4]
    with pytest.raises(UnsupportedOp, match="computed by code that cannot be seen"):
        propagate(net, x.detach(), presets.gradient)
