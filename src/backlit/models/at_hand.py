"""A network for photographs without being told which: the first whose published weights are on this machine."""

from __future__ import annotations

import torch

from backlit._errors import FileError, InputError
from backlit.models.load import load_model
from backlit.models.loaded import LoadedModel

AT_HAND = ("squeezenet1_0", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnet50")
"""Networks of torchvision that are looked for in torch's cache, the fastest first."""


def load_at_hand(*, device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32) -> LoadedModel | None:
    """Load the first of :data:`AT_HAND` whose weights torch's cache holds; None if it holds none. Nothing is fetched."""
    for name in AT_HAND:
        try:
            return load_model(name, device=device, dtype=dtype)
        except (InputError, FileError):  # not there, or damaged: the next may be
            continue
    return None
