"""One fit under way: what it learns from, the file that it goes to, and what an interrupted call has left to go on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from backlit._errors import BacklitError, FileError, InputError, reason
from backlit._files import absolute
from backlit._forward import forward
from backlit._json import JsonObject
from backlit._packed import pack, unpack
from backlit._plain import network_of, versions
from backlit._store import Kind, Store, claim
from backlit._version import __version__
from backlit.inverse.artefact import Fitted, Layers, check_free, flat, names_of, nested, weights_of
from backlit.inverse.data import Batch, Data, Digest, batches, check_data

F = TypeVar("F", bound=Fitted)
_PIECE = "backlit.parts"
_FIT = Kind("fit", way_out="Ask for the same again to go on, choose another file, or remove that folder")


@dataclass(frozen=True)
class FitStep:
    """A report of how far a fit is: pass ``number`` (from 1) over the data learns ``layers``; ``samples`` are done of it."""

    number: int
    passes: int
    layers: tuple[str, ...]
    samples: int
    total: int | None


@dataclass(frozen=True)
class Piece:
    """A finished piece of a fit: tensors by layer and name, with plain facts, and the data that they were learned from."""

    layers: dict[str, dict[str, Tensor]]
    facts: JsonObject
    data: Digest


class Fitting:
    """A fit of a network to data.

    Attributes:
        model: The network.
        sample: The first two images of the data.
        digest: What tells the data from others, once a whole pass or a finished piece has said it.
        current: The same, of the images of this pass so far.
        passes: How many passes have begun.
    """

    def __init__(
        self, kind: str, model: nn.Module, data: Data, out: str | Path | None, progress: Callable[[FitStep], None]
    ) -> None:
        check_data(data)
        self.model = model
        self.digest: Digest | None = None
        self.current, self.passes = Digest(), 0
        self._kind, self._data, self._progress = kind, data, progress
        self._out = None if out is None else absolute(out)
        self._store: Store | None = None
        self.sample: tuple[Tensor, ...] = tuple(x[:2] for x in next(iter(batches(data, model))).inputs)
        _check_runs(model, self.sample)
        self._network = weights_of(model)
        self._shapes = tuple(tuple(x.shape[1:]) for x in self.sample)

    @property
    def device(self) -> torch.device:
        """The device that the fit computes on."""
        return self.sample[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's values."""
        return self.sample[0].dtype

    @contextmanager
    def begun(self, asked: JsonObject) -> Iterator[None]:
        """Keep what is finished in the folder ``OUT.parts``, new or of the same fit; it is gone when everything went well.

        Raises:
            FileError: If it cannot be written, another fit is using it, or it belongs to another fit; says what differs.
                If the file is anything but a new one or an earlier fit of the same kind.
        """
        if self._out is None:
            yield
            return
        if self._out.is_dir():
            raise FileError(f"out must be a file, but {str(self._out)!r} is a folder. Name a file in it.")
        check_free(self._out, self._kind, "out")
        plan = {
            "of": self._kind,
            **asked,
            "network": self._network,
            "input_shapes": [list(shape) for shape in self._shapes],
            "dtype": str(self.dtype),
            "model": network_of(self.model),
            "device": self.device.type,
            "versions": versions(),
        }
        with claim(f"{self._out}.parts", _FIT, plan) as self._store:
            yield
            self._store.dissolve()

    def batches(
        self, learned: Collection[str] = (), passes: int = 1, *, classes: int | None = None, done: Digest | None = None
    ) -> Iterator[Batch]:
        """Go over the data once; say after each batch how far the pass is.

        Args:
            learned: The layers that the pass learns; they may become known on the way.
            passes: At most so many passes there are.
            classes: How many there are, where the labels are used.
            done: The batches that an interrupted pass had: they are not given again.

        Raises:
            InputError: If the data are not those of the passes before, or do not begin with the batches in ``done``.
        """
        self.passes += 1
        self.current, done = Digest(), done or Digest()
        for batch in batches(self._data, self.model, classes, again=True):
            self.current.add(batch)
            if self.current.batches > done.batches:
                yield batch
                total = self.digest.samples if self.digest else None
                self._progress(FitStep(self.passes, passes, tuple(learned), self.current.samples, total))
            elif self.current.batches == done.batches:
                _check_begun(done, self.current)
        if self.current.batches < done.batches:
            _check_begun(done, self.current)
        self._check_data(self.current)

    def keep(self, name: str, layers: Layers, facts: JsonObject) -> Piece:
        """Keep what is finished, if the fit has a file."""
        piece = Piece({layer: dict(tensors) for layer, tensors in layers.items()}, dict(facts), self.current)
        if self._store is not None:
            said = {"facts": piece.facts, "layers": names_of(layers), "data": asdict(piece.data)}
            self._store.write(f"{name}.safetensors", pack(_PIECE, flat(layers), {"content": json.dumps(said)}))
        return piece

    def read(self, name: str) -> Piece | None:
        """Return what an interrupted call kept; None, with a warning, if it was damaged."""
        path = None if self._store is None else self._store.sound(f"{name}.safetensors")
        if path is None:
            return None
        way_out = "Remove it; its layer is then learned again."
        tensors, texts = unpack(path, _PIECE, argument="out", what="layers of a fit", way_out=way_out)
        said = json.loads(texts["content"])
        return Piece(nested(tensors, said["layers"]), said["facts"], Digest(**said["data"]))

    def read_finished(self, name: str) -> Piece | None:
        """Return what an interrupted call kept of whole passes.

        Raises:
            InputError: If it was learned from other data than the passes of this one.
        """
        piece = self.read(name)
        if piece is not None:
            self._check_data(piece.data)
        return piece

    def result(self, kind: type[F], layers: Layers, classes: tuple[int, ...], facts: JsonObject) -> F:
        """Return what was learned, written to the file if there is one."""
        told = {
            "model": type(self.model).__name__,
            **facts,
            "data": asdict(self.digest or self.current),
            "versions": {"backlit": __version__, "torch": str(torch.__version__)},
        }
        fitted = kind(self._kind, layers, classes, self._network, self._shapes, told)
        if self._out is not None:
            fitted.save(self._out, "out")
        return fitted

    def _check_data(self, digest: Digest) -> None:
        """Remember what every pass must see; refuse a pass that saw other data."""
        if self.digest is None:
            self.digest = digest
        elif not self.digest.same(digest):
            raise InputError(
                f"data must be the same in every pass, but one had {self.digest} and another {digest} (of values and labels, "
                "whatever the order). Switch augmentation off, or remove the folder of parts of the earlier fit."
            )


def _check_runs(model: nn.Module, sample: tuple[Tensor, ...]) -> None:
    """Refuse images that the network cannot be run on.

    Raises:
        InputError: With what torch fails with; an error of the network's own code is its author's to read.
    """
    try:
        forward(model, *sample)
    except BacklitError:
        raise
    except RuntimeError as error:  # as torch says that shapes do not fit
        shapes = ", ".join(str(tuple(x.shape)) for x in sample)
        raise InputError(
            f"data: images of shape {shapes} do not run through the model: {reason(error)}. Check the number of channels and "
            "the size that the model expects."
        ) from error


def _check_begun(done: Digest, digest: Digest) -> None:
    """Refuse other batches than those that an interrupted pass had."""
    if not digest.same(done):
        raise InputError(
            f"data must be the same, in the same batches, as before the interruption, but {done.batches} batches held "
            f"{done}, and now {digest} (of values and labels). Switch shuffling and augmentation off, or remove the "
            "folder of parts."
        )
