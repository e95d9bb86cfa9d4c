"""An interrupted fit goes on for the same network alone: equal weights do not make two networks the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backlit import FileError
from backlit.inverse.fit import FitOptions, fit_inverse
from backlit.inverse.patterns import PatternOptions, fit_patterns


class Interrupted(Exception):
    pass


def interrupt(step: Any) -> None:
    raise Interrupted


class TwoBatches:
    def __iter__(self) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        return iter([torch.randn(20, 1, 8, 8, generator=generator) for _ in range(2)])


def network(activation: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), activation, nn.Flatten(), nn.Linear(108, 3)).eval()


def inverse(model: nn.Module, out: str | Path, progress: Callable[[Any], None] = lambda step: None) -> Any:
    return fit_inverse(model, TwoBatches(), FitOptions(), out=out, progress=progress)


def patterns(model: nn.Module, out: str | Path, progress: Callable[[Any], None] = lambda step: None) -> Any:
    return fit_patterns(model, TwoBatches(), PatternOptions(), out=out, progress=progress)


@pytest.mark.parametrize("fit", [inverse, patterns])
def test_another_activation_is_another_network(fit: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit(network(nn.ReLU()), tmp_path / "fit", interrupt)
    with pytest.raises(FileError, match=r"holds another fit: model\.architecture was"):
        fit(network(nn.LeakyReLU(0.3)), tmp_path / "fit")
    again, alone = fit(network(nn.ReLU()), tmp_path / "fit"), fit(network(nn.ReLU()), tmp_path / "alone")
    for name, tensors in alone.layers.items():
        assert all(torch.equal(again.layers[name][key], value) for key, value in tensors.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "fit"]


@pytest.mark.parametrize("fit", [inverse, patterns])
def test_a_process_that_goes_elsewhere_writes_where_it_was_asked_to(
    fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fit(network(nn.ReLU()), "fit", lambda step: os.chdir(tmp_path / "elsewhere"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "fit"]
    assert not list((tmp_path / "elsewhere").iterdir())
