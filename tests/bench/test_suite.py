"""Plans: what a TOML file may say, what is refused before anything is computed, and many comparisons of one plan."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

import backlit
from _commands import command
from backlit import FileError, InputError
from backlit.bench.run import How, run_suite
from backlit.bench.suite import PlannedData, PlannedNetwork, Suite, read_plan

WHOLE = """
methods = ["random", "lpr(plugin=channel)"]
metrics = "deletion, insertion(reduce=abs)"
options = ["lpr.steps=3"]
seeds = [0, 7]
classes = 2
shown = 3
device = "cpu"
dtype = "float64"
[[networks]]
model = "resnet18"
weights = "weights/resnet18.safetensors"
size = 224
mean = [0.5, 0.5, 0.5]
[[networks]]
model = "resnet18"
name = "untrained"
weights = "random"
[[data]]
paths = "val"
read = "imagenet"
class_index = "index.json"
annotations = "boxes"
scaled = true
limit = 5
[[data]]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_says_what_is_run(tmp_path: Path) -> None:
    comparisons = read_plan(written(tmp_path, WHOLE)).comparisons()
    names = [f"{n}/{d}/seed-{s}" for n in ("resnet18", "untrained") for d in ("val", "scenes") for s in (0, 7)]
    assert list(comparisons) == names
    one = comparisons["resnet18/val/seed-7"]
    assert (one.model, one.weights) == ("resnet18", str(tmp_path / "weights" / "resnet18.safetensors"))
    assert one.preprocessing == {"size": 224, "mean": [0.5, 0.5, 0.5]}
    assert (one.source.paths, one.source.index) == ([tmp_path / "val"], tmp_path / "index.json")
    assert (one.source.data, one.source.scaled, one.source.limit) == ("imagenet", True, 5)
    assert (one.methods, one.metrics) == ("random; lpr(plugin=channel)", "deletion, insertion(reduce=abs)")
    assert (one.seed, one.classes, one.shown, one.dtype, one.options) == (7, 2, 3, "float64", ("lpr.steps=3",))
    chosen, metrics = one.chosen()
    assert [c.name for c in chosen] == ["random", "lpr.plugin-channel"]
    assert chosen[1].options["steps"] == 3
    assert list(metrics) == ["deletion", "insertion.reduce-abs"]
    again = type(one).from_json(json.loads(json.dumps(one.to_json())))
    assert json.dumps(again.to_json()) == json.dumps(one.to_json())
    assert again.preprocessing == {"size": 224, "mean": (0.5, 0.5, 0.5)}


SMALL = 'methods = ["random"]\nmetrics = ["deletion"]\n[[networks]]\nmodel = "digits"\n[[data]]\nlimit = 3\n'


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        (('methods = ["random"]', ""), InputError, r"must have methods, but has metrics, networks, data"),
        (('["random"]', '["randon"]'), InputError, r"method must be one of .*but is 'randon'. Did you mean 'random'"),
        (('["random"]', '["lpr(plugins=channel)"]'), InputError, r"option 'plugins=channel' fits nothing.*Did you mean 'plugin'"),
        (('["random"]', "[3]"), InputError, r"plan: methods must be texts, .*but are \[3\]"),
        (('["deletion"]', '["deletoin"]'), InputError, r"metric must be one of .*Did you mean 'deletion'"),
        (('["deletion"]', '["pointing_game"]'), InputError, r"Pointing game needs boxes of the target"),
        (('["deletion"]', '["ibd"]'), InputError, r"border must be under half of the image's side \(32 pixels\)"),
        (('"digits"', '"digit"'), InputError, r"model: no model named 'digit'"),
        (("limit = 3", "limits = 3"), InputError, r"data: 'limits' is no entry of it; there are paths, .*Did you mean 'limit'"),
        (("limit = 3", 'limit = "3"'), InputError, r"data: limit must be of type int, but is '3'"),
        (("limit = 3", 'read = "imagnet"'), InputError, r"data: read must be one of images, folder, .*but is 'imagnet'"),
        (("limit = 3", 'paths = ["nowhere"]'), FileError, r"plan: there is no file or folder '.*nowhere'"),
        (("methods =", "seeds = [true]\nmethods ="), InputError, r"plan: seeds must be whole numbers, but are \[True\]"),
        (("methods =", "seeds = []\nmethods ="), InputError, "seeds must hold at least one, but is empty"),
        (("methods =", "seed = 3\nmethods ="), InputError, r"plan: 'seed' is no entry of it; there are networks, .*Did you mean 'seeds'"),
        (("methods =", "methods"), FileError, r"plan.toml' is no TOML file \(.*line 1"),
        (("[[data]]", 'weights = "no.safetensors"\n[[data]]'), FileError, r"plan: there is no file or folder '.*no.safetensors'"),
        (("[[data]]", "sise = 3\n[[data]]"), InputError, r"networks: 'sise' is no entry of it.*Did you mean 'size'"),
        (('model = "digits"', 'name = "digits"'), InputError, r"networks: each must have a model"),
        (("[[data]]", "[[data]]\n[[data]]"), InputError, r"data must have different names, but 'scenes' is there twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_computed(
    tmp_path: Path, changed: tuple[str, str], kind: type[Exception], message: str
) -> None:
    path = written(tmp_path, SMALL.replace(*changed))
    with pytest.raises(kind, match=message):
        run_suite(read_plan(path), tmp_path / "out")
    done = command("bench", path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"plan: cannot read '.*none.toml' \(No such file"):
        read_plan(tmp_path / "none.toml")
    done = command("bench", "status", tmp_path)
    assert done.returncode == 2
    assert "holds no comparison" in done.stderr


def test_the_last_comparison_is_checked_before_the_first_runs(tmp_path: Path) -> None:
    """A metric that needs boxes stands in a plan whose second data set has none."""
    data = [PlannedData(limit=3, name="a"), PlannedData(mosaic=2, name="b")]
    suite = Suite([PlannedNetwork("digits")], data, ["random"], ["deletion"])
    with pytest.raises(InputError, match=r"^b: mosaic needs images with known classes"):
        run_suite(suite, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_comparison_of_a_plan_is_compares_own(tmp_path: Path) -> None:
    images, labels = backlit.models.digits.digits_images()
    for i in range(12):
        folder = tmp_path / "data" / str(int(labels[i]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i].numpy()).save(folder / f"{i}.png")
    (tmp_path / "index.json").write_text(json.dumps({str(d): d for d in range(10)}))
    path = written(
        tmp_path,
        SMALL.replace("methods", "seeds = [0, 1]\nmethods").replace("limit = 3", "limit = 9")
        + '[[data]]\npaths = "data"\nread = "folder"\nclass_index = "index.json"\n',
    )
    done = command("bench", path, "--out", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    names = [f"{data}/seed-{seed}" for data in ("scenes", "data") for seed in (0, 1)]
    ranking = pl.read_csv(out / "ranking.csv")
    assert sorted(ranking["comparison"]) == sorted(names)
    page = (out / "index.html").read_text()
    for name in names:
        assert f'href="{name}/report.html"' in page
        assert (out / name / "report.html").is_file()
        assert (out / name / "scores.csv").is_file()
    scores = {name: pl.read_csv(out / name / "scores.csv")["value"].to_list() for name in names}
    assert scores["scenes/seed-0"] != scores["scenes/seed-1"]
    words = ("--limit", 9, "--classes", 1, "--method", "random", "--metric", "deletion", "--seed", 1, "--device", "cpu")
    done = command("compare", *words, "--out", tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    assert pl.read_csv(tmp_path / "alone" / "scores.csv")["value"].to_list() == scores["scenes/seed-1"]
    again = command("bench", path, "--out", out, "--device", "cpu")
    assert again.returncode == 0, again.stderr
    status = command("bench", "status", out)
    for name in names:
        assert name in status.stdout
    found = run_suite(
        Suite([PlannedNetwork("digits")], [PlannedData(limit=9)], ["random"], ["deletion"], seeds=[1]),
        tmp_path / "python",
        How(),
    )
    assert found[""].scores["value"].to_list() == scores["scenes/seed-1"]


def test_compare_takes_workers(tmp_path: Path) -> None:
    words = ("--limit", 9, "--classes", 1, "--method", "random, saliency", "--metric", "deletion", "--device", "cpu")
    assert command("compare", *words, "--out", tmp_path / "one").returncode == 0
    done = command("compare", *words, "--out", tmp_path / "two", "--workers", 1, "--threads", 1)
    assert done.returncode == 0, done.stderr
    one, two = (pl.read_parquet(tmp_path / name / "scores.parquet") for name in ("one", "two"))
    assert one.equals(two)
    assert not (tmp_path / "two" / "maps").exists()
    assert len(list((tmp_path / "two").glob("shards/w001/maps/*"))) == 4
