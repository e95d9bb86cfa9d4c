"""`backlit bench`: workers, shards, kills, failures; whatever happens, the end is the same, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import backlit
from _commands import command
from backlit import Attribution, FileError, InputError
from backlit._claim import read_plan
from backlit.bench import execute, run
from backlit.bench.asked import Asked, plan_from, plan_of
from backlit.bench.folder import COMPARISON, INPUTS
from backlit.bench.pool import MOST_DEATHS, WHOLE_DEATHS, Answer, Pool
from backlit.bench.processes import Processes
from backlit.bench.record import Finished, Task
from backlit.bench.run import How
from backlit.bench.source import Source
from backlit.bench.tables import COSTS
from backlit.bench.worker import Worker, same_as
from backlit.methods import Method
from backlit.metrics import Metric

PLAN = """
methods = ["random", "saliency; grad_cam", "lrp(preset=epsilon)"]
metrics = ["deletion(steps=5)", "last_layer_reset"]
[[networks]]
model = "digits"
[[data]]
limit = 12
"""


def asked(**changes: Any) -> Asked:
    source = Source([], "images", "predicted", None, None, 12, 0)
    words = {
        "methods": "random; saliency; grad_cam; lrp(preset=epsilon)",
        "metrics": "deletion(steps=5), last_layer_reset",
    }
    return Asked(**{"model": "digits", "source": source, **words, **changes})


def silent(done: int, of: int, what: str) -> None:
    pass


def results(folder: Path) -> dict[str, Any]:
    """Everything that a run gives, but for what it cost."""
    found: dict[str, Any] = {
        p.name: pl.read_parquet(p).drop(COSTS, strict=False) for p in sorted(folder.glob("*.parquet"))
    }
    maps = sorted({p.name: p for p in folder.rglob("maps/*.safetensors")}.items())
    found |= {name: Attribution.load(path).values for name, path in maps}
    found["notes"] = json.loads((folder / "protocols.json").read_text())["notes"]
    assert (folder / "report.html").stat().st_size > 10_000
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        elif isinstance(value, pl.DataFrame):
            assert_frame_equal(value, other[name], check_exact=True)
        else:
            assert value == other[name]


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serial")
    plan = plan_of(asked())[0]
    plan.check()
    run.run(asked(), plan, folder, How(threads=1), silent)
    return folder


def test_workers_that_are_killed_end_as_one_process_does(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give, given = Processes.give, []

    def killed(self: Processes, place: int, task: dict) -> None:
        give(self, place, task)
        given.append(task)
        if len(given) in (4, 7):  # in the middle of a task
            self._processes[place].kill()

    monkeypatch.setattr(Processes, "give", killed)
    plan = plan_of(asked())[0]
    told: list[tuple[int, int]] = []
    run.run(asked(), plan, tmp_path, How(2, 1), lambda done, of, what: told.append((done, of)))
    assert len(given) >= 4 + 8  # starts, two of them again, and the tasks, two of them again
    assert told[-1] == (24, 24)
    assert sorted(told) == told
    assert_same(results(tmp_path), results(serial))
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*.bad*"))
    assert not (tmp_path / INPUTS).exists()
    assert {p.name for p in (tmp_path / "shards").iterdir()} >= {"w001"}
    threads = json.loads((tmp_path / "protocols.json").read_text())["provenance"]["threads"]
    assert threads == 1
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("results.jsonl"))
    run.run(asked(), plan, tmp_path, How(2, 1), silent)  # again: nothing is left to do, and no worker starts
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("results.jsonl")) == before


def test_shards_joined_are_the_whole(serial: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    words = ("bench", tmp_path / "plan.toml", "--out", tmp_path / "out", "--threads", 1, "--device", "cpu")
    for shard in ("1/3", "3/3"):
        done = command(*words, "--shard", shard)
        assert done.returncode == 0, done.stderr
    done = command("bench", "merge", tmp_path / "out")
    assert done.returncode == 1
    assert ".: 9 pieces of work missing; run its shards, or the plan, again" in done.stdout
    assert pl.read_parquet(tmp_path / "out" / "scores.parquet")["value"].null_count() > 0
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    done = command(*words, "--shard", "2/3")
    assert done.returncode == 0, done.stderr
    status = command("bench", "status", tmp_path / "out")
    assert "24" in status.stdout
    assert "in use by" in status.stdout
    done = command("bench", "merge", tmp_path / "out")
    assert done.returncode == 0, done.stdout
    assert_same(results(tmp_path / "out"), results(serial))
    for wrong in ("0/3", "4/3", "x", "3"):
        done = command(*words, "--shard", wrong)
        assert done.returncode == 2
        assert f"shard must be I/N, from 1/N to N/N, such as 3/8, but is '{wrong}'" in done.stderr


def test_a_shard_of_other_weights_or_versions_is_refused(tmp_path: Path) -> None:
    small = asked(methods="saliency", metrics="deletion(steps=2)")
    plan = plan_of(small)[0]
    run.run(small, plan, tmp_path, How(shard=(1, 2)), silent)
    model = backlit.load_model("digits")
    with torch.no_grad():
        next(model.network.parameters()).view(-1)[0] += 1
    other = plan_of(small, model)[0]
    with pytest.raises(
        FileError,
        match=r"shard '0001-of-0002' is of another comparison: network\.weights was .* and is .*same versions, weights",
    ):
        run.merge(other, small, tmp_path)
    assert not list(tmp_path.glob("scores*"))
    with pytest.raises(
        InputError, match=r"worker: it would compute something else than the run that it works for: network\.weights"
    ):
        same_as(other, json.loads(json.dumps(plan.asked())))
    told = json.loads(json.dumps(plan.asked()))
    told["versions"]["torch"] = "2.0"
    with pytest.raises(InputError, match=r"versions\.torch was \"2\.0\" and is .*Install the same versions"):
        same_as(plan, told)
    with pytest.warns(UserWarning, match="begins anew"):
        run.run(small, other, tmp_path, How(force=True), silent)
    assert not list((tmp_path / "shards").glob("*"))


def test_a_worker_does_what_this_process_does(tmp_path: Path) -> None:
    """The worker's own class, in this process: images, truth, logits and options come from the folder alone."""
    small = asked(
        methods="grad_cam; dmbp(steps=2)",
        metrics="ibd_auc(border=4)",
    )
    plan = plan_of(small)[0]
    with run.claim(tmp_path, COMPARISON, plan.asked()) as store:
        store.write("request.json", json.dumps(small.to_json()).encode())
        store.write(INPUTS, run.pack_inputs(plan))
        again = plan_from(Asked.from_json(read_plan(tmp_path / "request.json") or {}), tmp_path / INPUTS)
        assert again.asked() == plan.asked()
        worker = Worker(tmp_path, 1)
        second = Worker(tmp_path, 1)  # takes the next free shard
        assert [worker.run({"method": "dmbp.steps-2", "number": 0, "halves": 0})["failed"] for _ in range(2)] == [0, 0]
        assert second.run({"method": "grad_cam", "number": 1, "halves": 1})["failed"] == 0
        worker.close()
        second.close()
        finished = Finished(plan, store, list(run.shards_of(tmp_path)))
        assert finished.pieces() == 4
        assert finished.whole(Task("dmbp.steps-2", 0))
        assert finished.whole(Task("grad_cam", 1))
        assert not finished.whole(Task("grad_cam", 0))


class FakeWorkers:
    """Workers that answer as they are told: "done", "died", "stopped"."""

    def __init__(self, script: dict[tuple[str, int], list[str]], starts: list[str] | None = None) -> None:
        self.script, self.starts = script, list(starts or ())
        self.ready: list[Answer] = []
        self.given: list[dict] = []
        self.stopped = 0

    def start(self, place: int) -> None:
        good = not self.starts or self.starts.pop(0) == "done"
        self.ready.append(Answer(place, {"ready": 1} if good else None, "with exit code 3"))

    def give(self, place: int, task: dict) -> None:
        self.given.append(task)
        does = self.script.get((task["method"], task["number"]), [])
        what = does.pop(0) if does else "done"
        told = {"done": {"failed": 0}, "died": None, "full": {"stopped": "out: no space left", "file": True},
                "other": {"stopped": "worker: other versions", "file": False}}[what]  # fmt: skip
        self.ready.append(Answer(place, told, "by SIGKILL"))

    def answers(self, seconds: float) -> Iterator[Answer]:
        ready, self.ready = self.ready, []
        yield from ready

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture(scope="module")
def plan() -> Any:
    made = plan_of(asked(methods="random; saliency", metrics="deletion(steps=2)"))[0]
    assert len(made.tasks) == 4
    return made


def pooled(plan: Any, workers: FakeWorkers, number: int = 2) -> Finished:
    finished = Finished(plan, None)
    Pool(plan, finished, silent, lambda: None).run(plan.tasks, workers, number)
    return finished


def test_a_task_whose_worker_died_is_given_to_another(plan: Any) -> None:
    workers = FakeWorkers({("random", 1): ["died"] * (WHOLE_DEATHS + 1)})
    finished = pooled(plan, workers)
    tries = [t for t in workers.given if (t["method"], t["number"]) == ("random", 1)]
    assert [t["halves"] for t in tries] == [0] * (WHOLE_DEATHS + 1) + [1]
    assert len(workers.given) == 4 + WHOLE_DEATHS + 1
    assert not finished.failures
    assert workers.stopped == 1


def test_a_task_that_no_worker_survives_is_written_down(plan: Any) -> None:
    workers = FakeWorkers({("random", 0): ["died"] * 100})
    finished = pooled(plan, workers, 1)
    assert len(workers.given) == 3 + MOST_DEATHS
    ((key, row),) = finished.failures.items()
    assert key == ("random", "", 0)
    assert row["attempts"] == MOST_DEATHS
    assert row["error"] == "the worker ended each time, the last one by SIGKILL"


def test_what_stops_all_workers_stops_the_run(plan: Any) -> None:
    for what, kind, message in (("full", FileError, "no space left"), ("other", InputError, "other versions")):
        workers = FakeWorkers({("saliency", 0): [what]})
        with pytest.raises(kind, match=message):
            pooled(plan, workers)
        assert workers.stopped == 1
    workers = FakeWorkers({}, ["no"] * 9)
    with pytest.raises(InputError, match="workers: 3 of them ended before they could begin, the last with exit code 3"):
        pooled(plan, workers)
    workers = FakeWorkers({}, ["no", "no", "done", "no"])
    pooled(plan, workers, 1)
    assert len(workers.given) == 4


def test_what_fails_is_written_down_and_the_rest_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = asked(methods="random; saliency; grad_cam", metrics="deletion(steps=2), insertion(steps=2)")
    plan = plan_of(small)[0]
    calls: dict[str, int] = {}
    each, score = Method.each, Metric.__call__

    def explained(self: Method, *arguments: Any) -> Any:
        calls[self.name] = calls.get(self.name, 0) + 1
        if self.name == "saliency" and calls[self.name] <= 2:
            raise RuntimeError("passes by itself")
        return each(self, *arguments)

    def scored(self: Metric, network: Any, examples: Any, maps: Any, methods: Any) -> Any:
        if self.name == "insertion" and "grad_cam" in maps and len(examples) == 4:
            raise ZeroDivisionError("never passes")
        return score(self, network, examples, maps, methods)

    monkeypatch.setattr(Method, "each", explained)
    monkeypatch.setattr(Metric, "__call__", scored)
    found = run.run(small, plan, tmp_path, How(), silent)
    assert found is not None
    assert calls == {"random": 2, "saliency": 4, "grad_cam": 2}
    values = found.scores.filter(metric="insertion.steps-2", method="grad_cam")["value"]
    assert values.null_count() == 4
    assert values[:8].null_count() == 0
    assert any(
        "grad_cam: 4 images have no score, as it failed on them: ZeroDivisionError: never passes" in n
        for n in found.notes["insertion.steps-2"]
    )
    assert found.ranking.filter(metric="insertion.steps-2", method="grad_cam")["images"].item() == 8
    assert "deletion.steps-2" not in found.notes or not any("failed" in n for n in found.notes["deletion.steps-2"])
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    errors = [row for row in rows if row["kind"] == "error"]
    assert [(row["name"], row["metric"], row["attempts"]) for row in errors] == [("grad_cam", "insertion.steps-2", 3)]
    monkeypatch.setattr(Metric, "__call__", score)
    again = run.run(small, plan, tmp_path, How(), silent)  # tried again, and done
    assert again is not None
    assert again.scores["value"].null_count() == 0
    assert calls == {"random": 2, "saliency": 4, "grad_cam": 2}  # its maps were there


def test_what_backlit_refuses_is_tried_once(tmp_path: Path) -> None:
    small = asked(methods="random", metrics="apc")
    found = run.run(small, plan_of(small)[0], tmp_path, How(), silent)
    assert found is not None
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {(r["kind"], r.get("attempts")) for r in rows} == {("maps", None), ("error", 1)}
    assert found.ranking["value"].null_count() == 1
    assert "needs a source signal" in " ".join(found.notes["apc"])


def test_a_block_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    small = asked(methods="saliency", metrics="deletion(steps=2)")
    plan = plan_of(small)[0]
    sizes, each = [], Method.each

    def explained(self: Method, x: torch.Tensor, targets: torch.Tensor) -> Any:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return each(self, x, targets)

    monkeypatch.setattr(Method, "each", explained)
    finished = Finished(plan, None)
    assert execute.try_task(plan, finished, Task("saliency", 0)) == 0
    assert sizes == [8, 4, 2, 2, 2, 2]
    (row,) = [row for row in finished.rows() if row["kind"] == "scores"]
    monkeypatch.setattr(Method, "each", each)
    whole = Finished(plan, None)
    execute.try_task(plan, whole, Task("saliency", 0))
    (expected,) = [row for row in whole.rows() if row["kind"] == "scores"]
    assert row["values"] == pytest.approx(expected["values"], abs=1e-5)


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, fsync, calls = plan_of(asked())[0], os.fsync, [0]

    def full(number: int) -> None:
        calls[0] += 1
        if calls[0] > 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"cannot write .*No space left on device"):
        run.run(asked(), plan, tmp_path, How(threads=1), silent)
    monkeypatch.setattr(os, "fsync", fsync)
    kept = len((tmp_path / "results.jsonl").read_text().splitlines())
    assert kept > 3
    run.run(asked(), plan, tmp_path, How(threads=1), silent)
    assert_same(results(tmp_path), results(serial))
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 24


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    small = asked(methods="random", metrics="deletion(steps=2)")
    plan = plan_of(small)[0]
    with (
        run.claim(tmp_path, COMPARISON, plan.asked()),
        pytest.raises(FileError, match=rf"is in use by process {os.getpid()} on "),
    ):
        run.run(small, plan, tmp_path, How(2, 1), silent)


def test_the_driver_keeps_bits_not_rows(tmp_path: Path) -> None:
    small = asked(methods="random", metrics="deletion(steps=2)")
    plan = plan_of(small)[0]
    run.run(small, plan, tmp_path, How(), silent)
    with run.claim(tmp_path, COMPARISON, plan.asked()) as store:
        finished = Finished(plan, store)
        assert finished._journal is not None
        assert finished._journal.rows == finished._journal.entries == []
        assert finished._done.nbytes == 4
        assert sum(1 for _ in finished.rows()) == 4
        finished.add({**next(iter(finished.rows()))})
        assert finished._journal.rows == []
        assert sum(1 for _ in finished.rows()) == 4  # a piece that is there twice counts once


WORKER_KILLER = """
import os, random, signal, sys, threading
from collections import Counter
from backlit.bench.processes import Processes
chosen, give, kills = random.Random(int(sys.argv[1])), Processes.give, Counter()
def given(self, place, task):
    give(self, place, task)
    if "method" not in task:  # what it begins with
        return
    own, pid = (task["method"], task["number"]), self._processes[place].pid
    if sum(kills.values()) < 20 and kills[own] < 2:  # after a third death, a block runs in halves
        kills[own] += 1
        threading.Timer(chosen.uniform(0.0, 0.15), os.kill, (pid, signal.SIGKILL)).start()
Processes.give = given
sys.argv = ["backlit", "bench", *sys.argv[2:]]
from backlit.cli import main
try:
    main()
finally:
    print("KILLS", sum(kills.values()))
    os._exit(0)
"""


def large(tmp_path: Path) -> tuple[Path, Path]:
    """A plan of a minute or so, and the folder with its results by one process."""
    (tmp_path / "plan.toml").write_text(
        PLAN.replace("lrp(preset=epsilon)", "lrp; dmbp; lpr(steps=40)").replace(
            '"last_layer_reset"', '"insertion", "last_layer_reset"'
        )
    )
    done = command("bench", tmp_path / "plan.toml", "--out", tmp_path / "one", "--threads", 1, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return tmp_path / "plan.toml", tmp_path / "one"


@pytest.mark.slow
def test_twenty_kills_of_workers(tmp_path: Path) -> None:
    plan, one = large(tmp_path)
    words = [
        sys.executable,
        "-c",
        WORKER_KILLER,
        "5",
        str(plan),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "2",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    print(done.stdout[-200:], done.stderr[-2000:])
    assert "KILLS 20" in done.stdout
    assert_same(results(tmp_path / "out"), results(one))


@pytest.mark.slow
def test_ten_kills_of_the_driver(tmp_path: Path) -> None:
    plan, one = large(tmp_path)
    words = [
        sys.executable,
        "-c",
        "from backlit.cli import main; main()",
        "bench",
        str(plan),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "2",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    chosen = random.Random(3)
    kills = 0
    while kills < 10:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(chosen.uniform(5.0, 12.0))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if process.returncode == 0:
            break
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    print(f"{kills} kills of the driver")
    assert_same(results(tmp_path / "out"), results(one))
