"""Small transformers that write attention in every way, with one set of weights, and their attention written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, WIDTH = 2, 8
Attend = Callable[["Transformer", int, Tensor], Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def mlp(self, t: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(t)))


class Transformer(nn.Module):
    """Patches of 8 pixels, a class token or the mean of the patches, norms before attention or behind it."""

    def __init__(
        self, spelling: str = "fused", *, token: bool = True, before: bool = True, blocks: int = 3, channels: int = 1
    ) -> None:
        super().__init__()
        self.spelling, self.token, self.before = spelling, token, before
        self.patch = nn.Conv2d(channels, WIDTH, 8, 8)
        self.cls, self.pos = nn.Parameter(torch.empty(1, 1, WIDTH)), nn.Parameter(torch.empty(1, 16 + token, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)
        generator = torch.Generator().manual_seed(7)
        self.double().eval()
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5

    def embed(self, x: Tensor) -> Tensor:
        t = self.patch(x).flatten(2).transpose(1, 2)
        return (torch.cat([self.cls.expand(len(x), -1, -1), t], 1) if self.token else t) + self.pos

    def block(self, block: Block, t: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        if self.before:
            t = t + mix(block.norm1(t))
            return t + block.mlp(block.norm2(t))
        t = block.norm1(t + mix(t))
        return block.norm2(t + block.mlp(t))

    def classify(self, t: Tensor) -> Tensor:
        t = self.norm(t)
        return self.head(t[:, 0] if self.token else t.mean(1))

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(x)
        for block in self.blocks:
            t = self.block(block, t, lambda s, block=block: SPELLINGS[self.spelling](block, s))
        return self.classify(t)


def _qkv(block: Block, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, count, _ = t.shape
    q, k, v = block.qkv(t).reshape(n, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _joined(block: Block, mixed: Tensor) -> Tensor:
    return block.proj(mixed.transpose(1, 2).flatten(2))


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)).softmax(-1)


def _fused(block: Block, t: Tensor) -> Tensor:
    return _joined(block, F.scaled_dot_product_attention(*_qkv(block, t)))


def _by_hand(block: Block, t: Tensor) -> Tensor:
    q, k, v = _qkv(block, t)
    return _joined(block, F.dropout(_weights(q, k), 0.1, training=False) @ v)


def _turned(block: Block, t: Tensor) -> Tensor:
    q, k, v = _qkv(block, t)
    return _joined(block, (v.mT @ _weights(q, k).mT).mT)


def _einsum(block: Block, t: Tensor) -> Tensor:
    q, k, v = _qkv(block, t)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(WIDTH // HEADS)
    return block.proj(torch.einsum("bhij,bhjd->bihd", scores.softmax(-1), v).flatten(2))


def _bmm(block: Block, t: Tensor) -> Tensor:
    q, k, v = (s.flatten(0, 1) for s in _qkv(block, t))
    return _joined(block, torch.bmm(_weights(q, k), v).unflatten(0, (len(t), HEADS)))


def _heads_first(block: Block, t: Tensor) -> Tensor:
    q, k, v = (torch.cat(s.unbind(1)) for s in _qkv(block, t))
    return _joined(block, torch.bmm(_weights(q, k), v).unflatten(0, (HEADS, len(t))).transpose(0, 1))


def _torch(block: Block, t: Tensor, *, weights: bool = False) -> Tensor:
    s = t.transpose(0, 1)
    mixed, _ = F.multi_head_attention_forward(
        s, s, s, WIDTH, HEADS, block.qkv.weight, block.qkv.bias, None, None, False, 0.0, block.proj.weight,
        block.proj.bias, training=False, need_weights=weights,
    )  # fmt: skip
    return mixed.transpose(0, 1)


def _torch_weights(block: Block, t: Tensor) -> Tensor:
    return _torch(block, t, weights=True)


SPELLINGS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "fused": _fused,
    "by hand": _by_hand,
    "turned": _turned,
    "einsum": _einsum,
    "bmm": _bmm,
    "heads first": _heads_first,
    "torch": _torch,
    "torch with weights": _torch_weights,
}


def followed(net: Transformer, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each block its attention (n, h, t, t), a leaf, its output Z, and the logits that the head makes of Z."""
    rows, t = [], net.embed(x)
    for block in net.blocks:
        kept: list[Tensor] = []

        def mix(s: Tensor, block: Block = block, kept: list[Tensor] = kept) -> Tensor:
            q, k, v = _qkv(block, s)
            kept.append(_weights(q, k).detach().requires_grad_())
            return _joined(block, kept[0] @ v)

        t = net.block(block, t.detach(), mix)
        rows.append((kept[0], t, net.classify(t)))
    return rows


def grid_of(net: Transformer, tokens: Tensor, size: int = 32) -> Tensor:
    """The map (n, 1, h, w) of tokens (n, t), row by row behind the class token."""
    patches = tokens[:, int(net.token) :]
    return F.interpolate(patches.reshape(len(tokens), 1, 4, 4), (size, size), mode="bilinear", align_corners=False)
