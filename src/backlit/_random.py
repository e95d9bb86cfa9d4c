"""Random streams that follow from what they are for, and leave the caller's own stream alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def stable_seed(*parts: object) -> int:
    """A seed that follows from what it is for: the same on every machine, unrelated to that of any other purpose."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def image_bytes(image: Tensor) -> bytes:
    """The values of an image in the order of their indices, whatever its layout and device."""
    return image.detach().float().cpu().contiguous().numpy().tobytes()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw by this seed inside, and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
