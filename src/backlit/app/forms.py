"""A form for the options of a method, made of its dataclass."""

from __future__ import annotations

import gradio as gr

from backlit._json import JsonObject
from backlit.app.fields import OptionField, option_fields
from backlit.methods import METHODS
from backlit.methods.lookup import find_method

Given = dict[str, dict[str, object]]
"""What a session's forms hold: by method, by option."""


def form(name: str, options: gr.State) -> None:
    """Build a method's fields; each writes what it holds to the session's options."""
    kind = find_method(name, METHODS)
    with gr.Accordion(kind.title, open=False), gr.Row():
        for field in option_fields(kind):
            box = _box(name, field)

            def note(value: object, given: Given, key: str = field.name) -> Given:
                return {**given, name: {**given.get(name, {}), key: value}}

            box.change(note, [box, options], options, show_progress="hidden")


def _box(method: str, field: OptionField) -> gr.Dropdown | gr.Checkbox | gr.Textbox | gr.Number:
    made: JsonObject = {
        "label": field.name,
        "info": field.help,
        "min_width": 200,
        "interactive": True,
        "elem_id": f"{method}-{field.name}",
    }
    if field.kind == "choice":
        return gr.Dropdown(list(field.choices), value=field.default, **made)  # pyright: ignore[reportArgumentType]
    if field.kind == "switch":
        return gr.Checkbox(bool(field.default), **made)
    if field.kind == "text":
        return gr.Textbox(str(field.default), **made)
    return gr.Number(field.default, precision=0 if field.kind == "whole" else None, **made)  # pyright: ignore[reportArgumentType]
