"""Where in the image each value of a forward pass stands: which axes are rows and columns, which tokens make a grid.

Every signal gets a *mark*: for each of its elements a mass (1 where it stands at a place, 0 where it stands at none, as a
class token does), a row and a column between 0 and 1, as one tensor (3, ...), of size 1 along each axis on which nothing of
this changes. The image's mark is its own grid of pixels. What only moves values moves the marks, a layer's output stands at
the mean place of what it reads, a convolution or a pool on a grid makes a coarser grid, and a value that is made of the whole
grid stands nowhere. So the places survive flattening, window partitions, transposes and class tokens, whatever their
spelling, and no size is ever guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from backlit.capture.canonical import Call

Mark = Tensor
"""Mass, row and column (3, ...); see the module's text."""
Shape = tuple[int, ...]

_NEAR = 1e-4


@dataclass(frozen=True)
class Layout:
    """How a value becomes a map (n, c, h, w).

    ``images`` and ``channels`` are its axes of the images and of the channels (None: there is one channel); the others,
    flattened, are the places, of which ``order`` (h * w,) are those of the grid, row by row.
    """

    images: int
    channels: int | None
    order: Tensor
    size: tuple[int, int]

    def arrange(self, value: Tensor, lead: int = 0) -> Tensor:
        """The value as (n, c, h, w); ``lead`` axes before it stay where they are."""
        own = [self.images] if self.channels is None else [self.images, self.channels]
        others = [a for a in range(value.dim() - lead) if a not in own]
        moved = value.permute(*range(lead), *(a + lead for a in (*own, *others))).flatten(lead + len(own))
        if self.channels is None:
            moved = moved.unsqueeze(-2)
        return moved.index_select(-1, self.order).unflatten(-1, self.size)

    def describe(self, shape: Shape) -> str:
        """The names of the axes of a value of that shape, and its grid, for the provenance."""
        places = [a for a in range(len(shape)) if a not in (self.images, self.channels)]
        names = ["n" if a == self.images else "c" if a == self.channels else "t" for a in range(len(shape))]
        if len(places) == 2:
            names[places[0]], names[places[1]] = "h", "w"
        count = prod(shape[a] for a in places)
        rest = f" of {count} tokens" if count != prod(self.size) else ""
        return f"({', '.join(names)}), grid {self.size[0]} x {self.size[1]}{rest}"


def image_mark(image: Tensor) -> Mark:
    """The mark of an input: its pixels' grid, or no place, if it is no image (n, c, h, w)."""
    return _grid(tuple(image.shape), image) if image.dim() == 4 else _nowhere(image.dim(), image)


def marks_of(call: Call, marks: Sequence[Mark | None], outputs: Sequence[Tensor]) -> list[Mark | None]:
    """The marks of a call's outputs, from those of its signals; None where it cannot be told where a value stands."""
    if all(mark is None for mark in marks):
        return [_fresh(call, None, outputs[0])] if call.primitive.has("convolution") else [None] * len(outputs)
    shapes = call.site.input_shapes
    kept = [
        _nowhere(len(shape), outputs[0]) if mark is None else mark for mark, shape in zip(marks, shapes, strict=True)
    ]
    try:
        found = _marks(call, kept, shapes, outputs)
    except (RuntimeError, TypeError, ValueError, IndexError):  # a form of the call that marks cannot follow
        return [None] * len(outputs)
    return [None if m is None or not _fits(m, o) else m for m, o in zip(found, outputs, strict=True)]


def is_somewhere(mark: Mark | None) -> bool:
    """Tell whether a value stands at more than one place."""
    return mark is not None and bool((mark[0] > 0).any())


def count_places(mark: Mark) -> int:
    """Number of places at which a value stands."""
    return int((mark[0] > 0).sum())


def place_axes(mark: Mark) -> tuple[int, ...]:
    """The axes of a value along which the place changes."""
    return tuple(a for a, size in enumerate(mark.shape[1:]) if size > 1)


def layout_of(mark: Mark, shape: Shape, images: int) -> Layout | None:
    """The layout of a value with its images on that axis; None if its places make no full grid of one map."""
    axes = place_axes(mark)
    channels = [a for a, size in enumerate(shape) if size > 1 and a != images and a not in axes]
    if images in axes or len(channels) > 1:
        return None
    channel = channels[0] if channels else None
    others = [a for a in range(len(shape)) if a not in (images, channel)]
    flat = mark.expand(3, *(mark.shape[a + 1] if a in (images, channel) else shape[a] for a in range(len(shape))))
    flat = flat.permute(0, *(a + 1 for a in (images, *channels, *others))).flatten(1)
    there = (flat[0] > 0).nonzero().flatten()
    rows, columns = (_ranks(values[there]) for values in flat[1:])
    h, w = int(rows.max()) + 1, int(columns.max()) + 1
    place = rows * w + columns
    if len(there) != h * w or len(place.unique()) != h * w:
        return None
    return Layout(images, channel, there[place.argsort()], (h, w))


def given_layout(shape: Shape, channels: str | None, grid: tuple[int, int] | None) -> Layout | None:
    """The layout that a user says a value has; None if it does not say enough, or does not fit."""
    axis = {"first": 1, "last": len(shape) - 1}.get(channels or ("last" if len(shape) == 3 else ""))
    if axis is None or len(shape) not in (3, 4):
        return None
    places = [size for a, size in enumerate(shape) if a not in (0, axis)]
    size = grid if grid is not None else (places[0], places[1]) if len(places) == 2 else None
    if size is None or prod(size) > prod(places) or (len(places) == 2 and size != tuple(places)):
        return None
    return Layout(0, axis, torch.arange(prod(places) - prod(size), prod(places)), size)


def _marks(call: Call, marks: list[Mark], shapes: Sequence[Shape], outputs: Sequence[Tensor]) -> list[Mark | None]:
    primitive, name, out = call.primitive, call.primitive.name, outputs[0]
    if primitive.has("convolution", "pool", "resamples"):
        return [_fresh(call, marks[0], out)] * len(outputs)
    if name == "attention":
        queried = call.places[0][0] == "query"
        return [_mean(marks[0], -1) if queried else _nowhere(out.dim(), out)]
    if name == "linear":
        return [_mean(marks[0], -1)]
    if primitive.has("layer"):
        constants = {k: _ones(v) for k, v in call.arguments.items() if _is_constant(call, k)}
        return _moved(lambda *s: call.run(*s, **constants), marks, shapes)
    if primitive.has("contracts"):
        return [_of_product(call, marks, shapes, out)]
    if primitive.has("averages"):
        return _moved(call.run, marks, shapes)
    if primitive.has("reduces") and call.get("dim") is not None:
        full = marks[0].expand(3, *shapes[0])
        return [_lean(torch.stack([m.mean(call["dim"], call.get("keepdim", False)) for m in full]))] * len(outputs)
    if name == "glu":
        return [_lean(marks[0].expand(3, *shapes[0]).chunk(2, call.get("dim", -1) % out.dim() + 1)[0])]
    if primitive.has("views") and len(marks) == 1:
        return _viewed(call, marks[0].expand(3, *shapes[0]))
    stays = primitive.has("elementwise", "stays", "copies")  # each value where it was read, whatever is read beside it
    if not stays and primitive.has("views", "stacks", "fills", "gathers"):
        return _moved(call.run, marks, shapes)
    if stays and all(o.shape == torch.broadcast_shapes(*shapes, o.shape) for o in outputs):
        return [_together(marks, out.dim())] * len(outputs)
    return [_nowhere(out.dim(), out) if out.numel() == out.shape[0] else None] * len(outputs)


def _moved(run: Callable[..., Any], marks: Sequence[Mark], shapes: Sequence[Shape]) -> list[Mark | None]:
    """Marks moved by the call itself; what it adds that is no signal (a class token, a bias, padding) has no mass."""
    full = [m.expand(3, *shape).contiguous() for m, shape in zip(marks, shapes, strict=True)]
    none = _listed(run(*(torch.zeros_like(m[0]) for m in full)))
    parts = [_listed(run(*(m[i] for m in full))) for i in range(3)]
    moved = [torch.stack([p[o] - none[o] for p in parts]).float().nan_to_num(0, 0, 0) for o in range(len(none))]
    return [_lean(m) for m in moved]


def _viewed(call: Call, full: Mark) -> list[Mark | None]:
    """A mark moved by a call that can show the same memory in another shape: along a stride of zero nothing changes."""
    change = {"function": Tensor.reshape} if call.get("function") is Tensor.view else {}
    parts = [_listed(call.run(values, **change)) for values in full]
    found: list[Mark | None] = []
    for outputs in zip(*parts, strict=True):
        short = tuple(slice(1 if stride == 0 else None) for stride in outputs[0].stride())
        found.append(_lean(torch.stack([o[short] for o in outputs])))
    return found


def _of_product(call: Call, marks: list[Mark], shapes: Sequence[Shape], out: Tensor) -> Mark:
    """A row of the first factor stays where it is, else a column of the second: what is summed over has no place left."""
    for i, mark in enumerate(marks):
        ones = [out.new_ones(shape, dtype=torch.float32) for shape in shapes]
        full = mark.expand(3, *shapes[i])
        constants = {k: _ones(v) for k, v in call.arguments.items() if _is_constant(call, k)}
        product = torch.stack([call.run(*(*ones[:i], m, *ones[i + 1 :]), **constants) for m in full])
        if is_somewhere(found := _lean(product)):
            return found
    return _nowhere(out.dim(), out)


def _fresh(call: Call, mark: Mark | None, out: Tensor) -> Mark | None:
    """What a convolution or a pool over planes puts out is a plane; of values that stand in no plane, it is followed."""
    plane = out.dim() == 4 and call.primitive.spatial in (0, 2)
    if plane and (mark is None or not is_somewhere(mark) or _is_plane(mark)):
        return _grid(tuple(out.shape), out)
    if mark is None or not call.primitive.has("convolution") or call.primitive.has("transposed"):
        return None
    weight = call["weight"]
    taps = torch.zeros(weight.shape, device=out.device, dtype=torch.float32)
    middle = tuple(slice((k - 1) // 2, k // 2 + 1) for k in weight.shape[2:])
    taps[:, :, *middle] = 1
    full = mark.expand(3, *call.site.input_shapes[0])
    return _lean(torch.stack([call.run(m, weight=taps, bias=None) for m in full]))


def _is_plane(mark: Mark) -> bool:
    """Rows along the last axis but one, columns along the last, nothing along the others; the rest may be padding."""
    if any(a < mark.dim() - 3 for a in place_axes(mark)):
        return False
    there = mark[0] > 0
    for values, axis in ((mark[1], -1), (mark[2], -2)):
        low = torch.where(there, values, torch.inf).amin(axis, keepdim=True)
        high = torch.where(there, values, -torch.inf).amax(axis, keepdim=True)
        steps = low.flatten()[low.flatten().isfinite()].diff()
        if bool((high - low > _NEAR).any()) or bool((steps <= 0).any()):
            return False
    return True


def _grid(shape: Shape, like: Tensor) -> Mark:
    h, w = shape[-2:]
    y, x = ((torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) / size for size in (h, w))
    grid = torch.stack([torch.ones_like(y[:, None] * x), y[:, None].expand(h, w), x[None].expand(h, w)])
    return _lean(grid.view(3, *[1] * (len(shape) - 2), h, w))


def _nowhere(dims: int, like: Tensor) -> Mark:
    return torch.zeros(3, *[1] * dims, device=like.device, dtype=torch.float32)


def _mean(mark: Mark, axis: int) -> Mark:
    return mark if mark.shape[axis] == 1 else _lean(mark.mean(axis, keepdim=True))


def _together(marks: Sequence[Mark], dims: int) -> Mark:
    """Of an elementwise call: the place that its signals have in common, or the mean of theirs."""
    padded = [m.view(3, *[1] * (dims - m.dim() + 1), *m.shape[1:]) for m in marks]
    known = [m for m in padded if is_somewhere(m)] or padded[:1]
    if all(m.shape == known[0].shape and torch.equal(m, known[0]) for m in known):
        return known[0]
    total = known[0]
    for m in known[1:]:
        total = total + m
    return _lean(total)


def _lean(mark: Tensor) -> Mark:
    """Masses of one, one element along each axis on which nothing changes; a single place is none."""
    there = mark[0].abs() > _NEAR**2
    safe = torch.where(there, mark[0], 1)
    lean = torch.stack([there.to(mark.dtype), *(torch.where(there, m / safe, 0) for m in mark[1:])])
    for axis in range(1, lean.dim()):
        first = lean.narrow(axis, 0, 1) if lean.shape[axis] else lean
        if lean.shape[axis] > 1 and bool(((lean - first).abs() <= _NEAR).all()):
            lean = first
    stands = lean[:, lean[0] > 0]
    if stands.shape[1] == 0 or bool(((stands - stands[:, :1]).abs() <= _NEAR).all()):
        return lean.new_zeros(3, *[1] * (lean.dim() - 1))
    return lean.contiguous()


def _fits(mark: Mark, output: Tensor) -> bool:
    shape = mark.shape[1:]
    return len(shape) == output.dim() and all(m in (1, o) for m, o in zip(shape, output.shape, strict=True))


def _ranks(values: Tensor) -> Tensor:
    """The number of each value's group, from 0 up; values nearer than ``_NEAR`` are one group."""
    ordered, index = values.sort()
    steps = (ordered.diff(prepend=ordered[:1]) > _NEAR).cumsum(0)
    return torch.empty_like(steps).scatter_(0, index, steps)


def _is_constant(call: Call, name: str) -> bool:
    return isinstance(call.arguments[name], Tensor) and all(name != n for n, _ in call.places)


def _ones(value: Tensor) -> Tensor:
    return torch.ones(value.shape, device=value.device, dtype=torch.float32)


def _listed(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [r for r in result if r.is_floating_point()]
