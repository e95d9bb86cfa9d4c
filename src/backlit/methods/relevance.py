"""Layer-wise relevance propagation, deep Taylor decomposition, excitation backprop: the logit, handed down layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from backlit._errors import InputError, ModelStateError, UnsupportedOp, check, check_positive, check_word, is_number
from backlit._forward import of_image
from backlit._options import NO_OPTION, default_of, option_names
from backlit._warn import Once, warn
from backlit.capture import Propagation, RuleLike, Trace, propagate
from backlit.capture.record import Recording, record
from backlit.methods.audit import Leak, audit
from backlit.methods.axes import ANY
from backlit.methods.base import Kind, Method
from backlit.methods.box import box_of
from backlit.methods.job import Job, Maps, scores_of
from backlit.methods.targets import gradients
from backlit.rules import RuleTable, attention, presets
from backlit.rules.linear import Bound, ClassContrast, Gamma
from backlit.rules.pooling import proportional
from backlit.rules.relevance import RelevanceTable


class Relevance(Method):
    """A method of this family: a table of multipliers, and an account of where the logit went.

    Attributes:
        tolerance: Warn, once, when this share of a logit is neither in the map nor in the biases.
    """

    axes = ANY
    source = "Bach et al. 2015"

    tolerance: float = 0.01

    _said: Once = field(default_factory=Once, init=False, metadata=NO_OPTION)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("tolerance", self.tolerance)

    def table(self, job: Job) -> RuleTable:
        """The rules of every site."""
        raise NotImplementedError

    def explain(self, job: Job) -> Maps:
        inputs, table = job.inputs, self.table(job)
        if isinstance(self.rules, Mapping):
            table = table.over(self.rules)
        run = self.propagated(inputs, table)
        asked = replace(job, targets=job.pick(run.output))
        *values, biases = gradients(run, asked.classes, to=(*run.inputs, run.unit))
        output = scores_of(run.output, asked.classes)
        self._check_end(run, tuple(values), table)
        self._check_flow(run, tuple(values), asked, table)
        if len(job) > 1:
            biases = self._of_each(run, asked, table, tuple(values), biases, output)
        values, completeness = self.account(tuple(values), biases, output)
        self._warn(completeness, values, output, asked, table)
        notes = {"rules": table.name}
        return Maps.of_run(run, values, asked.classes, completeness=completeness, notes=notes)

    def propagated(self, inputs: tuple[Tensor, ...], table: RuleTable) -> Propagation:
        """The forward pass with the table behind it.

        Raises:
            UnsupportedOp: With all the sites that have no rule, and how to add one; if there are no weights at all.
        """
        try:
            run = propagate(self.network, inputs, table)
        except UnsupportedOp:
            self._list_missing(inputs, table)
            raise
        if not any(site.has("layer") for site in run.trace):
            raise UnsupportedOp(
                f"{self.title} needs a layer with weights, and this network has none on its way to the output. Use "
                "GradientXInput."
            )
        return run

    def _check_end(self, run: Propagation, values: tuple[Tensor, ...], table: RuleTable) -> None:
        """Refuse a network that ends in a softmax, where that is held.

        Raises:
            UnsupportedOp: If all of the output stops there.
        """
        last = [site for site in run.trace if not site.has("carries")][-1]
        _, rule = table.rule_for(last)
        held = last.primitive == "softmax" and rule is not None and rule.vjp is attention.constant
        if held and not any(bool(v.any()) for v in values):
            raise UnsupportedOp(
                f"{self.title} hands down logits, but this network ends in {last}, whose probabilities are held: the map is "
                "zero. Explain the network without it."
            )

    def _of_each(
        self,
        run: Propagation,
        job: Job,
        table: RuleTable,
        values: tuple[Tensor, ...],
        biases: Tensor,
        output: Tensor,
    ) -> Tensor:
        """What the biases take of each image (t, n), where some layers may hold the images in an order of their own.

        What the batch's biases take in all is known. Where nothing is lost that settles it; else the images go one by one,
        if a layer is known to be such. A call for one image, whose features are as many as images, is not known.
        """
        rest = output - _sums(values)
        lost, size = rest - biases, output.abs() + rest.abs()
        settled = bool((lost.sum(1).abs() <= 1e-4 * size.sum(1)).all())
        if settled and (run.flow.mixed or bool((lost.abs() > 1e-4 * size).any())):
            return rest
        if not run.flow.mixed:
            return biases

        def absorbed(some: tuple[Tensor, ...], place: int, i: int) -> Tensor:
            run = self.propagated(some, table)
            weights = run.output.new_zeros(job.classes.shape[1], *run.output.shape)
            weights[torch.arange(len(weights)), place, job.classes[i]] = 1
            found = run.gradient(weights if len(weights) > 1 else weights[0], to=(run.unit,))[0]
            return found.reshape(len(weights), -1).sum(1)

        return torch.stack([of_image(partial(absorbed, i=i), job.inputs, i) for i in range(len(job))], 1)

    def account(
        self, values: tuple[Tensor, ...], biases: Tensor, output: Tensor
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The maps, and what became of the logit: in the map, in the biases, nowhere; all (t, n)."""
        relevance = _sums(values)
        gap = output - relevance - biases
        ratio = torch.where(output == 0, 1 + relevance, relevance / torch.where(output == 0, 1, output))
        return values, {"relevance": relevance, "ratio": ratio, "biases": biases, "gap": gap}

    def _list_missing(self, inputs: tuple[Tensor, ...], table: RuleTable) -> None:
        trace = record(self.network, inputs, lambda call, signals, result: call.without_signals().run)[0].trace
        missing = table.missing(trace)
        if missing:
            raise UnsupportedOp(
                f"{len(missing)} sites have no rule in the table {table.name!r}: {'; '.join(map(str, missing))}. Give each "
                f"primitive one: rules={{{missing[0].primitive!r}: rule}}, where None stands for its true derivative, right for "
                "what is linear or picks among its inputs."
            )

    def _check_flow(self, run: Propagation, values: tuple[Tensor, ...], job: Job, table: RuleTable) -> None:
        """Name the site where relevance overflows.

        Raises:
            ModelStateError: If it does, although the output is finite.
        """
        if all(bool(v.isfinite().all()) for v in values) or not bool(run.output.isfinite().all()):
            return
        overflow = any(bool(v.isinf().any()) for v in values)
        t, i = (~torch.stack([v.isfinite().flatten(2).all(2) for v in values]).all(0)).nonzero()[0].tolist()
        leaks = self._audited(job, table, t, i)
        where = next((str(leak.site) for leak in leaks if not leak.finite), "a site that could not be found")
        raise ModelStateError(
            f"The relevance of image {job.first + i} {'overflows' if overflow else 'is not a number (NaN)'} at "
            f"{where} in {self.title}. Use float64, a larger epsilon, or "
            "rules that do not divide by small sums (preset='epsilon_gamma_box')."
        )

    def _warn(
        self,
        completeness: dict[str, Tensor],
        values: tuple[Tensor, ...],
        output: Tensor,
        job: Job,
        table: RuleTable,
    ) -> None:
        whole = completeness["relevance"] + completeness["biases"] + completeness["gap"]
        rounding = 100 * torch.finfo(output.dtype).eps * _sums(tuple(v.abs() for v in values))
        lost = (completeness["gap"].abs() - rounding).clamp(min=0)
        share = lost / torch.where(whole == 0, 1, whole).abs()
        if float(share.max()) <= self.tolerance or not self._said.first():
            return
        t, i = divmod(int(share.argmax()), share.shape[1])
        leaks = sorted(self._audited(job, table, t, i), key=lambda leak: -abs(leak.lost))[:5]
        size = max(abs(float(output[t, i])), 1e-30)
        leaks = [leak for leak in leaks if abs(leak.lost) > 0.01 * float(share[t, i]) * size]
        named = "; ".join(f"{leak.site} ({leak.rule}) {leak.lost / size:+.1%}" for leak in leaks)
        warn(
            f"{self.title}: {float(share.max()):.1%} of the output is neither in the map nor in the biases (image "
            f"{job.first + i}, more than tolerance={self.tolerance:g}). It is lost at "
            f"{named or 'sites that could not be told apart'}."
        )

    def _audited(self, job: Job, table: RuleTable, t: int, i: int) -> tuple[Leak, ...]:
        target = int(job.classes[i, t])
        return of_image(lambda some, place: audit(self.network, some, table, target, image=place), job.inputs, i)


class LRP(Relevance):
    """Layer-wise relevance propagation (Bach et al. 2015) by a preset or a rule table of one's own.

    The map sums to the logit, but for what the biases absorb; ``completeness`` has both.

    Attributes:
        preset: A name of :data:`backlit.rules.presets.RELEVANCE`.
        rules: A table of your own instead, as :func:`backlit.rules.relevance.relevance` makes them; or rules by primitive,
            ``{"softmax": rule}``, put over the preset.
        epsilon: Stabiliser of the epsilon rule, as a share of the layer's mean magnitude.
        gamma: Weight of the favoured sign in ``epsilon_gamma_box``.
        low: What black pixels are in the network's input, a number or one a channel, for the presets with a box; None
            for each image's least value in each channel. ``LoadedModel.preprocess.bounds`` has both.
        high: What white pixels are.
        attention: "held" takes attention weights as constants (conserves relevance), "attnlrp" propagates through them.
        pool: "winner" gives a max-pool's relevance to the input that it picked, "proportional" shares it out.
    """

    name = "lrp"
    title = "LRP"
    kind = "signed"
    summary = "logit handed down layer by layer, by a rule for each role"
    answers = "How is the logit shared out among the pixels, layer by layer?"

    preset: str = "epsilon_plus"
    rules: RuleTable | Mapping[str, RuleLike | None] | None = None  # type: ignore[assignment]
    epsilon: float = 1e-7
    gamma: float = 0.25
    low: Bound | None = None
    high: Bound | None = None
    attention: Literal["held", "attnlrp"] = "held"
    pool: Literal["winner", "proportional"] = "winner"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("preset", self.preset, presets.RELEVANCE)
        check_word("attention", self.attention, ("held", "attnlrp"))
        check_word("pool", self.pool, ("winner", "proportional"))
        check(is_number(self.gamma), "gamma", self.gamma, "a number of at least 0")
        check_positive("epsilon", self.epsilon)
        others = [n for n in option_names(self) if n in _OF_PRESETS and getattr(self, n) != default_of(self, n)]
        check(
            not isinstance(self.rules, RuleTable) or not others,
            "rules",
            f"a table, beside {', '.join(others)}, which it would not read",
            "alone, for it says all of that itself",
        )
        Gamma(self.gamma)
        for name, argument in (("epsilon", "value"), ("gamma", "gamma")):
            if getattr(self, name) != getattr(type(self), name) and argument not in self._arguments:
                raise InputError(
                    f"{name} must be left out with preset={self.preset!r}, which has no such rule, but is "
                    f"{getattr(self, name)!r}. Choose a preset with one, or give rules=relevance(...) of your own."
                )
        for name in ("low", "high"):
            check(is_bound(getattr(self, name)), name, getattr(self, name), "a number, one for each channel, or None")
        self._table()  # its parameters are checked where they are used

    def _check_rules(self) -> None:
        if self.rules is None or isinstance(self.rules, Mapping):
            return super()._check_rules()
        check(
            isinstance(self.rules, RelevanceTable),
            "rules",
            f"the table {self.rules.name!r}" if isinstance(self.rules, RuleTable) else self.rules,
            "rules by primitive, a table made by backlit.rules.relevance.relevance(name, dense=..., convolution=...), or None",
        )

    @property
    def has_box(self) -> bool:
        """Tell whether the preset reads ``low`` and ``high``."""
        return not isinstance(self.rules, RuleTable) and "low" in self._arguments

    @property
    def _arguments(self) -> frozenset[str]:
        """What the preset takes."""
        code = presets.RELEVANCE[self.preset].__code__
        return frozenset(code.co_varnames[: code.co_argcount])

    def _table(self, low: Bound | None = None, high: Bound | None = None, strict: bool = True) -> RuleTable:
        """The rule table that these options ask for, with the box of the first layer."""
        if isinstance(self.rules, RuleTable):
            return self.rules
        takes = {"value": self.epsilon, "gamma": self.gamma, "low": low, "high": high, "strict": strict}
        table = presets.RELEVANCE[self.preset](**{k: v for k, v in takes.items() if k in self._arguments})
        return presets.with_choices(table, self.attention, proportional if self.pool == "proportional" else None)

    def table(self, job: Job) -> RuleTable:
        if not self.has_box:
            return self._table()
        return self._table(*box_of(self.network, job.inputs, self.low, self.high), not job.noisy)


class DeepTaylor(Relevance):
    """Deep Taylor decomposition (Montavon et al. 2017): z+ in hidden layers, z-box or w-square at the pixels.

    Attributes:
        bounded: Pixels have bounds (z-box in the first layer); else w-square.
        low: What black pixels are in the network's input, a number or one a channel; None for each image's own least
            value in each channel. ``LoadedModel.preprocess.bounds`` has both.
        high: What white pixels are.
    """

    name = "deep_taylor"
    title = "Deep Taylor"
    kind = "one-sided"
    summary = "logit by what speaks for each unit, pixels between black and white"
    answers = "Which pixels does the evidence for the class come from?"
    source = "Montavon et al. 2017"

    bounded: bool = True
    low: Bound | None = None
    high: Bound | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(isinstance(self.bounded, bool), "bounded", self.bounded, "True or False")
        for name in ("low", "high"):
            check(is_bound(getattr(self, name)), name, getattr(self, name), "a number, one for each channel, or None")

    def table(self, job: Job) -> RuleTable:
        if not self.bounded:
            return presets.deep_taylor_unbounded()
        return presets.deep_taylor(*box_of(self.network, job.inputs, self.low, self.high), not job.noisy)


class ExcitationBackprop(Relevance):
    """Excitation backprop (Zhang et al. 2016): the probability that a top-down walk by positive weights ends at a pixel.

    Attributes:
        contrastive: Subtract the probabilities that the negated class weights give (Sec. 3.3): the map is then what the
            class has more than its opposite, and sums to zero.
    """

    name = "excitation_backprop"
    title = "Excitation backprop"
    kind = "one-sided"
    summary = "where a winner-take-all walk from the class ends"
    answers = "Which pixels win where the class's neurons compete?"
    source = "Zhang et al. 2016"
    subtracts = True

    contrastive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(isinstance(self.contrastive, bool), "contrastive", self.contrastive, "True or False")

    @property
    def kind_of_map(self) -> Kind:
        return "contrast" if self.contrastive else self.kind

    def table(self, job: Job) -> RuleTable:
        table = presets.excitation_backprop()
        if not self.contrastive:
            return table
        last = _last_layers(record(self.network, job.inputs, _kept_call)[0])
        return table.where(lambda site: site.name in last, ClassContrast())

    def account(
        self, values: tuple[Tensor, ...], biases: Tensor, output: Tensor
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Probabilities: the target starts with 1, whatever its logit, unless that is 0."""
        size = torch.where(output == 0, 1, output)
        found = tuple(v / size[:, :, None, None, None] for v in values)
        whole = torch.zeros_like(output) if self.contrastive else (output != 0).to(output.dtype)
        return found, super().account(found, biases / size, whole)[1]


def _sums(values: tuple[Tensor, ...]) -> Tensor:
    """The sum of each image's maps of all inputs, (t, n)."""
    return torch.stack([v.flatten(2).sum(2) for v in values]).sum(0)


def _last_layers(recording: Recording) -> set[str]:
    """The layers with weights that no other stands behind: a network may have several heads, or call one for each image."""
    last, before = set[str](), set[int]()  # what is read on the way to a layer
    for node in reversed(recording.nodes):
        behind = before.intersection(node.outputs)
        if node.call.site.has("layer") and not behind:
            last.add(node.call.site.name)
        if node.call.site.has("layer") or behind:
            before.update(node.sources)
    return last


def _kept_call(call: Any, signals: tuple[Tensor, ...], result: Any) -> Callable[..., Any]:
    return call.without_signals().run


_OF_PRESETS = frozenset({"preset", "epsilon", "gamma", "attention", "pool"})


def is_bound(value: Any) -> bool:
    """Tell whether a value is a number, one for each channel, a tensor of real numbers, or None."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(is_number(v) for v in value)
    if isinstance(value, Tensor):
        return not value.is_meta and not value.is_complex() and value.layout == torch.strided
    return value is None or is_number(value)


__all__ = ["LRP", "DeepTaylor", "ExcitationBackprop", "Relevance", "Trace"]
