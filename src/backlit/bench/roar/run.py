"""Run ROAR: rank the pixels, remove, retrain; what is finished is in the folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from backlit._errors import FileError
from backlit._fingerprint import fingerprint
from backlit._journal import Rows
from backlit._json import JsonObject
from backlit._store import Store, claim
from backlit._version import __version__
from backlit.bench.roar.folder import (
    NETWORK,
    RANKED_BY,
    RESULT,
    ROAR,
    RUNS,
    TABLE,
    UNFINISHED,
    check_rows,
    key_of,
    load_network,
    protocol_of,
    ranked_by,
    row_of,
    weights_file,
)
from backlit.bench.roar.ranks import Explain, RankStore, replace_first
from backlit.bench.roar.result import MASK, ORIGINAL, RANDOM, RoarResult, RoarRow
from backlit.bench.roar.setup import (
    Methods,
    Progress,
    RoarData,
    RoarOptions,
    RoarStep,
    asked_of,
    check_labels,
    check_methods,
    removed_pixels,
)
from backlit.bench.roar.training import MakeNetwork, Trained, predicted, train
from backlit.metrics.examples import Examples


def roar(
    data: RoarData,
    make_network: MakeNetwork,
    methods: Methods,
    options: RoarOptions | None = None,
    *,
    out: str | Path,
    progress: Progress = lambda step: None,
) -> RoarResult:
    """Remove the pixels that each method ranks first, retrain from scratch, and see how much accuracy is lost.

    The network of the first seed is explained for every training and test image. A random ranking runs beside the methods.
    Every finished training is on the disk at once; the same call goes on after an interruption, from the last whole epoch,
    and ends with the same numbers. More methods, fractions, seeds and bare masks can be asked for later in the same folder.

    Args:
        data: Training and test set.
        make_network: Makes an untrained network, each time the same architecture.
        methods: By a name of your own, what makes an explainer of the trained network: a method's class, or
            ``functools.partial(Method, option=...)``, or any function of a network that returns a function of images
            and classes.
        options: What to remove and how to train.
        out: Folder of this experiment alone.
        progress: Called after each epoch and each block of maps.

    Raises:
        InputError: If the data, a method's maps or an argument cannot be used, or if a method is a lambda or local function,
            which a later call could not know again.
        FileError: If ``out`` cannot be written, is in use, or holds another experiment.
        ModelStateError: If a training diverges.
    """
    options = options or RoarOptions()
    check_methods(methods)
    check_labels(data, make_network, options)
    kinds = {name: asked_of(name, make) for name, make in {RANDOM: _nothing, **methods}.items()}
    protocol = protocol_of(data, make_network, options)
    with claim(out, ROAR, protocol) as store:
        rows = store.rows(RUNS, key_of)
        check_rows(rows, kinds, store.path)
        return _Roar(data, make_network, methods, options, progress, protocol, kinds, store, rows).run()


@dataclass(frozen=True, eq=False)
class _Roar:
    data: RoarData
    make_network: MakeNetwork
    methods: Methods
    options: RoarOptions
    progress: Progress
    protocol: JsonObject
    kinds: dict[str, JsonObject]
    store: Store
    rows: Rows

    def run(self) -> RoarResult:
        start = time.perf_counter()
        for name, make in {RANDOM: _nothing, **self.methods}.items():
            self._rank(name, make)
        for key in self.keys:
            if key not in self.rows:
                self._retrain(*key)
        for name in self.store.there:
            if name.startswith(f"{UNFINISHED}/"):  # a call was killed between a training's line and its state's removal
                self.store.remove(name)
        result = RoarResult(
            rows=tuple(row_of(self.rows[key]) for key in self.keys),
            methods=tuple(self.methods),
            constant_maps={m: {p: self.ranks.constant(m, p, d) for p, d in self._parts} for m in self.methods},
            protocol={**self.protocol, "fractions": self.options.fractions, "seeds": self.options.seeds},
            provenance={
                "versions": {"backlit": __version__, "torch": str(torch.__version__)},
                "threads": torch.get_num_threads(),
                "seconds_of_this_call": round(time.perf_counter() - start, 1),
                "seconds_of_training": round(sum(self.rows[key]["seconds"] for key in self.keys), 1),
            },
        )
        self.store.write(RESULT, (json.dumps(result.to_json(), indent=1) + "\n").encode())
        self.store.write(TABLE, (result.table() + "\n").encode())
        return result

    @cached_property
    def keys(self) -> list[tuple[str, float, int]]:
        """Every training, in an order that gives a whole table of one seed before the next seed begins."""
        names = (RANDOM, *self.methods, *(f"{m}{MASK}" for m in self.methods if self.options.mask_only))
        return [
            key
            for seed in self.options.seeds
            for key in ((ORIGINAL, 0.0, seed), *((m, f, seed) for f in self.options.fractions for m in names))
        ]

    @cached_property
    def ranks(self) -> RankStore:
        ascending = self.options.ranking == "smallest first"
        return RankStore(self.store, self.options.reduce, ascending, self.options.seeds[0])

    @cached_property
    def network(self) -> nn.Module:
        """The network that is explained: of the first seed, trained on the unmodified data."""
        key = (ORIGINAL, 0.0, self.options.seeds[0])
        if key in self.rows and (path := self.store.sound(NETWORK)) is not None:
            return load_network(path, row_of(self.rows[key]), self.make_network, self.data.train.inputs.device)
        return self._retrain(*key)

    @cached_property
    def explained(self) -> dict[str, Examples]:
        """The images, each with the class to explain."""
        parts = self.data.parts()
        if self.options.target == "label":
            return parts
        return {part: replace(data, target=predicted(self.network, data.inputs)) for part, data in parts.items()}

    @cached_property
    def fill(self) -> Tensor:
        """The value that takes a removed pixel's place, one number a channel."""
        x = self.data.train.inputs
        return x.mean((0, 2, 3), dtype=torch.float64) if self.options.replacement == "mean" else x.new_zeros(x.shape[1])

    @property
    def _parts(self) -> tuple[tuple[str, Examples], ...]:
        return tuple(self.data.parts().items())

    def _rank(self, name: str, make: Callable[[nn.Module], Explain]) -> None:
        """Order the pixels of all images by the method's maps, unless that is done."""
        kind = self.kinds[name]
        parts = [(part, data) for part, data in self._parts if self.ranks.missing(name, kind, part, data)]
        if not parts:
            return
        explain, before = make(self.network), 0
        total = sum(len(data) for _, data in parts)
        for part, data in parts:
            self.ranks.make(
                name, kind, explain, part, self.explained[part], partial(self._say_explained, name, before, total)
            )
            before += len(data)

    def _say_explained(self, name: str, before: int, total: int, done: int) -> None:
        self._say("explain", (name, 0.0, self.options.seeds[0]), before + done, total)

    def _retrain(self, method: str, fraction: float, seed: int) -> nn.Module:
        """Train on the modified training set, test on the modified test set, and write the row."""
        key = (method, fraction, seed)
        checkpoint = self.store.file(f"{UNFINISHED}/{method}-{fraction}-{seed}.safetensors")
        start = time.perf_counter()
        trained = train(
            self.make_network,
            self._modified("train", method, fraction),
            self.data.train.target,
            self.options.training,
            seed,
            checkpoint=checkpoint,
            on_epoch=lambda done, loss: self._say("train", key, done, self.options.training.epochs),
        )
        guessed = predicted(trained.network, self._modified("test", method, fraction))
        right = int((guessed == self.data.test.target).sum())
        self._write_row(key, trained, right, time.perf_counter() - start)
        if key == (ORIGINAL, 0.0, self.options.seeds[0]):
            self.store.write(NETWORK, weights_file(trained.network))
        checkpoint.remove()
        return trained.network

    def _write_row(self, key: tuple[str, float, int], trained: Trained, right: int, seconds: float) -> None:
        n = len(self.data.test)
        row = RoarRow(*key, right / n, right, n, trained.losses[-1], round(seconds, 2), fingerprint(trained.network))
        if key not in self.rows:
            self.rows.add({**asdict(row), RANKED_BY: ranked_by(self.kinds, key[0])})
        elif row.fingerprint != self.rows[key]["fingerprint"]:
            raise FileError(
                f"out: {NETWORK!r} in {str(self.store.path)!r} was lost, and training it again gives another network here (another "
                "machine or number of threads). Choose another folder."
            )

    def _modified(self, part: str, method: str, fraction: float) -> Tensor:
        data = self.data.parts()[part]
        if method == ORIGINAL:
            return data.inputs
        count = removed_pixels(fraction, data.inputs)
        ranks = self.ranks.load(method.removesuffix(MASK), part, data)
        if method.endswith(MASK):
            return replace_first(torch.ones_like(data.inputs), ranks, count, torch.zeros_like(self.fill))
        return replace_first(data.inputs, ranks, count, self.fill)

    def _say(self, stage: Literal["train", "explain"], key: tuple[str, float, int], done: int, total: int) -> None:
        finished = sum(k in self.rows for k in self.keys)
        self.progress(RoarStep(stage, *key, done, total, finished, len(self.keys)))


def _nothing(network: nn.Module) -> Explain:
    """The baseline: constant maps, whose pixels go in an order that is drawn for each image."""
    return lambda images, target: torch.zeros_like(images)
