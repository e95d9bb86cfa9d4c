"""DeepLIFT's reveal-cancel rule: the paper's example and formula by hand, ReLUs written as conditions, units that stand still."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backlit import DeepLIFT


def test_reveal_cancel_is_the_papers_example_and_formula() -> None:
    """y = min(x1, x2) = x2 - relu(x2 - x1): rescale gives all to one input, reveal-cancel half to each (Sec. 3.5.3)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0, 1.0], [-1.0, 1.0]]))  # x2 and x2 - x1, both above zero here
        net[3].weight.copy_(torch.tensor([[1.0, -1.0]]))
    x = torch.tensor([[[[1.0, 3.0]]]], dtype=torch.float64)
    torch.testing.assert_close(DeepLIFT(net).attribute(x, 0).flatten(), torch.tensor([1.0, 0.0]).double())
    found = DeepLIFT(net, rule="reveal_cancel")(x, 0)
    torch.testing.assert_close(found.values.flatten(), torch.tensor([0.5, 0.5]).double())
    assert found.coverage.count() == {"true": 1, "reveal_cancel": 2, "joined to its layer": 1}


@pytest.mark.parametrize(
    "act",
    [
        lambda z: z * (z > 0),
        lambda z: z * (z.detach() > 0).to(z),
        lambda z: torch.where(z > 0, z, 0),
        lambda z: z.masked_fill((z < 0).expand_as(z), 0),
    ],
)
def test_reveal_cancel_knows_a_relu_that_is_written_as_a_condition(act: Any) -> None:
    """f(z0 + P) has its own sign, not that of the values that were seen; another condition keeps the rescale rule."""

    class Written(nn.Module):
        def __init__(self, act: Any) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm, self.fc, self.act = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 2), act

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.act(self.norm(self.conv(x))).flatten(1))

    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def explained(act: Any, rule: str, x: Tensor) -> Any:
        return DeepLIFT(Written(act).double().eval(), rule=rule, reference="mean").each(x, [[0, 1]] * len(x))

    for found, expected in zip(
        explained(act, "reveal_cancel", x), explained(torch.relu, "reveal_cancel", x), strict=True
    ):
        torch.testing.assert_close(found.values, expected.values)

    def odd(z: Tensor) -> Tensor:
        return z * (z > 0.3)

    for one, other in zip(explained(odd, "reveal_cancel", x), explained(odd, "reveal_cancel", x[:1]), strict=True):
        torch.testing.assert_close(one.values[:1], other.values)
        torch.testing.assert_close(one.completeness["ratio"], torch.ones(3).double())
    for one, other in zip(
        *(explained(lambda z: z * (z < 0), rule, x) for rule in ("reveal_cancel", "rescale")), strict=True
    ):
        torch.testing.assert_close(one.values, other.values)


def test_reveal_cancel_hands_half_of_both_signs_to_a_unit_that_stands_still() -> None:
    """h = x1 - x2 does not change, but x1 and x2 do: its multiplier is the mean of those of both signs (Sec. 3.5.1)."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 1)
    )
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, 1.0, -1.0]]))  # z = h + u - v: P = 2, N = -1
        net[4].weight.fill_(1.0)
    x = torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
    found = DeepLIFT(net.double(), rule="reveal_cancel")(x, 0)
    up, down = (2 / 2 + (1 - 0) / 2) / 2, (0 / -1 + (1 - 2) / -1) / 2  # dy+ / P and dy- / N
    still = (up + down) / 2
    torch.testing.assert_close(found.values.flatten(), torch.tensor([still, -still, 2 * up, -down]).double())


def test_reveal_cancel_by_hand_with_a_batch_norm_and_a_reference() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        net[2].running_mean.normal_()
        net[2].running_var.uniform_(0.5, 2)
    net.eval()
    x, r = torch.randn(2, 1, 1, 4, 4, dtype=torch.float64)
    scale = (net[2].weight / (net[2].running_var + 1e-5).sqrt()).detach()
    w = net[1].weight.detach() * scale[:, None]
    z0 = net[:3](r).detach()[0]
    c = w * (x - r).flatten()
    p, n = c.clamp(min=0).sum(1), c.clamp(max=0).sum(1)
    up = (torch.tanh(z0 + p) - torch.tanh(z0) + torch.tanh(z0 + p + n) - torch.tanh(z0 + n)) / 2
    down = (torch.tanh(z0 + n) - torch.tanh(z0) + torch.tanh(z0 + p + n) - torch.tanh(z0 + p)) / 2
    top = net[4].weight.detach()[0]
    expected = (top[:, None] * (c.clamp(min=0) * (up / p)[:, None] + c.clamp(max=0) * (down / n)[:, None])).sum(0)
    torch.testing.assert_close(DeepLIFT(net, rule="reveal_cancel", reference=r[0]).attribute(x, 0).flatten(), expected)
