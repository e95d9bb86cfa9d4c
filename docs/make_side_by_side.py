"""Draw the second picture of docs/cards.md: Grad-CAM of one photograph by pytorch-grad-cam, by Captum, and as a card.

    uv run --with scikit-image --with grad-cam python docs/make_side_by_side.py squeezenet1_0.safetensors

with torchvision's weights of SqueezeNet 1.0 (BSD-3-Clause) as safetensors. The photograph is scikit-image's cat (CC0).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import skimage
from captum.attr import LayerAttribution, LayerGradCam, visualization
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import backlit
from backlit.report.card import card, scales

CLASSES = ["Egyptian cat", "school bus"]
loaded = backlit.load_model("squeezenet1_0", weights=sys.argv[1])
network, layer = loaded.network, loaded.network.features[-1]
path = Path(skimage.__file__).with_name("data") / "chelsea.png"
x = loaded.preprocess(path)[None]
photo = loaded.preprocess.picture(path).permute(1, 2, 0).numpy()


def theirs(index: int) -> np.ndarray:
    """pytorch-grad-cam's picture, as its README draws it."""
    with GradCAM(model=network, target_layers=[layer]) as cam:
        return show_cam_on_image(photo, cam(input_tensor=x, targets=[ClassifierOutputTarget(index)])[0], use_rgb=True)


def captums(index: int) -> np.ndarray:
    """Captum's picture, a blended heat map of positive values."""
    maps = LayerAttribution.interpolate(
        LayerGradCam(network, layer).attribute(x, index), tuple(x.shape[2:]), "bilinear"
    )
    figure, _ = visualization.visualize_image_attr(
        maps[0].permute(1, 2, 0).detach().numpy(),
        photo,
        "blended_heat_map",
        "positive",
        use_pyplot=False,
        show_colorbar=True,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    return np.asarray(Image.open(buffer).convert("RGB"))


def beside(pictures: list[np.ndarray], *, axis: int) -> np.ndarray:
    """Pictures in a row or a column, on white."""
    most = max(p.shape[1 - axis] for p in pictures)
    gaps = [[(0, 0)] * 3 for _ in pictures]
    for gap, p in zip(gaps, pictures, strict=True):
        gap[1 - axis] = (0, most - p.shape[1 - axis])
        gap[axis] = (0, 24)
    return np.concatenate([np.pad(p, g, constant_values=255) for p, g in zip(pictures, gaps, strict=True)], axis)


explanations = backlit.GradCAM(loaded, layer="features.12").each(x, [CLASSES])
cards = [
    card(e, loaded.preprocess.picture(path, times=2), scale=s)
    for e, s in zip(explanations, scales(explanations), strict=True)
]
rows = []
for name, drawn in zip(CLASSES, cards, strict=True):
    index = loaded.class_index(name)
    cam = np.asarray(Image.fromarray(theirs(index)).resize((440, 440), Image.Resampling.BICUBIC))
    rows.append(beside([cam, captums(index), drawn], axis=1))
Image.fromarray(beside(rows, axis=0)).save(Path(__file__).with_name("side_by_side.jpg"), quality=86, subsampling=0)
