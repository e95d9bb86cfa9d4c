"""A network's fingerprint: the same parameters and buffers give the same one, on any device."""

from __future__ import annotations

import hashlib
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from backlit._errors import ModelStateError


def fingerprint(network: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Return the sha256 (64 hexadecimal digits) over the names, shapes, types and bytes of every parameter and buffer.

    One changed bit, a renamed entry or another dtype changes it; the device, memory layout, mode and ``requires_grad``
    do not. It says nothing about the code that uses the parameters. With ``dtype``, floating-point entries are taken as
    that, so that a network and its copy in a higher precision are the same.

    Raises:
        ModelStateError: a parameter has no values yet (lazy, or on the meta device).

    """
    digest = hashlib.sha256()
    entries = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    for name, tensor in sorted(entries, key=lambda entry: entry[0]):
        if tensor.is_meta or is_lazy(tensor):
            raise ModelStateError(
                f"model: {name!r} has no values yet (lazy or meta); run or load the model before using it."
            )
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        _add(digest, name, tensor)
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Return the sha256 (64 hexadecimal digits) over a tensor's type, shape and bytes, whatever its device and layout.

    Raises:
        ModelStateError: It has no values (on the meta device).

    """
    if tensor.is_meta:
        raise ModelStateError("A tensor on the meta device has no values; make it on another device.")
    digest = hashlib.sha256()
    _add(digest, str(tensor.layout), tensor if tensor.layout == torch.strided else tensor.to_dense())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Add a tensor; the header's length is part of it, so that no two lists of entries hash the same stream of bytes."""
    header = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode()
    digest.update(len(header).to_bytes(8, "little"))
    digest.update(header)
    digest.update(_bytes(tensor.dequantize() if tensor.is_quantized else tensor).numpy().data)


def _bytes(tensor: Tensor) -> Tensor:
    """View ``tensor`` as bytes on the CPU (numpy knows no bfloat16), in the order of its indices."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    if flat.stride(0) != 1:  # one number of a column: contiguous, by its strides not
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
