"""How often a card calls a map near nothing: of the class that a photograph is of, and of a class drawn at random.

    python benchmarks/near_nothing.py [photographs]

reads the shared folder's photographs of one class each, and writes results/near_nothing.json.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import backlit
from _common import SHARED, shared_model, write
from backlit.report.trust import LEAST_PROBABILITY, trust

METHODS = (backlit.GradCAM, backlit.LRP)
_EXPLAINED = 5  # every fifth photograph: maps take longer than probabilities
_BATCH = 10


def photographs(count: int) -> tuple[list[Path], Tensor]:
    """Photographs, evenly spread over the classes that there are, and their class indices."""
    index = {row["wnid"]: row["index"] for row in json.loads((SHARED / "data" / "imagenet_classes.json").read_text())}
    folders = sorted(path for path in (SHARED / "data" / "imagenet-sample").iterdir() if path.is_dir())
    chosen = [folders[i * len(folders) // count] for i in range(count)]
    return [sorted(f.glob("*.jpg"))[0] for f in chosen], torch.tensor([index[f.name] for f in chosen])


def measured(name: str, paths: list[Path], true: Tensor, drawn: Tensor) -> dict[str, Any]:
    """Shares of photographs whose true class, and whose drawn class, is near nothing."""
    loaded = shared_model(name)
    row: dict[str, Any] = {"network": name, "photographs": len(paths), "explained": len(paths[::_EXPLAINED])}
    with torch.no_grad():
        chances = [
            loaded.network(loaded.preprocess.batch(paths[i : i + _BATCH])).softmax(1)
            for i in range(0, len(paths), _BATCH)
        ]
    for which, classes in (("true", true), ("drawn", drawn)):
        found = torch.cat(chances).gather(1, classes[:, None]) < LEAST_PROBABILITY
        row[f"{which}: not seen"] = float(found.float().mean())
    for method in METHODS:
        faint = [
            [trust(e).near_nothing for e in method(loaded).each(loaded.preprocess(path)[None], pair[None])]
            for path, pair in zip(paths[::_EXPLAINED], torch.stack([true, drawn], 1)[::_EXPLAINED], strict=True)
        ]
        shares = torch.tensor(faint).float().mean(0).tolist()
        row |= {f"{which}: {method.name}": share for which, share in zip(("true", "drawn"), shares, strict=True)}
    return row


def main(count: int) -> None:
    """Measure every network, and write the rows."""
    warnings.simplefilter("ignore")
    paths, true = photographs(count)
    drawn = torch.randint(0, 1000, (count,), generator=torch.Generator().manual_seed(0))
    rows = [measured(name, paths, true, drawn) for name in ("squeezenet1_0", "mobilenet_v2", "resnet50")]
    for row in rows:
        print(row)
    write("near_nothing", torch.device("cpu"), rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
