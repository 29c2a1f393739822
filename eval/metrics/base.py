"""What a metric is: it has values with a range and a direction, and gives them for a batch of items.

    class NumWords(Metric):
        name, version = "num_words", 1
        values = {"words": Value(label="words", title="Words", high=math.inf, better=None, is_share=False)}

        def score(self, batch):
            return [{"words": float(len(item.prediction.split()))} for item in batch]

A metric that is no part of the suite is opened by `FILE.py:NumWords` or by an entry point; see `eval.metrics.open`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from eval.errors import UserError

# What a metric may need beside the prediction: a field of `Item` each.
NEEDS = ("references", "window", "document", "query")
# In the place of answers, sentences that are cut out of documents: lead and oracle, which stand beside the model.
EXTRACTS = "extracts"
# What was asked, and not the answer: a value of the model and its prompt, which no metric of answers reads.
REQUEST = "request"
# What it may read besides, where an item has it.
READS = (*NEEDS, "classes", "shorter_window", "finish_reason", "num_tokens", EXTRACTS)
# What a value may be beyond its range.
_ROUNDING = 1e-6

# Windows and documents come back with many answers, document after document. Each that is remembered stays in memory.
_MAX_DIGESTS = 64

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
        fingerprint: Names the item in files: a digest of all that the metric reads of it, so that what is the same has
            the same scores, and nothing else has them.
        prediction: The text that is scored.
        references: Answers by people.
        window: What the model was shown of the document.
        document: The whole document.
        query: Question about the document.
        classes: Names of all classes that the answer is one of.
        shorter_window: Window of the next shorter length of the same example.
        finish_reason: `stop`, or `length` where the room was used up.
        num_tokens: Tokens of the answer, end token included.
        request: Fingerprint of what was asked. Where a metric reads it, the prediction is left empty.
    """

    fingerprint: str
    prediction: str
    references: tuple[str, ...] = ()
    window: str | None = None
    document: str | None = None
    query: str | None = None
    classes: tuple[str, ...] = ()
    shorter_window: str | None = None
    finish_reason: str | None = None
    num_tokens: int | None = None
    request: str | None = None

    @classmethod
    def of(cls, metric: Metric | type[Metric], *, prediction: str, **texts: Any) -> Item:
        """Return an item with what a metric reads of it, and the digest of that.

        Args:
            metric: Reads the item.
            prediction: The text that is scored.
            texts: Other fields of the item, by name; what is None or empty is as if it were not given.
        """
        return cls.read(metric.reads, prediction=prediction, **texts)

    @classmethod
    def read(cls, reads: Collection[str], *, prediction: str, **texts: Any) -> Item:
        """Return an item with what these names, of `READS` or the request, let one see of it; see `of`."""
        kept = {name: value for name, value in texts.items() if name in reads and value not in (None, ())}
        prediction = "" if REQUEST in reads else prediction
        parts = [[name, _digest_of_value(value)] for name, value in sorted(kept.items())]
        return cls(fingerprint=_digest(json.dumps([_digest(prediction), parts])), prediction=prediction, **kept)

    def lacks(self, needs: frozenset[str]) -> list[str]:
        """Return which of these needs the item does not meet, in the order of `NEEDS`."""
        return [need for need in NEEDS if need in needs and not getattr(self, need)]


@lru_cache(maxsize=_MAX_DIGESTS)
def _digest_of_value(value: Any) -> str:
    return _digest(value if isinstance(value, str) else json.dumps(value))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


class Metric(ABC):
    """Gives values for items; the same item has the same values wherever it stands, and beside whatever others.

    Attributes:
        name: What `--metrics` calls it, such as `diagnostics` or `judge:FILE`.
        version: Raised when values change.
        needs: Which of `NEEDS` an item must have to be scored; others are not given to `score`.
        reads: Which of `READS` it sees, needs included. Scores are kept for as long as these are the same, so a metric
            that takes time or money names no more than it reads.
        values: In the order of tables, by name.
        batch_size: Items that `score` is given at once, after which their scores are on the disk.
    """

    name: str
    version: int
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset(READS)
    batch_size: ClassVar[int] = 64
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

    def close(self) -> None:  # noqa: B027
        """Let go of what the metric holds, such as a lock; most hold nothing."""


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
        if not name or "." in name:
            raise UserError(f"metric {metric.name} has a value named {name!r}; give it a name without a full stop")
        if not isinstance(value, Value) or not value.low < value.high:
            raise UserError(f"metric {metric.name} has value {name} = {value!r}; give it a Value with low below high")
    if unknown := sorted({*metric.needs, *metric.reads} - set(READS)):
        raise UserError(f"metric {metric.name} reads {', '.join(unknown)}; an item can have {', '.join(READS)}")
    if unread := sorted(set(metric.needs) - set(metric.reads)):
        raise UserError(f"metric {metric.name} needs {', '.join(unread)}, which it does not read; add it to `reads`")


def checked_scores(metric: Metric, batch: Sequence[Item]) -> list[Scores]:
    """Return what a metric gives for a batch, its values in their order and within their range.

    Raises:
        UserError: Rows or values are missing, are no numbers, or lie outside their range.
    """
    scores = metric.score(batch)
    if len(scores) != len(batch):
        raise UserError(f"metric {metric.name} gave {len(scores)} rows for {len(batch)} items; mend the metric")
    return [{name: _within(metric, name, row) for name in metric.values} for row in scores]


def _within(metric: Metric, name: str, row: Scores) -> float | None:
    if row.keys() != metric.values.keys():
        raise UserError(
            f"metric {metric.name} gave {', '.join(sorted(row)) or 'nothing'} where it has the values "
            f"{', '.join(sorted(metric.values))}; mend the metric"
        )
    value, about = row[name], metric.values[name]
    if value is None:
        return None
    # Rounding may go beyond an end; NaN is within nothing.
    if not about.low - _ROUNDING <= value <= about.high + _ROUNDING:
        raise UserError(
            f"metric {metric.name} gave {name} = {value}, outside [{about.low}, {about.high}]; mend the metric"
        )
    return min(max(float(value), about.low), about.high)


def describe_source(metric: Metric) -> dict[str, str]:
    """Return the digest of the file that a metric is written in; nothing for one of the suite, which has a version."""
    module = type(metric).__module__
    if module.startswith("eval."):
        return {}
    try:
        content = Path(inspect.getfile(type(metric))).read_bytes()
    except (OSError, TypeError):
        return {"source": module}
    return {"source_sha256": hashlib.sha256(content).hexdigest()}
