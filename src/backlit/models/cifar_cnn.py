"""A small plain CNN for images of 32 x 32 pixels: four convolutions, two max-pools, two linear layers."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from backlit._errors import InputError
from backlit.models import cifar
from backlit.models.loaded import LoadedModel
from backlit.models.request import Request

NAME = "cifar_cnn"
_POOLED = 4  # two max-pools, each of which halves the sides


class CifarCNN(nn.Module):
    """Our reading of the LPR paper's "custom CNN model with four convolutional layers" for CIFAR-10.

    The paper says no more of it than that and its accuracy (80.73 %). Ours: 3x3 convolutions, padded, with ``width``,
    ``width``, 2 ``width`` and 2 ``width`` channels, a ReLU after each, a max-pool after the second and the fourth, then a
    hidden linear layer of 4 ``width`` units and the logits; no batch norm, so that nothing looks at other images. With the
    width of 32 it has 591,274 parameters.

    Args:
        classes: Number of logits.
        channels: Channels of the images.
        size: Side of the images in pixels, a multiple of 4.
        width: Channels of the first convolution.
        dropout: Share of the activations dropped in training, after each max-pool and before the logits.
    """

    def __init__(
        self, classes: int = 10, *, channels: int = 3, size: int = 32, width: int = 32, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if size < _POOLED or size % _POOLED:
            raise InputError(
                f"size must be a positive multiple of {_POOLED}, which two max-pools divide, but is {size}."
            )
        wide, side = 2 * width, size // _POOLED
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, width, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(width, width, 3, padding=1),
                relu2=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                drop1=nn.Dropout(dropout),
                conv3=nn.Conv2d(width, wide, 3, padding=1),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(wide, wide, 3, padding=1),
                relu4=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                drop2=nn.Dropout(dropout),
            )
        )
        self.hidden = nn.Linear(wide * side * side, 4 * width)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits."""
        return self.linear(self.dropout(self.relu(self.hidden(self.features(x).flatten(1)))))


def load(request: Request) -> LoadedModel:
    """Build the network for the classes and the width of the weights file; it comes without weights of its own."""
    request.refuse_untrained(f"{NAME} comes without any")
    classes, width = len(cifar.CLASS_NAMES), 32
    if request.weights is not None:
        classes = request.weights.rows("linear.weight") or classes
        width = request.weights.rows("features.conv1.weight") or width
    network = request.build(lambda: CifarCNN(classes, width=width))
    return request.finish(network, cifar.PREPROCESS, request.class_names(cifar.CLASS_NAMES, classes))
