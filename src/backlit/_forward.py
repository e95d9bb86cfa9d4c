"""Run a network's own forward pass so that the network and the random streams stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from backlit._draws import refuse_draws
from backlit._errors import ModelStateError

Result = TypeVar("Result")


def forward(model: nn.Module, *inputs: Tensor, grad: bool = False) -> Any:
    """Run the network on these inputs, which it cannot write to; without gradients, unless ``grad`` asks for them.

    Raises:
        ModelStateError: If the network draws at random, or writes to its own parameters or buffers.
    """
    with torch.set_grad_enabled(grad), unchanged(model, inputs):
        return model(*(x.clone() for x in inputs))


def of_image(run: Callable[[tuple[Tensor, ...], int], Result], inputs: tuple[Tensor, ...], i: int = 0) -> Result:
    """``run(images, place)`` on image i alone; on all images where the network takes no fewer.

    So it is with a network that holds a constant for each image of its batch.
    """
    if len(inputs[0]) > 1:
        with suppress(Exception):
            return run(tuple(x[i : i + 1] for x in inputs), 0)
    return run(inputs, i)


@contextmanager
def unchanged(model: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Refuse a forward pass inside that draws at random or writes to the network; put back what it wrote.

    Args:
        model: The network that runs inside.
        inputs: What it runs on; they must not be written.

    Raises:
        ModelStateError: With the module that drew, or the tensor that was written.
    """
    kept = _State(model)
    try:
        with refuse_draws(model, inputs):
            yield
    except BaseException:
        kept.restore()
        raise
    written = kept.restore()
    if written:
        raise ModelStateError(
            f"model must stay as it is when it runs, but its forward pass writes to {written!r}, so that each call changes the "
            "next. Call model.eval(). If it writes in eval mode, too, let it do so only `if self.training`."
        )


class _State:
    """The tensors of a network, with copies of the buffers that a forward pass might write to."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors: list[tuple[str, Tensor, int]] = []
        self._copies: list[tuple[str, nn.Module, str, Tensor, Tensor]] = []
        for prefix, module in model.named_modules():
            dot = prefix and f"{prefix}."
            # In eval mode torch's own modules write nothing.
            copied = module.training or not type(module).__module__.startswith("torch.nn.modules.")
            for name, buffer in module._buffers.items():
                if buffer is not None and copied:
                    self._copies.append((dot + name, module, name, buffer, buffer.detach().clone()))
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and not tensor.is_inference():
                    self._tensors.append((dot + name, tensor, tensor._version))

    @torch.no_grad()
    def restore(self) -> str | None:
        """Put back the buffers that were written since, or replaced by others; the name of the first such tensor."""
        written = [name for name, tensor, version in self._tensors if tensor._version != version]
        for path, module, name, buffer, copy in self._copies:
            # Batch norm writes its statistics without a new version.
            if path in written or (module.training and not _same(buffer, copy)):
                written.append(path)
                buffer.copy_(copy)
            now = module._buffers.get(name)
            if now is not buffer:
                if now is not None and now.shape == copy.shape and not _same(now, copy):
                    written.append(path)  # of another shape it is a cache, made for these inputs
                module._buffers[name] = buffer
        return written[0] if written else None


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())
