"""Draw the gallery: a cat and a coffee in one picture, explained for both of them by every method.

    uv run --group dev python docs/make_gallery.py [NAME ...]

Needs BACKLIT_SHARED: SqueezeNet 1.0 with torchvision's weights, and images for the methods that learn from data. Each method
writes docs/gallery/NAME.jpg as soon as it is done; without names, those that have none yet. docs/make_reference.py puts them
into the pages. The photographs come with scikit-image: the cat Chelsea by Stefan van der Walt, the coffee by Rachel Michetti,
both CC0.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from make_photographs import CLASSES, cat_and_coffee, network
from PIL import Image

from backlit import InputError, LoadedModel, UnsupportedOp
from backlit.data import load_examples, select
from backlit.methods import METHODS, FittedMethod, Method
from backlit.methods.base import NO_NETWORK
from backlit.report.card import card, scales

OUT = Path(__file__).with_name("gallery")
SIDE = 192  # pixels of a picture's two halves
OPTIONS: dict[str, dict[str, Any]] = {
    "pda": {"stride": 4, "samples": 4},  # by its defaults, half a million passes
}
"""Options of methods that are not drawn by their defaults: told on the page."""
LEARNED: dict[str, dict[str, Any]] = {"mip_in": {"classes": (285, 967), "start": "features"}}
"""Options of what is learned: for 1,000 classes, and from the image on, it takes hours."""
IMAGES = 200  # to learn from


def made(kind: type[Method], loaded: LoadedModel) -> Method:
    """The method for the network, fitted to images of the shared folder if it learns from data."""
    options = OPTIONS.get(kind.name, {})
    if not issubclass(kind, FittedMethod):
        return kind(loaded, **options)
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from _common import half, shared_data

    batches = [
        load_examples(select(shared_data(), places), loaded.preprocess)
        for places in np.array_split(half("dev", IMAGES), IMAGES // 20)
    ]
    learned = kind.fit(loaded, [(b.inputs, b.target) for b in batches], **LEARNED.get(kind.name, {}))
    return kind(loaded, fitted=learned, **options)


def _passes(kind: type[Method]) -> float:
    return kind(NO_NETWORK, **OPTIONS.get(kind.name, {})).forward_passes


def draw(kind: type[Method], loaded: LoadedModel, file: Path) -> None:
    """Write the map of each class over the picture, side by side."""
    x, shown = loaded.preprocess(file)[None], loaded.preprocess.picture(file, times=2)
    start = time.perf_counter()
    explanations = made(kind, loaded).each(x, [list(CLASSES)])
    cards = [
        Image.fromarray(card(one, shown, scale=limit, style="overlay")).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        for one, limit in zip(explanations, scales(explanations), strict=True)
    ]
    whole = Image.new("RGB", (2 * SIDE + 4, SIDE), "white")
    for i, one in enumerate(cards):
        whole.paste(one, (i * (SIDE + 4), 0))
    OUT.mkdir(exist_ok=True)
    whole.save(OUT / f"{kind.name}.jpg", quality=80)
    print(f"{kind.name}: {time.perf_counter() - start:.1f} s", flush=True)


def main() -> None:
    loaded, wanted = network(), sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        cat_and_coffee().save(file)
        for kind in sorted(METHODS, key=_passes):
            if kind.name in wanted or (not wanted and not (OUT / f"{kind.name}.jpg").exists()):
                try:
                    draw(kind, loaded, file)
                except (InputError, UnsupportedOp) as error:
                    print(f"{kind.name} has no picture: {error}", flush=True)


if __name__ == "__main__":
    main()
