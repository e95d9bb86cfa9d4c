from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from PIL import Image

from backlit._errors import InputError
from backlit.models import Preprocess, PreprocessOptions
from backlit.models.preprocess import Crop

RNG = np.random.default_rng(0)
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def _picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(70, 93), (93, 70), (64, 64), (31, 200), (57, 48)])
def test_equals_torchvisions_preset(shape: tuple[int, int], interpolation: str) -> None:
    presets = pytest.importorskip("torchvision.transforms._presets")
    modes = pytest.importorskip("torchvision.transforms.functional").InterpolationMode
    theirs = presets.ImageClassification(crop_size=48, resize_size=57, interpolation=modes(interpolation))
    ours = Preprocess(size=(48, 48), resize=57, interpolation=interpolation)  # type: ignore[arg-type]
    picture = _picture(*shape)
    assert torch.equal(ours(picture), theirs(picture))


def test_normalises_by_channel_and_restores() -> None:
    preprocess = Preprocess(size=(4, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    picture = _picture(4, 4)
    x = preprocess(picture)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    assert x.dtype == torch.float32
    expected = torch.stack([(pixels[0] - 0.1) / 0.5, (pixels[1] - 0.2) / 0.25, (pixels[2] - 0.3) / 2])
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(preprocess.restore(x), pixels)
    torch.testing.assert_close(preprocess.restore(x[None].double()), pixels[None].double())


def test_restore_stays_displayable() -> None:
    restored = Preprocess(size=(2, 2)).restore(torch.full((1, 3, 2, 2), 50.0, requires_grad=True))
    assert restored.max() == 1
    assert not restored.requires_grad


def test_restore_refuses_other_channels() -> None:
    with pytest.raises(InputError, match=r"x: must be \(\.\.\., 3, h, w\), found shape \(1, 4, 4\)"):
        Preprocess(size=(4, 4)).restore(torch.zeros(1, 4, 4))


def test_without_resize_the_picture_just_covers_the_size() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # the centre square
    x = Preprocess(size=(10, 10), **PLAIN)(wide)
    assert x.shape == (3, 10, 10)
    assert x[:, :, 2:8].min() == 1
    tall = Preprocess(size=(7, 31), **PLAIN)(_picture(90, 40))
    assert tall.shape == (3, 7, 31)


def test_same_size_is_left_alone() -> None:
    picture = _picture(9, 9)
    x = Preprocess(size=(9, 9), **PLAIN)(picture)
    assert np.array_equal((x * 255).round().numpy().astype(np.uint8), np.asarray(picture).transpose(2, 0, 1))


def test_small_pictures_are_scaled_up_not_padded() -> None:
    x = Preprocess(size=(20, 30), resize=20, **PLAIN)(np.full((4, 4), 255, np.uint8))
    assert x.shape == (3, 20, 30)
    assert x.min() == 1


def test_stretch_cuts_nothing() -> None:
    wide = np.zeros((20, 60), np.uint8)
    wide[:, :15] = 255  # beyond the centre square
    x = Preprocess(size=(10, 10), crop="stretch", **PLAIN)(wide)
    assert x[0, :, 0].min() == 1
    assert x[0, :, -1].max() == 0


def test_arrays_tensors_and_pictures_agree() -> None:
    preprocess = Preprocess(size=(8, 8), resize=10)
    picture = _picture(30, 20)
    array = np.array(picture)
    expected = preprocess(picture)
    assert torch.equal(preprocess(array), expected)
    assert torch.equal(preprocess(torch.from_numpy(array).permute(2, 0, 1)), expected)
    # Floats are not rounded to 8 bits between the steps: equal to the rounding of one.
    torch.testing.assert_close(preprocess(array.astype(np.float32) / 255), expected, atol=0.02, rtol=0)


def test_floats_are_not_quantised() -> None:
    x = Preprocess(size=(2, 2), **PLAIN)(np.full((2, 2), 0.1234567, np.float32))
    assert x[0, 0, 0].item() == pytest.approx(0.1234567, abs=1e-8)


def test_float_overshoot_is_clipped_as_on_8_bits() -> None:
    step = np.zeros((8, 8), np.float32)
    step[:, 4:] = 1
    x = Preprocess(size=(16, 16), interpolation="bicubic", **PLAIN)(step)
    assert x.min() == 0
    assert x.max() == 1


def test_grey_network() -> None:
    preprocess = Preprocess(size=(3, 3), mean=(0.0,), std=(1.0,), channels=1)
    red = np.zeros((3, 3, 3), np.uint8)
    red[:, :, 0] = 255
    assert preprocess(red).shape == (1, 3, 3)
    torch.testing.assert_close(preprocess(red), torch.full((1, 3, 3), 76 / 255))
    torch.testing.assert_close(preprocess(red / 255.0), torch.full((1, 3, 3), 0.299))
    grey = RNG.integers(0, 256, (3, 3), dtype=np.uint8)
    assert torch.equal(preprocess(Image.fromarray(grey)), torch.from_numpy(grey)[None] / 255)


def test_deep_and_transparent_pictures_are_converted() -> None:
    preprocess = Preprocess(size=(1, 1), **PLAIN)
    assert preprocess(Image.frombytes("I;16", (1, 1), (32768).to_bytes(2, "little")))[0].item() == pytest.approx(
        128 / 255
    )
    assert preprocess(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).min() == 1


def test_batch() -> None:
    batch = Preprocess(size=(4, 6)).batch([_picture(10, 10), _picture(20, 7)])
    assert batch.shape == (2, 3, 4, 6)
    with pytest.raises(InputError, match="images: need at least one, found none"):
        Preprocess(size=(4, 6)).batch([])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"size": (0, 4)}, r"size: must be two positive numbers of pixels \(height, width\), found \(0, 4\)"),
        ({"size": (4, 4, 4)}, "size: must be two positive"),
        ({"size": (4.0, 4)}, "size: must be two positive"),
        ({"resize": -1}, "resize: must be a positive number of pixels or None, found -1"),
        ({"channels": 2}, "channels: must be 3 .RGB. or 1 .grey., found 2"),
        ({"mean": (0.5,)}, r"mean: must be 3 finite number\(s\), one a channel, found \(0.5,\)"),
        ({"std": (1.0, 1.0, float("nan"))}, "std: must be 3 finite"),
        ({"std": (1.0, 0.0, 1.0)}, r"std: must be positive, found \(1.0, 0.0, 1.0\)"),
        ({"interpolation": "cubic"}, "interpolation: must be one of bilinear, bicubic, found 'cubic'"),
        ({"mean": ("a", "b", "c")}, "mean: must be 3 finite"),
        ({"mean": (10**400, 0, 0)}, "mean: must be 3 finite"),
        ({"size": (8192, 8193)}, "size: must be at most 67108864 pixels .8192 x 8192., found 8192 x 8193"),
        ({"crop": "left"}, "crop: must be one of center, stretch, found 'left'"),
    ],
)
def test_refuses_unusable_fields(values: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Preprocess(**{"size": (4, 4), **values})


class TestOptions:
    BASE = Preprocess(size=(224, 224), resize=256)

    def test_nothing_changes_nothing(self) -> None:
        assert PreprocessOptions().apply(self.BASE) == self.BASE

    def test_one_number_stands_for_all(self) -> None:
        changed = PreprocessOptions(size=225, mean=0.5, std=0.25).apply(self.BASE)
        assert changed == Preprocess(size=(225, 225), mean=(0.5,) * 3, std=(0.25,) * 3)

    def test_new_size_drops_the_old_resize_unless_given(self) -> None:
        assert PreprocessOptions(size=128).apply(self.BASE).resize is None
        assert PreprocessOptions(size=128, resize=140).apply(self.BASE).resize == 140
        assert PreprocessOptions(mean=0.5).apply(self.BASE).resize == 256

    def test_lists_and_channels(self) -> None:
        changed = PreprocessOptions(size=[20, 30], channels=1, mean=0.5, std=[0.5]).apply(self.BASE)
        assert (changed.size, changed.channels, changed.mean, changed.std) == ((20, 30), 1, (0.5,), (0.5,))

    def test_unknown_option(self) -> None:
        with pytest.raises(
            InputError, match=r"sizes: not a preprocessing option; they are size, .*Did you mean 'size'"
        ):
            PreprocessOptions.of(sizes=3)

    def test_no_number(self) -> None:
        with pytest.raises(InputError, match="size: must be a number or a list of 2 numbers, found '224'"):
            PreprocessOptions.of(size="224").apply(self.BASE)


@pytest.mark.parametrize("crop", ["center", "stretch"])
@pytest.mark.parametrize("shape", [(1, 5_000_000), (5_000_000, 1)])
def test_a_thin_picture_is_refused_before_it_is_scaled(shape: tuple[int, int], crop: Crop) -> None:
    """Scaled to cover 64 x 64, it would have 320 million pixels a row; stretched it needs no more than others."""
    picture = Image.new("L", (shape[1], shape[0]), 128)
    preprocess = Preprocess(size=(64, 64), crop=crop)
    if crop == "stretch":
        assert preprocess(picture).shape == (3, 64, 64)
        return
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=f"a picture of {shape[1]} x {shape[0]} pixels would be scaled to"):
        preprocess(picture)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 200_000  # KiB


def test_a_long_picture_within_the_bound_is_cut() -> None:
    columns = np.tile(np.arange(4000, dtype=np.uint16)[None, :] % 256, (4, 1)).astype(np.uint8)
    x = Preprocess(size=(4, 4), mean=(0.0,), std=(1.0,), channels=1)(Image.fromarray(columns))
    assert torch.equal(x[0], torch.from_numpy(columns[:, 1998:2002] / 255).float())


@pytest.mark.parametrize("resize", [10**5, 10**9, 10**15])
def test_a_resize_that_would_fill_the_memory(resize: int) -> None:
    with pytest.raises(InputError, match="would be scaled to"):
        Preprocess(size=(8, 8), resize=resize)(Image.new("L", (10, 10)))
