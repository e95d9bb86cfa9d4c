"""See every operation that a network calls, whatever its spelling, and hand each to a visitor as a :class:`Call`.

All state belongs to one :class:`Watch`, which lives as long as one forward pass: nothing is written on modules,
tensors or classes, and the mode stack of torch is per thread, so two threads may explain one model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from backlit._errors import InputError, ModelStateError, UnsupportedOp
from backlit.capture.canonical import Call, canonical, name_by_signals, places_of
from backlit.capture.primitives import BY_NAME, CONSTANT, SPELLINGS, Arguments
from backlit.capture.sites import Site, Trace


class Watch(TorchFunctionMode):
    """A function mode that follows the signal from the network's inputs and visits each operation on it.

    Subclasses say in :meth:`visit` what happens at a call; its result replaces the operation's.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._live: Any = WeakIdKeyDictionary()  # signal -> True
        self._seen: Any = WeakIdKeyDictionary()  # results of operations off the signal's path
        self._gates: Any = WeakIdKeyDictionary()  # x > 0 and what is made of it
        self._severed: Any = WeakIdKeyDictionary()  # results of operations under torch.no_grad -> site
        self._viewed: Any = WeakIdKeyDictionary()  # signals of which a view was made
        self._renamed: Any = WeakIdKeyDictionary()  # what was written in place -> what stands for it since
        self._counts: dict[str, int] = {}
        self.sites: list[Site] = []
        for tensor in inputs:
            self._live[tensor] = True

    def visit(self, call: Call) -> Any:
        """What the call returns to the network."""
        raise NotImplementedError

    @property
    def trace(self) -> Trace:
        """The sites visited so far."""
        return Trace(tuple(self.sites))

    def is_signal(self, tensor: Any) -> bool:
        """Whether the tensor came from the inputs through operations that were seen."""
        return isinstance(tensor, Tensor) and tensor in self._live

    def severed_at(self, tensor: Tensor) -> Site | None:
        """The site under ``torch.no_grad`` that made the tensor, if one did."""
        return self._severed.get(tensor)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if len(self._renamed):
            args, kwargs = self._current(tuple(args)), {k: self._current(v) for k, v in kwargs.items()}
        tensors = list(_tensors((*args, *kwargs.values())))
        live = [t for t in tensors if t in self._live]
        for tensor in tensors:
            self._check_origin(tensor, func)
        if not live:
            result = func(*args, **kwargs)
            self._note(result, self._seen)
            if any(t in self._gates for t in tensors):
                self._note(result, self._gates)
            for site in (self._severed[t] for t in tensors if t in self._severed):
                self._severed.update((t, site) for t in _floats(result))
            return result
        if func in CONSTANT:
            result = func(*args, **kwargs)
            self._note(result, self._seen)
            return result
        spelling = SPELLINGS.get(func)
        if spelling is not None:
            return self._visit(func, args, kwargs)
        if isinstance(func, FunctionType) and func.__module__.startswith("torch."):
            with self:  # a function of torch written in Python: look at what its body calls
                return _opened(func)(*args, **kwargs)
        result = func(*args, **kwargs)
        if any(t.is_floating_point() or t.is_complex() for t in _tensors((result,))):
            raise UnsupportedOp(
                f"{_name(func)} at {self._path() or '<model>'} is an operation that Backlit does not "
                "know, and its result depends on the input. Declare it with backlit.capture.extend(function, kind, name) "
                "and give it a rule in the method's rule table, or write it with operations of torch that `backlit "
                "trace` lists."
            )
        self._note(result, self._gates)
        return result

    def _visit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._call(func, args, kwargs)
        if not torch.is_grad_enabled():
            if call.inplace:
                raise severed(call.site)
            result = func(*args, **kwargs)
            for tensor in _floats(result):
                self._severed[tensor] = call.site
            return result
        for value in _tensors(call.arguments.values()):
            if value in self._severed:
                raise severed(self._severed[value])
        target = args[0] if args else kwargs["input"]
        if not call.inplace:
            result = self.visit(call)
        elif self._aliased(target):
            result = target
            self.visit(call)
        else:  # out of place, so that nothing that was saved is overwritten; later reads of the target find the result
            result = self.visit(replace(call, spelled=lambda: call.run(*call.signals), inplace=False))
            self._renamed[target] = result
        outputs = _floats(result)
        if outputs:
            self.sites.append(replace(call.site, output_shape=tuple(outputs[0].shape)))
        for tensor in outputs:
            self._live[tensor] = True
            if tensor._base is not None:
                self._viewed[tensor._base] = True
        self._note(result, self._gates)  # indices and the like
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        name, arguments, inplace = canonical(func, args, kwargs, self._gates)
        places = places_of(arguments, self._live)
        path = self._path()
        name = name_by_signals(name, arguments, places, path or "<model>")
        _check_mode(name, arguments, path or "<model>")
        primitive = BY_NAME[name]
        index = self._counts.get(name, 0)
        self._counts[name] = index + 1
        # An instance norm on running statistics is a batch norm in all but name.
        affine = primitive.kind == "affine" or (name == "instance_norm" and not arguments.get("use_input_stats", True))
        spelling = _name(func).removeprefix("torch.")
        signals = {n for n, _ in places}
        lean = {k: v if k in signals else self._lean(v) for k, v in arguments.items()}
        site = Site(name, index, "affine" if affine else primitive.kind, path, spelling, (), ())
        lean_args, lean_kwargs = [self._lean(v) for v in args], {k: self._lean(v) for k, v in kwargs.items()}
        call = Call(site, primitive, lean, places, lambda: func(*lean_args, **lean_kwargs), inplace)
        return replace(call, site=replace(site, input_shapes=tuple(tuple(t.shape) for t in call.signals)))

    def _aliased(self, tensor: Tensor) -> bool:
        return tensor._base is not None or tensor in self._viewed

    def _current(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            while value in self._renamed:
                value = self._renamed[value]
            return value
        return type(value)(map(self._current, value)) if type(value) in (list, tuple) else value

    def _lean(self, value: Any) -> Any:
        """A parameter without its need for a gradient: the graph then keeps no input for the sake of a weight."""
        if isinstance(value, Tensor) and value.requires_grad and value not in self._live:
            return value.detach()
        return value

    def _check_origin(self, tensor: Tensor, func: Any) -> None:
        if tensor.grad_fn is None or tensor in self._live or tensor in self._seen:
            return
        raise UnsupportedOp(
            f"An input of {_name(func)} at {self._path() or '<model>'} was computed by code that cannot "
            "be seen: a scripted or compiled function, a custom autograd.Function, or an extension "
            f"({type(tensor.grad_fn).__name__}). Use the plain PyTorch version of that part of the model."
        )

    def _note(self, result: Any, where: Any) -> None:
        for tensor in _tensors((result,)):
            if tensor not in self._live:
                where[tensor] = True

    def _path(self) -> str:
        """Dotted path of the innermost module whose forward is running in this thread.

        Read from the Python stack rather than from module hooks: those are global, and would count other threads'.
        """
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code is _CALL:
                path = self._paths.get(id(frame.f_locals["self"]))
                if path is not None:
                    return path
            frame = frame.f_back
        return ""


_CALL = nn.Module._call_impl.__code__


def check_model(model: nn.Module) -> None:
    """Refuse what would be explained wrongly, before anything runs.

    Raises:
        InputError: If ``model`` is no ``nn.Module``.
        UnsupportedOp: If a submodule is scripted or compiled, so that its calls cannot be seen.
        ModelStateError: If batch norm or dropout is in train mode.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model must be a torch.nn.Module, but is {type(model).__name__}. Wrap a function in a module."
        )
    for name, module in model.named_modules():
        where = name or "<model>"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedOp(
                f"The module {where!r} is scripted; its calls cannot be seen. Use the original nn.Module."
            )
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedOp(
                f"The module {where!r} is compiled; its calls cannot be seen. Use the original module (model._orig_mod)."
            )
        stochastic = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        tracking = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        if module.training and (stochastic or tracking or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            raise ModelStateError(
                f"model must be in eval mode, but {where!r} ({type(module).__name__}) is in train mode. Call model.eval()."
            )


def check_output(output: Any, run: Watch, x: Tensor) -> Tensor:
    """The network's output, if it is one (n, k) tensor that follows from the input.

    Raises:
        InputError: If it has another form.
        UnsupportedOp: If it does not depend on the input through operations that were seen.
    """
    if not isinstance(output, Tensor):
        raise InputError(
            f"model must return one tensor of logits (n, k), but returned {type(output).__name__}. Wrap it in a module "
            "whose forward returns the logits."
        )
    if output.dim() != 2 or output.shape[0] != x.shape[0] or not output.is_floating_point():
        raise InputError(
            f"model must return logits of shape (n, k), one row an image, but returned {output.dtype} of shape "
            f"{tuple(output.shape)} for {x.shape[0]}. Wrap it in a module that returns one score per class (a global mean, say)."
        )
    if run.is_signal(output):
        return output
    site = run.severed_at(output)
    if site is not None:
        raise severed(site)
    raise UnsupportedOp(
        "The output does not depend on the input through operations that can be seen: the model cuts the gradient "
        "(.detach(), .data, a conversion to NumPy) or runs scripted or compiled code."
    )


def severed(site: Site) -> UnsupportedOp:
    """The error for a signal that passed through ``torch.no_grad``."""
    return UnsupportedOp(
        f"{site} runs under torch.no_grad inside the model, so the gradient would be cut there in silence. Remove the "
        "no_grad, or write .detach() where the value is meant to be a constant."
    )


def _name(func: Any) -> str:
    return resolve_name(func) or getattr(func, "__name__", repr(func))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _floats(result: Any) -> list[Tensor]:
    return [t for t in _tensors((result,)) if t.is_floating_point()]


def _check_mode(name: str, arguments: Arguments, where: str) -> None:
    """Refuse training behaviour; drop the arguments that only training needs."""
    training = bool(arguments.pop("training", False)) if name in ("dropout", "rrelu") else arguments.get("training")
    if name == "dropout" and arguments.pop("p", 0.5) == 0:
        return
    if training:
        raise ModelStateError(
            f"model must be in eval mode, but the {name} at {where} is training. Call model.eval(); where it is called as "
            "a function, pass training=self.training there."
        )


@cache
def _opened(func: FunctionType) -> FunctionType:
    """The function without its own test for function modes, so that the mode sees the calls in its body."""
    blind = {name: _false for name in func.__globals__ if name.startswith("has_torch_function")}
    opened = FunctionType(
        func.__code__, {**func.__globals__, **blind}, func.__name__, func.__defaults__, func.__closure__
    )
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


def _false(*_: Any) -> bool:
    return False
