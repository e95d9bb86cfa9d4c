"""Small networks that show which of their values Grad-CAM's layer is, and Eq. 1 and 2 by hand on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import GradCAM

See = Callable[[Tensor], Tensor]
Arrange = Callable[[Tensor], Tensor]
TARGETS = torch.tensor([1, 3])


class Net(nn.Module):
    """Layers by name and a forward function, which passes the value that is right through ``see``."""

    def __init__(self, layers: dict[str, nn.Module], run: Callable[[Any, Tensor, See], Tensor]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run, self.see = run, lambda h: h

    def forward(self, *x: Tensor) -> Tensor:
        return self.run(self, *x, self.see)


def first(h: Tensor) -> Tensor:
    return h


def last(h: Tensor) -> Tensor:
    return h.permute(0, 3, 1, 2)


def tokens(h: int, w: int, extra: int = 0) -> Arrange:
    return lambda t: t[:, extra:].transpose(1, 2).unflatten(2, (h, w))


def by_hand(net: Net, x: Tensor | tuple[Tensor, ...], arrange: Arrange, targets: Tensor = TARGETS) -> Tensor:
    """The paper's two equations on the value that the network's own forward pass shows."""
    xs, seen = x if isinstance(x, tuple) else (x,), []
    net.see = lambda h: seen.append(h) or h
    try:
        out = net(*(x.clone().requires_grad_() for x in xs))
    finally:
        net.see = lambda h: h
    (g,) = torch.autograd.grad(out.gather(1, targets[:, None]).sum(), seen[-1])
    maps = (arrange(g).mean((2, 3), keepdim=True) * arrange(seen[-1].detach())).sum(1, keepdim=True).relu()
    return F.interpolate(maps, xs[0].shape[-2:], mode="bilinear")


def conv(i: int, o: int, k: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, stride, padding=k // 2)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "a": lambda: conv(3, 8),
    "b": lambda: conv(8, 8),
    "d": lambda: conv(8, 3),
    "d8": lambda: conv(8, 8),
    "one": lambda: conv(8, 1, 1),
    "bn": lambda: nn.BatchNorm2d(8),
    "classes": lambda: conv(8, 5, 1),
    "l": lambda: nn.Linear(8, 5),
    "l2": lambda: nn.Linear(8, 5),
    "wider": lambda: nn.Linear(16, 5),
    "heads": lambda: nn.Conv2d(2, 2, 1),
    "pixels": lambda: nn.Linear(48, 24),
    "along": lambda: nn.Conv1d(8, 8, 3, padding=1),
    "wide": lambda: nn.Linear(96, 5),
    "square": lambda: nn.Linear(5, 5),
    "bilinear": lambda: nn.Linear(64, 5),
    "embed": lambda: nn.Conv2d(3, 8, 4, 4),
    "norm": lambda: nn.LayerNorm(8),
    "norm2": lambda: nn.LayerNorm(8),
    "qkv": lambda: nn.Linear(8, 24),
    "q": lambda: nn.Linear(8, 8),
    "l3": lambda: nn.Linear(8, 8),
    "kv": lambda: nn.Linear(8, 16),
    "up": lambda: nn.Linear(8, 16),
    "down": lambda: nn.Linear(16, 8),
    "merge": lambda: nn.Linear(32, 8),
    "mix": lambda: nn.Linear(12, 12),
}


def build(run: Callable[..., Tensor]) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Net({name: make() for name, make in LAYERS.items()}, run).double().eval()


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check(run: Callable[..., Tensor], arrange: Arrange, x: Any = None) -> dict[str, Any]:
    net = build(run)
    x = images() if x is None else x
    expected = by_hand(net, x, arrange)
    assert float(expected.max()) > 0
    found = GradCAM(net)(x, TARGETS)
    found = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(found.values, expected, msg=f"{run.__name__}: {found.provenance['layer']}")
    return found.provenance


def embedded(net: Any, x: Tensor, extra: int) -> Tensor:
    t = net.embed(x).flatten(2).transpose(1, 2)
    return torch.cat([0.1 * t.new_ones(len(t), extra, 8).cumsum(1), t], 1) + 0.01


def attend(net: Any, t: Tensor) -> Tensor:
    n, count, _ = t.shape
    q, k, v = net.qkv(t).reshape(n, count, 3, 2, 4).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, count, 8)


def mlp(net: Any, t: Tensor) -> Tensor:
    return net.down(F.gelu(net.up(net.norm2(t))))


def vit(extra: int) -> Callable[..., Tensor]:
    def run(net: Any, x: Tensor, see: See) -> Tensor:
        t = embedded(net, x, extra)
        t = t + attend(net, net.norm(t))
        t = t + mlp(net, t)
        t = t + attend(net, see(net.norm(t)))
        t = net.norm(t + mlp(net, t))
        return net.l(t[:, :extra].mean(1))

    run.__name__ = f"vit_{extra}"
    return run
