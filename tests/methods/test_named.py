"""What a result says of its class: name, probability and kind of map, for every method; a loaded model in a network's place."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import backlit
from _methods import EVERYWHERE, quick
from backlit import Attribution, InputError
from backlit._forward import forward
from backlit._options import option_names
from backlit.inverse import Fitted
from backlit.methods import BASELINES, METHODS, FittedMethod, Method
from backlit.methods.inputs import probability
from backlit.report.kinds import drawn, kind_of, palette_of
from backlit.report.trust import trust

LOADED = backlit.load_model("digits", dtype="float64")
IMAGES, LABELS = (part[:6] for part in backlit.models.digits.digits_images())
X = LOADED.preprocess.batch(IMAGES).double()


@cache
def learned(kind: str) -> Fitted:
    method = next(m for m in METHODS if issubclass(m, FittedMethod) and m.artefact == kind)
    images, labels = (part[3:33] for part in backlit.models.digits.digits_images())
    return method.fit(LOADED, [(LOADED.preprocess.batch(images).double(), labels)])


def made(kind: type[Method], model: Any = LOADED, **options: Any) -> Method:
    fitted = {"fitted": learned(kind.artefact)} if issubclass(kind, FittedMethod) else {}
    return kind(model, **quick(kind), **fitted, **options)


@pytest.fixture(params=EVERYWHERE, ids=lambda m: m.name)
def kind(request: pytest.FixtureRequest) -> type[Method]:
    return request.param


def test_every_method_takes_a_loaded_model_and_names(kind: type[Method]) -> None:
    names = [str(int(label)) for label in LABELS[:2]]
    black_and_white = dict(zip(("low", "high"), LOADED.preprocess.bounds, strict=True))
    known = black_and_white if black_and_white.keys() <= set(option_names(kind)) else {}  # by a loaded model alone
    named, bare = made(kind, **known)(X[:2], names), made(kind, LOADED.network, **known)(X[:2], LABELS[:2])
    assert torch.equal(named.values, bare.values)
    assert named.labels == tuple(names)
    assert bare.labels is None
    assert named.provenance["pixels"] == [list(bound) for bound in LOADED.preprocess.bounds]
    assert "pixels" not in bare.provenance
    one = made(kind).each(X[:1], [["3", "8"]])
    assert [e.labels for e in one] == [("3",), ("8",)]


def test_every_method_says_the_probability_that_the_network_gives_in_one_pass(kind: type[Method]) -> None:
    expected = forward(LOADED.network, X).softmax(1)
    chunked = made(kind, chunk=4).each(X, [[2, 7]] * len(X))
    for found, target in zip(chunked, (2, 7), strict=True):
        torch.testing.assert_close(found.probability, expected[:, target])
    assert found.probability.dtype == torch.float64


def test_no_method_runs_the_network_once_more_for_it(kind: type[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    if issubclass(kind, FittedMethod):
        pytest.skip("the forward passes of fitted methods are of parts of the network")
    counts = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr("backlit.methods.job.probability", lambda output, targets: None)
        network = backlit.load_model("digits", dtype="float64").network
        passes: list[int] = []
        method = made(kind, network)
        network.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        method(X[:2], 3)
        counts.append(len(passes))
    assert counts[0] == counts[1]


def test_the_kind_is_recorded_and_the_map_is_of_that_kind(kind: type[Method]) -> None:
    """Of the classes that the network sees: a signed map has both signs, another one never falls below zero."""
    found = made(kind)(X)
    heat = drawn(found)
    size = heat.abs().amax()
    assert found.provenance["kind"] == kind_of(found) == kind.kind
    if kind.kind in ("signed", "contrast"):
        assert float(heat.amin()) < -1e-3 * float(size)
        assert float(heat.amax()) > 1e-3 * float(size)
    elif kind.kind != "signal":
        assert float(heat.amin()) >= -1e-12 * float(size)
    assert float(size) > 0


def test_a_baseline_claims_nothing() -> None:
    for baseline in BASELINES:
        found = baseline(LOADED)(X[:1], "7")
        assert baseline.kind == "noise"
        assert trust(found).word == "Says nothing."
        assert "says nothing" in palette_of(found).legend


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (backlit.GuidedBackprop(LOADED, times_input=True), "signed"),
        (backlit.GuidedGradCAM(LOADED, times_input=True), "signed"),
        (backlit.FullGrad(LOADED, process="raw"), "signed"),
        (backlit.TRGBP(LOADED, contrast=None), "magnitude"),
        (backlit.ExcitationBackprop(LOADED, contrastive=True), "contrast"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_options_that_change_what_a_map_says_change_its_kind(method: Method, kind: str) -> None:
    found = method(X)
    assert found.provenance["kind"] == kind != type(method).kind
    heat = drawn(found)
    assert (float(heat.amin()) < 0) == (kind != "magnitude")


def test_a_kind_that_is_not_recorded_is_the_methods(tmp_path: Path) -> None:
    found = backlit.GradCAM(LOADED)(X[:1])
    old = Attribution(found.values, found.target, found.output, provenance={"method": "grad_cam"})
    assert kind_of(old) == "one-sided"
    assert kind_of(Attribution(found.values, found.target, found.output)) is None


def test_the_function_form_takes_a_loaded_model() -> None:
    found, bare = (backlit.explain_func(m, X[:2].numpy(), 3, method="lrp") for m in (LOADED, LOADED.network))
    assert np.array_equal(found, bare)


def test_labels_are_looked_up_as_the_model_does() -> None:
    method = backlit.Gradient(LOADED)
    assert method(X[:1], "7").target.tolist() == [7]
    assert method(X[:2], ["7", 3]).target.tolist() == [7, 3]
    assert method(X[:2]).labels == tuple(str(k) for k in forward(LOADED.network, X[:2]).argmax(1).tolist())
    with pytest.raises(InputError, match="target: digits has no class 'zebra'"):
        method(X[:1], "zebra")
    bare = r"target must be a class index, but is the label '7'.*no class names.*load_model\(\.\.\.\) returned"
    for wrong in ("7", ["7"]):
        with pytest.raises(InputError, match=bare):
            backlit.Gradient(LOADED.network)(X[:1], wrong)
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module, but is str"):
        backlit.Gradient("digits")  # type: ignore[arg-type]


def test_probabilities_of_what_is_no_set_of_logits() -> None:
    assert probability(torch.randn(3, 1), torch.zeros(3, 1, dtype=torch.int64)) is None
    chances = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    found = probability(chances, torch.tensor([[1], [0]]))
    assert found is not None
    assert found.tolist() == [[0.5, 1.0]]
    half = probability(torch.tensor([[2.0, 1.0]], dtype=torch.bfloat16), torch.tensor([[0]]))
    assert half is not None
    assert half.dtype == torch.float32
    one = nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).eval()
    assert backlit.Gradient(one)(torch.rand(2, 1, 2, 2), 0).probability is None
