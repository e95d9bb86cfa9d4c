"""The question why one class and not another: a network whose only output is the difference of two logits."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from backlit._errors import InputError
from backlit.models.loaded import LoadedModel


class Contrast(nn.Module):
    """A network followed by one subtraction: the logit of ``index`` less the logit of ``less``, (n, 1).

    The network runs as it is. The map of a method that is linear in what it explains (gradients, LRP, DeepLIFT, BBp) is the
    first class's map less the second's; another method explains the difference as it explains any output.
    """

    def __init__(self, network: nn.Module, index: int, less: int) -> None:
        super().__init__()
        self.network, self.index, self.less = network, index, less

    def forward(self, x: Tensor) -> Tensor:
        """Return the difference (n, 1) for images (n, c, h, w)."""
        logits = self.network(x)
        return logits[:, self.index : self.index + 1] - logits[:, self.less : self.less + 1]


def contrast(loaded: LoadedModel, label: str | int, less: str | int) -> LoadedModel:
    """Return a model with one output, the logit of one class less that of another; its preprocessing stays.

    Args:
        loaded: The model.
        label: The class that the map is to speak for: a name or an index.
        less: The class that it is to speak against.

    Raises:
        InputError: If a class is unknown, or both are the same.

    """
    index, other = loaded.class_index(label), loaded.class_index(less)
    name = loaded.class_names[index]
    if index == other:
        raise InputError(f"target: a contrast needs two different classes, but both are {name!r} ({index}).")
    network = Contrast(loaded.network, index, other).train(loaded.network.training)
    return replace(loaded, network=network, class_names=(f"{name} − {loaded.class_names[other]}",))
