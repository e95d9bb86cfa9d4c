"""Explain and score one task of a comparison; what is finished is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from backlit._errors import BacklitError, FileError, reason
from backlit._forward import forward
from backlit._warn import warn
from backlit.attribution import Attribution
from backlit.bench.cost import Cost, measured
from backlit.bench.plan import Plan
from backlit.bench.record import STRIPS, Finished, Task, error_row, map_row, score_row
from backlit.methods import Gradient
from backlit.methods.chunks import out_of_memory
from backlit.metrics import Scores

MOST_ATTEMPTS = 3  # of a piece whose failure may pass: not of what Backlit refuses, which it would refuse again

Progress = Callable[[int, int, str], None]
"""``progress(done, of, what)``, called before each piece of work, or after it, and at the end."""
Begin = Callable[[str], None]
"""Called before each piece of work, with what it is."""


def warm_up(plan: Plan) -> None:
    """Run the first backward pass of the process, which takes long: it would be counted as the first method's time."""
    with suppress(BacklitError):  # a network that only some methods can explain
        Gradient(plan.network).attribute(plan.images(slice(0, 1)), 0)


def run_task(plan: Plan, finished: Finished, task: Task, begin: Begin = lambda what: None) -> None:
    """Compute a method's maps of a block and all their scores; the first failure is raised."""
    words = plan.words(plan.blocks[task.number])
    begin(f"{task.method}, {words}")
    maps = _explained(plan, finished, task)
    for metric in plan.metrics:
        begin(f"{metric} of {task.method}, {words}")
        _score(plan, finished, task, metric, maps)


def try_task(plan: Plan, finished: Finished, task: Task, begin: Begin = lambda what: None, *, halves: int = 0) -> int:
    """Do the same, but write down what fails and go on with the next piece; return the number of pieces that failed.

    Args:
        plan: What is to be done.
        finished: Where it goes.
        task: The task.
        begin: Called before each piece.
        halves: How often to halve the block from the start: where a process died of it.

    Raises:
        FileError: If nothing can be written: every other piece would fail as well.
    """
    words = plan.words(plan.blocks[task.number])
    begin(f"{task.method}, {words}")
    maps = _tried(plan, finished, task, "", lambda: _explained(plan, finished, task, halves))
    if maps is None:
        return 1 + len(plan.metrics)
    failed = 0
    for metric in plan.metrics:
        begin(f"{metric} of {task.method}, {words}")
        done = _tried(plan, finished, task, metric, lambda metric=metric: _score(plan, finished, task, metric, maps))
        failed += done is None
    return failed


def _tried(
    plan: Plan, finished: Finished, task: Task, metric: str, work: Callable[[], list[Attribution]]
) -> list[Attribution] | None:
    """What the work returns; None if it failed in each attempt, which is then written down."""
    before = finished.failures.get((task.method, metric, task.number), {}).get("attempts", 0)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        try:
            return work()
        except FileError:
            raise
        except Exception as error:  # whatever a method, a metric or the network raises
            if attempt == MOST_ATTEMPTS or isinstance(error, BacklitError):
                finished.add(error_row(plan, task, metric, reason(error), before + attempt))
                return None
    return None


def _explained(plan: Plan, finished: Finished, task: Task, halves: int = 0) -> list[Attribution]:
    """Return a method's maps of a block, one a class: from the disk if they are there, else computed and written."""
    done, block = finished.has(task), plan.blocks[task.number]
    if done:
        maps = finished.load_maps(task, plan.examples.inputs.device)
        if maps is not None:
            return maps
        warn(f"maps of {task.method}, {plan.words(block)}, are made again: some were lost or changed.")
    forward_seconds = _forward_seconds(plan.network, plan.images(block))
    with measured(plan.examples.inputs.device) as cost:
        maps = _each(plan, task.method, block, 1 << halves)
    finished.save_maps(task, maps)
    if not done:
        finished.add(map_row(plan, task, maps, {**_numbers(cost), "forward": forward_seconds}))
    return maps


def _each(plan: Plan, method: str, block: slice, parts: int) -> list[Attribution]:
    """Explain a block in so many parts, in twice as many where the memory does not reach for that."""
    size = max(1, (block.stop - block.start) // parts)
    try:
        explained: list[list[Attribution]] = []
        for start in range(block.start, block.stop, size):
            part = slice(start, min(start + size, block.stop))
            explained.append(list(plan.methods[method].each(plan.images(part), plan.targets[part].cpu())))
    except (RuntimeError, MemoryError) as error:
        if size == 1 or not out_of_memory(error):
            raise
    else:
        return explained[0] if len(explained) == 1 else [Attribution.cat(of) for of in zip(*explained, strict=True)]
    if plan.examples.inputs.is_cuda:
        torch.cuda.empty_cache()
    return _each(plan, method, block, 2 * parts)


def _score(plan: Plan, finished: Finished, task: Task, metric: str, maps: list[Attribution]) -> list[Attribution]:
    scored = finished.has(task, metric)
    if scored and (task.number or _has_pictures(plan, finished, task, metric)):
        return maps
    block, one = plan.blocks[task.number], plan.metrics[metric]
    examples = replace(plan.examples[block], inputs=plan.images(block))
    methods = {task.method: plan.methods[task.method]}
    start = time.perf_counter()
    scores = one(plan.network, examples, {task.method: of_class(maps, plan.explained_by(one, block))}, methods)
    if task.number == 0:
        _keep_pictures(finished, metric, scores)
    if not scored:
        finished.add(score_row(plan, task, metric, scores, time.perf_counter() - start))
    return maps


def of_class(maps: Sequence[Attribution], column: Tensor) -> Attribution:
    """Return for each image the map of one of its classes: ``maps`` has one an image for each, ``column`` (n,) says which."""
    if not bool(column.any()):
        return maps[0]
    return Attribution.cat([maps[c][i] for i, c in enumerate(column.tolist())])


def _keep_pictures(finished: Finished, metric: str, scores: Scores) -> None:
    for method, maps in scores.pictures.items():
        finished.save_pictures(metric, method, maps[:, :STRIPS].float())


def _has_pictures(plan: Plan, finished: Finished, task: Task, metric: str) -> bool:
    """Whether the pictures of the first block, if the metric gives some, are there or could be read."""
    layers = finished.layers(task.method, metric)
    if layers and finished.load_pictures(metric, task.method, layers) is None:
        warn(f"pictures of {metric} for {task.method} are made again: some were lost or changed.")
        return False
    return True


def _numbers(cost: Cost) -> dict[str, float]:
    return {"seconds": cost.seconds, "bytes": cost.bytes}


def _forward_seconds(network: nn.Module, x: Tensor) -> float:
    """Time one forward pass, per image: the better of two."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        forward(network, x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / len(x)
