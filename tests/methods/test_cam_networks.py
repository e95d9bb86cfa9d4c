"""Grad-CAM's layer in real networks: by its module, its axes, and the gradient there by finite differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from _cam_networks import Arrange, first, last, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import GradCAM


def perturbed(model: nn.Module, module: str, change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    handle = model.get_submodule(module).register_forward_hook(lambda m, i, o: change(o))
    try:
        return model(x)
    finally:
        handle.remove()


def check_by_differences(model: nn.Module, module: str, arrange: Arrange, x: Tensor) -> None:
    """The chosen layer is that module's output; its gradient agrees with finite differences, the map with Eq. 1 and 2."""
    model = model.double().eval()
    kept: list[Tensor] = []
    out = perturbed(model, module, lambda o: kept.append(o) or o, x.clone().requires_grad_())
    for target in range(10):  # the first whose map is not empty
        (g,) = torch.autograd.grad(out[:, target].sum(), kept[0], retain_graph=True)
        maps = (arrange(g).mean((2, 3), keepdim=True) * arrange(kept[0].detach())).sum(1, keepdim=True).relu()
        if float(maps.max()) > 0:
            break
    direction = torch.randn(g.shape, generator=torch.Generator().manual_seed(1), dtype=g.dtype)
    direction = direction * (kept[0] != 0)  # where a ReLU is closed, a pool behind it has a kink
    step = 1e-5
    with torch.no_grad():
        up, down = (perturbed(model, module, lambda o, s=s: o + s * direction, x)[:, target] for s in (step, -step))
    torch.testing.assert_close(((up - down) / (2 * step)).sum(), (g * direction).sum(), rtol=1e-4, atol=1e-7)
    expected = F.interpolate(maps, x.shape[-2:], mode="bilinear")
    assert float(expected.max()) > 0
    found = GradCAM(model)(x, target)
    torch.testing.assert_close(found.values, expected, rtol=1e-6, atol=1e-9, msg=found.provenance["layer"])


def _randomised(model: nn.Module) -> nn.Module:
    """Without zeros at a path's end, which would hide it."""
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().max() == 0:
                p.normal_(0, 0.05)
    return model


slow = pytest.mark.slow
TORCHVISION = [
    pytest.param("resnet18", {"num_classes": 512}, 64, "layer4", first),
    pytest.param("squeezenet1_0", {}, 64, "features.12", first),
    pytest.param("vit_b_16", {"image_size": 48}, 48, "encoder.layers.encoder_layer_11.ln_1", tokens(3, 3, 1)),
    pytest.param("swin_t", {"num_classes": 768}, 96, "norm", last),
    pytest.param("swin_v2_t", {}, 64, "norm", last, marks=slow),
    pytest.param("convnext_tiny", {}, 96, "features.7.2", first, marks=slow),
    pytest.param("googlenet", {"init_weights": False, "aux_logits": True}, 96, "inception5b", first),
    pytest.param("densenet121", {}, 96, "features.relu5", first, marks=slow),
    pytest.param("efficientnet_b0", {}, 96, "features.8", first),
    pytest.param("mobilenet_v3_small", {}, 96, "features.12", first),
    pytest.param("vgg11", {}, 96, "features.19", first, marks=slow),
    pytest.param("maxvit_t", {}, 224, "blocks.3.layers.1", first, marks=slow),
]


@pytest.mark.parametrize(("name", "options", "size", "module", "arrange"), TORCHVISION)
def test_torchvision(name: str, options: dict[str, Any], size: int, module: str, arrange: Arrange) -> None:
    torch.manual_seed(0)
    model = _randomised(getattr(torchvision.models, name)(**options))
    if name == "densenet121":
        model.get_submodule("features").add_module("relu5", nn.ReLU())  # the same ReLU as a function follows
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_by_differences(model, module, arrange, x)


def square(side: int, extra: int = 0) -> Arrange:
    return tokens(side, side, extra)


TIMM = [
    ("vit_tiny_patch16_224", {"img_size": 64}, 64, "blocks.11.norm1", square(4, 1)),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64}, 64, "blocks.11.norm1", square(4, 2)),
    ("vit_small_patch16_18x2_224", {"img_size": 64}, 64, "blocks.17.attns.1.norm", square(4, 1)),
    ("beit_base_patch16_224", {"img_size": 48}, 48, "blocks.11", square(3, 1)),
    ("convit_tiny", {"img_size": 64}, 64, "blocks.11.norm1", square(4, 1)),
    ("cait_xxs24_224", {"img_size": 64}, 64, "blocks_token_only.1.norm1", square(4, 1)),
    ("xcit_nano_12_p16_224", {}, 64, "cls_attn_blocks.1.norm1", square(4, 1)),
    ("pit_ti_224", {}, 224, "transformers.2.blocks.3.norm1", square(7, 1)),
    ("swin_tiny_patch4_window7_224", {}, 224, "norm", last),
    ("coatnet_nano_rw_224", {}, 224, "norm", first),
    ("mixer_s32_224", {}, 224, "norm", square(7)),
    ("pvt_v2_b0", {}, 96, "stages.3.norm", square(3)),
    ("mobilevit_xxs", {}, 64, "final_conv", first),
    ("levit_128s", {}, 224, "stages.2.blocks.3", square(4)),
    ("poolformer_s12", {}, 64, "stages.3", first),
    ("visformer_tiny", {}, 224, "norm", first),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "size", "module", "arrange"), TIMM, ids=[t[0] for t in TIMM])
def test_timm(name: str, options: dict[str, Any], size: int, module: str, arrange: Arrange) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _randomised(timm.create_model(name, **options))
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_by_differences(model, module, arrange, x)
