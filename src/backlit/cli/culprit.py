"""Which image it was that the network failed on, in a batch of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from backlit._errors import BacklitError, InputError
from backlit.cli.settings import logits_of
from backlit.cli.stopping import Stopped, asked_to_stop, one_failure
from backlit.models import LoadedModel


@contextmanager
def culprit_named(loaded: LoadedModel, images: Callable[[], Iterable[tuple[str, Tensor]]]) -> Iterator[None]:
    """Name the images (c, h, w) that the network itself fails on, where something failed that nobody foresaw.

    Raises:
        InputError: If there are some. Otherwise the error is what it was.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, BacklitError | Stopped) or asked_to_stop(error):
            raise
        failed: dict[str, str] = {}
        for name, image in images():
            with one_failure(partial(failed.__setitem__, name)):
                logits_of(loaded, image[None])
        if not failed:
            raise
        name, why = next(iter(failed.items()))
        more = f" {len(failed)} images fail in all." if len(failed) > 1 else ""
        raise InputError(
            f"images: the model fails on {name!r}: {why}.{more} Leave out what it fails on, or mend it; what is done is kept."
        ) from error
