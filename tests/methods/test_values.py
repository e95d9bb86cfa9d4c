"""A method is a value: a frozen dataclass whose fields are its options."""

from __future__ import annotations

import inspect
import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch import nn

from backlit import DMBP, LPR, GuidedBackprop, InputError, load_model
from backlit._options import default_of, option_names, options_of
from backlit.methods import BASELINES, METHODS, Method
from backlit.methods.base import NO_NETWORK

EVERY = pytest.mark.parametrize("method", [*METHODS, *BASELINES], ids=lambda m: m.name)


@EVERY
def test_the_signature_shows_every_option_with_its_default(method: type[Method]) -> None:
    parameters = dict(inspect.signature(method).parameters)
    model = parameters.pop("model")
    assert model.default is model.empty
    assert model.kind is model.POSITIONAL_OR_KEYWORD
    assert list(parameters) == option_names(method)
    assert {"chunk", "seed", "rules"} <= set(parameters)
    for name, parameter in parameters.items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default == default_of(method, name)
        assert parameter.annotation is not parameter.empty


@EVERY
def test_every_option_is_described(method: type[Method]) -> None:
    texts = [inspect.cleandoc(kind.__doc__ or "") for kind in method.__mro__ if issubclass(kind, Method)]
    described = set(re.findall(r"^ {4}(\w+): ", "\n".join(texts), flags=re.MULTILINE))
    assert set(option_names(method)) <= described


@EVERY
def test_every_method_says_what_it_answers_needs_and_costs(method: type[Method]) -> None:
    assert method.answers.endswith("?")
    assert method.answers != next((base.answers for base in method.__mro__[1:] if issubclass(base, Method)), "")
    assert method.needs
    assert method(NO_NETWORK).forward_passes >= 1


@EVERY
def test_a_value_is_made_again_with_changes(method: type[Method]) -> None:
    made: Any = method(NO_NETWORK, chunk=3)
    again = replace(made, seed=5)
    assert options_of(again) == {**options_of(made), "seed": 5}
    assert repr(again) == f"{method.__name__}(NoNetwork, chunk=3, seed=5)"
    with pytest.raises(FrozenInstanceError):
        made.chunk = 4


@EVERY
def test_an_unknown_option_is_named_with_the_nearest(method: type[Method]) -> None:
    with pytest.raises(InputError, match=r"'chunks' is no option of .*: it has chunk, .* Did you mean 'chunk'\?"):
        method(NO_NETWORK, chunks=3)  # type: ignore[call-arg]


def test_a_method_without_a_network_says_so() -> None:
    with pytest.raises(InputError, match="model must be a network, but this method was made without one"):
        GuidedBackprop(NO_NETWORK)(torch.ones(1, 1, 4, 4))


def test_the_same_method_on_another_network() -> None:
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2)).eval() for _ in range(2))
    x = torch.randn(2, 1, 4, 4)
    short = DMBP(one, steps=3, lr=0.1)
    moved = replace(short, model=other)
    assert torch.equal(moved.attribute(x, 1), DMBP(other, steps=3, lr=0.1).attribute(x, 1))
    assert not torch.equal(moved.attribute(x, 1), short.attribute(x, 1))
    assert repr(moved) == "DMBP(Sequential, steps=3, lr=0.1)"


def test_a_loaded_model_stays_what_a_method_was_made_for() -> None:
    digits = load_model("digits")
    method = replace(GuidedBackprop(digits), times_input=True)
    assert method.model is digits
    assert method.network is digits.network
    assert repr(method) == "GuidedBackprop(DigitsNet, times_input=True)"
    found = method(torch.rand(1, 1, 32, 32), target="3")
    assert found.labels == ("3",)


def test_what_a_reading_sets_follows_the_reading() -> None:
    """Options that were not given are the reading's, also of a value that is made again with another one."""
    usual = LPR(NO_NETWORK)
    printed = replace(usual, reading="paper")
    assert [usual.choice(n) for n in ("colours", "mask_loss", "relative", "start")] == ["sum", "mean", True, "logit"]
    assert [printed.choice(n) for n in ("colours", "mask_loss", "relative", "start")] == ["each", "sum", False, "nll"]
    assert replace(printed, colours="sum").choice("colours") == "sum"
    assert printed.recorded()["sites"] == "between_convolutions"
