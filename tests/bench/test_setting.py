"""One method or metric in several settings: how they are written, named and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import backlit
from _commands import command
from backlit import Examples, InputError
from backlit.bench.setting import LONGEST, read_setting, read_settings, safe_name
from backlit.cli.settings import methods, methods_and_metrics
from backlit.metrics import BoundaryAUC
from backlit.models.digits import two_digit_scenes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lpr", [("lpr", {})]),
        ("lpr; lpr(plugin=channel) ;lpr(sign_aware=false)", [("lpr", {}), ("lpr", {"plugin": "channel"}), ("lpr", {"sign_aware": False})]),
        ("a,b(x=1, y=(2, 3)),c()", [("a", {}), ("b", {"x": 1, "y": (2, 3)}), ("c", {})]),
        ("a(layer='x, y; z', k=None);", [("a", {"layer": "x, y; z", "k": None})]),
        ("a(dtype=float64, k=None)", [("a", {"dtype": torch.float64, "k": None})]),
    ],
)  # fmt: skip
def test_settings_are_read(text: str, expected: list[tuple[str, dict]]) -> None:
    assert [(one.of, one.options) for one in read_settings(text, "method")] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lpr(plugin=channel", r"method: a bracket or quote of 'lpr\(plugin=channel' is not closed"),
        ("lpr)", "is not closed, or was never opened"),
        ("lpr(plugin)", r"method must be NAME or NAME\(option=value, ...\), such as lpr\(steps=40\), but is 'lpr\(plugin\)'"),
        ("(steps=3)", r"method must be NAME or NAME\(option=value"),
        ("lpr(steps=3)x", r"method must be NAME or NAME\(option=value"),
        ("lpr(steps=3, steps=4)", "sets an option twice"),
    ],
)  # fmt: skip
def test_what_is_no_setting_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_settings(text, "method")
    with pytest.raises(InputError, match="must hold one name a text"):
        read_setting("a, b", "methods")


def test_names_are_safe_short_and_different() -> None:
    names = [
        safe_name("lpr", options)
        for options in (
            {},
            {"plugin": "channel"},
            {"layer": ("a", "b")},
            {"layer": "a/b"},
            {"layer": "a b"},
            {"k": -0.5},
            {"x": "y" * 80},
            {"x": "y" * 81},
            {"on": True, "off": None},
        )
    ]
    assert names[:3] == ["lpr", "lpr.plugin-channel", "lpr.layer-a-b"]
    assert names[5] == "lpr.k--0.5"
    assert names[8] == "lpr.on-true.off-none"
    assert len(set(names)) == len(names)
    assert all(len(name) <= LONGEST and not set(name) & set("/\\ :()'") for name in names)


def test_the_command_line_takes_a_method_and_a_metric_in_several_settings() -> None:
    chosen, measured = methods_and_metrics(
        "fast(steps=2); dmbp; dmbp(steps=5)",
        "insertion; insertion(reduce=abs, steps=7)",
        ["dmbp.steps=9", "insertion.steps=3"],
        4,
    )
    assert [(c.name, c.options["steps"], c.options["seed"]) for c in chosen] == [
        ("dmbp_fast.steps-2", 2, 4),
        ("dmbp", 9, 4),
        ("dmbp.steps-5", 5, 4),
    ]
    assert [c.title for c in chosen] == ["DMBP, short schedule (steps-2)", "DMBP", "DMBP (steps-5)"]
    assert {name: (m.reduce, vars(m)["steps"]) for name, m in measured.items()} == {
        "insertion": ("sum", 3),
        "insertion.reduce-abs.steps-7": ("abs", 7),
    }
    assert [c.name for c in methods("lrp, lrp(preset=epsilon)", [], 0)] == ["lrp", "lrp.preset-epsilon"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dmbp(stepz=3)", r"option 'stepz=3' fits nothing that was asked for; there are .*Did you mean 'steps'"),
        ("dmbp(steps=0)", "steps must be a positive integer"),
        ("all(steps=3)", "method must be one of .* but is 'all'"),
        ("dmbp(callback=3)", "option 'callback=3' fits nothing"),
    ],
)
def test_an_option_that_cannot_be_set_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        methods(text, [], 0)


@pytest.fixture(scope="module")
def model() -> backlit.LoadedModel:
    return backlit.load_model("digits")


@pytest.fixture(scope="module")
def examples(model: backlit.LoadedModel) -> Examples:
    images, labels = two_digit_scenes(24, seed=3)
    return Examples(model.preprocess.batch(images), labels[:, 0])


def test_settings_stand_beside_each_other(model: backlit.LoadedModel, examples: Examples, tmp_path: Path) -> None:
    found = backlit.compare(
        model,
        examples[:9],
        ["saliency", "lrp", "lrp(preset=epsilon)"],
        ["deletion", "deletion(reduce=abs)"],
        out=tmp_path,
    )
    assert [(m.name, m.title) for m in found.methods][1:] == [
        ("lrp", "LRP"),
        ("lrp.preset-epsilon", "LRP (preset-epsilon)"),
    ]
    assert [(p["metric"], p["title"], p["channels"]) for p in found.protocols] == [
        ("deletion", "Deletion (dmbp)", "sum over channels"),
        ("deletion.reduce-abs", "Deletion (dmbp, reduce=abs)", "sum of magnitudes over channels"),
    ]
    assert found.ranking.height == 6
    by = {k: v["value"].to_list() for k, v in found.scores.partition_by("metric", "method", as_dict=True).items()}
    assert len({str(v) for k, v in by.items() if "lrp" in k[1]}) == 4
    alone = backlit.compare(model, examples[:9], {"m": backlit.LRP(model.network, preset="epsilon")}, ["deletion"])
    assert by["deletion", "lrp.preset-epsilon"] == alone.scores["value"].to_list()
    assert (tmp_path / "maps" / "lrp.preset-epsilon.000000-000007.0.safetensors").exists()


def test_a_metric_gets_the_map_that_it_asks_for(model: backlit.LoadedModel, examples: Examples) -> None:
    """IBD's AUC scores the prediction's map: the same as when it is given that map alone."""
    predicted = model.network(examples.inputs).argmax(1)
    wrong = predicted != examples.target
    assert 0 < int(wrong.sum()) < 24
    metric = BoundaryAUC(border=4)
    found = backlit.compare(
        model, examples, ["grad_cam"], {"auc": metric, "ibd": backlit.metrics.BoundaryDependence(border=4)}
    )
    assert all(len(image.classes) == 1 for image in found.images)
    assert [p["explains"] for p in found.protocols] == ["prediction", "target"]
    cam = backlit.GradCAM(model.network)
    share = {}
    for name, target in (("auc", predicted), ("ibd", examples.target)):
        heat = cam.attribute(examples.inputs, target)[:, 0].clamp(min=0).double()
        share[name] = (1 - heat[:, 4:-4, 4:-4].sum((1, 2)) / heat.sum((1, 2))).numpy()
        np.testing.assert_allclose(found.scores.filter(metric=name)["value"].to_numpy(), share[name], atol=1e-5)
    assert np.abs(share["auc"] - share["ibd"])[wrong.numpy()].max() > 0.01
    pairs = backlit.compare(model, examples, ["grad_cam"], {"auc": metric}, classes=3)
    assert pairs.scores["value"].to_list() == found.scores.filter(metric="auc")["value"].to_list()


def test_maps_of_other_classes_than_a_metric_asks_for_are_refused(
    model: backlit.LoadedModel, examples: Examples
) -> None:
    cam = backlit.GradCAM(model.network)
    both = {name: {"cam": cam(examples.inputs, t)} for name, t in (("truth", examples.target), ("prediction", None))}
    metric = BoundaryAUC(border=4)
    metric(model.network, examples, both["prediction"])
    with pytest.raises(
        InputError,
        match=r"maps\['cam'\] must explain the classes that the network predicts, as IBD as a sign of error asks.*target=None",
    ):
        metric(model.network, examples, both["truth"])
    with pytest.raises(InputError, match=r"maps\['cam'\] must explain the examples' targets, but explains others"):
        backlit.metrics.Insertion()(model.network, examples, both["prediction"])


def test_the_command_compares_settings(tmp_path: Path) -> None:
    done = command("compare", "--limit", 9, "--method", "grad_cam; smooth_grad(of=grad_cam, samples=2)", "--metric", "ibd_auc(border=4), deletion(reduce=abs)",
                   "--classes", 1, "--out", tmp_path / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranking = pl.read_csv(tmp_path / "out" / "ranking.csv")
    assert set(ranking["method"]) == {"grad_cam", "smooth_grad.of-grad_cam.samples-2"}
    assert set(ranking["metric"]) == {"ibd_auc.border-4", "deletion.reduce-abs"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "IBD as a sign of error (border=4)" in page
    done = command("compare", "--limit", 2, "--method", "dmbp(stepz=3)", "--out", tmp_path / "no")
    assert done.returncode == 2
    assert "option 'stepz=3' fits nothing" in done.stderr
