"""A method as one function of model, inputs and targets, as other tools expect it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlit._errors import InputError, check, shown
from backlit._state import check_module
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

    Raises:
        InputError: If an argument cannot be used.
    """
    network = network_of(model)
    check_module(network)
    parameter = next(network.parameters(), None)
    where = device or (parameter.device if parameter is not None else "cpu")
    x = _tensor("inputs", inputs).to(where)
    if parameter is not None and x.is_floating_point():
        x = x.to(parameter.dtype)
    target = targets if targets is None or isinstance(targets, int) else _tensor("targets", targets).long()
    maps = find_method(method, METHODS)(model, **options).attribute(x, target)
    return maps.float().cpu().numpy() if maps.dtype == torch.bfloat16 else maps.cpu().numpy()


def _tensor(name: str, given: object) -> Tensor:
    """Return numbers as a tensor.

    Raises:
        InputError: If they are none.
    """
    try:
        values = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be an array or a tensor of numbers, but is {shown(given)}.") from error
    check(
        not values.is_meta and values.layout == torch.strided, name, values, "a dense array or tensor that holds values"
    )
    return values
