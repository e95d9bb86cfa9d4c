"""`backlit demo`: the main job on the embedded network and real digits."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backlit._forward import forward
from backlit._options import option_names
from backlit._version import __version__
from backlit.attribution import Attribution
from backlit.cli.console import console, shown
from backlit.cli.photographs import Photographs, explained
from backlit.cli.progress import Pace, paced
from backlit.cli.settings import Chosen, Compute, with_bounds
from backlit.cli.stopping import said_when_stopped
from backlit.inverse import Fitted
from backlit.methods import METHODS, FittedMethod, Method
from backlit.methods.lookup import find_method
from backlit.models import LoadedModel, load_model
from backlit.models.digits import demo_scenes, digits_images
from backlit.report.page import FIRST, Page, Row, check_page, row, write_page

SHOWN = tuple(
    (
        "dmbp lpr tr_gbp mip_in pattern_net pattern_attribution fullgrad bbp lrp deep_taylor excitation_backprop deeplift "
        "deep_shap grad_cam guided_grad_cam guided_backprop deconvnet gradient_x_input saliency gradient"
    ).split()
)
"""The methods that the demo shows: all would take longer than a first look should."""
_SINGLES, _SCENES = 3, 4
_LEARNED = 90  # digits from which a method that learns from data does so here
_INTRO = (
    "Which pixels made the network say that? Real handwritten digits, explained by many methods. In a scene of two digits "
    "both are true: explained for one class, a good map is red on that digit and blue, or silent, on the other; the rows "
    "show the same scene for each of its two classes."
)
_PHOTOGRAPHS = "First photographs, explained for what {} predicts, with DMBP's short schedule and 10 steps of LPR. "
_NONE = (
    "digits alone, for no network for photographs is at hand; for yours: backlit demo --image PHOTO.jpg --model squeezenet1_0 "
    "--weights FILE.safetensors, or --download in the place of --weights to fetch them once"
)


def run(out: Path, compute: Compute, photographs: Photographs | None = None) -> Path:
    """Explain photographs, if there are any, single digits and two-digit scenes; returns the page, ``out/index.html``."""
    path, start = out / "index.html", time.perf_counter()
    check_page(path)  # before everything is computed for nothing
    shown_first = sorted(SHOWN, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    methods = [find_method(name, METHODS) for name in shown_first]
    into = console()
    pieces = len(methods) * (2 if photographs else 1)
    stopped = said_when_stopped(lambda: "the page is written at the end, so there is none yet")
    with stopped, paced(into, pieces) as pace:
        rows = explained(photographs, methods, compute, pace) if photographs else []
        digits, seconds = _digits(methods, compute, pace)
    footer = {
        "Backlit": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "seed": compute.seed,
        "device": compute.device,
        "seconds": seconds,
        "seconds in all": round(time.perf_counter() - start, 1),
    }
    intro = (_PHOTOGRAPHS.format(photographs.loaded.name) if photographs else "") + _INTRO
    page = Page("Backlit demo", intro, tuple((m.title, m.summary) for m in methods), (*rows, *digits), footer)
    write_page(path, page)
    into.print(f"{len(page.rows)} explanations by {len(methods)} methods in {time.perf_counter() - start:.1f} s")
    if photographs is None:
        into.print(_NONE)
    into.print(f"open {shown(os.path.relpath(path))}")
    return path


def _digits(methods: Sequence[type[Method]], compute: Compute, pace: Pace) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the embedded network's digits, and each method's seconds."""
    model = load_model("digits", device=compute.device, dtype=compute.dtype)
    singles, scenes = digits_images(), demo_scenes()
    cases = [(singles.images[i], int(singles.labels[i]), "Digit") for i in range(_SINGLES)]
    cases += [
        (im, int(t), "Scene") for im, labels in zip(*(part[:_SCENES] for part in scenes), strict=True) for t in labels
    ]
    x = model.placed(torch.stack([model.preprocess(image) for image, _, _ in cases]))
    target = torch.tensor([label for _, label, _ in cases])
    chances = forward(model.network, x).float().softmax(1)
    found = _explain(model, methods, (x, target), compute, pace)
    rows = [
        row(
            model.preprocess.restore(x[i].float()),
            f"{kind}: why {label}?",
            f"probability {float(chances[i, label]):.2f}, most likely {int(chances[i].argmax())}",
            {name: explanation[i] for name, explanation in found.items()},
        )
        for i, (_, label, kind) in enumerate(cases)
    ]
    return rows, {name: explanation.provenance["seconds"] for name, explanation in found.items()}


def _explain(
    model: LoadedModel,
    methods: Sequence[type[Method]],
    cases: tuple[torch.Tensor, torch.Tensor],
    compute: Compute,
    pace: Pace,
) -> dict[str, Attribution]:
    """Each method's explanations of the images for their targets, ``cases``, by its title."""
    x, target = cases
    found: dict[str, Attribution] = {}
    learned: dict[str, Fitted] = {}
    for method in methods:
        pace.begin(method.title)
        options: dict[str, Any] = {"seed": compute.seed, "chunk": len(x)}
        if "callback" in option_names(method):
            options["callback"] = lambda step: pace.step(step.index, step.steps)
        if issubclass(method, FittedMethod):
            if method.artefact not in learned:
                learned[method.artefact] = fit_on_digits(method, model.network, x)
            options["fitted"] = learned[method.artefact]
        (chosen,) = with_bounds([Chosen(method, options)], model.preprocess)
        found[method.title] = method(model.network, **chosen.options)(x, target)
        pace.end()
    return found


def fit_on_digits(method: type[FittedMethod], network: torch.nn.Module, like: torch.Tensor) -> Fitted:
    """Return what the method learns from single digits, those that are explained not among them."""
    images, labels = (part[_SINGLES : _SINGLES + _LEARNED] for part in digits_images())
    x = load_model("digits").preprocess.batch(images).to(like)
    return method.fit(network, list(zip(x.split(30), labels.to(like.device).split(30), strict=True)))
