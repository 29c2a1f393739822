"""The main job: generate at several truncation lengths, score, report.

accelerate launch eval/run.py --task plos --maxlen 1024 2048 4096 8192 --limit 4
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
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

from eval.config import RunConfig, load_config
from eval.model import check_positions, default_dtype, describe_weights, load_converted, resolve_plan
from eval.record import default_output, identity_of, merge_examples, merge_record, task_record
from eval.report import LEGEND, as_text, render_report, table
from eval.run_folder import RunFolder
from eval.score import score_predictions
from eval.session import describe_session, now, run_script, set_threads, start_processes
from eval.work import Work, answer_share, check_prompts, plan_work, share
from masformer import SpanPlan
from masformer.checkpoints import Checkpoint, open_checkpoint
from tasks import TASKS, LoadedExamples, LoadRequest


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run whose settings, data and folder have been checked."""

    config: RunConfig
    threads: int
    dtype: str
    checkpoint: Checkpoint
    plan: SpanPlan | None
    loaded: Mapping[str, LoadedExamples]
    work: Sequence[Work]
    folder: RunFolder
    held: dict[str, Any] | None
    record: dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit status: 0, or 2 after one line on what is wrong."""
    return run_script(arguments, _start, execute)


def _start(arguments: Sequence[str]) -> tuple[Job, Accelerator]:
    config = load_config(arguments)
    accelerator = start_processes(os.environ)
    return prepare(config, accelerator), accelerator


def prepare(config: RunConfig, accelerator: Accelerator) -> Job:
    """Return the run with everything checked that can be checked before weights load; writes nothing."""
    threads = set_threads(config.threads, os.environ)
    torch.manual_seed(config.seed)
    dtype = config.dtype or default_dtype(accelerator)
    loaded = {name: _load_task(config, name) for name in config.task}
    checkpoint = open_checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    plan = resolve_plan(config.plan, checkpoint)
    check_positions(max(config.maxlen), checkpoint, allow_extrapolation=config.allow_extrapolation)
    folder = RunFolder(config.output or default_output("", config, ("maxlen", "limit", "output")))
    held = folder.read_run()
    work = [item for name in config.task for item in plan_work(config, name, loaded[name], checkpoint, held)]
    check_prompts(work)
    identity = identity_of(config, checkpoint, plan, dtype)
    tasks = {name: task_record(config, name, loaded[name], checkpoint) for name in config.task}
    folder.check_accepts(identity, tasks)
    resolved = asdict(config) | {"dtype": dtype, "output": folder.path, "threads": threads}
    return Job(
        config=config,
        threads=threads,
        dtype=dtype,
        checkpoint=checkpoint,
        plan=plan,
        loaded=loaded,
        work=work,
        folder=folder,
        held=held,
        record=merge_record(deepcopy(held), identity, tasks, resolved, plan),
    )


def execute(job: Job, arguments: list[str], accelerator: Accelerator) -> None:
    """Generate what is missing, with the other processes, and finish the folder."""
    with job.folder.lock(job.held) if accelerator.is_main_process else nullcontext():
        done, torn = job.folder.read_predictions()
        # All have read the folder before anyone writes to it.
        accelerator.wait_for_everyone()
        missing = sum(item.key(maxlen) not in done for item in job.work for maxlen in item.lengths)
        if accelerator.is_main_process:
            if missing:
                job.record["world_size"] = accelerator.num_processes
                session = describe_session(arguments, accelerator, job.threads)
                job.record["sessions"].append(session | {"num_to_generate": missing})
            job.folder.write_json("run.json", job.record)
            job.folder.write_lines("examples.jsonl", merge_examples(job.folder.read_examples(), job.loaded))
            _introduce(job, missing, torn, accelerator)
        if missing:
            model = load_converted(
                job.checkpoint, job.dtype, accelerator.device, job.plan, job.config.plan, accelerator.print
            )
            mine = share(job.work, accelerator.process_index, accelerator.num_processes)
            answer_share(mine, model, job.folder, set(done), accelerator, job.config)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _finish(job, missing)


def _introduce(job: Job, missing: int, torn: int, accelerator: Accelerator) -> None:
    """Print what is about to be run, on what."""
    config, total = job.config, sum(len(item.lengths) for item in job.work)
    print(f"model   {config.model}: {describe_weights(job.checkpoint)}, {job.dtype}")
    print(f"spans   {job.record['plan_description']}")
    for name, loaded in job.loaded.items():
        print(f"task    {name}: {len(loaded.examples)} examples, {_describe_source(loaded)}")
    print(f"lengths {', '.join(map(str, config.maxlen))}")
    print(f"machine {accelerator.device.type}, {accelerator.num_processes} process(es), {job.threads} thread(s) each")
    print(f"folder  {job.folder.path}: {total - missing} of {total} predictions are there")
    if torn:
        print(f"        {torn} torn line(s) of an interrupted run dropped")


def _load_task(config: RunConfig, name: str) -> LoadedExamples:
    task = TASKS[name]
    return task.load(LoadRequest(split=config.split or task.default_split, data=config.data, limit=config.limit))


def _finish(job: Job, num_generated: int) -> None:
    """Merge the journals, score, write the report, and print its table.

    Raises:
        RunFolderError: A prediction that this run was to make is not there.
    """
    record, examples = job.record, job.folder.read_examples()
    order = [
        (line["task"], record["tasks"][line["task"]]["template"], line["id"], maxlen)
        for line in examples
        for maxlen in record["tasks"][line["task"]]["maxlen"]
    ]
    predictions, absent = job.folder.merge_journal(order, job.loaded)
    results = score_predictions(predictions, examples, job.config.profile, record["identity"]["model"]["reference"])
    if num_generated:
        record["sessions"][-1]["finished"] = now()
    job.folder.write_json("run.json", record)
    job.folder.write_json("scores.json", {"results": results})
    notes = [f"Not there yet: {len(absent)} predictions of a task whose run was interrupted."] if absent else []
    job.folder.write_text("report.md", render_report(record, results, notes))
    for name in record["tasks"]:
        rows = table([result for result in results if result["task"] == name])
        print(f"\n{name}, ROUGE profile {job.config.profile}\n{as_text(rows)}")
    print("\n" + "\n".join([*notes, textwrap.fill(LEGEND, 120), f"folder: {job.folder.path}"]))


def _describe_source(loaded: LoadedExamples) -> str:
    known = loaded.provenance
    pin = known.get("revision") or known.get("version") or f"sha256 {str(known.get('sha256'))[:12]}"
    return f"{known['kind']} {known['name']}, {pin}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
