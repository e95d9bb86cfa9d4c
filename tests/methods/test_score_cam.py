"""Score-CAM: slowly, from the paper and from the authors' description, channel by channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _cam_networks import attend, build, embedded, mlp
from _map_networks import TARGET, deep_head, images, map_and_gradient
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import InputError, ScoreCAM, UnsupportedOp


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return deep_head()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images()


def slow(run: Callable[[Tensor], Tensor], a: Tensor, x: Tensor, target: int, *, code: bool = False) -> Tensor:
    """Algorithm 1, of one image (c, h, w) and its feature map; ``code``: probabilities as weights, no softmax over channels."""
    scores = []
    baseline = run(torch.zeros_like(x)[None])[0, target]
    for k in range(len(a)):
        up = F.interpolate(a[None, k : k + 1], x.shape[1:], mode="bilinear")[0, 0]
        if up.max() == up.min():
            scores.append(None)
            continue
        mask = (up - up.min()) / (up.max() - up.min())
        logits = run((x * mask)[None])[0]
        scores.append(logits.softmax(0)[target] if code else logits[target] - baseline)
    largest = max(float(s) for s in scores if s is not None)
    parts = [0.0 if s is None else float(s) if code else float((s - largest).exp()) for s in scores]
    total = 1 if code else sum(parts)
    cam = sum((w / total * a[k] for k, w in enumerate(parts)), torch.zeros(a.shape[1:], dtype=a.dtype))
    return F.interpolate(cam.relu()[None, None], x.shape[1:], mode="bilinear")[0].detach()


@pytest.mark.parametrize("code", [False, True], ids=["paper", "code"])
@pytest.mark.parametrize("layer", [3, 2])
def test_is_the_papers_algorithm(code: bool, layer: int, network: nn.Sequential, x: Tensor) -> None:
    options: dict[str, Any] = {"softmax": False, "score": "probability"} if code else {}
    found = ScoreCAM(network, layer=str(layer), **options)(x, TARGET)
    for i, target in enumerate(TARGET.tolist()):
        a, _ = map_and_gradient(network, x[i], target, layer)
        torch.testing.assert_close(found.values[i], slow(network, a, x[i], target, code=code))
    torch.testing.assert_close(found.output, network(x)[range(3), TARGET].detach())
    assert float(found.values.amax((1, 2, 3)).min()) > 0


def test_a_map_smaller_than_the_image(x: Tensor) -> None:
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(60, 7), nn.ReLU(), nn.Linear(7, 4)).double().eval()
    found = ScoreCAM(network).attribute(x, TARGET)
    for i, target in enumerate(TARGET.tolist()):
        torch.testing.assert_close(found[i], slow(network, network[:5](x[i : i + 1]).detach()[0], x[i], target))


def test_targets_share_the_passes(network: nn.Sequential, x: Tensor) -> None:
    calls: list[int] = []
    handle = network.register_forward_hook(lambda m, i, o: calls.append(len(o)))
    ScoreCAM(network).each(x, torch.tensor([[0, 1, 2]] * 3))
    several, calls[:] = sum(calls), []
    ScoreCAM(network)(x, 0)
    handle.remove()
    assert several == sum(calls)


def test_channels_of_one_value_have_no_weight_and_cost_no_pass(x: Tensor) -> None:
    network = deep_head()
    with torch.no_grad():
        for k, bias in ((0, 1.0), (1, -1.0)):  # one value above 0, and a dead channel
            network[2].weight[k].zero_()
            network[2].bias[k] = bias
    assert float(network[:4](x)[:, 0].std()) == 0
    calls: list[int] = []
    handle = network.register_forward_hook(lambda m, i, o: calls.append(len(o)))
    found = ScoreCAM(network).attribute(x, TARGET)
    handle.remove()
    for i, target in enumerate(TARGET.tolist()):
        torch.testing.assert_close(found[i], slow(network, network[:4](x[i : i + 1]).detach()[0], x[i], target))
    assert sum(c for c in calls if c > 3) + 3 >= 6 * 3
    with torch.no_grad():
        network[2].weight.zero_()
    assert not ScoreCAM(network).attribute(x, TARGET).any()
    for options in ({"softmax": False}, {"layer": ("1", "3")}):
        assert ScoreCAM(network, **options).attribute(x, TARGET).isfinite().all()


def test_a_channel_dead_in_one_image_only(x: Tensor) -> None:
    """It runs for the other images, and has no weight here."""
    network = deep_head()
    still = x.clone()
    still[1] = 0.3
    flat = nn.Sequential(nn.Conv2d(3, 6, 1), *network[1:2], nn.Conv2d(6, 8, 1), *network[3:]).double().eval()
    found = ScoreCAM(flat).attribute(still, TARGET)
    assert not found[1].any()  # every channel is one value
    torch.testing.assert_close(found[0], ScoreCAM(flat).attribute(still[:1], 0)[0])
    plain = ScoreCAM(flat, softmax=False, score="probability").attribute(still, TARGET)
    assert not plain[1].any()
    assert plain[0].any()


def test_blocks_change_nothing(network: nn.Sequential, x: Tensor) -> None:
    whole = ScoreCAM(network).attribute(x, TARGET)
    for chunk in (1, 2, 5, 100):
        torch.testing.assert_close(ScoreCAM(network, chunk=chunk).attribute(x, TARGET), whole)


def test_the_masked_images_run_without_a_graph(network: nn.Sequential, x: Tensor) -> None:
    graphs: list[bool] = []
    handle = network.register_forward_hook(lambda m, i, o: graphs.append(o.requires_grad) if len(o) > 3 else None)
    ScoreCAM(network)(x, TARGET)
    handle.remove()
    assert graphs
    assert not any(graphs)


class Two(nn.Module):
    """Two images, joined at the first feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = deep_head(), nn.Conv2d(3, 6, 3, padding=1).double()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        h = F.relu(self.net[0](one) + self.other(other))
        return self.net[2:](h)


def test_several_inputs_are_masked_in_turn(x: Tensor) -> None:
    net, other = Two().eval(), x.flip(0)
    found = ScoreCAM(net)((x, other), TARGET)
    for i, target in enumerate(TARGET.tolist()):
        h = F.relu(net.net[0](x[i : i + 1]) + net.other(other[i : i + 1]))
        a = net.net[2:4](h).detach()[0]
        first = slow(lambda v, i=i: net(v, other[i : i + 1]), a, x[i], target)
        second = slow(lambda v, i=i: net(x[i : i + 1], v), a, other[i], target)
        torch.testing.assert_close(found[0].values[i], first)
        torch.testing.assert_close(found[1].values[i], second)
    assert not torch.allclose(found[0].values, found[1].values)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = deep_head(), deep_head(), nn.Conv2d(3, 3, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x)[:, :2], self.b(self.c(x))[:, 2:]], 1)


def test_targets_that_read_other_branches_get_their_own_layer(x: Tensor) -> None:
    net = Towers().eval()
    found = ScoreCAM(net).each(x, torch.tensor([[0, 3]] * 3))
    torch.testing.assert_close(found[0].values, ScoreCAM(net.a).attribute(x, 0))
    torch.testing.assert_close(found[1].values, ScoreCAM(nn.Sequential(net.c, *net.b)).attribute(x, 3))


def test_several_layers(network: nn.Sequential, x: Tensor) -> None:
    each = [ScoreCAM(network, layer=name).attribute(x, TARGET) for name in ("1", "3")]
    found = ScoreCAM(network, layer=("1", "3"))(x, TARGET)
    torch.testing.assert_close(found.values, sum(m / m.amax((1, 2, 3), keepdim=True) for m in each) / 2)


def test_tokens() -> None:
    def run(net: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
        t = embedded(net, x, 1)
        t = t + attend(net, net.norm(t))
        return net.l(see(net.norm2(t + mlp(net, t)))[:, 1:].mean(1))

    net, seen = build(run), []
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    net.see = lambda h: seen.append(h) or h
    net(x)
    net.see = lambda h: h
    a = seen[0][:, 1:].transpose(1, 2).unflatten(2, (3, 4)).detach()
    found = ScoreCAM(net).attribute(x, 3)
    for i in range(2):
        torch.testing.assert_close(found[i], slow(net, a[i], x[i], 3))


def test_pytorch_grad_cam_is_the_same_map_where_no_channel_is_dead(network: nn.Sequential, x: Tensor) -> None:
    """A map as large as the image, as theirs enlarges with aligned corners: then equal, once ours is stretched to 0 to 1."""
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with library.ScoreCAM(network, [network[3]]) as cam:
        theirs = torch.from_numpy(cam(x, [ClassifierOutputTarget(k) for k in TARGET.tolist()]))
    ours = ScoreCAM(network).attribute(x, TARGET)[:, 0]
    least, largest = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    torch.testing.assert_close(((ours - least) / (largest - least)).float(), theirs, atol=1e-5, rtol=0)


def test_torchcam_is_the_same_map(network: nn.Sequential, x: Tensor) -> None:
    library = pytest.importorskip("torchcam.methods")
    with torch.no_grad(), library.ScoreCAM(network, "3") as extractor:
        network(x)
        maps = extractor(TARGET.tolist(), normalized=False)[0]
    torch.testing.assert_close(ScoreCAM(network).attribute(x, TARGET)[:, 0], maps, rtol=1e-4, atol=1e-7)


def test_precisions(network: nn.Sequential, x: Tensor) -> None:
    exact = ScoreCAM(network).attribute(x, TARGET)
    for dtype, rounding in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        found = ScoreCAM(deep_head().to(dtype)).attribute(x.to(dtype), TARGET)
        assert found.dtype == dtype
        assert float((found.double() - exact).abs().max()) < rounding * float(exact.abs().max())


def test_bad_input(network: nn.Sequential) -> None:
    with pytest.raises(InputError, match=r"softmax must be True or False, but is 1"):
        ScoreCAM(network, softmax=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"score must be 'logit' or 'probability', but is 'p'"):
        ScoreCAM(network, score="p")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"rules must be None for Score-CAM"):
        ScoreCAM(network, rules={"relu": None})
    with pytest.raises(UnsupportedOp, match="no feature map"):
        ScoreCAM(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval())(torch.zeros(1, 3, 2, 2))
