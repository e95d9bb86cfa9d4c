"""What a value is made of is part of its identity: attributes, closures, hooks, bases, and what a function reads."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backlit import DMBP
from backlit._plain import identity, kind_of, network_of

SOURCES = {
    "a decorator's number": "import functools\ndef by(k):\n    def of(f):\n        @functools.wraps(f)\n        def g(x):\n"
    "            return f(x) * k\n        return g\n    return of\n@by({})\ndef it(x):\n    return x\n",
    "a cached function": "import functools\n@functools.lru_cache\ndef it(x):\n    return x * {}\n",
    "a method of the base": "class Base:\n    def __call__(self, x):\n        return x * {}\nclass R(Base):\n    pass\nit = R()\n",
    "a tuple of the class": "class R:\n    levels = ({}, 1)\n    def __call__(self, x):\n        return x * self.levels[0]\nit = R()\n",
    "a list of the class": "class R:\n    levels = [{}, 1]\n    def __call__(self, x):\n        return x * self.levels[0]\nit = R()\n",
    "a tensor of the class": "import torch\nclass R:\n    level = torch.tensor({})\n    def __call__(self, x):\n"
    "        return x * self.level\nit = R()\n",
    "a tensor of a closure": "import torch\ndef make(t):\n    def it(x):\n        return x * t\n    return it\n"
    "it = make(torch.tensor({}))\n",
    "an object of a closure": "class A:\n    def __init__(self, k):\n        self.k = k\ndef make(a):\n    def it(x):\n"
    "        return x * a.k\n    return it\nit = make(A({}))\n",
    "a dictionary by default": "def it(x, t={{'a': {}}}):\n    return x * t['a']\n",
    "a tensor by keyword": "import torch\ndef it(x, *, t=torch.tensor({})):\n    return x * t\n",
    "a number of the module": "LEVEL = {}\ndef it(x):\n    return x * LEVEL\n",
    "a tensor of the module": "import torch\nLEVEL = torch.tensor({})\ndef it(x):\n    return (lambda: x * LEVEL)()\n",
    "a function that it calls": "def helper(x):\n    return x * {}\ndef it(x):\n    return helper(x)\n",
    "a class that it uses": "class Helper:\n    def of(self, x):\n        return x * {}\ndef it(x):\n    return Helper().of(x)\n",
    "a function that calls itself": "def it(x, n=2):\n    return x if not n else it(x * {}, n - 1)\n",
    "two that call each other": "def a(x):\n    return it(x) if x else {}\ndef it(x):\n    return a(x)\n",
    "a static method": "class R:\n    @staticmethod\n    def f(x):\n        return x * {}\nit = R.f\n",
    "a class method": "class R:\n    @classmethod\n    def f(cls, x):\n        return x * {}\nit = R.f\n",
    "a setter": "class R:\n    @property\n    def a(self):\n        return 1\n    @a.setter\n    def a(self, v):\n"
    "        self.v = v * {}\n    def __call__(self, x):\n        return x\nit = R()\n",
    "a rule": "from backlit.capture.rule import rule\n@rule(joins=True)\ndef it(g, inputs, output, call):\n"
    "    return (g * {},)\n",
    "a rule that it calls": "from backlit.capture.rule import rule\n@rule()\ndef helper(g, inputs, output, call):\n"
    "    return (g * {},)\ndef it(g, inputs, output, call):\n    return helper(g, inputs, output, call).grads\n",
    "a cached property": "import functools\nclass R:\n    @functools.cached_property\n    def a(self):\n        return {}\n"
    "    def __call__(self, x):\n        return x * self.a\nit = R()\n",
}


def written(name: str, number: float) -> Any:
    """What a module of one and the same name defines as ``it``."""
    module = types.ModuleType("written_elsewhere")
    sys.modules[module.__name__] = module
    exec(SOURCES[name].format(number), vars(module))
    return module.it


@pytest.mark.parametrize("name", SOURCES)
def test_the_code_of_a_function_is_all_that_makes_its_values(name: str) -> None:
    """Only one number of the source differs; the module, the names and all else are the same."""
    two, three, again = (identity(written(name, number)) for number in (2.0, 3.0, 2.0))
    assert two == again
    assert two != three


def test_another_process_tells_the_same_of_code() -> None:
    """There no type checker stands around the functions, and sets have another order."""
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\nimport test_plain_code as t\n"
        "print(json.dumps([[t.identity(t.written(n, 2.0)) for n in t.SOURCES], [t.network_of(f(2.0)) for f in t.NETWORKS.values()]]))"
    )
    words = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(words, env={**os.environ, "PYTHONHASHSEED": "5"}, capture_output=True, text=True, check=True)
    here = [[identity(written(n, 2.0)) for n in SOURCES], [network_of(f(2.0)) for f in NETWORKS.values()]]
    assert json.loads(done.stdout) == here


class Config:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * self.value

    @functools.cached_property
    def twice(self) -> Any:
        return 2 * self.value


class Slots:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class BelowSlots(Slots):
    pass


@dataclass
class Plain:
    value: Any


class MoreThanItsFields(Plain):
    def __init__(self, more: Any) -> None:
        super().__init__(1)
        self.more = more


class MoreThanItsItems(list):
    def __init__(self, more: Any) -> None:
        super().__init__([1])
        self.more = more


OBJECTS: dict[str, Callable[[Any], Any]] = {
    "slots": Slots,
    "slots of a base": BelowSlots,
    "attributes beside fields": MoreThanItsFields,
    "attributes beside items": MoreThanItsItems,
    "namespace": lambda k: types.SimpleNamespace(a=[Slots(k)]),
    "deque": lambda k: deque([k]),
    "fraction": lambda k: Fraction(int(k), 7),
    "time": lambda k: timedelta(seconds=k),
    "tensors in tuples": lambda k: Plain((torch.tensor(k), {"a": torch.tensor(1.0)})),
    "scale of a quantized tensor": lambda k: torch.quantize_per_tensor(torch.tensor([k]), k, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_all_that_it_holds(name: str) -> None:
    two, three, again = (identity(OBJECTS[name](k)) for k in (2.0, 3.0, 2.0))
    assert two == again
    assert two != three


def network(**attributes: Any) -> nn.Module:
    made = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    for p in made.parameters():
        nn.init.constant_(p, 0.5)
    for name, value in attributes.items():
        object.__setattr__(made, name, value)
    return made


def hooked(hook: Any, kind: str = "register_forward_hook") -> nn.Module:
    made = network()
    getattr(made[1], kind)(hook)  # pyright: ignore[reportIndexIssue]
    return made


def scaled(self: nn.Sequential, x: Tensor, by: float) -> Tensor:
    return nn.Sequential.forward(self, x) * by


def with_forward(by: float) -> nn.Module:
    made = network()
    made.forward = functools.partial(scaled, made, by=by)
    return made


def with_method(by: float) -> nn.Module:
    made = network()
    made.forward = types.MethodType(lambda self, x: scaled(self, x, by), made)
    return made


NETWORKS: dict[str, Callable[[float], nn.Module]] = {
    "configuration": lambda k: network(config=Config(k)),
    "namespace": lambda k: network(config=types.SimpleNamespace(k=k)),
    "in a dictionary": lambda k: network(config={"a": [Config(k)]}),
    "slots": lambda k: network(config=Slots(k)),
    "lambda of a tensor": lambda k: network(act=(lambda t: lambda x: x * t)(torch.tensor(k))),
    "lambda of a list": lambda k: network(act=(lambda t: lambda x: x * t[0])([k])),
    "lambda of a number": lambda k: network(act=lambda x: x * k),
    "bound partial": with_forward,
    "bound method": with_method,
    "hook": lambda k: hooked(lambda m, i, o: o * k),
    "hook of an object": lambda k: hooked(Config(k)),
    "hook before": lambda k: hooked(lambda m, i: (i[0] * k,), "register_forward_pre_hook"),
    "network beside": lambda k: network(beside=nn.LeakyReLU(k)),
    "networks in a list": lambda k: network(beside=[nn.LeakyReLU(k)]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_all_that_its_forward_pass_may_use(name: str) -> None:
    two, three, again = (network_of(NETWORKS[name](k)) for k in (2.0, 3.0, 2.0))
    assert two == again
    assert two["weights"] == three["weights"]
    assert two["architecture"] != three["architecture"]


def test_a_network_may_hold_itself_and_what_nobody_can_read() -> None:
    made = network(lock=threading.Lock(), module=torch)
    made.parent = [made, Config(made)]  # pyright: ignore[reportAttributeAccessIssue]
    other = network(lock=threading.Lock(), module=torch)
    other.parent = [other, Config(other)]  # pyright: ignore[reportAttributeAccessIssue]
    assert network_of(made) == network_of(other)


def test_what_a_cached_property_keeps_changes_nothing() -> None:
    config = Config(2.0)
    before, of_network = identity(config), network_of(network(config=config))
    assert config.twice == 4.0
    assert identity(config) == before
    assert network_of(network(config=config)) == of_network
    assert "__slotnames__" not in vars(Slots)  # nothing is written on a class


def test_a_method_is_its_class_code_and_options() -> None:
    kinds = [type("Mine", (DMBP,), {"levels": levels, "__module__": __name__}) for levels in ((1, 2), (1, 3), (1, 2))]
    two, three, again = (kind_of(kind, DMBP(nn.Identity()), "a.") for kind in kinds)
    assert two == again
    assert two != three
    assert two["options"] == three["options"]
