"""A network together with the names of its classes, as models are loaded: what a method asks of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from torch import nn


class Bounded(Protocol):
    """What says which values black and white pixels have in a network's input, one a channel each."""

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]: ...


@runtime_checkable
class Named(Protocol):
    """A network and the names of its outputs: a :class:`backlit.LoadedModel`, which stands above this layer."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def preprocess(self) -> Bounded: ...

    def class_index(self, label_or_index: str | int) -> int:
        """Return the output's index for a class name or an index."""
        ...


def network_of(model: Any) -> Any:
    """Return the network of a loaded model; anything else as it is, for ``check_module`` to refuse."""
    return model.network if isinstance(model, Named) and not isinstance(model, nn.Module) else model


def in_place(model: nn.Module | Named, network: nn.Module) -> nn.Module | Named:
    """The model with another network: that network alone, or the loaded model that holds it."""
    return network if isinstance(model, nn.Module) else replace(model, network=network)  # type: ignore[type-var]
