"""Whether a network draws at random: a map of such a network would be another one at every call.

A forward pass draws if it moves a random generator: torch's own of the CPU or of the inputs' device, one that the network
keeps, Python's ``random`` or NumPy's. Comparing their states costs microseconds a pass. Only where they differ is the
network run again, operation by operation, to find what drew and whether it seeds the generator itself each time.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from backlit._errors import ModelStateError

# Functions that draw at every call, so that a draw is seen whose generator is put back inside the network.
_DRAW = frozenset(
    "rand randn randint randperm rand_like randn_like randint_like bernoulli multinomial normal poisson binomial bernoulli_ "
    "normal_ uniform_ random_ exponential_ cauchy_ geometric_ log_normal_ _standard_gamma _sample_dirichlet".split()
)
_SEEDS = (0x5EED, 0xFEED)  # any two: what draws by a seed of its own draws the same whatever the streams stand at


@contextmanager
def refuse_draws(model: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Refuse a forward pass inside that draws at random; leave all random states as they were.

    Args:
        model: The network that runs inside.
        inputs: What it runs on; they must not be written.

    Raises:
        ModelStateError: With the module that drew. Draws by a seed that forward sets itself are none, nor are those that do
            not reach the output.
    """
    streams = _Streams(model, inputs[0].device)
    before, calls = streams.states(), _Calls()
    try:
        with calls:
            yield
    except BaseException:
        if calls.drew or threading.active_count() == 1:  # else another thread may have drawn from the same stream
            streams.restore(before)
            calls.restore()
        raise
    if not calls.drew and streams.states() == before:
        return
    drew = True
    try:
        drew, culprit = _found_drawing(model, inputs, streams)
    finally:
        calls.restore()
        if drew:
            streams.restore(before)
    if culprit is not None:
        raise ModelStateError(
            f"model must give the same output at every call, but {culprit} draws at random. Call model.eval(). If it draws in "
            "eval mode, too, leave the draw out, or draw from a generator that forward makes and seeds: "
            "torch.Generator().manual_seed(0)."
        )


def module_path(paths: dict[int, str], frame: FrameType | None = None) -> str:
    """Dotted path of the innermost module whose forward is running in this thread, or in ``frame``; ``paths`` are by id.

    Read from the Python stack rather than from module hooks: those are global, and would count other threads'.
    """
    frame = frame or sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            path = paths.get(id(frame.f_locals["self"]))
            if path is not None:
                return path
        frame = frame.f_back
    return ""


_CALL = nn.Module._call_impl.__code__


class _Streams:
    """The random streams that a network may draw from: torch's, of the CPU and of one device, Python's, NumPy's, its own."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self.generators.append(torch.cuda.default_generators[index])
        self._hosts: list[tuple[str, _Host]] = [("Python's random", _PYTHON), ("numpy.random", _NUMPY), *_own(model)]

    def states(self) -> tuple[Any, ...]:
        """All states, so that they can be compared."""
        return (*(_bytes(g) for g in self.generators), *self.others().values())

    def others(self) -> dict[str, Any]:
        """The states of all that torch does not see, by what to call them."""
        return {name: _state(host) for name, host in self._hosts}

    def restore(self, states: tuple[Any, ...]) -> None:
        """Set all streams to these states."""
        for g, state in zip(self.generators, states, strict=False):
            _set(g, state)
        for (_, host), state in zip(self._hosts, states[len(self.generators) :], strict=True):
            if isinstance(host, random.Random):
                host.setstate(state)
            elif isinstance(host, np.random.RandomState):
                host.set_state(_thawed(state))
            else:
                host.bit_generator.state = _thawed(state)

    def seed(self, seed: int) -> None:
        """Seed all streams."""
        for g in self.generators:
            g.manual_seed(seed)
        for _, host in self._hosts:
            if isinstance(host, np.random.Generator):
                host.bit_generator.state = type(host.bit_generator)(seed).state  # type: ignore[call-arg]
            else:
                host.seed(seed)


_Host = random.Random | np.random.RandomState | np.random.Generator
_PYTHON: random.Random = random._inst  # type: ignore[attr-defined]
_NUMPY: np.random.RandomState = np.random.mtrand._rand  # type: ignore[attr-defined]
_MODULE = frozenset(vars(nn.Module()))  # what every module has


def _own(model: nn.Module) -> Iterator[tuple[str, _Host]]:
    """Streams of Python's and NumPy's kinds that modules keep, as attributes or in lists and dictionaries there."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _MODULE:
                continue
            held = (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
            )
            for i, host in enumerate(held):
                if isinstance(host, _Host) and not isinstance(host, random.SystemRandom):  # which has no state
                    yield f"stream {'.'.join(filter(None, (path, name)))}{f'[{i}]' if len(held) > 1 else ''}", host


def _state(host: _Host) -> Any:
    """A stream's state, so that it can be compared."""
    if isinstance(host, random.Random):
        return host.getstate()
    return _frozen(
        host.get_state(legacy=False) if isinstance(host, np.random.RandomState) else host.bit_generator.state
    )


def _frozen(state: Any) -> Any:
    """NumPy's state, a dictionary with arrays, as what can be compared."""
    if isinstance(state, dict):
        return tuple((key, _frozen(value)) for key, value in state.items())
    return (state.tobytes(), state.dtype) if isinstance(state, np.ndarray) else state


def _thawed(state: Any) -> Any:
    if not isinstance(state, tuple):
        return state
    if isinstance(state[0], bytes):
        return np.frombuffer(*state)
    return {key: _thawed(value) for key, value in state}


def _bytes(generator: torch.Generator) -> bytes:
    return generator.get_state().numpy().tobytes()


def _set(generator: torch.Generator, state: bytes) -> None:
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


class _Calls(TorchFunctionMode):
    """A function mode that notes calls that draw, and the states of the generators that they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.drew = False
        self._given: dict[torch.Generator, bytes] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if kwargs and isinstance(generator := kwargs.get("generator"), torch.Generator):
            self.drew = True
            self._given.setdefault(generator, _bytes(generator))
        elif getattr(func, "__name__", "") in _DRAW:
            self.drew = True
        return func(*args, **(kwargs or {}))

    def restore(self) -> None:
        """Set the generators that calls were given to where they stood before."""
        for generator, state in self._given.items():
            _set(generator, state)


class _Draws(TorchDispatchMode):
    """A mode that looks at every operation of this thread and notes each draw.

    It notes who drew, at which state, and whether what was drawn can be changed; with ``disturb``, it is changed.
    """

    def __init__(self, model: nn.Module, streams: _Streams, *, disturb: bool = False) -> None:
        super().__init__()
        self._disturb = disturb
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        self._streams, self._others = streams, streams.others()
        self.draws: list[tuple[str, Any, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.look()
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        own = kwargs.get("generator")
        generators = self._streams.generators if own is None else [own]
        before = [_bytes(g) for g in generators]
        result = func(*args, **kwargs)
        if [_bytes(g) for g in generators] != before:
            drawn = [result] if isinstance(result, Tensor) else list(result)
            can_change = all(d.is_floating_point() for d in drawn)
            self._note(str(func.overloadpacket), before, can_change)
            for values in drawn if self._disturb and can_change else ():
                values.mul_(-3).add_(0.7)
        return result

    def step(self, frame: FrameType, event: str, arg: Any) -> None:
        """Look where a module begins and ends, for a profiler's events: between operations others may have begun."""
        if frame.f_code is _CALL and event in ("call", "return"):
            self.look(frame.f_back if event == "call" else frame)

    def look(self, frame: FrameType | None = None) -> None:
        """Note draws from streams that torch does not see since the last look."""
        now = self._streams.others()
        for name, state in now.items():
            if state != self._others[name]:
                self._note(name, state, frame=frame)
        self._others = now

    def _note(self, what: str, state: Any, can_change: bool = False, frame: FrameType | None = None) -> None:
        path = module_path(self._paths, frame)
        self.draws.append((f"{path or '<model>'!r} ({self._kinds[path]}, {what})", state, can_change))


def _found_drawing(model: nn.Module, inputs: tuple[Tensor, ...], streams: _Streams) -> tuple[bool, str | None]:
    """Whether the network draws, and what draws first of that which follows no seed of the network's own."""
    alone = threading.active_count() == 1
    if alone:  # else the streams may be in another thread's use
        streams.seed(_SEEDS[0])
    first, output = _draws(model, inputs, streams)
    if not first:  # another thread drew; or code did that torch does not see
        return alone, "its code" if alone else None
    streams.seed(_SEEDS[1])
    for one, other in zip_longest(first, _draws(model, inputs, streams)[0]):
        if one is None or other is None or one[1] != other[1]:
            return True, None if _idle(model, inputs, streams, output) else (one or other or first[0])[0]
    return True, None


def _draws(
    model: nn.Module, inputs: tuple[Tensor, ...], streams: _Streams, *, disturb: bool = False
) -> tuple[list[tuple[str, Any, bool]], Any]:
    """All draws of one forward pass, and its output."""
    mode, profiler = _Draws(model, streams, disturb=disturb), sys.getprofile()
    sys.setprofile(mode.step)
    try:
        with torch.no_grad(), mode:
            output = model(*(x.detach().clone() for x in inputs))
    finally:
        sys.setprofile(profiler)
    mode.look()
    return mode.draws, output


def _idle(model: nn.Module, inputs: tuple[Tensor, ...], streams: _Streams, output: Any) -> bool:
    """Whether no draw reaches the output, as of a layer whose initial weights are drawn and then replaced.

    What is drawn is changed, which two seeds might not do to the few zeros of a rare dropout.
    """
    try:
        draws, other = _draws(model, inputs, streams, disturb=True)
    except Exception:
        return False
    # What is drawn for Python, or as indices, cannot be changed at will.
    return isinstance(output, Tensor) and all(changed for _, _, changed in draws) and torch.equal(output, other)
