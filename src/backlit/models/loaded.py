"""A network ready to be explained, with what its inputs need and what its outputs mean."""

from __future__ import annotations

import json
import operator
import re
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from backlit._errors import InputError, shown
from backlit._files import write_whole
from backlit.models.preprocess import Preprocess
from backlit.models.weights import CLASSES_KEY, PREPROCESS_KEY

_NEAREST = 3


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network in eval mode, its preprocessing, and one name a class, in the order of its outputs."""

    name: str
    network: nn.Module
    preprocess: Preprocess
    class_names: tuple[str, ...]

    def placed(self, images: Tensor) -> Tensor:
        """Return images where the network is and as precise as it is: as its first floating-point parameter or buffer.

        A network without any takes them as they are.
        """
        held = chain(self.network.parameters(), self.network.buffers())
        home = next((tensor for tensor in held if tensor.is_floating_point()), images)
        return images.to(home.device, home.dtype)

    def class_index(self, label_or_index: str | int) -> int:
        """Return the output's index for a class name (any case) or an index (``281`` or ``"281"``).

        Raises:
            InputError: an unknown name (the nearest are listed), one that several classes share, or an index out of
                range.

        """
        if isinstance(label_or_index, str):
            return self._index_of(label_or_index)
        try:
            if isinstance(label_or_index, bool):
                raise TypeError
            index = operator.index(label_or_index)
        except TypeError:
            raise InputError(
                f"target: must be a class name or an index, found {shown(label_or_index)} ({type(label_or_index).__name__})."
            ) from None
        return self._in_range(index)

    def _in_range(self, index: int) -> int:
        count = len(self.class_names)
        if not 0 <= index < count:
            raise InputError(f"target: {self.name} has {count} classes, 0..{count - 1}; found {index}.")
        return index

    def _index_of(self, label: str) -> int:
        wanted = _plain(label)
        names = [_plain(name) for name in self.class_names]
        matches = [index for index, name in enumerate(names) if name == wanted]
        if not matches:  # "tabby" for a class named "tabby, tabby cat"
            matches = [index for index, name in enumerate(names) if wanted in name.split(", ")]
        if len(matches) > 1:
            listed = ", ".join(map(str, matches))
            raise InputError(f"target: {label!r} names {len(matches)} classes of {self.name}; give an index: {listed}.")
        if matches:
            return matches[0]
        if wanted.lstrip("+-").isdecimal():
            return self._in_range(int(wanted))
        containing = [i for i, name in enumerate(names) if wanted and wanted in re.findall(r"\w+", name)]
        similar = [names.index(name) for name in get_close_matches(wanted, names, n=_NEAREST, cutoff=0.6)]
        near = list(dict.fromkeys([*containing, *similar]))[:_NEAREST]
        hint = ", ".join(f"{self.class_names[i]!r} ({i})" for i in near)
        raise InputError(
            f"target: {self.name} has no class {shown(label)}."
            + (f" The nearest: {hint}." if near else "")
            + f" Give one of its {len(names)} class names or an index."
        )

    def save(self, path: str | Path) -> None:
        """Write the state, the preprocessing and the class names as one safetensors file that `load_model` reads.

        Raises:
            FileError: the file cannot be written.

        """
        metadata = {
            PREPROCESS_KEY: json.dumps(asdict(self.preprocess)),
            CLASSES_KEY: json.dumps(self.class_names),
        }
        state = {name: value.detach().cpu().clone().contiguous() for name, value in self.network.state_dict().items()}
        write_whole(path, save(state, metadata))


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def numbered_classes(count: int) -> tuple[str, ...]:
    """Return ``class 0``, ``class 1``, ... for outputs whose names nobody gave."""
    return tuple(f"class {index}" for index in range(count))
