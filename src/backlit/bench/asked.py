"""What one comparison is asked, as plain JSON values by which another process does the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from backlit._json import JsonObject
from backlit._options import option_names
from backlit._packed import pack, unpack
from backlit.bench.chosen import Chosen, methods_and_metrics, with_attention, with_bounds, with_fitted
from backlit.bench.plan import Plan
from backlit.bench.setting import Options
from backlit.bench.source import Guard, Source, guarded, read, scored_for
from backlit.data.listing import Failure
from backlit.metrics import Examples, Metric
from backlit.models import LoadedModel, load_model

_INPUTS = "backlit.inputs"


@dataclass(frozen=True)
class Asked:
    """A comparison in words: one network, one data set, one seed.

    Attributes:
        model: The network, as ``load_model`` takes it.
        source: The images.
        methods: The methods in their settings, as on the command line.
        metrics: The metrics likewise.
        options: Options by name, ``dmbp.steps=40``.
        fitted: Files of `backlit fit`.
        weights: A safetensors file, "random", or None.
        preprocessing: Changes to the network's own.
        seed: Of methods and metrics.
        classes: Number of classes to explain of each image.
        shown: Number of images whose maps the report shows.
        device: Where to compute.
        dtype: In what precision.
    """

    model: str
    source: Source
    methods: str
    metrics: str
    options: tuple[str, ...] = ()
    fitted: tuple[str, ...] = ()
    weights: str | None = None
    preprocessing: Mapping[str, object] | None = None
    seed: int = 0
    classes: int = 1
    shown: int = 20
    device: str = "cpu"
    dtype: str = "float32"

    def to_json(self) -> JsonObject:
        """Return it as JSON can hold it; paths become absolute."""
        source = asdict(self.source)
        source |= {
            name: None if source[name] is None else str(source[name].absolute()) for name in ("index", "annotations")
        }
        source["paths"] = [str(path.absolute()) for path in self.source.paths]
        files = {"fitted": [str(Path(file).absolute()) for file in self.fitted]}
        if self.weights not in (None, "random"):
            files["weights"] = str(Path(self.weights).absolute())  # type: ignore[arg-type]
        return {**asdict(self), "source": source, **files, "preprocessing": dict(self.preprocessing or {})}

    @classmethod
    def from_json(cls, told: JsonObject) -> Asked:
        """Read what :meth:`to_json` returned."""
        source = dict(told["source"])
        source["paths"] = [Path(path) for path in source["paths"]]
        for name in ("index", "annotations"):
            source[name] = None if source[name] is None else Path(source[name])
        lists: JsonObject = {name: tuple(told[name]) for name in ("options", "fitted")}
        changes = told["preprocessing"].items()
        lists["preprocessing"] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes}
        return cls(**{**told, "source": Source(**source), **lists})

    def chosen(self) -> tuple[list[Chosen], dict[str, Metric]]:
        """Return methods and metrics without a network.

        Raises:
            InputError: If a name or an option is unknown, or a value cannot be.
            FileError: If a fitted file cannot be read.
        """
        methods, metrics = methods_and_metrics(self.methods, self.metrics, list(self.options), self.seed)
        return with_fitted(methods, [Path(file) for file in self.fitted]), metrics

    def load(self) -> LoadedModel:
        """Load the network.

        Raises:
            InputError: If it cannot be had.
            FileError: If its weights cannot be read.
        """
        changes: JsonObject = dict(self.preprocessing or {})
        return load_model(self.model, weights=self.weights, device=self.device, dtype=self.dtype, **changes)


Call = Callable[[object], None]


def plan_of(
    asked: Asked,
    loaded: LoadedModel | None = None,
    *,
    guard: Guard = guarded,
    step: Call | None = None,
) -> tuple[Plan, list[Failure]]:
    """Make the plan of a comparison, all images read; returns the images that could not be read, too.

    Args:
        asked: The comparison.
        loaded: Its network, if that is loaded already.
        guard: Around each image of a model that may fail.
        step: Called after each step of a method that takes many.

    Raises:
        InputError: If something cannot be used.
        FileError: If a file cannot be read.
    """
    loaded, source = scored_for(asked.source, loaded or asked.load())
    examples, target, failures = read(source, loaded, guard)
    like = loaded.placed(examples.inputs[:1])
    return _plan(asked, loaded, examples.to(like.device, like.dtype), target, step), failures


def checked(asked: Asked, loaded: LoadedModel) -> None:
    """See on two images that a comparison can be had: before any other one is computed.

    Raises:
        InputError: If something cannot be used, or a metric needs what the images lack.
        FileError: If a file cannot be read.
    """
    few = min(2, asked.source.limit or 2)
    plan_of(replace(asked, source=replace(asked.source, limit=few)), loaded)[0].check()


def _plan(asked: Asked, loaded: LoadedModel, examples: Examples, target: str, step: Call | None = None) -> Plan:
    chosen, metrics = asked.chosen()
    chosen = with_bounds(with_attention(chosen, loaded), loaded.preprocess)
    methods = {c.name: c.method(loaded.network, **_stepped(c, step)) for c in chosen}
    return Plan(
        network=loaded.network,
        loaded=loaded,
        examples=examples,
        methods=methods,
        metrics=metrics,
        classes=asked.classes,
        shown=asked.shown,
        target=target,
    )


def _stepped(chosen: Chosen, step: Call | None) -> Options:
    """A method's options, with what it calls after each of its steps."""
    told = step is not None and "callback" in option_names(chosen.method)
    return {**chosen.options, "callback": step} if told else chosen.options


def pack_inputs(plan: Plan) -> bytes:
    """Return a file with the images of a plan, their truth and the network's logits: a worker reads them as they are here."""
    examples = plan.examples
    tensors: dict[str, Tensor] = {"inputs": examples.inputs, "target": examples.target, "logits": plan.logits}
    if examples.labels is not None:
        tensors["labels"] = examples.labels
    if examples.cells is not None:
        tensors["cells"] = examples.cells
    if examples.boxes is not None:
        tensors |= {"boxes": torch.cat(list(examples.boxes)), "counts": torch.tensor([len(b) for b in examples.boxes])}
    return pack(_INPUTS, tensors, {"names": json.dumps(list(examples.names)), "target": plan.target})


def plan_from(asked: Asked, inputs: Path) -> Plan:
    """Make the same plan from such a file.

    Raises:
        InputError: If the network cannot be had.
        FileError: If the file is damaged.
    """
    tensors, texts = unpack(inputs, _INPUTS, argument="out", what="images of a plan", way_out="Begin the run anew.")
    boxes = None if "boxes" not in tensors else list(tensors["boxes"].split(tensors["counts"].tolist()))
    loaded = asked.load()
    device = loaded.placed(tensors["inputs"][:1]).device
    examples = Examples(
        tensors["inputs"],
        tensors["target"],
        tensors.get("labels"),
        boxes,
        tensors.get("cells"),
        tuple(json.loads(texts["names"])),
    )
    plan = _plan(asked, loaded, examples.to(device), texts["target"])
    plan.__dict__["logits"] = tensors["logits"].to(device)  # in the place of computing them again
    return plan
