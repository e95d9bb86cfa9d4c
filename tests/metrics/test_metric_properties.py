"""The properties of every metric; a new one is tested by being in METRICS."""

from __future__ import annotations

import inspect
import json
import pydoc
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from _properties import fingerprint
from backlit import Attribution, GradientXInput, InputError, Saliency
from backlit._options import option_docs, options_of
from backlit.metrics import METRICS, Examples, Metric
from backlit.metrics.base import WHO_HAS_IT
from backlit.metrics.lookup import find_metric

SMALL: dict[str, dict[str, Any]] = {
    "insertion": {"blur_size": 9, "steps": 5},
    "complementary_insertion": {"blur_size": 9, "steps": 5},
    "ibd": {"border": 3},
    "ibd_auc": {"border": 3},
    "infidelity": {"samples": 2},
    "smooth_mprt": {"samples": 2, "stages": 2},
    "max_sensitivity": {"samples": 2},
    "sensitivity_n": {"percentages": (10, 50), "subsets": 8},
    "irof": {"segments": 9},
    "aic": {"least": 0.0, "thresholds": (0.1, 0.5)},
    "sic": {"least": 0.0, "thresholds": (0.1, 0.5)},
    "energy_pointing_game": {"largest": 1.0, "one_box": False},
}


@pytest.fixture(params=METRICS, ids=lambda m: m.name)
def metric(request: pytest.FixtureRequest) -> Metric:
    return request.param(**SMALL.get(request.param.name, {}))


@pytest.fixture(scope="module")
def methods(network: nn.Module) -> dict[str, Any]:
    return {"gradient_x_input": GradientXInput(network), "saliency": Saliency(network)}


@pytest.fixture
def maps(metric: Metric, examples: Examples, methods: dict[str, Any]) -> dict[str, Attribution]:
    target = examples.target if metric.explains == "target" else None
    found = {name: m(examples.inputs, target) for name, m in methods.items()}
    return {name: replace(a, parts={"source": examples.inputs * 0.7}) for name, a in found.items()}


def test_images_do_not_depend_on_each_other(
    metric: Metric, network: nn.Module, examples: Examples, maps: dict, methods: dict
) -> None:
    whole = metric(network, examples, maps, methods)
    for i in range(len(examples)):
        alone = metric(network, examples[i : i + 1], {name: a[i] for name, a in maps.items()}, methods)
        for name in maps:
            np.testing.assert_allclose(alone.values[name][0], whole.values[name][i], rtol=1e-7, atol=1e-10)


def test_methods_do_not_depend_on_each_other(
    metric: Metric, network: nn.Module, examples: Examples, maps: dict, methods: dict
) -> None:
    whole = metric(network, examples, maps, methods)
    for name in maps:
        alone = metric(network, examples, {name: maps[name]}, {name: methods[name]})
        np.testing.assert_allclose(alone.values[name], whole.values[name], rtol=1e-9)


def test_the_same_call_gives_the_same_scores_and_touches_nothing(
    metric: Metric, network: nn.Module, examples: Examples, maps: dict, methods: dict
) -> None:
    before, state, x = fingerprint(network), torch.get_rng_state(), examples.inputs.clone()
    one = metric(network, examples, maps, methods)
    torch.rand(2)
    two = metric(network, examples, maps, methods)
    for name in maps:
        np.testing.assert_array_equal(one.values[name], two.values[name])
    torch.set_rng_state(state)
    assert fingerprint(network) == before
    assert torch.equal(examples.inputs, x)
    metric(network, examples, maps, methods)
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_lie_in_the_range_and_have_one_value_an_image(
    metric: Metric, network: nn.Module, examples: Examples, maps: dict, methods: dict
) -> None:
    found = metric(network, examples, maps, methods)
    low, high = metric.range
    for values in found.values.values():
        assert values.shape == (4,)
        assert values.dtype == np.float64
        scored = values[np.isfinite(values)]
        assert len(scored)
        assert (scored >= low).all()
        assert (scored <= high).all()
    joined = type(found).cat(
        [metric(network, examples[i : i + 2], {n: a[i : i + 2] for n, a in maps.items()}, methods) for i in (0, 2)]
    )
    for name, values in found.values.items():
        np.testing.assert_allclose(joined.values[name], values, rtol=1e-7, atol=1e-10)
    assert joined.remarks == found.remarks
    assert joined.names == list(examples.names)


def test_the_protocol_says_all_and_is_plain(metric: Metric) -> None:
    record = json.loads(json.dumps(metric.protocol.to_json(), allow_nan=False))
    assert record["metric"] == metric.name
    assert {"reduce", "seed", "chunk"} <= set(record["options"])
    for key in ("title", "source", "channels", "ties", "forward_passes"):
        assert record[key]
    assert isinstance(record["higher_is_better"], bool)
    again = type(metric)(**{k: tuple(v) if isinstance(v, list) else v for k, v in record["options"].items()})
    assert options_of(again) == options_of(metric)


@pytest.mark.parametrize("kind", METRICS, ids=lambda m: m.name)
def test_its_options_are_seen_from_outside(kind: type[Metric]) -> None:
    parameters = inspect.signature(kind).parameters
    assert list(parameters) == [f.name for f in fields(kind)]
    for name, value in options_of(kind()).items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == value
        assert parameters[name].annotation
    shown = pydoc.plain(pydoc.render_doc(kind))
    assert option_docs(kind).keys() == parameters.keys()
    for name, meaning in option_docs(kind).items():
        assert f"{name}: {meaning}" in shown


@pytest.mark.parametrize("kind", METRICS, ids=lambda m: m.name)
def test_an_unknown_option_is_refused_by_name(kind: type[Metric]) -> None:
    with pytest.raises(
        InputError, match=r"'seeds' is no option of .*: it has .*reduce, seed.*Did you mean 'seed'\?"
    ) as error:
        kind(seeds=3)  # type: ignore[call-arg]
    assert kind.title in str(error.value)


@pytest.mark.parametrize("kind", METRICS, ids=lambda m: m.name)
def test_it_is_a_value(kind: type[Metric]) -> None:
    metric = kind()
    changed = replace(metric, seed=5, reduce="abs")
    assert repr(metric) == f"{kind.__name__}()"
    assert repr(changed) == f"{kind.__name__}(reduce='abs', seed=5)"
    assert options_of(changed) == {**options_of(metric), "seed": 5, "reduce": "abs"}
    assert metric != kind()  # the same object alone: options may be tensors
    with pytest.raises(FrozenInstanceError):
        metric.seed = 5  # type: ignore[misc]


def test_what_it_needs_is_missed_by_name(metric: Metric, network: nn.Module, examples: Examples) -> None:
    bare = Examples(examples.inputs, examples.target)
    heat = {"a": torch.randn(4, 1, 14, 14, dtype=torch.float64)}
    if not metric.needs:
        metric(network, bare, heat)
        return
    with pytest.raises(InputError, match=metric.title.split("(")[0].split("%")[0]) as error:
        metric(network, bare, heat)
    assert WHO_HAS_IT[metric.needs[0]] in str(error.value)


def test_metrics_are_found_by_name_and_class() -> None:
    assert len({m.name for m in METRICS}) == len(METRICS)
    for kind in METRICS:
        assert (
            find_metric(kind.name)
            is find_metric(kind.__name__.upper())
            is find_metric(kind.name.replace("_", "-"))
            is kind
        )
    with pytest.raises(InputError, match=r"metric must be one of insertion.*Did you mean 'lerf_100'"):
        find_metric("lerf_10")
