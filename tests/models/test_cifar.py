from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from backlit._errors import InputError
from backlit.models import load_model
from backlit.models.cifar import BasicBlock, CifarResNet20


def test_shortcut_is_a_strided_slice_with_zero_channels_around() -> None:
    block = BasicBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # only the shortcut is left
    x = torch.rand(1, 2, 6, 6)
    expected = torch.zeros(1, 4, 3, 3)
    expected[:, 1:3] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_block_adds_before_the_last_relu() -> None:
    torch.manual_seed(0)
    block = BasicBlock(3, 3, stride=1).eval()
    x = torch.randn(2, 3, 5, 5)
    inner = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), F.relu(inner + x))


def test_size() -> None:
    network = CifarResNet20().eval()
    assert sum(p.numel() for p in network.parameters()) == 269_722
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_needs_weights() -> None:
    with pytest.raises(
        InputError,
        match=r"cifar_resnet20 comes without any, and random weights are not taken unasked\. "
        r"Ways out: weights='FILE\.safetensors'; weights='random' for speed tests only\.",
    ):
        load_model("cifar_resnet20")


def test_random_on_request() -> None:
    model = load_model("cifar_resnet20", weights="random")
    assert model.class_index("frog") == 6
    assert model.preprocess.size == (32, 32)
    assert model.preprocess.resize is None


def test_other_number_of_classes(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file(CifarResNet20(100).state_dict(), tmp_path / "w.safetensors")
    model = load_model("cifar_resnet20", weights=tmp_path / "w.safetensors")
    assert model.class_names[-1] == "class 99"
    assert model.network(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
