"""A network that draws at random is refused, by whatever it draws, and every random stream stays where it was."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from backlit import ModelStateError
from backlit.capture import freeze, propagate
from backlit.methods import Method
from backlit.metrics import Examples, Insertion
from backlit.rules import presets

X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


class Part(nn.Module):
    """A module of the user's, under a name of its own."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Net(nn.Module):
    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.fc, self.part = nn.Conv2d(1, 2, 3), nn.Linear(32, 3), Part(run)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.part(F.relu(self.conv(x))).flatten(1))


def _drop_path(x: Tensor) -> Tensor:
    return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.9).div_(0.9)


def _forked(x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return x * torch.rand(1)


OWN = torch.Generator().manual_seed(3)
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "drop path": _drop_path,
    "bernoulli": lambda x: x * torch.bernoulli(torch.full((2, 1, 1, 1), 0.999)),
    "rand": lambda x: x + torch.rand(x.shape),
    "rand_like": lambda x: x * torch.rand_like(x),
    "randn": lambda x: x + 1e-6 * torch.randn(1),
    "randn_like of a constant": lambda x: x + torch.randn_like(torch.zeros(2, 2, 4, 4)),
    "randint": lambda x: x * torch.randint(1, 9, (1,)),
    "randperm": lambda x: x[:, torch.randperm(2)],
    "normal": lambda x: x + torch.normal(0.0, 1.0, (1,)),
    "multinomial": lambda x: x * (1 + torch.multinomial(torch.ones(5), 1)),
    "poisson": lambda x: x + torch.poisson(torch.ones(2, 2, 4, 4)),
    "a distribution": lambda x: x + torch.distributions.Gamma(torch.ones(1), torch.ones(1)).sample(),
    "uniform_": lambda x: x + torch.empty(4).uniform_(),
    "gumbel softmax": lambda x: x * F.gumbel_softmax(torch.ones(2, 2), dim=1)[:, :, None, None],
    "dropout of a constant": lambda x: x * F.dropout(torch.ones(2, 2, 4, 4), 0.1, training=True),
    "its own generator": lambda x: x + torch.rand(x.shape, generator=OWN),
    "random_ of its own generator": lambda x: x * torch.empty(1).random_(1, 5, generator=OWN),
    "a stream that is put back": _forked,
    "aten": lambda x: x + torch.ops.aten.rand([4]),
    "Python's random": lambda x: x * random.random(),
    "Python's random, last": lambda x: x if random.random() < 2 else x * 2,
    "numpy": lambda x: x * float(np.random.rand()),
}  # fmt: skip


def _states() -> list[Any]:
    kind, keys, *rest = np.random.get_state()
    own = OWN.get_state().tolist()
    return [torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), rest, own]


@pytest.mark.parametrize("how", [backlit.Gradient, backlit.methods.Random, backlit.LPR, backlit.GradCAM])
@pytest.mark.parametrize("kind", DRAWS)
def test_a_network_that_draws_is_refused(kind: str, how: type[Method]) -> None:
    method, before = how(Net(DRAWS[kind])), _states()
    message = (
        r"model must give the same output at every call, but 'part' \(Part, .*draws at random\. Call model.eval\(\)"
    )
    with pytest.raises(ModelStateError, match=message):
        method(X, 1)
    assert _states() == before


@pytest.mark.parametrize("kind", ["drop path", "rand_like", "its own generator", "numpy"])
def test_the_engine_and_the_metrics_refuse_it_too(kind: str) -> None:
    model, before = Net(DRAWS[kind]), _states()
    examples = Examples(X, torch.tensor([1, 2]))
    for attempt in (
        lambda: propagate(model, X, presets.exact),
        lambda: freeze(model, X),
        lambda: Insertion(replacement="zero", steps=4)(model, examples, {"some": X}),
    ):
        with pytest.raises(ModelStateError, match="draws at random"):
            attempt()
        assert _states() == before


class Keeps(nn.Module):
    """A module that keeps a random stream of Python's or NumPy's, and draws from it; seeded there first, if asked."""

    def __init__(self, stream: Any, *, within: str, seed: Callable[[Any], None] = lambda stream: None) -> None:
        super().__init__()
        self._stream, self.seed = {"alone": stream, "list": [1, stream], "dict": {"a": stream}}[within], seed

    @property
    def stream(self) -> Any:
        held = self._stream
        return held[1] if isinstance(held, list) else held["a"] if isinstance(held, dict) else held

    def forward(self, x: Tensor) -> Tensor:
        self.seed(self.stream)
        return x * float(self.stream.uniform(1, 2))

    def state(self) -> str:
        stream = self.stream
        if isinstance(stream, np.random.Generator):
            return repr(stream.bit_generator.state)
        return repr(stream.getstate() if isinstance(stream, random.Random) else stream.get_state())


STREAMS: dict[str, Callable[[], Any]] = {
    "random.Random": lambda: random.Random(3),
    "RandomState": lambda: np.random.RandomState(3),
    "default_rng": lambda: np.random.default_rng(3),
    "MT19937": lambda: np.random.Generator(np.random.MT19937(3)),
    "Philox": lambda: np.random.Generator(np.random.Philox(3)),
    "SFC64": lambda: np.random.Generator(np.random.SFC64(3)),
}


@pytest.mark.parametrize("within", ["alone", "list", "dict"])
@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("how", [backlit.Gradient, backlit.methods.Random])
def test_a_stream_that_a_module_keeps(kind: str, within: str, how: type[Method]) -> None:
    model, shared = Net(lambda x: x), _states()
    model.part.inner = part = Keeps(STREAMS[kind](), within=within)
    model.part.run = part
    before = part.state()
    with pytest.raises(ModelStateError, match=r"'part.inner' \(Keeps, stream part.inner._stream.*draws at random"):
        how(model)(X, 1)
    assert part.state() == before
    assert _states() == shared
    part.forward = lambda x: x * 2  # type: ignore[method-assign]
    how(model)(X, 1)  # it may be kept


def test_a_stream_that_a_module_keeps_and_seeds_is_explained() -> None:
    for make in (STREAMS["random.Random"], STREAMS["RandomState"]):
        model, part = Net(lambda x: x), Keeps(make(), within="alone", seed=lambda stream: stream.seed(7))
        model.part.inner = model.part.run = part
        before = part.state()
        expected = torch.autograd.grad(model(leaf := X.clone().requires_grad_())[:, 1].sum(), leaf)[0]
        part.stream.seed(3)
        torch.testing.assert_close(backlit.Gradient(model).attribute(X, 1), expected)
        assert part.state() == before


def _seeded(x: Tensor) -> Tensor:
    torch.manual_seed(5)
    return x * torch.rand(1)


def _own_seeded(x: Tensor) -> Tensor:
    return x * torch.rand(1, generator=torch.Generator().manual_seed(5))


def _forked_and_seeded(x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return _seeded(x)


def _python_seeded(x: Tensor) -> Tensor:
    random.seed(4)
    np.random.seed(4)
    return x * (random.random() + np.random.rand())


def _logged(x: Tensor) -> Tensor:
    assert float(torch.rand(1)) <= 1
    return x


def _built(x: Tensor) -> Tensor:
    layer = nn.Conv2d(2, 2, 1)  # its initial weights are drawn
    weights = {"weight": torch.ones(2, 2, 1, 1), "bias": torch.ones(2)}
    return torch.func.functional_call(layer, weights, x)


@pytest.mark.parametrize("run", [_seeded, _own_seeded, _forked_and_seeded, _python_seeded, _logged, _built])
def test_what_draws_the_same_each_time_is_explained(run: Callable[[Tensor], Tensor]) -> None:
    model, before = Net(run), _states()
    leaf = X.clone().requires_grad_()
    expected = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
    random.setstate(before[1])
    for start in (3, 4):  # wherever the streams stand
        torch.manual_seed(start)
        np.random.seed(start)
        here = _states()
        torch.testing.assert_close(backlit.Gradient(model).attribute(X, 1), expected)
        assert _states() == here


def test_a_rare_draw_that_changes_nothing_this_time_is_refused() -> None:
    with pytest.raises(ModelStateError, match="draws at random"):
        backlit.Gradient(Net(lambda x: x * torch.empty(1).bernoulli_(1 - 1e-6)))(X, 1)


def test_the_ways_out_work() -> None:
    class DropPath(Part):
        def forward(self, x: Tensor) -> Tensor:
            return self.run(x) if self.training else x

    model = Net(_drop_path)
    model.part = DropPath(_drop_path)
    model.train()
    with pytest.raises(
        ModelStateError, match=r"'part' \(DropPath, aten.bernoulli_\) draws at random. Call model.eval\(\)"
    ):
        backlit.Gradient(model)(X, 1)
    backlit.Gradient(model.eval())(X, 1)
    backlit.Gradient(Net(_own_seeded))(X, 1)


@pytest.mark.parametrize("make", ["swin_t", "efficientnet_b0", "convnext_tiny"])
def test_stochastic_depth_of_a_fresh_network(make: str) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(models, make)(num_classes=7)
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout)):
            module.eval()
    x, before = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), _states()
    with pytest.raises(ModelStateError, match=r"\(StochasticDepth, aten.bernoulli_\) draws at random"):
        backlit.Gradient(model)(x, 1)
    assert _states() == before


@pytest.mark.parametrize("how", [backlit.Gradient, backlit.methods.Random])
def test_the_streams_are_put_back_after_an_error(how: type[Method]) -> None:
    def run(x: Tensor) -> Tensor:
        x = x + torch.rand(1) + torch.rand(1, generator=OWN) + random.random() + np.random.rand()
        raise KeyError("mine")

    method, before = how(Net(run)), _states()
    with pytest.raises(KeyError, match="mine"):
        method(X, 1)
    assert _states() == before


def test_another_thread_that_draws_is_not_taken_for_the_network() -> None:
    stop, drawn = threading.Event(), []

    def draw() -> None:
        while not stop.is_set():
            drawn.append(float(torch.rand(1)))

    model = Net(lambda x: x)
    expected = torch.autograd.grad(model(leaf := X.clone().requires_grad_())[:, 1].sum(), leaf)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        thread = threading.Thread(target=draw)
        thread.start()
        try:
            for _ in range(20):
                torch.testing.assert_close(backlit.Gradient(model).attribute(X, 1), expected)
        finally:
            stop.set()
            thread.join()
        torch.manual_seed(0)
        assert drawn == [float(torch.rand(1)) for _ in drawn]
