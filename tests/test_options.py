"""Values whose fields are their options."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from copy import copy
from dataclasses import FrozenInstanceError, field, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from backlit._errors import InputError
from backlit._options import NO_OPTION, Configured, default_of, option_docs, option_names, options_of


class Base(Configured, ABC):
    network: nn.Module = field(kw_only=False, metadata=NO_OPTION)
    seed: int = 0
    notes: list[str] = field(default_factory=list, init=False)

    @abstractmethod
    def run(self) -> int: ...


class Toy(Base):
    """A toy.

    Attributes:
        steps: Number of
            steps.
        mask: What to leave out.
    """

    title: ClassVar[str] = "Toy"
    steps: int = 3
    mask: Tensor | None = None

    def run(self) -> int:
        return self.steps


class Heir(Toy):
    """A toy with the same options, of which one means something else.

    Attributes:
        steps: Number of larger steps.
    """


def test_the_signature_shows_the_options() -> None:
    for kind in (Toy, Heir):
        parameters = inspect.signature(kind).parameters
        assert list(parameters) == ["network", "seed", "steps", "mask"]
        assert parameters["steps"].default == 3
        assert parameters["steps"].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters["network"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def test_the_fields_are_the_options() -> None:
    assert option_names(Toy) == ["seed", "steps", "mask"]
    assert options_of(Toy(nn.ReLU(), steps=5)) == {"seed": 0, "steps": 5, "mask": None}
    assert default_of(Toy, "steps") == 3
    assert default_of(Toy, "nothing") is None


def test_a_docstring_tells_the_options_of_the_bases() -> None:
    assert option_docs(Toy) == {"steps": "Number of steps.", "mask": "What to leave out."}
    assert option_docs(Heir) == {"steps": "Number of larger steps.", "mask": "What to leave out."}
    head = "A toy with the same options, of which one means something else."
    options = "    steps: Number of larger steps.\n    mask: What to leave out."
    assert Heir.__doc__ == f"{head}\n\nAttributes:\n{options}"


def test_the_names_of_earlier_versions_still_lead_to_the_options() -> None:
    toy = Heir(nn.ReLU(), steps=5)
    assert toy.options is toy
    assert Heir.Options is Heir
    assert {"seed", "steps", "mask"} <= set(Heir.Options.__dataclass_fields__)


def test_an_unknown_option_is_named_with_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"'stepz' is no option of Toy: it has seed, steps, mask\. Did you mean 'steps'\?"
    ):
        Toy(nn.ReLU(), stepz=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="'notes' is no option"):
        Toy(nn.ReLU(), notes=[])  # type: ignore[call-arg]


def test_a_value_prints_as_what_it_computes() -> None:
    assert repr(Toy(nn.ReLU())) == "Toy(ReLU)"
    assert repr(Heir(nn.ReLU(), steps=5, mask=torch.ones(2, 3))) == "Heir(ReLU, steps=5, mask=Tensor(2, 3))"


def test_a_value_is_frozen_and_is_made_again_with_changes() -> None:
    toy = Toy(nn.ReLU(), steps=5)
    with pytest.raises(FrozenInstanceError):
        toy.steps = 4  # type: ignore[misc]
    changed = replace(toy, seed=2)
    assert (changed.steps, changed.seed, changed.network) == (5, 2, toy.network)
    assert copy(toy).steps == 5
    assert toy != replace(toy)  # another object: options may be tensors, which have no one answer


def test_an_abstract_class_stays_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Base(nn.ReLU())  # type: ignore[abstract]
