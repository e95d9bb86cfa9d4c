"""LPR's readings: the printed options, the reference that acts in some of them, and plugins between convolutions."""

from __future__ import annotations

import pytest
import torch
from _lpr_oracle import Oracle, Small
from torch import Tensor, nn

import backlit
from backlit import InputError

TARGETS = [1, 4, 2]
PAPER = {"colours": "each", "mask_loss": "sum", "relative": False, "start": "nll", "sites": "between_convolutions"}


@pytest.fixture(scope="module")
def net() -> Small:
    torch.manual_seed(0)
    return Small().double().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_papers_reading_is_its_printed_options(net: Small, x: Tensor) -> None:
    found = backlit.LPR(net, reading="paper", steps=4)(x, TARGETS)
    same = backlit.LPR(net, reading="features", **PAPER, steps=4)(x, TARGETS)
    assert torch.equal(found.values, same.values)
    assert found.values.shape == x.shape
    for i, target in enumerate(TARGETS):
        expected = Oracle(net, x[i : i + 1], target, steps=4, reading="features", **PAPER).run()
        torch.testing.assert_close(found.values[i : i + 1], expected, rtol=1e-6, atol=1e-9)
    mixed = backlit.LPR(net, reading="paper", colours="sum", steps=4)(x, TARGETS)
    assert mixed.values.shape == (3, 1, 16, 16)
    assert mixed.provenance["options"]["mask_loss"] == "sum"


def test_the_reference_changes_nothing_in_the_default_reading(net: Small, x: Tensor) -> None:
    with_it, without = (backlit.LPR(net, reference=r, steps=3).attribute(x, TARGETS) for r in (True, False))
    assert torch.equal(with_it, without)
    acting = [backlit.LPR(net, reading="features", reference=r, steps=3).attribute(x, TARGETS) for r in (True, False)]
    assert not torch.allclose(*acting)


def test_between_convolutions_is_found_by_dataflow() -> None:
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(nn.ReLU(), *parts, nn.Linear(4 * 12 * 12, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = backlit.LPR(net, sites="between_convolutions", steps=1)(x, 0).coverage.rows
    assert [row.site for row in rows if row.rule == "learned"] == ["relu[1]"]
    dense = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    with pytest.raises(InputError, match=r"'between_convolutions' matches none of relu\[0\]"):
        backlit.LPR(dense, sites="between_convolutions")(x, 0)
