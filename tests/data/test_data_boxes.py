from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from backlit._errors import FileError, InputError
from backlit.data import VOC_CLASSES, ImageFolder, Sample, load_examples, placed, resized, select, single_small_object
from backlit.models import Preprocess

SIDES = st.integers(1, 90)


@st.composite
def _preprocess(draw: st.DrawFn) -> Preprocess:
    return Preprocess(
        size=(draw(st.integers(4, 60)), draw(st.integers(4, 60))),
        mean=(0.0,),
        std=(1.0,),
        channels=1,
        resize=draw(st.none() | st.integers(4, 80)),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic"])),
        crop=draw(st.sampled_from(["center", "stretch"])),
    )


@settings(max_examples=500, deadline=None)
@given(st.data(), _preprocess(), SIDES, SIDES, st.booleans())
def test_box_lies_where_the_rectangle_lies(data, preprocess, height: int, width: int, upright: bool) -> None:
    """A white bar through the whole of a black picture has its edges within a pixel of its box's."""
    across = width if upright else height
    scaled = placed(preprocess, height, width)[int(upright)]
    # Two pixels once scaled: less blurs away, and none of it need be white.
    least = -(-2 * across // scaled)
    assume(least <= across)
    start = data.draw(st.integers(0, across - least))
    end = data.draw(st.integers(start + least, across))
    picture = np.zeros((height, width), np.uint8)
    picture[(slice(None), slice(start, end)) if upright else slice(start, end)] = 255
    box = [start, 0, end, height] if upright else [0, start, width, end]
    found = resized(torch.tensor([box], dtype=torch.float32), preprocess, height, width)

    values = preprocess(picture)[0]
    line = values[0] if upright else values[:, 0]
    centres = torch.arange(len(line)) + 0.5
    if not len(found):
        assert not bool((line[1:-1] > 0.5).any())
        return
    first, last = found[0, [0, 2] if upright else [1, 3]]
    decided = ((centres - first).abs() >= 1) & ((centres - last).abs() >= 1)
    within = (centres > first) & (centres < last)
    assert torch.equal((line > 0.5)[decided], within[decided])
    other = found[0, [1, 3] if upright else [0, 2]]
    assert other.tolist() == [0, preprocess.size[0 if upright else 1]]


@settings(max_examples=300, deadline=None)
@given(_preprocess(), SIDES, SIDES)
def test_whole_picture_covers_the_whole_crop(preprocess: Preprocess, height: int, width: int) -> None:
    found = resized(torch.tensor([[0.0, 0, width, height]]), preprocess, height, width)
    assert found.tolist() == [[0, 0, preprocess.size[1], preprocess.size[0]]]


@settings(max_examples=300, deadline=None)
@given(_preprocess(), SIDES, SIDES)
def test_placed_agrees_with_pixels(preprocess: Preprocess, height: int, width: int) -> None:
    """A ramp along a side tells the scale and the crop of the pixels, for every side and rounding."""
    scaled_height, scaled_width, top, left = placed(preprocess, height, width)
    out_height, out_width = preprocess.size
    for side, scaled, start, length, axis in (
        (height, scaled_height, top, out_height, 0),
        (width, scaled_width, left, out_width, 1),
    ):
        ramp = np.linspace(0, 1, side, dtype=np.float32)
        picture = np.ascontiguousarray(np.broadcast_to(ramp[:, None] if axis == 0 else ramp, (height, width)))
        filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        expected = np.asarray(Image.fromarray(ramp[None]).resize((scaled, 1), filters[preprocess.interpolation]))[0]
        values = preprocess(picture)[0]
        line = values[:, 0] if axis == 0 else values[0]
        assert np.allclose(line, expected[start : start + length].clip(0, 1), atol=1e-5)


class TestByHand:
    PREPROCESS = Preprocess(size=(8, 8), resize=10)

    def test_scaled_and_cropped(self) -> None:
        # 40 x 20 pixels: scaled by a half to 20 x 10, of which columns 6 to 14 and rows 1 to 9 are kept.
        boxes = torch.tensor([[16.0, 6, 24, 10], [0, 0, 40, 20], [0, 0, 13, 20]])
        assert resized(boxes, self.PREPROCESS, 20, 40).tolist() == [[2, 2, 6, 4], [0, 0, 8, 8], [0, 0, 0.5, 8]]

    def test_no_area_left(self) -> None:
        boxes = torch.tensor([[0.0, 0, 12, 20], [0, 0, 40, 2], [28, 0, 40, 20], [0, 18, 40, 20]])
        assert resized(boxes, self.PREPROCESS, 20, 40).shape == (0, 4)

    def test_stretched(self) -> None:
        stretched = Preprocess(size=(8, 8), crop="stretch", resize=10)
        assert resized(torch.tensor([[10.0, 5, 20, 20]]), stretched, 20, 40).tolist() == [[2, 2, 4, 8]]

    def test_no_boxes(self) -> None:
        assert resized(torch.zeros(0, 4), self.PREPROCESS, 20, 40).shape == (0, 4)


def _sample(name: str, *boxes: tuple[float, ...], target: int = 1, labels: tuple[int, ...] | None = None) -> Sample:
    picture = np.full((20, 40, 3), len(name), np.uint8)
    return Sample(picture, name, target, labels, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))


class TestLoadExamples:
    PREPROCESS = Preprocess(size=(8, 8), resize=10)

    def test_inputs_targets_and_names(self) -> None:
        samples = [_sample("a"), _sample("bb", target=3)]
        found = load_examples(samples, self.PREPROCESS)
        assert torch.equal(found.inputs, self.PREPROCESS.batch(s.image for s in samples))
        assert (found.target.tolist(), tuple(found.names)) == ([1, 3], ("a", "bb"))
        assert found.labels is None
        assert found.boxes is None
        assert found.cells is None

    def test_boxes(self) -> None:
        samples = [_sample("a", (16, 6, 24, 10), (0, 0, 12, 20)), _sample("b", (0, 0, 12, 20)), _sample("c")]
        found = load_examples(samples, self.PREPROCESS, boxes=True)
        assert [b.tolist() for b in found.boxes] == [[[2, 2, 6, 4]], [], []]
        assert [tuple(b.shape) for b in found.boxes] == [(1, 4), (0, 4), (0, 4)]

    def test_boxes_that_are_not_there(self) -> None:
        with pytest.raises(InputError, match=r"boxes: 'b' has none\. Give the data set its annotations"):
            load_examples([_sample("a"), Sample(np.zeros((4, 4), np.uint8), "b", 0)], self.PREPROCESS, boxes=True)

    def test_labels(self) -> None:
        found = load_examples([_sample("a", labels=(0, 1)), _sample("b", target=2)], self.PREPROCESS, classes=4)
        assert found.labels.tolist() == [[True, True, False, False], [False, False, True, False]]

    def test_labels_of_unknown_number(self) -> None:
        with pytest.raises(InputError, match="classes must be the number of the network's classes"):
            load_examples([_sample("a", labels=(0, 1))], self.PREPROCESS)

    def test_labels_of_a_data_set(self) -> None:
        class Two(list):
            class_names = VOC_CLASSES

        samples = select(Two([_sample("a", labels=(0, 1))]), [0])
        assert load_examples(samples, self.PREPROCESS).labels.shape == (1, 20)

    @pytest.mark.parametrize("sample", [_sample("a", target=10), _sample("a", labels=(1, 10))], ids=["target", "label"])
    def test_class_that_the_model_lacks(self, sample) -> None:
        with pytest.raises(InputError, match=r"'a' has class index 10 but the model has 10 classes, 0 to 9"):
            load_examples([sample], self.PREPROCESS, classes=10)

    def test_picture_that_cannot_be_used_is_named(self) -> None:
        with pytest.raises(InputError, match=r"samples: 'a' cannot be used: image: pixels of type int64"):
            load_examples([Sample(np.zeros((4, 4), np.int64), "a", 0)], self.PREPROCESS)

    def test_file_that_cannot_be_read_is_named(self, tmp_path) -> None:
        (tmp_path / "cat").mkdir()
        (tmp_path / "cat" / "a.png").write_text("words")
        with pytest.raises(FileError, match=r"a\.png' is not an image"):
            load_examples(ImageFolder(tmp_path), self.PREPROCESS)

    def test_none(self) -> None:
        with pytest.raises(InputError, match="samples must be at least one"):
            load_examples([], self.PREPROCESS)


class TestSingleSmallObject:
    # Of 40 x 20 pixels: a half, a bit less, two small ones, none.
    SAMPLES = (
        _sample("half", (0, 0, 20, 20)),
        _sample("less", (12, 2, 28, 17), target=2, labels=(2, 3)),
        _sample("two", (12, 2, 14, 4), (16, 4, 18, 6)),
        _sample("none"),
    )

    def test_samples(self) -> None:
        assert [s.name for s in single_small_object(self.SAMPLES, 0.5)] == ["less"]
        assert [s.name for s in single_small_object(self.SAMPLES, 0.51)] == ["half", "less"]

    def test_examples(self) -> None:
        # The picture is scaled to 16 x 8; "less" then holds the centres of 6 of 16 columns and 6 of 8 rows.
        found = load_examples(self.SAMPLES, Preprocess(size=(8, 16), resize=8), boxes=True, classes=5)
        kept = single_small_object(found, 0.5)
        assert (tuple(kept.names), kept.target.tolist()) == (("less",), [2])
        assert torch.equal(kept.inputs, found.inputs[1:2])
        assert torch.equal(kept.labels, found.labels[1:2])
        assert torch.equal(kept.boxes[0], found.boxes[1])

    def test_none_fits(self) -> None:
        with pytest.raises(InputError, match="none of the 4 images has one box only that covers less than 1%"):
            single_small_object(self.SAMPLES, 0.01)
        found = load_examples(self.SAMPLES, Preprocess(size=(10, 20)), boxes=True, classes=5)
        with pytest.raises(InputError, match="none of the 4 images"):
            single_small_object(found, 0.01)

    def test_without_boxes(self) -> None:
        with pytest.raises(InputError, match="samples must have boxes, but 'a' has none"):
            single_small_object([Sample(np.zeros((4, 4), np.uint8), "a", 0)], 0.5)
        with pytest.raises(InputError, match=r"these examples have none\. Load them with boxes=True"):
            single_small_object(load_examples(self.SAMPLES, Preprocess(size=(4, 4)), classes=5), 0.5)

    @pytest.mark.parametrize("share", [0, 1.1, float("nan")])
    def test_share(self, share) -> None:
        with pytest.raises(InputError, match="share must be above 0 and at most 1"):
            single_small_object(self.SAMPLES, share)
