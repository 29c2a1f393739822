"""The files of further metrics in a run folder, `metrics/NAME@VERSION.jsonl`, which only grow.

    {"name": "diagnostics", "version": 1, "provenance": {}, ..., "crc32": "..."}
    {"fingerprint": "5f...", "id": "...", "values": {"copied": 0.41, ...}, "crc32": "..."}

The first line says what the values depend on. Each other line has the values of one text under the digest of all that
the metric reads of it, so a line is right for as long as there is such a text, and is kept when there is none. A line
that a kill tore is cut off; one that was changed is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from io import RawIOBase
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.metrics.base import Item, Metric, Value, checked_scores, describe_source
from eval.records.disk import make_folder, read_whole
from eval.records.journal import append_lines, open_journal, parse_line, read_lines
from eval.records.run_folder import METRICS, PENDING, metric_files
from eval.records.schema import MetricLine, MetricRecord, UsedMetric, ValueRecord
from eval.records.typed import from_json, to_json

AGAIN = "--metrics-again"
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class MetricFile:
    """What a file holds: its first line, and the line of each text by fingerprint."""

    path: Path
    record: MetricRecord
    lines: Mapping[str, MetricLine]
    num_bytes: int
    sha256: str

    @cached_property
    def values(self) -> dict[str, Mapping[str, float | None]]:
        """Return the values of each text by fingerprint."""
        return {fingerprint: line.values for fingerprint, line in self.lines.items()}

    def used(self, num_absent: int) -> UsedMetric:
        """Return what `scores.json` says of the file."""
        about = {one.name: getattr(self.record, one.name) for one in fields(MetricRecord)}
        name = f"{METRICS}/{self.path.name}"
        return UsedMetric(**about, file=name, num_bytes=self.num_bytes, sha256=self.sha256, num_absent=num_absent)


def record_of(metric: Metric) -> MetricRecord:
    """Return what a metric says of itself, as its file has it."""
    return MetricRecord(
        name=metric.name,
        version=metric.version,
        # As JSON has it, so that what is read is equal.
        provenance=json.loads(json.dumps({**metric.provenance(), **describe_source(metric)})),
        needs=sorted(metric.needs),
        reads=sorted(metric.reads),
        values={name: _value_record(value) for name, value in metric.values.items()},
    )


def _value_record(value: Value) -> ValueRecord:
    low, high = (end if math.isfinite(end) else None for end in (value.low, value.high))
    return ValueRecord(
        label=value.label, title=value.title, low=low, high=high, better=value.better, is_share=value.is_share
    )


def key_of(metric: str, value: str) -> str:
    """Return the name of a value beside those of other metrics."""
    return f"{metric}.{value}"


def metric_of(key: str) -> str:
    """Return the metric that a value by its `NAME.VALUE` is of."""
    return key.rpartition(".")[0]


def values_by_key(used: Mapping[str, MetricRecord]) -> dict[str, ValueRecord]:
    """Return what the values of further metrics can be, by `NAME.VALUE`."""
    return {key_of(name, value): about for name, one in used.items() for value, about in one.values.items()}


def file_of(folder: Path, record: MetricRecord) -> Path:
    """Return where the values of a metric are; a name that has other characters than file names keeps none of them."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", record.name).strip("-.")[:100]
    return folder / METRICS / f"{name or 'metric'}@{record.version}.jsonl"


def read_metric_files(folder: Path) -> dict[str, MetricFile]:
    """Return the newest version of each metric that a run folder has values of, by name.

    Raises:
        UserError: A file was changed, or cannot be read.
    """
    found: dict[str, MetricFile] = {}
    for path in metric_files(folder):
        one = read_metric_file(path)
        before = found.get(one.record.name)
        if before is None or before.record.version < one.record.version:
            found[one.record.name] = one
    return found


def read_metric_file(path: Path) -> MetricFile:
    """Return what a file of a metric holds; a torn last line is left out.

    Raises:
        UserError: It was changed, or cannot be read.
    """
    try:
        content = read_whole(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; restore it") from error
    content = content[: content.rfind(b"\n") + 1]
    remedy = f"restore the file, or score anew with {AGAIN}"
    record: MetricRecord | None = None
    lines: dict[str, MetricLine] = {}
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        where = f"{path}, line {number}"
        line = parse_line(text, needs_checksum=True)
        if line is None:
            raise UserError(f"{where} was changed: it is no JSON object with a fitting checksum; {remedy}")
        if record is None:
            record = from_json(MetricRecord, line, where, remedy=remedy)
            _check_name(path, record, remedy)
        else:
            one = from_json(MetricLine, line, where, remedy=remedy)
            if problem := wrong_values(record.values, one.values):
                raise UserError(f"{where}: {problem}; {remedy}")
            lines.setdefault(one.fingerprint, one)
    if record is None:
        raise UserError(f"{path} has no first line that says what the metric is; {remedy}")
    return MetricFile(
        path=path,
        record=record,
        lines=lines,
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _check_name(path: Path, record: MetricRecord, remedy: str) -> None:
    if path.name != (expected := file_of(path.parent.parent, record)).name:
        raise UserError(
            f"{path} holds {record.name} of version {record.version}, whose file is {expected.name}; {remedy}"
        )


def wrong_values(known: Mapping[str, ValueRecord], values: Mapping[str, float | None]) -> str | None:
    """Return what values cannot be those of a metric for, in words; None where they can."""
    if values.keys() != known.keys():
        return f"the values are {', '.join(values) or 'none'}, where the metric has {', '.join(known)}"
    for name, value in values.items():
        low, high = known[name].within
        if value is not None and not low - _ROUNDING <= value <= high + _ROUNDING:
            return f"{name} is {value}, and a number from {low:g} to {high:g}"
    return None


@contextmanager
def open_metric_file(
    folder: Path, record: MetricRecord, *, again: bool = False
) -> Iterator[tuple[RawIOBase, set[str]]]:
    """Return the file of a metric, open for appending, and the fingerprints of what is in it.

    Args:
        folder: The run folder, which is locked.
        record: What the metric says of itself.
        again: Begin the file anew.

    Raises:
        UserError: The file was made with other weights, packages or prompts, or was changed.
    """
    path = file_of(folder, record)
    make_folder(folder, METRICS)
    if again:
        path.unlink(missing_ok=True)
        shutil.rmtree(folder / PENDING, ignore_errors=True)
    with open_journal(path.parent, path.name) as journal:
        if path.stat().st_size:
            known = read_metric_file(path)
            check_provenance(known, record)
            seen = set(known.lines)
        else:
            append_lines(journal, [record])
            seen = set()
        yield journal, seen


def open_pending(folder: Path, record: MetricRecord, name: str) -> RawIOBase:
    """Return a file for what a process measures of a metric while it answers, open for appending."""
    return open_journal(make_folder(folder, PENDING), f"{file_of(folder, record).stem}-{name}.jsonl")


def take_pending(folder: Path, record: MetricRecord, journal: RawIOBase, seen: Collection[str]) -> set[str]:
    """Move what a run has measured while it answered into a metric's file, and return the fingerprints.

    What another version of the metric has measured is deleted.

    Args:
        folder: The run folder, which is locked.
        record: What the metric says of itself.
        journal: The file of the metric, open for appending.
        seen: Fingerprints of what is in it.
    """
    damaged: list[str] = []  # and measured again
    found = {
        line.fingerprint: line
        for file in sorted((folder / PENDING).glob(f"{file_of(folder, record).stem}-*.jsonl"))
        for line in read_lines(MetricLine, file, needs_checksums=True, damaged=damaged)
        if line.fingerprint not in seen
    }
    append_lines(journal, found.values())
    shutil.rmtree(folder / PENDING, ignore_errors=True)
    return set(found)


def score_missing(folder: Path, metric: Metric, texts: Iterable[tuple[Any, Item]], *, again: bool = False) -> None:
    """Score what a run folder has no values of yet, and add it to the metric's file.

    A kill loses the batch that was at work.

    Args:
        folder: The run folder, which is locked.
        metric: The metric.
        texts: Each item, with the line of `example_scores.jsonl` that it is of.
        again: Begin the file anew.

    Raises:
        UserError: The file was made with other weights, packages or prompts, or was changed.
        UserError: The metric gives what it does not have.
    """
    with open_metric_file(folder, record_of(metric), again=again) as (journal, seen):
        waiting: list[tuple[Any, Item]] = []
        for line, item in texts:
            if item.fingerprint not in seen and not item.lacks(metric.needs):
                seen.add(item.fingerprint)
                waiting.append((line, item))
            if len(waiting) == metric.batch_size:
                append_lines(journal, _lines(metric, waiting))
                waiting = []
        if waiting:
            append_lines(journal, _lines(metric, waiting))


def _lines(metric: Metric, waiting: list[tuple[Any, Item]]) -> Iterator[MetricLine]:
    items = [item for _, item in waiting]
    for (line, item), values in zip(waiting, checked_scores(metric, items), strict=True):
        about = {name: getattr(line, name) for name in ("task", "template", "id", "maxlen", "system")}
        yield MetricLine(fingerprint=item.fingerprint, **about, values=values)


def join_metric_files(parts: Sequence[Path], whole: Path) -> tuple[dict[str, list[Any]], list[str]]:
    """Return what the metric files of a whole run hold, by file name, from its parts, and what is left out.

    A file is joined where all parts have it and it was made in one way. Lines that the whole has already are kept.

    Args:
        parts: Folders of the parts.
        whole: Folder of the whole run, which need not exist.

    Returns:
        Records by file name, the first line first; and a sentence for each file that is left out.

    Raises:
        UserError: A file was changed, or cannot be read.
    """
    joined: dict[str, list[Any]] = {}
    left_out = []
    names = dict.fromkeys(file.name for part in parts for file in metric_files(part))
    for name in names:
        lacking = [part for part in parts if not (part / METRICS / name).exists()]
        if lacking:
            left_out.append(f"{name} is left out: {lacking[0]} has none")
            continue
        folders = [*parts, *([whole] if (whole / METRICS / name).exists() else [])]
        files = [read_metric_file(folder / METRICS / name) for folder in folders]
        first = files[0]
        others = zip(folders[1:], files[1:], strict=True)
        differing = [
            what
            for folder, other in others
            if (what := difference(first.record, other.record, (f"in {folders[0]}", f"in {folder}")))
        ]
        if differing:
            left_out.append(f"{name} is left out, because it was made in another way: {differing[0]}")
            continue
        lines: dict[str, MetricLine] = {}
        for file in [*files[len(parts) :], *files[: len(parts)]]:  # what the whole has stays
            lines |= {fingerprint: line for fingerprint, line in file.lines.items() if fingerprint not in lines}
        joined[name] = [first.record, *lines.values()]
    return joined, left_out


def check_provenance(file: MetricFile, record: MetricRecord) -> None:
    """Check that the values of a file were made as a metric would make them now.

    Raises:
        UserError: They were not; it says what differs, and what to do.
    """
    if what := difference(file.record, record):
        raise UserError(
            f"{file.path} was made in another way: {what}; score anew with {AGAIN}, or keep the file elsewhere"
        )


def difference(there: MetricRecord, now: MetricRecord, names: tuple[str, str] = ("there", "now")) -> str | None:
    """Return how two records of a metric differ, with both values under these names; None where they are equal."""
    one, other = to_json(there), to_json(now)
    return next((what for name in one if (what := _difference(name, one[name], other[name], names))), None)


def _difference(name: str, there: Any, now: Any, names: tuple[str, str]) -> str | None:
    if there == now:
        return None
    if isinstance(there, dict) and isinstance(now, dict):
        parts = sorted({*there, *now})
        found = (_difference(f"{name} {part}", there.get(part), now.get(part), names) for part in parts)
        return next(what for what in found if what)
    return f"{name} is {_short(there)} {names[0]} and {_short(now)} {names[1]}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def check_used(folder: Path, used: Mapping[str, UsedMetric], again: str) -> None:
    """Check that the files of further metrics begin as they were when a run was scored.

    Raises:
        UserError: One is gone, or was changed.
    """
    for name, one in used.items():
        try:
            content = read_whole(folder / METRICS / Path(one.file).name)[: one.num_bytes]
        except OSError as error:
            raise UserError(f"{folder / one.file} cannot be read: {error.strerror or error}; {again}") from error
        if hashlib.sha256(content).hexdigest() != one.sha256:
            raise UserError(f"{folder / one.file} was changed: it is not the file whose {name} was scored; {again}")
