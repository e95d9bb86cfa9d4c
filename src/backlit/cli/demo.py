"""`backlit demo`: the main job on the embedded network and real digits."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from backlit._forward import forward
from backlit._version import __version__
from backlit.attribution import Attribution
from backlit.cli.console import console, shown
from backlit.cli.progress import bars
from backlit.cli.settings import Chosen, Compute, with_bounds
from backlit.cli.stopping import said_when_stopped
from backlit.inverse import Fitted
from backlit.methods import METHODS, FittedMethod
from backlit.models import LoadedModel, load_model
from backlit.models.digits import demo_scenes, digits_images
from backlit.report.page import Page, check_page, row, write_page

_SINGLES, _SCENES = 3, 4
_LEARNED = 90  # digits from which a method that learns from data does so here
_INTRO = (
    "Which pixels made the network say that? Real handwritten digits, explained by every method. In a scene of two digits "
    "both are true: explained for one class, a good map is red on that digit and blue, or silent, on the other; the rows "
    "show the same scene for each of its two classes."
)


def run(out: Path, compute: Compute) -> Path:
    """Explain single digits and two-digit scenes with every method and write ``out/index.html``; returns its path."""
    path, start = out / "index.html", time.perf_counter()
    check_page(path)  # before everything is computed for nothing
    model = load_model("digits", device=compute.device, dtype=compute.dtype)
    singles, scenes = digits_images(), demo_scenes()
    cases = [(singles.images[i], int(singles.labels[i]), "Digit") for i in range(_SINGLES)]
    cases += [
        (im, int(t), "Scene") for im, labels in zip(*(part[:_SCENES] for part in scenes), strict=True) for t in labels
    ]
    x = model.placed(torch.stack([model.preprocess(image) for image, _, _ in cases]))
    target = torch.tensor([label for _, label, _ in cases])
    chances = forward(model.network, x).float().softmax(1)
    into = console()
    with said_when_stopped(lambda: "the page is written at the end, so there is none yet"):
        found = _explain(model, x, target, compute, into)
    rows = [
        row(
            model.preprocess.restore(x[i].float()),
            f"{kind}: why {label}?",
            f"probability {float(chances[i, label]):.2f}, most likely {int(chances[i].argmax())}",
            {name: explanation[i] for name, explanation in found.items()},
        )
        for i, (_, label, kind) in enumerate(cases)
    ]
    footer = {
        "Backlit": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "seed": compute.seed,
        "device": compute.device,
        "seconds": {name: explanation.provenance["seconds"] for name, explanation in found.items()},
        "seconds in all": round(time.perf_counter() - start, 1),
    }
    page = Page("Backlit demo", _INTRO, tuple((m.title, m.summary) for m in METHODS), tuple(rows), footer)
    write_page(path, page)
    into.print(f"{len(cases)} explanations by {len(METHODS)} methods in {time.perf_counter() - start:.1f} s")
    into.print(f"open {shown(os.path.relpath(path))}")
    return path


def _explain(
    model: LoadedModel, x: torch.Tensor, target: torch.Tensor, compute: Compute, into: Console
) -> dict[str, Attribution]:
    found: dict[str, Attribution] = {}
    learned: dict[str, Fitted] = {}
    with bars(into) as progress:
        for method in METHODS:
            task = progress.add_task(method.title, total=1)
            options: dict[str, Any] = {"seed": compute.seed, "chunk": len(x)}
            if "callback" in {f.name for f in fields(method.Options)}:
                options["callback"] = lambda s, task=task: progress.update(task, completed=s.index, total=s.steps)
            if issubclass(method, FittedMethod):
                if method.artefact not in learned:
                    learned[method.artefact] = fit_on_digits(method, model.network, x)
                options["fitted"] = learned[method.artefact]
            (chosen,) = with_bounds([Chosen(method, options)], model.preprocess)
            found[method.title] = method(model.network, **chosen.options)(x, target)
            progress.update(task, completed=progress.tasks[-1].total)
    return found


def fit_on_digits(method: type[FittedMethod], network: torch.nn.Module, like: torch.Tensor) -> Fitted:
    """What the method learns from single digits, those that are explained not among them."""
    images, labels = (part[_SINGLES : _SINGLES + _LEARNED] for part in digits_images())
    x = load_model("digits").preprocess.batch(images).to(like)
    return method.fit(network, list(zip(x.split(30), labels.to(like.device).split(30), strict=True)))
