"""Ranks, correlations, similarity, intervals: against scipy, against slow loops, and against what theory says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy import stats

import _oracles as slow
from backlit import InputError
from backlit.metrics.ranking import average_ranks, drawn_orders, pixel_ranks, spearman
from backlit.metrics.similarity import scaled, ssim
from backlit.metrics.statistics import difference, estimate, kendall_tau, mean_band


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=40), st.booleans())
def test_ranks_are_a_permutation_in_the_order_of_the_values(values: list[int], ascending: bool) -> None:
    heat = torch.tensor(values, dtype=torch.float64)
    drawn = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))[None]
    ranks = pixel_ranks(heat[None], drawn, ascending=ascending)[0]
    assert sorted(ranks.tolist()) == list(range(len(values)))
    in_order = heat[ranks.argsort()]
    steps = in_order.diff() if ascending else -in_order.diff()
    assert bool((steps >= 0).all())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(-4, 4), min_size=6, max_size=6), min_size=2, max_size=2))
def test_spearman_is_scipys_with_ties(pair: list[list[int]]) -> None:
    a, b = (torch.tensor(v, dtype=torch.float64) for v in pair)
    np.testing.assert_allclose(average_ranks(a).numpy() + 1, stats.rankdata(a.numpy()))
    ours = float(spearman(a, b))
    if len(set(pair[0])) == 1 or len(set(pair[1])) == 1:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-12)


def test_spearman_of_maps_in_a_batch() -> None:
    a, b = slow.distinct((3, 200), 1), slow.distinct((3, 200), 2)
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(spearman(a, b).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(spearman(a, a.exp()).numpy(), 1)
    np.testing.assert_allclose(spearman(a, -(a**3)).numpy(), -1)


def test_ssim_is_the_papers_window_by_window() -> None:
    a, b = slow.distinct((2, 1, 13, 15), 1), slow.distinct((2, 1, 13, 15), 2)
    b = 0.7 * a + 0.3 * b
    expected = [slow.ssim(x[0].numpy(), y[0].numpy(), 2.0) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b, 2.0).numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(ssim(a, a, 2.0).numpy(), 1)
    with pytest.raises(InputError, match=r"maps must be at least 11 pixels a side for SSIM, but are \(8, 8\)"):
        ssim(a[..., :8, :8], b[..., :8, :8], 2.0)


def test_a_map_of_zeros_stays_one_when_scaled() -> None:
    maps = torch.stack([torch.zeros(1, 3, 3), torch.full((1, 3, 3), -4.0)])
    assert scaled(maps).amin((1, 2, 3)).tolist() == [0, -1]


def test_the_interval_is_about_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    e = estimate(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert e.value == pytest.approx(values.mean())
    assert e.low == pytest.approx(values.mean() - half, abs=0.02)
    assert e.high == pytest.approx(values.mean() + half, abs=0.02)
    assert estimate(values) == e  # the draws are the seed's


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    inside = [(e := estimate(generator.exponential(1, 60))).low <= 1 <= e.high for _ in range(150)]
    assert 0.86 < np.mean(inside) < 1  # 0.95 in theory; the percentile bootstrap of a skewed mean is a little short


def test_a_paired_difference_sees_what_the_intervals_of_the_means_do_not() -> None:
    generator = np.random.default_rng(3)
    hard = generator.normal(0, 5, 50)
    better, worse = hard + 0.5 + generator.normal(0, 0.2, 50), hard + generator.normal(0, 0.2, 50)
    assert estimate(better).low < estimate(worse).high
    d = difference(better, worse)
    assert d.value == pytest.approx((better - worse).mean())
    assert d.excludes_zero
    assert 0.35 < d.low < d.high < 0.65
    assert not difference(better, better).excludes_zero


def test_images_that_one_side_did_not_score_do_not_pair() -> None:
    a, b = np.arange(8.0), np.arange(8.0) - 1
    a[0], b[1] = np.nan, np.nan
    d = difference(a, b)
    assert (d.images, d.value) == (6, 1.0)
    assert estimate(a).images == 7


def test_too_few_images_have_no_interval() -> None:
    with pytest.warns(
        UserWarning, match="3 scored images: an interval needs at least 5; the mean is given without one"
    ):
        e = estimate(np.array([1.0, 2.0, 3.0]))
    assert (e.value, e.images) == (2.0, 3)
    assert np.isnan([e.low, e.high]).all()
    assert estimate(np.full(3, np.nan)).images == 0
    middle, low, _ = mean_band(np.ones((2, 4)))
    assert middle.tolist() == [1] * 4
    assert np.isnan(low).all()


def test_the_band_is_the_interval_at_each_point() -> None:
    curves = np.random.default_rng(5).normal(0, 1, (300, 4)) + np.arange(4)
    middle, low, high = mean_band(curves)
    np.testing.assert_allclose(middle, curves.mean(0))
    for i in range(4):
        e = estimate(curves[:, i])
        assert (low[i], high[i]) == pytest.approx((e.low, e.high), abs=0.015)


def test_orders_are_drawn_for_each_image_whatever_its_batch_and_layout() -> None:
    images = slow.distinct((3, 2, 9, 8), 1)
    orders = drawn_orders(images, seed=0)
    assert all(sorted(row) == list(range(72)) for row in orders.tolist())
    assert len({tuple(row) for row in orders.tolist()}) == 3
    assert torch.equal(drawn_orders(images[1:2], seed=0)[0], orders[1])
    assert torch.equal(drawn_orders(images.contiguous(memory_format=torch.channels_last), seed=0), orders)
    assert not torch.equal(drawn_orders(images, seed=1), orders)


def test_shapes_are_checked_under_test() -> None:
    with pytest.raises(TypeCheckError):
        pixel_ranks(torch.zeros(3), torch.arange(3))


def test_kendalls_tau_is_scipys() -> None:
    generator = np.random.default_rng(0)
    for ties in (3, 1000):
        a, b = generator.integers(0, ties, (2, 12)).astype(float)
        assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert kendall_tau(np.arange(5.0), -np.arange(5.0)) == -1
    assert np.isnan(kendall_tau(np.zeros(4), np.arange(4.0)))
