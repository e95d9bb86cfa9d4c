"""The report of a comparison: data first, rendered last, alone in one file."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pl = pytest.importorskip("polars", reason="comparisons need polars")

from backlit import Attribution, FileError  # noqa: E402
from backlit.comparison import ClassFacts, Comparison, ImageFacts, MethodFacts, Strip  # noqa: E402
from backlit.report.chart import chart, style, ticks  # noqa: E402
from backlit.report.comparison import render, report, write_report  # noqa: E402
from backlit.report.figure import limit  # noqa: E402
from backlit.report.inks import ink, palette_for, strengths  # noqa: E402
from backlit.report.kinds import PALETTES  # noqa: E402
from backlit.report.levels import FULL, LEVELS, ZERO, heat_of, photo, picture, pictures  # noqa: E402
from backlit.report.numbers import decimals, number, plain  # noqa: E402

METHODS = ("dmbp", "gradient", "random")
BAD = "<script>alert('x')</script>\"&"
SCHEMAS: dict[str, dict[str, Any]] = {
    "scores": {"metric": str, "method": str, "image": str, "target": int, "value": float, "extra": str},
    "curves": dict.fromkeys(("metric", "method"), str)
    | dict.fromkeys(("position", "mean", "low", "high"), float)
    | {"images": int},
    "ranking": {"metric": str, "rank": int, "method": str, "value": float, "low": float, "high": float, "images": int},
    "differences": dict.fromkeys(("metric", "method", "other"), str)
    | dict.fromkeys(("difference", "low", "high"), float)
    | {"images": int, "significant": bool},
    "agreement": {"metric": str, "other": str, "tau": float, "methods": int},
}


def frame(name: str, rows: list[tuple[Any, ...]]) -> Any:
    return pl.DataFrame(rows, schema=SCHEMAS[name], orient="row")


def protocol(metric: str, title: str, *, higher: bool) -> dict[str, Any]:
    options = {"steps": 4, "score": "probability"}
    return {
        "metric": metric,
        "title": title,
        "source": "A paper, Sec. 1",
        "higher_is_better": higher,
        "direction": "higher is better" if higher else "lower is better",
        "range": [0, None],
        "axes": ["share of pixels changed", "probability"],
        "options": options,
    }


def facts(name: str) -> MethodFacts:
    coverage, complete = {"guided": 3, "exact": 5}, {"gap": 0.25}
    options = {"seed": 0, "chunk": None}
    return MethodFacts(
        name, name.upper(), f"{name} summary", "Some et al. 2020", options, 0.5, 12.0, coverage, complete
    )


def synthetic(size: int = 16, images: tuple[str, ...] = ("cat", "dog", "owl"), classes: int = 2) -> Comparison:
    """3 images, 3 methods, 2 classes, 2 metrics, of which one has curves; a strip; "random" is a map of zeros."""
    generator = torch.Generator().manual_seed(0)
    shown = tuple(
        ImageFacts(
            n,
            torch.rand(3, size, size, generator=generator),
            tuple(ClassFacts(c, f"label {c}", 3.0 - c, 0.6 - 0.2 * c) for c in range(classes)),
        )
        for n in images
    )
    maps = {
        (m, i.name, c.index): torch.randn(size, size, generator=generator) * (m != "random")
        for m in METHODS
        for i in shown
        for c in i.classes
    }
    means = {"insertion": (0.8, 0.6, 0.2), "reset": (0.3, 0.1, 0.7)}
    scores = [(k, m, n, 0, v[i], "") for k, v in means.items() for i, m in enumerate(METHODS) for n in images]
    scores += [("reset", m, n, 0, 0.5, "ssim") for m in METHODS for n in images]
    order = {"insertion": (0, 1, 2), "reset": (1, 0, 2)}
    ranking = [
        (k, rank, METHODS[i], means[k][i], means[k][i] - 0.1, means[k][i] + 0.1, 3)
        for k, places in order.items()
        for rank, i in enumerate(places, 1)
    ]
    differences = []
    for k, v in means.items():
        for i, j in combinations(range(3), 2):
            d = v[i] - v[j]
            differences.append((k, METHODS[i], METHODS[j], d, d - 0.25, d + 0.25, 3, abs(d) > 0.25))
    curves = [
        ("insertion", m, p / 4, means["insertion"][i] * p / 4, means["insertion"][i] * p / 4 - 0.05, p / 4, 3)
        for i, m in enumerate(METHODS)
        for p in range(5)
    ]
    strip = Strip(
        "dmbp",
        images[0],
        "reset",
        ("trained", "fc", "conv1"),
        tuple(torch.randn(size, size, generator=generator) for _ in range(3)),
        {"Spearman": (1.0, 0.4, -0.05)},
    )
    return Comparison(
        "a network",
        tuple(facts(m) for m in METHODS),
        shown,
        maps,
        frame("scores", scores),
        frame("curves", curves),
        frame("ranking", ranking),
        frame("differences", differences),
        frame("agreement", [("insertion", "reset", 1 / 3, 3)]),
        (protocol("insertion", "Insertion", higher=True), protocol("reset", "Reset", higher=False)),
        (strip,),
        {"insertion": ("one image left out",)},
        {"images": 3, "date": "2026-01-02", "versions": {"backlit": "0.1", "torch": "2.6"}, "command": BAD},
    )


class Tags(HTMLParser):
    """Start tags of a document, whether all are closed in their order, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data


# --- maps as pictures


def test_a_map_keeps_sign_order_and_its_own_scale() -> None:
    heat = heat_of(torch.tensor([[4.0, -4.0], [1.0, 0.0]]))
    assert heat.scale == limit(torch.tensor([[4.0, -4.0], [1.0, 0.0]]))[0]
    assert heat.strength is not None
    np.testing.assert_allclose(heat.strength, [[1, -1], [0.25, 0]], rtol=1e-6)
    assert greys(picture(heat.strength, 255)).tolist() == [[ZERO + FULL, ZERO - FULL], [ZERO + 64, ZERO]]


def test_a_map_has_the_percentile_of_an_attribution() -> None:
    values = torch.randn(1, 1, 30, 30)
    same = Attribution(values, torch.tensor([0]), torch.tensor([0.0])).scale_used()
    assert limit(values[0, 0]) == same


def greys(file: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(file)).convert("L"))


@pytest.mark.parametrize("levels", LEVELS)
def test_a_picture_shows_its_levels_as_the_same_greys(levels: int) -> None:
    root = np.linspace(-1, 1, 4096).reshape(64, 64)
    found = greys(picture(np.sign(root) * root**2, levels))
    assert (found[0, 0], found[-1, -1]) == (ZERO - FULL, ZERO + FULL)
    assert len(np.unique(found)) == levels
    assert (np.diff(found.flatten().astype(int)) >= 0).all()
    np.testing.assert_allclose(strengths()[ZERO - FULL :], -strengths()[: ZERO - FULL - 1 : -1], rtol=1e-12)
    near = strengths()[greys(picture(np.zeros((8, 8)), levels))]
    assert not near.any()  # 0 is a level of its own


def test_a_smooth_map_is_kept_in_few_pixels_and_filled_in_again() -> None:
    coarse = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (224, 224), mode="bilinear")[0, 0]
    found = heat_of(smooth)
    assert found.smooth
    assert found.strength is not None
    assert found.strength.size < 224 * 224 / 3
    filled = torch.nn.functional.interpolate(torch.from_numpy(found.strength)[None, None], (224, 224), mode="bilinear")
    wanted = (smooth.double() / found.scale).clamp(-1, 1)
    assert (filled[0, 0] - wanted).abs().max() < 0.05
    rough = heat_of(torch.randn(224, 224, generator=torch.Generator().manual_seed(0)))
    assert not rough.smooth
    assert rough.strength is not None
    assert rough.strength.shape == (224, 224)
    assert not heat_of(smooth[:100, :100]).smooth  # small: single pixels are to be seen


def test_a_filter_gives_each_grey_the_colour_of_its_strength() -> None:
    made = ink(PALETTES["signed"], ("A",))
    alone, over, regions = made.filters
    colours = np.array([[float(v) for v in channel.split()] for channel in (alone.red, alone.green, alone.blue)]).T
    np.testing.assert_allclose(colours, PALETTES["signed"].colour(strengths()), atol=0.0006)
    assert colours[ZERO].tolist() == [1, 1, 1]
    assert alone.alpha == ""
    cover = np.array([float(v) for v in over.alpha.split()])
    assert (cover[ZERO], cover[0], cover[-1]) == (0, 1, 1)
    assert (np.diff(cover[ZERO:]) >= 0).all()
    assert max(float(v) for v in regions.alpha.split()) < 1  # the image is to be seen under a map of regions
    assert over.red.split()[0] != over.red.split()[-1]
    strong = ink(PALETTES["magnitude"], ("B",))
    assert strong.filters[1].red.split() == strong.filters[1].red.split()[:1] * 2


def test_a_methods_colours_claim_no_more_than_its_maps() -> None:
    above, both = heat_of(torch.rand(4, 4)), heat_of(torch.tensor([[1.0, -1.0]]))
    names = {
        (m, len(h)): palette_for(m, h).name
        for m in ("dmbp", "grad_cam", "saliency", "own")
        for h in ([above], [above, both])
    }
    assert names == {
        ("dmbp", 1): "signed",
        ("dmbp", 2): "signed",
        ("grad_cam", 1): "one-sided",
        ("grad_cam", 2): "signed",
        ("saliency", 1): "magnitude",
        ("saliency", 2): "unknown",
        ("own", 1): "unknown",
        ("own", 2): "unknown",
    }


def test_levels_give_way_to_the_room() -> None:
    noise = [heat_of(torch.randn(64, 64)) for _ in range(3)]
    files, levels = pictures(noise, 1e9)
    assert levels == (LEVELS[0], LEVELS[0])
    full = sum(len(f) for f in files if f)
    fewer, coarser = pictures(noise, full * 0.8)
    assert coarser[0] == coarser[1] < LEVELS[0]
    assert sum(len(f) for f in fewer if f) <= full * 0.8
    assert pictures(noise, 1)[1] == (LEVELS[-1], LEVELS[-1])


def test_smooth_maps_keep_their_levels() -> None:
    smooth = heat_of(torch.linspace(-1, 1, 64)[:, None].expand(64, 64))
    maps = [heat_of(torch.randn(64, 64)), smooth, heat_of(torch.full((2, 2), math.nan))]
    files, levels = pictures(maps, 4000)
    assert levels == (levels[0], LEVELS[0])
    assert levels[0] < LEVELS[0]
    assert smooth.strength is not None
    assert files[1:] == [picture(smooth.strength, LEVELS[0]), None]
    assert sum(len(f) for f in files if f) <= 4000


def test_large_maps_are_averaged_and_broken_ones_are_not_drawn() -> None:
    large = heat_of(torch.randn(600, 300, generator=torch.Generator().manual_seed(0)))
    assert large.strength is not None
    assert large.strength.shape == (256, 128)
    even = heat_of(torch.ones(600, 300))
    assert even.scale == pytest.approx(1)
    assert even.smooth
    assert even.strength is not None
    assert even.strength.min() == even.strength.max() == pytest.approx(1)
    assert heat_of(torch.full((4, 4), math.nan)).strength is None
    zero = heat_of(torch.zeros(4, 4))
    assert zero.scale == 0
    assert zero.strength is not None
    assert not zero.strength.any()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_photographs_of_any_channels_and_size_are_shown(channels: int, mode: str) -> None:
    source = photo(torch.full((channels, 600, 4000), 0.5))
    shown = Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))
    assert (shown.mode, shown.size) == (mode, (512, 77))
    middle = np.array(shown)[40, 200]
    assert np.abs(middle - (191 if channels == 4 else 128)).max() <= 1  # a half, half seen through to white


# --- numbers and curves


def test_numbers_have_the_digits_that_differ() -> None:
    assert decimals([0.81, 0.62]) == 3
    assert decimals([100.0, 400.0]) == 0
    assert decimals([1e-9, 2e-9]) is None
    assert decimals([None, math.nan]) == 2
    assert number(-0.5, 2) == "−0.50"
    assert number(-0.004, 2) == "0.00"
    assert number(0.5, 2, sign=True) == "+0.50"
    assert number(2648.3) == "2,648"
    assert plain({"a": [1, None], "b": True}) == "a 1, none, b yes"


def test_ticks_are_round_and_enclose() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    for low, high in ((-0.3, 0.17), (5, 5), (0, 0), (1e-12, 3e-12), (-1e6, 1e6)):
        found = ticks(low, high)
        assert found[0] <= low <= high <= found[-1]
        assert 2 <= len(found) <= 9


def test_forty_methods_look_different() -> None:
    assert len({(style(i).colour, style(i).dash) for i in range(40)}) == 40
    assert len({style(i).colour for i in range(8)}) == 8


def point(position: float, mean: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"method": "a", "position": position, "mean": mean, "low": low, "high": high}


def test_a_curve_is_broken_where_it_is_unknown_and_has_no_band_of_few_images() -> None:
    made = chart("t", "x", "y", [point(0, 0.0), point(0.5, None), point(1, 1.0)], {"a": 0})
    assert made is not None
    (line,) = made.lines
    assert line.path.count("M") == 2
    assert "L" not in line.path
    assert line.band == ""
    assert not made.banded
    assert chart("t", "x", "y", [point(0, None), point(1, math.nan)], {"a": 0}) is None
    assert chart("t", "x", "y", [], {"a": 0}) is None


def test_a_curve_stands_on_its_axes() -> None:
    made = chart("t", "x", "y", [point(0, 0.0, 0.0, 0.2), point(1, 1.0, 0.8, 1.0)], {"a": 0})
    assert made is not None
    assert [t.text for t in made.x_ticks] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert [t.text for t in made.y_ticks][:2] == ["0.0", "0.2"]
    assert made.lines[0].path == f"M{made.left:.1f} {made.bottom:.1f}L{made.right:.1f} {made.top:.1f}"
    assert made.lines[0].band.startswith("M")


# --- what the report says


def test_the_header_and_the_overview() -> None:
    found = report(synthetic())
    assert dict(found.facts) | {"Images": "3", "Backlit": "0.1"} == dict(found.facts)
    assert [[(c.value, c.mark) for c in row] for row in found.overview] == [
        [("0.800", "best"), ("0.300", "tied")],
        [("0.600", "tied"), ("0.100", "best")],
        [("0.200", ""), ("0.700", "")],
    ]


def test_a_ranking_says_direction_interval_and_significance() -> None:
    insertion, reset = report(synthetic()).metrics
    assert (insertion.direction, reset.direction) == ("higher is better", "lower is better")
    assert insertion.chart is not None
    assert (insertion.chart.x_label, insertion.chart.y_label) == ("share of pixels changed", "probability")
    assert "Axes" not in dict(insertion.protocol)
    first, second, third = insertion.ranking
    assert (first.rank, first.value, first.interval, first.images) == ("1", "0.800", "[0.700, 0.900]", 3)
    assert first.best
    assert first.against_best is None
    assert second.against_best is not None
    assert third.against_best is not None
    assert (second.against_best.difference, second.against_best.verdict) == ("−0.200", "n.s.")
    assert (third.against_best.interval, third.against_best.verdict) == ("[−0.850, −0.350]", "worse")
    assert first.bar is not None
    assert first.bar.low is not None
    assert first.bar.low < first.bar.at
    worst = reset.ranking[-1].against_best
    assert worst is not None
    assert (worst.difference, worst.verdict) == ("+0.600", "worse")  # lower is better


def test_pairs_are_turned_round() -> None:
    pairs = report(synthetic()).metrics[0].pairs
    forth, back = pairs[0][2], pairs[2][0]
    assert forth is not None
    assert back is not None
    assert (forth.difference, forth.interval, forth.verdict) == ("+0.600", "[0.350, 0.850]", "better")
    assert (back.difference, back.interval, back.verdict) == ("−0.600", "[−0.850, −0.350]", "worse")
    assert all(pairs[i][i] is None for i in range(3))


def test_what_is_missing_is_said() -> None:
    unscored = [("insertion", 1, "dmbp", 0.5, None, None, 2), ("insertion", 2, "gradient", None, None, None, 0)]
    unscored.append(("insertion", 3, "random", math.nan, math.nan, math.nan, 0))
    pairs = [("insertion", "dmbp", "gradient", 0.1, None, math.nan, 2, False)]
    comparison = replace(
        synthetic(),
        ranking=frame("ranking", unscored),
        differences=frame("differences", pairs),
        scores=frame(
            "scores", [("insertion", "dmbp", "cat", 0, 0.5, ""), ("insertion", "gradient", "cat", 0, None, "")]
        ),
    )
    found = report(comparison)
    rows = found.metrics[0].ranking
    assert [(r.rank, r.value, r.interval) for r in rows] == [
        ("1", "0.500", "too few images"),
        ("–", "not scored", ""),
        ("–", "not scored", ""),
    ]
    assert rows[1].against_best is not None
    assert rows[1].against_best.verdict == "too few images"
    assert [r.values for r in found.gallery.shots[0].scores] == [("0.500",), ("not scored",), ("not scored",)]
    assert found.gallery.shots[1].scores == ()
    assert found.metrics[1].ranking == ()
    html = render(comparison)
    for text in ("too few images", "not scored", "No scores."):
        assert text in html


def test_maps_that_cannot_be_shown_say_why() -> None:
    comparison = synthetic()
    maps = dict(comparison.maps)
    maps["dmbp", "cat", 0] = torch.full((16, 16), math.inf)
    del maps["gradient", "cat", 0]
    found = report(replace(comparison, maps=maps)).gallery.shots[0]
    broken, missing, zero = (c.maps[0] for c in found.cells)
    assert (broken.source, broken.note) == (None, "it holds NaN or infinity")
    assert (missing.source, missing.note) == (None, "the comparison holds none")
    assert zero.scale == "zero everywhere"
    assert zero.source is not None
    assert "it holds NaN or infinity" in render(replace(comparison, maps=maps))


def test_maps_of_a_class_that_the_network_does_not_see_are_faint_and_say_so() -> None:
    comparison = synthetic()
    seen, unseen = comparison.images[0].classes
    classes = (seen, replace(unseen, probability=2e-10))
    shown = replace(comparison, images=(replace(comparison.images[0], classes=classes),))
    first, second = report(shown).gallery.shots[0].classes
    assert (first.unseen, second.unseen) == (False, True)
    assert second.detail.endswith("the network does not see this class, so its maps are drawn faint")
    starts = [a.get("class") or "" for tag, a in Tags(render(shown)).starts if tag == "img"]
    assert [c.rpartition(" ")[2] for c in starts if " faint " in c] == ["k1"] * 3


def test_strips_stand_together_by_image() -> None:
    comparison = synthetic()
    (strip,) = comparison.strips
    constant = replace(strip, method="random", correlations={"Spearman": (1.0, math.nan)})
    other = replace(strip, image="dog")
    found = report(replace(comparison, strips=(strip, other, constant))).gallery.strips
    assert [(t.image, [r.method for r in t.rows]) for t in found] == [("cat", ["DMBP", "RANDOM"]), ("dog", ["DMBP"])]
    assert found[0].labels == ("trained", "fc", "conv1")
    assert [s.correlations for s in found[0].rows[0].stages] == [("1.00",), ("0.40",), ("−0.05",)]
    assert [s.correlations for s in found[0].rows[1].stages] == [("1.00",), ("–",), ("–",)]
    assert [t.undefined for t in found] == [True, False]


def test_a_sentence_says_who_is_best_and_who_cannot_be_told_from_it() -> None:
    insertion, reset = report(synthetic()).metrics
    assert insertion.verdict == "DMBP is best; GRADIENT cannot be told from it on these 3 images."
    assert reset.verdict == "GRADIENT is best; DMBP cannot be told from it on these 3 images."
    comparison = synthetic()
    clear = comparison.differences.with_columns(significant=pl.lit(value=True))
    assert report(replace(comparison, differences=clear)).metrics[0].verdict == (
        "DMBP is best, and these 3 images tell it from every other method."
    )
    all_alike = comparison.differences.with_columns(significant=pl.lit(value=False))
    assert report(replace(comparison, differences=all_alike)).metrics[0].verdict == (
        "DMBP is best; GRADIENT and RANDOM cannot be told from it on these 3 images."
    )
    few = comparison.differences.with_columns(low=pl.lit(None, dtype=float), high=pl.lit(None, dtype=float))
    assert report(replace(comparison, differences=few)).metrics[0].verdict == (
        "DMBP has the best mean; 3 images are too few to tell whether others differ from it."
    )
    alone = comparison.ranking.filter(pl.col("method") == "dmbp")
    assert report(replace(comparison, ranking=alone)).metrics[0].verdict == "Only DMBP has a score."
    unscored = comparison.ranking.with_columns(value=pl.lit(None, dtype=float))
    assert report(replace(comparison, ranking=unscored)).metrics[0].verdict == ""


@pytest.mark.parametrize(
    ("names", "order", "shown"),
    [
        (("random", "grad_cam", "dmbp"), ("dmbp", "grad_cam", "random"), 3),
        (
            ("random", "lrp", "mip_in", "grad_cam", "saliency", "tr_gbp", "lpr", "dmbp"),
            ("dmbp", "lpr", "tr_gbp", "mip_in", "grad_cam", "random", "lrp", "saliency"),
            5,
        ),
        (("a", "b", "c", "d", "e", "dmbp", "f"), ("dmbp", "a", "b", "c", "d", "e", "f"), 5),
    ],
)
def test_the_four_methods_and_grad_cam_come_first_and_the_others_are_a_choice(
    names: tuple[str, ...], order: tuple[str, ...], shown: int
) -> None:
    found = report(replace(synthetic(), methods=tuple(facts(n) for n in names)))
    assert tuple(m.name for m in found.methods) == order
    assert [m.at_first for m in found.methods] == [True] * shown + [False] * (len(names) - shown)


def test_the_page_links_to_the_tables_that_lie_beside_it(tmp_path: Path) -> None:
    for name in ("scores.csv", "ranking.parquet", "own.csv"):
        (tmp_path / name).write_text("")
    write_report(tmp_path / "report.html", synthetic())
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    links = [a["href"] for tag, a in Tags(html).starts if tag == "a" and not (a["href"] or "").startswith("#")]
    assert links == ["scores.csv", "ranking.parquet"]
    assert "lie beside it" in html


def test_images_are_folded_but_for_the_first() -> None:
    starts = Tags(render(synthetic())).starts
    folded = [a for tag, a in starts if tag == "details" and (a.get("class") or "").startswith("image ")]
    assert ["open" in a for a in folded] == [True, True, False]
    metrics = [a for tag, a in starts if tag == "details" and (a.get("class") or "").startswith("metric ")]
    assert ["open" in a for a in metrics] == [True, False]


def test_methods_and_protocols_are_recorded() -> None:
    found = report(synthetic())
    assert found.methods[0].coverage == (("guided", "3"), ("exact", "5"))
    assert found.methods[0].completeness == (("gap", "0.25"),)
    assert (found.methods[0].seconds, found.methods[0].forwards) == ("0.5", "12")
    assert dict(found.metrics[0].protocol) == {
        "range": "0 to ∞",
        "option steps": "4",
        "option score": "probability",
    }
    assert found.metrics[0].notes == ("one image left out",)
    assert found.metrics[1].further[0].means[0] == ("DMBP", "0.500")
    assert dict(found.provenance)["versions"] == "backlit 0.1, torch 2.6"


def test_a_metric_without_a_protocol_is_shown() -> None:
    found = report(replace(synthetic(), protocols=()))
    assert [(m.title, m.direction) for m in found.metrics] == [("insertion", ""), ("reset", "")]
    last = found.metrics[0].ranking[-1].against_best
    assert last is not None
    assert last.verdict == "differs"


# --- the page


def test_a_page_loads_nothing_and_escapes_what_it_shows() -> None:
    comparison = synthetic(images=(BAD, "dog"))
    named = tuple(replace(i, classes=tuple(replace(c, label=BAD) for c in i.classes)) for i in comparison.images)
    methods = tuple(replace(m, title=BAD, summary=BAD, source=BAD, options={BAD: BAD}) for m in comparison.methods)
    strips = tuple(replace(s, labels=(BAD, BAD, BAD), correlations={BAD: (1.0, 0.0, 0.0)}) for s in comparison.strips)
    html = render(
        replace(comparison, model=BAD, images=named, methods=methods, strips=strips, notes={"insertion": (BAD,)})
    )
    found = Tags(html)
    assert found.open == []
    assert [tag for tag, _ in found.starts].count("script") == 1
    assert {tag for tag, _ in found.starts}.isdisjoint({"link", "iframe", "object", "base"})
    assert html.count("alert(") == html.count("&lt;script&gt;alert(&#39;x&#39;)") > 20
    assert not any(name.startswith("on") for _, attributes in found.starts for name in attributes)
    outside = re.sub(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", "", html)
    outside = outside.replace("url()", "")
    assert {place[:1] for place in re.findall(r"url\(([^)]*)\)", outside)} == {"#"}  # the filters of this page
    assert not re.search(r"(src|href)=\"(?!#|\")", outside)
    assert "http" not in outside.replace("http-equiv", "")


def test_only_the_pages_own_script_may_run() -> None:
    html = render(synthetic())
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_each_image_and_each_map_is_there_once() -> None:
    comparison = synthetic()
    html = render(comparison)
    assert html.count("background-image: url(data:image/png") == 3
    sources = re.findall(r'class="map[^"]*" src="([^"]+)"', html)
    assert len(sources) == 3 * 3 * 2
    assert len(set(sources)) == 2 * 3 * 2 + 1  # the map of zeros is the same everywhere


def test_the_document_can_be_used_from_the_keyboard_and_read_aloud() -> None:
    starts = Tags(render(synthetic())).starts
    assert all(a.get("alt") for tag, a in starts if tag == "img")
    ids = [a["id"] for _, a in starts if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {(a.get("href") or "").removeprefix("#") for tag, a in starts if tag == "a"}
    targets |= {a["aria-labelledby"] or "" for _, a in starts if "aria-labelledby" in a}
    assert targets <= set(ids)
    regions = [a for _, a in starts if a.get("class") == "scroll"]
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in regions)
    radios = {a["name"] for tag, a in starts if tag == "input" and a.get("type") == "radio"}
    assert radios == {"view", "all-classes", "class-0", "class-1", "class-2"}


@pytest.mark.parametrize(
    "left",
    ["one image", "one method", "no curves", "no strips", "no metrics", "no images", "one class", "grey, oblong"],
)
def test_reports_of_less_render(left: str) -> None:
    c = synthetic(classes=1) if left == "one class" else synthetic()
    none = {name: frame(name, []) for name in SCHEMAS}
    grey = tuple(replace(i, picture=torch.rand(1, 20, 300)) for i in c.images)
    oblong = {k: torch.rand(20, 300) for k in c.maps}
    made = {
        "one image": lambda: replace(c, images=c.images[:1]),
        "one method": lambda: replace(c, methods=c.methods[:1]),
        "no curves": lambda: replace(c, curves=none["curves"]),
        "no strips": lambda: replace(c, strips=()),
        "no metrics": lambda: replace(c, protocols=(), strips=(), notes={}, **none),
        "no images": lambda: replace(c, images=(), maps={}),
        "one class": lambda: c,
        "grey, oblong": lambda: replace(c, images=grey, maps=oblong),
    }[left]()
    html = render(made)
    assert Tags(html).open == []
    assert ("all-classes" in html.partition("<script>")[0]) == (left not in ("one class", "no images"))
    assert ('class="chart"' in html) == (left not in ("no curves", "no metrics"))
    assert ('id="resets"' in html) == (left not in ("no strips", "no metrics"))
    assert ("larger than 256 pixels" in html) == (left == "grey, oblong")
    assert "None" not in Tags(html).text


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "report.html", synthetic())
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == render(synthetic())
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"out: cannot write to .*Choose another folder"):
        write_report(tmp_path / "file" / "report.html", synthetic())


@pytest.mark.slow
def test_twenty_images_by_eight_methods_of_noise_take_less_than_10_mb() -> None:
    images = tuple(f"image {i}" for i in range(20))
    small = synthetic(size=227, images=images)
    methods = tuple(facts(f"method {i}") for i in range(8))
    maps = {(m.name, n, c): torch.randn(227, 227) for m in methods for n in images for c in (0, 1)}
    strips = tuple(replace(small.strips[0], method=m.name, image=n) for m in methods for n in images[:3])
    html = render(replace(small, methods=methods, maps=maps, strips=strips))
    assert len(html.encode()) < 10e6


def test_the_metrics_taus_stand_beside_each_other() -> None:
    text = Tags(render(synthetic())).text
    assert "Do the metrics agree?" in text
    assert "0.33" in text
    fewer = replace(synthetic(), agreement=frame("agreement", [("insertion", "reset", None, 2)]))
    assert "Do the metrics agree?" not in render(fewer)
