"""Insertion and deletion, each by the constants of several papers."""

from __future__ import annotations

from collections.abc import Mapping

from backlit.metrics.presets import Preset, Presets
from backlit.metrics.replacement import Replacement


def published(rise: Mapping[str, object], latec: Mapping[str, object]) -> Mapping[Preset, Mapping[str, object]]:
    """Return the options of each preset that are not the defaults, from the authors' published code."""
    return {
        "dmbp": {},
        "rise": {"steps": None, "pixels_per_step": 224, "explains": "prediction", **rise},
        "latec": {"steps": None, "pixels_per_step": 50, "reduce": "max", **latec},
    }


class Insertion(Presets):
    """Insertion (Petsiuk et al. 2018, Sec. 4.1), as DMBP evaluates with it (Sec. 4.1): most relevant pixels first onto the blur."""

    presets = published(
        rise={"replacement": "folded_blur", "blur_size": 11, "blur_sigma": 5.0},
        latec={"blur_size": 15, "blur_sigma": 5.0},
    )

    name = "insertion"
    action = "reveal"
    title = "Insertion"
    summary = "probability of the target while pixels come in, most relevant first, over the blurred image"
    source = "Petsiuk et al. 2018; DMBP, Sec. 4.1"


class Deletion(Presets):
    """Deletion (Petsiuk et al. 2018, Sec. 4.1): most relevant pixels go first, to zero."""

    presets = published(rise={}, latec={})

    name = "deletion"
    action = "remove"
    title = "Deletion"
    summary = "probability of the target while pixels are set to zero, most relevant first"
    source = "Petsiuk et al. 2018"

    replacement: Replacement = "zero"
