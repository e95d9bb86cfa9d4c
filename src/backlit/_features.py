"""Where a network's features end: the last map on the way from the image to a score.

The dataflow of one image says it, by roles and never by names or sizes: which values are read for the score
(:mod:`backlit._reach`), where in the image each of them stands (:mod:`backlit._places`), and which layers follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import UnsupportedOp
from backlit._forward import of_image, unchanged
from backlit._places import (
    Layout,
    Mark,
    count_places,
    image_mark,
    is_somewhere,
    layout_of,
    marks_of,
    place_axes,
)
from backlit._reach import Step, reach, step_of
from backlit.capture.canonical import Call
from backlit.capture.refuse import check_model
from backlit.capture.sites import Site, Trace
from backlit.capture.tensors import ByTensor
from backlit.capture.watch import INPUT, Watch, floats

_UNREAD = "The score reads no feature map of more than one position between a layer with weights and what pools it."


@dataclass(frozen=True)
class Node:
    """An output of a site in one image's pass: the nodes that made the site's signals, and where the output stands.

    ``name`` is the site's name; of further outputs, with their number behind it.
    """

    name: str
    site: Site
    parents: tuple[str, ...]
    mark: Mark | None
    depth: int

    @property
    def first(self) -> bool:
        """Tell whether it is its site's only output, or the first."""
        return self.name == self.site.name


@dataclass(frozen=True)
class Read:
    """What a score reads: names of the sites on its way, and of those of which it reads a place and no class token alone."""

    on_the_way: frozenset[str]
    places: frozenset[str]


@dataclass(frozen=True, eq=False)
class Features:
    """The maps of a network, as one image's pass shows them.

    ``nodes`` and ``steps`` stand in the order of their calls; the network's output is (``n``, ``classes``), and ``output`` names
    the node that it is.
    """

    nodes: dict[str, Node]
    steps: list[Step]
    output: str
    n: int
    classes: int
    device: torch.device
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _reads: dict[tuple[tuple[int, ...], str | None], Read] = field(default_factory=dict)

    def of(self, trace: Trace) -> Features | None:
        """The same for a pass over other images; None if that pass called other operations."""
        if [(s.name, s.module) for s in trace] != [
            (n.site.name, n.site.module) for n in self.nodes.values() if n.first
        ]:
            return None
        return replace(self, shapes={s.name: s.output_shape for s in trace})

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """The sites that read each site's output, in the order of their calls."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for parent in dict.fromkeys(node.parents):
                found[parent].append(node.name)
        return found

    def read(self, targets: Iterable[int], only: str | None = None) -> Read:
        """Return what the scores of these classes read; of ``only`` one site, if that is all that is asked."""
        asked = (tuple(targets), only)
        if asked not in self._reads:  # each goes back through the steps
            self._reads[asked] = self._read(*asked)
        return self._reads[asked]

    def _read(self, targets: tuple[int, ...], only: str | None) -> Read:
        mask = torch.zeros(1, self.classes, dtype=torch.bool, device=self.device)
        mask[:, targets] = True
        masks = reach(self.steps, self.output, mask, until=only)
        kept = [only] if only else [name for name, node in self.nodes.items() if node.first]
        way = {name for name in kept if name in masks and bool(masks[name].any())}
        masses = {name: node.mark[0] for name, node in self.nodes.items() if node.mark is not None}
        places = {name for name in way & masses.keys() if bool((masks[name] & (masses[name] != 0)).any())}
        others = [] if only else [node for node in self.nodes.values() if not node.first]
        for node in reversed(others):  # further outputs are not kept: what reads them tells
            way.update({node.name} if way.intersection(self.children[node.name]) else ())
        for node in others:
            stands = node.name in way and is_somewhere(node.mark)
            places.update({node.name} if stands and places.intersection(node.parents) else ())
        return Read(frozenset(way), frozenset(places))

    def site(self, node: Node) -> Site:
        """The node's site, with the output's shape in the other pass."""
        return replace(node.site, output_shape=self.shapes.get(node.name, node.site.output_shape))

    def layout(self, node: Node) -> Layout | None:
        """Tell how the site's output becomes a map; None if it is none, or cannot be told to be one."""
        images = self._images(node)
        if images is None or node.mark is None or not is_somewhere(node.mark):
            return None
        return layout_of(node.mark, self.shapes.get(node.name, node.site.output_shape), images)

    def last(self, targets: Iterable[int]) -> Node:
        """The last map that the scores read: what the last layer with weights ends in before anything is pooled.

        That is its activation, its norm, its block's residual add or concat. A layer whose channels are the scores
        themselves is no feature, and the queries, keys and values of an attention are none either: where only a class token
        goes on after the last attention, it is what that attention's projections read.

        Raises:
            UnsupportedOp: If there is no map, or if it cannot be told how the last one is laid out.
        """
        read = self.read(targets)
        placed = [node for node in self.nodes.values() if node.name in read.places]
        features = [node for node in placed if node.depth and not self._is_class_map(node, read)] or placed
        layers = [i for i, node in enumerate(features) if node.site.has("layer")]
        if not layers:
            raise UnsupportedOp(f"{_UNREAD} Grad-CAM and its kin need one.")
        start = features[layers[-1]]
        after = self._until_pool(features[layers[-1] :], read)
        maps = {node.name: node for node in (*features[: layers[-1]], *after) if self._is_map(node, read, placed)}
        late = [node for node in after if node.name in maps]
        chosen = _last_whole(late, placed) or (late[-1:] or [None])[0]
        if chosen is None:  # the last layer makes keys or values: what all of its attention's were made from
            cone = self._read_by_attention(start)
            chosen = _last_whole([maps[name] for name in maps if name in cone], [n for n in placed if n.name in cone])
        self._check_told(chosen, read)
        assert chosen is not None
        return chosen

    def _until_pool(self, nodes: list[Node], read: Read) -> list[Node]:
        """The nodes at as many places as the first, but none that was made from a pool of it."""
        count = count_places(nodes[0].mark)  # type: ignore[arg-type]
        made = self._linked(nodes[0], lambda n: [c for c in self.children[n.name] if c in read.on_the_way])
        pools = [self.nodes[name] for name in made if self.nodes[name].site.has("pool")]
        pooled = set[str]().union(*(self._linked(pool, lambda n: self.children[n.name]) for pool in pools))
        return [n for n in nodes if n.name not in pooled and count_places(n.mark) == count]  # type: ignore[arg-type]

    def _read_by_attention(self, node: Node) -> set[str]:
        """What the products of signals behind a layer were made from, itself included."""

        def next_values(n: Node) -> list[str]:
            return [c for c in self.children[n.name] if not self.nodes[c].site.has("layer")]

        products = [name for name in self._linked(node, next_values) if self.nodes[name].site.has("contracts")]
        return set[str]().union(
            *(self._linked(self.nodes[name], lambda n: n.parents) for name in (node.name, *products))
        )

    def _check_told(self, chosen: Node | None, read: Read) -> None:
        """Refuse where the last map is one whose places are not known, rather than take an earlier one."""
        order = list(self.nodes)
        begin = -1 if chosen is None else order.index(chosen.name)
        lost = [
            n
            for n in (self.nodes[name] for name in order[begin + 1 :])
            if n.name in read.on_the_way and n.mark is None and n.site.has("layer") and _has_rows(n.site)
        ]
        unknown = lost[-1] if lost else chosen if chosen is not None and self.layout(chosen) is None else None
        if unknown is not None:
            raise UnsupportedOp(
                f"The last feature map is {unknown.site} or what follows it, of shape {unknown.site.output_shape}, and it cannot "
                "be told where in the image its values stand. Name a layer and say how to read it: layer=..., with "
                "channels='first' or 'last', and grid=(h, w) for tokens."
            )
        if chosen is None:
            raise UnsupportedOp(f"{_UNREAD} Name a layer: layer='a module path'.")

    def _is_map(self, node: Node, read: Read, placed: list[Node]) -> bool:
        """One channel axis, images of its own, values of its own, and no operand of an attention."""
        images = self._images(node)
        if images is None or node.mark is None or node.site.primitive == "dropout" or not node.first:
            return False
        others = [a for a, size in enumerate(node.site.output_shape) if size > 1 and a != images]
        if len([a for a in others if a not in place_axes(node.mark)]) > 1:
            return False
        if _only_moves(node.site) and self._is_moved_map(node):
            return False
        return not self._is_operand(node, read, placed)

    def _is_moved_map(self, node: Node) -> bool:
        """Whether a map that stands before the moves has the same values."""
        while _only_moves(node.site) and node.parents:
            node = self.nodes[node.parents[0]]
            if not _only_moves(node.site) and self.layout(node) is not None:
                return True
        return False

    def _is_operand(self, node: Node, read: Read, placed: list[Node]) -> bool:
        """Queries, keys and values: what goes into products of two signals only, in slices or beside another of them."""
        pending, seen, sliced, ends = [node.name], set(), False, 0
        while pending:
            name = pending.pop()
            for child in self.children[name]:
                after = self.nodes[child].site
                if child not in read.on_the_way or child in seen:
                    continue
                seen.add(child)
                sliced, ends = sliced or after.primitive == "slice", ends + after.has("contracts")
                if after.has("contracts"):
                    continue
                if after.has("layer") or not is_somewhere(self.nodes[child].mark):  # read as it is, or pooled
                    return False
                pending.append(child)
        return ends > 0 and (sliced or not self._is_alone(node, placed))

    def is_alone(self, node: Node, targets: Iterable[int]) -> bool:
        """Tell whether no other map is read beside the node's."""
        read = self.read(targets)
        return self._is_alone(node, [n for n in self.nodes.values() if n.name in read.places])

    def _is_alone(self, node: Node, placed: list[Node]) -> bool:
        """Whether every other value with places was made from this one or is one that it was made from."""
        after = self._linked(node, lambda n: self.children[n.name])
        before = self._linked(node, lambda n: n.parents)
        return all(other.name in after or other.name in before for other in placed)

    def _linked(self, node: Node, step: Callable[[Node], Iterable[str]]) -> set[str]:
        pending, found = [node.name], {node.name}
        while pending:
            new = [name for name in step(self.nodes[pending.pop()]) if name not in found]
            found.update(new)
            pending += new
        return found

    def _is_class_map(self, node: Node, read: Read) -> bool:
        """Whether its channels are the scores: as many, and no layer with weights follows on their way."""
        if self.classes not in node.site.output_shape:  # most layers: no layout is asked for
            return False
        layout = self.layout(node)
        if layout is None or layout.channels is None or node.site.output_shape[layout.channels] != self.classes:
            return False
        after = self._linked(node, lambda n: [c for c in self.children[n.name] if c in read.on_the_way]) - {node.name}
        return all(not self.nodes[name].site.has("layer") for name in after)

    def _images(self, node: Node) -> int | None:
        """The axis of the images: the one whose size is their number, in this pass and in the other."""
        here, there = node.site.output_shape, self.shapes.get(node.name, node.site.output_shape)
        if len(here) != len(there):
            return None
        changed = [a for a, (one, many) in enumerate(zip(here, there, strict=True)) if one != many]
        return next((a for a in changed or range(len(here)) if here[a] == self.n), None)


def find_features(model: nn.Module, inputs: tuple[Tensor, ...], trace: Trace | None = None) -> Features:
    """Run the model on the first image to find its maps; on all, if ``trace`` shows that all go another way.

    Raises:
        UnsupportedOp: If an operation cannot be seen.
    """

    def read(images: tuple[Tensor, ...], place: int = 0) -> Features | None:
        run = _Recorded(model, tuple(x.detach().requires_grad_() for x in images))
        nodes = _nodes(run.steps, images)
        found = Features(nodes, run.steps, run.output, len(images[0]), run.classes, images[0].device)
        return found if trace is None else found.of(trace)

    check_model(model, inputs)
    found = of_image(read, inputs) or read(inputs)
    if found is not None:
        return found
    raise UnsupportedOp(
        "The network calls other operations each time it runs on the same images, so its last feature map cannot be found. "
        "Make its forward pass repeat itself."
    )


class _Recorded(Watch):
    """A pass whose calls are kept, without their values, and which of them made each call's signals."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        signals = tuple(x.clone() for x in inputs)
        super().__init__(model, signals)
        self._made: ByTensor[str] = ByTensor()
        for i, x in enumerate(signals):
            self._made[x] = f"{INPUT}.{i}"
        self.steps: list[Step] = []
        with unchanged(model, inputs):
            output = self.follow(model, signals)
        self.output, self.classes = self._made[output], int(output.shape[1])

    def visit(self, call: Call) -> Any:
        signals, result = call.signals, call.spelled()
        outputs = floats(result)
        names = [f"{call.site.name}.{i}" if i else call.site.name for i in range(len(outputs))]
        self.steps.append(step_of(call, outputs, [self._made[s] for s in signals], names))
        for output, name in zip(outputs, names, strict=True):
            self._made[output] = name
        return result


@torch.no_grad()
def _nodes(steps: list[Step], inputs: tuple[Tensor, ...]) -> dict[str, Node]:
    """The outputs of the steps by name, each with where it stands."""
    marks: dict[str, Mark | None] = {f"{INPUT}.{i}": image_mark(x) for i, x in enumerate(inputs)}
    nodes: dict[str, Node] = {}
    for step in steps:
        found = marks_of(step.call, [marks[name] for name in step.parents], step.outputs) if step.outputs else []
        site = step.call.site
        depth = max(site.depths, default=0) + site.has("layer")
        parents = tuple(dict.fromkeys(name for name in step.parents if name in nodes))
        for name, output, mark in zip(step.names, step.outputs, found, strict=True):
            marks[name] = mark
            nodes[name] = Node(name, replace(site, output_shape=tuple(output.shape)), parents, mark, depth)
    return nodes


def _last_whole(maps: list[Node], placed: list[Node]) -> Node | None:
    """The last map that nothing with places goes round: no later one reads an earlier one."""
    order = {node.name: i for i, node in enumerate(placed)}
    for node in reversed(maps):
        own = order[node.name]
        later = (p for other in placed[own + 1 :] for p in other.parents)
        if not any(order.get(parent, own) < own for parent in later):
            return node
    return None


def _only_moves(site: Site) -> bool:
    """Whether a site puts out values of its input and no others: the map is that of the call that made them."""
    return site.has("views", "copies")


def _has_rows(site: Site) -> bool:
    return len([size for size in site.output_shape[1:] if size > 1]) > 1
