"""`compare`: methods x images x metrics, in blocks of images, each piece on the disk as soon as it is done."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlit._errors import InputError
from backlit._fingerprint import fingerprint
from backlit._version import __version__
from backlit.attribution import Attribution
from backlit.bench.comparison import ClassFacts, Comparison, ImageFacts, MethodFacts, Strip
from backlit.bench.folder import MAPS, open_folder
from backlit.bench.journal import Journal
from backlit.bench.tables import curve_rows, difference_rows, polars, ranking_rows, score_rows
from backlit.methods import BASELINES, METHODS, Gradient, Method
from backlit.methods.lookup import find_method
from backlit.metrics import Examples, Metric, Scores
from backlit.metrics.lookup import find_metric
from backlit.models import LoadedModel
from backlit.models.loaded import numbered_classes

BLOCK = 8  # images that are explained and scored together: what an interruption costs at most
_STRIPS = 3  # images whose reset checks are kept to look at

Progress = Callable[[int, int, str], None]
"""``progress(done, of, what)``, called before each piece of work and at the end."""


def compare(
    model: LoadedModel | nn.Module,
    examples: Examples,
    methods: Sequence[str] | Mapping[str, Method],
    metrics: Sequence[str | Metric],
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
        force: Begin anew in a folder that holds something else.
        progress: Called before each piece of work.

    Raises:
        InputError: If a name is unknown, or a metric needs what the examples lack.
        FileError: If ``out`` cannot be written or holds something else.
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
    model: LoadedModel | nn.Module, methods: Sequence[str] | Mapping[str, Method], seed: int
) -> dict[str, Method]:
    if isinstance(methods, Mapping):
        found = dict(methods)
    else:
        network = model.network if isinstance(model, LoadedModel) else model
        kinds = [find_method(name, METHODS + BASELINES) for name in methods]
        found = {kind.name: kind(network, seed=seed) for kind in kinds}
    if not found:
        raise InputError("methods must name at least one method, but is empty.")
    return found


def _metrics(metrics: Sequence[str | Metric], seed: int) -> list[Metric]:
    found = [m if isinstance(m, Metric) else find_metric(m)(seed=seed) for m in metrics]
    names = [m.name for m in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f"metrics must be different, but {twice!r} is there twice. Compare twice for two protocols.")
    return found


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
        """Refuse what could only fail later."""
        if not isinstance(self.classes, int) or self.classes < 1:
            raise InputError(f"classes must be a positive number of classes an image, but is {self.classes!r}.")
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
        for metric in self.metrics:
            metric.check(self.examples, self.methods)

    def run(self, force: bool) -> Comparison:
        start = time.perf_counter()
        journal = None if self.out is None else open_folder(self.out, self.plan(), force=force)
        done = _Done(journal)
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
            for name, one in explained.items():
                done.heat.setdefault(name, []).append(one.heat)
        self.progress(pieces, pieces, "done")
        return self.gathered(done, time.perf_counter() - start)

    def _warm_up(self) -> None:
        """The first backward pass of a process takes long, and would be counted as the first method's time."""
        Gradient(self.network).attribute(self._input(slice(0, 1)), 0)

    @cached_property
    def blocks(self) -> list[slice]:
        n = len(self.examples)
        return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]

    @cached_property
    def logits(self) -> Tensor:
        x = self.examples.inputs
        with torch.no_grad():
            return torch.cat([self.network(x[part].clone()).float() for part in self.blocks])

    @cached_property
    def targets(self) -> Tensor:
        """The classes to explain (n, t): the target first, then the likeliest others."""
        target, k = self.examples.target, self.logits.shape[1]
        others = self.logits.scatter(1, target[:, None], -torch.inf).topk(min(self.classes, k) - 1).indices
        return torch.cat([target[:, None], others], 1)

    def plan(self) -> dict[str, Any]:
        """What makes two comparisons the same."""
        pixels = hashlib.sha256(self.examples.inputs.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return {
            "backlit": __version__,
            "model": self.loaded.name if self.loaded else type(self.network).__name__,
            "fingerprint": fingerprint(self.network),
            "images": list(self.examples.names),
            "pixels": pixels,
            "targets": self.targets.tolist(),
            "target": self.target,
            "methods": {name: {"method": m.name, "options": _options(m)} for name, m in self.methods.items()},
            "metrics": {m.name: m.protocol.to_json()["options"] for m in self.metrics},
            "block": BLOCK,
        }

    def explained(self, name: str, part: slice, done: _Done) -> _Explained:
        """The method's maps of a block: from the disk if they are there, else computed and written."""
        targets = self.targets[part]
        if done.has("maps", name, part):
            assert self.out is not None
            found = [self._load(name, part, t) for t in range(targets.shape[1])]
        else:
            x = self._input(part)
            forward = _forward_seconds(self.network, x)
            start = time.perf_counter()
            found = list(self.methods[name].each(x, targets.cpu()))
            seconds = time.perf_counter() - start
            for t, attribution in enumerate(found):
                self._save(name, part, t, attribution)
            done.add(_map_row(name, part, found, seconds, forward))
        heat = torch.stack([a.heatmap()[:, 0].float().cpu() for a in found])
        return _Explained(found[0], heat)

    def score(self, metric: Metric, part: slice, maps: Mapping[str, Attribution], done: _Done) -> None:
        if done.has("scores", metric.name, part):
            return
        examples = self.examples[part]
        examples = replace(examples, inputs=self._input(part))
        start = time.perf_counter()
        found = metric(self.network, examples, maps, self.methods)
        if part.start == 0 and found.pictures:
            self._save_pictures(metric, found, done)
        done.add(_score_row(metric, part, found, time.perf_counter() - start))

    def _input(self, part: slice) -> Tensor:
        """Channels last on the CPU, where a forward pass then takes half the time."""
        x = self.examples.inputs[part]
        return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x

    def _images(self, part: slice) -> str:
        return f"images {part.start + 1} to {part.stop} of {len(self.examples)}"

    def _file(self, name: str, part: slice, t: int) -> Path:
        assert self.out is not None
        return self.out / MAPS / f"{name}.{part.start:06d}-{part.stop - 1:06d}.{t}.safetensors"

    def _save(self, name: str, part: slice, t: int, attribution: Attribution) -> None:
        """One file a method, block and class; the images themselves are not written again."""
        if self.out is not None:
            replace(attribution, inputs=None).save(self._file(name, part, t))

    def _load(self, name: str, part: slice, t: int) -> Attribution:
        found = Attribution.load(self._file(name, part, t))
        device = self.examples.inputs.device
        return replace(
            found,
            values=found.values.to(device),
            target=found.target.to(device),
            output=found.output.to(device),
            parts={k: v.to(device) for k, v in found.parts.items()},
        )

    def _save_pictures(self, metric: Metric, found: Scores, done: _Done) -> None:
        for method, maps in found.pictures.items():
            few = maps[:, :_STRIPS].float()
            done.pictures[metric.name, method] = few
            if self.out is not None:
                zeros = torch.zeros(len(few.flatten(0, 1)), dtype=torch.int64)
                kept = Attribution(few.flatten(0, 1)[:, None], zeros, zeros.float())
                kept.save(self.out / MAPS / f"{metric.name}.{method}.pictures.safetensors")

    def gathered(self, done: _Done, seconds: float) -> Comparison:
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
        if self.out is not None:
            for table in ("scores", "curves", "ranking", "differences"):
                getattr(found, table).write_parquet(self.out / f"{table}.parquet")
        return found

    def _joined(self, metric: Metric, done: _Done) -> Scores:
        return Scores.cat(
            [_scores(metric, done.row("scores", metric.name, part), self.examples.names[part]) for part in self.blocks]
        )

    def _method_facts(self, name: str, done: _Done) -> MethodFacts:
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
            options=_options(method),
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

    def _strips(self, metric: Metric, scores: Scores, heat: Mapping[str, Tensor], done: _Done) -> Iterator[Strip]:
        row = done.row("scores", metric.name, self.blocks[0])
        for method in self.methods if row["labels"] else ():
            after = done.pictures.get((metric.name, method))
            if after is None:
                assert self.out is not None
                flat = Attribution.load(self.out / MAPS / f"{metric.name}.{method}.pictures.safetensors").values[:, 0]
                after = flat.view(len(row["labels"]), -1, *flat.shape[1:])
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


class _Done:
    """What is finished: in the journal if there is one, else in memory."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._rows = {_key(row): row for row in (journal.rows if journal else ())}
        self.heat: dict[str, list[Tensor]] = {}
        self.pictures: dict[tuple[str, str], Tensor] = {}

    def has(self, kind: str, name: str, part: slice) -> bool:
        return (kind, name, part.start) in self._rows

    def row(self, kind: str, name: str, part: slice) -> dict[str, Any]:
        return self._rows[kind, name, part.start]

    def add(self, row: dict[str, Any]) -> None:
        if self._journal is not None:
            self._journal.append(row)
        self._rows[_key(row)] = row


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["kind"], row["name"], row["start"]


def _map_row(name: str, part: slice, found: list[Attribution], seconds: float, forward: float) -> dict[str, Any]:
    first = found[0]
    known = {"method", "options", "model", "fingerprint", "seed", "versions", "device", "dtype", "seconds"}
    return {
        "kind": "maps",
        "name": name,
        "start": part.start,
        "images": len(first),
        "classes": len(found),
        "seconds": seconds,
        "forward": forward,
        "coverage": first.coverage.count(),
        "completeness": {k: v.double().tolist() for k, v in first.completeness.items()},
        "notes": {k: v for k, v in first.provenance.items() if k not in known},
    }


def _score_row(metric: Metric, part: slice, found: Scores, seconds: float) -> dict[str, Any]:
    def plain(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: v.tolist() for name, v in values.items()}

    return {
        "kind": "scores",
        "name": metric.name,
        "start": part.start,
        "seconds": seconds,
        "values": plain(found.values),
        "curves": plain(found.curves),
        "positions": None if found.positions is None else found.positions.tolist(),
        "groups": None if found.groups is None else found.groups.tolist(),
        "extra": {k: plain(v) for k, v in found.extra.items()},
        "labels": list(found.labels),
        "counts": dict(found.counts),
        "notes": list(found.notes),
    }


def _scores(metric: Metric, row: dict[str, Any], names: Sequence[str]) -> Scores:
    def arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.array(v, dtype=np.float64) for name, v in values.items()}

    return Scores(
        metric=metric,
        names=names,
        values=arrays(row["values"]),
        curves=arrays(row["curves"]),
        positions=None if row["positions"] is None else np.array(row["positions"]),
        groups=None if row["groups"] is None else np.array(row["groups"]),
        extra={k: arrays(v) for k, v in row["extra"].items()},
        labels=row["labels"],
        counts=row["counts"],
        notes=row["notes"],
    )


def _forward_seconds(network: nn.Module, x: Tensor) -> float:
    """Seconds of one forward pass, per image: the better of two."""
    found = []
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            network(x.clone())
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            found.append(time.perf_counter() - start)
    return min(found) / len(x)


def _options(method: Method) -> dict[str, Any]:
    """Options as JSON can hold them; what is called back is none."""
    values = {f.name: getattr(method.options, f.name) for f in fields(method.options) if f.name != "callback"}
    return {k: v if v is None or isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
