"""The page: its controls, its first view, and which control calls what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency
from PIL import Image

from backlit._json import JsonObject
from backlit.app.drawing import link_to
from backlit.app.forms import Given, form
from backlit.app.handlers import (
    FAST,
    SLOTS,
    Handlers,
    Painted,
    Picture,
    State,
    asks_of,
    digit_of,
    drawn,
    shown_picture,
    what_is_left,
)
from backlit.app.networks import Networks
from backlit.app.view import POINTS, Ask, Progress, Sign, StoppedByUser, as_picture

Trigger = Callable[..., Dependency]
FIRST = ("grad_cam", "guided_backprop", "lrp")
CSS = """
.prose .facts, .facts { width: 100%; border-collapse: collapse; font-size: .85rem; margin: 0; }
.prose .facts th, .prose .facts td, .facts th, .facts td {
  border: 0; padding: .12rem .6rem .12rem 0; vertical-align: top; text-align: left;
}
.prose .facts th, .facts th { font-weight: 600; white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
footer { display: none !important; }
"""
_COMPUTE: JsonObject = {"concurrency_id": "compute"}  # one network is in memory, and one request uses it
_QUIET: JsonObject = {"show_progress": "hidden"}
_PICTURE: JsonObject = {"interactive": False, "buttons": ["download", "fullscreen"]}


@dataclass(frozen=True)
class Controls:
    """The controls that say what is asked, in the order in which handlers take them."""

    network: gr.Dropdown
    image: gr.Image
    target: gr.Dropdown
    against: gr.Dropdown
    opacity: gr.Slider
    sign: gr.Radio
    scale: gr.Checkbox
    options: gr.State
    methods: list[gr.Dropdown]

    @property
    def looks(self) -> list[gr.Slider | gr.Radio | gr.Checkbox]:
        """The controls of how maps are drawn."""
        return [self.opacity, self.sign, self.scale]

    @property
    def all(self) -> list[Component]:
        """All of them."""
        return [self.network, self.image, self.target, self.against, *self.looks, self.options, *self.methods]


@dataclass(frozen=True)
class First:
    """The first view: what is asked, and what comes of it."""

    network: str
    example: str
    picture: Image.Image
    names: list[str]
    says: dict[str, float]
    state: State


def build(networks: Networks, weights: str = "") -> gr.Blocks:
    """Build the page, its first view already computed."""
    page = Handlers(networks, weights)
    first = _first(page, networks.names[0])
    with gr.Blocks(title="Backlit", delete_cache=(3600, 3600)) as blocks:  # uploads stay an hour
        state = gr.State(first.state)
        gr.Markdown("# Backlit\nWhich pixels made this network say that?")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                image, examples, pad, take = _image(page, first)
                network, target, against, says = _question(networks, first)
            with gr.Column(scale=3, min_width=320):
                methods, go, stop = _methods(page)
                outputs = _maps(first)
                with gr.Row():
                    opacity = gr.Slider(0, 1, 0.9, step=0.05, label="Opacity", elem_id="opacity")
                    sign = gr.Radio(["both", "for", "against"], value="both", label="Values", elem_id="sign")
                    scale = gr.Checkbox(False, label="One colour scale for all", elem_id="scale")
        asked = Controls(network, image, target, against, opacity, sign, scale, gr.State({}), methods)
        which = gr.Radio([(f"Map {i + 1}", i) for i in range(SLOTS)], value=0, label="Look closer at", elem_id="which")
        with gr.Tabs():
            with gr.Tab("Keep the best pixels"):
                _keep(page, blocks, state, which)
            with gr.Tab("Brush"):
                again, left = _brush(page, state, first)
            with gr.Tab("Trust"):
                forget = gr.Button("Draw the last layer anew: does the map change?", elem_id="forget")
                forget.click(page.reset, [state, which], gr.Markdown(elem_id="forgotten"), **_COMPUTE)
            with gr.Tab("Options"):
                _options(asked)
            with gr.Tab("Take it with you"):
                code, link = _take_away(page, state, which, first)
        shown = [state, *outputs, code, link]
        go.click(_run(page), asked.all, shown, show_progress_on=_pictures(shown), **_COMPUTE)
        _ask_anew(page, asked, says, shown, image.upload, image.input, network.input)
        changed = examples.input(lambda name: page.examples[name], examples, image)
        _ask_anew(page, asked, says, shown, changed.success)
        _ask_anew(page, asked, says, shown, take.click(digit_of, pad, [image, network]).success)
        _ask_anew(page, asked, says, shown, again.click(what_is_left, left, image).success)
        for control in asked.looks:
            control.change(drawn, [state, *asked.looks], outputs, **_QUIET)
        stop.click(_of_session(page.stop), None, None, queue=False)
        blocks.unload(_of_session(page.leave))
        blocks.load(
            _from_link(page), [network, target, against, *methods], [network, target, against, *methods], **_QUIET
        )
    return blocks


def _first(page: Handlers, network: str) -> First:
    example = next(name for name in page.examples if network != "digits" or name.startswith("digit"))
    picture = page.examples[example]
    names, says = page.classes(network, picture)
    *_, state = page.computed(network, picture, [Ask(name, names[0]) for name in FIRST])
    return First(network, example, picture, names, says, state)


def _image(page: Handlers, first: First) -> tuple[gr.Image, gr.Dropdown, gr.Sketchpad, gr.Button]:
    image = gr.Image(
        first.picture, type="pil", sources=["upload", "clipboard"], label="Image", height=300, elem_id="image"
    )
    examples = gr.Dropdown(list(page.examples), value=first.example, label="Examples", elem_id="examples")
    with gr.Accordion("Draw a digit", open=False):
        pad = gr.Sketchpad(
            type="numpy", canvas_size=(256, 256), label="For the network that knows digits", elem_id="pad"
        )
        take = gr.Button("Explain this digit", elem_id="take")
    return image, examples, pad, take


def _question(networks: Networks, first: First) -> tuple[gr.Dropdown, gr.Dropdown, gr.Dropdown, gr.Label]:
    network = gr.Dropdown(networks.names, value=first.network, label="Network", elem_id="network")
    target = gr.Dropdown(first.names, value=first.names[0], label="Class", elem_id="target")
    others = [("no other class", ""), *((name, name) for name in first.names)]
    against = gr.Dropdown(others, value="", label="Against", elem_id="against")
    says = gr.Label(first.says, num_top_classes=5, label="What the network says", elem_id="says")
    return network, target, against, says


def _methods(page: Handlers) -> tuple[list[gr.Dropdown], gr.Button, gr.Button]:
    with gr.Row():
        methods = [
            gr.Dropdown(page.methods, value=name, label=f"Method {i + 1}", elem_id=f"method{i}", min_width=180)
            for i, name in enumerate(FIRST)
        ]
    with gr.Row():
        return methods, gr.Button("Explain", variant="primary", elem_id="go"), gr.Button("Stop", elem_id="stop")


def _maps(first: First) -> list[Component]:
    cells = drawn(first.state, 0.9, "both", False)
    outputs: list[Component] = []
    with gr.Row():
        for i in range(SLOTS):
            with gr.Column(min_width=220):
                outputs.append(gr.Image(cells[2 * i], label=f"Map {i + 1}", elem_id=f"map{i}", **_PICTURE))
                outputs.append(gr.HTML(cells[2 * i + 1], elem_id=f"facts{i}"))
    return outputs


def _keep(page: Handlers, blocks: gr.Blocks, state: gr.State, which: gr.Radio) -> None:
    share = gr.Slider(0, 100, 20, step=100 / POINTS, label="Keep the best k %", elem_id="share")
    text = gr.Markdown(elem_id="curvetext")
    with gr.Row():
        best = gr.Image(label="What is kept", elem_id="best", **_PICTURE)
        curve = gr.Image(label="Insertion and deletion of this map", elem_id="curve", **_PICTURE)

    def at(state: State, number: int, percent: float) -> tuple[object, object, str]:
        return page.curves_at(state, number, percent / 100)

    for trigger in (share.release, which.input, blocks.load):
        trigger(at, [state, which, share], [best, curve, text], **_COMPUTE)


def _brush(page: Handlers, state: gr.State, first: First) -> tuple[gr.Button, gr.Image]:
    picture = as_picture(shown_picture(first.state))
    editor = gr.ImageEditor(picture, type="numpy", label="Paint over pixels", elem_id="editor")
    with gr.Row():
        buttons = gr.Button("Hide the painted", elem_id="hide"), gr.Button("Show them alone", elem_id="reveal")
        again = gr.Button("Explain what is left", elem_id="again")
    with gr.Row():
        left = gr.Image(label="What the network sees", elem_id="left", type="pil", **_PICTURE)
        before, after = gr.Label(label="Before", elem_id="before"), gr.Label(label="After", elem_id="after")
    for button, alone in zip(buttons, (False, True), strict=True):

        def painted(state: State, paint: Painted, alone: bool = alone) -> tuple[object, ...]:
            return page.painted(state, paint, alone)

        button.click(painted, [state, editor], [left, before, after], **_COMPUTE)
    state.change(lambda state: as_picture(shown_picture(state)), state, editor, **_QUIET)
    return again, left


def _options(asked: Controls) -> None:
    gr.Markdown("Of the methods that are chosen above; press Explain afterwards.")

    @gr.render(inputs=asked.methods)
    def forms(*names: str) -> None:
        for name in dict.fromkeys(names):
            if name and name != FAST:
                form(name, asked.options)


def _take_away(page: Handlers, state: gr.State, which: gr.Radio, first: First) -> tuple[gr.Code, gr.Textbox]:
    make = gr.Button("Make files of the map", elem_id="make")
    with gr.Row():
        files = [
            gr.File(label="Card (PNG)", elem_id="cardfile"),
            gr.File(label="Numbers (safetensors)", elem_id="numbersfile"),
        ]
    make.click(page.files, [state, which], files, **_COMPUTE)
    code = gr.Code(page.code(first.state), language="python", label="This view as Python", elem_id="code")
    told = link_to(first.network, [one.ask for one in first.state.shown])
    return code, gr.Textbox(told, label="A link to this view", elem_id="link")


def _run(page: Handlers) -> Callable[..., object]:
    def run(
        network: str,
        image: Picture,
        target: str,
        against: str,
        opacity: float,
        sign: Sign,
        scale: bool,
        given: Given,
        one: str,
        two: str,
        three: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio looks for it here
    ) -> Iterator[list[object]]:
        asks = asks_of((one, two, three), target, against, given)
        stop = page.stopper(request.session_hash or "")
        told = Progress(lambda step, of: progress((step, of)), stop.is_set)
        try:
            for state in page.computed(network, image, asks, told):
                yield [state, *drawn(state, opacity, sign, scale), page.code(state), link_to(network, asks)]
        except StoppedByUser:
            gr.Info("Stopped; the maps that were done are kept.")

    return run


def _ask_anew(
    page: Handlers, asked: Controls, says: gr.Label, shown: list[Component], *triggers: Callable[..., Dependency]
) -> None:
    """After each trigger, look at the image and explain it for what the network says."""
    for trigger in triggers:
        looked = trigger(page.looked_at, [asked.network, asked.image], [asked.target, asked.against, says], **_COMPUTE)
        looked.success(_run(page), asked.all, shown, show_progress_on=_pictures(shown), **_COMPUTE)


def _pictures(shown: list[Component]) -> list[gr.Image]:
    return [one for one in shown if isinstance(one, gr.Image)]


def _of_session(call: Callable[[str], None]) -> Callable[..., object]:
    """Call something with the name of the session that asks."""

    def called(request: gr.Request) -> None:
        call(request.session_hash or "")

    return called


def _from_link(page: Handlers) -> Callable[..., object]:
    """Set the controls as the page's address says; what it does not say, or cannot be, stays."""

    def asked(
        network: str, target: str, against: str, one: str, two: str, three: str, request: gr.Request
    ) -> list[object]:
        methods = (one, two, three)
        told = dict(request.query_params)
        known = {name for _, name in page.methods}
        wanted = [name for name in told.get("methods", "").split(";") if name in known][:SLOTS]
        return [
            told.get("network") if told.get("network") in page.networks else network,
            told.get("target", target) or target,
            told.get("against", against),
            *[*wanted, *methods[len(wanted) :]],
        ]

    return asked
