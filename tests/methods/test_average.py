"""Averages over noisy copies: against plain loops and Captum's noise tunnel, of methods given in every way, and on bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import backlit
from _networks import ARCHITECTURES, build, images
from backlit import (
    DMBP,
    LPR,
    LRP,
    TRGBP,
    Contrast,
    DeepLIFT,
    FileError,
    FullGrad,
    GradCAM,
    Gradient,
    GradientXInput,
    InputError,
    IntegratedGradients,
    PatternNet,
    SmoothGrad,
    SquaredSmoothGrad,
    Unit,
    UnsupportedOp,
    VarGrad,
)
from backlit._plain import described
from backlit._random import image_bytes, stable_seed
from backlit.methods import Method, Random
from backlit.methods.average import Averaged
from backlit.methods.base import NO_NETWORK

EVERY: list[type[Averaged]] = [SmoothGrad, SquaredSmoothGrad, VarGrad]
X = torch.rand(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([[1, 4], [3, 0], [2, 2]])


class Net(nn.Module):
    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.mix, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 6)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head((torch.relu(self.mix(x)) + x).mean((2, 3)))


NET = Net()


def noisy(x: Tensor, samples: int, sigma: float = 0.15, seed: int = 0) -> list[Tensor]:
    """The noisy copies of one image (1, c, h, w), in plain words."""
    base = stable_seed("noise", seed, 0, image_bytes(x[0]))
    spread = sigma * (float(x.max()) - float(x.min()))
    draws = [
        torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(stable_seed(base, k))) for k in range(samples)
    ]
    return [x + spread * z.double() for z in draws]


AVERAGES: dict[type[Averaged], Callable[[Tensor], Tensor]] = {
    SmoothGrad: lambda maps: maps.mean(0),
    SquaredSmoothGrad: lambda maps: (maps**2).mean(0),
    VarGrad: lambda maps: ((maps - maps.mean(0)) ** 2).mean(0),
}


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("of", [None, "lrp", GradCAM, IntegratedGradients(NO_NETWORK, steps=2)], ids=str)
def test_an_average_is_that_of_the_maps_of_noisy_copies(kind: type[Averaged], of: Any) -> None:
    """Smilkov et al. 2017, Eq. 1; Hooker et al. 2019, Sec. 2; Adebayo et al. 2018, App. A.3."""
    inner = kind(NET, of=of).inner
    for t, found in enumerate(kind(NET, of=of, samples=21).each(X, TARGETS)):
        logits = NET(X).detach()
        torch.testing.assert_close(found.output, logits.gather(1, TARGETS[:, t : t + 1])[:, 0])
        torch.testing.assert_close(found.probability, logits.softmax(1).gather(1, TARGETS[:, t : t + 1])[:, 0])
        for i, x in enumerate(X.split(1)):
            maps = torch.stack([inner.attribute(copy, int(TARGETS[i, t]))[0] for copy in noisy(x, 21)])
            torch.testing.assert_close(found.values[i], AVERAGES[kind](maps), rtol=1e-9, atol=1e-12)


def test_the_class_is_the_clean_images_in_every_copy() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 6)).double().eval()
    method = SmoothGrad(net, of=GradientXInput, samples=30, sigma=2.0)
    found = method(X)
    predicted = net(X).argmax(1)
    assert torch.equal(found.target, predicted)
    others = torch.stack([net(copy).argmax(1) for x in X.split(1) for copy in noisy(x, 30, 2.0)]).view(3, 30)
    assert bool((others != predicted[:, None]).any()), "the noise must change a prediction, or the test says nothing"
    torch.testing.assert_close(found.values, method.attribute(X, predicted))


@pytest.mark.parametrize("kind", EVERY)
def test_an_average_is_captums_but_for_the_draws(kind: type[Averaged]) -> None:
    """Captum's noise has one size for all images; its standard deviation is given as ours is for one image."""
    captum = pytest.importorskip("captum.attr")
    names = {SmoothGrad: "smoothgrad", SquaredSmoothGrad: "smoothgrad_sq", VarGrad: "vargrad"}
    spread = 0.15 * float(X[:1].max() - X[:1].min())
    torch.manual_seed(0)
    tunnel = captum.NoiseTunnel(captum.Saliency(NET))
    theirs = tunnel.attribute(
        X[:1], nt_type=names[kind], nt_samples=3000, nt_samples_batch_size=500, stdevs=spread, target=1, abs=False
    )
    ours = kind(NET, samples=3000).attribute(X[:1], 1)
    assert float((ours - theirs).norm() / theirs.norm()) < (0.1 if kind is VarGrad else 0.03)


def test_the_three_are_of_the_same_copies() -> None:
    mean, square, variance = (kind(NET, of="gradient_x_input", samples=9).attribute(X, 1) for kind in EVERY)
    torch.testing.assert_close(square, mean**2 + variance)


def test_the_noise_is_of_the_image_and_the_seed_alone() -> None:
    one = SmoothGrad(NET, samples=20, seed=4)
    whole = one.attribute(X, 2)
    torch.testing.assert_close(one.attribute(X.flip(0), 2).flip(0), whole)
    for chunk in (1, 2, 64):
        torch.testing.assert_close(replace(one, chunk=chunk).attribute(X, 2), whole)
    assert not torch.allclose(replace(one, seed=5).attribute(X, 2), whole)
    torch.testing.assert_close(
        SmoothGrad(Net().float(), samples=20, seed=4).attribute(X.float(), 2).double(), whole, rtol=1e-3, atol=1e-5
    )


def test_the_noise_follows_each_images_own_range() -> None:
    """Over all channels, as in the authors' code: one image's noise is not another's, and a constant image has none."""
    scaled = torch.cat([X[:1], 10 * X[:1], torch.full_like(X[:1], 3.0)])
    seen: list[Tensor] = []
    net = Net()
    net.features[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    SmoothGrad(net, samples=40, chunk=3)(scaled, 1)
    copies = torch.stack(seen[1:])  # (40, 3, c, h, w), behind the images themselves
    spread = (copies - scaled).std((0, 2, 3, 4))
    wanted = [0.15 * float(x.max() - x.min()) for x in scaled]
    assert spread.tolist() == pytest.approx(wanted, rel=0.05, abs=1e-12)


@pytest.mark.parametrize(
    ("of", "same"),
    [
        ("lrp", LRP),
        ("LRP", LRP(NET)),
        (LRP(NO_NETWORK, preset="epsilon"), LRP(NET, preset="epsilon")),
        ("dmbp", None),
        (DMBP(NET, steps=2), DMBP(NO_NETWORK, steps=2)),
        (LPR(NET, steps=2), LPR(NET, steps=2)),
        (TRGBP(NET, contrast=2), TRGBP(NET, contrast=2)),
        (FullGrad, "fullgrad"),
        (Random, "random"),
    ],
    ids=str,
)
def test_a_method_is_given_by_name_class_or_value(of: Any, same: Any) -> None:
    if same is None:
        assert isinstance(SmoothGrad(NET, of=of).inner, DMBP)
        return
    one, other = (SmoothGrad(NET, of=o, samples=3) for o in (of, same))
    assert type(one.inner) is type(other.inner)
    assert one.inner.network is NET
    torch.testing.assert_close(one.attribute(X, 1), other.attribute(X, 1))
    assert one(X, 1).provenance["kind"] == one.inner.kind_of_map
    assert VarGrad(NET, of=of, samples=2).kind_of_map == "magnitude"
    assert one.forward_passes == 4 * one.inner.forward_passes


def test_parts_are_averaged_as_the_map_is() -> None:
    inner = DMBP(NET, steps=2, lr=0.1)
    for kind, average in AVERAGES.items():
        found = kind(NET, of=inner, samples=7)(X[:1], 1)
        alone = [inner(copy, 1) for copy in noisy(X[:1], 7)]
        assert set(found.parts) == set(alone[0].parts) != set()
        for name, part in found.parts.items():
            maps = torch.stack([one.parts[name] for one in alone])
            torch.testing.assert_close(part, average(maps))
    assert not found.completeness


def test_what_the_inner_method_says_of_itself_is_kept() -> None:
    alone, found = GradCAM(NET)(X, 1), SmoothGrad(NET, of="grad_cam", samples=3)(X, 1)
    assert found.provenance["layer"] == alone.provenance["layer"]
    assert found.values.shape == (3, 1, 8, 8)
    assert len(found.coverage.rows) == len(alone.coverage.rows) > 0
    compiled = Net()
    compiled.compile(backend="eager")
    assert SmoothGrad(compiled, of=Random, samples=2)(X, 1).values.shape == X.shape
    with pytest.raises(UnsupportedOp, match="is compiled"):
        SmoothGrad(compiled, samples=2)(X, 1)


def test_several_inputs_each_with_noise_of_its_own() -> None:
    for architecture in ARCHITECTURES:
        xs = images(architecture)
        if len(xs) == 1:
            continue
        net = build(architecture, "F.relu")
        found = SmoothGrad(net, of=GradientXInput, samples=5)(xs, 1)
        assert [f.values.shape for f in found] == [x.shape for x in xs]
        same = SmoothGrad(net, of=GradientXInput, samples=5).attribute(tuple(x[:1] for x in xs), 1)
        for one, alone in zip(found, same, strict=True):
            torch.testing.assert_close(one.values[:1], alone)
        return
    pytest.fail("there is no network of several inputs")


@pytest.mark.parametrize("target", [Contrast(4, 1), Contrast(4, top=2), Unit("mix", 3), lambda out: out[:, 1] * 2])
def test_scores_that_are_no_class(target: Any) -> None:
    inner = GradientXInput(NET)
    if isinstance(target, Contrast) and target.top:
        others = NET(X[:1]).detach().index_fill(1, torch.tensor(4), -torch.inf).topk(2).indices[0].tolist()
        score: Any = lambda out: out[:, 4] - out[:, others].mean(1)  # noqa: E731, the clean image's likeliest
    else:
        score = target
    found = SmoothGrad(NET, of=inner, samples=6)(X[:1], target)
    maps = torch.stack([inner.attribute(copy, score) for copy in noisy(X[:1], 6)])
    torch.testing.assert_close(found.values, maps.mean(0))


def test_a_contrast_of_a_method_that_subtracts_maps_is_the_difference_of_the_averages() -> None:
    method = SmoothGrad(NET, of=TRGBP(NET, contrast=None), samples=4)
    one, other = method.each(X, torch.tensor([[5, 0]] * 3))
    torch.testing.assert_close(method(X, Contrast(5, 0)).values, one.values - other.values)


def test_a_baseline_for_each_image_follows_it_into_chunks_and_copies() -> None:
    baseline = torch.rand(X.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    for make in (
        lambda b: IntegratedGradients(NO_NETWORK, steps=2, baseline=b),
        lambda b: DeepLIFT(NO_NETWORK, reference=b),
    ):
        expected = torch.cat(
            [
                SmoothGrad(NET, of=make(b[0]), samples=6).attribute(x, 1)
                for x, b in zip(X.split(1), baseline.split(1), strict=True)
            ]
        )
        for chunk in (None, 1, 2, 6):
            torch.testing.assert_close(
                SmoothGrad(NET, of=make(baseline), samples=6, chunk=chunk).attribute(X, 1), expected
            )


def test_another_network_takes_the_method_along() -> None:
    method = SmoothGrad(NET, of=LRP(NET, preset="epsilon"), samples=3)
    other = Net(seed=9)
    moved = replace(method, model=other)
    assert moved.inner.network is other
    torch.testing.assert_close(
        moved.attribute(X, 1), SmoothGrad(other, of=LRP(other, preset="epsilon"), samples=3).attribute(X, 1)
    )
    assert not torch.allclose(moved.attribute(X, 1), method.attribute(X, 1))
    nested = SmoothGrad(NET, of=SmoothGrad(NET, of="lrp", samples=2), samples=2)
    assert replace(nested, model=other).inner.inner.network is other
    assert nested.attribute(X, 1).isfinite().all()


def test_it_prints_as_itself() -> None:
    assert repr(SmoothGrad(NET)) == "SmoothGrad(Net)"
    assert repr(SmoothGrad(NET, of="lrp", samples=3)) == "SmoothGrad(Net, of=LRP, samples=3)"
    assert repr(VarGrad(NET, of=DMBP(NET, steps=3))) == "VarGrad(Net, of=DMBP(steps=3))"
    assert repr(VarGrad(NET, of=SmoothGrad(NET, of=GradCAM))) == "VarGrad(Net, of=SmoothGrad(of=GradCAM))"


def test_the_provenance_tells_the_inner_method_with_its_options() -> None:
    ways: list[Any] = [None, "lrp", LPR, LRP(NET), LRP(NET, preset="epsilon"), DMBP(NET, steps=3), DMBP(NET, steps=4)]
    told = [SmoothGrad(NET, of=of, samples=2).recorded()["of"] for of in ways]
    assert len({str(t) for t in told}) == len(ways)
    assert "steps" in str(told[5])
    assert "backlit.methods.dmbp.DMBP" in str(told[5])
    exact = [described(SmoothGrad(NET, of=of), exact=True)["of"] for of in ways]
    assert exact == told
    assert SmoothGrad(NET, of="lrp").recorded() == SmoothGrad(NET, of=LRP).recorded()
    quiet, said = (
        SmoothGrad(NET, of=DMBP(NET, steps=3, **o)).recorded() for o in ({}, {"callback": print, "chunk": 3})
    )
    assert quiet == said


def test_rules_go_to_the_inner_method() -> None:
    rules = {"relu": None}
    assert SmoothGrad(NET, rules=rules).inner.rules is rules
    assert SmoothGrad(NET, of=LRP(NET, preset="epsilon"), rules=rules).inner.rules is rules
    with pytest.raises(InputError, match="rules must be None for DMBP"):
        SmoothGrad(NET, of="dmbp", rules=rules)


def test_a_fitted_method_is_averaged_and_kept_to_its_network() -> None:
    digits = backlit.load_model("digits")
    pictures, labels = backlit.models.digits.digits_images()
    x = digits.preprocess.batch(pictures[:40])
    fitted = PatternNet.fit(digits.network, [(x, labels[:40])])
    method = SmoothGrad(digits, of=PatternNet(digits, fitted=fitted), samples=3)
    found = method(x[:2], 3)
    assert found.values.isfinite().all()
    assert found.provenance["kind"] == "signal"
    one, other = method.each(x[:2], torch.tensor([[3, 5]] * 2))
    torch.testing.assert_close(method.attribute(x[:2], Contrast(3, 5)), one.values - other.values)
    with pytest.raises(InputError, match="must be a class or a contrast of classes"):
        method(x[:2], lambda out: out[:, 0])
    with pytest.raises(InputError, match=r"PatternNet must be fitted to data first.*fitted=\.\.\."):
        SmoothGrad(digits, of="pattern_net")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    for kind in EVERY:
        exact = kind(NET, samples=12).attribute(X, 1)
        found = kind(Net().to(dtype), samples=12).attribute(X.to(dtype), 1)
        assert found.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-3 * float(exact.abs().max()))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"samples": 0}, "samples must be a positive integer up to 1,000,000, but is 0"),
    ({"sigma": 0}, "sigma must be a positive number, but is 0"),
    ({"sigma": 0.0}, "sigma must be a positive number, but is 0.0"),
    ({"of": 3}, r"of must be a method's name, its class such as LRP, or a method with its options.* but is 3"),
    ({"of": nn.ReLU}, r"of must be a method's name, its class such as LRP"),
    ({"of": Net()}, r"of must be a method's name.*but is Net"),
    ({"of": "lrpp"}, r"of must be one of dmbp, .*but is 'lrpp'. Did you mean 'lrp'"),
    ({"of": Method}, r"of must be a method's name, its class such as LRP"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
@pytest.mark.parametrize("kind", EVERY)
def test_options_that_cannot_be(kind: type[Averaged], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(NET, **options)


def test_a_method_for_another_network_is_refused_and_the_way_out_works() -> None:
    other = Gradient(Net(seed=9))
    message = r"of must be made for the network that is explained, but Gradient was made for another Net. Use dataclasses.replace"
    with pytest.raises(InputError, match=message):
        SmoothGrad(NET, of=other)
    torch.testing.assert_close(
        SmoothGrad(NET, of=replace(other, model=NET), samples=2).attribute(X, 1),
        SmoothGrad(NET, samples=2).attribute(X, 1),
    )
    digits = backlit.load_model("digits")
    assert SmoothGrad(digits, of=Gradient(digits.network)).inner.model is digits


def test_compare_tells_two_inner_methods_apart(tmp_path: Any) -> None:
    pytest.importorskip("polars")
    from backlit.metrics import Examples, Insertion

    examples = Examples(X, torch.tensor([1, 2, 3]))

    def run(of: Any) -> Any:
        methods = {"smooth": SmoothGrad(NET, of=of, samples=2)}
        return backlit.compare(NET, examples, methods, [Insertion(steps=2, replacement="zero")], out=tmp_path / "out")

    run(DMBP(NET, steps=2))
    run(DMBP(NET, steps=2))  # goes on where it stopped: at the end
    with pytest.raises(FileError, match=r"methods.smooth.options.of.steps was 2 and is 3"):
        run(DMBP(NET, steps=3))
