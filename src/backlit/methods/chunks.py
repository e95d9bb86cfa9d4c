"""Run a batch in chunks that fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

_SMALL = {"cpu": 4, "cuda": 8}
_LARGEST = {"cpu": 16, "cuda": 256}
_SHARE = 0.5  # of the free memory: what a chunk may take


def run_in_chunks(
    run: Callable[[slice], Result],
    bytes_per_image: Callable[[Result], float],
    *,
    n: int,
    chunk: int | None,
    device: torch.device,
) -> list[Result]:
    """Run images 0 to n - 1 by chunks and return the results in order.

    The first chunk is small and tells what an image costs; the later ones are as large as the free memory allows. When
    memory runs out all the same, the chunk halves and only its own images are repeated.

    Args:
        run: What to do with one chunk.
        bytes_per_image: Peak memory of one image, from the result of a chunk.
        n: Number of images.
        chunk: A fixed chunk size, or None.
        device: Where the memory is.

    Raises:
        RuntimeError: The device's own out-of-memory error, if one image alone does not fit.
    """
    results: list[Result] = []
    size = first_size(chunk, device)
    start = 0
    while start < n:
        try:
            result = run(slice(start, min(start + size, n)))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or size == 1:
                raise
            size = max(1, min(size, n - start) // 2)
            chunk = chunk or size  # do not grow again to where it failed
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        start += size
        results.append(result)
        if chunk is None:
            fit = int(_SHARE * free_memory(device) / max(bytes_per_image(result), 1.0))
            size = max(1, min(fit, _LARGEST.get(device.type, 16)))
    return results


def first_size(chunk: int | None, device: torch.device) -> int:
    """Number of images of the first chunk: a fixed ``chunk``, or few, from which to learn what an image costs."""
    return chunk or _SMALL.get(device.type, 4)


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated on the device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # no such reading on this system
        return 2.0**32


def out_of_memory(error: BaseException) -> bool:
    """Tell whether the device, or the host, has no more memory."""
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "not enough memory" in text
        or "can't allocate" in text
    )
