"""Predictions and references of any system, from files.

Plain text holds an item a line. JSON lines hold texts, lists of texts (references), or objects: `prediction` or `text`,
`reference` or `references`; with an `id` on both sides items are joined by it, else they are paired in order. An object
may name its `document_id`, over which intervals resample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.command import ScoringError
from eval.rouge_profiles import score_prediction
from eval.scoring import SCORING_VERSION, metric_columns, values_of
from eval.significance import mean_interval

_JSON = (".jsonl", ".json")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One entry of a file.

    Attributes:
        where: For messages.
        id: None where the entry has none.
        document_id: None where the entry names none.
        texts: One, or several references.
    """

    where: str
    id: str | None
    document_id: str | None
    texts: tuple[str, ...]


def score_files(predictions: Path, references: Path, profile: str) -> dict[str, Any]:
    """Return what `scores.json` would say, with the scores of each item.

    Raises:
        ScoringError: A file cannot be read, or the two do not belong together.
    """
    pairs = _pair(_read(predictions, ("prediction", "text")), _read(references, ("references", "reference")))
    lines = []
    for index, (prediction, reference) in enumerate(pairs):
        if len(prediction.texts) != 1:
            raise ScoringError(f"{prediction.where}: {len(prediction.texts)} predictions; give one text an item")
        if not reference.texts:
            raise ScoringError(f"{reference.where}: no reference; give one at least")
        name = reference.id if reference.id is not None else str(index)
        metrics = score_prediction(profile, prediction.texts[0], reference.texts)
        lines.append({"id": name, "document_id": reference.document_id or name, "metrics": metrics})
    documents = [str(line["document_id"]) for line in lines]
    result = {
        "profile": profile,
        "system": predictions.name,
        "kind": "model",
        "subset": "all",
        "num_examples": len(lines),
        "num_documents": len(set(documents)),
        "metrics": {
            metric: asdict(mean_interval(values_of(lines, columns), documents))
            for metric, columns in metric_columns(profile).items()
        },
    }
    return {"profile": profile, "scoring_version": SCORING_VERSION, "results": [result], "examples": lines}


def _pair(predictions: list[Item], references: list[Item]) -> list[tuple[Item, Item]]:
    by_id = {item.id: item for item in references}
    if None not in by_id and all(item.id is not None for item in predictions):
        for items in (predictions, references):
            seen: set[str | None] = set()
            for item in items:
                if item.id in seen:
                    raise ScoringError(f"{item.where}: id '{item.id}' occurs twice; give every item an id of its own")
                seen.add(item.id)
        lost = {item.id for item in predictions} ^ set(by_id)
        if lost:
            raise ScoringError(
                f"{len(lost)} ids are in one file alone, '{min(map(str, lost))}' among them; give both the same items"
            )
        return [(item, by_id[item.id]) for item in predictions]
    if len(predictions) != len(references):
        raise ScoringError(
            f"{len(predictions)} predictions for {len(references)} references; give as many, or an id on every item"
        )
    return list(zip(predictions, references, strict=True))


def _read(file: Path, fields: tuple[str, str]) -> list[Item]:
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ScoringError(f"{file} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ScoringError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    # At line ends alone: texts may hold other characters that Python takes for one.
    lines = content.replace("\r\n", "\n").removesuffix("\n").split("\n") if content.strip() else []
    if not lines:
        raise ScoringError(f"{file} is empty; give it an item a line")
    items = []
    for number, line in enumerate(lines, start=1):
        where = f"{file.name}, line {number}"
        if file.suffix not in _JSON:
            items.append(Item(where=where, id=None, document_id=None, texts=(line,)))
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ScoringError(f"{where}: not JSON ({error}); write one value a line, or name the file .txt") from error
        items.append(_item(value, where, fields))
    return items


def _item(value: Any, where: str, fields: tuple[str, str]) -> Item:
    about: Mapping[str, Any] = {}
    if isinstance(value, dict):
        about = value
        found = [name for name in fields if name in about]
        if not found:
            raise ScoringError(f"{where}: no field '{fields[0]}' or '{fields[1]}', fields found: {', '.join(about)}")
        value = about[found[0]]
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ScoringError(f"{where}: {json.dumps(value)[:80]}; a text or a list of texts was expected")
    name, document = (None if about.get(key) is None else str(about[key]) for key in ("id", "document_id"))
    return Item(where=where, id=name, document_id=document, texts=tuple(texts))
