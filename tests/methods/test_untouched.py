"""The network is bit-identical after any call of any method or baseline: in train mode, in eval mode, after an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import _properties as properties
from _methods import EVERYWHERE, quick
from backlit import PDA, TRGBP, ModelStateError
from backlit._forward import forward
from backlit.methods import FittedMethod, Method

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers with a batch norm between them, and a part that the tests choose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3)
        self.part: nn.Module = nn.Identity()
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.part(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


class Part(nn.Module):
    """A module that runs a function."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


@pytest.fixture(params=EVERYWHERE, ids=lambda m: m.name)
def method(request: pytest.FixtureRequest) -> Method:
    kind, net = request.param, Net()
    options = quick(kind, **({"contrast": 2} if kind is TRGBP else {}))
    options |= {"stride": 1} if kind is PDA else {}  # its windows are one pixel on images of eight
    if issubclass(kind, FittedMethod):
        generator = torch.Generator().manual_seed(2)
        images = torch.randn(40, 1, 8, 8, generator=generator)
        options["fitted"] = kind.fit(net, [(images, torch.arange(40) % 3)])
    return kind(net, **options)


def _values(model: nn.Module) -> list[Any]:
    tensors = [(name, t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()]
    return [[(name, id(t)) for name, t in model.state_dict(keep_vars=True).items()], tensors]


def _assert_same(model: nn.Module, before: list[Any]) -> None:
    after = _values(model)
    assert after[0] == before[0]  # the same objects
    for (name, one), (_, other) in zip(after[1], before[1], strict=True):
        assert torch.equal(one, other), name


def _refused(method: Method, match: str) -> None:
    before, state, modes = _values(method.model), torch.get_rng_state(), [m.training for m in method.model.modules()]
    for attempt in (lambda: method(X, 1), lambda: method.attribute(X, 1), lambda: method.each(X, [[1, 2]] * 3)):
        with pytest.raises(ModelStateError, match=match):
            attempt()
        _assert_same(method.model, before)
        assert torch.equal(torch.get_rng_state(), state)
        assert [m.training for m in method.model.modules()] == modes
        assert all(p.grad is None for p in method.model.parameters())


def test_batch_norm_in_train_mode_is_refused_and_not_moved(method: Method) -> None:
    method.model.train()
    _refused(method, r"model must be in eval mode, but 'norm' \(BatchNorm2d\) is in train mode. Call model.eval\(\)")


class Running(nn.Module):
    """A norm of the user's own, which keeps a running mean in one of several ways."""

    def __init__(self, update: Callable[[Running, Tensor], None]) -> None:
        super().__init__()
        self.update = update
        self.register_buffer("mean", torch.zeros(2))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.update(self, x.detach().mean((0, 2, 3)))
        return x * self.scale


def _in_place(own: Running, mean: Tensor) -> None:
    own.mean.lerp_(mean, 0.1)


def _assigned(own: Running, mean: Tensor) -> None:
    own.mean = 0.9 * own.mean + 0.1 * mean


def _copied(own: Running, mean: Tensor) -> None:
    own.mean.copy_(mean)


def _indexed(own: Running, mean: Tensor) -> None:
    own.mean[0] += 1


def _behind(own: Running, mean: Tensor) -> None:
    own.mean.data.add_(1)


def _by_torch(own: Running, mean: Tensor) -> None:
    F.batch_norm(mean[None].expand(2, -1) + torch.ones(2, 1), own.mean, torch.ones(2), training=True)


@pytest.mark.parametrize("update", [_in_place, _assigned, _copied, _indexed, _behind, _by_torch])
@pytest.mark.parametrize("training", [True, False])
def test_what_the_forward_pass_writes_is_put_back_and_refused(
    method: Method, update: Callable[[Running, Tensor], None], training: bool
) -> None:
    method.model.part = Running(update).train(training)
    _refused(method, r"its forward pass writes to 'part.mean', so that each call changes the next. Call model.eval\(\)")


def test_a_parameter_that_forward_replaces_is_put_back_and_refused(method: Method) -> None:
    def update(own: Running, mean: Tensor) -> None:
        own.scale = nn.Parameter(own.scale * 0.9)

    method.model.part = Running(update)
    _refused(method, "its forward pass writes to 'part.scale'")


def test_a_norm_in_eval_mode_whose_statistics_a_function_writes() -> None:
    """The norm itself writes nothing there, but its buffers are anybody's; batch norm writes them without a new version."""
    model = Net()
    model.part = Part(lambda x: F.batch_norm(x, model.norm.running_mean, model.norm.running_var, training=True))
    before = _values(model)
    with pytest.raises(ModelStateError, match=r"its forward pass writes to 'norm\.running_mean'"):
        forward(model, X)
    _assert_same(model, before)


def test_statistics_that_are_nan_are_not_taken_for_written() -> None:
    model = Net()
    model.register_buffer("unused", torch.tensor([torch.nan, 1]))
    assert torch.equal(forward(model, X), model(X).detach())
    model.part = Running(_in_place)
    with pytest.raises(ModelStateError, match=r"writes to 'part\.mean'"):
        forward(model, X)


def test_spectral_norm_in_train_mode_is_refused_and_not_moved(method: Method) -> None:
    method.model.part = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 1)).train()
    _refused(method, r"writes to 'part.parametrizations.weight.0._[uv]'")


def test_a_cache_that_grows_is_put_back(method: Method) -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(0), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if len(self.table) != x.shape[1]:
                self.table = torch.arange(x.shape[1]).to(x)
            return x + self.table[:, None, None]

    method.model.part = Cached()
    table = method.model.part.table
    method(X, 1)
    assert method.model.part.table is table


def test_the_ways_out_of_a_network_that_writes_work(method: Method) -> None:
    def update(own: Running, mean: Tensor) -> None:
        if own.training:
            _in_place(own, mean)

    method.model.part = Running(update).train()
    _refused(method, "writes to 'part.mean'")
    method.model.eval()
    method(X, 1)


@pytest.mark.parametrize("error", [RuntimeError, KeyError, ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_error_of_the_network_comes_through_and_leaves_nothing(method: Method, error: type[BaseException]) -> None:
    class Raising(Running):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            torch.rand(3)
            raise error("mine")

    method.model.part = Raising(_in_place)
    before, state, image = _values(method.model), torch.get_rng_state(), X.clone()
    with pytest.raises(error, match="mine") as caught:
        method(X, 1)
    assert type(caught.value) is error
    _assert_same(method.model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(X, image)


def test_eval_mode_leaves_every_attribute(method: Method) -> None:
    before, state = properties.fingerprint(method.model), torch.get_rng_state()
    method(X, 1)
    assert properties.fingerprint(method.model) == before
    assert torch.equal(torch.get_rng_state(), state)
