"""Which pixels go, derived a second time, image by image and pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from backlit._errors import FileError
from backlit._store import Kind, Store, claim
from backlit.attribution import Attribution
from backlit.bench.roar import ranks as roar_ranks
from backlit.bench.roar.ranks import RankStore, image_ranks, replace_first
from backlit.bench.roar.setup import removed_pixels
from backlit.metrics.examples import Examples


def maps(n: int = 9, p: int = 40) -> Tensor:
    """Half of the images with many ties, in values of both signs."""
    generator = torch.Generator().manual_seed(3)
    heat = torch.randn(n, p, generator=generator, dtype=torch.float64)
    heat[::2] = heat[::2].round()
    heat[4] = 0.5
    return heat


@pytest.mark.parametrize("ascending", [False, True])
def test_ranks_are_an_order_of_the_values(ascending: bool) -> None:
    heat = maps()
    ranks = image_ranks(heat, 1, ascending=ascending)
    for values, places in zip(heat.numpy(), ranks.numpy(), strict=True):
        assert sorted(places) == list(range(len(values)))
        ordered = np.empty_like(values)
        ordered[places] = values
        steps = np.diff(ordered)
        assert (steps >= 0).all() if ascending else (steps <= 0).all()


def test_equal_pixels_go_in_an_order_of_each_image() -> None:
    constant = torch.zeros(2000, 40)
    first, second = image_ranks(constant, 1), image_ranks(constant, 2)
    assert torch.equal(first, image_ranks(constant, 1))
    assert not torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) == 2000
    # Each place is as likely for each pixel: 2000 / 40 = 50 expected, standard deviation 7.
    counts = torch.stack([(first == place).sum(0) for place in range(40)])
    assert 15 < int(counts.min()) <= int(counts.max()) < 90


@pytest.mark.parametrize("fraction", [0.1, 0.44, 0.9])
def test_the_modified_images_pixel_by_pixel(fraction: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(9, 3, 5, 8, generator=generator, dtype=torch.float64)
    heat, value = maps(), torch.tensor([0.25, -1.0, 3.0], dtype=torch.float64)
    count = removed_pixels(fraction, images)
    assert count == round(fraction * 40)
    found = replace_first(images, image_ranks(heat, 7).to(torch.uint16), count, value)
    for image, modified, values in zip(images.numpy(), found.numpy(), heat.numpy(), strict=True):
        gone = (modified == value.numpy()[:, None, None]).all(0).reshape(-1)
        assert gone.sum() == count
        limit = sorted(values, reverse=True)[count - 1]
        for pixel, row, column in ((i, *divmod(i, 8)) for i in range(40)):
            if values[pixel] > limit:
                assert gone[pixel]
            if values[pixel] < limit:
                assert not gone[pixel]
            if not gone[pixel]:
                assert (modified[:, row, column] == image[:, row, column]).all()


def test_places_beyond_32767_keep_their_order() -> None:
    heat = torch.arange(2**16, dtype=torch.float64)[None]
    ranks = image_ranks(heat, 0).to(torch.uint16)
    images = torch.ones(1, 1, 256, 256)
    found = replace_first(images, ranks, 2**16 - 10, torch.zeros(1)).flatten()
    assert found[:10].eq(1).all()
    assert found[10:].eq(0).all()


def test_the_images_given_are_not_changed() -> None:
    images = torch.ones(2, 1, 5, 8)
    replace_first(images, image_ranks(torch.rand(2, 40), 0).to(torch.uint16), 20, torch.zeros(1))
    assert images.eq(1).all()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Store]:
    with claim(tmp_path, Kind("trial"), {}) as store:
        yield store


@pytest.fixture
def data() -> Examples:
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(11, 2, 4, 6, generator=generator), torch.zeros(11, dtype=torch.int64))


@pytest.mark.parametrize("reduce", ["sum", "abs", "max", "norm"])
def test_stored_ranks_are_those_of_the_reduced_maps(
    data: Examples, folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduce: str
) -> None:
    monkeypatch.setattr(roar_ranks, "BLOCK", 4)
    store = RankStore(folder, reduce, False, 0)  # type: ignore[arg-type]
    seen: list[int] = []
    store.make("m", {}, lambda x, t: Attribution(x, t, t.float()), "train", data, seen.append)
    assert seen == [4, 8, 11]
    assert len(list((tmp_path / "ranks" / "m").iterdir())) == 3
    x = data.inputs.double().numpy()
    slow = {"sum": x.sum(1), "abs": abs(x).sum(1), "max": x.max(1), "norm": np.sqrt((x**2).sum(1))}[reduce]
    expected = (-slow.reshape(11, -1)).argsort(1).argsort(1)
    found = store.load("m", "train", data)
    assert found.dtype == torch.uint16
    assert (found.int().numpy() == expected).all()


def test_an_interruption_costs_one_block(
    data: Examples, folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roar_ranks, "BLOCK", 4)
    store, explained = RankStore(folder, "sum", False, 0), []

    def explain(x: Tensor, target: Tensor) -> Tensor:
        explained.append(len(x))
        if len(explained) == 2:
            raise KeyboardInterrupt
        return torch.zeros_like(x)

    with pytest.raises(KeyboardInterrupt):
        store.make("m", {}, explain, "train", data, lambda done: None)
    assert store.missing("m", {}, "train", data)
    store.make("m", {}, explain, "train", data, lambda done: None)
    assert explained == [4, 4, 4, 3]
    assert not store.missing("m", {}, "train", data)
    assert store.constant("m", "train", data) == 11
    ranks = store.load("m", "train", data)
    assert len({tuple(row) for row in ranks.tolist()}) == 11  # blocks do not repeat each other's draws


def test_damaged_ranks_are_set_aside_and_made_again(data: Examples, folder: Store, tmp_path: Path) -> None:
    store = RankStore(folder, "sum", False, 0)
    store.make("m", {}, lambda x, t: x, "test", data, lambda done: None)
    before = store.load("m", "test", data)
    (path,) = (tmp_path / "ranks" / "m").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    with pytest.warns(UserWarning, match=r"test-000000\.safetensors is not as it was written"):
        assert store.missing("m", {}, "test", data)
    with pytest.raises(FileError, match=r"was lost or changed while it was used"):
        store.load("m", "test", data)
    store.make("m", {}, lambda x, t: x, "test", data, lambda done: None)
    assert torch.equal(store.load("m", "test", data), before)
