"""What to explain of an image: classes by name or index, the likeliest ones, and one class against another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backlit._errors import InputError
from backlit.attribution import Attribution
from backlit.cli.settings import Chosen
from backlit.methods import TRGBP, ExcitationBackprop, FittedMethod
from backlit.models import LoadedModel
from backlit.models.contrast import contrast

_LIKELIEST = "top:"
_SIGNS = "-−"
_MORE = "Several go by comma; top:K are the K likeliest classes, A-B is one class against another."


@dataclass(frozen=True)
class Target:
    """A class to explain; with ``less``, its logit less that of another class."""

    index: int
    less: int | None = None

    @property
    def key(self) -> str:
        """What files and rows call it."""
        return str(self.index) if self.less is None else f"{self.index}-{self.less}"

    def label(self, names: tuple[str, ...]) -> str:
        """Its name, where the classes have these."""
        return names[self.index] if self.less is None else f"{names[self.index]} − {names[self.less]}"


Choice = Callable[[Tensor], list[Target]]
"""What picks targets for one image by its logits (classes,)."""


def targets(text: str, loaded: LoadedModel) -> Choice:
    """What a command line's words for targets pick, each target once, in the order of the words.

    Raises:
        InputError: If there is a word that names no class of the model, or several.
    """
    choices = list(_choices(text, loaded))
    if not choices:
        raise InputError(f"target must name at least one class, but is {text!r}. {_MORE}")
    return lambda logits: list(dict.fromkeys(target for choice in choices for target in choice(logits)))


def _choices(text: str, loaded: LoadedModel) -> Iterator[Choice]:
    """What each word picks."""
    words = text.split(",")
    while words:
        taken, choice = _first(words, loaded)
        words = words[taken:]
        if choice is not None:
            yield choice


def _first(words: list[str], loaded: LoadedModel) -> tuple[int, Choice | None]:
    """What the first words pick, and how many they are: a class's name may hold commas, so the longest name is taken."""
    for count in range(len(words), 1, -1):
        with suppress(InputError):
            return count, _choice(",".join(words[:count]).strip(), loaded)
    return 1, _choice(words[0].strip(), loaded) if words[0].strip() else None


def _choice(word: str, loaded: LoadedModel) -> Choice:
    if word.startswith(_LIKELIEST):
        count, classes = word.removeprefix(_LIKELIEST), len(loaded.class_names)
        if not count.isdecimal() or not 1 <= int(count) <= classes:
            raise InputError(f"target must be a class, or top:K with K from 1 to {classes}, but is {word!r}.")
        return lambda logits: [Target(index) for index in logits.topk(int(count)).indices.tolist()]
    target = _target(word, loaded)
    return lambda logits: [target]


def _target(word: str, loaded: LoadedModel) -> Target:
    """The class of this name; where there is none, the contrast of the two classes beside a dash."""
    try:
        return Target(loaded.class_index(word))
    except InputError as error:
        halves = [(word[:i].strip(), word[i + 1 :].strip()) for i in range(1, len(word)) if word[i] in _SIGNS]
        pairs = [(_index(a, loaded), _index(b, loaded)) for a, b in halves]
        found = {Target(a, b) for a, b in pairs if a is not None and b is not None}
        if len(found) > 1:
            raise InputError(
                f"target: {word!r} can be read as {len(found)} contrasts. Give indices, such as 340-292."
            ) from None
        if not found:
            raise InputError(f"{error} {_MORE}") from None
    target = found.pop()
    if target.index == target.less:
        raise InputError(f"target: a contrast needs two different classes, but {word!r} names one twice.")
    return target


def _index(word: str, loaded: LoadedModel) -> int | None:
    try:
        return loaded.class_index(word) if word else None
    except InputError:
        return None


def explained(
    chosen: Chosen, loaded: LoadedModel, x: Tensor, asked: list[Target], options: dict
) -> dict[Target, Attribution]:
    """The targets' maps of one image (1, c, h, w): of all classes from one forward pass, of each contrast from its own.

    Raises:
        InputError: If the method cannot explain a contrast.
    """
    classes = [target for target in asked if target.less is None]
    found: dict[Target, Attribution] = {}
    if classes:
        maps = chosen.method(loaded, **options).each(x, [[target.index for target in classes]])
        found = dict(zip(classes, maps, strict=True))
    for target in asked:
        if target.less is not None:
            found[target] = _contrasted(chosen, loaded, x, target, options)
    return {target: found[target] for target in asked}


def _contrasted(chosen: Chosen, loaded: LoadedModel, x: Tensor, target: Target, options: dict) -> Attribution:
    for kind, why in _NO_CONTRAST:
        if issubclass(chosen.method, kind):
            raise InputError(
                f"target: {chosen.method.title} cannot explain a contrast ({target.key}): {why}. Explain its two classes, or "
                "leave the method out."
            )
    assert target.less is not None
    both = contrast(loaded, target.index, target.less)
    explanation: Attribution = chosen.method(both, **options)(x, 0)
    return replace(  # the class that it speaks for; of one output alone there is no probability
        explanation,
        target=torch.full_like(explanation.target, target.index),
        probability=None,
        provenance={**explanation.provenance, "model": type(loaded.network).__name__, "less": target.less},
    )


_NO_CONTRAST = (
    (FittedMethod, "it was learned for the network's own outputs"),
    (
        ExcitationBackprop,
        "it starts from a probability, not from a logit; its option contrastive=True is a contrast of its own",
    ),
    (TRGBP, "it contrasts a class with the likeliest others itself, by its option contrast"),
)
