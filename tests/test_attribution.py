"""Attribution: checks at construction, slices, reductions, files without loss, figures."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backlit import Attribution, FileError, InputError
from backlit.capture import Coverage, CoverageRow

COVERAGE = Coverage((CoverageRow("relu[0]", "relu", "activation", "features.1", "nn.functional.relu", "guided"),))


def make(n: int = 3, c: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> Attribution:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return Attribution(
        values=draw(n, c, 4, 5),
        target=torch.arange(n),
        output=draw(n),
        inputs=draw(n, c, 4, 5),
        parts={"positive": draw(n, c, 4, 5), "negative": draw(n, c, 4, 5)},
        trajectory={"loss": draw(7, n)},
        completeness={"gap": draw(n)},
        coverage=COVERAGE,
        provenance={"method": "dmbp", "options": {"steps": 7, "init": None}, "seed": 0},
    )


def assert_same(one: Attribution, other: Attribution) -> None:
    for name in ("values", "target", "output", "inputs"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    for name in ("parts", "trajectory", "completeness"):
        a, b = getattr(one, name), getattr(other, name)
        assert list(a) == list(b) or sorted(a) == sorted(b)
        assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
    assert one.coverage == other.coverage
    assert dict(one.provenance) == dict(other.provenance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("c", [1, 3])
def test_a_file_holds_everything(tmp_path: Path, dtype: torch.dtype, c: int) -> None:
    made = make(c=c, dtype=dtype)
    made.save(tmp_path / "map.safetensors")
    assert_same(Attribution.load(tmp_path / "map.safetensors"), made)
    assert os.listdir(tmp_path) == ["map.safetensors"]  # noqa: PTH208  names only


def test_saving_over_a_file_replaces_it_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.safetensors"
    make(seed=0).save(path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match=r"cannot write .*No space left on device.*space left"):
        make(seed=1).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_unwritable_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot write .*nowhere"):
        make().save(tmp_path / "nowhere" / "map.safetensors")
    with pytest.raises(FileError, match="there is no file"):
        Attribution.load(tmp_path / "none.safetensors")
    path = tmp_path / "map.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FileError, match="no whole safetensors file"):
        Attribution.load(path)
    path.write_bytes(struct.pack("<Q", 10) + b"not json..")
    with pytest.raises(FileError, match="no whole safetensors file"):
        Attribution.load(path)


def test_other_files_and_other_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"values": torch.zeros(1, 1, 2, 2)}, path)
    with pytest.raises(FileError, match="no attribution of Backlit"):
        Attribution.load(path)
    save_file({"values": torch.zeros(1, 1, 2, 2)}, path, {"backlit.attribution": "99"})
    with pytest.raises(FileError, match="of format 99, and this Backlit reads 1"):
        Attribution.load(path)


def test_slices_and_joins() -> None:
    made = make()
    assert_same(Attribution.cat([made[0], made[1:]]), made)
    assert_same(Attribution.cat(list(made)), made)
    assert made[-1].target.tolist() == [2]
    assert made[1].trajectory["loss"].shape == (7, 1)
    assert len(made) == 3
    with pytest.raises(IndexError, match="below the number of images, 3, but is 3"):
        made[3]
    with pytest.raises(InputError, match="at least one Attribution"):
        Attribution.cat([])
    with pytest.raises(InputError, match="the same parts, but they differ"):
        Attribution.cat([made, Attribution(made.values, made.target, made.output)])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("values", torch.zeros(3, 4, 5), r"values must be maps \(n, c, h, w\), but have shape \(3, 4, 5\)"),
        ("target", torch.zeros(2), r"target must have shape \(3,\).*has \(2,\)"),
        ("output", torch.zeros(3, 1), r"output must have shape \(3,\)"),
        ("parts", {"positive": torch.zeros(3, 1, 4, 5)}, r"parts\['positive'\] must have shape \(3, 3, 4, 5\)"),
        ("trajectory", {"loss": torch.zeros(3, 7)}, r"trajectory\['loss'\] must have shape \(3, 3\)"),
        ("completeness", {"gap": torch.zeros(())}, r"completeness\['gap'\] must have shape \(3,\)"),
    ],
)
def test_shapes_are_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Attribution(**{**vars(make()), field: value})


def test_heatmaps_reduce_channels() -> None:
    made = make()
    v = made.values
    assert torch.equal(made.heatmap(), v.sum(1, keepdim=True))
    assert torch.equal(made.heatmap("abs"), v.abs().sum(1, keepdim=True))
    assert torch.equal(made.heatmap("max"), v.amax(1, keepdim=True))
    torch.testing.assert_close(made.heatmap("norm"), v.pow(2).sum(1, keepdim=True).sqrt())
    with pytest.raises(InputError, match="reduce must be 'sum', 'abs', 'max' or 'norm', but is 'mean'"):
        made.heatmap("mean")  # type: ignore[arg-type]


def test_the_scale_is_a_percentile_of_magnitudes() -> None:
    values = torch.zeros(1, 1, 10, 10)
    values[0, 0, 0, 0] = -7.0
    one = Attribution(values, torch.zeros(1).long(), torch.zeros(1))
    assert one.scale(100) == 7
    assert one.scale(50) == 7  # a sparse map still gets a scale
    assert Attribution(values * 0, one.target, one.output).scale() == 0
    with pytest.raises(InputError, match="percentile must be above 0"):
        one.scale(0)


def test_it_is_frozen_and_says_what_it_is() -> None:
    made = make()
    with pytest.raises(AttributeError, match="cannot assign"):
        made.values = made.values  # type: ignore[misc]
    assert "dmbp" in repr(made)
    assert "gap=" in repr(made)
    assert "guided x1" in repr(made)


def test_figures_show_image_map_overlay_and_parts_with_the_scale() -> None:
    figure = make(n=2).figure()
    texts = [t.get_text() for a in figure.axes for t in (a.title, a.xaxis.label)]
    assert sum("colour scale ±" in t and "99.5th percentile" in t for t in texts) == 2
    assert {"over the image", "positive", "negative"} <= set(texts)
    plain = Attribution(torch.zeros(1, 1, 4, 4), torch.zeros(1).long(), torch.zeros(1)).figure()
    assert any("zero everywhere" in a.xaxis.label.get_text() for a in plain.axes)
    with pytest.raises(InputError, match=r"images must be \(n, c, h, w\) with n = 2"):
        make(n=2).figure(torch.zeros(1, 3, 4, 5))
