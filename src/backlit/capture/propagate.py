"""Run a network as it is, with the rules' vector-Jacobian products behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from backlit._errors import RuleMismatch
from backlit._forward import of_image, unchanged
from backlit.capture.canonical import Call
from backlit.capture.fold import Plan, fold_plan, foldable
from backlit.capture.refuse import check_model
from backlit.capture.rule import Rule, RuleLike, Shares, as_rule
from backlit.capture.sites import Coverage, CoverageRow, Site, Trace
from backlit.capture.watch import Watch


class Rules(Protocol):
    """What the engine asks of a rule table."""

    def rule_for(self, site: Site) -> tuple[str, RuleLike | None]:
        """The rule's name and the rule of a site; ``None`` leaves the true derivative to autograd."""
        ...


@dataclass(frozen=True)
class Kept:
    """The output of a site, in the rules' graph, and the call that made it, with its parameters (folded, if asked)."""

    output: Tensor
    call: Call


@dataclass(frozen=True)
class Tap:
    """What is read off the gradient of a site's output on its way down: the gradients of further inputs of the network.

    A bias is such an input: ``read`` turns the output's gradient into the gradient of each of ``inputs``.
    """

    inputs: tuple[Tensor, ...]
    read: Callable[[Tensor], tuple[Tensor, ...]] = field(repr=False)


Reader = Callable[[Call, Tensor], Tap | None]
"""``reader(call, output)``: what is read off the gradient of a site's output."""
Keep = Callable[[Site], bool]


@dataclass(frozen=True)
class Tapped:
    """A tapped site: its output as it left the operation, and the tap's inputs, as leaves to differentiate to."""

    site: Site
    output: Tensor
    inputs: tuple[Tensor, ...]


@dataclass(eq=False)
class Flow:
    """What the backward passes of one propagation share: the sites of ``mixed``, and whether this is the only pass."""

    mixed: set[str] = field(default_factory=set)
    once: bool = False


@dataclass(frozen=True)
class Propagation:
    """One forward pass whose backward pass follows the rules.

    ``inputs`` are the leaves to differentiate to, ``output`` the network's (n, k) logits with the rules' graph behind
    it, ``kept`` the outputs of the sites that were asked for, ``taps`` the sites that were tapped, in order. ``unit`` is a
    leaf of ones (n,) whose gradient is what the rules' biases absorb of each image; ``flow.mixed`` fills, while
    that is computed, with the sites whose images do not stand for certain in the first dimension, so that only the sum over the
    batch is.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    trace: Trace
    coverage: Coverage
    kept: dict[str, Kept]
    taps: dict[str, Tapped]
    unit: Tensor
    flow: Flow

    def gradient(
        self,
        weights: Float[Tensor, "*t n k"],
        *,
        to: tuple[Tensor, ...] | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> tuple[Tensor, ...]:
        """Gradient of ``(weights * output).sum()`` to each input, by the rules; or to outputs of kept sites and inputs of taps.

        With a leading axis t, t weightings are propagated at once through the same graph: each result is then
        (t, n, ...).
        """
        to, lead = self.inputs if to is None else to, weights.shape[:-2]
        self.flow.once = not (retain_graph or create_graph)
        grads = torch.autograd.grad(
            self.output, to, weights, retain_graph, create_graph, is_grads_batched=len(lead) > 0, allow_unused=True
        )
        return tuple(x.new_zeros((*lead, *x.shape)) if g is None else g for g, x in zip(grads, to, strict=True))


def propagate(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    rules: Rules,
    *,
    keep: Keep = lambda site: False,
    fold: bool = False,
    tap: Reader | None = None,
) -> Propagation:
    """Run ``model`` on ``inputs``; differentiating the result follows ``rules``.

    The forward values are the network's own, bit for bit, unless ``fold`` asks for every batch norm to be folded into
    the convolution or linear layer that feeds it.

    Args:
        model: Any network of plain PyTorch operations, in eval mode. It is not changed.
        inputs: One tensor or several, images first: (n, ...).
        rules: A rule table.
        keep: Which sites to return in ``kept``.
        fold: Fold batch norm by dataflow; costs one more forward pass, of the first image.
        tap: Asked after each call, with the call (its signals as they were before) and its output; what it returns is
            returned in ``taps``. The output itself does not change.

    Raises:
        UnsupportedOp: If an operation on the signal cannot be seen or has no rule in the table.
        ModelStateError: If the model is in train mode where that matters, draws at random, or writes to its own tensors.
        InputError: If the output is not one (n, k) tensor of logits.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    check_model(model, inputs)
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    plan, planned = of_image(lambda some, _: fold_plan(model, some), leaves) if fold else ({}, None)
    while True:
        with torch.enable_grad():
            signals = tuple(leaf.clone() for leaf in leaves)  # the network may write to its input
        run = _Propagate(model, signals, rules, keep, plan, tap)
        with unchanged(model, leaves):
            output = run.follow(model, signals)
        if planned is None or [(s.name, s.module) for s in run.sites] == [(s.name, s.module) for s in planned]:
            break
        (plan, _), planned = fold_plan(model, leaves), None  # it goes another way with all images than with one
    return Propagation(leaves, output, Trace(tuple(run.sites)), run.coverage(), run.kept, run.taps, run.unit, run.flow)


@dataclass(eq=False)
class _Chain:
    """A layer's call and, in order, those that want to be joined to it; what they put out, and how often that is read."""

    calls: list[Call]
    rows: list[int]
    outputs: list[Any]
    readers: list[int]

    @property
    def joined(self) -> int:
        """How many are joined: each must be the only reader of the one before."""
        alone = (i for i, count in enumerate(self.readers) if count != 1 or i + 1 == len(self.calls))
        return next(alone, 0)


class _Propagate(Watch):
    def __init__(self, model: nn.Module, inputs: Any, rules: Rules, keep: Keep, plan: Plan, tap: Reader | None) -> None:
        super().__init__(model, inputs)
        self._rules, self._keep, self._plan, self._tap = rules, keep, plan, tap
        self._links: Any = WeakIdKeyDictionary()  # the output of a chain's member -> chain, position in it
        self._chains: list[_Chain] = []
        self.rows: list[CoverageRow] = []
        self.unit = inputs[0].new_ones(len(inputs[0])).requires_grad_()
        self.flow = Flow()
        self.kept: dict[str, Kept] = {}
        self.taps: dict[str, Tapped] = {}

    def visit(self, call: Call) -> Any:
        site = call.site
        folded = self._plan.get((site.name, site.module))
        name, entry = self._rules.rule_for(site)
        rule = as_rule(entry)
        self.rows.append(CoverageRow(site.name, site.primitive, site.kind, site.module, site.spelling, name))
        if folded is not None:
            call = folded(call)
            call = replace(call, spelled=partial(call.run, *call.signals))
            rule = rule if call.primitive.name == site.primitive else None  # a folded norm passes the signal on
        link = self._link(call, rule)
        ruled = partial(_Ruled.apply, call.without_signals(), rule, link, self.flow, call.spelled, self.unit)
        own = call.spelled() if rule is None else ruled(*call.signals)
        if isinstance(own, tuple):  # named as the network reads it: .values, .indices
            own = getattr(torch.return_types, site.spelling.rpartition(".")[2], tuple)(own)
        result = self._tapped(call, own)
        if link is not None and result is own:  # what a tap reads is not passed over
            self._links[result] = link
        if self._keep(site):
            self.kept[site.name] = Kept(result if isinstance(result, Tensor) else result[0], call.without_signals())
        return result

    def _tapped(self, call: Call, output: Any) -> Any:
        """The output, with what its site's tap reads behind it."""
        if self._tap is None or not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        with torch.no_grad():
            found = self._tap(call.with_signals(tuple(s.detach() for s in call.signals)), output.detach())
        if found is None:
            return output
        leaves = tuple(x.detach().requires_grad_() for x in found.inputs)
        site = replace(call.site, output_shape=tuple(output.shape))
        self.taps[site.name] = Tapped(site, output, leaves)
        return _Tap.apply(output, found.read, *leaves)

    def _link(self, call: Call, rule: Rule | None) -> tuple[_Chain, int] | None:
        """The call's place in a chain, if it has one; counts the readers of the chains' outputs."""
        before = [self._links[s] for s in call.signals if s in self._links]
        for chain, position in before:
            chain.readers[position] += 1
        if rule is None:
            return None
        if rule.joins and len(before) == len(call.signals) == 1:
            chain = before[0][0]
            if before[0][1] + 1 < len(chain.calls) or chain.calls[-1].site.kind != "affine":
                return None  # another call is joined there, or an activation, which ends a layer
        elif foldable(call):
            chain = _Chain([], [], [], [])
            self._chains.append(chain)
        else:
            return None
        chain.calls.append(call.without_signals())
        chain.rows.append(len(self.rows) - 1)
        chain.readers.append(0)
        return chain, len(chain.calls) - 1

    def coverage(self) -> Coverage:
        """The rows, once all readers are known."""
        for chain in self._chains:
            for row in chain.rows[1 : chain.joined + 1]:
                self.rows[row] = replace(self.rows[row], rule="joined to its layer")
        return Coverage(tuple(self.rows))


class _Tap(torch.autograd.Function):
    """The identity, whose backward pass also reads the gradient for the tap's inputs."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, read: Any, *inputs: Tensor) -> Tensor:
        ctx.read = read
        return output.detach() if output._base is None else output.view_as(output)  # a view stays one

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return (grad, None, *ctx.read(grad))


class _Ruled(torch.autograd.Function):
    """One call whose derivative is a rule. All that the rule reads has its graph, so second order goes through it."""

    @staticmethod
    def forward(ctx: Any, call: Call, rule: Any, link: Any, flow: Any, spelled: Any, unit: Any, *signals: Any) -> Any:
        result = spelled()
        outputs = (result,) if isinstance(result, Tensor) else tuple(result)
        ctx.mark_non_differentiable(*(o for o in outputs if not o.is_floating_point()))
        ctx.save_for_backward(*signals)
        ctx.call, ctx.rule, ctx.link, ctx.images, ctx.flow = call, rule, link, len(unit), flow
        ctx.outputs = tuple(o.detach() for o in outputs)
        if link is not None:
            link[0].outputs.append(ctx.outputs)
        return outputs[0] if isinstance(result, Tensor) else outputs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        inputs, call, kept, none = ctx.saved_tensors, ctx.call, ctx.outputs, (None,) * 5
        chain, position = ctx.link or (None, 0)
        if ctx.flow.once:  # as autograd does with what it saved: nothing of a layer is kept once it is done
            ctx.outputs = None
        if chain is not None and chain.joined:
            if 0 < position <= chain.joined:
                return (*none, None, grads[0])
            if position == 0:
                call = replace(call, joined=tuple(chain.calls[1 : chain.joined + 1]))
                kept = chain.outputs[chain.joined]
        if chain is not None and position == 0 and ctx.flow.once:
            chain.outputs.clear()
        if torch.is_grad_enabled() and ctx.rule.reads_output:
            output = call.run(*inputs)
            for after in call.joined:
                output = after.run(output)
        else:
            output = kept[0] if len(kept) == 1 else kept
        grad = grads[0] if isinstance(output, Tensor) else grads
        shares: Shares = ctx.rule(grad, inputs, output, call)
        unit = None
        if shares.absorbed is not None:
            unit = _per_image(shares.absorbed, ctx.images)
            if shares.absorbed.shape[:1] != (ctx.images,) or shares.absorbed.shape[1:2] == (ctx.images,):
                ctx.flow.mixed.add(call.site.name)
        check_result(shares.grads, inputs, call)
        return (*none, unit, *shares.grads)


def _per_image(values: Tensor, n: int) -> Tensor:
    """Sum of ``values`` for each of n images (n,), which stand in its first dimension or its second; else even shares."""
    if n not in values.shape[:2]:
        return (values.sum() / n).expand(n)
    return (values if values.shape[0] == n else values.transpose(0, 1)).reshape(n, -1).sum(1)


def check_result(result: tuple[Tensor | None, ...], inputs: tuple[Tensor, ...], call: Call) -> None:
    """Refuse a rule's result that does not fit its site's inputs.

    Raises:
        RuleMismatch: With the site, what was returned and what it must be.
    """
    found = [None if grad is None else tuple(grad.shape) for grad in result]
    wanted = [tuple(x.shape) for x in inputs]
    if len(found) != len(wanted) or any(f not in (None, w) for f, w in zip(found, wanted, strict=True)):
        told = (
            f"{len(found)} gradients for {len(wanted)} inputs, of shapes {found}; return one each, of shapes {wanted}, or None. "
            "What constants take of the output goes beside them: Shares(gradients, absorbed)."
        )
        raise RuleMismatch(f"The rule at {call.site} returned {told}")
