"""Methods that learn from data before they can explain: what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from backlit._errors import InputError, nearest
from backlit._options import NO_OPTION
from backlit._state import check_module
from backlit.inverse import FitStep, Fitted
from backlit.inverse.artefact import Layers
from backlit.inverse.data import Data
from backlit.methods.base import NO_NETWORK, Method
from backlit.methods.named import Named, network_of
from backlit.methods.steps import told_of_fit

Learned = TypeVar("Learned", bound=Fitted)
Placed = tuple[tuple[torch.device, torch.dtype], Layers]
"""What was learned, on a device and in a dtype."""


class FittedMethod(Method, Generic[Learned]):
    """A method whose parameters come from data: ``METHOD.fit(model, data)``, then ``METHOD(model, fitted=...)``.

    Attributes:
        fitted: What the method's ``fit`` returned, or a file that it or ``backlit fit`` wrote; it is read when the method is
            made, for a file may be another one later.
    """

    artefact: ClassVar[str]
    learner: ClassVar[Callable[..., Fitted]]
    fit_options: ClassVar[type]
    subtracts = True
    takes_scores = False
    explains_inside = False
    needs = "data to fit to"

    fitted: Fitted | str | Path | None = None
    _copy: list[Placed] = field(default_factory=list, init=False, metadata=NO_OPTION)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is NO_NETWORK:
            return
        given = self.fitted
        if given is None:
            raise InputError(
                f"{self.title} must be fitted to data first: `backlit fit --method {self.artefact} --data DIR --out FILE`, or "
                f"{type(self).__name__}.fit(model, data); then give it the result as fitted=... (--fitted FILE)."
            )
        if not isinstance(given, (Fitted, str, Path)):
            raise InputError(
                f"fitted must be what {type(self).__name__}.fit returned, or its file, but is {type(given).__name__}."
            )
        learned = given if isinstance(given, Fitted) else Fitted.load(given)
        learned.check_kind(self.artefact)
        learned.check_network(self.network)
        object.__setattr__(self, "fitted", learned)

    @classmethod
    def fit(
        cls,
        model: nn.Module | Named,
        data: Data,
        *,
        out: str | Path | None = None,
        description: str = "",
        progress: Callable[[FitStep], None] | bool = False,
        **options: Any,
    ) -> Learned:
        """Learn from data what the method needs for this model.

        Args:
            model: The network, in eval mode. It is not changed.
            data: An iterable of batches, images (n, c, h, w) or (images, class indices).
            out: A file for the result. What is done is kept beside it, and the same call goes on from there.
            description: Of the data, for the record.
            progress: Called after each batch; True says on the error stream how far it is.
            options: The fields of the class' ``fit_options``.

        Raises:
            InputError: If an argument or a batch cannot be used.
            UnsupportedOp: If the network holds nothing to learn, or an operation that the fit has no rule for.
            ModelStateError: If an activation is not finite; names the batch.
            FileError: If ``out`` cannot be written, or holds anything but an earlier fit of this kind.
        """
        network = network_of(model)
        check_module(network)
        known = [f.name for f in fields(cls.fit_options)]
        for key in options:
            if key not in known:
                raise InputError(f"{key!r} is no option of this fit: it has {', '.join(known)}.{nearest(key, known)}")
        made = cls.fit_options(**options)
        with told_of_fit(cls.title, progress) as tell:
            found = cls.learner(network, data, made, out=out, description=description, progress=tell)
        return cast(Learned, found)

    @property
    def learned(self) -> Learned:
        """The fit, read from its file."""
        return cast(Learned, self.fitted)

    def parameters(self, x: Tensor) -> Layers:
        """Return what was learned, on the device and in the dtype of ``x``; copied there once, not for every map."""
        wanted = (x.device, x.dtype)
        for place, layers in tuple(self._copy):  # other threads may write it
            if place == wanted:
                return layers
        layers = self.learned.to(*wanted)
        self._copy[:] = [(wanted, layers)]
        return layers

    def places(self, targets: Tensor) -> Tensor:
        """Tell where each target stands among the fitted classes.

        Raises:
            InputError: If one was not fitted.
        """
        same = targets[..., None] == targets.new_tensor(self.learned.classes)
        if not bool(same.any(-1).all()):
            missing = sorted(set(targets[~same.any(-1)].tolist()))
            raise InputError(
                f"target must be among the {len(self.learned.classes)} fitted classes, but class {missing[0]} is not. Fit it, "
                "or explain another one."
            )
        return same.int().argmax(-1)
