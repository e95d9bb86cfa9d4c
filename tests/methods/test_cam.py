"""Grad-CAM and Guided Grad-CAM: against Captum, against the paper's equations, on odd networks."""

from __future__ import annotations

import pytest
import torch
from captum.attr import GuidedGradCam, LayerAttribution, LayerGradCam
from torch import Tensor, nn
from torch.nn import functional as F

from _networks import ARCHITECTURES, SPELLINGS, build, images
from backlit import GradCAM, GuidedBackprop, GuidedGradCAM, InputError, UnsupportedOp
from backlit.methods import Random


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 14, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


TARGET = torch.tensor([0, 3, 1])


def test_equals_captum(network: nn.Sequential, x: Tensor) -> None:
    theirs = LayerGradCam(network, network[4]).attribute(x, TARGET, relu_attributions=True)
    theirs = LayerAttribution.interpolate(theirs, (14, 18), "bilinear")
    ours = GradCAM(network)(x, TARGET)
    torch.testing.assert_close(ours.values, theirs.detach())
    assert ours.provenance["layer"].startswith("relu[1] at 4")
    assert float(ours.values.max()) > 0
    assert float(ours.values.min()) == 0
    early = LayerGradCam(network, network[0]).attribute(x, TARGET, relu_attributions=True)
    torch.testing.assert_close(
        GradCAM(network, layer="0").attribute(x, TARGET),
        LayerAttribution.interpolate(early, (14, 18), "bilinear").detach(),
    )


def test_guided_grad_cam_equals_captum(network: nn.Sequential, x: Tensor) -> None:
    theirs = GuidedGradCam(network, network[4]).attribute(x, TARGET, interpolate_mode="bilinear")
    ours = GuidedGradCAM(network)(x, TARGET)
    torch.testing.assert_close(ours.values, theirs.detach())
    torch.testing.assert_close(
        ours.values, GuidedBackprop(network).attribute(x, TARGET) * GradCAM(network).attribute(x, TARGET)
    )
    assert ours.provenance["layer"].startswith("relu[1] at 4")
    assert ours.coverage.count()["guided"] == 2


def test_is_the_papers_two_equations(network: nn.Sequential, x: Tensor) -> None:
    """Slowly: one weight a channel, the mean of its derivatives; the ReLU of the weighted sum."""
    for i, target in enumerate(TARGET.tolist()):
        features = network[:5](x[i : i + 1]).detach().requires_grad_()
        network[5:](features)[0, target].backward()
        assert features.grad is not None
        cam = torch.zeros(features.shape[2:], dtype=torch.float64)
        for k in range(features.shape[1]):
            cam += features.grad[0, k].mean() * features[0, k].detach()
        expected = F.interpolate(cam.relu()[None, None], (14, 18), mode="bilinear")[0]
        torch.testing.assert_close(GradCAM(network).attribute(x, TARGET)[i], expected)


def test_layers_by_path_by_prefix_and_by_site(network: nn.Sequential, x: Tensor) -> None:
    nested = nn.Sequential(nn.Sequential(*network[:5]), nn.Sequential(*network[5:]))
    whole = GradCAM(nested).attribute(x, TARGET)
    for layer in ("0", "0.4", "relu[1]"):
        torch.testing.assert_close(GradCAM(nested, layer=layer).attribute(x, TARGET), whole)
    assert GradCAM(nested, layer="0.3")(x, TARGET).provenance["layer"].startswith("conv2d[1] at 0.3")
    with pytest.raises(
        InputError, match=r"layer must name a module or a site with a feature map .* but is '0.44'.*Did you mean '0.4'"
    ):
        GradCAM(nested, layer="0.44")(x, TARGET)
    with pytest.raises(InputError, match="layer must be a module path, a site, a tuple of them, or None, but is 4"):
        GradCAM(nested, layer=4)


def test_maps_of_classes_are_not_weighted_themselves(x: Tensor) -> None:
    """A convolution that makes the logits' maps, as SqueezeNet has, is the head, not the last features."""
    head = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(6, 4, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    found = GradCAM(head.double().eval())(x, TARGET)
    assert found.provenance["layer"].startswith("relu[0] at 1")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_spelling_gives_the_twins_map(architecture: str) -> None:
    xs = images(architecture)
    for method in (GradCAM, GuidedGradCAM):
        whole = method(build(architecture, "module")).each(xs, torch.tensor([[2, 1], [0, 1]]))
        assert whole[0][0].values.shape[2:] == xs[0].shape[2:]
        for spelling in SPELLINGS:
            found = method(build(architecture, spelling)).each(xs, torch.tensor([[2, 1], [0, 1]]))
            for ours, theirs in zip(found, whole, strict=True):
                torch.testing.assert_close(ours[0].values, theirs[0].values, msg=f"{method.name} of {spelling}")


def test_a_network_without_feature_maps_says_so() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    with pytest.raises(UnsupportedOp, match="no feature map"):
        GradCAM(flat)(torch.zeros(1, 3, 2, 2))


def test_the_random_map_knows_neither_image_nor_target(network: nn.Sequential, x: Tensor) -> None:
    found = Random(network)(x, TARGET)
    assert torch.equal(found.values, Random(network).attribute(x, 2))
    assert torch.equal(found.values[1:], Random(network).attribute(x[1:], 0))  # whatever the batch
    assert abs(float(torch.corrcoef(found.values.flatten(1))[0, 1])) < 0.2  # and another for each image
    assert not torch.equal(found.values, Random(network, seed=1).attribute(x, 2))
    assert -1 <= float(found.values.min()) < -0.9 < 0.9 < float(found.values.max()) <= 1
    torch.testing.assert_close(found.output, network(x)[range(3), TARGET].detach())
    assert [a.values.shape for a in Random(network, chunk=2).each(x, torch.tensor([[1, 2]] * 3))] == [x.shape] * 2


def test_the_layer_is_what_the_last_convolution_ends_in(x: Tensor) -> None:
    """VGG: before the pool, as in the paper; a residual block: after its add; a fire module: after its concat."""
    vgg = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
    )
    assert GradCAM(vgg.double().eval())(x, TARGET).provenance["layer"].startswith("relu[0] at 1")
    for architecture, primitive in (("residual", "relu"), ("fire", "cat")):
        name = next(a for a in ARCHITECTURES if architecture in a.lower())
        found = GradCAM(build(name, "F.relu"))(images(name)[0])
        assert found.provenance["layer"].startswith(primitive), (name, found.provenance["layer"])
