"""Backlit: attribution maps from modified and learned back-propagation, and numbers for how far each can be trusted.

>>> import backlit
>>> digits = backlit.load_model("digits")
>>> images, labels = backlit.models.digits.digits_images()
>>> x = digits.preprocess(images[0])[None]
>>> explanation = backlit.GuidedBackprop(digits.network)(x, target=int(labels[0]))
>>> explanation.values.shape
torch.Size([1, 1, 32, 32])
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlit import capture, methods, metrics, models, rules
from backlit._errors import BacklitError, FileError, InputError, ModelStateError, RuleMismatch, UnsupportedOp
from backlit._version import __version__
from backlit.attribution import Attribution
from backlit.bench.compare import compare
from backlit.bench.comparison import Comparison
from backlit.methods import (
    DMBP,
    LPR,
    LRP,
    METHODS,
    MIPIN,
    TRGBP,
    BBp,
    Deconvnet,
    DeepLIFT,
    DeepSHAP,
    DeepTaylor,
    ExcitationBackprop,
    FullGrad,
    GradCAM,
    Gradient,
    GradientXInput,
    GuidedBackprop,
    GuidedGradCAM,
    PatternAttribution,
    PatternNet,
    Saliency,
)
from backlit.methods.lookup import explain_with, find_method
from backlit.metrics import METRICS, Examples
from backlit.models import LoadedModel, load_model
from backlit.rules import RuleTable, check_rule

__all__ = [
    "DMBP",
    "LPR",
    "LRP",
    "METHODS",
    "METRICS",
    "MIPIN",
    "TRGBP",
    "Attribution",
    "BBp",
    "BacklitError",
    "Comparison",
    "Deconvnet",
    "DeepLIFT",
    "DeepSHAP",
    "DeepTaylor",
    "Examples",
    "ExcitationBackprop",
    "FileError",
    "FullGrad",
    "GradCAM",
    "Gradient",
    "GradientXInput",
    "GuidedBackprop",
    "GuidedGradCAM",
    "InputError",
    "LoadedModel",
    "ModelStateError",
    "PatternAttribution",
    "PatternNet",
    "RuleMismatch",
    "RuleTable",
    "Saliency",
    "UnsupportedOp",
    "__version__",
    "capture",
    "check_rule",
    "compare",
    "explain_func",
    "find_method",
    "load_model",
    "methods",
    "metrics",
    "models",
    "rules",
]


def explain_func(
    model: nn.Module,
    inputs: np.ndarray | Tensor,
    targets: np.ndarray | Tensor | int | None = None,
    *,
    method: str = "dmbp",
    device: str | torch.device | None = None,
    **options: Any,
) -> np.ndarray:
    """A map as a function of model, inputs and targets: the form that Quantus calls an ``explain_func``.

    Args:
        model: The network, in eval mode.
        inputs: Images (n, c, h, w).
        targets: Class indices, one or (n,); None for the predicted classes.
        method: Name of the method.
        device: Where to compute; None for the model's device.
        **options: Options of the method, ``steps=40`` for example.

    Returns:
        An array shaped as ``inputs``; of one channel for class activation maps.
    """
    return explain_with(METHODS, model, inputs, targets, method, device, options)
