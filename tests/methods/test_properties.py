"""The properties of every method and baseline, on the embedded network or a transformer; a new one is tested by being in METHODS or BASELINES."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from _attention_networks import Transformer

import _properties as properties
import backlit
from _methods import quick
from backlit.capture import propagate
from backlit.inverse import Fitted
from backlit.methods import BASELINES, METHODS, FittedMethod, Method
from backlit.rules import presets


@pytest.fixture(scope="module", params=METHODS + BASELINES, ids=lambda m: m.name)
def method(request: pytest.FixtureRequest) -> Method:
    if request.param.reads_attention:
        return request.param(Transformer(), **quick(request.param))
    network = backlit.load_model("digits", dtype="float64").network
    short = quick(request.param)
    if issubclass(request.param, FittedMethod):
        short["fitted"] = _learned(request.param.artefact)
    return request.param(network, **short)


@cache
def _learned(kind: str) -> Fitted:
    """A quick fit on the embedded digits; the methods of one kind share it."""
    method = next(m for m in METHODS if issubclass(m, FittedMethod) and m.artefact == kind)
    model = backlit.load_model("digits", dtype="float64")
    images, labels = (part[3:33] for part in backlit.models.digits.digits_images())
    return method.fit(model.network, [(model.preprocess.batch(images).double(), labels)])


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    model = backlit.load_model("digits", dtype="float64")
    images = backlit.models.digits.digits_images().images[:3]
    return torch.stack([model.preprocess(image) for image in images]).double()


TARGET = torch.tensor([1, 5, 2])


def test_images_do_not_depend_on_each_other(method: Method, x: torch.Tensor) -> None:
    properties.assert_batch_independent(method, x, TARGET)


def test_the_same_call_gives_the_same_map(method: Method, x: torch.Tensor) -> None:
    properties.assert_deterministic(method, x, TARGET)


def test_the_map_follows_the_target(method: Method, x: torch.Tensor) -> None:
    if not method.follows_target:
        pytest.skip("its map is the same for all targets")
    properties.assert_sensitive_to_the_target(method, x, 3, 8)


def test_each_target_gets_the_map_it_has_alone(method: Method, x: torch.Tensor) -> None:
    properties.assert_each_is_each_alone(method, x, torch.tensor([[1, 2], [3, 4], [5, 5]]))


def test_the_model_stays_as_it_was(method: Method, x: torch.Tensor) -> None:
    properties.assert_model_untouched(method, x, TARGET)


def test_threads_do_not_disturb_each_other(method: Method, x: torch.Tensor) -> None:
    properties.assert_threads_do_not_disturb(method, x[:1], [1, 5], rounds=5)


def test_every_site_is_covered_and_the_result_says_where_it_comes_from(method: Method, x: torch.Tensor) -> None:
    explanation = method(x)
    sites = len(propagate(method.network, x, presets.gradient).trace)
    assert len(explanation.coverage.rows) == (sites if method.traces else 0)
    assert explanation.target.tolist() == method.model(x).argmax(1).tolist()
    torch.testing.assert_close(explanation.output, method.model(x).amax(1).detach())
    assert explanation.provenance["method"] == method.name
    assert len(explanation.provenance["fingerprint"]) == 64
    assert explanation.provenance["versions"]["backlit"] == backlit.__version__


def test_maps_stay_on_dtype(method: Method, x: torch.Tensor) -> None:
    single = replace(method, model=method.network.float())
    try:
        assert single.attribute(x.float(), TARGET).dtype == torch.float32
    finally:
        method.model.double()


def test_a_caller_without_gradients_gets_the_same_map(method: Method, x: torch.Tensor) -> None:
    expected = method.attribute(x, TARGET)
    with torch.no_grad():
        assert torch.equal(method.attribute(x, TARGET), expected)


def test_the_callers_graph_is_not_continued(method: Method, x: torch.Tensor) -> None:
    found = method(x.clone().requires_grad_(), TARGET)
    tensors = [found.values, found.output, *found.parts.values(), *found.completeness.values()]
    assert not any(tensor.requires_grad for tensor in tensors)
