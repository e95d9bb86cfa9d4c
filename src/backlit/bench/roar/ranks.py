"""The order of each image's pixels by its map, kept on the disk in blocks, and the removal of the first of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt16
from torch import Tensor

from backlit._errors import FileError, InputError
from backlit._json import JsonObject
from backlit._packed import pack, unpack
from backlit._random import stable_seed
from backlit._store import Store
from backlit.attribution import Attribution, Reduce
from backlit.metrics.examples import Examples
from backlit.metrics.ranking import pixel_ranks

Explain = Callable[[Tensor, Tensor], Attribution | Tensor]
"""Maps (n, c, h, w) of images (n, c, h, w) and their classes (n,); every method is one."""
OnBlock = Callable[[int], None]

BLOCK = 500  # images that are explained and written together: what an interruption costs at most
LARGEST = 2**16  # pixels, whose places fit into 16 bits
_FILE = "backlit.ranks"


def image_ranks(heat: Float[Tensor, "n p"], seed: int, *, ascending: bool = False) -> Int64[Tensor, "n p"]:
    """Return the place of each pixel in the order of its map, 0 first; equal pixels in an order drawn for each image anew."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(heat.shape, generator=generator, dtype=torch.float64).argsort(-1)
    return pixel_ranks(heat.cpu(), drawn, ascending=ascending)


def replace_first(
    images: Float[Tensor, "n c h w"], ranks: UInt16[Tensor, "n p"], count: int, value: Float[Tensor, " c"]
) -> Float[Tensor, "n c h w"]:
    """Return the images with ``value`` in all channels of the pixels whose place is below ``count``."""
    removed = (ranks.to(images.device, torch.int32) < count).view(len(images), 1, *images.shape[-2:])
    return torch.where(removed, value.to(images)[:, None, None], images)


@dataclass(frozen=True)
class RankStore:
    """Ranks of all methods in a folder, one file a method, part of the data and block of images.

    Attributes:
        store: The folder that they are in.
        reduce: How the channels of a map become one number a pixel.
        ascending: The smallest value comes first.
        seed: Of the order of equal pixels.
    """

    store: Store
    reduce: Reduce
    ascending: bool
    seed: int

    def missing(self, method: str, kind: JsonObject, part: str, data: Examples) -> bool:
        """Tell whether a block of the method is still to be made.

        Raises:
            FileError: If a block is there, but of a method with other options.
        """
        there = [self._read(method, part, block.start) for block in _blocks(data)]
        for texts, _ in filter(None, there):
            if json.loads(texts["method"]) != kind:
                raise FileError(
                    f"out: {str(self.store.path)!r} holds ranks of {method!r} as {texts['method']}, and now it is "
                    f"{json.dumps(kind)}. Choose another folder, or another name for the method, such as {method + '-2'!r}."
                )
        return None in there

    def make(
        self, method: str, kind: JsonObject, explain: Explain, part: str, data: Examples, on_block: OnBlock
    ) -> None:
        """Explain the blocks that are not there yet.

        Raises:
            InputError: If a map does not fit its image or is not finite.
        """
        for block in _blocks(data):
            if self._read(method, part, block.start) is None:
                some = data[block]
                heat = _heat(method, explain(some.inputs, some.target), some, self.reduce)
                ranks = image_ranks(heat, stable_seed("ties", self.seed, part, block.start), ascending=self.ascending)
                constant = int((heat.amax(1) == heat.amin(1)).sum())
                texts = {"method": json.dumps(kind), "constant": str(constant)}
                self.store.write(
                    _name(method, part, block.start), pack(_FILE, {"ranks": ranks.to(torch.uint16)}, texts)
                )
            on_block(block.stop)

    def load(self, method: str, part: str, data: Examples) -> UInt16[Tensor, "n p"]:
        """Return the ranks of all images of a part of the data."""
        return torch.cat([self._there(method, part, block.start)[1] for block in _blocks(data)])

    def constant(self, method: str, part: str, data: Examples) -> int:
        """Count the images whose map has the same value everywhere: their ranks are chance."""
        return sum(int(self._there(method, part, block.start)[0]["constant"]) for block in _blocks(data))

    def _there(self, method: str, part: str, start: int) -> tuple[dict[str, str], Tensor]:
        block = self._read(method, part, start)
        if block is None:
            raise FileError(
                f"out: {_name(method, part, start)} in {str(self.store.path)!r} was lost or changed while it was used. Ask for "
                "the same again, and it is made again."
            )
        return block

    def _read(self, method: str, part: str, start: int) -> tuple[dict[str, str], Tensor] | None:
        """Read the texts and ranks of a block; None if it is not there as it was written."""
        path = self.store.sound(_name(method, part, start))
        if path is None:
            return None
        way_out = "Delete it, and it is made again."
        tensors, texts = unpack(path, _FILE, argument="out", what="ranks of this version", way_out=way_out)
        return texts, tensors["ranks"]


def _name(method: str, part: str, start: int) -> str:
    return f"ranks/{method}/{part}-{start:06d}.safetensors"


def _blocks(data: Examples) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, len(data))) for start in range(0, len(data), BLOCK))


def _heat(method: str, given: Attribution | Tensor, data: Examples, reduce: Reduce) -> Float[Tensor, "n p"]:
    values = given.values if isinstance(given, Attribution) else given
    n, _, height, width = data.inputs.shape
    if values.dim() != 4 or len(values) != n or values.shape[-2:] != (height, width):
        raise InputError(
            f"methods[{method!r}] must give maps (n, c, h, w) = ({n}, c, {height}, {width}) like the images, but gave shape "
            f"{tuple(values.shape)}."
        )
    finite = values.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        wrong = torch.where(~finite)[0].tolist()
        which = ", ".join(str(data.names[i]) for i in wrong[:3])
        raise InputError(
            f"methods[{method!r}] must give finite maps, but gave NaN or Inf for {which} ({len(wrong)} of {n} images of this "
            "block). Leave the method out, or change its options; what was computed before is kept."
        )
    maps = given if isinstance(given, Attribution) else Attribution(values, data.target, data.target.to(values.dtype))
    return maps.heatmap(reduce).detach().flatten(1)
