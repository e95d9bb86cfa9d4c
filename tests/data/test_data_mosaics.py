from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backlit
from backlit._errors import InputError, ModelStateError
from backlit.data import CIFAR10, ImageNet, Mosaics, Sample, mosaics, take, two_objects
from backlit.models import Preprocess

DIGITS = backlit.load_model("digits")
PREPROCESS = DIGITS.preprocess


@pytest.fixture(name="digits", scope="module")
def _digits() -> list[Sample]:
    images, labels = backlit.models.digits.digits_images()
    pairs = zip(images, labels.tolist(), strict=True)
    return [Sample(image, f"digit {i}", label) for i, (image, label) in enumerate(pairs)]


def _make(digits, **options) -> Mosaics:
    return mosaics(DIGITS.network, digits, PREPROCESS, **{"count": 6, **options})


def _probabilities(images: Tensor) -> Tensor:
    with torch.no_grad():
        return DIGITS.network(images).softmax(1)


def _index(name: str) -> int:
    return int(name.split()[1])


class TestMosaics:
    @pytest.mark.parametrize("grid", [2, 3])
    def test_cells_are_the_preprocessed_pictures(self, digits, grid) -> None:
        found = _make(digits, grid=grid, count=10)
        examples = found.examples
        assert examples.inputs.shape == (10, 1, 32 * grid, 32 * grid)
        for image, names in zip(examples.inputs, found.sources, strict=True):
            assert len(names) == grid**2
            for place, name in enumerate(names):
                y, x = 32 * (place // grid), 32 * (place % grid)
                assert torch.equal(image[:, y : y + 32, x : x + 32], PREPROCESS(digits[_index(name)].image))

    @pytest.mark.parametrize("grid", [2, 3])
    def test_target_cell_and_labels(self, digits, grid) -> None:
        found = _make(digits, grid=grid, count=2 * grid**2)
        examples = found.examples
        places = []
        for i, names in enumerate(found.sources):
            x, y, x1, y1 = (int(edge) for edge in examples.cells[i])
            assert (x1 - x, y1 - y) == (32, 32)
            places.append(y // 32 * grid + x // 32)
            classes = [digits[_index(name)].target for name in names]
            assert int(examples.target[i]) == classes[places[-1]]
            assert examples.labels[i].nonzero()[:, 0].tolist() == sorted(classes)
            assert len(set(classes)) == grid**2
        assert sorted(places) == sorted(2 * list(range(grid**2)))
        assert examples.labels.shape == (2 * grid**2, 10)
        assert len(set(examples.names)) == len(found) == 2 * grid**2

    def test_all_targets(self, digits) -> None:
        one, every = _make(digits, count=4), _make(digits, count=4, targets="all")
        assert len(every) == 16
        assert torch.equal(every.examples.inputs[::4], one.examples.inputs)
        assert every.examples.cells[:4].tolist() == [[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]]
        assert every.sources[::4] == one.sources
        targets = [digits[_index(name)].target for names in one.sources for name in names]
        assert every.examples.target.tolist() == targets
        assert len(set(every.examples.names)) == 16

    def test_only_confident_pictures(self, digits) -> None:
        images = torch.stack([PREPROCESS(sample.image) for sample in digits])
        of_target = _probabilities(images)[range(len(digits)), [sample.target for sample in digits]]
        for confidence in (0.0, 0.9, 0.999):
            found = _make(digits, count=40, confidence=confidence)
            used = {_index(name) for names in found.sources for name in names}
            assert float(of_target[list(used)].min()) > confidence
            # At confidence 0 the class must be the most probable one, still.
            right = of_target == _probabilities(images).amax(1)
            assert found.confident == int((right & (of_target > confidence)).sum())

    def test_same_size(self, digits) -> None:
        found = _make(digits, size="same", grid=3, count=9)
        assert found.examples.inputs.shape == (9, 1, 32, 32)
        # 32 is not three times anything: cells of 11, 10 and 11 pixels.
        assert found.examples.cells[:, [0, 2]].unique(dim=0).tolist() == [[0, 11], [11, 21], [21, 32]]
        assert found.examples.cells[:, [1, 3]].unique(dim=0).tolist() == [[0, 11], [11, 21], [21, 32]]
        whole = PREPROCESS(digits[_index(found.sources[0][4])].image)
        cell = found.examples.inputs[0][:, 11:21, 11:21]
        assert float(cell.mean()) == pytest.approx(float(whole.mean()), rel=0.03)
        assert found.sources == _make(digits, grid=3, count=9).sources

    def test_seed(self, digits) -> None:
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        first, again, other = _make(digits, seed=3), _make(digits, seed=3), _make(digits, seed=4)
        assert torch.equal(first.examples.inputs, again.examples.inputs)
        assert first.sources == again.sources != other.sources
        assert len(set(first.sources)) == 6
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)

    def test_a_larger_count_begins_as_a_smaller_one(self, digits) -> None:
        assert _make(digits, count=9).sources[:6] == _make(digits, count=6).sources

    def test_batch_does_not_matter(self, digits) -> None:
        assert _make(digits[:60], batch=7).sources == _make(digits[:60], batch=60).sources

    def test_rectangular_input(self, digits) -> None:
        wide = Preprocess(size=(16, 40), mean=(0.0,), std=(0.3,), channels=1, crop="stretch")
        found = mosaics(DIGITS.network, digits, wide, count=4, confidence=0.1)
        assert found.examples.inputs.shape == (4, 1, 32, 80)
        assert found.examples.cells[1].tolist() == [40, 0, 80, 16]

    def test_network_is_left_alone(self, digits) -> None:
        before = {name: value.clone() for name, value in DIGITS.network.state_dict().items()}
        found = _make(digits[:80])
        assert all(torch.equal(before[name], value) for name, value in DIGITS.network.state_dict().items())
        assert not found.examples.inputs.requires_grad
        assert all(p.grad is None for p in DIGITS.network.parameters())

    def test_another_dtype(self, digits) -> None:
        network = backlit.load_model("digits", dtype="float64").network
        found = mosaics(network, digits[:80], PREPROCESS, count=4)
        assert found.examples.inputs.dtype == torch.float32
        assert found.sources == _make(digits[:80], count=4).sources

    @pytest.mark.gpu
    def test_network_on_a_gpu(self, digits) -> None:
        network = backlit.load_model("digits", device="cuda").network
        found = mosaics(network, digits[:80], PREPROCESS, count=4)
        assert found.examples.inputs.device.type == "cpu"


class Marks(nn.Module):
    """Classifies by which of k columns of a 1 x k picture is lit; sums over rows, so it takes any height."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return 10 * x[..., : self.classes].sum((1, 2))


class TestSeveralClassesAPicture:
    PLAIN = Preprocess(size=(2, 6), mean=(0.0,), std=(1.0,), channels=1)

    def _sample(self, target: int, *others: int) -> Sample:
        picture = np.zeros((2, 6), np.uint8)
        picture[:, target] = 255
        return Sample(picture, f"{target} {others}", target, (target, *others))

    def test_no_class_twice_in_a_mosaic(self) -> None:
        samples = [self._sample(*classes) for classes in ((0, 1), (1, 0), (2,), (3, 4), (4, 3), (5,))]
        found = mosaics(Marks(6).eval(), samples, self.PLAIN, count=30)
        assert found.confident == 6
        assert found.examples.labels.shape == (30, 6)
        for row, names in zip(found.examples.labels, found.sources, strict=True):
            listed = [int(c) for name in names for c in name if c.isdigit()]
            assert len(listed) == len(set(listed))
            assert row.nonzero()[:, 0].tolist() == sorted(listed)

    def test_a_picture_of_all_classes_is_no_dead_end(self) -> None:
        # Only these four fit together; an order that begins with the last picture finds no second one.
        samples = [self._sample(i) for i in range(4)] + [self._sample(0, 1, 2, 3)]
        found = mosaics(Marks(6).eval(), samples, self.PLAIN, count=20)
        assert all(len({name[0] for name in names}) == 4 for names in found.sources)


class TestRefusals:
    def test_too_few(self, digits) -> None:
        with pytest.raises(
            InputError,
            match=r"must have 4 confident .* classifies 0 of its pictures, of 0 classes, .* above 0\.9999999",
        ):
            _make(digits[:9], confidence=0.9999999)

    def test_too_few_classes(self, digits) -> None:
        three = [sample for sample in digits if sample.target < 3]
        found = _make([sample for sample in digits if sample.target < 4]).confident
        assert found > 0
        with pytest.raises(InputError, match=r"must have 4 confident pictures .*, of 3 classes"):
            _make(three)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"grid": 4}, "grid must be one of"),
            ({"count": 0}, "count must be at least 1"),
            ({"confidence": 1.0}, "confidence must be at least 0 and below 1"),
            ({"confidence": -0.1}, "confidence must be at least 0"),
            ({"batch": 0}, "batch must be at least 1"),
            ({"size": "half"}, "size must be None"),
            ({"targets": "some"}, "targets must be 'one' or 'all'"),
        ],
    )
    def test_options(self, digits, options, message) -> None:
        with pytest.raises(InputError, match=message):
            _make(digits[:9], **options)

    def test_no_samples(self) -> None:
        with pytest.raises(InputError, match="dataset must hold at least one sample"):
            _make([])

    def test_train_mode(self, digits) -> None:
        network = backlit.load_model("digits").network
        network.bn1.train()
        with pytest.raises(ModelStateError, match="network is in train mode"):
            mosaics(network, digits, PREPROCESS, count=1)

    def test_class_that_the_network_lacks(self, digits) -> None:
        with pytest.raises(InputError, match="'a' has class index 10 but the model has 10 classes"):
            _make([*digits[:5], Sample(digits[0].image, "a", 10)])

    def test_network_of_one_size(self, digits) -> None:
        flat = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10)).eval()
        with torch.no_grad():
            flat[1].weight.zero_()
            flat[1].bias.zero_()
            for sample in digits:  # each class's mean image: right often enough
                flat[1].weight[sample.target] += PREPROCESS(sample.image).flatten() / 36
            flat[1].bias -= 0.5 * flat[1].weight.square().sum(1)
        with pytest.raises(InputError, match=r"network does not take images of 64 x 64 pixels"):
            mosaics(flat, digits, PREPROCESS, count=1, confidence=0.5)
        found = mosaics(flat, digits, PREPROCESS, count=1, confidence=0.5, size="same")
        assert found.examples.inputs.shape == (1, 1, 32, 32)

    def test_memory_is_no_matter_of_size(self, digits) -> None:
        class Full(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise torch.OutOfMemoryError("full")

        with pytest.raises(torch.OutOfMemoryError, match="full"):
            mosaics(Full().eval(), digits[:9], PREPROCESS, count=1)

    def test_network_without_logits(self, digits) -> None:
        with pytest.raises(
            InputError, match=r"network must give logits \(n, k\), but for 9 images .* gives \(9, 1, 32, 32\)"
        ):
            mosaics(nn.Identity().eval(), digits[:9], PREPROCESS, count=1)


class TestTwoObjects:
    def test_halves_show_the_middles(self, digits) -> None:
        found = two_objects(DIGITS.network, digits, PREPROCESS, count=8)
        assert found.examples.inputs.shape == (8, 1, 32, 32)
        for i, (image, names) in enumerate(zip(found.examples.inputs, found.sources, strict=True)):
            first, second = (PREPROCESS(digits[_index(name)].image) for name in names)
            if i % 2 == 0:
                expected = torch.cat([first[:, :, 8:24], second[:, :, 8:24]], 2)
            else:
                expected = torch.cat([first[:, 8:24], second[:, 8:24]], 1)
            assert torch.equal(image, expected)

    def test_cells_targets_and_labels(self, digits) -> None:
        found = two_objects(DIGITS.network, digits, PREPROCESS, count=8)
        left, upper, right, lower = [0, 0, 16, 32], [0, 0, 32, 16], [16, 0, 32, 32], [0, 16, 32, 32]
        assert found.examples.cells.tolist() == 2 * [left, upper, right, lower]
        for i, names in enumerate(found.sources):
            classes = [digits[_index(name)].target for name in names]
            assert int(found.examples.target[i]) == classes[i // 2 % 2]
            assert found.examples.labels[i].nonzero()[:, 0].tolist() == sorted(classes)
            assert classes[0] != classes[1]

    def test_all_targets(self, digits) -> None:
        found = two_objects(DIGITS.network, digits, PREPROCESS, count=2, targets="all")
        assert found.examples.cells.tolist() == [[0, 0, 16, 32], [16, 0, 32, 32], [0, 0, 32, 16], [0, 16, 32, 32]]
        assert torch.equal(found.examples.inputs[0], found.examples.inputs[1])
        assert found.examples.target[0] != found.examples.target[1]

    def test_the_middles_alone_are_known(self, digits) -> None:
        found = two_objects(DIGITS.network, digits, PREPROCESS, count=60, confidence=0.8)
        used = sorted({_index(name) for names in found.sources for name in names})
        images = torch.stack([PREPROCESS(digits[i].image) for i in used])
        upright, level = torch.zeros_like(images), torch.zeros_like(images)
        upright[..., 8:24] = images[..., 8:24]
        level[..., 8:24, :] = images[..., 8:24, :]
        targets = [digits[i].target for i in used]
        for shown in (images, upright, level):
            assert _probabilities(shown).argmax(1).tolist() == targets
        assert float(_probabilities(images)[range(len(used)), targets].min()) > 0.8
        assert found.confident < _make(digits, confidence=0.8).confident

    def test_odd_sides(self, digits) -> None:
        odd = Preprocess(size=(31, 33), mean=(0.0,), std=(0.3,), channels=1, crop="stretch")
        found = two_objects(DIGITS.network, digits, odd, count=4, confidence=0.5)
        assert found.examples.inputs.shape == (4, 1, 31, 33)
        assert found.examples.cells.tolist() == [[0, 0, 16, 31], [0, 0, 33, 16], [16, 0, 33, 31], [0, 16, 33, 31]]
        second = odd(digits[_index(found.sources[0][1])].image)
        assert torch.equal(found.examples.inputs[0, :, :, 16:], second[:, :, 8:25])

    def test_seed(self, digits) -> None:
        runs = [two_objects(DIGITS.network, digits[:100], PREPROCESS, count=5, seed=seed).sources for seed in (1, 1, 2)]
        assert runs[0] == runs[1] != runs[2]

    def test_too_few(self, digits) -> None:
        ones = [sample for sample in digits if sample.target == 1]
        with pytest.raises(InputError, match=r"must have 2 confident pictures of different classes"):
            two_objects(DIGITS.network, ones, PREPROCESS, count=1, confidence=0.0)

    def test_options(self, digits) -> None:
        with pytest.raises(InputError, match="count must be at least 1"):
            two_objects(DIGITS.network, digits, PREPROCESS, count=0)


class TestShared:
    def test_cifar(self, shared) -> None:
        pytest.importorskip("polars")
        model = backlit.load_model("cifar_resnet20", weights=shared / "models" / "resnet20-cifar10.safetensors")
        data = take(CIFAR10(shared / "data" / "cifar10"), 200)
        found = mosaics(model.network, data, model.preprocess, count=8)
        assert found.examples.inputs.shape == (8, 3, 64, 64)
        # The network is right on 92 % of the test images.
        assert 120 < found.confident < 195
        scenes = two_objects(model.network, data, model.preprocess, count=4)
        assert scenes.examples.inputs.shape == (4, 3, 32, 32)

    @pytest.mark.slow
    def test_imagenet(self, shared) -> None:
        weights = shared / "models" / "squeezenet1_0-imagenet.safetensors"
        model = backlit.load_model("squeezenet1_0", weights=weights)
        data = ImageNet(shared / "data" / "ilsvrc2012-val", classes=shared / "data" / "imagenet_classes.json")
        found = mosaics(model.network, take(data, 100), model.preprocess, count=4)
        side = model.preprocess.size[0]
        assert found.examples.inputs.shape == (4, 3, 2 * side, 2 * side)
        assert found.examples.labels.shape == (4, 1000)
        assert found.examples.labels.sum(1).tolist() == [4] * 4
