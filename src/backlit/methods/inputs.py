"""Checks of what a user hands to a method, with messages that say the way out."""

from __future__ import annotations

import dis
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import BacklitError, InputError, ModelStateError, UnsupportedOp, shown
from backlit._forward import forward
from backlit._state import check_state
from backlit.capture import Site
from backlit.capture.refuse import check_output
from backlit.methods.axes import ANY, IMAGES, ROWS, Shape


def check_images(inputs: Any, model: nn.Module, dims: tuple[int, ...] = IMAGES) -> tuple[Tensor, ...]:
    """The inputs as a tuple of image batches that fit the model's device and precision.

    Args:
        inputs: A tensor, or a tuple of them.
        model: The network.
        dims: How many axes they may have: 3 for signals (n, c, t), 4 for images (n, c, h, w), 5 for volumes (n, c, d, h, w).

    Raises:
        InputError: If an input is no batch of finite floating-point images (n, c, h, w), or the model has another dtype.
        ModelStateError: If the model lives on another device, or is in a state that cannot be explained.
    """
    check_state(model)
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors:
        raise InputError("inputs must hold at least one tensor of images (n, c, h, w), but is an empty tuple.")
    for i, x in enumerate(tensors):
        _check_one(x, f"inputs[{i}]" if isinstance(inputs, tuple) else "inputs", tensors[0], dims)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    x = tensors[0]
    if parameter is not None and parameter.device != x.device:
        raise ModelStateError(
            f"model and inputs must be on one device, but the model is on {parameter.device} and inputs on {x.device}. "
            f"Use inputs.to({str(parameter.device)!r}) or model.to({str(x.device)!r})."
        )
    if parameter is not None and parameter.dtype != x.dtype:
        raise InputError(
            f"inputs must have the model's dtype {parameter.dtype}, but are {x.dtype}. Use inputs.to({parameter.dtype})."
        )
    if x.is_meta:
        raise InputError("inputs must hold values, but are on the meta device and have only a shape. Load the images.")
    for i, x in enumerate(tensors):
        finite = x.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            name = f"inputs[{i}]" if isinstance(inputs, tuple) else "inputs"
            which = ", ".join(map(str, (~finite).nonzero().flatten().tolist()[:5]))
            raise InputError(
                f"{name} must be finite, but image {which} holds NaN or Inf. Check the file or the preprocessing."
            )
    return tensors


def _check_one(x: Any, name: str, first: Tensor, dims: tuple[int, ...]) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"{name} must be a tensor of images (n, c, h, w), but is {type(x).__name__}.")
    shape = tuple(x.shape)
    if x.dim() not in dims:
        raise InputError(f"{name} must be {_SHAPES[dims]}, but has shape {shape}. {_way_out(x.dim(), first is not x)}")
    if x.layout != torch.strided:
        raise InputError(f"{name} must be a dense tensor, but is of layout {x.layout}. Use x.to_dense().")
    if x.numel() == 0:
        raise InputError(f"{name} must hold at least one image, but has shape {shape}.")
    if x.shape[0] != first.shape[0]:
        raise InputError(
            f"{name} must hold as many images as the first input ({first.shape[0]}), but has shape {shape}."
        )
    if not x.is_floating_point():
        raise InputError(
            f"{name} must be floating-point images as the network takes them, but is {x.dtype}. Convert and normalise "
            "first: (x.float() / 255 - mean) / std, or use the model's own preprocess."
        )
    if x.dtype == torch.float16 and x.device.type == "cpu":
        raise InputError(f"{name} is float16 on the CPU, which cannot run it well. Use .float() or .bfloat16().")


_SHAPES: dict[tuple[int, ...], str] = {
    IMAGES: "images of shape (n, c, h, w)",
    ROWS: "images (n, c, h, w) or signals (n, c, t)",
    ANY: "images (n, c, h, w), signals (n, c, t) or volumes (n, c, d, h, w)",
}


def _way_out(dims: int, further: bool) -> str:
    """What to do with an input that is no batch of images."""
    if further:
        return "Wrap the model so that other inputs are constants, which the wrapper holds and expands to len(x)."
    if dims == 3:
        return (
            "For one image (c, h, w) add the batch axis: x[None]. Methods such as LRP and IntegratedGradients take signals "
            "(n, c, t); for others they are images of one row: give x[:, :, None], and a module whose forward is model(x[:, :, 0])."
        )
    if dims == 5:
        return (
            "Methods such as LRP and IntegratedGradients take volumes; for others they are images of c * d channels: give "
            "x.flatten(1, 2), and a module whose forward is model(x.unflatten(1, (c, d)))."
        )
    return "Features (n, d) are images of one pixel: give x[:, :, None, None], and a module whose forward is model(x.flatten(1))."


def check_axes(model: nn.Module, tensors: tuple[Tensor, ...], shapes: tuple[Shape, ...], *, outputs: bool) -> None:
    """Refuse signals and volumes that the network does not take: they may be images that lack an axis.

    Args:
        model: The network, of what is explained in their place.
        tensors: The signals and volumes as images.
        shapes: What they are.
        outputs: Whether the network must give a row of numbers for each of them.

    Raises:
        InputError: With the way out.
    """
    plain = None
    for some in (tuple(x[:1] for x in tensors), tensors):
        plain = why_not(model, some, outputs=outputs)
        if plain is None or isinstance(plain, (ModelStateError, UnsupportedOp)):
            return
    wrong = next(shape for shape in shapes if len(shape) != 3)
    text = ", ".join(str((len(tensors[0]), *shape)) for shape in shapes)
    raise InputError(
        f"inputs must be images of shape (n, c, h, w), or signals or volumes that the model takes, but has shape {text}, with "
        f"which it does not run: {str(plain).rstrip('.')}. {_way_out(len(wrong) + 1, False)}"
    )


def check_targets(target: Any, n: int, *, several: bool) -> Tensor | None:
    """Target indices as (n, t) int64, or None for the predicted class; t is 1 unless ``several`` are asked for.

    Raises:
        InputError: If they are no integers, or not one row per image.
    """
    if target is None and not several:
        return None
    try:
        indices = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"target must be class indices, but is {shown(target)}.") from error
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise InputError(f"target must be integer class indices, but is {indices.dtype}.")
    shape = tuple(indices.shape)
    if several:
        if indices.dim() != 2 or indices.shape[0] != n or indices.shape[1] == 0:
            raise InputError(f"targets must have shape (n, t) with n = {n} images, but has shape {shape}.")
        return indices.long().cpu()
    if indices.dim() == 0:
        return indices.long().cpu().expand(n, 1)
    if indices.dim() != 1 or indices.shape[0] != n:
        raise InputError(
            f"target must be one index or one per image ({n}), but has shape {shape}. For several targets per image use each()."
        )
    return indices.long().cpu()[:, None]


def pick(output: Tensor, targets: Tensor | None) -> Tensor:
    """The targets (n, t) on the output's device, the predicted class where none was given.

    Raises:
        InputError: If an index is not among the k classes of ``output`` (n, k).
    """
    if targets is None:
        return output.detach().argmax(1, keepdim=True)
    k = output.shape[1]
    wrong = targets[(targets < 0) | (targets >= k)]
    if wrong.numel():
        check_class(int(wrong[0]), k)
    return targets.to(output.device)


def check_class(index: int, k: int) -> None:
    """Refuse an index that is none of k classes.

    Raises:
        InputError: With the classes that there are.
    """
    if not 0 <= index < k:
        raise InputError(f"target must be a class index from 0 to {k - 1}, but is {index}; the model has {k} classes.")


def probability(output: Tensor, targets: Tensor) -> Tensor | None:
    """The targets' probabilities (t, n) among the k classes of ``output`` (n, k), at least in single precision.

    Rows that are probabilities already, as of a network that ends in a softmax, are taken as they are. None for a network
    of one output, whose score is no logit of a set of classes.
    """
    if output.shape[1] < 2:
        return None
    return chances(output.detach()).gather(1, targets).T


def chances(output: Tensor) -> Tensor:
    """Return the probabilities of the k classes of ``output`` (n, k), as :func:`probability` reads them, with its graph."""
    scores = output.to(torch.promote_types(output.dtype, torch.float32))
    is_sum = (scores.sum(1, keepdim=True) - 1).abs() < _SUM_OF_CHANCES
    given = is_sum & (scores >= 0).all(1, keepdim=True)
    return torch.where(given, scores, scores.softmax(1))


_SUM_OF_CHANCES = 1e-3  # how far from 1 rounding in half precision takes the sum of a thousand probabilities


def check_runs(model: nn.Module, tensors: tuple[Tensor, ...], error: Exception) -> None:
    """Say it plainly if the network itself cannot run on these inputs; an error that is its own is left to come through.

    Raises:
        InputError: If an operation of torch fails in a plain forward pass, too.
    """
    plain = why_not(model, tensors)
    if plain is None or isinstance(plain, BacklitError) or not _by_torch(plain):
        return
    shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
    raise InputError(
        f"inputs of shape {shapes} do not run through the model: {str(plain).rstrip('.')}. Check the number of channels and the "
        "size that the model expects (its preprocessing says both)."
    ) from error


def chunk_of(model: nn.Module, tensors: tuple[Tensor, ...], chunk: int | None) -> int | None:
    """The chunk size that was asked for; the number of images where the network takes them only together.

    Raises:
        InputError: If then fewer are asked for.
    """
    first, n = tuple(x[:1] for x in tensors), len(tensors[0])
    if why_not(model, first) is None:
        return chunk
    text = None if chunk is None else _only_together(model, tensors, first)
    if text is not None:
        raise InputError(f"chunk must be None or at least {n}, but is {chunk}: {text}")
    return n  # where it does not take all of them, either, the first chunk says so


def check_takes(model: nn.Module, tensors: tuple[Tensor, ...], some: tuple[Tensor, ...]) -> None:
    """Refuse a network that takes the images of ``tensors`` together, but not ``some`` images in another number.

    Raises:
        InputError: If so, with the way out.
    """
    text = _only_together(model, tensors, some)
    if text is not None:
        raise InputError(f"model must take any number of images here, but {text}")


def alike(one: Tensor, other: Tensor) -> bool:
    """Tell whether two runs on the same images gave the same logits, but for rounding: a constant may differ between them."""
    rounding = max(1e-3, 4 * torch.finfo(one.dtype).eps)
    return not bool(
        ((one - other).abs() > rounding * one.abs().amax()).any()
    )  # NaN is refused elsewhere, by its own name


def _only_together(model: nn.Module, tensors: tuple[Tensor, ...], some: tuple[Tensor, ...]) -> str | None:
    plain = why_not(model, some)
    if plain is None or isinstance(plain, (ModelStateError, UnsupportedOp)) or why_not(model, tensors) is not None:
        return None
    # What the network itself raises may be about one image, and not about their number.
    if not isinstance(plain, BacklitError) and not _by_torch(plain):
        return None
    return (
        f"the model takes these {len(tensors[0])} images only together, and not {len(some[0])} ({str(plain).rstrip('.')}). Does "
        "it hold a constant for each image? One of shape (1, d), expanded to len(x) in forward, serves any number of images."
    )


def why_not(model: nn.Module, tensors: tuple[Tensor, ...], *, outputs: bool = True) -> Exception | None:
    """Return what keeps the network from giving one row for each image, or from running at all; None if nothing does."""
    try:
        output = forward(model, *tensors)
        if outputs:
            check_output(output, len(tensors[0]))
    except Exception as error:
        return error
    return None


def _by_torch(error: Exception) -> bool:
    """Whether an operation of torch refused its arguments, rather than the network's own code by a raise statement."""
    if type(error) not in (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError):
        return False
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    code = last.tb_frame.f_code
    inside = code.co_filename.startswith(_TORCH)
    if code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]:
        return inside
    return inside or type(error) is RuntimeError or (type(error) is IndexError and "dimension" in str(error).lower())


_TORCH = str(Path(torch.__file__).parent)


def not_finite(model: nn.Module, what: str, site: Site | None = None) -> Exception:
    """The error for a result with NaN or Inf, naming the weight or the site that it comes from if there is one.

    Args:
        model: The network.
        what: The result.
        site: Where the gradient is no longer finite.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return ModelStateError(f"{what} is not finite: the model's {name!r} holds NaN or Inf. Load sound weights.")
    overflow = "Use float32 or float64, and check that the inputs are normalised as the model expects."
    if site is not None and site.kind == "affine":  # which has a derivative everywhere
        return ModelStateError(f"{what} is not finite: the computation of its gradient overflows at {site}. {overflow}")
    if site is not None:
        return ModelStateError(
            f"{what} is not finite: the gradient becomes NaN or infinite at {site}, which has no derivative at the input that it "
            "gets there, as a square root or a norm has none at 0. Add a small number under the root, or keep its input above 0."
        )
    return ModelStateError(
        f"{what} is not finite although inputs and weights are: the computation overflows. {overflow}"
    )
