"""Bias back-propagation: what the biases give to the logit, shared out among the pixels layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor

from backlit._errors import check_word
from backlit.capture import Call, RuleLike, Tap, named
from backlit.methods.axes import ANY
from backlit.methods.biases import BiasMethod, check_told, offset, propagated, with_biases
from backlit.methods.job import Job, Maps, scores_of
from backlit.rules import TRUE, RuleTable, presets
from backlit.rules.exact import exact

Alpha = Literal["ratio", "equal"]
Grads = tuple[Tensor | None, ...]


class BBp(BiasMethod):
    """Bias back-propagation (Wang, Zhou and Bilmes 2019): the biases' part of the logit, handed down to the pixels.

    From the output down, each unit shares what it holds out among its inputs, by factors alpha that sum to one; on the
    way the bias of each layer, times the true gradient there, is added. The map's sum is the logit less <dF/dx, x>, that
    is, what gradient times input leaves out. ``completeness["gap"]`` is what was held by constants on the way.

    Attributes:
        alpha: How a unit shares its bias out among its inputs: "ratio" by the size of what each contributes, |w x|, over
            their sum (in equal shares where all of them are zero); "equal" in equal shares.
    """

    axes = ANY
    name = "bbp"
    title = "BBp"
    kind = "signed"
    summary = "the biases' part of the logit, shared out layer by layer"
    answers = "Where does what the biases add to the logit come from?"
    source = "Wang, Zhou and Bilmes 2019"
    memory_factor = 10.0

    alpha: Alpha = "ratio"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("alpha", self.alpha, ("ratio", "equal"))

    def explain_together(self, job: Job) -> Maps:
        inputs = job.inputs
        run = with_biases(self.network, inputs, presets.gradient, _terms)
        check_told(run.trace)
        targets = job.pick(run.output)
        names = list(run.taps)
        grads = propagated(run, targets, (*run.inputs, *(t.inputs[0] for t in run.taps.values())))
        table = _TABLES[self.alpha].over(self.rules)
        shared = with_biases(self.network, inputs, table, lambda call, _: _root(call, names))
        roots = [shared.taps[name].output for name in names]
        values = [
            torch.autograd.grad(roots, shared.inputs, held, retain_graph=True, allow_unused=True)
            for held in zip(*grads[len(inputs) :], strict=True)
        ] if names else [()] * targets.shape[1]  # fmt: skip
        maps = tuple(
            torch.stack([torch.zeros_like(x) if not v or v[i] is None else v[i] for v in values])
            for i, x in enumerate(inputs)
        )
        output = scores_of(run.output, targets)
        products = (g * x for g, x in zip(grads, inputs, strict=False))
        biases = output - sum((p.flatten(2).sum(2) for p in products), torch.zeros_like(output))
        account = {"biases": biases, "gap": biases - sum(m.flatten(2).sum(2) for m in maps)}
        return Maps.of_run(run, maps, targets, coverage=shared.coverage, completeness=account)


def _terms(call: Call, output: Tensor) -> Tap | None:
    """The gradient times what the site adds, unit by unit."""
    added = offset(call, output)
    return None if added is None else Tap((torch.zeros_like(output),), lambda grad: (grad * added,))


def _root(call: Call, names: Collection[str]) -> Tap | None:
    """Taps at the same sites, only to have their outputs."""
    return Tap((), lambda grad: ()) if call.site.name in names else None


def _shared(alpha: Alpha) -> Callable[..., Grads]:
    """b is what the units hold, z their inputs, w the weights: ``sum over units of b |w z| / sum |w z|``."""

    def share(b: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Grads:
        sizes = tuple(torch.zeros_like(z) if alpha == "equal" else z.abs() for z in inputs)
        by_size, total = _handed(b, sizes, call)
        silent = total == 0  # nothing comes in: equal shares
        if not bool(silent.any()):
            return tuple(z * s for z, s in zip(sizes, by_size, strict=True))
        equally, _ = _handed(torch.where(silent, b, 0), tuple(torch.ones_like(z) for z in inputs), call, ones=True)
        return tuple(z * s + e for z, s, e in zip(sizes, by_size, equally, strict=True))

    share.__name__ = f"share ({alpha})"
    return share


def _handed(
    b: Tensor, sizes: tuple[Tensor, ...], call: Call, *, ones: bool = False
) -> tuple[tuple[Tensor, ...], Tensor]:
    """``sum over units of b w / total``, and each unit's total ``sum of w z``; no share where the total is zero."""
    with torch.enable_grad():
        leaves = tuple(z.detach().requires_grad_() for z in sizes)
        total = _magnitude(call, leaves, ones=ones)
    sums = total.detach()
    return torch.autograd.grad(total, leaves, torch.where(sums == 0, 0, b / torch.where(sums == 0, 1, sums))), sums


def _magnitude(call: Call, signals: tuple[Tensor, ...], *, ones: bool = False) -> Tensor:
    """The call on non-negative signals with the magnitudes of its weights, or with ones, and without its bias."""
    if call.primitive.has("adds"):
        return torch.add(*signals)
    changes: dict[str, Any] = {}
    for name, value in call.arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point() and (name, None) not in call.places:
            changes[name] = torch.ones_like(value) if ones else value.abs()
    if call.get("bias") is not None:
        changes["bias"] = None
    if call.primitive.has("accumulates") and ("input", None) not in call.places:
        changes["input"] = torch.zeros_like(call["input"])
    return call.run(*signals, **changes)


def whole(b: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Grads:
    """An elementwise call with one input hands down all that it holds; to a broadcast input, the sum."""
    return tuple(b.sum_to_size(z.shape) for z in inputs)


def halves(b: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Grads:
    """Each factor of a product gets half, each value that ``torch.where(x > 0, f, g)`` chooses from likewise.

    What ``h[h < 0] = f`` writes has a shape of its own: it gets what stands where it was written.
    """
    if call.primitive.name == "gated" and any(z.dim() != b.dim() for z in inputs):
        return exact(b, inputs, output, call)
    return tuple((b / len(inputs)).sum_to_size(z.shape) for z in inputs)


def _added(alpha: Alpha) -> RuleLike:
    share = _shared(alpha)

    def added(b: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Grads:
        """A sum of two signals shares like any unit; one with a constant hands all of it to the signal."""
        return share(b, inputs, output, call) if len(inputs) > 1 else whole(b, inputs, output, call)

    return added


def _table(alpha: Alpha) -> RuleTable:
    share = _shared(alpha)
    rules: dict[str, RuleLike | None] = dict.fromkeys(named("moves") | named(kind="selection"), TRUE)
    rules |= dict.fromkeys(named("layer", "averages"), share)
    rules |= dict.fromkeys(named("scales", "norm") | named(kind="activation"), whole)
    rules |= dict.fromkeys(("add", "sub", "lerp"), _added(alpha))
    rules |= {"product": halves, "gated": halves, "interpolate": share, "dropout": whole, "unfold": TRUE}
    return RuleTable(f"bias shares, {alpha}", rules, kinds={"affine": share, "activation": whole, "selection": TRUE})


_TABLES = {alpha: _table(alpha) for alpha in ("ratio", "equal")}
