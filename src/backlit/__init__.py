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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from backlit._version import __version__

if TYPE_CHECKING:
    from backlit import capture, methods, metrics, models, rules
    from backlit._errors import BacklitError, FileError, InputError, ModelStateError, RuleMismatch, UnsupportedOp
    from backlit.attribution import Attribution
    from backlit.bench.compare import compare
    from backlit.comparison import Comparison
    from backlit.methods import (
        CAM,
        CAMERAS,
        DMBP,
        L2X,
        LIME,
        LPR,
        LRP,
        METHODS,
        MIPIN,
        PDA,
        PFV,
        RISE,
        TRGBP,
        XRAI,
        AttentionRollout,
        BBp,
        BlurIG,
        Deconvnet,
        DeepLIFT,
        DeepSHAP,
        DeepTaylor,
        ExcitationBackprop,
        ExpectedGradients,
        ExtremalPerturbation,
        FullGrad,
        GradCAM,
        GradCAMPlusPlus,
        Gradient,
        GradientRollout,
        GradientXInput,
        GuidedBackprop,
        GuidedGradCAM,
        GuidedIG,
        HiResCAM,
        IntegratedGradients,
        KernelSHAP,
        LayerCAM,
        LeGrad,
        LibraGrad,
        MeaningfulPerturbation,
        NormGrad,
        Occlusion,
        PatternAttribution,
        PatternNet,
        Saliency,
        ScoreCAM,
        SmoothGrad,
        SquaredSmoothGrad,
        VarGrad,
        XGradCAM,
    )
    from backlit.methods.function import explain_func
    from backlit.methods.lookup import find_method
    from backlit.methods.scored import scored
    from backlit.methods.target import Contrast, Unit
    from backlit.metrics import METRICS, Examples
    from backlit.models import LoadedModel, load_model
    from backlit.rules import RuleTable, check_rule

__all__ = [
    "CAM",
    "CAMERAS",
    "DMBP",
    "L2X",
    "LIME",
    "LPR",
    "LRP",
    "METHODS",
    "METRICS",
    "MIPIN",
    "PDA",
    "PFV",
    "RISE",
    "TRGBP",
    "XRAI",
    "AttentionRollout",
    "Attribution",
    "BBp",
    "BacklitError",
    "BlurIG",
    "Comparison",
    "Contrast",
    "Deconvnet",
    "DeepLIFT",
    "DeepSHAP",
    "DeepTaylor",
    "Examples",
    "ExcitationBackprop",
    "ExpectedGradients",
    "ExtremalPerturbation",
    "FileError",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientRollout",
    "GradientXInput",
    "GuidedBackprop",
    "GuidedGradCAM",
    "GuidedIG",
    "HiResCAM",
    "InputError",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "LeGrad",
    "LibraGrad",
    "LoadedModel",
    "MeaningfulPerturbation",
    "ModelStateError",
    "NormGrad",
    "Occlusion",
    "PatternAttribution",
    "PatternNet",
    "RuleMismatch",
    "RuleTable",
    "Saliency",
    "ScoreCAM",
    "SmoothGrad",
    "SquaredSmoothGrad",
    "Unit",
    "UnsupportedOp",
    "VarGrad",
    "XGradCAM",
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
    "scored",
]

_HOMES = {
    "_errors": "BacklitError FileError InputError ModelStateError RuleMismatch UnsupportedOp",
    "attribution": "Attribution",
    "bench.compare": "compare",
    "comparison": "Comparison",
    "methods": (
        "CAM CAMERAS DMBP L2X LIME LPR LRP METHODS MIPIN PDA PFV RISE TRGBP XRAI AttentionRollout BBp BlurIG "
        "Deconvnet DeepLIFT DeepSHAP DeepTaylor ExcitationBackprop ExpectedGradients ExtremalPerturbation FullGrad "
        "GradCAM GradCAMPlusPlus Gradient GradientRollout GradientXInput GuidedBackprop GuidedGradCAM GuidedIG "
        "HiResCAM IntegratedGradients KernelSHAP LayerCAM LeGrad LibraGrad MeaningfulPerturbation NormGrad Occlusion "
        "PatternAttribution PatternNet Saliency ScoreCAM SmoothGrad SquaredSmoothGrad VarGrad XGradCAM"
    ),
    "methods.function": "explain_func",
    "methods.lookup": "find_method",
    "methods.scored": "scored",
    "methods.target": "Contrast Unit",
    "metrics": "METRICS Examples",
    "models": "LoadedModel load_model",
    "rules": "RuleTable check_rule",
}
"""Where each name is defined: it is imported when it is asked for, so that the command line's help needs no torch."""
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
_MODULES = ("attribution", "bench", "capture", "data", "inverse", "methods", "metrics", "models", "report", "rules")

if not TYPE_CHECKING:  # a type checker sees the imports above, and every other name as the error that it is

    def __getattr__(name: str) -> Any:
        if name == "bench":  # nothing in itself
            import_module("backlit.bench.compare")
        if name in _MODULES:
            return import_module(f"backlit.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'backlit' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"backlit.{_HOME[name]}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
