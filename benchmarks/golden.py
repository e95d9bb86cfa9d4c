"""What every method and metric gives, as digests: whether a change of the code changed a number.

    uv run python benchmarks/golden.py write before.json     on the code as it was
    uv run python benchmarks/golden.py check before.json     on the code as it is; lists what differs, exit 1

Six networks with weights of their own (a stack, skipped joins, residual sums, inverted residuals, branches, tokens), every
method with its defaults and with the options below, every metric. Digests are of bits: write and check on one machine, with
one version of torch. One thread, about a minute and a half.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn

import backlit
from backlit._errors import BacklitError
from backlit.methods import BASELINES, METHODS
from backlit.metrics import METRICS, Examples
from backlit.models.digits import digits_images

CLASSES = 5
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "dmbp": (
        {"steps": 3, "lr": 0.1, "init": 1.0},
        {"steps": 2, "sites": "everywhere", "variant": "+,-", "last_bias": "half"},
        {"steps": 2, "sites": "branches", "init": "normal", "optimizer": "adam", "tolerance": 0.5},
        {"variant": "nd"},
    ),
    "lpr": (
        {"steps": 2},
        {"steps": 2, "reading": "paper"},
        {"steps": 2, "reading": "multiplier", "plugin": "channel", "colours": "each", "mask_loss": "sum"},
        {"steps": 2, "sites": "between_convolutions", "start": "nll", "sign_aware": False, "relative": False},
    ),
    "tr_gbp": ({}, {"ones": "one", "normalise_kernel": True}, {"contrast": None}),
    "lrp": (
        *({"preset": p} for p in ("epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box")),
        {"pool": "proportional", "attention": "attnlrp"},
    ),
    "deeplift": ({}, {"rule": "reveal_cancel"}),
    "occlusion": (
        {"window": 20, "stride": 20},
        {"window": 16, "stride": 16, "baseline": "mean", "score": "probability"},
    ),
    "rise": ({"masks": 16}, {"masks": 16, "cells": 4, "p": 0.3, "score": "logit"}),
    "meaningful_perturbation": (
        {"steps": 2, "start": "ones"},
        {"steps": 2, "score": "logit", "baseline": "mean", "cells": 8},
    ),
    "extremal_perturbation": (
        {"steps": 2, "areas": (0.2, 0.5)},
        {"steps": 2, "areas": (0.3,), "step": 4, "smooth": 0.1},
    ),
    "pda": ({"stride": 5, "samples": 2}, {"stride": 5, "samples": 2, "examples": 1000}),
    "guided_backprop": ({}, {"times_input": True}),
    "deconvnet": ({}, {"times_input": True}),
    "guided_grad_cam": ({}, {"times_input": True}),
    "cameras": ({"steps": 2, "largest": 1.5},),
}
"""Options by method, one run each; a method that is not named runs by its defaults."""
FITTED_ON = ("digits", "squeezenet", "mobilenet")
"""Where the methods that are fitted run: wide layers take minutes."""


def networks() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Each network, in eval mode, with three images."""
    digits = backlit.load_model("digits")
    images, _ = digits_images()
    yield "digits", digits.network, torch.stack([digits.preprocess(image) for image in images[:3]])
    made: dict[str, Callable[[], nn.Module]] = {
        "squeezenet": lambda: zoo.squeezenet1_1(num_classes=CLASSES),
        "resnet": lambda: zoo.resnet18(num_classes=CLASSES),
        "mobilenet": lambda: zoo.mobilenet_v2(num_classes=CLASSES),
        "googlenet": lambda: zoo.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False),
        "vit": lambda: zoo.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=CLASSES),
    }
    for name, make in made.items():
        torch.manual_seed(0)
        network = make().eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, tensor in network.state_dict().items():
                drawn = torch.randn(tensor.shape, generator=generator)
                if key.endswith("running_var"):
                    tensor.mul_(drawn.abs() * 0.2 + 0.9)
                elif key.endswith(("running_mean", "bias")):
                    tensor.add_(drawn * 0.05)
                elif key == "heads.head.weight":  # a vision transformer's is zero at first
                    tensor.copy_(drawn * 0.2)
        yield name, network, torch.randn(3, 3, 64, 64, generator=generator)


def digests() -> dict[str, str]:
    """A digest, or an error's first words, of each network, method and set of options, and of each metric."""
    found: dict[str, str] = {}
    for network_name, network, x in networks():
        targets = torch.tensor([[0, 1], [2, 0], [3, 4]])
        fitted: dict[str, Any] = {}
        for method in (*METHODS, *BASELINES):
            if hasattr(method, "fit") and network_name not in FITTED_ON:
                continue
            for options in OPTIONS.get(method.name, ({},)):
                key = f"{network_name} {method.name} {json.dumps(options)}"
                found[key] = _digest_of(partial(_numbers, method, network, x, targets, options, fitted))
                print(key, found[key], flush=True)
    for key, numbers in _scores():
        found[key] = _digest_of(partial(dict, numbers))
        print(key, found[key], flush=True)
    return found


def _numbers(
    method: Any, network: nn.Module, x: Tensor, targets: Tensor, options: dict[str, Any], fitted: dict[str, Any]
) -> dict[str, Tensor]:
    if hasattr(method, "fit"):
        if method.artefact not in fitted:
            pool = torch.Generator().manual_seed(5)
            data = [(torch.randn(24, *x.shape[1:], generator=pool), torch.arange(24) % CLASSES)]
            fitted[method.artefact] = method.fit(network, data)
        options = {**options, "fitted": fitted[method.artefact]}
        classes = torch.tensor(fitted[method.artefact].classes)
        targets = classes[targets % len(classes)]
    numbers: dict[str, Tensor] = {}
    for t, result in enumerate(method(network, **options).each(x, targets)):
        numbers |= {f"{t} values": result.values, f"{t} output": result.output}
        for group in ("parts", "completeness", "trajectory"):
            numbers |= {f"{t} {group} {k}": v for k, v in getattr(result, group).items()}
    return numbers


def _scores() -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each metric's scores of three maps on the digits: the images twice, as ground truth needs them."""
    loaded = backlit.load_model("digits")
    images, labels = digits_images()
    x = torch.stack([loaded.preprocess(image) for image in images[:4]])
    own = torch.nn.functional.one_hot(labels[:4], 10).bool()
    inside = [[(4, 4, 20, 28)]] * 4
    cells = torch.tensor([[0, 0, 16, 16], [0, 16, 16, 32], [16, 0, 32, 16], [16, 16, 32, 32]])
    boxes = [torch.tensor(b, dtype=torch.float32) for b in inside]
    examples = Examples(x, labels[:4], own, boxes=boxes, cells=cells)
    methods = {m.name: m(loaded.network) for m in METHODS if m.name in ("gradient_x_input", "lrp", "grad_cam")}
    maps = {name: method(x, labels[:4]) for name, method in methods.items()}
    for metric in METRICS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                scores = metric()(loaded.network, examples, maps, methods)
            except BacklitError as error:
                yield (
                    f"metric {metric.name}",
                    {"error": torch.frombuffer(bytearray(str(error).encode()), dtype=torch.uint8)},
                )
                continue
        values = {**scores.values, **{f"{k} curve": v for k, v in scores.curves.items()}}
        yield f"metric {metric.name}", {k: torch.from_numpy(v) for k, v in values.items()}


def _digest_of(compute: Callable[[], dict[str, Tensor]]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            numbers = compute()
        except BacklitError as error:
            return f"{type(error).__name__}: {str(error)[:60]}"
    digest = hashlib.sha256()
    for name, tensor in sorted(numbers.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "check"))
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = digests()
    if arguments.what == "write":
        arguments.file.write_text(json.dumps({"torch": str(torch.__version__), "digests": found}, indent=1) + "\n")
        return
    before = json.loads(arguments.file.read_text())
    if before["torch"] != str(torch.__version__):
        sys.exit(f"{arguments.file} was written with torch {before['torch']}; this is {torch.__version__}.")
    old = before["digests"]
    changed = [key for key in sorted({*old, *found}) if old.get(key) != found.get(key)]
    for key in changed:
        print(f"CHANGED {key}: {old.get(key, 'not there')} -> {found.get(key, 'not there')}")
    print(f"{len(found) - len(changed)} of {len(found)} equal")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
