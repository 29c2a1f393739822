"""What `eval.meta` finds, as it stands in its JSON file; values are as people's scales and metrics have them.

An agreement is of one value of a metric with one rating of one set of judgements. It is positive where the metric says
the same as people: values of which less is better are turned round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Pearson's r with a 95% interval over documents, and correlations of ranks; None where there are none."""

    r: float | None
    low: float | None
    high: float | None
    spearman: float | None
    kendall: float | None
    num_summaries: int


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """How the means of systems agree: Pearson's r of three or more, and the pairs that both put in the same order."""

    r: float | None
    num_systems: int
    num_pairs: int
    num_same: int


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Mean change from the shortest to the longest input, in standard deviations within systems, with an interval."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class LengthEffect:
    """What the longest input does against the shortest, to people's ratings and to the metric, on the same documents.

    `changes` is the correlation of both changes, systems' means removed; `condition` is how the input was shortened.
    """

    condition: str
    shortest: int
    longest: int
    num_pairs: int
    people: Shift
    metric: Shift
    changes: Correlation


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well a value of a metric agrees with a rating; `with_human` has answers by people in, the others have not."""

    metric: str
    version: int
    value: str
    label: str
    better: str | None
    set: str
    rating: str
    is_headline: bool
    within: Correlation
    pooled: Correlation
    with_human: Correlation | None
    between: Ordering
    lengths: list[LengthEffect]


@dataclass(frozen=True, kw_only=True)
class RatedSet:
    """A set of rated answers: where it is from, and what it has."""

    name: str
    source: str
    sha256: str
    headline: str
    num_documents: int
    num_answers: int
    num_human: int
    systems: list[str]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A metric that could score no answer of a set, and what answers lack."""

    metric: str
    set: str
    missing: list[str]


@dataclass(frozen=True, kw_only=True)
class Doubted:
    """A value that no headline interval within systems shows to agree with people, on any set; reports show it grey."""

    metric: str
    version: int
    value: str


@dataclass(frozen=True, kw_only=True)
class Agreements:
    """All that one call of `eval.meta` found."""

    sets: list[RatedSet]
    provenance: dict[str, Any]
    doubted: list[Doubted]
    agreements: list[Agreement]
    skipped: list[Skipped]
