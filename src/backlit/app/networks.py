"""Networks that the app can explain: each loaded once, used by one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

from backlit._errors import InputError, nearest
from backlit.models import LoadedModel, load_model
from backlit.models.at_hand import AT_HAND

Loader = Callable[[], LoadedModel]


class Networks:
    """Networks by name; one is in memory at a time, and one request uses it.

    Args:
        loaders: What loads each of them.
    """

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self._loaders = dict(loaders)
        self._lock = Lock()
        self._name = ""
        self._loaded: LoadedModel | None = None

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return list(self._loaders)

    @contextmanager
    def use(self, name: str) -> Iterator[LoadedModel]:
        """Wait for the turn, and lend the network.

        Raises:
            InputError: If there is none of that name.
        """
        if name not in self._loaders:
            raise InputError(
                f"network must be one of {', '.join(self.names)}, but is {name!r}.{nearest(str(name), self.names)}"
            )
        with self._lock:
            if self._loaded is None or self._name != name:
                self._loaded = None  # before the next one takes its place in memory
                self._loaded, self._name = self._loaders[name](), name
            yield self._loaded


def networks_here(given: LoadedModel | None = None, *, device: str = "cpu") -> Networks:
    """Return the network that was given, those whose weights torch's cache holds, and the embedded one."""
    loaders: dict[str, Loader] = {} if given is None else {given.name: lambda: given}
    for name in AT_HAND:
        if name not in loaders and _is_here(name):
            loaders[name] = lambda name=name: load_model(name, device=device)
    loaders.setdefault("digits", lambda: load_model("digits", device=device))
    return Networks(loaders)


def _is_here(name: str) -> bool:
    """Tell whether torch's cache holds a network's weights, without loading them."""
    try:
        load_model(name, device="meta")
    except Exception:  # whatever stands in the way: then it is not offered
        return False
    return True
