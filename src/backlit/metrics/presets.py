"""Options by the name of those who published them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from backlit._errors import check_word
from backlit.metrics.perturbation import Perturbation

Preset = Literal["dmbp", "rise", "latec"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


class Presets(Perturbation):
    """A protocol with presets: an option that is not given takes the preset's value, one that is given its own.

    Attributes:
        preset: Whose constants: "dmbp", the defaults; "rise", of Petsiuk et al.'s published code; "latec", of Klein et al.'s
            for ImageNet. What is given beside it counts before it.
    """

    presets: ClassVar[Mapping[Preset, Mapping[str, object]]]
    """The options of each preset that are not the defaults."""

    preset: Preset = "dmbp"

    if not TYPE_CHECKING:  # a type checker sees the dataclass' own __init__ alone

        def __init_subclass__(cls, **keywords: Any) -> None:
            super().__init_subclass__(**keywords)
            plain = cls.__init__

            @wraps(plain)
            def init(self: Presets, **given: Any) -> None:
                plain(self, **_with_preset(cls, given))

            cls.__init__ = init

    @property
    def usual(self) -> Mapping[str, object]:
        return self.presets[self.preset]

    @property
    def settings(self) -> tuple[str, ...]:
        return self.preset, *(said for said in super().settings if not said.startswith("preset="))


def _with_preset(cls: type[Presets], given: Mapping[str, Any]) -> dict[str, Any]:
    name = given.get("preset", "dmbp")
    check_word("preset", name, PRESETS)
    own = dict(cls.presets[name])
    if given.get("steps") is not None:  # the same in another way
        own.pop("pixels_per_step", None)
    return {**own, **given}
