"""The listings of methods and metrics: a line or two for each at any width, and all that there is to know of one."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Column, Table

from backlit._options import default_of, option_docs, option_names, options_of
from backlit.cli.complete import FAST
from backlit.cli.console import console
from backlit.cli.settings import settable, short_schedule
from backlit.methods import BASELINES, DMBP, METHODS, FittedMethod, Method
from backlit.methods.base import NO_NETWORK
from backlit.methods.lookup import find_method, same_name
from backlit.metrics import METRICS, Metric
from backlit.metrics.lookup import find_metric
from backlit.report.kinds import PALETTES

_NARROW = 64  # columns below which a table would cut words
_WIDEST = 100  # columns of running text


def print_methods(name: str | None = None) -> None:
    """Print the methods, a row for each; or all that there is to know of one.

    Raises:
        InputError: If there is no method of that name.
    """
    if name is not None:
        fast = same_name(name, FAST)
        _print_method(DMBP if fast else find_method(name, METHODS + BASELINES), short=fast)
        return
    rows = [(method.name, method.summary, _cost(method(NO_NETWORK))) for method in METHODS + BASELINES]
    rows.insert(1, (FAST, "DMBP's short schedule, what `backlit explain` does unasked", _cost(DMBP.fast(NO_NETWORK))))
    _print_rows(("method", "what the map is", "cost"), rows)
    _say(
        "Cost: forward passes for one image and class, a pass back counts as two; a fit reads a data set once, beforehand."
    )
    _say("Options and sources: backlit methods NAME.")


def print_metrics(name: str | None = None) -> None:
    """Print the metrics, a row for each; or all that there is to know of one.

    Raises:
        InputError: If there is no metric of that name.
    """
    if name is not None:
        _print_metric(find_metric(name))
        return
    rows = [(metric.name, _with_needs(metric), _short(metric().forward_passes)) for metric in METRICS]
    _print_rows(("metric", "what it scores", "cost"), rows)
    _say("Cost: forward passes for one map, or runs of the method that made it.")
    _say("Options, direction and sources: backlit metrics NAME.")


def _cost(method: Method) -> str:
    passes = f"{method.forward_passes:,.0f}"
    return f"fit, {passes}" if isinstance(method, FittedMethod) else passes


def _with_needs(metric: type[Metric]) -> str:
    needs = [need for need in metric.needs if need != "methods"]
    return metric.summary + (f"; needs {', '.join(needs)}" if needs else "")


def _short(passes: str) -> str:
    """The cost of a metric in a word: "49", "6 runs"."""
    if number := re.match(r"\d+", passes):
        return number[0]
    times = re.search(r"(\d+) times", passes)
    count = int(times[1]) if times else 2 if "two classes" in passes else 1
    return f"{count} run{'s' * (count > 1)}"


def _print_rows(heads: Sequence[str], rows: Sequence[tuple[str, str, str]]) -> None:
    into = console()
    if into.width < _NARROW:
        for name, summary, cost in rows:
            into.print(f"{name} ({cost})")
            into.print(textwrap.fill(summary, into.width, initial_indent="  ", subsequent_indent="  "))
        return
    name = Column(heads[0], no_wrap=True)  # whole, to be copied
    table = Table(
        name, heads[1], Column(heads[2], no_wrap=True, justify="right"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for row in rows:
        table.add_row(*row)
    into.print(table)


def _say(text: str, indent: str = "", first: str | None = None) -> None:
    """Print text in lines of the terminal's width."""
    into = console()
    width = min(into.width, _WIDEST)
    into.print(textwrap.fill(text, width, initial_indent=indent if first is None else first, subsequent_indent=indent))


def _print_method(method: type[Method], *, short: bool) -> None:
    _say(f"{method.title} (--method {FAST if short else method.name}): {method.summary}. {method.source}.")
    _say(PALETTES[method.kind].legend)
    if short:
        schedule = ", ".join(f"{name}={value}" for name, value in short_schedule().items())
        _say(f"The short schedule: {schedule}. The paper's own: --method {method.name}.")
    elif method is DMBP:
        _say(f"Ten times as fast, by a short schedule: --method {FAST}.")
    if issubclass(method, FittedMethod):
        _say(f"It learns from data first: backlit fit --method {method.artefact} ... --out FILE, then --fitted FILE.")
    cost = _cost(DMBP.fast(NO_NETWORK) if short else method(NO_NETWORK))
    _say(f"Cost for one image and class: {cost} forward passes; a pass back counts as two.")
    _print_options(method, {name: default_of(method, name) for name in option_names(method)})


def _print_metric(metric: type[Metric]) -> None:
    made = metric()
    _say(f"{made.protocol.title} (--metric {metric.name}): {metric.summary}. {metric.source}.")
    _say(f"{made.direction[0].upper()}{made.direction[1:]}. Forward passes a map: {made.forward_passes}.")
    if metric.needs:
        _say(f"It needs {', '.join(metric.needs)}.")
    _print_options(metric, options_of(made))


def _print_options(kind: type[Method] | type[Metric], defaults: dict[str, Any]) -> None:
    meant = option_docs(kind)
    console().print("Options, as --option NAME=VALUE:")
    for name in settable(kind):
        _say(f"{name}={defaults[name]!r}", "    ", "  ")
        if name in meant:
            _say(meant[name], "      ")
