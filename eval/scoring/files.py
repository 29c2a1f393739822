"""Predictions and references of any system, from files.

Plain text holds an item a line. JSON lines (.jsonl, .ndjson, .json) hold texts, lists of texts (references), or
objects: `prediction` or `text`, `reference` or `references`, or `output`, as in the files of SCROLLS. One array that is
a whole .json file holds an item an entry. Tables (.csv, .tsv, .parquet) have columns of these names. All but Parquet
may be packed, as in `tasks/readers/opening.py`. With an `id` on every item of both sides items are joined by it, and
references of one id are several of one item; without any they are paired in order. An object may name its
`document_id`, over which intervals resample, or its `cluster_id`. Items of SCROLLS' files that name neither are about
the document in their `input`.

Further metrics read `document`, `window` (what was shown of it; the whole document where it is not given) and `query`
of either file, LongBench's `context` and `input`, and the `input` of SCROLLS.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from eval.errors import UserError
from eval.metrics.base import Metric
from eval.records.typed import to_json
from eval.scoring.examples import SCORING_VERSION, further_means
from eval.scoring.file_metrics import score_items
from eval.scoring.letters import check_letters, count_letters, describe_letters
from eval.scoring.metric_files import record_of, values_by_key
from eval.scoring.parity import Checked, check_parity
from eval.scoring.profiles import metric_columns, metric_range, score_prediction
from eval.scoring.significance import mean_interval
from tasks.base import DataError
from tasks.readers.decoding import decode_text, unique_names
from tasks.readers.files import read_records
from tasks.readers.opening import open_packed, unpacked_name
from tasks.readers.rows import BadRow, id_text, is_printed_list, one_line
from tasks.readers.yaml_file import shown

_JSON = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".tsv", ".parquet")
_MAX_BYTES = 1 << 30
# Of QuALITY, between question and document; each question has its own.
_OPTIONS = re.compile(r"\A\s*\(A\).*?\(D\).*?\n\n", re.DOTALL)
_PREDICTION_FIELDS = ("prediction", "text")
# What follows the blank line of an input and is shorter is no document.
_MIN_WORDS = 20
_REFERENCE_FIELDS = ("references", "reference", "output")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One entry of a file.

    `where` is the file and line, for messages; the texts are one prediction, or the references. `input` is the whole
    prompt in files of SCROLLS. `about` has what else further metrics read: document, window, query. `classes` are the
    names of all classes.
    """

    where: str
    texts: tuple[str, ...]
    id: str | None = None
    document_id: str | None = None
    cluster_id: str | None = None
    input: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Fields of objects and columns of tables; None takes the usual names."""

    prediction: str | None = None
    reference: str | None = None
    id: str = "id"


def score_files(
    predictions: Path,
    references: Path,
    profile: str,
    fields: Fields = Fields(),
    accept_ascii_words: bool = False,
    open_metrics: Callable[[], Sequence[Metric]] = tuple,
) -> dict[str, Any]:
    """Return the scores of all items and of each, JSON-ready, under the names of `scores.json`.

    Further metrics are opened once the files are read and checked.

    Raises:
        UserError: A file cannot be read, or the two do not belong together.
        UserError: The profile leaves too little of the references, and nobody accepts it.
        UserError: A score is not that of the profile's reference package.
        UserError: The files lack what a further metric needs.
    """
    of_predictions = (fields.prediction,) if fields.prediction else _PREDICTION_FIELDS
    of_references = (fields.reference,) if fields.reference else _REFERENCE_FIELDS
    pairs = _pair(_read(predictions, of_predictions, fields.id), _read(references, of_references, fields.id))
    if len(pairs) == 1 and (count := len(pairs[0][1].texts)) > 1:
        # An array of JSON lines is one item, and people give one for a list of items.
        print(f"note: {references.name} holds one item with {count} references", file=sys.stderr)
    printed = [reference.where for _, reference in pairs if any(map(is_printed_list, reference.texts))]
    if printed:
        print(
            f"note: {len(printed)} references are what Python prints of a list, the first in {printed[0]}, and are "
            "scored as they stand; if lists were meant, write them as lists",
            file=sys.stderr,
        )
    letters = count_letters(profile, (text for _, reference in pairs for text in reference.texts))
    if not accept_ascii_words:
        check_letters(references.name, profile, letters)
    for note in describe_letters(references.name, profile, letters):
        print(f"note: {note}", file=sys.stderr)
    lines: list[dict[str, Any]] = []
    documents: list[str] = []
    clusters: list[str] = []
    checked: list[Checked] = []
    shown_documents = _documents_of([one.input or other.input for one, other in pairs])
    by_input = 0
    for index, (prediction, reference) in enumerate(pairs):
        if len(prediction.texts) != 1:
            raise UserError(f"{prediction.where}: {len(prediction.texts)} predictions; give one text an item")
        if not reference.texts:
            raise UserError(f"{reference.where}: no reference; give one at least")
        document, cluster = (_one_name(prediction, reference, field) for field in ("document_id", "cluster_id"))
        name = str(index) if reference.id is None else reference.id
        classes = reference.classes or prediction.classes
        metrics = score_prediction(profile, prediction.texts[0], reference.texts, classes)
        checked.append(
            Checked(name=prediction.where, text=prediction.texts[0], references=reference.texts, metrics=metrics)
        )
        if document is None:
            document = shown_documents.get(index)
            by_input += document is not None
        lines.append({"id": name, "document_id": name if document is None else document, "metrics": metrics})
        # An item that names no document is one by itself, whatever other documents are called.
        documents.append(f"item {index}" if document is None else f"document {document}")
        clusters.append(documents[-1] if cluster is None else f"cluster {cluster}")
    if by_input and (count := len(set(documents))) < len(lines):
        print(
            f"note: {len(lines)} items are about {count} document{'s' * (count != 1)}, by their `input`; give each a "
            "`document_id` where that is not so",
            file=sys.stderr,
        )
    result: dict[str, Any] = {
        "profile": profile,
        "system": predictions.name,
        "kind": "model",
        "subset": "all",
        "num_examples": len(lines),
        "num_documents": len(set(documents)),
        "metrics": {
            metric: mean_interval(
                [[line["metrics"][column] for column in columns] for line in lines],
                clusters,
                within=metric_range(profile, metric),
            )
            for metric, columns in metric_columns(profile).items()
        },
    }
    parity = check_parity(profile, checked)
    further = open_metrics()
    records = {metric.name: record_of(metric) for metric in further}
    if further:
        rows = score_items(further, [_texts(*pair, index in shown_documents) for index, pair in enumerate(pairs)])
        for line, values in zip(lines, rows, strict=True):
            line["further"] = values
        result["further"] = further_means(zip(rows, clusters, strict=True), values_by_key(records))
    return {
        "profile": profile,
        "scoring_version": SCORING_VERSION,
        "letters": to_json(letters),
        "accept_ascii_words": accept_ascii_words,
        "parity": to_json(parity),
        **({"further": to_json(records)} if further else {}),
        "results": [to_json(result)],
        "examples": lines,
    }


def _texts(prediction: Item, reference: Item, has_document: bool) -> dict[str, Any]:
    """Return what further metrics may read of an item; `has_document` says that its `input` holds a document."""
    about = {**reference.about, **prediction.about}
    whole = prediction.input or reference.input
    if has_document and whole is not None:
        about.setdefault("document", whole)
    if "document" in about:
        about.setdefault("window", about["document"])
    return {"prediction": prediction.texts[0], "references": reference.texts, **about}


def _one_name(prediction: Item, reference: Item, field: str) -> str | None:
    named = {getattr(item, field) for item in (prediction, reference)} - {None}
    if len(named) > 1:
        raise UserError(f"{prediction.where}: another {field} than in {reference.where}; give both the same")
    return next(iter(named), None)


def _documents_of(inputs: Sequence[str | None]) -> dict[int, str]:
    """Return digests of the documents in SCROLLS' inputs, by index; of inputs that hold none there is nothing.

    An input is the query, a blank line, and the document, or the document alone, whose paragraphs may have blank lines
    between them. What follows the first blank line, and the options of the query, tells documents apart either way.
    Files of instructions have inputs too. Theirs end in a few words ("Answer:") or are all one.
    """
    found: dict[int, str] = {}
    if len(set(inputs)) == 1:
        return found
    for index, whole in enumerate(inputs):
        query, _, rest = (whole or "").strip().partition("\n\n")
        document = _OPTIONS.sub("", rest, count=1).strip()
        if len(document) <= len(query) or len(document.split()) < _MIN_WORDS:
            document = f"{query}\n\n{rest}".strip()
        if document:
            digest = hashlib.sha256(document.encode(errors="surrogatepass")).hexdigest()[:16]
            found[index] = f"sha256:{digest}"
    return found


def _pair(predictions: list[Item], references: list[Item]) -> list[tuple[Item, Item]]:
    named = [item for item in (*predictions, *references) if item.id is not None]
    if named:
        unnamed = next((item for item in (*predictions, *references) if item.id is None), None)
        if unnamed is not None:
            raise UserError(
                f"{unnamed.where}: no id, where {named[0].where} has one; give every item of both files an id, or none"
            )
        by_id = [_by_id(predictions), _by_id(_join(references))]
        lost = by_id[0].keys() ^ by_id[1].keys()
        if lost:
            raise UserError(
                f"{len(lost)} ids are in one file alone, '{min(lost)}' among them; give both the same items"
            )
        return [(item, by_id[1][name]) for name, item in by_id[0].items()]
    if len(predictions) != len(references):
        raise UserError(
            f"{len(predictions)} predictions for {len(references)} references; give as many, or an id on every item"
        )
    return list(zip(predictions, references, strict=True))


def _join(references: list[Item]) -> list[Item]:
    """Return the references of one id as one item, as the benchmark SCROLLS reads its files."""
    joined: dict[str, Item] = {}
    for item in references:
        first = joined.setdefault(str(item.id), item)
        if first is not item:
            for field in ("document_id", "cluster_id"):
                if getattr(first, field) != getattr(item, field):
                    raise UserError(f"{item.where}: another {field} than in {first.where}; give both the same")
            joined[str(item.id)] = replace(first, texts=(*first.texts, *item.texts))
    return list(joined.values())


def _by_id(items: list[Item]) -> dict[str, Item]:
    found: dict[str, Item] = {}
    for item in items:
        if found.setdefault(str(item.id), item) is not item:
            raise UserError(f"{item.where}: id '{item.id}' occurs twice; give every item an id of its own")
    return found


def _read(file: Path, fields: tuple[str, ...], id_field: str) -> list[Item]:
    suffix = PurePath(unpacked_name(file.name)).suffix.lower()
    try:
        if suffix in _TABLES:
            items = _records(file, fields, id_field)
        else:
            items = _lines(file, _text(file), suffix, fields, id_field)
    except DataError as error:
        raise UserError(str(error)) from error
    if not items:
        raise UserError(f"{file} is empty; give it an item a line")
    return items


def _text(file: Path) -> str:
    with open_packed(file, may_be_pipe=True) as (stream, _):
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UserError(f"{file} holds more than {_MAX_BYTES >> 30} GiB; give a file of texts")
    try:
        return decode_text(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: {error.reason}") from error


def _records(file: Path, fields: tuple[str, ...], id_field: str) -> list[Item]:
    """Return the items of a table or a Parquet file, by column."""
    items = []
    for row in read_records(file):
        if isinstance(row, BadRow):
            raise UserError(row.problem)
        item = _item(row.fields, row.where, fields, id_field)
        field = next(name for name in fields if name in row.fields)
        if row.is_table and isinstance(row.fields[field], str):
            row.text(field, may_be_empty=True)
        items.append(item)
    return items


def _lines(file: Path, content: str, suffix: str, fields: tuple[str, ...], id_field: str) -> list[Item]:
    """Return the items of plain text or JSON."""
    # At line ends alone: texts may hold other characters that Python takes for one.
    lines = content.replace("\r\n", "\n").removesuffix("\n").split("\n") if content else []
    if suffix not in _JSON:
        if lines and all(line.startswith(("{", "[")) and line.endswith(("}", "]")) for line in lines):
            raise UserError(f"{file} looks like JSON lines and would be taken for plain text; name it .jsonl")
        numbered = [(f"{file.name}, line {number}", line) for number, line in enumerate(lines, start=1)]
        return [Item(where=where, texts=(line,)) for where, line in numbered]
    whole = _whole(content, file.name, fields)
    if isinstance(whole, dict):
        return [Item(where=f"{file.name}, id {name}", id=name, texts=(text,)) for name, text in whole.items()]
    if isinstance(whole, list) and suffix == ".json":
        entries = [(f"{file.name}, entry {number}", value) for number, value in enumerate(whole, start=1)]
    else:
        entries = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file.name}, line {number}"
                entries.append((where, _value(line, where)))
    return [_item(value, where, fields, id_field) for where, value in entries]


def _value(line: str, where: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); write one value a line, or name the file .txt") from error


def _whole(content: str, where: str, fields: tuple[str, ...]) -> dict[str, str] | list[Any] | None:
    """Return what one JSON object of texts by id holds, as SCROLLS takes predictions, or one array; None for others."""
    try:
        value = json.loads(content, object_pairs_hook=unique_names)
    except (json.JSONDecodeError, RecursionError):
        return None
    except ValueError as error:
        raise UserError(f"{where}: {one_line(error)}; correct it") from error
    if isinstance(value, list):
        return value
    known = {*fields, *_PREDICTION_FIELDS, *_REFERENCE_FIELDS}
    is_texts = isinstance(value, dict) and not known & value.keys() and all(isinstance(x, str) for x in value.values())
    return value if is_texts else None


def _item(value: Any, where: str, fields: tuple[str, ...], id_field: str) -> Item:
    about: Mapping[str, Any] = {}
    if isinstance(value, dict):
        about = value
        there = [name for name in fields if name in about]
        found = [name for name in there if about[name] is not None] or there[:1]
        if not found:
            quoted = " or ".join(f"'{name}'" for name in fields)
            raise UserError(
                f"{where}: no field {quoted}, fields found: {', '.join(about)[:200]}; name one with --prediction-field "
                "or --reference-field, or name a file of plain text .txt"
            )
        if len(found) > 1:
            raise UserError(
                f"{where}: has both '{found[0]}' and '{found[1]}'; name one with --prediction-field or "
                "--reference-field"
            )
        value = about[found[0]]
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        given = "null" if value is None else shown(value)
        raise UserError(f"{where}: {given}; a text or a list of texts was expected")
    try:
        # An empty cell of a table is no id.
        name, document, cluster = (id_text(about.get(key)) or None for key in (id_field, "document_id", "cluster_id"))
    except ValueError as error:
        raise UserError(f"{where}: id is {error}") from error
    # Where the document has a field of its own, as in LongBench, `input` is a question.
    text = None if "context" in about else about.get("input")
    named = {
        "document": about.get("document", about.get("context")),
        "window": about.get("window"),
        "query": about.get("query", about.get("input") if "context" in about else None),
    }
    return Item(
        where=where,
        id=name,
        document_id=document,
        cluster_id=cluster,
        input=text if isinstance(text, str) else None,
        about={key: one for key, one in named.items() if isinstance(one, str) and one.strip()},
        texts=tuple(texts),
        classes=_classes(about.get("classes", about.get("all_classes"))),
    )


def _classes(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else ()
