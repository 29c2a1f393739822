"""Which tasks a script reads, and from where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.config.checks import names, natural, path, positive
from eval.config.options import REQUIRED, Group, Options
from eval.errors import UserError
from tasks import (
    CUSTOM,
    CustomTask,
    DataError,
    Example,
    LoadedExamples,
    LoadRequest,
    Task,
    check_instruction,
    find_task,
)


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """What is read."""

    task: tuple[str, ...] = Group.DATA.option(
        REQUIRED,
        f"one or more, separated by commas; python -m tasks list names them; or {CUSTOM}, or a YAML task file",
        collect=names,
    )
    tasks_from: Path | None = Group.DATA.option(
        None, "folder of YAML task files, whose tasks --task names too", path, metavar="DIR"
    )
    data: Path | None = Group.DATA.option(
        None,
        "local data in one of the set's official formats; for several tasks a folder with one for each; for "
        f"{CUSTOM} also hf://OWNER/NAME or a pattern of paths",
        path,
        metavar="PATH",
    )
    split: str | None = Group.DATA.option(None, "split that is read", unset="the one that the task is scored on")
    limit: int | None = Group.DATA.option(None, "first N examples of each task: no sample", positive, unset="all")
    sample: int | None = Group.DATA.option(
        None, "N documents of each task, drawn by a hash of their ids, with all their examples", positive, unset="all"
    )
    sample_seed: int = Group.DATA.option(0, "of --sample; a larger sample of a seed contains a smaller one", natural)
    scan: int | None = Group.DATA.option(
        None, "draw --sample from the first N rows and read no further", positive, unset="all rows"
    )
    min_words: int | None = Group.DATA.option(
        None, "leave out, before --limit or --sample count, documents of fewer words between white space", positive
    )
    revision: str | None = Group.DATA.option(
        None, "commit, tag or branch of the data on the hub", metavar="REF", unset="the task's own"
    )
    on_bad_row: str = Group.DATA.option("fail", "what to do with a row that cannot be used", choices=("fail", "skip"))
    subset: str | None = Group.OWN_DATA.option(
        None, "subset of a data set of the hub, which datasets calls its config", unset="the only one, or its default"
    )
    id_field: str | None = Group.OWN_DATA.option(None, "field of the example's id", unset="id")
    context_field: str | None = Group.OWN_DATA.option(
        None, "field of the document; like all fields a column, or Jinja: '{{ title }} {{ body }}'", unset="context"
    )
    target_field: str | None = Group.OWN_DATA.option(None, "field of what should be written", unset="target")
    query_field: str | None = Group.OWN_DATA.option(None, "field of the question", unset="there is none")
    stratum_field: str | None = Group.OWN_DATA.option(
        None, "field of the kind of document, by which the report counts them", unset="there is none"
    )
    cluster_field: str | None = Group.OWN_DATA.option(
        None, "field of what documents are part of, over which intervals resample", unset="each by itself"
    )
    instruction: str | None = Group.OWN_DATA.option(None, "what the model is told to do", metavar="TEXT")
    metrics: str | None = Group.OWN_DATA.option(None, "metric profile of the task", unset="hf")

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Return the tasks by name.

        Raises:
            UserError: One is not known, or a setting does not fit it.
        """
        if not self.task:
            raise UserError("--task is empty; python -m tasks list names those there are")
        if self.scan is not None and self.sample is None:
            raise UserError(f"--scan {self.scan} is what --sample draws from; give it too, or leave --scan out")
        if self.sample is not None and self.limit is not None:
            raise UserError(
                f"--sample {self.sample} draws documents and --limit {self.limit} takes the first; give one of them"
            )
        settings = {name: getattr(self, name) for name, one in self.options().items() if one.group is Group.OWN_DATA}
        own = {name: value for name, value in settings.items() if value is not None}
        if own and CUSTOM not in self.task:
            flag = "--" + next(iter(own)).replace("_", "-")
            raise UserError(f"{flag} is of --task {CUSTOM}; a published task has its own, a task file holds its own")
        tasks: dict[str, Task] = {}
        for asked in self.task:
            task = self._find(asked, own)
            if task.name in tasks:
                raise UserError(f"--task names '{task.name}' twice: {','.join(self.task)}")
            if self.split is not None and not task.has_split(self.split):
                known = ", ".join(task.splits)
                raise UserError(f"task '{task.name}' has no split '{self.split}'; known: {known}")
            tasks[task.name] = task
        if self.data is not None and len(tasks) > 1 and not self.data.is_dir():
            raise UserError(
                f"--data {self.data} is one source for {len(tasks)} tasks; give a folder with one for each: "
                f"{', '.join(tasks)}"
            )
        return tasks

    @property
    def longest(self) -> int:
        """Return the tokens that documents which are made here should fill."""
        return LoadRequest.longest

    def _find(self, asked: str, own: dict[str, str]) -> Task:
        try:
            if asked == CUSTOM:
                if "instruction" in own:
                    check_instruction(own["instruction"])
                return CustomTask(**own).task()  # type: ignore[arg-type]
            return find_task(asked, self.tasks_from)
        except DataError as error:
            raise UserError(str(error)) from error

    def load(self, name: str, split: str | None = None, accepts: Callable[[str], bool] | None = None) -> LoadedExamples:
        """Return the examples of a task: of a split, else of the one that was asked for, else of its default.

        Those whose context is not accepted are left out before limit or sample count.

        Raises:
            DataError: They cannot be read.
        """
        task = self.tasks[name]
        return task.load(
            LoadRequest(
                **self.shots_of(task),
                split=split or self.split or task.default_split,
                data=self._data_of(name),
                limit=self.limit,
                sample=self.sample,
                sample_seed=self.sample_seed,
                scan=self.scan,
                accepts=accepts,
                min_words=self.min_words,
                revision=self.revision,
                on_bad_row=self.on_bad_row,
                longest=self.longest,
            )
        )

    def shots_of(self, task: Task) -> dict[str, Any]:
        """Return the fields of a `LoadRequest` that draw solved examples for the prompts of a task."""
        return {}

    def load_tasks(self) -> dict[str, LoadedExamples]:
        """Return the examples of each task, by name.

        Raises:
            DataError: They cannot be read.
        """
        return {name: self.load(name) for name in self.tasks}

    def load_documents(self, name: str, accepts: Callable[[str], bool] | None = None) -> LoadedExamples:
        """Return the examples of a task, one a document: several queries about one share its context."""
        loaded = self.load(name, accepts=accepts)
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
