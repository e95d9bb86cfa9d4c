"""The matrix: every spelling of a ReLU in every kind of architecture, with the same weights.

`build(architecture, spelling)` is a small float64 network with biases; its twin is `build(architecture, "module")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Act = Callable[[Tensor], Tensor]


def _ignored(x: Tensor) -> Tensor:
    x.relu_()
    return x


SPELLINGS: dict[str, Callable[[], Act]] = {
    "module": lambda: nn.ReLU(),
    "module in place": lambda: nn.ReLU(inplace=True),
    "F.relu": lambda: F.relu,
    "F.relu in place": lambda: lambda x: F.relu(x, inplace=True),
    "torch.relu": lambda: torch.relu,
    "torch.relu_": lambda: torch.relu_,
    "x.relu()": lambda: lambda x: x.relu(),
    "x.relu_() used": lambda: lambda x: x.relu_(),
    "x.relu_() ignored": lambda: _ignored,
    "built in forward": lambda: lambda x: nn.ReLU()(x),
    "clamp": lambda: lambda x: x.clamp(min=0),
    "maximum": lambda: lambda x: torch.maximum(x, torch.zeros_like(x)),
}
SIX: dict[str, Callable[[], Act]] = {
    "module": lambda: nn.ReLU6(),
    "module in place": lambda: nn.ReLU6(inplace=True),
    "F.relu6": lambda: F.relu6,
    "F.relu6 in place": lambda: lambda x: F.relu6(x, inplace=True),
    "hardtanh": lambda: lambda x: F.hardtanh(x, 0.0, 6.0),
    "hardtanh_": lambda: lambda x: F.hardtanh_(x, 0.0, 6.0),
}


class Network(nn.Module):
    """Layers as attributes, a forward function, and an activation that may or may not be a module."""

    def __init__(
        self, layers: dict[str, nn.Module], run: Callable[[Any, Tensor], Tensor], make: Callable[[], Act]
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run
        first = make()
        self.shared = first if isinstance(first, nn.Module) else None
        self.acts = nn.ModuleList([make() for _ in range(8)]) if isinstance(first, nn.Module) else None  # type: ignore[misc]
        self._make, self._used = make, 0

    def act(self, x: Tensor, i: int) -> Tensor:
        return self.acts[i](x) if self.acts is not None else self._make()(x)

    def reused(self, x: Tensor) -> Tensor:
        return self.shared(x) if self.shared is not None else self._make()(x)

    def forward(self, *x: Tensor) -> Tensor:
        return self.run(self, *x)


def _conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def _head(net: Any, x: Tensor) -> Tensor:
    return net.fc(x.mean((2, 3)))


def _plain(net: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(net.act(net.a(x), 0), 3, stride=2, padding=1)
    return _head(net, net.act(net.b(x), 1))


def _reused(net: Any, x: Tensor) -> Tensor:
    x = net.reused(net.a(x))
    for _ in range(3):
        x = net.reused(net.b(x))
    return _head(net, x)


def _residual(net: Any, x: Tensor) -> Tensor:
    x = net.act(net.a(x), 0)
    out = net.b(net.act(net.b(x), 1))
    out += x
    return _head(net, net.act(out, 2))


def _dense(net: Any, x: Tensor) -> Tensor:
    x = net.act(net.a(x), 0)
    y = net.act(net.b(x), 1)
    return net.fc2(torch.cat([x, y, net.act(net.b(y), 2)], 1).mean((2, 3)))


def _fire(net: Any, x: Tensor) -> Tensor:
    x = net.act(net.a(x), 0)
    x = torch.cat([net.act(net.one(x), 1), net.act(net.b(x), 2)], 1)
    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    return torch.flatten(F.adaptive_avg_pool2d(net.act(net.last(x), 3), 1), 1)


def _bottleneck(net: Any, x: Tensor) -> Tensor:
    x = net.act(net.bn(net.a(x)), 0)
    out = net.act(net.bn2(net.one(x)), 1)
    out = net.bn3(net.b(out))
    out += net.bn4(net.one(x))
    return _head(net, net.act(out, 2))


def _norm_after(net: Any, x: Tensor) -> Tensor:
    x = net.bn(net.act(net.a(x), 0))
    return _head(net, net.bn2(net.act(net.b(x), 1)))


def _depthwise(net: Any, x: Tensor) -> Tensor:
    x = net.act(net.bn(net.a(x)), 0)
    x = net.act(net.depth(x), 1)
    return _head(net, F.dropout(net.one(x), 0.5, net.training))


def _control(net: Any, x: Tensor) -> Tensor:
    x = net.act(net.a(x), 0)
    if float(x.detach().sum()) > -1:
        x = net.act(net.b(x), 1)
    n = x.shape[0]
    return net.fc(x.view(n, x.size(1), -1).mean(-1)).view(n, -1)


def _nested(net: Any, x: Tensor) -> Tensor:
    return _head(net, net.act(net.nest(net.act(net.a(x), 0)), 1))


def _two(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return _head(net, net.act(net.b(net.act(net.a(x), 0) - 0.5 * net.act(net.a(y), 1)), 2))


def _views(net: Any, x: Tensor) -> Tensor:
    one, two = net.a(x).chunk(2, 1)
    x = torch.cat([net.act(one + 0.1, 0), net.act(two * 2, 1)], 1)
    return _head(net, net.act(net.b(x.permute(0, 1, 3, 2).contiguous()), 2))


ARCHITECTURES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "plain": _plain,
    "reused layers": _reused,
    "residual": _residual,
    "dense": _dense,
    "fire": _fire,
    "bottleneck": _bottleneck,
    "norm after activation": _norm_after,
    "depthwise": _depthwise,
    "control flow": _control,
    "nested": _nested,
    "two inputs": _two,
    "views": _views,
}  # type: ignore[assignment]


def build(architecture: str, spelling: str, spellings: dict[str, Callable[[], Act]] = SPELLINGS) -> Network:
    """The network, with weights that depend on the architecture alone."""
    layers: dict[str, nn.Module] = {
        "a": _conv(2, 4), "b": _conv(4, 4), "one": _conv(4, 4, 1), "last": _conv(8, 3, 1), "depth": _conv(4, 4, groups=4),
        "fc": nn.Linear(4, 3), "fc2": nn.Linear(12, 3), **{n: nn.BatchNorm2d(4) for n in ("bn", "bn2", "bn3", "bn4")},
        "nest": nn.Sequential(nn.Sequential(nn.Identity(), _conv(4, 4)), nn.Sequential(), nn.Dropout(0.5)),
    }  # fmt: skip
    net = Network(layers, ARCHITECTURES[architecture], spellings[spelling]).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.5
                tensor.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn)
    return net.eval()


def images(architecture: str, n: int = 2) -> tuple[Tensor, ...]:
    """Integer images, so that max-pools meet ties; two for the network that takes two."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-3, 4, (2, n, 2, 8, 8), generator=generator).double()
    return (x[0], x[1]) if architecture == "two inputs" else (x[0],)
