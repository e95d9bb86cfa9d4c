"""Attribution: checks at construction, slices, reductions, files without loss, figures."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from backlit import Attribution, FileError, InputError
from backlit._packed import pack
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
        labels=tuple(f"class {i}, say" for i in range(n)),
        probability=torch.rand(n, generator=generator),
    )


def assert_same(one: Attribution, other: Attribution) -> None:
    assert one.labels == other.labels
    assert (one.probability is None) == (other.probability is None)
    for name in ("values", "target", "output", "inputs", *["probability"] * (one.probability is not None)):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    for name in ("parts", "trajectory", "completeness"):
        a, b = getattr(one, name), getattr(other, name)
        assert list(a) == list(b)
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


def test_files_of_earlier_versions_have_neither_labels_nor_probabilities(tmp_path: Path) -> None:
    made = make()
    old = Attribution(made.values, made.target, made.output, made.inputs, made.parts)
    old.save(tmp_path / "map.safetensors")
    with safe_open(str(tmp_path / "map.safetensors"), "pt") as file:
        assert "probability" not in file.keys()  # noqa: SIM118  not a dict
        assert "labels" not in file.metadata()
    loaded = Attribution.load(tmp_path / "map.safetensors")
    assert loaded.labels is None
    assert loaded.probability is None
    assert loaded[0].labels is None


def test_saving_over_a_file_replaces_it_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.safetensors"
    make(seed=0).save(path)
    before = path.read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
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
    with pytest.raises(FileError, match="of format 99, and this Backlit reads 2"):
        Attribution.load(path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {"provenance": None}, "content is damaged .*provenance"),
        ({}, {"coverage": "[{}]"}, "content is damaged"),
        ({}, {"provenance": "{"}, "content is damaged"),
        ({"output": None}, {}, "content is damaged .*output"),
        ({"target": torch.zeros(2).long()}, {}, r"content is damaged \(target must have shape"),
        ({"secrets/x": torch.zeros(2)}, {}, "content is damaged .*secrets"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor | None], metadata: dict[str, str | None], message: str
) -> None:
    path = tmp_path / "map.safetensors"
    make().save(path)
    with safe_open(str(path), "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        told = file.metadata()
    held = {k: v for k, v in {**held, **tensors}.items() if v is not None}
    told = {**told, "order": json.dumps([*json.loads(told["order"]), *(set(tensors) - set(json.loads(told["order"])))])}
    told = {
        k: v for k, v in {**told, **metadata}.items() if v is not None and k not in ("sha256", "backlit.attribution")
    }
    path.write_bytes(pack("backlit.attribution", held, told))
    with pytest.raises(FileError, match=message):
        Attribution.load(path)


def test_a_changed_byte_is_refused_wherever_it_is(tmp_path: Path) -> None:
    """Or it changes nothing: a file is used as it was written, or not at all."""
    path, made = tmp_path / "map.safetensors", make()
    made.save(path)
    whole = path.read_bytes()
    for at in [*range(0, len(whole) - 600, 37), *range(len(whole) - 600, len(whole), 5)]:
        for bit in (1, 128):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            with pytest.raises(FileError, match=r"map\.safetensors"):
                Attribution.load(path)
    for cut in range(1, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError, match=r"map\.safetensors"):
            Attribution.load(path)


def test_a_file_without_a_checksum_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    make().save(path)
    with safe_open(str(path), "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        told = {k: v for k, v in file.metadata().items() if k != "sha256"}
    save_file(held, path, {**told, "backlit.attribution": "1"})
    with pytest.warns(UserWarning, match="was written without a checksum, by an earlier version"):
        assert_same(Attribution.load(path), make())
    save_file(held, path, told)
    with pytest.raises(FileError, match="does not match its checksum"):
        Attribution.load(path)


def test_saving_through_a_link_replaces_the_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "map").symlink_to(victim)
    make().save(tmp_path / "map")
    assert victim.read_text() == "precious"
    assert_same(Attribution.load(tmp_path / "map"), make())


@pytest.mark.parametrize("other", [{"callback": "progress"}, {"chunk": 8}, {"callback": None, "chunk": None}])
def test_callbacks_and_the_chunk_do_not_keep_results_apart(other: dict[str, object]) -> None:
    """The command line gives a method its bar."""
    one, two = (
        Attribution(m.values, m.target, m.output, provenance={"method": "dmbp", "options": {"steps": 3, **options}})
        for m, options in ((make(), {}), (make(), other))
    )
    assert len(Attribution.cat([one, two])) == len(one) + len(two)


def test_maps_that_need_a_gradient_or_share_memory_are_saved(tmp_path: Path) -> None:
    values = torch.randn(3, 3, 2, 2).requires_grad_()
    made = Attribution(
        values,
        torch.arange(3),
        torch.zeros(3),
        inputs=values,
        parts={"positive": values.detach(), "negative": values[:1].expand(3, -1, -1, -1)},
    )
    made.save(tmp_path / "map.safetensors")
    loaded = Attribution.load(tmp_path / "map.safetensors")
    assert not loaded.values.requires_grad
    assert_same(loaded, made)


def test_a_provenance_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    made = make()
    with pytest.raises(InputError, match=r"provenance must hold plain JSON values to be saved, but: .*Tensor"):
        Attribution(made.values, made.target, made.output, provenance={"x": made.output}).save(tmp_path / "map")
    assert not list(tmp_path.iterdir())


def test_slices_and_joins() -> None:
    made = make()
    assert_same(Attribution.cat([made[0], made[1:]]), made)
    assert_same(Attribution.cat(list(made)), made)
    assert made[-1].target.tolist() == [2]
    assert made[1].trajectory["loss"].shape == (7, 1)
    assert made[1].labels == ("class 1, say",)
    assert torch.equal(made[1:].probability, made.probability[1:])  # type: ignore[index, arg-type]
    assert len(made) == 3
    with pytest.raises(IndexError, match="below the number of images, 3, but is 3"):
        made[3]
    with pytest.raises(InputError, match="at least one Attribution"):
        Attribution.cat([])
    assert made[::2].target.tolist() == [0, 2]
    assert made[torch.tensor(1)].target.tolist() == [1]
    assert len(made[3:]) == 0
    with pytest.raises(TypeError, match="integer"):
        made["0"]  # type: ignore[index]
    with pytest.raises(TypeError, match="integer"):
        made[[0, 1]]  # type: ignore[index]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parts": {}}, r"the same parts to be joined, but one has \['negative', 'positive'\] and another \[\]"),
        ({"completeness": {}}, "the same completeness"),
        ({"trajectory": {"loss": torch.zeros(6, 3)}}, r"the same trajectory .*'loss': 7.*'loss': 6"),
        ({"inputs": None}, "the same inputs"),
        ({"labels": None}, "the same labels"),
        ({"probability": None}, "the same probability"),
        ({"provenance": {"method": "gradient"}}, "the same method .*'dmbp' and another 'gradient'"),
        ({"provenance": {"method": "dmbp", "options": {"steps": 8}}}, "the same options"),
    ],
)
def test_only_results_of_one_kind_are_joined(changed: dict[str, object], message: str) -> None:
    made = make()
    with pytest.raises(InputError, match=message):
        Attribution.cat([made, made, Attribution(**{**vars(made), **changed})])
    with pytest.raises(InputError, match=r"the same size .*\(3, 4, 5\) and another \(1, 4, 5\)"):
        Attribution.cat([made, make(c=1)])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("values", torch.zeros(3, 4), r"values must be maps \(n, c, h, w\), or those of .* but have shape \(3, 4\)"),
        ("target", torch.zeros(2), r"target must have shape \(3,\).*has \(2,\)"),
        ("output", torch.zeros(3, 1), r"output must have shape \(3,\)"),
        ("parts", {"positive": torch.zeros(3, 1, 4, 5)}, r"parts\['positive'\] must have shape \(3, 3, 4, 5\)"),
        ("trajectory", {"loss": torch.zeros(3, 7)}, r"trajectory\['loss'\] must have shape \(3, 3\)"),
        ("trajectory", {"loss": torch.zeros(())}, r"trajectory\['loss'\] must have shape \(3,\)"),
        ("completeness", {"gap": torch.zeros(())}, r"completeness\['gap'\] must have shape \(3,\)"),
        ("inputs", torch.zeros(3, 3, 4, 6), r"inputs must have shape \(3, 3, 4, 5\)"),
        ("probability", torch.zeros(2), r"probability must have shape \(3,\)"),
        ("labels", ("a", "b"), "labels must be 3 class names, one for each image, but are 2"),
        ("labels", "abc", "labels must be 3 class names, one for each image, but are 'abc'"),
        ("labels", (1, 2, 3), r"labels must be 3 class names, one for each image, but are \(1, 2, 3\)"),
        ("target", torch.zeros(3), r"target must hold class indices as torch\.int64, but holds torch\.float32"),
    ],
)
def test_shapes_are_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Attribution(**{**vars(make()), field: value})


def test_whole_numbers_are_no_map() -> None:
    with pytest.raises(InputError, match=r"values must be floating point, but are torch\.uint8"):
        Attribution(torch.zeros(1, 1, 2, 2).byte(), torch.zeros(1).long(), torch.zeros(1))


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
    assert one.scale_used(50) == (7, 100)
    assert one.scale_used(100) == (7, 100)
    assert one[1:].scale() == 0
    for wrong in (0, 100.5, float("nan")):
        with pytest.raises(InputError, match="percentile must be above 0"):
            one.scale(wrong)
    for broken in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="values must be finite to be given colours"):
            Attribution(values * broken, one.target, one.output).scale()


@pytest.mark.parametrize("percentile", [1, 37.5, 99.5, 100])
def test_the_scale_is_numpys_percentile(percentile: float) -> None:
    made = make(n=3)
    expected = np.percentile(made.heatmap().abs().numpy().astype(float), percentile)
    assert made.scale(percentile) == pytest.approx(expected, rel=1e-12)


def test_it_is_frozen_and_says_what_it_is() -> None:
    made = make()
    with pytest.raises(AttributeError, match="cannot assign"):
        made.values = made.values  # type: ignore[misc]
    parts: dict[str, torch.Tensor] = {}
    one = Attribution(made.values, made.target, made.output, parts=parts)
    parts["late"] = made.values
    assert not one.parts
    gap = float(made.completeness["gap"].abs().max())
    assert repr(made).startswith(
        "Attribution(dmbp, 3 images of 3x4x5, target=[class 0, say, class 1, say, class 2, say], out"
    )
    assert "target=[0, 1, 2], output=[" in repr(replace(made, labels=None))
    assert repr(made).endswith(f", gap={gap:.2g}, coverage: guided x1)")
    assert repr(one).endswith("])")
    assert "1 image of" in repr(made[0])
    assert "target=[0, 1, 2, 3, ...]" in repr(replace(make(n=200), labels=None))
    assert len(repr(make(n=200))) < 250
    assert "0 images" in repr(made[3:])


def test_figures_show_image_map_overlay_and_parts_with_the_scale() -> None:
    figure = make(n=2).figure()
    texts = [t.get_text() for a in figure.axes for t in (a.title, a.xaxis.label)]
    assert sum("colour scale ±" in t and "99.5th percentile" in t for t in texts) == 2
    assert {"over the image", "positive", "negative"} <= set(texts)
    assert len(figure.axes) == 2 * (5 + 1)  # and the colour bars
    limits = [image.get_clim() for a in figure.axes for image in a.get_images() if image.get_array().ndim == 2]
    assert limits == [(-s, s) for s in (make(n=2)[i].scale() for i in range(2))]
    plain = Attribution(torch.zeros(1, 1, 4, 4), torch.zeros(1).long(), torch.ones(1)).figure()
    assert [a.xaxis.label.get_text() for a in plain.axes] == ["The map is zero everywhere."]
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize(("c", "dtype"), [(1, torch.float32), (3, torch.bfloat16), (2, torch.float64)])
def test_figures_take_every_dtype_and_number_of_channels(c: int, dtype: torch.dtype) -> None:
    make(c=c, dtype=dtype).figure(torch.rand(3, 1, 8, 10), parts=False).savefig(io.BytesIO())
    assert len(make(c=c, dtype=dtype).figure(parts=False).axes) == 3 * (3 + 1)


def test_figures_refuse_what_they_cannot_draw() -> None:
    made = make(n=2)
    with pytest.raises(InputError, match=r"images must be \(n, c, h, w\) with n = 2"):
        made.figure(torch.zeros(1, 3, 4, 5))
    for pixels in (made.inputs, torch.ones(2, 3, 4, 5).byte(), torch.full((2, 3, 4, 5), float("nan"))):
        with pytest.raises(
            InputError, match=r"images must hold pixels from 0 to 1, but are torch.*Preprocess\.restore"
        ):
            made.figure(pixels)
    with pytest.raises(InputError, match="must hold at least one image to be drawn"):
        made[2:].figure()


def test_showing_draws_into_a_window_of_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().axes)))
    try:
        make(n=1).show(parts=False)
    finally:
        plt.close("all")
    assert shown == [3 + 1]


def test_importing_it_does_not_import_matplotlib() -> None:
    code = "import sys, backlit.attribution; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_map_of_one_channel_goes_with_images_of_three() -> None:
    n = torch.zeros(2, dtype=torch.int64)
    one = Attribution(torch.rand(2, 1, 4, 5), n, n.float(), inputs=torch.rand(2, 3, 4, 5))
    assert one[1].inputs is not None
    assert one[1].inputs.shape == (1, 3, 4, 5)
    assert one.heatmap().shape == (2, 1, 4, 5)
    assert len(Attribution.cat([one, one])) == 4
    assert len(one.figure().axes) > 2
