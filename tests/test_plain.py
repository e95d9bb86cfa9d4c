"""One identity of what was run: the same for the same, another for any other, and none for what has no name."""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import os
import subprocess
import sys
import types
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import _named
from backlit import InputError
from backlit._plain import described, identity, network_of, plain, without_free
from backlit.methods import DMBP, DeepLIFT
from backlit.rules import presets
from backlit.rules.linear import Epsilon, Gamma, ZPlus


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nudged(x: Tensor) -> Tensor:
    """The same but for the last bit of one number: printed, the two are equal."""
    y = x.clone()
    y.view(-1)[len(y.view(-1)) // 2] = torch.nextafter(y.view(-1)[len(y.view(-1)) // 2], torch.tensor(9.0))
    return y


def changed(**attributes: Any) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    for p in network.parameters():
        nn.init.constant_(p, 0.5)
    for name, value in attributes.items():
        setattr(network, name, value)
    return network


def plus(network: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += by
    return network


def elsewhere(source: str, name: str = "dark") -> Callable[..., Any]:
    """A function of another module."""
    module = types.ModuleType(f"elsewhere_{zlib.crc32(source.encode())}")
    sys.modules[module.__name__] = module
    exec(source, vars(module))
    return getattr(module, name)


LARGE = seeded(0, 3, 40, 40)
OF_MODULES = "import torch\ndef dark(images):\n    return torch.zeros_like(images)\n"
VALUES: list[Any] = [
    None,
    0,
    1,
    1.0,
    True,
    False,
    0.0,
    -0.0,
    "1",
    "1.0",
    "True",
    "None",
    "",
    2**60,
    2**60 + 1,
    float(2**60),
    0.1,
    math.nextafter(0.1, 1),
    math.inf,
    -math.inf,
    math.nan,
    "inf",
    "nan",
    1j,
    b"1",
    b"",
    [],
    [1],
    [1.0],
    ["1"],
    [[1]],
    [1, 2],
    [2, 1],
    [1, [2]],
    {},
    {"a": 1},
    {"a": 1.0},
    {"b": 1},
    {1: "a"},
    {"1": "a"},
    {"a": 1, "b": 2},
    {"b": 2, "a": 1},
    {"tensor": "float32 (2)"},
    {"mapping": []},
    {"mapping": [["a", 1]]},
    [["a", 1]],
    {1, 2},
    {1, 3},
    {"1", "2"},
    set(),
    torch.zeros(2),
    torch.zeros(2, dtype=torch.float64),
    torch.zeros(2, dtype=torch.bfloat16),
    torch.zeros(2, dtype=torch.float16),
    torch.zeros(2, dtype=torch.int64),
    torch.zeros(2, dtype=torch.bool),
    torch.zeros(2, dtype=torch.complex64),
    torch.zeros(4),
    torch.zeros(2, 2),
    torch.zeros(1, 4),
    torch.zeros(0),
    torch.zeros(0, 2),
    -torch.zeros(2),
    torch.tensor(0.0),
    torch.tensor([math.nan, 0]),
    LARGE,
    nudged(LARGE),
    LARGE.double(),
    LARGE.bfloat16(),
    LARGE.transpose(1, 2),
    LARGE.flatten(),
    str(LARGE),
    LARGE.numpy(),
    nudged(LARGE).numpy(),
    np.zeros(2),
    np.zeros(2, dtype=np.float32),
    np.zeros((1, 2)),
    np.float32(0.1),
    np.array(["a", "b"]),
    np.array([1, "b"], dtype=object),
    torch.float32,
    torch.float64,
    "torch.float32",
    torch.device("cpu"),
    torch.device("cuda"),
    torch.device("cuda:0"),
    "cpu",
    torch.channels_last,
    Path("a"),
    "a",
    range(3),
    slice(3),
    _named.Colour.RED,
    _named.Colour.ALSO_RED_BY_NAME,
    _named.Shade.RED,
    _named.dark,
    _named.bright,
    _named.brighter,
    "dark",
    elsewhere(OF_MODULES),
    elsewhere(OF_MODULES.replace("zeros", "ones")),
    functools.partial(_named.bright, level=1.0),
    functools.partial(_named.bright, level=2.0),
    functools.partial(_named.bright, LARGE),
    functools.partial(_named.brighter, level=2.0),
    functools.partial(functools.partial(_named.bright), LARGE, level=2.0),
    _named.Level,
    _named.Level(),
    _named.Level(2.0),
    _named.Level(1),
    _named.OtherLevel(),
    _named.Reference(1.0),
    _named.Reference(2.0),
    _named.Reference(1.0).of,
    _named.Reference(1.0).other,
    _named.Reference(2.0).of,
    torch.relu,
    torch.tanh,
    F.relu,
    F.conv2d,
    math.sqrt,
    operator.neg,
    np.add,
    torch.Tensor.relu,
    torch.optim.Adam,
    torch.optim.SGD,
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.GELU(),
    changed(),
    plus(changed(), 1.0),
    plus(changed(), 1e-7),
    changed(temperature=2.0),
    changed(temperature=3.0),
    changed(mean=torch.zeros(3)),
    changed(mean=torch.ones(3)),
    changed(act=torch.relu),
    changed(act=torch.tanh),
    changed().double(),
    Epsilon(),
    Epsilon(1e-3),
    Gamma(0.25),
    Gamma(0.5),
    ZPlus(),
    ZPlus(bias=False),
    presets.epsilon(),
    presets.epsilon(1e-3),
    presets.epsilon_plus(),
    presets.epsilon_plus().but({"sigmoid": None}),
    presets.epsilon_plus().but({"conv2d": Gamma()}),
    presets.epsilon_plus().but({"conv2d": Gamma(0.5)}),
    presets.guided,
    presets.exact,
]


def test_values_that_differ_have_different_identities() -> None:
    of = [identity(value) for value in VALUES]
    same = [(VALUES[i], VALUES[j]) for i, j in itertools.combinations(range(len(of)), 2) if of[i] == of[j]]
    assert same == []


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: functools.partial(_named.dark, v)])
def test_values_that_differ_inside_others_do_as_well(wrap: Callable[[Any], Any]) -> None:
    of = [identity(wrap(value)) for value in VALUES]
    assert len(set(of)) == len(VALUES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 2), [1, 2]),
        (torch.Size((1, 2)), (1, 2)),
        (np.float64(0.1), 0.1),
        ({1, 2, 3}, frozenset((3, 2, 1))),
        ({"a": 1}, OrderedDict(a=1)),
        (LARGE, LARGE.clone()),
        (LARGE, nn.Parameter(LARGE)),
        (torch.arange(6).view(3, 2)[:1, 1], torch.tensor([1])),
        (torch.arange(6)[::2], torch.tensor([0, 2, 4])),
        (torch.ones(1).expand(5), torch.ones(5)),
        (LARGE[None].contiguous(memory_format=torch.channels_last), LARGE[None]),
        (torch.zeros(3, 3).to_sparse(), torch.zeros(3, 3).to_sparse()),
        (LARGE.transpose(1, 2), LARGE.transpose(1, 2).contiguous()),
        (torch.complex(LARGE, LARGE).conj(), torch.complex(LARGE, LARGE).conj().resolve_conj()),
        (_named.Level(2.0), _named.Level(2.0)),
        (_named.Reference(2.0).of, _named.Reference(2.0).of),
        (functools.partial(_named.bright, level=1.0), functools.partial(_named.bright, level=1.0)),
        (changed(), changed()),
        (changed().train(), changed().eval()),
        (presets.epsilon_gamma_box(LARGE, LARGE + 9), presets.epsilon_gamma_box(LARGE.clone(), LARGE + 9)),
    ],
)
def test_equal_values_have_the_same_identity(one: Any, other: Any) -> None:
    assert identity(one) == identity(other)


def test_another_process_gives_the_same_identities() -> None:
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "import test_plain as t\n"
        "print(json.dumps([t.identity(v) for v in t.VALUES]))"
    )
    folder = str(Path(__file__).parent)
    found = []
    for seed in ("1", "2"):  # of the order of sets
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code, folder], env=environment, capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout))
    assert found[0] == found[1] == [identity(value) for value in VALUES]


def local(images: Tensor) -> Callable[[], Tensor]:
    def inner() -> Tensor:
        return images

    return inner


class Cyclic:
    def __init__(self) -> None:
        self.own = self


LIST: list[Any] = []
LIST.append(LIST)
NAMELESS: list[tuple[Any, str]] = [
    (lambda x: x, r"'<lambda>' is a lambda, .* write it with def at the top of a module"),
    (local(LARGE), r"inner' is local, .* write it with def at the top of a module"),
    (_named.made, "images_of' is local"),
    (functools.partial(lambda x, y: x, 1), "is a lambda"),
    ([{"a": (lambda: 0,)}], "is a lambda"),
    (_named.Level(lambda x: x), "is a lambda"),  # pyright: ignore[reportArgumentType]
    (torch.Generator(), "'Generator' has a state .* give a seed"),
    (np.random.default_rng(0), "'Generator' has a state"),
    (np.random.RandomState(0), "'RandomState' has a state"),
    (iter([1]), "'list_iterator' has a state"),
    ((x for x in [1]), "'<genexpr>' has a state"),
    (type("Local", (), {}), "'Local' is local"),
    (type("Local", (), {"__init__": lambda self: setattr(self, "a", 1)})(), "is of a class that is local"),
    (object(), "'object' has no content"),
    (_named.Slots(), "'Slots' has no content"),
    (Cyclic(), "'Cyclic' holds itself"),
    (LIST, "'list' holds itself"),
]


@pytest.mark.parametrize(("value", "said"), NAMELESS)
def test_what_another_process_cannot_know_again_is_refused(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"^methods\['a'\]\.reference must be .*{said}"):
        plain(value, argument="methods['a'].reference", exact=True)


def test_in_a_record_every_nameless_object_is_its_own() -> None:
    values = [value for value, _ in NAMELESS] + [lambda x: x, local(LARGE), local(nudged(LARGE))]
    texts = [json.dumps(plain(value)) for value in values]
    assert len(set(texts)) == len(values)
    kept = lambda x: x  # noqa: E731
    assert plain(kept) == plain(kept)
    json.loads(json.dumps(texts))


def test_callbacks_are_no_part_of_what_was_run_and_the_chunk_none_of_a_plan() -> None:
    net = nn.Identity()
    options = DMBP(net, chunk=3, callback=lambda step: None)
    assert "callback" not in described(options)
    assert described(options)["chunk"] == 3
    assert described(options, exact=True) == described(DMBP(nn.Identity(), chunk=5), exact=True)
    assert described(options, exact=True) != described(DMBP(nn.Identity(), steps=199), exact=True)
    recorded = {"steps": 1, "chunk": 1, "callback": "print"}  # as earlier versions wrote it
    assert without_free(recorded) == {"steps": 1}
    assert without_free(None) is None
    with pytest.raises(InputError, match=r"^methods\['a'\]\.optimizer must be .* is a lambda"):
        described(
            DMBP(nn.Identity(), optimizer=lambda p, lr: torch.optim.SGD(p, lr)), argument="methods['a'].", exact=True
        )


def test_a_record_stays_readable() -> None:
    assert plain(3) == 3
    assert plain((0.5, "a", None)) == [0.5, "a", None]
    assert plain(torch.zeros(3, 2))["tensor"] == "float32 (3, 2)"
    assert plain(_named.dark)["function"] == "_named.dark"
    table = plain(presets.epsilon_plus(), exact=True)
    assert len(json.dumps(table)) < 2500
    assert described(DeepLIFT(nn.Identity()))["reference"] == "zero"


def test_a_network_is_its_weights_and_its_code() -> None:
    source = (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Linear(2, 2)\n        nn.init.ones_(self.a.weight); nn.init.zeros_(self.a.bias)\n"
        "    def forward(self, x):\n        return self.a(x) * 2\n"
    )
    one, two = elsewhere(source, "Net"), elsewhere(source.replace("* 2", "* 3"), "Net")
    two.__module__ = one.__module__
    assert network_of(one()) == network_of(one())
    assert network_of(one())["weights"] == network_of(two())["weights"]
    assert network_of(one())["architecture"] != network_of(two())["architecture"]
