"""The shared networks on real images: loaded as a user would load them, as accurate as they should be."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from backlit.data import load_batch
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
    parquet = pytest.importorskip("pyarrow.parquet", reason="CIFAR-10 is stored as parquet: pip install pyarrow")
    table = parquet.read_table(SHARED / "data/cifar10/test.parquet").slice(0, 200)
    model = load_model("cifar_resnet20", weights=SHARED / "models/resnet20-cifar10.safetensors")
    pictures = [Image.open(io.BytesIO(entry["bytes"])) for entry in table.column("image").to_pylist()]
    with torch.no_grad():
        found = model.network(model.preprocess.batch(pictures)).argmax(1)
    accuracy = (found == torch.tensor(table.column("label").to_pylist())).float().mean().item()
    assert accuracy >= 0.85  # 91.7 % is expected


def test_cifar_state_fits() -> None:
    model = load_model("cifar_resnet20", weights=SHARED / "models/resnet20-cifar10.safetensors")
    assert model.network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
