"""Workers that are actors of Ray: the same as processes; and what is said where Ray is not installed."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from test_bench import asked, assert_same, results, silent

from _commands import command
from backlit import InputError
from backlit.bench import ray_workers
from backlit.bench.asked import plan_of
from backlit.bench.folder import shards_of
from backlit.bench.run import How, run


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'")
        return importlib.import_module(name)

    monkeypatch.setattr(ray_workers, "import_module", missing)
    with pytest.raises(
        InputError, match=r"ray: workers on a cluster need Ray: pip install 'backlit\[ray\]'. Without it"
    ):
        How(2, ray="local")
    done = command("compare", "--limit", 3, "--ray", "local", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "pip install 'backlit[ray]'" in done.stderr
    assert not (tmp_path / "out").exists()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


class FakeRay:
    """As much of Ray as the workers use, in this process: what is asked is answered when it is waited for."""

    class exceptions:  # noqa: N801
        class RayActorError(Exception):
            pass

        class RaySystemError(Exception):
            pass

    def __init__(self) -> None:
        self.inits: list[dict] = []
        self.remotes: list[dict] = []
        self.fails: list[Exception] = []
        self.shut = 0
        self.alive = True
        self.silent = 0

    def init(self, **options: Any) -> None:
        self.inits.append(options)
        if options["address"] == "nowhere:1":
            raise ConnectionError("Could not find any running Ray instance.\nmore")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 6.0, "GPU": 3.0}

    def remote(self, **options: Any) -> Any:
        self.remotes.append(options)
        return lambda kind: _Remote(kind)

    def wait(self, asked: list, timeout: float) -> tuple[list, list]:
        self.silent -= 1
        return ([], asked) if self.silent >= 0 else (asked[:1], asked[1:])

    def get(self, asked: Any) -> Any:
        if self.fails:
            raise self.fails.pop(0)
        return asked()

    def nodes(self) -> list[dict]:
        return [{"Alive": False}, {"Alive": self.alive}]

    def kill(self, actor: Any) -> None:
        pass

    def shutdown(self) -> None:
        self.shut += 1


class _Remote:
    def __init__(self, kind: type) -> None:
        self.kind = kind

    def remote(self) -> Any:
        return _RemoteActor(self.kind())


class _RemoteActor:
    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.actor, name)

        class Method:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                return lambda: call(*arguments)

        return Method


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay()
    monkeypatch.setattr(ray_workers, "import_module", lambda name: made)
    return made


def test_actors_do_what_one_process_does(fake: FakeRay, tmp_path: Path) -> None:
    small = asked(methods="random; grad_cam", metrics="deletion(steps=2)")
    plan = plan_of(small)[0]
    run(small, plan, tmp_path / "one", How(threads=1), silent)
    fake.fails = [fake.exceptions.RayActorError(), fake.exceptions.RayActorError()]
    run(small, plan, tmp_path / "ray", How(2, 1, "local"), silent)
    assert_same(results(tmp_path / "ray"), results(tmp_path / "one"))
    assert fake.shut == 1
    assert fake.inits[0]["address"] == "local"
    assert fake.inits[0]["num_cpus"] == 2
    assert fake.inits[0]["runtime_env"]["env_vars"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert {tuple(options.items()) for options in fake.remotes} == {
        (("num_cpus", 1), ("num_gpus", 0), ("max_restarts", 0))
    }
    assert len(fake.remotes) == 4  # two actors, and one for each that died
    assert len(list(shards_of(tmp_path / "ray"))) >= 2


def test_a_cluster_is_asked_for_its_room(fake: FakeRay, tmp_path: Path) -> None:
    workers = ray_workers.RayWorkers(tmp_path, 2, "cpu", "10.0.0.1:6379", 0)
    assert workers.room == 3
    assert "num_cpus" not in fake.inits[0]
    assert "PYTHONPATH" not in fake.inits[0]["runtime_env"]["env_vars"]
    assert ray_workers.RayWorkers(tmp_path, 1, "cuda", "auto", 0).room == 3


def test_no_cluster_and_one_that_goes_away_are_said(fake: FakeRay, tmp_path: Path) -> None:
    small = asked(methods="random", metrics="deletion(steps=2)")
    plan = plan_of(small)[0]
    with pytest.raises(
        InputError, match=r"ray: there is no cluster at 'nowhere:1' \(Could not find any running Ray instance.\)"
    ):
        run(small, plan, tmp_path, How(2, 1, "nowhere:1"), silent)
    fake.fails = [fake.exceptions.RaySystemError("gone")]
    with pytest.raises(InputError, match=r"ray: the cluster is gone\. What is done is kept: the same command goes on"):
        run(small, plan, tmp_path, How(2, 1, "local"), silent)
    fake.silent, fake.alive = 100, False
    with pytest.raises(InputError, match=r"ray: the cluster is gone\."):
        run(small, plan, tmp_path, How(2, 1, "local"), silent)
    fake.silent, fake.alive = 100, True  # slow, but there
    run(small, plan, tmp_path, How(2, 1, "local"), silent)
    assert results(tmp_path)["scores.parquet"]["value"].null_count() == 0


@pytest.mark.slow
def test_ray_itself_gives_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="backlit[ray] is not installed")
    plan = plan_of(asked())[0]
    run(asked(), plan, tmp_path / "one", How(threads=1), silent)
    run(asked(), plan, tmp_path / "ray", How(2, 1, "local"), silent)
    assert_same(results(tmp_path / "ray"), results(tmp_path / "one"))


@pytest.mark.slow
def test_what_was_done_before_raylets_died_is_kept(tmp_path: Path) -> None:
    """Ray's own process dies twice, with work done and work left; the third run ends with the bits of one process.

    Actors go on for about 15 seconds after it: a run that has less to do than that ends well, others say what is gone.
    """
    pytest.importorskip("ray", reason="backlit[ray] is not installed")
    long = asked(methods="smooth_grad(samples=400); integrated_gradients(steps=1000); lrp; rise(masks=8000)")
    plan = plan_of(long)[0]
    run(long, plan, tmp_path / "one", How(threads=1), silent)
    killed: list[int] = []
    for most in (2, 14):
        killer = Thread(target=lambda most=most: killed.extend(_kill_raylets(tmp_path / "ray", most)))
        killer.start()
        with suppress(InputError):
            run(long, plan, tmp_path / "ray", How(2, 1, "local"), silent)
        killer.join()
    run(long, plan, tmp_path / "ray", How(2, 1, "local"), silent)
    assert len(killed) == 2
    assert_same(results(tmp_path / "ray"), results(tmp_path / "one"))


def _kill_raylets(out: Path, after: int) -> list[int]:
    """Kill this process's raylet once so many pieces are written."""
    while sum(len(file.read_bytes().splitlines()) for file in out.rglob("results.jsonl")) < after:
        time.sleep(0.02)
    killed = list(_raylets())
    for number in killed:
        os.kill(number, signal.SIGKILL)
    return killed


def _raylets() -> Iterator[int]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError):  # of a process that ended meanwhile
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            if name == "raylet" and int(rest.split()[1]) == os.getpid():
                yield int(status.parent.name)
