"""Fits that a table needs: made once for a network, on the places' own images for that ("fit"), and kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from backlit._errors import InputError
from backlit._files import make_folder
from backlit._json import JsonObject
from backlit.bench.chosen import fitted_methods
from backlit.bench.papers.exhibit import EMBEDDED, NeededFit
from backlit.bench.papers.places import Places
from backlit.bench.source import dataset
from backlit.bench.suite import source_of
from backlit.data.batches import Batches
from backlit.models import LoadedModel, load_model
from backlit.models.digits import digits_images

DATA = "fit"
"""What the places call the images that methods learn from: none of those that a table reports."""


def learned(
    fit: NeededFit,
    network: str,
    places: Places,
    out: Path,
    device: str,
    say: Callable[[str], object] = lambda text: None,
) -> Path:
    """Return the file of a fit, which is made if it is not there.

    Raises:
        InputError: If there are no images to learn from, or the network cannot be fitted.
        FileError: If the file cannot be written.
    """
    file = out / f"{fit.name}.safetensors"
    if file.is_file():
        return file
    planned = places.network(network)
    assert planned is not None
    changes: JsonObject = dict(planned.preprocessing)
    loaded = load_model(planned.model, weights=planned.weights, device=device, **changes)
    make_folder(out)
    data, description = _batches(places, network, loaded)
    options: JsonObject = dict(fit.options)
    say(f"{fit.name} learns from {description}")
    kind = next(method for method in fitted_methods() if method.artefact == fit.kind)
    kind.fit(loaded.network, data, out=file, description=description, **options)
    return file


def _batches(places: Places, network: str, loaded: LoadedModel) -> tuple[Any, str]:
    if network == EMBEDDED:
        images, labels = digits_images()
        x = loaded.preprocess.batch(images)
        return list(zip(x.split(64), labels.split(64), strict=True)), f"{len(x)} embedded digits"
    told = places.images(network, DATA, None)
    if told is None:
        raise InputError(f"places: a [[data]] named {DATA!r} must say what to learn from, but there is none.")
    samples = dataset(source_of(told, 0))
    batches = Batches(samples, loaded.preprocess, batch=32, classes=len(loaded.class_names))
    return batches, f"{len(samples)} images of {DATA}"
