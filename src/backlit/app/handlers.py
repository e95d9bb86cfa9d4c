"""What the controls of the page call: each takes what they hold, and returns what the page shows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import gradio as gr
import numpy as np
from PIL import Image
from torch import Tensor

from backlit.app.drawing import curves_picture, curves_text, facts_html, labels_of
from backlit.app.fields import filled_in
from backlit.app.networks import Networks
from backlit.app.view import (
    Ask,
    MapView,
    Progress,
    Sign,
    StoppedByUser,
    as_picture,
    as_python,
    card_of,
    chances,
    curves,
    explain,
    hidden,
    kept,
    overlay,
    picture_of,
    read_image,
    shared_scale,
)
from backlit.data.listing import sample_photographs
from backlit.methods import METHODS, FittedMethod, Method
from backlit.methods.lookup import find_method
from backlit.metrics import Examples, LastLayerReset
from backlit.models import LoadedModel
from backlit.models.digits import digits_images

Picture = Image.Image | None
"""What the image's control holds."""
Painted = dict[str, list[np.ndarray]] | None
"""What a control to paint on holds: its layers, each with red, green, blue and how opaque it is."""
SLOTS = 3
"""Maps side by side."""
FAST = "fast"
"""What the page calls DMBP's short schedule."""


@dataclass(frozen=True, eq=False)
class State:
    """A session between two events: the image as the network took it, and its maps.

    Attributes:
        network: The network's name.
        x: The network's input (1, c, h, w).
        picture: The same in [0, 1], (c, h, w).
        shown: The maps.
    """

    network: str = ""
    x: Tensor | None = None
    picture: Tensor | None = None
    shown: tuple[MapView, ...] = ()


class Handlers:
    """The page over some networks.

    Args:
        networks: The networks.
        weights: The file of the first one's weights, for the code that is shown; "" for its own.
    """

    def __init__(self, networks: Networks, weights: str = "") -> None:
        self._networks, self._weights = networks, weights
        self.networks = networks.names
        self._stops: dict[str, Event] = {}
        self._files = tempfile.TemporaryDirectory(prefix="backlit-app-")  # removed when the app ends
        self.examples = examples()
        self.methods = [("DMBP, short schedule", FAST)] + [
            (m.title, m.name) for m in METHODS if not issubclass(m, FittedMethod) and not m.reads_attention
        ]

    def classes(self, network: str, image: Picture) -> tuple[list[str], dict[str, float]]:
        """Return the names of all classes, the likeliest first, and the probabilities of those."""
        with _Said(), self._networks.use(network) as loaded:
            top = chances(loaded, read_image(loaded, _given(image)))
            likely = [chance.name for chance in top]
            return [*likely, *(name for name in loaded.class_names if name not in likely)], labels_of(top)

    def looked_at(self, network: str, image: Picture) -> tuple[object, object, dict[str, float]]:
        """Offer the classes to choose from, the likeliest first, and say their probabilities."""
        names, says = self.classes(network, image)
        others = [("no other class", ""), *((name, name) for name in names)]
        return gr.update(choices=names, value=names[0]), gr.update(choices=others, value=""), says

    def computed(
        self,
        network: str,
        image: Picture,
        asks: Sequence[Ask],
        progress: Progress | None = None,
    ) -> Iterator[State]:
        """Explain an image by one method after the other; yields what is there after each."""
        picture_given = _given(image)
        shown: list[MapView] = []
        for ask in asks:
            with _Said(), self._networks.use(network) as loaded:
                x = read_image(loaded, picture_given)
                shown.append(explain(loaded, x, ask, progress))
                picture = picture_of(loaded, x)
            yield State(network, x, picture, tuple(shown))

    def stop(self, session: str) -> None:
        """Stop what a session has running."""
        self._stops.setdefault(session, Event()).set()

    def stopper(self, session: str) -> Event:
        """Return the session's stop sign, put down."""
        sign = self._stops.setdefault(session, Event())
        sign.clear()
        return sign

    def leave(self, session: str) -> None:
        """Stop what a session has running, and forget it: its page was closed."""
        if (sign := self._stops.pop(session, None)) is not None:
            sign.set()

    def curves_at(self, state: State, number: int, share: float) -> tuple[np.ndarray, np.ndarray, str]:
        """Return the photograph with a map's best pixels, the curves with this point, and what it says."""
        shown = _map(state, number)
        with _Said(), self._networks.use(state.network) as loaded:
            of = curves(loaded, _x(state), shown)
        return kept(shown, shown_picture(state), share), curves_picture(of, share), curves_text(of, share)

    def reset(self, state: State, number: int) -> str:
        """Say what the map is worth when the network's last layer forgets."""
        shown = _map(state, number)
        assert shown.explanation is not None
        with _Said(), self._networks.use(state.network) as loaded:
            x = _x(state)
            name = shown.ask.method
            chosen = explain_again(loaded, name)
            scores = LastLayerReset()(
                loaded.network, Examples(x, shown.explanation.target), {name: shown.explanation}, {name: chosen}
            )
        value = float(scores.values[name][0])
        word = (
            "the map depends on it"
            if abs(value) < 0.3
            else "the map hardly depends on it"
            if value > 0.7
            else "in between"
        )
        return f"With the last layer drawn anew, the rank correlation of the two maps is {value:.2f}: {word}."

    def painted(
        self, state: State, editor: Painted, reveal: bool
    ) -> tuple[np.ndarray, dict[str, float], dict[str, float]]:
        """Hide or show alone what was painted; returns the picture, and the probabilities before and after."""
        layers = (editor or {}).get("layers") or []
        paint = np.max([layer[..., 3] for layer in layers], axis=0) if layers else np.zeros((1, 1))
        if not paint.any():
            raise gr.Error("Paint over some pixels first: choose a brush and draw on the photograph.")
        with _Said(), self._networks.use(state.network) as loaded:
            changed = hidden(loaded, _x(state), paint, reveal=reveal)
            before, after = chances(loaded, _x(state)), chances(loaded, changed)
            picture = as_picture(picture_of(loaded, changed))
        return picture, labels_of(before), labels_of(after)

    def files(self, state: State, number: int) -> tuple[str, str]:
        """Write the map's card and its numbers to files that the browser may fetch."""
        shown = _map(state, number)
        assert shown.explanation is not None
        folder = Path(tempfile.mkdtemp(dir=self._files.name))
        name = find_name(shown.ask.method)
        Image.fromarray(card_of(shown, shown_picture(state))).save(folder / f"{name}.png")
        shown.explanation.save(folder / f"{name}.safetensors")
        return str(folder / f"{name}.png"), str(folder / f"{name}.safetensors")

    def code(self, state: State) -> str:
        """Return the maps as Python."""
        return as_python(
            state.network,
            self._weights if state.network == self._networks.names[0] else "",
            [s.ask for s in state.shown],
        )


def drawn(state: State, opacity: float, sign: Sign, one_scale: bool) -> list[np.ndarray | str | None]:
    """Return the picture and the facts of each slot."""
    scale = shared_scale(state.shown) if one_scale else None
    cells: list[np.ndarray | str | None] = []
    for i in range(SLOTS):
        if i >= len(state.shown):
            cells += [None, ""]
            continue
        one = state.shown[i]
        picture = None
        if one.explanation is not None:
            picture = overlay(one, shown_picture(state), opacity=opacity, sign=sign, scale=scale)
        cells += [picture, facts_html(one)]
    return cells


def asks_of(methods: Sequence[str], target: str, against: str, options: dict[str, dict[str, object]]) -> list[Ask]:
    """Return what the controls ask for: each method with the options of its form."""
    return [Ask(_setting(name, options.get(name, {})), target, against or "") for name in methods if name]


def _setting(name: str, given: dict[str, object]) -> str:
    kind = None if name == FAST else find_method(name, METHODS)
    own = {} if kind is None else filled_in(kind, given)
    said = ", ".join(f"{key}={value!r}" for key, value in own.items())
    return f"{name}({said})" if said else name


def explain_again(loaded: LoadedModel, setting: str) -> Method:
    """Make the method of a setting again, for a metric that explains anew."""
    from backlit.bench.chosen import methods as methods_in
    from backlit.bench.chosen import with_bounds

    (chosen,) = with_bounds(methods_in(setting, [], 0), loaded.preprocess)
    return chosen.method(loaded, **chosen.options)


def find_name(setting: str) -> str:
    """Return what files call a setting."""
    from backlit.bench.chosen import methods as methods_in

    return methods_in(setting, [], 0)[0].name


def examples() -> dict[str, Image.Image]:
    """Photographs of scikit-image, where it is installed, and embedded digits: nothing is fetched."""
    pictures = {file.stem: Image.open(file).convert("RGB") for file in sample_photographs()}
    images, labels = digits_images()
    for digit in (3, 8):
        first = int((labels == digit).nonzero()[0])
        pictures[f"digit {digit}"] = Image.fromarray(images[first].numpy())
    return pictures


def _given(image: Picture) -> Image.Image:
    if image is None:
        raise gr.Error("Give an image: drop one, paste one, choose an example or draw a digit.")
    return image


def _map(state: State, number: int) -> MapView:
    if not 0 <= number < len(state.shown) or state.shown[number].explanation is None:
        raise gr.Error("There is no such map yet: explain an image first.")
    return state.shown[number]


def _x(state: State) -> Tensor:
    assert state.x is not None
    return state.x


def shown_picture(state: State) -> Tensor:
    """Return the picture that the maps are of."""
    assert state.picture is not None
    return state.picture


class _Said:
    """Turns an error into a message on the page; the app goes on."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, (gr.Error, StoppedByUser)):
            raise gr.Error(str(error) or type(error).__name__, print_exception=False) from error


def digit_of(drawn: Painted) -> tuple[Image.Image, str]:
    """Turn a drawing into an image of a digit, white on black, and choose the network that knows digits."""
    layers = (drawn or {}).get("layers") or []
    paint = np.max([layer[..., 3] for layer in layers], axis=0) if layers else np.zeros((1, 1), np.uint8)
    if not paint.any():
        raise gr.Error("Draw a digit first.")
    return Image.fromarray(paint.astype(np.uint8)).convert("RGB"), "digits"


def what_is_left(picture: Image.Image | None) -> Image.Image:
    """Return the image of which some pixels were hidden."""
    if picture is None:
        raise gr.Error("Hide or show some pixels first.")
    return picture
