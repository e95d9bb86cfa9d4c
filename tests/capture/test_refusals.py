"""Never silently wrong: what cannot be seen is an error with its remedy, and hand-written rectifiers get their rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import InputError, ModelStateError, UnsupportedOp
from backlit.capture import extend, freeze, propagate
from backlit.capture.primitives import BY_NAME, SPELLINGS
from backlit.rules import RuleTable, presets


class Around(nn.Module):
    """conv -> the part under test -> linear."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(32, 3)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.part(self.conv(x)).flatten(1))


X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def _no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return F.relu(x)


def _no_grad_in_place(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.relu_()
    return x


def _scripted() -> Callable[[Tensor], Tensor]:
    def rectify(x: Tensor) -> Tensor:
        return torch.relu(x)

    return torch.jit.script(rectify)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (_scripted(), r"scripted or compiled function"),
        (_Square.apply, r"a custom autograd.Function"),
        (_no_grad, r"relu\[0\] at <model> .*runs under torch.no_grad inside the model.*\.detach\(\)"),
        (_no_grad_in_place, r"runs under torch.no_grad"),
        (lambda x: torch.fft.fft2(x).real, r"fft.*Backlit does not know.*extend"),
        (
            lambda x: torch.diff(x, dim=1, prepend=x[:, :1]),
            r"diff at <model> is an operation that Backlit does not know",
        ),
        (lambda x: F.conv2d(x, x[:1, :, :1, :1].detach() * 0 + x.mean()), r"its weight depends on the network's input"),
        (lambda x: x.detach(), r"does not depend on the input through operations that can be seen"),
        (lambda x: torch.from_numpy(x.detach().numpy()).relu(), r"does not depend on the input"),
    ],
)
@pytest.mark.parametrize("how", ["propagate", "freeze"])
def test_what_cannot_be_seen_is_refused(part: Callable[[Tensor], Tensor], message: str, how: str) -> None:
    with pytest.raises(UnsupportedOp, match=message):
        _ = propagate(Around(part), X, presets.guided) if how == "propagate" else freeze(Around(part), X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_and_compiled_modules_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedOp, match=r"module 'part' is scripted.*original nn.Module"):
        propagate(Around(torch.jit.script(nn.ReLU())), X, presets.guided)
    with pytest.raises(UnsupportedOp, match=r"module 'part' is compiled.*_orig_mod"):
        propagate(Around(torch.compile(nn.ReLU())), X, presets.guided)
    inner = nn.ReLU()
    inner.compile()
    with pytest.raises(UnsupportedOp, match=r"module 'part' is compiled"):
        propagate(Around(inner), X, presets.guided)


def test_a_forward_wholly_under_no_grad_is_refused() -> None:
    class Decorated(Around):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(UnsupportedOp, match=r"runs under torch.no_grad inside the model"):
        propagate(Decorated(nn.ReLU()), X, presets.guided)


def test_bookkeeping_under_no_grad_is_allowed() -> None:
    def counted(x: Tensor) -> Tensor:
        with torch.no_grad():
            assert float(F.relu(x).sum()) >= 0
        return F.relu(x)

    run = propagate(Around(counted), X, presets.guided)
    twin = propagate(Around(F.relu), X, presets.guided)
    weights = torch.ones(2, 3)
    assert torch.equal(run.gradient(weights)[0], twin.gradient(weights)[0])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.Dropout(0.5), r"'part' \(Dropout\) is in train mode"),
        (nn.BatchNorm2d(2), r"'part' \(BatchNorm2d\) is in train mode"),
        (lambda x: F.dropout(x, 0.5), r"the dropout at <model> is training.*training=self.training"),
        (lambda x: F.rrelu(x, training=True), r"the rrelu at <model> is training"),
        (lambda x: F.batch_norm(x, None, None, training=True), r"the batch_norm at <model> is training"),
    ],
)
def test_train_mode_is_refused(part: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ModelStateError, match=message):
        propagate(Around(part), X, presets.guided)


def test_train_mode_without_consequences_is_not_refused() -> None:
    model = Around(nn.ReLU()).train()
    assert torch.equal(propagate(model, X, presets.guided).output, model(X))


def test_a_table_without_a_rule_names_site_module_and_remedy() -> None:
    table = RuleTable("mine", {"conv2d": None, "linear": None, "reshape": None})
    with pytest.raises(
        UnsupportedOp, match=r"relu\[0\] at part .* has no rule in the table 'mine'.*rules={'relu': rule}"
    ):
        propagate(Around(nn.ReLU()), X, table)
    assert [s.name for s in table.missing(propagate(Around(nn.ReLU()), X, presets.guided).trace)] == ["relu[0]"]


def test_an_unknown_operation_works_once_declared() -> None:
    extend(torch.diff, "affine", "diff")
    try:
        model = Around(lambda x: torch.diff(x, dim=1, prepend=x[:, :1]))
        run = propagate(model, X, presets.gradient)
        leaf = X.clone().requires_grad_()
        expected = torch.autograd.grad(model(leaf).sum(), leaf)[0]
        torch.testing.assert_close(run.gradient(torch.ones(2, 3))[0], expected)
        with pytest.raises(InputError, match=r"name must be new, but is 'relu'"):
            extend(torch.diff, "affine", "relu")
    finally:
        del BY_NAME["diff"], SPELLINGS[torch.diff]


@pytest.mark.parametrize(
    "part",
    [
        lambda x: x * (x > 0),
        lambda x: (x > 0).float() * x,
        lambda x: torch.where(x > 0, x, 0),
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda x: x.masked_fill(x < 0, 0),
        lambda x: x.clone().masked_fill_(x < 0, 0),
        lambda x: torch.threshold(x, 0, 0),
        lambda x: F.threshold(x, 0, 0),
        lambda x: x.clamp_min(0),
        lambda x: torch.clip(x, 0),
        lambda x: torch.max(x, torch.zeros(())),
        lambda x: torch.maximum(torch.zeros(1), x),
    ],
)
def test_rectifiers_written_by_hand_get_the_rule(part: Callable[[Tensor], Tensor]) -> None:
    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    ours, twin = (propagate(Around(p), X, presets.guided) for p in (part, nn.ReLU()))
    torch.testing.assert_close(ours.gradient(weights)[0], twin.gradient(weights)[0])
    torch.testing.assert_close(freeze(Around(part), X)(X), Around(part)(X))


def test_masks_written_by_index_get_the_rule() -> None:
    def part(x: Tensor) -> Tensor:
        x = x.clone()
        x[x < 0] = 0
        return x

    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    ours, twin = (propagate(Around(p), X, presets.guided) for p in (part, nn.ReLU()))
    torch.testing.assert_close(ours.gradient(weights)[0], twin.gradient(weights)[0])


def test_writes_through_another_view() -> None:
    def part(x: Tensor) -> Tensor:
        flat = x.view(2, -1)
        flat.relu_()
        return x  # sees the write

    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    ours, twin = (propagate(Around(p), X, presets.guided) for p in (part, nn.ReLU()))
    torch.testing.assert_close(ours.gradient(weights)[0], twin.gradient(weights)[0])
    torch.testing.assert_close(freeze(Around(part), X)(X), Around(part)(X))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: {"logits": x}, r"one tensor of logits \(n, k\).*but returned dict.*Wrap it"),
        (lambda x: x.sum(), r"logits \(n, k\)"),
        (lambda x: x[:1], r"one row an image"),
        (lambda x: x.argmax(1, keepdim=True), r"but returned torch.int64"),
    ],
)
def test_outputs_that_are_no_logits(output: Callable[[Tensor], Tensor], message: str) -> None:
    class Model(Around):
        def forward(self, x: Tensor) -> Tensor:
            return output(super().forward(x))

    with pytest.raises(InputError, match=message):
        propagate(Model(nn.ReLU()), X, presets.guided)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, but is function"):
        propagate(lambda x: x, X, presets.guided)  # type: ignore[arg-type]
