"""Grad-CAM's layer among tokens: they get their grid back, without those that stand nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _cam_networks import Arrange, See, attend, build, check, embedded, first, images, mlp, tokens, vit
from torch import Tensor
from torch.nn import functional as F

from backlit import GradCAM


def _vit_mean(net: Any, x: Tensor, see: See) -> Tensor:
    t = embedded(net, x, 1)
    t = t + attend(net, net.norm(t))
    return net.l(see(net.norm(t + mlp(net, t)))[:, 1:].mean(1))


def _vit_separate(net: Any, x: Tensor, see: See) -> Tensor:
    """Queries, keys and values of one head, without any slice."""
    t = embedded(net, x, 1)
    t = t + attend(net, net.norm(t))
    u = see(net.norm2(t))
    k, v = net.l2.weight.T[:, :4], net.up.weight.T[:, :8]
    keys, values = torch.matmul(u, k), torch.matmul(u, v)
    mixed = (torch.matmul(u, k) @ keys.transpose(1, 2)).softmax(-1) @ values
    return net.l((t + mixed)[:, 0])


def _vit_sequence_first(net: Any, x: Tensor, see: See) -> Tensor:
    t = embedded(net, x, 1).transpose(0, 1)
    u = see(net.norm(t))
    q, k, v = net.qkv(u).chunk(3, -1)
    q, k, v = (z.transpose(0, 1) for z in (q, k, v))
    return net.l((t.transpose(0, 1) + (q @ k.mT).softmax(-1) @ v)[:, 0])


def _class_attention(net: Any, x: Tensor, see: See) -> Tensor:
    """CaiT and XCiT: the class token comes late, and attends twice."""
    t = embedded(net, x, 0)
    t = t + mlp(net, t)
    token = t.new_zeros(len(t), 1, 8) + 0.2
    for last_one in (False, True):
        u = net.norm(torch.cat([token, t], 1))
        u = see(u) if last_one else u
        k, v = net.kv(u).chunk(2, -1)
        token = token + (net.q(u[:, :1]) @ k.mT).softmax(-1) @ v
    return net.l(token[:, 0])


def _cross_covariance(net: Any, x: Tensor, see: See) -> Tensor:
    """XCiT's attention, over channels: (c, t) @ (t, c) @ (c, t), by einsum."""
    t = embedded(net, x, 0)
    q, k, v = net.qkv(net.norm(t)).chunk(3, -1)
    mixed = torch.einsum("nij,ntj->nti", torch.einsum("nti,ntj->nij", q, k).softmax(-1), v)
    return net.l(see(t + mixed).mean(1))


def _cross_covariance_alone(net: Any, x: Tensor, see: See) -> Tensor:
    q, k, v = net.qkv(embedded(net, x, 0)).chunk(3, -1)
    return net.l(see(torch.relu((k.mT @ q).softmax(-1) @ v.mT)).mean(2))


def _token_convolution(net: Any, x: Tensor, see: See) -> Tensor:
    """A convolution over the sequence of tokens."""
    return net.l(see(torch.relu(net.along(embedded(net, x, 0).transpose(1, 2)))).mean(2))


def _queries_apart(net: Any, x: Tensor, see: See) -> Tensor:
    """Queries of a norm of their own, of which the class token's alone is read."""
    t = embedded(net, x, 1)
    k, v = net.kv(see(net.norm(t))).chunk(2, -1)
    q = net.norm2(t) * 0.5
    return net.l((t + F.scaled_dot_product_attention(q, k, v))[:, 0])


def _projections_by_layers(net: Any, x: Tensor, see: See) -> Tensor:
    """Keys and values by two layers each: what both are made from."""
    t = embedded(net, x, 1)
    u = see(net.norm(t))
    k, v = net.down(F.gelu(net.up(u))), net.l3(torch.relu(net.q(u)))
    return net.l((t + (u @ k.mT).softmax(-1) @ v)[:, 0])


def _two_scales_of_tokens(net: Any, x: Tensor, see: See) -> Tensor:
    """Two streams with a class token each, interleaved: the last one's, and no stem of both."""
    t = embedded(net, x, 0) + 0.2
    one, two = t, t.unflatten(1, (3, 4))[:, :, ::2].flatten(1, 2)
    token = t.new_ones(len(t), 1, 8)
    one, two = (torch.cat([token, s + mlp(net, s)], 1) for s in (one, two))
    norms = net.norm(one), see(net.norm(two))
    heads = [(s + attend(net, u))[:, 0] for s, u in zip((one, two), norms, strict=True)]
    return net.l(heads[0] + heads[1])


ORDER = torch.tensor([5, 0, 11, 2, 7, 1, 3, 10, 4, 9, 8, 6])


def _shuffled(net: Any, x: Tensor, see: See) -> Tensor:
    """Tokens in a fixed order of their own."""
    return net.l(see(torch.relu(net.q(embedded(net, x, 0)[:, ORDER]))).mean(1))


def _talking_heads(net: Any, x: Tensor, see: See) -> Tensor:
    """A convolution over the heads of the attention's own matrix, which is no plane of the image."""
    q, k, v = net.qkv(embedded(net, x, 0)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    mixed = net.heads(q @ k.mT).softmax(-1) @ v
    return net.l(see(F.elu(net.q(8 * mixed.transpose(1, 2).flatten(2)))).mean(1))


def _mixer(net: Any, x: Tensor, see: See) -> Tensor:
    """A layer over the tokens in place of attention."""
    t = embedded(net, x, 0)
    t = t + net.mix(net.norm(t).transpose(1, 2)).transpose(1, 2)
    return net.l(see(net.norm2(t + mlp(net, t))).mean(1))


def _hybrid(net: Any, x: Tensor, see: See) -> Tensor:
    """A map that becomes tokens and a map again, as in CoAtNet and MobileViT."""
    h = torch.relu(net.embed(x))
    t = h.flatten(2).transpose(1, 2)
    t = net.norm(t + attend(net, t)).transpose(1, 2).unflatten(2, (3, 4))
    return net.l(see(torch.relu(net.b(t + h))).mean((2, 3)))


TOKENS: list[tuple[Callable[..., Tensor], Arrange]] = [
    (vit(1), tokens(3, 4, 1)),
    (vit(2), tokens(3, 4, 2)),
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
    provenance = check(vit(2), tokens(3, 4, 2))
    assert provenance["layer"].startswith("layer_norm[2] at norm")
    assert provenance["layer_axes"] == "(n, t, c), grid 3 x 4 of 14 tokens"
