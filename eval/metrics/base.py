"""What a metric is: it has values with a range and a direction, and gives them for a batch of items.

    class NumWords(Metric):
        name, version = "num_words", 1
        values = {"words": Value(label="words", title="Words", high=math.inf, better=None, is_share=False)}

        def score(self, batch):
            return [{"words": float(len(item.prediction.split()))} for item in batch]

A metric that is no part of the suite is opened by `FILE.py:NumWords` or by an entry point; see `eval.metrics.open`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from eval.errors import UserError

# What a metric may need beside the prediction: a field of `Item` each.
NEEDS = ("references", "window", "document", "query")

Better = Literal["higher", "lower"]
Scores = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number that a metric gives, and how it is written in tables and on the axes of charts.

    Attributes:
        low: Least value that is possible; `-math.inf` where there is none.
        high: Greatest value that is possible; `math.inf` where there is none.
        better: Direction; None for a value that describes, by which nothing is ranked.
        is_share: Whether reports show it x 100.
    """

    label: str
    title: str
    low: float = 0.0
    high: float = 1.0
    better: Better | None = "higher"
    is_share: bool = True


@dataclass(frozen=True, kw_only=True)
class Item:
    """What a metric sees of one answer. What is not known is None, or empty.

    Attributes:
        fingerprint: Names the item in files: a digest of what is scored.
        prediction: The text that is scored.
        references: Answers by people.
        window: What the model was shown of the document.
        document: The whole document.
        query: Question about the document.
        shorter_window: Window of the next shorter length of the same example.
        finish_reason: `stop`, or `length` where the room was used up.
        num_tokens: Tokens of the answer, end token included.
    """

    fingerprint: str
    prediction: str
    references: tuple[str, ...] = ()
    window: str | None = None
    document: str | None = None
    query: str | None = None
    shorter_window: str | None = None
    finish_reason: str | None = None
    num_tokens: int | None = None

    def lacks(self, needs: frozenset[str]) -> list[str]:
        """Return which of these needs the item does not meet, in the order of `NEEDS`."""
        return [need for need in NEEDS if need in needs and not getattr(self, need)]


class Metric(ABC):
    """Gives values for items; the same item has the same values wherever it stands, and beside whatever others.

    Attributes:
        name: What `--metrics` calls it, such as `diagnostics` or `judge:FILE`.
        version: Raised when values change.
        needs: Which of `NEEDS` an item must have to be scored; others are not given to `score`.
        values: In the order of tables, by name.
    """

    name: str
    version: int
    needs: ClassVar[frozenset[str]] = frozenset()
    values: Mapping[str, Value]

    def provenance(self) -> dict[str, Any]:
        """Return what the values depend on beside name and version, ready for JSON.

        Versions of packages, digest of weights, hash of a prompt, endpoint and model. Scores with other provenance are
        never mixed with these.
        """
        return {}

    @abstractmethod
    def score(self, batch: Sequence[Item]) -> list[Scores]:
        """Return the values of each item, by name; None where one is not defined for an item."""


def check_metric(metric: Metric) -> None:
    """Check what a metric says of itself.

    Raises:
        UserError: It has no name, version or values, or needs what no item has.
    """
    kind = type(metric).__name__
    for field, types in (("name", str), ("version", int), ("values", Mapping)):
        if not isinstance(found := getattr(metric, field, None), types) or not found:
            raise UserError(
                f"metric {kind} has {field} {found!r}; give it a {types.__name__.lower()} that is not empty"
            )
    for name, value in metric.values.items():
        if not isinstance(value, Value) or not value.low < value.high:
            raise UserError(f"metric {metric.name} has value {name} = {value!r}; give it a Value with low below high")
    if unknown := sorted(set(metric.needs) - set(NEEDS)):
        raise UserError(f"metric {metric.name} needs {', '.join(unknown)}; an item can have {', '.join(NEEDS)}")


def check_scores(metric: Metric, batch: Sequence[Item], scores: Sequence[Scores]) -> None:
    """Check what a metric gave for a batch.

    Raises:
        UserError: Rows or values are missing, are no numbers, or lie outside their range.
    """
    if len(scores) != len(batch):
        raise UserError(f"metric {metric.name} gave {len(scores)} rows for {len(batch)} items; mend the metric")
    for row in scores:
        if row.keys() != metric.values.keys():
            raise UserError(
                f"metric {metric.name} gave {', '.join(sorted(row)) or 'nothing'} where it has the values "
                f"{', '.join(sorted(metric.values))}; mend the metric"
            )
        for name, value in row.items():
            about = metric.values[name]
            # Rounding may go beyond an end; NaN is within nothing.
            if value is not None and not about.low - 1e-6 <= value <= about.high + 1e-6:
                raise UserError(
                    f"metric {metric.name} gave {name} = {value}, outside [{about.low}, {about.high}]; mend the metric"
                )
