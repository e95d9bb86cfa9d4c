"""The papers as values, and their tables measured again: numbers beside the printed ones, verdicts, pages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from _commands import command
from backlit import FileError, InputError
from backlit.bench import execute
from backlit.bench.papers import PAPERS, find
from backlit.bench.papers.exhibit import Column, Exhibit, MethodRow, NeededFit, PaperClaim
from backlit.bench.papers.outcome import Reproduced, ahead, metric_name, verdict
from backlit.bench.papers.places import Places, read_places
from backlit.bench.papers.record import RECORD, write_record
from backlit.bench.papers.run import SCALES, Amount, reproduce
from backlit.bench.run import How
from backlit.bench.suite import PlannedData, PlannedNetwork
from backlit.metrics.lookup import find_metric
from backlit.metrics.statistics import Estimate, difference
from backlit.report.paper import as_html, as_markdown, page_of

SMALL = Exhibit(
    "table9",
    "two cheap methods and a costly one",
    (
        MethodRow("GI", "gradient_x_input"),
        MethodRow("Edges", "edges"),
        MethodRow("IG", "integrated_gradients(steps=60)"),
    ),
    (
        Column("deletion(steps=4)", "imagenet", "vgg16", (0.1, 0.2, 0.3)),
        Column("deletion(steps=4)", "imagenet", "digits", (10, 20, 30), 100),
    ),
    (
        PaperClaim("gradient x input looks at the network", "deletion(steps=4)", "GI", ("Edges", "IG")),
        PaperClaim("it is no worse by a whole", "deletion(steps=4)", "GI", ("IG",), -1.0),
    ),
    differs="Other images.",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("papers") / "mine.table9"


@pytest.fixture(scope="module")
def made(out: Path) -> Reproduced:
    return reproduce(SMALL, Places(), out, Amount(12, 6), How(threads=1))


def test_every_table_names_methods_metrics_and_numbers_that_there_are() -> None:
    assert [paper.name for paper in PAPERS] == ["dmbp", "lpr", "tr_gbp", "mip_in"]
    for paper in PAPERS:
        names = [one.name for one in paper.exhibits] + [name for name, _ in paper.elsewhere]
        assert len(set(names)) == len(names)
        for one in paper.exhibits:
            for row in one.rows:
                assert row.bare.forward_passes > 0
            for column in one.columns:
                assert find_metric(metric_name(column.metric).partition(".")[0])
            for claim in one.claims:
                assert any(metric_name(c.metric) == metric_name(claim.metric) for c in one.columns), claim.text
    tables = sum(name.startswith("table") for paper in PAPERS for name in _names(paper))
    figures = sum(name.startswith("figure") for paper in PAPERS for name in _names(paper))
    assert (tables, figures) == (12, 37)


def _names(paper: object) -> list[str]:
    return [one.name for one in paper.exhibits] + [name for name, _ in paper.elsewhere]  # type: ignore[attr-defined]


def test_printed_numbers_are_the_papers() -> None:
    """A number of each table, read from the paper once more."""
    for name, network, metric, title, number in (
        ("dmbp.table1", "resnet50", "insertion", "DMBP all", 0.57),
        ("dmbp.table2", "resnet50", "insertion", "GC", 0.55),
        ("dmbp.table2", "vgg16_voc", "complementary_insertion", "RISE", 0.13),
        ("dmbp.table3", "vgg16", "last_layer_reset", "GGC", 0.35),
        ("tr_gbp.table1", "resnet50", "energy_pointing_game", "CAMERAS", 50.1),
        ("tr_gbp.table2", "resnet50", "ibd_auc", "TR-GBP", 62.16),
        ("lpr.table2", "vgg16", "morf_5", "lr 0.45", 0.20),
        ("mip_in.table1", "cifar_cnn", "positive_apc", "MIP-IN", 10.6),
        ("mip_in.table2", "resnet50", "box_accuracy", "SmoothGrads", 0.541),
    ):
        _, (one,) = find(name)
        (column,) = [c for c in one.columns if c.network == network and c.metric.startswith(metric)]
        assert column.printed[[row.title for row in one.rows].index(title)] == number


def test_a_table_is_measured_where_its_networks_are(made: Reproduced) -> None:
    there, missing = SMALL.columns[1], SMALL.columns[0]
    assert {made.cells[row.title, missing].why for row in SMALL.rows} == {"no weights here"}
    assert made.cells["IG", missing].printed == 0.3
    cheap, costly = made.comparisons["digits", "imagenet"]
    assert [m.name for m in cheap.methods] == ["gradient_x_input", "edges"]
    assert [m.name for m in costly.methods] == ["integrated_gradients.steps-60"]
    name = metric_name("deletion(steps=4)")
    for row, images, comparison in (("GI", 12, cheap), ("IG", 6, costly)):
        cell = made.cells[row, there]
        method = next(r.chosen.name for r in SMALL.rows if r.title == row)
        (own,) = comparison.ranking.filter(metric=name, method=method).iter_rows(named=True)
        assert cell.measured is not None
        assert cell.measured.images == images
        assert cell.measured.value == pytest.approx(100 * own["value"])
        assert cell.measured.low == pytest.approx(100 * own["low"])


def test_claims_are_paired_over_the_images_that_both_have(made: Reproduced) -> None:
    comparisons = made.comparisons["digits", "imagenet"]
    name = metric_name("deletion(steps=4)")

    def scores(method: str) -> dict[str, float]:
        return {
            r["image"]: r["value"]
            for c in comparisons
            for r in c.scores.filter(metric=name, method=method).iter_rows(named=True)
        }

    one, other = scores("gradient_x_input"), scores("integrated_gradients.steps-60")
    both = sorted(set(one) & set(other))
    assert len(both) == 6
    wanted = difference(*(-np.array([of[i] for i in both]) for of in (one, other)))  # deletion: lower is better
    found = ahead(comparisons, name, "gradient_x_input", "integrated_gradients.steps-60")
    assert (found.value, found.low, found.high, found.images) == pytest.approx(
        (wanted.value, wanted.low, wanted.high, 6)
    )
    turned = ahead(comparisons, name, "integrated_gradients.steps-60", "gradient_x_input")
    assert turned.value == pytest.approx(-found.value)
    within = ahead(comparisons, name, "edges", "gradient_x_input")
    assert within.images == 12
    assert within.value == pytest.approx(-np.mean(list(scores("edges").values())) + np.mean(list(one.values())))
    assert within.low < within.value < within.high
    tested = {(t.network, t.claim.margin, t.worse): t.verdict for t in made.tested}
    assert tested["digits", -1.0, "IG"] == "holds"
    assert tested["vgg16", 0.0, "Edges"] == "not measured"
    assert tested["digits", 0.0, "Edges"] == verdict(ahead(comparisons, name, "gradient_x_input", "edges"), 0.0)


@pytest.mark.parametrize(
    ("ends", "images", "margin", "wanted"),
    [
        ((0.1, 0.05, 0.2), 9, 0.0, "holds"),
        ((-0.1, -0.2, -0.05), 9, 0.0, "does not hold"),
        ((0.1, -0.05, 0.2), 9, 0.0, "these images cannot tell"),
        ((0.1, 0.05, 0.2), 9, 0.1, "these images cannot tell"),
        ((0.1, 0.05, 0.2), 9, 0.3, "does not hold"),
        ((-0.01, -0.015, 0.0), 9, -0.02, "holds"),
        ((0.1, 0.0, 0.2), 9, 0.0, "these images cannot tell"),
        ((0.1, 0.05, 0.2), 4, 0.0, "these images cannot tell"),
        ((0.1, np.nan, np.nan), 9, 0.0, "these images cannot tell"),
        ((np.nan, np.nan, np.nan), 0, 0.0, "not measured"),
    ],
)
def test_a_verdict_is_by_the_interval(ends: tuple[float, ...], images: int, margin: float, wanted: str) -> None:
    assert verdict(Estimate(*ends, images), margin) == wanted


def test_what_is_done_is_not_done_again(made: Reproduced, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("explained again")

    monkeypatch.setattr(execute, "_each", refuse)
    again = reproduce(SMALL, Places(), out, Amount(12, 6), How(threads=1))
    assert again.cells == made.cells
    assert again.tested == made.tested


def test_pages_are_made_of_the_records(made: Reproduced, out: Path) -> None:
    record = json.loads(write_record(made, out).read_text())
    (picture,) = record["pictures"]
    assert (out / picture["file"]).read_bytes().startswith(b"\x89PNG")
    assert [t["network"] for t in record["tables"]] == ["vgg16", "digits"]
    page = page_of("mine", "A paper", [out], [("figure1", "an <illustration>")], ["table2"], RECORD)
    html, text = as_html(page), as_markdown(page, pictures="pictures/")
    cell = made.cells["GI", SMALL.columns[1]].measured
    assert cell is not None
    number = f"{cell.value:.1f} [{cell.low:.1f}, {cell.high:.1f}] (12)"
    for shown in (html, text):
        assert number in shown
        assert "no weights here" in shown
        assert "What differs:" in shown
        assert "gradient x input looks at the network" in shown
        assert "Not measured yet: table2" in shown
    assert f'src="mine.table9/{picture["file"]}"' in html
    assert "an &lt;illustration&gt;" in html
    assert f"](pictures/{picture['file']})" in text
    assert "| GI | 0.10 | no weights here | – |" in text


def test_maps_and_reset_networks_are_drawn(tmp_path: Path) -> None:
    rows = (MethodRow("GC", "grad_cam"), MethodRow("Rand", "random"))
    for drawn, metric in (("maps", "sparseness"), ("strips", "last_layer_reset")):
        one = Exhibit("figure1", "maps", rows, (Column(metric, "imagenet", "digits"),), drawn=drawn, classes=2)  # type: ignore[arg-type]
        made = reproduce(one, Places(), tmp_path / drawn, Amount(3, 3), How(threads=1))
        record = json.loads(write_record(made, tmp_path / drawn).read_text())
        assert record["tables"] == []
        assert (tmp_path / drawn / record["pictures"][0]["file"]).stat().st_size > 5_000


def test_what_must_be_learned_is_learned_once(tmp_path: Path) -> None:
    rows = (MethodRow("MIP-IN", "mip_in"),)
    fits = (NeededFit("mip_in", (("samples", "own"), ("reading", "paper"))),)
    one = Exhibit("table1", "apc", rows, (Column("apc", "mnist", "digits"),), fits=fits, together=True)
    told: list[str] = []
    made = reproduce(one, Places(), tmp_path, Amount(6, 2), How(threads=1), say=told.append)
    assert made.cells["MIP-IN", one.columns[0]].measured is not None
    assert [text for text in told if "learns from" in text] == [f"{fits[0].name} learns from 360 embedded digits"]
    told.clear()
    again = reproduce(one, Places(), tmp_path, Amount(6, 2), How(threads=1), say=told.append)
    assert again.cells == made.cells
    assert not any("learns from" in text for text in told)


def test_a_metric_that_the_images_cannot_serve_is_said(tmp_path: Path) -> None:
    one = Exhibit(
        "table1", "boxes", (MethodRow("GC", "grad_cam"),), (Column("pointing_game", "imagenet", "digits", (0.5,)),)
    )
    made = reproduce(one, Places(), tmp_path, Amount(3, 3), How(threads=1))
    assert made.cells["GC", one.columns[0]].why.startswith("Pointing game needs boxes of the target")
    assert made.comparisons == {}


def test_columns_for_other_networks() -> None:
    _, (one,) = find("dmbp.table1")
    asked = one.on(["resnet50", "resnet18", "digits"])
    assert [c.printed for c in asked.columns if c.network == "resnet50"] == [(0.26, 0.50, 0.51, 0.57)]
    assert [(c.metric, c.data) for c in asked.columns if c.network == "resnet18"] == [
        ("insertion", "imagenet"),
        ("insertion", "voc"),
        ("complementary_insertion", "voc"),
    ]
    assert [c.metric for c in asked.columns if c.network == "digits"] == ["insertion", "complementary_insertion"]
    assert not any(c.printed for c in asked.columns if c.network != "resnet50")


def test_amounts() -> None:
    assert (Amount.of("here"), Amount.of("quick", 50)) == (Amount(100, 20), Amount(50, 10))
    assert all(cheap % costly == 0 for cheap, costly in SCALES.values())  # of which the costly methods' images are some
    with pytest.raises(
        InputError, match=r"scale must be 'quick', 'here' or 'paper', but is 'hree'\. Did you mean 'here'"
    ):
        Amount.of("hree")
    with pytest.raises(InputError, match="images must be a number from 1 on, but is 0"):
        Amount.of("here", 0)


def test_places_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "places.toml"
    path.write_text(
        '[[networks]]\nname = "r"\nmodel = "resnet18"\nweights = "w.safetensors"\n'
        '[[data]]\nname = "imagenet"\npaths = ["x"]\nread = "imagenet"\npart = "2/2"\n'
    )
    found = read_places(path)
    assert found.network("r") == PlannedNetwork("resnet18", str(tmp_path / "w.safetensors"), {}, "r")
    assert found.images("r", "imagenet", 7) == PlannedData(
        (str(tmp_path / "x"),), "imagenet", part="2/2", limit=7, name="imagenet"
    )
    assert found.network("vgg16") is None
    assert found.network("digits") == PlannedNetwork("digits")
    path.write_text('methods = ["lpr"]')
    with pytest.raises(InputError, match=r"must hold \[\[networks\]\] and \[\[data\]\] alone, but has methods"):
        read_places(path)
    path.write_text('[[networks]]\nmodel = "a"\n[[networks]]\nmodel = "a"\n')
    with pytest.raises(InputError, match="networks must have different names, but are a, a"):
        read_places(path)
    with pytest.raises(FileError, match="places: cannot read"):
        read_places(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dmpb",), "paper must be one of dmbp, lpr, tr_gbp, mip_in, but is 'dmpb'. Did you mean 'dmbp'"),
        (("dmbp.tabel1",), "table must be one of table1, .* of dmbp, but is 'tabel1'. Did you mean 'table1'"),
        (("lpr.table1",), "lpr.table1 is not made here: ROAR on CIFAR-10: backlit roar"),
        (("dmbp", "--networks", "alexnet"), "networks must be of resnet50, .*, but hold 'alexnet'. Name it"),
        (("dmbp", "--scale", "all"), "scale must be 'quick', 'here' or 'paper'"),
        (("dmbp", "--places", "nowhere.toml"), "places: cannot read 'nowhere.toml'"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, FileError), match=message):
        _run(words, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _run(words: tuple[str, ...], out: Path) -> int:
    """Run the command in this process."""
    from backlit.cli.reproduce import command as run

    named = dict(zip(words[1::2], words[2::2], strict=True))
    places = Path(named["--places"]) if "--places" in named else None
    return run(words[0], places, named.get("--networks"), None, named.get("--scale", "quick"), out, How(0, 1), "cpu")


def test_the_command_writes_a_page_and_lists(tmp_path: Path) -> None:
    words = (
        "reproduce",
        "dmbp.table3",
        "--networks",
        "digits",
        "--images",
        "2",
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "table3: 3 of 3 numbers measured" in done.stdout
    assert "Not measured yet: table1, table2" in (tmp_path / "out" / "dmbp.html").read_text()
    assert (tmp_path / "out" / "dmbp.md").read_text().count("| GBp |") == 1
    listed = command("reproduce", "list").stdout
    assert all(name in listed for name in ("dmbp.table1", "lpr.figure9", "tr_gbp.table2", "mip_in.figure9"))
