"""MIP-IN's readings: the printed options, where the map is rectified, where the part begins, and what is another fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _fit_networks import cnn, drawn, mlp
from torch import Tensor, nn
from torch.nn import functional as F

from _networks import build
from backlit import MIPIN, FileError, InputError
from backlit.inverse import FitStep, Fitted


def test_the_papers_reading_is_its_printed_options() -> None:
    net, x = cnn(), drawn(60, 2, 6, 6)
    options = {"products": "sums", "ridge_at": "dense", "constant": False}
    paper, same = MIPIN.fit(net, [x], reading="paper"), MIPIN.fit(net, [x], **options)
    for name, layer in paper.layers.items():
        for key, tensor in layer.items():
            assert torch.equal(tensor, same.layers[name][key])
    assert {k: paper.facts[k] for k in options} == options
    mixed = MIPIN.fit(net, [x], reading="paper", constant=True)
    assert mixed.facts["constant"] is True
    assert mixed.facts["products"] == "sums"


def test_a_network_without_convolutions_has_the_dense_layers_of_the_reading_alone() -> None:
    net, x = mlp(), drawn(60, 3, 2, 2)
    paper, sums = MIPIN.fit(net, [x], reading="paper"), MIPIN.fit(net, [x], products="sums")
    for name, layer in paper.layers.items():
        assert all(torch.equal(tensor, sums.layers[name][key]) for key, tensor in layer.items())


def test_the_mean_over_channels_is_rectified_after_it_is_enlarged() -> None:
    net, x = build("plain", "F.relu"), drawn(30, 2, 8, 8)
    built, paper = (MIPIN.fit(net, [x], start="features", reading=reading) for reading in ("means", "paper"))
    for fitted, rectify in ((built, "mean"), (paper, None)):
        found = MIPIN(net, fitted=fitted, rectify=rectify)
        _, attribution = found.signals(x[:3], 1)
        mean = F.interpolate(attribution.mean(1, keepdim=True), (8, 8), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found(x[:3], 1).values, mean.relu())
    each = MIPIN(net, fitted=paper, rectify="each")(x[:3], 1).values
    assert not torch.allclose(each, MIPIN(net, fitted=paper)(x[:3], 1).values)
    with pytest.raises(InputError, match="rectify must be 'each', 'mean', or None, but is 'all'"):
        MIPIN(net, fitted=paper, rectify="all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reading": "printed"}, "reading must be 'means' or 'paper', but is 'printed'"),
        ({"products": "sum"}, "products must be 'means' or 'sums', but is 'sum'"),
        ({"ridge_at": "conv"}, "ridge_at must be 'all' or 'dense', but is 'conv'"),
        ({"constant": 0}, "constant must be True or False, but is 0"),
    ],
    ids=str,
)
def test_readings_are_checked(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MIPIN.fit(mlp(), [drawn(20, 3, 2, 2)], **options)


def test_another_reading_is_another_fit(tmp_path: Path) -> None:
    net, x = mlp(), drawn(60, 3, 2, 2)

    def stop(step: FitStep) -> None:
        if step.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MIPIN.fit(net, [x], out=tmp_path / "a.mip_in", progress=stop)
    with pytest.raises(FileError, match="another fit"):
        MIPIN.fit(net, [x], out=tmp_path / "a.mip_in", reading="paper")
    assert MIPIN.fit(net, [x], out=tmp_path / "a.mip_in").facts["reading"] == "means"


class VGGLike(nn.Module):
    """Features that end in a pool which leaves several positions, as VGG's do, and a pool to one in front of the head."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), last)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def test_one_word_for_where_the_part_begins() -> None:
    x = drawn(40, 2, 8, 8)
    net = VGGLike(nn.MaxPool2d(2)).double().eval()
    starts = {
        s: MIPIN.fit(net, [x], start=s).facts["start"] for s in (None, "features", "pooled", "features.2", "features.1")
    }
    assert starts[None] == starts["features"] == starts["features.1"] == "relu[0]"
    assert starts["pooled"] == starts["features.2"] == "max_pool2d[0]"
    bare = VGGLike(nn.Identity()).double().eval()  # no pool behind the last feature map: it begins at that
    assert MIPIN.fit(bare, [x], start="pooled").facts["start"] == "relu[0]"
    one = VGGLike(nn.MaxPool2d(8)).double().eval()  # a pool that leaves one position is no map
    assert MIPIN.fit(one, [x], start="pooled").facts["start"] == "relu[0]"


@pytest.mark.parametrize(
    ("name", "start", "idle"),
    [
        ("mlp", "input", ["ridge_at", "constant", "rectify"]),
        ("cnn", "input", ["rectify"]),
        ("cnn", "features", ["ridge_at", "constant"]),
    ],
)
def test_readings_that_do_not_fit_a_network_are_named(name: str, start: str, idle: list[str]) -> None:
    net, x = {"mlp": (mlp(), drawn(60, 3, 2, 2)), "cnn": (cnn(), drawn(60, 2, 6, 6))}[name]
    fitted = MIPIN.fit(net, [x], start=start, reading="paper")
    assert fitted.facts["without_effect"] == idle
    found = MIPIN(net, fitted=fitted)(x[:2], 1).provenance
    assert (found["reading"], found["without_effect"]) == ("paper", idle)


def test_a_file_from_before_the_readings_is_read_as_it_was_built(tmp_path: Path) -> None:
    net, x = cnn(), drawn(60, 2, 6, 6)
    new = MIPIN.fit(net, [x], start="features")
    later = {"asked", "reading", "products", "ridge_at", "constant", "without_effect"}
    facts = {name: value for name, value in new.facts.items() if name not in later}
    replace(new, facts=facts).save(tmp_path / "old.mip_in")
    old = MIPIN(net, fitted=Fitted.load(tmp_path / "old.mip_in"))(x[:2], 1)
    assert torch.equal(old.values, MIPIN(net, fitted=new)(x[:2], 1).values)
    assert (old.provenance["reading"], old.provenance["without_effect"]) == ("means", [])
