"""The folder of a measurement of perplexity: opened, resumed, and finished with scores and a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tqdm import tqdm

from eval.config.engine import FREE_ENGINE_OPTIONS
from eval.config.perplexity import PerplexityConfig
from eval.errors import UserError
from eval.losses.meter import Meter
from eval.losses.readings import Reading, Window, check_references, read_document, read_references
from eval.prompting.chat import ChatSettings, ChatTemplate
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
from eval.runtime.jobs import Job, print_facts, settings_json, template_clock
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
        builders: Turn texts of each task into tokens.
    """

    config: PerplexityConfig
    data: Mapping[str, LoadedExamples]
    builders: Mapping[str, PromptBuilder]

    @property
    def windows(self) -> list[Window]:
        """Return what this run measures."""
        return [
            Window(task=task, example=example, maxlen=maxlen, template=self._template(task))
            for task, loaded in self.data.items()
            for example in loaded.examples
            for maxlen in self.record.tasks[task].maxlen
        ]

    def _template(self, task: str) -> str:
        return self.record.tasks[task].template or TEMPLATE

    def reading(self, window: Window) -> Reading:
        """Return what is read for a window."""
        if self.record.identity.of == "references":
            return read_references(window, self.builders[window.task])
        return read_document(window, self.builders[window.task], self.record.identity)

    def start(self, meter: Meter, argv: Sequence[str]) -> list[Window]:
        """Write what is about to be done, and return what is missing."""
        existing, process = self.existing(), meter.process
        windows = self.windows
        missing = [window for window in windows if window.key not in existing.lines]
        process.wait()  # all have read the folder before the main process writes
        if process.is_main:
            if missing:
                self.change(world_size=process.count)
                remarks = {"quantization": meter.quantization, "engine": meter.server}
                self.add_session(process, argv, num_to_measure=len(missing), **remarks)
            examples, damaged = self.merged_examples(self.data)
            self.write(examples)
            num_known, tokens = len(windows) - len(missing), self.record.identity.tokens
            print_facts(
                {
                    "model": f"{meter.model.label}: {meter.describe_model()}, {meter.dtype}",
                    "engine": meter.remarks,
                    "spans": self.record.plan_description,
                    "task": [
                        f"{name}: {len(loaded.examples)} "
                        + (f"documents, {tokens} tokens of each at most" if tokens else "examples, their references")
                        for name, loaded in self.data.items()
                    ],
                    "lengths": ", ".join(map(str, self.config.maxlen)),
                    "machine": process.describe(),
                    "folder": f"{self.folder.path}: {num_known} of {len(windows)} measurements are there",
                    "": [existing.describe(), damaged],
                }
            )
        return missing

    def shown(self, lines: Iterator[DocumentLoss], total: int, process: Process) -> Iterator[DocumentLoss]:
        """Yield lines; the main process has a bar."""
        bar = tqdm(
            total=total,
            desc="measuring",
            disable=None if process.is_main else True,  # none where there is no terminal
            bar_format="{desc} {n}/{total} |{bar:12}| {elapsed} elapsed, {remaining} left{postfix}",
            dynamic_ncols=True,
        )
        with bar:
            for line in lines:
                yield line
                bar.set_postfix_str(f"{line.id} at {line.maxlen}", refresh=False)
                bar.update()

    def finish(self) -> None:
        """Merge the journals, score, write the report, and print its tables."""
        examples = self.folder.read_examples()
        order: list[Key] = [
            (line.task, self._template(line.task), line.id, maxlen)
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


def open_perplexity(config: PerplexityConfig, meter: Meter) -> PerplexityJob:
    """Return the folder of a measurement, new or to be resumed; writes nothing.

    Args:
        config: Settings of the measurement.
        meter: What measures.

    Raises:
        UserError: The folder holds another measurement, or no document is long enough.
    """
    folder = RunFolder(config.output or default_output("perplexity", config, free_options(config)))
    builders, date = _builders(config, meter, folder)
    data = _load(config, builders)
    meter.check_tokens(_texts(config, data, builders))
    saved = folder.read_record(PerplexityRecord)
    identity = PerplexityIdentity(
        model=meter.model,
        plan=meter.plan,
        dtype=meter.dtype,
        tokens=_num_tokens(config, folder, saved),
        of=None if config.of == "documents" else "references",
        trust_remote_code=config.trust_remote_code,
        threads=meter.threads,
        perplexity_version=PERPLEXITY_VERSION,
        stride=config.stride,
        token_losses=config.token_losses,
        engine=meter.identity,
    )
    tasks = {name: _task_record(config, name, loaded, builders[name]) for name, loaded in data.items()}
    folder.check_accepts(saved, identity, tasks)
    resolved = {"dtype": meter.dtype, "output": folder.path, "threads": meter.process.threads}
    settings = settings_json(config, **resolved, tokens=identity.tokens)
    record = PerplexityRecord(
        config={name: value for name, value in settings.items() if name not in config.unknown_to_0_1},
        plan_description=meter.plan_description,
        world_size=saved.world_size if saved else None,
        identity=identity,
        tasks=merge_tasks(saved.tasks if saved else {}, tasks),
        sessions=list(saved.sessions) if saved else [],
        template_date=date,
        checksums=saved.checksums if saved else True,
    )
    return PerplexityJob(
        folder=folder, line=DocumentLoss, saved=saved, record=record, config=config, data=data, builders=builders
    )


def _builders(config: PerplexityConfig, meter: Meter, folder: RunFolder) -> tuple[dict[str, PromptBuilder], str | None]:
    """Return what makes tokens of the texts of each task, and what the clock of the chat template shows."""
    if config.of == "documents":
        builder = PromptBuilder(meter.tokenizer, Template(text="{context}", chat=False))
        builder.check()
        return dict.fromkeys(config.tasks, builder), None
    templates = {name: task.templates[task.default_template] for name, task in config.tasks.items()}
    chat = ChatTemplate(meter.tokenizer, ChatSettings())
    has_clock = any(template.chat for template in templates.values()) and chat.uses_clock
    saved = folder.read_record(PerplexityRecord)
    date = meter.process.broadcast(template_clock(has_clock, None, saved, folder.path))
    settings = ChatSettings(date=date)
    builders = {name: PromptBuilder(meter.tokenizer, template, settings) for name, template in templates.items()}
    for builder in builders.values():
        builder.check()
    return builders, date


def _load(config: PerplexityConfig, builders: Mapping[str, PromptBuilder]) -> dict[str, LoadedExamples]:
    """Return what is read of each task: documents once, or examples with a reference."""
    least, data = config.min_tokens, {}
    for name, builder in builders.items():
        if config.of == "references":
            data[name] = config.load(name)
            check_references(name, data[name].examples, builder, config.maxlen[0])
        else:
            accepts = None if least is None else partial(_has_tokens, builder, least)
            data[name] = config.load_documents(name, accepts)
        builder.check_letters(name, [one.context for one in data[name].examples])
    return data


def _has_tokens(builder: PromptBuilder, least: int, context: str) -> bool:
    return len(builder.document(context)) >= least


def _texts(
    config: PerplexityConfig, data: Mapping[str, LoadedExamples], builders: Mapping[str, PromptBuilder]
) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Yield the name of each text that is read, the text, and its tokens."""
    for name, loaded in data.items():
        builder = builders[name]
        for one in loaded.examples:
            where = f"document '{one.id}' of task '{name}'"
            if config.of == "documents":
                yield where, one.context, builder.document(one.context)
                continue
            parts = builder.parts(one)
            yield where, one.context, (*parts.prefix, *parts.context, *parts.suffix)
            for text in (one.query or "", *one.references):
                yield f"query or reference of {where}", text, builder.answer(text)


def _num_tokens(config: PerplexityConfig, folder: RunFolder, saved: PerplexityRecord | None) -> int | None:
    """Return how many tokens of each document are read; None for references."""
    if config.of == "references":
        return None
    tokens = config.tokens or (saved.identity.tokens if saved else None) or config.maxlen[-1]
    if saved and tokens < config.maxlen[-1]:
        raise UserError(
            f"output folder {folder.path} reads {tokens} tokens a document, fewer than maxlen {config.maxlen[-1]}; "
            "give another folder with --output (--tokens N leaves room for lengths up to N)"
        )
    return tokens


def free_options(config: PerplexityConfig) -> tuple[str, ...]:
    """Return the settings that are no part of a folder's name."""
    return (*_FREE, *FREE_ENGINE_OPTIONS, *config.unknown_to_0_1)


def _task_record(config: PerplexityConfig, name: str, loaded: LoadedExamples, builder: PromptBuilder) -> PerplexityTask:
    is_prompted = config.of == "references"
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
        template=config.tasks[name].default_template if is_prompted else None,
        prompt_sha256=builder.sha256 if is_prompted else None,
        maxlen=list(config.maxlen),
    )
