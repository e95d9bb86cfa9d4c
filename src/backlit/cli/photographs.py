"""The photographs that `backlit demo` begins with, where a network that knows what is in them is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backlit._errors import BacklitError, InputError
from backlit._options import option_names
from backlit.attribution import Attribution
from backlit.cli.progress import Pace
from backlit.cli.settings import Chosen, Compute, load, logits_of, with_bounds
from backlit.data.listing import list_images, sample_photographs
from backlit.methods import DMBP, LPR, FittedMethod, Method
from backlit.models import LoadedModel
from backlit.models.at_hand import AT_HAND, load_at_hand
from backlit.report.card import probability_text
from backlit.report.page import Row, row

_LPR_STEPS = 10


@dataclass(frozen=True)
class Photographs:
    """Photographs, and the network that is asked about them.

    Attributes:
        files: The photographs.
        loaded: The network.
    """

    files: Sequence[Path]
    loaded: LoadedModel


def asked_for(
    images: list[Path], model: str | None, weights: str | None, compute: Compute, *, download: bool = False
) -> Photographs | None:
    """The photographs to begin with, and a network for them: what was asked for, or what is at hand; None if nothing is.

    With ``download`` the network's published weights may be fetched, of :data:`AT_HAND`'s first if none is named.

    Raises:
        InputError: If a network was asked for and cannot be had, or photographs were given and no network is at hand.
        FileError: If none of the photographs is there.
    """
    if weights is not None and model is None:
        raise InputError(
            "weights needs the network that they are of: --model squeezenet1_0 --weights FILE, for example."
        )
    if download and model is None:
        model = AT_HAND[0]
    if model is None:
        loaded = load_at_hand(device=compute.device, dtype=compute.dtype)
    else:
        loaded = load(model, weights, compute, {}, download=download)
    files = list_images(images)[0] if images else sample_photographs()
    if loaded is None and images:
        raise InputError(
            "image: no network for photographs is at hand: torch's cache holds the weights of none of "
            f"{', '.join(AT_HAND)}. Name one with its weights: --model squeezenet1_0 --weights FILE.safetensors; or let "
            "torchvision fetch them once: --download."
        )
    if model is not None and not files:
        raise InputError(
            "image must name photographs to explain, for scikit-image, which brings some along, is not installed."
        )
    return Photographs(files, loaded) if loaded is not None and files else None


def explained(shown: Photographs, methods: Sequence[type[Method]], compute: Compute, pace: Pace) -> list[Row]:
    """A row for each photograph, explained for the class that the network predicts; a method that cannot says why.

    DMBP takes its short schedule, and LPR few steps; methods that learn from data first are left out.
    """
    loaded = shown.loaded
    pictures = [loaded.preprocess.picture(file) for file in shown.files]
    x = loaded.placed(torch.stack([loaded.preprocess(file) for file in shown.files]))
    chances = logits_of(loaded, x).float().softmax(1)
    target = chances.argmax(1)
    maps: dict[str, Attribution | str] = {}
    for method in methods:
        pace.begin(f"photographs  {method.title}")
        maps[method.title] = _maps(method, loaded, x, target, compute, pace)
        pace.end()
    return [
        row(
            pictures[i],
            f"Photograph: why {loaded.class_names[int(target[i])]}?",
            f"{file.name}, {loaded.name}, probability {probability_text(float(chances[i, target[i]]))}",
            {name: found if isinstance(found, str) else found[i] for name, found in maps.items()},
        )
        for i, file in enumerate(shown.files)
    ]


def _maps(
    method: type[Method], loaded: LoadedModel, x: torch.Tensor, target: torch.Tensor, compute: Compute, pace: Pace
) -> Attribution | str:
    """The maps of all photographs; in words, why there are none."""
    if issubclass(method, FittedMethod):
        return "it learns from data first: backlit fit"
    options: dict[str, Any] = {"seed": compute.seed}
    if method is LPR:
        options["steps"] = _LPR_STEPS
    if "callback" in option_names(method):
        options["callback"] = lambda step: pace.step(step.index, step.steps)
    (chosen,) = with_bounds([Chosen(method, options)], loaded.preprocess)
    try:
        made = DMBP.fast(loaded, **chosen.options) if method is DMBP else method(loaded, **chosen.options)
        return replace(made(x, target), labels=tuple(loaded.class_names[t] for t in target.tolist()))
    except BacklitError as error:
        return str(error).partition(". ")[0]
