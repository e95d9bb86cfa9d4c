"""The relevance family: against zennit in one run (agreement, time), conservation and completeness over architectures.

    uv run python benchmarks/relevance.py cost                   # time and memory over a plain gradient, batch 4, 224 pixels
    uv run python benchmarks/relevance.py agreement              # every rule against zennit, float64
    uv run python benchmarks/relevance.py conservation           # random weights and batch norm statistics, biases or none
    uv run python benchmarks/relevance.py completeness           # DeepLIFT: sum of the map over the difference of the logits
    uv run python benchmarks/relevance.py real                   # both, on networks with real weights (needs BACKLIT_SHARED)

zennit (LGPL) is used where it is installed, as an oracle and a rival; nothing depends on it.
"""

# zennit is an oracle of these measurements, installed beside the project and not by it.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from _common import SHARED, shared_model, write
from backlit.capture import propagate
from backlit.data import CIFAR10, Batches, ImageFolder
from backlit.rules import presets
from backlit.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from backlit.rules.relevance import relevance

NETWORKS = (
    *("vgg11_bn", "resnet18", "resnet50", "densenet121", "squeezenet1_0", "mobilenet_v2", "mobilenet_v3_large"),
    *("efficientnet_b0", "googlenet", "inception_v3", "convnext_tiny", "vit_b_16"),
)
SIZES = {"inception_v3": 96, "vit_b_16": 224}
TIMED = ("epsilon", "epsilon_plus", "z_plus", "epsilon_alpha2_beta1", "epsilon_gamma_box")
_MEASURED = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""What is freed goes back to the system at once. Else the heap keeps some of it, up to 230 MB more or less from run to run."""
LOW, HIGH = (-2.2, -2.1, -1.9), (2.3, 2.5, 2.7)

Rule = Literal["rescale", "reveal_cancel"]


def randomised(name: str, biases: bool = True, blind: bool = False) -> nn.Module:
    """Random weights and batch norm statistics in float64; without biases, every constant is zero, too.

    The statistics are those of random images, perturbed. Drawn blindly, without regard to what the layer puts out, they let
    the signal of some networks (MobileNets, EfficientNet) die out under their biases: a logit is then the same for all images,
    and its difference from a reference is rounding alone.
    """
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = getattr(torchvision.models, name)(**options).eval().double().requires_grad_(False)
    for auxiliary in ("aux1", "aux2", "AuxLogits"):
        if hasattr(model, auxiliary):
            setattr(model, auxiliary, None)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    if norms and not blind:
        model.train()(torch.randn(8, 3, SIZES.get(name, 64), SIZES.get(name, 64), dtype=torch.float64))
        model.eval()
    for module in norms:
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean += torch.randn_like(module.running_mean) * 0.3 * module.running_var.sqrt()
        module.running_var *= torch.rand_like(module.running_var) * 1.5 + 0.5
        if not biases:
            module.running_mean.zero_()
    for key, parameter in model.named_parameters():
        if parameter.abs().max() == 0:
            parameter.normal_(0, 0.05)
        if not biases and (key.endswith("bias") or "pos_embedding" in key or "class_token" in key):
            parameter.zero_()
    return model


def conservation(names: list[str]) -> list[dict[str, Any]]:
    """Sum of the relevance over the logit, and the biases' share; the worse of two images."""
    rows = []
    for name in names:
        x = torch.randn(2, 3, SIZES.get(name, 64), SIZES.get(name, 64), dtype=torch.float64)
        for biases in (False, True):
            model = randomised(name, biases)
            target = model(x).argmax(1)
            for preset in (*TIMED, "deep_taylor"):
                for attention in ("held", "attnlrp") if "vit" in name and preset == "epsilon_plus" else ("held",):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        found = backlit.LRP(model, preset=preset, attention=attention)(x, target)
                    c = found.completeness
                    worst = int((c["ratio"] - 1).abs().argmax())
                    row: dict[str, Any] = {"network": name, "preset": preset, "attention": attention, "biases": biases}
                    row |= {"ratio": float(c["ratio"][worst]), "gap": float((c["gap"] / found.output).abs().max())}
                    row["share_of_biases"] = float((c["biases"] / found.output)[worst])
                    rows.append(row)
                    print(row, flush=True)
    return rows


def completeness(names: list[str]) -> list[dict[str, Any]]:
    """DeepLIFT's sum over F(x) - F(reference), the worse of two images; what is missing over the logit, too."""
    rows = []
    for name, blind in [(name, blind) for blind in (False, True) for name in names]:
        x = torch.randn(2, 3, SIZES.get(name, 64), SIZES.get(name, 64), dtype=torch.float64)
        model = randomised(name, blind=blind)
        if blind and not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
            continue
        target = model(x).argmax(1)
        cases: tuple[tuple[torch.dtype, Rule, str], ...] = (
            (torch.float64, "rescale", "zero"),
            (torch.float64, "reveal_cancel", "blur"),
            (torch.float32, "rescale", "zero"),
        )
        for dtype, rule, reference in cases:
            model, x = model.to(dtype), x.to(dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = backlit.DeepLIFT(model, rule=rule, reference=reference)(x, target)
            c = found.completeness
            row: dict[str, Any] = {"network": name, "statistics": "blind" if blind else "perturbed"}
            row |= {"dtype": str(dtype), "rule": rule, "reference": reference}
            row["off_by"] = float((c["ratio"] - 1).abs().max())
            row["difference_over_logit"] = float((c["difference"] / found.output).abs().min())
            row["missing_over_logit"] = float((c["gap"] / found.output).abs().max())
            rows.append(row)
            print(row, flush=True)
    return rows


def real() -> list[dict[str, Any]]:
    """Networks with real weights on three images each: their own, and a copy whose every bias and shift is zero."""
    rows = []
    for name in ("squeezenet1_0", "mobilenet_v2", "cifar_resnet20"):
        loaded = shared_model(name)
        if name == "cifar_resnet20":
            pictures: Any = CIFAR10(SHARED / "data" / "cifar10", train=False)
        else:
            pictures = ImageFolder(SHARED / "data" / "ilsvrc2012-val", SHARED / "data" / "imagenet_classes.json")
        chosen = [pictures[i * len(pictures) // 3] for i in range(3)]
        x, _ = next(iter(Batches(chosen, loaded.preprocess, batch=3)))
        x = x.double()
        low, high = loaded.preprocess.bounds
        for biases in (True, False):
            model = copy.deepcopy(loaded.network).double()
            if not biases:
                _without_biases(model)
            for preset in (*TIMED, "deep_taylor"):
                method = backlit.LRP(model, preset=preset, low=low, high=high)
                rows.append({"network": name, "biases": biases, "method": preset, **_accounted(method(x))})
            cases: tuple[tuple[Rule, str], ...] = (("rescale", "zero"), ("rescale", "blur"), ("reveal_cancel", "zero"))
            for rule, reference in cases:
                c = backlit.DeepLIFT(model, rule=rule, reference=reference)(x).completeness
                row = {"network": name, "biases": biases, "method": f"deeplift {rule}, {reference}"}
                rows.append({**row, "off_by": float((c["ratio"] - 1).abs().max())})
            for row in rows[-len(TIMED) - 4 :]:
                print(row, flush=True)
    return rows


def _without_biases(model: nn.Module) -> None:
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if key.endswith(("bias", "running_mean")):
            tensor.data.zero_()


def _accounted(found: backlit.Attribution) -> dict[str, Any]:
    c = found.completeness
    shares = (c["biases"] / found.output).tolist()
    rounded = {"ratio": [round(v, 6) for v in c["ratio"].tolist()], "share_of_biases": [round(v, 4) for v in shares]}
    return {**rounded, "gap": float((c["gap"] / found.output).abs().max())}


def _zennit_rules() -> list[tuple[str, Any, Any, Any, Any]]:
    """name, our dense and convolution rule, zennit's, our first rule, zennit's."""
    from zennit import rules as z

    low = torch.tensor(LOW, dtype=torch.float64)[None, :, None, None]
    high = torch.tensor(HIGH, dtype=torch.float64)[None, :, None, None]
    tiny = 1e-12
    epsilon, theirs = Epsilon(1e-6, relative=False), z.Epsilon(epsilon=1e-6)
    return [
        ("epsilon", epsilon, theirs, None, None),
        ("z_plus", ZPlus(), z.ZPlus(stabilizer=tiny), None, None),
        ("z_plus without bias", ZPlus(bias=False), z.ZPlus(stabilizer=tiny, zero_params="bias"), None, None),
        ("alpha2_beta1", AlphaBeta(balanced=False), z.AlphaBeta(stabilizer=tiny), None, None),
        ("alpha1_beta0", AlphaBeta(1.0, 0.0, balanced=False), z.AlphaBeta(1.0, 0.0, stabilizer=tiny), None, None),
        ("gamma", Gamma(), z.Gamma(stabilizer=tiny), None, None),
        ("flat", epsilon, theirs, Flat(), z.Flat(stabilizer=tiny)),
        ("w_square", epsilon, theirs, WSquare(), z.WSquare(stabilizer=tiny, zero_params="bias")),
        ("z_box", epsilon, theirs, ZBox(LOW, HIGH), z.ZBox(low, high, stabilizer=tiny)),
    ]


def agreement(names: list[str]) -> list[dict[str, Any]]:
    """Largest difference from zennit's map over its largest value, with its canonizers, every rule."""
    from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
    from zennit.rules import Norm, Pass
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

    from zennit.layer import Sum  # isort: skip

    rows = []
    for name in names:
        model = randomised(name)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0  # zennit's merge leaves it where it is, so that the merged network has other outputs
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64).clamp(-1.8, 2.2)
        plain = model(x)
        seed = F.one_hot(plain.argmax(1), 1000).double()
        canonizer = {"r": ResNetCanonizer, "v": VGGCanonizer}.get(name[0])
        for rule, ours, theirs, first, their_first in _zennit_rules():
            layers: list[Any] = [(Activation, Pass()), (BatchNorm, Pass()), (AvgPool, Norm(stabilizer=1e-12))]
            layers += [(Sum, Norm(stabilizer=1e-12)), ((Convolution, Linear), theirs)]
            options: Any = {"layer_map": layers, "canonizers": [canonizer()] if canonizer else []}
            if their_first is None:
                composite: Any = LayerMapComposite(**options)
            else:
                composite = SpecialFirstLayerMapComposite(first_map=[((Convolution,), their_first)], **options)
            leaf = x.clone().requires_grad_()
            with composite.context(copy.deepcopy(model)) as modified:
                out = modified(leaf)
                changed = float((out - plain).abs().max() / plain.abs().max())  # by merging batch norm
                (expected,) = torch.autograd.grad(out, leaf, seed * out.detach())
            run = propagate(model, x, relevance(rule, dense=ours, convolution=ours, first=first))
            (found,) = run.gradient(seed)
            gap = float((found - expected).abs().max() / expected.abs().max())
            row: dict[str, Any] = {"network": name, "rule": rule, "relative_difference": gap}
            rows.append({**row, "zennit_changes_the_output_by": changed})
            print(rows[-1], flush=True)
    return rows


def cost(names: list[str], rounds: int, size: int, memory: bool) -> list[dict[str, Any]]:
    """Seconds over a plain gradient's, ours and zennit's in turn; and peak memory, each in a process of its own."""
    rows = []
    target = torch.arange(4)
    for name in names:
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)().eval().requires_grad_(False)
        x = torch.randn(4, 3, size, size)
        runs: dict[str, Callable[[], Any]] = {"gradient": lambda model=model, x=x: _plain(model, x, target)}
        for preset in TIMED:
            runs[preset] = lambda preset=preset, model=model, x=x: backlit.LRP(model, preset=preset).attribute(
                x, target
            )
        if importlib.util.find_spec("zennit"):
            runs |= _zennit_runs(name, model, x, target)
        print(name, flush=True)
        found = _seconds(runs, rounds)
        row: dict[str, Any] = {"network": name, "batch": 4, "size": size, "threads": torch.get_num_threads()}
        for clock, seconds in found.items():
            row[f"gradient_{clock}_seconds"] = seconds["gradient"]
            rest = {k: v / seconds["gradient"] for k, v in seconds.items() if k != "gradient"}
            row |= {f"{k}_{clock}_over_gradient": v for k, v in rest.items()}
        for preset in ("gradient", *TIMED) if memory else ():
            command = [sys.executable, __file__, "peak", "--networks", name, "--preset", preset, "--size", str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **_MEASURED})
            row[f"peak_{preset}"] = int(done.stdout)
        for preset in TIMED if memory else ():
            row[f"{preset}_memory_over_gradient"] = row[f"peak_{preset}"] / row["peak_gradient"]
        rows.append(row)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return rows


def _seconds(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each, in turn after one warm-up: on the wall, and of the processor, which counts waiting threads."""
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    found: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in runs} for clock in clocks}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                found[clock][name].append(read() - start[clock])
    return {clock: {name: median(values[1:]) for name, values in each.items()} for clock, each in found.items()}


def peak(name: str, preset: str, size: int) -> None:
    """Resident bytes that one map takes at its peak beside the model, to standard output; Linux alone has this reading."""
    model = getattr(torchvision.models, name)().eval().requires_grad_(False)
    method = None if preset == "gradient" else backlit.LRP(model, preset=preset)

    def run(size: int) -> None:
        x, target = torch.randn(4, 3, size, size), torch.arange(4)
        _ = _plain(model, x, target) if method is None else method.attribute(x, target)

    run(32)  # what is loaded on first use is none of it
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    before = _status("VmRSS")
    run(size)
    print(_status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _plain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).gather(1, target[:, None]).sum(), leaf)[0]


def _zennit_runs(name: str, model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Callable[[], Any]]:
    from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    canonizer = ResNetCanonizer if "resnet" in name else VGGCanonizer
    own = copy.deepcopy(model)
    bounds = {"low": x.amin().expand(1, 3, 1, 1), "high": x.amax().expand(1, 3, 1, 1)}
    composites = {
        "zennit_epsilon_plus": EpsilonPlus(canonizers=[canonizer()]),
        "zennit_epsilon_alpha2_beta1": EpsilonAlpha2Beta1(canonizers=[canonizer()]),
        "zennit_epsilon_gamma_box": EpsilonGammaBox(canonizers=[canonizer()], **bounds),
    }

    def run(composite: Any) -> Tensor:
        leaf = x.clone().requires_grad_()
        with composite.context(own) as modified:
            out = modified(leaf)
            return torch.autograd.grad(out, leaf, out.detach() * F.one_hot(target, out.shape[1]))[0]

    return {key: lambda composite=composite: run(composite) for key, composite in composites.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "agreement", "conservation", "completeness", "real", "peak"])
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--preset", default="epsilon", choices=["gradient", *presets.RELEVANCE])
    arguments = parser.parse_args()
    if arguments.what == "peak":
        return peak(arguments.networks[0], arguments.preset, arguments.size)
    if arguments.what == "cost":
        rows = cost(
            arguments.networks or ["vgg16", "resnet50"], arguments.rounds, arguments.size, not arguments.no_memory
        )
    elif arguments.what == "real":
        rows = real()
    elif arguments.what == "agreement":
        rows = agreement(arguments.networks or ["vgg11", "vgg11_bn", "alexnet", "squeezenet1_0", "resnet18"])
    else:
        rows = {"conservation": conservation, "completeness": completeness}[arguments.what](
            arguments.networks or list(NETWORKS)
        )
    print("written to", write(f"relevance_{arguments.what}", torch.device("cpu"), rows))
    return None


if __name__ == "__main__":
    main()
