"""What to explain: a class by index or name, a contrast of classes, a unit inside the network, a function of its output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backlit._errors import InputError, check, shown
from backlit.methods.named import Named

OfOutput = Callable[[Any], Tensor]
"""``function(output)``: one number for each image, (n,) or (n, 1), of whatever the network returns."""


@dataclass(frozen=True)
class Contrast:
    """The logit of one class less that of another, or less the mean logit of the likeliest others.

    Attributes:
        label: The class that the map speaks for, an index; of a loaded model also a name.
        less: The class that it speaks against.
        top: In the place of ``less``: how many of each image's likeliest other classes to take the mean of.
    """

    label: int | str
    less: int | str | None = None
    top: int | None = None

    def __post_init__(self) -> None:
        if self.label is None:
            raise InputError(
                "target: a contrast must have the class that it speaks for, Contrast(a, b), but that is None."
            )
        if (self.less is None) == (self.top is None):
            raise InputError(
                "target: a contrast needs either the class to subtract, Contrast(a, b), or how many of the likeliest others, "
                "Contrast(a, top=5)."
            )
        whole = isinstance(self.top, int) and not isinstance(self.top, bool) and self.top > 0
        check(self.top is None or whole, "top", self.top, "a number of classes from 1")


@dataclass(frozen=True)
class Unit:
    """A unit inside the network: one number of what a module puts out, or the mean of several.

    Attributes:
        layer: The module's path, such as "features.12"; of a module that is called twice, its last call counts.
        index: Where the unit stands in the module's output (n, ...), behind the images' axis: a channel, or (channel, row,
            column). The mean is taken over the axes that are not named.
    """

    layer: str
    index: int | tuple[int, ...]

    def __post_init__(self) -> None:
        check(
            isinstance(self.layer, str) and self.layer != "",
            "layer",
            self.layer,
            "a module's path, such as 'features.12'",
        )
        whole = bool(self.places) and all(isinstance(i, int) and not isinstance(i, bool) for i in self.places)
        check(whole, "index", self.index, "a channel, or a tuple such as (channel, row, column)")

    @property
    def places(self) -> tuple[int, ...]:
        """The index as a tuple."""
        return self.index if isinstance(self.index, tuple) else (self.index,)


Score = Contrast | Unit | OfOutput


def is_score(target: object) -> bool:
    """Tell whether a target is one number of another kind than a class's logit."""
    return isinstance(target, (Contrast, Unit)) or (callable(target) and not isinstance(target, (type, Tensor)))


def classes_of(target: Contrast, loaded: Named | None) -> tuple[int, int | None]:
    """The indices of a contrast's classes; None for the second where the likeliest ones are meant.

    Raises:
        InputError: If a name is unknown, or both are the same.
    """
    index, less = (None if c is None else _index_of(c, loaded) for c in (target.label, target.less))
    assert index is not None
    if index == less:
        raise InputError(f"target: a contrast needs two different classes, but both are {target.label!r} ({index}).")
    return index, less


_MOST = 2**31 - 1  # no network has as many classes; a larger index fits into no tensor


def _index_of(label: int | str, loaded: Named | None) -> int:
    if loaded is not None:
        return loaded.class_index(label)
    if isinstance(label, bool) or not isinstance(label, int) or label > _MOST:
        raise InputError(
            f"target must be class indices for a bare network, which has no class names, but is {shown(label)}."
        )
    return label


def label_of(target: Score, loaded: Named | None) -> str:
    """Return what a target is called: "zebra − tiger", "features.12[5]", or the function's name."""
    if isinstance(target, Contrast):
        index, less = classes_of(target, loaded)
        other = f"mean of the {target.top} likeliest others" if less is None else _name(less, loaded)
        return f"{_name(index, loaded)} − {other}"
    if isinstance(target, Unit):
        return f"{target.layer}[{', '.join(map(str, target.places))}]"
    return getattr(target, "__name__", type(target).__name__).replace("<lambda>", "score")


def _name(index: int, loaded: Named | None) -> str:
    names = () if loaded is None else loaded.class_names
    return names[index] if 0 <= index < len(names) else f"class {index}"


_SIGNS = "-−"


def read_target(word: str, loaded: Named) -> int | Contrast:
    """The class of this name; where there is none, the contrast of the two classes beside a dash.

    Raises:
        InputError: If it is neither, or can be read as several contrasts.
    """
    try:
        return loaded.class_index(word)
    except InputError as error:
        halves = [(word[:i].strip(), word[i + 1 :].strip()) for i in range(1, len(word)) if word[i] in _SIGNS]
        pairs = {(_known(a, loaded), _known(b, loaded)) for a, b in halves}
        contrasts = [Contrast(a, b) for a, b in pairs if a is not None and b is not None]
        if len(contrasts) > 1:
            raise InputError(
                f"target: {word!r} can be read as {len(contrasts)} contrasts. Give indices, such as 340-292."
            ) from None
        if not contrasts:
            raise error from None
    (contrast,) = contrasts
    if contrast.label == contrast.less:
        raise InputError(f"target: a contrast needs two different classes, but {word!r} names one twice.")
    return contrast


def _known(word: str, loaded: Named) -> int | None:
    with suppress(InputError):
        return loaded.class_index(word) if word else None
    return None


def indices_of(target: object, loaded: Named | None) -> Any:
    """Return targets with class indices in the place of names, however deep they are nested; anything else as it is.

    The name of a contrast, "zebra - tiger", becomes a :class:`Contrast`.

    Raises:
        InputError: If a name is none of the network's, or is given where no names are known.
    """
    if isinstance(target, str):
        if loaded is None:
            raise InputError(
                f"target must be a class index, but is the label {shown(target)}, and a bare network has no class names. Give the "
                "method what backlit.load_model(...) returned, or look the index up: backlit.load_model(...).class_index(label)."
            )
        return read_target(target, loaded)
    if isinstance(target, (list, tuple)) and any(isinstance(part, (str, list, tuple)) for part in target):
        return [indices_of(part, loaded) for part in target]
    return target
