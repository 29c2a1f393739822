"""The main job: generate at several truncation lengths, score, report.

accelerate launch eval/run.py --task plos --maxlen 1024 2048 4096 8192 --limit 4
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.answering import Answering, Claims, Progress
from eval.generation.forecast import describe_plan, memory_budget
from eval.generation.groups import Grouping, Needs, WorkPlan, check_prompts, documents_of, plan_work
from eval.records.journal import Journal, Key
from eval.records.read_run import gather_inputs, index_predictions
from eval.records.record import default_output, identity_of, merge_documents, merge_examples, merge_record, task_record
from eval.records.run_folder import RunFolder, keys_of
from eval.reporting.trackers import check_trackers, log_scores, start_trackers
from eval.runtime.model import (
    TORCH_DTYPES,
    check_positions,
    default_dtype,
    describe_weights,
    load_converted,
    resolve_plan,
)
from eval.runtime.session import describe_session, now, run_script, set_threads, start_processes
from eval.score import has_texts, print_scores, score_run
from masformer import SpanPlan
from masformer.checkpoints.open import Checkpoint, open_checkpoint
from tasks import LoadedExamples

# Seconds that a folder on a network may take to show other machines what one has written.
_VISIBLE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run whose settings, data and folder have been checked.

    Attributes:
        held: `run.json` as the folder has it, None for a new one.
        record: `run.json` as it is to be.
        work: What is to be predicted, by this shard of it.
        finished: Predictions of sessions that came to their end.
        token: Of this session, the same for all its processes.
    """

    config: RunConfig
    threads: int
    dtype: str
    checkpoint: Checkpoint
    plan: SpanPlan | None
    loaded: Mapping[str, LoadedExamples]
    folder: RunFolder
    held: dict[str, Any] | None
    record: dict[str, Any]
    needs: Needs
    work: WorkPlan
    finished: frozenset[Key]
    token: str

    @property
    def keys(self) -> list[Key]:
        """Return the predictions that are to be there at the end of this run, or of this shard of it."""
        made = dict.fromkeys(key for group in self.work.groups for key in group.keys)
        return [*made, *(key for key in self.work.fingerprints if key in self.finished and key not in made)]


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit status: 0, or 2 after one line on what is wrong."""
    return run_script(arguments, _start, execute)


def _start(arguments: Sequence[str]) -> tuple[Job, Accelerator]:
    config = RunConfig.from_command_line(arguments)
    check_trackers(config.report_to)
    accelerator = start_processes(
        os.environ, log_with=list(config.report_to) or None, project_dir=str(config.output or _default_output(config))
    )
    return prepare(config, accelerator), accelerator


def prepare(config: RunConfig, accelerator: Accelerator) -> Job:
    """Return the run with everything checked that can be checked before weights load; writes nothing."""
    if config.device_map and accelerator.num_processes > 1:
        raise UserError(
            f"--device-map {config.device_map} is one model over all devices, and {accelerator.num_processes} processes"
            " would each have one; launch one process"
        )
    threads = set_threads(config.threads, os.environ)
    torch.manual_seed(config.seed)
    dtype = config.dtype or default_dtype(accelerator)
    loaded = {name: config.load(name) for name in config.tasks}
    checkpoint = open_checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    plan = resolve_plan(config.plan, checkpoint, keeps_full=True)
    check_positions(max(config.maxlen), checkpoint, allow_extrapolation=config.allow_extrapolation)
    folder = RunFolder(config.output or _default_output(config), advice="; --overwrite begins anew")
    held = folder.read_run(is_replaced=config.overwrite)
    before = None if config.overwrite else held
    identity = identity_of(config, checkpoint, plan, dtype)
    tasks = {name: task_record(config, name, loaded[name], checkpoint, before) for name in config.tasks}
    if before is not None:
        folder.check_accepts(identity, tasks)
    resolved = asdict(config) | {"dtype": dtype, "output": folder.path, "threads": threads}
    record = merge_record(deepcopy(before), identity, tasks, resolved, plan)
    documents = documents_of(config, loaded, record, checkpoint)
    check_prompts(documents)
    torch_dtype = TORCH_DTYPES[dtype]
    needs = Needs(checkpoint.config, plan, torch_dtype.itemsize, trust_remote_code=config.trust_remote_code)
    grouping = _grouping(config, before, needs, torch_dtype, accelerator)
    record["grouping"] = asdict(grouping)
    finished = {} if config.overwrite else folder.read_finished()
    silent = not accelerator.is_main_process
    work = plan_work(documents, needs, grouping, finished, config.shard, is_silent=silent)
    return Job(
        config=config,
        threads=threads,
        dtype=dtype,
        checkpoint=checkpoint,
        plan=plan,
        loaded=loaded,
        folder=folder,
        held=held,
        record=record,
        needs=needs,
        work=work,
        finished=frozenset(finished),
        token=broadcast_object_list([uuid4().hex[:8]])[0],
    )


def _default_output(config: RunConfig) -> Path:
    free = (
        "maxlen",
        "template",
        "limit",
        "on_bad_row",
        "output",
        "overwrite",
        "dry_run",
        "batch_size",
        "memory_budget",
        "shard",
    )
    folder = default_output("", config, (*free, "device_map", "texts", "report_to"))
    return folder.with_name(f"{folder.name}-shard-{config.shard[0]}-of-{config.shard[1]}") if config.shard else folder


def _grouping(
    config: RunConfig, held: dict[str, Any] | None, needs: Needs, dtype: torch.dtype, accelerator: Accelerator
) -> Grouping:
    """Return what groups are formed by: as asked, else as the folder has it, else by this machine."""
    settings: dict[str, Any] = (held or {}).get("grouping") or {
        "num_shares": accelerator.num_processes,
        "batch_size": 64 if accelerator.device.type == "cuda" else 16,
        "memory_budget": memory_budget(
            accelerator.device, needs.num_weights * dtype.itemsize, os.environ, config.device_map
        ),
    }
    # Machines may differ, in memory and in what they see of the folder; the groups must not.
    settings = dict(broadcast_object_list([settings])[0])
    if config.batch_size is not None:
        settings["batch_size"] = config.batch_size
    if config.memory_budget is not None:
        settings["memory_budget"] = int(config.memory_budget * 2**30)
    return Grouping(**settings)


def execute(job: Job, arguments: list[str], accelerator: Accelerator) -> None:
    """Generate what is missing, with the other processes, and finish the folder."""
    if job.config.dry_run:
        if accelerator.is_main_process:
            found = _read_predictions(job)
            _introduce(job, found, accelerator)
            absent = {key for group in job.work.groups for key in group.keys if key not in found.lines}
            budget = job.record["grouping"]["memory_budget"]
            print(f"\n{describe_plan(job.work, absent, job.needs, budget, TORCH_DTYPES[job.dtype], accelerator)}")
        return
    claimed = job.folder.path / "journal" / f"claims-{job.token}"
    lock = job.folder.lock(job.held, is_replaced=job.config.overwrite)
    with lock if accelerator.is_main_process else nullcontext():
        # Under the lock nobody else writes. All read the folder before the main process does.
        found = _read_predictions(job)
        accelerator.wait_for_everyone()
        todo = [group for group in job.work.groups if any(key not in found.lines for key in group.keys)]
        todo.sort(key=lambda group: (-group.cost, group.index))
        missing = sum(key not in found.lines for group in todo for key in group.keys)
        if accelerator.is_main_process:
            if job.config.overwrite:
                job.folder.clear()
            if missing:
                job.record["world_size"] = accelerator.num_processes
                session = describe_session(arguments, accelerator, job.threads)
                job.record["sessions"].append(session | {"num_to_generate": missing})
            job.folder.write_json("run.json", job.record)
            job.folder.write_lines("examples.jsonl", merge_examples(job.folder.read_examples(), job.loaded))
            if documents := merge_documents(job.folder.read_documents(), job.loaded):
                job.folder.write_documents(documents)
            if missing:
                job.folder.make(claimed)
            _introduce(job, found, accelerator)
        accelerator.wait_for_everyone()
        if missing:
            _check_shared(claimed)
            model = load_converted(
                job.checkpoint,
                job.dtype,
                accelerator.device,
                job.plan,
                job.config.plan,
                accelerator.print,
                job.config.device_map,
            )
            claims = Claims(claimed, todo)
            Answering(
                model,
                job.checkpoint.tokenizer,
                job.needs,
                job.folder,
                found.lines,
                f"{accelerator.process_index:05}-{job.token}",
                Progress(claims, accelerator),
            ).run(claims)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if missing:
                job.record["sessions"][-1]["finished"] = now()
            finished = finish_folder(job.folder, job.record, set(job.keys), job.work.fingerprints)
            if finished is not None and job.config.report_to:
                start_trackers(accelerator, "masformer-eval", job.record["config"])
                log_scores(accelerator.trackers, job.record, *finished)


def _read_predictions(job: Job) -> Journal:
    """Return the predictions that are there and are used."""
    return Journal() if job.config.overwrite else job.folder.read_predictions(job.work.fingerprints)


def _check_shared(claimed: Path) -> None:
    """Check that this process sees what the main process has written.

    Raises:
        UserError: It does not: the folder is another one on this machine.
    """
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not claimed.is_dir():
        if time.monotonic() > deadline:
            raise UserError(
                f"{claimed} was made by the main process and is not here; processes on several machines need --output "
                "on a shared disk, or run as independent jobs with --shard I/N"
            )
        time.sleep(0.2)


def _introduce(job: Job, found: Journal, accelerator: Accelerator) -> None:
    """Print what is about to be run, on what."""
    config, keys = job.config, job.keys
    print(f"model   {config.model}: {describe_weights(job.checkpoint)}, {job.dtype}")
    print(f"spans   {job.record['plan_description']}")
    for name, loaded in job.loaded.items():
        print(f"task    {name}: {len(loaded.examples)} examples, {_describe_source(loaded)}")
        if loaded.bad_rows:
            print(f"        {len(loaded.bad_rows)} bad rows skipped, the first: {loaded.bad_rows[0]}")
    print(f"lengths {', '.join(map(str, config.maxlen))}")
    print(f"machine {accelerator.device.type}, {accelerator.num_processes} process(es), {job.threads} thread(s) each")
    if config.shard:
        print(
            f"shard   {config.shard[0]} of {config.shard[1]}: {len(keys)} of {len(job.work.fingerprints)} predictions"
        )
    print(f"folder  {job.folder.path}: {sum(key in found.lines for key in keys)} of {len(keys)} predictions are there")
    if dropped := found.describe():
        print(f"        {dropped}")


def finish_folder(
    folder: RunFolder,
    record: dict[str, Any],
    required: Container[Key],
    expected: Mapping[Key, str] | None = None,
) -> tuple[dict[str, Any], list[Path]] | None:
    """Merge the journals, score, write and print the reports, and return scores and plots; of a shard, only merge.

    Args:
        folder: Of the run.
        record: Its `run.json`.
        required: Predictions that must be there.
        expected: Fingerprints by key.

    Raises:
        UserError: A prediction that must be there is not.
    """
    examples = folder.read_examples()
    lines, _ = folder.merge_journal(keys_of(record, examples), required, expected)
    folder.write_json("run.json", record)
    if record["config"]["shard"]:
        part, num_parts = record["config"]["shard"]
        print(
            f"\nshard {part} of {num_parts} is done: {len(lines)} predictions. Once all parts are done:\n"
            f"python eval/merge.py FOLDER_1 ... FOLDER_{num_parts} --output MERGED\nfolder: {folder.path}"
        )
        return None
    inputs = gather_inputs(folder.path, record, index_predictions(lines), examples, folder.read_documents())
    with_texts = has_texts(folder.path, record)
    scores, plots = score_run(folder, inputs, None, with_texts=with_texts)
    print_scores(folder, inputs, scores)
    return scores, plots


def _describe_source(loaded: LoadedExamples) -> str:
    known = loaded.provenance
    pin = known.get("revision") or known.get("version") or f"sha256 {str(known.get('sha256'))[:12]}"
    return f"{known['kind']} {known['name']}, {pin}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
