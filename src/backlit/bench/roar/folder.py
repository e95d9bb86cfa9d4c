"""The folder of one ROAR experiment: whose it is, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from backlit._errors import FileError
from backlit._fingerprint import fingerprint
from backlit._journal import Rows
from backlit._json import JsonObject
from backlit._plain import identity, network_of, versions
from backlit._store import Kind
from backlit.bench.roar.result import MASK, ORIGINAL, RoarRow
from backlit.bench.roar.setup import RoarData, RoarOptions
from backlit.bench.roar.training import MakeNetwork, new_network
from backlit.metrics.examples import Examples

RUNS, NETWORK, RESULT, TABLE, UNFINISHED = (
    "runs.jsonl",
    "network.safetensors",
    "result.json",
    "table.txt",
    "unfinished",
)
RANKED_BY = "ranked_by"
ROAR = Kind(
    "ROAR experiment", files=(RUNS, NETWORK, RESULT, TABLE), folders=("ranks", UNFINISHED), plan_file="roar.json"
)


def protocol_of(data: RoarData, make_network: MakeNetwork, options: RoarOptions) -> JsonObject:
    """Tell all that a number depends on beside its method, fraction and seed."""
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
            "untrained": network_of(network),
        },
        "device": data.train.inputs.device.type,
        "matmul precision": torch.get_float32_matmul_precision(),
        "versions": versions(),
    }


def ranked_by(kinds: Mapping[str, JsonObject], method: str) -> JsonObject | None:
    """Tell what ordered the pixels of a training; None for the unmodified data."""
    return None if method == ORIGINAL else kinds[method.removesuffix(MASK)]


def check_rows(rows: Rows, kinds: Mapping[str, JsonObject], folder: Path) -> None:
    """See that the finished trainings are of the methods that are asked for now.

    Raises:
        FileError: If one is of a method that has the name of another one now.
    """
    for line in rows:
        method = line["method"]
        if method.removesuffix(MASK) not in (*kinds, ORIGINAL):
            continue  # of an earlier call, and not asked for now
        there, now = json.dumps(line[RANKED_BY]), json.dumps(ranked_by(kinds, method))
        if there != now:
            raise FileError(
                f"out: {str(folder / RUNS)!r} holds trainings with {method!r} as {there}, and now it is {now}. Choose another "
                f"folder, or another name for the method, such as {method + '-2'!r}."
            )


def key_of(line: JsonObject) -> tuple[str, float, int]:
    """Say which training a line is of."""
    return line["method"], line["fraction"], line["seed"]


def row_of(line: JsonObject) -> RoarRow:
    """Read the training that a line tells of."""
    return RoarRow(**{name: value for name, value in line.items() if name != RANKED_BY})


def load_network(path: Path, row: RoarRow, make_network: MakeNetwork, device: torch.device) -> nn.Module:
    """Load the network that a row tells of.

    Raises:
        FileError: If the file is of another network.
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


def weights_file(network: nn.Module) -> bytes:
    """Write weights as the content of a file."""
    return save({name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()})


def _data_hash(data: Examples) -> str:
    return identity([data.inputs, data.target])
