"""A process that is killed at any of its writes loses nothing: the same command again ends as if there had been no kill.

A child is killed (SIGKILL, as by the system when memory is short) right before or right after one chosen call of
``os.replace``, ``os.fsync`` or ``os.unlink``, which is where every file of Backlit is written, takes its place or goes. The
same command then runs again, and its results are compared with those of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from backlit import Attribution
from backlit.bench.tables import COSTS
from backlit.inverse import Fitted

TESTS = Path(__file__).parent
KILLER = """
import os, signal, sys
count, where, at = 0, os.environ["KILL_WHERE"], int(os.environ["KILL_AT"])
def watched(call):
    def replaced(*arguments, **words):
        global count
        if "backlit" not in sys.modules:
            return call(*arguments, **words)
        count += 1
        if count == at and where == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        mine = count
        try:
            return call(*arguments, **words)
        finally:
            if mine == at and where == "after":
                os.kill(os.getpid(), signal.SIGKILL)
    return replaced
for name in ("replace", "fsync", "unlink"):
    setattr(os, name, watched(getattr(os, name)))
import atexit
atexit.register(lambda: print("WRITES", count, file=sys.stderr))
"""
PYTHON = {
    "roar": (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/bench']\n"
        "import torch; torch.set_num_threads(1)\n"
        "import test_roar as t\n"
        "small = t.RoarData(t.examples(60, 0), t.examples(40, 1))\n"
        "t.roar(small, t.network, {'s': t.Saliency}, t.tiny(), out=sys.argv[2])\n"
    ),
    "fit": (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/methods']\n"
        "import torch; torch.set_num_threads(1)\n"
        "from _fit_networks import cnn, drawn\n"
        "from backlit import MIPIN\n"
        "MIPIN.fit(cnn(), [drawn(30, 2, 6, 6)], out=sys.argv[2] + '/fitted')\n"
    ),
    "pattern fit": (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/methods']\n"
        "import torch; torch.set_num_threads(1)\n"
        "from _fit_networks import cnn, drawn\n"
        "from backlit import PatternNet\n"
        "from backlit.inverse import patterns\n"
        "patterns.PAUSE, patterns.SHARE = 0.0, float('inf')\n"
        "PatternNet.fit(cnn(), list(drawn(30, 2, 6, 6).split(8)), out=sys.argv[2] + '/fitted')\n"
    ),
    "explain": (
        "import sys\nfrom pathlib import Path\nfrom PIL import Image\n"
        "from backlit.models.digits import digits_images\n"
        "folder = Path(sys.argv[2]).parent / 'pictures'\n"
        "folder.mkdir(exist_ok=True)\n"
        "for i in range(3):\n"
        "    if not (folder / f'{i}.png').exists():\n"
        "        Image.fromarray(digits_images()[0][i].numpy()).save(folder / f'{i}.png')\n"
        "sys.argv = ['backlit', 'explain', str(folder), '--method', 'gradient,grad_cam', '--out', sys.argv[2]]\n"
        "from backlit.cli import main\nmain()\n"
    ),
    "compare": (
        "import sys\nsys.argv = ['backlit', 'compare', '--limit', '9', '--methods', 'gradient,random', '--metrics',\n"
        "    'insertion,last_layer_reset', '--option', 'insertion.steps=2', '--classes', '1', '--out', sys.argv[2]]\n"
        "from backlit.cli import main\nmain()\n"
    ),
}


def tables(folder: Path) -> dict[str, Any]:
    return {p.name: pl.read_parquet(p).drop(COSTS, strict=False) for p in sorted(folder.glob("*.parquet"))}


def maps(folder: Path) -> dict[str, Any]:
    return {
        p.name: Attribution.load(p).values for p in sorted(folder.rglob("*.safetensors")) if p.parent.name == "maps"
    }


def of_compare(folder: Path) -> dict[str, Any]:
    assert (folder / "report.html").stat().st_size > 10_000
    return {**tables(folder), **maps(folder)}


def of_explain(folder: Path) -> dict[str, Any]:
    rows = json.loads((folder / "summary.json").read_text())["maps"]
    found: dict[str, Any] = {
        "rows": [{k: row[k] for k in ("method", "target", "logit", "picture", "map")} for row in rows]
    }
    for row in rows:
        found[row["map"]] = Attribution.load(folder / row["map"]).values
        found[row["picture"]] = (folder / row["picture"]).read_bytes()
    return found


def of_fit(folder: Path) -> dict[str, Any]:
    assert [p.name for p in folder.iterdir()] == ["fitted"]
    found = Fitted.load(folder / "fitted")  # the file's bytes differ in the order of its texts, which safetensors draws
    tensors = {f"{layer}/{name}": t for layer, parameters in found.layers.items() for name, t in parameters.items()}
    return {**tensors, "facts": found.facts, "classes": found.classes, "network": found.network}


def of_roar(folder: Path) -> dict[str, Any]:
    rows = json.loads((folder / "result.json").read_text())["rows"]
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert not list((folder / "unfinished").iterdir())
    found: dict[str, Any] = {
        "rows": [{k: v for k, v in row.items() if k != "seconds"} for row in rows],
        "table": (folder / "table.txt").read_text(),
        "lines": sorted((line["method"], line["fraction"], line["seed"], line["fingerprint"]) for line in lines),
    }
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)}/{name}": t for name, t in sorted(load_file(path).items())}
    return found


@dataclass(frozen=True)
class Ended:
    returncode: int
    writes: int
    said: str


def command(name: str, out: Path, *, where: str = "before", at: int = 0) -> Ended:
    """Run a command, to its end or until it is killed."""
    environment = {**os.environ, "KILL_WHERE": where, "KILL_AT": str(at), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", KILLER + PYTHON[name], str(TESTS), str(out)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    writes = done.stderr.rpartition("WRITES ")[2].split()
    return Ended(done.returncode, int(writes[0]) if writes else 0, done.stdout + done.stderr)


RESULTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "roar": of_roar,
    "fit": of_fit,
    "pattern fit": of_fit,
    "compare": of_compare,
    "explain": of_explain,
}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
        elif isinstance(value, pl.DataFrame):
            assert_frame_equal(found[name], value, check_exact=True)
        else:
            assert found[name] == value, name


def kill_and_go_on(name: str, folder: Path, kills: int) -> str:
    """Kill a command at so many of its writes, spread over all of them, each time in a new folder, and let it go on."""
    whole = folder / "whole"
    whole.mkdir()
    undisturbed = command(name, whole)
    assert undisturbed.returncode == 0, undisturbed.said
    expected = RESULTS[name](whole)
    points = sorted({1 + i * (undisturbed.writes - 1) // max(1, kills - 1) for i in range(kills)})
    for number, at in enumerate(points):
        where = ("before", "after")[number % 2]
        out = folder / f"{where} {at}"
        out.mkdir()
        killed = command(name, out, where=where, at=at)
        assert killed.returncode == -signal.SIGKILL, killed.said
        again = command(name, out)
        assert again.returncode == 0, f"{where} write {at}: {again.said}"
        assert_same(RESULTS[name](out), expected)
        assert not list(out.rglob("*.part")), f"{where} write {at}"
        assert not list(out.rglob("*.bad*")), f"{where} write {at}: {again.said}"
    return f"{len(points)} of {len(points)} kills of {name}, at {undisturbed.writes} writes"


def test_a_killed_fit_goes_on(tmp_path: Path) -> None:
    kill_and_go_on("fit", tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"), [("compare", 8), ("roar", 8), ("explain", 6), ("fit", 6), ("pattern fit", 4)]
)
def test_a_killed_command_goes_on_from_any_of_its_writes(name: str, kills: int, tmp_path: Path) -> None:
    print(kill_and_go_on(name, tmp_path, kills))
