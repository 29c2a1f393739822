"""Answers that people have rated, from files: published sets, a rating sheet of `eval.rate`, or a table of one's own.

    judgements = read_judgements(Path("labels.csv"))
    judgements.answers[0].ratings  # {"overall": (4.0, 3.0)}: one number a rater

A table or JSON lines of one's own have a row an answer, or a row an answer and rater, with the fields of `_FIELDS`, and
the ratings in columns `rating:NAME` (or `rating`), or in an object `ratings` of numbers or lists. Lines of JSON that
have a `document` and no `prediction` name a document once for all answers about it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.metrics.base import Item
from eval.ratings.rows import field_of, is_sheet, number, numbers, read_rows, spans_of, user_errors
from tasks.readers.kept import open_to_read
from tasks.readers.rows import Row

# Who wrote an answer that is no system's.
HUMAN = "human"
Ratings = Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, kw_only=True)
class RatedAnswer:
    """One answer and what people gave it.

    Attributes:
        ratings: By name of the scale, a number of each rater; None where one gave none.
        cluster_id: What the document is part of, and is resampled in its place.
        subset: Part of a set with its own documents and systems.
        length: Tokens of input that the system was shown, at most.
        condition: How the input was shortened.
    """

    item: Item
    id: str
    document_id: str
    system: str
    ratings: Ratings
    cluster_id: str | None = None
    subset: str = ""
    length: int | None = None
    condition: str = ""

    @property
    def is_human(self) -> bool:
        return self.system == HUMAN

    @property
    def unit(self) -> tuple[str, str]:
        """Return what is resampled: the document, or its cluster."""
        return self.subset, self.document_id if self.cluster_id is None else f"cluster {self.cluster_id}"

    @property
    def group(self) -> tuple[str, str, str, int | None]:
        """Return the system in its setting, whose mean is removed within systems."""
        return self.subset, self.system, self.condition, self.length

    def rating(self, name: str) -> float | None:
        """Return the mean over the raters."""
        known = [value for value in self.ratings.get(name, ()) if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """A set of rated answers.

    Attributes:
        headline: The rating by which metrics are judged; others stand beside it.
        sha256: Of the file.
    """

    name: str
    answers: Sequence[RatedAnswer]
    headline: str
    source: str
    sha256: str

    @property
    def ratings(self) -> list[str]:
        """Return the names of the scales, the headline first."""
        names = dict.fromkeys(name for answer in self.answers for name in answer.ratings)
        return [self.headline, *(name for name in names if name != self.headline)]


@user_errors()
def read_judgements(path: Path) -> Judgements:
    """Return the rated answers of a file.

    Raises:
        UserError: It cannot be read or holds none, or a row lacks what it needs.
    """
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path} is empty; give it a rated answer a line")
    first = rows[0].fields
    published = next((one for one in _PUBLISHED if one.fields <= first.keys()), None)
    if published is not None:
        answers = [published.read(row) for row in rows]
        return _judgements(path, answers, published.name, published.headline, published.source)
    scales = list(rows[0].row("scales").fields) if is_sheet(rows[0]) else []
    joined = _joined(_of_sheet(rows) if scales else rows, scales)
    if not joined:
        raise UserError(f"{path} holds no rating yet")
    return _judgements(path, joined, path.name.partition(".")[0], next(iter(joined[0].ratings)), "")


def _judgements(path: Path, answers: list[RatedAnswer], name: str, headline: str, source: str) -> Judgements:
    answers = _without_themselves(answers)
    with open_to_read(path) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    return Judgements(name=name, answers=answers, headline=headline, source=source, sha256=digest)


def _without_themselves(answers: Sequence[RatedAnswer]) -> list[RatedAnswer]:
    """Return the answers with references that none by a person is: it would be compared with itself.

    The reference is taken from all answers to the question, so that they are compared with the same texts.
    """
    by_people: dict[tuple[str, str], set[str]] = defaultdict(set)
    for answer in answers:
        if answer.is_human:
            by_people[answer.subset, answer.id].add(" ".join(answer.item.prediction.split()))
    found = []
    for answer in answers:
        written = by_people[answer.subset, answer.id]
        kept = tuple(text for text in answer.item.references if " ".join(text.split()) not in written)
        found.append(replace(answer, item=replace(answer.item, references=kept)))
    return found


def _item(prediction: str, **about: Any) -> Item:
    """Return the item; its name is a digest of its texts."""
    digest = hashlib.sha256(json.dumps([prediction, about], sort_keys=True).encode(errors="surrogatepass")).hexdigest()
    return Item(fingerprint=digest[:32], prediction=prediction, **about)


# Published sets


def _of_longsciverify(row: Row) -> RatedAnswer:
    document = row.text("document")
    given = {name: numbers(field_of(row, name), row, name) for name in ("coherence", "fluency")}
    of_raters = field_of(row, "sentence_factuality")
    if not isinstance(of_raters, list):
        raise UserError(f"{row.where}: sentence_factuality is {str(of_raters)[:40]!r}; give a list of each rater")
    factuality = tuple(_mean(numbers(one, row, "sentence_factuality")) for one in of_raters)
    return RatedAnswer(
        # What the systems were shown is not told: the document stands for it.
        item=_item(row.text("summary"), references=(row.text("reference"),), document=document, window=document),
        id=row.text("id"),
        document_id=row.text("id"),
        system=row.text("system"),
        subset=row.text("set"),
        ratings={"factuality": factuality, **given},
    )


def _of_squality(row: Row) -> RatedAnswer:
    document = row.text("document")
    return RatedAnswer(
        item=_item(
            row.text("summary"),
            references=tuple(row.texts("references")),
            document=document,
            window=document,
            query=row.text("query"),
        ),
        id=row.text("id"),
        document_id=row.text("document_id"),
        system=row.text("system"),
        ratings={name: numbers(value, row, name) for name, value in row.row("ratings").fields.items()},
    )


def _of_lengths(row: Row) -> RatedAnswer:
    found = re.fullmatch(r"(.+) \((\S+) ([0-9]+)K\)", name := row.text("model_type"))
    if found is None:
        raise UserError(f"{row.where}: model_type is {name[:40]!r}; give model, input and length: 'PEGASUS (LEAD 4K)'")
    model, condition, length = found.groups()
    return RatedAnswer(
        item=_item(row.text("model_summary")),
        id=row.text("dataset_id"),
        document_id=row.text("dataset_id"),
        system=model,
        subset=row.text("dataset"),
        condition=condition.lower(),
        length=1024 * int(length),
        ratings={
            name: (number(field_of(row, key), row, key),)
            for name, key in (("relevance", "relevance"), ("consistency", "factual_consistency"))
        },
    )


@dataclass(frozen=True, kw_only=True)
class _Published:
    """A published set: fields that its rows alone have, how one is read, and where it is from."""

    fields: frozenset[str]
    read: Callable[[Row], RatedAnswer]
    name: str
    headline: str
    source: str


_PUBLISHED = (
    _Published(
        fields=frozenset({"sentence_factuality", "summary"}),
        read=_of_longsciverify,
        name="LongSciVerify",
        headline="factuality",
        source="jbshp/LongDocFACTScore, Bishop et al. 2024, MIT",
    ),
    _Published(
        fields=frozenset({"summary", "ratings", "query"}),
        read=_of_squality,
        name="SQuALITY",
        headline="overall",
        source="nyu-mll/SQuALITY, Wang et al. 2022, CC BY",
    ),
    _Published(
        fields=frozenset({"model_summary", "model_type"}),
        read=_of_lengths,
        name="Koh et al.",
        headline="relevance",
        source="huankoh/How-Far-are-We-from-Robust-Long-Abstractive-Summarization, Koh et al. 2022, licence not stated",
    ),
)


# Tables of one's own, and rating sheets

_FIELDS = ("id", "document_id", "system", "prediction", "references", "document", "window", "query", "rater")


def _of_sheet(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the lines of a rating sheet as rows of a table: each rating with the answer that it is of."""
    answers: dict[str, Row] = {}
    for row in rows[1:]:
        if "ratings" not in row.fields:
            answers[str(row.fields.get("answer"))] = row
            yield row
        elif (known := answers.get(row.text("answer"))) is not None:
            row.row("ratings")  # or an error that names the line
            yield replace(row, fields={**known.fields, **row.fields})
        else:
            raise UserError(f"{row.where}: a rating of an answer that the sheet does not have")


def _joined(rows: Iterable[Row], scales: Sequence[str]) -> list[RatedAnswer]:
    """Return one answer for all rows of it that has a rating; of two rows of one rater the last counts.

    Args:
        scales: Names that come first; others follow as the rows name them. All answers have the rated ones.
    """
    documents: dict[str, str] = {}
    answers: dict[tuple[Any, ...], RatedAnswer] = {}
    by_rater: dict[tuple[Any, ...], dict[str, dict[str, tuple[float | None, ...]]]] = {}
    order = dict.fromkeys(scales)
    for row in rows:
        if "prediction" not in row.fields and "document" in row.fields:
            documents[row.text("document_id")] = row.text("document")
            continue
        ratings = _ratings(row)
        if ratings is None:
            continue
        order.update(dict.fromkeys(ratings))
        answer = _of_row(row, documents)
        key = (answer.subset, answer.id, answer.system, answer.condition, answer.length)
        first = answers.setdefault(key, answer)
        if first.item != answer.item or first.document_id != answer.document_id:
            raise UserError(
                f"{row.where}: other texts than in an earlier row of id '{answer.id}' and system '{answer.system}'"
            )
        rater = row.label("rater") or ""
        raters = by_rater.setdefault(key, {})
        if rater in raters and not rater:
            raise UserError(f"{row.where}: a second row of id '{answer.id}' and system '{answer.system}'; name raters")
        raters[rater] = ratings
    # People clear ratings, and leave cells empty.
    rated = {
        (key, rater): ratings
        for key, raters in by_rater.items()
        for rater, ratings in raters.items()
        if any(map(_is_rated, ratings.values()))
    }
    names = sorted({rater for _, rater in rated})
    used = {scale for ratings in rated.values() for scale, values in ratings.items() if _is_rated(values)}
    kept = {key for key, _ in rated}
    ordered = [scale for scale in order if scale in used]
    return [
        replace(answer, ratings=_by_scale({name: rated.get((key, name), {}) for name in names}, ordered))
        for key, answer in answers.items()
        if key in kept
    ]


def _is_rated(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def _by_scale(raters: Mapping[str, Ratings], scales: Sequence[str]) -> Ratings:
    return {
        scale: tuple(value for ratings in raters.values() for value in ratings.get(scale, (None,))) for scale in scales
    }


def _ratings(row: Row) -> dict[str, tuple[float | None, ...]] | None:
    """Return the ratings of a row by scale; None for an answer that nobody has rated."""
    fields = row.fields
    if isinstance(fields.get("ratings"), dict):
        return {name: numbers(value, row, name) for name, value in fields["ratings"].items()}
    found: dict[str, tuple[float | None, ...]] = {
        name.removeprefix("rating:"): (number(value, row, name),)
        for name, value in fields.items()
        if name == "rating" or name.startswith("rating:")
    }
    if not found and "answer" not in fields:
        raise UserError(f"{row.where}: no rating; give columns 'rating:NAME', fields found: {', '.join(fields)[:200]}")
    return found or None


def _of_row(row: Row, documents: Mapping[str, str]) -> RatedAnswer:
    document_id = row.label("document_id")
    if document_id is None:
        raise UserError(f"{row.where}: no document_id, over which intervals resample; fields are {', '.join(_FIELDS)}")
    document = _optional(row, "document") or documents.get(document_id)
    window = _optional(row, "window")
    spans = spans_of(row, "window_spans")
    if document is not None and spans is not None:
        window = "\n".join(document[start:end] for start, end in spans)
    length = row.label("length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise UserError(f"{row.where}: length '{length}' is no number of tokens")
    item = _item(
        row.text("prediction", may_be_empty=True),
        references=_references(row),
        document=document,
        window=window or document,
        query=_optional(row, "query"),
    )
    # Raters of one answer share its texts; without raters, equal texts may answer different questions.
    own_name = f"{document_id} {item.fingerprint[:8]}" if row.label("rater") else str(row.index)
    return RatedAnswer(
        item=item,
        id=row.label("id") or own_name,
        document_id=document_id,
        system=row.text("system"),
        ratings={},
        cluster_id=row.label("cluster_id"),
        subset=_optional(row, "subset") or "",
        length=None if length is None else int(length),
        condition=_optional(row, "condition") or "",
    )


def _optional(row: Row, name: str) -> str | None:
    return None if row.fields.get(name) is None else row.text(name, may_be_empty=True) or None


def _references(row: Row) -> tuple[str, ...]:
    """Return the references: a list, a list of JSON in a cell, or one text."""
    value = row.fields.get("references", row.fields.get("reference"))
    if isinstance(value, str) and value.startswith('["'):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{row.where}: references look like JSON and are none ({error})") from error
    texts = value if isinstance(value, list) else [] if value in (None, "") else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{row.where}: references are {str(value)[:60]}; give a text or a list of texts")
    return tuple(texts)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
