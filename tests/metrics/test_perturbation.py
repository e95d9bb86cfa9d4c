"""Insertion, deletion, MoRF and LeRF against their slow selves, and on cases whose area is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import _oracles as slow
from backlit import Contrast, GuidedBackprop, InputError, ModelStateError, scored
from backlit.metrics import (
    ComplementaryInsertion,
    Deletion,
    Examples,
    Insertion,
    LeRF5,
    LeRF100,
    MoRF5,
    MoRF100,
    Scores,
)
from backlit.metrics.perturbation import Perturbation
from backlit.metrics.replacement import blurred

BLUR = {"blur_size": 9, "blur_sigma": 2.0}


def scores_of(kind: str, logits: np.ndarray, first: np.ndarray, target: int, labels: np.ndarray) -> float:
    if kind == "others":
        others = [c for c in range(len(logits)) if labels[c] and c != target]
        return float(np.mean([slow.softmax(logits)[c] for c in others])) if others else float("nan")
    return {
        "probability": lambda: slow.softmax(logits)[target],
        "logit": lambda: logits[target],
        "logit_ratio": lambda: logits[target] / first[target],
        "change": lambda: abs(logits[target] - first[target]) / abs(first[target]),
    }[kind]()


CASES: list[tuple[Perturbation, str, str, bool, bool]] = [
    (Insertion(steps=7, **BLUR), "blur", "probability", True, False),
    (Insertion(steps=6, fraction=0.5, replacement="mean", score="logit"), "mean", "logit", True, False),
    (ComplementaryInsertion(steps=7, **BLUR), "blur", "others", True, True),
    (Deletion(steps=9), "zero", "probability", False, False),
    (MoRF5(), "zero", "logit_ratio", False, False),
    (LeRF5(), "zero", "logit_ratio", False, True),
    (MoRF100(), "zero", "change", False, False),
    (LeRF100(), "zero", "change", False, True),
]


@pytest.mark.parametrize(
    ("metric", "replacement", "kind", "reveal", "ascending"), CASES, ids=lambda v: getattr(v, "name", str(v))
)
def test_equals_the_paper_pixel_by_pixel(
    metric: Perturbation,
    replacement: str,
    kind: str,
    reveal: bool,
    ascending: bool,
    network: nn.Module,
    examples: Examples,
) -> None:
    maps = {"one": slow.distinct(examples.inputs.shape, 1), "two": slow.distinct(examples.inputs.shape, 2)}
    found = metric(network, examples, maps)

    def logits_of(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(image)[None])[0].numpy()

    for name, values in maps.items():
        for i in range(len(examples)):
            x = examples.inputs[i].numpy()
            base = {
                "blur": lambda x=x: slow.gaussian_blur(x, 9, 2.0),
                "zero": lambda x=x: np.zeros_like(x),
                "mean": lambda x=x: np.broadcast_to(x.mean((1, 2), keepdims=True), x.shape),
            }[replacement]()
            start, end = (base, x) if reveal else (x, base)
            target, labels, own = int(examples.target[i]), examples.labels[i].numpy(), logits_of(x)
            curve = slow.perturbation_curve(
                logits_of,
                start,
                end,
                values[i].numpy().sum(0),
                lambda z, own=own, target=target, labels=labels: scores_of(kind, z, own, target, labels),
                steps=metric.steps,
                fraction=metric.fraction,
                ascending=ascending,
            )
            np.testing.assert_allclose(found.curves[name][i], curve, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found.values[name][i], slow.area(curve), rtol=1e-9)


class Linear(nn.Module):
    """Two classes: <w, x> + b, and 0."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        score = (self.weight * x).sum((1, 2, 3)) + 3.0
        return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.fixture
def linear() -> tuple[nn.Module, Examples, Tensor]:
    weight = slow.distinct((3, 6, 6), 5)
    x = slow.distinct((2, 3, 6, 6), 6)
    return Linear(weight), Examples(x, torch.zeros(2, dtype=torch.int64)), weight * x


def test_of_a_linear_model_the_oracle_map_has_the_area_of_its_sorted_sums(linear: Any) -> None:
    network, examples, oracle = linear
    metric = Insertion(steps=36, replacement="zero", score="logit")
    found = metric(network, examples, {"oracle": oracle, "inverted": -oracle, "noise": torch.randn_like(oracle)})
    parts = oracle.sum(1).flatten(1)
    for name, descending in (("oracle", True), ("inverted", False)):
        curve = 3.0 + torch.cat([torch.zeros(2, 1), parts.sort(1, descending=descending).values.cumsum(1)], 1)
        expected = ((curve[:, 1:] + curve[:, :-1]) / 2).mean(1)
        np.testing.assert_allclose(found.values[name], expected.numpy())
    assert (found.values["oracle"] > found.values["noise"]).all()
    assert (found.values["noise"] > found.values["inverted"]).all()
    # By symmetry the two areas lie as far from the straight line as each other.
    ends = 3.0 + parts.sum(1).numpy() / 2
    np.testing.assert_allclose(found.values["oracle"] + found.values["inverted"], 2 * ends)


def test_a_constant_map_scores_as_a_random_one_does(linear: Any) -> None:
    network, examples, oracle = linear
    flat = torch.full_like(oracle, 0.7)
    values = np.stack(
        [Insertion(steps=36, replacement="zero", score="logit", seed=s)(network, examples, {"flat": flat}).values["flat"] for s in range(400)]
    )  # fmt: skip
    expected = 3.0 + oracle.sum((1, 2, 3)).numpy() / 2  # every order is as likely as its reverse
    error = values.std(0) / np.sqrt(len(values))
    assert (np.abs(values.mean(0) - expected) < 4 * error).all()
    assert (values.std(0) > 0).all()


def test_the_order_of_equal_pixels_is_not_that_of_the_memory(network: nn.Module, examples: Examples) -> None:
    flat = torch.zeros_like(examples.inputs)
    by_rows = torch.arange(flat[0, 0].numel(), 0, -1.0, dtype=torch.float64).view(flat.shape[2:]).expand_as(flat)
    metric = Deletion(steps=5)
    found = metric(network, examples, {"flat": flat, "rows": by_rows, "columns": by_rows.transpose(2, 3)})
    assert not np.allclose(found.values["flat"], found.values["rows"])
    strided = flat.contiguous(memory_format=torch.channels_last).transpose(2, 3)
    again = metric(network, examples, {"flat": strided})
    np.testing.assert_array_equal(again.values["flat"], found.values["flat"])


@pytest.mark.parametrize("metric", [Insertion(steps=5, **BLUR), LeRF5(), MoRF100(steps=4)], ids=lambda m: m.name)
def test_scores_depend_neither_on_chunks_nor_on_neighbours_nor_on_other_maps(
    metric: Perturbation, network: nn.Module, examples: Examples
) -> None:
    maps = {"one": slow.distinct(examples.inputs.shape, 1), "two": slow.distinct(examples.inputs.shape, 2)}
    whole = metric(network, examples, maps)
    chunked = replace(metric, chunk=3)(network, examples, maps)
    alone = [metric(network, examples[i : i + 1], {"two": maps["two"][i : i + 1]}).values["two"] for i in range(4)]
    np.testing.assert_allclose(chunked.values["two"], whole.values["two"], rtol=1e-10)
    np.testing.assert_allclose(np.concatenate(alone), whole.values["two"], rtol=1e-10)


def test_many_images_go_in_blocks(network: nn.Module) -> None:
    x = slow.distinct((19, 3, 14, 14), 7)
    examples = Examples(x, torch.zeros(19, dtype=torch.int64))
    heat = slow.distinct((19, 1, 14, 14), 8)
    whole = Deletion(steps=3)(network, examples, {"a": heat}).values["a"]
    parts = [Deletion(steps=3)(network, examples[i : i + 1], {"a": heat[i : i + 1]}).values["a"] for i in range(19)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-10)


def test_guided_maps_are_ranked_by_magnitude_where_the_paper_does(network: nn.Module, examples: Examples) -> None:
    heat = slow.distinct((4, 1, 14, 14), 4)
    found = LeRF100()(network, examples, {"guided_backprop": heat, "other": heat, "by hand": heat.abs()})
    np.testing.assert_array_equal(found.values["guided_backprop"], found.values["by hand"])
    assert not np.allclose(found.values["guided_backprop"], found.values["other"])
    assert LeRF100().protocol.options["absolute"] == ["guided_backprop", "guided_integrated_gradients"]


def test_beside_a_mean_of_ratios_stand_the_median_and_the_ratio_of_means(network: nn.Module) -> None:
    x = torch.randn(7, 3, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logits = network(x).detach()
    examples = Examples(x, logits.argmax(1))
    heat = {"a": slow.distinct((7, 1, 14, 14), 1), "b": slow.distinct((7, 1, 14, 14), 2)}
    own = logits.max(1).values.numpy()
    for metric in (MoRF5(), LeRF5()):
        found = metric(network, examples, heat)
        for name, values in found.values.items():
            beside = found.beside(name)
            assert beside["median"].value == pytest.approx(np.median(values), rel=1e-12)
            # The area under the mean logits' curve over the mean of the first logits.
            raw = (found.curves[name] * own[:, None]).mean(0)
            assert beside["ratio of means"].value == pytest.approx(
                (raw[1:] + raw[:-1]).mean() / 2 / own.mean(), rel=1e-9
            )
            assert all(e.low <= e.value <= e.high and e.images == 7 for e in beside.values())
        assert found.remarks[0].startswith(f"median: a {beside_text(found, 'a', 'median')}, b ")
        assert found.remarks[1].startswith(f"ratio of means: a {beside_text(found, 'a', 'ratio of means')}, b ")
        halves = [
            metric(network, examples[part], {k: v[part] for k, v in heat.items()}) for part in (slice(3), slice(3, 7))
        ]
        joined = type(found).cat(halves).beside("a")
        for name, whole in found.beside("a").items():  # another batch size may round the logits otherwise
            assert astuple(joined[name]) == pytest.approx(astuple(whole), rel=1e-12)
    assert Insertion(**BLUR)(network, examples, heat).beside("a") == {}
    assert MoRF5(score="logit")(network, examples, heat).beside("a") == {}


def beside_text(found: Scores, method: str, name: str) -> str:
    e = found.beside(method)[name]
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def test_images_that_the_ratio_does_not_fit_are_left_out_and_counted(network: nn.Module, examples: Examples) -> None:
    worst = Examples(examples.inputs, network(examples.inputs).argmin(1))
    assert bool((network(worst.inputs).gather(1, worst.target[:, None]) < 0).all())
    found = MoRF5()(network, worst, {"a": slow.distinct((4, 1, 14, 14), 1)})
    assert np.isnan(found.values["a"]).all()
    assert found.remarks == ("4 images not scored: their target's logit is not positive",)
    assert found.estimate("a").images == 0
    assert np.isfinite(MoRF100()(network, worst, {"a": slow.distinct((4, 1, 14, 14), 1)}).values["a"]).all()


def test_complementary_insertion_leaves_out_images_of_one_class(network: nn.Module, examples: Examples) -> None:
    found = ComplementaryInsertion(**BLUR)(network, examples, {"a": slow.distinct((4, 1, 14, 14), 1)})
    assert np.isfinite(found.values["a"]).tolist() == [True, True, False, False]
    assert found.remarks == ("2 images not scored: they have no other true class",)


def test_decisions_of_their_own_have_sigmoid_probabilities(network: nn.Module, examples: Examples) -> None:
    heat = {"a": slow.distinct((4, 1, 14, 14), 1)}
    found = Insertion(activation="sigmoid", **BLUR)(network, examples, heat).curves["a"][:, -1]
    logits = network(examples.inputs).gather(1, examples.target[:, None])[:, 0]
    np.testing.assert_allclose(found, logits.sigmoid().detach().numpy())


def test_the_blur_is_the_gaussian() -> None:
    x = slow.distinct((2, 3, 14, 30), 9)
    expected = np.stack([slow.gaussian_blur(image.numpy(), 11, 3.0) for image in x])
    np.testing.assert_allclose(blurred(x, 11, 3.0).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("metric", "passes"),
    [
        (Insertion(steps=10, **BLUR), 3 * 9 + 2),
        (Insertion(steps=10, fraction=0.5, **BLUR), 3 * 10 + 1),
        (Insertion(steps=10, score="change", **BLUR), 3 * 9 + 2),
        (MoRF5(), 3 * 10 + 1),
        (LeRF100(), 3 * 9 + 2),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_the_network_runs_once_for_what_all_maps_share(
    metric: Perturbation, passes: int, network: nn.Module, examples: Examples
) -> None:
    seen: list[int] = []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    try:
        maps = {str(i): slow.distinct((4, 1, 14, 14), i) for i in range(3)}
        metric(network, examples, maps)
    finally:
        handle.remove()
    assert seen[0] == 1  # one image alone: the network takes any number
    assert sum(seen[1:]) == 4 * passes
    each, shared = (int(part.split()[-1 if i == 0 else 1]) for i, part in enumerate(metric.forward_passes.split(", ")))
    assert 3 * each + shared == passes  # as it says of itself


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: Insertion(step=3), r"'step' is no option of Insertion.*Did you mean 'steps'"),
    (lambda: Insertion(steps=0), "steps must be a positive integer or None, but is 0"),
    (lambda: Insertion(fraction=1.5), "fraction must be above 0 and at most 1"),
    (
        lambda: Insertion(replacement="noise"),
        "replacement must be 'blur', 'folded_blur', 'zero' or 'mean', but is 'noise'",
    ),
    (lambda: Insertion(blur_size=10), "blur_size must be a positive odd integer"),
    (lambda: Insertion(score="loss"), "score must be 'probability', 'logit'"),
    (lambda: Insertion(reduce="median"), "reduce must be 'sum'"),
    (
        lambda: Insertion(steps=None),
        "steps and pixels_per_step say the same in two ways, but are None and None. Give one",
    ),
    (
        lambda: Insertion(pixels_per_step=9),
        "steps and pixels_per_step say the same in two ways, but are 50 and 9. Give one",
    ),
    (lambda: Insertion(explains="label"), "explains must be 'target' or 'prediction', but is 'label'"),
    (lambda: Insertion(preset="rice"), "preset must be 'dmbp', 'rise' or 'latec', but is 'rice'. Did you mean 'rise'"),
    (lambda: Insertion(chunk=0), "chunk must be a positive integer or None"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[m for _, m in BAD])
def test_options_that_cannot_be_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_maps_and_data_that_do_not_fit_are_refused(network: nn.Module, examples: Examples) -> None:
    heat = slow.distinct((4, 1, 14, 14), 1)
    with pytest.raises(InputError, match=r"blur_size must be below 28 for images of 14 pixels a side, but is 51"):
        Insertion()(network, examples, {"a": heat})
    with pytest.raises(
        InputError, match=r"maps\['a'\] must be .* = \(4, c, 14, 14\) like the images, but has shape \(4, 1, 7, 7\)"
    ):
        Deletion()(network, examples, {"a": heat[..., :7, :7]})
    broken = heat.clone()
    broken[1, 0, 0, 0], broken[3, 0, 1, 1] = torch.nan, torch.inf
    with pytest.raises(InputError, match=r"maps\['a'\] must be finite, but holds NaN or Inf for b, d"):
        Deletion()(network, examples, {"a": broken})
    with pytest.raises(InputError, match="maps must hold the maps of at least one method"):
        Deletion()(network, examples, {})
    with pytest.raises(InputError, match=r"Complementary insertion needs all true classes .*VOC"):
        ComplementaryInsertion()(network, Examples(examples.inputs, examples.target), {"a": heat})
    with pytest.raises(InputError, match=r"target must be a class index from 0 to 4, but reaches from 0 to 9"):
        Deletion()(network, Examples(examples.inputs, torch.tensor([0, 9, 1, 1])), {"a": heat})
    many = Examples(examples.inputs, examples.target, torch.ones(4, 7, dtype=torch.bool))
    with pytest.raises(InputError, match=r"labels must have one column a class of the model \(5\), but have 7"):
        ComplementaryInsertion(**BLUR)(network, many, {"a": heat})


@pytest.mark.parametrize(
    ("metric", "higher", "ends"),
    [
        (Insertion(), True, (0, 1)),
        (Insertion(score="change"), False, (0, np.inf)),
        (Insertion(score="logit"), True, (-np.inf, np.inf)),
        (ComplementaryInsertion(), True, (0, 1)),
        (Deletion(), False, (0, 1)),
        (MoRF5(), False, (-np.inf, np.inf)),
        (MoRF5(score="change"), True, (0, np.inf)),
        (LeRF5(), True, (-np.inf, np.inf)),
        (MoRF100(), True, (0, np.inf)),
        (MoRF100(score="logit_ratio"), False, (-np.inf, np.inf)),
        (LeRF100(), False, (0, np.inf)),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_the_direction_follows_what_is_scored(
    metric: Perturbation, higher: bool, ends: tuple[float, float], linear: Any
) -> None:
    assert metric.protocol.higher_is_better is higher
    assert metric.protocol.range == ends
    if isinstance(metric, ComplementaryInsertion):
        return
    network, examples, oracle = linear
    positive = Examples(oracle.abs() / network.weight, examples.target)  # all pixels speak for the class
    sound = replace(metric, blur_size=3, replacement="zero", fraction=1.0)
    found = sound(network, positive, {"oracle": oracle.abs(), "inverted": -oracle.abs()})
    assert found.ranking()[0][0] == "oracle"


def test_complementary_insertion_of_logits(network: nn.Module, examples: Examples) -> None:
    heat = {"a": slow.distinct((4, 1, 14, 14), 1)}
    found = ComplementaryInsertion(score="logit", **BLUR)(network, examples, heat).curves["a"][0, -1]
    assert examples.labels is not None
    other = [c for c in range(5) if examples.labels[0, c] and c != int(examples.target[0])]
    assert found == pytest.approx(float(network(examples.inputs)[0, other].mean()))


def test_magnitudes_follow_the_method_not_what_the_user_calls_it(network: nn.Module, examples: Examples) -> None:
    guided = GuidedBackprop(network)(examples.inputs, examples.target)
    found = LeRF100()(network, examples, {"mine": guided, "guided_backprop": guided, "bare": guided.values})
    np.testing.assert_array_equal(found.values["mine"], found.values["guided_backprop"])
    assert not np.allclose(found.values["mine"], found.values["bare"])
    with pytest.raises(InputError, match="absolute must be a tuple of names of methods, but is 'random'"):
        LeRF100(absolute="random")


class Viewed(nn.Module):
    """A network that asks for contiguous memory, as older ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 12 * 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.head(x.view(x.size(0), -1))


def test_networks_that_need_contiguous_memory_get_it(examples: Examples) -> None:
    old = Viewed().double().eval()
    found = Deletion(steps=3)(old, examples, {"a": slow.distinct((4, 1, 14, 14), 1)})
    assert np.isfinite(found.values["a"]).all()


def test_a_network_in_train_mode_is_refused_before_it_changes(examples: Examples) -> None:
    training = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ).double()
    before = training[1].running_mean.clone()
    with pytest.raises(ModelStateError, match="train mode"):
        Deletion()(training, examples, {"a": slow.distinct((4, 1, 14, 14), 1)})
    assert torch.equal(training[1].running_mean, before)


def test_one_output_has_its_sigmoid_and_a_contrast_the_share_of_the_pair(network: nn.Module) -> None:
    """The softmax of one output is 1 whatever the pixels."""
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    zero, heat = torch.zeros(3, dtype=torch.long), x.sum(1, keepdim=True)
    pair = scored(network, Contrast(2, 0))
    metric = Insertion(steps=6, replacement="zero")
    found = metric(pair, Examples(x, zero), {"m": heat})

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return network(x)[:, [2, 0]]

    expected = metric(Two().eval(), Examples(x, zero), {"m": heat})
    np.testing.assert_allclose(found.curves["m"], expected.curves["m"], rtol=1e-10)
    assert found.curves["m"].std() > 1e-3


def test_a_network_that_ends_in_a_softmax_has_its_own_probabilities(network: nn.Module) -> None:
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    examples, heat = Examples(x, torch.tensor([0, 1, 2])), x.sum(1, keepdim=True)
    metric = Deletion(steps=6)
    ended = metric(nn.Sequential(network, nn.Softmax(1)).eval(), examples, {"m": heat})
    np.testing.assert_allclose(ended.curves["m"], metric(network, examples, {"m": heat}).curves["m"], rtol=1e-10)
