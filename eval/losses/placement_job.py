"""The folder of a search for placements: opened, resumed, and finished with a result."""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.config.placement import PlacementConfig
from eval.errors import UserError
from eval.losses.ledger import CALIBRATION, HELD_OUT, HELD_OUT_MARK, SearchText
from eval.losses.search import SearchResult, Space
from eval.losses.stability import FoldSearch
from eval.prompting.prompts import PromptBuilder
from eval.records.merging import merge_tasks, pinned, row_counts, selection
from eval.records.run_folder import RunFolder, default_output
from eval.records.schema import (
    DocumentsTask,
    FoldRecord,
    Key,
    PlacementIdentity,
    PlacementRecord,
    PlacementResult,
    PlanEntry,
    PlanLoss,
    PlanMeasurement,
    StabilityRecord,
    UnitCount,
    UnitRecord,
    unit_of,
)
from eval.reporting.perplexity_report import units_of
from eval.reporting.placement_report import describe, held_out_rows, read_placement, write_placement
from eval.runtime.jobs import Job, print_facts, settings_json
from eval.runtime.model import OpenedModel, describe_weights, resolve_plan
from eval.runtime.processes import Process
from masformer import SpanPlan
from masformer.checkpoints.open import Checkpoint
from masformer.placement import Found, Unit, frontier
from tasks import Example, LoadedExamples, Template

# Raised by hand whenever a change of the code changes what is measured.
PLACEMENT_VERSION = 1
# Names of plans that a search judges by itself.
_OWN_NAMES = r"full|local|own|found|majority|random \d+"
# Settings that may change in a folder: they choose what is measured, not what comes out.
_FREE = (
    *("local", "units", "rank", "gate", "cost_at", "both_ways", "budget", "beam", "candidates", "measure", "random"),
    *("seed", "limit", "sample", "held_out_sample", "held_out_limit", "output", "folds", "random_within"),
)


@dataclass(kw_only=True)
class PlacementJob(Job[PlacementRecord, PlanLoss]):
    """The folder of a search.

    Attributes:
        config: Settings of the search.
        data: Documents by task; held-out ones have a mark after the task's name.
        texts: Documents as tokens.
        space: Placements, and the budget they must keep.
        judged: Plans of `--measure` by name.
    """

    config: PlacementConfig
    data: Mapping[str, LoadedExamples]
    texts: Sequence[SearchText]
    space: Space
    judged: Mapping[str, SpanPlan]

    def start(self, model: OpenedModel, process: Process, argv: Sequence[str]) -> Mapping[Key, PlanLoss]:
        """Write what is about to be done, and return what is measured already."""
        existing, config = self.existing(), self.config
        process.wait()  # all have read the folder before the main process writes
        if process.is_main:
            self.change(world_size=process.count)
            self.add_session(process, argv, quantization=model.checkpoint.quantization)
            examples, damaged = self.merged_examples(self.data)
            self.write(examples)
            counts = {part: sum(text.part == part for text in self.texts) for part in (CALIBRATION, HELD_OUT)}
            num_calibrating, num_held_out = counts[CALIBRATION], counts[HELD_OUT]
            print_facts(
                {
                    "model": f"{model.record.label}: {describe_weights(model.checkpoint)}, {model.dtype}",
                    "search": f"{config.units}, budget {self.space.budget}, the others {self.space.local}; ranked by "
                    f"{config.rank}",
                    "data": f"{num_calibrating} documents to calibrate, {num_held_out} held out, "
                    f"{config.maxlen} tokens",
                    "losses": f"of tokens {config.first} to {config.maxlen - 1}",
                    "machine": process.describe(),
                    "folder": f"{self.folder.path}: {len(existing.lines)} measurements are there",
                    "": [existing.describe(), damaged],
                }
            )
        return existing.lines

    def finish(
        self,
        result: SearchResult | None,
        folds: FoldSearch | None,
        judged: Mapping[str, SpanPlan],
        seconds: float,
        num_layers_run: int,
    ) -> None:
        """Merge the journals, write the result, and print it."""
        keys = list(self.folder.read_journal(PlanLoss).lines)
        lines, _ = self.folder.merge_journal(PlanLoss, keys, set())
        self.end(seconds=seconds, num_layers_run=num_layers_run)
        self.change(checksums=True)  # now that the lines of earlier versions have theirs
        self.folder.write_json("run.json", self.record)
        measurements = [self._measurement(line) for line in lines if line.negative_log_likelihood is not None]
        self.folder.write_lines("measurements.jsonl", measurements)
        held_out = {(text.task, text.id) for text in self.texts if text.part == HELD_OUT}
        content = read_placement(self.folder) if result is None else self._content(result, folds)
        content = replace(
            content,
            held_out=held_out_rows(
                {name: (str(plan), self.space.cost(plan)) for name, plan in judged.items()},
                [line for line in measurements if (line.task, line.id) in held_out],
                units_of(self.folder.read_examples()),
            ),
            held_out_cost_at=self.space.num_tokens,
        )
        write_placement(self.folder, self.record, content)
        print("\n" + describe(content) + f"\nfolder: {self.folder.path}")

    def _measurement(self, line: PlanLoss) -> PlanMeasurement:
        assert line.negative_log_likelihood is not None
        return PlanMeasurement(
            part=HELD_OUT if line.task.endswith(HELD_OUT_MARK) else CALIBRATION,
            task=line.task,
            id=line.id,
            plan=line.template,
            negative_log_likelihood=line.negative_log_likelihood,
            num_tokens=self.config.maxlen - self.config.first,
        )

    def _content(self, result: SearchResult, folds: FoldSearch | None) -> PlacementResult:
        return PlacementResult(
            units=self.config.units,
            local=str(self.space.local),
            budget=str(self.space.budget),
            rank=self.config.rank,
            cost_at=self.space.num_tokens,
            scores=[
                UnitRecord(
                    unit=_unit_name(score.unit),
                    layer=score.unit[0],
                    head=score.unit[1],
                    only_full=score.only_full,
                    only_local=score.only_local,
                )
                for score in result.scores
            ],
            found=[_entry(one) for one in result.found],
            frontier=[_entry(one) for one in frontier(result.found)],
            chosen=_entry(result.chosen),
            stability=None if folds is None else _stability(folds, self.space),
        )

    @property
    def num_in_folds(self) -> list[int]:
        """Return the documents of each fold."""
        return [sum(text.fold == fold for text in self.texts) for fold in range(self.config.folds or 0)]


def open_placement(config: PlacementConfig, model: OpenedModel) -> PlacementJob:
    """Return the folder of a search, new or to be resumed; writes nothing.

    Args:
        config: Settings of the search.
        model: What is measured.

    Raises:
        UserError: The budget or the span leaves nothing to search, no document is long enough, or the folder holds
            another search.
    """
    space = Space(config, model.checkpoint.config)
    judged = _judged(config.measure, model.checkpoint)
    data = _load(config)
    folder = RunFolder(config.output or default_output("placement", config, _FREE))
    saved = folder.read_record(PlacementRecord)
    builder = PromptBuilder(model.checkpoint.tokenizer, Template(text="{context}", chat=False))
    builder.check()
    for label, source in data.items():
        builder.check_letters(label, [one.context for one in source.examples])
    texts = [text for label, source in data.items() for text in _texts(label, source.examples, builder, config.maxlen)]
    texts = _without_calibrated(texts, folder)
    if config.folds is not None:
        texts = _in_folds(texts, {label: source.examples for label, source in data.items()}, config.folds)
    contexts = {(label, one.id): one.context for label, source in data.items() for one in source.examples}
    for text in texts:
        model.checkpoint.check_text(contexts[text.task, text.id], text.where)
        model.checkpoint.check_tokens(text.token_ids, text.where)
    wanted = {CALIBRATION: config.rank != "none", HELD_OUT: config.held_out_split is not None}
    for part in (part for part, is_wanted in wanted.items() if is_wanted):
        if not any(text.part == part for text in texts):
            raise UserError(f"no {part} document has {config.maxlen} tokens; lower --maxlen, or raise the limit")
    threads = model.process.threads
    identity = PlacementIdentity(
        model=model.record,
        dtype=model.dtype,
        maxlen=config.maxlen,
        score_from=config.first,
        trust_remote_code=config.trust_remote_code,
        threads=threads,
        placement_version=PLACEMENT_VERSION,
    )
    tasks = {label: _task_record(config, label, source) for label, source in data.items()}
    folder.check_accepts(saved, identity, tasks)
    record = PlacementRecord(
        config=settings_json(config, dtype=model.dtype, output=folder.path, threads=threads),
        plan_description="untouched",
        world_size=saved.world_size if saved else None,
        identity=identity,
        tasks=merge_tasks(saved.tasks if saved else {}, tasks),
        sessions=list(saved.sessions) if saved else [],
        checksums=saved.checksums if saved else True,
    )
    return PlacementJob(
        folder=folder,
        line=PlanLoss,
        saved=saved,
        record=record,
        config=config,
        data=data,
        texts=texts,
        space=space,
        judged=judged,
    )


def _judged(plans: Sequence[str], checkpoint: Checkpoint) -> dict[str, SpanPlan]:
    """Return plans to judge by name: their text, or for a file its name, or its folder's where all are alike."""
    judged: dict[str, SpanPlan] = {}
    for text in plans:
        file = Path(text)
        name = text if file.suffix != ".json" else file.parent.name if file.name == "plan.json" else file.stem
        if name in judged or (name != text and re.fullmatch(_OWN_NAMES, name)):
            raise UserError(f"--measure {text}: another plan is called '{name}' already; give the file another name")
        plan = resolve_plan(text, checkpoint, keeps_full=True)
        if plan is None:
            raise UserError(f"--measure {text}: no span describes what this model attends to")
        judged[name] = plan
    return judged


def _without_calibrated(texts: Sequence[SearchText], folder: RunFolder) -> list[SearchText]:
    """Return the documents without held-out ones that calibrate, now or in the folder's earlier searches."""
    calibrating = {tuple(text.token_ids) for text in texts if text.part == CALIBRATION}
    keys = folder.read_journal(PlanLoss).lines
    names = {(task, id) for task, _, id, _ in keys if not task.endswith(HELD_OUT_MARK)}
    return [
        text
        for text in texts
        if text.part == CALIBRATION
        or (tuple(text.token_ids) not in calibrating and (text.task.removesuffix(HELD_OUT_MARK), text.id) not in names)
    ]


def _in_folds(texts: Sequence[SearchText], examples: Mapping[str, Sequence[Example]], count: int) -> list[SearchText]:
    """Return the documents, each calibrating one in a fold by the digest of its name.

    Documents of a cluster stay together, and the numbers of clusters, or of documents in none, differ by one at most.

    Raises:
        UserError: There are fewer than folds.
    """
    units = {
        (task, one.id): (task, *unit_of(one.document_id, one.cluster_id))
        for task, of_task in examples.items()
        for one in of_task
    }
    found = {units[text.task, text.id] for text in texts if text.part == CALIBRATION}
    if len(found) < count:
        raise UserError(
            f"--folds {count} needs at least {count} calibration documents, or clusters of them, that have --maxlen "
            f"tokens, and there are {len(found)}; lower it, or raise --limit or --sample"
        )
    order = sorted(found, key=lambda unit: (hashlib.sha256(unit[-1].encode()).hexdigest(), unit))
    folds = {unit: index % count for index, unit in enumerate(order)}
    return [
        replace(text, fold=folds[units[text.task, text.id]]) if text.part == CALIBRATION else text for text in texts
    ]


def _load(config: PlacementConfig) -> dict[str, LoadedExamples]:
    """Return the documents to calibrate on by task, and those to judge on by task with a mark."""
    loaded = {} if config.rank == "none" else {name: config.load_documents(name) for name in config.tasks}
    if config.held_out_split is not None:
        others = config.judging
        loaded |= {f"{name}{HELD_OUT_MARK}": others.load_documents(name) for name in others.tasks}
    return loaded


def _texts(label: str, examples: Sequence[Example], builder: PromptBuilder, maxlen: int) -> list[SearchText]:
    """Return the documents that fill the length."""
    part = HELD_OUT if label.endswith(HELD_OUT_MARK) else CALIBRATION
    cut = [(example.id, builder.document(example.context)[:maxlen]) for example in examples]
    return [SearchText(part=part, task=label, id=id, token_ids=ids) for id, ids in cut if len(ids) == maxlen]


def _task_record(config: PlacementConfig, label: str, source: LoadedExamples) -> DocumentsTask:
    own = config.judging if label.endswith(HELD_OUT_MARK) else config
    return DocumentsTask(
        version=own.tasks[label.removesuffix(HELD_OUT_MARK)].version,
        source=pinned(source.provenance),
        rows=row_counts(source),
        split=own.split,
        limit=own.limit,
        **selection(own),
        min_words=config.min_words,
        maxlen=[config.maxlen],
    )


def _entry(one: Found) -> PlanEntry:
    return PlanEntry(
        text=str(one.plan),
        plan=one.plan.to_json(),
        units=[_unit_name(unit) for unit in one.units],
        loss=one.loss,
        perplexity=math.exp(one.loss),
        cost=dict(one.cost),
    )


def _stability(folds: FoldSearch, space: Space) -> StabilityRecord:
    majority = folds.majority
    return StabilityRecord(
        folds=[
            FoldRecord(num_documents=count, chosen=_entry(result.chosen))
            for count, result in zip(folds.num_documents, folds.results, strict=True)
        ],
        jaccard=folds.jaccard,
        median_jaccard=statistics.median(folds.jaccard),
        chance_jaccard=folds.chance_jaccard(len(space.units)),
        units=[UnitCount(unit=_unit_name(unit), num_folds=count) for unit, count in folds.counts.items()],
        majority=None if majority is None else _entry(majority),
        is_within_budget=None if majority is None else space.fits(majority.plan, space.budget),
    )


def _unit_name(unit: Unit) -> str:
    layer, head = unit
    return str(layer) if head is None else f"{layer}.{head}"
