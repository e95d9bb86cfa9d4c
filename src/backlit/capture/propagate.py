"""Run a network as it is, with the rules' vector-Jacobian products behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backlit._errors import RuleMismatch
from backlit._forward import of_image, unchanged
from backlit.capture.canonical import Call
from backlit.capture.fold import Plan, fold_plan
from backlit.capture.joins import Chains, Link
from backlit.capture.refuse import check_model
from backlit.capture.rule import Rule, RuleLike, as_rule
from backlit.capture.sites import Coverage, CoverageRow, Site, Trace
from backlit.capture.taps import Reader, Tapped, tapped
from backlit.capture.tensors import ByTensor
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


Keep = Callable[[Site], bool]


@dataclass(eq=False)
class Flow:
    """What the backward passes of one propagation share.

    ``images`` is their number, ``mixed`` collects the sites whose images do not stand for certain in the first dimension, and
    ``once`` says whether this is the only pass.
    """

    images: int
    mixed: set[str] = field(default_factory=set)
    once: bool = False

    def unit(self, absorbed: Tensor | None, site: Site) -> Tensor | None:
        """Return what a site's biases and constants take of each image (n,)."""
        if absorbed is None:
            return None
        n = self.images
        if absorbed.shape[:1] != (n,) or absorbed.shape[1:2] == (n,):
            self.mixed.add(site.name)
        return _per_image(absorbed, n)


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


class _Propagate(Watch):
    def __init__(self, model: nn.Module, inputs: Any, rules: Rules, keep: Keep, plan: Plan, tap: Reader | None) -> None:
        super().__init__(model, inputs)
        self._rules, self._keep, self._plan, self._tap = rules, keep, plan, tap
        self._chains = Chains(ByTensor())
        self.rows: list[CoverageRow] = []
        self.unit = inputs[0].new_ones(len(inputs[0])).requires_grad_()
        self.flow = Flow(len(inputs[0]))
        self.kept: dict[str, Kept] = {}
        self.taps: dict[str, Tapped] = {}

    def visit(self, call: Call) -> Any:
        site = call.site
        name, entry = self._rules.rule_for(site)
        rule = as_rule(entry)
        self.rows.append(CoverageRow(site.name, site.primitive, site.kind, site.module, site.spelling, name))
        change = self._plan.get((site.name, site.module))
        if change is not None:
            call = change(call)
            call = replace(call, spelled=partial(call.run, *call.signals))
            rule = rule if call.primitive.name == site.primitive else None  # a folded norm passes the signal on
        link, own = self._run(call, rule)
        if isinstance(own, tuple):  # named as the network reads it: .values, .indices
            own = getattr(torch.return_types, site.spelling.rpartition(".")[2], tuple)(own)
        result, tap = (own, None) if self._tap is None else tapped(call, own, self._tap)
        if tap is not None:
            self.taps[site.name] = tap
        elif link is not None:  # what a tap reads is not passed over
            self._chains.leave(link, own)
        if self._keep(site):
            self.kept[site.name] = Kept(result if isinstance(result, Tensor) else result[0], call.without_signals())
        return result

    def _run(self, call: Call, rule: Rule | None) -> tuple[Link | None, Any]:
        """The call's place in a chain, and its result with the rule behind it."""
        if rule is None:
            self._chains.read(call.signals)
            return None, call.spelled()
        link = self._chains.enter(call, call.signals, len(self.rows) - 1, joins=rule.joins)
        pending = Pending(call.without_signals(), rule, link, self.flow)
        return link, _Ruled.apply(pending, call.spelled, self.unit, *call.signals)

    def coverage(self) -> Coverage:
        """The rows, once all readers are known."""
        for chain in self._chains.all:
            for row in chain.places[1 : chain.joined + 1]:
                self.rows[row] = replace(self.rows[row], rule="joined to its layer")
        return Coverage(tuple(self.rows))


@dataclass(eq=False)
class Pending:
    """A site whose rule the backward pass will apply."""

    call: Call
    rule: Rule
    link: Link | None
    flow: Flow
    outputs: tuple[Tensor, ...] = ()

    def put_out(self, outputs: tuple[Tensor, ...]) -> None:
        """Keep what the call put out, for rules that read it."""
        if self.link is None:
            self.outputs = outputs
        else:
            self.link.chain.outputs.append(outputs)

    def claim(self) -> tuple[Call, tuple[Tensor, ...]]:
        """The call as its rule sees it, and what it put out; in the only backward pass, nothing of it is kept any longer."""
        call, outputs = (self.call, self.outputs) if self.link is None else self.link.whole(self.call)
        if self.flow.once:
            self.outputs = ()
            if self.link is not None and self.link.position == 0:
                self.link.chain.outputs.clear()
        return call, outputs


class _Ruled(torch.autograd.Function):
    """One call whose derivative is a rule. All that the rule reads has its graph, so second order goes through it."""

    @staticmethod
    def forward(ctx: Any, pending: Pending, spelled: Callable[[], Any], unit: Tensor, *signals: Tensor) -> Any:
        result = spelled()
        outputs = (result,) if isinstance(result, Tensor) else tuple(result)
        ctx.mark_non_differentiable(*(o for o in outputs if not o.is_floating_point()))
        ctx.save_for_backward(*signals)
        ctx.pending = pending
        pending.put_out(tuple(o.detach() for o in outputs))
        return result if isinstance(result, Tensor) else outputs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        inputs, pending = ctx.saved_tensors, ctx.pending
        if pending.link is not None and pending.link.passes:
            return None, None, None, grads[0]
        call, outputs = pending.claim()
        if torch.is_grad_enabled() and pending.rule.reads_output:
            output = _again(call, inputs)
        else:
            output = outputs[0] if len(outputs) == 1 else outputs
        shares = pending.rule(grads[0] if isinstance(output, Tensor) else grads, inputs, output, call)
        check_result(shares.grads, inputs, call)
        return None, None, pending.flow.unit(shares.absorbed, call.site), *shares.grads


def _again(call: Call, inputs: tuple[Tensor, ...]) -> Any:
    """The output of a call and those joined to it, with its graph."""
    output = call.run(*inputs)
    for after in call.joined:
        output = after.run(output)
    return output


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
