"""Draw the README's picture: a scene of two digits, explained for each of its classes by every method."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

import backlit
from backlit.models.digits import demo_scenes
from backlit.report.figure import render_image, render_overlay


def main() -> None:
    model = backlit.load_model("digits")
    scene, labels = (part[0] for part in demo_scenes())
    x = torch.stack([model.preprocess(scene)] * 2)
    methods = [m for m in backlit.METHODS if m is not backlit.Gradient]
    figure = Figure(figsize=(2.0 * (len(methods) + 1), 4.4), layout="constrained")
    axes = figure.subplots(2, len(methods) + 1)
    for i, label in enumerate(labels.tolist()):
        axes[i, 0].imshow(render_image(model.preprocess.restore(x[i])))
        axes[i, 0].set_ylabel(f"why {label}?", fontsize=13)
    for column, method in enumerate(methods, 1):
        explanation = method(model.network)(x, labels)
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
    main()
