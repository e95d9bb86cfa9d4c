"""What `backlit explain` says of its maps: a table, lines where that has no room, or JSON for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from backlit.cli.console import console, say_failed, shown
from backlit.report.card import probability_text
from backlit.report.trust import percent

_WIDE = 100  # columns from which a table has room
_MOST = 40  # maps that are printed
_PREDICTIONS = 3  # of an image


@dataclass(frozen=True)
class Prediction:
    """A class that the network sees in an image."""

    label: str
    probability: float | None
    """None of a network with one output, whose softmax is 1 whatever it says."""

    def __str__(self) -> str:
        return self.label if self.probability is None else f"{self.label} {probability_text(self.probability)}"


@dataclass(frozen=True)
class Said:
    """One map as it is told of.

    Attributes:
        image: The image's path, as text.
        predictions: What the network sees in it, the likeliest first.
        method: The method's title.
        row: What the summary says of the map.
        kept: An earlier call had made it.
    """

    image: str
    predictions: Sequence[Prediction]
    method: str
    row: Mapping[str, Any]
    kept: bool

    @property
    def seconds(self) -> str:
        """Tell how long the method took, for all classes of the image together."""
        return f"{self.row['provenance']['seconds']:.2g} s"

    @property
    def share(self) -> str:
        """The share that the map accounts for of what its method promises, and of what, if that is not the logit."""
        share, whole = self.row.get("share"), self.row.get("share_of") or "the logit"
        if share is None:
            return "–"
        return percent(share) + ("" if whole == "the logit" else f" of {whole.partition(' (')[0]}")

    @property
    def target(self) -> str:
        """The class, with its probability."""
        chance = self.row.get("probability")
        return self.row["label"] + ("" if chance is None else f" {probability_text(chance)}")

    def to_json(self, out: Path) -> dict[str, Any]:
        """As a flat row of plain values."""
        names = ("label", "target", "less", "probability", "logit", "share", "share_of", "method", "colour_scale")
        return {
            "image": self.image,
            "predictions": [{"label": p.label, "probability": p.probability} for p in self.predictions],
            **{name: self.row[name] for name in names if name in self.row},
            "seconds": self.row["provenance"]["seconds"],
            **{name: shown(out / self.row[name]) for name in ("picture", "bare", "map")},
            "kept": self.kept,
        }


@dataclass
class Output:
    """Where a command's words go: rows of JSON to stdout and the rest to stderr, a table, or with ``quiet`` failures alone.

    Attributes:
        out: The folder of the maps.
        quiet: Say nothing but failures.
        as_json: Print a row of JSON for each map.
    """

    out: Path
    quiet: bool = False
    as_json: bool = False
    maps: list[Said] = field(default_factory=list)
    beside: int = 0

    def __post_init__(self) -> None:
        self.into = console(stderr=self.as_json)
        self.into.quiet = self.quiet
        self._errors = console(stderr=True) if self.quiet else self.into
        self._rows = console()

    @property
    def progress(self) -> Console:
        """Tell where a bar has its place: the terminal, if there is one."""
        if self.into.is_terminal or self.quiet:
            return self.into
        return console(stderr=True)

    def failed(self, what: str, image: str, error: str) -> None:
        """Say that something was not done for an image, and why."""
        say_failed(self._errors, what, image, error)

    def add(self, said: Said) -> None:
        """Tell of a map: at once as JSON, or in the table at the end."""
        if self.as_json:
            text = json.dumps(said.to_json(self.out), ensure_ascii=False, allow_nan=False)
            self._rows.print(text, soft_wrap=True)
        elif len(self.maps) < _MOST:
            self.maps.append(said)
        else:
            self.beside += 1

    def table(self) -> None:
        """Print the maps, as a table where there is room for one, else as lines."""
        if not self.maps:
            return
        if self.into.width >= _WIDE:
            self.into.print(self._table())
        else:
            self._lines()
        if self.beside:
            self.into.print(f"... and {self.beside} more maps, which summary.json lists")

    def _table(self) -> Table:
        heads = ("image", "predictions", "target", "method", Column("seconds", justify="right"))
        table = Table(
            *heads, Column("explained", justify="right"), Column("file", overflow="fold"), box=box.SIMPLE_HEAD
        )
        before = None
        for said in self.maps:
            new = before is None or before.image != said.image
            again = before is not None and not new and before.row["method"] == said.row["method"]
            words = ", ".join(map(str, said.predictions[:_PREDICTIONS])) if new else ""
            image = Path(said.image).name if new else ""
            seconds = "" if again else said.seconds
            table.add_row(image, words, said.target, said.method, seconds, said.share, said.row["picture"])
            before = said
        return table

    def _lines(self) -> None:
        image = None
        for said in self.maps:
            if said.image != image:
                image = said.image
                self.into.print(f"{Path(image).name}: {', '.join(map(str, said.predictions[:_PREDICTIONS]))}")
            self.into.print(f"  {said.target}, {said.method}, {said.seconds}, explained: {said.share}")
            self.into.print(f"    {shown(self.out / said.row['picture'])}")
