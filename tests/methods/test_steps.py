"""Progress: a line where somebody can see it, nothing in a pipe, and never another map."""

from __future__ import annotations

import io
import types
from typing import Any

import pytest
import torch

import backlit
from _methods import quick
from backlit import InputError
from backlit._options import option_names
from backlit.methods import METHODS, FittedMethod
from backlit.methods.steps import Line, Stepped, is_seen

LOADED = backlit.load_model("digits")
IMAGES, LABELS = (part[:6] for part in backlit.models.digits.digits_images())
X = LOADED.preprocess.batch(IMAGES)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setattr("backlit.methods.steps.sys", types.SimpleNamespace(stderr=stream))  # pytest sets its own again
    return stream


def last_line(text: str) -> str:
    """What stands on the terminal's line in the end."""
    shown = ""
    for written in text.split("\r"):
        shown = written + shown[len(written) :]
    return shown.strip()


STEPPED = [m for m in METHODS if issubclass(m, Stepped)]


@pytest.mark.parametrize("method", [m for m in STEPPED if not issubclass(m, FittedMethod)], ids=lambda m: m.name)
def test_a_method_of_many_steps_says_how_far_it_is(method: type[Stepped], terminal: Terminal) -> None:
    seen: list[Any] = []
    options = quick(method) | ({"steps": 4} if "steps" in option_names(method) else {})
    found = method(LOADED, **options, progress=True, callback=seen.append, chunk=2)(X[:4], 3)
    said, steps = terminal.getvalue(), seen[0].steps
    assert f"{method.title}, from image 3 of 4 [" in said
    assert f"step {steps} of {steps}, 0:00 left" in said
    assert last_line(said) == ""
    indices = [step.index for step in seen]
    assert indices == sorted({*indices}) * 2
    assert indices[-1] == steps
    quiet = method(LOADED, **options, chunk=2)(X[:4], 3)
    assert torch.equal(found.values, quiet.values)
    assert found.provenance["options"] == quiet.provenance["options"]


def test_every_method_with_a_callback_has_progress() -> None:
    names = [set(option_names(m)) for m in METHODS]
    assert all("progress" in n for n in names if "callback" in n)
    assert sum("progress" in n for n in names) == len(STEPPED)


def test_nothing_is_said_in_a_pipe_or_without_being_asked(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    backlit.DMBP(LOADED, steps=3)(X[:1])
    assert terminal.getvalue() == ""
    pipe = io.StringIO()
    for stream in (pipe, None):
        monkeypatch.setattr("backlit.methods.steps.sys", types.SimpleNamespace(stderr=stream))
        backlit.DMBP(LOADED, steps=3, progress=True)(X[:1])
    assert pipe.getvalue() == ""


def test_a_notebooks_stream_is_seen() -> None:
    stream = types.new_class(
        "OutStream", (io.StringIO,), {}, lambda body: body.update(__module__="ipykernel.iostream")
    )()
    assert is_seen(stream)
    closed = Terminal()
    closed.close()
    closed.isatty = io.StringIO.isatty.__get__(closed)  # type: ignore[method-assign]
    assert not is_seen(closed)
    assert not is_seen(object())


def test_an_error_leaves_no_line_behind(terminal: Terminal) -> None:
    def stop(step: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backlit.DMBP(LOADED, steps=3, progress=True, callback=stop)(X[:1])
    assert "DMBP" in terminal.getvalue()
    assert last_line(terminal.getvalue()) == ""


def test_the_time_left_follows_from_the_time_taken(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("backlit.methods.steps.time.monotonic", lambda: now[0])
    line = Line("work")
    now[0] = 30.0
    line.say(10, 250, "step")
    assert f"work [{'.' * 24}] step 10 of 250, 12:00 left" in terminal.getvalue()
    now[0] = 30.05
    line.say(11, 250, "step")  # too soon to be read
    assert "11 of" not in terminal.getvalue()
    now[0] = 7200.0
    line.say(100, 250, "step")
    assert "3:00:00 left" in terminal.getvalue()
    line.say(250, 250, "step")
    line.clear()
    assert last_line(terminal.getvalue()) == ""


@pytest.mark.filterwarnings("ignore:.*Give more samples")
@pytest.mark.parametrize("method", [backlit.MIPIN, backlit.PatternNet], ids=lambda m: m.name)
def test_fits_say_how_far_they_are(method: Any, terminal: Terminal) -> None:
    data = [(X[:3], LABELS[:3]), (X[3:], LABELS[3:])]
    told: list[int] = []
    method.fit(LOADED, data, progress=lambda step: told.append(step.samples))
    assert told
    assert terminal.getvalue() == ""
    method.fit(LOADED, data, progress=True)
    assert "pass 1 of" in terminal.getvalue()
    assert last_line(terminal.getvalue()) == ""
    with pytest.raises(InputError, match="progress must be True, False, or a function of a FitStep, but is 1"):
        method.fit(LOADED, data, progress=1)


def test_progress_is_a_truth_value() -> None:
    with pytest.raises(InputError, match="progress must be True or False, but is 'yes'"):
        backlit.DMBP(LOADED, progress="yes")
    with pytest.raises(InputError, match="callback must be a function of a step, or None, but is 5"):
        backlit.DMBP(LOADED, callback=5)
    with pytest.raises(InputError, match="'progress' is no option of Saliency"):
        backlit.Saliency(LOADED, progress=True)
