"""MIP-IN: against its slow derivation, the statistics of its regressions, its files, and every bad input."""

from __future__ import annotations

import gc
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from _fit_networks import Passes, cnn, drawn, mlp, sequential
from _mip_in_oracle import Inverse, ridge
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from _networks import ARCHITECTURES, SPELLINGS, build, images
from backlit import MIPIN, FileError, InputError, UnsupportedOp
from backlit.inverse import Fitted
from backlit.inverse.moments import Moments, Ridge, Sizes, solve
from backlit.inverse.regressions import PerChannel

SMALL = {"mlp": (mlp, (3, 2, 2)), "cnn": (cnn, (2, 6, 6))}


def layers_of(net: nn.Sequential, x: Tensor) -> list[tuple[nn.Module, np.ndarray, np.ndarray]]:
    found = []
    for module in net:
        y = module(x).detach()
        if not isinstance(module, nn.ReLU):
            found.append([module, x.numpy(), y.numpy()])
        else:  # the paper's layer: what it gives is active or 0
            found[-1][2] = y.numpy()
        x = y
    return [tuple(layer) for layer in found]  # type: ignore[misc]


@pytest.mark.parametrize("samples", ["all", "own"])
@pytest.mark.parametrize("name", SMALL)
def test_equals_the_slow_derivation(name: str, samples: str) -> None:
    compare_with_the_slow_derivation(name, samples, {})


@pytest.mark.parametrize(
    "reading",
    [
        {"products": "sums", "ridge": 0.5},
        {"ridge_at": "dense", "ridge": 0.5},
        {"constant": False, "ridge": 0.5},
        {"products": "sums", "constant": False, "ridge": 0.5},
        {"products": "sums", "ridge_at": "dense", "constant": False, "ridge": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SMALL)
def test_every_reading_equals_the_slow_derivation(name: str, reading: dict) -> None:
    compare_with_the_slow_derivation(name, "all", reading)


def compare_with_the_slow_derivation(name: str, samples: str, reading: dict) -> None:
    make, shape = SMALL[name]
    net = make()
    x, y = drawn(60, *shape), torch.arange(60) % 3
    x[x.abs() < 0.3] = 0  # the image itself is not gated
    inverse = MIPIN.fit(net, [(x[:25], y[:25]), (x[25:], y[25:])], samples=samples, **reading)
    found = MIPIN(net, fitted=inverse).each(x[:4], [[0, 1, 2]] * 4)
    for c in range(3):
        slow = Inverse(reading.get("ridge", 1e-3), **{k: v for k, v in reading.items() if k != "ridge"})
        rows = y == c if samples == "own" else slice(None)
        slow.run(layers_of(net, x[rows]), net(x[rows])[:, c].detach().numpy(), learn=True)
        layers, logit = layers_of(net, x[:4]), net(x[:4])[:, c].detach().numpy()
        for ours, options in (
            (found[c].values, {"bias": False}),
            (found[c].parts["source"], {}),
            (found[c].parts["global"], {"bias": False, "gate": False}),
        ):
            theirs = slow.run(layers, logit, learn=False, **options)
            # Where there is no ridge, solving takes 1e-12 of the regressors' variance, which shows where they are dependent.
            rough = 1e-3 if reading.get("ridge_at") == "dense" and name == "cnn" else 1e-9
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=max(rough, 1e-7), atol=rough * np.abs(theirs).max())


def _head(inputs: int) -> nn.Sequential:
    return sequential(nn.Flatten(), nn.Linear(inputs, 5), nn.ReLU(), nn.Linear(5, 3))


def _signals(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return MIPIN(net, fitted=MIPIN.fit(net, [x])).signals(x[:4], 1)


def test_a_scale_is_undone_with_its_constant_and_the_attribution_without() -> None:
    norm, x, head = nn.BatchNorm2d(3).double().eval(), drawn(60, 3, 2, 2), _head(12)
    for tensor, seed in ((norm.running_mean, 1), (norm.bias, 2), (norm.weight, 3)):
        assert tensor is not None
        tensor.data.copy_(drawn(3, seed=seed))
    scale = (norm.weight / (1 + norm.eps) ** 0.5).detach().view(3, 1, 1)
    shift = norm(torch.zeros(1, 3, 2, 2, dtype=torch.float64)).detach()
    source, attribution = _signals(nn.Sequential(norm, *head).eval(), x)
    below, alone = _signals(head, norm(x).detach())
    torch.testing.assert_close(source, (below - shift) / scale)
    torch.testing.assert_close(attribution, alone / scale)


def test_copies_are_averaged_and_what_was_cut_off_is_zero() -> None:
    x, head = drawn(60, 2, 3, 3), _head(32)
    pad = nn.CircularPad2d((0, 1, 0, 1))
    source, _ = _signals(nn.Sequential(pad, *head).eval(), x)
    copies, _ = _signals(head, pad(x))
    copies[:, :, 0] = (copies[:, :, 0] + copies[:, :, 3]) / 2
    copies[:, :, :, 0] = (copies[:, :, :, 0] + copies[:, :, :, 3]) / 2
    torch.testing.assert_close(source, copies[:, :, :3, :3])
    source, _ = _signals(nn.Sequential(nn.ZeroPad2d(-1), *_head(2)).eval(), x)
    assert bool((source[:, :, 1, 1] != 0).all())
    assert int((source != 0).sum()) == 4 * 2


def test_the_moments_do_not_depend_on_the_batches() -> None:
    s, x = drawn(2, 3, 50, 4) + 100, drawn(3, 50, 2, seed=1) - 50
    whole, parts = Moments(2, Sizes(3, 4, 2), s.device), Moments(2, Sizes(3, 4, 2), s.device)
    both = torch.tensor([0, 1])
    whole.add(both, s, x)
    for rows in (slice(0, 1), slice(1, 1), slice(1, 30), slice(30, 50)):
        parts.add(both, s[:, :, rows], x[:, rows])
    for name in ("count", "mean_s", "mean_x", "ss", "xs", "xx"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-9)
    solution = solve(parts, Ridge(0.01), "here")
    for k in range(2):
        for g in range(3):
            weight, bias = ridge(s[k, g].numpy(), x[g].numpy(), 0.01)
            np.testing.assert_allclose(solution.weight[k, g].numpy(), weight, rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(solution.bias[k, g].numpy(), bias, rtol=1e-8)
            left = x[g].numpy() - s[k, g].numpy() @ weight.T - bias
            total = (x[g] - x[g].mean(0)).square().sum()
        assert float(solution.explained[k]) < 1
    assert left.shape == (50, 2)
    one = Moments(1, Sizes(1, 4, 2), s.device)
    one.add(torch.tensor([0]), s[:1, 2:], x[2:])
    weight, bias = ridge(s[0, 2].numpy(), x[2].numpy(), 0.01)
    left = x[2].numpy() - s[0, 2].numpy() @ weight.T - bias
    total = float((x[2] - x[2].mean(0)).square().sum())
    assert float(solve(one, Ridge(0.01), "here").explained) == pytest.approx(1 - (left**2).sum() / total, rel=1e-9)


def test_moments_of_some_classes_are_added_in_their_places() -> None:
    s, x = drawn(2, 1, 20, 3), drawn(1, 20, 2)
    apart, single = Moments(4, Sizes(1, 3, 2), s.device), Moments(1, Sizes(1, 3, 2), s.device)
    for rows in (slice(0, 5), slice(5, 20)):  # neither in order nor side by side
        apart.add(torch.tensor([3, 1]), s[:, :, rows], x[:, rows])
        single.add(torch.tensor([0]), s[:1, :, rows], x[:, rows])
    for name in ("count", "mean_s", "mean_x", "ss", "xs", "xx"):
        kept = getattr(apart, name)
        torch.testing.assert_close(kept[3], getattr(single, name)[0])
        assert not bool(kept[[0, 2]].any())
        assert bool(kept[1].any())


def test_a_float64_network_far_from_zero_keeps_its_digits_in_products_of_float32() -> None:
    net, x = sequential(nn.Flatten(), nn.Linear(12, 3)), drawn(60, 3, 2, 2)
    found = [
        MIPIN.fit(net, [x + 1e6], precision=p).layers["linear[0]"]["weight"] for p in (torch.float64, torch.float32)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_the_fit_does_not_depend_on_the_batches() -> None:
    net, x = cnn(), drawn(40, 2, 6, 6)
    one = MIPIN(net, fitted=MIPIN.fit(net, [x]))(x[:3], 1)
    many = MIPIN(net, fitted=MIPIN.fit(net, x.split(7)))(x[:3], 1)
    torch.testing.assert_close(many.values, one.values, rtol=1e-8, atol=1e-12)
    single = MIPIN(net, fitted=MIPIN.fit(net, x.split(7), precision=torch.float32))(x[:3], 1)
    assert 0 < float((single.values - one.values).abs().max()) < 1e-3 * float(one.values.abs().max())


def test_few_classes_at_a_time_give_the_same() -> None:
    net, x = cnn(), drawn(40, 2, 6, 6)
    together = MIPIN.fit(net, [x])
    with pytest.warns(UserWarning, match="more than memory"):
        alone = MIPIN.fit(net, [x], memory=1)
    for name, layer in together.layers.items():
        for key, value in layer.items():
            torch.testing.assert_close(alone.layers[name][key], value, rtol=1e-9, atol=1e-12)
    some = MIPIN.fit(net, [x], classes=[2, 0])
    assert some.classes == (2, 0)
    torch.testing.assert_close(
        MIPIN(net, fitted=some).attribute(x[:3], torch.tensor([0, 2, 2])),
        MIPIN(net, fitted=together).attribute(x[:3], torch.tensor([0, 2, 2])),
    )
    with pytest.raises(InputError, match="target must be among the 2 fitted classes, but class 1 is not"):
        MIPIN(net, fitted=some)(x[:3], 1)


def test_a_split_leaves_the_least_error_and_adds_up() -> None:
    """The residual add's branches, regressed on the sum's signal: better than halves, and shares of 1 where it is the sum."""
    a, b = drawn(200, 3, 4, 4), 0.3 * drawn(200, 3, 4, 4, seed=1) + 1
    regression = PerChannel((3, 4, 4), 1, 2)

    def fit(signal: Tensor) -> Tensor:
        moments = Moments(1, regression.sizes, a.device)
        regression.learn(moments, torch.tensor([0]), [signal[None]], [a, b])
        return solve(moments, Ridge(0.0), "add").weight[0, :, :, 0]

    shares = fit(a + b)
    torch.testing.assert_close(shares.sum(1), torch.ones(3, dtype=torch.float64))
    expected = ((a - a.mean((0, 2, 3), keepdim=True)) * (a + b - (a + b).mean((0, 2, 3), keepdim=True))).mean(
        (0, 2, 3)
    ) / ((a + b).var((0, 2, 3), unbiased=False))
    torch.testing.assert_close(shares[:, 0], expected)
    assert bool((shares[:, 0] > 0.8).all())  # the large branch gets the most; halves would give it 0.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_spelling_gives_the_twins_map(architecture: str) -> None:
    xs = tuple(drawn(30, 2, 8, 8, seed=i) for i in range(len(images(architecture))))
    data = [(tuple(x[:20] for x in xs), torch.arange(20) % 3), (tuple(x[20:] for x in xs), torch.arange(10) % 3)]
    whole = None
    for spelling in SPELLINGS:
        net = build(architecture, spelling)
        found = MIPIN(net, fitted=MIPIN.fit(net, data))(tuple(x[:3] for x in xs), torch.tensor([0, 1, 2]))
        assert all(float(one.values.abs().max()) > 1e-3 for one in found)
        whole = found if whole is None else whole
        for ours, theirs in zip(found, whole, strict=True):
            torch.testing.assert_close(ours.values, theirs.values, msg=f"{spelling} of {architecture}")
            torch.testing.assert_close(
                ours.parts["source"], theirs.parts["source"], msg=f"{spelling} of {architecture}"
            )


def test_linear_layers_of_a_noiseless_linear_network_are_inverted_exactly() -> None:
    """x = m y + const on the data: the source signal of the only logit is x itself."""
    net = sequential(nn.Flatten(), nn.Linear(4, 1))
    direction = drawn(4)
    x = (drawn(50, 1) * direction + 2).view(50, 1, 2, 2)
    found = MIPIN(net, fitted=MIPIN.fit(net, [x], ridge=0))(x[:5], 0)
    torch.testing.assert_close(found.parts["source"], x[:5])


def test_files_keep_everything_and_refuse_what_they_are_not_for(tmp_path: Path) -> None:
    net, x = cnn(), drawn(30, 2, 6, 6)
    path = tmp_path / "inverse.safetensors"
    inverse = MIPIN.fit(net, [x], out=path, description="noise")
    assert not (tmp_path / "inverse.safetensors.parts").exists()
    read = Fitted.load(path)
    assert (read.kind, read.classes, read.network, read.input_shapes) == (
        "mip_in",
        (0, 1, 2),
        inverse.network,
        ((2, 6, 6),),
    )
    assert read.facts["description"] == "noise"
    assert read.facts["ridge"] == 0.001
    assert [layer["name"] for layer in read.facts["layers"]] == ["linear[0]", "conv2d[1]", "conv2d[0]"]
    assert read.facts["data"]["samples"] == 30
    expected = MIPIN(net, fitted=inverse)(x[:3], 1)
    assert torch.equal(MIPIN(net, fitted=path).attribute(x[:3], 1), expected.values)
    assert torch.equal(MIPIN(net, fitted=str(path)).attribute(x[:3], 1), expected.values)
    other = cnn()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(InputError, match=r"fitted belongs to another network: .* fingerprint .*Fit this one"):
        MIPIN(other, fitted=path)
    pooled = sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    fitted = MIPIN.fit(pooled, [x])
    with pytest.raises(InputError, match="size that was fitted, 2x6x6, but have 2x8x8"):
        MIPIN(pooled, fitted=fitted)(drawn(1, 2, 8, 8), 0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match=r"no whole safetensors file .* truncated\. Fit again"):
        MIPIN(net, fitted=path)
    expected.save(tmp_path / "map.safetensors")
    with pytest.raises(FileError, match="holds no parameters fitted by Backlit"):
        MIPIN(net, fitted=tmp_path / "map.safetensors")
    with pytest.raises(FileError, match="there is no file"):
        MIPIN(net, fitted=tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"MIP-IN must be fitted to data first: `backlit fit --method mip_in"):
        MIPIN(net)
    with pytest.raises(InputError, match=r"must hold what `backlit fit --method pattern` wrote, but holds 'mip_in'"):
        backlit.PatternNet(net, fitted=inverse)


def test_one_pass_for_each_layer() -> None:
    """Layers that read the same value are learned in the same pass."""
    x, y = drawn(30, 2, 8, 8), torch.arange(30) % 3
    for architecture, passes in (("plain", 3), ("fire", 4), ("residual", 6)):
        net = build(architecture, "module")
        data = Passes(x, y, None)
        inverse = MIPIN.fit(net, data)
        assert data.passes == passes, architecture
        assert len(inverse.layers) >= passes


def test_classifier_part_begins_where_it_says() -> None:
    net = build("fire", "F.relu")
    x = drawn(30, 2, 8, 8)
    found = MIPIN(net, fitted=MIPIN.fit(net, [x], start=None))
    explanation = found(x[:3], torch.tensor([0, 1, 2]))
    assert explanation.provenance["start"] == "cat[0]"
    assert explanation.coverage.count() == {"not inverted": 7, "switches": 1, "transposed convolution": 1, "gate": 1, "averaged back": 1, "moved back": 1}  # fmt: skip
    source, attribution = found.signals(x[:3], torch.tensor([0, 1, 2]))
    assert attribution.shape == source.shape == (3, 8, 8, 8)
    by_hand = F.interpolate(attribution.relu().mean(1, keepdim=True), (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(explanation.values, by_hand)
    one, two = net.one(net.a(x[:3]).relu()).relu(), net.b(net.a(x[:3]).relu()).relu()
    assert bool(
        ((torch.cat([one, two], 1) == 0) <= (attribution == 0)).all()
    )  # the feature map itself gates (Sec. 6.1.2)
    named = MIPIN(net, fitted=MIPIN.fit(net, [x], start="b"))(x[:3], 0)
    assert named.provenance["start"] == "conv2d[2]"
    assert float(named.values.abs().max()) > 0


def test_the_start_that_is_found_is_grad_cams_layer() -> None:
    for architecture in ("plain", "residual", "dense", "bottleneck", "depthwise"):
        net, x = build(architecture, "F.relu"), drawn(30, 2, 8, 8)
        ours = MIPIN(net, fitted=MIPIN.fit(net, [x], start=None))(x[:1], 0).provenance["start"]
        assert backlit.GradCAM(net)(x[:1], 0).provenance["layer"].startswith(ours), architecture


# Bad input.


def test_few_samples_are_warned_of_with_the_condition_number() -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        MIPIN.fit(mlp(), [drawn(5, 3, 2, 2)])
    texts = [str(w.message) for w in found]
    assert len(texts) == 2
    assert re.search(r"linear\[1\] has 5 samples for 6 unknowns .* condition number is \d\.\de\+0\d", texts[0])
    assert "linear[0] has 5 samples for 8 unknowns" in texts[1]
    assert {w.filename for w in found} == {__file__}, "the caller's line"


def test_absent_classes_and_constant_outputs() -> None:
    net, x = mlp(), drawn(60, 3, 2, 2)
    y = torch.arange(60) % 2
    with pytest.raises(InputError, match=r"the logit of class 2 has no samples, .* samples='all'"):
        MIPIN.fit(net, [(x, y)], samples="own", classes=[0, 2])
    with pytest.warns(UserWarning, match=r"class 2 has no samples; 1 of 3 classes are left out"):
        assert MIPIN.fit(net, [(x, y)], samples="own").classes == (0, 1)
    with pytest.raises(InputError, match=r"the logit of class 2 has no samples, .* samples='all'"):
        MIPIN.fit(net, [(x, y)], samples="own", classes=[2])  # no batch has any
    with pytest.raises(InputError, match=r"the logit of class 2 has no samples"):
        MIPIN.fit(net, [(x, y)], samples="own", classes=[0, 2], ridge=0)
    with (
        pytest.warns(UserWarning, match="more than memory"),
        pytest.warns(UserWarning, match=r"class 2 has no samples; 1 of 1 classes are left out"),
    ):
        alone = MIPIN.fit(net, [(x, y)], samples="own", memory=1)  # one class after the other
    assert alone.classes == (0, 1)
    with pytest.warns(UserWarning, match=r"class 2 has no samples; 1 of 3 classes"):
        assert MIPIN.fit(net, [(x, y)], samples="own", ridge=0).classes == (0, 1)
    with torch.no_grad():
        net[5].weight[1] = 0
    with pytest.raises(InputError, match=r"the logit of class 1 is constant on its samples"):
        MIPIN.fit(net, [x], classes=[0, 1])
    with pytest.warns(UserWarning, match=r"class 1 is constant on its samples; 1 of 3 classes"):
        assert MIPIN.fit(net, [x]).classes == (0, 2)
    with torch.no_grad():
        net[5].weight.zero_()
    with pytest.warns(UserWarning, match="3 of 3"), pytest.raises(InputError, match="every logit is constant"):
        MIPIN.fit(net, [x])


def test_a_start_that_is_not_there_names_the_nearest() -> None:
    net, x = cnn(), drawn(20, 2, 6, 6)
    with pytest.raises(
        InputError, match=r"start must be 'input', .* but is 'conv2d\[4\]'.*Did you mean 'conv2d\[\d\]'"
    ):
        MIPIN.fit(net, [x], start="conv2d[4]")
    with pytest.raises(
        InputError, match="start must be 'input', 'features', 'pooled', a module path or a site, but is 3"
    ):
        MIPIN.fit(net, [x], start=3)
    with pytest.raises(UnsupportedOp, match="no feature map"):
        MIPIN.fit(mlp(), [drawn(20, 3, 2, 2)], start=None)


class _NoInverse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(12, 6).double(), nn.LayerNorm(6).double(), nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.a(x.flatten(1)))
        return self.b(z * z.softmax(1)).softmax(1)


def test_all_operations_without_an_inverse_are_listed() -> None:
    with pytest.raises(
        UnsupportedOp, match=r"holds 4 operations without .*layer_norm\[0\].*softmax\[0\].*product\[0\].*softmax\[1\]"
    ):
        MIPIN.fit(_NoInverse().eval(), [drawn(20, 3, 2, 2)])


@pytest.mark.parametrize("name", ["own", "all"])
def test_memory_does_not_grow_with_the_samples(name: str) -> None:
    """Bytes of tensors alive after each batch: the same in a pass over 4 and over 32 batches."""
    gc.collect()
    gc.freeze()  # what other tests left alive is not looked through again and again
    try:
        peaks = [_peak(name, count) for count in (4, 32)]
    finally:
        gc.unfreeze()
    assert peaks[1] <= peaks[0] * 1.01 + 4096


def _peak(name: str, count: int) -> int:
    data = [(drawn(16, 2, 6, 6, seed=i), torch.arange(16) % 3) for i in range(count)]
    own = sum(x.numel() * 8 + y.numel() * 8 for x, y in data)
    alive: list[int] = []

    def look(step: object) -> None:
        gc.collect()
        found = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is Tensor
        }
        alive.append(sum(found.values()) - own)

    MIPIN.fit(cnn(), data, samples=name, progress=look)
    return max(alive)
