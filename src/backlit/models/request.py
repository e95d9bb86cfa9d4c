"""What was asked of `load_model`, as each source of models sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from backlit._errors import FileError, InputError
from backlit.models.download import Told
from backlit.models.loaded import LoadedModel, numbered_classes
from backlit.models.preprocess import Preprocess, PreprocessOptions
from backlit.models.weights import PREPROCESS_KEY, Weights, check_finite, load_state

RANDOM = "random"
_SEED = 0


@dataclass(frozen=True)
class Request:
    """A model's name, a state read from a file (or the wish for a random one), and changes to the preprocessing.

    ``told`` is there if the published weights may be fetched, and is told of it.
    """

    name: str
    weights: Weights | None = None
    random: bool = False
    options: PreprocessOptions = field(default_factory=PreprocessOptions)
    told: Told | None = None

    def preprocess(self, own: Preprocess) -> Preprocess:
        """Return the model's own preprocessing, changed by the weights file and then by the caller."""
        if self.weights is not None:
            try:
                own = self.weights.preprocess.apply(own)
            except InputError as error:
                raise FileError(
                    f"weights: {self.weights.source!r}: its metadata entry {PREPROCESS_KEY!r} cannot be used: {error}"
                ) from error
        return self.options.apply(own)

    def class_names(self, known: tuple[str, ...], count: int) -> tuple[str, ...]:
        """Return ``count`` names: the weights file's, else the known ones if they are as many, else numbers."""
        named = self.weights.class_names if self.weights is not None else ()
        if named and len(named) != count:
            raise FileError(
                f"weights: {self.weights and self.weights.source} names {len(named)} classes, but {self.name} has "
                f"{count} outputs."
            )
        return named or (known if len(known) == count else numbered_classes(count))

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Call ``make`` with a fixed seed: the same random weights each time, and nobody else's random state moved."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            return make()

    def finish(
        self, network: nn.Module, own: Preprocess, names: tuple[str, ...], ignored: tuple[str, ...] = ()
    ) -> LoadedModel:
        """Load the asked weights, if any, into ``network``; ``ignored`` are prefixes of keys it does without."""
        if self.weights is not None:
            load_state(network, self.weights, ignored)
        check_finite(network.state_dict())
        return LoadedModel(self.name, network.eval(), self.preprocess(own), names)

    def refuse_untrained(self, what: str, *ways_out: str) -> None:
        """Raise InputError unless a state was given or a random one asked for."""
        if self.weights is None and not self.random:
            raise InputError(
                f"weights: {what}, and random weights are not taken unasked. Ways out: "
                + "; ".join(["weights='FILE.safetensors'", *ways_out, f"weights={RANDOM!r} for speed tests only"])
                + "."
            )
