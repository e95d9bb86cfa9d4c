"""The three networks of MIP-IN's Tables 3 to 5, trained from scratch.

    uv run python benchmarks/mip_in_networks.py mlp_mnist cnn_mnist cnn_cifar10 --weights FOLDER

Needs BACKLIT_SHARED for MNIST and CIFAR-10. The weights go to FOLDER, which is no part of the project.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from _common import SHARED
from backlit.data import CIFAR10, MNIST, arrays
from backlit.models import Preprocess, cifar


@dataclass(frozen=True)
class Network:
    """One of the paper's networks: its layers, its data, and how it is trained here."""

    table: str
    layers: OrderedDict[str, Any]
    data: type[MNIST] | type[CIFAR10]
    preprocess: Preprocess
    epochs: int
    flip: bool = False


_MNIST = Preprocess(size=(28, 28), mean=(0.0,), std=(1.0,), channels=1)  # black stays 0
_R = nn.ReLU


def network(name: str) -> Network:
    """A network by name; dropout stands where the paper leaves it open: before each dense layer but the first."""
    if name == "mlp_mnist":
        layers = OrderedDict(
            flatten=nn.Flatten(), dense1=nn.Linear(784, 512), relu1=_R(), drop1=nn.Dropout(0.2), dense2=nn.Linear(512, 512),
            relu2=_R(), drop2=nn.Dropout(0.2), dense3=nn.Linear(512, 10),
        )  # fmt: skip
        return Network("Table 3", layers, MNIST, _MNIST, 6)
    if name == "cnn_mnist":
        layers = OrderedDict(
            conv1=nn.Conv2d(1, 16, 5), relu1=_R(), conv2=nn.Conv2d(16, 64, 3), relu2=_R(), max1=nn.MaxPool2d(2),
            flatten=nn.Flatten(), dense1=nn.Linear(7744, 512), relu3=_R(), drop=nn.Dropout(0.5), dense2=nn.Linear(512, 10),
        )  # fmt: skip
        return Network("Table 4", layers, MNIST, _MNIST, 3)
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 32, 3), relu1=_R(), conv2=nn.Conv2d(32, 64, 3), relu2=_R(), max1=nn.MaxPool2d(2),
        conv3=nn.Conv2d(64, 64, 3), relu3=_R(), max2=nn.MaxPool2d(2), flatten=nn.Flatten(), dense1=nn.Linear(2304, 512),
        relu4=_R(), drop=nn.Dropout(0.5), dense2=nn.Linear(512, 10),
    )  # fmt: skip
    return Network("Table 5", layers, CIFAR10, cifar.PREPROCESS, 10, flip=True)


def images(spec: Network, *, train: bool) -> tuple[Tensor, Tensor]:
    """All images of a part, normalised, and their classes."""
    folder = SHARED / "data" / ("MNIST" if spec.data is MNIST else "cifar10")
    pictures, labels = arrays(spec.data(folder, train=train))
    pictures = pictures[..., None] if pictures.dim() == 3 else pictures
    mean, std = torch.tensor(spec.preprocess.mean), torch.tensor(spec.preprocess.std)
    return ((pictures.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous(), labels


def train(name: str, seed: int = 0) -> tuple[nn.Sequential, float]:
    """Adam with a one-cycle rate; returns the network in eval mode and its test accuracy."""
    torch.manual_seed(seed)
    spec = network(name)
    model = nn.Sequential(spec.layers)
    x, y = images(spec, train=True)
    steps = spec.epochs * (len(x) // 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(spec.epochs):
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(x)).split(128)[: len(x) // 128]:
            batch = x[rows]
            if spec.flip:
                batch = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, batch.flip(3), batch)
            loss = F.cross_entropy(model(batch), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"{name} epoch {epoch + 1}: loss {total / len(x):.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.eval()
    x, y = images(spec, train=False)
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return model, right / len(x)


def trained(name: str, folder: Path) -> nn.Sequential:
    """The network with the weights that ``train`` left in a folder."""
    model = nn.Sequential(network(name).layers)
    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=["mlp_mnist", "cnn_mnist", "cnn_cifar10"])
    parser.add_argument("--weights", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.weights.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        model, accuracy = train(name)
        save_file(model.state_dict(), arguments.weights / f"{name}.safetensors", {"accuracy": f"{accuracy:.4f}"})
        print(f"{name}: test accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
