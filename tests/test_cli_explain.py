"""`backlit explain` at first contact: what is explained, by what, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import backlit
from _commands import command
from _methods import QUICK
from backlit._errors import InputError
from backlit.bench.explain import MapFolder
from backlit.cli import output, progress
from backlit.cli.console import console
from backlit.cli.settings import Compute, methods
from backlit.cli.targets import Target, targets
from backlit.methods import METHODS, FittedMethod
from backlit.models import LoadedModel
from backlit.report import folder as pages

QUICK_OPTIONS = [
    part
    for name, options in QUICK.items()
    for key, value in options.items()
    for part in ("--option", f"{name}.{key}={value}")
]
LINEAR = ("gradient", "gradient_x_input", "lrp", "deep_taylor", "deeplift", "deep_shap", "bbp")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return backlit.load_model("digits")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.fromarray(backlit.models.digits.demo_scenes().images[0].numpy()).save(path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((640, 480)).save(path)
    return path


def rows(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))["maps"]


class TestTargets:
    NAMES = ("tabby", "tabby, tabby cat", "hen-of-the-woods", "fox", "red", "red-fox", "fox-red")

    @pytest.fixture
    def animals(self, model: LoadedModel) -> LoadedModel:
        return LoadedModel("animals", model.network, model.preprocess, self.NAMES)

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("3", ["3"]),
            ("3,1", ["3", "1"]),
            ("top:2", ["6", "5"]),
            ("top:2,5,fox,top:1", ["6", "5", "3"]),
            ("tabby, tabby cat,fox", ["1", "3"]),
            ("tabby,fox", ["0", "3"]),
            ("hen-of-the-woods", ["2"]),
            ("hen-of-the-woods-fox", ["2-3"]),
            ("fox - red", ["3-4"]),
            ("3-4,4−3", ["3-4", "4-3"]),
            ("fox-red", ["6"]),  # a class of that name comes first
            ("FOX , ", ["3"]),
            ("fox-top:2,3 - top:6", ["3-top2", "3-top6"]),
            ("hen-of-the-woods-top:1", ["2-top1"]),
        ],
    )
    def test_words(self, animals: LoadedModel, text: str, found: list[str]) -> None:
        assert [target.key for target in targets(text, animals)(torch.arange(7.0))] == found

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "target must name at least one class, but is ''"),
            (" , ", "at least one class"),
            ("top:0", "top:K with K from 1 to 7, but is 'top:0'"),
            ("3,top:8", "top:K with K from 1 to 7, but is 'top:8'"),
            ("foxx", "The nearest: 'fox' .3.*A-B is one class against another"),
            ("3,7", "has 7 classes"),
            ("fox-wolf", "has no class 'fox-wolf'"),
            ("fox-fox", "needs two different classes, but 'fox-fox' names one twice"),
            ("red-fox-red", "can be read as 2 contrasts. Give indices"),
            ("-3", "has 7 classes"),
            ("fox-top:7", "a number of other classes from 1 to 6 behind top:, but it is 7"),
            ("wolf-top:2", "has no class 'wolf'"),
        ],
    )
    def test_mistakes(self, animals: LoadedModel, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            targets(text, animals)


class TestContrast:
    @pytest.mark.parametrize("method", [m for m in METHODS if m.name in LINEAR], ids=lambda m: m.name)
    def test_is_the_difference_of_both_maps_where_a_method_is_linear(self, method: Any, model: LoadedModel) -> None:
        images, labels = backlit.models.digits.demo_scenes()
        x, (a, b) = model.preprocess(images[0])[None], labels[0].tolist()
        bounds = dict(zip(("low", "high"), model.preprocess.bounds, strict=True))
        options = bounds if method.name == "deep_taylor" else {}
        first, second = method(model, **options).each(x, [[a, b]])
        found = method(model, **options)(x, backlit.Contrast(a, b))
        assert torch.allclose(found.values, first.values - second.values, atol=1e-5 * float(first.values.abs().max()))
        assert torch.equal(found.output, first.output - second.output)

    def test_against_the_likeliest_others(self, scene: Path, tmp_path: Path, model: LoadedModel) -> None:
        out = tmp_path / "out"
        done = command("explain", scene, "--method", "gradient_x_input", "--target", "3-top:2,3", "--out", out)
        assert done.returncode == 0, done.stderr
        against, alone = rows(out)
        assert against["map"] == "scene.gradient_x_input.3-top2.safetensors"
        assert (against["label"], against["target"]) == ("3 − mean of the 2 likeliest others", 3)
        assert (against["less_top"], "less" in against, "probability" in against) == (2, False, False)
        assert "less_top" not in alone
        explanation = backlit.Attribution.load(out / against["map"])
        logits = model.network(explanation.inputs)[0].detach()
        others = logits[torch.arange(10) != 3].topk(2).values.mean()
        torch.testing.assert_close(explanation.output[0], logits[3] - others)
        again = command("explain", scene, "--method", "gradient_x_input", "--target", "3-top:2", "--out", out)
        assert "1 of them were there" in again.stdout

    def test_on_the_command_line(self, scene: Path, tmp_path: Path, model: LoadedModel) -> None:
        """The class comes first in the name, the label says both, and no probability is claimed."""
        out = tmp_path / "out"
        done = command("explain", scene, "--method", "gradient_x_input", "--target", "3-5,3", "--out", out)
        assert done.returncode == 0, done.stderr
        both, alone = rows(out)
        assert both["map"] == "scene.gradient_x_input.3-5.safetensors"
        assert (both["label"], both["target"], both["less"]) == ("3 − 5", 3, 5)
        assert "probability" in alone
        assert "probability" not in both
        explanation = backlit.Attribution.load(out / both["map"])
        assert explanation.probability is None
        assert explanation.labels == ("3 − 5",)
        assert explanation.provenance["model"] == "DigitsNet"
        logits = model.network(explanation.inputs)[0].detach()
        assert float(explanation.output[0]) == float(logits[3] - logits[5])
        assert (
            command("explain", scene, "--method", "gradient_x_input", "--target", "3-5", "--out", out).returncode == 0
        )
        assert len(rows(out)) == 2

    @pytest.mark.parametrize("method", ["excitation_backprop", "tr_gbp"])
    def test_is_one_map_less_the_other_where_a_method_has_more_to_do_with_a_class(
        self, method: str, scene: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        done = command("explain", scene, "--method", method, "--target", "3-5,3,5", "--out", out)
        assert done.returncode == 0, done.stdout
        both, one, other = (backlit.Attribution.load(out / row["map"]).values for row in rows(out))
        assert torch.allclose(both, one - other, atol=1e-5 * float(one.abs().max()))


class TestMethods:
    def test_fast_is_the_default_and_stands_beside_the_papers(self, scene: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = command("explain", scene, "--out", out)
        assert done.returncode == 0, done.stderr
        assert "--method dmbp is the paper's" in done.stdout
        assert command("explain", scene, "--method", "dmbp", "--option", "steps=2", "--out", out).returncode == 0
        short, full = rows(out)
        assert [row["method"] for row in (short, full)] == ["dmbp_fast", "dmbp"]
        wanted = backlit.DMBP.fast(backlit.load_model("digits").network)
        options = short["provenance"]["options"]
        assert {name: options[name] for name in ("steps", "lr", "init")} == {
            name: getattr(wanted, name) for name in ("steps", "lr", "init")
        }

    def test_all_are_all(self) -> None:
        chosen = methods("gradient,all", [], 0)
        assert {one.name for one in chosen} == {method.name for method in METHODS}
        assert [one.name for one in chosen if one.named] == ["gradient"]

    def test_all_on_the_command_line(self, scene: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = command("explain", scene, "--method", "all", *QUICK_OPTIONS, "--out", out)
        learned = {method.name for method in METHODS if issubclass(method, FittedMethod)}
        attentive = {method.name for method in METHODS if method.reads_attention}
        assert all(f"{name} is left out: it learns from data first" in done.stdout for name in learned)
        assert all(f"{name} is left out: it reads the attention of a transformer" in done.stdout for name in attentive)
        assert {row["method"] for row in rows(out)} == {method.name for method in METHODS} - learned - attentive
        assert done.returncode == 0, done.stdout

    def test_options_of_the_short_schedule(self) -> None:
        short, full = methods("fast,dmbp", ["fast.steps=7", "dmbp.lr=0.5"], 0)
        assert (short.options["steps"], short.options["lr"]) == (7, 0.5)
        assert full.options == {"seed": 0, "lr": 0.5}

    def test_auto_is_a_device_that_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert Compute("auto", "float32", 0).device == "cuda"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert Compute("auto", "float32", 0).device == "mps"
        assert Compute("auto", "float64", 0).device == "cpu"
        assert Compute("cuda:1", "float32", 0).device == "cuda:1"


class TestPhotographs:
    def test_are_explained_as_digits_with_a_warning(self, photo: Path, tmp_path: Path) -> None:
        words = ("--method", "gradient", "--out", tmp_path / "out")
        done = command("explain", photo, *words)
        assert done.returncode == 0
        assert "photo.jpg' is 640 x 480 pixels large, and is explained as a digit: " in done.stderr
        assert "--model resnet50 --weights FILE.safetensors" in done.stderr
        quiet = command("explain", photo, "--model", "digits", *words)
        assert (quiet.returncode, quiet.stderr) == (0, "")

    @pytest.mark.filterwarnings("ignore:backlit")  # a fit on two images
    @pytest.mark.parametrize("words", [("compare",), ("fit", "--data")])
    def test_in_other_commands_too(self, words: tuple[str, ...], photo: Path, tmp_path: Path) -> None:
        more = tmp_path / "more"
        more.mkdir()
        Image.open(photo).save(more / "a.jpg")
        Image.open(photo).rotate(180).save(more / "b.jpg")
        done = command(*words, more, "--out", tmp_path / "out", "--limit", "2")
        assert "explained as a digit (1 more likewise): the network" in done.stderr

    def test_a_small_one_in_colour(self, photo: Path, tmp_path: Path) -> None:
        small = tmp_path / "small.png"
        Image.open(photo).resize((32, 32)).save(small)
        done = command("explain", small, "--method", "gradient", "--out", tmp_path / "out")
        assert "small.png' is in colour" in done.stderr

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
    def test_a_grey_digit_in_any_mode_is_one(self, mode: str, scene: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.png"
        Image.open(scene).convert(mode).save(other)
        done = command("explain", other, "--method", "gradient", "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr


class TestPictures:
    WORDS = ("--method", "gradient_x_input", "--option", "seed=0")

    def explain(self, scene: Path, out: Path, *words: object) -> list[dict[str, Any]]:
        done = command("explain", scene, *self.WORDS, "--out", out, *words)
        assert done.returncode == 0, done.stderr
        return rows(out)

    def test_classes_of_an_image_share_a_scale(self, scene: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        alone = self.explain(scene, out, "--target", "1")[0]["colour_scale"]
        both = {row["target"]: row["colour_scale"] for row in self.explain(scene, out, "--target", "top:1")}
        assert len(both) == 2
        assert len({*both.values()}) == 1
        assert both[1] > alone
        own = {
            row["target"]: row["colour_scale"]
            for row in self.explain(scene, out, "--target", "1,top:1", "--scale", "own")
        }
        assert own[1] == alone
        assert max(own.values()) == both[1]

    def test_styles_draw_the_same_maps_again(
        self, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        self.explain(scene, out)
        sizes = {}
        monkeypatch.setattr(backlit.GradientXInput, "each", None)  # nothing is computed again
        for style in ("bare", "overlay", "jet", "card"):
            (row,) = self.explain(scene, out, "--style", style)
            sizes[style] = (out / row["picture"]).read_bytes()
            assert (sizes[style] == (out / row["bare"]).read_bytes()) == (style == "bare")
        assert len({*sizes.values()}) == 4

    def test_the_same_files_whatever_the_order(self, scene: Path, tmp_path: Path) -> None:
        """The colour scale follows from all maps in the folder, not from the commands that made them."""
        for target in ("1", "2", "3"):
            self.explain(scene, tmp_path / "apart", "--target", target)
        self.explain(scene, tmp_path / "apart", "--target", "1,2,3")
        self.explain(scene, tmp_path / "once", "--target", "3,1,2")
        for name in (f"scene.gradient_x_input.{i}.{end}" for i in (1, 2, 3) for end in ("png", "bare.png")):
            assert (tmp_path / "apart" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()

    @pytest.mark.parametrize(
        ("words", "message"),
        [("--style cards", "Did you mean 'card'"), ("--scale all", "scale must be one of image, own")],
    )
    def test_mistakes(self, scene: Path, tmp_path: Path, words: str, message: str) -> None:
        done = command("explain", scene, *words.split(), "--out", tmp_path / "out")
        assert done.returncode == 2
        assert message in done.stderr


def test_one_output_has_no_probability(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "single.py").write_text(
        "from torch import nn\n"
        "def one():\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = command(
        "explain", scene, "--model", "single:one", "--size", "32", "--method", "lrp", "--out", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "out")
    assert "probability" not in row
    assert "class 0 1.00" not in done.stdout


class TestPage:
    def test_classes_of_one_name_have_rows_of_their_own(
        self, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Target, "label", lambda target, names: "same")
        assert command("explain", scene, "--method", "gradient", "--target", "3,4", "--out", tmp_path).returncode == 0
        page = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert all(f'href="{row["picture"]}"' in page for row in rows(tmp_path))
        assert len(rows(tmp_path)) == 2

    def test_shows_every_map_of_the_folder(self, scene: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert command("explain", scene, "--method", "gradient,lrp", "--target", "3,3-5", "--out", out).returncode == 0
        assert (
            f"open {out / 'index.html'}"
            in command("explain", scene, "--method", "grad_cam", "--target", "3", "--out", out).stdout
        )
        page = (out / "index.html").read_text(encoding="utf-8")
        for row in rows(out):
            assert f'href="{row["picture"]}"' in page
        assert page.count("not asked for") == 1  # Grad-CAM, of the contrast
        assert page.count("<tr>") + page.count('<tr class="coarse">') == 3  # the head, and a row for each class
        assert "http" not in page.replace("http-equiv", "")
        assert "Shows where, not how much." in page
        assert page.count("Colours end at ±") == 2  # of LRP alone: the others begin at 0
        assert page.count("Colours end at ") == len(rows(out))

    def test_is_no_larger_than_can_be_opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for i in range(4):
            Image.fromarray(backlit.models.digits.digits_images().images[i].numpy()).save(tmp_path / f"{i}.png")
        monkeypatch.setattr(pages, "_MOST", 1)
        assert command("explain", tmp_path, "--method", "gradient", "--out", tmp_path / "out").returncode == 0
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert "These are the first 1 of 4 images" in page
        assert 'href="0.gradient' in page
        assert 'href="1.gradient' not in page

    def test_follows_what_was_killed_before_it(
        self, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A map that was added by a command that ended before its page is in the page of the next one."""
        out = tmp_path / "out"
        assert command("explain", scene, "--method", "gradient", "--target", "3", "--out", out).returncode == 0
        with monkeypatch.context() as patch:
            patch.setattr(MapFolder, "write_page", lambda self: None)
            assert command("explain", scene, "--method", "gradient", "--target", "4", "--out", out).returncode == 0
        assert "gradient.4.png" not in (out / "index.html").read_text(encoding="utf-8")
        assert command("explain", scene, "--method", "gradient", "--target", "4", "--out", out).returncode == 0
        assert "gradient.4.png" in (out / "index.html").read_text(encoding="utf-8")


class TestOutput:
    def test_a_table(self, scene: Path, tmp_path: Path) -> None:
        done = command(
            "explain", scene, "--method", "gradient_x_input,grad_cam", "--target", "top:2", "--out", tmp_path
        )
        head, *lines = [line for line in done.stdout.splitlines() if line.strip() and "─" not in line]
        assert head.split() == ["image", "predictions", "target", "method", "seconds", "explained", "file"]
        first = rows(tmp_path)[0]
        assert lines[0].split()[0] == "scene.png"
        assert f"{first['label']} {first['probability']:.2f}" in lines[0]
        assert "Gradient x Input" in lines[0] or "gradient" in lines[0].lower()
        assert "%" in lines[0]
        assert first["picture"] in lines[0]
        assert not lines[1].startswith("scene.png")
        assert "–" in lines[2]  # Grad-CAM promises no share

    def test_lines_where_there_is_no_room(self, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(output, "_WIDE", 10_000)
        done = command("explain", scene, "--method", "gradient_x_input", "--out", tmp_path / "out")
        lines = done.stdout.splitlines()
        assert lines[0].startswith("scene.png: ")
        assert "explained: " in lines[1]
        assert lines[2].strip() == str(tmp_path / "out" / rows(tmp_path / "out")[0]["picture"])
        masks = command("explain", scene, "--option", "steps=3", "--out", tmp_path / "masks").stdout
        assert "% of y+ and y−" in masks  # of what, where it is not the logit
        assert "% of" not in lines[1]

    def test_no_more_than_can_be_read(self, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(output, "_MOST", 3)
        done = command("explain", scene, "--method", "gradient", "--target", "top:10", "--out", tmp_path)
        assert "... and 7 more maps, which summary.json lists" in done.stdout

    def test_json_is_all_that_stdout_holds(self, scene: Path, tmp_path: Path) -> None:
        words = ("--method", "gradient_x_input,saliency", "--target", "3,3-5", "--out", tmp_path, "--json")
        first, again = (command("explain", scene, tmp_path / "none.png", *words) for _ in range(2))
        assert first.returncode == 1
        found = [json.loads(line) for line in first.stdout.splitlines()]
        assert [(row["method"], row["label"]) for row in found] == [
            (method, label) for method in ("gradient_x_input", "saliency") for label in ("3", "3 − 5")
        ]
        assert all(Path(row[name]).is_file() for row in found for name in ("picture", "bare", "map"))
        assert found[0]["image"] == str(scene)
        assert found[0]["predictions"][0]["probability"] >= found[0]["probability"]
        assert "none.png" in first.stderr
        assert "4 maps of 1 image" in first.stderr
        assert [json.loads(line)["kept"] for line in again.stdout.splitlines()] == [True] * 4

    def test_quiet_says_failures_alone(self, scene: Path, tmp_path: Path) -> None:
        done = command("explain", scene, "--method", "gradient", "--out", tmp_path, "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        (tmp_path / "bad.png").write_text("no image")
        done = command("explain", scene, tmp_path / "bad.png", "--method", "gradient", "--out", tmp_path / "out", "-q")
        assert done.returncode == 1
        assert done.stdout == ""
        assert "bad.png" in done.stderr

    def test_a_pipe_gets_a_line_now_and_then(
        self, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress, "PAUSE", 0.0)
        done = command("explain", scene, "--option", "steps=4", "--out", tmp_path)
        lines = [line for line in done.stderr.splitlines() if " done; " in line]
        assert "0 of 1 done; DMBP, short schedule of scene.png, step 2 of 4, about " in done.stderr
        assert lines[-1].endswith(" left")
        twice = command("explain", scene, "--option", "steps=3", "--target", "top:2", "--out", tmp_path / "two")
        assert "step 3 of 3 for target 1 of 2, about " in twice.stderr
        assert "step 1 of 3 for target 2 of 2, about " in twice.stderr
        monkeypatch.setattr(progress, "PAUSE", 1000.0)
        assert command("explain", scene, "--option", "steps=5", "--out", tmp_path / "out").stderr == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5000, "83 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_steps_of_several_targets_are_parts_of_one_piece() -> None:
    with progress.paced(console(), 2) as pace:
        pace.begin("DMBP", 2)
        shares = []
        for _ in range(2):
            for index in (1, 2):
                pace.step(index, 2)
                shares.append(pace.done)
        assert shares == [0.25, 0.5, 0.75, 1.0]
        pace.end()
        pace.begin("LPR")
        pace.step(1, 2)
        assert pace.done == 1.5


def test_a_target_is_a_value() -> None:
    assert Target(3) == Target(3, None)
    assert len({Target(3), Target(3), Target(3, 5)}) == 2
