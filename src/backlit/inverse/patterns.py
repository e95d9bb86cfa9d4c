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
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._errors import UnsupportedOp, check
from backlit._json import JsonObject
from backlit.capture.canonical import Call
from backlit.capture.geometry import Geometry
from backlit.capture.record import Node
from backlit.capture.sites import Trace
from backlit.inverse.artefact import Fitted
from backlit.inverse.calls import Calls
from backlit.inverse.data import Data, check_values
from backlit.inverse.fitting import FitStep, Fitting
from backlit.inverse.part import INPUT
from backlit.inverse.patches import patches
from backlit.rules.patterns import LAYERS, is_sum, pattern_table, summed_with

PAUSE, SHARE = 10.0, 0.05
"""The sums are written to the folder beside the file after so many seconds, and in at most this share of the time."""
_SUMS = "sums"
_AT_ONCE = 2**22  # numbers of one block of patches: 32 MiB in float64


class Patterns(Fitted):
    """An artefact of the patterns of a network's layers; :func:`fit_patterns` makes them."""


@dataclass
class Sums:
    """A set of sums of a layer's inputs x (q) and outputs y (o) per group, of all samples and of those with y > 0; float64."""

    totals: dict[str, Tensor] = field(default_factory=dict)

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
        sums = {
            "samples": torch.tensor(n, device=x.device),
            "x": sum_x + n * mean_x,
            "y": sum_y + n * mean_y,
            "yx": yx + mean_y * sum_x + sum_y * mean_x + n * mean_y * mean_x,
            "count_pos": count,
            "x_pos": x_pos + count * mean_x,
            "yx_pos": yx_pos + mean_y * x_pos + y_pos * mean_x + count * mean_y * mean_x,
        }
        self.totals = {name: self.totals.get(name, 0) + value for name, value in sums.items()}

    def patterns(self, weight: Tensor) -> tuple[dict[str, Tensor], int]:
        """Return a, a+ and a- (g, o, q) for weights of that shape, and how many neurons were never positive.

        A neuron that has no sample, or no variance, in a regime gets a pattern of zeros there.
        """
        x, yx, x_pos, yx_pos, count_pos = (self.totals[name] for name in ("x", "yx", "x_pos", "yx_pos", "count_pos"))
        mean_y = self.totals["y"] / self.totals["samples"]
        count = torch.zeros_like(count_pos) + self.totals["samples"]
        regimes = {
            "linear": (yx, x, count),
            "positive": (yx_pos, x_pos, count_pos),
            "negative": (yx - yx_pos, x - x_pos, count - count_pos),
        }
        patterns = {}
        for name, (yx, x, count) in regimes.items():
            n = count.clamp(min=1)
            c = yx / n - x / n * mean_y
            scale = (weight * c).sum(-1, keepdim=True)
            tiny = 1e-12 * (weight.abs() * (yx / n).abs()).sum(-1, keepdim=True)
            patterns[name] = torch.where((count > 0) & (scale.abs() > tiny), c / torch.where(scale == 0, 1, scale), 0.0)
        return patterns, int((count_pos == 0).sum())


@dataclass(frozen=True)
class PatternOptions:
    """A choice of how patterns are learned.

    Attributes:
        precision: Dtype of the products inside a batch; their sums are float64.
    """

    precision: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        known = isinstance(self.precision, torch.dtype) and self.precision in (torch.float32, torch.float64)
        check(known, "precision", self.precision, "torch.float32 or torch.float64")


def fit_patterns(
    model: nn.Module,
    data: Data,
    options: PatternOptions,
    *,
    out: str | Path | None = None,
    description: str = "",
    progress: Callable[[FitStep], None] = lambda step: None,
) -> Patterns:
    """Learn the patterns of every layer and of every sum of two signals, batch norm folded where it can be.

    Args:
        model: The network, in eval mode. It is not changed.
        data: An iterable of batches, images (n, c, h, w) or (images, labels), whose labels are not used.
        options: How to learn them.
        out: A file for the result. The sums so far are kept every so often in a folder beside it (``OUT.parts``), from which
            the same call goes on after an interruption.
        description: Of the data, for the record.
        progress: Called after each batch.

    Raises:
        InputError: If an argument or a batch cannot be used.
        UnsupportedOp: If the network holds operations without patterns or a rule, or nothing to learn.
        ModelStateError: If an activation is not finite; names the batch.
        FileError: If ``out`` cannot be written or is anything but an earlier fit of this kind, or its folder of parts belongs
            to another fit or is in use.
    """
    job = Fitting("pattern", model, data, out, progress)
    precision = options.precision
    calls = Calls.of(model, job.sample)
    layers = _layers(calls)
    _check_rules(calls.lean.trace)
    facts: JsonObject = {"precision": str(precision).removeprefix("torch.")}
    with job.begun(facts):
        sums = _summed(job, calls, layers, precision)
        patterns: dict[str, dict[str, Tensor]] = {}
        facts |= {"start": INPUT, "description": description, "layers": []}
        for name, node in layers.items():
            weight, groups = _weight(node.call, calls.shape(node.outputs[0])[0])
            learned, dead = sums[name].patterns(weight.double().view(groups, -1, prod(weight.shape[1:])))
            patterns[name] = {key: p.reshape(weight.shape).to(weight.dtype) for key, p in learned.items()}
            facts["layers"].append({"name": name, "samples": int(sums[name].totals["samples"]), "never positive": dead})
        return job.result(Patterns, patterns, tuple(range(calls.logits.shape[1])), facts)


def _summed(job: Fitting, calls: Calls, layers: dict[str, Node], precision: torch.dtype) -> dict[str, Sums]:
    """Go over the data once; the sums so far are kept every so often, and gone on from."""
    piece = job.read(_SUMS)
    kept = piece.layers if piece else {}
    sums = {name: Sums({key: t.to(job.device) for key, t in totals.items()}) for name, totals in kept.items()}
    due = time.monotonic() + PAUSE
    wanted = [slot for node in layers.values() for slot in (*node.sources, *node.outputs)]
    for batch in job.batches(sums, done=piece.data if piece else None):
        with torch.no_grad():
            values = calls.values(job.model, batch.inputs, wanted)
            for name, node in layers.items():
                xs, y = [values.slots[slot] for slot in node.sources], values.slots[node.outputs[0]]
                check_values([*xs, y], name, batch)
                _add(sums, node, [x.to(precision) for x in xs], y.to(precision))
        start = time.monotonic()
        if start >= due:
            job.keep(_SUMS, {name: of.totals for name, of in sums.items()}, {})
            end = time.monotonic()
            due = end + max(PAUSE, (end - start) / SHARE)
    return sums


def _layers(calls: Calls) -> dict[str, Node]:
    """Return the layers and sums that have patterns.

    Raises:
        UnsupportedOp: If there is none, or a call is one in all but name.
    """
    nodes = {node.call.site.name: node for node in calls.lean.nodes if _has_pattern(node.call)}
    if all(len(node.sources) > 1 for node in nodes.values()):
        raise UnsupportedOp(
            "The network has no layer to learn from: no linear layer and no convolution reads the input."
        )
    return nodes


def _has_pattern(call: Call) -> bool:
    """Say whether a call is a layer with patterns.

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


def _check_rules(trace: Trace) -> None:
    """Refuse what the way back will have no rule for.

    Raises:
        UnsupportedOp: Lists all of it.
    """
    missing = pattern_table({}, times_weight=False).missing(trace)
    if missing:
        raise UnsupportedOp(
            f"The network holds {len(missing)} operation{'s' * (len(missing) > 1)} that patterns have no way back through: "
            + "; ".join(map(str, missing))
            + ". Explain the network without them, such as a softmax at its end."
        )


def _weight(call: Call, channels: int) -> tuple[Tensor, int]:
    """Return a layer's weight, or a sum's (c, 2), and its groups."""
    if call.primitive.name in LAYERS:
        return call["weight"], call.get("groups", 1)
    return torch.tensor(summed_with(call), dtype=torch.float64).expand(channels, -1), channels


def _add(sums: dict[str, Sums], node: Node, xs: list[Tensor], y: Tensor) -> None:
    """Add a batch to a layer's sums."""
    weight, groups = _weight(node.call, y.shape[1])
    q, o = prod(weight.shape[1:]), weight.shape[0] // groups
    of = sums.setdefault(node.call.site.name, Sums())
    if is_sum(node.call.site):  # each channel is a group of one neuron
        both = torch.stack([x.expand_as(y) for x in xs], -1).transpose(0, 1).flatten(1, -2)
        of.add(both, y.transpose(0, 1).flatten(1)[..., None])
    elif node.call.primitive.name == "linear":
        of.add(xs[0].reshape(1, -1, q), y.reshape(1, -1, o))
    else:
        window, size = Geometry.of(node.call), tuple(y.shape[2:])
        x = F.pad(xs[0], window.margins(tuple(xs[0].shape[2:]), size))
        at_once = max(1, _AT_ONCE // (prod(size) * q * groups))
        for block, made in zip(x.split(at_once), y.split(at_once), strict=True):
            read = patches(block, window, window.stride, groups).transpose(0, 1).flatten(1, 2)
            of.add(read, made.unflatten(1, (groups, o)).flatten(3).permute(1, 0, 3, 2).flatten(1, 2))
