"""Where networks and images of the papers are on this machine: a TOML file, as plans have them, each with the paper's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from backlit._errors import InputError
from backlit.bench.papers.exhibit import EMBEDDED
from backlit.bench.suite import PlannedData, PlannedNetwork, networks_and_data, read_toml


@dataclass(frozen=True)
class Places:
    """Networks and images by the names that the papers' tables call them.

    Attributes:
        networks: By name, "resnet50".
        data: By name: "imagenet" (test images, with boxes if there are any), "voc", "fit" (what methods learn from).
    """

    networks: Mapping[str, PlannedNetwork] = field(default_factory=dict)
    data: Mapping[str, PlannedData] = field(default_factory=dict)

    def network(self, name: str) -> PlannedNetwork | None:
        """Return a network; None if it is not here."""
        return PlannedNetwork(EMBEDDED) if name == EMBEDDED else self.networks.get(name)

    def images(self, network: str, name: str, limit: int | None) -> PlannedData | None:
        """Return so many images for a network; None if they are not here."""
        if network == EMBEDDED:
            return PlannedData(limit=limit)
        data = self.data.get(name)
        return None if data is None else replace(data, limit=limit)


def read_places(path: str | Path) -> Places:
    """Read ``[[networks]]`` and ``[[data]]``, as plans have them, from a TOML file.

    Raises:
        FileError: If the file is missing, or no TOML.
        InputError: If an entry is unknown, of the wrong kind, or two have one name.
    """
    path = Path(path)
    told = read_toml("places", path)
    networks, data = networks_and_data(told, path.parent)
    if told:
        raise InputError(f"places: {str(path)!r} must hold [[networks]] and [[data]] alone, but has {', '.join(told)}.")
    names = [one.name or one.model for one in networks], [one.name or one.read for one in data]
    for axis, own in zip(("networks", "data"), names, strict=True):
        if len(set(own)) < len(own):
            raise InputError(f"places: {axis} must have different names, but are {', '.join(own)}. Give each a name.")
    return Places(dict(zip(names[0], networks, strict=True)), dict(zip(names[1], data, strict=True)))
