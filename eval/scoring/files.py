"""Predictions and references of any system, from files.

Plain text holds an item a line. JSON lines (.jsonl, .ndjson, .json) hold texts, lists of texts (references), or
objects: `prediction` or `text`, `reference` or `references`, or `output`, as in the files of SCROLLS. With an `id` on
every item of both sides items are joined by it, and references of one id are several of one item; without any they are
paired in order. An object may name its `document_id`, over which intervals resample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.typed import to_json
from eval.scoring.examples import SCORING_VERSION
from eval.scoring.profiles import metric_columns, metric_range, score_prediction
from eval.scoring.significance import mean_interval

_JSON = (".jsonl", ".ndjson", ".json")
_PREDICTION_FIELDS = ("prediction", "text")
_REFERENCE_FIELDS = ("references", "reference", "output")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One entry of a file.

    `where` is the file and line, for messages; the texts are one prediction, or the references.
    """

    where: str
    id: str | None
    document_id: str | None
    texts: tuple[str, ...]


def score_files(predictions: Path, references: Path, profile: str) -> dict[str, Any]:
    """Return the scores of all items and of each, JSON-ready, under the names of `scores.json`.

    Raises:
        UserError: A file cannot be read, or the two do not belong together.
    """
    pairs = _pair(_read(predictions, _PREDICTION_FIELDS), _read(references, _REFERENCE_FIELDS))
    lines: list[dict[str, Any]] = []
    documents = []
    for index, (prediction, reference) in enumerate(pairs):
        if len(prediction.texts) != 1:
            raise UserError(f"{prediction.where}: {len(prediction.texts)} predictions; give one text an item")
        if not reference.texts:
            raise UserError(f"{reference.where}: no reference; give one at least")
        named = {item.document_id for item in (prediction, reference) if item.document_id is not None}
        if len(named) > 1:
            raise UserError(f"{prediction.where}: another document_id than in {reference.where}; give both the same")
        name = str(index) if reference.id is None else reference.id
        metrics = score_prediction(profile, prediction.texts[0], reference.texts)
        lines.append({"id": name, "document_id": min(named, default=name), "metrics": metrics})
        # An item that names no document is one by itself, whatever other documents are called.
        documents.append(f"document {min(named)}" if named else f"item {index}")
    result = {
        "profile": profile,
        "system": predictions.name,
        "kind": "model",
        "subset": "all",
        "num_examples": len(lines),
        "num_documents": len(set(documents)),
        "metrics": {
            metric: mean_interval(
                [[line["metrics"][column] for column in columns] for line in lines],
                documents,
                within=metric_range(profile, metric),
            )
            for metric, columns in metric_columns(profile).items()
        },
    }
    return {
        "profile": profile,
        "scoring_version": SCORING_VERSION,
        "results": [to_json(result)],
        "examples": lines,
    }


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
            if first.document_id != item.document_id:
                raise UserError(f"{item.where}: another document_id than in {first.where}; give both the same")
            joined[str(item.id)] = replace(first, texts=(*first.texts, *item.texts))
    return list(joined.values())


def _by_id(items: list[Item]) -> dict[str, Item]:
    found: dict[str, Item] = {}
    for item in items:
        if found.setdefault(str(item.id), item) is not item:
            raise UserError(f"{item.where}: id '{item.id}' occurs twice; give every item an id of its own")
    return found


def _read(file: Path, fields: tuple[str, ...]) -> list[Item]:
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    # At line ends alone: texts may hold other characters that Python takes for one.
    lines = content.replace("\r\n", "\n").removesuffix("\n").split("\n") if content else []
    is_json = file.suffix.lower() in _JSON
    if not lines or (is_json and not content.strip()):
        raise UserError(f"{file} is empty; give it an item a line")
    if not is_json and all(line.startswith(("{", "[")) and line.endswith(("}", "]")) for line in lines):
        raise UserError(f"{file} looks like JSON lines and would be taken for plain text; name it .jsonl")
    if is_json and (by_id := _texts_by_id(content)):
        return [
            Item(where=f"{file.name}, id {name}", id=name, document_id=None, texts=(text,))
            for name, text in by_id.items()
        ]
    items = []
    for number, line in enumerate(lines, start=1):
        where = f"{file.name}, line {number}"
        if not is_json:
            items.append(Item(where=where, id=None, document_id=None, texts=(line,)))
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); write one value a line, or name the file .txt") from error
        items.append(_item(value, where, fields))
    return items


def _texts_by_id(content: str) -> dict[str, str] | None:
    """Return what one JSON object of texts by id holds, as SCROLLS takes predictions; None for anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    fields = {*_PREDICTION_FIELDS, *_REFERENCE_FIELDS}
    is_texts = isinstance(value, dict) and not fields & value.keys() and all(isinstance(x, str) for x in value.values())
    return value if is_texts else None


def _item(value: Any, where: str, fields: tuple[str, ...]) -> Item:
    about: Mapping[str, Any] = {}
    if isinstance(value, dict):
        about = value
        found = [name for name in fields if name in about]
        if not found:
            quoted = " or ".join(f"'{name}'" for name in fields)
            raise UserError(f"{where}: no field {quoted}, fields found: {', '.join(about)[:200]}")
        value = about[found[0]]
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {json.dumps(value)[:80]}; a text or a list of texts was expected")
    name, document = (None if about.get(key) is None else str(about[key]) for key in ("id", "document_id"))
    return Item(where=where, id=name, document_id=document, texts=tuple(texts))
