"""Correlations of a metric with people, with intervals that resample documents; summaries of one are no evidence apart.

Pearson's r is the headline: this suite compares means, so what counts is whether a metric moves in proportion to what
people say. Ranks (Spearman, Kendall) stand beside it. "Within" removes the mean of each group, as of each system, from
both sides: what is left is not that one system is better and writes in another way.

Legend: `N` summaries, `D` documents, `G` groups, `B` resamples, `C` columns of totals.

Arguments of several functions: `x` and `y` are (N,) values of the metric and of people; `groups` are N names whose
means are removed; `documents` are N names.

Source: the correlation within systems is the partial correlation of FRANK (Pagnoni et al. 2021); the pairs of systems
are those of Kocmi et al. 2021.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from eval.ratings.schema import Correlation, Ordering, Shift
from eval.scoring.bootstrap import NUM_RESAMPLES, Floats, Statistic, ratio, studentized
from eval.scoring.significance import MIN_DOCUMENTS

# Fisher's z of a greater r is taken for that of this one: it is infinite at 1.
_MAX_R = 1 - 1e-9
# Sums of squares of values that differ by roundings alone.
_ROUNDING = 1e-18


def correlate(
    x: ArrayLike,
    y: ArrayLike,
    groups: Sequence[Hashable],
    documents: Sequence[Hashable],
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> Correlation:
    """Return Pearson's r with its 95% interval over documents, and the correlations of ranks.

    The interval is a bootstrap-t of Fisher's z; there is none with fewer than `MIN_DOCUMENTS`. All are None where
    either side is constant within every group.
    """
    codes = _codes(groups)
    first, second = _centred(x, codes), _centred(y, codes)
    nothing = Correlation(r=None, low=None, high=None, spearman=None, kendall=None, num_summaries=len(first))
    if min((first**2).sum(), (second**2).sum()) <= _ROUNDING * len(first):
        return nothing
    first, second = first / math.sqrt((first**2).mean()), second / math.sqrt((second**2).mean())
    low = high = None
    units = _codes(documents)
    if units.max() + 1 >= MIN_DOCUMENTS:
        columns = _totals(first, second, codes, units)
        ends = studentized(columns, _fisher_z(codes.max() + 1), num_resamples)
        # No error: every document agrees in the same way, which says nothing of others.
        low, high = (math.tanh(end) for end in ends[:2]) if ends[2] else (None, None)
    r = float((first * second).mean())
    return Correlation(
        r=min(1.0, max(-1.0, r)),
        low=low,
        high=high,
        spearman=_spearman(x, y, codes),
        kendall=_kendall(x, y, codes),
        num_summaries=len(first),
    )


def order_systems(x: ArrayLike, y: ArrayLike, systems: Sequence[Hashable]) -> Ordering:
    """Return how well the means of systems agree: Pearson's r of three or more, and the pairs in the same order."""
    codes = _codes(systems)
    counts = np.bincount(codes)
    first, second = (np.bincount(codes, weights=np.asarray(side, dtype=np.float64)) / counts for side in (x, y))
    pairs = list(itertools.combinations(range(len(counts)), 2))
    alike = sum((first[a] - first[b]) * (second[a] - second[b]) > 0 for a, b in pairs)
    is_known = len(counts) > 2 and min(np.ptp(first), np.ptp(second)) > 1e-12
    r = float(np.corrcoef(first, second)[0, 1]) if is_known else None
    return Ordering(r=r, num_systems=len(counts), num_pairs=len(pairs), num_same=int(alike))


def mean_shift(changes: ArrayLike, documents: Sequence[Hashable], deviation: float) -> Shift:
    """Return the mean of (N,) changes in units of a standard deviation, with its 95% interval over documents."""
    values = np.asarray(changes, dtype=np.float64) / deviation
    units = _codes(documents)
    low = high = None
    if units.max() + 1 >= MIN_DOCUMENTS:
        columns = np.stack([np.bincount(units, weights=values), np.bincount(units)], axis=1).astype(np.float64)
        ends = studentized(columns, ratio, NUM_RESAMPLES)
        low, high = ends[:2] if ends[2] else (None, None)
    return Shift(mean=float(values.mean()), low=low, high=high)


def deviation_within(x: ArrayLike, groups: Sequence[Hashable]) -> float:
    """Return the standard deviation of (N,) values around the means of their groups."""
    codes = _codes(groups)
    centred = _centred(x, codes)
    return math.sqrt(float((centred**2).sum()) / max(1, len(centred) - (codes.max() + 1)))


def _codes(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return a number for each name, counted from 0."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _centred(values: ArrayLike, codes: NDArray[np.int64]) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    centred: Floats = x - (np.bincount(codes, weights=x) / np.bincount(codes))[codes]
    return centred


def _totals(x: Floats, y: Floats, codes: NDArray[np.int64], units: NDArray[np.int64]) -> Floats:
    """Return (D, 3 G + 3) totals of each document: counts, sums of x and of y by group, then of squares and product."""
    num_units, num_groups = units.max() + 1, codes.max() + 1
    cells = units * num_groups + codes

    def by_group(weights: Floats | None) -> Floats:
        found: Floats = np.bincount(cells, weights=weights, minlength=num_units * num_groups).astype(np.float64)
        return found.reshape(num_units, num_groups)

    products = [np.bincount(units, weights=product) for product in (x * x, y * y, x * y)]
    totals: Floats = np.hstack([by_group(None), by_group(x), by_group(y), np.stack(products, axis=1)])
    return totals


def _fisher_z(num_groups: int) -> Statistic:
    """Return the statistic: totals (..., 3 G + 3) -> Fisher's z of the r within groups (...), and its gradient."""

    def z_of(totals: Floats) -> tuple[Floats, Floats]:
        counts, x, y = (totals[..., num_groups * i : num_groups * (i + 1)] for i in range(3))
        # A resample may draw no summary of a group.
        present = np.where(counts > 0, counts, 1.0)
        mean_x, mean_y = x / present, y / present
        raw = totals[..., 3 * num_groups :]
        xx, yy = raw[..., 0] - (x * mean_x).sum(-1), raw[..., 1] - (y * mean_y).sum(-1)
        xy = raw[..., 2] - (x * mean_y).sum(-1)
        xx, yy = np.maximum(xx, _ROUNDING), np.maximum(yy, _ROUNDING)
        size = np.sqrt(xx * yy)
        r = np.clip(xy / size, -_MAX_R, _MAX_R)

        def along(by_xx: Floats, by_yy: Floats, by_xy: Floats) -> Floats:
            slope: Floats = by_xy / size[..., None] - r[..., None] / 2 * (by_xx / xx[..., None] + by_yy / yy[..., None])
            of_z: Floats = slope / (1 - r**2)[..., None]
            return of_z

        none = np.zeros_like(counts)
        one = np.ones_like(raw[..., :1])
        gradient = [
            along(mean_x**2, mean_y**2, mean_x * mean_y),
            along(-2 * mean_x, none, -mean_y),
            along(none, -2 * mean_y, -mean_x),
            along(one, 0 * one, 0 * one),
            along(0 * one, one, 0 * one),
            along(0 * one, 0 * one, one),
        ]
        return np.arctanh(r), np.concatenate(gradient, axis=-1)

    return z_of


def _spearman(x: ArrayLike, y: ArrayLike, codes: NDArray[np.int64]) -> float | None:
    """Return Pearson's r of the ranks within each group, as shares of the group's size."""

    def ranks(values: ArrayLike) -> Floats:
        found = np.zeros(len(codes))
        for code in range(codes.max() + 1):
            inside = codes == code
            found[inside] = scipy.stats.rankdata(np.asarray(values)[inside]) / inside.sum()
        return _centred(found, codes)

    first, second = ranks(x), ranks(y)
    size = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if size > 0 else None


def _kendall(x: ArrayLike, y: ArrayLike, codes: NDArray[np.int64]) -> float | None:
    """Return Kendall's tau-b over the pairs of one group."""
    total = untied_x = untied_y = 0.0
    for code in range(codes.max() + 1):
        inside = codes == code
        of_x, of_y = np.asarray(x)[inside], np.asarray(y)[inside]
        for one_x, one_y in zip(of_x, of_y, strict=True):
            first, second = np.sign(of_x - one_x), np.sign(of_y - one_y)
            total += float(first @ second)
            untied_x += float(first @ first)
            untied_y += float(second @ second)
    size = math.sqrt(untied_x * untied_y)
    return total / size if size > 0 else None
