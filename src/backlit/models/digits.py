"""The embedded network: a small ReLU CNN for handwritten digits, with real digits and two-digit scenes to explain.

The digits are scikit-learn's ``load_digits`` (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
UCI Machine Learning Repository, CC BY 4.0). ``scripts/train_digits.py`` trains the network and packs the digits that
it did not see in training, so nothing here needs scikit-learn.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._errors import InputError
from backlit.models.loaded import LoadedModel
from backlit.models.preprocess import Preprocess
from backlit.models.request import Request
from backlit.models.weights import read_weights

NAME = "digits"
CANVAS = 32  # pixels a side: the network's input
SINGLE = 24  # pixels a side of a digit that stands alone
IN_SCENE = 16  # pixels a side of a digit in a two-digit scene

WEIGHTS = Path(__file__).with_name("digits.safetensors")
DATA = Path(__file__).with_name("digits_data.safetensors")
CLASS_NAMES = tuple(str(digit) for digit in range(10))
# Mean 0: the black background is then the same number as the convolutions' zero padding.
PREPROCESS = Preprocess(size=(CANVAS, CANVAS), mean=(0.0,), std=(0.3,), channels=1)


class Labelled(NamedTuple):
    """Images and their true classes."""

    images: UInt8[Tensor, "n h w"]
    labels: Int64[Tensor, "n ..."]


class DigitsNet(nn.Module):
    """65,000 parameters, every convolution with a bias: batch norm, max-pool, a residual add, a strided convolution.

    The activations are spelt in three ways on purpose: a demo should show that the spelling does not matter.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv4 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv5 = nn.Conv2d(32, 48, 3, stride=2, padding=1)
        self.conv6 = nn.Conv2d(48, 64, 3, padding=1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n k"]:
        """Return the logits, the mean over positions of each class's evidence."""
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.relu(self.conv2(x))
        x = F.relu(x + self.conv4(F.relu(self.conv3(x))))
        x = torch.relu(self.conv5(x))
        x = torch.relu(self.conv6(x))
        return self.linear(x.mean((2, 3)))


@cache
def _packed() -> dict[str, Tensor]:
    return load_file(DATA)


def scale(digit: UInt8[np.ndarray, "8 8"], side: int) -> UInt8[np.ndarray, "side side"]:
    """Enlarge a digit to ``side`` pixels (bicubic, in Pillow's integer arithmetic: the same on every machine)."""
    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))


def paste(canvas: UInt8[np.ndarray, "h w"], digit: UInt8[np.ndarray, "s s"], row: int, column: int) -> None:
    """Draw ``digit`` onto ``canvas``, in place, the brighter pixel winning."""
    side = digit.shape[0]
    window = canvas[row : row + side, column : column + side]
    np.maximum(window, digit, out=window)


def compose_scene(
    pair: UInt8[np.ndarray, "2 8 8"], random: np.random.Generator, side: int = IN_SCENE
) -> UInt8[np.ndarray, "h w"]:
    """Draw two digits side by side or one over the other (even odds), shifted at random, without overlap."""
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    half, free = CANVAS // 2, CANVAS - side
    upright = bool(random.integers(2))
    for place, digit in enumerate(pair):
        along = place * half + int(random.integers(half - side + 1))
        across = int(random.integers(free + 1))
        row, column = (along, across) if upright else (across, along)
        paste(canvas, scale(digit, side), row, column)
    return canvas


def draw_pairs(
    digits: UInt8[np.ndarray, "m 8 8"], labels: np.ndarray, n: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw ``n`` pairs of indices into ``digits`` whose labels differ."""
    pairs: list[tuple[int, int]] = []
    while len(pairs) < n:
        first, second = (int(i) for i in random.integers(len(digits), size=2))
        if labels[first] != labels[second]:
            pairs.append((first, second))
    return pairs


def digits_images() -> Labelled:
    """Return the 360 held-out digits, centred on the network's canvas: uint8 (n, 32, 32) and int64 labels (n,).

    White on black; the network was not trained on them.
    """
    packed = _packed()
    canvases = np.zeros((len(packed["images"]), CANVAS, CANVAS), np.uint8)
    margin = (CANVAS - SINGLE) // 2
    for canvas, digit in zip(canvases, packed["images"].numpy(), strict=True):
        paste(canvas, scale(digit, SINGLE), margin, margin)
    return Labelled(torch.from_numpy(canvases), packed["labels"].long())


def two_digit_scenes(n: int, seed: int = 0) -> Labelled:
    """Compose ``n`` scenes of two held-out digits of different classes: uint8 (n, 32, 32), int64 labels (n, 2).

    The labels are in reading order (left or upper digit first). The same seed gives the same scenes.

    Raises:
        InputError: ``n`` is not positive.

    """
    if n < 1:
        raise InputError(f"n: must be at least 1 scene, found {n}.")
    digits, labels = _packed()["images"].numpy(), _packed()["labels"].numpy()
    random = np.random.default_rng(seed)
    pairs = draw_pairs(digits, labels, n, random)
    images = np.stack([compose_scene(digits[list(pair)], random) for pair in pairs])
    return Labelled(torch.from_numpy(images), torch.from_numpy(labels[np.array(pairs)]).long())


def demo_scenes() -> Labelled:
    """Return the twelve packed two-digit scenes, the same bytes always: uint8 (12, 32, 32), int64 labels (12, 2)."""
    packed = _packed()
    return Labelled(packed["scenes"].clone(), packed["scene_labels"].long())


def load(request: Request) -> LoadedModel:
    """Build the network with the embedded weights, unless a file or random weights were asked for."""
    if request.weights is None and not request.random:
        request = replace(request, weights=read_weights(WEIGHTS))
    classes = len(CLASS_NAMES)
    if request.weights is not None:
        classes = request.weights.rows("linear.weight") or classes
    network = request.build(lambda: DigitsNet(classes))
    return request.finish(network, PREPROCESS, request.class_names(CLASS_NAMES, classes))
