"""Attention in a network: the matrices by which tokens are mixed, and where the tokens stand in the image.

Attention is found by the dataflow, whatever its spelling: ``scaled_dot_product_attention``, or a product of two signals of
which one was made by a softmax (``softmax(q k) @ v``, ``bmm``, ``einsum``), also behind ``nn.MultiheadAttention``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from backlit._errors import UnsupportedOp
from backlit._features import Features, find_features
from backlit._forward import of_image
from backlit._places import Layout, Mark, is_somewhere, layout_of, place_axes
from backlit._reach import Step, reach
from backlit.capture.canonical import Call
from backlit.capture.primitives import attention_scores
from backlit.capture.record import Form, Recording, record
from backlit.capture.sites import Coverage, CoverageRow, Site

Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Mixing:
    """One call that mixes tokens: ``output = weights @ values``, with all other axes in front.

    Attributes:
        weights: Attention weights (..., q, k), whose rows sum to 1.
        values: What they mix (..., k, d).
        source: Which signal of the call the values are.
        axis: The axis of that signal that its tokens stand on, counted from the last.
        turn: Turns what the call puts out, or its gradient, to (..., q, d).
    """

    weights: Tensor
    values: Tensor
    source: int
    axis: int
    turn: Turn

    def gradient(self, output: Tensor) -> Tensor:
        """The gradient of the weights (..., q, k), from that of the call's output; axes before it stay."""
        return self.turn(output) @ self.values.to(output.dtype).mT


def mixing_of(call: Call, signals: tuple[Tensor, ...]) -> Mixing | None:
    """Read how a call mixes tokens; None if it is no attention.

    Args:
        call: The call; its own signals are not looked at.
        signals: The signals to compute the weights from.
    """
    if call.primitive.name == "attention":
        return _of_fused(call, signals)
    soft = [maker == "softmax" for maker in call.site.makers]
    if not call.primitive.has("contracts") or len(signals) != 2 or sum(soft) != 1:
        return None
    if call.primitive.name == "einsum_product":
        return _of_einsum(call, signals, soft.index(True))
    if min(s.dim() for s in signals) < 2:
        return None
    if soft[0]:
        return Mixing(signals[0], signals[1], 1, -2, _as_it_is)
    return Mixing(signals[1].mT, signals[0].mT, 0, -1, _transposed)


def _as_it_is(output: Tensor) -> Tensor:
    return output


def _transposed(output: Tensor) -> Tensor:
    return output.mT


def _of_fused(call: Call, signals: tuple[Tensor, ...]) -> Mixing | None:
    names = [name for name, _ in call.places]
    if "value" not in names or "query" not in names:  # a pool by a query that is a weight
        return None
    given = {**call.arguments, **dict(zip(names, signals, strict=True))}
    query, value = given["query"], given["value"]
    options = {k: given[k] for k in ("attn_mask", "is_causal", "scale", "enable_gqa") if given.get(k) is not None}
    weights = attention_scores(query, given["key"], **options).softmax(-1)
    if options.get("enable_gqa"):
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    return Mixing(weights, value, names.index("value"), -2, _as_it_is)


def _of_einsum(call: Call, signals: tuple[Tensor, ...], soft: int) -> Mixing | None:
    """The same of ``einsum("bhij,bhjd->bhid", a, v)``, whatever the order of its letters."""
    equation = next((v for k, v in call.arguments.items() if k.startswith("#") and isinstance(v, str)), "")
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or len(terms) != 2:
        return None
    a, v = terms[soft], terms[1 - soft]
    key, query, width = (
        [c for c in a if c in v and c not in out],
        [c for c in a if c in out and c not in v],
        [c for c in v if c in out and c not in a],
    )
    lead = [c for c in a if c in v and c in out]
    if not len(key) == len(query) == len(width) == 1:
        return None

    def to(term: str, last: list[str]) -> Turn:
        order = [term.index(c) for c in (*lead, *last)]

        def turn(t: Tensor) -> Tensor:
            before = t.dim() - len(term)
            return t.permute(*range(before), *(before + i for i in order))

        return turn

    weights = to(a, query + key)(signals[soft])
    values = to(v, key + width)(signals[1 - soft])
    return Mixing(weights, values, 1 - soft, v.index(key[0]) - len(v), to(out, query + width))


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention of a network on the images of a chunk, layer by layer.

    Attributes:
        recording: The forward pass, from which parts of it run again.
        layers: For each attention on the way to the output the position of its call in the recording.
        layout: Where the tokens stand in the image: of values (n, tokens).
        read: The share of each token (tokens,) in what the output reads behind the last attention: a class token alone, or
            the mean over those that are pooled.
        output: The network's own output (n, classes).
        by_image: Whether heads follow images, and not images heads, where both stand in one axis.
    """

    recording: Recording
    layers: tuple[int, ...]
    layout: Layout
    read: Tensor
    output: Tensor
    by_image: bool

    @property
    def coverage(self) -> Coverage:
        """The sites, of which attention alone is read."""
        own = {self.recording.nodes[i].call.site.name for i in self.layers}
        rows = [(s, "attention" if s.name in own else "true") for s in self.recording.trace]
        return Coverage(tuple(CoverageRow(s.name, s.primitive, s.kind, s.module, s.spelling, r) for s, r in rows))

    def heads(self, weights: Tensor, lead: int = 0) -> Tensor:
        """Weights (..., q, k) as (n, heads, q, k); ``lead`` axes in front stay."""
        n, shape = len(self.output), weights.shape[lead:-2]
        before, tokens = weights.shape[:lead], weights.shape[-2:]
        if len(shape) == 1 and shape[0] != n and not self.by_image:
            return weights.reshape(*before, -1, n, *tokens).transpose(lead, lead + 1)
        return weights.reshape(*before, n, -1, *tokens)


def has_attention(network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Tell whether tokens are mixed by attention on the way to the network's output."""
    recording, _ = record(network, inputs, _plain)
    return any(_may_mix(node.call.site) for node in recording.nodes)


def _may_mix(site: Site) -> bool:
    return site.primitive == "attention" or (site.has("contracts") and "softmax" in site.makers)


def _plain(call: Call, signals: tuple[Tensor, ...], result: object) -> Form:
    return call.without_signals().run


def find_attention(network: nn.Module, inputs: tuple[Tensor, ...], title: str) -> Attention:
    """Run the network, and find its attention.

    Raises:
        UnsupportedOp: If it has none, or none over the tokens of one grid.
    """
    recording, output = record(network, inputs, _plain)
    features = find_features(network, inputs, recording.trace)
    layers = tuple(i for i, node in enumerate(recording.nodes) if _may_mix(node.call.site))
    if not layers:
        raise UnsupportedOp(
            f"{title} reads the attention between tokens, and this network has none on the way to its output. Use it on a "
            "vision transformer; for a convolutional network take GradCAM or LRP."
        )
    layouts = [_layout(features, recording.nodes[i].call.site, title) for i in layers]
    first = layouts[0]
    for i, layout in zip(layers, layouts, strict=True):
        if layout.size != first.size or not torch.equal(layout.order, first.order):
            raise UnsupportedOp(
                f"{title} needs the same tokens in every block, but those at {recording.nodes[i].call.site} make a grid of "
                f"{layout.size[0]} x {layout.size[1]}, and the first ones {first.size[0]} x {first.size[1]}. {_WAY_OUT}"
            )
    last = recording.nodes[layers[-1]].call.site
    by_image = _heads_follow_images(network, inputs, features, last)
    return Attention(recording, layers, first, _tokens_read(features, last), output, by_image)


_WAY_OUT = "Use LibraGrad, LRP or GradCAM, which take any transformer."


def _mixing_in(features: Features, site: Site) -> tuple[Mixing, Step]:
    """How a site mixes tokens in the pass that shows where they stand, whose values are zeros, and its step there."""
    step = next(step for step in features.steps if step.names[:1] == (site.name,))
    mixing = mixing_of(step.call, step.signals)
    if mixing is None:
        raise UnsupportedOp(f"The attention at {site} cannot be read: its product has no rows and columns. {_WAY_OUT}")
    return mixing, step


def _layout(features: Features, site: Site, title: str) -> Layout:
    """Where the tokens that a call mixes stand.

    Raises:
        UnsupportedOp: If they are windows of a grid, channels, or tokens whose places are not known.
    """
    mixing, step = _mixing_in(features, site)
    value, before = step.signals[mixing.source], features.nodes.get(step.parents[mixing.source])
    axis = mixing.axis % value.dim()
    mark = None if before is None else before.mark
    why = _refusal(mark, axis)
    if why is None and mixing.weights.shape[-1] != mixing.weights.shape[-2]:
        why = f"has {mixing.weights.shape[-2]} queries for {mixing.weights.shape[-1]} tokens"
    layout = None if mark is None or why else _along(mark, axis, value.shape[axis])
    if layout is None:
        why = why or "mixes tokens that make no full grid of the image"
        raise UnsupportedOp(
            f"{title} needs attention of every token to every token, but that at {site} {why}. {_WAY_OUT}"
        )
    return layout


def _refusal(mark: Mark | None, axis: int) -> str | None:
    """What keeps tokens on this axis from being those of one grid."""
    if mark is None:
        return "mixes tokens of which it cannot be told where in the image they stand"
    if not is_somewhere(mark) or axis not in place_axes(mark):
        return "mixes channels, not places of the image"
    if place_axes(mark) != (axis,):
        return "stays inside windows of the image"
    return None


def _along(mark: Mark, axis: int, size: int) -> Layout | None:
    """The layout of values (n, size) whose second axis is this one."""
    own = mark.movedim(axis + 1, -1).reshape(3, -1, mark.shape[axis + 1])[:, 0]
    return layout_of(own.expand(3, size)[:, None].contiguous(), (1, size), 0)


def _tokens_read(features: Features, site: Site) -> Tensor:
    """The share (tokens,) of each token of a call's output in what the network's output reads of it."""
    mixing, step = _mixing_in(features, site)
    every = torch.ones(1, features.classes, dtype=torch.bool, device=features.device)
    mask = reach(features.steps, features.output, every, until=site.name)[site.name]
    turned = mixing.turn(mask.expand(step.outputs[0].shape))
    tokens = turned.flatten(0, -3).any(0).any(-1).to(torch.float64)
    return tokens / tokens.sum()


def _heads_follow_images(network: nn.Module, inputs: tuple[Tensor, ...], features: Features, site: Site) -> bool:
    """Whether (images * heads) in one axis are the heads of one image after those of another, as torch has them.

    Told from the first image alone; taken for granted of a network that takes no fewer images, and of other axes.
    """
    shape = _mixing_in(features, site)[0].weights.shape
    if len(shape) != 3 or len(inputs[0]) == 1 or shape[0] == features.n:
        return True
    weights: list[Tensor] = []

    def see(call: Call, signals: tuple[Tensor, ...], result: object) -> Form:
        mixing = mixing_of(call, signals) if call.site.name == site.name else None
        weights.extend([] if mixing is None else [mixing.weights])
        return _plain(call, signals, result)

    record(network, inputs, see)
    of_image(lambda some, _: record(network, some, see), inputs)
    every, alone = weights[0], weights[-1]
    return torch.allclose(alone, every[: len(alone)], atol=1e-4)


def starts_of_blocks(attention: Attention, title: str) -> tuple[int, ...]:
    """Return for each layer but the last the slot of what its block puts out; and last, that of what the head reads.

    A block's output is the last value in front of the next attention that every way to the output passes. The last block's is
    the one that stands as far behind its attention as in the other blocks.

    Raises:
        UnsupportedOp: If the blocks are not alike.
    """
    nodes, layers = attention.recording.nodes, attention.layers
    cuts = _cuts(attention.recording)
    starts: list[int] = []
    for here, after in pairwise(layers):
        inside = [i for i in cuts if here < i < after]
        starts.append(inside[-1] if inside else -1)
    if not starts:
        return ()
    last = layers[-1] + starts[-1] - layers[-2]
    fits = -1 not in starts and last in cuts
    if not fits or nodes[last].call.primitive.name != nodes[starts[-1]].call.primitive.name:
        raise UnsupportedOp(
            f"{title} runs the network's head on what each block puts out, but the blocks between "
            f"{nodes[layers[0]].call.site} and {nodes[layers[-1]].call.site} are not alike. {_WAY_OUT}"
        )
    return tuple(nodes[i].outputs[0] for i in (*starts, last))


def _cuts(recording: Recording) -> list[int]:
    """The positions of calls whose output all ways from earlier values to the network's output pass."""
    last_read: dict[int, int] = {recording.output: len(recording.nodes)}
    for i, node in enumerate(recording.nodes):
        last_read.update(dict.fromkeys(node.sources, i))
    cuts, furthest = [], max((last_read.get(s, -1) for s in recording.inputs), default=-1)
    for i, node in enumerate(recording.nodes):
        if furthest <= i and len(node.outputs) == 1:
            cuts.append(i)
        furthest = max(furthest, *(last_read.get(s, -1) for s in node.outputs))
    return cuts


def head_behind(recording: Recording, slot: int) -> Callable[[Tensor], Tensor]:
    """Return what the network makes of a value that all its ways pass, as a function of it."""
    position = next(i for i, node in enumerate(recording.nodes) if slot in node.outputs)
    rest = replace(recording, nodes=recording.nodes[position + 1 :])

    def head(value: Tensor) -> Tensor:
        values = {slot: value}
        for node in rest.nodes:
            node.evaluate(values)
        return values[recording.output]

    return head
