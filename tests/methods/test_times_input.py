"""The option ``times_input`` of guided backprop, Deconvnet and Guided Grad-CAM: the papers' c * x for every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import InputError
from backlit.methods import Deconvnet, GradCAM, GuidedBackprop, GuidedGradCAM, Method


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(5, 4)).double().eval()


def images() -> Tensor:
    return torch.randn(3, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


TARGET = torch.tensor([0, 3, 1])


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvnet, GuidedGradCAM])
def test_the_map_is_the_propagated_gradient_times_the_image(method: type[Method]) -> None:
    net, x = network(), images()
    plain, times = method(net)(x, TARGET), method(net, times_input=True)(x, TARGET)
    torch.testing.assert_close(times.values, plain.values * x, rtol=1e-12, atol=0)
    assert times.provenance["options"]["times_input"] is True
    assert not torch.allclose(times.values, plain.values)
    first, _ = method(net, times_input=True).each(x, [[0, 1], [3, 1], [1, 1]])
    torch.testing.assert_close(first.values, times.values)


def test_guided_backprop_times_input_equals_the_rule_by_hand() -> None:
    net, x = network(), images()
    first, first_bias, second, second_bias, last, _ = net.parameters()
    a = F.conv2d(x, first, first_bias)
    b = F.conv2d(a.relu(), second, second_bias)
    g = last[TARGET][:, :, None, None].expand_as(b) / b[0, 0].numel()
    g = F.conv_transpose2d(g.clamp(min=0) * (b > 0), second)
    expected = F.conv_transpose2d(g.clamp(min=0) * (a > 0), first) * x
    torch.testing.assert_close(GuidedBackprop(net, times_input=True).attribute(x, TARGET), expected.detach())


def test_guided_grad_cam_is_guided_backprop_times_input_times_grad_cam() -> None:
    net, x = network(), images()
    expected = GuidedBackprop(net, times_input=True).attribute(x, TARGET) * GradCAM(net).attribute(x, TARGET)
    torch.testing.assert_close(GuidedGradCAM(net, times_input=True).attribute(x, TARGET), expected)


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvnet, GuidedGradCAM])
def test_it_is_true_or_false(method: type[Method]) -> None:
    with pytest.raises(InputError, match="times_input must be True or False, but is 'yes'"):
        method(network(), times_input="yes")


def test_guided_grad_cam_still_checks_how_its_layer_is_read() -> None:
    with pytest.raises(InputError, match="channels and grid say how to read a named layer"):
        GuidedGradCAM(network(), channels="last", times_input=True)
