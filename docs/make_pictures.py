"""Draw the README's pictures: a scene of two digits, explained for each of its classes by eleven methods; a comparison's report.

The second one needs playwright and a Chromium (BACKLIT_CHROMIUM names it; else playwright's own).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright

import backlit
from backlit.cli.demo import fit_on_digits
from backlit.methods import FittedMethod, Method
from backlit.models.digits import demo_scenes
from backlit.report.comparison import write_report
from backlit.report.figure import render_image, render_overlay

SCENE: tuple[type[Method], ...] = (
    *(backlit.DMBP, backlit.LPR, backlit.TRGBP, backlit.MIPIN, backlit.PatternAttribution, backlit.LRP),
    *(backlit.DeepLIFT, backlit.GradCAM, backlit.GuidedBackprop, backlit.FullGrad, backlit.GradientXInput),
)


def report() -> None:
    """The first part of the report that `backlit compare` writes by default."""
    model = backlit.load_model("digits")
    images, labels = demo_scenes()
    both = torch.zeros(len(images), 10, dtype=torch.bool).scatter_(1, labels, True)
    names = [f"scene of {a} and {b}" for a, b in labels.tolist()]
    examples = backlit.Examples(model.preprocess.batch(images), labels[:, 0], both, names=names)
    methods = ["random", "gradient_x_input", "guided_backprop", "grad_cam", "dmbp"]
    found = backlit.compare(
        model, examples, methods, ["insertion", "complementary_insertion", "morf_5", "last_layer_reset"], classes=2
    )
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as browsers:
        page = Path(folder) / "report.html"
        write_report(page, found)
        path = os.environ.get("BACKLIT_CHROMIUM")
        browser = browsers.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        tab = browser.new_page(viewport={"width": 1180, "height": 1400})
        tab.goto(page.as_uri())
        tab.screenshot(path=Path(__file__).with_name("report.png"))
        browser.close()


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
            picture = render_overlay(model.preprocess.restore(x[i]), one.heatmap()[0], scale=one.scale())
            axes[i, column].imshow(picture)
            axes[i, column].set_xlabel(f"±{one.scale():.2g}", fontsize=8)
        axes[0, column].set_title(method.title)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(Path(__file__).with_name("scene.png"), dpi=110)


if __name__ == "__main__":
    scene()
    report()
