"""The numbers over seeds, and the table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from backlit.bench.roar.result import OverSeeds, RoarResult, RoarRow, student


def row(method: str, fraction: float, seed: int, right: int) -> RoarRow:
    return RoarRow(method, fraction, seed, right / 1000, right, 1000, 0.1, 2.0, "f")


@pytest.fixture
def result() -> RoarResult:
    """The paper's Table 1 at two fractions as the mean of two seeds."""
    means = {("original", 0.0): 807, ("random", 0.4): 737, ("ours", 0.4): 718, ("random", 0.9): 596, ("ours", 0.9): 507}
    rows = [row(*key, seed, right + (10 if seed else -10)) for seed in (0, 1) for key, right in means.items()]
    return RoarResult(tuple(rows), ("ours",), {"ours": {"train": 0, "test": 2}}, {"fractions": (0.4, 0.9)})


def test_student_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (*range(1, 40), 1000):
        assert student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=2e-4)


def test_interval_over_seeds_covers_as_it_says() -> None:
    generator = np.random.default_rng(0)
    found = [OverSeeds.of(list(v)) for v in generator.normal(0.7, 0.02, (4000, 3))]
    assert np.mean([e.low <= 0.7 <= e.high for e in found]) == pytest.approx(0.95, abs=0.012)


def test_one_seed_has_no_interval() -> None:
    one = OverSeeds.of([0.5])
    assert one.mean == 0.5
    assert math.isnan(one.std)
    assert math.isnan(one.low)


def test_differences_are_paired_by_seed(result: RoarResult) -> None:
    cell = result.cell("ours", 0.9)
    assert cell.accuracy.mean == pytest.approx(0.507)
    assert cell.accuracy.std == pytest.approx(0.01 * math.sqrt(2))
    assert cell.difference is not None
    assert cell.difference.mean == pytest.approx(-0.089)
    assert cell.difference.std == pytest.approx(0, abs=1e-12)  # both seeds lose the same
    assert result.cell("original", 0.0).difference is None


def test_the_table_is_laid_out_as_the_papers(result: RoarResult) -> None:
    assert result.table().splitlines() == [
        "Fraction       Original         Random           ours",
        "     40%  80.70% ± 1.41  73.70% ± 1.41  71.80% ± 1.41",
        "     90%  80.70% ± 1.41  59.60% ± 1.41  50.70% ± 1.41",
    ]


def test_summary_and_notes(result: RoarResult) -> None:
    assert [(c.method, c.fraction) for c in result.summary()] == [
        ("original", 0.0),
        ("random", 0.4),
        ("ours", 0.4),
        ("random", 0.9),
        ("ours", 0.9),
    ]
    assert not result._above_original("ours")
    first, second = result.notes()
    assert first == "ours: the map of 0 training and 2 test images is constant; their pixels went at random."
    assert second.startswith("Fewer than three trainings")


def test_more_accuracy_than_before_is_a_leak_of_the_class() -> None:
    """Three standard errors of 1000 images at 50 % are 6.7 points: what chance gives is no leak."""
    rows = [
        row("original", 0.0, 0, 500),
        row("random", 0.5, 0, 300),
        row("tells", 0.5, 0, 570),
        row("chance", 0.5, 0, 560),
    ]
    found = RoarResult(tuple(rows), ("tells", "chance"), {}, {}).notes()
    assert [note.split(":")[0] for note in found] == ["tells", "Fewer than three trainings a cell"]
    assert "57.00% at 50%, more than the 50.00% before the removal" in found[0]


def test_bare_masks_have_columns_of_their_own() -> None:
    rows = [row(name, 0.5, 0, 300) for name in ("random", "a", "b", "b mask")] + [row("original", 0.0, 0, 200)]
    found = RoarResult(tuple(rows), ("a", "b"), {}, {})
    assert found.columns == ("random", "a", "b", "b mask")
    assert found.table().splitlines()[0].split("  ")[-1] == "b mask"
    assert len(found.summary()) == 5
