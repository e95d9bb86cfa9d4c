"""compare(): what it returns, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from scipy import stats

import _named
import backlit
from backlit import Attribution, Examples, FileError, InputError, ModelStateError
from backlit.bench.tables import COSTS
from backlit.methods import Method, Random
from backlit.metrics import BoundaryDependence, ClassSensitivity, Deletion, Insertion, LastLayerReset, Metric
from backlit.models.digits import digits_images, two_digit_scenes
from backlit.rules import presets
from backlit.rules.linear import Gamma

METHODS = ["random", "gradient_x_input", "grad_cam"]
METRICS = ["insertion", "morf_5", "complementary_insertion", "last_layer_reset"]


@pytest.fixture(scope="module")
def model() -> backlit.LoadedModel:
    return backlit.load_model("digits")


@pytest.fixture(scope="module")
def examples(model: backlit.LoadedModel) -> Examples:
    images, labels = two_digit_scenes(11, seed=3)
    both = torch.zeros(11, 10, dtype=torch.bool).scatter_(1, labels, True)
    return Examples(model.preprocess.batch(images), labels[:, 0], both)


@pytest.fixture(scope="module")
def found(model: backlit.LoadedModel, examples: Examples) -> backlit.Comparison:
    return backlit.compare(model, examples, METHODS, METRICS, classes=3)


def test_scores_are_the_metrics_own(found: backlit.Comparison, model: backlit.LoadedModel, examples: Examples) -> None:
    method = backlit.GradientXInput(model.network)
    maps = {"gradient_x_input": method(examples.inputs, examples.target)}
    for metric in (Insertion(), LastLayerReset()):
        alone = metric(model.network, examples, maps, {"gradient_x_input": method})
        rows = found.scores.filter(metric=metric.name, method="gradient_x_input", extra="")
        assert rows["image"].to_list() == list(examples.names)
        assert rows["target"].to_list() == examples.target.tolist()
        np.testing.assert_allclose(rows["value"].to_numpy(), alone.values["gradient_x_input"], atol=2e-5)
        e = alone.estimate("gradient_x_input")
        row = found.ranking.filter(metric=metric.name, method="gradient_x_input").row(0, named=True)
        assert (row["value"], row["low"], row["high"]) == pytest.approx((e.value, e.low, e.high), abs=1e-4)
        assert row["images"] == 11


def test_every_table_has_its_rows(found: backlit.Comparison) -> None:
    assert found.scores.filter(extra="").height == 4 * 3 * 11
    assert set(found.scores["extra"]) == {"", "ssim", "spearman of magnitudes"}
    assert found.ranking.height == 4 * 3
    assert found.differences.height == 4 * 3
    assert found.agreement.height == 6  # pairs of the metrics
    for row in found.agreement.iter_rows(named=True):
        ranks = [found.ranking.filter(metric=row[k]).sort("method")["rank"].to_list() for k in ("metric", "other")]
        assert row["tau"] == pytest.approx(stats.kendalltau(*ranks).statistic)
    assert found.curves.filter(metric="insertion", method="random").height == 51
    best = found.ranking.filter(metric="insertion").sort("rank")
    assert best["value"].is_sorted(descending=True)
    least = found.ranking.filter(metric="morf_5").sort("rank")
    further = ["median", "median_low", "median_high", "ratio_of_means", "ratio_of_means_low", "ratio_of_means_high"]
    assert best.select(further).null_count().row(0) == (best.height,) * 6
    scored = found.scores.filter(metric="morf_5", method="random")["value"].to_numpy()
    assert least.filter(method="random")["median"].item() == pytest.approx(np.median(scored), nan_ok=True)
    assert any(note.startswith("ratio of means: ") for note in found.notes["morf_5"])
    assert least["value"].is_sorted()
    row = found.differences.filter(metric="insertion", method="random", other="grad_cam").row(0, named=True)
    values = {m: found.scores.filter(metric="insertion", method=m)["value"] for m in ("random", "grad_cam")}
    assert row["difference"] == pytest.approx(values["random"].mean() - values["grad_cam"].mean())
    assert row["significant"]


def test_images_classes_and_maps(found: backlit.Comparison, model: backlit.LoadedModel, examples: Examples) -> None:
    with torch.no_grad():
        chances = model.network(examples.inputs).softmax(1)
    for i, image in enumerate(found.images):
        assert len(image.classes) == 3
        assert image.classes[0].index == int(examples.target[i])
        others = [c.index for c in image.classes[1:]]
        likeliest = [c for c in chances[i].argsort(descending=True).tolist() if c != int(examples.target[i])][:2]
        assert others == likeliest
        assert image.classes[1].probability == pytest.approx(float(chances[i, others[0]]), rel=1e-4)
        assert 0 <= float(image.picture.min()) <= float(image.picture.max()) <= 1
    assert len(found.maps) == 3 * 11 * 3
    cam = backlit.GradCAM(model.network).attribute(examples.inputs[4:5], found.images[4].classes[2].index)[0, 0]
    torch.testing.assert_close(
        found.maps["grad_cam", "image 4", found.images[4].classes[2].index], cam, atol=1e-5, rtol=1e-4
    )


def test_facts_strips_and_protocols(found: backlit.Comparison) -> None:
    facts = {m.name: m for m in found.methods}
    assert list(facts) == METHODS
    assert facts["grad_cam"].notes["layer"].startswith("relu")
    assert set(facts["gradient_x_input"].completeness) == {"biases"}
    assert sum(facts["gradient_x_input"].coverage.values()) == 17
    assert all(m.seconds > 0 and m.forward_equivalents > 0 for m in found.methods)
    assert {(s.method, s.image) for s in found.strips} == {(m, f"image {i}") for m in METHODS for i in range(3)}
    strip = found.strips[0]
    assert strip.labels == ("trained", "linear")
    assert strip.correlations["Spearman"] == pytest.approx((1.0, 1.0))
    protocol = {p["metric"]: p for p in found.protocols}["insertion"]
    assert protocol["options"]["blur_size"] == 51
    assert protocol["options"]["score"] == "probability"
    assert protocol["target"] == "given"
    assert protocol["channels"] == "sum over channels"
    json.dumps([*found.protocols, dict(found.provenance), [dict(m.options) for m in found.methods]])


def test_an_interrupted_comparison_goes_on(
    model: backlit.LoadedModel,
    examples: Examples,
    found: backlit.Comparison,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces: list[str] = []

    def stop(done: int, of: int, what: str) -> None:
        pieces.append(what)
        if done == 25:  # in the second block, before the third method
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backlit.compare(model, examples, METHODS, METRICS, classes=3, out=tmp_path / "out", progress=stop)
    rows = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert len(rows) == 25
    with (tmp_path / "out" / "results.jsonl").open("a") as file:
        file.write('{"kind": "scores", "name": "insert')
    ran: list[str] = []
    call, each = Metric.__call__, Method.each

    def scored(self: Metric, *arguments: Any) -> Any:
        ran.append(self.name)
        return call(self, *arguments)

    def explained(self: Method, *arguments: Any) -> Any:
        ran.append(self.name)
        return each(self, *arguments)

    monkeypatch.setattr(Metric, "__call__", scored)
    monkeypatch.setattr(Method, "each", explained)
    with pytest.warns(UserWarning, match=r"line 26 cannot be used.*Kept in results\.jsonl\.bad"):
        again = backlit.compare(model, examples, METHODS, METRICS, classes=3, out=tmp_path / "out")
    assert ran == ["grad_cam", *METRICS]  # what was missing, of the second block alone
    assert_frame_equal(again.scores, found.scores)
    assert_frame_equal(again.ranking.drop(COSTS), found.ranking.drop(COSTS))
    assert all(torch.equal(again.maps[k], v) for k, v in found.maps.items())
    assert [s.labels for s in again.strips] == [s.labels for s in found.strips]
    torch.testing.assert_close(torch.stack(again.strips[5].maps), torch.stack(found.strips[5].maps))
    for table in ("scores", "curves", "ranking", "differences", "agreement"):
        assert_frame_equal(pl.read_parquet(tmp_path / "out" / f"{table}.parquet"), getattr(again, table))
    saved = Attribution.load(tmp_path / "out" / "maps" / "grad_cam.000008-000010.1.safetensors")
    assert saved.values.shape == (3, 1, 32, 32)
    assert saved.provenance["layer"].startswith("relu")


def test_a_folder_in_use_is_never_overwritten(model: backlit.LoadedModel, examples: Examples, tmp_path: Path) -> None:
    few = examples[:5]
    backlit.compare(model, few, ["random"], ["deletion"], out=tmp_path / "out")
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    with pytest.raises(
        FileError, match=r"holds another comparison: methods\.random\..* was .* and is not given.*--force"
    ):
        backlit.compare(model, few, ["saliency"], ["deletion"], out=tmp_path / "out")
    with pytest.raises(FileError, match=r"holds another comparison: images was .*pixels was"):
        backlit.compare(model, examples[5:10], ["random"], ["deletion"], out=tmp_path / "out")
    with pytest.raises(FileError, match=r"holds another comparison: metrics\.deletion\.options\.steps was 50 and is 7"):
        backlit.compare(model, few, ["random"], [Deletion(steps=7)], out=tmp_path / "out")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    with pytest.warns(
        UserWarning, match=r"begins anew; force replaces 14 files of the earlier run: plan.json, results.jsonl"
    ):
        backlit.compare(model, few, ["saliency"], ["deletion"], out=tmp_path / "out", force=True)
    assert b"random" not in (tmp_path / "out" / "results.jsonl").read_bytes()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    with pytest.raises(FileError, match="exists and holds something else than this comparison; nothing was written"):
        backlit.compare(model, few, ["random"], ["deletion"], out=theirs)
    assert [p.name for p in theirs.iterdir()] == ["thesis.tex"]
    backlit.compare(model, few, ["random"], ["deletion"], out=theirs, force=True)
    assert (theirs / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["report.html", "plan.json", "results.jsonl", "scores.parquet"])
def test_a_file_of_somebody_else_stays(
    model: backlit.LoadedModel, examples: Examples, tmp_path: Path, name: str, force: bool
) -> None:
    (tmp_path / name).write_text("years of work")
    with pytest.raises(FileError, match=rf"{name}' is a file that Backlit did not write here.* Move it away"):
        backlit.compare(model, examples[:5], ["random"], ["deletion"], out=tmp_path, force=force)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    (tmp_path / name).rename(tmp_path.parent / f"{tmp_path.name} moved")
    backlit.compare(model, examples[:5], ["random"], ["deletion"], out=tmp_path, force=force)


def test_force_removes_what_a_comparison_wrote_and_nothing_else(
    model: backlit.LoadedModel, examples: Examples, tmp_path: Path
) -> None:
    out, few = tmp_path / "out", examples[:5]
    (out / "maps").mkdir(parents=True)
    (out / "maps" / "thesis.txt").write_text("years of work")
    (out / "maps" / "mine.safetensors").write_text("years of work")
    with pytest.raises(FileError, match="holds something else"):
        backlit.compare(model, few, ["random"], ["deletion"], out=out)
    backlit.compare(model, few, ["random"], ["deletion"], out=out, force=True)
    with pytest.warns(UserWarning, match="begins anew"):
        backlit.compare(model, few, ["saliency"], ["deletion"], out=out, force=True)
    assert (
        (out / "maps" / "thesis.txt").read_text() == (out / "maps" / "mine.safetensors").read_text() == "years of work"
    )
    assert sorted(p.name.split(".")[0] for p in (out / "maps").iterdir()) == ["mine", "saliency", "thesis"]
    (out / "plan.json").write_text("{")
    with pytest.raises(FileError, match=r"another run, whose plan.json is damaged or lost"):
        backlit.compare(model, few, ["random"], ["deletion"], out=out)
    with pytest.warns(UserWarning, match=r"plan.json is not as it was written"):
        backlit.compare(model, few, ["saliency"], ["deletion"], out=out)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="must be a folder, but is a file"):
        backlit.compare(model, few, ["random"], ["deletion"], out=tmp_path / "file")


@pytest.mark.filterwarnings("ignore:.*begins anew")
def test_two_runs_are_never_taken_for_one(model: backlit.LoadedModel, examples: Examples, tmp_path: Path) -> None:
    """Whatever changes a number makes another comparison, however it prints; what changes none makes none."""
    few, net = examples[:5], model.network
    x = few.inputs
    close = x[0].clone()
    close[0, 7, 7] = torch.nextafter(close[0, 7, 7], torch.tensor(9.0))
    methods: dict[str, Method] = {
        "zero": backlit.DeepLIFT(net),
        "first": backlit.DeepLIFT(net, reference=x[0]),
        "nearly the first": backlit.DeepLIFT(net, reference=close),
        "second": backlit.DeepLIFT(net, reference=x[1]),
        "dark": backlit.DeepLIFT(net, reference=_named.dark),
        "bright": backlit.DeepLIFT(net, reference=_named.bright),
        "brighter": backlit.DeepLIFT(net, reference=partial(_named.bright, level=2.0)),
        "level": backlit.DeepLIFT(net, reference=_named.Level(2.0)),
        "set": backlit.DeepSHAP(net, references=x[:3]),
        "other set": backlit.DeepSHAP(net, references=x[1:4]),
        "rules": backlit.LRP(net, rules=presets.epsilon_plus()),
        "other rules": backlit.LRP(net, rules=presets.epsilon_plus().but({"conv2d": Gamma(0.5)}, "epsilon_plus")),
        "optimizer": backlit.DMBP(net, steps=2, optimizer=torch.optim.Adam),
        "other optimizer": backlit.DMBP(net, steps=2, optimizer=torch.optim.SGD),
    }

    def run(method: Method, **changes: Any) -> torch.Tensor:
        found = backlit.compare(model, few, {"m": method}, ["deletion"], out=tmp_path, **changes)
        return torch.stack([found.maps["m", image.name, image.classes[0].index] for image in found.images])

    for name, method in methods.items():
        expected = run(method, force=True)
        torch.testing.assert_close(expected, method(x, few.target).heatmap()[:, 0], atol=1e-5, rtol=1e-4)
        for other, another in methods.items():
            if other != name:
                with pytest.raises(FileError, match=r"holds another comparison: methods\.m"):
                    run(another)
        assert torch.equal(run(method), expected)
    run(backlit.DMBP(net, steps=2, callback=print, chunk=2), force=True)
    run(backlit.DMBP(net, steps=2, callback=lambda step: None, chunk=5))


def test_what_has_no_name_is_refused_where_it_must_be_known_again(
    model: backlit.LoadedModel, examples: Examples, tmp_path: Path
) -> None:
    method = backlit.DeepLIFT(model.network, reference=lambda x: x * 0)
    with pytest.raises(
        InputError, match=r"^methods\['m'\]\.reference must be .*lambda.* top of a module.*\(out=None\)"
    ):
        backlit.compare(model, examples[:5], {"m": method}, ["deletion"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    backlit.compare(model, examples[:5], {"m": method}, ["deletion"])  # the ways out
    named = backlit.DeepLIFT(model.network, reference=_named.dark)
    backlit.compare(model, examples[:5], {"m": named}, ["deletion"], out=tmp_path / "out")


@pytest.mark.parametrize("changed", ["code", "attribute", "weights", "precision of the images"])
def test_another_network_or_precision_is_another_comparison(tmp_path: Path, changed: str) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(12, 3)
            self.scale = 1.0
            torch.nn.init.constant_(self.layer.weight, 0.1)
            torch.nn.init.zeros_(self.layer.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1)) * self.scale

    class Other(Scaled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1)) * 2 * self.scale

    x = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, two, y = Scaled().double().eval(), Scaled().double().eval(), x.clone()
    if changed == "code":
        two = Other().double().eval()
        two.__class__.__name__, two.__class__.__qualname__ = Scaled.__name__, Scaled.__qualname__
    elif changed == "attribute":
        two.scale = 2.0
    elif changed == "weights":
        two.layer.weight.data[0, 0] += 1e-12
    else:
        y[0, 0, 0, 0] += 1e-12  # the same in float32
    target = torch.zeros(5).long()
    backlit.compare(one, Examples(x, target), ["random"], ["deletion"], out=tmp_path)
    with pytest.raises(FileError, match=r"holds another comparison: (network|pixels)\b"):
        backlit.compare(two, Examples(y, target), ["random"], ["deletion"], out=tmp_path)


@pytest.mark.parametrize("damage", ["a digit of a score", "a bit of a map", "a bit of a picture", "a copied line"])
def test_what_was_changed_is_computed_again(
    model: backlit.LoadedModel, examples: Examples, tmp_path: Path, damage: str
) -> None:
    def run() -> backlit.Comparison:
        return backlit.compare(
            model, examples[:5], ["gradient_x_input"], ["deletion", "last_layer_reset"], out=tmp_path
        )

    first = run()
    path = tmp_path / "results.jsonl"
    if damage.startswith("a bit"):
        pattern = "last_layer_reset*" if "picture" in damage else "gradient_x_input*"
        path = next((tmp_path / "maps").glob(pattern))
    data = bytearray(path.read_bytes())
    if damage == "a digit of a score":
        at = data.index(b".", data.index(b'"values"')) + 1
        data[at] = ord("9") if data[at] != ord("9") else ord("1")
    elif damage == "a copied line":
        data += data.splitlines(keepends=True)[1].replace(b"deletion", b"last_layer_reset")
    else:
        data[-5] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="cannot be used|is not as it was written"):
        again = run()
    assert_frame_equal(again.scores, first.scores)
    assert all(torch.equal(again.maps[k], v) for k, v in first.maps.items())
    assert all(
        torch.equal(a, b)
        for s, t in zip(again.strips, first.strips, strict=True)
        for a, b in zip(s.maps, t.maps, strict=True)
    )
    assert len(list(path.parent.glob(f"{path.name}.bad"))) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()


def test_other_ground_truth_is_another_comparison(
    model: backlit.LoadedModel, examples: Examples, tmp_path: Path
) -> None:
    few = examples[:5]
    assert few.labels is not None
    backlit.compare(model, few, ["random"], ["complementary_insertion"], out=tmp_path)
    other = Examples(few.inputs, few.target, few.labels.roll(1, 1).scatter(1, few.target[:, None], True))
    with pytest.raises(FileError, match="holds another comparison: truth was"):
        backlit.compare(model, other, ["random"], ["complementary_insertion"], out=tmp_path)


def test_lost_maps_are_made_again(model: backlit.LoadedModel, examples: Examples, tmp_path: Path) -> None:
    def run() -> backlit.Comparison:
        return backlit.compare(
            model, examples[:5], ["random", "grad_cam"], ["deletion", "last_layer_reset"], out=tmp_path
        )

    first = run()
    files = sorted((tmp_path / "maps").iterdir())
    cam = next(f for f in files if f.name.startswith("grad_cam"))
    cam.write_bytes(cam.read_bytes()[:100])
    next(f for f in files if f.name.startswith("last_layer_reset.random")).unlink()
    with pytest.warns(
        UserWarning,
        match="is not as it was written|(maps of grad_cam, images 1 to 5 of 5,|pictures of .*) are made again",
    ):
        again = run()
    assert_frame_equal(again.scores, first.scores)
    assert all(torch.equal(again.maps[k], v) for k, v in first.maps.items())
    assert {s.method for s in again.strips} == {"random", "grad_cam"}
    assert Attribution.load(cam).values.shape == (5, 1, 32, 32)


def test_half_precision_is_compared_too(examples: Examples, tmp_path: Path) -> None:
    half = backlit.load_model("digits", dtype="bfloat16")
    few = examples[:5].to("cpu", torch.bfloat16)
    found = backlit.compare(
        half, few, ["random", "grad_cam"], ["deletion", "max_sensitivity", "infidelity"], out=tmp_path
    )
    assert found.ranking["value"].null_count() == 0
    assert found.provenance["dtype"] == "bfloat16"


def test_what_is_shown_is_all_that_is_held(model: backlit.LoadedModel, examples: Examples) -> None:
    found = backlit.compare(model, examples, [backlit.GradCAM], [Deletion], shown=4)
    assert len(found.images) == 4
    assert len(found.maps) == 4
    assert found.scores.height == 11
    assert all(m.untyped_storage().nbytes() <= 8 * 32 * 32 * 4 for m in found.maps.values())


def test_networks_that_only_some_methods_explain(examples: Examples) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x[:, 0])[:, :10]

    few = Examples(examples.inputs[:5], examples.target[:5])
    found = backlit.compare(Odd(), few, ["random"], ["deletion"])
    assert found.ranking["images"].item() == 5


def test_the_record_lies_beside_the_scores(model: backlit.LoadedModel, examples: Examples, tmp_path: Path) -> None:
    found = backlit.compare(model, examples[:5], ["random"], ["insertion"], out=tmp_path)
    record = json.loads((tmp_path / "protocols.json").read_text())
    assert record["protocols"] == json.loads(json.dumps(list(found.protocols)))
    assert record["protocols"][0]["ties"].startswith("equal pixels")
    assert record["provenance"]["versions"]["backlit"] == backlit.__version__


def test_any_module_and_methods_of_ones_own_names(model: backlit.LoadedModel, examples: Examples) -> None:
    methods = {"long": backlit.DMBP(model.network, steps=3), "short": backlit.DMBP(model.network, steps=1)}
    found = backlit.compare(model.network, examples[:5], methods, [BoundaryDependence(border=4)], classes=1)
    assert [m.title for m in found.methods] == ["DMBP (long)", "DMBP (short)"]
    assert [m.options["steps"] for m in found.methods] == [3, 1]
    assert found.images[0].classes[0].label.startswith("class ")
    assert found.model == "DigitsNet"


def test_few_images_have_means_without_intervals(model: backlit.LoadedModel, examples: Examples) -> None:
    with pytest.warns(UserWarning, match="2 scored images: an interval needs at least 5"):
        found = backlit.compare(model, examples[:2], ["random", "saliency"], ["deletion"])
    row = found.ranking.row(0, named=True)
    assert row["value"] is not None
    assert (row["low"], row["high"]) == (None, None)
    assert not found.differences["significant"].any()


def test_what_cannot_be_is_refused_before_anything_runs(
    model: backlit.LoadedModel, examples: Examples, tmp_path: Path
) -> None:
    def compare(**changes: Any) -> Any:
        given: dict[str, Any] = {"examples": examples, "methods": ["random"], "metrics": ["deletion"], **changes}
        return backlit.compare(
            model, given.pop("examples"), given.pop("methods"), given.pop("metrics"), out=tmp_path / "o", **given
        )

    bare = Examples(examples.inputs, examples.target)
    wrong = Examples(examples.inputs, examples.target + 5)
    for changes, message in (
        ({"methods": ["dmpb"]}, r"method must be one of .*Did you mean 'dmbp'"),
        ({"metrics": ["insertoin"]}, r"metric must be one of .*Did you mean 'insertion'"),
        ({"methods": []}, "methods must name at least one method, but is empty"),
        ({"metrics": ["deletion", Deletion(steps=2)]}, "metrics must be different, but 'deletion' is there twice"),
        (
            {"examples": bare, "metrics": ["deletion", "complementary_insertion"]},
            "Complementary insertion needs all true classes",
        ),
        ({"metrics": ["pointing_game"]}, r"Pointing game needs boxes of the target .*VOC and ImageNet"),
        ({"metrics": ["apc"]}, "needs a source signal .*, but none of the methods has one: .*Add one that has"),
        ({"metrics": ["ibd"]}, r"border must be under half of the image's side \(32 pixels\), but is 16"),
        ({"examples": wrong}, "target must be class indices from 0 to 9, but reaches from"),
        ({"shown": -1}, "shown must be a number of images from 0 on, but is -1"),
        ({"methods": "random"}, "methods must be a list of names, or methods by name, but is the text 'random'"),
        ({"methods": [3]}, "methods must be names or classes, but hold int"),
        ({"methods": {"a": 3}}, r"methods\['a'\] must be a method, but is int"),
        ({"methods": {"../evil": Random}}, r"methods must have names of letters, digits.*One is '../evil'"),
        ({"methods": {"a": Random(backlit.load_model("digits").network)}}, "made for another one"),
        ({"metrics": [LastLayerReset(layers=("nope",))]}, "'nope' is none"),
        ({"metrics": [ClassSensitivity(classes=(1, 99))]}, "classes must be indices from 0 to 9, but hold 99"),
        ({"classes": 0}, "classes must be a positive number of classes an image, but is 0"),
    ):
        with pytest.raises(InputError, match=message):
            compare(**changes)
    assert not (tmp_path / "o").exists()


def test_the_embedded_digits_are_scored_as_they_should(model: backlit.LoadedModel) -> None:
    """Grad-CAM and DMBP find the digit, noise does not: on held-out digits, with a significant difference."""
    images, labels = digits_images()
    examples = Examples(model.preprocess.batch(images[:64]), labels[:64])
    methods = {m.name: m(model.network) for m in (backlit.methods.Random, backlit.GradCAM)}
    methods["dmbp"] = backlit.DMBP.fast(model.network)
    found = backlit.compare(model, examples, methods, ["insertion"])
    assert found.ranking.filter(method="random")["rank"].item() == 3
    assert found.differences.filter(method="random")["significant"].all()


def test_a_network_in_train_mode_stays_as_it_was(examples: Examples) -> None:
    training = backlit.load_model("digits").network.train()
    before = training.bn1.running_mean.clone()
    with pytest.raises(ModelStateError, match="train mode"):
        backlit.compare(training, examples, ["random"], ["deletion"])
    assert torch.equal(training.bn1.running_mean, before)
