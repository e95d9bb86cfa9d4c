"""`backlit compare` as a user meets it: the folder it leaves, data sets with labels, and what it says of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

import backlit
from _commands import command
from backlit.bench.source import Source, read
from backlit.metrics import METRICS
from test_cli import digits  # noqa: F401  a fixture

QUICK = ("--methods", "random,grad_cam", "--metrics", "deletion", "--classes", 1)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Twenty digits, a folder a class."""
    images, labels = backlit.models.digits.digits_images()
    for i in range(20):
        folder = tmp_path / "data" / str(int(labels[i]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i].numpy()).save(folder / f"{i}.png")
    (tmp_path / "index.json").write_text(json.dumps({str(d): d for d in range(10)}))
    return tmp_path


def test_the_embedded_scenes_give_a_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("compare", "--limit", 5, "--out", out, "--metrics", "insertion,complementary_insertion,last_layer_reset",
                   "--option", "dmbp.steps=3", "--option", "insertion.steps=10")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    assert {p.name for p in out.iterdir()} == {
        "report.html", "plan.json", "request.json", "protocols.json", "results.jsonl", "maps",
        ".backlit", "scores.parquet", "curves.parquet", "ranking.parquet", "differences.parquet",
        "scores.csv", "curves.csv", "ranking.csv", "differences.csv", "agreement.csv", "agreement.parquet",
    }  # fmt: skip
    plan = json.loads((out / "plan.json").read_text())
    assert plan["methods"]["dmbp"]["options"]["steps"] == 3
    assert plan["metrics"]["insertion"]["options"]["steps"] == 10
    assert plan["metrics"]["complementary_insertion"]["options"]["steps"] == 50
    scores = pl.read_parquet(out / "scores.parquet")
    assert set(scores["method"]) == {"random", "gradient_x_input", "guided_backprop", "grad_cam", "dmbp"}
    assert scores.filter(metric="complementary_insertion")["value"].null_count() == 0
    page = (out / "report.html").read_text()
    assert pl.read_csv(out / "ranking.csv").shape == pl.read_parquet(out / "ranking.parquet").shape
    for part in (
        "Insertion",
        "Last-layer reset",
        "scene 1 of",
        "Grad-CAM",
        'href="scores.csv"',
        'href="ranking.parquet"',
    ):
        assert part in page
    before = (out / "results.jsonl").read_bytes()
    again = command("compare", "--limit", 5, "--out", out, "--metrics", "insertion,complementary_insertion,last_layer_reset",
                    "--option", "dmbp.steps=3", "--option", "insertion.steps=10")  # fmt: skip
    assert again.returncode == 0
    assert (out / "results.jsonl").read_bytes() == before  # nothing was computed twice


def test_images_are_explained_for_what_is_predicted_or_asked(digits: Path, tmp_path: Path) -> None:  # noqa: F811
    (digits / "broken.png").write_bytes(b"\x89PNG")
    done = command("compare", digits, *QUICK, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "left out" in done.stdout
    assert "broken.png" in done.stdout
    scores = pl.read_parquet(tmp_path / "out" / "scores.parquet")
    assert set(scores["image"]) == {"a", "b", "a-2"}
    (digits / "broken.png").unlink()
    assert command("compare", digits, *QUICK, "--target", "7", "--out", tmp_path / "seven").returncode == 0
    assert set(pl.read_parquet(tmp_path / "seven" / "scores.parquet")["target"]) == {7}
    assert command("compare", digits, *QUICK, "--target", "7-1", "--out", tmp_path / "contrast").returncode == 0
    contrast = pl.read_parquet(tmp_path / "contrast" / "scores.parquet")
    assert set(contrast["target"]) == {0}  # of the network of one output
    assert contrast["value"].n_unique() == len(contrast)
    assert "7 − 1" in (tmp_path / "contrast" / "report.html").read_text()


def test_a_folder_a_class_is_ground_truth(folders: Path) -> None:
    words = ("compare", folders / "data", "--data", "folder", "--class-index", folders / "index.json", *QUICK)
    done = command(*words, "--limit", 6, "--out", folders / "out")
    assert done.returncode == 0, done.stderr
    scores = pl.read_parquet(folders / "out" / "scores.parquet").filter(method="random")
    assert scores.height == 6
    assert all(name.split("/")[0] == str(target) for name, target in scores.select("image", "target").iter_rows())
    assert json.loads((folders / "out" / "plan.json").read_text())["target"] == "ground truth"


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Six digits as ImageNet has its pictures, 32 x 32; their boxes were drawn on 64 x 16 (width x height)."""
    images, labels = backlit.models.digits.digits_images()
    (tmp_path / "boxes").mkdir()
    for i in range(6):
        folder = tmp_path / "val" / f"n{int(labels[i])}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i].numpy()).save(folder / f"val_{i}.png")
        (tmp_path / "boxes" / f"val_{i}.xml").write_text(
            "<annotation><size><width>64</width><height>16</height></size>"
            f"<object><name>n{int(labels[i])}</name><bndbox><xmin>8</xmin><ymin>4</ymin><xmax>23</xmax><ymax>7</ymax></bndbox>"
            "</object></annotation>"
        )
    index = [{"index": d, "wnid": f"n{d}", "name": f"digit {d}"} for d in range(10)]
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def test_boxes_of_scaled_pictures_arrive_in_the_networks_pixels(boxed: Path) -> None:
    words = ("compare", boxed / "val", "--data", "imagenet", "--annotations", boxed / "boxes",
             "--methods", "random,grad_cam", "--metrics", "energy_pointing_game", "--classes", 1, "--out", boxed / "out")  # fmt: skip
    done = command(*words)
    assert done.returncode == 2
    assert "--class-index" in done.stderr
    words = (*words, "--class-index", boxed / "index.json")
    done = command(*words)
    assert done.returncode == 2
    assert "for a picture of 64 x 16 pixels" in done.stderr
    assert "--scaled" in done.stderr
    done = command(*words, "--scaled")
    assert done.returncode == 0, done.stderr
    ranking = pl.read_parquet(boxed / "out" / "ranking.parquet")
    assert ranking["images"].to_list() == [6, 6]
    # Pixels 8 to 23 and 4 to 7 of 64 x 16 are x from 4 to 12 and y from 8 to 16 of 32 x 32: 64 of 1,024 pixels.
    assert ranking.filter(method="random")["value"].item() == pytest.approx(64 / 1024, abs=0.02)
    source = Source(
        [boxed / "val"], "imagenet", "predicted", boxed / "index.json", boxed / "boxes", None, 0, scaled=True
    )
    examples, _, _ = read(source, backlit.load_model("digits"))
    assert examples.boxes is not None
    assert [box.tolist() for box in examples.boxes] == [[[4, 8, 12, 16]]] * 6


def test_mosaics_are_made_of_a_data_set(folders: Path) -> None:
    done = command(
        "compare", folders / "data", "--data", "folder", "--class-index", folders / "index.json", "--mosaic", 2,
        "--methods", "random,grad_cam", "--metrics", "grid_pointing_game", "--limit", 8, "--out", folders / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranking = pl.read_parquet(folders / "out" / "ranking.parquet")
    assert ranking.filter(method="random")["value"].item() == pytest.approx(0.25, abs=0.05)
    assert ranking["images"].to_list() == [8, 8]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "insertoin"], "metric must be one of"),
        (["--methods", "dmpb"], "Did you mean 'dmbp'"),
        (["--option", "insertion.stepz=3"], "option 'insertion.stepz=3' fits nothing that was asked for"),
        (["--option", "insertion.steps=0"], "steps must be a positive integer or None, but is 0"),
        (["--metrics", "pointing_game"], "needs boxes of the target"),
        (["--read", "coco"], "read must be one of images, folder, imagenet, voc, cifar10, mnist, but is 'coco'"),
        (["--data", "coco"], "'coco' does not exist"),
        (["here.png", "--data", "coco"], "data must be the data set's folder, in the place of IMAGE"),
        (["--data", "folder"], "IMAGES must be the one folder of the data set"),
        (["--mosaic", "2"], "mosaic needs images with known classes"),
        (
            ["--model", "squeezenet1_0", "--weights", "random"],
            "only the embedded model, digits, brings images of its own",
        ),
        (["nowhere.png"], "does not exist"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(tmp_path: Path, words: list[str], message: str) -> None:
    done = command("compare", *words, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_other_classes_is_refused(folders: Path) -> None:
    done = command("compare", folders / "data", "--data", "folder", *QUICK, "--model", "squeezenet1_0", "--weights", "random",
                   "--out", folders / "out")  # fmt: skip
    assert done.returncode == 2
    assert "9 classes, but squeezenet1_0 has 1000" in done.stderr
    assert "--class-index" in done.stderr


def test_a_folder_in_use_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("compare", *QUICK, "--limit", 2, "--out", out).returncode == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    done = command("compare", *QUICK, "--limit", 3, "--out", out)
    assert done.returncode == 2
    assert "holds another comparison" in done.stderr
    assert "--force" in done.stderr
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert command("compare", *QUICK, "--limit", 3, "--out", out, "--force").returncode == 0


def test_the_metrics_are_listed_with_what_they_need() -> None:
    done = command("metrics")
    assert done.returncode == 0
    for metric in METRICS:
        assert metric.name in done.stdout
    assert "needs boxes" in done.stdout
    assert "Higher is better" in command("metrics", "insertion").stdout
