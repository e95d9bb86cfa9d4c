"""Draw the picture of docs/cards.md: three cards of scikit-image's cat, a photograph by Stefan van der Walt under CC0.

    uv run --with scikit-image python docs/make_cards.py squeezenet1_0.safetensors

with torchvision's weights of SqueezeNet 1.0 (BSD-3-Clause) as safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

import backlit
from backlit.report.card import card, scales

loaded = backlit.load_model("squeezenet1_0", weights=sys.argv[1])
photo = Path(skimage.__file__).with_name("data") / "chelsea.png"
x = loaded.preprocess(photo)[None]
(dmbp,) = backlit.DMBP.fast(loaded).each(x, [["Egyptian cat"]])
cat, bus = backlit.GradCAM(loaded).each(x, [["Egyptian cat", "school bus"]])
explanations = [dmbp, cat, bus]
picture = loaded.preprocess.picture(photo, times=2)
cards = [card(e, picture, scale=limit) for e, limit in zip(explanations, scales(explanations), strict=True)]
width = max(c.shape[1] for c in cards)
padded = [np.pad(c, ((0, 0), (0, width - c.shape[1]), (0, 0)), constant_values=255) for c in cards]
Image.fromarray(np.concatenate(padded)).save(Path(__file__).with_name("cards.jpg"), quality=84, subsampling=0)
