"""PatternNet and PatternAttribution: estimators neuron by neuron, propagation by explicit matrices, known patterns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from _fit_networks import sequential
from torch import Tensor, nn
from torch.nn import functional as F

from _networks import ARCHITECTURES, SPELLINGS, build, images
from backlit import FileError, InputError, PatternAttribution, PatternNet, UnsupportedOp
from backlit.inverse import Fitted, patterns


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 3, 3)]
        return nn.Sequential(*layers).double().eval()


def patches(x: Tensor, o: int) -> Tensor:
    """What output channel o of the convolution reads, a row a position: (n * 9, 9)."""
    padded, found = F.pad(x, [1, 1, 1, 1]), []
    for n in range(len(x)):
        for i in range(3):
            for j in range(3):
                found.append(padded[n, o // 2, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten())
    return torch.stack(found)


def slow(x: Tensor, y: Tensor, w: Tensor) -> dict[str, Tensor]:
    """Eq. 6 and 8 for one neuron: inputs (r, q), outputs (r,), weights (q,)."""
    cov = ((x - x.mean(0)) * (y - y.mean())[:, None]).mean(0)
    found = {"linear": cov / (w @ cov)}
    for name, rows in (("positive", y > 0), ("negative", y <= 0)):
        c = (x[rows] * y[rows, None]).mean(0) - x[rows].mean(0) * y.mean()
        found[name] = c / (w @ c)
    return found


def test_patterns_are_the_papers_formulas() -> None:
    net, x = network(), drawn(40, 2, 6, 6) + 0.3
    learned = PatternNet.fit(net, x.split(15))
    hidden = net[0](x).detach()
    for o in range(4):
        y = hidden[:, o].flatten()
        for name, expected in slow(patches(x, o), y, net[0].weight[o].detach().flatten()).items():
            torch.testing.assert_close(learned.layers["conv2d[0]"][name][o].flatten(), expected, rtol=1e-7, atol=1e-9)
    flat = hidden.relu().flatten(1)
    for o in range(3):
        for name, expected in slow(flat, net[3](flat)[:, o].detach(), net[3].weight[o].detach()).items():
            torch.testing.assert_close(learned.layers["linear[0]"][name][o], expected, rtol=1e-7, atol=1e-9)


def matrix(conv: nn.Conv2d, weight: Tensor, size: int) -> Tensor:
    """A convolution as a matrix, column by column."""
    eye = torch.eye(2 * size * size, dtype=torch.float64).view(-1, 2, size, size)
    return F.conv2d(eye, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups).flatten(1).T


@pytest.mark.parametrize("estimator", ["two_component", "linear"])
@pytest.mark.parametrize("method", [PatternNet, PatternAttribution])
def test_propagation_is_that_of_matrices(method: type[PatternNet], estimator: str) -> None:
    net, x = network(), drawn(40, 2, 6, 6)
    learned = PatternNet.fit(net, [x])
    found = method(net, fitted=learned, estimator=estimator).each(x[:4], [[0, 1], [1, 2], [2, 0], [0, 2]])
    for n in range(4):
        z = net[0](x[n : n + 1]).detach()
        logits = net(x[n : n + 1])[0].detach()
        for t, target in enumerate(([0, 1], [1, 2], [2, 0], [0, 2])[n]):
            top, conv = learned.layers["linear[0]"], learned.layers["conv2d[0]"]
            if estimator == "linear":
                a1, maps = top["linear"][target], {"linear": torch.ones_like(z).flatten()}
            else:
                a1 = top["positive" if logits[target] > 0 else "negative"][target]
                maps = {"positive": (z > 0).double().flatten()}  # the gate closes the others
            if method is PatternAttribution:
                a1 = a1 * net[3].weight[target].detach()
            g = logits[target] * a1 * (z > 0).flatten()
            back = torch.zeros(72, dtype=torch.float64)
            for name, rows in maps.items():
                w = conv[name] * net[0].weight.detach() if method is PatternAttribution else conv[name]
                back += matrix(net[0], w, 6).T @ (g * rows)
            scale = float(10 ** found[t].completeness["log10_scale"][n])
            assert (scale == 1) == (method is PatternAttribution)
            torch.testing.assert_close(found[t].values[n].flatten() * scale, back)


def test_a_linear_neuron_gives_back_the_signals_direction() -> None:
    """x = a y + distractor with w'distractor = 0 and independent of y: the pattern is a, though w is another direction."""
    a, w = torch.tensor([1.0, 0.5, 0.0, 2.0]).double(), torch.tensor([0.5, 0.0, 3.0, 0.25]).double()
    w = w / (w @ a)
    distractor = torch.stack([drawn(4, seed=s) for s in (1, 2)])
    distractor -= (distractor @ w)[:, None] * a
    signs = torch.tensor([[i, j] for i in (-1, 1) for j in (-1, 1)]).double()
    y = torch.linspace(-2, 3, 40).double()
    x = (y[:, None, None] * a + (signs @ distractor)[None]).reshape(-1, 4)  # the distractor is the same for every y
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)).double().eval()
    with torch.no_grad():
        net[1].weight.copy_(w[None])
    learned = PatternNet.fit(net, [x.view(-1, 1, 2, 2)])
    for name in ("linear", "positive", "negative"):
        torch.testing.assert_close(learned.layers["linear[0]"][name][0], a)
    found = PatternNet(net, fitted=learned)(x[:5].view(-1, 1, 2, 2), 0)
    signal = found.values.flatten(1) * 10 ** found.completeness["log10_scale"][:, None]
    torch.testing.assert_close(signal, (x[:5] @ w)[:, None] * a)
    assert torch.equal(found.parts["source"], found.values)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "norm after activation"])
def test_every_spelling_gives_the_twins_map(architecture: str) -> None:
    xs = tuple(drawn(20, 2, 8, 8, seed=i) for i in range(len(images(architecture))))
    whole = None
    for spelling in SPELLINGS:
        net = build(architecture, spelling)
        learned = PatternNet.fit(net, [(xs, torch.zeros(20, dtype=torch.int64))])
        found = [m(net, fitted=learned)(tuple(x[:3] for x in xs), 1) for m in (PatternNet, PatternAttribution)]
        whole = found if whole is None else whole
        for ours, theirs in zip(found, whole, strict=True):
            torch.testing.assert_close(ours[0].values, theirs[0].values, msg=f"{spelling} of {architecture}")
            assert float(ours[0].values.abs().max()) > 0


def test_batch_norm_is_folded_and_batches_do_not_matter() -> None:
    net, x = build("bottleneck", "module"), drawn(30, 2, 8, 8)
    one, many = PatternNet.fit(net, [x]), PatternNet.fit(net, x.split(7))
    for name, layer in one.layers.items():
        for key, value in layer.items():
            torch.testing.assert_close(many.layers[name][key], value, rtol=1e-8, atol=1e-10)
    rows = PatternAttribution(net, fitted=one)(x[:2], 0).coverage.count()
    assert rows["pattern ⊙ weight"] == len(one.layers)


def test_files_serve_both_methods_and_refuse_others(tmp_path: Path) -> None:
    net, x = network(), drawn(30, 2, 6, 6)
    path = tmp_path / "patterns.safetensors"
    learned = PatternAttribution.fit(net, [x], out=path, description="noise")
    assert Fitted.load(path).facts["description"] == "noise"
    for method in (PatternNet, PatternAttribution):
        assert torch.equal(
            method(net, fitted=path).attribute(x[:2], 1), method(net, fitted=learned).attribute(x[:2], 1)
        )
    with pytest.raises(InputError, match="estimator must be 'two_component' or 'linear', but is 'relu'"):
        PatternNet(net, fitted=path, estimator="relu")
    with pytest.raises(InputError, match=r"precision must be torch.float32 or torch.float64, but is torch.float16"):
        PatternNet.fit(net, [x], precision=torch.float16)
    with pytest.raises(InputError, match="size that was fitted"):
        PatternNet(net, fitted=path)(drawn(1, 2, 8, 8), 1)


def test_dead_neurons_and_what_has_no_patterns() -> None:
    net, x = network(), drawn(30, 2, 6, 6)
    with torch.no_grad():
        net[0].bias[1] = -1e6
    learned = PatternNet.fit(net, [x])
    assert learned.facts["layers"][0] == {"name": "conv2d[0]", "samples": 270, "never positive": 1}
    assert not bool(learned.layers["conv2d[0]"]["positive"][1].any())
    assert bool(learned.layers["conv2d[0]"]["negative"][1].any())
    assert all(bool(t.isfinite().all()) for layer in learned.layers.values() for t in layer.values())

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(drawn(72, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.w

    with pytest.raises(UnsupportedOp, match=r"matmul\[0\] .* has no patterns: .* Write it as F.linear"):
        PatternNet.fit(Product().eval(), [x])
    with pytest.raises(UnsupportedOp, match="no layer to learn from"):
        PatternNet.fit(nn.Flatten().eval(), [x])
    normed = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double().eval()
    ran: list[object] = []
    with pytest.raises(
        UnsupportedOp, match=r"holds 1 operation that patterns have no way back through: layer_norm\[0\]"
    ):
        PatternNet.fit(normed, [x], progress=ran.append)
    ends = nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Softmax(1)).double().eval()
    with pytest.raises(UnsupportedOp, match=r"softmax\[0\] .* Explain the network without them"):
        PatternNet.fit(ends, [x], progress=ran.append)
    assert not ran  # before the pass


class _Fails:
    """Batches, of which one raises the first time."""

    def __init__(self, batches: list[Tensor], at: int) -> None:
        self.batches, self.at, self.read = batches, at, 0

    def __iter__(self) -> Iterator[Tensor]:
        for i, batch in enumerate(self.batches):
            if i == self.at and self.read > 1:  # the first look is at one batch alone
                raise KeyboardInterrupt
            self.read += 1
            yield batch


def test_an_interrupted_fit_goes_on_and_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "PAUSE", 0.0)
    monkeypatch.setattr(patterns, "SHARE", float("inf"))  # after each batch
    net, x = network(), list((drawn(40, 2, 6, 6) + 0.3).split(8))
    path = tmp_path / "patterns.safetensors"
    whole = PatternNet.fit(net, x)
    with pytest.raises(KeyboardInterrupt):
        PatternNet.fit(net, _Fails(x, 3), out=path)
    assert not path.exists()
    with pytest.raises(FileError, match=r'holds another fit: precision was "float64" and is "float32"'):
        PatternNet.fit(net, x, out=path, precision=torch.float32)
    with pytest.raises(
        InputError, match=r"data must be the same, in the same batches, .* but 3 batches held 24 images"
    ):
        PatternNet.fit(net, [x[0], x[2] + 1, x[1], *x[3:]], out=path)
    ran: list[int] = []
    resumed = PatternNet.fit(net, x, out=path, progress=lambda step: ran.append(step.samples))
    assert ran == [32, 40]  # the first 24 images are not run again
    assert not Path(f"{path}.parts").exists()
    for layer, found in whole.layers.items():
        for name, value in found.items():
            assert torch.equal(resumed.layers[layer][name], value)
    assert resumed.facts == whole.facts


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 1), (3, 2), (2, 3)])
def test_same_padding_is_what_it_pads_with(kernel: int, dilation: int) -> None:
    head = [nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)]
    same = sequential(nn.Conv2d(2, 4, kernel, padding="same", dilation=dilation), *head)
    bare = nn.Conv2d(2, 4, kernel, dilation=dilation).double()
    bare.load_state_dict(same[0].state_dict())
    before, reach = dilation * (kernel - 1) // 2, dilation * (kernel - 1)
    twin = nn.Sequential(nn.ZeroPad2d((before, reach - before) * 2), bare, *head).eval()
    x = drawn(40, 2, 6, 6)
    found, expected = (PatternNet.fit(net, [x]).layers["conv2d[0]"] for net in (same, twin))
    for name, pattern in expected.items():
        torch.testing.assert_close(found[name], pattern)
