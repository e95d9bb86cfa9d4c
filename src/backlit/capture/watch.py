"""See every operation that a network calls, whatever its spelling, and hand each to a visitor as a :class:`Call`.

All state belongs to one :class:`Watch`, which lives as long as one forward pass: nothing is written on modules,
tensors or classes, and the mode stack of torch is per thread, so two threads may explain one model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from backlit._draws import module_path
from backlit._errors import UnsupportedOp
from backlit.capture import refuse
from backlit.capture.aliases import Alias, Memory, laid_out, read_view
from backlit.capture.canonical import Args, Call, Places, at, canonical, name_by_signals, places_of
from backlit.capture.primitives import (
    BY_NAME,
    CONSTANT,
    LIKE,
    ORDERS,
    SHADOWS,
    SPELLINGS,
    Arguments,
    Function,
    Primitive,
)
from backlit.capture.sites import Site
from backlit.capture.tensors import ByTensor

INPUT = "input"
"""The maker of the network's inputs."""


@dataclass(eq=False)
class Mark:
    """What is known of a tensor: a signal has a depth, the layers with weights behind it, and a maker.

    Of the others: ``known`` says that autograd's history of it was seen, ``gate`` that it was made by comparing them,
    ``shadow`` that it is a signal without its gradient (``x.detach()``); ``severed`` is the site under ``torch.no_grad`` that
    it comes from. ``alias`` is what it shows of memory that was written in place, ``scaled`` the signal that it is a positive
    multiple of, and the call that made it so.
    """

    depth: int | None = None
    maker: str = INPUT
    known: bool = False
    gate: bool = False
    sources: frozenset[object] = frozenset()
    scaled: tuple[Tensor, Call] | None = None
    shadow: bool = False
    severed: Site | None = None
    alias: Alias | None = None


_UNMARKED = Mark()
_unseen = torch._C.DisableTorchFunction
"""What is asked of tensors under it is no call of the network's, for any mode."""


class Watch(TorchFunctionMode):
    """A function mode that follows the signal from the network's inputs and visits each operation on it.

    Subclasses say in :meth:`visit` what happens at a call; its result replaces the operation's.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._marks: ByTensor[Mark] = ByTensor()
        self._wrote = False
        self._counts: dict[str, int] = {}
        self._opening: list[FunctionType] = []  # functions whose bodies are running
        self.sites: list[Site] = []
        for tensor in inputs:
            self._marks[tensor] = Mark(0, sources=frozenset({object()}))

    def visit(self, call: Call) -> Any:
        """Return what the call returns to the network."""
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
            with torch.enable_grad(), torch.autograd.graph.disable_saved_tensors_hooks(refuse.HOOKS):
                with self:
                    output = model(*inputs)
                output = self.current(output)
        except RuntimeError as error:
            if refuse.HOOKS in str(error):
                raise UnsupportedOp(refuse.HOOKS) from error
            raise
        refuse.check_output(output, len(inputs[0]))
        self._check_origin(output, model.forward)
        self._check_severed(output)
        if not self._is_signal(output):
            raise UnsupportedOp(refuse.CUT_OFF)
        return output

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Arguments | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._wrote:
            args, kwargs = self.current(tuple(args)), {k: self.current(v) for k, v in kwargs.items()}
        with _unseen():
            tensors = list(_tensors((*args, *kwargs.values())))
            live = self._live(func, tensors)
        if not live:
            return self._off_path(func, args, kwargs, tensors)
        if func in SPELLINGS:
            return self._visit(func, args, kwargs)
        if func in _HOOKS:
            raise UnsupportedOp(refuse.HOOKED.format(self._where(func)))
        if isinstance(func, FunctionType) and func.__module__ in _OPEN and func not in self._opening:
            return self._open(func, args, kwargs)
        return self._on_the_side(func, args, kwargs, live)

    def _live(self, func: Function, tensors: list[Tensor]) -> list[Tensor]:
        """The signals among the tensors that a call reads; what came from code that cannot be seen is refused."""
        for tensor in tensors:
            self._check_origin(tensor, func)
        return [t for t in (tensors[:1] if func in LIKE else tensors) if self._is_signal(t)]

    def _open(self, func: FunctionType, args: Args, kwargs: Arguments) -> Any:
        """Run a function of torch that is written in Python, and look at what its body calls."""
        with self:
            self._opening.append(func)
            result = _opened(func)(*args, **kwargs)
            self._opening.remove(func)
            return result

    def _on_the_side(self, func: Function, args: Args, kwargs: Arguments, live: list[Tensor]) -> Any:
        """Run a call whose result does not follow the signals that it reads; refuse one whose result may."""
        result = func(*args, **kwargs)
        with _unseen():
            if func not in CONSTANT and any(t.is_floating_point() or t.is_complex() for t in _tensors((result,))):
                raise UnsupportedOp(refuse.unknown(_name(func), self._where(func)))
            self._note(result, gate=func.__name__.strip("_") in ORDERS, sources=self._sources(live))
            if func in SHADOWS:
                alias = self._alias(live[0])
                self._note(result, shadow=True, alias=alias.view(live[0], result, cut=True, writes=alias.memory.writes))
            if func in CONSTANT or isinstance(result, (Tensor, float, list)):
                self.peek(live)
        return result

    def _off_path(self, func: Function, args: Args, kwargs: Arguments, tensors: list[Tensor]) -> Any:
        """Run a call on no signal, and note what its result is made of."""
        with _unseen():
            shadows = [t for t in tensors if self._marks.get(t, _UNMARKED).shadow]
            versions = [t._version for t in shadows]
        result = func(*args, **kwargs)
        with _unseen():
            if versions != [t._version for t in shadows]:
                raise UnsupportedOp(refuse.BEHIND.format(self._where(func)))
            self._note((tensors, [t._base for t in tensors]))
            bare = lambda t: func(t, *args[1:], **kwargs)  # noqa: E731
            self._note_made(func, result, tensors, bare, [func, *args[1:], *kwargs.values()])
        return result

    def _note_made(
        self, func: Function, result: object, tensors: list[Tensor], bare: Function, others: list[object]
    ) -> None:
        """Note what the result of a call on no signal is made of; ``bare`` is the call on another first tensor."""
        marks = [self._marks.get(t, _UNMARKED) for t in tensors]
        shadow, severed = any(mark.shadow for mark in marks), [mark.severed for mark in marks if mark.severed]
        gate = any(mark.gate for mark in marks) or ((shadow or bool(severed)) and not floats(result))
        parts = _parts(func, bare, others, tensors[0]) if gate else {}
        made_of = tensors[:1] if func in LIKE else tensors
        for i, tensor in enumerate(_tensors((result,))):
            self._note(tensor, gate=gate, sources=self._sources(made_of, parts.get(i)))
        for site in severed:
            self._note(floats(result), severed=site)
        self._note([t for t in _tensors((result,)) if shadow and t._is_view()], shadow=True)

    def _visit(self, func: Function, args: Args, kwargs: Arguments) -> Any:
        """Let the visitor run a call of a primitive on signals."""
        with _unseen():
            call = self._seen(func, args, kwargs)
        if torch.is_grad_enabled():
            return self._write(call) if call.inplace else self._visited(call)
        result = func(*args, **kwargs)
        with _unseen():
            self.peek(call.signals)
            self._note(floats(result), severed=call.site, sources=self._sources(call.signals))
        return result

    def _seen(self, func: Function, args: Args, kwargs: Arguments) -> Call:
        """The call, if it is one that can be followed."""
        if kwargs.get("out") is not None and not SPELLINGS[func].signature:
            raise UnsupportedOp(refuse.OUT.format(self._where(func)))
        call = self._call(func, args, kwargs)
        if torch.is_autocast_enabled(call.signals[0].device.type):
            raise UnsupportedOp(refuse.AUTOCAST.format(call.site))
        if not torch.is_grad_enabled() and call.inplace:
            raise UnsupportedOp(refuse.SEVERED.format(call.site))
        if torch.is_grad_enabled():
            for value in _tensors(call.arguments.values()):
                self._check_severed(value)
        return call

    def _write(self, call: Call) -> None:
        """Let the visitor run a call in place: out of place, so that nothing that was saved is overwritten."""
        with _unseen():
            target = call.target
            if self._marks.get(target, _UNMARKED).shadow:
                raise UnsupportedOp(refuse.BEHIND.format(call.site))
            like = target.stride(), target.dtype
        spelled = partial(_owned, lambda: laid_out(call.run(*call.signals), *like), call.signals)
        result = self._visited(replace(call, inplace=False, spelled=spelled))
        self._written(target, result)
        return result

    def _visited(self, call: Call) -> Any:
        """What the call returns to the network, marked."""
        with _unseen():
            depth = max(call.site.depths, default=0) + call.site.has("layer")
            # Of two signals it is a new value.
            carried = call.primitive.has("carries") and (call.get("function") in LIKE or len(call.places) == 1)
            maker = call.site.makers[0] if carried else call.primitive.name
            kept = call.signals if carried or call.site.kind == "activation" else ()
            others = [v for n, v in call.arguments.items() if (n, None) not in call.places]
            parts = _parts(call.get("function"), call.run, others, call.signals[0])
        result = self.visit(call)
        with _unseen():
            outputs = floats(result)
            sources = [self._sources(kept, parts.get(i)) for i in range(len(outputs))]
            self._mark_made(call, outputs, Mark(depth, maker), sources)
        return result

    def _mark_made(self, call: Call, outputs: list[Tensor], like: Mark, sources: list[frozenset[object]]) -> None:
        """Mark what a call on signals put out, and list its site."""
        if outputs:
            self.sites.append(replace(call.site, output_shape=tuple(outputs[0].shape)))
        for tensor, known in zip(outputs, sources, strict=True):
            mark = self._mark(tensor)
            mark.depth, mark.maker, mark.sources, mark.scaled = (
                like.depth,
                like.maker,
                known | {object()},
                _scaled(call),
            )
            if self._wrote and tensor._base is not None:
                self._alias(tensor).writes = self._alias(tensor).memory.writes

    def _sources(self, tensors: Iterable[Tensor], part: object = None) -> frozenset[object]:
        """The values that these were made of, but for moves, scales and shifts; of a part of them, that part of each."""
        found = frozenset().union(*(self._marks.get(t, _UNMARKED).sources for t in tensors))
        return found if part is None else frozenset((source, part) for source in found)

    def _gates(self, gate: object, *values: object) -> bool:
        """Whether the gate was made by comparing the very signals that it gates: then it is part of an activation."""
        mark = self._marks.get(gate, _UNMARKED) if isinstance(gate, Tensor) else _UNMARKED
        return mark.gate and all(self._sources([s]) & mark.sources for s in _tensors(values) if self._is_signal(s))

    def _alias(self, tensor: Tensor) -> Alias:
        """What the tensor shows of the memory that it shares with others."""
        mark, base = self._mark(tensor), tensor._base
        if mark.alias is None:
            mark.alias = Alias(Memory(weakref.ref(tensor))) if base is None else self._alias(base).view(base, tensor)
        return mark.alias

    def _written(self, target: Tensor, value: Tensor) -> None:
        """Let the value stand for the target from now on, and be seen by what shares its memory."""
        self._wrote = True
        alias, whole = self._alias(target), value
        memory = alias.memory
        memory.writes += 1
        if alias.positions is not None:
            before, at = memory.whole(), alias.positions()
            memory.kept = whole = self._visit(Tensor.put, (before, at, value), {})
            if at.numel() == before.numel():  # all of it is written, only in another order
                self._mark(whole).maker = self._mark(value).maker
            self._mark(whole).alias = Alias(memory, writes=memory.writes)
        memory.whole = weakref.ref(whole)
        alias.value, alias.writes = value, memory.writes
        self._mark(value).alias = replace(alias, value=None)

    def current(self, value: Any) -> Any:
        """The value itself, or what stands for it since memory that it shows was written in place."""
        if not isinstance(value, Tensor):
            return type(value)(map(self.current, value)) if type(value) in (list, tuple) else value
        alias = self._marks.get(value, _UNMARKED).alias
        if alias is None and value._base is not None:
            alias = self._alias(value)
        if alias is not None and alias.writes < alias.memory.writes:
            with torch.enable_grad():
                alias.value, alias.writes = self._read(alias), alias.memory.writes
            self._mark(alias.value).alias = replace(alias, value=None)
        return value if alias is None or alias.value is None else alias.value

    def _read(self, alias: Alias) -> Tensor:
        """What the alias shows now."""
        whole: Any = alias.memory.whole()
        if alias.positions is None:
            return whole
        if not alias.cut:
            return self._visit(read_view, (whole, alias.positions(), alias.stride), {})
        self.peek((whole,))
        shadow = read_view(whole.detach(), alias.positions(), alias.stride)
        self._note(shadow, shadow=True)
        return shadow

    def _call(self, func: Function, args: Args, kwargs: Arguments) -> Call:
        name, arguments, inplace = canonical(func, args, kwargs, self._gates)
        places = places_of(arguments, self._is_signal)
        if BY_NAME[name].has("chooses") and len(places) == 2:
            name, arguments, places = self._of_one(name, arguments, places)
        path = module_path(self._paths)
        name = name_by_signals(name, arguments, places, path or "<model>")
        refuse.check_mode(name, arguments, path or "<model>")
        given = (*args, *kwargs.values())
        # Parameters without their need for a gradient: the graph then keeps no input for the sake of a weight.
        bare = {
            id(v): v.detach() for v in given if isinstance(v, Tensor) and v.requires_grad and not self._is_signal(v)
        }
        if bare:
            arguments = {k: bare.get(id(v), v) for k, v in arguments.items()}
            args, kwargs = tuple(bare.get(id(v), v) for v in args), {k: bare.get(id(v), v) for k, v in kwargs.items()}
        values = tuple(at(arguments, place) for place in places)
        constants = len(list(_tensors(arguments.values()))) > len(places)
        site = self._site(BY_NAME[name], path, _name(func).removeprefix("torch."), values, constants)
        spelled = partial(_owned, partial(func, *args, **kwargs), values)
        return Call(site, BY_NAME[name], arguments, places, spelled, inplace)

    def _site(self, p: Primitive, path: str, spelling: str, signals: tuple[Tensor, ...], constants: bool) -> Site:
        self._counts[p.name] = count = self._counts.get(p.name, -1) + 1
        shapes, marks = tuple(tuple(signal.shape) for signal in signals), [self._marks[signal] for signal in signals]
        depths, makers = tuple(mark.depth or 0 for mark in marks), tuple(mark.maker for mark in marks)
        return Site(p.name, count, p.kind, path, spelling, shapes, (), depths, makers, constants, p.traits)

    def _of_one(self, name: str, arguments: Arguments, places: Places) -> tuple[str, Arguments, Places]:
        """A choice between multiples of one signal, as a function of that: ``torch.where(h > 0, h, 0.2 * h)``."""
        nowhere: Any = None
        choice = Call(nowhere, BY_NAME[name], arguments, places, nowhere)
        scaled = [self._marks[s].scaled or (s, None) for s in choice.signals]
        if scaled[0][0] is not scaled[1][0]:
            return name, arguments, places
        bare, steps = choice.without_signals(), [step for _, step in scaled]
        function = lambda z: bare.run(*(z if step is None else step.run(z) for step in steps))  # noqa: E731
        return "gated", {"function": function, "#0": scaled[0][0]}, (("#0", None),)

    def _is_signal(self, tensor: Tensor) -> bool:
        return self._marks.get(tensor, _UNMARKED).depth is not None

    def _check_origin(self, tensor: Tensor, func: Function) -> None:
        """Refuse a value with a history that was not seen, but for one of weights alone, made in an earlier pass and kept."""
        if tensor.grad_fn is None or self._is_signal(tensor) or self._marks.get(tensor, _UNMARKED).known:
            return
        history = [tensor.grad_fn]
        for node in history:  # grows as it is walked
            before = [n for n, _ in node.next_functions if n is not None]
            history += [n for n in before if n not in history]
            if not before and not isinstance(getattr(node, "variable", None), nn.Parameter):
                raise UnsupportedOp(refuse.UNSEEN.format(self._where(func), type(tensor.grad_fn).__name__))

    def _check_severed(self, tensor: Tensor) -> None:
        if (site := self._marks.get(tensor, _UNMARKED).severed) is not None:
            raise UnsupportedOp(refuse.SEVERED.format(site))

    def _mark(self, tensor: Tensor) -> Mark:
        mark = self._marks.get(tensor, _UNMARKED)
        if mark is _UNMARKED:
            mark = self._marks[tensor] = Mark()
        return mark

    def _note(self, result: object, **facts: Any) -> None:
        """Note facts of the tensors that are no signals."""
        for tensor in _tensors((result,)):
            if not self._is_signal(tensor):
                self._marks[tensor] = replace(self._mark(tensor), known=tensor.grad_fn is not None, **facts)

    def _where(self, func: Function) -> str:
        return f"{_name(func)} at {module_path(self._paths) or '<model>'}"


def _parts(function: object, run: Function, others: list[object], like: Tensor) -> dict[int, object]:
    """Which elements of a tensor each output of a slice has, or how it turns them; equal for equal ones."""
    if getattr(function, "__name__", "") in _TURNS:
        return {0: repr(others)}
    if function not in SPELLINGS or SPELLINGS[function].primitive != "slice":
        return {}
    if any(isinstance(v, Tensor) for v in others):  # an index, whose values are not looked at
        return {0: object()}
    views = list(_tensors((run(torch.empty(like.shape, device="meta")),)))
    return {i: (v.storage_offset(), v.stride(), v.shape) for i, v in enumerate(views) if v.numel() != like.numel()}


_TURNS = frozenset("flip fliplr flipud roll rot90 channel_shuffle pixel_shuffle pixel_unshuffle".split())
_HOOKS = (Tensor.register_hook, Tensor.grad_fn.__get__)  # type: ignore[attr-defined]
_OPEN = frozenset("torch.nn.functional torch.functional torch._tensor torch._jit_internal".split())


def _name(func: Function) -> str:
    return resolve_name(func) or getattr(func, "__name__", repr(func))


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def floats(result: object) -> list[Tensor]:
    """The floating-point tensors of a call's result."""
    return [t for t in _tensors((result,)) if t.is_floating_point()]


def _scaled(call: Call) -> tuple[Tensor, Call] | None:
    """The signal that a call's result is a positive multiple of, and the call."""
    if not call.primitive.has("multiplies") or not isinstance(call["other"], (int, float)) or call["other"] <= 0:
        return None
    return call.signals[0], call.without_signals()


def _owned(run: Callable[[], Any], signals: tuple[Tensor, ...]) -> Any:
    """What a call returns; of a tensor that shows memory made inside the call (``einsum``), one that stands for all of it."""
    result = run()
    with _unseen():
        base = getattr(result, "_base", None)
        if base is None or any(base is b for s in signals for b in (s, s._base)):
            return result
    return torch.ops.aten._unsafe_view(result, result.shape)  # the same elements, and no view to autograd


@cache
def _opened(func: FunctionType) -> FunctionType:
    """The function without its own test for function modes, so that the mode sees the calls in its body."""
    blind = {name: lambda *_: False for name in func.__globals__ if name.startswith("has_torch_function")}
    opened = FunctionType(
        func.__code__, {**func.__globals__, **blind}, func.__name__, func.__defaults__, func.__closure__
    )
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened
