"""ResNet-20 for CIFAR-10 (He et al. 2016, section 4.2), with parameter-free shortcuts."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from backlit.models.loaded import LoadedModel
from backlit.models.preprocess import Preprocess
from backlit.models.request import Request

NAME = "cifar_resnet20"
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PREPROCESS = Preprocess(size=(32, 32))  # torchvision's normalisation, no crop


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual add; the shortcut drops pixels and pads channels with zeros."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padded = (channels - channels_in) // 2

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """Return the block's activations."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.padded:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padded, self.padded))
        return F.relu(out + x)


class CifarResNet20(nn.Module):
    """Three stages of three blocks with 16, 32, 64 channels, mean pool, linear: 270,000 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, stride=1)
        self.layer2 = self._stage(16, 32, stride=2)
        self.layer3 = self._stage(32, 64, stride=2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(channels, channels, 1) for _ in range(2)]
        return nn.Sequential(BasicBlock(channels_in, channels, stride), *rest)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return the logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load(request: Request) -> LoadedModel:
    """Build the network for the classes of the weights file; it is never without one unless random is asked for."""
    request.refuse_untrained(f"{NAME} comes without any")
    classes = len(CLASS_NAMES)
    if request.weights is not None:
        classes = request.weights.rows("linear.weight") or classes
    network = request.build(lambda: CifarResNet20(classes))
    return request.finish(network, PREPROCESS, request.class_names(CLASS_NAMES, classes))
