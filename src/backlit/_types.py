"""Names for the shapes that cross Backlit's public edges: n images, c channels, h x w pixels, k classes."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

Images = Float[Tensor, "n c h w"]
Heatmap = Float[Tensor, "n 1 h w"]
Logits = Float[Tensor, "n k"]
Targets = Int[Tensor, " n"]
PerImage = Float[Tensor, " n"]

__all__ = ["Heatmap", "Images", "Logits", "PerImage", "Targets"]
