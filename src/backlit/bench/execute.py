"""Explain and score a comparison's images, block by block; what is finished is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor, nn

from backlit._errors import BacklitError
from backlit._forward import forward
from backlit._warn import warn
from backlit.attribution import Attribution
from backlit.bench.plan import Plan
from backlit.bench.record import Finished, map_row, score_row
from backlit.methods import Gradient
from backlit.metrics import Scores

STRIPS = 3  # images whose reset checks are kept to look at

Progress = Callable[[int, int, str], None]
"""``progress(done, of, what)``, called before each piece of work and at the end."""


def execute(plan: Plan, finished: Finished, progress: Progress) -> None:
    """Do what is not finished yet, a method or metric on a block of images at a time."""
    _warm_up(plan)
    pieces, piece = len(plan.blocks) * (len(plan.methods) + len(plan.metrics)), count()

    def begin(name: str, block: slice) -> None:
        progress(next(piece), pieces, f"{name}, {plan.words(block)}")

    for block in plan.blocks:
        maps: dict[str, list[Attribution]] = {}
        for name in plan.methods:
            begin(name, block)
            maps[name] = _explained(plan, finished, name, block)
            _keep_heat(plan, finished, name, block, maps[name])
        for metric in plan.metrics:
            begin(metric, block)
            _score(plan, finished, metric, block, maps)
    progress(pieces, pieces, "done")


def _warm_up(plan: Plan) -> None:
    """Run the first backward pass of the process, which takes long: it would be counted as the first method's time."""
    with suppress(BacklitError):  # a network that only some methods can explain
        Gradient(plan.network).attribute(plan.images(slice(0, 1)), 0)


def _explained(plan: Plan, finished: Finished, name: str, block: slice) -> list[Attribution]:
    """Return a method's maps of a block, one a class: from the disk if they are there, else computed and written."""
    done = finished.has("maps", name, block)
    if done:
        maps = finished.load_maps(name, block, plan.targets.shape[1], plan.examples.inputs.device)
        if maps is not None:
            return maps
        warn(f"maps of {name}, {plan.words(block)}, are made again: some were lost or changed.")
    x = plan.images(block)
    forward_seconds = _forward_seconds(plan.network, x)
    start = time.perf_counter()
    maps = list(plan.methods[name].each(x, plan.targets[block].cpu()))
    seconds = time.perf_counter() - start
    finished.save_maps(name, block, maps)
    if not done:
        finished.add(map_row(name, block, maps, seconds, forward_seconds))
    return maps


def _keep_heat(plan: Plan, finished: Finished, name: str, block: slice, maps: list[Attribution]) -> None:
    """Keep the heatmaps (t, n, h, w) of the images that the result shows."""
    kept = max(plan.shown, STRIPS) - block.start
    if kept > 0:
        heat = torch.stack([a.heatmap()[:, 0].float().cpu() for a in maps])
        finished.heat.setdefault(name, []).append(heat[:, :kept].clone())


def _score(plan: Plan, finished: Finished, name: str, block: slice, maps: Mapping[str, Sequence[Attribution]]) -> None:
    metric, scored = plan.metrics[name], finished.has("scores", name, block)
    if scored and (block.start or _has_pictures(plan, finished, name)):
        return
    examples = replace(plan.examples[block], inputs=plan.images(block))
    column = plan.explained_by(metric, block)
    start = time.perf_counter()
    scores = metric(plan.network, examples, {n: of_class(m, column) for n, m in maps.items()}, plan.methods)
    if block.start == 0:
        _keep_pictures(finished, name, scores)
    if not scored:
        finished.add(score_row(name, block, scores, time.perf_counter() - start))


def of_class(maps: Sequence[Attribution], column: Tensor) -> Attribution:
    """Return for each image the map of one of its classes: ``maps`` has one an image for each, ``column`` (n,) says which."""
    if not bool(column.any()):
        return maps[0]
    return Attribution.cat([maps[c][i] for i, c in enumerate(column.tolist())])


def _keep_pictures(finished: Finished, metric: str, scores: Scores) -> None:
    for method, maps in scores.pictures.items():
        finished.save_pictures(metric, method, maps[:, :STRIPS].float())


def _has_pictures(plan: Plan, finished: Finished, metric: str) -> bool:
    """Whether the pictures of the first block, if the metric gives some, are there or could be read."""
    labels = finished.row("scores", metric, plan.blocks[0])["labels"]
    for method in plan.methods if labels else ():
        if not finished.load_pictures(metric, method, len(labels), plan.examples.inputs.device):
            warn(f"pictures of {metric} for {method} are made again: some were lost or changed.")
            return False
    return True


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
