"""A run's folder: its record made of settings, data and engine; opened, and finished with scores and a report."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from io import RawIOBase
from pathlib import Path
from uuid import uuid4

from eval.config.generation import GenerationOptions
from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.backend import Backend, output_of
from eval.generation.looks import Looks, open_looks
from eval.generation.recorded_claim import claim_of
from eval.generation.requests import Requests, describe_room, make_requests
from eval.prompting.chat import ChatTemplate
from eval.prompting.prompts import PromptBuilder
from eval.records.disk import make_folder
from eval.records.journal import read_journal
from eval.records.merging import merge_documents, merge_tasks, pinned, row_counts, selection
from eval.records.read_run import gather_inputs
from eval.records.run_folder import RunFolder, keys_of
from eval.records.schema import Identity, Key, Prediction, RunRecord, Scores, TaskRecord, TemplateRecord, ThinkingRecord
from eval.records.windows import HEAD, base_of, named, window_of
from eval.reporting.score_run import has_texts, print_scores, score_run
from eval.reporting.stops import describe_look
from eval.runtime.jobs import Job, print_facts, settings_json, template_clock
from eval.runtime.processes import Process
from tasks import LoadedExamples, Task, Template
from tasks.base import DOCUMENT

# Raised by hand whenever a change of the code changes what is generated; a resumed run must have the same.
GENERATION_VERSION = 4
# Bad rows that are kept by name; all are counted.
_MAX_BAD_ROWS = 100


@dataclass(kw_only=True)
class RunJob(Job[RunRecord, Prediction]):
    """The folder of a run, and where this process writes its answers.

    Attributes:
        config: Settings of the run.
        data: Examples by task.
        token: Name of this session, the same for all its processes.
        looks: What may stop the run; None for one that answers everything.
    """

    config: RunConfig
    data: Mapping[str, LoadedExamples]
    token: str
    looks: Looks | None = None
    _journal: RawIOBase | None = None

    def requests(self, backend: Backend) -> Requests:
        """Return what is to be answered by this run, or by its shard.

        Raises:
            UserError: A query or an instruction leaves no room at the smallest length.
            CheckpointError: The model has no embedding for a token of a text.
        """
        predictions = self.folder.path / "predictions.jsonl"
        needs = self.folder.needs_checksums
        finished = {} if self.is_replaced else read_journal(Prediction, [predictions], needs_checksums=needs).lines
        stops = backend.ends.texts if backend.ends else ()
        requests = make_requests(
            self.config,
            self.data,
            self.record,
            backend.tokenizer,
            finished,
            stops,
            backend.thinking,
            is_encoded=backend.is_encoded,
        )
        backend.check(requests)
        return backend.share(requests, *self.config.shard) if self.config.shard else requests

    def start(self, requests: Requests, backend: Backend, argv: Sequence[str]) -> tuple[Requests, Path]:
        """Write what is about to be done; return the requests without those answered, and a folder to share the work.

        Args:
            requests: All requests.
            backend: What will answer them.
            argv: Arguments of the command line.
        """
        process = backend.process
        existing = self.existing(requests.fingerprints)
        requests = requests.without(existing)
        if self.looks is not None:
            requests = self.looks.begin(requests, existing.lines)
            self.change(until=self.looks.state)
        shared = self.folder.path / "journal" / f"claims-{self.token}"
        process.wait()  # all have read the folder before the main process writes
        if process.is_main:
            if self.is_replaced:
                self.folder.clear()
            examples, damaged = self.merged_examples(self.data)
            num_to_generate = requests.num_missing if self.config.generate else 0
            if num_to_generate:
                self.change(world_size=process.count)
            if requests.num_missing:
                remarks = {"quantization": backend.quantization, "engine": backend.server}
                self.add_session(process, argv, num_to_generate=num_to_generate, **remarks)
            if not self.config.generate:
                self.end()
            self.write(examples)
            if documents := merge_documents(self.folder.read_documents(), self.data):
                self.folder.write_documents(documents)
            if num_to_generate:
                make_folder(self.folder.path, f"journal/{shared.name}")
            self.introduce(requests, backend, [existing.describe(), damaged])
        process.wait()
        return requests, shared

    def introduce(self, requests: Requests, backend: Backend, dropped: Sequence[str] = ()) -> None:
        """Print what is about to be run, on what."""
        config, process = self.config, backend.process
        tasks = []
        for name, loaded in self.data.items():
            tasks.append(f"{name}: {len(loaded.examples)} examples, {_describe_source(loaded)}")
            if loaded.bad_rows:
                tasks.append(f"  {len(loaded.bad_rows)} bad rows skipped, the first: {loaded.bad_rows[0]}")
        num_keys = len(requests.keys)
        part, num_parts = config.shard or (1, 1)
        print_facts(
            {
                "model": f"{backend.model.label}: {backend.describe_model()}, {backend.dtype}",
                "engine": backend.remarks,
                "spans": self.record.plan_description,
                "ends": backend.ends.describe() if backend.ends else "",
                "task": tasks,
                "room": [*config.describe_smaller_rooms(), *describe_room(requests)],
                "lengths": ", ".join(map(str, config.maxlen)),
                "machine": process.describe(),
                "shard": f"{part} of {num_parts}: {num_keys} of {len(requests.fingerprints)} predictions"
                if config.shard
                else "",
                "folder": f"{self.folder.path}: {num_keys - requests.num_missing} of {num_keys} predictions are there",
                "": dropped,
            }
        )

    def print_forecast(self, requests: Requests, backend: Backend) -> None:
        """Print what would be run, and what it would take."""
        if backend.process.is_main:
            requests = requests.without(self.existing(requests.fingerprints))
            self.introduce(requests, backend)
            print(f"\n{backend.forecast(requests)}")

    def parts(self, requests: Requests, shared: Path, process: Process) -> Iterator[tuple[Requests, Path]]:
        """Yield what is to be answered, with a folder to share that work: all at once, or group by group.

        Args:
            requests: All requests of the session.
            shared: Empty folder of the session.
            process: This process.
        """
        if self.looks is None:
            if requests.num_missing:
                yield requests, shared
            return
        expected = requests.fingerprints

        def read() -> Mapping[Key, Prediction]:
            return self.folder.read_journal(Prediction, expected).lines

        for number, part in enumerate(self.looks.groups(requests, process, read)):
            if process.is_main:
                self.change(until=self.looks.state)
                self.folder.write_json("run.json", self.record)
                if number:
                    print(describe_look(self.looks.state), flush=True)
                make_folder(self.folder.path, f"journal/{shared.name}-{number}")
            yield part, shared.with_name(f"{shared.name}-{number}")

    def append(self, prediction: Prediction, process: Process) -> None:
        """Write a prediction to the disk, in the journal of this process."""
        if self._journal is None:
            self._journal = self.folder.open_journal(f"{process.index:05}-{self.token}")
        self.write_line(self._journal, prediction, process)

    def finish(self, requests: Requests, process: Process) -> None:
        """Merge what all processes have written, score it, and report, in the main process."""
        if self._journal is not None:
            self._journal.close()
        process.wait()
        if not process.is_main:
            return
        required = requests
        if self.looks is not None:
            required = self.looks.answered(requests)
            self.change(until=self.looks.state)
        self.end()
        scored = finish_run(self.folder, self.record, set(required.keys), requests.fingerprints)
        if scored is not None and self.config.report_to:
            from eval.reporting.trackers import log_scores, start_trackers

            accelerator = process.accelerator  # type: ignore[attr-defined]  # trackers come with it
            start_trackers(accelerator, "masformer-eval", self.record.config)
            log_scores(accelerator.trackers, self.record, *scored)


def open_run(config: RunConfig, data: Mapping[str, LoadedExamples], backend: Backend) -> RunJob:
    """Return the folder of a run, new or to be resumed; writes nothing.

    Args:
        config: Settings of the run.
        data: Examples by task.
        backend: What answers.

    Raises:
        UserError: The folder holds another run.
    """
    folder = RunFolder(output_of(config), advice="; --overwrite begins anew")
    saved = folder.read_record(RunRecord, is_replaced=config.overwrite)
    before = None if config.overwrite else saved
    record = run_record(config, data, backend, before, folder.path)
    until = before.until if before else None
    record = replace(record, claim=claim_of(config, folder, before), until=until)
    folder.check_accepts(before, record.identity, {name: record.tasks[name] for name in data})
    template = _requested(config, next(iter(config.tasks.values())), backend)[0]
    return RunJob(
        looks=open_looks(config, record, data, folder, before, template),
        folder=folder,
        line=Prediction,
        saved=saved,
        record=replace(record, tasks=merge_tasks(before.tasks if before else {}, record.tasks)),
        is_replaced=config.overwrite,
        config=config,
        data=data,
        token=backend.process.broadcast(uuid4().hex[:8]),
    )


def run_record(
    config: RunConfig, data: Mapping[str, LoadedExamples], backend: Backend, saved: RunRecord | None, output: Path
) -> RunRecord:
    """Return the `run.json` of this session's settings, with the sessions of the saved one."""
    generation = {one.name: getattr(config, one.name) for one in fields(GenerationOptions) if one.name != "seed"}
    if config.num_samples == 1:
        del generation["num_samples"]  # as in records of version 0.1
    settings = settings_json(config, dtype=backend.dtype, output=output, threads=backend.process.threads)
    ends, thinking = backend.ends, backend.thinking
    chat = ChatTemplate(backend.tokenizer, config.chat_settings())
    uses_chat = any(
        task.templates[base_of(one)].chat for task in config.tasks.values() for one in _requested(config, task, backend)
    ) or any(one.chat for task in (saved.tasks if saved else {}).values() for one in task.templates.values())
    if config.thinking != "auto" and not uses_chat:
        raise UserError(
            f"--thinking {config.thinking} is of the chat template, and all prompts of this run do without it; leave "
            "it out, or give a --template that is not plain"
        )
    has_clock = uses_chat and chat.uses_clock
    date = backend.process.broadcast(template_clock(has_clock, config.template_date, saved, output))
    return RunRecord(
        config={name: value for name, value in settings.items() if name not in config.unknown_to_0_1},
        plan_description=backend.plan_description,
        world_size=saved.world_size if saved else None,
        identity=Identity(
            model=backend.model,
            plan=backend.plan,
            dtype=backend.dtype,
            truncation=config.truncation,
            trust_remote_code=config.trust_remote_code,
            threads=config.threads,
            seed=config.seed,
            generation=generation,
            generation_version=GENERATION_VERSION,
            engine=backend.identity,
            turn_ends=list(ends.added) if ends and ends.added else None,
            thinking=None
            if thinking is None
            else ThinkingRecord(start=thinking.start, end=thinking.end, max_tokens=thinking.max_tokens),
        ),
        tasks={name: _task_record(config, name, data[name], backend, saved, date) for name in data},
        sessions=list(saved.sessions) if saved else [],
        grouping=backend.grouping(saved.grouping if saved else None),
        ends={name: list(sources) for name, sources in ends.sources.items()} if ends else None,
        template_date=date,
        # Where thoughts have a room of their own, texts hold none of them.
        think_end_token=None if thinking else config.think_end_token,
        checksums=saved.checksums if saved else True,
    )


def _requested(config: RunConfig, task: Task, backend: Backend) -> Sequence[str]:
    """Return the names of the templates of a session."""
    templates = config.template or (DOCUMENT if backend.is_encoded else task.default_template,)
    return [named(template, window) for window in config.window for template in templates]


def _task_record(
    config: RunConfig, name: str, loaded: LoadedExamples, backend: Backend, saved: RunRecord | None, date: str | None
) -> TaskRecord:
    """Return what `run.json` says about a task; templates that the folder has already are among the requested ones."""
    task = config.tasks[name]
    before = saved.tasks[name].templates if saved and name in saved.tasks else {}
    lost = [template for template in map(base_of, before) if template not in task.templates]
    if lost:
        raise UserError(
            f"the output folder has template '{lost[0]}' of task '{name}', which the task file no longer has; put it "
            "back, or give another folder with --output"
        )
    requested = _requested(config, task, backend)
    templates = list(dict.fromkeys([*before, *requested]))
    chat, tokenizer, is_framed = config.chat_settings(date), backend.tokenizer, backend.is_encoded
    builders = {
        template: PromptBuilder(tokenizer, task.templates[template], chat, shots=loaded.shots, is_framed=is_framed)
        for template in dict.fromkeys(map(base_of, templates))
    }
    for builder in builders.values():
        builder.check()
    return TaskRecord(
        description=task.description,
        version=task.version,
        licence=task.licence,
        source=pinned(loaded.provenance),
        rows=row_counts(loaded) | {"bad": list(loaded.bad_rows[:_MAX_BAD_ROWS])},
        split=config.split or task.default_split,
        shots=config.describe_shots(loaded, task),
        templates={
            template: _template_record(task.templates[base_of(template)], builders[base_of(template)], template)
            for template in templates
        },
        profile=config.profile or task.profile,
        scores_first_line=task.scores_first_line,
        max_new_tokens=config.max_new_tokens or task.max_new_tokens,
        stop=list(task.stop) or None,
        limit=config.limit,
        **selection(config),
        min_words=config.min_words,
        maxlen=list(config.maxlen),
    )


def _template_record(template: Template, builder: PromptBuilder, name: str) -> TemplateRecord:
    window = window_of(name)
    return TemplateRecord(
        text=template.text,
        chat=template.chat,
        system=template.system,
        prompt_sha256=builder.sha256,
        truncation=template.truncation,
        window=None if window == HEAD else window,
    )


def finish_run(
    folder: RunFolder, record: RunRecord, required: Container[Key], expected: Mapping[Key, str] | None = None
) -> tuple[Scores, list[Path]] | None:
    """Merge the journals, score, write and print the reports, and return scores and plots; of a shard, only merge.

    Args:
        folder: Folder of the run, locked.
        record: The `run.json` to write.
        required: Predictions that must be there.
        expected: Fingerprints by key.

    Raises:
        UserError: A prediction that must be there is not.
    """
    examples = folder.read_examples()
    lines, _ = folder.merge_journal(Prediction, keys_of(record, examples), required, expected)
    record = replace(record, checksums=True)  # now that the lines of earlier versions have theirs
    folder.write_json("run.json", record)
    if shard := record.config.get("shard"):
        part, num_parts = shard
        print(
            f"\nshard {part} of {num_parts} is done: {len(lines)} predictions. Once all parts are done:\n"
            f"python eval/merge.py FOLDER_1 ... FOLDER_{num_parts} --output MERGED\nfolder: {folder.path}"
        )
        return None
    inputs = gather_inputs(folder.path, record, {line.key: line for line in lines}, examples, folder.read_documents())
    scores, plots = score_run(folder, inputs, with_texts=has_texts(folder.path, record))
    print_scores(folder, inputs, scores)
    return scores, plots


def _describe_source(loaded: LoadedExamples) -> str:
    known = loaded.provenance
    pin = known.get("revision") or known.get("version") or f"sha256 {str(known.get('sha256'))[:12]}"
    return f"{known['kind']} {known['name']}, {pin}"
