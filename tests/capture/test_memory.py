"""Writes in place, views, and memory that tensors share: the result is the network's own, or an error says what was written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import UnsupportedOp, check_rule
from backlit.capture import Call, freeze, propagate
from backlit.rules import RuleTable, presets

X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WEIGHTS = torch.randn(2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Around(nn.Module):
    """conv -> the part under test -> linear -> perhaps something after it."""

    def __init__(self, part: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] = nn.Identity()) -> None:  # noqa: B008
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(32, 3)
        self.part, self.after = part, after
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.fc(self.part(self.conv(x)).flatten(1)))


def guided(part: Callable[[Tensor], Tensor]) -> Tensor:
    return propagate(Around(part), X, presets.guided).gradient(WEIGHTS)[0]


def assert_true(model: nn.Module, table: RuleTable) -> None:
    """Output bit for bit, gradient as autograd has it."""
    run = propagate(model, X, table)
    leaf = X.clone().requires_grad_()
    plain = model(leaf)
    assert torch.equal(run.output, plain)
    torch.testing.assert_close(run.gradient(WEIGHTS)[0], torch.autograd.grad(plain, leaf, WEIGHTS)[0])


def _relu_ignored(y: Tensor) -> Tensor:
    y.relu_()
    return y


def _first_to_zero(y: Tensor) -> Tensor:
    y[:, 0] = 0
    return y


def _twice(y: Tensor) -> Tensor:
    y.mul_(2)
    y.add_(1)
    return y


@pytest.mark.parametrize("after", [_relu_ignored, _first_to_zero, _twice])
@pytest.mark.parametrize("table", [presets.gradient, presets.exact])
def test_an_output_that_was_written_in_place_is_the_written_one(
    after: Callable[[Tensor], Tensor], table: RuleTable
) -> None:
    model = Around(F.relu, after)
    assert_true(model, table)
    frozen = freeze(model, X)
    torch.testing.assert_close(frozen(X), model(X))
    assert torch.equal(frozen.output, model(X))


def _view_of_buffer(x: Tensor) -> Tensor:
    buffer = torch.zeros_like(x)
    buffer[:, :1].copy_(x[:, :1])
    return F.relu(buffer) + x


def _slice(x: Tensor) -> Tensor:
    x[:, :1].relu_()
    return x


def _slice_sum(x: Tensor) -> Tensor:
    x[:, :1] += x[:, 1:]
    return F.relu(x)


def _flat(x: Tensor) -> Tensor:
    x.view(2, -1).relu_()
    return x


@pytest.mark.parametrize(
    ("part", "twin"),
    [
        (_view_of_buffer, lambda x: F.relu(torch.cat([x[:, :1], x[:, 1:] * 0], 1)) + x),
        (_slice, lambda x: torch.cat([F.relu(x[:, :1]), x[:, 1:]], 1)),
        (_slice_sum, lambda x: F.relu(torch.cat([x[:, :1] + x[:, 1:], x[:, 1:]], 1))),
        (_flat, F.relu),
    ],
)
def test_writes_through_views_are_followed(part: Callable[[Tensor], Tensor], twin: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(guided(part), guided(twin))
    for table in (presets.gradient, presets.exact):
        assert_true(Around(part), table)
    torch.testing.assert_close(freeze(Around(part), X)(X), Around(part)(X))


def test_an_output_written_through_a_view_is_the_written_one() -> None:
    def after(y: Tensor) -> Tensor:
        y.view(-1).relu_()
        return y

    for table in (presets.gradient, presets.exact):
        assert_true(Around(F.relu, after), table)


@pytest.mark.parametrize(
    "move", [nn.Dropout().eval(), lambda x: x.contiguous(), lambda x: x.view(2, -1), lambda x: x.double()]
)
def test_a_copy_that_alone_is_read_again_may_be_written(move: Callable[[Tensor], Tensor]) -> None:
    assert_true(Around(lambda x: F.relu(move(x), inplace=True)), presets.exact)


def test_a_detached_copy_sees_a_later_write() -> None:
    def part(x: Tensor) -> Tensor:
        before = x.detach()
        x.relu_()
        return x + before  # which is relu(x), too

    assert_true(Around(part), presets.gradient)
    assert_true(Around(part), presets.exact)
    torch.testing.assert_close(guided(part), guided(lambda x: F.relu(x) + F.relu(x).detach()))
    torch.testing.assert_close(freeze(Around(part), X)(X), Around(part)(X))


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.data.relu_(),
        lambda x: x.detach().clamp_(min=0),
        lambda x: x.data[:, 0].relu_(),
        lambda x: F.relu(x.data, inplace=True),
    ],
)
def test_writes_behind_autograds_back_are_refused(write: Callable[[Tensor], Tensor]) -> None:
    def part(x: Tensor) -> Tensor:
        write(x)
        return x

    for attempt in (lambda: propagate(Around(part), X, presets.guided), lambda: freeze(Around(part), X)):
        with pytest.raises(UnsupportedOp, match=r"writes to the memory of a signal behind autograd's back"):
            attempt()


def test_constants_may_be_written() -> None:
    def part(x: Tensor) -> Tensor:
        mask = torch.zeros_like(x)
        mask[:, :, ::2] = 1
        statistics = x.detach().clone()
        statistics.relu_()
        learned = mask.new_zeros(2, 1, 1)
        learned += scale
        learned[0] = scale[1]
        table, column = mask.new_zeros(2, 2), mask.new_zeros(2, 2)
        table[0] = scale.flatten()
        column[:, 0].copy_(scale.flatten())
        return F.relu(x * mask + statistics * learned + (table + column).sum())

    scale = nn.Parameter(torch.randn(2, 1, 1, dtype=torch.float64))
    assert_true(Around(part), presets.gradient)
    torch.testing.assert_close(freeze(Around(part), X)(X), Around(part)(X))


def _no_grad_relu(x: Tensor) -> Tensor:
    with torch.no_grad():
        mask = F.relu(x)
    return x * (mask > 0)


def _no_grad_mask(x: Tensor) -> Tensor:
    with torch.no_grad():
        mask = (x > 0).to(x.dtype)
    return x * mask


@pytest.mark.parametrize(
    "part",
    [
        _no_grad_relu,
        _no_grad_mask,
        lambda x: x * (x.detach() > 0),
        lambda x: x * x.data.gt(0).double(),
        lambda x: torch.where(x.detach() > 0, x, 0),
        lambda x: torch.max(x, x.new_zeros(())),
        lambda x: x.mul_(x > 0),
    ],
)
def test_rectifiers_by_a_mask_cut_from_autograd_get_the_rule(part: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(guided(part), guided(F.relu))
    torch.testing.assert_close(freeze(Around(part), X)(X), Around(part)(X))


@pytest.mark.parametrize("spelled", [torch.minimum, torch.min, lambda x, most: torch.minimum(most, x)])
def test_an_extreme_against_a_constant_is_a_clamp(spelled: Callable[[Tensor, Tensor], Tensor]) -> None:
    most = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(guided(lambda x: spelled(x, most)), guided(lambda x: x.clamp(max=0.3)))
    assert not torch.allclose(guided(lambda x: spelled(x, most)), guided(lambda x: x))
    torch.testing.assert_close(guided(lambda x: torch.maximum(x, -most)), guided(lambda x: x.clamp(min=-0.3)))
    (site,) = freeze(Around(lambda x: spelled(x, most)), X).activations
    assert site[0].primitive == "clamp"


def test_a_rule_reads_its_output_as_it_was_before_a_later_write() -> None:
    def by_output(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
        return (g * (1 - output**2),)

    def part(x: Tensor) -> Tensor:
        y = x.tanh()
        flat = y.view(2, -1)
        y.mul_(2)
        return flat

    table = presets.gradient.but({"tanh": by_output})
    ours = propagate(Around(part), X, table).gradient(WEIGHTS)[0]  # plain autograd refuses this write
    torch.testing.assert_close(
        ours, propagate(Around(lambda x: x.tanh() * 2), X, presets.gradient).gradient(WEIGHTS)[0]
    )
    check_rule(by_output, torch.tanh, X, true_gradient=True)  # second order, through the output


def test_an_input_written_through_a_view_stays_the_users() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x[:, :, :3].mul_(2)
            return x.flatten(1)[:, :3]

    before = X.clone()
    run = propagate(First(), X, presets.guided)
    assert torch.equal(X, before)
    assert torch.equal(run.output, First()(X.clone()))
    assert float(run.gradient(WEIGHTS)[0][0, 0, 0, 0]) == 2 * float(WEIGHTS[0, 0])


def test_a_view_that_is_written_and_read_freezes_at_what_was_there() -> None:
    model = Around(lambda x: F.silu(x.view(2, -1), inplace=True))
    torch.testing.assert_close(freeze(model, X)(X), model(X))
    ((_, form),) = freeze(model, X).activations
    torch.testing.assert_close(form.slope, torch.sigmoid(model.conv(X).view(2, -1)))


def test_a_write_keeps_the_precision_of_what_it_writes_to() -> None:
    model = Around(lambda x: x.float().add_(x).double())
    run = propagate(model, X, presets.gradient)
    assert torch.equal(run.output, model(X))
    assert not torch.equal(run.output, Around(lambda x: x.float().double() + x)(X))
