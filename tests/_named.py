"""Functions and classes with a name, for the tests of what was run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor


def at_top(function: Any) -> Any:
    """Give a function of a test a name of its module, as a run that can go on asks for."""
    function.__qualname__ = function.__name__
    setattr(sys.modules[function.__module__], function.__name__, function)
    return function


def dark(images: Tensor) -> Tensor:
    return torch.zeros_like(images)


def bright(images: Tensor, level: float = 1.0) -> Tensor:
    return torch.full_like(images, level)


def brighter(images: Tensor, level: float = 2.0) -> Tensor:
    return torch.full_like(images, level)


def level(value: float) -> Callable[[Tensor], Tensor]:
    def images_of(images: Tensor) -> Tensor:
        return torch.full_like(images, value)

    return images_of


made = level(0.5)


class Colour(Enum):
    RED = 1
    ALSO_RED_BY_NAME = "1"


class Shade(Enum):
    RED = 1


@dataclass(frozen=True)
class Level:
    value: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        return torch.full_like(images, self.value)


@dataclass(frozen=True)
class OtherLevel:
    value: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        return torch.full_like(images, -self.value)


class Reference:
    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, images: Tensor) -> Tensor:
        return torch.full_like(images, self.value)

    def of(self, images: Tensor) -> Tensor:
        return self(images)

    def other(self, images: Tensor) -> Tensor:
        return -self(images)


class Slots:
    __slots__ = ("value",)
