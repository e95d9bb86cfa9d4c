"""The state of a network in which its explanation would be wrong, or fail somewhere else for a reason that does not show."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.nn.modules import module as module_hooks
from torch.nn.parameter import is_lazy

from backlit._errors import InputError, ModelStateError, UnsupportedOp

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_EXPLAINERS = ("zennit", "captum", "pytorch_grad_cam", "torchcam", "lxt", "shap")


def check_state(model: nn.Module) -> None:
    """Refuse a network that is wrapped, hooked or made in a way that an explanation cannot go through.

    Raises:
        InputError: If ``model`` is no ``nn.Module``, or the call stands inside a transform of torch.func.
        UnsupportedOp: If a submodule computes by code that cannot be seen: quantized, or on copies of itself.
        ModelStateError: If hooks would change the gradients, or if its tensors hold no values or know no gradients.
    """
    check_module(model)
    if functorch.peek_interpreter_stack() is not None:
        raise InputError(
            "inputs must be ordinary tensors, but are inside a transform of torch.func (vmap, grad, jvp). Call the method outside "
            "of it, on the whole batch."
        )
    _check_hooks("<every module>", module_hooks._global_backward_hooks, module_hooks._global_backward_pre_hooks)
    for name, module in model.named_modules():
        where = f"{name or '<model>'!r} ({type(module).__name__})"
        _check_hooks(where, module._backward_hooks, module._backward_pre_hooks)
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            library = _module_of(hook).partition(".")[0]
            if library in _EXPLAINERS:
                raise ModelStateError(
                    f"model must be without hooks of other libraries, but {where} has one of {library}. Remove it: "
                    "composite.remove(), handle.remove(), or the end of that library's with block."
                )
        _check_kind(module, where)
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                _check_tensor(tensor, f"{name}.{leaf}" if name else leaf)


def check_module(model: object) -> None:
    """Refuse what is no network.

    Raises:
        InputError: If ``model`` is no ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model must be a torch.nn.Module, but is {type(model).__name__}. Wrap a function in a module."
        )


def _module_of(hook: Any) -> str:
    """The dotted path of the code that a hook runs."""
    while hasattr(hook, "func"):  # a partial
        hook = hook.func
    owner = getattr(hook, "__self__", hook)
    return getattr(hook, "__module__", None) or type(owner).__module__


def _check_hooks(where: str, *hooks: Any) -> None:
    if any(hooks):
        raise ModelStateError(
            f"model must be without backward hooks, which change gradients, but {where} has one. Remove it by the handle that "
            "registering returned: handle.remove(); where another library left it, module._backward_hooks.clear() and "
            "module._backward_pre_hooks.clear()."
        )


def _check_kind(module: nn.Module, where: str) -> None:
    if type(module).__module__.startswith(_QUANTIZED):
        raise UnsupportedOp(
            f"{where} is quantized; its arithmetic has no gradient. Explain the float model that it was made of."
        )
    parallel = isinstance(module, nn.DataParallel) and module.device_ids
    if parallel or isinstance(module, nn.parallel.DistributedDataParallel):
        raise UnsupportedOp(
            f"{where} copies the model to other threads or processes. Explain what it holds: model.module."
        )


def _check_tensor(tensor: Tensor, name: str) -> None:
    if is_lazy(tensor):
        raise ModelStateError(
            f"model must be initialised, but {name!r} is not: a lazy module takes its shape from its first input. Run "
            "model(inputs) once before."
        )
    if tensor.is_meta:
        raise ModelStateError(
            f"model must hold values, but {name!r} is on the meta device and has only a shape. Load its weights: "
            "model.to_empty(device='cpu'), then model.load_state_dict(...)."
        )
    if tensor.is_inference():
        raise ModelStateError(
            f"model must be made outside of torch.inference_mode, but {name!r} was made under inference_mode and can have no "
            "gradients behind it. Use copy.deepcopy(model), outside of it: the copy's tensors are ordinary ones."
        )
