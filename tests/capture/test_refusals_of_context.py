"""What surrounds a call may make its map wrong: recomputation, other precisions, hidden code. Each is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from backlit import InputError, ModelStateError, UnsupportedOp
from backlit.capture import freeze, propagate
from backlit.rules import presets

X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.part = nn.Conv2d(1, 2, 3), nn.Linear(32, 3), part
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.part(self.conv(x)).flatten(1))


class _Detaching(torch.autograd.Function):
    """Its forward hides the signal, so that only the history of its result gives it away."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.detach().clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


def _autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.silu(F.conv2d(x, torch.ones(2, 2, 1, 1))).float()


def _compiled() -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda x: F.relu(x) * 2, backend="eager")


def _buffer_detached(x: Tensor) -> Tensor:
    y = F.relu(x)
    y.detach_()
    return x + y


def _no_grad_branch(x: Tensor) -> Tensor:
    with torch.no_grad():
        branch = F.relu(x) + 1
    return x + branch


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.reshape(2, 8, 4))[0]


@pytest.mark.parametrize("how", ["propagate", "freeze"])
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda x: checkpoint(torch.tanh, x, use_reentrant=False), r"torch.utils.checkpoint.*Switch checkpointing off"),
        (lambda x: checkpoint(torch.tanh, x, use_reentrant=True), r"a custom autograd.Function.*\(CheckpointFunction"),
        (_autocast, r"runs under torch.autocast.*bfloat16\(\)"),
        (lambda x: x + _Detaching.apply(x), r"a custom autograd.Function.*\(_DetachingBackward\)"),
        (_no_grad_branch, r"relu\[0\] at <model> .*runs under torch.no_grad|add\[0\] .*runs under torch.no_grad"),
        (_compiled(), r"scripted or compiled function"),
        (lambda x: x + ThreadPoolExecutor(1).submit(F.relu, x).result(), r"code that cannot be seen.*Relu"),
        (lambda x: torch.vmap(F.relu)(x), r"code that cannot be seen"),
        (
            lambda x: torch.autograd.grad(F.silu(x).sum(), x, create_graph=True)[0],
            r"grad at <model> is an operation that Backlit does not know",
        ),
        (lambda x: torch.ops.aten.relu(x), r"aten.relu at <model> is an operation that Backlit does not know"),
        (_Recurrent(), r"torch.lstm at part.lstm is a recurrent layer .*extend\(torch.lstm, 'other', 'lstm'\)"),
        (_buffer_detached, r"Tensor.detach_ at <model> is an operation that Backlit does not know"),
        (lambda x: torch.view_as_real(torch.complex(x, x))[..., 0], r"torch.complex at <model> is an operation"),
        (lambda x: (x.to(torch.complex64) * 2).real, r"code that cannot be seen|does not depend on the input"),
        (
            lambda x: F.fractional_max_pool2d(x, 2, output_size=2).repeat(1, 1, 2, 2),
            r"fractional_max_pool2d.*does not know",
        ),
        (
            lambda x: F.grid_sample(x, x.reshape(2, 4, 4, 2), align_corners=False),
            r"its grid depends on the network's input",
        ),
        (lambda x: torch.div(x, 0.1, rounding_mode="floor"), r"A division that rounds its result has no gradient"),
        (
            lambda x: torch.add(x, 2, x),
            r"add is called with argument 3, which Backlit does not know of it: it knows input, other",
        ),
        (lambda x: torch.amax(x, 1, out=torch.empty(2, 4, 4)), r"amax is called with out, which Backlit does not know"),
        (lambda x: F.embedding((x > 0).long(), x.flatten()[:2, None]).squeeze(-1), r"embedding.*does not know"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_surrounds_a_call(part: Callable[[Tensor], Tensor], message: str, how: str) -> None:
    with pytest.raises(UnsupportedOp, match=message):
        _ = propagate(Around(part), X, presets.exact) if how == "propagate" else freeze(Around(part), X)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
            r"attention at <model> is training.*dropout_p=0.0",
        ),
        (lambda x: torch.rrelu(x, 0.1, 0.3, True), r"rrelu at <model> is training"),
        (nn.BatchNorm2d(2, track_running_stats=False), r"batch norm without running statistics mixes the images"),
    ],
)
def test_random_and_mixing_calls(part: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ModelStateError, match=message):
        propagate(Around(part), X, presets.guided)


def test_inputs_that_cannot_have_gradients() -> None:
    model = Around(F.relu)
    with torch.inference_mode():
        inside = X.clone()
        with pytest.raises(InputError, match=r"outside torch.inference_mode, but are \[torch.float32\], under it"):
            propagate(model, X, presets.guided)
    for attempt in (lambda: propagate(model, inside, presets.guided), lambda: freeze(model, inside)):
        with pytest.raises(InputError, match=r"inputs must be floating-point tensors outside torch.inference_mode"):
            attempt()
    with pytest.raises(InputError, match=r"floating-point tensors.*but are \[torch.int64\]"):
        propagate(model, X.long(), presets.guided)
    with torch.no_grad():  # around the call, it changes nothing
        inside_no_grad = propagate(model, X, presets.guided)
    outside = propagate(model, X, presets.guided)
    assert torch.equal(inside_no_grad.gradient(torch.ones(2, 3))[0], outside.gradient(torch.ones(2, 3))[0])


@pytest.mark.parametrize(
    "part",
    [
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1)),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 1)),
        lambda x: torch.stack([F.relu(row) for row in x]),
        lambda x: F.normalize(F.silu(x), dim=1),
        lambda x: torch._C._nn.gelu(x),
        lambda x: torch.func.functional_call(
            nn.Conv2d(2, 2, 1), {"weight": torch.ones(2, 2, 1, 1), "bias": torch.ones(2)}, x
        ),
        lambda x: F.softmin(x, 1) * x,
        lambda x: 2 - x + 2 / (x + 10),
        lambda x: x + (x.round() - x).detach(),
        lambda x: x * torch.sign(x) + x.floor(),
    ],
)
def test_unusual_code_is_seen_through(part: Callable[[Tensor], Tensor]) -> None:
    model = Around(part)
    leaf = X.clone().requires_grad_()
    plain = model(leaf)
    for table in (presets.gradient, presets.exact):
        run = propagate(model, X, table)
        assert torch.equal(run.output, plain)
        true = torch.autograd.grad(plain.sum(), leaf, retain_graph=True)[0]
        torch.testing.assert_close(run.gradient(torch.ones(2, 3))[0], true)
