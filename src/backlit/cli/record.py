"""The maps in the folder of `backlit explain`: those of this command, and those of earlier ones, which stay."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from backlit._claim import differences
from backlit._plain import described, network_of, versions
from backlit._store import Store
from backlit._version import __version__
from backlit.attribution import Attribution
from backlit.cli.console import shown
from backlit.cli.images import Failure, short_name
from backlit.cli.settings import Chosen, Compute
from backlit.models import LoadedModel
from backlit.report.figure import png, render_overlay

_SUMMARY, JOURNAL = "summary.json", "maps.jsonl"
_WORTH = 20  # times as long as it takes to write the summary, it is not written again


class Record:
    """What is in the folder: a row for each map, in a journal, and the summary made of them.

    Args:
        store: The folder's files, locked for this process.
        loaded: The model.
        compute: Where and how it computes.
    """

    def __init__(self, store: Store, loaded: LoadedModel, compute: Compute) -> None:
        self._store, self._loaded, self._compute = store, loaded, compute
        self._run = {
            "network": network_of(loaded.network),
            "preprocessing": json.loads(json.dumps(asdict(loaded.preprocess))),
            "device": compute.device,
            "dtype": compute.dtype,
            "versions": versions(),
        }
        self._journal = store.journal(JOURNAL)
        self._rows: dict[str, dict[str, Any]] = {}
        self._stems: dict[str, str] = {}
        for row in self._journal.rows:
            self._take(row)
        ours = set(store.there)
        self._foreign = [path.name for path in store.path.iterdir() if path.name not in ours]
        self._written, self._took = 0.0, 0.0

    def _take(self, row: dict[str, Any]) -> None:
        if row.get("gone"):
            self._rows.pop(row["name"], None)
        else:
            self._rows[row["name"]] = row
            self._stems[row["summary"]["image"]] = row["stem"]

    def _stem(self, image: Path) -> str:
        """How the files of an image begin: its name, made unique among all images and the files of others."""
        known, wanted = self._stems.get(shown(image)), short_name(image)
        if known is None:
            taken = set(self._stems.values())
            names = (wanted if i == 1 else f"{wanted}-{i}" for i in count(1))
            known = next(n for n in names if n not in taken and not any(f.startswith(f"{n}.") for f in self._foreign))
            self._stems[shown(image)] = known
        return known

    def asked(self, digest: str, chosen: Chosen) -> dict[str, Any]:
        """Return all that can change a map, but for its class; ``digest`` is that of the image's file.

        Raises:
            InputError: If an option cannot be known again.
        """
        options = described(chosen.method.Options(**chosen.options), exact=True)
        return {"picture": digest, "method": chosen.method.name, "options": options, **self._run}

    def others(self, image: Path, asked: Mapping[str, Any]) -> dict[str, str]:
        """Return the names of the maps of this image and method that were asked for otherwise, each with what differs."""
        of = (self._stem(image), asked["method"])
        found = {name: row["asked"] for name, row in self._rows.items() if (row["stem"], row["asked"]["method"]) == of}
        return {name: differences(known, dict(asked)) for name, known in found.items() if known != asked}

    def drop(self, names: Sequence[str]) -> None:
        """Remove maps with their files."""
        for name in names:
            row = {"name": name, "gone": True}
            self._journal.append(row)
            self._take(row)
            for file in _files(name):
                self._store.remove(file)

    def has(self, image: Path, chosen: Chosen, index: int, asked: Mapping[str, Any]) -> bool:
        """Whether this very map is there, whole, and with its picture."""
        name = f"{self._stem(image)}.{chosen.method.name}.{index}"
        row = self._rows.get(name)
        sound = [self._store.sound(file) is not None for file in _files(name)]
        return row is not None and row["asked"] == asked and all(sound)

    def add(self, image: Path, asked: dict[str, Any], explanation: Attribution, chance: float) -> None:
        """Write the map of one image and its picture, then its row.

        Raises:
            FileError: If it cannot be written.
            InputError: If the map holds NaN or infinity.
        """
        index, stem = int(explanation.target[0]), self._stem(image)
        name = f"{stem}.{asked['method']}.{index}"
        scale = explanation.scale()
        assert explanation.inputs is not None
        pixels = self._loaded.preprocess.restore(explanation.inputs[0].float())
        overlay = render_overlay(pixels, explanation.heatmap()[0].float(), scale=scale)
        picture, map_ = _files(name)
        self._store.write(picture, png(overlay))
        self._store.write(map_, explanation.to_bytes())
        summary = {
            "image": shown(image),
            "model": self._loaded.name,
            "method": asked["method"],
            "target": index,
            "label": self._loaded.class_names[index],
            "logit": float(explanation.output[0]),
            "probability": chance,
            "completeness": {k: float(v[0]) for k, v in explanation.completeness.items()},
            "coverage": explanation.coverage.count(),
            "provenance": dict(explanation.provenance),
            "picture": picture,
            "map": map_,
            "colour_scale": scale,
        }
        row = {"name": name, "stem": stem, "asked": asked, "summary": summary}
        self._journal.append(row)
        self._take(row)

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
            "device": self._compute.device,
            "dtype": self._compute.dtype,
            "seed": self._compute.seed,
            "maps": [row["summary"] for row in self._rows.values()],
            "failures": [{k: v for k, v in asdict(f).items() if v is not None} for f in failures],
        }
        text = json.dumps(_with_null(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        self._store.write(_SUMMARY, text.encode())
        self._written = time.monotonic()
        self._took = self._written - start


def _files(name: str) -> tuple[str, str]:
    return f"{name}.png", f"{name}.safetensors"


def _with_null(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {k: _with_null(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_null(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
