"""The main job: generate at several truncation lengths, score, report.

accelerate launch eval/run.py --task plos --maxlen 1024 2048 4096 8192 --limit 4
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
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
from eval.run_folder import Key, RunFolder, RunFolderError
from eval.score import score_predictions
from eval.session import LaunchError, describe_session, now, set_threads, start_processes
from eval.work import answer_share, check_prompts, plan_work, share
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


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit status: 0, or 2 after one line on what is wrong."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Rank 0 of each machine speaks; a mistake in the settings is the same for all of them.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        config = load_config(arguments)
        accelerator = start_processes(os.environ)
        run(config, list(arguments), accelerator)
    except USER_ERRORS as error:
        if speaks:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if speaks:
            print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        return 130
    accelerator.end_training()
    return 0


def run(config: RunConfig, arguments: list[str], accelerator: Accelerator) -> None:
    """Do the main job in this process, and with the others at its start and end."""
    say = accelerator.print
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

    done, torn = folder.read_predictions()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        session = describe_session(arguments, accelerator, threads)
        record = merge_record(held, identity, tasks, session, config, plan)
        folder.write_json("run.json", record)
        folder.write_lines("examples.jsonl", merge_examples(folder.read_examples(), loaded))
    total = sum(len(item.lengths) for item in work)
    missing = sum(item.key(maxlen) not in done for item in work for maxlen in item.lengths)
    say(f"model   {config.model}: {_describe_weights(checkpoint)}, {dtype}")
    say(f"spans   {plan if plan is not None else 'untouched'}")
    for name in config.task:
        say(f"task    {name}: {len(loaded[name].examples)} examples, {_describe_source(loaded[name])}")
    say(f"lengths {', '.join(map(str, config.maxlen))}, {accelerator.num_processes} process(es), {threads} thread(s)")
    say(f"folder  {folder.path}: {total - missing} of {total} predictions are there")
    if torn:
        say(f"        {torn} torn line(s) of an interrupted run dropped")

    if missing:
        model = checkpoint.load_model(DTYPES[dtype], accelerator.device)
        if plan is not None:
            _convert(model, plan, config.plan, say)
        answer_share(share(work, accelerator), model, plan, folder, set(done), accelerator, config)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _finish(folder, config)


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


def _finish(folder: RunFolder, config: RunConfig) -> None:
    """Merge the journals, score, write the report, and print its table."""
    record = folder.read_run()
    assert record is not None
    examples = folder.read_examples()
    position = {(line["task"], line["id"]): index for index, line in enumerate(examples)}
    templates = {name: task["template"] for name, task in record["tasks"].items()}
    order: dict[Key, int] = {}
    for (task, example_id), _ in sorted(position.items(), key=lambda entry: entry[1]):
        for maxlen in record["tasks"][task]["maxlen"]:
            order[task, templates[task], example_id, maxlen] = len(order)
    predictions = folder.merge_journal(order)
    results = score_predictions(predictions, examples, config.profile, record["identity"]["model"]["reference"])
    record["sessions"][-1]["finished"] = now()
    folder.write_json("run.json", record)
    folder.write_json("scores.json", {"results": results})
    folder.write_text("report.md", render_report(record, results))
    for name in record["tasks"]:
        rows = table([result for result in results if result["task"] == name])
        print(f"\n{name}, ROUGE profile {config.profile}\n{as_text(rows)}")
    print(f"\n{LEGEND}\nfolder: {folder.path}")


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
