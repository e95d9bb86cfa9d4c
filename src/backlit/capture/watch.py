"""See every operation that a network calls, whatever its spelling, and hand each to a visitor as a :class:`Call`.

All state belongs to one :class:`Watch`, which lives as long as one forward pass: nothing is written on modules,
tensors or classes, and the mode stack of torch is per thread, so two threads may explain one model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
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
from backlit.capture.primitives import BY_NAME, CONSTANT, SHADOWS, SPELLINGS, Arguments
from backlit.capture.sites import Site, Trace


class Watch(TorchFunctionMode):
    """A function mode that follows the signal from the network's inputs and visits each operation on it.

    Subclasses say in :meth:`visit` what happens at a call; its result replaces the operation's.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._live: Any = WeakIdKeyDictionary()  # signal -> True
        self._seen: Any = WeakIdKeyDictionary()  # values off the signal's path -> whether autograd has their history
        self._gates: Any = WeakIdKeyDictionary()  # x > 0 and what is made of it
        self._shadows: Any = WeakIdKeyDictionary()  # signals cut from autograd: x.detach(), x.data
        self._severed: Any = WeakIdKeyDictionary()  # results of operations under torch.no_grad -> site
        self._viewed: Any = WeakIdKeyDictionary()  # signals whose memory another tensor shares
        self._split: Any = WeakIdKeyDictionary()  # signals that shared their memory until a rule made a copy -> group
        self._stale: Any = WeakIdKeyDictionary()  # those of them that missed a write to another
        self._renamed: Any = WeakIdKeyDictionary()  # what was written in place -> what stands for it since
        self._counts: dict[str, int] = {}
        self.sites: list[Site] = []
        for tensor in inputs:
            self._live[tensor] = True

    def visit(self, call: Call) -> Any:
        """What the call returns to the network."""
        raise NotImplementedError

    def follow(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """Run the model on the inputs under this watch; its output, checked.

        Raises:
            UnsupportedOp: If something in the model cannot be seen; if it recomputes values (checkpointing) or computes
                them in another precision (autocast), so that a rule would read others than it saw.
        """
        try:
            with torch.enable_grad(), torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS), self:
                output = model(*inputs)
        except RuntimeError as error:
            if _HOOKS in str(error):
                raise UnsupportedOp(_HOOKS) from error
            raise
        output = check_output(self.current(output), self, inputs[0])
        self._check_origin(output, model.forward)
        return output

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
            args, kwargs = self.current(tuple(args)), {k: self.current(v) for k, v in kwargs.items()}
        tensors = list(_tensors((*args, *kwargs.values())))
        live = [t for t in tensors if t in self._live]
        for tensor in tensors:
            self._check_origin(tensor, func)
        if not live:
            return self._off_path(func, args, kwargs, tensors)
        if func in CONSTANT:
            result = func(*args, **kwargs)
            self._note(result, self._seen)
            if func in SHADOWS:
                self._note(result, self._shadows)
                self._viewed[live[0]] = True
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

    def _off_path(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """Run a call on no signal, and note what its result is made of."""
        shadows = [t for t in tensors if t in self._shadows]
        versions = [t._version for t in shadows]
        result = func(*args, **kwargs)
        if versions != [t._version for t in shadows]:
            raise UnsupportedOp(
                f"{_name(func)} at {self._path() or '<model>'} writes to the memory of a signal behind autograd's back "
                "(.data, .detach()). Write to the tensor itself."
            )
        self._note((result, tensors, [t._base for t in tensors]), self._seen)
        cut = [t for t in tensors if t in self._shadows or t in self._severed]
        if any(t in self._gates for t in tensors) or (cut and not _floats(result)):
            self._note(result, self._gates)
        for site in (self._severed[t] for t in cut if t in self._severed):
            self._severed.update((t, site) for t in _floats(result))
        if shadows:
            self._note([t for t in _tensors((result,)) if t._is_view()], self._shadows)
        return result

    def _visit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._call(func, args, kwargs)
        if torch.is_autocast_enabled(call.signals[0].device.type):
            raise UnsupportedOp(
                f"{call.site} runs under torch.autocast, but its rule would run in another precision. Remove the autocast; "
                "for lower precision convert model and inputs, e.g. model.bfloat16()."
            )
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
        if call.inplace and target in self._split:
            self._stale.update(
                (t, True) for t, g in self._split.items() if g == self._split[target] and t is not target
            )
        if not call.inplace:
            result = self.visit(call)
        elif self._aliased(target):
            result = target
            self.visit(call)
            if target._base is not None:
                self._live[target._base] = True
        else:  # out of place, so that nothing that was saved is overwritten; later reads of the target find the result
            written = replace(call, spelled=lambda: call.run(*call.signals).to(target.dtype), inplace=False)
            result = self.visit(written)
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

    def current(self, value: Any) -> Any:
        """The value itself, or what stands for it since it was written in place."""
        if isinstance(value, Tensor):
            while value in self._renamed:
                value = self._renamed[value]
            return value
        return type(value)(map(self.current, value)) if type(value) in (list, tuple) else value

    def _lean(self, value: Any) -> Any:
        """A parameter without its need for a gradient: the graph then keeps no input for the sake of a weight."""
        if isinstance(value, Tensor) and value.requires_grad and value not in self._live:
            return value.detach()
        return value

    def _check_origin(self, tensor: Tensor, func: Any) -> None:
        if tensor in self._stale:
            raise UnsupportedOp(
                f"{_name(func)} at {self._path() or '<model>'} reads a tensor that was written in place through a view, "
                "which the rule of the operation that made the view has separated from it. Give such operations (reshape, "
                "slice, permute, ...) the rule TRUE."
            )
        if tensor.grad_fn is None or tensor in self._live or self._seen.get(tensor):
            return
        raise UnsupportedOp(
            f"An input of {_name(func)} at {self._path() or '<model>'} was computed by code that cannot "
            "be seen: a scripted or compiled function, a custom autograd.Function, or an extension "
            f"({type(tensor.grad_fn).__name__}). Use the plain PyTorch version of that part of the model."
        )

    def split(self, tensors: Iterable[Tensor]) -> None:
        """Note that these shared their memory in the network, and no longer do."""
        tensors = list(tensors)
        group = next((self._split[t] for t in tensors if t in self._split), object())
        self._split.update((t, group) for t in tensors)

    def _note(self, result: Any, where: Any) -> None:
        for tensor in _tensors((result,)):
            if tensor not in self._live:
                where[tensor] = tensor.grad_fn is not None

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
_HOOKS = (
    "The model uses hooks on saved tensors (torch.utils.checkpoint, save_on_cpu), so that its backward pass would read "
    "other values than its forward pass saw. Switch checkpointing off for the explanation."
)


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
    if training or arguments.get("dropout_p"):
        raise ModelStateError(
            f"model must be in eval mode, but the {name} at {where} is training. Call model.eval(); where it is called as "
            "a function, pass training=self.training there (dropout_p=0.0 to attention). A batch norm without running "
            "statistics mixes the images of a batch even then, and cannot be explained."
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
