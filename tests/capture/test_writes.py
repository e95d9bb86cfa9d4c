"""Writes in place: for every method the map of a network that writes through views is that of its twin that does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from backlit import UnsupportedOp
from backlit.capture import Tap, freeze, propagate
from backlit.rules import presets

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WEIGHTS = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Part = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """conv (2, 4, 6, 6) -> the part under test -> conv -> ReLU -> linear; ``first`` stands before all of it."""

    def __init__(self, part: Part, first: Part = nn.Identity()) -> None:  # noqa: B008
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3), nn.Linear(5, 4)
        self.part, self.first = part, first
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.part(self.a(self.first(x))))).mean((2, 3)))


def after(write: Callable[[Tensor], object]) -> Part:
    """The write, then the whole tensor."""

    def part(h: Tensor) -> Tensor:
        write(h)
        return h

    return part


def channel(f: Part, i: int = 1) -> Part:
    """The function at one channel."""
    return lambda h: torch.cat([h[:, :i], f(h[:, i : i + 1]), h[:, i + 1 :]], 1)


def _transposed_view(h: Tensor) -> Tensor:
    columns = h.transpose(1, 3)
    h.relu_()
    return columns.transpose(1, 3)


def _view_of_view(h: Tensor) -> Tensor:
    flat = h.flatten(2)
    flat[:, 1:3][:, 1].relu_()
    return flat.view_as(h)


def _two_views(h: Tensor) -> Tensor:
    low, high = h.split(2, 1)
    low.relu_()
    high.mul_(2)
    low.add_(high)
    return h


def _write_between_reads(h: Tensor) -> Tensor:
    flat = h.view(len(h), -1)
    before = flat * 2
    h.relu_()
    return h + (before + flat).view_as(h)


def _loop(h: Tensor) -> Tensor:
    for i in range(4):
        h[:, i] = torch.relu(h[:, i])
    return h


def _masked(h: Tensor) -> Tensor:
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[2:4] = True
    h[:, :, mask] = 0.5
    return h


def _masked_twin(h: Tensor) -> Tensor:
    return torch.cat([h[:, :, :2], torch.full_like(h[:, :, 2:4], 0.5), h[:, :, 4:]], 2)


def _buffer(h: Tensor) -> Tensor:
    buffer = torch.zeros(len(h), 4, 6, 6, dtype=h.dtype)
    rows = buffer[:, :, :3]
    for i in range(4):
        buffer[:, i] = h[:, 3 - i]
    rows.relu_()
    return buffer


def _buffer_twin(h: Tensor) -> Tensor:
    turned = h.flip(1)
    return torch.cat([F.relu(turned[:, :, :3]), turned[:, :, 3:]], 2)


def _detached(h: Tensor) -> Tensor:
    seen = h.detach()
    h[:, :2].relu_()
    return h + seen


def _detached_twin(h: Tensor) -> Tensor:
    written = torch.cat([F.relu(h[:, :2]), h[:, 2:]], 1)
    return written + written.detach()


def _returned(h: Tensor) -> Tensor:
    return h[:, 1:2].relu_().mul_(2).expand(-1, 4, -1, -1) + h


def _returned_twin(h: Tensor) -> Tensor:
    written = 2 * F.relu(h[:, 1:2])
    return written.expand(-1, 4, -1, -1) + channel(lambda _: written)(h)


CASES: dict[str, tuple[Part, Part]] = {
    "flatten": (after(lambda h: h.flatten(1).relu_()), F.relu),
    "view": (after(lambda h: h.view(len(h), -1).relu_()), F.relu),
    "unsqueeze and squeeze": (after(lambda h: h.unsqueeze(0).squeeze(0).relu_()), F.relu),
    "transpose": (after(lambda h: h.transpose(1, 2).relu_()), F.relu),
    "permute": (after(lambda h: F.relu(h.permute(0, 2, 3, 1), inplace=True)), F.relu),
    "mT": (after(lambda h: h.mT.clamp_(min=0)), F.relu),
    "through the base, read by a view": (_transposed_view, F.relu),
    "select": (after(lambda h: h.select(1, 1).relu_()), channel(F.relu)),
    "narrow": (after(lambda h: h.narrow(1, 1, 1).relu_()), channel(F.relu)),
    "slice": (after(lambda h: h[:, 1:2].relu_()), channel(F.relu)),
    "torch.relu_": (after(lambda h: torch.relu_(h[:, 1])), channel(F.relu)),
    "chunk": (after(lambda h: h.chunk(4, 1)[1].relu_()), channel(F.relu)),
    "unbind": (after(lambda h: h.unbind(1)[1].relu_()), channel(F.relu)),
    "iteration": (after(lambda h: [channel.relu_() for channel in h.transpose(0, 1)]), F.relu),
    "diagonal": (
        after(lambda h: h.diagonal(dim1=2, dim2=3).mul_(3)),
        lambda h: h * (1 + 2 * torch.eye(6, dtype=h.dtype)),
    ),
    "view of a view": (_view_of_view, lambda h: channel(F.relu, 2)(h)),
    "two views": (_two_views, lambda h: torch.cat([F.relu(h[:, :2]) + 2 * h[:, 2:], 2 * h[:, 2:]], 1)),
    "the view itself": (lambda h: h.flatten(1).relu_().view_as(h), F.relu),
    "the view itself and the whole": (
        _returned,
        _returned_twin,
    ),
    "between reads": (_write_between_reads, lambda h: 2 * F.relu(h) + 2 * h),
    "add_": (after(lambda h: h[:, 1:2].add_(1)), channel(lambda c: c + 1)),
    "mul_": (after(lambda h: h[:, 1:2].mul_(-2)), channel(lambda c: c * -2)),
    "masked_fill_": (
        after(lambda h: h[:, 1:2].masked_fill_(torch.eye(6) > 0, 2.0)),
        channel(lambda c: c.masked_fill(torch.eye(6) > 0, 2.0)),
    ),
    "copy_ of a signal": (
        after(lambda h: h[:, 0].copy_(h[:, 1] * 2)),
        lambda h: torch.cat([2 * h[:, 1:2], h[:, 1:]], 1),
    ),
    "copy_ of a constant": (after(lambda h: h[:, 1].copy_(torch.ones(6, 6))), channel(torch.ones_like)),
    "zero_": (after(lambda h: h[:, 1].zero_()), channel(torch.zeros_like)),
    "fill_": (after(lambda h: h[:, 1].fill_(2.0)), channel(lambda c: torch.full_like(c, 2))),
    "sigmoid_": (after(lambda h: h[:, 1:2].sigmoid_()), channel(torch.sigmoid)),
    "set a constant": (after(lambda h: h.__setitem__((slice(None), 1), 0.0)), channel(torch.zeros_like)),
    "set all": (after(lambda h: h.__setitem__(..., F.relu(h))), F.relu),
    "add to a slice": (
        after(lambda h: h.__setitem__((slice(None), 0), h[:, 0].__iadd__(h[:, 1]))),
        lambda h: torch.cat([h[:, :1] + h[:, 1:2], h[:, 1:]], 1),
    ),
    "steps": (
        after(lambda h: h.__setitem__((slice(None), slice(0, None, 2)), h[:, ::2].__imul__(2))),
        lambda h: h * torch.tensor([2.0, 1, 2, 1], dtype=h.dtype)[:, None, None],
    ),
    "loop": (_loop, F.relu),
    "set by a mask": (_masked, _masked_twin),
    "set by indices": (
        after(lambda h: h.__setitem__((slice(None), torch.tensor([1])), F.relu(h[:, 1:2]))),
        channel(F.relu),
    ),
    "index_copy_": (after(lambda h: h.index_copy_(1, torch.tensor([1]), F.relu(h[:, 1:2]))), channel(F.relu)),
    "index_fill_": (
        after(lambda h: h.index_fill_(1, torch.tensor([1]), 2.0)),
        channel(lambda c: torch.full_like(c, 2)),
    ),
    "scatter_": (
        after(lambda h: h.scatter_(1, torch.ones(len(h), 1, 6, 6, dtype=torch.int64), F.relu(h[:, 1:2]))),
        channel(F.relu),
    ),
    "a buffer of the forward pass": (_buffer, _buffer_twin),
    "a detached copy": (_detached, _detached_twin),
}

METHODS: dict[str, Callable[[nn.Module], backlit.Method]] = {
    "Gradient": backlit.Gradient,
    "GuidedBackprop": backlit.GuidedBackprop,
    "DMBP": lambda net: backlit.DMBP(net, steps=2),
    "LPR": lambda net: backlit.LPR(net, steps=2),
    "TRGBP": lambda net: backlit.TRGBP(net, contrast=3),
    "FullGrad": backlit.FullGrad,
    "BBp": backlit.BBp,
    "LRP": backlit.LRP,
    "DeepLIFT": backlit.DeepLIFT,
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_networks_own(case: str) -> None:
    model, twin = (Around(part) for part in CASES[case])
    run = propagate(model, X, presets.gradient)
    with torch.no_grad():
        plain = model(X.clone())
    assert torch.equal(run.output, plain)
    torch.testing.assert_close(plain, twin(X))
    for table in presets.PRESETS:
        ours, theirs = (propagate(net, X, table) for net in (model, twin))
        torch.testing.assert_close(ours.output, plain)
        torch.testing.assert_close(
            ours.gradient(torch.stack([WEIGHTS, -WEIGHTS])), theirs.gradient(torch.stack([WEIGHTS, -WEIGHTS]))
        )
    torch.testing.assert_close(freeze(model, X)(X), plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_maps_are_the_twins(case: str, method: str) -> None:
    ours, theirs = (METHODS[method](Around(part))(X, [1, 2]).values for part in CASES[case])
    torch.testing.assert_close(ours, theirs)


INPUTS: dict[str, tuple[Part, Part]] = {
    "a channel doubled": (
        after(lambda x: x.__setitem__((slice(None), 0), x[:, 0].__imul__(2))),
        lambda x: torch.cat([2 * x[:, :1], x[:, 1:]], 1),
    ),
    "flat": (after(lambda x: x.flatten(1).mul_(2)), lambda x: x * 2),
    "rows exchanged": (
        after(lambda x: x.__setitem__((slice(None), slice(0, 1)), x[:, 1:2])),
        lambda x: torch.cat([x[:, 1:2], x[:, 1:]], 1),
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", INPUTS)
def test_an_input_may_be_written_and_stays_the_users(case: str, method: str) -> None:
    image = X.clone()
    ours, theirs = (METHODS[method](Around(F.relu, first))(image, [1, 2]).values for first in INPUTS[case])
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(image, X)


def test_the_output_may_have_been_written_through_a_view() -> None:
    class Written(Around):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            y[:, :2].relu_()
            return y

    class Twin(Around):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return torch.cat([F.relu(y[:, :2]), y[:, 2:]], 1)

    for name, method in METHODS.items():
        ours, theirs = (method(net(F.relu))(X, [1, 2]) for net in (Written, Twin))
        torch.testing.assert_close(ours.output, theirs.output, msg=name)
        torch.testing.assert_close(ours.values, theirs.values, msg=name)


def test_a_layout_in_which_a_view_is_a_copy_is_not_chosen() -> None:
    model = Around(CASES["flatten"][0])
    x = X.contiguous(memory_format=torch.channels_last)
    assert not torch.allclose(model(x), model(X))  # the network is another one in that layout
    torch.testing.assert_close(backlit.LPR(model, steps=1)(X, 1).output, model(X)[:, 1])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            after(lambda h: h.data[:, 1].relu_()),
            r"relu.* writes to the memory of a signal behind autograd's back.*itself",
        ),
        (after(lambda h: h.detach().add_(h)), r"add.* writes to the memory of a signal behind autograd's back"),
        (lambda h: torch.sigmoid(h, out=torch.empty_like(h)), r"sigmoid is called with out, which"),
        (
            lambda h: torch.cat([h, h], out=torch.empty_like(h))[:, :4],
            r"cat at <model> is called with out=.*copy_\(result\)",
        ),
        (after(lambda h: h.index_add_(1, torch.tensor([1]), h[:, :1])), r"index_add_ at <model> is an operation that"),
        (
            after(lambda h: h.index_put_((torch.tensor([0]),), h[:1].clone(), accumulate=True)),
            r"index_put_ at <model> is an operation that",
        ),
    ],
)
def test_writes_that_cannot_be_followed_are_refused(part: Part, message: str) -> None:
    for attempt in (lambda: propagate(Around(part), X, presets.guided), lambda: freeze(Around(part), X)):
        with pytest.raises(UnsupportedOp, match=message):
            attempt()


def test_a_view_taken_after_a_write_is_read_as_it_is() -> None:
    trace = propagate(Around(_loop), X, presets.gradient).trace
    assert [s.primitive for s in trace][1:13] == ["slice", "relu", "setitem"] * 4
    assert not [s for s in trace if s.spelling.endswith(("read_view", "put"))]


def test_what_was_written_lies_in_memory_as_the_network_has_it() -> None:
    seen: list[tuple[int, ...]] = []

    def part(h: Tensor) -> Tensor:
        turned, half = h.permute(0, 2, 3, 1), h[:, ::2]
        half.relu_()
        turned.mul_(torch.ones(6, 4, dtype=h.dtype))
        seen.extend((half.stride(), turned.stride(), h.stride(), half.relu_().stride()))
        return h

    model = Around(part)
    with torch.no_grad():
        model(X.clone())
    run = propagate(model, X, presets.exact)
    assert seen[:4] == seen[4:]
    assert run.output.shape == (2, 4)


def test_a_tapped_view_still_shares_its_memory() -> None:
    model, twin = Around(CASES["narrow"][0]), Around(CASES["narrow"][1])
    run = propagate(model, X, presets.gradient, tap=lambda call, y: Tap((y.new_zeros(1),), lambda g: (g.sum()[None],)))
    torch.testing.assert_close(run.output, twin(X))
    torch.testing.assert_close(run.gradient(WEIGHTS), propagate(twin, X, presets.gradient).gradient(WEIGHTS))


EYE = torch.eye(6, dtype=torch.float64) + 0.1
# Operations whose result is, to autograd, a view of memory that nobody else has.
MADE_INSIDE: dict[str, Part] = {
    "einsum": lambda h: torch.einsum("ncij,jk->ncik", h, EYE),
    "tensordot": lambda h: torch.tensordot(h, EYE, 1),
    "inner": lambda h: torch.inner(h, EYE),
    "bilinear": lambda h: F.bilinear(h, EYE[0, :2].expand(*h.shape[:3], 2), EYE[:, :, None].expand(6, 6, 2)),
    "instance_norm": lambda h: F.instance_norm(h),
    "adaptive_avg_pool1d": lambda h: F.adaptive_avg_pool1d(h.flatten(2), 36).view(h.shape),
    "max_pool1d": lambda h: F.max_pool1d(h.flatten(2), 1).view(h.shape),
    "repeat_interleave": lambda h: h[:, :2].repeat_interleave(2, 1),
}
# Writes to views that were taken after the last one.
AFRESH: dict[str, tuple[Part, Part]] = {
    "one by one": (after(lambda h: [h[:, i].tanh_() for i in range(4)]), torch.tanh),
    "a view of a view": (after(lambda h: [v[1:3].mul_(3) for v in [h.view(-1)] * 2]), lambda h: _times(h, 9, 1, 3)),
    "of one read anew": (
        lambda h: [v := h.flatten(1), h.tanh_(), v[:, :36].mul_(3), h + v.view_as(h)][-1],
        lambda h: 2 * torch.cat([3 * h[:, :1].tanh(), h[:, 1:].tanh()], 1),
    ),
    "of the first and the second": (
        lambda h: [h[:, :2].mul_(2), h[:, 1:].mul_(3), h][-1],
        lambda h: h * torch.tensor([2.0, 6, 3, 3]).view(4, 1, 1),
    ),
    "whole, then one": (
        lambda h: [h.mul_(2), h[:, 0].tanh_(), h][-1],
        lambda h: torch.cat([(2 * h[:, :1]).tanh(), 2 * h[:, 1:]], 1),
    ),
}


def _times(h: Tensor, factor: float, start: int, stop: int) -> Tensor:
    flat = h.flatten()
    return torch.cat([flat[:start], factor * flat[start:stop], flat[stop:]]).view_as(h)


@pytest.mark.parametrize("made", MADE_INSIDE)
@pytest.mark.parametrize("write", AFRESH)
def test_a_write_to_a_view_taken_since_the_last_reaches_all(made: str, write: str) -> None:
    part, plain = AFRESH[write]
    model, twin = Around(lambda h: part(MADE_INSIDE[made](h))), Around(lambda h: plain(MADE_INSIDE[made](h)))
    run, right = propagate(model, X, presets.gradient), propagate(twin, X, presets.gradient)
    torch.testing.assert_close(run.output, model(X.clone()))
    torch.testing.assert_close(run.gradient(WEIGHTS), right.gradient(WEIGHTS))
    several = torch.stack([WEIGHTS, -2 * WEIGHTS])
    run, right = propagate(model, X, presets.exact), propagate(twin, X, presets.exact)
    torch.testing.assert_close(run.gradient(several), right.gradient(several))
    torch.testing.assert_close(freeze(model, X)(2 * X), freeze(twin, X)(2 * X))
