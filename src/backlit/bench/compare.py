"""`compare`: methods x images x metrics, each piece on the disk as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from backlit._errors import check_type
from backlit._store import claim
from backlit.bench.execute import Progress
from backlit.bench.executor import Serial
from backlit.bench.folder import COMPARISON
from backlit.bench.gather import gathered, write_tables
from backlit.bench.plan import Plan, methods_of, metrics_of
from backlit.bench.record import Finished
from backlit.bench.tables import polars
from backlit.comparison import Comparison
from backlit.methods import Method
from backlit.metrics import Examples, Metric
from backlit.models import LoadedModel


def compare(
    model: LoadedModel | nn.Module,
    examples: Examples,
    methods: Sequence[str | type[Method]] | Mapping[str, Method | type[Method]],
    metrics: Sequence[str | Metric | type[Metric]] | Mapping[str, Metric | type[Metric]],
    *,
    out: str | Path | None = None,
    classes: int = 1,
    shown: int = 20,
    seed: int = 0,
    target: str = "given",
    force: bool = False,
    progress: Progress = lambda done, of, what: None,
) -> Comparison:
    """Explain the same images by several methods and score the maps by several metrics.

    Args:
        model: The network, in eval mode; a :class:`LoadedModel` brings class names and the pictures' colours.
        examples: The images, their targets, and the ground truth that the metrics need.
        methods: Names of methods ("random" is one), each as it is or in a setting ("lpr(plugin=channel)"), or method objects by
            names of your own.
        metrics: Names of metrics, in settings likewise, or metric objects with their options, or such objects by names of your own.
        out: A folder for maps, tables and the record of finished work. If it holds the same comparison, unfinished, that
            goes on where it stopped. None keeps everything in memory.
        classes: Number of classes to explain of each image: its target, then those that the network finds most likely.
        shown: Number of images whose maps the result holds; all are scored.
        seed: Of methods and metrics that are given by name.
        target: What the examples' targets are ("ground truth", "predicted"), for the record.
        force: Begin anew in a folder that holds another comparison, whose files are replaced; a warning names them. What
            Backlit did not write there is never touched.
        progress: Called before each piece of work.

    Raises:
        InputError: If a name is unknown, or a metric needs what the examples lack; with ``out``, if an option is a lambda or
            a local function, by which no other process would know the comparison again.
        ModelStateError: If the network is in train mode.
        FileError: If ``out`` cannot be written, is in use by another process, or holds something else.
    """
    polars()
    check_type("examples", examples, Examples, "backlit.Examples")
    network = model.network if isinstance(model, LoadedModel) else model
    plan = Plan(
        network=network,
        loaded=model if isinstance(model, LoadedModel) else None,
        examples=examples.to(examples.inputs.device),
        methods=methods_of(network, methods, seed),
        metrics=metrics_of(metrics, seed),
        classes=classes,
        shown=shown,
        target=target,
    )
    plan.check()
    start = time.perf_counter()
    if out is None:
        finished = Finished(plan, None)
        Serial(raising=True).run(plan, finished, plan.tasks, progress)
        return gathered(plan, finished, time.perf_counter() - start)
    with claim(out, COMPARISON, plan.asked(), force=force) as store:
        finished = Finished(plan, store)
        Serial(raising=True).run(plan, finished, plan.tasks, progress)
        comparison = gathered(plan, finished, time.perf_counter() - start)
        write_tables(comparison, store)
    return comparison
