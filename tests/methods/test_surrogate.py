"""LIME and KernelSHAP against regressions written out, scikit-learn, Captum, and Shapley's formula over all subsets."""

from __future__ import annotations

import sys
from itertools import combinations
from math import exp, factorial, sqrt

import pytest
import torch
from torch import Tensor, nn

import backlit
from backlit import InputError, KernelSHAP
from backlit.methods.surrogate import LIME, Surrogate

DIGITS = backlit.load_model("digits", dtype="float64")
IMAGES, LABELS = (part[:3] for part in backlit.models.digits.digits_images())
X = DIGITS.preprocess.batch(IMAGES).double()
CELLS = torch.arange(8).view(2, 4).repeat_interleave(16, 0).repeat_interleave(8, 1)
KINDS = pytest.mark.parametrize("kind", [LIME, KernelSHAP], ids=lambda m: m.name)


def score(x: Tensor, seen: Tensor, target: int, labels: Tensor = CELLS, baseline: float = 0.0) -> float:
    """The logit of one image (c, h, w) of which the superpixels are seen as a row of zeros and ones says."""
    image = torch.where(seen[labels] > 0, x, baseline)
    with torch.no_grad():
        return float(DIGITS.network(image[None])[0, target])


def coefficients(explanation: backlit.Attribution, i: int = 0) -> Tensor:
    return explanation.parts["coefficient"][i, 0, ::16, ::8].flatten()


class TestLIME:
    def test_is_the_authors_regression(self) -> None:
        """Weighted least squares with a penalty of one and a free constant, as normal equations of all unknowns."""
        method = LIME(DIGITS.network, labels=CELLS, samples=80)
        seen = method.design(8).seen
        found = method(X[:1], LABELS[:1])
        scores = torch.tensor([score(X[0], z, int(LABELS[0])) for z in seen], dtype=torch.float64)
        weights = [sqrt(exp(-((1 - sqrt(float(z.sum()) / 8)) ** 2) / 0.25**2)) for z in seen]
        gram, right = torch.zeros(9, 9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
        for z, y, w in zip(seen, scores, weights, strict=True):
            row = torch.cat([z, torch.ones(1, dtype=torch.float64)])
            gram, right = gram + w * row[:, None] * row, right + w * y * row
        solved = torch.linalg.solve(gram + torch.diag(torch.tensor([1.0] * 8 + [0.0])).double(), right)
        torch.testing.assert_close(coefficients(found), solved[:8])
        w = torch.tensor(weights, dtype=torch.float64)
        rest, mean = scores - seen @ solved[:8] - solved[8], (w * scores).sum() / w.sum()
        r2 = 1 - (w * rest**2).sum() / (w * (scores - mean) ** 2).sum()
        torch.testing.assert_close(found.completeness["r2"][0], r2)

    def test_is_scikit_learns_ridge(self) -> None:
        linear = pytest.importorskip("sklearn.linear_model")
        method = LIME(DIGITS.network, labels=CELLS, samples=60, width=0.4, ridge=2.0)
        design = method.design(8)
        scores = [score(X[1], z, 4) for z in design.seen]
        model = linear.Ridge(alpha=2.0).fit(design.seen, scores, sample_weight=design.weights)
        found = method(X, [0, 4, 2])
        torch.testing.assert_close(coefficients(found, 1), torch.from_numpy(model.coef_))
        r2 = model.score(design.seen, scores, sample_weight=design.weights)
        assert float(found.completeness["r2"][1]) == pytest.approx(r2)

    def test_is_captums_on_the_same_samples(self) -> None:
        captum = pytest.importorskip("captum.attr")
        from captum._utils.models.linear_model import SkLearnRidge

        method = LIME(DIGITS.network, labels=CELLS, samples=50)
        seen = list(method.design(8).seen)
        rows = iter(seen)
        theirs = captum.Lime(
            DIGITS.network,
            SkLearnRidge(alpha=1.0),
            similarity_func=lambda _, __, z, **k: torch.tensor(
                [sqrt(exp(-((1 - sqrt(float(z.double().mean()))) ** 2) / 0.0625))]
            ),
            perturb_func=lambda _, **k: next(rows)[None].long(),
        )
        expected = theirs.attribute(X[:1], target=3, feature_mask=CELLS[None, None], n_samples=50)
        found = method(X[:1], 3).parts["coefficient"]
        torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-4)  # captum fits in single precision

    def test_the_first_copy_is_the_image_and_the_others_see_half(self) -> None:
        seen = LIME(DIGITS.network, samples=3000).design(20).seen
        assert bool((seen[0] == 1).all())
        assert float(seen[1:].mean()) == pytest.approx(0.5, abs=0.01)

    def test_a_linear_score_is_explained_whole(self) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)).double().eval()
        found = LIME(net, labels=CELLS, samples=200, ridge=0)(X, 1)
        torch.testing.assert_close(found.completeness["r2"], torch.ones(3, dtype=torch.float64))
        shares = (
            (net[1].weight[1].detach().view(32, 32) * X[:, 0]).unflatten(2, (4, 8)).unflatten(1, (2, 16)).sum((2, 4))
        )
        for i in range(3):
            torch.testing.assert_close(coefficients(found, i), shares[i].flatten())
        torch.testing.assert_close(found.values.sum((1, 2, 3)), shares.sum((1, 2)))


class TestKernelSHAP:
    def test_is_shapleys_value_where_all_subsets_run(self) -> None:
        found = KernelSHAP(DIGITS.network, labels=CELLS, samples=254)(X, LABELS)
        for i in range(3):
            values = {
                subset: score(X[i], torch.tensor([float(j in subset) for j in range(8)]), int(LABELS[i]))
                for k in range(9)
                for subset in map(frozenset, combinations(range(8), k))
            }
            expected = torch.zeros(8, dtype=torch.float64)
            for j in range(8):
                for subset in (s for s in values if j not in s):
                    weight = factorial(len(subset)) * factorial(7 - len(subset)) / factorial(8)
                    expected[j] += weight * (values[subset | {j}] - values[subset])
            torch.testing.assert_close(coefficients(found, i), expected)

    @pytest.mark.parametrize("samples", [1, 3, 20, 200, 2000])
    def test_the_map_sums_to_the_difference_however_few_samples(self, samples: int) -> None:
        found = KernelSHAP(DIGITS.network, samples=samples, segments=12, baseline="mean")(X, LABELS)
        baseline = X.mean((2, 3), keepdim=True).expand_as(X)
        difference = (DIGITS.network(X) - DIGITS.network(baseline)).gather(1, LABELS[:, None])[:, 0].detach()
        torch.testing.assert_close(found.values.sum((1, 2, 3)), difference)
        torch.testing.assert_close(found.completeness["difference"], difference)
        assert float(found.completeness["gap"].abs().max()) < 1e-9

    def test_is_the_constrained_regression_of_its_samples(self) -> None:
        """Least squares over the draws under the sum's constraint, by a Lagrange multiplier."""
        method = KernelSHAP(DIGITS.network, labels=CELLS, samples=100)
        seen = method.design(8).seen[1:]
        own, none = (score(X[0], torch.full((8,), float(v)), 5) for v in (1, 0))
        right = torch.tensor([score(X[0], z, 5) - none for z in seen], dtype=torch.float64)
        system = torch.ones(9, 9, dtype=torch.float64)
        system[:8, :8], system[8, 8] = seen.mT @ seen, 0
        solved = torch.linalg.solve(system, torch.cat([seen.mT @ right, torch.tensor([own - none]).double()]))
        torch.testing.assert_close(coefficients(method(X[:1], 5)), solved[:8])

    def test_samples_come_near_the_exact_values_and_nearer_with_more(self) -> None:
        exact = KernelSHAP(DIGITS.network, labels=CELLS, samples=254).attribute(X, LABELS)
        far = [
            float(
                (KernelSHAP(DIGITS.network, labels=CELLS, samples=n).attribute(X, LABELS) - exact).norm() / exact.norm()
            )
            for n in (20, 100, 250)
        ]
        assert far[2] < far[1] < far[0]
        assert far[2] < 0.15

    def test_captums_comes_near_the_same_values(self) -> None:
        captum = pytest.importorskip("captum.attr")
        torch.manual_seed(0)
        expected = captum.KernelShap(DIGITS.network).attribute(
            X[:1], target=3, feature_mask=CELLS[None, None], n_samples=600
        )
        found = KernelSHAP(DIGITS.network, labels=CELLS, samples=254)(X[:1], 3).parts["coefficient"]
        assert float((found - expected).norm() / found.norm()) < 0.15

    def test_sizes_are_drawn_by_the_shapley_kernel_and_in_pairs(self) -> None:
        seen = KernelSHAP(DIGITS.network, samples=20_000).design(20).seen[1:]
        assert bool((seen[::2] + seen[1::2] == 1).all())
        counts = torch.bincount(seen.sum(1).long(), minlength=21).double() / len(seen)
        wanted = torch.tensor([19 / (k * (20 - k)) if 0 < k < 20 else 0.0 for k in range(21)], dtype=torch.float64)
        torch.testing.assert_close(counts, wanted / wanted.sum(), atol=0.01, rtol=0)
        torch.testing.assert_close(seen.mean(0), torch.full((20,), 0.5, dtype=torch.float64), atol=0.01, rtol=0)

    def test_one_superpixel_has_it_all(self) -> None:
        found = KernelSHAP(DIGITS.network, labels=torch.zeros(32, 32, dtype=torch.long))(X, 3)
        torch.testing.assert_close(found.values.sum((1, 2, 3)), found.completeness["difference"])
        assert float(found.completeness["r2"].min()) == 1


@KINDS
class TestBoth:
    def test_images_with_other_numbers_of_superpixels(self, kind: type[Surrogate]) -> None:
        """Each has the map that it has alone, though a chunk's designs are padded."""
        labels = torch.stack([CELLS, CELLS % 3, CELLS * 100 + 7])
        whole = kind(DIGITS.network, labels=labels, samples=300)(X, LABELS)
        for i in range(3):
            alone = kind(DIGITS.network, labels=labels[i], samples=300)(X[i : i + 1], LABELS[i : i + 1])
            torch.testing.assert_close(alone.values[0], whole.values[i])
            torch.testing.assert_close(alone.completeness["r2"][0], whole.completeness["r2"][i])
        chunked = kind(DIGITS.network, labels=labels, samples=300, chunk=2)(X, LABELS)
        torch.testing.assert_close(chunked.values, whole.values)

    def test_a_map_is_its_coefficients_over_their_pixels(self, kind: type[Surrogate]) -> None:
        found = kind(DIGITS.network, labels=CELLS, samples=40)(X, 2)
        torch.testing.assert_close(found.values * 128, found.parts["coefficient"])
        assert found.provenance["superpixels"] == "given"
        assert kind(DIGITS.network, segments=9, samples=40)(X, 2).provenance["superpixels"] == "SLIC"

    def test_several_inputs_are_altered_in_turn(self, kind: type[Surrogate]) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return torch.stack([x.sum((1, 2, 3)), (y.sum((1, 2, 3)) * 3)], 1)

        y = X.flip(3)
        first, second = kind(Two(), labels=(CELLS, CELLS % 4), samples=300)((X, y), [1, 1, 1])
        assert float(first.values.abs().max()) < 1e-9
        assert float(second.values.abs().max()) > 0.01

    def test_single_precision_and_half(self, kind: type[Surrogate]) -> None:
        exact = kind(DIGITS.network, labels=CELLS, samples=100).attribute(X, LABELS)
        for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
            network = backlit.load_model("digits").network.to(dtype)
            found = kind(network, labels=CELLS, samples=100).attribute(X.to(dtype), LABELS)
            assert found.dtype == dtype
            assert float((found.double() - exact).norm() / exact.norm()) < near

    def test_bad_input(self, kind: type[Surrogate], monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(match: str, **options: object) -> None:
            with pytest.raises(InputError, match=match):
                kind(DIGITS.network, **options)(X, 1)  # type: ignore[arg-type]

        refused(r"segments must be at most 1024, the pixels of an image of 32x32, but is 2000", segments=2000)
        refused(r"segments must be a positive integer", segments=0)
        refused(r"samples must be a positive integer", samples=0)
        refused(
            r"labels must have one number for each pixel, \(32, 32\) for all images or \(3, 32, 32\), but",
            labels=CELLS[:8],
        )
        refused(r"labels must be whole numbers \(h, w\) or \(n, h, w\)", labels=CELLS.float())
        refused(r"labels must be whole numbers", labels=())
        refused(r"labels must be one tensor for each of 1 inputs, but has 2", labels=(CELLS, CELLS))
        refused(r"baseline must be shaped as one image, \(1, 32, 32\)", baseline=torch.zeros(3, 32, 32), samples=4)
        monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
        refused(r"segments: superpixels need scikit-image.*pip install backlit\[surrogates\]. Or give labels")
        assert kind(DIGITS.network, labels=CELLS, samples=4)(X, 1).values.isfinite().all()


@pytest.mark.parametrize("options", [{"width": 0}, {"width": "a"}, {"ridge": -1}, {"ridge": True}])
def test_bad_options_of_lime(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} must be a (positive )?number"):
        LIME(DIGITS.network, **options)  # type: ignore[arg-type]


def test_labels_of_each_image_follow_it_into_noisy_copies() -> None:
    from backlit import SmoothGrad
    from backlit.methods.base import NO_NETWORK

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    rows = torch.arange(4)[:, None].expand(4, 4)
    labels = torch.stack([rows, rows.T, rows // 2])
    lime = LIME(NO_NETWORK, labels=labels, samples=8)
    whole = SmoothGrad(network, of=lime, samples=3).attribute(x, 1)
    for i in range(3):
        alone = SmoothGrad(network, of=LIME(NO_NETWORK, labels=labels[i], samples=8), samples=3)
        torch.testing.assert_close(whole[i : i + 1], alone.attribute(x[i : i + 1], 1))
