"""Methods and metrics as they are asked for in words, with their options, still without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from backlit._errors import InputError, nearest
from backlit._options import option_names, options_of
from backlit.bench import FAST
from backlit.bench.setting import NamedSetting, Options, read_settings, value_of
from backlit.inverse import Fitted
from backlit.methods import BASELINES, DMBP, METHODS, FittedMethod, Method
from backlit.methods.attention_maps import has_attention
from backlit.methods.base import NO_NETWORK
from backlit.methods.lookup import SHORT, find_method, same_name, title_named
from backlit.metrics import Metric
from backlit.metrics.lookup import find_metric
from backlit.models import LoadedModel, Preprocess

Found = TypeVar("Found")


@dataclass(frozen=True)
class Chosen:
    """A method with its options, still without a model.

    Attributes:
        method: The method.
        options: Its options, without those that are left as they are by default.
        name: What files and rows call it: the method's name, or that of a short schedule, with the options of its setting.
        setting: Options that belong to its name, ``lpr(plugin=channel)``, which no other option replaces.
        named: It was asked for by its own name, not by "all": then a reason why it cannot run is an error.
    """

    method: type[Method]
    options: Options
    name: str = ""
    named: bool = True
    setting: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.method.name)

    @property
    def title(self) -> str:
        """The method's title, and its schedule where that is not its own."""
        return title_named(self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Return what the owner of an option may be called."""
        own = (self.method.name, self.method.__name__, self.name)
        return (*own, SHORT, FAST) if self.name.partition(".")[0] == SHORT else own


def methods(names: str, options: list[str], seed: int) -> list[Chosen]:
    """The methods named, by comma, each with the options that are for it; "fast" and "all" are names, too.

    Raises:
        InputError: An unknown method or option, with the nearest name.
    """
    found = _chosen(names, METHODS)
    chosen, unused = _with_options([_as_kind(one) for one in found], options, seed)
    _refuse(unused, [one.method for one in found])
    return _joined(found, chosen)


def _chosen(names: str, known: tuple[type[Method], ...]) -> list[Chosen]:
    def find(asked: NamedSetting) -> list[Chosen]:
        if asked.of.lower() == "all" and not asked.options:
            return [Chosen(method, {}, named=False) for method in METHODS]
        if same_name(asked.of, FAST) or same_name(asked.of, SHORT):
            return [Chosen(DMBP, short_schedule(), asked.name(SHORT), setting=asked.options)]
        method = find_method(asked.of, known)
        return [Chosen(method, {}, asked.name(method.name), setting=asked.options)]

    found = [one for several in _named(names, "method", find) for one in several]
    return list({one.name: one for one in sorted(found, key=lambda one: one.named)}.values())


def short_schedule() -> Options:
    """The options of ``DMBP.fast`` that are not those of DMBP."""
    usual = options_of(DMBP(NO_NETWORK))
    return {name: value for name, value in options_of(DMBP.fast(NO_NETWORK)).items() if value != usual[name]}


def _as_kind(one: Chosen) -> _Kind:
    return _Kind(one.method, one.names, one.options, one.setting)


def _joined(found: list[Chosen], options: list[Options]) -> list[Chosen]:
    return [replace(one, options=own) for one, own in zip(found, options, strict=True)]


def fitted_methods() -> list[type[FittedMethod]]:
    """The methods that learn from data."""
    return [m for m in METHODS if issubclass(m, FittedMethod)]


def with_fitted(
    chosen: list[Chosen], files: Sequence[Path], say: Callable[[str], Any] = lambda text: None
) -> list[Chosen]:
    """The methods, those that learn from data with the file that is for them; without one, "all" leaves them out.

    Raises:
        InputError: If a method has no file, or a file no method.
        FileError: If a file cannot be read.
    """
    found = {file: Fitted.load(file) for file in files}
    by_kind = {fitted.kind: fitted for fitted in found.values()}
    result = []
    for one in chosen:
        if issubclass(one.method, FittedMethod) and "fitted" not in one.options:
            if one.method.artefact not in by_kind:
                if not one.named:
                    say(f"{one.name} is left out: it learns from data first (backlit fit, then --fitted FILE)")
                    continue
                raise InputError(
                    f"method {one.method.name} learns from data first: `backlit fit --method {one.method.artefact} ... --out "
                    "FILE`, then --fitted FILE."
                )
            one = replace(one, options={**one.options, "fitted": by_kind[one.method.artefact]})
        result.append(one)
    used = {one.options["fitted"].kind for one in result if isinstance(one.options.get("fitted"), Fitted)}
    idle = [str(file) for file, fitted in found.items() if fitted.kind not in used]
    if idle:
        raise InputError(
            f"fitted: no method that was asked for uses {idle[0]!r}, which is for {found[Path(idle[0])].kind}."
        )
    return result


def with_attention(
    chosen: Sequence[Chosen], loaded: LoadedModel, say: Callable[[str], object] = lambda text: None
) -> list[Chosen]:
    """Return the methods; for a network without attention "all" leaves out those that read it."""
    if not any(one.method.reads_attention and not one.named for one in chosen):
        return list(chosen)
    blank = torch.zeros(1, loaded.preprocess.channels, *loaded.preprocess.size)
    if has_attention(loaded.network, (loaded.placed(blank),)):
        return list(chosen)
    kept = []
    for one in chosen:
        if one.method.reads_attention and not one.named:
            say(f"{one.name} is left out: it reads the attention of a transformer")
        else:
            kept.append(one)
    return kept


def with_bounds(chosen: Sequence[Chosen], preprocess: Preprocess) -> list[Chosen]:
    """The methods, those whose rules bound the pixels with what black and white are behind the preprocessing.

    So is the method that another one is made of, ``of``.
    """
    bounds = dict(zip(("low", "high"), preprocess.bounds, strict=True))

    def bounded(one: Chosen) -> Chosen:
        of = one.options.get("of")
        if isinstance(of, str) and _takes_bounds(find_method(of, METHODS + BASELINES)):
            return replace(one, options={**one.options, "of": find_method(of, METHODS)(NO_NETWORK, **bounds)})
        return replace(one, options={**bounds, **one.options}) if _takes_bounds(one.method) else one

    return [bounded(one) for one in chosen]


def _takes_bounds(method: type[Method]) -> bool:
    return {"low", "high"} <= set(settable(method))


def methods_and_metrics(
    names: str, metrics: str, options: list[str], seed: int
) -> tuple[list[Chosen], dict[str, Metric]]:
    """The methods, and the metrics by name, each with the options that are for it: ``insertion.steps=20``.

    Raises:
        InputError: An unknown name or option, with the nearest one.
    """
    found = _chosen(names, METHODS + BASELINES)
    asked = _named(metrics, "metric", lambda one: (find_metric(one.of), one))
    scored = {one.name(metric.name): (metric, one.options) for metric, one in asked}
    chosen, unused = _with_options([_as_kind(one) for one in found], options, seed)
    kinds = [_Kind(kind, (kind.name, kind.__name__, name), setting=own) for name, (kind, own) in scored.items()]
    measured, unused = _with_options(kinds, options, seed, unused)
    _refuse(unused, [*(one.method for one in found), *(kind for kind, _ in scored.values())])
    made = zip(scored.items(), measured, strict=True)
    return _joined(found, chosen), {name: kind(**own) for (name, (kind, _)), own in made}


def _named(names: str, argument: str, find: Callable[[NamedSetting], Found]) -> list[Found]:
    found = [find(one) for one in read_settings(names, argument)]
    if not found:
        raise InputError(
            f"{argument} must name at least one {argument}, by comma, but is {names!r}. See `backlit {argument}s`."
        )
    return found


@dataclass(frozen=True)
class _Kind:
    """What has options: a method or metric, the names of it that may stand before an option, its defaults, and what is fixed."""

    kind: type[Method] | type[Metric]
    names: tuple[str, ...]
    options: Options = field(default_factory=dict)
    setting: Options = field(default_factory=dict)


def _with_options(
    kinds: list[_Kind], texts: list[str], seed: int, unused: list[str] | None = None
) -> tuple[list[Options], list[str]]:
    """The options that are for each kind, and the texts that were for none of them (and not used before)."""
    rest = dict.fromkeys(texts if unused is None else unused)
    chosen = []
    for one in kinds:
        own: Options = {"seed": seed, **one.options}
        known = settable(one.kind)
        _refuse([f"{key}={value}" for key, value in one.setting.items() if key not in known], [one.kind])
        for text in texts:
            name, value = _pair(text)
            owner, dot, key = name.rpartition(".")
            if key in known and (not dot or any(same_name(owner, other) for other in one.names)):
                own[key] = value
                rest.pop(text, None)
        own |= one.setting
        _check(one.kind, own)
        chosen.append(own)
    return chosen, list(rest)


def _check(kind: type[Method] | type[Metric], options: Options) -> None:
    """Let a value that cannot be be an error before any image is read."""
    if issubclass(kind, Method):
        kind(NO_NETWORK, **options)
    else:
        kind(**options)


def _refuse(unused: list[str], kinds: Sequence[type[Method] | type[Metric]]) -> None:
    if unused:
        known = sorted({name for kind in kinds for name in settable(kind)})
        key = _pair(unused[0])[0].rpartition(".")[2]
        raise InputError(
            f"option {unused[0]!r} fits nothing that was asked for; there are {', '.join(known)}.{nearest(key, known)}"
        )


def settable(kind: type[Method] | type[Metric]) -> list[str]:
    """The options that a command line can set."""
    return [name for name in option_names(kind) if name not in ("callback", "progress", "fitted", "rules")]


def _pair(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"option must be KEY=VALUE, such as steps=40, but is {text!r}.")
    return name, value_of(name.rpartition(".")[2], value)
