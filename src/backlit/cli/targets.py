"""What to explain of an image: classes by name or index, the likeliest ones, and one class against another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from backlit._errors import InputError
from backlit.attribution import Attribution
from backlit.cli.settings import Chosen
from backlit.methods.target import Contrast, classes_of, read_target
from backlit.models import LoadedModel

_LIKELIEST = "top:"
_AGAINST_LIKELIEST = re.compile(r"(.+?)\s*[-−]\s*top:(\d+)")
_MORE = (
    "Several go by comma; top:K are the K likeliest classes, A-B is one class against another, A-top:K against the mean of the K "
    "likeliest others."
)


@dataclass(frozen=True)
class Target:
    """A class to explain; with ``less``, its logit less that of another class, or with ``top`` less the likeliest others' mean."""

    index: int
    less: int | None = None
    top: int | None = None

    @property
    def contrast(self) -> Contrast | None:
        """The contrast that it is; None for a class."""
        return None if self.less is None and self.top is None else Contrast(self.index, self.less, self.top)

    @property
    def key(self) -> str:
        """Return what files and rows call it."""
        against = self.less if self.top is None else f"top{self.top}"
        return str(self.index) if against is None else f"{self.index}-{against}"

    def label(self, names: tuple[str, ...]) -> str:
        """Its name, where the classes have these."""
        if self.top is not None:
            return f"{names[self.index]} − mean of the {self.top} likeliest others"
        return names[self.index] if self.less is None else f"{names[self.index]} − {names[self.less]}"


Choice = Callable[[Tensor], list[Target]]
"""What picks targets for one image by its logits (classes,)."""


def targets(text: str, loaded: LoadedModel) -> Choice:
    """Return what a command line's words for targets pick, each target once, in the order of the words.

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
    against = _AGAINST_LIKELIEST.fullmatch(word)
    target = _target(word, loaded) if against is None else _against_likeliest(against[1], int(against[2]), loaded)
    return lambda logits: [target]


def _against_likeliest(label: str, count: int, loaded: LoadedModel) -> Target:
    """The class of this name, less the mean of as many of the likeliest others."""
    others = len(loaded.class_names) - 1
    if not 1 <= count <= others:
        raise InputError(
            f"target must have a number of other classes from 1 to {others} behind top:, but it is {count}."
        )
    return Target(loaded.class_index(label), top=count)


def _target(word: str, loaded: LoadedModel) -> Target:
    """The class of this name; where there is none, the contrast of the two classes beside a dash."""
    try:
        target = read_target(word, loaded)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith("target: a contrast") else f"{error} {_MORE}") from None
    if not isinstance(target, Contrast):
        return Target(target)
    return Target(*classes_of(target, loaded))


def explained(
    chosen: Chosen, loaded: LoadedModel, x: Tensor, asked: list[Target], options: dict
) -> dict[Target, Attribution]:
    """The targets' maps of one image (1, c, h, w): of all classes from one forward pass, of each contrast from its own."""
    method = chosen.method(loaded, **options)
    classes = [target for target in asked if target.contrast is None]
    found: dict[Target, Attribution] = {}
    if classes:
        maps = method.each(x, [[target.index for target in classes]])
        found = dict(zip(classes, maps, strict=True))
    for target in asked:
        if target.contrast is not None:
            found[target] = method(x, target.contrast)
    return {target: found[target] for target in asked}
