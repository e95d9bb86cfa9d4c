"""Training that a seed decides in full, and that goes on after an interruption as if there had been none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._errors import (
    MOST_STEPS,
    FileError,
    InputError,
    ModelStateError,
    check,
    check_positive,
    check_whole,
    check_word,
    is_number,
)
from backlit._forward import forward
from backlit._packed import pack, unpack
from backlit._random import seeded, stable_seed

MakeNetwork = Callable[[], nn.Module]
OnEpoch = Callable[[int, float], None]
"""Called with the number of epochs done and the mean loss of the last one."""

_FILE = "backlit.training"


class Checkpoint(Protocol):
    """A file that keeps the state of a training, such as a :class:`backlit._store.StoredFile`."""

    def sound(self) -> Path | None:
        """The file's path, if it is there and as it was written."""

    def write(self, data: bytes) -> None:
        """Replace the file, whole."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training; cross-entropy is the loss.

    Attributes:
        epochs: Passes over the training images.
        batch: Images a step.
        optimizer: "adamw", "adam" or "sgd".
        learning_rate: Of the first step.
        weight_decay: As the optimizer means it.
        momentum: Of "sgd"; the others have their own.
        schedule: "cosine" takes the learning rate down to 0 over all steps, "constant" leaves it.
        flip: Mirror each training image left to right with even odds, anew in each epoch.
    """

    epochs: int = 30
    batch: int = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    momentum: float = 0.9
    schedule: Literal["cosine", "constant"] = "cosine"
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            check_whole(name, getattr(self, name), high=MOST_STEPS)
        check_word("optimizer", self.optimizer, ("adamw", "adam", "sgd"))
        check_positive("learning_rate", self.learning_rate)
        decay, momentum = self.weight_decay, self.momentum
        check(is_number(decay) and decay >= 0, "weight_decay", decay, "0 or a positive number")
        check(is_number(momentum) and 0 <= momentum < 1, "momentum", momentum, "at least 0 and below 1")
        check(isinstance(self.flip, bool), "flip", self.flip, "True or False")
        check_word("schedule", self.schedule, ("cosine", "constant"))

    def optimizer_of(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the network's parameters."""
        parameters, lr, decay = network.parameters(), self.learning_rate, self.weight_decay
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr, momentum=self.momentum, weight_decay=decay)
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, lr, weight_decay=decay)

    def rate(self, done: float) -> float:
        """The learning rate when this share of all steps is done."""
        return self.learning_rate * ((1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1.0)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network in eval mode, and the mean loss of each epoch."""

    network: nn.Module
    losses: tuple[float, ...]


def new_network(make_network: MakeNetwork, seed: int, device: torch.device) -> nn.Module:
    """The untrained network of a seed.

    Raises:
        InputError: If ``make_network`` returns none, or the same one twice.
    """
    with seeded(stable_seed("weights", seed), torch.device("cpu")):
        network = make_network()
    if not isinstance(network, nn.Module):
        raise InputError(
            f"make_network must return a new torch.nn.Module, but returned {type(network).__name__}. Give a function "
            "without arguments, such as `lambda: CifarCNN()`."
        )
    return network.to(device)


def train(
    make_network: MakeNetwork,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    options: TrainingOptions,
    seed: int,
    *,
    checkpoint: Checkpoint | None = None,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train a new network; the seed decides its weights, the order of the images and all else that is drawn.

    Args:
        make_network: Makes the untrained network.
        images: Training images, on the device to train on.
        labels: Their classes, on the same device.
        options: How to train.
        seed: Two runs with one seed give the same weights bit for bit (on the CPU, with the same number of threads).
        checkpoint: Where the state after each epoch is kept; a training that finds its own there goes on from it and
            ends as it would have without the interruption.
        on_epoch: Called after each epoch, once its checkpoint is written.

    Raises:
        ModelStateError: If the loss stops being finite.
        FileError: If the checkpoint cannot be written, is damaged, or of another training.
    """
    network = new_network(make_network, seed, images.device).train()
    optimizer = options.optimizer_of(network)
    kind = json.dumps({"options": asdict(options), "seed": seed, "images": len(images)}, sort_keys=True)
    losses: list[float] = []
    if checkpoint is not None and (path := checkpoint.sound()) is not None:
        losses = _restore(path, kind, network, optimizer)
    for epoch in range(len(losses), options.epochs):
        losses.append(_one_epoch(network, optimizer, images, labels, options, seed, epoch))
        if checkpoint is not None:
            _keep(checkpoint, kind, network, optimizer, losses)
        if on_epoch is not None:
            on_epoch(epoch + 1, losses[-1])
    return Trained(network.eval(), tuple(losses))


def predicted(network: nn.Module, images: Float[Tensor, "n c h w"], batch: int = 500) -> Int64[Tensor, " n"]:
    """The class of the largest logit of each image."""
    return torch.cat([forward(network, x).argmax(1) for x in images.split(batch)])


def _one_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    options: TrainingOptions,
    seed: int,
    epoch: int,
) -> float:
    """One pass; all that is drawn follows from the seed and the epoch, so that a later start draws the same."""
    generator = torch.Generator().manual_seed(stable_seed("order", seed, epoch))
    order = torch.randperm(len(images), generator=generator).split(options.batch)
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    with seeded(stable_seed("dropout", seed, epoch), images.device):
        for step, index in enumerate(order):
            rate = options.rate((epoch * len(order) + step) / (options.epochs * len(order)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            x, y = images[index.to(images.device)], labels[index.to(images.device)]
            if options.flip:
                mirrored = torch.rand(len(x), generator=generator).to(x.device)[:, None, None, None] < 0.5
                x = torch.where(mirrored, x.flip(-1), x)
            loss = F.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
    mean = float(total) / len(images)
    if not math.isfinite(mean):
        raise ModelStateError(
            f"The loss of the training with seed {seed} is {mean} in epoch {epoch + 1}. Lower learning_rate "
            f"({options.learning_rate}), or look for extreme values in the images."
        )
    return mean


def _keep(
    checkpoint: Checkpoint, kind: str, network: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    """Write the state after an epoch; nothing is pickled."""
    tensors = {f"network/{name}": value for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": v for name, v in state.items() if isinstance(v, Tensor)}
    checkpoint.write(pack(_FILE, tensors, {"kind": kind, "losses": json.dumps(losses)}))


def _restore(path: Path, kind: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Put the state back; returns the losses of the epochs that are done."""
    way_out = "Delete it, and the training starts over."
    tensors, metadata = unpack(path, _FILE, argument="checkpoint", what="state of a training", way_out=way_out)
    if metadata.get("kind") != kind:
        raise FileError(
            f"checkpoint: {str(path)!r} is of another training ({metadata.get('kind')}), not of {kind}. {way_out}"
        )
    weights, state = {}, {}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        if group == "network":
            weights[rest] = value
        else:
            index, _, key = rest.partition("/")
            state.setdefault(int(index), {})[key] = value
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise FileError(f"checkpoint: {str(path)!r} is of another network ({error}). {way_out}") from error
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads(metadata["losses"])
