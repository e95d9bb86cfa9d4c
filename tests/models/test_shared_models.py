"""The shared networks on real images: loaded as a user would load them, as accurate as they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from backlit.data import CIFAR10, load_batch, load_examples
from backlit.models import LoadedModel, load_model

SHARED = Path(os.environ.get("BACKLIT_SHARED", Path(__file__).parents[2] / ".." / "shared"))
IMAGES = 60

pytestmark = pytest.mark.skipif(
    not (SHARED / "models").is_dir(), reason=f"no shared networks at {SHARED} (set BACKLIT_SHARED)"
)


def _correct(model: LoadedModel, folder: str) -> int:
    """Count the right answers on IMAGES images, spread over the classes."""
    index = {entry["wnid"]: entry["index"] for entry in json.loads((SHARED / "data/imagenet_classes.json").read_text())}
    files = sorted((SHARED / "data" / folder).glob("*/*"))
    files = files[:: len(files) // IMAGES][:IMAGES]
    assert len(files) == IMAGES
    with torch.no_grad():
        found = model.network(load_batch(files, model.preprocess)).argmax(1).tolist()
    return sum(answer == index[file.parent.name] for answer, file in zip(found, files, strict=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [("squeezenet1_0", {"size": 227}), ("mobilenet_v2", {"size": 225, "mean": 0.5, "std": 0.5})],
)
@pytest.mark.parametrize("folder", ["ilsvrc2012-val", "imagenet-sample"])
def test_imagenet(name: str, options: dict, folder: str) -> None:
    pytest.importorskip("torchvision")
    model = load_model(name, weights=SHARED / "models" / f"{name}-imagenet.safetensors", **options)
    assert _correct(model, folder) >= 0.5 * IMAGES  # 63 to 81 % are expected


def test_cifar() -> None:
    data = CIFAR10(SHARED / "data" / "cifar10")
    model = load_model("cifar_resnet20", weights=SHARED / "models/resnet20-cifar10.safetensors")
    examples = load_examples(data[:200], model.preprocess)
    with torch.no_grad():
        found = model.network(examples.inputs).argmax(1)
    assert (found == examples.target).float().mean() >= 0.85  # 91.7 % is expected


def test_cifar_state_fits() -> None:
    model = load_model("cifar_resnet20", weights=SHARED / "models/resnet20-cifar10.safetensors")
    assert model.network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
