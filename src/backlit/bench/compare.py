"""`compare`: methods x images x metrics, in blocks of images, each piece on the disk as soon as it is done."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlit._errors import BacklitError, InputError
from backlit._fingerprint import fingerprint, tensor_digest
from backlit._forward import forward
from backlit._layout import fast_layout
from backlit._plain import described, identity, kind_of, network_of, versions
from backlit._store import claim
from backlit._version import __version__
from backlit._warn import warn
from backlit.attribution import Attribution
from backlit.bench.comparison import ClassFacts, Comparison, ImageFacts, MethodFacts, Strip
from backlit.bench.folder import COMPARISON, MAPS, PROTOCOLS, TABLES
from backlit.bench.record import Done, map_row, score_row, scores_of
from backlit.bench.tables import curve_rows, difference_rows, polars, ranking_rows, score_rows
from backlit.capture.refuse import check_model
from backlit.methods import BASELINES, METHODS, Gradient, Method
from backlit.methods.inputs import check_images
from backlit.methods.lookup import find_method
from backlit.metrics import Examples, Metric, Scores
from backlit.metrics.lookup import find_metric
from backlit.models import LoadedModel
from backlit.models.loaded import numbered_classes

BLOCK = 8  # images that are explained and scored together: what an interruption costs at most
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,59}")
_STRIPS = 3  # images whose reset checks are kept to look at

Progress = Callable[[int, int, str], None]
"""``progress(done, of, what)``, called before each piece of work and at the end."""


def compare(
    model: LoadedModel | nn.Module,
    examples: Examples,
    methods: Sequence[str | type[Method]] | Mapping[str, Method | type[Method]],
    metrics: Sequence[str | Metric | type[Metric]],
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
        methods: Names of methods ("random" is one), or method objects by names of your own.
        metrics: Names of metrics, or metric objects with their options.
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
    run = _Run(
        network=model.network if isinstance(model, LoadedModel) else model,
        loaded=model if isinstance(model, LoadedModel) else None,
        examples=examples.to(examples.inputs.device),
        methods=_methods(model, methods, seed),
        metrics=_metrics(metrics, seed),
        out=None if out is None else Path(out),
        classes=classes,
        shown=shown,
        target=target,
        progress=progress,
    )
    run.check()
    return run.run(force)


def _methods(
    model: LoadedModel | nn.Module,
    methods: Sequence[str | type[Method]] | Mapping[str, Method | type[Method]],
    seed: int,
) -> dict[str, Method]:
    network = model.network if isinstance(model, LoadedModel) else model
    if isinstance(methods, str):
        raise InputError(f"methods must be a list of names, or methods by name, but is the text {methods!r}.")
    if isinstance(methods, Mapping):
        found = {name: m(network, seed=seed) if isinstance(m, type) else m for name, m in methods.items()}
    else:
        kinds = [m if isinstance(m, type) else _kind(m) for m in methods]
        found = {kind.name: kind(network, seed=seed) for kind in kinds}
    if not found:
        raise InputError("methods must name at least one method, but is empty.")
    return found


def _kind(name: Any) -> type[Method]:
    if not isinstance(name, str):
        raise InputError(
            f"methods must be names or classes, but hold {type(name).__name__}; give method objects by name: {{'name': object}}."
        )
    return find_method(name, METHODS + BASELINES)


def _metrics(metrics: Sequence[str | Metric | type[Metric]], seed: int) -> list[Metric]:
    if isinstance(metrics, str):
        raise InputError(f"metrics must be a list of names or metrics, but is the text {metrics!r}.")
    kinds = [find_metric(m) if isinstance(m, str) else m for m in metrics]
    found = [m(seed=seed) if isinstance(m, type) else m for m in kinds]
    names = [m.name for m in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f"metrics must be different, but {twice!r} is there twice. Compare twice for two protocols.")
    return found


def _check_method(name: str, method: Any, network: nn.Module) -> None:
    if not isinstance(method, Method):
        raise InputError(f"methods[{name!r}] must be a method, but is {type(method).__name__}.")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"methods must have names of letters, digits, '_', '-' and '.', at most 60: they become file "
            f"names. One is {name!r}."
        )
    if method.model is not network:
        raise InputError(f"methods[{name!r}] must explain the model that is compared, but was made for another one.")


@dataclass(frozen=True)
class _Explained:
    """One method's maps of one block: of the target, and the heatmaps of every class (t, n, h, w)."""

    first: Attribution
    heat: Tensor


@dataclass(frozen=True, eq=False)
class _Run:
    network: nn.Module
    loaded: LoadedModel | None
    examples: Examples
    methods: Mapping[str, Method]
    metrics: Sequence[Metric]
    out: Path | None
    classes: int
    shown: int
    target: str
    progress: Progress

    def check(self) -> None:
        """Refuse what could only fail later, before anything is computed or written."""
        check_images(self.examples.inputs, self.network)
        if not isinstance(self.classes, int) or self.classes < 1:
            raise InputError(f"classes must be a positive number of classes an image, but is {self.classes!r}.")
        if not isinstance(self.shown, int) or self.shown < 0:
            raise InputError(f"shown must be a number of images from 0 on, but is {self.shown!r}.")
        for name, method in self.methods.items():
            _check_method(name, method, self.network)
        check_model(self.network, (self.examples.inputs,))
        for metric in self.metrics:
            metric.check(self.network, self.examples, self.methods)
        k = self.logits.shape[1]
        low, high = int(self.examples.target.min()), int(self.examples.target.max())
        if low < 0 or high >= k:
            raise InputError(
                f"target must be class indices from 0 to {k - 1}, but reaches from {low} to {high}; the model has {k} classes."
            )
        if self.examples.labels is not None and self.examples.labels.shape[1] != k:
            raise InputError(
                f"labels must have one column a class of the model ({k}), but have {self.examples.labels.shape[1]}."
            )

    def run(self, force: bool) -> Comparison:
        start = time.perf_counter()
        if self.out is None:
            return self.computed(Done(None), start)
        with claim(self.out, COMPARISON, self.plan(), force=force) as store:
            return self.computed(Done(store), start)

    def computed(self, done: Done, start: float) -> Comparison:
        self._warm_up()
        pieces = len(self.blocks) * (len(self.methods) + len(self.metrics))
        for i, part in enumerate(self.blocks):
            explained: dict[str, _Explained] = {}
            for j, name in enumerate(self.methods):
                self.progress(i * (len(self.methods) + len(self.metrics)) + j, pieces, f"{name}, {self._images(part)}")
                explained[name] = self.explained(name, part, done)
            for j, metric in enumerate(self.metrics):
                at = i * (len(self.methods) + len(self.metrics)) + len(self.methods) + j
                self.progress(at, pieces, f"{metric.name}, {self._images(part)}")
                self.score(metric, part, {name: e.first for name, e in explained.items()}, done)
            kept = max(self.shown, _STRIPS) - part.start
            for name, one in explained.items():
                if kept > 0:
                    done.heat.setdefault(name, []).append(one.heat[:, :kept].clone())
        self.progress(pieces, pieces, "done")
        return self.gathered(done, time.perf_counter() - start)

    def _warm_up(self) -> None:
        """The first backward pass of a process takes long, and would be counted as the first method's time."""
        with suppress(BacklitError):  # a network that only some methods can explain
            Gradient(self.network).attribute(self._input(slice(0, 1)), 0)

    @cached_property
    def blocks(self) -> list[slice]:
        n = len(self.examples)
        return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]

    @cached_property
    def logits(self) -> Tensor:
        x = self.examples.inputs
        found = [forward(self.network, x[part]) for part in self.blocks]
        if not all(isinstance(y, Tensor) and y.dim() == 2 for y in found):
            kind = tuple(found[0].shape) if isinstance(found[0], Tensor) else type(found[0]).__name__
            raise InputError(f"model must give logits (n, k), but gives {kind}. Wrap it so that it returns them alone.")
        return torch.cat(found).float()

    @cached_property
    def targets(self) -> Tensor:
        """The classes to explain (n, t): the target first, then the likeliest others."""
        target, k = self.examples.target, self.logits.shape[1]
        others = self.logits.scatter(1, target[:, None], -torch.inf).topk(min(self.classes, k) - 1).indices
        return torch.cat([target[:, None], others], 1)

    def plan(self) -> dict[str, Any]:
        """What makes two comparisons the same."""
        examples = self.examples
        return {
            "versions": versions(),
            "model": self.loaded.name if self.loaded else type(self.network).__name__,
            "network": network_of(self.network),
            "images": list(examples.names),
            "pixels": tensor_digest(examples.inputs),
            "dtype": str(examples.inputs.dtype).removeprefix("torch."),
            "device": examples.inputs.device.type,
            "matmul precision": torch.get_float32_matmul_precision(),
            "truth": identity([examples.labels, examples.boxes, examples.cells]),
            "targets": self.targets.tolist(),
            "target": self.target,
            "methods": {name: _asked(m, f"methods[{name!r}].") for name, m in self.methods.items()},
            "metrics": {m.name: _asked(m, f"metrics: {m.name}.") for m in self.metrics},
            "block": BLOCK,
        }

    def explained(self, name: str, part: slice, done: Done) -> _Explained:
        """The method's maps of a block: from the disk if they are there, else computed and written."""
        targets = self.targets[part]
        found = self._loaded(name, part, done) if done.has("maps", name, part) else None
        if found is None:
            x = self._input(part)
            forward = _forward_seconds(self.network, x)
            start = time.perf_counter()
            found = list(self.methods[name].each(x, targets.cpu()))
            seconds = time.perf_counter() - start
            for t, attribution in enumerate(found):
                self._save(name, part, t, attribution, done)
            if not done.has("maps", name, part):
                done.add(map_row(name, part, found, seconds, forward))
        heat = torch.stack([a.heatmap()[:, 0].float().cpu() for a in found])
        return _Explained(found[0], heat)

    def score(self, metric: Metric, part: slice, maps: Mapping[str, Attribution], done: Done) -> None:
        scored = done.has("scores", metric.name, part)
        if scored and (part.start or self._has_pictures(metric, done)):
            return
        examples = self.examples[part]
        examples = replace(examples, inputs=self._input(part))
        start = time.perf_counter()
        found = metric(self.network, examples, maps, self.methods)
        if part.start == 0 and found.pictures:
            self._save_pictures(metric, found, done)
        if not scored:
            done.add(score_row(metric, part, found, time.perf_counter() - start))

    def _input(self, part: slice) -> Tensor:
        return fast_layout(self.network, self.examples.inputs[part])

    def _images(self, part: slice) -> str:
        return f"images {part.start + 1} to {part.stop} of {len(self.examples)}"

    def _file(self, name: str, part: slice, t: int) -> str:
        return f"{MAPS}/{name}.{part.start:06d}-{part.stop - 1:06d}.{t}.safetensors"

    def _save(self, name: str, part: slice, t: int, attribution: Attribution, done: Done) -> None:
        """One file a method, block and class; the images themselves are not written again."""
        if done.store is not None:
            done.store.write(self._file(name, part, t), replace(attribution, inputs=None).to_bytes())

    def _loaded(self, name: str, part: slice, done: Done) -> list[Attribution] | None:
        """The maps on the disk; None, with a warning, if one was lost or changed: then they are made again."""
        found = [self._load(self._file(name, part, t), done) for t in range(self.targets.shape[1])]
        whole = [one for one in found if one is not None]
        if len(whole) == len(found):
            return whole
        warn(f"maps of {name}, {self._images(part)}, are made again: some were lost or changed.")
        return None

    def _load(self, file: str, done: Done) -> Attribution | None:
        path = None if done.store is None else done.store.sound(file)
        if path is None:
            return None
        found, device = Attribution.load(path), self.examples.inputs.device
        return replace(
            found,
            values=found.values.to(device),
            target=found.target.to(device),
            output=found.output.to(device),
            parts={k: v.to(device) for k, v in found.parts.items()},
        )

    def _pictures_file(self, metric: Metric, method: str) -> str:
        return f"{MAPS}/{metric.name}.{method}.pictures.safetensors"

    def _save_pictures(self, metric: Metric, found: Scores, done: Done) -> None:
        for method, maps in found.pictures.items():
            few = maps[:, :_STRIPS].float()
            done.pictures[metric.name, method] = few
            if done.store is not None:
                zeros = torch.zeros(len(few.flatten(0, 1)), dtype=torch.int64)
                kept = Attribution(few.flatten(0, 1)[:, None], zeros, zeros.float())
                done.store.write(self._pictures_file(metric, method), kept.to_bytes())

    def _has_pictures(self, metric: Metric, done: Done) -> bool:
        """Whether the pictures of the first block, if the metric gives some, are there or could be read."""
        labels = done.row("scores", metric.name, self.blocks[0])["labels"]
        for method in self.methods if labels and done.store is not None else ():
            kept = self._load(self._pictures_file(metric, method), done)
            if kept is None:
                warn(f"pictures of {metric.name} for {method} are made again: some were lost or changed.")
                return False
            done.pictures[metric.name, method] = kept.values[:, 0].unflatten(0, (len(labels), -1))
        return True

    def gathered(self, done: Done, seconds: float) -> Comparison:
        scores = [self._joined(metric, done) for metric in self.metrics]
        facts = tuple(self._method_facts(name, done) for name in self.methods)
        heat = {name: torch.cat(blocks, 1) for name, blocks in done.heat.items()}
        images = self._image_facts()
        maps = {
            (name, image.name, c.index): values[t, i]
            for name, values in heat.items()
            for i, image in enumerate(images)
            for t, c in enumerate(image.classes)
        }
        targets = dict(zip(self.examples.names, self.examples.target.tolist(), strict=True))
        found = Comparison(
            model=self.loaded.name if self.loaded else type(self.network).__name__,
            methods=facts,
            images=images,
            maps=maps,
            scores=score_rows(scores, targets),
            curves=curve_rows(scores),
            ranking=ranking_rows(scores),
            differences=difference_rows(scores),
            protocols=tuple({**m.protocol.to_json(), "target": self.target} for m in self.metrics),
            strips=tuple(
                s
                for metric, one in zip(self.metrics, scores, strict=True)
                for s in self._strips(metric, one, heat, done)
            ),
            notes={s.metric.name: s.remarks for s in scores if s.remarks},
            provenance=self._provenance(seconds),
        )
        if done.store is not None:
            record = {"protocols": list(found.protocols), "notes": found.notes, "provenance": dict(found.provenance)}
            done.store.write(PROTOCOLS, (json.dumps(record, indent=1) + "\n").encode())
            for table in TABLES:
                frame, buffer = getattr(found, table), io.BytesIO()
                frame.write_parquet(buffer)
                done.store.write(f"{table}.parquet", buffer.getvalue())
                done.store.write(f"{table}.csv", frame.write_csv().encode())
        return found

    def _joined(self, metric: Metric, done: Done) -> Scores:
        return Scores.cat(
            [
                scores_of(metric, done.row("scores", metric.name, part), self.examples.names[part])
                for part in self.blocks
            ]
        )

    def _method_facts(self, name: str, done: Done) -> MethodFacts:
        rows = [done.row("maps", name, part) for part in self.blocks]
        method = self.methods[name]
        explained = sum(r["images"] * r["classes"] for r in rows)
        seconds = sum(r["seconds"] for r in rows) / explained
        forward = float(np.median([r["forward"] for r in rows]))
        complete = {k: float(np.mean([v for r in rows for v in r["completeness"][k]])) for k in rows[0]["completeness"]}
        return MethodFacts(
            name=name,
            title=method.title if name == method.name else f"{method.title} ({name})",
            summary=method.summary,
            source=method.source,
            options=described(method.options),
            seconds=seconds,
            forward_equivalents=seconds / forward,
            coverage=rows[0]["coverage"],
            completeness=complete,
            notes=rows[0]["notes"],
        )

    def _image_facts(self) -> tuple[ImageFacts, ...]:
        names = self.loaded.class_names if self.loaded else numbered_classes(self.logits.shape[1])
        chances = self.logits.softmax(1)
        facts = []
        for i, name in enumerate(self.examples.names[: self.shown]):
            found = [
                ClassFacts(c, names[c], float(self.logits[i, c]), float(chances[i, c]))
                for c in self.targets[i].tolist()
            ]
            facts.append(ImageFacts(name, self._picture(self.examples.inputs[i]), tuple(found)))
        return tuple(facts)

    def _picture(self, x: Tensor) -> Tensor:
        x = x.detach().float().cpu()
        if self.loaded is not None:
            return self.loaded.preprocess.restore(x)
        low, high = x.min(), x.max()
        return (x - low) / (high - low).clamp(min=1e-12)

    def _strips(self, metric: Metric, scores: Scores, heat: Mapping[str, Tensor], done: Done) -> Iterator[Strip]:
        row = done.row("scores", metric.name, self.blocks[0])
        for method in self.methods if row["labels"] else ():
            after = done.pictures[metric.name, method]
            for i in range(min(after.shape[1], _STRIPS)):
                curve = scores.curves[method][i] if scores.curves else np.array([1.0, scores.values[method][i]])
                yield Strip(
                    method=method,
                    image=self.examples.names[i],
                    metric=metric.name,
                    labels=("trained", *row["labels"]),
                    maps=(heat[method][0, i], *after[:, i]),
                    correlations={"Spearman": tuple(curve.tolist())},
                )

    def _provenance(self, seconds: float) -> dict[str, Any]:
        return {
            "images": len(self.examples),
            "fingerprint": fingerprint(self.network),
            "device": str(self.examples.inputs.device),
            "dtype": str(self.examples.inputs.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "versions": {"backlit": __version__, "torch": str(torch.__version__)},
            "date": time.strftime("%Y-%m-%d"),
            "seconds": round(seconds, 1),
        }


def _forward_seconds(network: nn.Module, x: Tensor) -> float:
    """Seconds of one forward pass, per image: the better of two."""
    found = []
    for _ in range(2):
        start = time.perf_counter()
        forward(network, x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        found.append(time.perf_counter() - start)
    return min(found) / len(x)


def _asked(one: Method | Metric, argument: str) -> dict[str, Any]:
    """What can change the numbers of a method or metric.

    Raises:
        InputError: If an option cannot be known again by another process.
    """
    try:
        return kind_of(type(one), one.options if isinstance(one, Method) else one, argument)
    except InputError as error:
        raise InputError(f"{error} Or keep nothing on the disk (out=None).") from error
