"""Draw the photographs that README and docs/index.md open with: one picture of a cat and a coffee, explained for each of them.

    uv run --with scikit-image python docs/make_photographs.py squeezenet1_0.safetensors

with torchvision's weights of SqueezeNet 1.0 (BSD-3-Clause) as safetensors; without an argument, those in BACKLIT_SHARED. The
photographs come with scikit-image: the cat Chelsea by Stefan van der Walt, the coffee by Rachel Michetti, both CC0.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import skimage
from matplotlib.figure import Figure
from PIL import Image

import backlit
from backlit import LoadedModel
from backlit.methods import Method
from backlit.report.card import card, probability_text, scales

SIDE = 227  # pixels: the network's own input
CLASSES = ("Egyptian cat", "espresso")
CAT, COFFEE = ("chelsea.png", (135, 0, 285, 300)), ("coffee.png", (220, 0, 420, 400))
OUT = Path(__file__).with_name("photographs.jpg")


def network(weights: str | None = None) -> LoadedModel:
    """SqueezeNet at 227 pixels, which takes the whole picture, with the weights in a file or those in BACKLIT_SHARED."""
    shared = Path(os.environ.get("BACKLIT_SHARED", "../shared")) / "models" / "squeezenet1_0-imagenet.safetensors"
    loaded = backlit.load_model("squeezenet1_0", weights=weights or shared)
    return replace(loaded, preprocess=replace(loaded.preprocess, size=(SIDE, SIDE), resize=None, crop="stretch"))


def cat_and_coffee() -> Image.Image:
    """The cat on the left, the coffee on the right, each as tall as the picture."""
    data, picture = Path(skimage.__file__).with_name("data"), Image.new("RGB", (480, 480))
    for (name, box), left in ((CAT, 0), (COFFEE, 240)):
        half = Image.open(data / name).convert("RGB").crop(box)
        picture.paste(half.resize((240, 480), Image.Resampling.LANCZOS), (left, 0))
    return picture


def methods(loaded: LoadedModel) -> list[tuple[str, Method]]:
    """The columns: four that tell the two classes apart, and two that do not."""
    return [
        ("DMBP, short schedule", backlit.DMBP.fast(loaded)),
        ("TR-GBP", backlit.TRGBP(loaded)),
        ("LRP", backlit.LRP(loaded)),
        ("Grad-CAM", backlit.GradCAM(loaded)),
        ("LPR", backlit.LPR(loaded)),
        ("Guided backprop", backlit.GuidedBackprop(loaded)),
    ]


def draw() -> None:
    """A row a class, a column a method."""
    loaded, picture = network(*sys.argv[1:2]), cat_and_coffee()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        picture.save(file)
        x, shown = loaded.preprocess(file)[None], loaded.preprocess.picture(file, times=2)
    columns = methods(loaded)
    figure = Figure(figsize=(2.3 * (len(columns) + 1), 5.1), layout="constrained")
    axes = figure.subplots(len(CLASSES), len(columns) + 1)
    for column, (title, method) in enumerate(columns, 1):
        explanations = method.each(x, [list(CLASSES)])
        axes[0, column].set_title(title, fontsize=13)
        for row, (one, limit) in enumerate(zip(explanations, scales(explanations), strict=True)):
            axes[row, column].imshow(card(one, shown, scale=limit, style="overlay"))
            assert one.probability is not None
            chance = probability_text(float(one.probability[0]))
            axes[row, 0].set_ylabel(f"why {CLASSES[row]}?\np = {chance}", fontsize=13)
    for row in range(len(CLASSES)):
        axes[row, 0].imshow(picture)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(OUT, dpi=110, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    draw()
