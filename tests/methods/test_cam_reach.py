"""What a score reads, by masks of few axes: the elements at which its true derivative is not zero, for positive weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._features import _Recorded
from backlit._reach import reach

Run = Callable[[Tensor, Callable[..., Tensor]], Tensor]
CALLS: dict[str, Run] = {
    "strided": lambda x, w: F.conv2d(x, w(3, 4, 1, 1), stride=2),
    "dilated": lambda x, w: F.conv2d(x, w(3, 4, 3, 2), w(3), padding=(2, 0), dilation=(2, 1)),
    "grouped": lambda x, w: F.conv2d(x, w(6, 2, 3, 3), stride=2, groups=2),
    "depthwise": lambda x, w: F.conv2d(x, w(4, 1, 3, 3), padding="same", groups=4),
    "grouped twice": lambda x, w: F.conv2d(F.conv2d(x, w(4, 2, 1, 1), groups=2)[:, 1:3], w(2, 1, 3, 3), groups=2),
    "one dimension": lambda x, w: F.conv1d(x.flatten(2), w(2, 4, 3), stride=3),
    "three dimensions": lambda x, w: F.conv3d(x[:, None], w(2, 1, 2, 3, 3), stride=(2, 1, 2)),
    "transposed": lambda x, w: F.conv_transpose2d(x, w(4, 3, 2, 2), stride=3),
    "linear": lambda x, w: F.linear(x, w(3, 6)),
    "matrix": lambda x, w: x @ w(6, 3),
    "layer norm": lambda x, w: F.layer_norm(x, (5, 6)),
    "softmax": lambda x, w: x.softmax(1),
    "pool": lambda x, w: F.max_pool2d(x, 2),
    "broadcast": lambda x, w: x[:, :1] * x + x.mean((2, 3), keepdim=True),
    "attention": lambda x, w: F.scaled_dot_product_attention(x, x[:, :, 3:], x[:, :, 3:]),
    "glu": lambda x, w: F.glu(x, 1),
    "moves": lambda x, w: torch.cat([x.transpose(2, 3).flatten(1)[:, ::7], x.roll(1, 3).reshape(len(x), -1)], 1),
    "parts": lambda x, w: torch.cat([x.chunk(2, 1)[1].flatten(1), x.flip(1)[:, :, torch.tensor([2, 0])].flatten(1)], 1),
}


class Net(nn.Module):
    """One call; its output's elements are the scores."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        def positive(*shape: int) -> Tensor:
            return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) + 0.5

        return self.run(x, positive).flatten(1)


@pytest.mark.parametrize("name", CALLS)
def test_a_score_reads_where_its_derivative_is_not_zero(name: str) -> None:
    net = Net(CALLS[name])
    x = torch.rand(1, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    record = _Recorded(net, (x,))
    (jacobian,) = torch.autograd.functional.jacobian(lambda x: net(x)[0], x)[None]
    for k in range(0, record.classes, 1 + record.classes // 12):
        mask = F.one_hot(torch.tensor([k]), record.classes).bool()
        found = reach(record.steps, record.output, mask)["input.0"]
        assert torch.equal(found.expand(x.shape), jacobian[k] != 0), k


def test_an_index_that_the_network_writes_to_later_is_read_as_it_was() -> None:
    def run(x: Tensor, w: Callable[..., Tensor]) -> Tensor:
        rows = torch.tensor([0, 1])
        first = x[:, :, rows]
        rows += 3
        return first

    record = _Recorded(Net(run), (torch.rand(1, 4, 5, 6).requires_grad_(),))
    found = reach(record.steps, record.output, torch.ones(1, record.classes, dtype=torch.bool))["input.0"]
    assert found.expand(1, 4, 5, 6).any(3).any(1)[0].tolist() == [True, True, False, False, False]
