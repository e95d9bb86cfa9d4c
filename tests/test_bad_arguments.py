"""Whatever a public function or a dataclass is given, it works with it or says in an error of Backlit's own why it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import backlit
from _bad_values import refusals
from backlit import GradientXInput, InputError, ModelStateError, check_rule, compare, explain_func, load_model, scored
from backlit.attribution import Attribution
from backlit.bench.roar.setup import RoarOptions
from backlit.bench.roar.training import TrainingOptions
from backlit.bench.suite import PlannedData, PlannedNetwork, Suite
from backlit.data import Batches, Sample, find_images, load_examples, mosaics, select, single_small_object, take
from backlit.methods import L2X, METHODS, MIPIN, PDA, RISE, FittedMethod, PatternNet
from backlit.methods.target import Contrast, Unit
from backlit.metrics import Examples, Insertion
from backlit.metrics.aggregate import aggregated
from backlit.metrics.self_test import self_test
from backlit.models import LoadedModel, Preprocess
from backlit.post import choose_cutoff
from backlit.report.rows import Look

Changed = dict[str, Any]
FITS: dict[type[FittedMethod], Changed] = {
    MIPIN: {},
    PatternNet: {},
    PDA: {"window": 3, "patches": 5},
    L2X: {"epochs": 1, "width": 4, "grid": 4},
}


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()


NETWORK = small()
IMAGE = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
MAPS = GradientXInput(NETWORK)(IMAGE, 1)
TRUTH: Changed = {
    "inputs": IMAGE,
    "target": torch.tensor([1]),
    "labels": torch.tensor([[False, True, True]]),
    "boxes": [torch.tensor([[2.0, 2, 7, 7]])],
    "cells": torch.tensor([[0.0, 0, 4, 4]]),
    "names": ["a"],
}
EXAMPLES = Examples(**TRUTH)
PICTURE = Image.new("L", (32, 32))
SAMPLES = [Sample(PICTURE, f"s{i}", i, None, torch.tensor([[0.0, 0, 5, 5]])) for i in range(4)]
PLAN: Changed = {
    "networks": [PlannedNetwork("digits")],
    "data": [PlannedData(limit=1)],
    "methods": ["gradient"],
    "metrics": ["insertion"],
}


@pytest.fixture(scope="module")
def digits() -> LoadedModel:
    return load_model("digits")


def _data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(6, 2, 8, 8, generator=generator), torch.arange(6) % 3)]


def _names(kind: Any) -> list[str]:
    return [f.name for f in fields(kind)]


def _of(kind: Any, **usual: Any) -> Callable[[Changed], object]:
    return lambda changed: kind(**{**usual, **changed})


def _rule(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: object) -> tuple[Tensor]:
    return (g,)


INSERTION = Insertion(steps=2)
FUNCTIONS: dict[str, tuple[list[str], Callable[[Changed], object]]] = {
    "a method": (["inputs", "target", "at"], _of(GradientXInput(NETWORK), inputs=IMAGE, target=1)),
    "a forward-only method": (["inputs", "target", "at"], _of(RISE(NETWORK, masks=8), inputs=IMAGE, target=1)),
    "each": (["targets", "at"], _of(GradientXInput(NETWORK).each, inputs=IMAGE, targets=[[1, 2]])),
    "a list of targets": (["target"], lambda changed: GradientXInput(NETWORK)(IMAGE, [changed["target"]])),
    "Contrast": (["label", "less"], lambda c: GradientXInput(NETWORK)(IMAGE, Contrast(**{"label": 1, "less": 2, **c}))),
    "Contrast of others": (["top"], lambda changed: GradientXInput(NETWORK)(IMAGE, Contrast(1, **changed))),
    "Unit": (["layer", "index"], lambda c: GradientXInput(NETWORK)(IMAGE, Unit(**{"layer": "1", "index": 0, **c}))),
    "scored": (["model", "target"], _of(scored, model=NETWORK, target=Contrast(0, 1))),
    "explain_func": (
        ["model", "inputs", "targets", "method"],
        _of(explain_func, model=NETWORK, inputs=IMAGE, targets=1, method="gradient"),
    ),
    "find_method": (["name"], _of(backlit.find_method, methods=METHODS)),
    "check_rule": (
        ["inputs", "primitive", "true_gradient"],
        _of(check_rule, rule=_rule, operation=torch.relu, inputs=torch.rand(3, 2)),
    ),
    "Attribution": (_names(Attribution), _of(Attribution, values=MAPS.values, target=MAPS.target, output=MAPS.output)),
    "heatmap": (["reduce"], _of(MAPS.heatmap)),
    "scale": (["percentile"], _of(MAPS.scale)),
    "save": (["path"], _of(MAPS.save)),
    "load": (["path"], _of(Attribution.load)),
    "Examples": (_names(Examples), _of(Examples, **TRUTH)),
    "compare": (
        ["examples", "methods", "metrics", "classes", "shown", "out"],
        _of(compare, model=NETWORK, examples=EXAMPLES, methods=["gradient"], metrics=[INSERTION], shown=0),
    ),
    "a compared method": (
        ["a"],
        lambda changed: compare(NETWORK, EXAMPLES, changed, [INSERTION]),
    ),
    "a compared metric": (["a"], lambda changed: compare(NETWORK, EXAMPLES, ["gradient"], changed)),
    "a metric": (["examples", "maps"], _of(INSERTION, network=NETWORK, examples=EXAMPLES, maps={"a": MAPS})),
    "self_test": (
        ["examples", "maps", "metrics", "degradations", "progress"],
        _of(self_test, network=NETWORK, examples=EXAMPLES, maps=MAPS, metrics=[INSERTION], steps=1),
    ),
    "aggregated": (["maps", "examples", "cell", "edges", "reduce"], _of(aggregated, maps=MAPS, examples=EXAMPLES)),
    "choose_cutoff": (
        ["attribution", "metric", "cutoffs", "step"],
        _of(choose_cutoff, network=NETWORK, examples=EXAMPLES, attribution=MAPS, metric=INSERTION, cutoffs=(0.5,)),
    ),
    "PlannedNetwork": (
        _names(PlannedNetwork),
        lambda c: Suite(**{**PLAN, "networks": [PlannedNetwork(**{"model": "digits", **c})]}).comparisons(),
    ),
    "PlannedData": (_names(PlannedData), lambda c: Suite(**{**PLAN, "data": [PlannedData(**c)]}).comparisons()),
    "Suite": (_names(Suite), lambda changed: Suite(**{**PLAN, **changed}).comparisons()),
    "RoarOptions": (_names(RoarOptions), _of(RoarOptions)),
    "TrainingOptions": (_names(TrainingOptions), _of(TrainingOptions)),
    "Look": (["scale", "percentile", "opacity"], _of(Look)),
    "Sample": (_names(Sample), _of(Sample, image=PICTURE, name="a", target=1, labels=(1, 2))),
    "take": (["dataset", "count", "seed"], _of(take, dataset=SAMPLES, count=2)),
    "select": (["dataset", "indices"], _of(select, dataset=SAMPLES, indices=[1])),
    "single_small_object": (["share"], _of(single_small_object, samples=SAMPLES, share=0.5)),
    "find_images": (["paths"], _of(find_images)),
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a text is the name of a file


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_work_or_say_why_not(name: str) -> None:
    names, run = FUNCTIONS[name]
    assert not refusals(name, names, run)


@pytest.mark.parametrize("kind", FITS, ids=lambda kind: kind.name)
def test_fits_work_or_say_why_not(kind: type[FittedMethod]) -> None:
    data = _data()
    usual: Changed = {"model": NETWORK, "data": data, **FITS[kind]}
    names = [*_names(kind.fit_options), "model", "data", "out", "progress"]
    assert not refusals(f"{kind.__name__}.fit", names, lambda changed: kind.fit(**{**usual, **changed}))


def test_models_and_pictures_work_or_say_why_not(digits: LoadedModel) -> None:
    names = ["weights", "device", "dtype", "size", "mean", "std", "resize", "interpolation", "crop", "channels"]
    assert not refusals("load_model", names, lambda changed: load_model("digits", **changed))
    own = {name: getattr(digits.preprocess, name) for name in _names(Preprocess)}
    assert not refusals("Preprocess", own, lambda changed: Preprocess(**{**own, **changed}))
    assert not refusals("a picture", ["image"], _of(digits.preprocess))
    assert not refusals("batch", ["images"], _of(digits.preprocess.batch))
    assert not refusals("class_index", ["label_or_index"], _of(digits.class_index))
    labelled = GradientXInput(digits)
    x = digits.preprocess(PICTURE)[None]
    assert not refusals("a labelled target", ["target"], lambda changed: labelled(x, **changed))


def test_data_work_or_say_why_not(digits: LoadedModel) -> None:
    usual: Changed = {"network": digits.network, "dataset": SAMPLES, "preprocess": digits.preprocess, "count": 1}
    names = ["network", "dataset", "preprocess", "grid", "seed", "confidence", "size", "targets", "batch"]
    assert not refusals("mosaics", names, lambda changed: mosaics(**{**usual, **changed}))
    read: Changed = {"samples": SAMPLES, "preprocess": digits.preprocess}
    assert not refusals("load_examples", [*read, "boxes", "classes"], lambda c: load_examples(**{**read, **c}))
    assert not refusals("Batches", [*read, "batch", "classes"], lambda c: list(Batches(**{**read, **c})))


def test_a_refusal_says_what_may_be_given() -> None:
    for made, message in (
        (
            lambda: GradientXInput(NETWORK)(IMAGE, 1, at=torch.ones(2)),
            r"at must be the path of a module, but is Tensor\(2,",
        ),  # type: ignore[arg-type]
        (lambda: Contrast(None, 1), "a contrast must have the class that it speaks for"),  # type: ignore[arg-type]
        (lambda: scored(3, Contrast(0, 1)), "model must be a torch.nn.Module, but is int"),
        (lambda: MAPS.heatmap("sums"), "reduce must be 'sum', .*but is 'sums'. Did you mean 'sum'"),  # type: ignore[arg-type]
        (lambda: MAPS.save(3), "path must be a path: a text or a pathlib.Path, but is of type int"),  # type: ignore[arg-type]
        (
            lambda: PDA.fit(NETWORK, _data(), patches=10**14),
            "patches must be a positive integer up to 1,000,000, but is",
        ),
        (
            lambda: MIPIN.fit(NETWORK, _data(), ridge=10**30),
            r"ridge must be a number from 0 on, .*Numbers reach to 1e\+15",
        ),
        (lambda: PlannedData(limit=0.5), "limit must be a positive integer or None, but is 0.5"),  # type: ignore[arg-type]
        (lambda: Suite(**{**PLAN, "seeds": ["a"]}), "seeds must be whole numbers, but hold 'a'"),
        (
            lambda: compare(NETWORK, EXAMPLES, ["gradient"], [3]),
            "metrics must be names, classes or metrics, but hold int",
        ),  # type: ignore[list-item]
        (lambda: compare(NETWORK, EXAMPLES, {"a": int}, ["insertion"]), r"methods\['a'\] must be a method or a class"),  # type: ignore[dict-item]
        (lambda: take(SAMPLES, 9), "count must be from 1 to 4, the size of the dataset, but is 9"),
    ):
        with pytest.raises(InputError, match=message):
            made()


@pytest.mark.parametrize("kind", FITS, ids=lambda kind: kind.name)
def test_a_fit_says_that_the_images_do_not_run(kind: type[FittedMethod]) -> None:
    data = [(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))]
    with pytest.raises(
        InputError, match=r"data: images of shape \(2, 3, 8, 8\) do not run through the model: .*channels"
    ):
        kind.fit(NETWORK, data, **FITS[kind])


class Rooted(nn.Module):
    """A network with the square root of a number that is always 0, whose gradient is NaN there."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = small()

    def forward(self, x: Tensor) -> Tensor:
        nothing = (x - x).square().sum((1, 2, 3))[:, None]
        return self.layers(x) + nothing.sqrt()


@pytest.mark.parametrize("kind", [backlit.Gradient, backlit.SmoothGrad, backlit.GuidedBackprop])
def test_a_gradient_that_is_no_number_is_named_with_its_place(kind: Any) -> None:
    with pytest.raises(
        ModelStateError, match=r"for image 0 is not finite: the gradient becomes NaN or infinite at sqrt\[0\]"
    ):
        kind(Rooted().eval())(IMAGE, 1)


def test_a_gradient_that_overflows_is_named_with_its_place() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(128, 3), nn.Linear(3, 3), nn.Linear(3, 3)).eval()
    for layer in (network[1], network[2], network[3]):
        nn.init.constant_(layer.weight, 1e25)
        nn.init.zeros_(layer.bias)
    with pytest.raises(ModelStateError, match=r"the computation of its gradient overflows at linear\[\d\]"):
        backlit.Gradient(network)(torch.zeros(1, 2, 8, 8), 1)
