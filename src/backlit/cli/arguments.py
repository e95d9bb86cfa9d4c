"""What several commands take, with its help: the same names and the same words everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backlit.cli.complete import methods, metrics, models

Device = Annotated[
    str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps; auto takes the fastest that is there.")
]
DType = Annotated[str, typer.Option(help="Precision: float32, float64, bfloat16.")]
MOST_SEED = 2**63 - 1  # what torch and NumPy take, both
MOST_AT_ONCE = 1_000_000  # images
Seed = Annotated[int, typer.Option(help="Seed of whatever is drawn; recorded with every result.", min=0, max=MOST_SEED)]
_MODEL = '"digits" (embedded), a torchvision name ("resnet50"), "timm:NAME", or "module:function".'
Model = Annotated[str, typer.Option("--model", help=_MODEL, autocompletion=models)]
ModelOfImages = Annotated[
    str | None, typer.Option("--model", help=f"{_MODEL} None: digits, for pictures of digits.", autocompletion=models)
]
Methods = Annotated[
    str,
    typer.Option(
        "--method",
        help="Methods, by comma, or all; fast is DMBP's short schedule. `backlit methods` lists them.",
        autocompletion=methods,
    ),
]
Metrics = Annotated[
    str, typer.Option("--metric", help="Metrics, by comma; `backlit metrics` lists them.", autocompletion=metrics)
]
Weights = Annotated[str | None, typer.Option(help='A safetensors file; "random" for speed tests.', metavar="FILE")]
Download = Annotated[
    bool,
    typer.Option(
        "--download", help="Let torchvision or timm fetch the weights that they publish, once; says how large."
    ),
]
Size = Annotated[int | None, typer.Option(help="Side of the network's input, where it is not the model's usual one.")]
Mean = Annotated[str | None, typer.Option(help='Normalisation, e.g. "0.5" or "0.485,0.456,0.406".')]
Std = Annotated[str | None, typer.Option(help='Normalisation, e.g. "0.5" or "0.229,0.224,0.225".')]
Crop = Annotated[
    str | None,
    typer.Option(help="center cuts the middle out of a picture; stretch cuts nothing: for pictures that are squashed."),
]
FittedFiles = Annotated[
    list[Path] | None, typer.Option(help="What `backlit fit` wrote, for methods that learn from data.", metavar="FILE")
]
Workers = Annotated[
    int, typer.Option(help="Worker processes, one a group of cores or a GPU; 0: none, this process does it all.", min=0)
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of each worker; without it the cores are shared out.", min=1)
]
Shard = Annotated[str | None, typer.Option(help="The share of the work that this run does, e.g. 3/8.", metavar="I/N")]
Ray = Annotated[
    str | None,
    typer.Option(help="Workers are Ray actors: a cluster's address, or local. Needs backlit[ray].", metavar="ADDRESS"),
]
