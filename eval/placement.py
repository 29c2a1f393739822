"""Which layers, or which key/value heads, need full attention: a search on calibration documents, judged on others.

accelerate launch eval/placement.py --task aclsum --split validation --limit 3 --maxlen 4096 --budget layers=4

What is measured goes to the folder line by line: the loss of one document under one plan. A run that was killed
measures what is missing, and another budget or way of searching in the same folder measures what is new.
"""

from __future__ import annotations

import math
import os
import random
import re
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator

from eval.config.placement import PlacementConfig
from eval.errors import UserError
from eval.prompting.prompts import PromptBuilder
from eval.records.journal import Key, append_line
from eval.records.record import default_output, merge_examples, merge_record
from eval.records.run_folder import RunFolder
from eval.reporting.placement_report import describe, held_out_rows, read_placement, write_placement
from eval.runtime.model import TORCH_DTYPES, check_positions, default_dtype, describe_weights, resolve_plan
from eval.runtime.session import describe_session, now, run_script, set_threads, start_processes
from masformer import LayerSpan, PlanError, SpanPlan, num_layers
from masformer.checkpoints.open import Checkpoint, CheckpointError, open_checkpoint
from masformer.convert import num_kv_heads
from masformer.placement import (
    Budget,
    Found,
    Placements,
    PlanMeter,
    Unit,
    UnitScore,
    beam_search,
    frontier,
    gate_gradients,
    ranking,
    scan,
    scores_of_gates,
)
from tasks import Example, LoadedExamples, Template

# Raised by hand whenever a change of the code changes what is measured.
PLACEMENT_VERSION = 1
# In the place of a plan's text in the journal.
_GATES = "gradients of gates at"
# After the name of a task whose documents judge.
_HELD_OUT = ", held out"
# Draws for each random placement; of few units there may be no other.
_DRAWS_A_PLAN = 50
# Names of plans that a search judges by itself.
_OWN_NAMES = r"full|local|own|found|random \d+"
# Settings that may change in a folder: they choose what is measured, not what comes out.
_FREE = (
    *(
        "local",
        "units",
        "rank",
        "gate",
        "cost_at",
        "both_ways",
        "budget",
        "beam",
        "candidates",
        "measure",
        "random",
        "seed",
    ),
    *("limit", "held_out_limit", "output"),
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document that is measured.

    Attributes:
        part: `calibration` or `held-out`.
        task: Label of its task in the folder.
        id: Of the example.
        token_ids: Its first `maxlen` tokens.
    """

    part: str
    task: str
    id: str
    token_ids: Sequence[int]

    def key(self, plan: str) -> Key:
        return self.task, plan, self.id, len(self.token_ids)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A search whose settings, data and folder have been checked."""

    config: PlacementConfig
    threads: int
    dtype: str
    checkpoint: Checkpoint
    local: LayerSpan
    budget: Budget
    space: Placements
    judged: dict[str, SpanPlan]
    documents: Sequence[Document]
    loaded: dict[str, LoadedExamples]
    folder: RunFolder
    held: dict[str, Any] | None
    record: dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Search, and return the exit status: 0, or 2 after one line on what is wrong."""
    return run_script(arguments, _start, execute)


def _start(arguments: Sequence[str]) -> tuple[Job, Accelerator]:
    config = PlacementConfig.from_command_line(arguments)
    accelerator = start_processes(os.environ)
    return prepare(config, accelerator), accelerator


def prepare(config: PlacementConfig, accelerator: Accelerator) -> Job:
    """Return the search with everything checked that can be checked before weights load; writes nothing."""
    threads = set_threads(config.threads, os.environ)
    dtype = config.dtype or default_dtype(accelerator)
    checkpoint = open_checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    check_positions(config.maxlen, checkpoint, allow_extrapolation=config.allow_extrapolation)
    local = _local_span(config.local)
    budget = Budget.parse(config.budget)
    space = Placements(checkpoint.config, local, config.cost_at or config.maxlen, heads=config.units == "heads")
    if config.rank != "none" and not any(space.fits(space.plan([unit]), budget) for unit in space.units):
        raise UserError(f"--budget {budget} leaves room for no {config.units[:-1]}; raise it")
    if config.rank != "none" and config.maxlen <= (local.num_recent or 0):
        raise UserError(f"--local '{config.local}' hides nothing of {config.maxlen} tokens; shorten it")
    judged = _judged(config.measure, checkpoint)
    loaded = _load(config)
    documents = [
        document
        for label, source in loaded.items()
        for document in _documents(label, source.examples, checkpoint, config.maxlen)
    ]
    folder = RunFolder(config.output or default_output("placement", config, _FREE))
    held = folder.read_run()
    documents = _apart(documents, folder)
    wanted = {"calibration": config.rank != "none", "held-out": config.held_out_split is not None}
    for part in (part for part, is_wanted in wanted.items() if is_wanted):
        if not any(document.part == part for document in documents):
            raise UserError(f"no {part} document has {config.maxlen} tokens; lower --maxlen, or raise the limit")
    identity = {
        "model": checkpoint.provenance,
        "dtype": dtype,
        "maxlen": config.maxlen,
        "score_from": config.first,
        "trust_remote_code": config.trust_remote_code,
        "threads": threads,
        "placement_version": PLACEMENT_VERSION,
    }
    tasks = {label: _task_record(config, label, source) for label, source in loaded.items()}
    folder.check_accepts(identity, tasks)
    resolved = asdict(config) | {"dtype": dtype, "output": folder.path, "threads": threads}
    return Job(
        config=config,
        threads=threads,
        dtype=dtype,
        checkpoint=checkpoint,
        local=local,
        budget=budget,
        space=space,
        judged=judged,
        documents=documents,
        loaded=loaded,
        folder=folder,
        held=held,
        record=merge_record(deepcopy(held), identity, tasks, resolved, None),
    )


def _local_span(text: str) -> LayerSpan:
    try:
        span = SpanPlan.parse(f"local {text}", 1)[0]
    except PlanError:
        raise PlanError(f"--local '{text}' is no span; write for example 'span=1024 sinks=4'") from None
    assert isinstance(span, LayerSpan)
    return span


def _judged(texts: Sequence[str], checkpoint: Checkpoint) -> dict[str, SpanPlan]:
    """Return plans to judge by name: their text, or for a file its name, or its folder's where all are alike."""
    judged: dict[str, SpanPlan] = {}
    for text in texts:
        file = Path(text)
        name = text if file.suffix != ".json" else file.parent.name if file.name == "plan.json" else file.stem
        if name in judged or (name != text and re.fullmatch(_OWN_NAMES, name)):
            raise UserError(f"--measure {text}: another plan is called '{name}' already; give the file another name")
        plan = resolve_plan(text, checkpoint, keeps_full=True)
        if plan is None:
            raise UserError(f"--measure {text}: no span describes what this model attends to")
        judged[name] = plan
    return judged


def _apart(documents: Sequence[Document], folder: RunFolder) -> list[Document]:
    """Return the documents without held-out ones that calibrate, now or in the folder's earlier searches."""
    texts = {tuple(document.token_ids) for document in documents if document.part == "calibration"}
    names = {(task, id) for task, _, id, _ in folder.read_predictions().lines if not task.endswith(_HELD_OUT)}
    return [
        document
        for document in documents
        if document.part == "calibration"
        or (
            tuple(document.token_ids) not in texts and (document.task.removesuffix(_HELD_OUT), document.id) not in names
        )
    ]


def _load(config: PlacementConfig) -> dict[str, LoadedExamples]:
    """Return the documents to calibrate on by task, and those to judge on by task with a mark."""
    loaded = {} if config.rank == "none" else {name: config.load_documents(name) for name in config.tasks}
    if config.held_out_split is not None:
        others = config.judging
        loaded |= {f"{name}{_HELD_OUT}": others.load_documents(name) for name in others.tasks}
    return loaded


def _task_record(config: PlacementConfig, label: str, source: LoadedExamples) -> dict[str, Any]:
    own = config.judging if label.endswith(_HELD_OUT) else config
    return {
        "version": own.tasks[label.removesuffix(_HELD_OUT)].version,
        "source": {key: value for key, value in source.provenance.items() if not key.startswith("num_")},
        "rows": {key: value for key, value in source.provenance.items() if key.startswith("num_")},
        "split": own.split,
        "limit": own.limit,
        "min_words": config.min_words,
        "maxlen": [config.maxlen],
    }


def _documents(label: str, examples: Sequence[Example], checkpoint: Checkpoint, maxlen: int) -> list[Document]:
    """Return the documents that fill the length."""
    builder = PromptBuilder(checkpoint.tokenizer, Template(text="{context}"))
    part = "held-out" if label.endswith(_HELD_OUT) else "calibration"
    cut = [(example.id, builder.document(example.context)[:maxlen]) for example in examples]
    return [Document(part=part, task=label, id=id, token_ids=ids) for id, ids in cut if len(ids) == maxlen]


def execute(job: Job, arguments: list[str], accelerator: Accelerator) -> None:
    """Measure what is missing, with the other processes, and finish the folder."""
    folder, main_process = job.folder, accelerator.is_main_process
    with folder.lock(job.held) if main_process else nullcontext():
        found = folder.read_predictions()
        # All have read the folder before anyone writes to it.
        accelerator.wait_for_everyone()
        if main_process:
            job.record["world_size"] = accelerator.num_processes
            job.record["sessions"].append(describe_session(arguments, accelerator, job.threads))
            folder.write_json("run.json", job.record)
            folder.write_lines("examples.jsonl", merge_examples(folder.read_examples(), job.loaded))
            _introduce(job, len(found.lines), found.describe(), accelerator)
        with folder.open_journal(f"{accelerator.process_index:05}") as journal:
            ledger = Ledger(job, accelerator, found.lines, journal)
            result = None if job.config.rank == "none" else search(job, ledger)
            judged = plans_to_judge(job, result.chosen if result else None)
            ledger.measure("held-out", list(judged.values()))
            num_layers_run = int(ledger.total(torch.tensor([float(ledger.num_layers_run)])))
        accelerator.wait_for_everyone()
        if main_process:
            _finish(job, result, judged, {"seconds": ledger.seconds, "num_layers_run": num_layers_run})


def _introduce(job: Job, num_known: int, dropped: str, accelerator: Accelerator) -> None:
    config = job.config
    parts = {part: sum(d.part == part for d in job.documents) for part in ("calibration", "held-out")}
    print(f"model   {config.model}: {describe_weights(job.checkpoint)}, {job.dtype}")
    print(f"search  {config.units}, budget {job.budget}, the others {job.local}; ranked by {config.rank}")
    print(
        f"data    {parts['calibration']} documents to calibrate, {parts['held-out']} held out, {config.maxlen} tokens"
    )
    print(f"        losses of tokens {config.first} to {config.maxlen - 1}")
    print(f"machine {accelerator.device.type}, {accelerator.num_processes} process(es), {job.threads} thread(s) each")
    print(f"folder  {job.folder.path}: {num_known} measurements are there")
    if dropped:
        print(f"        {dropped}")


class Ledger:
    """Measures plans on documents, remembers what was measured, and shares the work with the other processes.

    Args:
        job: The search.
        accelerator: Of this process.
        lines: Measurements of earlier sessions, by key.
        journal: Where this process writes new ones.

    Attributes:
        lines: Measurements of this process's documents, by key.
        seconds: Spent on new ones by this process, loading the weights left out.
        num_layers_run: Layers that this process computed for them.
    """

    def __init__(self, job: Job, accelerator: Accelerator, lines: dict[Key, dict[str, Any]], journal: Any) -> None:
        self.job, self.accelerator, self.lines, self.journal = job, accelerator, dict(lines), journal
        self.documents = job.documents[accelerator.process_index :: accelerator.num_processes]
        self.seconds, self.num_layers_run = 0.0, 0
        self._meter: PlanMeter | None = None

    @property
    def meter(self) -> PlanMeter:
        """Return what measures, with the weights, which load when something is to be measured at all."""
        if self._meter is None:
            job = self.job
            model = job.checkpoint.load_model(TORCH_DTYPES[job.dtype], self.accelerator.device)
            self._meter = PlanMeter(model, [document.token_ids for document in self.documents], job.config.first)
        return self._meter

    def measure(self, part: str, plans: Sequence[SpanPlan]) -> list[float]:
        """Return the mean loss of a token under each plan over the documents of one part, of all processes."""
        sums, count = torch.zeros(len(plans), dtype=torch.float64), 0
        texts = [str(plan) for plan in plans]
        for index, document in enumerate(self.documents):
            if document.part != part:
                continue
            count += len(document.token_ids) - self.job.config.first
            missing = [place for place, text in enumerate(texts) if document.key(text) not in self.lines]
            if missing:
                meter = self.meter
                before, started = meter.num_layers_run, time.perf_counter()
                for place, loss in meter.losses(index, [plans[place] for place in missing]):
                    if not math.isfinite(loss):
                        raise CheckpointError(
                            f"the loss on {document.id} is no number in {self.job.dtype}; try --dtype float32, or mend "
                            "the weights"
                        )
                    self._write(document, texts[missing[place]], {"negative_log_likelihood": loss})
                self.num_layers_run += meter.num_layers_run - before
                self.seconds += time.perf_counter() - started
                if part == "held-out":
                    meter.forget(index)
            losses = [self.lines[document.key(text)]["negative_log_likelihood"] for text in texts]
            sums += torch.tensor(losses, dtype=torch.float64)
        return [float(x) for x in self._mean(sums, count)]

    def gate_gradients(self, plan: SpanPlan) -> torch.Tensor:
        """Return (L, K) derivatives of the mean loss over the calibration documents of all processes."""
        gate = self.job.config.gate
        name, count = f"{_GATES} {gate} {plan}", 0
        shape = num_layers(self.job.checkpoint.config), num_kv_heads(self.job.checkpoint.config) or 1
        total = torch.zeros(shape, dtype=torch.float64)
        for index, document in enumerate(self.documents):
            if document.part == "calibration":
                num_scored = len(document.token_ids) - self.job.config.first
                count += num_scored
                if document.key(name) not in self.lines:
                    meter, started = self.meter, time.perf_counter()
                    found = gate_gradients(meter.model, [meter.texts[index]], self.job.config.first, plan, gate)
                    self.num_layers_run += shape[0]
                    self.seconds += time.perf_counter() - started
                    self._write(document, name, {"gradients": found.tolist()})
                gradients = self.lines[document.key(name)]["gradients"]
                total += num_scored * torch.tensor(gradients, dtype=torch.float64)
        return self._mean(total, count)

    def _mean(self, total: torch.Tensor, count: int) -> torch.Tensor:
        """Return total / count over all processes."""
        both = self.total(torch.cat([total.flatten(), torch.tensor([float(count)], dtype=torch.float64)]))
        return (both[:-1] / both[-1]).reshape(total.shape)

    def total(self, mine: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        of_all: torch.Tensor = self.accelerator.reduce(mine.to(self.accelerator.device), reduction="sum").cpu()
        return of_all

    def _write(self, document: Document, plan: str, values: dict[str, Any]) -> None:
        key = document.key(plan)
        line = dict(zip(("task", "template", "id", "maxlen"), key, strict=True)) | values
        append_line(self.journal, line)
        self.lines[key] = line


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a search came to.

    Attributes:
        scores: What each unit is worth alone.
        found: All plans measured on the calibration documents.
        chosen: The best within the budget.
    """

    scores: Sequence[UnitScore]
    found: Sequence[Found]
    chosen: Found


def search(job: Job, ledger: Ledger) -> Result:
    """Rank the units, and extend plans by them up to the budget."""
    config, space = job.config, job.space
    found: dict[SpanPlan, Found] = {}

    def measure(plans: Sequence[SpanPlan]) -> list[float]:
        losses = ledger.measure("calibration", plans)
        for plan, loss in zip(plans, losses, strict=True):
            units = tuple(space.full_units(plan))
            found.setdefault(plan, Found(plan=plan, units=units, loss=loss, cost=space.cost(plan)))
        return losses

    if config.rank == "scan":
        scores = scan(measure, space, both_ways=config.both_ways)
    else:
        scores = scores_of_gates(space, ledger.gate_gradients(space.plan([])))
    tried = beam_search(measure, space, job.budget, ranking(scores), width=config.beam, candidates=config.candidates)
    return Result(scores=scores, found=list(found.values()), chosen=min(tried, key=lambda one: one.loss))


def plans_to_judge(job: Job, chosen: Found | None) -> dict[str, SpanPlan]:
    """Return plans by name: those asked for, and after a search what it found among what it is compared with."""
    space = job.space
    if chosen is None:
        return job.judged
    own = resolve_plan("auto", job.checkpoint, keeps_full=True)
    judged = {"full": space.plan(space.units), "local": space.plan([])}
    judged |= {} if own is None or own.is_full else {"own": own}
    judged |= job.judged | {"found": chosen.plan}
    size, draw = len(chosen.units), random.Random(job.config.seed)
    drawn = {chosen.plan}
    # Of few placements there may be no more.
    for _ in range(_DRAWS_A_PLAN * job.config.random):
        plan = space.plan(draw.sample(space.units, size))
        if len(drawn) <= job.config.random and plan not in drawn:
            judged[f"random {len(drawn)}"] = plan
            drawn.add(plan)
    return judged


def _finish(job: Job, result: Result | None, judged: dict[str, SpanPlan], spent: dict[str, float]) -> None:
    """Merge the journals, write what was found, and print it."""
    folder, config, space = job.folder, job.config, job.space
    lines, _ = folder.merge_journal(list(folder.read_predictions().lines), set())
    job.record["sessions"][-1] |= {"finished": now()} | spent
    folder.write_json("run.json", job.record)
    measurements = [
        {
            "part": "held-out" if line["task"].endswith(_HELD_OUT) else "calibration",
            "task": line["task"],
            "id": line["id"],
            "plan": line["template"],
            "negative_log_likelihood": line["negative_log_likelihood"],
            "num_tokens": config.maxlen - config.first,
        }
        for line in lines
        if "negative_log_likelihood" in line
    ]
    folder.write_lines("measurements.jsonl", measurements)
    documents = {(document.task, document.id) for document in job.documents if document.part == "held-out"}
    found = read_placement(folder) if result is None else _found(job, result)
    found["held_out"] = held_out_rows(
        {name: (str(plan), space.cost(plan)) for name, plan in judged.items()},
        [line for line in measurements if (line["task"], line["id"]) in documents],
    )
    found["held_out_cost_at"] = space.num_tokens
    write_placement(folder, job.record, found)
    print("\n" + describe(found) + f"\nfolder: {folder.path}")


def _found(job: Job, result: Result) -> dict[str, Any]:
    """Return what a search found, as `placement.json` holds it."""
    return {
        "units": job.config.units,
        "local": str(job.local),
        "budget": str(job.budget),
        "rank": job.config.rank,
        "cost_at": job.space.num_tokens,
        "scores": [
            {"unit": _unit_name(s.unit), "layer": s.unit[0], "head": s.unit[1]}
            | {"only_full": s.only_full, "only_local": s.only_local}
            for s in result.scores
        ],
        "found": [_entry(one) for one in result.found],
        "frontier": [_entry(one) for one in frontier(result.found)],
        "chosen": _entry(result.chosen),
    }


def _entry(one: Found) -> dict[str, Any]:
    """Return a plan as the files tell it; `--plan` takes a file that holds one."""
    return {
        "text": str(one.plan),
        "plan": one.plan.to_json(),
        "units": [_unit_name(unit) for unit in one.units],
        "loss": one.loss,
        "perplexity": math.exp(one.loss),
        "cost": dict(one.cost),
    }


def _unit_name(unit: Unit) -> str:
    layer, head = unit
    return str(layer) if head is None else f"{layer}.{head}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
