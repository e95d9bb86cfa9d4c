"""How far one map can be trusted: what it accounts for, what is lost, and whether there is anything in it at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from backlit.attribution import Attribution
from backlit.methods.base import Kind
from backlit.methods.dmbp import LEAST_SHARE
from backlit.report.kinds import check_one, drawn, kind_of

NEAR_NOTHING = LEAST_SHARE
"""Share of what a map is to account for, below which it is shown as near nothing: where DMBP warns, too."""
LEAST_PROBABILITY = 0.001
"""A class below it is one that the network does not see: a guess among ImageNet's thousand classes gives each as much."""
LEAST_LOGIT = 0.001
"""A logit below it, of a network without class probabilities: it moves the odds by a thousandth."""
ADDS_UP = 0.1
"""How far from 1 the share of a map may be that is said to add up."""
FAINTNESS = 0.75
"""How much of its colour a map loses that is near nothing: the rest shows where the nothing lies."""


@dataclass(frozen=True)
class Account:
    """What a method promises of a map, and how far it is kept.

    Attributes:
        share: How much of what is promised the map accounts for: 1 is all of it.
        total: The map's sum over what it is to sum to.
        said: A sentence on both.
        lost: How much is nowhere, neither in the map nor where the method says; None where the method says nothing.
        whole: What the share is a share of, in words.
        by_size: The share is one of magnitudes, which do not cancel.
    """

    share: float
    total: float
    said: str
    lost: float | None = None
    whole: str = "the logit"
    by_size: bool = False


@dataclass(frozen=True)
class Trust:
    """What a reader must know of one map before believing it.

    Attributes:
        word: The verdict in a few words.
        account: A sentence on what the map accounts for.
        reasons: Sentences that say why there is near nothing in the map; empty where there is something.
        faintness: How much of its colour the map is to lose, from 0 to 1: above 0 where it is near nothing.
        share: How much of what the method promises the map accounts for (1 is all of it); None where it promises nothing.
        lost: How much of that is nowhere; None where the method does not say.
        whole: What the share is a share of, in words; None where there is no share.
    """

    word: str
    account: str
    reasons: tuple[str, ...] = ()
    faintness: float = 0.0
    share: float | None = None
    lost: float | None = None
    whole: str | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """All sentences, the most important first."""
        return (*self.reasons, *([self.account] if self.account else []))

    @property
    def near_nothing(self) -> bool:
        """Tell whether the map is to be shown as near nothing."""
        return self.faintness > 0


def trust(explanation: Attribution) -> Trust:
    """Say how far a map can be trusted.

    Args:
        explanation: Of one image.

    Raises:
        InputError: If it is of several images, or of none.
    """
    check_one(explanation)
    heat = drawn(explanation)
    if not bool(heat.isfinite().all()):
        return Trust("No map.", "", ("The map holds NaN or infinity.",), FAINTNESS)
    account = _account(explanation)
    reasons = tuple(_nothing(explanation, account))
    word = "Near nothing." if reasons else _word(explanation, account)
    share, lost, whole = (None, None, None) if account is None else (account.share, account.lost, account.whole)
    said = _NO_PROMISE[kind_of(explanation)][1] if account is None else account.said
    other = ("the logit", f"the {score_word(explanation)}")
    said, whole = said.replace(*other), whole and whole.replace(*other)
    reasons = tuple(reason.replace(*other) for reason in reasons)
    return Trust(word, said, reasons, FAINTNESS if reasons else 0.0, share, lost, whole)


def is_contrast(explanation: Attribution) -> bool:
    """Tell whether what is explained is the logit of one class less that of another."""
    return "less" in explanation.provenance


def score_word(explanation: Attribution) -> str:
    """Say what is explained, in a word or two: a logit, the difference of two, or another number of the network."""
    if is_contrast(explanation):
        return "logits' difference"
    return "score" if "score" in explanation.provenance else "logit"


def _nothing(explanation: Attribution, account: Account | None) -> list[str]:
    """Why there is near nothing in a finite map; empty where there is something."""
    reasons = []
    mass, logit = float(drawn(explanation).double().abs().sum()), float(explanation.output[0])
    if mass == 0:
        reasons.append("The map is zero everywhere.")
    elif account is not None and abs(account.share) < NEAR_NOTHING and (account.by_size or mass < abs(logit)):
        reasons.append(f"This map explains {percent(account.share)} of {account.whole}.")
    if explanation.probability is None:
        if abs(logit) < LEAST_LOGIT:
            reasons.append(f"The score to explain is near nothing itself: {logit:.2g}.")
    elif float(explanation.probability[0]) < LEAST_PROBABILITY:
        reasons.append(f"The network does not see this class: p = {float(explanation.probability[0]):.2f}.")
    return reasons


def _word(explanation: Attribution, account: Account | None) -> str:
    """The verdict on a map that is more than nothing."""
    if account is None:
        return _NO_PROMISE[kind_of(explanation)][0]
    if account.lost is not None and abs(account.lost) > NEAR_NOTHING:
        return "Leaks."
    if abs(account.total - 1) <= ADDS_UP:
        return "Adds up."
    if 0 < account.total < 1:
        return "Adds up in part."
    return "Does not add up." if account.lost is None else "Adds up with what is not in the map."


_NO_PROMISE: dict[Kind | None, tuple[str, str]] = {
    None: ("Not known.", "Of this method it is not known what its map promises."),
    "signed": ("Shows where, not how much.", "This method promises no share of the logit."),
    "one-sided": ("Shows where, not how much.", "This method promises no share of the logit."),
    "magnitude": ("Shows where, not how much.", "This method promises no share of the logit, and no sign."),
    "contrast": ("Compares.", "The map says what this class has more than others: it is no share of the logit."),
    "noise": ("Says nothing.", "A baseline: what a map is worth that looks at nothing."),
    "signal": ("Estimates.", "The map estimates what the score follows: it is no share of the logit."),
}


def _account(explanation: Attribution) -> Account | None:
    """The promise of the method, and how it was kept; None where it makes none."""
    if kind_of(explanation) in (None, "contrast", "signal", "magnitude", "noise"):
        return None
    numbers = {name: float(value[0]) for name, value in explanation.completeness.items()}
    logit, total = float(explanation.output[0]), float(explanation.values[0].double().sum())
    return next((made(numbers, logit, total) for names, made in _ACCOUNTS if names <= numbers.keys()), None)


def _of_difference(n: dict[str, float], logit: float, total: float) -> Account:
    """DeepLIFT: the map sums to the logit's difference from a reference."""
    whole = f"the logit's difference from its reference ({n['difference']:.3g})"
    lost = _over(n["gap"], n["difference"])
    said = f"The map accounts for {percent(n['ratio'])} of {whole}; it misses {percent(lost)}."
    return Account(n["ratio"], n["ratio"], said, lost, whole)


def _of_relevance(n: dict[str, float], logit: float, total: float) -> Account:
    """LRP and its kin: the map and the biases hold the logit; of excitation backprop, the probability 1 that it starts with."""
    start = n["relevance"] + n["biases"] + n["gap"]
    whole = "the logit" if math.isclose(start, logit, rel_tol=1e-3, abs_tol=1e-6) else "the walk from the class"
    lost, biases = _over(n["gap"], start), _over(n["biases"], start)
    said = f"The map accounts for {percent(n['ratio'])} of {whole}, the biases for {percent(biases)}; {percent(lost)} is lost."
    return Account(n["ratio"], n["ratio"], said, lost, whole)


def _of_masks(n: dict[str, float], logit: float, total: float) -> Account:
    """DMBP: y+ and y- hold the pixels' part and the biases'; with the nuisance they are the logit."""
    parts, own = (abs(n["positive" + end]) + abs(n["negative" + end]) for end in ("", "_image"))
    share, times = _over(own, parts), _over(total, logit)
    said = (
        f"The pixels hold {percent(share)} of y+ and y−, the biases the rest. The map sums to {_times(times)} the logit; "
        f"{_times(_over(n['nuisance'], logit))} are nuisance, left out."
    )
    return Account(share, times, said, None, "y+ and y−", by_size=True)


def _of_input(n: dict[str, float], logit: float, total: float) -> Account:
    """Gradient times input: what the biases give is not in the map."""
    share, biases = _over(total, logit), _over(n["biases"], logit)
    return Account(share, share, f"The map sums to {percent(share)} of the logit, the biases to {percent(biases)}.")


def _of_terms(n: dict[str, float], logit: float, total: float) -> Account:
    """FullGrad's bare terms, of which some have no place in the image."""
    share, lost, unplaced = (_over(part, logit) for part in (total, n["gap"], n["unplaced"]))
    said = f"The map accounts for {percent(share)} of the logit; {percent(unplaced)} has no place, {percent(lost)} is lost."
    return Account(share, share, said, lost)


def _of_biases(n: dict[str, float], logit: float, total: float) -> Account:
    """BBp: the map is what the biases give to the logit."""
    share, lost = _over(total, n["biases"]), _over(n["gap"], n["biases"])
    whole = "the biases' part of the logit"
    said = f"The map accounts for {percent(share)} of {whole}, which is {percent(_over(n['biases'], logit))} of it."
    return Account(share, share, said, lost, whole)


_ACCOUNTS: tuple[tuple[frozenset[str], Callable[[dict[str, float], float, float], Account]], ...] = (
    (frozenset(("difference", "ratio", "gap")), _of_difference),
    (frozenset(("relevance", "ratio", "biases", "gap")), _of_relevance),
    (frozenset(("positive", "negative", "nuisance", "positive_image", "negative_image")), _of_masks),
    (frozenset(("unplaced", "gap")), _of_terms),
    (frozenset(("biases", "gap")), _of_biases),
    (frozenset(("biases",)), _of_input),
)
"""What a method's numbers promise, by their names: the first whose names are all there."""


def _over(part: float, whole: float) -> float:
    """Part over whole; of nothing, all of it where the part is nothing, too."""
    if whole == 0:
        return 1.0 if part == 0 else math.inf
    return part / whole


def percent(share: float) -> str:
    """A share in three digits: 99.8 %, 0.01 %, under 0.01 %, 16 times."""
    size = abs(share)
    if not math.isfinite(share):
        return "no finite share"
    if size > 10:
        return f"{_number(share)} times"
    if 0 < size < 5e-5:
        return "under 0.01 %"
    return f"{share * 100:.2f} %".replace("-", "−") if 0 < size < 0.01 else f"{_number(share * 100)} %"


def _times(share: float) -> str:
    return "no finite share of" if not math.isfinite(share) else f"{_number(share)} times"


def _number(value: float) -> str:
    """Three digits, or all of a whole part that has more; without an exponent, and 0 without a sign."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "0" if value == 0 else text.replace("-", "−")
