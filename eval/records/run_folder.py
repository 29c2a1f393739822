"""The folder of one run: settings, predictions, and scores.

    run.json              settings, provenance of model and data, and one entry a session (`RunRecord`)
    examples.jsonl        id, document, query and references of each example (`ExampleRecord`)
    documents.jsonl.gz    text of each document, so that scoring needs no data set (`DocumentRecord`)
    predictions.jsonl     one line a prediction (`Prediction`)
    journal/              lines of a run that has not ended: one file a process, merged when all are done;
                          progress.json says how far it is (`ProgressRecord`)
    scores.json           means with intervals, and comparisons (`Scores`)
    example_scores.jsonl  one line a prediction or baseline (`ExampleScore`)
    metrics/              values of further metrics, a file each (`MetricRecord`, then `MetricLine`)
    ladder.json           the context ladder (`LadderRecord`)
    report.md, report.html, ladder.html, plots/

A folder belongs to one set of settings. Lengths, templates, examples and tasks may be added; any other difference is
refused. Measurements of perplexity, searches and trainings have such folders too, with records of their own.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import RawIOBase
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eval.errors import UserError
from eval.records.disk import (
    MAX_BYTES,
    disk_errors,
    inside,
    make_folder,
    parse_json,
    read_json,
    write_whole,
)
from eval.records.journal import Journal, Line, fingerprint, line_of, open_journal, read_journal, read_lines
from eval.records.schema import (
    DocumentRecord,
    ExampleRecord,
    Key,
    PerplexityRecord,
    PlacementRecord,
    RunRecord,
    TrainingRecord,
)
from eval.records.typed import Record, from_json, to_json
from tasks.readers.kept import open_to_read

# Files that scoring writes.
_RESULT_FILES = ("scores.json", "example_scores.jsonl", "report.md", "report.html", "ladder.json", "ladder.html")
# Names of the pictures of a ladder, without their ends.
LADDER_PLOTS = r"ladder(-.*)?"
# There while a merge has not ended.
UNFINISHED = ".merging"
_FILES = ("run.json", "examples.jsonl", "documents.jsonl.gz", "predictions.jsonl", *_RESULT_FILES, UNFINISHED)
METRICS = "metrics"
PENDING = "metrics/pending"  # likelihoods that a run has measured while it answered, for `eval.ladder` to take
_METRIC_FILE = re.compile(r".+@\d+\.jsonl")
_KINDS: dict[type, str] = {
    RunRecord: "a run of eval/run.py",
    PerplexityRecord: "a measurement of eval/perplexity.py",
    PlacementRecord: "a search of eval/placement.py",
    TrainingRecord: "a training of eval/finetune.py",
}


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: The folder; it need not exist.
        advice: What else the user may do when another run is in the way.
        remedy: What to do when the folder holds no such run.
    """

    def __init__(self, path: Path, advice: str = "", remedy: str = "give another folder with --output") -> None:
        self.path = path
        self.advice = advice
        self.remedy = remedy

    def read_record(self, kind: type[Record], *, is_replaced: bool = False) -> Record | None:
        """Return `run.json`; None when the folder is new or empty.

        Args:
            kind: Record that is expected.
            is_replaced: The existing run will be deleted; a damaged record counts as none.

        Raises:
            UserError: The path is no folder, or holds no run of this kind, or a field of the record is damaged.
        """
        content = self._read_json(is_replaced=is_replaced)
        if content is None:
            return None
        actual = kind_of(content)
        if actual is not None and actual is not kind:
            raise UserError(f"{self.path} holds {_KINDS[actual]}, not {_KINDS[kind]}; {self.remedy}")
        try:
            return from_json(kind, content, str(self.path / "run.json"), remedy=f"restore the file, or {self.remedy}")
        except UserError:
            if is_replaced:
                return None
            raise

    def _read_json(self, *, is_replaced: bool) -> Any:
        file = self.path / "run.json"
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; {self.remedy}")
        if not file.exists():
            # Hidden files and an empty journal are left by a process that was killed before the record was written.
            others = (file.name for file in self.path.iterdir() if file.name not in ("journal", "metrics"))
            if any(not name.startswith(".") for name in others) and not self.is_unfinished:
                raise UserError(f"folder {self.path} holds files but no run; {self.remedy}")
            return None
        try:
            content = read_json(file)
        except (OSError, ValueError) as error:
            if is_replaced:
                return None
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{file} cannot be read: {reason}; {self.remedy}") from error
        kinds = {"identity": dict, "tasks": dict, "sessions": list}
        if not isinstance(content, dict) or not all(
            isinstance(content.get(name), kind) for name, kind in kinds.items()
        ):
            raise UserError(f"{file} is not the record of a run; {self.remedy}")
        return content

    @property
    def is_unfinished(self) -> bool:
        """Return whether a merge into the folder was interrupted."""
        return (self.path / UNFINISHED).is_file()

    @property
    def needs_checksums(self) -> bool:
        """Return whether each line has a checksum; those of 0.1 get theirs when a run goes on."""
        try:
            content = read_json(self.path / "run.json")
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and content.get("checksums") is True

    def check_accepts(self, saved: Any, identity: Any, tasks: Mapping[str, Any]) -> None:
        """Check that a run with these settings may continue what is in the folder.

        Args:
            saved: The existing record; None accepts everything.
            identity: Record of the settings that hold for the whole folder.
            tasks: Records of the tasks; `maxlen`, `templates`, `limit` and `sample` may grow, `rows` is a remark.

        Raises:
            UserError: A setting differs; the error names it with both values.
        """
        if saved is None:
            return
        there, now = to_json(saved.identity), to_json(identity)
        for name in dict.fromkeys([*now, *there]):
            self._check_equal(name, there.get(name), now.get(name))
        for task, settings in tasks.items():
            before = to_json(saved.tasks.get(task))
            if before is None:
                continue
            for name, value in to_json(settings).items():
                if name == "limit":
                    self._check_contains(task, before, to_json(settings))
                elif name == "templates":
                    for template in value.keys() & before.get(name, {}).keys():
                        self._check_equal(f"template '{template}' of {task}", before[name][template], value[template])
                elif name not in ("maxlen", "rows", "sample", "sample_seed"):
                    self._check_equal(f"{name} of {task}", before.get(name), value)

    def _check_contains(self, task: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Check that the documents of a session are among those of the next one."""
        if now["limit"] is None and now.get("sample") is None:
            return
        kind = "limit" if now.get("sample") is None and before.get("sample") is None else "sample"
        self._check_equal(f"sample_seed of {task}", before.get("sample_seed"), now.get("sample_seed"))
        if before.get(kind) is None or now.get(kind) is None or now[kind] < before[kind]:
            raise self._differs(f"{kind} of {task}", before.get(kind), now.get(kind))

    def _check_equal(self, name: str, there: Any, now: Any) -> None:
        if there == now:
            return
        if isinstance(there, dict) and isinstance(now, dict):
            for part in sorted({*there, *now}):
                self._check_equal(f"{name} {part}", there.get(part), now.get(part))
        raise self._differs(name, there, now)

    def _differs(self, name: str, there: Any, now: Any) -> UserError:
        return UserError(
            f"output folder {self.path} holds another run: {name} is {_short(there)} there and {_short(now)} now; "
            f"give another folder with --output, or the same settings{self.advice}"
        )

    @contextmanager
    def lock(self, saved: Record | None, kind: type[Record], *, is_replaced: bool = False) -> Iterator[None]:
        """Keep other runs out of the folder for as long as this lasts.

        Args:
            saved: What `read_record` returned when this run was checked against the folder.
            kind: Record that is expected.
            is_replaced: The existing run will be deleted.

        Raises:
            UserError: Another run is at work in it, or was since then.
        """
        with locked(self.path):
            if self.read_record(kind, is_replaced=is_replaced) != saved:
                raise UserError(f"output folder {self.path} was changed by another run meanwhile; run again")
            yield

    def write_json(self, name: str, content: Any) -> None:
        """Replace a JSON file, of a record or of plain values, in one step; no reader and no crash sees half of it."""
        self.write_text(name, json.dumps(to_json(content), indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Replace a text file of the folder in one step."""
        # Half of a pair of surrogates has no UTF-8; JSON reads what stands in its place as the same.
        write_whole(self.path, name, content.encode(errors="backslashreplace"))

    def write_lines(self, name: str, records: Iterable[Any]) -> None:
        """Replace a JSON-lines file of the folder in one step; each line ends with a checksum."""
        write_whole(self.path, name, b"".join(map(line_of, records)))

    def write_documents(self, documents: Iterable[DocumentRecord]) -> None:
        """Replace `documents.jsonl.gz` in one step."""
        # No time within, so that the same documents are the same file.
        lines = "".join(json.dumps(to_json(one), ensure_ascii=False) + "\n" for one in documents)
        content = gzip.compress(lines.encode(errors="surrogatepass"), 6, mtime=0)  # has a checksum of its own
        write_whole(self.path, "documents.jsonl.gz", content)

    def read_documents(self) -> list[DocumentRecord]:
        """Return the lines of `documents.jsonl.gz`; none when there is no such file yet.

        Raises:
            UserError: The file is damaged.
        """
        file = self.path / "documents.jsonl.gz"
        if not file.exists():
            return []
        try:
            with open_to_read(file) as packed, gzip.GzipFile(fileobj=packed) as stream:
                content = stream.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:  # some bytes of gzip can stand for gigabytes
                raise ValueError(f"it holds more than {MAX_BYTES:,} bytes")
            *texts, _ = content.split(b"\n")
            lines = [parse_json(text.decode(errors="surrogatepass")) for text in texts]
        except (OSError, EOFError, ValueError, MemoryError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{file} cannot be read: {reason}; make the run again with --overwrite") from error
        return [from_json(DocumentRecord, line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]

    def read_examples(self, damaged: list[str] | None = None) -> list[ExampleRecord]:
        """Return the lines of `examples.jsonl`; none when there is no such file yet.

        Args:
            damaged: Receives file and line of those that are damaged; without it they are an error.

        Raises:
            UserError: The file cannot be read.
        """
        return self.read_lines(ExampleRecord, "examples.jsonl", damaged)

    def read_lines(self, kind: type[Record], name: str, damaged: list[str] | None = None) -> list[Record]:
        """Return the records of a JSON-lines file of the folder; see `journal.read_lines`."""
        return read_lines(kind, self.path / name, needs_checksums=self.needs_checksums, damaged=damaged)

    def read_journal(self, kind: type[Line], expected: Mapping[Key, str] | None = None) -> Journal[Line]:
        """Return all predictions or measurements, those in the journal of an interrupted run included.

        Args:
            kind: What the lines are.
            expected: Fingerprints by key; see `journal.read_journal`.
        """
        files = [self.path / "predictions.jsonl", *sorted((self.path / "journal").glob("*.jsonl"))]
        return read_journal(kind, files, expected, needs_checksums=self.needs_checksums)

    def open_journal(self, name: str) -> RawIOBase:
        """Return the journal of one process, open for appending; a torn last line is cut off first."""
        return open_journal(make_folder(self.path, "journal"), f"{name}.jsonl")

    def merge_journal(
        self,
        kind: type[Line],
        order: Sequence[Key],
        required: Container[Key],
        expected: Mapping[Key, str] | None = None,
    ) -> tuple[list[Line], list[Key]]:
        """Write all lines to `predictions.jsonl`, delete the journal, return the lines and the keys of absent ones.

        Args:
            kind: What the lines are.
            order: Keys of all that should be there.
            required: Keys that this run was to make; others may be absent.
            expected: Fingerprints by key; see `journal.read_journal`.

        Raises:
            UserError: One that this run was to make is absent; the journal stays.
        """
        existing = self.read_journal(kind, expected).lines
        absent = [key for key in order if key not in existing]
        lost = [key for key in absent if key in required]
        if lost:
            raise UserError(
                f"{len(lost)} predictions are not in {self.path}, {lost[0][2]} at {lost[0][3]} among them; the process "
                "that was to make them did not; run the same command again"
            )
        lines = in_order(existing, order)
        self.write_lines("predictions.jsonl", lines)
        shutil.rmtree(self.path / "journal", ignore_errors=True)
        return lines, absent

    def clear(self) -> None:
        """Delete what a run has left, and nothing else."""
        with disk_errors(self.path):
            # The record goes last: while it is there, this is a run's folder.
            if (self.path / "journal").exists():
                shutil.rmtree(inside(self.path, "journal"))
            if (self.path / METRICS).exists():
                metrics = inside(self.path, METRICS)
                # A judge's file and its replies, which were paid for, may lie beside the values.
                for file in metric_files(self.path):
                    file.unlink()
                if (self.path / PENDING).exists():
                    shutil.rmtree(inside(self.path, PENDING))
                if not any(metrics.iterdir()):
                    metrics.rmdir()
            plots = own_plots(self.read_record(RunRecord, is_replaced=True))
            own = re.compile(rf"({plots}|{LADDER_PLOTS})\.(png|svg)")
            for plot in inside(self.path, "plots").glob("*"):
                if own.fullmatch(plot.name):
                    plot.unlink()
            for name in reversed(_FILES):
                (self.path / name).unlink(missing_ok=True)


def metric_files(folder: Path) -> list[Path]:
    """Return the files of further metrics in a run folder, in order; other files beside them are none."""
    return sorted(file for file in (folder / METRICS).glob("*.jsonl") if _METRIC_FILE.fullmatch(file.name))


def kind_of(content: Mapping[str, Any]) -> type | None:
    """Return the record that a parsed `run.json` is; None where it is of no known kind."""
    identity = content.get("identity", {})
    if "grouping" in content:
        return RunRecord
    if "num_train_examples" in content:
        return TrainingRecord
    if "perplexity_version" in identity:
        return PerplexityRecord
    return PlacementRecord if "placement_version" in identity else None


def is_locked(path: Path) -> bool:
    """Return whether a command is at work in a folder; nothing is written.

    A command that begins in the same instant may be told that the folder is in use.
    """
    try:
        with open_to_read(path / ".lock") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others out of a folder for as long as this lasts; it is made if needed.

    Raises:
        UserError: It is in use, or cannot be locked.
    """
    file = inside(make_folder(path), ".lock")
    # A file that only exists would lock a folder for ever after a kill. `FileLock` follows no link and empties no file.
    lock = FileLock(file, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"output folder {path} is in use by another run; wait for it, or give another with --output"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"output folder {path} cannot be locked: {reason}; give one elsewhere with --output") from error
    try:
        yield
    finally:
        lock.release()


def own_plots(record: RunRecord | None) -> str:
    """Return a regular expression for the names of a run's plots, without their ends; no other file is the run's."""
    tasks = {} if record is None else record.tasks
    prefixes = [f"{task}-{template}" for task, about in tasks.items() for template in about.templates]
    return rf"({'|'.join(map(re.escape, prefixes))})-(finding|length-\w+|cost-\w+|positions|depth)"


def comparison_page(first: Path, second: Path, suffix: str = "") -> Path:
    """Return the page that compares a run with a second one, in whose folder it is.

    Its name has that of the first; where that is in another folder also a digest of the way there, so that runs of one
    name have pages of their own, and no folder is told.
    """
    beside = Path(os.path.relpath(first, second / ".."))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", beside.name.strip(".") or first.resolve().name)[:100]
    digest = f"-{fingerprint(str(beside))[:6]}" if beside.name != str(beside) else ""
    return second / f"compare-{name}{digest}{suffix}.html"


def in_order(lines: Mapping[Key, Line], order: Sequence[Key]) -> list[Line]:
    """Return lines in an order, those that it does not name after the others."""
    known = set(order)
    return [lines[key] for key in [*order, *(key for key in lines if key not in known)] if key in lines]


def keys_of(record: RunRecord, examples: Sequence[ExampleRecord]) -> list[Key]:
    """Return the key of each prediction of a finished run, in order.

    Raises:
        UserError: An example is of a task that the record does not have.
    """
    if unknown := [one.task for one in examples if one.task not in record.tasks]:
        raise UserError(
            f"examples.jsonl has examples of task '{unknown[0]}', which run.json does not know; restore both"
        )
    return [
        (one.task, template, one.id, maxlen)
        for one in examples
        for template in record.tasks[one.task].templates
        for maxlen in record.tasks[one.task].maxlen
    ]


def default_output(kind: str, config: Any, free: Sequence[str]) -> Path:
    """Return a folder name that other settings do not share.

    Args:
        kind: What is run; empty for generation.
        config: Dataclass of settings, with `task`, `model` and `plan`.
        free: Names of settings that may grow or change in a folder.
    """
    fixed = {name: str(value) for name, value in asdict(config).items() if name not in free}
    if config.sample is None:
        fixed.pop("sample_seed", None)
    # Folders of versions without these settings keep their names.
    added = ("min_words", "min_tokens", "stratum_field", "cluster_field", "sample", "held_out_sample", "stride")
    of_data = ("tasks_from", "scan", "subset", "id_field", "shots", "shots_split", "shots_seed")
    for name in (*added, *of_data, "model_revision", "adapter", "adapter_revision", "quantize"):
        if fixed.get(name) == "None":
            del fixed[name]
    if fixed.get("token_losses") == "False":
        del fixed["token_losses"]
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]
    models = [Path(name).name for name in (config.model, config.adapter) if name is not None]
    words = "-".join([*([kind] if kind else []), *config.tasks, *models, Path(config.plan).name])
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', words)[:80]}-{digest}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
