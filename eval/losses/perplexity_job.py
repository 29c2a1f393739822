"""The folder of a measurement of perplexity: opened, resumed, and finished with scores and a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.config.perplexity import PerplexityConfig
from eval.errors import UserError
from eval.losses.windows import Window
from eval.prompting.prompts import PromptBuilder
from eval.records.merging import merge_documents, merge_tasks, pinned, row_counts, selection
from eval.records.read_run import notes_on_tasks, repeated_documents
from eval.records.run_folder import RunFolder, default_output
from eval.records.schema import (
    DocumentLoss,
    Key,
    PerplexityIdentity,
    PerplexityRecord,
    PerplexityScores,
    PerplexityTask,
)
from eval.reporting.perplexity_report import TEMPLATE, print_perplexity, render_perplexity_report, score_perplexity
from eval.runtime.jobs import Job, print_facts, settings_json
from eval.runtime.model import OpenedModel, describe_weights
from eval.runtime.processes import Process
from tasks import LoadedExamples, Template

# Raised by hand whenever a change of the code changes what is measured.
PERPLEXITY_VERSION = 1
# Settings that may change in a folder.
_FREE = ("maxlen", "limit", "sample", "output")


@dataclass(kw_only=True)
class PerplexityJob(Job[PerplexityRecord, DocumentLoss]):
    """The folder of a measurement.

    Attributes:
        config: Settings of the measurement.
        data: Documents by task.
        builder: Turns a text into tokens.
    """

    config: PerplexityConfig
    data: Mapping[str, LoadedExamples]
    builder: PromptBuilder

    @property
    def windows(self) -> list[Window]:
        """Return what this run measures."""
        return [
            Window(task=task, example=example, maxlen=maxlen)
            for task, loaded in self.data.items()
            for example in loaded.examples
            for maxlen in self.record.tasks[task].maxlen
        ]

    def start(self, model: OpenedModel, process: Process, argv: Sequence[str]) -> list[Window]:
        """Write what is about to be done, and return what is missing."""
        existing = self.existing()
        windows = self.windows
        missing = [window for window in windows if window.key not in existing.lines]
        process.wait()  # all have read the folder before the main process writes
        if process.is_main:
            if missing:
                self.change(world_size=process.count)
                self.add_session(process, argv, num_to_measure=len(missing), quantization=model.checkpoint.quantization)
            examples, damaged = self.merged_examples(self.data)
            self.write(examples)
            num_known, tokens = len(windows) - len(missing), self.record.identity.tokens
            print_facts(
                {
                    "model": f"{model.record.label}: {describe_weights(model.checkpoint)}, {model.dtype}",
                    "spans": self.record.plan_description,
                    "task": [
                        f"{name}: {len(loaded.examples)} documents, {tokens} tokens of each at most"
                        for name, loaded in self.data.items()
                    ],
                    "lengths": ", ".join(map(str, self.config.maxlen)),
                    "machine": process.describe(),
                    "folder": f"{self.folder.path}: {num_known} of {len(windows)} measurements are there",
                    "": [existing.describe(), damaged],
                }
            )
        return missing

    def finish(self) -> None:
        """Merge the journals, score, write the report, and print its tables."""
        examples = self.folder.read_examples()
        order: list[Key] = [
            (line.task, TEMPLATE, line.id, maxlen)
            for line in examples
            for maxlen in self.record.tasks[line.task].maxlen
        ]
        lines, absent = self.folder.merge_journal(DocumentLoss, order, {window.key for window in self.windows})
        self.change(checksums=True)  # now that the lines of earlier versions have theirs
        results = score_perplexity(lines, examples, self.record.identity.model.label)
        self.end()
        self.folder.write_json("run.json", self.record)
        self.folder.write_json("scores.json", PerplexityScores(results=results))
        notes = [f"Not there yet: {len(absent)} measurements of a task whose run was interrupted."] if absent else []
        notes += notes_on_tasks(self.record.tasks, Counter(one.task for one in examples))
        notes += repeated_documents(examples, merge_documents([], self.data) or [])
        self.folder.write_text("report.md", render_perplexity_report(self.record, results, notes))
        print_perplexity(self.record, results, notes)
        print(f"folder: {self.folder.path}")


def open_perplexity(config: PerplexityConfig, model: OpenedModel) -> PerplexityJob:
    """Return the folder of a measurement, new or to be resumed; writes nothing.

    Args:
        config: Settings of the measurement.
        model: What is measured.

    Raises:
        UserError: The folder holds another measurement, or no document is long enough.
    """
    builder = PromptBuilder(model.checkpoint.tokenizer, Template(text="{context}", chat=False))
    builder.check()
    least = config.min_tokens
    accepts = None if least is None else lambda context: len(builder.document(context)) >= least
    data = {name: config.load_documents(name, accepts) for name in config.tasks}
    for name, loaded in data.items():
        builder.check_letters(name, [one.context for one in loaded.examples])
    if model.checkpoint.has_tokens_beyond:
        for name, loaded in data.items():
            for one in loaded.examples:
                where = f"document '{one.id}' of task '{name}'"
                model.checkpoint.check_text(one.context, where)
                model.checkpoint.check_tokens(builder.document(one.context), where)
    folder = RunFolder(config.output or default_output("perplexity", config, _FREE))
    saved = folder.read_record(PerplexityRecord)
    tokens = config.tokens or (saved.identity.tokens if saved else None) or config.maxlen[-1]
    if saved and tokens < config.maxlen[-1]:
        raise UserError(
            f"output folder {folder.path} reads {tokens} tokens a document, fewer than maxlen {config.maxlen[-1]}; "
            "give another folder with --output (--tokens N leaves room for lengths up to N)"
        )
    threads = model.process.threads
    identity = PerplexityIdentity(
        model=model.record,
        plan=model.plan_json,
        dtype=model.dtype,
        tokens=tokens,
        trust_remote_code=config.trust_remote_code,
        threads=threads,
        perplexity_version=PERPLEXITY_VERSION,
        stride=config.stride,
        token_losses=config.token_losses,
    )
    tasks = {name: _task_record(config, name, loaded) for name, loaded in data.items()}
    folder.check_accepts(saved, identity, tasks)
    record = PerplexityRecord(
        config=settings_json(config, dtype=model.dtype, output=folder.path, threads=threads, tokens=tokens),
        plan_description=model.plan_description,
        world_size=saved.world_size if saved else None,
        identity=identity,
        tasks=merge_tasks(saved.tasks if saved else {}, tasks),
        sessions=list(saved.sessions) if saved else [],
        checksums=saved.checksums if saved else True,
    )
    return PerplexityJob(
        folder=folder, line=DocumentLoss, saved=saved, record=record, config=config, data=data, builder=builder
    )


def _task_record(config: PerplexityConfig, name: str, loaded: LoadedExamples) -> PerplexityTask:
    return PerplexityTask(
        description=config.tasks[name].description,
        version=config.tasks[name].version,
        source=pinned(loaded.provenance),
        rows=row_counts(loaded),
        split=config.split or config.tasks[name].default_split,
        limit=config.limit,
        **selection(config),
        min_tokens=config.min_tokens,
        min_words=config.min_words,
        maxlen=list(config.maxlen),
    )
