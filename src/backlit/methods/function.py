"""A method as one function of model, inputs and targets, as other tools expect it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlit.methods import METHODS
from backlit.methods.lookup import find_method
from backlit.methods.named import Named, network_of


def explain_func(
    model: nn.Module | Named,
    inputs: np.ndarray | Tensor,
    targets: np.ndarray | Tensor | int | None = None,
    *,
    method: str = "dmbp",
    device: str | torch.device | None = None,
    **options: Any,
) -> np.ndarray:
    """A map as a function of model, inputs and targets: the form that Quantus calls an ``explain_func``.

    Args:
        model: The network, in eval mode, or what ``load_model`` returned.
        inputs: Images (n, c, h, w).
        targets: Class indices, one or (n,); None for the predicted classes.
        method: Name of the method.
        device: Where to compute; None for the model's device.
        **options: Options of the method, ``steps=40`` for example.

    Returns:
        An array shaped as ``inputs``; of one channel for class activation maps.
    """
    parameter = next(network_of(model).parameters(), None)
    where = device or (parameter.device if parameter is not None else "cpu")
    x = torch.as_tensor(inputs).to(where)
    if parameter is not None and x.is_floating_point():
        x = x.to(parameter.dtype)
    target = targets if targets is None or isinstance(targets, int) else torch.as_tensor(targets).long()
    maps = find_method(method, METHODS)(model, **options).attribute(x, target)
    return maps.float().cpu().numpy() if maps.dtype == torch.bfloat16 else maps.cpu().numpy()
