from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from backlit._errors import InputError
from backlit.data import Dataset, Sample, Subset, select, take

WIDE = Image.new("RGB", (20, 10))


class Numbers(Dataset):
    """n samples, and a list of those that were loaded."""

    def __init__(self, n: int) -> None:
        self.targets, self.class_names, self.loaded = np.arange(n), tuple(map(str, range(n))), []

    def load(self, index: int) -> Sample:
        self.loaded.append(index)
        return Sample(WIDE, f"number {index}", index)


def _boxed(*boxes: list[float]) -> Sample:
    return Sample(WIDE, "wide", 0, boxes=torch.tensor(boxes))


class TestSample:
    @pytest.mark.parametrize(
        "image", [WIDE, np.zeros((10, 20), np.uint8), np.zeros((10, 20, 3), np.uint8), torch.zeros(3, 10, 20)]
    )
    def test_size_is_height_and_width(self, image) -> None:
        assert Sample(image, "a", 0).size == (10, 20)

    def test_true_classes(self) -> None:
        assert Sample(WIDE, "a", 2).true_classes == (2,)
        assert Sample(WIDE, "a", 2, labels=(1, 2)).true_classes == (1, 2)

    def test_labels_without_the_target(self) -> None:
        with pytest.raises(InputError, match=r"labels of 'a' must hold its target, 2, but are \(1, 3\)"):
            Sample(WIDE, "a", 2, labels=(1, 3))

    @pytest.mark.parametrize(("target", "labels"), [(-1, None), (0, (0, -2))])
    def test_negative_class(self, target, labels) -> None:
        with pytest.raises(InputError, match="of 'a' must be class indices from 0"):
            Sample(WIDE, "a", target, labels)

    def test_whole_picture_is_a_box(self) -> None:
        assert _boxed([0.0, 0, 20, 10]).boxes.tolist() == [[0, 0, 20, 10]]

    def test_a_pixel_outside_is_clipped(self) -> None:
        assert _boxed([-1.0, 0, 21, 10.5], [1.5, 2, 3, 4]).boxes.tolist() == [[0, 0, 20, 10], [1.5, 2, 3, 4]]

    @pytest.mark.parametrize("box", [[-1.5, 0, 5, 5], [0, -2, 5, 5], [0, 0, 22, 5], [0, 0, 5, 12], [20, 0, 20.5, 5]])
    def test_further_outside(self, box) -> None:
        with pytest.raises(InputError, match=r"boxes of 'wide' must lie inside the picture of 20 x 10 pixels"):
            _boxed([0.0, 0, 1, 1], box)

    @pytest.mark.parametrize("box", [[5, 0, 5, 5], [0, 5, 5, 5], [9, 0, 5, 5], [0, 0, float("nan"), 5]])
    def test_empty(self, box) -> None:
        with pytest.raises(InputError, match=r"boxes of 'wide' must be x0, y0, x1, y1 .* it is empty"):
            _boxed([0.0, 0, 1, 1], box)

    @pytest.mark.parametrize("boxes", [torch.zeros(4), torch.zeros(2, 5), torch.ones(1, 4, dtype=torch.int64)])
    def test_shape(self, boxes) -> None:
        with pytest.raises(InputError, match=r"boxes of 'a' must be floating point \(b, 4\)"):
            Sample(WIDE, "a", 0, boxes=boxes)

    def test_no_object_has_a_box(self) -> None:
        assert Sample(WIDE, "a", 0, boxes=torch.zeros(0, 4)).boxes.shape == (0, 4)


class TestSequence:
    def test_loads_what_is_asked_for(self) -> None:
        numbers = Numbers(5)
        part = numbers[1:4]
        assert numbers.loaded == []
        assert [part[-1].target, numbers[-5].target] == [3, 0]
        assert numbers.loaded == [3, 0]
        assert (len(numbers), len(part), part.class_names) == (5, 3, numbers.class_names)

    def test_ends(self) -> None:
        with pytest.raises(IndexError):
            Numbers(5)[5]
        assert [sample.target for sample in Numbers(3)] == [0, 1, 2]

    def test_subset_of_a_subset(self) -> None:
        assert [s.target for s in select(Numbers(9)[2:], [3, 0])[1:]] == [2]
        assert [s.target for s in select(Numbers(9), (8, 0, 8))] == [8, 0, 8]
        assert select([Sample(WIDE, "a", 0)], [0]).class_names is None

    @pytest.mark.parametrize("index", [5, -1])
    def test_unknown_index(self, index) -> None:
        with pytest.raises(InputError, match=rf"indices must be from 0 to 4, .* but one is {index}"):
            select(Numbers(5), [0, index])


class TestTake:
    def test_evenly_spaced(self) -> None:
        assert take(Numbers(10), 4).indices == (0, 2, 5, 7)
        assert take(Numbers(3), 3).indices == (0, 1, 2)

    def test_drawn(self) -> None:
        state = np.random.get_state()[1].copy()
        drawn = take(Numbers(100), 90, seed=1).indices
        assert len(set(drawn)) == 90
        assert list(drawn) == sorted(drawn)
        assert drawn == take(Numbers(100), 90, seed=1).indices != take(Numbers(100), 90, seed=2).indices
        assert np.array_equal(np.random.get_state()[1], state)

    @pytest.mark.parametrize("count", [0, 6])
    def test_count(self, count) -> None:
        with pytest.raises(InputError, match=f"count must be from 1 to 5, .* but is {count}"):
            take(Numbers(5), count)

    def test_is_a_subset(self) -> None:
        assert isinstance(take(Numbers(5), 2, seed=0), Subset)
