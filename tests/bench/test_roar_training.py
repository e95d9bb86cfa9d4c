"""A seed decides a training in full, and an interruption changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backlit._errors import FileError, InputError, ModelStateError
from backlit._files import write_whole
from backlit.bench.roar.training import TrainingOptions, new_network, predicted, train
from backlit.models import fingerprint

OPTIMIZERS = ("adamw", "adam", "sgd")


def network() -> nn.Module:
    """With all that could make a resumed run another one: dropout, batch norm's running means, momentum."""
    convolutions = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
    return nn.Sequential(convolutions, nn.Flatten(), nn.Linear(4 * 36, 3))


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(50, 2, 6, 6, generator=generator), torch.randint(3, (50,), generator=generator)


def stop_after(epochs: int) -> Callable[[int, float], None]:
    def on_epoch(done: int, loss: float) -> None:
        if done == epochs:
            raise KeyboardInterrupt

    return on_epoch


@dataclass
class State:
    path: Path

    def sound(self) -> Path | None:
        return self.path if self.path.exists() else None

    def write(self, data: bytes) -> None:
        write_whole(self.path, data)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stopped", [1, 3, 4])
def test_a_resumed_training_equals_an_uninterrupted_one(
    data: tuple[Tensor, Tensor], tmp_path: Path, optimizer: str, stopped: int
) -> None:
    options = TrainingOptions(epochs=4, batch=16, optimizer=optimizer, learning_rate=0.01, flip=True)
    whole = train(network, *data, options, 3)
    path = State(tmp_path / "state.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(network, *data, options, 3, checkpoint=path, on_epoch=stop_after(stopped))
    torch.rand(7)  # what others draw in between is nothing to it
    seen: list[int] = []
    resumed = train(network, *data, options, 3, checkpoint=path, on_epoch=lambda done, loss: seen.append(done))
    assert seen == list(range(stopped + 1, 5))
    assert fingerprint(resumed.network) == fingerprint(whole.network)
    assert resumed.losses == whole.losses
    assert not resumed.network.training


def test_the_seed_decides_and_nothing_else(data: tuple[Tensor, Tensor]) -> None:
    options = TrainingOptions(epochs=2, batch=16, flip=True)
    prints = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(other)
        prints.append(fingerprint(train(network, *data, options, seed).network))
    assert prints[0] == prints[1] != prints[2]


def test_training_moves_nobodys_random_state(data: tuple[Tensor, Tensor]) -> None:
    before = torch.get_rng_state()
    train(network, *data, TrainingOptions(epochs=1), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_order_differs_from_epoch_to_epoch_and_seed_to_seed(data: tuple[Tensor, Tensor]) -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(72, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.flatten(1)[:, 0].clone())
            return self.linear(x.flatten(1))

    train(Spy, *data, TrainingOptions(epochs=2, batch=16), 0)
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)  # each image once
    assert torch.equal(first.sort().values, data[0].flatten(1)[:, 0].sort().values)
    train(Spy, *data, TrainingOptions(epochs=1, batch=16), 1)
    assert not torch.equal(first, torch.cat(seen[8:]))


def test_flip_mirrors_about_half_of_the_images(data: tuple[Tensor, Tensor]) -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(72, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return self.linear(x.flatten(1))

    train(Spy, *data, TrainingOptions(epochs=1, flip=True), 0)
    original = {tuple(x.flatten().tolist()) for x in data[0]}
    mirrored = {tuple(x.flip(-1).flatten().tolist()) for x in data[0]}
    found = [tuple(x.flatten().tolist()) for x in torch.cat(seen)]
    assert all(x in original or x in mirrored for x in found)
    assert 10 < sum(x in mirrored for x in found) < 40


def test_the_learning_rate_follows_the_cosine() -> None:
    options = TrainingOptions(learning_rate=0.4)
    assert [options.rate(t) for t in (0, 0.5)] == pytest.approx([0.4, 0.2])
    assert TrainingOptions(learning_rate=0.4, schedule="constant").rate(0.9) == 0.4


def test_each_step_takes_the_rate_of_its_place_in_the_whole_training() -> None:
    """Equal images, so that their order does not matter, and the steps taken by hand."""
    images, labels = torch.full((4, 1, 1, 1), 2.0, dtype=torch.float64), torch.ones(4, dtype=torch.int64)

    def one() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False).double())

    options = TrainingOptions(epochs=2, batch=2, optimizer="sgd", learning_rate=0.5, weight_decay=0.0, momentum=0.0)
    weight = new_network(one, 0, images.device)[1].weight.detach().clone()  # type: ignore[index,union-attr]
    for step in range(4):
        rate = 0.5 * (1 + math.cos(math.pi * step / 4)) / 2
        probability = (2 * weight[:, 0]).softmax(0)
        weight[:, 0] -= rate * 2 * (probability - torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(train(one, images, labels, options, 0).network.state_dict()["1.weight"], weight)


def test_the_seed_draws_the_first_weights() -> None:
    prints = [fingerprint(new_network(network, seed, torch.device("cpu"))) for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_it_learns_and_counts_what_it_gets_right() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (200,), generator=generator)
    images = torch.randn(200, 1, 4, 4, generator=generator)
    images[:, 0, 1, 1] = 3.0 * labels - 1.5

    def small() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

    options = TrainingOptions(epochs=20, batch=20, learning_rate=0.02)
    trained = train(small, images[:150], labels[:150], options, 0)
    found = predicted(trained.network, images[150:], batch=7)
    assert torch.equal(found, trained.network(images[150:]).argmax(1))
    assert int((found == labels[150:]).sum()) >= 48
    assert trained.losses[-1] < trained.losses[0]


def test_checkpoints_of_another_training_are_refused(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    path = State(tmp_path / "state.safetensors")
    options = TrainingOptions(epochs=2)
    train(network, *data, options, 0, checkpoint=path)
    with pytest.raises(FileError, match="is of another training"):
        train(network, *data, options, 1, checkpoint=path)
    with pytest.raises(FileError, match="is of another training"):
        train(network, *data, TrainingOptions(epochs=3), 0, checkpoint=path)
    with pytest.raises(FileError, match="is of another network"):
        train(lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), *data, options, 0, checkpoint=path)
    path.path.write_bytes(path.path.read_bytes()[:100])
    with pytest.raises(FileError, match=r"no whole safetensors file.*Delete it, and the training starts over"):
        train(network, *data, options, 0, checkpoint=path)


def test_a_loss_that_is_not_finite_ends_the_training(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ModelStateError, match=r"loss of the training with seed 0 is .* Lower learning_rate \(1"):
        train(network, *data, TrainingOptions(epochs=9, optimizer="sgd", learning_rate=1e15), 0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs must be a positive integer up to 1,000,000, but is 0"),
        ({"epochs": 10**9}, "epochs must be a positive integer up to 1,000,000, but is 1000000000"),
        ({"batch": 2.5}, "batch must be a positive integer up to 1,000,000, but is 2.5"),
        ({"batch": True}, "batch must be a positive integer"),
        ({"learning_rate": "1"}, "learning_rate must be a positive number, but is '1'"),
        ({"weight_decay": None}, "weight_decay must be 0 or a positive number, but is None"),
        ({"momentum": 10**400}, "momentum must be at least 0 and below 1"),
        ({"flip": 1}, "flip must be True or False, but is 1"),
        ({"optimizer": "lion"}, "optimizer must be 'adamw', 'adam' or 'sgd', but is 'lion'"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number, but is nan"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or a positive number, but is -1.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, but is 1.0"),
        ({"schedule": "steps"}, "schedule must be 'cosine' or 'constant', but is 'steps'"),
    ],
)
def test_options_that_cannot_be(option: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingOptions(**option)  # type: ignore[arg-type]


def test_make_network_must_make_one() -> None:
    with pytest.raises(InputError, match=r"make_network must return a new torch.nn.Module, but returned NoneType"):
        new_network(lambda: None, 0, torch.device("cpu"))  # type: ignore[arg-type,return-value]


class Drawing(nn.Module):
    """A network that draws, or writes to a buffer, in eval mode, too."""

    def __init__(self, *, draws: bool) -> None:
        super().__init__()
        self.draws = draws
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :3]
        if self.draws:
            return logits + torch.rand(3)
        self.count += 1
        return logits


@pytest.mark.parametrize(("draws", "match"), [(True, "draws at random"), (False, "writes to 'count'")])
def test_what_is_predicted_by_a_network_that_changes_is_refused(draws: bool, match: str) -> None:
    network, state = Drawing(draws=draws).eval(), torch.get_rng_state()
    with pytest.raises(ModelStateError, match=match):
        predicted(network, torch.zeros(2, 1, 2, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert float(network.count) == 0
