"""Path methods: against their papers by hand in float64, against Captum and PAIR where those are right, and on bad input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _networks import ARCHITECTURES, SPELLINGS, build, images
from backlit import BlurIG, ExpectedGradients, GuidedIG, InputError, IntegratedGradients
from backlit._random import stable_seed
from backlit.methods import Method
from backlit.methods.base import NO_NETWORK
from backlit.methods.guided_path import PathStep

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(2, 3, 12, 10, generator=GENERATOR, dtype=torch.float64) + 0.2
TARGETS = torch.tensor([[1, 4, 4], [3, 0, 2]])
EVERY: list[Callable[..., Method]] = [IntegratedGradients, ExpectedGradients, BlurIG, GuidedIG]


def small(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(120, 5),
    )
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 0.1)
    return net.to(dtype).eval()


NET = small()


def gradient(net: Any, target: int, *xs: Tensor) -> tuple[Tensor, ...]:
    """The gradient of one image's logit, (1, c, h, w) for each input."""
    leaves = tuple(x.clone().requires_grad_() for x in xs)
    return torch.autograd.grad(net(*leaves)[0, target], leaves)


def score(net: Any, target: int, *xs: Tensor) -> float:
    with torch.no_grad():
        return float(net(*xs)[0, target])


def each_alone(found: tuple[Any, ...], by_hand: Callable[[Tensor, int], Tensor], **close: float) -> None:
    """Compare several targets' maps of a batch with one image and one target at a time."""
    for t, one in enumerate(found):
        for i, x in enumerate(X.split(1)):
            torch.testing.assert_close(one.values[i : i + 1], by_hand(x, int(TARGETS[i, t])), **close)


BASELINES = {
    "zero": torch.zeros_like,
    "mean": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    "tensor": lambda x: torch.full_like(x, 0.7),
}


@pytest.mark.parametrize("rule", ["midpoint", "gauss_legendre"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_integrated_gradients_are_the_papers_sum(rule: str, baseline: str) -> None:
    """Sundararajan et al. 2017, Eq. 1: (x - x') times the integral of the gradient at x' + a (x - x')."""
    nodes, weights = np.polynomial.legendre.leggauss(7)
    midpoints = [((k + 0.5) / 7, 1 / 7) for k in range(7)]
    points = midpoints if rule == "midpoint" else [((a + 1) / 2, w / 2) for a, w in zip(nodes, weights, strict=True)]

    def by_hand(x: Tensor, target: int) -> Tensor:
        start = BASELINES[baseline](x)
        return sum(w * (x - start) * gradient(NET, target, start + a * (x - start))[0] for a, w in points)

    given = torch.full_like(X[0], 0.7) if baseline == "tensor" else baseline
    method = IntegratedGradients(NET, steps=7, rule=rule, baseline=given)
    found = method.each(X, TARGETS)
    each_alone(found, by_hand)
    for t, one in enumerate(found):
        told = one.completeness
        for i, x in enumerate(X.split(1)):
            target = int(TARGETS[i, t])
            difference = score(NET, target, x) - score(NET, target, BASELINES[baseline](x))
            assert float(told["difference"][i]) == pytest.approx(difference, rel=1e-9)
            assert float(told["gap"][i]) == pytest.approx(difference - float(one.values[i].sum()), abs=1e-12)
            assert float(told["ratio"][i]) == pytest.approx(float(one.values[i].sum()) / difference, rel=1e-9)


def test_more_points_close_the_gap_and_gauss_legendre_integrates_a_polynomial_at_once() -> None:
    gaps = [
        float(IntegratedGradients(NET, steps=s, rule="midpoint")(X, 1).completeness["gap"].abs().max())
        for s in (4, 40, 400)
    ]
    assert gaps[2] < 0.4 * gaps[0]
    assert gaps[2] < 0.4 * gaps[1]

    class Cubic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return torch.stack([(flat**3).sum(1), (flat**5).sum(1)], 1)

    for target, steps in ((0, 2), (1, 3)):
        told = IntegratedGradients(Cubic(), steps=steps, rule="gauss_legendre")(X, target).completeness
        torch.testing.assert_close(told["ratio"], torch.ones(2).double(), rtol=1e-12, atol=1e-12)


def test_idgi_is_algorithm_1() -> None:
    """Yang et al. 2023: d * g^2 / |g|^2 where each step begins, d the change of the score on the step."""

    def by_hand(x: Tensor, target: int) -> Tensor:
        total = torch.zeros_like(x)
        for k in range(6):
            (g,) = gradient(NET, target, x * k / 6)
            change = score(NET, target, x * (k + 1) / 6) - score(NET, target, x * k / 6)
            total += g**2 * change / (g**2).sum()
        return total

    found = IntegratedGradients(NET, steps=6, idgi=True).each(X, TARGETS)
    each_alone(found, by_hand)
    for one in found:
        torch.testing.assert_close(one.completeness["gap"], torch.zeros(2).double(), rtol=0, atol=1e-12)


def test_idgi_of_a_flat_start_is_no_nan() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.flatten(1) - 0.3).sum(1, keepdim=True).repeat(1, 2)

    found = IntegratedGradients(Late(), steps=5, idgi=True)(X * 0 + 1, 0)
    assert found.values.isfinite().all()
    assert float(found.completeness["gap"][0]) == pytest.approx(
        120 * 3 * 0.1
    )  # the step in which the score starts to rise


@pytest.mark.parametrize("baseline", ["zero", "given"])
@pytest.mark.parametrize("rule", ["midpoint", "gauss_legendre"])
def test_integrated_gradients_are_captums(baseline: str, rule: str) -> None:
    captum = pytest.importorskip("captum.attr")
    start = torch.rand(X.shape, generator=torch.Generator().manual_seed(4)).double() if baseline == "given" else None
    names = {"midpoint": "riemann_middle", "gauss_legendre": "gausslegendre"}
    theirs = captum.IntegratedGradients(NET).attribute(
        X, start, target=[3, 1], n_steps=20, method=names[rule], internal_batch_size=7
    )
    ours = IntegratedGradients(NET, steps=20, rule=rule, baseline="zero" if start is None else start)
    torch.testing.assert_close(ours.attribute(X, [3, 1]), theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_spelling_gives_the_twins_map(architecture: str) -> None:
    xs = images(architecture)
    target = torch.tensor([2, 0])
    for method in (
        lambda net: IntegratedGradients(net, steps=3),
        lambda net: IntegratedGradients(net, steps=3, idgi=True),
        lambda net: ExpectedGradients(net, samples=4),
        lambda net: BlurIG(net, steps=3, sigma=3.0),
        lambda net: GuidedIG(net, steps=3),
    ):
        whole = method(build(architecture, "module"))(xs, target)
        total = sum(w.values.flatten(1).sum(1) for w in whole)
        torch.testing.assert_close(total, whole[0].completeness["total"])
        for spelling in list(SPELLINGS)[1::4]:
            found = method(build(architecture, spelling))(xs, target)
            for ours, theirs in zip(found, whole, strict=True):
                torch.testing.assert_close(ours.values, theirs.values, rtol=1e-9, atol=1e-12)


class Two(nn.Module):
    """Two inputs of other sizes that meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(4, 3, generator=generator).double())
        self.other = nn.Parameter(torch.randn(4, 2, generator=generator).double())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = torch.tanh(F.linear(x.square().mean((2, 3)), self.weight))
        return a * F.relu(F.linear(y.mean((2, 3)), self.other) + 0.4) + 0.1 * a


Y = torch.rand(2, 2, 5, 7, generator=GENERATOR, dtype=torch.float64)


def test_several_inputs_go_along_one_path() -> None:
    net = Two().eval()
    found = IntegratedGradients(net, steps=9, rule="midpoint")((X, Y), 2)
    for i in range(2):
        x, y = X[i : i + 1], Y[i : i + 1]
        parts = [gradient(net, 2, x * a, y * a) for a in ((k + 0.5) / 9 for k in range(9))]
        for one, part, z in zip(found, zip(*parts, strict=True), (x, y), strict=True):
            torch.testing.assert_close(one.values[i : i + 1], z * sum(part) / 9)
    for method in (GuidedIG(net, steps=400), IntegratedGradients(net, steps=400), BlurIG(net, steps=400, sigma=8.0)):
        told = method((X, Y), 2)[0].completeness
        assert float((told["ratio"] - 1).abs().max()) < 0.05


def drawn(samples: int, r: int, seed: int = 0) -> Iterator[tuple[int, float]]:
    """The references and positions of the samples, in plain words."""
    generator = torch.Generator().manual_seed(stable_seed("expected_gradients", seed))
    rounds = [torch.randperm(r, generator=generator).tolist() for _ in range(-(-samples // r))]
    strata = torch.randperm(samples, generator=generator).tolist()
    within = torch.rand(samples, generator=generator, dtype=torch.float64).tolist()
    which = [k for one in rounds for k in one]
    return zip(which, [(s + w) / samples for s, w in zip(strata, within, strict=True)], strict=False)


@pytest.mark.parametrize(("samples", "r"), [(8, 3), (5, 9), (6, 6)])
def test_expected_gradients_are_the_papers_mean(samples: int, r: int) -> None:
    """Erion et al. 2021, Eq. 5: the mean of (x - x') times the gradient at x' + a (x - x') over references x' and a."""
    references = torch.rand(r, 3, 12, 10, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    pairs = list(drawn(samples, r))
    strata = sorted(int(a * samples) for _, a in pairs)
    assert strata == list(range(samples))  # one position in each
    counts = [sum(k == j for k, _ in pairs) for j in range(r)]
    assert max(counts) - min(counts) <= 1

    def by_hand(x: Tensor, target: int) -> Tensor:
        total = torch.zeros_like(x)
        for k, a in pairs:
            start = references[k : k + 1]
            total += (x - start) * gradient(NET, target, start + a * (x - start))[0]
        return total / samples

    found = ExpectedGradients(NET, references=references, samples=samples).each(X, TARGETS)
    each_alone(found, by_hand)
    for t, one in enumerate(found):
        for i, x in enumerate(X.split(1)):
            target = int(TARGETS[i, t])
            mean = sum(score(NET, target, references[k : k + 1]) for k, _ in pairs) / samples
            assert float(one.completeness["difference"][i]) == pytest.approx(score(NET, target, x) - mean, rel=1e-9)


def test_expected_gradients_of_the_images_own_baselines_come_close_to_complete() -> None:
    told = ExpectedGradients(NET, samples=600)(X, 2).completeness
    assert float((told["ratio"] - 1).abs().max()) < 0.02
    one, other, again = (ExpectedGradients(NET, samples=9, seed=s).attribute(X, 2) for s in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def pair_call(net: nn.Module, target: int) -> Callable[..., Any]:
    """What PAIR's library asks for the gradients of images (n, h, w, c)."""

    def call(batch: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, Any]:
        x = torch.tensor(np.asarray(batch)).permute(0, 3, 1, 2).requires_grad_()
        (grad,) = torch.autograd.grad(net(x)[:, target].sum(), x)
        return {"INPUT_OUTPUT_GRADIENTS": grad.permute(0, 2, 3, 1).numpy()}

    return call


def of_pair(method: Any, x: Tensor, target: int, **options: Any) -> Tensor:
    values = method().GetMask(x[0].permute(1, 2, 0).numpy(), pair_call(NET, target), **options)
    return torch.from_numpy(values).permute(2, 0, 1)[None]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Any:
    """PAIR's library; an argument of ``quantile`` that NumPy 2 no longer has is renamed for it."""
    library = pytest.importorskip("saliency.core")
    quantile = np.quantile

    def renamed(values: Any, q: float, interpolation: Any = None, **more: Any) -> Any:
        return quantile(values, q, **({"method": interpolation} if interpolation else {}), **more)

    monkeypatch.setattr(np, "quantile", renamed)
    return library


@pytest.mark.parametrize(
    ("steps", "fraction", "max_dist"), [(20, 0.25, 0.02), (7, 0.1, 0.3), (12, 1.0, 1.0), (9, 0.5, 0.0)]
)
def test_guided_ig_is_pairs(pair: Any, steps: int, fraction: float, max_dist: float) -> None:
    found = GuidedIG(NET, steps=steps, fraction=fraction, max_dist=max_dist).each(X, TARGETS)
    options = {"x_steps": steps, "fraction": fraction, "max_dist": max_dist}
    each_alone(found, lambda x, target: of_pair(pair.GuidedIG, x, target, **options))


def test_guided_ig_of_a_baseline_that_meets_the_image_in_part(pair: Any) -> None:
    start = torch.where(torch.arange(10) < 4, X[:1], 0.1)  # features that have no way to go
    theirs = of_pair(pair.GuidedIG, X[:1], 2, x_steps=15, x_baseline=start[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(GuidedIG(NET, steps=15, baseline=start).attribute(X[:1], 2), theirs)


def test_guided_ig_without_a_distance_is_a_left_sum_on_the_straight_line() -> None:
    found = GuidedIG(NET, steps=8, max_dist=0.0).attribute(X[:1], 2)
    by_hand = sum(X[:1] * gradient(NET, 2, X[:1] * k / 8)[0] / 8 for k in range(8))
    torch.testing.assert_close(found, by_hand)


def test_guided_ig_moves_what_matters_least_first_and_stays_in_its_tube() -> None:
    seen: list[PathStep] = []
    GuidedIG(NET, steps=10, max_dist=0.15, callback=seen.append).each(X, TARGETS)
    assert [s.index for s in seen] == list(range(1, 11))
    lengths = X.flatten(1).abs().repeat(3, 1)
    for step in seen:
        position = step.index / step.steps
        assert float((step.progress - position).abs().max()) <= 0.15 + 1e-12
        reached = (lengths * step.progress).sum(1) / lengths.sum(1)
        torch.testing.assert_close(reached, torch.full_like(reached, position))
    spread = seen[4].progress.std(1)
    assert bool((spread > 0.05).all())
    assert not torch.equal(seen[4].progress[0], seen[4].progress[2])  # a path for each target


@pytest.mark.parametrize(("sigma", "steps"), [(50, 10), (3, 6)])
def test_blur_ig_is_pairs(pair: Any, sigma: float, steps: int) -> None:
    found = BlurIG(NET, steps=steps, sigma=float(sigma)).each(X, TARGETS)
    each_alone(
        found, lambda x, target: of_pair(pair.BlurIG, x, target, max_sigma=sigma, steps=steps), rtol=1e-6, atol=1e-9
    )


def test_blur_ig_is_the_papers_sum() -> None:
    """Xu et al. 2020, Eq. 3 and 5, from a Gaussian of plain loops: gradient times the blur's change, from blurred to sharp."""

    def blurred(x: Tensor, sigma: float) -> Tensor:
        radius = int(4 * sigma + 0.5)
        taps = (
            torch.tensor([np.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)])
            if sigma
            else torch.ones(1)
        )
        taps = taps.double() / taps.sum()
        kernel = (taps[:, None] * taps[None]).expand(3, 1, -1, -1)
        return F.conv2d(F.pad(x, [radius] * 4), kernel, groups=3)

    def by_hand(x: Tensor, target: int) -> Tensor:
        total = torch.zeros_like(x)
        for sigma in (0.0, 0.5, 1.0, 1.5):
            here = blurred(x, sigma)
            total -= 0.5 * gradient(NET, target, here)[0] * (blurred(x, sigma + 0.01) - here) / 0.01
        return total

    found = BlurIG(NET, steps=4, sigma=2.0).each(X, TARGETS)
    each_alone(found, by_hand, rtol=1e-6, atol=1e-9)
    told = found[0].completeness
    start = [score(NET, int(TARGETS[i, 0]), blurred(X[i : i + 1], 2.0)) for i in range(2)]
    own = [score(NET, int(TARGETS[i, 0]), X[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(told["difference"], torch.tensor(own).double() - torch.tensor(start).double())


def test_blur_ig_in_single_precision_keeps_the_blurs_change() -> None:
    exact = BlurIG(NET, steps=30)(X, 1).values
    single = BlurIG(small(torch.float32), steps=30)(X.float(), 1).values
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(kind: Callable[..., Method], dtype: torch.dtype) -> None:
    short = {"samples": 6} if kind is ExpectedGradients else {"steps": 6}
    exact = kind(NET, **short).attribute(X, 1)
    found = kind(small(dtype), **short)(X.to(dtype), 1)
    assert found.values.dtype == dtype
    assert found.completeness["gap"].dtype == torch.float32
    error = float((found.values.double() - exact).norm() / exact.norm())
    assert error < (1e-4 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("kind", [IntegratedGradients, GuidedIG])
def test_an_image_that_equals_its_baseline_has_a_map_of_zeros_and_says_so(kind: Callable[..., Method]) -> None:
    x = X.clone()
    x[1] = 0.7
    method = kind(NET, steps=3, baseline=torch.full_like(X[0], 0.7), chunk=1)
    with pytest.warns(
        UserWarning, match=r"image 1 equals its baseline, so that its map is zero. Give another baseline"
    ):
        found = method(x, 1)
    assert bool((found.values[1] == 0).all())
    assert bool((found.values[0] != 0).any())
    assert found.completeness["ratio"][1] == 1
    assert found.completeness["gap"][1] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(x, 1)  # it is said once


def test_an_image_without_any_detail_is_no_nan() -> None:
    for found in (BlurIG(NET, steps=3)(X * 0, 1), ExpectedGradients(NET, samples=4)(X * 0, 1)):
        assert bool((found.values == 0).all())
        assert found.completeness["ratio"].tolist() == [1, 1]


BAD: list[tuple[Callable[..., Method], dict[str, Any], str]] = [
    (IntegratedGradients, {"steps": 0}, "steps must be a positive integer up to 1,000,000, but is 0"),
    (IntegratedGradients, {"rule": "trapezoid"}, "rule must be 'gauss_legendre' or 'midpoint', but is 'trapezoid'"),
    (IntegratedGradients, {"baseline": "black"}, "baseline must be one of zero, blur, mean, a tensor"),
    (IntegratedGradients, {"idgi": 1}, "idgi must be True or False"),
    (
        IntegratedGradients,
        {"idgi": True, "rule": "midpoint"},
        "rule must be left out with idgi=True, whose steps are equal and begin at the baseline, but is 'midpoint'",
    ),
    (
        IntegratedGradients,
        {"rule": "gauss_legendre", "steps": 1001},
        "steps must be at most 1,000 with rule='gauss_legendre', but is 1,001. More points need rule='midpoint'",
    ),
    (ExpectedGradients, {"samples": 0}, "samples must be a positive integer up to 1,000,000, but is 0"),
    (
        ExpectedGradients,
        {"references": torch.ones(3, 12, 10)},
        r"references must be images \(r, c, h, w\).*\(3, 12, 10\)",
    ),
    (ExpectedGradients, {"references": torch.ones(0, 3, 12, 10)}, r"references must be images \(r, c, h, w\)"),
    (BlurIG, {"sigma": 0}, "sigma must be a positive number up to 10,000, but is 0"),
    (BlurIG, {"steps": 0}, "steps must be a positive integer"),
    (BlurIG, {"grad_step": -1.0}, "grad_step must be a positive number up to 10,000, but is -1.0"),
    (GuidedIG, {"steps": 0}, "steps must be a positive integer"),
    (GuidedIG, {"fraction": 0.0}, "fraction must be a number above 0, up to 1, but is 0.0"),
    (GuidedIG, {"fraction": 1.1}, "fraction must be a number above 0, up to 1"),
    (GuidedIG, {"max_dist": 1.5}, "max_dist must be a number from 0 to 1, but is 1.5"),
    (GuidedIG, {"baseline": 3}, "baseline must be one of zero, blur, mean"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD)
def test_options_that_cannot_be(kind: Callable[..., Method], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(NO_NETWORK, **options)


@pytest.mark.parametrize("kind", [IntegratedGradients, GuidedIG])
@pytest.mark.parametrize("shape", [(3, 12, 11), (2, 3, 12, 10, 1), (5, 3, 12, 10)])
def test_a_baseline_of_another_shape(kind: Callable[..., Method], shape: tuple[int, ...]) -> None:
    way_out = (
        r"baseline must be shaped as one image, \(3, 12, 10\), or be one for each, \(2, 3, 12, 10\), but is .*Expected"
    )
    with pytest.raises(InputError, match=way_out):
        kind(NET, steps=2, baseline=torch.zeros(shape))(X, 1)


def test_references_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"references must be shaped as the images, \(r, 3, 12, 10\), but have shape"):
        ExpectedGradients(NET, references=torch.zeros(2, 3, 9, 9))(X, 1)
    with pytest.raises(InputError, match="references must be one set for each of 1 inputs, but has 2"):
        ExpectedGradients(NET, references=(torch.zeros(2, 3, 12, 10),) * 2)(X, 1)


class Overwriting(nn.Module):
    """A network that writes over what autograd would need, or says the same without."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.conv, self.fc, self.writes = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), writes

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).sigmoid()
        h = h.mul_(2.0) if self.writes else h * 2.0
        return self.fc(h.mean((2, 3)))


@pytest.mark.parametrize("method", [IntegratedGradients, BlurIG, GuidedIG])
def test_what_autograd_cannot_go_back_through_is_run_by_the_engine(method: type[Method]) -> None:
    one, other = (Overwriting(writes=w).double().eval() for w in (True, False))
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        one(x.clone().requires_grad_()).sum().backward()
    torch.testing.assert_close(method(one, steps=5).attribute(x, 1), method(other, steps=5).attribute(x, 1))


def test_the_engine_and_autograd_agree() -> None:
    net = Overwriting(writes=False).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = [[0, 3], [1, 1]]
    plain = IntegratedGradients(net, steps=4).each(x, targets)
    ruled = IntegratedGradients(net, steps=4, rules={}).each(x, targets)
    for one, other in zip(plain, ruled, strict=True):
        torch.testing.assert_close(one.values, other.values)
    zero = IntegratedGradients(net, steps=4, rules={"sigmoid": lambda g, inputs, output, call: (g * 0,)})
    assert float(zero.attribute(x, 0).abs().max()) == 0
