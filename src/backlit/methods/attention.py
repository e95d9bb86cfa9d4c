"""Maps from attention: rollout, gradients of attention maps, and gradients with held attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError, check_whole
from backlit.capture import Call
from backlit.methods.account import wide
from backlit.methods.attention_maps import Attention, Mixing, find_attention, head_behind, mixing_of, starts_of_blocks
from backlit.methods.base import Method
from backlit.methods.gradient import GradientXInput
from backlit.methods.images import enlarged
from backlit.methods.job import Job, Maps, guessed_bytes
from backlit.rules import presets


class AttentionMap(Method):
    """A map of the attention of a vision transformer: one channel, the tokens' grid bilinearly enlarged."""

    kind = "one-sided"
    needs = "attention between tokens"
    reads_attention = True
    reads_map = True
    explains_inside = False
    takes_rules = False
    memory_factor = 8.0

    def explain(self, job: Job) -> Maps:
        attention = find_attention(self.network, job.inputs, self.title)
        targets = job.pick(attention.output)
        tokens = self.tokens(attention, job.inputs, targets)
        grid = attention.layout.arrange(tokens, lead=1).to(attention.output.dtype)
        return Maps.of(
            tuple(enlarged(grid, x.shape[-2:]) for x in job.inputs),
            attention.output,
            targets,
            coverage=attention.coverage,
            activation_bytes=guessed_bytes(job.inputs[0]),
            notes=self._notes(attention),
        )

    def tokens(self, attention: Attention, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """One number for each token (t, n, tokens)."""
        raise NotImplementedError

    def _notes(self, attention: Attention) -> dict[str, str]:
        size, read = attention.layout.size, int((attention.read > 0).sum())
        return {
            "attention": f"{len(attention.layers)} layers",
            "tokens": f"grid {size[0]} x {size[1]} of {len(attention.read)} tokens, of which the output reads {read}",
        }


class AttentionRollout(AttentionMap):
    """Attention rollout (Abnar and Zuidema 2020, Sec. 3): how much of each token is mixed into what the output reads.

    Each layer's attention, averaged over heads, and the identity for the residual connection, ``(A + I) / 2``, are multiplied
    through the layers. The row is the class token's where the output reads that alone, else the mean of the tokens that it
    reads. The map says nothing of a class: it is the same for all targets.
    """

    name = "attention_rollout"
    title = "Attention rollout"
    summary = "attention and residual connections multiplied through the layers, the same for all classes"
    source = "Abnar and Zuidema 2020"
    answers = "Which places are mixed into what the head reads, whatever the class?"
    follows_target = False

    @property
    def forward_passes(self) -> float:
        return 2.0

    def tokens(self, attention: Attention, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        layers = [m.weights for m in _run(attention, inputs).mixings]
        means = [wide(attention.heads(w)).mean(1) for w in layers]
        row = _rolled([(m + torch.eye(m.shape[-1], device=m.device, dtype=m.dtype)) / 2 for m in means], attention.read)
        return row.expand(targets.shape[1], *row.shape)


class GradientRollout(AttentionMap):
    """Rollout of attention weighted by its gradient (Chefer et al. 2021, ICCV, Eq. 5 and 6, self-attention).

    ``R <- R + mean over heads of (grad * A)+ R`` through the layers, from the identity; the gradient is that of the target's
    logit. The row is chosen as :class:`AttentionRollout` does.
    """

    name = "gradient_rollout"
    title = "Gradient rollout"
    summary = "attention times its gradient, rectified, multiplied through the layers"
    source = "Chefer et al. 2021"
    answers = "Which places are mixed into what the head reads, where that raises the logit?"

    @property
    def forward_passes(self) -> float:
        return 5.0

    def tokens(self, attention: Attention, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        with torch.enable_grad():
            passed = _run(attention, inputs, grad=True)
            grads = _gradients(passed.output, targets, passed.mixed)
        matrices = []
        for mixing, grad in zip(passed.mixings, grads, strict=True):
            weighted = mixing.gradient(wide(grad)) * wide(mixing.weights).detach()
            mean = attention.heads(weighted, lead=1).clamp(min=0).mean(2)
            matrices.append(mean + torch.eye(mean.shape[-1], device=mean.device, dtype=mean.dtype))
        rolled = _rolled(matrices, attention.read)
        return (rolled - attention.read.to(rolled)).clamp(min=0)  # of the identity that it began with


class LeGrad(AttentionMap):
    """LeGrad (Bousselham et al. 2024, Sec. 3): the gradients of each layer's own prediction to its attention weights.

    Each block's output goes through the network's head as if it were the last; the gradient of the target's logit to that
    block's attention weights is rectified, averaged over heads, queries and layers. The authors then scale each map to
    [0, 1]; here it keeps its unit, logits per attention weight.

    Attributes:
        layers: How many of the last layers count; None for all.
    """

    name = "legrad"
    title = "LeGrad"
    summary = "gradients of each layer's own prediction to its attention weights, rectified"
    source = "Bousselham et al. 2024"
    answers = "Attention to which places raises the logit, layer by layer?"

    layers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("layers", self.layers, none=True)

    @property
    def forward_passes(self) -> float:
        return 5.0

    def tokens(self, attention: Attention, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        count = len(attention.layers)
        if self.layers is not None and self.layers > count:
            raise InputError(
                f"layers must be at most {count}, the number of attention layers, but is {self.layers}. Use None for all."
            )
        first = count - (count if self.layers is None else self.layers)
        ends = starts_of_blocks(attention, self.title) if first < count - 1 else ()
        total: Tensor | None = None
        for mixing, grad in _own_gradients(attention, inputs, targets, first, ends):
            positive = attention.heads(mixing.gradient(wide(grad)), lead=1).clamp(min=0)
            own = positive.mean((2, 3))
            total = own if total is None else total + own
        assert total is not None
        return total / (count - first)


@dataclass(frozen=True, eq=False)
class _Pass:
    """A forward pass: how each layer mixed its tokens, what that put out, and the network's output."""

    mixings: list[Mixing]
    mixed: list[Tensor]
    output: Tensor


def _run(attention: Attention, inputs: tuple[Tensor, ...], *, grad: bool = False) -> _Pass:
    """Run the network again; with ``grad``, what the first attention put out has a graph behind it."""
    recording = attention.recording
    values = dict(zip(recording.inputs, inputs, strict=True))
    mixings, mixed = [], []
    for i, node in enumerate(recording.nodes):
        if i in attention.layers:
            mixings.append(_mixing(node.call, tuple(values[s] for s in node.sources)))
        with torch.set_grad_enabled(grad and bool(mixings)):
            node.evaluate(values)
        if i in attention.layers:
            out = values[node.outputs[0]]
            if grad and not out.requires_grad:
                out.requires_grad_()
            mixed.append(out)
    return _Pass(mixings, mixed, values[recording.output])


def _own_gradients(
    attention: Attention, inputs: tuple[Tensor, ...], targets: Tensor, first: int, ends: tuple[int, ...]
) -> Sequence[tuple[Mixing, Tensor]]:
    """For each layer from ``first`` on, how it mixes, and the gradient (t, ...) of its own logits to what it puts out."""
    recording, own = attention.recording, list[tuple[Mixing, Tensor]]()
    head = head_behind(recording, ends[-1]) if ends else None
    values = dict(zip(recording.inputs, inputs, strict=True))
    pending: tuple[Mixing, Tensor] | None = None
    for i, node in enumerate(recording.nodes):
        layer = attention.layers.index(i) if i in attention.layers else -1
        mixing = _mixing(node.call, tuple(values[s] for s in node.sources)) if layer >= first else None
        with torch.set_grad_enabled(pending is not None):
            node.evaluate(values)
        slot = node.outputs[0] if node.outputs else -1
        if mixing is not None:
            values[slot] = values[slot].detach().requires_grad_()
            pending = mixing, values[slot]
        elif pending is not None and head is not None and slot in ends[:-1]:
            with torch.enable_grad():
                own.append((pending[0], _gradients(head(values[slot]), targets, [pending[1]])[0]))
            values[slot], pending = values[slot].detach(), None
    assert pending is not None
    own.append((pending[0], _gradients(values[recording.output], targets, [pending[1]])[0]))
    return own


def _mixing(call: Call, signals: tuple[Tensor, ...]) -> Mixing:
    mixing = mixing_of(call, tuple(s.detach() for s in signals))
    assert mixing is not None
    return mixing


def _gradients(output: Tensor, targets: Tensor, to: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients (t, ...) of each image's t logits in the output (n, k) to each of these."""
    weights = F.one_hot(targets.T, output.shape[1]).to(output.dtype)
    if len(weights) > 1:
        return torch.autograd.grad(output, tuple(to), weights, is_grads_batched=True)
    return tuple(g[None] for g in torch.autograd.grad(output, tuple(to), weights[0]))


def _rolled(matrices: list[Tensor], read: Tensor) -> Tensor:
    """The row (..., tokens) of the product of matrices (..., tokens, tokens), the last on the left, that is read."""
    row = read.to(matrices[0]).expand(*matrices[0].shape[:-2], 1, -1)
    for matrix in reversed(matrices):
        row = row @ matrix
    return row.squeeze(-2)


class LibraGrad(GradientXInput):
    """LibraGrad (Mehri et al. 2025): gradient times input, with attention weights, norms and gates held.

    The gradient's paths through softmax, through the deviation of a norm and through the gate of a GELU or SiLU are cut, and
    a product of two signals passes half to each, so that every operation is linear in the signal but for its biases: the map
    and what the biases give sum to the logit.
    """

    name = "libragrad"
    title = "LibraGrad"
    summary = "gradient times image, with attention, norms and gates held"
    source = "Mehri et al. 2025"
    answers = "What share of the logit does each pixel have, if attention and gates stay as they are?"
    table: ClassVar = presets.libra
