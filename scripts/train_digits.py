"""Train the embedded digits network and pack the digits it did not see: ``python scripts/train_digits.py``.

Writes ``digits.safetensors`` and ``digits_data.safetensors`` beside ``backlit/models/digits.py`` (or into ``--out``)
and prints the two accuracies. Needs scikit-learn; takes a few minutes on one core. The same seed, torch version and
machine give the same weights.

Half of the training images are single digits, half are scenes of two. The loss is cross-entropy against a target that
shares its mass evenly between the true classes, so that on a scene both of their logits are driven up together.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from backlit.models import digits
from backlit.models.loaded import LoadedModel

SCENES_PACKED = 12
HELD_OUT = 360


def split(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training digits, held-out digits, and their labels; digits as uint8 (n, 8, 8) scaled to 0..255."""
    pixels, classes = map(np.asarray, load_digits(return_X_y=True))
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = classes.astype(np.uint8)
    train, held = map(
        np.asarray, train_test_split(np.arange(len(images)), test_size=HELD_OUT, random_state=seed, stratify=labels)
    )
    return images[train], images[held], labels[train], labels[held]


def single(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw one digit on the canvas at a random size and place."""
    side = int(random.integers(14, 31))
    row, column = (int(i) for i in random.integers(digits.CANVAS - side + 1, size=2))
    canvas = np.zeros((digits.CANVAS, digits.CANVAS), np.uint8)
    digits.paste(canvas, digits.scale(digit, side), row, column)
    return canvas


def draw_batch(images: np.ndarray, labels: np.ndarray, n: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``n`` training canvases, half of them scenes, normalised (n, 1, 32, 32), and their targets (n, 10)."""
    singles = random.integers(len(images), size=n // 2)
    pairs = digits.draw_pairs(images, labels, n - n // 2, random)
    canvases = [single(images[i], random) for i in singles]
    canvases += [digits.compose_scene(images[list(p)], random, int(random.integers(13, 17))) for p in pairs]
    targets = torch.zeros(n, 10)
    for row, members in enumerate([*([i] for i in singles), *pairs]):
        targets[row, [int(labels[i]) for i in members]] = 1 / len(members)
    return normalise(torch.from_numpy(np.stack(canvases))), targets


def normalise(canvases: Tensor) -> Tensor:
    """Do what ``digits.PREPROCESS`` does to canvases of the right size, at once."""
    return (canvases[:, None].float() / 255 - digits.PREPROCESS.mean[0]) / digits.PREPROCESS.std[0]


def train(
    images: np.ndarray, labels: np.ndarray, steps: int, batch: int, random: np.random.Generator
) -> digits.DigitsNet:
    """Return the trained network, in eval mode."""
    network = digits.DigitsNet().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        x, targets = draw_batch(images, labels, batch, random)
        loss = F.cross_entropy(network(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step:5d} of {steps}: loss {loss.item():.4f}", flush=True)
    return network.eval()


@torch.no_grad()
def report(network: digits.DigitsNet) -> dict[str, float]:
    """Measure, on the packed held-out digits, what the product's demo will see."""
    singles, scenes = digits.digits_images(), digits.two_digit_scenes(1000, seed=1)
    right = network(normalise(singles.images)).argmax(1) == singles.labels
    top = network(normalise(scenes.images)).topk(2).indices.sort().values
    both = (top == scenes.labels.sort().values).all(1)
    return {"held_out_accuracy": right.float().mean().item(), "scenes_both_in_top_2": both.float().mean().item()}


def pack(held: np.ndarray, held_labels: np.ndarray, path: Path) -> None:
    """Write the held-out digits and a handful of scenes made of them."""
    random = np.random.default_rng(0)
    pairs = digits.draw_pairs(held, held_labels, SCENES_PACKED, random)
    scenes = np.stack([digits.compose_scene(held[list(pair)], random) for pair in pairs])
    tensors = {
        "images": held,
        "labels": held_labels,
        "scenes": scenes,
        "scene_labels": held_labels[np.array(pairs)],
    }
    save_file({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in tensors.items()}, path)
    path.chmod(0o644)  # safetensors makes files that only their owner may read


def main() -> None:
    """Split, train, pack, measure."""
    parser = argparse.ArgumentParser(description="Train the embedded digits network.")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=digits.WEIGHTS.parent)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # the order of sums, and with it the weights, must not depend on the machine's cores
    torch.use_deterministic_algorithms(True)
    images, held, labels, held_labels = split(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    digits.DATA, digits.WEIGHTS = options.out / digits.DATA.name, options.out / digits.WEIGHTS.name
    pack(held, held_labels, digits.DATA)
    network = train(images, labels, options.steps, options.batch, np.random.default_rng(options.seed))
    numbers = report(network)
    LoadedModel("digits", network, digits.PREPROCESS, digits.CLASS_NAMES).save(digits.WEIGHTS)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
