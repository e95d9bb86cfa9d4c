"""AIC and SIC against PAIR's, on the same pictures and first pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from _oracles import distinct
from backlit import InputError
from backlit.metrics import AIC, SIC, Examples
from backlit.metrics.pictures import entropy, filled, information_curve

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 30


def pictures(n: int, channels: int = 3) -> np.ndarray:
    low = distinct((n, channels, 5, 5), 4)
    smooth = nn.functional.interpolate(low, (SIDE, SIDE), mode="bicubic") + 0.2 * distinct((n, channels, SIDE, SIDE), 5)
    return (90 + 40 * smooth).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def normalised(some: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    return (torch.from_numpy(some).permute(0, 3, 1, 2).double() / 255 - mean) / std


class Likeness(nn.Module):
    """A network that knows its images: the class of the one that is the most alike, and one more where none is like enough."""

    def __init__(self, images: Tensor, enough: float) -> None:
        super().__init__()
        self.register_buffer("images", images)
        self.enough = enough

    def forward(self, x: Tensor) -> Tensor:
        apart = (x[:, None] - self.images).square().mean((2, 3, 4))
        return -4 * torch.cat([apart, torch.full_like(apart[:, :1], self.enough)], 1)


@pytest.fixture(scope="module")
def sure() -> tuple[nn.Module, Examples, np.ndarray]:
    shown = pictures(4)
    x = normalised(shown)
    nothing = normalised(np.stack([filled(picture, np.zeros((SIDE, SIDE), bool)) for picture in shown]))
    enough = 0.25 * float((nothing - x).square().mean((1, 2, 3)).min())
    return Likeness(x + 0.1 * distinct(tuple(x.shape), 9), enough).eval(), Examples(x, torch.arange(4)), shown


@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("kind", [AIC, SIC], ids=lambda m: m.name)
def test_equal_to_pairs(kind, monotone: bool, sure, monkeypatch: pytest.MonkeyPatch) -> None:
    from saliency.metrics import pic

    monkeypatch.setattr(
        np, "trapz", np.trapezoid, raising=False
    )  # which it calls, and newer versions of NumPy have not
    network, examples, shown = sure
    maps = {"a": distinct((4, 1, SIDE, SIDE), 1), "b": distinct((4, 3, SIDE, SIDE), 2)}
    metric = kind(mean=MEAN, std=STD, monotone=monotone, least=0.3)
    scores = metric(network, examples, maps)
    compared = 0
    for i in range(4):

        def predict(some: np.ndarray, i: int = i) -> list[float]:
            with torch.no_grad():
                logits = network(normalised(some))
            return (logits.softmax(1)[:, i] if kind is SIC else (logits.argmax(1) == i).double()).tolist()

        for name, given in maps.items():
            heat = given[i].sum(0).numpy()
            try:
                expected = pic.compute_pic_metric(
                    shown[i], heat, metric._first(examples.inputs[i]), predict, metric.thresholds, 0.3, monotone
                )
            except pic.ComputePicMetricError:
                assert np.isnan(scores.values[name][i])
                continue
            compared += 1
            np.testing.assert_allclose(scores.values[name][i], expected.auc, atol=1e-6)
            np.testing.assert_allclose(scores.curves[name][i], expected.curve_y[::10], atol=1e-6)
    assert compared >= 4


def test_a_map_of_what_matters_scores_higher(sure) -> None:
    network, examples, _ = sure
    others = torch.stack([network.images[torch.arange(4) != i].mean(0) for i in range(4)])
    good = (examples.inputs - others).square().sum(1, keepdim=True)
    scores = SIC(mean=MEAN, std=STD, least=0.3)(network, examples, {"good": good, "bad": -good})
    assert (scores.values["good"] > scores.values["bad"]).all()
    assert scores.estimate("good").value > scores.estimate("bad").value + 0.05


def test_images_that_the_protocol_does_not_fit_are_counted_by_their_reason(sure) -> None:
    network, examples, _ = sure
    x = examples.inputs.clone()
    x[1] = x[1].mean((1, 2), keepdim=True)  # nothing to take away
    target = torch.tensor([0, 1, 3, 3])  # not what image 2 shows
    heat = {"a": distinct((4, 1, SIDE, SIDE), 1)}

    class Sure(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            logits = network(given)
            flat = given.flatten(1).std(1, keepdim=True) < 0.5
            return torch.where(flat, 50 * nn.functional.one_hot(torch.tensor(1), 5), logits)

    scores = SIC(mean=MEAN, std=STD, least=0.3)(Sure().eval(), Examples(x, target), heat)
    assert np.isnan(scores.values["a"]).tolist() == [False, True, True, False]
    assert "1 images not scored: their score is below `least`" in scores.remarks
    assert "1 images not scored: without pixels they take as many bytes" in scores.remarks

    class Blind(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return given.new_tensor([[9.0, 0, 0, 0]]).expand(len(given), 4)

    for kind in (AIC, SIC):
        blind = kind()(Blind().eval(), Examples(examples.inputs[:1], torch.tensor([0])), {"a": heat["a"][:1]})
        assert np.isnan(blind.values["a"]).all()
        assert "1 images not scored: without pixels they score as high" in blind.remarks


@pytest.mark.parametrize("kind", [AIC, SIC], ids=lambda m: m.name)
def test_a_network_that_gives_no_number_is_not_scored(kind, sure) -> None:
    class Broken(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return given.new_full((len(given), 4), torch.nan)

    scores = kind()(Broken().eval(), sure[1], {"a": distinct((4, 1, SIDE, SIDE), 1)})
    assert np.isnan(scores.values["a"]).all()
    assert "4 images not scored: their score is below `least`" in scores.remarks


def test_without_a_normalisation_the_range_of_the_image_makes_the_picture(sure) -> None:
    """Any scale and shift of the input gives the same pictures."""
    network, examples, _ = sure

    class Moved(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return network((given - 7) / 3)

    heat = {"a": distinct((4, 1, SIDE, SIDE), 1)}
    # The first pixels are drawn from the image's bytes, and would be others.
    metric = SIC(least=0.3, fraction=0.0)
    one, other = (
        metric(network, examples, heat),
        metric(Moved().eval(), Examples(examples.inputs * 3 + 7, examples.target), heat),
    )
    np.testing.assert_allclose(one.values["a"], other.values["a"], atol=1e-6)
    assert np.isfinite(one.values["a"]).any()


def test_filled_is_linear_between_known_pixels_and_grey_pictures_are_pictures() -> None:
    ramp = np.add.outer(np.arange(0, 100, 5), np.arange(0, 60, 3)).astype(np.uint8)[..., None]
    known = np.zeros((20, 20), bool)
    known[3, 4] = known[15, 9] = True
    assert np.array_equal(filled(ramp, known), ramp)
    assert not known[0, 0]
    noise = pictures(1, 1)[0]
    assert entropy(ramp) < entropy(noise)
    assert filled(noise, np.ones((SIDE, SIDE), bool)) is noise
    assert (
        filled(noise, known=np.zeros((SIDE, SIDE), bool))[[0, 0, -1, -1], [0, -1, 0, -1]]
        == noise[[0, 0, -1, -1], [0, -1, 0, -1]]
    ).all()


def test_a_curve_goes_from_nothing_to_the_image() -> None:
    curve = information_curve([0.5, 0.25, 1.5], [0.5, 0.2, -3], monotone=False)
    np.testing.assert_allclose(curve[[0, 125, 250, 500, 750, 1000]], [0, 0.1, 0.2, 0.5, 0.25, 1])
    rising = information_curve([0.25, 0.5, 0.75], [0.5, 0.2, 0.6], monotone=True)
    np.testing.assert_allclose(rising[[250, 500, 750]], [0.5, 0.5, 0.6])


def test_bad_options_are_refused(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ((), (0, 0.5), (0.5, 0.1), (1.0,), 0.5):
        with pytest.raises(InputError, match=r"thresholds must be rising numbers above 0 and below 1"):
            SIC(thresholds=wrong)  # type: ignore[arg-type]
    for name in ("fraction", "least"):
        with pytest.raises(InputError, match=f"{name} must be from 0 to 1, but is 2"):
            SIC(**{name: 2})
    with pytest.raises(InputError, match=r"std must be as many positive numbers as mean has"):
        SIC(mean=MEAN)
    with pytest.raises(InputError, match=r"std must be as many positive numbers as mean has"):
        AIC(std=STD)
    with pytest.raises(InputError, match=r"std must be as many positive numbers as mean has"):
        SIC(mean=MEAN, std=(1, 1, 0))
    with pytest.raises(InputError, match=r"mean must be a number for each channel, or None"):
        SIC(mean=0.5, std=0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"monotone must be True or False"):
        SIC(monotone=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"activation must be 'softmax' or 'sigmoid'"):
        SIC(activation="none")  # type: ignore[arg-type]
    examples, heat = (
        Examples(torch.randn(1, 3, SIDE, SIDE).double(), torch.tensor([0])),
        {"a": torch.randn(1, 1, SIDE, SIDE)},
    )
    with pytest.raises(
        InputError,
        match=r"needs pictures of 1 or 3 channels, and as many numbers in mean and std, but the images have 3",
    ):
        SIC(mean=(0.5,), std=(0.5,))(network, examples, heat)
    monkeypatch.setattr("backlit.metrics.information.features.check", lambda name: False)
    with pytest.raises(InputError, match="needs a Pillow that writes WebP"):
        SIC()(network, examples, heat)
    monkeypatch.setattr("backlit.metrics.information.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs SciPy, which scikit-image brings: pip install 'backlit\[regions\]'"):
        SIC()(network, examples, heat)
