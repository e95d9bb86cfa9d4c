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
    """Draw by this seed inside, on the CPU and this device, and leave the caller's random states as they were.

    ``torch.manual_seed`` would seed every GPU of the machine, whoever uses it.
    """
    cuda = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else None
    generators = [torch.default_generator, *([] if cuda is None else [cuda])]
    states = [g.get_state() for g in generators]
    try:
        for g in generators:
            g.manual_seed(seed)
        yield
    finally:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)
