from __future__ import annotations

import pytest
import torch
from torch import nn

from backlit._errors import ModelStateError
from backlit._fingerprint import fingerprint


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))


def test_is_sha256_and_repeats() -> None:
    first = fingerprint(_network())
    assert len(first) == 64
    assert int(first, 16) >= 0
    assert fingerprint(_network()) == first


def test_ignores_layout_mode_and_requires_grad() -> None:
    network = _network()
    before = fingerprint(network)
    network.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    assert fingerprint(network) == before


def test_one_bit_changes_it() -> None:
    network = _network()
    before = fingerprint(network)
    weight = network.get_parameter("2.weight").detach()
    weight.view(torch.int32)[2, 3] ^= 1
    assert fingerprint(network) != before


@pytest.mark.parametrize("buffer", ["1.running_mean", "1.num_batches_tracked"])
def test_buffers_count(buffer: str) -> None:
    network = _network()
    before = fingerprint(network)
    network.get_buffer(buffer).add_(1)
    assert fingerprint(network) != before


def test_buffers_outside_the_state_count() -> None:
    def with_scale(value: float) -> nn.Module:
        network = _network()
        network.register_buffer("scale", torch.tensor(value), persistent=False)
        return network

    assert fingerprint(with_scale(1.0)) != fingerprint(with_scale(2.0))


def test_names_count() -> None:
    one, other = nn.ModuleDict({"a": nn.Identity()}), nn.ModuleDict({"b": nn.Identity()})
    for name, network in (("a", one), ("b", other)):
        network[name].register_buffer("x", torch.ones(2))
    assert fingerprint(one) != fingerprint(other)


def test_shape_and_dtype_count_where_the_bytes_agree() -> None:
    def holding(value: torch.Tensor) -> str:
        network = nn.Module()
        network.register_buffer("x", value)
        return fingerprint(network)

    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(8, dtype=torch.bfloat16)]
    assert len({holding(value) for value in zeros}) == len(zeros)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype(dtype: torch.dtype) -> None:
    assert fingerprint(_network().to(dtype)) == fingerprint(_network().to(dtype))
    assert fingerprint(_network().to(dtype)) != fingerprint(_network())


def test_reads_numbers_and_empty_tensors() -> None:
    network = nn.Module()
    network.register_buffer("empty", torch.zeros(0, 3))
    network.register_buffer("number", torch.tensor(2.0))
    assert len(fingerprint(network)) == 64


@pytest.mark.parametrize("network", [nn.LazyLinear(3), nn.Linear(2, 2, device="meta")])
def test_refuses_parameters_without_values(network: nn.Module) -> None:
    with pytest.raises(ModelStateError, match="'bias' has no values yet"):
        fingerprint(network)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_another_device() -> None:
    assert fingerprint(_network().cuda()) == fingerprint(_network())
