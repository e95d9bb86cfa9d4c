"""Rules of the user's own, for every method, and operations that he declares: each way out that a message names works."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import backlit
from _methods import quick
from backlit import InputError, UnsupportedOp
from backlit.capture import extend
from backlit.capture.primitives import BY_NAME, SPELLINGS
from backlit.methods import METHODS, FittedMethod, Method
from backlit.methods.blind import Random
from backlit.rules.exact import exact

X = torch.linspace(-1, 6, 192, dtype=torch.float64).sin().reshape(2, 3, 4, 8)
RULED = [m for m in METHODS if m.takes_rules and not issubclass(m, FittedMethod)]


class Net(nn.Module):
    """conv -> relu -> the operation -> relu -> conv -> mean -> linear."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(4, 6)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        h = self.part(torch.relu(self.first(x)) + 0.1)
        return self.fc(torch.relu(self.second(h) + 0.5).mean((2, 3)))


def made(kind: type[Method], part: Callable[[Tensor], Tensor], **options: Any) -> Method:
    short = quick(kind, **({"contrast": None} if kind is backlit.TRGBP else {}))
    return kind(Net(part).double().eval(), **short, **options)


def explained(method: Method) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method(X, 1)


@pytest.fixture
def declare() -> Iterator[Callable[..., None]]:
    """`extend`, undone after the test."""
    names, functions = dict(BY_NAME), dict(SPELLINGS)
    yield extend
    for table, before in ((BY_NAME, names), (SPELLINGS, functions)):
        table.clear()
        table.update(before)


def doubled(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Any) -> tuple[Tensor | None, ...]:
    return exact(2 * g, inputs, output, call)


@pytest.mark.parametrize("kind", RULED, ids=lambda m: m.name)
def test_every_method_takes_rules_by_primitive(kind: type[Method]) -> None:
    plain, ruled = made(kind, torch.sigmoid), made(kind, torch.sigmoid, rules={"sigmoid": doubled})
    rows = explained(ruled).coverage.rows
    assert [r.rule for r in rows if r.primitive == "sigmoid"] == ["doubled"]
    if not kind.stops_at_map:  # its feature map stands behind the operation
        assert not torch.allclose(explained(ruled).values, explained(plain).values)
    true = explained(made(kind, torch.sigmoid, rules={"sigmoid": None})).coverage.rows
    assert [r.rule for r in true if r.primitive == "sigmoid"] == ["true"]
    assert "doubled" in str(explained(ruled).provenance["options"]["rules"])


def test_a_rule_of_ones_own_is_followed() -> None:
    ruled = made(backlit.Gradient, torch.sigmoid, rules={"sigmoid": doubled})
    torch.testing.assert_close(explained(ruled).values, 2 * explained(made(backlit.Gradient, torch.sigmoid)).values)


def test_methods_without_rules_say_so() -> None:
    for kind in (backlit.DMBP, Random):
        with pytest.raises(InputError, match=rf"rules must be None for {kind.title}, .*\['relu'\] are given. Leave"):
            made(kind, torch.relu, rules={"relu": None})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"rleu": None}, r"rules must name primitives, .* but 'rleu' is none. Did you mean 'relu'"),
        ({"relu": "guided"}, r"rules must be rules by primitive, .* but is \{'relu': 'guided'\}"),
        ({"relu": nn.ReLU}, r"rules must be rules by primitive"),
        ([exact], r"rules must be rules by primitive"),
        (3, r"rules must be rules by primitive"),
    ],
)
@pytest.mark.parametrize("kind", [backlit.Gradient, backlit.LRP, backlit.DeepLIFT])
def test_bad_rules(kind: type[Method], rules: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(kind, torch.relu, rules=rules)


REFUSED: list[tuple[type[Method], Callable[[Tensor], Tensor]]] = [
    (backlit.DeepLIFT, lambda x: x.sort(1)[0]),
    (backlit.DeepLIFT, lambda x: x.sigmoid().cumprod(1)),
    (backlit.DeepLIFT, lambda x: x / x.norm(3, dim=1, keepdim=True)),
    (backlit.BBp, lambda x: x - x.logsumexp(1, keepdim=True)),
    (backlit.BBp, lambda x: x.softmax(1)),
]


@pytest.mark.parametrize(("kind", "part"), REFUSED)
def test_the_way_out_of_a_missing_rule_works(kind: type[Method], part: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedOp) as refusal:
        explained(made(kind, part))
    found = re.search(r"rules=\{'(\w+)': rule\}", str(refusal.value))
    assert found is not None
    for rule in (None, exact):
        assert explained(made(kind, part, rules={found[1]: rule})).values.isfinite().all()


UNKNOWN: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("affine", lambda x: torch.diff(x, dim=3, prepend=x[..., :1])),
    ("activation", torch.special.i0),
    ("selection", lambda x: torch.renorm(x, 2, 0, 1e6)),
    ("other", lambda x: torch.atan2(x, x.flip(1) + 2)),
]
NEEDS = {"other": {"lrp", "deep_taylor", "excitation_backprop", "deeplift", "deep_shap", "bbp"},
         "selection": {"deeplift", "deep_shap"}}  # fmt: skip


@pytest.mark.parametrize("kind", [*RULED, backlit.DMBP], ids=lambda m: m.name)
@pytest.mark.parametrize(("how", "part"), UNKNOWN, ids=[how for how, _ in UNKNOWN])
def test_a_declared_operation_works_in_every_method(
    kind: type[Method], how: str, part: Callable[[Tensor], Tensor], declare: Callable[..., None]
) -> None:
    with pytest.raises(UnsupportedOp) as refusal:
        explained(made(kind, part))
    way_out = re.search(r"backlit.capture.extend\(([\w.]+), kind, '(\w+)'\)", str(refusal.value))
    assert way_out is not None
    declare(eval(way_out[1]), how, way_out[2])
    if kind.name in NEEDS.get(how, ()):
        with pytest.raises(UnsupportedOp, match=rf"rules=\{{'{way_out[2]}': rule\}}"):
            explained(made(kind, part))
        assert explained(made(kind, part, rules={way_out[2]: exact})).values.isfinite().all()
    else:
        found = explained(made(kind, part))
        assert found.values.isfinite().all()
        assert any(row.primitive == way_out[2] for row in found.coverage.rows)


def test_a_declared_operation_gets_its_true_gradient(declare: Callable[..., None]) -> None:
    declare(torch.logcumsumexp, "other", "logcumsumexp")
    method = made(backlit.Gradient, lambda x: torch.logcumsumexp(x, dim=1))
    leaf = X.clone().requires_grad_()
    (true,) = torch.autograd.grad(method.model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(explained(method).values, true)


def test_what_the_table_knows_may_be_declared_again(declare: Callable[..., None]) -> None:
    before = BY_NAME["rms_norm"]
    declare(torch.rms_norm, "other", "rms_norm", "input normalized_shape weight eps")
    assert BY_NAME["rms_norm"] is before
    for kind in (backlit.Gradient, backlit.DMBP, backlit.LRP):
        assert explained(made(kind, nn.RMSNorm(8))).values.isfinite().all()


def test_a_recurrent_layer_may_be_declared_whole(declare: Callable[..., None]) -> None:
    layer = nn.LSTM(8, 8, batch_first=True).double()

    def part(x: Tensor) -> Tensor:
        return layer(x.flatten(1, 2))[0].unflatten(1, (4, 4))

    method = made(backlit.Gradient, part)
    with pytest.raises(
        UnsupportedOp, match=r"torch.lstm at .* is a recurrent layer.*extend\(torch.lstm, 'other', 'lstm'\)"
    ):
        explained(method)
    declare(torch.lstm, "other", "lstm")
    leaf = X.clone().requires_grad_()
    (true,) = torch.autograd.grad(method.model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(explained(method).values, true)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, "other", "three"), r"function must be callable, and write nothing in place, but is 3"),
        ((torch.Tensor.erfinv_, "activation", "erfinv"), r"function must be .*in place, but is 'erfinv_'"),
        (
            (torch.erfinv, "nonlinear", "erfinv"),
            r"kind must be one of affine, activation, selection, other, but is 'nonlinear'",
        ),
        ((torch.erfinv, "other", "my op"), r"name must be a word, but is 'my op'"),
        ((torch.erfinv, "other", 5), r"name must be a word, but is 5"),
        (
            (torch.erfinv, "other", "erfinv", "input, eps"),
            r"signature must be names separated by spaces, but is 'input, eps'",
        ),
        ((torch.erfinv, "other", "erfinv", None), r"signature must be names separated by spaces, but is None"),
        ((torch.erfinv, "other", "relu"), r"name must be new, but is 'relu'"),
    ],
)
def test_what_extend_refuses(arguments: tuple[Any, ...], message: str, declare: Callable[..., None]) -> None:
    with pytest.raises(InputError, match=message):
        declare(*arguments)
