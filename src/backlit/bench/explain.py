"""A folder of explained images: maps of this call and of earlier ones, each with its pictures, a summary and one page.

with map_folder("out", loaded, device="cpu", dtype="float32", seed=0) as folder:
    asked = folder.asked(digest, "saliency", options)         # all that can change a map, but for its class
    if not folder.has(image, target, asked):                   # made by an earlier call, and whole
        folder.add(image, asked, target, explanation, chance)
    folder.draw(image, asked, "card", "image")
    folder.write_page()
    folder.write_summary([])
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch

from backlit._claim import differences
from backlit._files import path_text
from backlit._json import JsonObject, with_null
from backlit._plain import described, network_of, versions
from backlit._store import Store, share
from backlit._version import __version__
from backlit.attribution import Attribution
from backlit.data.listing import Failure, short_name
from backlit.models import LoadedModel
from backlit.report.card import card
from backlit.report.figure import png
from backlit.report.folder import folder_page
from backlit.report.kinds import limit_of
from backlit.report.trust import trust

_SUMMARY, JOURNAL, PAGE = "summary.json", "maps.jsonl", "index.html"
_TIMES = 2  # the network's pixels: so large is the photograph on a card
_WORTH = 20  # times as long as it takes to write the summary, it is not written again


class MapTarget(Protocol):
    """A class that a map is of, or its logit less that of another class."""

    @property
    def index(self) -> int:
        """The class."""
        ...

    @property
    def less(self) -> int | None:
        """The class whose logit is subtracted."""
        ...

    @property
    def top(self) -> int | None:
        """The number of likeliest others whose mean logit is subtracted."""
        ...

    @property
    def key(self) -> str:
        """Its name in files and rows."""
        ...

    def label(self, names: tuple[str, ...]) -> str:
        """Its name, where the classes have these."""
        ...


@contextmanager
def map_folder(out: str | Path, loaded: LoadedModel, *, device: str, dtype: str, seed: int) -> Iterator[MapFolder]:
    """Hold the lock of a folder of maps, new or of earlier calls; other files may be in it.

    Args:
        out: The folder.
        loaded: The model that is explained.
        device: What it computes on.
        dtype: The precision in which it computes.
        seed: The seed that the summary tells.

    Raises:
        FileError: If the folder cannot be written, or is in use.
    """
    with share(out, JOURNAL) as store:
        yield MapFolder(store, loaded, {"device": device, "dtype": dtype, "seed": seed})


class MapFolder:
    """The maps in a folder: a row for each in a journal, and the summary made of them; :func:`map_folder` makes it.

    Args:
        store: The folder's files, locked for this process.
        loaded: The model.
        compute: Device, dtype and seed.
    """

    def __init__(self, store: Store, loaded: LoadedModel, compute: JsonObject) -> None:
        self._store, self._loaded, self._compute = store, loaded, compute
        self._run = {
            "network": network_of(loaded.network),
            "preprocessing": json.loads(json.dumps(asdict(loaded.preprocess))),
            "device": compute["device"],
            "dtype": compute["dtype"],
            "versions": versions(),
        }
        self._journal = store.journal(JOURNAL)
        self._rows: dict[str, JsonObject] = {}
        self._stems: dict[str, str] = {}
        self._page: str | None = None
        for row in self._journal.rows:
            self._take(row)
        ours = set(store.there)
        self._foreign = [path.name for path in store.path.iterdir() if path.name not in ours]
        self._written, self._took = 0.0, 0.0

    def _take(self, row: JsonObject) -> None:
        if "page" in row:
            self._page = row["page"]
        elif row.get("gone"):
            self._rows.pop(row["name"], None)
        else:
            self._rows[row["name"]] = row
            self._stems[row["summary"]["image"]] = row["stem"]

    def _stem(self, image: Path) -> str:
        """Choose how the files of an image begin: its name, made unique among all images and the files of others."""
        known, wanted = self._stems.get(path_text(image)), short_name(image)
        if known is None:
            taken = set(self._stems.values())
            names = (wanted if i == 1 else f"{wanted}-{i}" for i in count(1))
            known = next(n for n in names if n not in taken and not any(f.startswith(f"{n}.") for f in self._foreign))
            self._stems[path_text(image)] = known
        return known

    def asked(self, digest: str, method: str, options: Any) -> JsonObject:
        """Return all that can change a map, but for its class.

        Args:
            digest: The digest of the image's file.
            method: What files and rows call the method.
            options: A value of it, without a network or with one: its options are what counts.

        Raises:
            InputError: If an option cannot be known again.
        """
        return {"picture": digest, "method": method, "options": described(options, exact=True), **self._run}

    def others(self, image: Path, asked: JsonObject) -> dict[str, str]:
        """Return the names of the maps of this image and method that were asked for otherwise, each with what differs."""
        of = (self._stem(image), asked["method"])
        there = {name: row["asked"] for name, row in self._rows.items() if (row["stem"], row["asked"]["method"]) == of}
        return {name: differences(known, dict(asked)) for name, known in there.items() if known != asked}

    def drop(self, names: Sequence[str]) -> None:
        """Remove maps with their files."""
        for name in names:
            self._keep({"name": name, "gone": True})
            for file in _files(name):
                self._store.remove(file)

    def has(self, image: Path, target: MapTarget, asked: JsonObject) -> bool:
        """Tell whether this very map is there, and whole; its pictures are drawn again where they are not."""
        name = self._name(image, target, asked)
        row = self._rows.get(name)
        return row is not None and row["asked"] == asked and self._store.sound(_map(name)) is not None

    def _name(self, image: Path, target: MapTarget, asked: JsonObject) -> str:
        return f"{self._stem(image)}.{asked['method']}.{target.key}"

    def add(
        self, image: Path, asked: JsonObject, target: MapTarget, explanation: Attribution, chance: float | None
    ) -> None:
        """Write the map of one image, then its row; :meth:`draw` adds the pictures.

        Raises:
            FileError: If it cannot be written.
        """
        name = self._name(image, target, asked)
        limit, verdict = limit_of(explanation)[0], trust(explanation)
        self._store.write(_map(name), explanation.to_bytes())
        summary = {
            "image": path_text(image),
            "model": self._loaded.name,
            "method": asked["method"],
            "target": target.index,
            **({} if target.less is None else {"less": target.less}),
            **({} if target.top is None else {"less_top": target.top}),
            "label": target.label(self._loaded.class_names),
            "logit": float(explanation.output[0]),
            **({"probability": chance} if target.less is None and target.top is None and chance is not None else {}),
            "share": verdict.share,
            "share_of": verdict.whole,
            "completeness": {k: float(v[0]) for k, v in explanation.completeness.items()},
            "coverage": explanation.coverage.count(),
            "provenance": dict(explanation.provenance),
            "picture": f"{name}.png",
            "bare": f"{name}.bare.png",
            "map": _map(name),
            "colour_scale": limit,
        }
        self._keep(
            {
                "name": name,
                "stem": self._stem(image),
                "asked": asked,
                "summary": summary,
                "limit": limit,
                "firm": not verdict.near_nothing,
            }
        )

    def _keep(self, row: JsonObject) -> None:
        self._journal.append(row)
        self._take(row)

    def draw(self, image: Path, asked: JsonObject, style: Any, how: str) -> None:
        """Draw what one method made of one image, where it is not drawn so: by ``how`` "image" all of it has one scale.

        Raises:
            FileError: If a picture cannot be written, or the image not be read.
        """
        of = (self._stem(image), asked)
        rows = [row for row in self._rows.values() if (row["stem"], row["asked"]) == of]
        shared = how == "image" and len(rows) > 1
        limits = [self._limit(row) for row in rows]  # as backlit.report.scales has it, without reading every map again
        picture = None
        for row, (firm, own) in zip(rows, limits, strict=True):
            wanted = {"style": style, "scale": max(limits)[1] if shared else own, "shared": shared}
            files = (f"{row['name']}.png", f"{row['name']}.bare.png")
            if row.get("drawn") == wanted and all(self._store.sound(file) is not None for file in files):
                continue
            picture = self._loaded.preprocess.picture(image, times=_TIMES) if picture is None else picture
            explanation = self._load(row)
            for file, kind in zip(files, (style, "bare"), strict=True):
                drawn = card(explanation, picture, scale=wanted["scale"] if shared else None, style=kind)
                self._store.write(file, png(drawn))
            summary = {**row["summary"], "bare": files[1], "colour_scale": wanted["scale"]}
            self._keep({**row, "summary": summary, "limit": own, "firm": firm, "drawn": wanted})

    def _limit(self, row: JsonObject) -> tuple[bool, float]:
        """Whether a map has a say in a shared scale, for it is more than nothing, and where its own colours end."""
        if "limit" in row:
            return row["firm"], row["limit"]
        explanation = self._load(row)
        return not trust(explanation).near_nothing, limit_of(explanation)[0]

    def _load(self, row: JsonObject) -> Attribution:
        """Load the map of a row; one of an earlier version does not know its class's name and probability."""
        explanation = Attribution.load(self._store.path / _map(row["name"]))
        if explanation.labels is not None:
            return explanation
        known = row["summary"]
        chance = torch.full_like(explanation.output, known["probability"])
        return replace(explanation, labels=(known["label"],), probability=chance)

    def summaries(self, image: Path, asked: JsonObject) -> dict[str, JsonObject]:
        """Return what the summary says of the maps that a method made of an image, by what their targets are called."""
        of = (self._stem(image), asked)
        rows = [row for row in self._rows.values() if (row["stem"], row["asked"]) == of]
        return {row["name"].rpartition(".")[2]: row["summary"] for row in rows}

    def check_page(self) -> None:
        """See that the page's name is free.

        Raises:
            FileError: If somebody else's file has it.
        """
        self._store.check(PAGE)

    def write_page(self) -> None:
        """Write the page of all maps in the folder, unless it is there as it would be.

        Raises:
            FileError: If it cannot be written.
        """
        rows = [row for row in self._rows.values() if "drawn" in row]
        shown = json.dumps([__version__, [(row["name"], row["drawn"], row["asked"]) for row in rows]])
        digest = hashlib.sha256(shown.encode()).hexdigest()
        if digest != self._page or self._store.sound(PAGE) is None:
            self._store.write(PAGE, folder_page(rows, self._load))
            self._keep({"page": digest})

    def write_summary(self, failures: Sequence[Failure], *, if_due: bool = False) -> None:
        """Write the summary of all maps in the folder, and of what failed in this command.

        Args:
            failures: What failed.
            if_due: Not so often that it would take a good part of the time: a long one is written less often.

        Raises:
            FileError: If it cannot be written, or somebody else's file has its name.
        """
        start = time.monotonic()
        if if_due and start - self._written < _WORTH * self._took:
            return
        summary = {
            "backlit": __version__,
            "model": self._loaded.name,
            **self._compute,
            "maps": [row["summary"] for row in self._rows.values()],
            "failures": [{k: v for k, v in asdict(f).items() if v is not None} for f in failures],
        }
        text = json.dumps(with_null(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        self._store.write(_SUMMARY, text.encode())
        self._written = time.monotonic()
        self._took = self._written - start


def _map(name: str) -> str:
    return f"{name}.safetensors"


def _files(name: str) -> tuple[str, ...]:
    return f"{name}.png", f"{name}.bare.png", _map(name)
