"""See every operation that a network calls, whatever its spelling, and hand each to a visitor as a :class:`Call`.

All state belongs to one :class:`Watch`, which lives as long as one forward pass: nothing is written on modules,
tensors or classes, and the mode stack of torch is per thread, so two threads may explain one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from backlit._draws import module_path
from backlit._errors import UnsupportedOp
from backlit.capture import refuse
from backlit.capture.canonical import Call, at, canonical, name_by_signals, places_of
from backlit.capture.primitives import BY_NAME, CARRIERS, CONSTANT, LAYERS, LIKE, SHADOWS, SPELLINGS
from backlit.capture.sites import Site, Trace

INPUT = "input"
"""The maker of the network's inputs."""


class Watch(TorchFunctionMode):
    """A function mode that follows the signal from the network's inputs and visits each operation on it.

    Subclasses say in :meth:`visit` what happens at a call; its result replaces the operation's.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._live: Any = WeakIdKeyDictionary()  # signal -> layers with weights behind it
        self._makers: Any = WeakIdKeyDictionary()  # signal -> the primitive that gave it its values
        self._seen: Any = WeakIdKeyDictionary()  # values off the signal's path -> whether autograd has their history
        self._gates: Any = WeakIdKeyDictionary()  # x > 0 and what is made of it
        self._shadows: Any = WeakIdKeyDictionary()  # signals cut from autograd: x.detach(), x.data
        self._severed: Any = WeakIdKeyDictionary()  # results of operations under torch.no_grad -> site
        self._viewed: Any = WeakIdKeyDictionary()  # signals whose memory another tensor shares
        self._split: Any = WeakIdKeyDictionary()  # signals that shared their memory until a rule made a copy -> group
        self._stale: Any = WeakIdKeyDictionary()  # those of them that missed a write to another
        self._renamed: Any = WeakIdKeyDictionary()  # what was written in place -> what stands for it since
        self._counts: dict[str, int] = {}
        self._opening: list[Any] = []  # functions whose bodies are running
        self.sites: list[Site] = []
        for tensor in inputs:
            self._live[tensor] = 0

    def visit(self, call: Call) -> Any:
        """What the call returns to the network."""
        raise NotImplementedError

    def peek(self, signals: Iterable[Tensor]) -> None:
        """Hear that the network reads the values of signals outside the operations that it is visited for."""

    def follow(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """Run the model on the inputs under this watch; its output, checked.

        Raises:
            UnsupportedOp: If something in the model cannot be seen; if it recomputes values (checkpointing) or computes
                them in another precision (autocast), so that a rule would read others than it saw.
        """
        try:
            with torch.enable_grad(), torch.autograd.graph.disable_saved_tensors_hooks(refuse.HOOKS), self:
                output = self.current(model(*inputs))
        except RuntimeError as error:
            if refuse.HOOKS in str(error):
                raise UnsupportedOp(refuse.HOOKS) from error
            raise
        refuse.check_output(output, len(inputs[0]))
        self._check_origin(output, model.forward)
        if output in self._severed:
            raise UnsupportedOp(refuse.SEVERED.format(self._severed[output]))
        if output not in self._live:
            raise UnsupportedOp(refuse.CUT_OFF)
        return output

    @property
    def trace(self) -> Trace:
        """The sites visited so far."""
        return Trace(tuple(self.sites))

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if len(self._renamed):
            args, kwargs = self.current(tuple(args)), {k: self.current(v) for k, v in kwargs.items()}
        tensors = list(_tensors((*args, *kwargs.values())))
        live = [t for t in (tensors[:1] if func in LIKE else tensors) if t in self._live]
        for tensor in tensors:
            self._check_origin(tensor, func)
        if not live:
            return self._off_path(func, args, kwargs, tensors)
        if func in CONSTANT:
            result = func(*args, **kwargs)
            self.peek(live)
            self._note(result, self._seen)
            if func in SHADOWS:
                self._note(result, self._shadows)
                self._viewed[live[0]] = True
            return result
        spelling = SPELLINGS.get(func)
        if spelling is not None:
            return self._visit(func, args, kwargs)
        if isinstance(func, FunctionType) and func.__module__ in _OPEN and func not in self._opening:
            with self:  # a function of torch written in Python: look at what its body calls
                self._opening.append(func)
                result = _opened(func)(*args, **kwargs)
                self._opening.remove(func)
                return result
        result = func(*args, **kwargs)
        if any(t.is_floating_point() or t.is_complex() for t in _tensors((result,))):
            raise UnsupportedOp(refuse.unknown(_name(func), self._where(func)))
        if isinstance(result, (Tensor, float, list)):
            self.peek(live)
        self._note(result, self._gates)
        return result

    def _off_path(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """Run a call on no signal, and note what its result is made of."""
        shadows = [t for t in tensors if t in self._shadows]
        versions = [t._version for t in shadows]
        result = func(*args, **kwargs)
        if versions != [t._version for t in shadows]:
            raise UnsupportedOp(refuse.BEHIND.format(self._where(func)))
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
            raise UnsupportedOp(refuse.AUTOCAST.format(call.site))
        if not torch.is_grad_enabled():
            if call.inplace:
                raise UnsupportedOp(refuse.SEVERED.format(call.site))
            self.peek(call.signals)
            result = func(*args, **kwargs)
            self._severed.update((t, call.site) for t in _floats(result))
            return result
        for value in _tensors(call.arguments.values()):
            if value in self._severed:
                raise UnsupportedOp(refuse.SEVERED.format(self._severed[value]))
        depth = max(call.site.depths, default=0) + (call.site.primitive in LAYERS)
        alone = func in LIKE or len(call.places) == 1  # of two signals it is a new value
        carried = alone and call.primitive.name in CARRIERS
        maker = call.site.makers[0] if carried else call.primitive.name
        target = call.target if call.inplace else None
        if target is not None and target in self._split:
            self._stale.update(
                (t, True) for t, g in self._split.items() if g == self._split[target] and t is not target
            )
        if target is None:
            result = self.visit(call)
        elif target._base is not None or target in self._viewed:
            result = target
            self.visit(call)
            if target._base is not None:
                self._live[target._base] = max(depth, self._live.get(target._base, 0))
                self._makers[target._base] = maker
        else:  # out of place, so that nothing that was saved is overwritten; later reads of the target find the result
            written = replace(call, spelled=lambda: call.run(*call.signals).to(target.dtype), inplace=False)
            result = self.visit(written)
            self._renamed[target] = result
        outputs = _floats(result)
        if outputs:
            self.sites.append(replace(call.site, output_shape=tuple(outputs[0].shape)))
        for tensor in outputs:
            self._live[tensor], self._makers[tensor] = depth, maker
            if tensor._base is not None:
                self._viewed[tensor._base] = True
        self._note(result, self._gates)  # indices and the like
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        name, arguments, inplace = canonical(func, args, kwargs, self._gates)
        places = places_of(arguments, self._live)
        path = self._path()
        name = name_by_signals(name, arguments, places, path or "<model>")
        refuse.check_mode(name, arguments, path or "<model>")
        primitive = BY_NAME[name]
        self._counts[name] = self._counts.get(name, -1) + 1
        signals = {n for n, _ in places}
        lean = {k: v if k in signals else self._lean(v) for k, v in arguments.items()}
        lean_args, lean_kwargs = [self._lean(v) for v in args], {k: self._lean(v) for k, v in kwargs.items()}
        spelling = _name(func).removeprefix("torch.")
        shapes = tuple(tuple(at(lean, place).shape) for place in places)
        depths = tuple(self._live[at(arguments, place)] for place in places)
        makers = tuple(self._makers.get(at(arguments, place), INPUT) for place in places)
        constants = len(list(_tensors(arguments.values()))) > len(places)
        site = Site(name, self._counts[name], primitive.kind, path, spelling, shapes, (), depths, makers, constants)
        return Call(site, primitive, lean, places, lambda: func(*lean_args, **lean_kwargs), inplace)

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
            raise UnsupportedOp(refuse.PARTED.format(self._where(func)))
        if tensor.grad_fn is not None and tensor not in self._live and not self._seen.get(tensor):
            raise UnsupportedOp(refuse.UNSEEN.format(self._where(func), type(tensor.grad_fn).__name__))

    def split(self, tensors: Iterable[Tensor]) -> None:
        """Note that these shared their memory in the network, and no longer do."""
        tensors = list(tensors)
        group = next((self._split[t] for t in tensors if t in self._split), object())
        self._split.update((t, group) for t in tensors)

    def _note(self, result: Any, where: Any) -> None:
        for tensor in _tensors((result,)):
            if tensor not in self._live:
                where[tensor] = tensor.grad_fn is not None

    def _where(self, func: Any) -> str:
        return f"{_name(func)} at {self._path() or '<model>'}"

    def _path(self) -> str:
        return module_path(self._paths)


_OPEN = frozenset("torch.nn.functional torch.functional torch._tensor torch._jit_internal".split())


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


@cache
def _opened(func: FunctionType) -> FunctionType:
    """The function without its own test for function modes, so that the mode sees the calls in its body."""
    blind = {name: lambda *_: False for name in func.__globals__ if name.startswith("has_torch_function")}
    opened = FunctionType(
        func.__code__, {**func.__globals__, **blind}, func.__name__, func.__defaults__, func.__closure__
    )
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened
