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
    """The tensors of a network, with a copy of the buffers, which a forward pass might write to."""

    def __init__(self, model: nn.Module) -> None:
        self._held: list[tuple[str, dict[str, Any], str, Tensor, int | None]] = []
        self._buffers: dict[tuple[torch.dtype, torch.device], list[tuple[str, Tensor]]] = {}
        for prefix, module in model.named_modules():
            dot = prefix and f"{prefix}."
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        version = None if tensor.is_inference() else tensor._version
                        self._held.append((dot + name, table, name, tensor, version))
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.layout is torch.strided:
                    self._buffers.setdefault((buffer.dtype, buffer.device), []).append((dot + name, buffer))
        self._copies = {kind: _flat(buffers) for kind, buffers in self._buffers.items()}

    @torch.no_grad()
    def restore(self) -> str | None:
        """Put back the buffers that were written since, and what was replaced by others; the name of the first such tensor."""
        written = [p for p, _, _, tensor, version in self._held if version is not None and tensor._version != version]
        for kind, buffers in self._buffers.items():
            # Batch norm writes its statistics without a new version, and so does what writes to .data.
            if written or not torch.equal(_flat(buffers), self._copies[kind]):
                copies = self._copies[kind].split([buffer.numel() for _, buffer in buffers])
                written += [path for (path, b), copy in zip(buffers, copies, strict=True) if _put_back(b, copy)]
        for path, table, name, tensor, _ in self._held:
            now = table[name] if name in table else None  # noqa: SIM401  a scripted module's table has no get
            if now is not tensor:
                if now is not None and now.shape == tensor.shape and not _same(now, tensor):
                    written.append(path)  # of another shape it is a cache, made for these inputs
                table[name] = tensor
        return written[0] if written else None


def _flat(buffers: list[tuple[str, Tensor]]) -> Tensor:
    """Copies of all values in one tensor, so that they are made, and compared, in one step."""
    return torch.cat([buffer.detach().flatten() for _, buffer in buffers])


def _put_back(buffer: Tensor, copy: Tensor) -> bool:
    """Whether the buffer was another; it is as its copy now."""
    was = copy.view(buffer.shape)
    changed = not _same(buffer, was)
    if changed:
        buffer.copy_(was)
    return changed


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())
