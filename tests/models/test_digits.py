from __future__ import annotations

import pytest
import torch
from torch import nn

from backlit._errors import FileError, InputError
from backlit.models import load_model
from backlit.models.digits import DATA, WEIGHTS, DigitsNet, demo_scenes, digits_images, two_digit_scenes


@pytest.fixture(scope="module", name="model")
def _model():
    return load_model("digits")


def _logits(model, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.network(model.preprocess.batch(images))


def _both_in_top_2(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.topk(2).indices.sort().values == labels.sort().values).all(1)


def test_files_are_small() -> None:
    assert WEIGHTS.stat().st_size < 500_000
    assert DATA.stat().st_size < 60_000


def test_held_out_accuracy(model) -> None:
    images, labels = digits_images()
    assert images.shape == (360, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert labels.bincount().min() >= 30  # stratified: every class can be measured
    accuracy = (_logits(model, images).argmax(1) == labels).float().mean().item()
    assert accuracy >= 0.97


def test_scenes_show_both_classes(model) -> None:
    scenes = two_digit_scenes(300, seed=7)
    both = _both_in_top_2(_logits(model, scenes.images), scenes.labels).float().mean().item()
    assert both >= 0.93


def test_scene_holds_the_two_digits_it_names() -> None:
    images, labels = two_digit_scenes(40, seed=3)
    assert images.shape == (40, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.shape == (40, 2)
    assert (labels[:, 0] != labels[:, 1]).all()
    left_right = (images[:, :, :16].amax((1, 2)) > 200) & (images[:, :, 16:].amax((1, 2)) > 200)
    upper_lower = (images[:, :16].amax((1, 2)) > 200) & (images[:, 16:].amax((1, 2)) > 200)
    assert (left_right | upper_lower).all()


def test_scene_labels_are_in_reading_order(model) -> None:
    images, labels = two_digit_scenes(100, seed=5)
    beside = (images[:, :, :16].sum((1, 2)) > 0) & (images[:, 15:17, :].sum((1, 2)) > 0)
    first = images.clone()
    upright = torch.tensor([bool((image[:16].sum() > 0) and (image[:, 15:17].sum() > 0)) for image in images])
    side = beside & ~upright
    assert side.sum() > 5
    first[:, :, 16:] = 0  # only the left half stays
    right = _logits(model, first[side]).argmax(1) == labels[side, 0]
    assert right.float().mean() > 0.8


def test_seed_decides_the_scenes() -> None:
    first, again, other = two_digit_scenes(5, seed=1), two_digit_scenes(5, seed=1), two_digit_scenes(5, seed=2)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_packed_scenes(model) -> None:
    scenes = demo_scenes()
    assert scenes.images.shape == (12, 32, 32)
    assert _both_in_top_2(_logits(model, scenes.images), scenes.labels).sum() >= 11
    scenes.images.zero_()
    assert demo_scenes().images.any()  # the caller's copy was its own


def test_needs_a_scene() -> None:
    with pytest.raises(InputError, match="n: must be at least 1 scene, found 0"):
        two_digit_scenes(0)


def test_has_what_the_methods_should_meet() -> None:
    network = DigitsNet()
    modules = list(network.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in modules)
    assert any(isinstance(m, nn.MaxPool2d) for m in modules)
    assert any(isinstance(m, nn.ReLU) and m.inplace for m in modules)
    assert all(m.bias is not None for m in modules if isinstance(m, nn.Conv2d))


def test_loads_as_a_model(model) -> None:
    assert model.name == "digits"
    assert model.class_names == tuple("0123456789")
    assert model.preprocess.size == (32, 32)
    assert model.preprocess.channels == 1
    assert not model.network.training
    assert all(p.requires_grad for p in model.network.parameters())


def test_takes_another_state(tmp_path, model) -> None:
    random = load_model("digits", weights="random")
    path = tmp_path / "random.safetensors"
    random.save(path)
    again = load_model("digits", weights=path)
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(again.network(x), random.network(x))
    assert not torch.equal(again.network(x), model.network(x))


def test_class_names_must_fit_the_state(tmp_path) -> None:
    from dataclasses import replace

    path = tmp_path / "named.safetensors"
    replace(load_model("digits"), class_names=("a", "b")).save(path)
    with pytest.raises(FileError, match="names 2 classes, but digits has 10 outputs"):
        load_model("digits", weights=path)
