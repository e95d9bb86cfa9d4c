"""A plan of many comparisons: networks x data x seeds, each of the same methods and metrics; from a TOML file or from Python."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from types import NoneType
from typing import TypeVar

from backlit._errors import FileError, InputError, check_type, check_whole, check_word, nearest, shown
from backlit._files import refusals
from backlit._json import JsonObject
from backlit.bench.asked import Asked, checked
from backlit.bench.plan import check_counts
from backlit.bench.setting import safe_name
from backlit.bench.source import READERS, Source
from backlit.models import LoadedModel

Planned = TypeVar("Planned")


@dataclass(frozen=True)
class PlannedNetwork:
    """A network of a plan.

    Attributes:
        model: Its name, as ``load_model`` takes it.
        weights: A safetensors file, "random", or None for its own.
        preprocessing: Changes to its own: size, mean, std, crop and the like.
        name: What folders and tables call it; the model's name, if not given.
    """

    model: str
    weights: str | None = None
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        check_type("model", self.model, str, "the name of a network, as load_model takes it")
        check_type("weights", self.weights, (str, Path, NoneType), "a file, 'random' or None")
        check_type("preprocessing", self.preprocessing, Mapping, "a mapping of changes by name")
        for name in self.preprocessing:
            check_type("preprocessing", name, str, "a mapping by names, but one of them")
        check_type("name", self.name, str, "a text")


@dataclass(frozen=True)
class PlannedData:
    """Images of a plan.

    Attributes:
        paths: Files or folders; one folder for a data set; none for the embedded scenes.
        read: How to read them: "images", "folder", "imagenet", "voc", "cifar10", "mnist".
        target: For images without labels: a class, or "predicted".
        class_index: A class-index file, for folders and ImageNet.
        annotations: A folder of annotations with boxes, for ImageNet.
        scaled: The pictures are scaled copies of the annotated ones.
        part: Which part of a data set to take, dealt in turn: "2/2" is every second image, from the second on.
        limit: How many images to take of that, evenly spread.
        mosaic: Cells a side of mosaics made of the data set; 0 for none.
        name: What folders and tables call them; the last part of the path, if not given.
    """

    paths: tuple[str, ...] = ()
    read: str = "images"
    target: str = "predicted"
    class_index: str | None = None
    annotations: str | None = None
    scaled: bool = False
    part: str = ""
    limit: int | None = None
    mosaic: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        check_several("paths", self.paths, (str, Path), "paths of files or folders")
        check_word("read", self.read, ("images", *READERS))
        for name in ("target", "part", "name"):
            check_type(name, getattr(self, name), str, "a text")
        for name in ("class_index", "annotations"):
            check_type(name, getattr(self, name), (str, Path, NoneType), "a path or None")
        check_type("scaled", self.scaled, bool, "True or False")
        check_whole("limit", self.limit, none=True)
        check_whole("mosaic", self.mosaic, low=0)


@dataclass(frozen=True)
class Suite:
    """A plan: every network on all data, by all methods, scored by all metrics, with each seed.

    Attributes:
        networks: The networks.
        data: The images.
        methods: Methods, each in a setting: "lpr", "lpr(plugin=channel)".
        metrics: Metrics likewise.
        options: Options by name, "dmbp.steps=40".
        fitted: Files of `backlit fit`.
        seeds: Seeds of methods and metrics.
        classes: Number of classes to explain of each image; the first is scored.
        shown: Number of images whose maps the reports show.
        device: Where to compute.
        dtype: In what precision.
    """

    networks: Sequence[PlannedNetwork]
    data: Sequence[PlannedData]
    methods: Sequence[str]
    metrics: Sequence[str]
    options: Sequence[str] = ()
    fitted: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    classes: int = 1
    shown: int = 20
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_several("networks", self.networks, PlannedNetwork, "values of PlannedNetwork")
        check_several("data", self.data, PlannedData, "values of PlannedData")
        for name in ("methods", "metrics", "options"):
            check_several(name, getattr(self, name), str, "texts, such as 'lpr(steps=40)'")
        check_several("fitted", self.fitted, (str, Path), "files of `backlit fit`")
        check_several("seeds", self.seeds, int, "whole numbers")
        for name in ("networks", "data", "methods", "metrics", "seeds"):
            if not getattr(self, name):
                raise InputError(f"{name} must hold at least one, but is empty.")
        check_counts(self.classes, self.shown)
        for name in ("device", "dtype"):
            check_type(name, getattr(self, name), str, "a text, such as 'cpu' or 'float32'")

    def comparisons(self) -> dict[str, Asked]:
        """Return each comparison by the name of its folder: what makes it differ from the others; "" if there is one.

        Raises:
            InputError: If two have one name.
        """
        networks, data, seeds = (
            _named("networks", self.networks),
            _named("data", self.data),
            _named("seeds", self.seeds),
        )
        several = [len(axis) > 1 for axis in (networks, data, seeds)]
        return {
            "/".join(name for name, differs in zip(names, several, strict=True) if differs): self._asked(
                networks[names[0]], data[names[1]], seeds[names[2]]
            )
            for names in product(networks, data, seeds)
        }

    def _asked(self, network: PlannedNetwork, data: PlannedData, seed: int) -> Asked:
        return Asked(
            model=network.model,
            source=source_of(data, seed),
            methods="; ".join(self.methods),
            metrics="; ".join(self.metrics),
            options=tuple(self.options),
            fitted=tuple(self.fitted),
            weights=network.weights,
            preprocessing=dict(network.preprocessing),
            seed=seed,
            classes=self.classes,
            shown=self.shown,
            device=self.device,
            dtype=self.dtype,
        )

    def check(self) -> None:
        """See that every comparison can be had, before any is computed: names, options, files, and what metrics need.

        Raises:
            InputError: If something cannot be used; says of which comparison.
            FileError: If a file is missing or cannot be read.
        """
        comparisons = self.comparisons()
        next(iter(comparisons.values())).chosen()  # which are the same for all
        loaded: tuple[object, LoadedModel] | None = None
        for name, asked in comparisons.items():
            _check_files(asked)
            of = (asked.model, asked.weights, str(asked.preprocessing))
            if loaded is None or loaded[0] != of:
                loaded = (of, asked.load())
            try:
                checked(asked, loaded[1])
            except (InputError, FileError) as error:
                if not name:
                    raise
                raise type(error)(f"{name}: {error}") from error


def check_several(name: str, given: object, kinds: type | tuple[type, ...], must_be: str) -> None:
    """Refuse what is no list or tuple of such values; a truth value is no number.

    Raises:
        InputError: With what it must be.
    """
    check_type(name, given, (list, tuple), f"a list or a tuple of {must_be}")
    assert isinstance(given, (list, tuple))
    for one in given:
        if not isinstance(one, kinds) or isinstance(one, bool):
            raise InputError(f"{name} must be {must_be}, but hold {shown(one)}.")


def source_of(data: PlannedData, seed: int) -> Source:
    """Return where the images of a plan come from, for one seed of mosaics."""
    return Source(
        [Path(path) for path in data.paths],
        data.read,
        data.target,
        None if data.class_index is None else Path(data.class_index),
        None if data.annotations is None else Path(data.annotations),
        data.limit,
        data.mosaic,
        seed,
        data.scaled,
        data.part,
    )


def read_plan(path: str | Path) -> Suite:
    """Read a plan from a TOML file; its paths are relative to the file's folder.

    Raises:
        FileError: If the file is missing, or no TOML.
        InputError: If an entry is unknown, missing, or of the wrong kind.
    """
    path = Path(path)
    told = read_toml("plan", path)
    _refuse_unknown("plan", told, [f.name for f in fields(Suite)])
    for name in ("networks", "data", "methods", "metrics"):
        if name not in told:
            raise InputError(f"plan: {str(path)!r} must have {name}, but has {', '.join(told) or 'nothing'}.")
    networks, data = networks_and_data(told, path.parent)
    for name in ("methods", "metrics", "options", "fitted"):
        if name in told:
            told[name] = _texts(name, told[name])
    told["fitted"] = [str(path.parent / file) for file in told.get("fitted", ())]
    _check_kinds("plan", told, {"classes": int, "shown": int, "device": str, "dtype": str, "seeds": list})
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in told.get("seeds", ())):
        raise InputError(f"plan: seeds must be whole numbers, but are {told['seeds']!r}.")
    return Suite(networks=networks, data=data, **told)


def read_toml(argument: str, path: Path) -> JsonObject:
    """Read a TOML file.

    Raises:
        FileError: If it is missing, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(
            f"{argument}: cannot read {str(path)!r} ({error.strerror or error}). Check its name."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{argument}: {str(path)!r} is no TOML file ({error}).") from error


def networks_and_data(told: JsonObject, folder: Path) -> tuple[list[PlannedNetwork], list[PlannedData]]:
    """Take the networks and the images out of what a TOML file says; their paths are relative to its folder.

    Raises:
        InputError: If an entry is unknown, missing, or of the wrong kind.
    """
    networks, data = (_tables(name, told.pop(name, [])) for name in ("networks", "data"))
    return [_network(one, folder) for one in networks], [_data(one, folder) for one in data]


def _network(told: JsonObject, folder: Path) -> PlannedNetwork:
    own = {name: told.pop(name) for name in ("model", "weights", "name") if name in told}
    _refuse_unknown("networks", told, ["size", "mean", "std", "resize", "interpolation", "crop", "channels"])
    _check_kinds("networks", own, {"model": str, "weights": str, "name": str})
    if "model" not in own:
        raise InputError('networks: each must have a model, such as model = "resnet50", but one has none.')
    if own.get("weights", "random") != "random":
        own["weights"] = str(folder / own["weights"])
    return PlannedNetwork(preprocessing=told, **own)


def _data(told: JsonObject, folder: Path) -> PlannedData:
    _refuse_unknown("data", told, [f.name for f in fields(PlannedData)])
    if isinstance(told.get("paths"), str):
        told["paths"] = [told["paths"]]
    texts = dict.fromkeys(("read", "target", "class_index", "annotations", "name", "part"), str)
    _check_kinds("data", told, {**texts, "paths": list, "scaled": bool, "limit": int, "mosaic": int})
    if told.get("read", "images") not in ("images", *READERS):
        known = ("images", *READERS)
        raise InputError(f"data: read must be one of {', '.join(known)}, but is {told['read']!r}.")
    if not all(isinstance(path, str) for path in told.get("paths", ())):
        raise InputError(f"data: paths must be texts, but are {shown(told['paths'])}.")
    paths = {name: str(folder / told[name]) for name in ("class_index", "annotations") if name in told}
    return PlannedData(**{**told, **paths, "paths": tuple(str(folder / path) for path in told.get("paths", ()))})


def _check_files(asked: Asked) -> None:
    """Refuse what is not there."""
    source = asked.source
    files = [*source.paths, source.index, source.annotations, *asked.fitted]
    files.append(None if asked.weights == "random" else asked.weights)
    for file in files:
        with refusals("plan"):
            there = file is None or Path(file).exists()
        if not there:
            raise FileError(f"plan: there is no file or folder {str(file)!r}. Paths are relative to the plan's folder.")


def _named(axis: str, values: Sequence[Planned]) -> dict[str, Planned]:
    """Values of an axis by their names in folders."""
    names = [_name(value) for value in values]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise InputError(
            f"{axis} must have different names, but {twice!r} is there twice. Give one of them a name of its own."
        )
    return dict(zip(names, values, strict=True))


def _name(value: object) -> str:
    if isinstance(value, PlannedNetwork):
        return safe_name(value.name or value.model, {})
    if isinstance(value, PlannedData):
        return safe_name(value.name or (Path(value.paths[0]).name if value.paths else "scenes"), {})
    return f"seed-{value}"


def _tables(name: str, told: object) -> Iterator[JsonObject]:
    several = told if isinstance(told, list) else [told]
    for one in several:
        if not isinstance(one, dict):
            raise InputError(f"plan: {name} must be tables, [[{name}]], but one is {one!r}.")
        yield dict(one)


def _texts(name: str, told: object) -> list[str]:
    several = [told] if isinstance(told, str) else told
    if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
        raise InputError(f'plan: {name} must be texts, such as {name} = ["lpr(steps=40)"], but are {told!r}.')
    return several


def _check_kinds(where: str, told: JsonObject, kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if name in told and (not isinstance(told[name], kind) or (kind is int and isinstance(told[name], bool))):
            raise InputError(f"{where}: {name} must be of type {kind.__name__}, but is {told[name]!r}.")


def _refuse_unknown(where: str, told: JsonObject, known: Sequence[str]) -> None:
    for name in told:
        if name not in known:
            raise InputError(
                f"{where}: {name!r} is no entry of it; there are {', '.join(known)}.{nearest(name, known)}"
            )
