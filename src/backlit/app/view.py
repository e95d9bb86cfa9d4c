"""What the app shows of an image: pure functions from what was asked to maps, numbers and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backlit._errors import InputError
from backlit._forward import forward
from backlit._options import option_names
from backlit.attribution import Attribution
from backlit.bench.chosen import methods as methods_in
from backlit.bench.chosen import with_bounds
from backlit.bench.setting import read_setting
from backlit.metrics import Deletion, Examples, Insertion
from backlit.models import LoadedModel
from backlit.report.card import card
from backlit.report.panels import Panels, as_rgb
from backlit.report.trust import Trust, percent, trust

Sign = Literal["both", "for", "against"]
MOST_PASSES = 3_000
"""Forward passes that one map may cost here: more is for the command line."""
POINTS = 20
"""Steps of the curves, and of the slider: each shows a point that was computed."""
TOP = 5


@dataclass(frozen=True)
class Ask:
    """A question: which map of which class.

    Attributes:
        method: The method in its setting: "lpr(steps=20)".
        target: A class by its name or index.
        against: Another class, whose score is taken off; "" for none.
    """

    method: str
    target: str
    against: str = ""


@dataclass(frozen=True, eq=False)
class MapView:
    """A map with all that is said of it.

    Attributes:
        ask: What was asked.
        explanation: The map.
        trust: How far to trust it.
        seconds: How long it took.
        passes: What it cost, in forward passes of the network.
        failed: Why there is none; then the others are empty.
    """

    ask: Ask
    explanation: Attribution | None = None
    trust: Trust | None = None
    seconds: float = 0.0
    passes: float = 0.0
    failed: str = ""


@dataclass(frozen=True, eq=False)
class Curves:
    """Two curves: the score as pixels are shown, and as they are taken away, most relevant first.

    Attributes:
        positions: Shares of the pixels, from 0 to 1.
        insertion: The score of what is shown.
        deletion: The score of what is left.
    """

    positions: np.ndarray
    insertion: np.ndarray
    deletion: np.ndarray


@dataclass(frozen=True, eq=False)
class Chance:
    """A class and its probability."""

    name: str
    index: int
    probability: float


class StoppedByUser(Exception):
    """Raised inside of a method when its user stops it."""


@dataclass
class Progress:
    """Told after each step of a slow method; raises to end it.

    Attributes:
        tell: Called with the step's number and how many there are.
        stop: Says whether the user has stopped it.
    """

    tell: Callable[[int, int], object] = field(default=lambda step, of: None)
    stop: Callable[[], bool] = field(default=lambda: False)

    def __call__(self, step: object) -> None:
        if self.stop():
            raise StoppedByUser
        self.tell(int(getattr(step, "index", 0)), int(getattr(step, "steps", 1)))


def read_image(loaded: LoadedModel, image: Image.Image | np.ndarray) -> Tensor:
    """Return the network's input (1, c, h, w) of a picture.

    Raises:
        InputError: If it cannot be read as one.
    """
    return loaded.placed(loaded.preprocess(image)[None])


def chances(loaded: LoadedModel, x: Tensor, count: int = TOP) -> list[Chance]:
    """Return the classes that the network finds likeliest."""
    logits = forward(loaded.network, x)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise InputError(f"network: {loaded.name} must return logits (1, classes), but does not.")
    top = logits.softmax(1)[0].topk(min(count, logits.shape[1]))
    return [Chance(loaded.class_names[i], i, p) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]


def explain(loaded: LoadedModel, x: Tensor, ask: Ask, progress: Progress | None = None) -> MapView:
    """Explain one image by one method; what cannot be had says why.

    Raises:
        StoppedByUser: If the user stopped it.
    """
    start = time.perf_counter()
    try:
        (chosen,) = with_bounds(methods_in(ask.method, [], 0), loaded.preprocess)
        named = progress is not None and "callback" in option_names(chosen.method)
        options = {**chosen.options, **({"callback": progress} if named else {})}
        method = chosen.method(loaded, **options)
        passes = float(method.forward_passes)
        if passes > MOST_PASSES:
            raise InputError(
                f"{method.title} would cost {passes:,.0f} forward passes, over {MOST_PASSES:,}: take fewer steps, samples or "
                "masks, or use the command line."
            )
        target = f"{ask.target} - {ask.against}" if ask.against else ask.target
        explanation = method(x, target if ask.against else loaded.class_index(ask.target))
        return MapView(ask, explanation, trust(explanation), time.perf_counter() - start, passes)
    except StoppedByUser:
        raise
    except Exception as error:  # one map that cannot be had leaves the others alone
        return MapView(ask, failed=str(error) or type(error).__name__)


def overlay(shown: MapView, picture: Tensor, *, opacity: float, sign: Sign, scale: float | None) -> np.ndarray:
    """Draw the map over the photograph, uint8 (h, w, 3).

    Args:
        shown: A map that there is.
        picture: The photograph (c, h, w) in [0, 1].
        opacity: Of the map, from 0 to 1.
        sign: Which values to draw.
        scale: Where the colours end; None takes the map's own limit.
    """
    assert shown.explanation is not None
    assert shown.trust is not None
    return _Signed(shown.explanation, picture, scale, shown.trust.faintness, sign).overlay(opacity)


@dataclass(frozen=True, eq=False)
class _Signed(Panels):
    """Panels of the values of one sign alone, if that is asked for."""

    sign: Sign = "both"

    @property
    def strength(self) -> np.ndarray | None:  # type: ignore[override]
        """The map over its scale, without the other sign's values."""
        whole = Panels(self.explanation, self.picture, self.given, self.faintness).strength
        if whole is None or self.sign == "both":
            return whole
        return whole.clip(min=0) if self.sign == "for" else whole.clip(max=0)


def shared_scale(several: Sequence[MapView]) -> float | None:
    """Return one colour limit for maps that sum to the same: the largest of their own; None where there is no map."""
    limits = [float(Panels(s.explanation, None).own[0]) for s in several if s.explanation is not None]
    return max(limits) if limits else None


def curves(loaded: LoadedModel, x: Tensor, shown: MapView) -> Curves:
    """Measure insertion and deletion of this very map."""
    assert shown.explanation is not None
    examples = Examples(x, shown.explanation.target[:1].to(x.device))
    maps = {"map": shown.explanation.values}
    insertion, deletion = (kind(steps=POINTS)(loaded.network, examples, maps) for kind in (Insertion, Deletion))
    assert insertion.positions is not None
    return Curves(insertion.positions, insertion.curves["map"][0], deletion.curves["map"][0])


def kept(shown: MapView, picture: Tensor, share: float) -> np.ndarray:
    """Draw the photograph with only the most relevant share of its pixels, the rest pale and grey, uint8 (h, w, 3)."""
    assert shown.explanation is not None
    heat = shown.explanation.heatmap()[0, 0].flatten()
    most = torch.zeros(len(heat), dtype=torch.bool)
    most[heat.cpu().argsort(descending=True, stable=True)[: round(share * len(heat))]] = True
    photo = as_rgb(picture).float().cpu()
    grey = photo.mean(0, keepdim=True).expand_as(photo) * 0.25 + 0.7
    return _bytes(torch.where(most.view(1, *photo.shape[-2:]), photo, grey))


def hidden(loaded: LoadedModel, x: Tensor, painted: np.ndarray, *, reveal: bool) -> Tensor:
    """Hide the pixels that were painted, or show these alone: what is hidden becomes what the network takes for 0.

    Args:
        loaded: The network.
        x: The image (1, c, h, w).
        painted: Where there is paint, (h, w), of any size.
        reveal: Show the painted pixels alone.
    """
    small = Image.fromarray((painted > 0).astype(np.uint8) * 255).resize(
        (x.shape[-1], x.shape[-2]), Image.Resampling.NEAREST
    )
    mask = torch.from_numpy(np.asarray(small) > 0).to(x.device)
    return x * (mask if reveal else ~mask).to(x.dtype)


def picture_of(loaded: LoadedModel, x: Tensor) -> Tensor:
    """Return the picture (c, h, w) in [0, 1] that an input is."""
    return loaded.preprocess.restore(x[0].detach().float().cpu()).clamp(0, 1)


def as_picture(image: Tensor) -> np.ndarray:
    """Return a picture (c, h, w) in [0, 1] as uint8 (h, w, 3)."""
    return _bytes(as_rgb(image).float())


def card_of(shown: MapView, picture: Tensor) -> np.ndarray:
    """Draw the map's card."""
    assert shown.explanation is not None
    return card(shown.explanation, picture)


def facts(shown: MapView) -> list[tuple[str, str]]:
    """Tell what a reader must know of a map, as pairs of a name and a value."""
    if shown.explanation is None or shown.trust is None:
        return [("no map", shown.failed)]
    told = [("verdict", shown.trust.word)]
    if shown.trust.account:
        told.append(("account", shown.trust.account))
    told += [("careful", reason) for reason in shown.trust.reasons]
    if shown.trust.share is not None:
        told.append(("accounts for", f"{percent(shown.trust.share)} of {shown.trust.whole}"))
    told += [
        (name.replace("_", " "), f"{float(value.flatten()[0]):.3g}")
        for name, value in shown.explanation.completeness.items()
    ]
    return [*told, ("cost", f"{shown.seconds:.2f} s, {shown.passes:,.0f} forward passes")]


def as_python(network: str, weights: str, asks: Sequence[Ask]) -> str:
    """Return code that makes the same maps."""
    given = "" if not weights else f", weights={weights!r}"
    lines = [
        "import backlit",
        "",
        f"model = backlit.load_model({network!r}{given})",
        'x = model.preprocess("photo.jpg")[None]',
        "",
    ]
    for ask in asks:
        setting = read_setting(ask.method, "method")
        (chosen,) = methods_in(ask.method, [], 0)
        kind = f"backlit.methods.{chosen.method.__name__}"
        options = "".join(f", {name}={value!r}" for name, value in setting.options.items())
        made = f"{kind}(model{options})" if chosen.name.partition(".")[0] != "dmbp_fast" else "backlit.DMBP.fast(model)"
        target = f"{ask.target} - {ask.against}" if ask.against else ask.target
        lines += [f"explanation = {made}(x, {target!r})", f'explanation.save("{chosen.name}.safetensors")']
    return "\n".join(lines) + "\n"


def _bytes(image: Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
