"""What MIP-IN learns from: data that cannot be used, other data in a later pass, and interruptions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from _fit_networks import Passes, Stopped, cnn, drawn, mlp, sequential
from torch import Tensor, nn

from backlit import MIPIN, Attribution, FileError, InputError, ModelStateError, PatternNet, UnsupportedOp
from backlit.inverse import Fitted
from backlit.inverse.data import Batch, Digest
from backlit.inverse.fitting import Fitting


@pytest.mark.parametrize("samples", ["all", "own"])
@pytest.mark.parametrize("fails_in", [1, 2, 3])
def test_an_interrupted_fit_goes_on_and_gives_the_same_bits(tmp_path: Path, fails_in: int, samples: str) -> None:
    net, x, y = cnn(), drawn(30, 2, 6, 6), torch.arange(30) % 3
    whole = MIPIN.fit(net, Passes(x, y, None), samples=samples)
    path = tmp_path / "inverse.safetensors"
    with pytest.raises(Stopped):
        MIPIN.fit(net, Passes(x, y, fails_in), samples=samples, out=path)
    assert not path.exists()
    assert len(list((tmp_path / "inverse.safetensors.parts").glob("*.safetensors"))) == fails_in - 1
    again = Passes(x, y, None)
    resumed = MIPIN.fit(net, again, samples=samples, out=path)
    assert again.passes == 3 - (fails_in - 1)  # the finished layers took none
    for layer, found in whole.layers.items():
        for name, value in found.items():
            assert torch.equal(resumed.layers[layer][name], value)
    assert resumed.facts["layers"] == whole.facts["layers"]
    assert [p.name for p in tmp_path.iterdir()] == ["inverse.safetensors"]


def test_a_class_that_was_left_out_stays_out_after_an_interruption(tmp_path: Path) -> None:
    net, x, y = mlp(), drawn(30, 3, 2, 2), torch.arange(30) % 3
    net[5].weight.data[1] = 0
    with pytest.warns(UserWarning, match="logit of class 1 is constant"):
        whole = MIPIN.fit(net, Passes(x, y, None))
    with pytest.raises(Stopped), pytest.warns(UserWarning, match="logit of class 1 is constant"):
        MIPIN.fit(net, Passes(x, y, 2), out=tmp_path / "x")
    resumed = MIPIN.fit(net, Passes(x, y, None), out=tmp_path / "x")
    assert resumed.classes == whole.classes == (0, 2)
    for layer, found in whole.layers.items():
        torch.testing.assert_close(resumed.layers[layer], found)


def test_a_fit_does_not_go_on_from_another_one(tmp_path: Path) -> None:
    net, x, y = cnn(), drawn(30, 2, 6, 6), torch.arange(30) % 3
    path = tmp_path / "inverse.safetensors"
    with pytest.raises(Stopped):
        MIPIN.fit(net, Passes(x, y, 2), out=path)
    with pytest.raises(
        FileError,
        match=r"holds another fit: ridge was 0.001 and is 0.1. Ask for the same again to go on, choose another file, or remove",
    ):
        MIPIN.fit(net, Passes(x, y, None), out=path, ridge=0.1)
    with pytest.raises(InputError, match=r"data must be the same in every pass, but one had 30 images of digest"):
        MIPIN.fit(net, Passes(x + 1, y, None), out=path)


def _stop_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Let the next fit be interrupted when it has written so many parts."""
    keep, done = Fitting.keep, []

    def keeps(self: Fitting, *args: object) -> object:
        piece = keep(self, *args)  # type: ignore[arg-type]
        done.append(1)
        if len(done) == parts:
            monkeypatch.setattr(Fitting, "keep", keep)
            raise Stopped
        return piece

    monkeypatch.setattr(Fitting, "keep", keeps)


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


# Images and labels that were learned from before an interruption, and those of the call that goes on.
OTHERS: dict[str, Callable[[Tensor, Tensor], tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    "labels": lambda x, y: ((x, y), (x, (y + 1) % 3)),
    "pixels moved": lambda x, y: ((x, y), (x.flip(3), y)),
    "pixels exchanged between images": lambda x, y: ((x, y), (torch.cat([x[:, :1], x.roll(1, 0)[:, 1:]], 1), y)),
    "labels exchanged between images": lambda x, y: ((x, y), (x, y.roll(1))),
    "standardised": lambda x, y: ((_standardised(x), y), (_standardised(x + drawn(*x.shape, seed=9)), y)),
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_a_fit_does_not_go_on_with_other_data(
    name: str, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, path = cnn(), tmp_path / "inverse.safetensors"
    before, after = OTHERS[name](drawn(30, 2, 6, 6), torch.arange(30) % 3)
    _stop_after(monkeypatch, parts)  # the third is the last
    with pytest.raises(Stopped):
        MIPIN.fit(net, [before], out=path, samples="own")
    with pytest.raises(
        InputError, match=r"data must be the same in every pass, but one had 30 images of digest \w{16} and "
    ):
        MIPIN.fit(net, [after], out=path, samples="own")
    if name != "labels":
        return
    order = torch.arange(30).flip(0)
    x, y = before[0][order], before[1][order]  # another order and other batches are the same data
    assert MIPIN.fit(net, list(zip(x.split(7), y.split(7), strict=True)), out=path, samples="own").classes == (0, 1, 2)


def test_the_digest_does_not_depend_on_batches_and_sees_what_sums_do_not() -> None:
    x, y = drawn(20, 2, 3, 3), torch.arange(20) % 3

    def digest(x: Tensor, y: Tensor | None, size: int = 20) -> Digest:
        found = Digest()
        for i in range(0, len(x), size):
            found.add(Batch(0, (x[i : i + size],), None if y is None else y[i : i + size]))
        return found

    whole = digest(x, y)
    assert whole.same(digest(x, y, 7))
    assert whole.same(digest(x.flip(0), y.flip(0), 3))
    assert digest(x.half(), y).same(digest(x.half().float(), y))
    assert not whole.same(digest(x, None))
    others = [
        digest(x.flip(2), y),
        digest(x.transpose(2, 3), y),
        digest(x, y.roll(1)),
        digest(x[:19], y[:19]),
        digest(-x, y),
    ]
    assert len({d.hash for d in [whole, *others]}) == 6
    for values in (x, x.float()):
        one_bit = values.clone()
        one_bit[3, 1, 2, 2] = torch.nextafter(one_bit[3, 1, 2, 2], one_bit.new_tensor(9.0))
        assert not digest(values, y).same(digest(one_bit, y))


def test_a_pattern_fit_does_not_go_on_with_fewer_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backlit.inverse import patterns

    monkeypatch.setattr(patterns, "PAUSE", 0.0)
    monkeypatch.setattr(patterns, "SHARE", float("inf"))
    net, x, path = cnn(), list(drawn(40, 2, 6, 6).split(8)), tmp_path / "patterns.safetensors"
    _stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        PatternNet.fit(net, x, out=path)
    with pytest.raises(InputError, match=r"3 batches held 24 images of digest .* and now 16 images"):
        PatternNet.fit(net, x[:2], out=path)
    with pytest.raises(InputError, match=r"3 batches held 24 images of digest .* and now 24 images"):
        PatternNet.fit(net, [x[0], x[1].flip(3), *x[2:]], out=path)
    assert len(PatternNet.fit(net, x, out=path).layers) == 3


@pytest.mark.parametrize("plan", ["[1]", "null", '{"a"'])
def test_somebody_elses_folder_of_parts_is_refused(plan: str, tmp_path: Path) -> None:
    (tmp_path / "x.parts").mkdir()
    (tmp_path / "x.parts" / "plan.json").write_text(plan)
    with pytest.raises(FileError, match=r"plan.json' is a file that Backlit did not write here.* Move it away"):
        MIPIN.fit(cnn(), [drawn(30, 2, 6, 6)], out=tmp_path / "x")
    assert (tmp_path / "x.parts" / "plan.json").read_text() == plan


@pytest.mark.parametrize("name", ["0-linear[0].safetensors", "plan.json"])
def test_damaged_parts_are_set_aside_and_learned_again(name: str, tmp_path: Path) -> None:
    net, x, y = cnn(), drawn(30, 2, 6, 6), torch.arange(30) % 3
    whole = MIPIN.fit(net, Passes(x, y, None))
    path = tmp_path / "x"
    with pytest.raises(Stopped):
        MIPIN.fit(net, Passes(x, y, 3), out=path)
    part = tmp_path / "x.parts" / name
    data = bytearray(part.read_bytes())
    data[-9] ^= 1
    part.write_bytes(data)
    with pytest.warns(UserWarning, match=r"is not as it was written; it is kept as .*\.bad, and made again"):
        resumed = MIPIN.fit(net, Passes(x, y, None), out=path)
    for layer, found in whole.layers.items():
        assert all(torch.equal(resumed.layers[layer][key], value) for key, value in found.items())
    assert [p.name for p in (tmp_path / "x.parts").iterdir()] == [f"{name}.bad"]


@pytest.mark.parametrize("method", [MIPIN, PatternNet])
def test_a_fit_replaces_an_earlier_one_of_its_kind_and_nothing_else(
    method: type[MIPIN | PatternNet], tmp_path: Path
) -> None:
    net, x = cnn(), [drawn(30, 2, 6, 6)]
    other = PatternNet if method is MIPIN else MIPIN
    fitted = method.fit(net, x)
    other.fit(net, x, out=tmp_path / "other")
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "empty").write_text("")
    fitted.save(tmp_path / "target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    Attribution(torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), torch.zeros(1)).save(tmp_path / "map")
    for name, what in (
        ("thesis.txt", "another file"),
        ("empty", "another file"),
        ("map", "another file"),
        ("link", "a link"),
        ("other", "a fit of (mip_in|pattern)"),
    ):
        before = (tmp_path / name).read_bytes()
        data = _Reads(x[0])
        with pytest.raises(FileError, match=rf"^out: .*{name}' is {what}, and only .* Choose another name"):
            method.fit(net, data, out=tmp_path / name)
        assert data.read <= 1  # before anything is learned
        with pytest.raises(FileError, match=rf"^path: .*{name}' is {what}"):
            fitted.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    (tmp_path / "target").write_bytes((tmp_path / "target").read_bytes()[:-5] + b"\0" * 5)
    method.fit(net, x, out=tmp_path / "target")  # a damaged one, too
    assert Fitted.load(tmp_path / "target").kind == method.artefact


def test_another_precision_of_the_network_is_another_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = drawn(30, 2, 6, 6), tmp_path / "inverse.safetensors"
    _stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        MIPIN.fit(cnn().float(), [x], out=path)
    with pytest.raises(FileError, match=r'dtype was "torch.float32" and is "torch.float64"'):
        MIPIN.fit(cnn().float().double(), [x], out=path)


class _Reads:
    """Batches that say when they are read."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.read = x, 0

    def __iter__(self) -> Iterator[Tensor]:
        self.read += 1
        yield from self.x.split(8)


@pytest.mark.parametrize("method", [MIPIN, PatternNet])
def test_a_file_that_cannot_be_written_is_found_before_the_pass(
    method: type[MIPIN | PatternNet], tmp_path: Path
) -> None:
    data = _Reads(drawn(30, 2, 6, 6))
    with pytest.raises(FileError, match=r"^out must be a file, but .* is a folder"):
        method.fit(cnn(), data, out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"^out: cannot write to"):
        method.fit(cnn(), data, out=tmp_path / "file" / "x.safetensors")
    assert data.read == 2  # the first look at each
    method.fit(cnn(), data, out=tmp_path / "new" / "folder" / "x.safetensors")
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("method", [MIPIN, PatternNet])
def test_two_fits_do_not_share_a_file(method: type[MIPIN | PatternNet], tmp_path: Path) -> None:
    x, path = drawn(30, 2, 6, 6), tmp_path / "x.safetensors"
    begun, done = threading.Event(), threading.Event()

    def wait(step: object) -> None:
        begun.set()
        assert done.wait(60)

    first = threading.Thread(target=lambda: method.fit(cnn(), [x], out=path, progress=wait))
    first.start()
    assert begun.wait(60)
    try:
        with pytest.raises(FileError, match=r"^out: .* is in use by process \d+ on .*, since .* Wait until it is done"):
            method.fit(cnn(), [x], out=path)
    finally:
        done.set()
        first.join()
    assert path.is_file()
    method.fit(cnn(), [x], out=path)


# Bad input.


class _Once:
    """Batches that are there twice, for the first look and one pass."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches, self.left = batches, 2

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        yield from self.batches if self.left >= 0 else ()


def test_not_finite_activations_name_the_batch() -> None:
    net, x = mlp(), drawn(20, 3, 2, 2)
    huge = x.clone()
    huge[13] = 1e308
    with pytest.raises(ModelStateError, match=r"activations at .* are not finite for image 3 of batch 1"):
        MIPIN.fit(net, huge.split(10))
    y = torch.arange(20) % 3  # of the second batch, images 1, 4 and 7 are of class 2
    huge[:] = x
    huge[14] = 1e308
    with pytest.raises(ModelStateError, match=r"not finite for image 4 of batch 1"):
        MIPIN.fit(net, list(zip(huge.split(10), y.split(10), strict=True)), samples="own", classes=[2])
    huge[13] = torch.nan
    with pytest.raises(InputError, match="image 3 of batch 1 holds NaN"):
        MIPIN.fit(net, huge.split(10))


class _Branches(nn.Module):
    """Does something else where its input is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1) if float(x.sum()) > 0 else x.flatten(1).tanh())


def test_own_samples_without_labels_are_those_that_the_network_predicts() -> None:
    net, x = mlp(), drawn(60, 3, 2, 2)
    said = net(x).argmax(1)
    for classes in ([2], [2, 1]):  # none is of class 0
        found = MIPIN.fit(net, x.split(25), samples="own", classes=classes)
        labelled = list(zip(x.split(25), said.split(25), strict=True))
        expected = MIPIN.fit(net, labelled, samples="own", classes=classes)
        for layer, tensors in expected.layers.items():
            torch.testing.assert_close(found.layers[layer], tensors, rtol=1e-9, atol=1e-12)


def test_labels_of_eight_bits_name_classes_beyond_them() -> None:
    net, x, y = sequential(nn.Flatten(), nn.Linear(12, 300)), drawn(20, 3, 2, 2), 50 + torch.arange(20) % 2
    for dtype in (torch.uint8, torch.int8):
        found = MIPIN.fit(net, [(x, y.to(dtype))], samples="own", classes=[50, 51])
        expected = MIPIN.fit(net, [(x, y)], samples="own", classes=[50, 51])
        assert torch.equal(found.layers["linear[0]"]["weight"], expected.layers["linear[0]"]["weight"])


def test_data_that_cannot_be_used() -> None:
    net, x = mlp(), drawn(20, 3, 2, 2)
    for data, message in (
        (x, "data must be batches, but is one tensor"),
        (iter([x]), "one pass uses up"),
        (3, "iterable of batches"),
        ([], "at least one batch"),
        ([x.long()], "batch 0 must be .* floating point"),
        ([x, [1, 2, 3]], "batch 1 must be"),
        ([(x, torch.zeros(20))], "labels of batch 0 must be 20 class indices"),
        ([(x, torch.zeros(19, dtype=torch.int64))], "labels of batch 0"),
        ([(x, torch.ones(20, dtype=torch.bool))], r"20 class indices, one an image, but are torch.bool"),
        ([(x, ["a"] * 20)], r"labels of batch 0 must be 20 class indices, one an image, but are list"),
        (_Once([x]), "gave batches in one pass and none in a later one"),
        (
            [((x, x[:3]), torch.zeros(20, dtype=torch.int64))],
            "the inputs of batch 0 must hold as many images each, but hold 20, 3",
        ),
    ):
        with pytest.raises(InputError, match=message):
            MIPIN.fit(net, data)  # type: ignore[arg-type]
    for wrong in (-1, 3):
        with pytest.raises(
            InputError, match=f"labels of batch 0 must be class indices from 0 to 2, but one is {wrong}"
        ):
            MIPIN.fit(net, [(x, torch.full((20,), wrong))], samples="own")
    assert MIPIN.fit(net, [x], classes=np.array([2, 0])).classes == (2, 0)
    with pytest.raises(UnsupportedOp, match="other operations on these 20 images than before"):
        MIPIN.fit(_Branches().eval(), [x.abs(), -x.abs()])
    for method in (MIPIN, PatternNet):
        with pytest.raises(InputError, match="images of batch 1 must have the size of batch 0, 3x2x2, but have 3x4x4"):
            method.fit(net, [x, drawn(20, 3, 4, 4)])  # as a network of dense layers would fail in its own words
        with pytest.raises(InputError, match=r"'ridges' is no option of this fit: it has .*precision"):
            method.fit(net, [x], ridges=1)
        with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module, but is NoneType"):
            method.fit(None, [x])  # type: ignore[arg-type]
    for options, message in (
        ({"samples": "some"}, "samples must be 'all' or 'own'"),
        ({"ridge": -1}, "ridge must be a number from 0"),
        ({"ridge": float("inf")}, "ridge must be a number from 0 on, but is inf"),
        ({"ridge": float("nan")}, "ridge must be a number from 0 on, but is nan"),
        ({"ridge": True}, "ridge must be a number from 0 on, but is True"),
        ({"classes": [0, 3]}, "classes must be different class indices from 0 to 2"),
        ({"classes": []}, "classes must be different"),
        ({"classes": 1}, "classes must be different class indices from 0 to 2, but are 1"),
        ({"classes": "01"}, "classes must be different class indices from 0 to 2, but are '01'"),
        ({"classes": [0.9]}, r"classes must be different class indices from 0 to 2, but are \[0.9\]"),
        ({"precision": torch.float16}, "precision must be"),
        ({"memory": 0}, "memory must be"),
    ):
        with pytest.raises(InputError, match=message):
            MIPIN.fit(net, [x], **options)
    with pytest.raises(InputError, match=r"ridge must be large enough for linear\[1\]"):
        MIPIN.fit(net, [x[:4]], ridge=0)
    with pytest.raises(ModelStateError, match="eval mode"):
        MIPIN.fit(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12, 3)).double().train(), [x])
