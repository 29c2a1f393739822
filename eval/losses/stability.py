"""Whether searches on different documents find the same units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb
from statistics import fmean

from eval.config.placement import PlacementConfig
from eval.losses.ledger import CALIBRATION, Ledger
from eval.losses.search import SearchResult, Space, search
from masformer.placement import Found, Unit, measured


@dataclass(frozen=True, kw_only=True)
class FoldSearch:
    """The searches on the folds of the calibration documents.

    Attributes:
        num_documents: Documents of each fold.
        results: Result of each fold.
        majority: Plan of the units that at least half of the folds chose, measured on all documents; None without any.
    """

    num_documents: Sequence[int]
    results: Sequence[SearchResult]
    majority: Found | None

    @cached_property
    def chosen(self) -> list[frozenset[Unit]]:
        """Return the units that each fold chose."""
        return [frozenset(result.chosen.units) for result in self.results]

    @property
    def counts(self) -> dict[Unit, int]:
        """Return in how many folds each unit was chosen, most often first."""
        return count_units(self.chosen)

    @property
    def jaccard(self) -> list[float]:
        """Return the Jaccard index of each pair of folds."""
        return [jaccard(one, other) for one, other in combinations(self.chosen, 2)]

    def chance_jaccard(self, num_units: int) -> float:
        """Return the mean Jaccard index that random choices of the same sizes have, of so many units."""
        return fmean(chance_jaccard(len(one), len(other), num_units) for one, other in combinations(self.chosen, 2))


def search_folds(config: PlacementConfig, space: Space, ledger: Ledger, num_documents: Sequence[int]) -> FoldSearch:
    """Search on each fold as on all documents; what was measured of a document is not measured again."""
    results = [search(config, space, ledger, fold) for fold in range(len(num_documents))]
    units = majority_of([result.chosen.units for result in results])
    plans = measured(lambda plans: ledger.measure(CALIBRATION, plans), space, [units] if units else [])
    return FoldSearch(num_documents=num_documents, results=results, majority=plans[0] if plans else None)


def count_units(chosen: Sequence[frozenset[Unit]]) -> dict[Unit, int]:
    """Return in how many of the choices each unit is, most often first."""
    counts = Counter(unit for units in chosen for unit in units)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0][0], item[0][1] or 0)))


def majority_of(chosen: Sequence[Sequence[Unit]]) -> list[Unit]:
    """Return the units that are in at least half of the choices."""
    counts = count_units([frozenset(units) for units in chosen])
    return [unit for unit, count in counts.items() if 2 * count >= len(chosen)]


def jaccard(one: frozenset[Unit], other: frozenset[Unit]) -> float:
    """Return the share of the units of both choices that are in each; 1 for two empty ones."""
    return len(one & other) / len(one | other) if one or other else 1.0


def chance_jaccard(one: int, other: int, num_units: int) -> float:
    """Return the mean Jaccard index of two random choices of so many units each, out of `num_units`."""
    if not one + other:
        return 1.0
    shared = range(max(0, one + other - num_units), min(one, other) + 1)
    ways = {both: comb(one, both) * comb(num_units - one, other - both) for both in shared}
    return sum(count * both / (one + other - both) for both, count in ways.items()) / comb(num_units, other)
