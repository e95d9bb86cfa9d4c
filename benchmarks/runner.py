"""The runner: two workers against one process, and what the driver itself costs, by tasks and rows.

    python benchmarks/runner.py workers     # SqueezeNet, 64 images, 6 methods, 4 metrics, one thread each
    python benchmarks/runner.py driver      # tasks that do nothing: the driver's time a task, and its memory by rows

Needs the shared folder for ``workers`` (BACKLIT_SHARED).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from _common import SHARED
from backlit import Examples, load_model
from backlit._store import claim
from backlit.bench.folder import COMPARISON
from backlit.bench.plan import BLOCK, Plan, methods_of, metrics_of
from backlit.bench.pool import Answer, Pool
from backlit.bench.record import Finished, map_row, score_row
from backlit.metrics import Scores

PLAN = """
methods = ["gradient_x_input", "guided_backprop", "grad_cam", "lrp", "fast", "integrated_gradients"]
metrics = ["insertion", "deletion", "morf_5", "lerf_5"]
[[networks]]
model = "squeezenet1_0"
weights = "{shared}/models/squeezenet1_0-imagenet.safetensors"
size = 227
crop = "stretch"
[[data]]
paths = "{shared}/data/ilsvrc2012-val"
read = "imagenet"
class_index = "{shared}/data/imagenet_classes.json"
limit = 64
"""


def workers() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.toml"
        plan.write_text(PLAN.format(shared=SHARED))
        seconds = {}
        for number in (0, 2, 1):
            words = [
                sys.executable,
                "-c",
                "from backlit.cli import main; main()",
                "bench",
                str(plan),
                "--device",
                "cpu",
            ]
            words += ["--threads", "1", "--workers", str(number), "--out", f"{folder}/{number}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            start = time.perf_counter()
            subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL)
            seconds[number] = time.perf_counter() - start
            print(f"{number} workers: {seconds[number]:.1f} s, of the whole command", flush=True)
        print(f"2 workers are {seconds[0] / seconds[2]:.2f} times as fast as one process")


class Nothing:
    """Workers that do nothing but write rows, as many as a task has."""

    def __init__(self, plan: Plan, finished: Finished) -> None:
        self._rows, self._finished = rows_of(plan), finished
        self._ready: list[Answer] = []
        self.spent = 0.0

    def start(self, place: int) -> None:
        self._ready.append(Answer(place, {"ready": place}))

    def give(self, place: int, task: dict) -> None:
        start = time.process_time()
        for row in self._rows:
            self._finished.add({**row, "start": BLOCK * task["number"]})
        self.spent += time.process_time() - start
        self._ready.append(Answer(place, {"failed": 0, "seconds": 0.0}))

    def answers(self, seconds: float) -> Iterator[Answer]:
        ready, self._ready = self._ready, []
        yield from ready

    def stop(self) -> None:
        pass


def rows_of(plan: Plan) -> list[dict]:
    """The rows of the first task, as a worker writes them."""
    task, block = plan.tasks[0], plan.blocks[0]
    maps = plan.methods[task.method].each(plan.images(block), plan.targets[block])
    rows = [map_row(plan, task, maps, {"seconds": 0.0, "bytes": 0.0, "forward": 1.0})]
    for name, metric in plan.metrics.items():
        examples = plan.examples[block]
        scores: Scores = metric(plan.network, examples, {task.method: maps[0]}, plan.methods)
        rows.append(score_row(plan, task, name, scores, 0.0))
    return [json.loads(json.dumps(row)) for row in rows]


def driver() -> None:
    """Each size in a process of its own: the peak of memory is the process's."""
    for tasks in (100, 1_000, 10_000):
        subprocess.run([sys.executable, __file__, "tasks", str(tasks)], check=True)


def tasks(number: int) -> None:
    model = load_model("digits")
    images = torch.zeros(1, 1, 8, 8).expand(number * BLOCK, 1, 8, 8)
    whole = Examples(images, torch.zeros(len(images), dtype=torch.int64))
    metrics = metrics_of(["deletion(steps=2)", *(f"deletion(steps={k})" for k in range(3, 11))], 0)
    plan = Plan(model.network, model, whole, methods_of(model.network, ["random"], 0), metrics, 1, 0, "given")
    plan.__dict__["logits"] = torch.zeros(1, 10).expand(len(images), 10)
    plan.__dict__["targets"] = torch.zeros(1, 1, dtype=torch.int64).expand(len(images), 1)
    with tempfile.TemporaryDirectory() as folder, claim(folder, COMPARISON, {"benchmark": number}) as store:
        finished = Finished(plan, store)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        workers = Nothing(plan, finished)
        start = time.process_time()
        Pool(plan, finished, lambda done, of, what: None, lambda: None).run(plan.tasks, workers, 2)
        spent = time.process_time() - start - workers.spent
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        again = time.process_time()
        done = Finished(plan, store).pieces()
        read = time.process_time() - again
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{len(plan.tasks)} tasks, {done} rows: the driver's own {1e3 * spent / len(plan.tasks):.3f} ms a task; memory "
            f"+{(after - before) / 1024:.1f} MB while they run, +{(most - before) / 1024:.1f} MB when all rows are read again "
            f"in {read:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1] == "tasks":
        tasks(int(sys.argv[2]))
    else:
        {"workers": workers, "driver": driver}[sys.argv[1]]()
