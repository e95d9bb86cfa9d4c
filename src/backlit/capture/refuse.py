"""What cannot be explained rightly, and what to do about it: the checks of a pass, and their messages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import InputError, ModelStateError, UnsupportedOp
from backlit._state import check_state
from backlit.capture.primitives import BY_NAME, Arguments

# Messages of UnsupportedOp; {} is where.
HOOKED = "{} hooks the gradient of a signal, and may change it. Remove the hook, or the forward hook that makes it: handle.remove()"
EXPORTED = "{} is part of an exported graph, below what rules are for. Explain the nn.Module that was exported."
UNKNOWN = (
    "{} is an operation that Backlit does not know, and its result depends on the input. Declare it, "
    "backlit.capture.extend({}, kind, {!r}): methods that follow true derivatives then run, others take rules={{{!r}: rule}}. "
    "Or write it with operations that `backlit trace` lists."
)
RECURRENT = (
    "{} is a recurrent layer that runs as one operation, so no rule can act at its steps. Declare it whole for methods that "
    "follow true derivatives, backlit.capture.extend({}, 'other', {!r}), or write its cell with linear, sigmoid and tanh."
)
UNSEEN = (
    "An input of {} was computed by code that cannot be seen: a scripted or compiled function, a custom "
    "autograd.Function, or an extension ({}). Use the plain PyTorch version of that part of the model."
)
SEVERED = (
    "{} runs under torch.no_grad inside the model, which cuts the gradient. Remove it, or write .detach() on constants."
)
BEHIND = "{} writes to the memory of a signal behind autograd's back (.data, .detach()). Write to the tensor itself."
OUT = "{} is called with out=, which has no gradient. Call it without, and write with tensor.copy_(result)."
AUTOCAST = "{} runs under torch.autocast, its rule in another precision. Remove it; model.bfloat16() and x.bfloat16() work instead."
HOOKS = "Hooks on saved tensors (torch.utils.checkpoint, save_on_cpu) change what backward passes read. Switch checkpointing off."
SCRIPTED = "The module {!r} is scripted; its calls cannot be seen. Use the original nn.Module, given to torch.jit."
COMPILED = (
    "The module {!r} is compiled; its calls cannot be seen. Use the original nn.Module: model._orig_mod, or after "
    "model.compile() a copy, copy.deepcopy(model)."
)
CUT_OFF = (
    "The output does not depend on the input through operations that can be seen: the model cuts the gradient "
    "(.detach(), .data, a conversion to NumPy), looks values up by index (an embedding; explain what follows it, with its "
    "output as the input), or runs scripted or compiled code."
)


def unknown(name: str, where: str) -> str:
    """Return what to say of an operation that is in no table, by its dotted name."""
    word = name.rpartition(".")[2]
    text = RECURRENT if word.partition("_")[0] in ("lstm", "gru", "rnn") else EXPORTED if word == "default" else UNKNOWN
    return text.format(where, name, word, word)


def check_model(model: nn.Module, inputs: tuple[Tensor, ...], *, seen: bool = True) -> None:
    """Refuse what would be explained wrongly, before anything runs; ``seen`` says whether the model's operations must be seen.

    Raises:
        InputError: If ``model`` is no ``nn.Module``, or the inputs cannot have gradients.
        UnsupportedOp: If a submodule is scripted or compiled, so that its calls cannot be seen.
        ModelStateError: If batch norm or dropout is in train mode, or hooks or tensors are as :func:`check_state` says.
    """
    check_state(model)
    if torch.is_inference_mode_enabled() or any(x.is_inference() or not x.is_floating_point() for x in inputs):
        raise InputError(
            f"inputs must be floating-point tensors outside torch.inference_mode, but are {[x.dtype for x in inputs]}"
            f"{', under it' if torch.is_inference_mode_enabled() else ''}. Use torch.no_grad, clone them, convert them."
        )
    for name, module in model.named_modules():
        where = name or "<model>"
        scripted = isinstance(module, torch.jit.ScriptModule)
        if seen and (
            scripted or type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None)
        ):
            raise UnsupportedOp((SCRIPTED if scripted else COMPILED).format(where))
        stochastic = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        tracking = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        if module.training and (stochastic or tracking or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            raise ModelStateError(
                f"model must be in eval mode, but {where!r} ({type(module).__name__}) is in train mode. Call model.eval()."
            )


def check_mode(name: str, arguments: Arguments, where: str) -> None:
    """Refuse training behaviour; drop the arguments that only training needs.

    Raises:
        ModelStateError: If the call is training.
    """
    training = bool(arguments.pop("training", False)) if BY_NAME[name].has("random") else arguments.get("training")
    if name == "dropout" and arguments.pop("p", 0.5) == 0:
        return
    if training or arguments.get("dropout_p"):
        raise ModelStateError(
            f"model must be in eval mode, but the {name} at {where} is training. Call model.eval(); where it is called as "
            "a function, pass training=self.training there (dropout_p=0.0 to attention). A batch norm without running "
            "statistics mixes the images of a batch even then, and cannot be explained."
        )


def check_output(output: Any, n: int) -> None:
    """Refuse an output that is not one (n, k) tensor.

    Raises:
        InputError: With what it is.
    """
    floats = isinstance(output, Tensor) and output.is_floating_point()
    if not floats or output.dim() != 2 or output.shape[0] != n or output.shape[1] == 0:
        found = (
            f"{output.dtype} of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        )
        raise InputError(
            f"model must return one tensor of logits (n, k), one row an image, but returned {found} for {n}. Wrap it in "
            "a module whose forward returns one score per class (a global mean, say)."
        )
