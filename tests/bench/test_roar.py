"""ROAR on data whose informative pixels are known, and on everything that can go wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from _named import at_top
from backlit import GradientXInput, Saliency, _journal
from backlit._errors import FileError, InputError
from backlit.bench.roar import RoarData, RoarOptions, RoarResult, RoarStep, TrainingOptions, roar
from backlit.metrics.examples import Examples
from backlit.models import fingerprint

SIDE = 8
OBJECT = 16  # pixels that tell the class: a quarter of the image, in one of its four corners
TRAINING = TrainingOptions(epochs=4, batch=32, learning_rate=0.01)
OPTIONS = RoarOptions(fractions=(0.25,), seeds=(0,), training=TRAINING)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 2))


def examples(n: int, seed: int) -> Examples:
    """Noise with a bright or dark square in one corner: its sign is the class, and nothing else tells it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    corners = torch.randint(4, (n,), generator=generator)
    images = torch.randn(n, 1, SIDE, SIDE, generator=generator) * 0.5
    return Examples(images + informative(corners) * (2.0 * labels - 1)[:, None, None, None], labels)


def informative(corners: Tensor) -> Tensor:
    found = torch.zeros(len(corners), 1, SIDE, SIDE)
    for i, corner in enumerate(corners.tolist()):
        row, column = divmod(corner, 2)
        found[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
    return found


def oracle(trained: nn.Module, sign: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """It sees the square by its mean, so it needs no network."""

    def explain(images: Tensor, target: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(images, 4).abs()
        best = means.flatten(1).argmax(1)
        return sign * informative(best)

    return explain


@pytest.fixture(scope="module")
def data() -> RoarData:
    return RoarData(examples(300, 0), examples(200, 1))


@pytest.fixture(scope="module")
def small() -> RoarData:
    return RoarData(examples(60, 0), examples(40, 1))


def tiny(**changes: object) -> RoarOptions:
    return replace(OPTIONS, training=TrainingOptions(epochs=2, batch=32), **changes)  # type: ignore[arg-type]


def rows(result: RoarResult) -> list[tuple[object, ...]]:
    """All but the seconds."""
    return [(*row.key, row.right, row.loss, row.fingerprint) for row in result.rows]


def test_an_oracle_destroys_the_accuracy_and_its_inverse_does_not(data: RoarData, tmp_path: Path) -> None:
    methods = {"oracle": oracle, "inverse": partial(oracle, sign=-1.0), "gxi": GradientXInput}
    result = roar(data, network, methods, OPTIONS, out=tmp_path)
    found = {cell.method: cell.accuracy.mean for cell in result.summary()}
    assert found["original"] > 0.97
    assert found["oracle"] < 0.62  # nothing is left but chance
    assert found["inverse"] > 0.97
    assert found["oracle"] < found["random"]
    # The square is seen through a quarter of its pixels missing; a method that sees it takes more of it than chance.
    assert found["random"] > 0.9
    assert found["gxi"] < found["random"]
    below = {cell.method: cell.difference.mean for cell in result.summary() if cell.difference}
    assert below["oracle"] == pytest.approx(found["oracle"] - found["random"])
    assert below["random"] == 0


def test_random_lies_between_when_little_is_left(data: RoarData, tmp_path: Path) -> None:
    methods = {"oracle": oracle, "inverse": partial(oracle, sign=-1.0)}
    result = roar(data, network, methods, replace(OPTIONS, fractions=(0.72,)), out=tmp_path)
    found = {cell.method: cell.accuracy.mean for cell in result.summary()}
    assert found["oracle"] + 0.1 < found["random"] < found["inverse"]


def test_smallest_first_is_the_inverse(small: RoarData, tmp_path: Path) -> None:
    """Values without ties, so that the two orders mirror each other pixel by pixel."""

    @at_top
    def values(trained: nn.Module, sign: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, target: sign * images

    first = roar(small, network, {"m": partial(values, sign=1.0)}, tiny(), out=tmp_path / "a")
    second = roar(small, network, {"m": partial(values, sign=-1.0)}, tiny(ranking="smallest first"), out=tmp_path / "b")
    assert first.accuracies("m", 0.25) == second.accuracies("m", 0.25)
    assert first.rows[-1].fingerprint == second.rows[-1].fingerprint


@pytest.mark.parametrize("target", ["predicted", "label"])
def test_the_trained_network_is_explained_in_eval_mode_for_the_class_asked_for(
    small: RoarData, tmp_path: Path, target: str
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    networks: list[nn.Module] = []

    @at_top
    def spy(trained: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        networks.append(trained)

        def explain(images: Tensor, target: Tensor) -> Tensor:
            seen.append((images, target))
            return images

        return explain

    result = roar(small, network, {"spy": spy}, tiny(target=target), out=tmp_path)
    assert not networks[0].training
    assert fingerprint(networks[0]) == result.rows[0].fingerprint
    for (images, classes), part in zip(seen, (small.train, small.test), strict=True):
        guessed = networks[0](part.inputs).argmax(1)
        assert not torch.equal(guessed, part.target)
        assert torch.equal(images, part.inputs)
        assert torch.equal(classes, guessed if target == "predicted" else part.target)


def places(trained: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """It removes noise only, but in a row that the explained class decides."""

    def explain(images: Tensor, target: Tensor) -> Tensor:
        found = torch.zeros_like(images)
        found[torch.arange(len(images)), 0, 7 * target] = 1.0
        return found

    return explain


def test_a_mask_that_tells_the_class_is_found_out(tmp_path: Path) -> None:
    """The class that the network predicted tells as much as the network knew; the true one all."""
    generator = torch.Generator().manual_seed(0)
    train, test = examples(300, 0), examples(200, 1)
    noise = RoarData(
        *(replace(part, inputs=torch.randn(part.inputs.shape, generator=generator)) for part in (train, test))
    )
    options = replace(OPTIONS, fractions=(0.125,), mask_only=True, training=replace(TRAINING, epochs=10))
    found = {}
    for target in ("label", "predicted"):
        options = replace(options, target=target)
        result = roar(noise, network, {"places": places, "oracle": oracle}, options, out=tmp_path / target)
        found[target] = {cell.method: cell.accuracy.mean for cell in result.summary()}
        assert ("The places of the removed pixels tell the class" in " ".join(result.notes())) == (target == "label")
    original = found["label"]["original"]
    assert original < 0.6  # there was nothing to learn
    assert found["label"]["places"] > 0.9
    assert found["label"]["places mask"] == 1
    assert found["predicted"]["places mask"] == original
    assert found["label"]["oracle mask"] < 0.6


def test_bare_masks_show_no_pixel_of_the_image(small: RoarData, tmp_path: Path) -> None:
    """Another image under the same ranks trains the same network."""

    @at_top
    def fixed(trained: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, target: (
            torch.arange(64.0).view(1, 1, 8, 8).expand_as(images) * (2 * target - 1)[:, None, None, None]
        )

    options = tiny(mask_only=True, target="label")
    louder = RoarData(*(replace(part, inputs=5 * part.inputs + 1) for part in small.parts().values()))
    prints = []
    for i, data in enumerate((small, louder)):
        result = roar(data, network, {"m": fixed}, options, out=tmp_path / str(i))
        prints.append({row.method: row.fingerprint for row in result.rows})
    assert prints[0]["m mask"] == prints[1]["m mask"]
    assert prints[0]["m"] != prints[1]["m"]


def test_the_same_call_gives_the_same_numbers(small: RoarData, tmp_path: Path) -> None:
    found = [roar(small, network, {"s": Saliency}, tiny(seeds=(0, 1)), out=tmp_path / str(i)) for i in range(2)]
    assert rows(found[0]) == rows(found[1])
    assert len({row.fingerprint for row in found[0].rows}) == len(found[0].rows) == 6


@pytest.mark.parametrize("stop", [("train", "original", 1), ("explain", "s", 60), ("train", "s", 1), ("train", "s", 2)])
def test_an_interrupted_experiment_ends_as_an_uninterrupted_one(
    small: RoarData, tmp_path: Path, stop: tuple[str, str, int]
) -> None:
    whole = roar(small, network, {"s": Saliency}, tiny(), out=tmp_path / "whole")

    def interrupt(step: RoarStep) -> None:
        if (step.stage, step.method, step.done) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        roar(small, network, {"s": Saliency}, tiny(), out=tmp_path / "cut", progress=interrupt)
    steps: list[RoarStep] = []
    resumed = roar(small, network, {"s": Saliency}, tiny(), out=tmp_path / "cut", progress=steps.append)
    assert rows(resumed) == rows(whole)
    done = {(s.stage, s.method, s.done) for s in steps}
    assert stop not in done, "what was finished is done again"
    assert not list((tmp_path / "cut" / "unfinished").iterdir())


def test_a_killed_process_loses_nothing(small: RoarData, tmp_path: Path) -> None:
    code = """
import os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from test_roar import RoarData, Saliency, examples, network, roar, tiny
def kill(step):
    if step.method == "s" and step.stage == "train":
        os._exit(9)
roar(RoarData(examples(60, 0), examples(40, 1)), network, {"s": Saliency}, tiny(), out=sys.argv[2], progress=kill)
"""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = [sys.executable, "-c", code, here, str(tmp_path / "cut")]
    assert subprocess.run(words, env=environment, capture_output=True).returncode == 9
    assert len((tmp_path / "cut" / "runs.jsonl").read_text().splitlines()) == 2
    resumed = roar(small, network, {"s": Saliency}, tiny(), out=tmp_path / "cut")
    assert rows(resumed) == rows(roar(small, network, {"s": Saliency}, tiny(), out=tmp_path / "whole"))


def test_finished_work_is_not_repeated_and_more_can_be_asked_for(small: RoarData, tmp_path: Path) -> None:
    first = roar(small, network, {"s": Saliency}, tiny(), out=tmp_path)
    steps: list[RoarStep] = []
    assert rows(roar(small, network, {"s": Saliency}, tiny(), out=tmp_path, progress=steps.append)) == rows(first)
    assert not steps
    more = tiny(fractions=(0.25, 0.5), seeds=(0, 1), mask_only=True)
    grown = roar(small, network, {"s": Saliency, "g": GradientXInput}, more, out=tmp_path, progress=steps.append)
    assert set(rows(first)) < set(rows(grown))
    assert len(grown.rows) == 2 * (1 + 2 * 5)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == len(grown.rows)
    fresh = roar(small, network, {"s": Saliency, "g": GradientXInput}, more, out=tmp_path.with_name("fresh"))
    assert rows(fresh) == rows(grown)


def test_a_broken_last_line_is_set_aside_and_its_training_done_again(small: RoarData, tmp_path: Path) -> None:
    whole = roar(small, network, {"s": Saliency}, tiny(), out=tmp_path)
    path = tmp_path / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"line 3 cannot be used.*Kept in runs\.jsonl\.bad.* the other 2 lines count"):
        again = roar(small, network, {"s": Saliency}, tiny(), out=tmp_path)
    assert rows(again) == rows(whole)
    assert len(path.read_text().splitlines()) == 3


def test_a_lost_network_is_trained_again(small: RoarData, tmp_path: Path) -> None:
    roar(small, network, {"s": Saliency}, tiny(), out=tmp_path / "a")
    kept = (tmp_path / "a" / "network.safetensors").read_bytes()
    (tmp_path / "a" / "network.safetensors").unlink()
    roar(small, network, {"s": Saliency, "g": GradientXInput}, tiny(), out=tmp_path / "a")
    assert (tmp_path / "a" / "network.safetensors").read_bytes() == kept
    assert len((tmp_path / "a" / "runs.jsonl").read_text().splitlines()) == 4


def test_another_network_in_the_file_is_set_aside(small: RoarData, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    roar(small, network, {"s": Saliency}, tiny(), out=tmp_path)
    save_file(network().state_dict(), tmp_path / "network.safetensors")
    theirs = (tmp_path / "network.safetensors").read_bytes()
    with pytest.warns(UserWarning, match=r"network\.safetensors is not as it was written"):
        found = roar(small, network, {"g": GradientXInput}, tiny(), out=tmp_path)
    assert (tmp_path / "network.safetensors.bad").read_bytes() == theirs
    assert rows(found) == rows(roar(small, network, {"g": GradientXInput}, tiny(), out=tmp_path.with_name("fresh")))


def test_a_lost_network_that_cannot_be_made_again_is_no_ground_to_go_on(small: RoarData, tmp_path: Path) -> None:
    roar(small, network, {"s": Saliency}, tiny(), out=tmp_path)
    (tmp_path / "network.safetensors").unlink()
    path = tmp_path / "runs.jsonl"
    first, *others = (entry for entry in _journal.sound_entries(path) if entry is not None)
    other = replace(first, row={**first.row, "fingerprint": "of another machine"})
    path.write_bytes(b"".join(_journal._text(entry) for entry in (other, *others)))
    with pytest.raises(FileError, match="was lost, and training it again gives another network here"):
        roar(small, network, {"g": GradientXInput}, tiny(), out=tmp_path)


@pytest.mark.parametrize("replacement", ["mean", "zero"])
def test_what_the_networks_are_trained_and_tested_on(tmp_path: Path, replacement: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(30, 2, 4, 4, generator=generator) + torch.tensor([1.0, -3.0])[:, None, None]
    train, test = (Examples(x, torch.arange(len(x)) % 2) for x in (images[:20], images[20:] + 5))
    seen: list[tuple[bool, Tensor]] = []

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, x.clone()))
            return self.linear(x.flatten(1))

    @at_top
    def brightest(trained: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, target: images

    options = RoarOptions((0.25,), (0,), replacement, training=TrainingOptions(epochs=1))  # type: ignore[arg-type]
    roar(RoarData(train, test), Recorder, {"b": brightest}, options, out=tmp_path)
    fill = images[:20].double().mean((0, 2, 3)).float() if replacement == "mean" else torch.zeros(2)
    for part, (training, found) in zip((train, test), seen[-2:], strict=True):
        assert training == (part is train)
        expected = part.inputs.clone()
        for image, original in zip(expected, part.inputs, strict=True):
            for pixel in original.sum(0).flatten().argsort(descending=True)[:4].tolist():
                image[:, pixel // 4, pixel % 4] = fill
        shown = {tuple(x.flatten().tolist()) for x in found}  # the order is drawn
        assert shown == {tuple(x.flatten().tolist()) for x in expected}


def wider() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def test_another_experiment_in_the_folder_is_refused_with_what_differs(small: RoarData, tmp_path: Path) -> None:
    methods = {"s": Saliency}
    roar(small, network, methods, tiny(), out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    longer = replace(OPTIONS, training=TrainingOptions(epochs=3, batch=32))
    with pytest.raises(
        FileError, match=r"holds another ROAR experiment: options.training.epochs was 2 and is 3\. Choose another"
    ):
        roar(small, network, methods, longer, out=tmp_path)
    with pytest.raises(FileError, match=r"options.replacement was .mean. and is .zero."):
        roar(small, network, methods, tiny(replacement="zero"), out=tmp_path)
    with pytest.raises(FileError, match=r"options.first_seed was 0 and is 1"):
        roar(small, network, methods, tiny(seeds=(1,)), out=tmp_path)
    with pytest.raises(FileError, match=r"network.architecture was .Sequential"):
        roar(small, wider, methods, tiny(), out=tmp_path)
    for changed in ({"inputs": small.test.inputs + 1e-3}, {"target": 1 - small.test.target}):
        other = RoarData(small.train, replace(small.test, **changed))
        with pytest.raises(FileError, match=r"holds another ROAR experiment: data.test.fingerprint was"):
            roar(other, network, methods, tiny(), out=tmp_path)
    with pytest.raises(FileError, match=r"holds trainings with 's' as .*Saliency.* and now it is .*GradientXInput"):
        roar(small, network, {"s": GradientXInput}, tiny(), out=tmp_path)
    with pytest.raises(FileError, match=r'"seed": 0.* and now it is .*"seed": 1'):
        roar(small, network, {"s": partial(Saliency, seed=1)}, tiny(), out=tmp_path)
    roar(small, network, {"s": partial(Saliency, chunk=3)}, tiny(), out=tmp_path)  # which changes no map
    assert all(
        p.read_bytes() == content
        for p, content in before.items()
        if p.name != "result.json" and ".backlit" not in p.parts
    )


def test_a_folder_of_something_else_is_refused(small: RoarData, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        FileError, match=r"exists and holds something else than this ROAR experiment; nothing was written"
    ):
        roar(small, network, {"s": Saliency}, tiny(), out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_constant_map_is_counted_and_is_the_random_ranking(small: RoarData, tmp_path: Path) -> None:
    @at_top
    def constant(trained: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, target: torch.full_like(images, 7.0)

    result = roar(small, network, {"c": constant, "s": Saliency}, tiny(), out=tmp_path)
    assert result.constant_maps == {"c": {"train": 60, "test": 40}, "s": {"train": 0, "test": 0}}
    assert result.accuracies("c", 0.25) == result.accuracies("random", 0.25)
    prints = {row.method: row.fingerprint for row in result.rows}
    assert prints["c"] == prints["random"]
    assert any("c: the map of 60 training and 40 test images is constant" in note for note in result.notes())


def test_a_method_that_gives_nan_is_named_and_costs_nothing_else(small: RoarData, tmp_path: Path) -> None:
    @at_top
    def broken(trained: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, target: torch.where(
            torch.arange(len(images))[:, None, None, None] == 3, torch.nan, images
        )

    with pytest.raises(
        InputError, match=r"methods\['b'\] must give finite maps, but gave NaN or Inf for image 3 \(1 of 60"
    ):
        roar(small, network, {"s": Saliency, "b": broken}, tiny(), out=tmp_path)
    steps: list[RoarStep] = []
    roar(small, network, {"s": Saliency}, tiny(), out=tmp_path, progress=steps.append)
    assert "original" not in {step.method for step in steps}
    assert "explain" not in {step.stage for step in steps}


def test_maps_of_another_size_are_refused(small: RoarData, tmp_path: Path) -> None:
    @at_top
    def coarse(trained: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, target: images[..., ::2, ::2]

    with pytest.raises(
        InputError, match=r"must give maps \(n, c, h, w\) = \(60, c, 8, 8\) .* gave shape \(60, 1, 4, 4\)"
    ):
        roar(small, network, {"c": coarse}, tiny(), out=tmp_path)


def test_methods_that_cannot_be(small: RoarData, tmp_path: Path) -> None:
    for methods, message in (
        ({}, "methods must hold at least one method beside the random ranking, but is empty"),
        ({"random": Saliency}, "methods must not be named 'random': that one always runs beside"),
        ({"a/b": Saliency}, "methods must be named by letters, digits, '_', '-' and '.', .* but one is 'a/b'"),
        (
            {"s": Saliency(network().eval())},
            "such as Saliency or functools.partial.*Give the class, not an object of it",
        ),
        ({"s": partial(Saliency, steps=3)}, "steps"),
    ):
        with pytest.raises((InputError, TypeError), match=message):
            roar(small, network, methods, tiny(), out=tmp_path / "out")
        assert not list(tmp_path.glob("out/runs.jsonl")) or "steps" in message


def test_data_that_cannot_be(small: RoarData, tmp_path: Path) -> None:
    x, y = small.train.inputs, small.train.target
    with pytest.raises(
        InputError, match=r"train.target must hold at least two classes, but all 60 images are of class 1"
    ):
        RoarData(Examples(x, torch.ones_like(y)), small.test)
    with pytest.raises(
        InputError, match=r"test must hold images of the size of train, \(1, 8, 8\), but holds \(1, 4, 4\)"
    ):
        RoarData(small.train, Examples(x[..., :4, :4], y))
    with pytest.raises(InputError, match=r"train.inputs must be finite, but hold NaN or Inf"):
        RoarData(Examples(x / 0, y), small.test)
    for part, labels in (("train", y + 1), ("test", y - 1)):
        parts = {"train": small.train, "test": small.test, part: Examples(x, labels)}
        with pytest.raises(InputError, match=rf"{part}.target must be from 0 to 1, for the network has 2 outputs, but"):
            roar(RoarData(**parts), network, {"s": Saliency}, tiny(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"fractions must remove some of the 64 pixels, but 0.001 removes none or all"):
        roar(small, network, {"s": Saliency}, tiny(fractions=(0.001,)), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"fractions": (0.5, 1.0)}, "fractions must be different shares above 0 and below 1"),
        ({"fractions": (0.0,)}, "fractions must be"),
        ({"fractions": (50.0,)}, "fractions must be"),
        ({"fractions": (0.5, 0.5)}, "fractions must be"),
        ({"fractions": ()}, "fractions must be"),
        ({"seeds": ()}, "seeds must be different integers from 0 on, one a retraining"),
        ({"seeds": (1, 1)}, "seeds must be"),
        ({"seeds": (-1,)}, "seeds must be"),
        ({"replacement": "blur"}, "replacement must be 'mean' or 'zero', but is 'blur'"),
        ({"target": "true"}, "target must be 'predicted' or 'label', but is 'true'"),
        ({"ranking": "best"}, "ranking must be 'largest first' or 'smallest first', but is 'best'"),
        ({"reduce": "mean"}, "reduce must be"),
        ({"fractions": 0.5}, "fractions must be a tuple of numbers, but is 0.5"),
        ({"seeds": 3}, "seeds must be a tuple of numbers, but is 3"),
        ({"mask_only": "no"}, "mask_only must be True or False, but is 'no'"),
        ({"training": 3}, "training must be TrainingOptions, but is 3"),
    ],
)
def test_options_that_cannot_be(option: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RoarOptions(**option)  # type: ignore[arg-type]


def test_all_that_was_asked_is_on_record(small: RoarData, tmp_path: Path) -> None:
    result = roar(small, network, {"s": Saliency}, tiny(), out=tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    options = found["protocol"]["options"]
    assert options["training"] == {
        "epochs": 2,
        "batch": 32,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 1e-2,
        "momentum": 0.9,
        "schedule": "cosine",
        "flip": False,
    }
    assert {k: options[k] for k in ("replacement", "ranking", "target", "reduce", "first_seed")} == {
        "target": "predicted",
        "replacement": "mean",
        "ranking": "largest first",
        "reduce": "sum",
        "first_seed": 0,
    }
    assert found["protocol"]["fractions"] == [0.25]
    assert found["protocol"]["seeds"] == [0]
    assert found["protocol"]["data"]["test"]["images"] == 40
    assert found["provenance"]["versions"]["torch"] == str(torch.__version__)
    assert [row["method"] for row in found["rows"]] == ["original", "random", "s"]
    assert found["summary"][0]["accuracy"]["std"] is None  # one training says nothing of the spread
    assert (tmp_path / "table.txt").read_text() == result.table() + "\n"
