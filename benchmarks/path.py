"""Path methods on real networks: what integrated gradients leave unaccounted for, and their time beside bare gradients.

    python benchmarks/path.py completeness --network squeezenet1_0 --images 20
    python benchmarks/path.py time --network squeezenet1_0

``completeness`` writes ``results/path_completeness_NETWORK.json``: |F(x) - F(x') - sum| as a share of |F(x) - F(x')|, for
integrated gradients by both rules and for expected gradients, 50 points each. ``time`` writes
``results/path_time_NETWORK.json``: integrated gradients of one image beside 50 bare gradients in batches of the same size,
and beside Captum's at each ``internal_batch_size``, in seconds of the processor. Images are those of one half of the shared
ones, evenly spread; one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import IntegratedGradients as Captums
from torch import Tensor, nn

from _common import half, in_turn, shared_data, shared_model, write
from backlit import ExpectedGradients, IntegratedGradients, LoadedModel
from backlit.methods import Method

CPU = torch.device("cpu")
POINTS, TOGETHER = 50, 8


def images_of(loaded: LoadedModel, count: int) -> Tensor:
    """Normalised images of the half on which results are reported."""
    data = shared_data()
    return torch.stack([loaded.preprocess(data[i].image) for i in half("test", count)])


def completeness(name: str, count: int) -> list[dict[str, Any]]:
    """The gaps of each method, the predicted class explained: median, mean and largest share of the difference."""
    loaded = shared_model(name)
    network = loaded.network
    methods: dict[str, Method] = {
        "integrated_gradients, midpoint": IntegratedGradients(network, steps=POINTS, rule="midpoint"),
        "integrated_gradients, gauss_legendre": IntegratedGradients(network, steps=POINTS),
        "expected_gradients, three baselines": ExpectedGradients(network, samples=POINTS),
    }
    shares: dict[str, list[float]] = {key: [] for key in methods}
    for x in images_of(loaded, count).split(1):
        for key, method in methods.items():
            told = method(x).completeness
            shares[key].append(float((told["gap"] / told["difference"]).abs()))
        print({key: round(values[-1], 4) for key, values in shares.items()}, flush=True)
    rows = []
    for key, values in shares.items():
        share = torch.tensor(values)
        numbers = {"median": share.median(), "mean": share.mean(), "largest": share.max()}
        rows.append(
            {"network": name, "method": key, "images": count, **{k: round(float(v), 4) for k, v in numbers.items()}}
        )
        print(rows[-1], flush=True)
    return rows


def bare(network: nn.Module, x: Tensor, target: int) -> Tensor:
    """Fifty gradients at the points of the midpoint rule, in batches, with nothing around them."""
    total = torch.zeros_like(x)
    at = (torch.arange(POINTS) + 0.5) / POINTS
    for some in at.split(TOGETHER):
        copies = (some.view(-1, 1, 1, 1) * x).requires_grad_()
        total += torch.autograd.grad(network(copies)[:, target].sum(), copies)[0].sum(0)
    return x * total / POINTS


def times(name: str, rounds: int, sizes: list[int]) -> list[dict[str, Any]]:
    """Processor seconds of one image's map by each, and the ratios within this run; the maps must agree."""
    loaded = shared_model(name)
    network = loaded.network.requires_grad_(False)
    x = images_of(loaded, 1)
    target = int(network(x).argmax())
    ours, theirs = IntegratedGradients(network, steps=POINTS, rule="midpoint", chunk=TOGETHER), Captums(network)
    torch.testing.assert_close(ours.attribute(x, target), bare(network, x, target), rtol=1e-3, atol=1e-4)

    def captum(size: int) -> Callable[[], Any]:
        rule = "riemann_middle"
        return lambda: theirs.attribute(x, target=target, n_steps=POINTS, method=rule, internal_batch_size=size)

    functions: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(network, x, target),
        "backlit": lambda: ours.attribute(x, target),
        **{f"captum {size}": captum(size) for size in sizes},
    }
    seconds = in_turn(functions, rounds)
    best = min((s, key) for key, s in seconds.items() if key.startswith("captum"))
    ratios = {
        "backlit_by_bare": round(seconds["backlit"] / seconds["bare"], 3),
        "backlit_by_best_captum": round(seconds["backlit"] / best[0], 3),
        "best_captum": best[1],
    }
    row = {"network": name, "points": POINTS, "seconds": {k: round(s, 2) for k, s in seconds.items()}, **ratios}
    print(row, flush=True)
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("completeness", "time"))
    parser.add_argument("--network", default="squeezenet1_0")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8, 16, 50], help="Captum's batches")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = (
        completeness(given.network, given.images)
        if given.what == "completeness"
        else times(given.network, given.rounds, given.sizes)
    )
    print(write(f"path_{given.what}_{given.network}", CPU, rows))


if __name__ == "__main__":
    main()
