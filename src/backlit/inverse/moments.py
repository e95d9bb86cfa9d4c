"""First and second moments of a stream, per class, and the regression that follows from them.

Everything is kept in float64 as means and centred sums, merged batch by batch (Chan, Golub and LeVeque 1983), so that
the result does not depend on how the samples were cut into batches but for rounding, and no sample is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from backlit._errors import InputError

_BANDS = 4  # of a symmetric product


@dataclass(frozen=True)
class Sizes:
    """A regression's sizes: ``groups`` of their own, ``unknowns`` regressors and ``targets`` in each."""

    groups: int
    unknowns: int
    targets: int

    @property
    def bytes(self) -> int:
        """The bytes of the moments of one class."""
        return 8 * self.groups * (self.unknowns + self.targets + self.unknowns * (self.unknowns + self.targets))


class Moments:
    """A sum of moments of regressors s (q of them) and targets x (m), per class and group.

    ``precision`` is the dtype of the products inside one batch, which are centred first; sums are float64 always.
    """

    def __init__(
        self, classes: int, sizes: Sizes, device: torch.device, precision: torch.dtype = torch.float64
    ) -> None:
        g, q, m = sizes.groups, sizes.unknowns, sizes.targets

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(classes, *shape, dtype=torch.float64, device=device)

        self.sizes, self.precision = sizes, precision
        self.count = zeros()
        self.mean_s, self.mean_x = zeros(g, q), zeros(g, m)
        self.ss, self.xs, self.xx = zeros(g, q, q), zeros(g, m, q), zeros(g, m)

    def add(
        self, classes: Int[Tensor, " k"], s: Float[Tensor, "k g r q"], x: Float[Tensor, "g r m"], positions: int = 1
    ) -> None:
        """Add r rows, the same targets for each of k different classes; they are the ``positions`` of image after image.

        Products in float32 are of what is left without the mean over the images at each position: a convolution reads zeros
        beside a map, which would else weigh as much as the map's mean. The means themselves are multiplied in float64.
        """
        if not s.shape[2]:
            return
        positions = 1 if self.precision == torch.float64 else positions
        s, x = s.unflatten(2, (-1, positions)), x.unflatten(1, (-1, positions))
        images = s.shape[2]
        place_s, place_x = s.mean(2, dtype=torch.float64), x.mean(1, dtype=torch.float64)
        mean_s, mean_x = place_s.mean(2), place_x.mean(1)
        s, x = (self._centred(v, m).flatten(-3, -2) for v, m in ((s, place_s[:, :, None]), (x, place_x[:, None])))
        place_s, place_x = place_s - mean_s[:, :, None], place_x - mean_x[:, None]
        side_by_side = s.permute(1, 2, 0, 3).flatten(2)  # one product for all classes: they share the targets
        xs = (x.mT @ side_by_side).unflatten(2, (s.shape[0], -1)).permute(2, 0, 1, 3)
        ss, xx = _squared(s), (x * x).sum(1).double()
        if positions > 1:
            ss = ss + images * (place_s.mT @ place_s)
            xs = xs + images * (place_x.mT @ place_s)
            xx = xx + images * (place_x * place_x).sum(1)
        n = images * positions
        share = n / (self.count[classes] + n)
        weight = (self.count[classes] * share)[:, None, None]
        step_s, step_x = mean_s - self.mean_s[classes], mean_x - self.mean_x[classes]
        for total, products, left in ((self.ss, ss, step_s), (self.xs, xs, step_x)):
            total[classes] += products + (weight * left)[..., None] * step_s[..., None, :]
        self.xx[classes] += xx + weight * step_x**2
        self.mean_s[classes] += share[:, None, None] * step_s
        self.mean_x[classes] += share[:, None, None] * step_x
        self.count[classes] += n

    def _centred(self, values: Tensor, mean: Tensor) -> Tensor:
        """Return values without their mean, in the precision of the products; the difference is taken in the values' own."""
        wide = torch.promote_types(values.dtype, self.precision)
        return (values.to(wide) - mean.to(wide)).to(self.precision)

    def of(self, classes: Tensor) -> Moments:
        """Return those of some classes, by a mask; of all of them, these very ones."""
        if bool(classes.all()):
            return self
        some = Moments(0, self.sizes, self.count.device, self.precision)
        for name in ("count", "mean_s", "mean_x", "ss", "xs", "xx"):
            setattr(some, name, getattr(self, name)[classes])
        return some


def _squared(s: Tensor) -> Tensor:
    """Return s' s of rows s (..., r, q), each half of it from the other: 0.7 of the time of a plain product."""
    q = s.shape[-1]
    squared = s.new_empty(*s.shape[:-2], q, q)
    edges = [q * i // _BANDS for i in range(_BANDS + 1)]
    for low, high in pairwise(edges):
        band = s[..., low:high].mT @ s[..., :high]
        squared[..., low:high, :high] = band
        squared[..., :high, low:high] = band.mT
    return squared


@dataclass(frozen=True)
class Solution:
    """A solution ``x = weight s + bias`` per class and group, and how well it was determined.

    ``weight`` is (k, g, m, q), ``bias`` (k, g, m). ``explained`` (k,) is the share of the targets' variance that the fit
    accounts for; ``condition`` is the largest condition number of ``cov(s, s) + ridge I`` where there were no more samples
    than unknowns, else None.
    """

    weight: Tensor
    bias: Tensor
    explained: Tensor
    condition: float | None


@dataclass(frozen=True)
class Ridge:
    """A ridge: what a regression adds to the diagonal, and whether it has a constant.

    Attributes:
        strength: Lambda of Eq. 6.
        relative: It is in units of the regressors' mean variance in each group, at least 1e-12 of it, so that neither their
            unit matters nor that they are dependent.
        sums: It is added to the sums of products over the samples, as Eq. 6 prints them, and not to their means: it is then
            as many times weaker as there are samples.
        constant: The regression has a constant; without it, nothing is centred (Eq. 7).
    """

    strength: float
    relative: bool = False
    sums: bool = False
    constant: bool = True


def solve(moments: Moments, ridge: Ridge, name: str) -> Solution:
    """Solve a ridge regression (MIP-IN, Eq. 6): ``cov(x, s) (cov(s, s) + ridge I)^-1``, covariances as means over the samples.

    Raises:
        InputError: If the system is singular, which a positive ridge prevents.
    """
    count = moments.count.clamp(min=1)[:, None, None, None]
    cov, cross, xx = moments.ss / count, moments.xs / count, moments.xx / count[..., 0]
    if not ridge.constant:
        cov = cov + moments.mean_s[..., None] * moments.mean_s[..., None, :]
        cross = cross + moments.mean_x[..., None] * moments.mean_s[..., None, :]
        xx = xx + moments.mean_x.square()
    q = cov.shape[-1]
    strength: Tensor | float = ridge.strength / count if ridge.sums else ridge.strength
    if ridge.relative:
        size = cov.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        strength = max(ridge.strength, 1e-12) * size + torch.finfo(cov.dtype).tiny
    regular = cov.clone()
    regular.diagonal(dim1=-2, dim2=-1).add_(strength[..., 0] if isinstance(strength, Tensor) else strength)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if bool(failed.any()):
        raise InputError(
            f"ridge must be large enough for {name}, whose {q} regressors are not independent, but is {ridge.strength:g}. Use "
            "0.001, as the paper does, or more samples."
        )
    weight = torch.cholesky_solve(cross.mT, factor).mT
    bias = moments.mean_x - (weight @ moments.mean_s[..., None])[..., 0]
    bias = bias if ridge.constant else torch.zeros_like(bias)
    # 2 W cross' - W cov W', where W cov = cross - strength W
    gained = (weight * cross).sum((1, 2, 3)) + (strength * weight.square().sum((2, 3), keepdim=True)).sum((1, 2, 3))
    total = xx.sum((1, 2))
    few = moments.count <= q
    condition = None
    if bool(few.any()):
        values = torch.linalg.eigvalsh(regular[few])
        condition = float((values[..., -1] / values[..., 0].clamp(min=torch.finfo(cov.dtype).tiny)).max())
    return Solution(weight, bias, torch.where(total > 0, gained / total, 1.0), condition)
