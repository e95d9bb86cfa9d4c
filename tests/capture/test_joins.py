"""Which norms are part of a layer: folding and the rules' backward pass ask the same question and get the same answer."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from backlit.capture import propagate
from backlit.capture.fold import fold_plan
from backlit.capture.tensors import ByTensor
from backlit.rules import presets


class _Net(nn.Module):
    """Two convolutions, two norms and a head, put together by ``run``."""

    def __init__(self, run: Callable[[_Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)
        self.flat = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _pooled(net: _Net, z: Tensor) -> Tensor:
    return net.head(z.mean((2, 3)))


def _twice(net: _Net, x: Tensor) -> Tensor:
    z = net.one(x)
    return _pooled(net, net.norm(z) + z)


def _two_norms(net: _Net, x: Tensor) -> Tensor:
    z = net.one(x)
    return _pooled(net, net.norm(z) + net.other(z))


NETWORKS: dict[str, tuple[Callable[[_Net, Tensor], Tensor], set[str]]] = {
    "a norm behind its layer": (lambda n, x: _pooled(n, n.norm(n.one(x)).relu()), {"norm"}),
    "two layers, two norms": (lambda n, x: _pooled(n, n.other(n.two(n.norm(n.one(x)).relu()))), {"norm", "other"}),
    "a layer that is read twice": (_twice, set()),
    "a layer that two norms read": (_two_norms, set()),
    "a norm behind an activation": (lambda n, x: _pooled(n, n.norm(n.one(x).relu())), set()),
    "a norm behind a sum": (lambda n, x: _pooled(n, n.norm(n.one(x) + 1)), set()),
    "a norm of the input": (lambda n, x: _pooled(n, n.one(nn.functional.batch_norm(x, x.new_zeros(2), x.new_ones(2)))), set()),
    "a norm behind a linear layer": (lambda n, x: n.flat(_pooled(n, n.one(x))), {"flat"}),
    "a norm that is the output, its layer too": (lambda n, x: F.pad(n.flat(h := _pooled(n, n.one(x))), (0, 0)) + h, set()),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_and_joining_find_the_same_norms(name: str) -> None:
    run, expected = NETWORKS[name]
    torch.manual_seed(0)
    net, x = _Net(run).double().eval(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    rows = propagate(net, x, presets.z_plus()).coverage.rows
    assert {row.module for row in rows if row.rule == "joined to its layer"} == expected
    plan, trace = fold_plan(net, (x,))
    norms = {(s.name, s.module) for s in trace if s.primitive == "batch_norm"}
    assert {module for name, module in plan if (name, module) in norms} == expected


def test_a_value_is_known_as_long_as_its_tensor_lives() -> None:
    known: ByTensor[str] = ByTensor()
    one, two = torch.zeros(3), torch.zeros(3)
    known[one], known[two] = "one", "two"
    assert (known[one], known.get(two, ""), known.get(torch.zeros(3), "none")) == ("one", "two", "none")
    assert one in known
    assert one.clone() not in known
    with pytest.raises(KeyError, match="nothing is known"):
        known[one.clone()]
    del one
    gc.collect()
    assert len(known._entries) == 1


def test_looking_at_tensors_is_no_call_that_another_mode_sees() -> None:
    """Each such call would run through every mode that is on, the one that looks for random draws included."""
    seen: list[str] = []

    class Outer(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    def calls(activations: int) -> int:
        seen.clear()
        net = nn.Sequential(nn.Flatten(), *(nn.ReLU() for _ in range(activations)), nn.Linear(8, 2)).eval()
        with Outer():
            propagate(net, torch.ones(2, 8), presets.gradient)
        assert seen.count("relu") == activations
        return len(seen)

    assert calls(11) - calls(1) <= 15
