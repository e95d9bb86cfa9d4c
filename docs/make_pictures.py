"""Draw the README's pictures of a scene of two digits, explained by eleven methods, and of a comparison's report.

    uv run --with scikit-image python docs/make_pictures.py squeezenet1_0.safetensors

The report is of SqueezeNet on scikit-image's photographs, as in docs/make_photographs.py, and of the rocket (SpaceX, CC0). It needs
playwright and a Chromium (BACKLIT_CHROMIUM names it; else playwright's own).
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import skimage
import torch
from make_photographs import cat_and_coffee, network
from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import sync_playwright

import backlit
from backlit.cli.demo import fit_on_digits
from backlit.methods import FittedMethod, Method
from backlit.models.digits import demo_scenes
from backlit.report.comparison import write_report
from backlit.report.figure import render_image
from backlit.report.panels import Panels

SCENE: tuple[type[Method], ...] = (
    *(backlit.DMBP, backlit.LPR, backlit.TRGBP, backlit.MIPIN, backlit.PatternAttribution, backlit.LRP),
    *(backlit.DeepLIFT, backlit.GradCAM, backlit.GuidedBackprop, backlit.FullGrad, backlit.GradientXInput),
)


PHOTOGRAPHS = {
    "cat": ("chelsea.png", (60, 0, 360, 300)),
    "cat from near": ("chelsea.png", (100, 40, 300, 240)),
    "coffee": ("coffee.png", (100, 0, 500, 400)),
    "coffee from near": ("coffee.png", (180, 60, 440, 320)),
    "rocket": ("rocket.jpg", (106, 0, 533, 427)),
}


def report() -> None:
    """The first part of a report on photographs."""
    loaded, data = network(), Path(skimage.__file__).with_name("data")
    pictures = {"cat and coffee": cat_and_coffee()}
    pictures |= {n: Image.open(data / file).convert("RGB").crop(box) for n, (file, box) in PHOTOGRAPHS.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.png" for name in pictures]
        for file, picture in zip(files, pictures.values(), strict=True):
            picture.save(file)
        x = torch.stack([loaded.preprocess(file) for file in files])
    with torch.no_grad():
        examples = backlit.Examples(x, loaded.network(x).argmax(1), names=list(pictures))
    methods = {
        "dmbp": backlit.DMBP.fast(loaded.network),
        "tr_gbp": backlit.TRGBP(loaded.network),
        "grad_cam": backlit.GradCAM(loaded.network),
        "lrp": backlit.LRP(loaded.network),
        "guided_backprop": backlit.GuidedBackprop(loaded.network),
    }
    found = backlit.compare(
        loaded, examples, methods, ["insertion", "morf_5", "last_layer_reset"], target="predicted", classes=1
    )
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as browsers:
        page = Path(folder) / "report.html"
        write_report(page, found)
        path = os.environ.get("BACKLIT_CHROMIUM")
        browser = browsers.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1560})
        tab.goto(page.as_uri())
        shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
        browser.close()
    shot.save(Path(__file__).with_name("report.jpg"), quality=86)


def scene() -> None:
    """A row a class, a column a method."""
    model = backlit.load_model("digits")
    scene, labels = (part[0] for part in demo_scenes())
    x = torch.stack([model.preprocess(scene)] * 2)
    figure = Figure(figsize=(2.0 * (len(SCENE) + 1), 4.4), layout="constrained")
    axes = figure.subplots(2, len(SCENE) + 1)
    for i, label in enumerate(labels.tolist()):
        axes[i, 0].imshow(render_image(model.preprocess.restore(x[i])))
        axes[i, 0].set_ylabel(f"why {label}?", fontsize=13)
    for column, method in enumerate(SCENE, 1):
        options = {"fitted": fit_on_digits(method, model.network, x)} if issubclass(method, FittedMethod) else {}
        explanation = method(model.network, **options)(x, labels)
        for i, one in enumerate(explanation):
            panels = Panels(one, model.preprocess.restore(x[i]))
            axes[i, column].imshow(panels.overlay())
            axes[i, column].set_xlabel(f"{'±' if panels.palette.two_sided else '0 to '}{panels.scale:.2g}", fontsize=8)
        axes[0, column].set_title(method.title)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(Path(__file__).with_name("scene.png"), dpi=110)


if __name__ == "__main__":
    scene()
    report()
