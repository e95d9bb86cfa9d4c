"""Patterns: for each neuron, the direction in its input along which its output varies in the data (Kindermans et al. 2018).

A neuron's output is ``y = w'x``; its input is a signal ``a y`` and a distractor that w filters out. Estimators of a:

* linear (Eq. 6):         ``a = cov(x, y) / w'cov(x, y)``
* two-component (Eq. 8):  ``a+ = c+ / w'c+``, ``c+ = E+[x y] - E+[x] E[y]``, where E+ is the mean over samples with y > 0,
  and ``a-`` likewise for the others.

A sum of two signals (a residual add) is a neuron in each of its elements, with w = (1, 1), or (1, -1) for a difference; its
patterns are learned for each channel.

One pass over the data learns all layers; only sums are kept. Adding the neuron's bias to y changes none of the formulas, so y
is the layer's output, whose sign is what the ReLU behind it sees.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._errors import InputError, UnsupportedOp
from backlit._files import absolute
from backlit._plain import network_of, versions
from backlit._version import __version__
from backlit.capture.canonical import Call
from backlit.capture.geometry import Geometry
from backlit.inverse.artefact import Fitted, weights_of
from backlit.inverse.data import Data, Digest, batches, check_data, check_values
from backlit.inverse.fit import FitStep
from backlit.inverse.part import INPUT, Part, Step, find_layers
from backlit.inverse.parts_folder import PartsFolder
from backlit.rules.patterns import LAYERS, is_sum, pattern_table, summed_with

PAUSE, SHARE = 10.0, 0.05
"""The sums are written to the folder beside the file after so many seconds, and in at most this share of the time."""
_AT_ONCE = 2**22  # numbers of one block of patches: 32 MiB in float64


class Patterns(Fitted):
    """The patterns of a network's layers; :func:`fit_patterns` makes them."""


class Sums:
    """Sums of a layer's inputs x (q) and outputs y (o) per group, over all samples and over those with y > 0; float64."""

    def __init__(self, groups: int, q: int, o: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        self.samples = 0
        self.x, self.y, self.yx = zeros(1, q), zeros(o, 1), zeros(o, q)
        self.count_pos, self.x_pos, self.yx_pos = zeros(o, 1), zeros(o, q), zeros(o, q)

    @property
    def state(self) -> dict[str, Tensor]:
        """All that was summed, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @classmethod
    def of(cls, state: dict[str, Tensor], samples: int, device: torch.device) -> Sums:
        """What ``state`` and ``samples`` were read from."""
        groups, o, q = state["yx"].shape
        sums = cls(groups, q, o, device)
        sums.samples = samples
        for name, value in state.items():
            setattr(sums, name, value.to(device))
        return sums

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows: x (g, r, q) and y (g, r, o)."""
        n = x.shape[1]
        mean_x, mean_y = x.mean(1, keepdim=True, dtype=torch.float64), y.mean(1, dtype=torch.float64)[..., None]
        positive = (y > 0).to(x.dtype)
        # Products of what is left without the means, so that float32 has digits for it; the means come back in float64.
        x, y = (x.double() - mean_x).to(x.dtype), (y.double() - mean_y.mT).to(y.dtype)
        sum_x, sum_y = x.sum(1, keepdim=True, dtype=torch.float64), y.sum(1, dtype=torch.float64)[..., None]
        count = positive.sum(1, dtype=torch.float64)[..., None]
        x_pos, y_pos = (positive.mT @ x).double(), (y * positive).sum(1, dtype=torch.float64)[..., None]
        yx, yx_pos = (y.mT @ x).double(), ((y * positive).mT @ x).double()
        self.samples += n
        self.x += sum_x + n * mean_x
        self.y += sum_y + n * mean_y
        self.yx += yx + mean_y * sum_x + sum_y * mean_x + n * mean_y * mean_x
        self.count_pos += count
        self.x_pos += x_pos + count * mean_x
        self.yx_pos += yx_pos + mean_y * x_pos + y_pos * mean_x + count * mean_y * mean_x

    def patterns(self, weight: Tensor) -> tuple[dict[str, Tensor], int]:
        """a, a+ and a- (g, o, q) for weights of that shape, and how many neurons were never positive.

        A neuron that has no sample, or no variance, in a regime gets a pattern of zeros there.
        """
        mean_y = self.y / self.samples
        rest = self.samples - self.count_pos
        regimes = {
            "linear": (self.yx, self.x, torch.full_like(rest, self.samples)),
            "positive": (self.yx_pos, self.x_pos, self.count_pos),
            "negative": (self.yx - self.yx_pos, self.x - self.x_pos, rest),
        }
        found = {}
        for name, (yx, x, count) in regimes.items():
            n = count.clamp(min=1)
            c = yx / n - x / n * mean_y
            scale = (weight * c).sum(-1, keepdim=True)
            tiny = 1e-12 * (weight.abs() * (yx / n).abs()).sum(-1, keepdim=True)
            found[name] = torch.where((count > 0) & (scale.abs() > tiny), c / torch.where(scale == 0, 1, scale), 0.0)
        return found, int((self.count_pos == 0).sum())


def fit_patterns(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path | None = None,
    precision: torch.dtype = torch.float64,
    description: str = "",
    progress: Callable[[FitStep], None] = lambda step: None,
) -> Patterns:
    """Learn the patterns of every layer and of every sum of two signals, batch norm folded where it can be.

    Args:
        model: The network, in eval mode. It is not changed.
        data: An iterable of batches, images (n, c, h, w) or (images, labels), whose labels are not used.
        out: A file for the result. The sums so far are kept every so often in a folder beside it (``OUT.parts``), from which
            the same call goes on after an interruption.
        precision: Dtype of the products inside a batch; their sums are float64.
        description: Of the data, for the record.
        progress: Called after each batch.

    Raises:
        InputError: If an argument or a batch cannot be used.
        UnsupportedOp: If the network holds operations without patterns or a rule, or nothing to learn.
        ModelStateError: If an activation is not finite; names the batch.
        FileError: If ``out`` cannot be written or is anything but an earlier fit of this kind, or its folder of parts belongs
            to another fit or is in use.
    """
    check_data(data)
    out = None if out is None else absolute(out)
    if precision not in (torch.float32, torch.float64):
        raise InputError(f"precision must be torch.float32 or torch.float64, but is {precision!r}.")
    first = next(iter(batches(data, model)))
    layers = find_layers(model, tuple(x[:2] for x in first.inputs), _has_pattern)
    _check_rules(layers)
    shapes = tuple(tuple(x.shape[1:]) for x in first.inputs)
    asked: dict[str, Any] = {"network": weights_of(model), "input_shapes": [list(s) for s in shapes]}
    asked |= {"precision": str(precision).removeprefix("torch."), "dtype": str(first.inputs[0].dtype)}
    asked |= {"model": network_of(model), "device": first.inputs[0].device.type, "versions": versions()}
    with PartsFolder.beside(out, "pattern", asked) as folder:
        kept = _Kept(folder, first.inputs[0].device)
        sums, digest = kept.sums, Digest()
        for batch in batches(data, model, again=True):
            digest.add(batch)
            if digest.batches <= kept.digest.batches:
                kept.check(digest)
                continue
            with torch.no_grad():
                values = layers.values(model, batch.inputs)
                for step in layers.steps:
                    xs, y = [values.slots[slot] for slot in step.sources], values.slots[step.outputs[0]]
                    check_values([*xs, y], step.name, batch)
                    _add(sums, step, [x.to(precision) for x in xs], y.to(precision))
            kept.keep(digest)
            progress(FitStep(1, 1, tuple(sums), digest.samples, None))
        if digest.batches < kept.digest.batches:
            kept.check(digest, ended=True)
        patterns = _patterns(model, layers, sums, digest, shapes, description, precision)
        if out is not None:
            patterns.save(out, "out")
    return patterns


class _Kept:
    """The sums so far, in the folder beside the file."""

    NAME = "sums"

    def __init__(self, folder: PartsFolder, device: torch.device) -> None:
        self._folder = folder
        found = folder.read(self.NAME)
        tensors, facts = found or ({}, {"samples": {}, "digest": asdict(Digest())})
        self.digest = Digest(**facts["digest"])
        self.sums: dict[str, Sums] = {}
        for name, samples in facts["samples"].items():
            state = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.rpartition("/")[0] == name}
            self.sums[name] = Sums.of(state, samples, device)
        self._next = time.monotonic() + PAUSE

    def check(self, digest: Digest, *, ended: bool = False) -> None:
        """Refuse other data than were summed, as soon as there are as many batches, or at their end.

        Raises:
            InputError: If they differ.
        """
        if (ended or digest.batches == self.digest.batches) and not digest.same(self.digest):
            raise InputError(
                f"data must be the same, in the same batches, as before the interruption, but {self.digest.batches} batches held "
                f"{self.digest}, and now {digest} (of values and labels). Switch shuffling and augmentation off, or remove the "
                "folder of parts."
            )

    def keep(self, digest: Digest) -> None:
        """Write the sums, if it is time."""
        start = time.monotonic()
        if not self._folder or start < self._next:
            return
        tensors = {f"{name}/{key}": t for name, sums in self.sums.items() for key, t in sums.state.items()}
        samples = {name: sums.samples for name, sums in self.sums.items()}
        self._folder.write(self.NAME, tensors, {"samples": samples, "digest": asdict(digest)})
        end = time.monotonic()
        self._next = end + max(PAUSE, (end - start) / SHARE)


def _patterns(
    model: nn.Module,
    layers: Part,
    sums: dict[str, Sums],
    digest: Digest,
    shapes: tuple[tuple[int, ...], ...],
    description: str,
    precision: torch.dtype,
) -> Patterns:
    found: dict[str, dict[str, Tensor]] = {}
    said = []
    for step in layers.steps:
        weight, groups = _weight(step.call, layers.shapes[step.outputs[0]][0])
        patterns, dead = sums[step.name].patterns(weight.double().view(groups, -1, sums[step.name].x.shape[-1]))
        found[step.name] = {name: p.reshape(weight.shape).to(weight.dtype) for name, p in patterns.items()}
        said.append({"name": step.name, "samples": sums[step.name].samples, "never positive": dead})
    facts: dict[str, Any] = {
        "model": type(model).__name__,
        "start": INPUT,
        "precision": str(precision).removeprefix("torch."),
        "description": description,
        "layers": said,
        "data": asdict(digest),
        "versions": {"backlit": __version__, "torch": str(torch.__version__)},
    }
    return Patterns("pattern", found, tuple(range(layers.classes)), weights_of(model), shapes, facts)


def _has_pattern(call: Call) -> bool:
    """Whether a call is a layer with patterns.

    Raises:
        UnsupportedOp: If it is one in all but name.
    """
    if call.primitive.name in LAYERS or is_sum(call.site):
        return True
    if call.primitive.has("dense", "transposed") or call.primitive.name == "einsum":
        raise UnsupportedOp(
            f"{call.site} has no patterns: they are learned for linear layers and convolutions. Write it as F.linear."
        )
    return False


def _check_rules(layers: Part) -> None:
    """Refuse what the way back will have no rule for.

    Raises:
        UnsupportedOp: Lists all of it.
    """
    missing = pattern_table({}, times_weight=False).missing(layers.trace)
    if missing:
        raise UnsupportedOp(
            f"The network holds {len(missing)} operation{'s' * (len(missing) > 1)} that patterns have no way back through: "
            + "; ".join(map(str, missing))
            + ". Explain the network without them, such as a softmax at its end."
        )


def _weight(call: Call, channels: int) -> tuple[Tensor, int]:
    """A layer's weight, or a sum's (c, 2), and its groups."""
    if call.primitive.name in LAYERS:
        return call["weight"], call.get("groups", 1)
    return torch.tensor(summed_with(call), dtype=torch.float64).expand(channels, -1), channels


def _add(sums: dict[str, Sums], step: Step, xs: list[Tensor], y: Tensor) -> None:
    x, call = xs[0], step.call
    if call.primitive.name not in LAYERS:  # a sum: each channel is a group of one neuron
        sums.setdefault(step.name, Sums(y.shape[1], len(xs), 1, y.device))
        both = torch.stack([x.expand_as(y) for x in xs], -1).transpose(0, 1).flatten(1, -2)
        sums[step.name].add(both, y.transpose(0, 1).flatten(1)[..., None])
        return
    weight, groups = call["weight"], call.get("groups", 1)
    q, o = prod(weight.shape[1:]), weight.shape[0] // groups
    if step.name not in sums:
        sums[step.name] = Sums(groups, q, o, x.device)
    if call.primitive.name == "linear":
        sums[step.name].add(x.reshape(1, -1, q), y.reshape(1, -1, o))
        return
    at_once = max(1, _AT_ONCE // (prod(y.shape[2:]) * q * groups))
    for part, made in zip(x.split(at_once), y.split(at_once), strict=True):
        patches = _patches(part, call, tuple(made.shape[2:])).flatten(1, 2)
        sums[step.name].add(patches, made.unflatten(1, (groups, o)).flatten(3).permute(1, 0, 3, 2).flatten(1, 2))


def _patches(x: Tensor, call: Call, size: tuple[int, ...]) -> Tensor:
    """What each output pixel reads: (g, n, pixels, q)."""
    window = Geometry.of(call)
    x = F.pad(x, window.margins(tuple(x.shape[2:]), size))
    for i, (reach, stride, dilation) in enumerate(zip(window.reach, window.stride, window.dilation, strict=True)):
        x = x.unfold(2 + i, reach + 1, stride)[..., ::dilation]
    x = x.unflatten(1, (call.get("groups", 1), -1)).flatten(3, 2 + len(size))  # (n, g, c, pixels, *taps)
    return x.permute(1, 0, 3, 2, *range(4, x.dim())).flatten(3)
