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
import transformers
from accelerate import Accelerator
from transformers import PreTrainedModel

from eval.config import ConfigError, RunConfig, load_config
from eval.prompts import PromptError
from eval.record import default_output, identity_of, merge_examples, merge_record, task_record
from eval.report import LEGEND, as_text, render_report, table
from eval.run_folder import RunFolder, RunFolderError, prediction_key
from eval.score import score_predictions
from eval.session import LaunchError, describe_session, now, set_threads, start_processes
from eval.work import Work, answer_share, check_prompts, plan_work, share
from masformer import ConversionError, PlanError, SpanPlan, apply_plan, native_plan, num_layers, stored_plan
from masformer.checkpoints import Checkpoint, CheckpointError, has_learned_positions, max_positions, open_checkpoint
from tasks import TASKS, DataError, LoadedExamples, LoadRequest

USER_ERRORS = (
    CheckpointError,
    ConfigError,
    ConversionError,
    DataError,
    LaunchError,
    PlanError,
    PromptError,
    RunFolderError,
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # A mistake in the settings is the same for all processes, and one of each machine speaks. Later all do.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    who = f"process {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    try:
        config = load_config(arguments)
        accelerator = start_processes(os.environ)
        job = prepare(config, accelerator)
        speaks = True
        execute(job, list(arguments), accelerator)
    except USER_ERRORS as error:
        if speaks:
            print(f"error: {who}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if speaks:
            print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        return 130
    accelerator.end_training()
    return 0


def prepare(config: RunConfig, accelerator: Accelerator) -> Job:
    """Return the run with everything checked that can be checked before weights load; writes nothing."""
    threads = set_threads(config.threads, os.environ)
    torch.manual_seed(config.seed)
    dtype = config.dtype or ("bfloat16" if accelerator.device.type == "cuda" else "float32")
    loaded = {name: _load_task(config, name) for name in config.task}
    checkpoint = open_checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    plan = _resolve_plan(config.plan, checkpoint)
    _check_positions(config, checkpoint)
    folder = RunFolder(config.output or default_output(config))
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
    with job.folder.lock() if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process and job.folder.read_run() != job.held:
            raise RunFolderError(f"output folder {job.folder.path} was changed by another run meanwhile; run again")
        done, torn = job.folder.read_predictions()
        # All have read the folder before anyone writes to it.
        accelerator.wait_for_everyone()
        missing = sum(item.key(maxlen) not in done for item in job.work for maxlen in item.lengths)
        if accelerator.is_main_process:
            if missing:
                job.record["world_size"] = accelerator.num_processes
                job.record["sessions"].append(describe_session(arguments, accelerator, job.threads, missing))
            job.folder.write_json("run.json", job.record)
            job.folder.write_lines("examples.jsonl", merge_examples(job.folder.read_examples(), job.loaded))
            _introduce(job, missing, torn, accelerator)
        if missing:
            model = job.checkpoint.load_model(DTYPES[job.dtype], accelerator.device)
            if job.plan is not None:
                _convert(model, job.plan, job.config.plan, accelerator.print)
            mine = share(job.work, accelerator.process_index, accelerator.num_processes)
            answer_share(mine, model, job.plan, job.folder, set(done), accelerator, job.config)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _finish(job, missing)


def _introduce(job: Job, missing: int, torn: int, accelerator: Accelerator) -> None:
    """Print what is about to be run, on what."""
    config, total = job.config, sum(len(item.lengths) for item in job.work)
    print(f"model   {config.model}: {_describe_weights(job.checkpoint)}, {job.dtype}")
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


def _resolve_plan(text: str, checkpoint: Checkpoint) -> SpanPlan | None:
    """Return the plan to put on the model; None leaves it untouched."""
    if text != "auto":
        return SpanPlan.parse(text, num_layers(checkpoint.config))
    stored = stored_plan(checkpoint.config)
    if stored is not None:
        return stored
    try:
        own = native_plan(checkpoint.config)
    except PlanError:
        return None
    return None if own.is_full else own


def _convert(model: PreTrainedModel, plan: SpanPlan, asked: str, say: Any) -> None:
    """Put the plan on the model; a model's own windows that masformer cannot serve stay as they are under `auto`."""
    try:
        apply_plan(model, plan)
    except ConversionError as error:
        if asked != "auto" or stored_plan(model.config) is not None:
            raise
        say(f"note    the model's own attention is used: {error}")


def _check_positions(config: RunConfig, checkpoint: Checkpoint) -> None:
    longest, known = max(config.maxlen), max_positions(checkpoint.config)
    if known is None or longest <= known:
        return
    if has_learned_positions(checkpoint.config):
        raise ConfigError(
            f"maxlen {longest} is beyond the {known} positions of '{config.model}', a fixed table of them"
        )
    if not config.allow_extrapolation:
        raise ConfigError(
            f"maxlen {longest} is beyond the {known} positions of '{config.model}'; lower it, or pass "
            "--allow-extrapolation to run on positions that the model was not trained on"
        )


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
    predictions = job.folder.merge_journal(order)
    there = {prediction_key(line) for line in predictions}
    absent = [key for key in order if key not in there]
    lost = [key for key in absent if key[0] in job.loaded]
    if lost:
        raise RunFolderError(
            f"{len(lost)} predictions are not in {job.folder.path}, {lost[0][2]} at {lost[0][3]} among them; if other "
            "machines made them, move their journal/ files there and run the same command again"
        )
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


def _describe_weights(checkpoint: Checkpoint) -> str:
    known = checkpoint.provenance
    if known["source"] == "hub":
        return f"hub {known['hub_id']} at {known['revision']}"
    return ", ".join(f"{name} sha256 {digest[:12]}" for name, digest in known["files"].items())


def _describe_source(loaded: LoadedExamples) -> str:
    known = loaded.provenance
    pin = known.get("revision") or known.get("version") or f"sha256 {str(known.get('sha256'))[:12]}"
    return f"{known['kind']} {known['name']}, {pin}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
