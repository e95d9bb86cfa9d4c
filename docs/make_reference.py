"""Write docs/metrics.md and docs/methods/{every,index,gallery}.md, on every metric and method, from the classes themselves.

python docs/make_reference.py
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from backlit._options import default_of, option_docs, option_names
from backlit.methods import BASELINES, METHODS, Method
from backlit.methods.base import NO_NETWORK
from backlit.metrics import METRICS, Metric
from backlit.metrics.base import WHO_HAS_IT

DOCS = Path(__file__).parent
_ROLE = re.compile(r":class:`~[\w.]*?(\w+)`")
_BAR = "\\|"  # in a cell
_WRITTEN = "<!-- Written by docs/make_reference.py; change the docstrings, not this page. -->"
METRICS_HEAD = f"""# Every metric

{_WRITTEN}

A metric is a frozen dataclass whose fields are its options: `Insertion(steps=25)` prints as itself, and
`dataclasses.replace(metric, seed=1)` makes another one. [Protocols](protocols/index.md) says what they have in common and how
to call them; `backlit metrics NAME` shows the same as this page.
"""
METHODS_HEAD = f"""# Every method

{_WRITTEN}

A method is a frozen dataclass: `model` is the network, in eval mode, or what `load_model` returned, and the other fields are its
options, given by keyword. `DMBP(network, steps=40)` prints as itself, and `dataclasses.replace(method, lr=0.05)` makes another
one, also on another `model`. Call it on images and [targets](../targets.md); `backlit methods NAME` shows the same as this page.
"""

MATRIX_HEAD = f"""# Which method when

{_WRITTEN}

Every method explains every [target](../targets.md) of every network with the same call, `backlit.NAME(network)(images, target)`;
they differ in the question that they answer, in what they need and in what they cost. How far a map can be trusted is measured:
[results](../protocols/results.md), and `backlit compare` on your own network and images.

- *Needs*: "gradients" of a network whose operations are seen; "forward passes alone" work on scripted and compiled networks, too,
  and where there is no gradient.
- *Passes*: forward passes for one image and class with the default options; a pass back counts as two. Further classes of the
  same image often cost less.
- *Compared with*: the option that says what stands for "nothing there", where the method has such a thing, and its default.
- *Map*: signed, for the class or against it; contrast, more or less for it than for others; one-sided, for it or nothing;
  magnitude, how much a pixel matters; signal, a part of the image.
- *Inside*: whether `at="layer"` explains an inner layer's output.
- *Beside images*: what else it explains.
- *Left*: the rank correlation (Spearman) with the trained map, of SqueezeNet 1.0 and of ResNet-18, after the last layer is
  drawn anew, and after all layers are: a map that stays the same (1) does not tell what was learned. Measured
  (`benchmarks/sanity.py`); [every method](every.md) has the numbers of images and the intervals.

| method | the question that its map answers | needs | passes | compared with | map | inside | beside images | left: last | all |
|---|---|---|---|---|---|---|---|---|---|
"""
GALLERY_HEAD = f"""# Gallery

{_WRITTEN}

One picture, half a cat and half a coffee, and SqueezeNet 1.0 with torchvision's weights: each map over it, of "Egyptian cat"
on the left, of "espresso" on the right, red for the class and blue against it, both by one scale. Methods have their default
options, but for PDA (`stride=4, samples=4`); those that learn from data learned from 200 images of ImageNet, MIP-IN for these two
classes from the last feature map on. Drawn by
`docs/make_gallery.py`; methods that need attention have no picture of a network without.

"""
SANITY = {"SqueezeNet 1.0": "sanity_squeezenet1_0", "ResNet-18": "sanity_resnet18"}
"""Results of benchmarks/sanity.py by the network's name."""
_SAID = {"last layer": "last layer anew", "all layers": "all layers anew", "least likely class": "least likely class"}
_BASELINES = ("baseline", "reference", "references")


def pages() -> dict[Path, str]:
    """Return the text of each page by its path."""
    return {
        DOCS / "metrics.md": "\n".join([METRICS_HEAD, *(line for kind in METRICS for line in _metric(kind))]),
        DOCS / "methods" / "index.md": MATRIX_HEAD + "".join(_matrix_row(kind) for kind in (*METHODS, *BASELINES)),
        DOCS / "methods" / "gallery.md": GALLERY_HEAD
        + "\n".join(_gallery_row(kind) for kind in METHODS if _picture(kind))
        + "\n",
        DOCS / "methods" / "every.md": "\n".join(
            [METHODS_HEAD, *(line for kind in (*METHODS, *BASELINES) for line in _method(kind))]
        ),
    }


def _metric(kind: type[Metric]) -> Iterator[str]:
    metric = kind()
    yield from _told(kind)
    yield f"`{metric.name}`: {metric.summary}. {metric.source}.\n"
    yield f"- {metric.direction.capitalize()}; from {metric.range[0]:g} to {metric.range[1]:g}."
    yield f"- Forward passes a map: {metric.forward_passes}."
    yield f"- Ties: {metric.ties}."
    yield from (f"- Needs {WHO_HAS_IT[need]}." for need in metric.needs)
    types = get_type_hints(kind)
    yield from _options(kind, {field.name: _type(types[field.name]) for field in fields(kind)})


def _method(kind: type[Method]) -> Iterator[str]:
    yield from _told(kind)
    yield f"`{kind.name}`: {kind.summary}. {kind.source}.\n"
    passes = kind(NO_NETWORK).forward_passes
    if _picture(kind):
        yield f"![{kind.title} of a cat, and of a coffee](../gallery/{kind.name}.jpg)\n"
    yield f"- {kind.answers}"
    yield f"- Maps: {kind.kind}. Cost for one image and class: {passes:,.0f} forward passes; a pass back counts as two."
    yield f"- Needs {kind.needs}."
    yield from _sanity(kind)
    yield f"- Rules of your own: {'yes' if kind.takes_rules else 'no, it propagates by none'}."
    if kind.subtracts:
        yield "- A contrast of two classes is the one map less the other."
    yield from _options(kind, {field.name: str(field.type) for field in fields(kind)})


def _matrix_row(kind: type[Method]) -> str:
    baselines = {name: default_of(kind, name) for name in option_names(kind) if name in _BASELINES}
    compared = [
        f"`{name}`" + f": {value}" * isinstance(value, str) for name, value in baselines.items() if value is not True
    ]
    cells = (
        f"[{kind.title}](every.md#{kind.__name__.lower()})",
        kind.answers,
        kind.needs,
        f"{kind(NO_NETWORK).forward_passes:,.0f}",
        ", ".join(compared),
        kind.kind,
        "yes" if kind.explains_inside else "",
        ", ".join(what for axes, what in ((3, "signals"), (5, "volumes")) if axes in kind.axes),
        _left(kind, "last layer"),
        _left(kind, "all layers"),
    )
    return f"| {' | '.join(cells)} |\n"


def _picture(kind: type[Method]) -> bool:
    return (DOCS / "gallery" / f"{kind.name}.jpg").exists()


def _gallery_row(kind: type[Method]) -> str:
    return f"**[{kind.title}](every.md#{kind.__name__.lower()})**: {kind.answers}\n\n![{kind.title}](../gallery/{kind.name}.jpg)\n"


@cache
def _measured() -> dict[str, dict[str, Any]]:
    """What benchmarks/sanity.py found, by network and method."""
    found = {}
    for network, name in SANITY.items():
        file = DOCS.parent / "benchmarks" / "results" / f"{name}.json"
        found[network] = {row["method"]: row for row in json.loads(file.read_text())["rows"]}
    return found


def _sanity(kind: type[Method]) -> Iterator[str]:
    """Lines on how like the map is to that of another network or class, by the network on which it was measured."""
    for network, rows in _measured().items():
        if kind.name in rows:
            row = rows[kind.name]
            numbers = ", ".join(f"{said} {_interval(row[key])}" for key, said in _SAID.items())
            yield f"- Correlation with its map of {network} ({row['images']} images): {numbers}."


def _left(kind: type[Method], key: str) -> str:
    """The two networks' correlations, in a cell."""
    rows = [rows.get(kind.name) for rows in _measured().values()]
    return ", ".join("–" if row is None else _number(row[key][0]) for row in rows) if any(rows) else ""


def _interval(mean: list[float | None]) -> str:
    value, low, high = map(_number, mean)
    return value if mean[1] is None else f"{value} [{low}, {high}]"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}".replace("-0.00", "0.00")


def _told(kind: type) -> Iterator[str]:
    yield f"## {kind.__name__}\n"
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[0].strip()
    yield _ROLE.sub(r"`\1`", text) + "\n"


def _options(kind: type, types: dict[str, str]) -> Iterator[str]:
    yield "\n| option | type | default | meaning |\n|---|---|---|---|"
    meanings = option_docs(kind)
    for name in option_names(kind):
        cells = (f"`{name}`", f"`{types[name]}`", f"`{default_of(kind, name)!r}`", meanings[name])
        yield f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |"
    yield ""


def _type(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
