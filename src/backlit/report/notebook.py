"""An attribution as a notebook shows it: the cards of its first images."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from backlit.attribution import Attribution
from backlit.report.card import card, class_of, numbers_of
from backlit.report.kinds import title_of
from backlit.report.trust import trust

MOST_CARDS = 4  # of one result: a notebook keeps what it shows
_QUALITY = 92  # of JPEG


def as_html(explanation: Attribution) -> str:
    """Return cards of the first images as HTML that loads nothing, with class names and numbers as text."""
    shown = [explanation[i] for i in range(min(len(explanation), MOST_CARDS))]
    rest = len(explanation) - len(shown)
    more = f"<p>… and {rest} more: index the result, or call its figure().</p>" if rest else ""
    head = f"<p><code>{html.escape(repr(explanation))}</code></p>"
    return f"<div>{head}{''.join(_one(explanation) for explanation in shown)}{more}</div>"


def as_png(explanation: Attribution) -> bytes | None:
    """Return cards of the first images, one above the other, as a PNG file; None of an empty result."""
    if not len(explanation):
        return None
    cards = [card(explanation[i]) for i in range(min(len(explanation), MOST_CARDS))]
    width = max(picture.shape[1] for picture in cards)
    padded = [np.pad(c, ((0, 0), (0, width - c.shape[1]), (0, 0)), constant_values=255) for c in cards]
    return _encoded(np.concatenate(padded), "PNG")


def _one(explanation: Attribution) -> str:
    """One image's card, with what it says for those who do not see it."""
    verdict = trust(explanation)
    what = f"{title_of(explanation)} for {class_of(explanation)}, {numbers_of(explanation)}."
    said = " ".join([what, verdict.word, *verdict.lines])
    data = base64.b64encode(_encoded(card(explanation), "JPEG", quality=_QUALITY, subsampling=0)).decode()
    alt = html.escape(" ".join(said.split()), quote=True)
    return f'<img style="max-width:100%;height:auto" alt="{alt}" src="data:image/jpeg;base64,{data}">'


def _encoded(picture: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()
