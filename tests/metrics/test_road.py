"""ROAD against a dense system an image and percentage, and pytorch-grad-cam's imputation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn
from torch.nn import functional as F

from _oracles import distinct, softmax
from backlit import InputError
from backlit.metrics import Examples, RoadLeRF, RoadMoRF
from backlit.metrics.imputation import imputed

SIDE = 14
WEIGHTS = {(dy, dx): 1 / 6 if 0 in (dy, dx) else 1 / 12 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)}


def solved(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Solve each missing pixel's equation: its value is the weighted mean of the neighbours that there are."""
    _, height, width = image.shape
    places = [(y, x) for y in range(height) for x in range(width) if missing[y, x]]
    number = {place: i for i, place in enumerate(places)}
    rows, columns, entries, right = [], [], [], np.zeros((len(places), len(image)))
    for i, (y, x) in enumerate(places):
        total = 0.0
        for (dy, dx), weight in WEIGHTS.items():
            place = (y + dy, x + dx)
            if not (0 <= place[0] < height and 0 <= place[1] < width):
                continue
            total += weight
            if place in number:
                rows, columns, entries = [*rows, i], [*columns, number[place]], [*entries, -weight]
            else:
                right[i] += weight * image[:, place[0], place[1]]
        rows, columns, entries = [*rows, i], [*columns, i], [*entries, total]
    filled = image.copy()
    filled[:, *np.array(places).T] = spsolve(csc_matrix((entries, (rows, columns))), right).reshape(len(places), -1).T
    return filled


def smooth(shape: tuple[int, ...], cells: int, seed: int) -> Tensor:
    low = torch.randn(*shape[:2], cells, cells, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.interpolate(low, shape[2:], mode="bilinear")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(14, 14), (33, 21), (7, 40), (1, 9), (2, 2)], ids=str)
def test_imputation_equals_a_direct_solver(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Scattered holes, holes of whole regions, and nearly nothing left, many systems at once."""
    x = (smooth((6, 3, *size), 4, 0) + 0.3 * distinct((6, 3, *size), 1)).to(dtype)
    heat = torch.cat([distinct((3, 1, *size), 2), smooth((3, 1, *size), 3, 3) + 1e-6 * distinct((3, 1, *size), 4)])
    ranks = heat.flatten(1).argsort(1).argsort(1).view_as(heat)
    shares = torch.tensor([0.1, 0.5, 0.9] * 2).view(-1, 1, 1, 1)
    missing = ranks < (shares * size[0] * size[1]).int().clamp(min=1)
    found = imputed(x, missing)
    assert found.dtype == dtype
    for i in range(6):
        expected = solved(x[i].double().numpy(), missing[i, 0].numpy())
        np.testing.assert_allclose(found[i].numpy(), expected, atol=6e-4)
    assert torch.equal(found.where(~missing, 0), x.where(~missing, 0))


def test_imputation_of_a_photographs_size_equals_pytorch_grad_cams() -> None:
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    x = (smooth((1, 3, 150, 160), 20, 0) + 0.2 * distinct((1, 3, 150, 160), 1)).float()
    heat = smooth((1, 1, 150, 160), 6, 2)[0, 0]
    for share in (0.2, 0.9):
        missing = heat > heat.flatten().quantile(1 - share)
        expected = NoisyLinearImputer(noise=0.0)(x[0], (~missing).float())
        assert float((imputed(x, missing[None, None])[0] - expected).abs().max()) < 1e-3


def test_systems_do_not_depend_on_each_other_and_nothing_missing_is_nothing_changed() -> None:
    x, missing = distinct((5, 2, 20, 23), 1), distinct((5, 1, 20, 23), 2) > 0
    x[3] *= 1e4  # whose residual is to be no measure for the others
    missing[1], missing[2] = False, True
    missing[2, 0, 19, 22] = False
    whole = imputed(x, missing)
    for i in range(5):
        torch.testing.assert_close(imputed(x[i : i + 1], missing[i : i + 1])[0], whole[i], rtol=1e-10, atol=1e-12)
    assert torch.equal(whole[1], x[1])
    torch.testing.assert_close(whole[2], x[2, :, 19:, 22:].expand(2, 20, 23), rtol=0, atol=1e-3)
    scaled = imputed(x * 1000 + 5e4, missing)  # the tolerance follows the image's range
    torch.testing.assert_close((scaled[:3] - 5e4) / 1000, whole[:3], rtol=0, atol=1e-3)
    half = imputed(x.bfloat16(), missing)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), imputed(x.bfloat16().double(), missing), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [RoadMoRF, RoadLeRF], ids=lambda m: m.name)
def test_equal_to_the_protocol(kind, network: nn.Module, examples: Examples) -> None:
    heat, percentages = distinct((4, 1, SIDE, SIDE), 5), (10, 45.5, 90)
    metric = kind(percentages=percentages, noise=0)
    scores = metric(network, examples, {"a": heat})
    for i in range(4):
        curve, right = [], []
        for percentage in percentages:
            values = heat[i, 0].numpy() * (1 if kind is RoadLeRF else -1)
            first = sorted(np.ndindex(SIDE, SIDE), key=lambda place: values[place])
            missing = np.zeros((SIDE, SIDE), bool)
            for place in first[: int(percentage / 100 * SIDE * SIDE)]:
                missing[place] = True
            with torch.no_grad():
                logits = network(torch.from_numpy(solved(examples.inputs[i].numpy(), missing))[None])[0].numpy()
            curve.append(softmax(logits)[int(examples.target[i])])
            right.append(logits.argmax() == int(examples.target[i]))
        np.testing.assert_allclose(scores.curves["a"][i], curve, atol=1e-4)
        np.testing.assert_allclose(scores.values["a"][i], np.mean(curve), atol=1e-4)
        np.testing.assert_allclose(scores.extra["accuracy"]["a"][i], np.mean(right))
    accuracy = scores.extra["accuracy"]["a"].mean()
    assert f"accuracy, mean over percentages: a {accuracy:.3f}" in scores.remarks


def test_the_noise_is_on_removed_pixels_of_every_map_alike(network: nn.Module, examples: Examples) -> None:
    seen: list[Tensor] = []

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return network(x)

    heat = distinct((4, 1, SIDE, SIDE), 5)
    metric = RoadMoRF(percentages=(50,), noise=0.25, chunk=100)
    images = []
    for one in (metric, replace(metric, noise=0.0), replace(metric, seed=1)):
        seen.clear()
        one(Seen().eval(), examples, {"a": heat, "b": heat})
        images.append(seen[-1].view(4, 2, 3, SIDE, SIDE))
    noise = images[0] - images[1]
    removed = heat > heat.flatten(1).median(1).values.view(4, 1, 1, 1)
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert torch.equal((noise[:, 0] != 0).all(1, keepdim=True), removed)
    assert abs(float(noise.square().sum() / removed.sum() / 6) ** 0.5 - 0.25) < 0.02
    assert not torch.equal(images[0], images[2])


def test_a_network_that_gives_no_number_is_counted(network: nn.Module, examples: Examples) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            changed = (x != examples.inputs[2]).any((1, 2, 3))
            alike = (x == examples.inputs[2]).float().mean((1, 2, 3)) > 0.2
            return torch.where((changed & alike)[:, None], torch.nan, network(x))

    scores = RoadMoRF(percentages=(50,))(Broken().eval(), examples, {"a": distinct((4, 1, SIDE, SIDE), 1)})
    assert np.isnan(scores.values["a"]).tolist() == [False, False, True, False]
    assert "1 images not scored: the network's output is not finite" in scores.remarks


def test_bad_options_are_refused(network: nn.Module, examples: Examples) -> None:
    for wrong in ((), (0,), (100,), 50, ("10",)):
        with pytest.raises(
            InputError, match=r"percentages must be numbers above 0 and below 100, such as \(10, 50, 90\)"
        ):
            RoadMoRF(percentages=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="noise must be a number from 0, but is -1"):
        RoadMoRF(noise=-1)
    with pytest.raises(InputError, match="activation must be 'softmax' or 'sigmoid'"):
        RoadLeRF(activation="none")  # type: ignore[arg-type]
    beyond = replace(examples, target=examples.target + 9, labels=None)
    with pytest.raises(
        InputError, match=r"target must be a class index from 0 to 4, but reaches from .* the model has 5 classes"
    ):
        RoadMoRF()(network, beyond, {"a": distinct((4, 1, SIDE, SIDE), 1)})
