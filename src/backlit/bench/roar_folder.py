"""The folder of one ROAR experiment: whose it is, and what it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from backlit._errors import FileError
from backlit._files import make_folder, write_whole
from backlit._fingerprint import fingerprint
from backlit.bench.journal import Journal
from backlit.bench.roar_result import RoarRow
from backlit.bench.roar_setup import RoarData, RoarOptions
from backlit.bench.training import MakeNetwork, new_network
from backlit.metrics.examples import Examples

PLAN, RUNS, NETWORK, RESULT, TABLE = "roar.json", "runs.jsonl", "network.safetensors", "result.json", "table.txt"


def protocol_of(data: RoarData, make_network: MakeNetwork, options: RoarOptions) -> dict[str, Any]:
    """All that a number depends on beside its method, fraction and seed."""
    settings = asdict(options)
    for name in ("fractions", "seeds", "mask_only"):  # of which more can be asked for later
        del settings[name]
    network = new_network(make_network, options.seeds[0], data.train.inputs.device)
    return {
        "options": {**settings, "first_seed": options.seeds[0]},
        "data": {name: {"images": len(part), "fingerprint": _data_hash(part)} for name, part in data.parts().items()},
        "network": {
            "architecture": str(network),
            "parameters": sum(p.numel() for p in network.parameters()),
            "untrained": fingerprint(network),
        },
        "device": data.train.inputs.device.type,
    }


def claim(folder: Path, protocol: dict[str, Any]) -> None:
    """Make the folder this experiment's, or see that it is."""
    path = folder / PLAN
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise FileError(f"out: {str(folder)!r} holds something else than ROAR. Choose a new or empty folder.")
        make_folder(folder)
        write_whole(path, (json.dumps(protocol, indent=1) + "\n").encode(), "out")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"out: cannot read {str(path)!r} ({error}). Choose another folder.") from error
    wanted = dict(_flat(protocol))
    there = dict(_flat(found))
    differ = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
    if differ:
        said = "; ".join(f"{n} was {_short(there.get(n))} and is {_short(wanted.get(n))}" for n in differ)
        raise FileError(
            f"out: {str(folder)!r} holds ROAR with other settings: {said}. Choose another folder, or ask for the same again."
        )


def rows_of(journal: Journal) -> dict[tuple[str, float, int], RoarRow]:
    """The finished trainings by what they are of."""
    try:
        rows = [RoarRow(**row) for row in journal.rows]
    except TypeError as error:
        raise FileError(
            f"out: {str(journal.path)!r} has a line of another format ({error}). Choose another folder."
        ) from error
    return {row.key: row for row in rows}


def load_network(path: Path, row: RoarRow, make_network: MakeNetwork, device: torch.device) -> nn.Module:
    """The network that a row tells of, from its file.

    Raises:
        FileError: If the file is damaged, or of another network.
    """
    network = new_network(make_network, row.seed, device).eval()
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise FileError(f"out: cannot read {str(path)!r} ({error}). Delete it, and it is trained again.") from error
    if fingerprint(network) != row.fingerprint:
        raise FileError(
            f"out: {str(path)!r} is not the network that {RUNS} tells of. Delete it, and it is trained again."
        )
    return network


def store(path: Path, network: nn.Module) -> None:
    """Keep the weights."""
    state = {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
    write_whole(path, save(state), "out")


def _data_hash(data: Examples) -> str:
    digest = hashlib.sha256(f"{tuple(data.inputs.shape)} {data.inputs.dtype}".encode())
    for tensor in (*data.inputs.split(1000), data.target):
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
