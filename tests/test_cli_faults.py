"""The command line with bad pictures, networks that fail, hostile names and numbers that are out of range."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import backlit
from _commands import command
from backlit.methods import DMBP

NETWORKS = '''
import sys

import torch
from torch import nn


class Net(nn.Module):
    """Fails in its own way on white pictures."""

    def __init__(self, failure=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        self.failure = failure

    def forward(self, x):
        if self.failure is not None and float(x.detach().mean()) > 1.9:
            self.failure()
        return self.layers(x)


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Odd(BaseException):
    pass


def failing(error):
    def fail():
        raise error

    def make():
        torch.manual_seed(0)
        return Net(fail).eval()

    return make


value = failing(ValueError("too [bold]bright[/bold] \\x1b[31m"))
leaves = failing(SystemExit(0))
interrupts = failing(KeyboardInterrupt())
closes = failing(GeneratorExit())
odd = failing(Odd("base"))
mute = failing(Mute())
memory = failing(MemoryError())
recursion = failing(RecursionError("too deep"))
stops = failing(StopIteration())


def allocates():
    return Net(lambda: torch.empty(10**15)).eval()


def sound():
    torch.manual_seed(0)
    return Net().eval()


class Tagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("[/red]", nn.Conv2d(3, 4, 3))
        self.add_module("\\x1b[31mred", nn.Conv2d(4, 4, 1))
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        first, second, last = self.children()
        return last(second(first(x)).mean((2, 3)))


def tagged():
    return Tagged().eval()


class Bare(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def bare():
    return Bare().eval()


def one_class():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).eval()


class Wrapped(Net):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.layers(x))


def pair():
    return Wrapped(lambda y: (y, y)).eval()


def mapping():
    return Wrapped(lambda y: {"logits": y}).eval()


def leaves_when_called():
    sys.exit(0)


def interrupts_when_called():
    raise KeyboardInterrupt


def nothing():
    return None


number = 5


def misnamed():
    from backlit.models import LoadedModel, Preprocess

    return LoadedModel("x", sound(), Preprocess(size=(32, 32)), ("a", "b"))
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the networks and three pictures."""
    monkeypatch.chdir(tmp_path)
    Path("bad_networks.py").write_text(NETWORKS)
    Path("leaves.py").write_text("import sys\nsys.exit(0)\n")
    Path("interrupts.py").write_text("raise KeyboardInterrupt\n")
    Path("unreadable.py").write_text("def f(:\n")
    for colour in ("black", "grey", "white"):
        Image.new("RGB", (32, 32), colour).save(f"{colour}.png")
    yield tmp_path
    for name in ("bad_networks", "leaves", "interrupts", "unreadable"):
        sys.modules.pop(name, None)


def explain(*words: object, model: str = "bad_networks:sound") -> tuple:
    """The command's outcome, and its summary."""
    done = command("explain", *words, "--model", model, "--size", 32, "--method", "gradient", "--out", "out")
    assert "Traceback" not in done.stderr
    return done, json.loads(Path("out/summary.json").read_text(encoding="utf-8"))


class TestOneImage:
    """One image that cannot be explained does not stop the others."""

    @pytest.mark.parametrize(
        ("network", "reason"),
        [
            ("value", r"ValueError: too [bold]bright[/bold]"),
            ("leaves", "the code ended the program, sys.exit(0)"),
            ("interrupts", "KeyboardInterrupt"),
            ("closes", "GeneratorExit"),
            ("odd", "Odd: base"),
            ("mute", "Mute: its text cannot be had"),
            ("memory", "there is not enough memory"),
            ("recursion", "RecursionError: too deep"),
            ("stops", "StopIteration"),
            ("allocates", "can't allocate memory"),
        ],
    )
    @pytest.mark.usefixtures("here")
    def test_that_the_network_fails_on(self, network: str, reason: str) -> None:
        done, summary = explain("black.png", "white.png", "grey.png", model=f"bad_networks:{network}")
        assert done.returncode == 1
        assert [row["image"] for row in summary["maps"]] == ["black.png", "grey.png"]
        (failure,) = summary["failures"]
        assert failure["image"] == "white.png"
        assert reason in failure["error"]
        assert "bad_networks.py, line" in failure["error"]
        assert "1 failed" in done.stdout
        assert "\x1b" not in done.stdout + done.stderr

    @pytest.mark.usefixtures("here")
    def test_that_one_method_fails_on(self) -> None:
        """The other methods' maps of it are there."""
        words = ("explain", "black.png", "--model", "bad_networks:sound", "--size", 32, "--method", "grad_cam,gradient")
        Path("bad_networks.py").write_text(
            NETWORKS.replace("nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)", "")
        )
        Path("bad_networks.py").write_text(NETWORKS.replace("def sound():", "def sound():\n    return bare()\n"))
        done = command(*words, "--out", "out")
        summary = json.loads(Path("out/summary.json").read_text())
        assert done.returncode == 1
        assert [row["method"] for row in summary["maps"]] == ["gradient"]
        assert [failure["method"] for failure in summary["failures"]] == ["grad_cam"]

    @pytest.mark.usefixtures("here")
    def test_that_cannot_be_named_or_read(self) -> None:
        """A name of 251 letters, bytes that are no UTF-8, markup, escapes of a terminal, folders and links to nothing."""
        long = "x" * 251 + ".png"
        names = [long, "x" * 250 + "y.png", "photos [b].png", "esc\x1b[31m\n.png", os.fsdecode(b"\xff\xfe.png")]
        for name in names:
            Image.new("RGB", (32, 32)).save(name, "PNG")
        Path("folder.png").mkdir()
        Path("link.png").symlink_to("nothing")
        Path("text.png").write_text("no picture")
        done, summary = explain(*names, "folder.png", "link.png", "text.png", "y" * 300 + ".png")
        assert done.returncode == 1
        assert len(summary["maps"]) == len(names)
        assert len(summary["failures"]) == 4
        assert len({row["map"] for row in summary["maps"]}) == len(names)
        for row in summary["maps"]:
            assert len(backlit.Attribution.load(Path("out") / row["map"])) == 1
            assert row["map"].isprintable()
            assert len(row["map"].encode()) < 200
        assert r"\xff\xfe.png" in [row["image"] for row in summary["maps"]]
        assert "\x1b" not in done.stdout + done.stderr

    @pytest.mark.usefixtures("here")
    def test_that_is_a_pipe_or_a_device(self) -> None:
        """Reading it would not end."""
        os.mkfifo("pipe.png")
        done, summary = explain("black.png", "pipe.png", "/dev/zero")
        assert done.returncode == 1
        assert [row["image"] for row in summary["maps"]] == ["black.png"]
        assert ["is not a regular file" in failure["error"] for failure in summary["failures"]] == [True, True]

    @pytest.mark.usefixtures("here")
    def test_in_a_folder_that_cannot_be_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The pictures of the other folders are explained."""
        for folder in ("all/locked", "all/open"):
            Path(folder).mkdir(parents=True)
            Image.new("L", (32, 32)).save(f"{folder}/x.png")
        scan = os.scandir

        def locked(path: str) -> Iterator:
            if Path(path).name == "locked":
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", locked)
        done, summary = explain("all")
        assert done.returncode == 1
        assert [row["image"] for row in summary["maps"]] == ["all/open/x.png"]
        assert [failure["image"] for failure in summary["failures"]] == ["all/locked"]
        assert "cannot be read: Permission denied" in summary["failures"][0]["error"]
        assert command("explain", "all/locked", "--out", "out-2").returncode == 2

    @pytest.mark.usefixtures("here")
    def test_of_a_shape_that_would_fill_the_memory(self) -> None:
        Image.new("L", (3_000_000, 1)).save("thin.png")
        Image.new("L", (1, 3_000_000)).save("tall.png")
        done, summary = explain("black.png", "thin.png", "tall.png", "grey.png")
        assert done.returncode == 1
        assert [row["image"] for row in summary["maps"]] == ["black.png", "grey.png"]
        for failure in summary["failures"]:
            assert failure["image"] in failure["error"]
            assert "Crop it first" in failure["error"]

    @pytest.mark.usefixtures("here")
    def test_left_out_of_a_comparison(self) -> None:
        Image.new("L", (3_000_000, 1)).save("thin.png")
        words = ("--model", "bad_networks:value", "--size", 32, "--methods", "gradient", "--metrics", "insertion")
        for target in ("predicted", "2"):
            done = command(
                *("compare", "black.png", "white.png", "thin.png", "grey.png", *words),
                *("--target", target, "--out", f"out-{target}", "--option", "insertion.steps=4"),
            )
            assert done.returncode == 1, done.stderr
            assert "left out white.png: ValueError: too [bold]bright[/bold] \\x1b[31m" in done.stdout
            assert "2 of 4 images were left out" in done.stdout
            assert "Traceback" not in done.stderr

    @pytest.mark.usefixtures("here")
    def test_named_where_a_data_set_has_it(self) -> None:
        """There the network meets it in a batch, so it is looked for."""
        for folder, colour in (("a", "black"), ("b", "white"), ("b", "grey")):
            Path("data", folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), colour).save(Path("data", folder, f"{colour}.png"))
        Path("index.json").write_text('{"a": 0, "b": 4}')
        done = command(
            *("compare", "data", "--data", "folder", "--class-index", "index.json", "--model", "bad_networks:value"),
            *("--size", 32, "--methods", "gradient", "--metrics", "insertion", "--out", "out"),
        )
        assert done.returncode == 2
        assert "the model fails on 'b/white.png': ValueError: too [bold]bright" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.usefixtures("here")
    def test_left_out_of_a_fit(self) -> None:
        Path("photos").mkdir()
        for colour in ("black", "grey", "red"):
            Image.new("RGB", (32, 32), colour).save(f"photos/{colour}.png")
        Path("photos/cut.png").write_bytes(Path("black.png").read_bytes()[:50])
        words = ("fit", "--method", "pattern", "--size", 32, "--model")
        done = command(*words, "bad_networks:value", "--data", "photos", "--out", "a.fit")
        assert done.returncode == 1, done.stderr
        assert "left out photos/cut.png" in done.stdout
        assert Path("a.fit").is_file()
        done = command(*words, "bad_networks:value", "--data", "white.png", "--out", "b.fit")
        assert done.returncode == 2
        assert "the model fails on 'white.png': ValueError" in done.stderr
        assert not Path("b.fit").exists()


class TestNetwork:
    """What a user's module does is one message, and never the end of the program without one."""

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ("leaves:f", "importing 'leaves' failed: the code ended the program, sys.exit(0) (leaves.py, line 2)"),
            ("bad_networks:leaves_when_called", "calling 'bad_networks:leaves_when_called' failed: the code ended"),
            ("interrupts:f", "KeyboardInterrupt (interrupts.py, line 1)"),
            ("bad_networks:interrupts_when_called", "KeyboardInterrupt (bad_networks.py, line"),
            ("unreadable:f", "importing 'unreadable' failed: SyntaxError"),
            ("bad_networks:nothing", "must return a torch.nn.Module or a backlit LoadedModel, found NoneType"),
            ("bad_networks:number", "must be a function (or class) that returns a network"),
            ("bad_networks:soud", "has no 'soud'. Did you mean 'sound'?"),
            ("bad_networks:pair", "must return logits (n, classes), found tuple"),
            ("bad_networks:mapping", "must return logits (n, classes), found dict"),
            ("bad_networks:misnamed", "names 2 classes, but its network has 5 outputs"),
            ("[/red]:f", "no module '[/red]'"),
        ],
    )
    @pytest.mark.usefixtures("here")
    def test_is_refused(self, model: str, message: str) -> None:
        for words in (("explain", "black.png", "--out", "out"), ("trace",)):
            done = command(*words, "--model", model, "--size", 32)
            assert done.returncode == 2
            assert done.stderr.startswith("error: ")
            assert message in done.stderr
            assert "Traceback" not in done.stderr
        assert not Path("out").exists()

    @pytest.mark.parametrize("network", ["leaves", "interrupts", "value", "odd"])
    @pytest.mark.usefixtures("here")
    def test_fails_while_its_operations_are_listed(self, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.zeros", lambda *shape: torch.full(shape, 3.0))
        done = command("trace", "--model", f"bad_networks:{network}", "--size", 32)
        assert done.returncode == 2
        assert done.stderr.startswith("error: model: ")

    @pytest.mark.parametrize("network", ["bare", "one_class"])
    @pytest.mark.usefixtures("here")
    def test_without_parameters_or_with_one_class(self, network: str) -> None:
        done, summary = explain("black.png", "grey.png", model=f"bad_networks:{network}")
        assert done.returncode == 0, done.stderr
        assert len(summary["maps"]) == 2

    @pytest.mark.usefixtures("here")
    def test_names_are_shown_as_they_are(self) -> None:
        done = command("trace", "--model", "bad_networks:tagged", "--size", 32)
        assert done.returncode == 0, done.stderr
        assert "[/red]" in done.stdout
        assert r"\x1b[31mred" in done.stdout
        assert "\x1b" not in done.stdout


def test_weights_of_another_network(here: Path) -> None:
    for i, tensor in enumerate([torch.zeros(()), torch.zeros(2, 3), torch.zeros(0)]):
        save_file({"linear.weight": tensor, "features.conv1.weight": tensor.clone()}, here / f"{i}.safetensors")
        for model in ("digits", "cifar_resnet20", "cifar_cnn"):
            done = command("explain", "black.png", "--model", model, "--weights", f"{i}.safetensors", "--out", "out")
            assert done.returncode == 2
            assert "does not fit" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("explain black.png --size 1", "size: digits cannot run on images of 1 x 1 pixels"),
        ("explain black.png --size 0", "size: must be two positive numbers"),
        ("explain black.png --size -3", "size: must be two positive numbers"),
        ("explain black.png --size 1000000", "size: must be at most 67108864 pixels"),
        ("explain black.png --device meta", "device: 'meta' cannot be used (it holds no values). At hand: cpu"),
        ("explain black.png --device foo", "device: 'foo' cannot be used"),
        ("explain black.png --device [/b]", "device: '[/b]' cannot be used"),
        ("explain black.png --device hpu", "device: 'hpu' cannot be used"),
        ("explain black.png --dtype int8", "dtype: must be one of float32"),
        ("explain black.png --mean nan", "mean: must be 1 finite number(s)"),
        ("explain black.png --std 0", "std: must be positive"),
        ("explain black.png --seed -1", "--seed"),
        ("explain black.png --seed 99999999999999999999", "--seed"),
        ("explain black.png --out afile", "out: "),
        ("explain black.png --out afile/deeper", "out: "),
        ("explain black.png --method dmbp --option steps=" + "(" * 500, "steps must be a positive integer"),
        ("explain black.png --option [/b]=1", "option '[/b]=1' fits nothing"),
        ("explain black.png --method [/b]", "but is '[/b]'"),
        ("explain black.png --target [/b]", "has no class '[/b]'"),
        ("explain empty", "holds no image"),
        ("compare --out afile --limit 2 --methods gradient --metrics insertion", "out: "),
        ("compare --limit 0", "--limit"),
        ("compare --annotations own", "annotations is for --read imagenet, but read is images"),
        ("compare --boxes own", "annotations is for --read imagenet, but read is images"),
        ("compare own --data folder --scaled", "scaled is for --read imagenet or voc, but read is folder"),
        (
            "compare own --data imagenet --scaled",
            "scaled says how boxes lie in the pictures, but there are no annotations",
        ),
        ("compare --crop squeeze", "crop: must be"),
        ("compare black.png --class-index own", "class-index is for --read imagenet or folder, but read is images"),
        ("compare --target 3", "the true classes of the embedded scenes are known"),
        ("compare own --data folder --target 3", "the true classes of folder are known"),
        ("compare own --data folder --mosaic 1000000000", "mosaic must be 2 or 3, or 0 for none"),
        ("compare --metrics insertion --option insertion.absolute=3", "absolute must be a tuple of names"),
        ("compare --metrics insertion --option insertion.blur_sigma=1e300", "blur_sigma must be from 0.001"),
        ("compare --metrics last_layer_reset --option layers=3", "layers must be a tuple of module paths"),
        ("roar --data empty --methods random", "method must name one beside random"),
        ("roar --data empty --methods gradient --batch 1000000000000000000000", "--batch"),
        ("fit --batch 1000000000000000000000", "--batch"),
        ("trace --method gradient,dmbp", "method must be one, whose rules are shown"),
        ("compare --classes 0", "--classes"),
        ("roar --data empty --methods gradient --seeds 1000000000000", "--seeds"),
        ("roar --data empty --methods gradient --width 1000000000", "--width"),
        ("roar --data empty --methods gradient --epochs -1", "--epochs"),
        ("roar --data empty --methods gradient --batch 0", "--batch"),
        ("fit --out empty --limit 10", "out must be a file"),
        ("fit --out afile/deeper --limit 10", "out: "),
        ("demo --out afile", "out: "),
        ("demo --out own", "is a file that Backlit did not write"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_cannot_be_is_one_message_and_exit_code_2(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed."""
    monkeypatch.setattr(DMBP, "__call__", None)
    Path("afile").write_text("mine")
    Path("empty").mkdir()
    Path("own").mkdir()
    Path("own/index.html").write_text("my own page")
    done = command(*words.split(), *(() if "--out" in words or "trace" in words else ("--out", "out")))
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert Path("afile").read_text() == "mine"
    assert Path("own/index.html").read_text() == "my own page"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"a": 0, "b": 1000000000000}', "must have indices below 1048576, but 'b' has 1000000000000"),
        ('{"a": 0, "b": ' + "9" * 5000 + "}", "beyond 64 bits"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": 0, "a": 1, "b": 2}', "has the key 'a' twice"),
        ('{"a": 0, "b": NaN}', "holds NaN"),
        ('{"a": 0, "b": 1e999}', "out of range"),
        ('{"a": 0, "b": 1.5}', "must hold"),
        ('"ab"', "must hold"),
        ('[{"index": 0, "index": 1, "wnid": "a"}]', "has the key 'index' twice"),
        ("\udcff", "is not JSON"),
    ],
)
def test_class_indices_that_cannot_be(here: Path, content: str, reason: str) -> None:
    for folder in "ab":
        Path("data", folder).mkdir(parents=True)
        Image.new("L", (32, 32)).save(Path("data", folder, "x.png"))
    (here / "index.json").write_bytes(content.encode(errors="surrogateescape"))
    done = command(
        *("compare", "data", "--data", "folder", "--class-index", "index.json", "--methods", "gradient", "--metrics"),
        *("insertion", "--out", "out"),
    )
    assert done.returncode == 2
    assert reason in done.stderr


@pytest.mark.usefixtures("here")
def test_postscript_is_not_opened_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript, if there is one."""
    Path("bin").mkdir()
    Path("bin/gs").write_text(f"#!/bin/sh\ntouch {Path.cwd()}/ran\n")
    Path("bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}/bin", prepend=os.pathsep)
    page = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n%%EOF\n"
    for name in ("cat.png", "cat.jpg", "cat.eps"):
        Path(name).write_text(page)
    done, summary = explain("black.png", "cat.png", "cat.jpg", "cat.eps")
    assert done.returncode == 1
    assert len(summary["failures"]) == 3
    assert not Path("ran").exists()


@pytest.mark.usefixtures("here")
def test_a_data_set_with_names_of_any_bytes() -> None:
    for folder in (b"[b]x\xff", b"<b>y"):
        os.makedirs(b"data/" + folder)  # noqa: PTH103  bytes
        for name in (b"a\xfe.png", b"<script>alert(1)<.png", b"\x1b[31m.png"):
            with open(b"data/" + folder + b"/" + name, "wb") as file:  # noqa: PTH123
                Image.new("L", (32, 32), 60).save(file, "PNG")
    Path("index.json").write_text(json.dumps({os.fsdecode(b"[b]x\xff"): 0, "<b>y": 9}))
    words = ("--methods", "gradient", "--metrics", "insertion", "--option", "insertion.steps=2")
    for i, more in enumerate((("--data", "folder", "--class-index", "index.json"), ())):
        done = command("compare", "data", *more, *words, "--out", f"out{i}")
        assert done.returncode == 0, done.stderr
        assert "<script>alert" not in Path(f"out{i}/report.html").read_text(encoding="utf-8")
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.usefixtures("here")
def test_nobody_who_listens_is_no_reason_to_stop() -> None:
    """As with ``backlit explain ... | head -0``."""
    read, write = os.pipe()
    os.close(read)
    words = ("explain", "black.png", "grey.png", "--method", "gradient", "--out", "out")
    code = "from backlit.cli import main; main()"
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], stdout=nobody, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(Path("out/summary.json").read_text())["maps"]) == 2
    assert done.stderr == ""
