"""Which tasks a script reads, from where: flags and settings that generation, training and perplexity share."""

from __future__ import annotations

import argparse
import difflib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from eval.config.parser import positive
from eval.errors import UserError
from tasks import (
    CUSTOM,
    TASKS,
    CustomTask,
    DataError,
    Example,
    LoadedExamples,
    LoadRequest,
    Task,
    check_instruction,
    read_task_file,
)

_TASK_FILES = (".yaml", ".yml")
# Settings of `--task custom` that a task file has too, by their names there.
_OWN = ("context_field", "target_field", "query_field", "instruction", "metrics")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is read.

    Attributes:
        task: Names of tasks, or YAML task files.
        data: Local file or folder that is read instead of the hub or the package.
        split: None takes the task's default.
        limit: First examples of each task; None takes all.
        min_words: Of a context; examples of fewer are left out before `limit` counts. None takes all.
        revision: Of a hub data set; None takes the task's.
        on_bad_row: `fail` or `skip`.
        context_field: Of `--task custom`, as are the others below: field of the document.
        target_field: Field of what should be written.
        query_field: Field of the question.
        instruction: What the model is told to do.
        metrics: Metric profile of the task.
    """

    task: tuple[str, ...]
    data: Path | None = None
    split: str | None = None
    limit: int | None = None
    min_words: int | None = None
    revision: str | None = None
    on_bad_row: str = "fail"
    context_field: str | None = None
    target_field: str | None = None
    query_field: str | None = None
    instruction: str | None = None
    metrics: str | None = None

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Return the tasks by name.

        Raises:
            UserError: One is not known, or a setting does not fit it.
        """
        own = {name: value for name in _OWN if (value := getattr(self, name)) is not None}
        if own and CUSTOM not in self.task:
            flag = "--" + next(iter(own)).replace("_", "-")
            raise UserError(f"{flag} is of --task {CUSTOM}; a published task has its own, a task file holds its own")
        tasks: dict[str, Task] = {}
        for asked in self.task:
            task = self._find(asked, own)
            if task.name in tasks:
                raise UserError(f"--task names '{task.name}' twice: {','.join(self.task)}")
            if self.split is not None and self.split not in task.splits:
                known = ", ".join(task.splits)
                raise UserError(f"task '{task.name}' has no split '{self.split}'; known: {known}")
            tasks[task.name] = task
        if self.data is not None and len(tasks) > 1 and not self.data.is_dir():
            raise UserError(
                f"--data {self.data} is one source for {len(tasks)} tasks; give a folder with one for each: "
                f"{', '.join(tasks)}"
            )
        return tasks

    def _find(self, asked: str, own: dict[str, str]) -> Task:
        try:
            if asked == CUSTOM:
                if "instruction" in own:
                    check_instruction(own["instruction"])
                return CustomTask(**own).task()  # type: ignore[arg-type]
            if asked.endswith(_TASK_FILES):
                task = read_task_file(Path(asked)).task()
                if task.name in TASKS:
                    raise UserError(f"task file {asked} is called '{task.name}' like a published task; rename it")
                return task
        except DataError as error:
            raise UserError(str(error)) from error
        if asked not in TASKS:
            close = difflib.get_close_matches(asked, TASKS, n=1)
            meant = f", perhaps '{close[0]}'" if close else ""
            raise UserError(
                f"unknown task '{asked}'{meant}; python -m tasks list names all, and {CUSTOM} or a .yaml task file is "
                "for your own data"
            )
        return TASKS[asked]

    def load(self, name: str, split: str | None = None) -> LoadedExamples:
        """Return the examples of a task: of a split, else of the one that was asked for, else of its default.

        Raises:
            DataError: They cannot be read.
        """
        task = self.tasks[name]
        return task.load(
            LoadRequest(
                split=split or self.split or task.default_split,
                data=self._data_of(name),
                limit=self.limit,
                min_words=self.min_words,
                revision=self.revision,
                on_bad_row=self.on_bad_row,
            )
        )

    def load_documents(self, name: str) -> LoadedExamples:
        """Return the examples of a task, one a document: several queries about one share its context."""
        loaded = self.load(name)
        documents: dict[str, Example] = {}
        for example in loaded.examples:
            documents.setdefault(example.document_id, example)
        return replace(loaded, examples=tuple(documents.values()))

    def _data_of(self, name: str) -> Path | None:
        if self.data is None or len(self.tasks) == 1:
            return self.data
        stems = {path: path.name.removesuffix(".gz").rpartition(".")[0] for path in self.data.iterdir()}
        found = sorted(path for path, stem in stems.items() if name in (path.name, stem))
        if len(found) != 1:
            what = f"holds {' and '.join(path.name for path in found)}" if found else f"holds nothing named {name}"
            raise DataError(f"--data {self.data} {what}; one file or folder a task was expected")
        return found[0]


def add_data_flags(parser: argparse.ArgumentParser, split: str) -> None:
    """Add the flags that say what is read."""
    group = parser.add_argument_group("what is read")
    group.add_argument(
        "--task",
        metavar="NAME",
        help=f"one or more, separated by commas; python -m tasks list names them; or {CUSTOM}, or a YAML task file",
    )
    group.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="local data in one of the set's official formats; for several tasks a folder with one for each",
    )
    group.add_argument("--split", metavar="NAME", help=f"default: {split}")
    group.add_argument("--limit", metavar="N", type=positive, help="first N examples of each task; default: all")
    group.add_argument(
        "--min-words",
        metavar="N",
        type=positive,
        help="leave out, before --limit counts, documents of fewer words between white space",
    )
    group.add_argument("--revision", metavar="REF", help="commit, tag or branch of the data on the hub")
    group.add_argument(
        "--on-bad-row", choices=["fail", "skip"], help="what to do with a row that cannot be used (default: fail)"
    )
    own = parser.add_argument_group(f"your own data (--task {CUSTOM} --data FILE; .jsonl, .csv, .parquet, .txt folder)")
    own.add_argument("--context-field", metavar="NAME", help="field of the document (default: context)")
    own.add_argument("--target-field", metavar="NAME", help="field of what should be written (default: target)")
    own.add_argument("--query-field", metavar="NAME", help="field of the question (default: there is none)")
    own.add_argument("--instruction", metavar="TEXT", help="what the model is told to do")
    own.add_argument("--metrics", metavar="NAME", help="metric profile of the task (default: hf)")
