"""Steps behind a method, against NumPy's and SciPy's own transforms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import backlit
from _commands import command
from backlit import Attribution, Examples, InputError
from backlit.metrics import Deletion, Insertion
from backlit.post import Cutoffs, LowPass, PostStep, Smooth, choose_cutoff, read_step
from backlit.report.kinds import title_of

DIGITS = backlit.load_model("digits")
IMAGES, LABELS = (part[:4] for part in backlit.models.digits.digits_images())
X = DIGITS.preprocess.batch(IMAGES)
MAPS = backlit.GradientXInput(DIGITS)(X, LABELS)


def random_map(h: int = 21, w: int = 30, dtype: torch.dtype = torch.float64) -> Attribution:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(2, 3, h, w, generator=generator, dtype=torch.float64).to(dtype)
    return Attribution(values, torch.zeros(2, dtype=torch.long), torch.zeros(2))


@pytest.mark.parametrize("size", [(21, 30), (30, 21), (16, 16), (1, 9), (7, 1)])
@pytest.mark.parametrize("cutoff", [0.01, 0.134, 0.5, 1.0])
@pytest.mark.parametrize("shape", ["ideal", "gaussian"])
def test_a_low_pass_is_numpys_transform_with_the_high_frequencies_cut(
    size: tuple[int, int], cutoff: float, shape: str
) -> None:
    one = random_map(*size)
    spectrum = np.fft.fft2(one.values.numpy())
    for i, fy in enumerate(np.fft.fftfreq(size[0])):
        for j, fx in enumerate(np.fft.fftfreq(size[1])):
            share = np.sqrt(fx**2 + fy**2) / 0.5
            passed = float(share <= cutoff + 1e-9) if shape == "ideal" else np.exp(-(share**2) / (2 * cutoff**2))
            spectrum[..., i, j] *= passed
    found = one.low_pass(cutoff, shape=shape)
    torch.testing.assert_close(found.values, torch.from_numpy(np.fft.ifft2(spectrum).real))


@pytest.mark.parametrize("sigma", [2.5, 4.0])
def test_smoothing_is_scipys_gaussian_with_mirrored_edges(sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    one = random_map()
    expected = ndimage.gaussian_filter(one.values.numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=12)
    torch.testing.assert_close(one.smooth(sigma).values, torch.from_numpy(expected), atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("step", [LowPass(), LowPass(cutoff=0.3, shape="gaussian"), Smooth(sigma=2)], ids=str)
def test_the_sum_stays_and_so_does_what_the_map_accounts_for(step: PostStep) -> None:
    found = step(MAPS)
    assert not torch.allclose(found.values, MAPS.values, atol=1e-3)
    torch.testing.assert_close(found.values.sum((2, 3)), MAPS.values.sum((2, 3)), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.completeness["biases"], MAPS.completeness["biases"])
    assert torch.equal(MAPS.values, backlit.GradientXInput(DIGITS).attribute(X, LABELS))  # the first is left alone


def test_channels_may_be_reduced_first() -> None:
    one = random_map()
    found = one.low_pass(0.3, reduce="abs")
    expected = Attribution(one.heatmap("abs"), one.target, one.output).low_pass(0.3).values
    torch.testing.assert_close(found.values, expected)
    assert found.values.shape[1] == 1
    assert "biases" in MAPS.low_pass(reduce="sum").completeness
    assert not MAPS.low_pass(reduce="abs").completeness


def test_parts_are_filtered_but_for_masks() -> None:
    found = backlit.DMBP(DIGITS, steps=2)(X[:1], 3)
    after = found.smooth(2)
    masks = [k for k in found.parts if k.startswith("mask")]
    assert all(torch.equal(after.parts[k], found.parts[k]) for k in masks)
    assert all(not torch.equal(after.parts[k], found.parts[k]) for k in found.parts if k not in masks)


def test_the_result_says_what_was_done(tmp_path: Path) -> None:
    found = MAPS.low_pass(0.2).smooth(1.5)
    assert found.provenance["post"] == [
        {"step": "low_pass", "cutoff": 0.2, "shape": "ideal"},
        {"step": "smooth", "sigma": 1.5},
    ]
    assert title_of(found) == "Gradient × input, low-pass 0.2, smooth 1.5"
    found.save(tmp_path / "map.safetensors")
    assert Attribution.load(tmp_path / "map.safetensors").provenance["post"] == found.provenance["post"]
    with pytest.raises(InputError, match="items must have the same post to be joined"):
        Attribution.cat([MAPS, found])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    found = random_map(dtype=dtype).low_pass(0.4).smooth(1)
    assert found.values.dtype == dtype
    expected = random_map().low_pass(0.4).smooth(1).values
    torch.testing.assert_close(found.values.double(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 0}, "cutoff must be a number above 0 and at most 1, but is 0"),
        ({"cutoff": 1.5}, "cutoff must be a number above 0 and at most 1, but is 1.5"),
        ({"cutoff": True}, "cutoff must be a number above 0"),
        ({"cutoff": float("nan")}, "cutoff must be a number above 0"),
        ({"shape": "box"}, "shape must be 'ideal' or 'gaussian', but is 'box'"),
        ({"reduce": "mean"}, "reduce must be 'sum', 'abs', 'max', 'norm', or None, but is 'mean'"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MAPS.low_pass(**options)  # type: ignore[arg-type]


def test_mistakes_of_smoothing() -> None:
    with pytest.raises(InputError, match="sigma must be a positive number up to 10,000, but is -1"):
        MAPS.smooth(-1)


def test_words_of_the_command_line() -> None:
    assert read_step("low_pass:0.2") == LowPass(cutoff=0.2)
    assert read_step("smooth:2") == Smooth(sigma=2.0)
    assert read_step("smooth") == Smooth()
    for text, message in (
        ("lowpass:0.2", "post must be low_pass:CUTOFF or smooth:SIGMA, but is 'lowpass:0.2'. Did you mean 'low_pass'"),
        ("smooth:a", "post must have a number behind smooth:, but is 'smooth:a'"),
        ("low_pass:7", "cutoff must be a number above 0 and at most 1, but is 7.0"),
    ):
        with pytest.raises(InputError, match=message):
            read_step(text)


def test_explain_takes_steps_and_knows_them_again(tmp_path: Path) -> None:
    scene, out = tmp_path / "scene.png", tmp_path / "out"
    Image.fromarray(backlit.models.digits.demo_scenes().images[0].numpy()).save(scene)
    words = ("explain", scene, "--method", "gradient_x_input", "--target", "3", "--out", out)
    done = command(*words, "--post", "low_pass:0.25", "--post", "smooth:1")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((out / "summary.json").read_text(encoding="utf-8"))["maps"]
    kept = Attribution.load(out / row["map"])
    plain = backlit.GradientXInput(DIGITS)(kept.inputs, 3)
    torch.testing.assert_close(kept.values, plain.low_pass(0.25).smooth(1).values)
    assert [step["step"] for step in row["provenance"]["post"]] == ["low_pass", "smooth"]
    assert "were there" in command(*words, "--post", "low_pass:0.25", "--post", "smooth:1").stdout
    assert "asked for otherwise" in (refused := command(*words)).stderr + refused.stdout
    assert refused.returncode != 0
    wrong = command(*words, "--post", "low_pass:2")
    assert "cutoff must be a number above 0 and at most 1" in wrong.stderr + wrong.stdout


@pytest.mark.parametrize("metric", [Insertion(steps=8), Deletion(steps=8)], ids=lambda m: m.name)
def test_the_cutoff_is_the_one_that_the_metric_likes_best(metric: backlit.metrics.Metric) -> None:
    examples = Examples(X, LABELS)
    tried = (0.1, 0.3, 0.9)
    found = choose_cutoff(DIGITS.network, examples, MAPS, metric, tried)
    means = {c: metric(DIGITS.network, examples, {"a": MAPS.low_pass(c)}).estimate("a").value for c in tried}
    assert found.best == (max if metric.higher_is_better else min)(means, key=lambda c: means[c])
    assert {c: found.scores[c] for c in tried} == pytest.approx(means)
    assert found.scores[None] == pytest.approx(metric(DIGITS.network, examples, {"a": MAPS}).estimate("a").value)
    assert isinstance(found, Cutoffs)


def test_no_cutoff_to_try() -> None:
    examples = Examples(X, LABELS)
    with pytest.raises(InputError, match="cutoffs must hold at least one number"):
        choose_cutoff(DIGITS.network, examples, MAPS, Insertion(steps=4), ())
    with pytest.raises(InputError, match=r"cutoff must be a number above 0 and at most 1, but is 2\.0"):
        choose_cutoff(DIGITS.network, examples, MAPS, Insertion(steps=4), (0.5, 2.0))
