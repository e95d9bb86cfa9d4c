"""Grad-CAM's layer: on the way to the score, with its own axes and grid. Oracle: Eq. 1 and 2 by hand on the value that is right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import GradCAM, GuidedBackprop, GuidedGradCAM, InputError, UnsupportedOp

See = Callable[[Tensor], Tensor]
Arrange = Callable[[Tensor], Tensor]
TARGETS = torch.tensor([1, 3])


class Net(nn.Module):
    """Layers by name and a forward function, which passes the value that is right through ``see``."""

    def __init__(self, layers: dict[str, nn.Module], run: Callable[[Any, Tensor, See], Tensor]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run, self.see = run, lambda h: h

    def forward(self, *x: Tensor) -> Tensor:
        return self.run(self, *x, self.see)


def first(h: Tensor) -> Tensor:
    return h


def last(h: Tensor) -> Tensor:
    return h.permute(0, 3, 1, 2)


def tokens(h: int, w: int, extra: int = 0) -> Arrange:
    return lambda t: t[:, extra:].transpose(1, 2).unflatten(2, (h, w))


def by_hand(net: Net, x: Tensor | tuple[Tensor, ...], arrange: Arrange, targets: Tensor = TARGETS) -> Tensor:
    """The paper's two equations on the value that the network's own forward pass shows."""
    xs, seen = x if isinstance(x, tuple) else (x,), []
    net.see = lambda h: seen.append(h) or h
    try:
        out = net(*(x.clone().requires_grad_() for x in xs))
    finally:
        net.see = lambda h: h
    (g,) = torch.autograd.grad(out.gather(1, targets[:, None]).sum(), seen[-1])
    maps = (arrange(g).mean((2, 3), keepdim=True) * arrange(seen[-1].detach())).sum(1, keepdim=True).relu()
    return F.interpolate(maps, xs[0].shape[-2:], mode="bilinear")


def conv(i: int, o: int, k: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, stride, padding=k // 2)


def _plain(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(see(torch.relu(net.b(torch.relu(net.a(x))))).mean((2, 3)))


def _decoder(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    net.reconstruction = torch.sigmoid(net.d(h))
    return net.l(h.mean((2, 3)))


def _auxiliary(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    out = net.l(h.mean((2, 3)))
    net.auxiliary = net.l2(torch.relu(net.d8(h)).mean((2, 3)))
    return out


def _clone(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    net.features = [h.clone(), h * 2]
    return net.l(h.mean((2, 3)))


def _detached(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    return net.l(h.mean((2, 3))) + net.l2(torch.relu(net.d8(h)).detach().mean((2, 3)))


def _cut_input(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    return net.l(h.mean((2, 3))) + torch.relu(net.d8(h.detach())).mean()


def _two_means(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(see(torch.relu(net.b(net.a(x)))).mean(3).mean(2))


def _adaptive(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(torch.flatten(F.adaptive_avg_pool2d(see(torch.relu(net.b(net.a(x)))), 1), 1))


def _einsum_head(net: Any, x: Tensor, see: See) -> Tensor:
    return torch.einsum("nchw,kc->nk", see(torch.relu(net.b(net.a(x)))), net.l.weight)


def _matrix_head(net: Any, x: Tensor, see: See) -> Tensor:
    return see(torch.relu(net.b(net.a(x)))).amax((2, 3)) @ net.l.weight.T


def _flattened(net: Any, x: Tensor, see: See) -> Tensor:
    return net.wide(F.max_pool2d(see(torch.relu(net.b(net.a(x)))), 3).flatten(1)[:, :96])


def _normed(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(see(torch.relu(net.bn(net.b(net.a(x))))).sum((2, 3)))


def _attention_pool(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(net.a(x))))
    weights = net.one(h).flatten(2).softmax(-1)
    return net.l((h.flatten(2) @ weights.transpose(1, 2)).squeeze(-1))


def _bilinear_pool(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(net.a(x))))
    flat = h.flatten(2)
    return net.bilinear((flat @ flat.transpose(1, 2)).flatten(1))


def _squeeze_excite(net: Any, x: Tensor, see: See) -> Tensor:
    h = torch.relu(net.b(net.a(x)))
    return net.l(see(h * torch.sigmoid(net.b(h.mean((2, 3), keepdim=True)))).mean((2, 3)))


def _two_scales(net: Any, x: Tensor, see: See) -> Tensor:
    f1 = torch.relu(net.a(x))
    f2 = see(torch.relu(net.b(F.max_pool2d(f1, 2))))
    return net.l(f1.mean((2, 3)) + f2.mean((2, 3)))


def _written(net: Any, x: Tensor, see: See) -> Tensor:
    h = net.b(net.a(x))
    h += 1
    return net.l(see(F.relu_(h)).mean((2, 3)))


def _sliced_write(net: Any, x: Tensor, see: See) -> Tensor:
    h = net.b(net.a(x)).clone()
    h[:, ::2] = torch.relu(h[:, ::2])
    return net.l(see(h).mean((2, 3)))


def _written_view(net: Any, x: Tensor, see: See) -> Tensor:
    h = net.b(net.a(x))
    h.flatten(2).relu_()
    return net.l(see(h).mean((2, 3)))


def _five_channels_of_features(net: Any, x: Tensor, see: See) -> Tensor:
    """As many channels as scores, and a linear layer behind them: features."""
    return net.square(see(torch.relu(net.classes(torch.relu(net.a(x))))).mean((2, 3)))


def _class_map(net: Any, x: Tensor, see: See) -> Tensor:
    return torch.relu(net.classes(see(torch.relu(net.a(x))))).mean((2, 3)).log_softmax(1)


def _class_tokens(net: Any, x: Tensor, see: See) -> Tensor:
    """The same of tokens: a linear layer that makes each token's scores, and their mean."""
    return net.l(see(torch.relu(net.b(net.a(x))).flatten(2)).transpose(1, 2)).mean(1)


def _pool_of_the_same_size(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(F.max_pool2d(see(torch.relu(net.b(net.a(x)))), 3, 1, 1).mean((2, 3)))


def _pool_beside(net: Any, x: Tensor, see: See) -> Tensor:
    """An inception block whose pool has no convolution: its concat is the map."""
    h = torch.relu(net.a(x))
    return net.wider(see(torch.cat([torch.relu(net.b(h)), F.avg_pool2d(h, 3, 1, 1)], 1)).mean((2, 3)))


def _scalar_gate(net: Any, x: Tensor, see: See) -> Tensor:
    """The gate is made of the map, and pooled before it meets what was made of it."""
    h = see(torch.relu(net.b(net.a(x))))
    gate = torch.sigmoid(h).mean((1, 2, 3)).unsqueeze(1)
    return net.l(h.flatten(2).mean(2)) * gate


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "a": lambda: conv(3, 8),
    "b": lambda: conv(8, 8),
    "d": lambda: conv(8, 3),
    "d8": lambda: conv(8, 8),
    "one": lambda: conv(8, 1, 1),
    "bn": lambda: nn.BatchNorm2d(8),
    "classes": lambda: conv(8, 5, 1),
    "l": lambda: nn.Linear(8, 5),
    "l2": lambda: nn.Linear(8, 5),
    "wider": lambda: nn.Linear(16, 5),
    "heads": lambda: nn.Conv2d(2, 2, 1),
    "pixels": lambda: nn.Linear(48, 24),
    "along": lambda: nn.Conv1d(8, 8, 3, padding=1),
    "wide": lambda: nn.Linear(96, 5),
    "square": lambda: nn.Linear(5, 5),
    "bilinear": lambda: nn.Linear(64, 5),
    "embed": lambda: nn.Conv2d(3, 8, 4, 4),
    "norm": lambda: nn.LayerNorm(8),
    "norm2": lambda: nn.LayerNorm(8),
    "qkv": lambda: nn.Linear(8, 24),
    "q": lambda: nn.Linear(8, 8),
    "l3": lambda: nn.Linear(8, 8),
    "kv": lambda: nn.Linear(8, 16),
    "up": lambda: nn.Linear(8, 16),
    "down": lambda: nn.Linear(16, 8),
    "merge": lambda: nn.Linear(32, 8),
    "mix": lambda: nn.Linear(12, 12),
}


def build(run: Callable[..., Tensor]) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Net({name: make() for name, make in LAYERS.items()}, run).double().eval()


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check(run: Callable[..., Tensor], arrange: Arrange, x: Any = None) -> dict[str, Any]:
    net = build(run)
    x = images() if x is None else x
    expected = by_hand(net, x, arrange)
    assert float(expected.max()) > 0
    found = GradCAM(net)(x, TARGETS)
    found = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(found.values, expected, msg=f"{run.__name__}: {found.provenance['layer']}")
    return found.provenance


PLAIN = [
    *(_plain, _decoder, _auxiliary, _clone, _detached, _cut_input, _two_means, _adaptive, _einsum_head, _matrix_head),
    *(_flattened, _normed, _attention_pool, _bilinear_pool, _squeeze_excite, _two_scales, _written),
    *(_sliced_write, _written_view),
    *(_pool_of_the_same_size, _pool_beside, _scalar_gate),
    *(_five_channels_of_features, _class_map),
]


@pytest.mark.parametrize("run", PLAIN, ids=lambda f: f.__name__)
def test_the_layer_of_a_convolutional_network(run: Callable[..., Tensor]) -> None:
    provenance = check(run, first)
    assert provenance["layer_axes"].startswith("(n, c, h, w), grid ")
    assert "on the way to the score" in provenance["layer_choice"]


@pytest.mark.parametrize("run", [_sliced_write, _written_view, _class_map, _einsum_head, _auxiliary])
def test_the_layer_does_not_depend_on_the_default_dtype(run: Callable[..., Tensor]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        check(run, first)
    finally:
        torch.set_default_dtype(torch.float32)


def test_tokens_of_class_scores_are_no_features() -> None:
    assert check(_class_tokens, lambda t: t.unflatten(2, (12, 16)))["layer"].startswith("relu[0]")


# Channels last


def _pointwise(net: Any, x: Tensor, see: See) -> Tensor:
    """A ConvNeXt block that stays channels-last: depthwise, norm, linear layers."""
    h = net.b(net.embed(x)).permute(0, 2, 3, 1)
    return net.l(see(h + net.down(F.gelu(net.up(net.norm(h))))).mean((1, 2)))


def _merged(net: Any, x: Tensor, see: See) -> Tensor:
    """Swin's patch merging: a quarter of the grid, four times the channels."""
    h = torch.relu(net.a(x)).permute(0, 2, 3, 1)
    parts = [h[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return net.l(see(net.norm(net.merge(torch.cat(parts, -1)))).flatten(1, 2).mean(1))


def _windows(net: Any, x: Tensor, see: See) -> Tensor:
    """Attention in shifted windows of two by two, and back."""
    h = torch.relu(net.b(net.a(x)))[:, :, :10, :14].permute(0, 2, 3, 1)
    n, height, width, c = h.shape
    padded = F.pad(h, (0, 0, 0, 2, 0, 2)).roll((-1, -1), (1, 2))
    windows = padded.view(n, 6, 2, 8, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    q, k, v = net.qkv(windows).chunk(3, -1)
    out = (q @ k.mT * 0.3).softmax(-1) @ v
    out = out.view(n, 6, 8, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, 12, 16, c).roll((1, 1), (1, 2))
    return net.l(see(h + out[:, :height, :width]).mean((1, 2)))


@pytest.mark.parametrize("run", [_pointwise, _merged, _windows], ids=lambda f: f.__name__)
@pytest.mark.parametrize("size", [(12, 16), (32, 32)])  # a grid of 8 x 8 beside 8 channels
def test_channels_last(run: Callable[..., Tensor], size: tuple[int, int]) -> None:
    if run is _windows and size != (12, 16):
        pytest.skip("its windows fit one size")
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert check(run, last, x)["layer_axes"].startswith("(n, h, w, c), grid ")


# Tokens


def _embedded(net: Any, x: Tensor, extra: int) -> Tensor:
    t = net.embed(x).flatten(2).transpose(1, 2)
    return torch.cat([0.1 * t.new_ones(len(t), extra, 8).cumsum(1), t], 1) + 0.01


def _attend(net: Any, t: Tensor) -> Tensor:
    n, count, _ = t.shape
    q, k, v = net.qkv(t).reshape(n, count, 3, 2, 4).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, count, 8)


def _mlp(net: Any, t: Tensor) -> Tensor:
    return net.down(F.gelu(net.up(net.norm2(t))))


def _vit(extra: int) -> Callable[..., Tensor]:
    def run(net: Any, x: Tensor, see: See) -> Tensor:
        t = _embedded(net, x, extra)
        t = t + _attend(net, net.norm(t))
        t = t + _mlp(net, t)
        t = t + _attend(net, see(net.norm(t)))
        t = net.norm(t + _mlp(net, t))
        return net.l(t[:, :extra].mean(1))

    run.__name__ = f"vit_{extra}"
    return run


def _vit_mean(net: Any, x: Tensor, see: See) -> Tensor:
    t = _embedded(net, x, 1)
    t = t + _attend(net, net.norm(t))
    return net.l(see(net.norm(t + _mlp(net, t)))[:, 1:].mean(1))


def _vit_separate(net: Any, x: Tensor, see: See) -> Tensor:
    """Queries, keys and values of one head, without any slice."""
    t = _embedded(net, x, 1)
    t = t + _attend(net, net.norm(t))
    u = see(net.norm2(t))
    k, v = net.l2.weight.T[:, :4], net.up.weight.T[:, :8]
    keys, values = torch.matmul(u, k), torch.matmul(u, v)
    mixed = (torch.matmul(u, k) @ keys.transpose(1, 2)).softmax(-1) @ values
    return net.l((t + mixed)[:, 0])


def _vit_sequence_first(net: Any, x: Tensor, see: See) -> Tensor:
    t = _embedded(net, x, 1).transpose(0, 1)
    u = see(net.norm(t))
    q, k, v = net.qkv(u).chunk(3, -1)
    q, k, v = (z.transpose(0, 1) for z in (q, k, v))
    return net.l((t.transpose(0, 1) + (q @ k.mT).softmax(-1) @ v)[:, 0])


def _class_attention(net: Any, x: Tensor, see: See) -> Tensor:
    """CaiT and XCiT: the class token comes late, and attends twice."""
    t = _embedded(net, x, 0)
    t = t + _mlp(net, t)
    token = t.new_zeros(len(t), 1, 8) + 0.2
    for last_one in (False, True):
        u = net.norm(torch.cat([token, t], 1))
        u = see(u) if last_one else u
        k, v = net.kv(u).chunk(2, -1)
        token = token + (net.q(u[:, :1]) @ k.mT).softmax(-1) @ v
    return net.l(token[:, 0])


def _cross_covariance(net: Any, x: Tensor, see: See) -> Tensor:
    """XCiT's attention, over channels: (c, t) @ (t, c) @ (c, t), by einsum."""
    t = _embedded(net, x, 0)
    q, k, v = net.qkv(net.norm(t)).chunk(3, -1)
    mixed = torch.einsum("nij,ntj->nti", torch.einsum("nti,ntj->nij", q, k).softmax(-1), v)
    return net.l(see(t + mixed).mean(1))


def _cross_covariance_alone(net: Any, x: Tensor, see: See) -> Tensor:
    q, k, v = net.qkv(_embedded(net, x, 0)).chunk(3, -1)
    return net.l(see(torch.relu((k.mT @ q).softmax(-1) @ v.mT)).mean(2))


def _token_convolution(net: Any, x: Tensor, see: See) -> Tensor:
    """A convolution over the sequence of tokens."""
    return net.l(see(torch.relu(net.along(_embedded(net, x, 0).transpose(1, 2)))).mean(2))


def _queries_apart(net: Any, x: Tensor, see: See) -> Tensor:
    """Queries of a norm of their own, of which the class token's alone is read."""
    t = _embedded(net, x, 1)
    k, v = net.kv(see(net.norm(t))).chunk(2, -1)
    q = net.norm2(t) * 0.5
    return net.l((t + F.scaled_dot_product_attention(q, k, v))[:, 0])


def _projections_by_layers(net: Any, x: Tensor, see: See) -> Tensor:
    """Keys and values by two layers each: what both are made from."""
    t = _embedded(net, x, 1)
    u = see(net.norm(t))
    k, v = net.down(F.gelu(net.up(u))), net.l3(torch.relu(net.q(u)))
    return net.l((t + (u @ k.mT).softmax(-1) @ v)[:, 0])


def _two_scales_of_tokens(net: Any, x: Tensor, see: See) -> Tensor:
    """Two streams with a class token each, interleaved: the last one's, and no stem of both."""
    t = _embedded(net, x, 0) + 0.2
    one, two = t, t.unflatten(1, (3, 4))[:, :, ::2].flatten(1, 2)
    token = t.new_ones(len(t), 1, 8)
    one, two = (torch.cat([token, s + _mlp(net, s)], 1) for s in (one, two))
    norms = net.norm(one), see(net.norm(two))
    heads = [(s + _attend(net, u))[:, 0] for s, u in zip((one, two), norms, strict=True)]
    return net.l(heads[0] + heads[1])


ORDER = torch.tensor([5, 0, 11, 2, 7, 1, 3, 10, 4, 9, 8, 6])


def _shuffled(net: Any, x: Tensor, see: See) -> Tensor:
    """Tokens in a fixed order of their own."""
    return net.l(see(torch.relu(net.q(_embedded(net, x, 0)[:, ORDER]))).mean(1))


def _talking_heads(net: Any, x: Tensor, see: See) -> Tensor:
    """A convolution over the heads of the attention's own matrix, which is no plane of the image."""
    q, k, v = net.qkv(_embedded(net, x, 0)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    mixed = net.heads(q @ k.mT).softmax(-1) @ v
    return net.l(see(F.elu(net.q(8 * mixed.transpose(1, 2).flatten(2)))).mean(1))


def _mixer(net: Any, x: Tensor, see: See) -> Tensor:
    """A layer over the tokens in place of attention."""
    t = _embedded(net, x, 0)
    t = t + net.mix(net.norm(t).transpose(1, 2)).transpose(1, 2)
    return net.l(see(net.norm2(t + _mlp(net, t))).mean(1))


def _hybrid(net: Any, x: Tensor, see: See) -> Tensor:
    """A map that becomes tokens and a map again, as in CoAtNet and MobileViT."""
    h = torch.relu(net.embed(x))
    t = h.flatten(2).transpose(1, 2)
    t = net.norm(t + _attend(net, t)).transpose(1, 2).unflatten(2, (3, 4))
    return net.l(see(torch.relu(net.b(t + h))).mean((2, 3)))


TOKENS: list[tuple[Callable[..., Tensor], Arrange]] = [
    (_vit(1), tokens(3, 4, 1)),
    (_vit(2), tokens(3, 4, 2)),
    (_vit_mean, tokens(3, 4, 1)),
    (_vit_separate, tokens(3, 4, 1)),
    (_vit_sequence_first, lambda t: tokens(3, 4, 1)(t.transpose(0, 1))),
    (_class_attention, tokens(3, 4, 1)),
    (_cross_covariance, tokens(3, 4)),
    (_cross_covariance_alone, lambda t: t.unflatten(2, (3, 4))),
    (_token_convolution, lambda t: t.unflatten(2, (3, 4))),
    (_queries_apart, tokens(3, 4, 1)),
    (_projections_by_layers, tokens(3, 4, 1)),
    (_two_scales_of_tokens, tokens(3, 2, 1)),
    (_shuffled, lambda t: tokens(3, 4)(t[:, ORDER.argsort()])),
    (_talking_heads, tokens(3, 4)),
    (_mixer, tokens(3, 4)),
    (_hybrid, first),
]


@pytest.mark.parametrize(("run", "arrange"), TOKENS, ids=[run.__name__ for run, _ in TOKENS])
def test_tokens_get_their_grid_back(run: Callable[..., Tensor], arrange: Arrange) -> None:
    assert f"grid 3 x {2 if run is _two_scales_of_tokens else 4}" in check(run, arrange)["layer_axes"]
    net, x = build(run), images(5)
    targets = torch.tensor([1, 0, 3, 2, 4])
    whole = GradCAM(net)(x, targets).values
    torch.testing.assert_close(
        torch.cat([GradCAM(net)(x[i : i + 1], targets[i : i + 1]).values for i in range(5)]), whole
    )


def test_the_provenance_says_the_tokens_axes_and_which_are_left_out() -> None:
    provenance = check(_vit(2), tokens(3, 4, 2))
    assert provenance["layer"].startswith("layer_norm[2] at norm")
    assert provenance["layer_axes"] == "(n, t, c), grid 3 x 4 of 14 tokens"


# Targets of their own


def _two_heads(net: Any, x: Tensor, see: See) -> Tensor:
    h = torch.relu(net.a(x))
    one, two = torch.relu(net.b(h)), torch.relu(net.d8(h))
    return torch.cat([net.l(one.mean((2, 3)))[:, :3], net.l2(two.mean((2, 3)))[:, 3:]], 1)


def test_a_branch_that_only_another_targets_score_reads_is_not_taken() -> None:
    net, x = build(_two_heads), images()

    def alone(target: int) -> Tensor:
        def run(net: Any, x: Tensor, see: See) -> Tensor:
            h = torch.relu(net.a(x))
            branch, head = ((net.b, net.l), (net.d8, net.l2))[target // 3]
            return head(see(torch.relu(branch(h))).mean((2, 3)))

        return by_hand(build(run), x, first, torch.full((2,), target))

    for target in (0, 2, 3, 4):
        torch.testing.assert_close(GradCAM(net).attribute(x, target), alone(target))
    both = GradCAM(net).each(x, torch.tensor([[0, 4], [3, 1]]))
    torch.testing.assert_close(both[0].values, torch.stack([alone(0)[0], alone(3)[1]]))
    torch.testing.assert_close(both[1].values, torch.stack([alone(4)[0], alone(1)[1]]))
    assert both[0].provenance["layer"] == (
        "relu[1] at <model> (relu) for target 0, 1; relu[2] at <model> (relu) for target 3, 4"
    )
    with pytest.raises(
        InputError, match=r"layer must lie on the way .* score of target 4, but nothing of 'b' reaches it"
    ):
        GradCAM(net, layer="b")(x, 4)


def test_a_layer_whose_gradient_is_zero_is_still_on_the_way() -> None:
    """The last ReLU is closed everywhere: the map is zero, and its layer not an earlier one."""
    net = build(_plain)
    with torch.no_grad():
        net.get_submodule("b").bias.fill_(-100)  # type: ignore[union-attr]
    found = GradCAM(net)(images(), 1)
    assert found.provenance["layer"].startswith("relu[1]")
    assert float(found.values.abs().max()) == 0
    net = build(_plain)
    with torch.no_grad():
        net.get_submodule("l").weight[1] = 0  # type: ignore[index]
    assert GradCAM(net)(images(), 1).provenance["layer"].startswith("relu[1]")


# Named layers


def test_named_layers_are_read_as_they_are_found() -> None:
    net, x = build(_vit(1)), images()

    by_site = GradCAM(net, layer="layer_norm[2]")(x, TARGETS)
    torch.testing.assert_close(by_site.values, by_hand(net, x, tokens(3, 4, 1)))
    assert by_site.provenance["layer_choice"] == "named"
    for options in ({"grid": (3, 4)}, {"grid": [3, 4], "channels": "last"}):
        given = GradCAM(net, layer="layer_norm[2]", **options)(x, TARGETS)
        torch.testing.assert_close(given.values, by_site.values)
        assert given.provenance["layer_choice"] == "named, axes as given"


def test_a_named_layer_of_which_only_the_class_token_is_read_is_refused_with_one_that_works() -> None:
    net, x = build(_vit(1)), images()
    with pytest.raises(InputError, match=r"it reads no place of the grid .* which finds 'layer_norm\[2\]', in 'norm'"):
        GradCAM(net, layer="norm")(x, TARGETS)
    GradCAM(net, layer="layer_norm[2]")(x, TARGETS)


def test_a_named_layer_off_the_way_is_refused_with_one_that_works() -> None:
    net, x = build(_decoder), images()
    with pytest.raises(InputError, match=r"layer must lie on the way .* but nothing of 'd' reaches it. Use layer=None"):
        GradCAM(net, layer="d")(x, TARGETS)
    torch.testing.assert_close(GradCAM(net).attribute(x, TARGETS), by_hand(net, x, first))


def test_a_module_that_stores_a_copy_and_returns_a_tuple_is_read_at_its_last_value_on_the_way() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(8, 8)

        def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.conv(h))
            self.copy = h.clone()
            return h, h.mean((2, 3))

    def run(net: Any, x: Tensor, see: See) -> Tensor:
        h, _ = net.block(torch.relu(net.a(x)))
        h = see(net.block(h)[0])  # called twice: the last call counts
        return net.l(h.mean((2, 3)))

    torch.manual_seed(0)
    net = Net({"a": conv(3, 8), "block": Block(), "l": nn.Linear(8, 5)}, run).double().eval()
    expected = by_hand(net, images(), first)
    for options in ({}, {"layer": "block"}):
        found = GradCAM(net, **options)(images(), TARGETS)
        torch.testing.assert_close(found.values, expected)
        assert found.provenance["layer"].startswith("relu[2] at block")


def _scrambled(net: Any, x: Tensor, see: See) -> Tensor:
    """Tokens in the order of their norms: where each stands is not known to any dataflow."""
    t = net.embed(x).flatten(2).transpose(1, 2)
    t = t.sort(1)[0]
    return net.l(torch.relu(net.down(net.up(t))).mean(1))


def test_where_the_places_are_not_known_the_layer_is_refused_with_what_to_give() -> None:
    net, x = build(_scrambled), images()
    with pytest.raises(
        UnsupportedOp, match=r"cannot be told where .* Name a layer and say how to read it: layer=\.\.\., with"
    ):
        GradCAM(net)(x, TARGETS)
    with pytest.raises(InputError, match=r"layer 'down' puts out \(2, 12, 8\) .* Say how to read it: channels='first'"):
        GradCAM(net, layer="down")(x, TARGETS)
    found = GradCAM(net, layer="relu[0]", grid=(3, 4))(x, TARGETS)
    assert found.provenance["layer_axes"] == "(n, t, c), grid 3 x 4"
    with pytest.raises(
        InputError, match=r"channels and grid must fit the output \(2, 12, 8\) .* but are None and \(4, 4\)"
    ):
        GradCAM(net, layer="relu[0]", grid=(4, 4))(x, TARGETS)


def test_some_of_the_tokens_are_no_grid() -> None:
    def run(net: Any, x: Tensor, see: See) -> Tensor:
        t = net.embed(x).flatten(2).transpose(1, 2)
        return net.l(torch.relu(net.down(net.up(t[:, torch.tensor([0, 3, 5, 6, 7])]))).mean(1))

    with pytest.raises(UnsupportedOp, match="cannot be told where in the image its values stand"):
        GradCAM(build(run))(images(), TARGETS)


def test_the_image_itself_is_no_feature_map() -> None:
    """Attention reads the pixels of each patch: no layer stands before it."""

    def run(net: Any, x: Tensor, see: See) -> Tensor:
        t = F.pixel_unshuffle(x, 4).flatten(2).transpose(1, 2) * 2
        q, k, v = net.pixels(torch.cat([t.new_ones(len(t), 1, 48), t], 1)).chunk(3, -1)
        return net.l(F.scaled_dot_product_attention(q, k, v)[:, 0])

    with pytest.raises(UnsupportedOp, match=r"reads no feature map .* Name a layer: layer='a module path'"):
        GradCAM(build(run))(images(), TARGETS)


def test_axes_that_are_given_are_checked() -> None:
    net = build(_plain)
    with pytest.raises(InputError, match="channels must be 'first', 'last', or None, but is 'middle'"):
        GradCAM(net, layer="b", channels="middle")
    with pytest.raises(InputError, match=r"grid must be the height and the width .*, but is \(3, 0\)"):
        GradCAM(net, layer="b", grid=(3, 0))
    with pytest.raises(InputError, match=r"but layer is None\. Give layer as well"):
        GradCAM(net, grid=(3, 4))


def test_several_inputs_that_join_and_that_do_not() -> None:
    x, y = images(), images().flip(0)

    def joined(net: Any, x: Tensor, y: Tensor, see: See) -> Tensor:
        return net.l(see(torch.relu(net.b(torch.relu(net.a(x)) - net.a(y)))).mean((2, 3)))

    check(joined, first, (x, y))

    def apart(net: Any, x: Tensor, y: Tensor, see: See) -> Tensor:
        return net.l(torch.relu(net.a(x)).mean((2, 3)) + see(torch.relu(net.b(net.a(y)))).mean((2, 3)))

    provenance = check(apart, first, (x, y))
    assert "beside" in provenance["layer_choice"]


def test_guided_grad_cam_weights_the_same_layer() -> None:
    net, x = build(_vit(1)), images()
    coarse = GradCAM(net, layer="layer_norm[2]", grid=(3, 4)).attribute(x, TARGETS)
    found = GuidedGradCAM(net, layer="layer_norm[2]", grid=(3, 4))(x, TARGETS)
    torch.testing.assert_close(found.values, coarse * GuidedBackprop(net).attribute(x, TARGETS))
    assert found.provenance["layer_axes"] == "(n, t, c), grid 3 x 4 of 13 tokens"


def test_a_network_that_goes_another_way_with_all_images_than_with_one() -> None:
    def run(net: Any, x: Tensor, see: See) -> Tensor:
        h = torch.relu(net.a(x))
        h = torch.relu(net.b(h)) if len(x) > 1 else h
        return net.l(see(h).mean((2, 3)))

    check(run, first)
    check_one = GradCAM(build(run))(images(1), 1)
    assert check_one.provenance["layer"].startswith("relu[0]")


# Real networks: the layer by its module, its axes, and the gradient there by finite differences


def perturbed(model: nn.Module, module: str, change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    handle = model.get_submodule(module).register_forward_hook(lambda m, i, o: change(o))
    try:
        return model(x)
    finally:
        handle.remove()


def check_by_differences(model: nn.Module, module: str, arrange: Arrange, x: Tensor) -> None:
    """The chosen layer is that module's output; its gradient agrees with finite differences, the map with Eq. 1 and 2."""
    model = model.double().eval()
    kept: list[Tensor] = []
    out = perturbed(model, module, lambda o: kept.append(o) or o, x.clone().requires_grad_())
    for target in range(10):  # the first whose map is not empty
        (g,) = torch.autograd.grad(out[:, target].sum(), kept[0], retain_graph=True)
        maps = (arrange(g).mean((2, 3), keepdim=True) * arrange(kept[0].detach())).sum(1, keepdim=True).relu()
        if float(maps.max()) > 0:
            break
    direction = torch.randn(g.shape, generator=torch.Generator().manual_seed(1), dtype=g.dtype)
    direction = direction * (kept[0] != 0)  # where a ReLU is closed, a pool behind it has a kink
    step = 1e-5
    with torch.no_grad():
        up, down = (perturbed(model, module, lambda o, s=s: o + s * direction, x)[:, target] for s in (step, -step))
    torch.testing.assert_close(((up - down) / (2 * step)).sum(), (g * direction).sum(), rtol=1e-4, atol=1e-7)
    expected = F.interpolate(maps, x.shape[-2:], mode="bilinear")
    assert float(expected.max()) > 0
    found = GradCAM(model)(x, target)
    torch.testing.assert_close(found.values, expected, rtol=1e-6, atol=1e-9, msg=found.provenance["layer"])


def _randomised(model: nn.Module) -> nn.Module:
    """Without zeros at a path's end, which would hide it."""
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().max() == 0:
                p.normal_(0, 0.05)
    return model


slow = pytest.mark.slow
TORCHVISION = [
    pytest.param("resnet18", {"num_classes": 512}, 64, "layer4", first),
    pytest.param("squeezenet1_0", {}, 64, "features.12", first),
    pytest.param("vit_b_16", {"image_size": 48}, 48, "encoder.layers.encoder_layer_11.ln_1", tokens(3, 3, 1)),
    pytest.param("swin_t", {"num_classes": 768}, 96, "norm", last),
    pytest.param("swin_v2_t", {}, 64, "norm", last, marks=slow),
    pytest.param("convnext_tiny", {}, 96, "features.7.2", first, marks=slow),
    pytest.param("googlenet", {"init_weights": False, "aux_logits": True}, 96, "inception5b", first),
    pytest.param("densenet121", {}, 96, "features.relu5", first, marks=slow),
    pytest.param("efficientnet_b0", {}, 96, "features.8", first),
    pytest.param("mobilenet_v3_small", {}, 96, "features.12", first),
    pytest.param("vgg11", {}, 96, "features.19", first, marks=slow),
    pytest.param("maxvit_t", {}, 224, "blocks.3.layers.1", first, marks=slow),
]


@pytest.mark.parametrize(("name", "options", "size", "module", "arrange"), TORCHVISION)
def test_torchvision(name: str, options: dict[str, Any], size: int, module: str, arrange: Arrange) -> None:
    torch.manual_seed(0)
    model = _randomised(getattr(torchvision.models, name)(**options))
    if name == "densenet121":
        model.get_submodule("features").add_module("relu5", nn.ReLU())  # the same ReLU as a function follows
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_by_differences(model, module, arrange, x)


def square(side: int, extra: int = 0) -> Arrange:
    return tokens(side, side, extra)


TIMM = [
    ("vit_tiny_patch16_224", {"img_size": 64}, 64, "blocks.11.norm1", square(4, 1)),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64}, 64, "blocks.11.norm1", square(4, 2)),
    ("vit_small_patch16_18x2_224", {"img_size": 64}, 64, "blocks.17.attns.1.norm", square(4, 1)),
    ("beit_base_patch16_224", {"img_size": 48}, 48, "blocks.11", square(3, 1)),
    ("convit_tiny", {"img_size": 64}, 64, "blocks.11.norm1", square(4, 1)),
    ("cait_xxs24_224", {"img_size": 64}, 64, "blocks_token_only.1.norm1", square(4, 1)),
    ("xcit_nano_12_p16_224", {}, 64, "cls_attn_blocks.1.norm1", square(4, 1)),
    ("pit_ti_224", {}, 224, "transformers.2.blocks.3.norm1", square(7, 1)),
    ("swin_tiny_patch4_window7_224", {}, 224, "norm", last),
    ("coatnet_nano_rw_224", {}, 224, "norm", first),
    ("mixer_s32_224", {}, 224, "norm", square(7)),
    ("pvt_v2_b0", {}, 96, "stages.3.norm", square(3)),
    ("mobilevit_xxs", {}, 64, "final_conv", first),
    ("levit_128s", {}, 224, "stages.2.blocks.3", square(4)),
    ("poolformer_s12", {}, 64, "stages.3", first),
    ("visformer_tiny", {}, 224, "norm", first),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "size", "module", "arrange"), TIMM, ids=[t[0] for t in TIMM])
def test_timm(name: str, options: dict[str, Any], size: int, module: str, arrange: Arrange) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _randomised(timm.create_model(name, **options))
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_by_differences(model, module, arrange, x)
