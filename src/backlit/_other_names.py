"""What other libraries call an argument, and what to write here."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from backlit._errors import InputError, nearest

P = ParamSpec("P")
Result = TypeVar("Result")

_SAMPLES = "the option samples of the methods that draw"
_STEPS = "the option steps of the method"
_CHUNK = "the option chunk of the method: how many images run at once"
HERE = {
    # Captum
    "baselines": "the option baseline of the method (reference of DeepLIFT, references of DeepSHAP and ExpectedGradients)",
    "n_steps": _STEPS,
    "n_samples": _SAMPLES,
    "nt_samples": _SAMPLES,
    "nt_type": "the method: SmoothGrad, SquaredSmoothGrad or VarGrad, of any other (of=)",
    "stdevs": "the option sigma of SmoothGrad, a share of the image's range",
    "internal_batch_size": _CHUNK,
    "perturbations_per_eval": _CHUNK,
    "n_perturb_samples": _SAMPLES,
    "return_convergence_delta": "nothing: a result has it, explanation.completeness['gap']",
    "abs": "the method: Saliency has the magnitude, Gradient the sign; explanation.heatmap('abs') takes it afterwards",
    "multiply_by_inputs": "the method: GradientXInput in the place of Gradient; times_input=True of guided backprop",
    "sliding_window_shapes": "the option window of Occlusion",
    "strides": "the option stride of Occlusion",
    "feature_mask": "the option labels of LIME and KernelSHAP",
    "attribute_to_layer_input": "the option layer of the class activation maps",
    "relu_attributions": "the method: GradCAM rectifies its map",
    "forward_func": "model, a torch.nn.Module",
    # pytorch-grad-cam
    "input_tensor": "inputs, the first argument",
    "targets": "target; several classes an image: method.each(inputs, targets)",
    "target_layers": "the option layer of the method",
    "aug_smooth": "the method: SmoothGrad(of=...)",
    "eigen_smooth": "no option: no method here has it",
}
"""What the names of Captum's and pytorch-grad-cam's arguments are here."""


def written_here(name: str) -> str:
    """Return a sentence on what to write in the place of another library's name; nothing where the name is none's."""
    return f" In Backlit that is {HERE[name]}." if name in HERE else ""


def says_what_to_write(function: Callable[P, Result]) -> Callable[P, Result]:
    """Refuse keywords that the function does not know, with what to write instead."""
    known = tuple(signature(function).parameters)

    @wraps(function)
    def checked(*arguments: P.args, **keywords: P.kwargs) -> Result:
        for name in keywords:
            if name not in known:
                raise InputError(
                    f"{name!r} is no argument of {function.__name__.strip('_')}, which takes {', '.join(known[1:])}."
                    f"{written_here(name) or nearest(name, known)}"
                )
        return function(*arguments, **keywords)

    return checked
