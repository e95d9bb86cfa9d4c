"""`backlit explain` interrupted, repeated, damaged, and in a folder that is in use."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import backlit
from _commands import Done, command
from backlit._files import PARTIAL
from backlit._store import Store
from backlit.methods import GradientXInput, GuidedBackprop, Saliency

METHODS = ("saliency", "guided_backprop")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "more/a.png")):
        Image.fromarray(backlit.models.digits.digits_images().images[i].numpy()).save(folder / name)
    return folder


def explain(photos: Path, out: Path, *words: object, methods: str = ",".join(METHODS), target: str = "top:2") -> Done:
    return command("explain", photos, "--method", methods, "--target", target, "--out", out, *words)


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def results(out: Path) -> list[tuple]:
    """Everything that a run finds, bit for bit, without the time that it took."""
    found = []
    for row in summary(out)["maps"]:
        explanation = backlit.Attribution.load(out / row["map"])
        facts = {k: v for k, v in row.items() if k != "provenance"}
        options = row["provenance"]["options"]
        values = (explanation.values.numpy().tobytes(), explanation.output.numpy().tobytes())
        pictures = ((out / row["picture"]).read_bytes(), (out / row["bare"]).read_bytes())
        found.append((json.dumps(facts), json.dumps(options), *values, *pictures))
    return found


def others(out: Path) -> list[str]:
    """Files that are no maps, pictures or summary: what a killed process might leave."""
    known = {name for row in summary(out)["maps"] for name in (row["map"], row["picture"], row["bare"])}
    return sorted(p.name for p in out.iterdir() if p.name not in known)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that ran, one entry a call."""
    ran: list[str] = []
    for method in (Saliency, GuidedBackprop, GradientXInput):
        whole = method.each

        def each(self: Any, *args: Any, whole: Any = whole) -> Any:
            ran.append(self.name)
            return whole(self, *args)

        monkeypatch.setattr(method, "each", each)
    return ran


class TestAgain:
    def test_the_same_command_computes_nothing(self, photos: Path, tmp_path: Path, calls: list[str]) -> None:
        out = tmp_path / "out"
        assert explain(photos, out).returncode == 0
        before, ran = results(out), len(calls)
        assert (len(before), ran) == (12, 6)
        done = explain(photos, out)
        assert done.returncode == 0
        assert "12 maps of 3 images" in done.stdout
        assert "12 of them were there" in done.stdout
        assert len(calls) == ran
        assert results(out) == before
        assert others(out) == [".backlit", "index.html", "maps.jsonl", "summary.json"]

    def test_another_command_adds(self, photos: Path, tmp_path: Path, calls: list[str]) -> None:
        """Another method, class or image stands beside; images of one name keep their files apart."""
        out = tmp_path / "out"
        assert explain(photos / "a.png", out, methods="saliency", target="3").returncode == 0
        first = results(out)
        assert explain(photos / "more" / "a.png", out, methods="saliency", target="3").returncode == 0
        assert explain(photos / "a.png", out, methods="gradient_x_input", target="3").returncode == 0
        assert explain(photos / "a.png", out, methods="saliency", target="4").returncode == 0
        assert calls == ["saliency", "saliency", "gradient_x_input", "saliency"]
        assert results(out)[0][1:4] == first[0][1:4]  # its picture shares a scale with that of class 4 now
        names = ["a.saliency.3.png", "a-2.saliency.3.png", "a.gradient_x_input.3.png", "a.saliency.4.png"]
        assert [row["picture"] for row in summary(out)["maps"]] == names
        assert explain(photos / "a.png", out, methods="saliency", target="3").returncode == 0
        assert len(calls) == 4

    @pytest.mark.parametrize("words", [(), ("--force",)])
    def test_images_whose_names_begin_alike(self, photos: Path, tmp_path: Path, words: tuple) -> None:
        """What one image is called is no part of another's maps."""
        out = tmp_path / "out"
        for name in ("a.saliency", "a.saliency.3", "a"):
            Image.new("L", (32, 32), len(name)).save(photos / f"{name}.png")
            done = explain(photos / f"{name}.png", out, *words, methods="saliency", target="3")
            assert done.returncode == 0, done.stderr
        names = ["a.saliency.saliency.3.png", "a.saliency.3.saliency.3.png", "a.saliency.3.png"]
        assert [row["picture"] for row in summary(out)["maps"]] == names
        assert len(results(out)) == 3

    def test_its_own_pictures_are_no_images(self, photos: Path, calls: list[str]) -> None:
        """A folder that holds the results as well, of this command or in a folder of their own, is explained once."""
        for out in (photos, photos / "results"):
            del calls[:]
            assert explain(photos, out, methods="saliency").returncode == 0
            first = results(out)
            assert len(first) == 6
            assert explain(photos, out, methods="saliency").returncode == 0
            assert results(out) == first
            assert len(calls) == 3

    @pytest.mark.parametrize("change", ["options", "picture", "weights", "preprocessing", "precision"])
    def test_another_map_of_the_same_name_is_refused(self, photos: Path, tmp_path: Path, change: str) -> None:
        out = tmp_path / "out"
        words: tuple = ()
        assert explain(photos, out).returncode == 0
        before, kept = results(out), (out / "summary.json").read_bytes()
        if change == "options":
            words = ("--option", "saliency.seed=3")
        elif change == "picture":
            Image.fromarray(backlit.models.digits.digits_images().images[9].numpy()).save(photos / "a.png")
        elif change == "weights":
            words = ("--weights", "random")
        elif change == "preprocessing":
            words = ("--mean", 0.1)
        else:
            words = ("--dtype", "float64")
        done = explain(photos, out, *words)
        assert done.returncode == 2
        names = {"options": "options.seed was 0 and is 3", "weights": "network.weights", "precision": "dtype"}
        assert names.get(change, change) in done.stderr
        assert "use --force to replace them" in done.stderr
        assert results(out) == before
        assert (out / "summary.json").read_bytes() == kept
        done = explain(photos, out, *words, "--force")
        assert done.returncode == 0, done.stderr
        assert "--force replaces" in done.stdout
        assert ".saliency." in done.stdout
        fresh = tmp_path / "fresh"
        assert explain(photos, fresh, *words).returncode == 0
        assert sorted(results(out)) == sorted(results(fresh))
        assert sorted(p.name for p in out.glob("*.png")) == sorted(p.name for p in fresh.glob("*.png"))

    def test_an_image_named_like_a_map_of_another_is_its_own(self, photos: Path, tmp_path: Path) -> None:
        """The files of ``a.saliency.png`` begin like the maps of ``a.png``."""
        out = tmp_path / "out"
        (photos / "b.png").rename(photos / "a.saliency.png")
        assert explain(photos / "a.saliency.png", out, methods="saliency", target="3").returncode == 0
        first = results(out)
        done = explain(photos / "a.png", out, "--force", methods="saliency", target="3")
        assert done.returncode == 0
        assert "replaces" not in done.stdout
        assert results(out)[:1] == first
        assert len(results(out)) == 2

    @pytest.mark.parametrize(
        "name", ["summary.json", "index.html", "a.saliency.3.png", "a.saliency.3.safetensors", "maps.jsonl"]
    )
    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_files_of_others_stay(self, photos: Path, tmp_path: Path, name: str, kind: str) -> None:
        out = tmp_path / "out"
        out.mkdir()
        mine = out / name
        if kind == "link":
            mine.symlink_to(tmp_path / "elsewhere")
            mine = tmp_path / "elsewhere"
        mine.write_text("my own")
        for words in ((), ("--force",)):
            done = explain(photos / "a.png", out, *words, methods="saliency", target="3")
            assert mine.read_text() == "my own"
            if name.startswith("a."):  # another name is free
                assert done.returncode == 0
                assert [row["map"] for row in summary(out)["maps"]] == ["a-2.saliency.3.safetensors"]
            else:
                assert done.returncode == 2
                assert name in done.stderr
                assert "Move it away, or choose another folder" in done.stderr
        (out / name).unlink()
        assert explain(photos / "a.png", out, methods="saliency", target="3").returncode == 0

    def test_what_failed_is_tried_again(self, photos: Path, tmp_path: Path, calls: list[str]) -> None:
        out = tmp_path / "out"
        whole = (photos / "b.png").read_bytes()
        (photos / "b.png").write_bytes(whole[:60])
        assert explain(photos, out).returncode == 1
        assert [f["image"] for f in summary(out)["failures"]] == [str(photos / "b.png")]
        (photos / "b.png").write_bytes(whole)
        done = explain(photos, out)
        assert done.returncode == 0
        assert summary(out)["failures"] == []
        assert len(calls) == 6


@pytest.mark.filterwarnings("default")
class TestDamage:
    @pytest.mark.parametrize("kind", ["map", "picture", "summary", "page", "journal", "list"])
    @pytest.mark.parametrize("how", ["bit", "cut", "gone"])
    def test_is_noticed_and_mended(self, photos: Path, tmp_path: Path, kind: str, how: str, calls: list[str]) -> None:
        out = tmp_path / "out"
        assert explain(photos, out).returncode == 0
        before, page = results(out), (out / "index.html").read_bytes()
        row = summary(out)["maps"][5]
        names = {
            "map": row["map"],
            "picture": row["picture"],
            "summary": "summary.json",
            "page": "index.html",
            "journal": "maps.jsonl",
        }
        path = out / names.get(kind, ".backlit/files.jsonl")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(bytes(data) if how == "bit" else bytes(data[: len(data) // 2]))
        done = explain(photos, out)
        assert done.returncode == 0, done.stderr
        assert sorted(results(out)) == sorted(before)
        assert (out / "index.html").read_bytes() == page or kind in ("journal", "list")
        if kind in ("map", "picture"):
            assert results(out) == before
            assert len(calls) == 6 + (kind == "map")  # a picture is drawn again of its map
            assert ("is not as it was written" in done.stderr) == (how != "gone")
        assert explain(photos, out).returncode == 0
        assert sorted(results(out)) == sorted(before)


SLOW = """
import os, sys, time
import backlit.cli.explain as command
from backlit.methods import Saliency
whole = Saliency.each
def each(self, *args):
    print("begun", flush=True)
    time.sleep(float(os.environ["PAUSE"]))
    return whole(self, *args)
Saliency.each = each
from backlit.cli import main
main()
"""


def begun(photos: Path, out: Path, images: int) -> subprocess.Popen:
    """A command in a process of its own, while it works on that image."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "explain", photos, "--method", "saliency", "--out", out],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PAUSE": "0.7"},
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(images):
        assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    return process


class TestStopped:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
    def test_what_was_done_is_kept_and_said(self, photos: Path, tmp_path: Path, number: int, code: int) -> None:
        out, fresh = tmp_path / "out", tmp_path / "fresh"
        process = begun(photos, out, images=3)
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in said + errors
        if number != signal.SIGKILL:
            assert "stopped; 2 maps are kept in" in errors
            assert "the same command goes on" in errors
        assert len(results(out)) == 2
        done = explain(photos, out, methods="saliency", target="top:1")
        assert done.returncode == 0, done.stderr
        assert "2 of them were there" in done.stdout
        assert explain(photos, fresh, methods="saliency", target="top:1").returncode == 0
        assert results(out) == results(fresh)
        assert others(out) == others(fresh)
        assert (out / "index.html").read_bytes() == (fresh / "index.html").read_bytes()

    def test_a_second_process_is_told_of_the_first(self, photos: Path, tmp_path: Path) -> None:
        process = begun(photos, tmp_path / "out", images=1)
        done = explain(photos, tmp_path / "out")
        process.kill()
        process.communicate()
        assert done.returncode == 2
        assert f"is in use by process {process.pid}" in done.stderr

    @pytest.mark.parametrize("name", ["roar", "compare", "fit", "demo"])
    def test_other_commands_say_it_too(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

        for module, function in (("compare", "done"), ("roar", "roar"), ("demo", "_explain")):  # not the commands
            monkeypatch.setattr(importlib.import_module(f"backlit.cli.{module}"), function, stop)
        monkeypatch.setattr(backlit.MIPIN, "fit", stop)
        _cifar(tmp_path)
        words = {
            "compare": ["--limit", 2],
            "fit": ["--limit", 5],
            "roar": ["--data", tmp_path, "--methods", "gradient"],
        }
        done = command(name, *words.get(name, ()), "--out", tmp_path / "out")
        assert done.returncode == 143
        assert "stopped; " in done.stderr
        assert done.stderr.count("stopped") == 1

    @pytest.mark.parametrize("after", [0, 1, 3, 5, 8, 12])
    def test_killed_at_any_write(self, photos: Path, tmp_path: Path, after: int) -> None:
        """A process that ends at its n-th system call that changes a name, as if killed there, loses nothing."""
        out, fresh = tmp_path / "out", tmp_path / "fresh"
        code = f"""
import os
count, replace = [0], os.replace
def counted(*args, **kwargs):
    count[0] += 1
    if count[0] > {after}:
        os._exit(77)
    return replace(*args, **kwargs)
os.replace = counted
from backlit.cli import main
main()
"""
        words = ["explain", photos, "--method", "saliency", "--out", out]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 77), done.stderr
        assert explain(photos, out, methods="saliency", target="top:1").returncode == 0
        assert explain(photos, fresh, methods="saliency", target="top:1").returncode == 0
        assert results(out) == results(fresh)
        assert others(out) == others(fresh)
        assert (out / "index.html").read_bytes() == (fresh / "index.html").read_bytes()
        assert not [*out.glob(PARTIAL), *(out / ".backlit").glob(PARTIAL)]


def _cifar(folder: Path) -> None:
    """A data set of a few pictures in the binary version."""
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(4)
        (folder / name).write_bytes(records.tobytes())


def test_a_long_summary_is_not_written_each_time(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writing takes a twentieth of the time at most, and it is whole in the end."""
    written: list[int] = []
    whole = Store.write

    def write(self: Store, name: str, data: bytes) -> Path:
        if name == "summary.json":
            written.append(len(json.loads(data)["maps"]))
            time.sleep(0.3)
        return whole(self, name, data)

    monkeypatch.setattr(Store, "write", write)
    assert explain(photos, tmp_path / "out").returncode == 0
    assert written == [0, 12]
