"""Bad input: each error names the argument, what was found, and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from backlit import DMBP, GradientXInput, InputError, ModelStateError, explain_func, find_method
from backlit.capture import propagate
from backlit.methods import Gradient
from backlit.methods.chunks import run_in_chunks
from backlit.methods.job import Job, Maps


def net(**parts: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


GOOD = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NAN = GOOD.clone()
NAN[1, 0, 0, 0] = float("nan")


@pytest.mark.parametrize("method", [GradientXInput, DMBP])
@pytest.mark.parametrize(
    ("inputs", "target", "message"),
    [
        (GOOD, 5, r"target must be a class index from 0 to 4, but is 5; the model has 5 classes"),
        (GOOD, -1, r"from 0 to 4, but is -1"),
        (GOOD, "tabby", r"target must be a class index, but is the label 'tabby'.*class_index"),
        (GOOD, 1.5, r"integer class indices, but is torch.float32"),
        (GOOD, [0, 1, 2], r"one index or one per image \(2\), but has shape \(3,\)"),
        (GOOD[0], 0, r"images of shape \(n, c, h, w\).*, but has shape \(3, 8, 8\).*x\[None\]"),
        (GOOD[:0], 0, r"at least one image, but has shape \(0, 3, 8, 8\)"),
        (GOOD.byte(), 0, r"floating-point.*torch.uint8.*normalise"),
        (GOOD.half(), 0, r"float16 on the CPU.*\.float\(\)"),
        (GOOD.double(), 0, r"the model's dtype torch.float32, but are torch.float64"),
        (NAN, 0, r"must be finite, but image 1 holds NaN or Inf"),
        (GOOD[:, :1], 0, r"shape \(2, 1, 8, 8\) do not run through the model.*number of channels"),
        (torch.randn(2, 3, 9, 9), 0, r"shape \(2, 3, 9, 9\) do not run through the model"),
        (GOOD.numpy(), 0, r"must be a tensor of images .* but is ndarray"),
        ((), 0, r"is an empty tuple"),
        ((GOOD, GOOD[:1]), 0, r"inputs\[1\] must hold as many images as the first"),
        (GOOD.to("meta"), 0, r"on one device, but the model is on cpu and inputs on meta"),
    ],
)
def test_bad_inputs_and_targets(method: Any, inputs: Any, target: Any, message: str) -> None:
    error = ModelStateError if "device" in message else InputError
    with pytest.raises(error, match=message):
        method(net())(inputs, target)


@pytest.mark.parametrize("method", [GradientXInput, DMBP])
def test_nan_weights_are_named(method: Any) -> None:
    model = net()
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    with pytest.raises(ModelStateError, match=r"the model's '3.weight' holds NaN or Inf"):
        method(model)(GOOD, 0)


@pytest.mark.parametrize("method", [GradientXInput, DMBP])
def test_train_mode_is_refused(method: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    with pytest.raises(ModelStateError, match=r"eval mode, but '1' \(BatchNorm2d\) is in train mode. Call model.eval"):
        method(model)(GOOD, 0)


@pytest.mark.parametrize("method", [GradientXInput, DMBP])
def test_output_must_be_logits(method: Any) -> None:
    with pytest.raises(
        InputError, match=r"logits \(n, k\), one row an image, but returned .* of shape \(\d, 4, 6, 6\)"
    ):
        method(net()[:2])(GOOD, 0)


def test_targets_of_each() -> None:
    with pytest.raises(InputError, match=r"targets must have shape \(n, t\) with n = 2"):
        GradientXInput(net()).each(GOOD, [[0, 1]])


def test_unknown_options_and_methods_name_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'chunks' is no option of Gradient × input.*Did you mean 'chunk'"):
        GradientXInput(net(), chunks=2)
    with pytest.raises(InputError, match=r"chunk must be a positive integer or None, but is 0"):
        GradientXInput(net(), chunk=0)
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, but is function"):
        GradientXInput(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Did you mean 'dmbp'"):
        find_method("dmpb", (DMBP,))


def test_two_inputs_give_a_map_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.net(a) + 2 * self.net(b)

    first, second = GradientXInput(Two())((GOOD, GOOD), 1)
    torch.testing.assert_close(second.values, 2 * first.values)
    a, b = DMBP(Two(), steps=2)((GOOD, GOOD), 1)
    assert a.values.shape == b.values.shape == GOOD.shape
    assert float(a.completeness["gap"].abs().max()) < 1e-5


def test_explain_func_fits_quantus() -> None:
    inputs, targets = GOOD.numpy(), torch.tensor([0, 1]).numpy()
    maps = explain_func(net(), inputs, targets, method="gradient_x_input", device="cpu")
    assert maps.shape == inputs.shape
    torch.testing.assert_close(torch.from_numpy(maps), GradientXInput(net()).attribute(GOOD, torch.tensor([0, 1])))


def test_chunks_halve_when_memory_runs_out_and_repeat_only_the_failed_ones() -> None:
    seen: list[tuple[int, int]] = []

    def run(part: slice) -> slice:
        seen.append((part.start, part.stop))
        if part.stop - part.start > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return part

    done = run_in_chunks(run, lambda r: 1.0, n=7, chunk=None, device=torch.device("cpu"))
    assert [i for part in done for i in range(part.start, part.stop)] == list(range(7))
    assert seen == [(0, 4), (0, 2), (2, 4), (4, 6), (6, 7)]


def test_a_job_knows_its_place_in_its_batch() -> None:
    jobs: list[Job] = []

    class Seen(Gradient):
        def explain(self, job: Job) -> Maps:
            jobs.append(job)
            return super().explain(job)

    x = torch.randn(5, 3, 4, 4)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    Seen(net, chunk=2)(x, torch.arange(5) % 4)
    assert [(job.first, len(job), job.images) for job in jobs] == [(0, 2, 5), (2, 2, 5), (4, 1, 5)]
    assert torch.equal(torch.cat([job.inputs[0] for job in jobs]), x)
    one = jobs[1].one(1)
    assert (one.first, len(one), one.images) == (3, 1, 5)
    assert torch.equal(one.inputs[0], x[3:4])
    assert torch.equal(one.classes, torch.tensor([[3]]))


def test_other_errors_are_not_taken_for_memory() -> None:
    def run(part: slice) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        run_in_chunks(run, lambda r: 1.0, n=3, chunk=None, device=torch.device("cpu"))


def test_an_error_inside_the_model_is_not_blamed_on_the_inputs() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.requires_grad:
                raise RuntimeError("only when explained")
            return x.flatten(1)

    with pytest.raises(RuntimeError, match="only when explained"):
        GradientXInput(Broken())(GOOD, 0)
    from backlit.rules import presets

    with pytest.raises(RuntimeError, match="only when explained"):
        propagate(Broken(), GOOD, presets.gradient)
