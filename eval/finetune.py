"""Fine-tune a decoder under a span plan, or train it on with long documents.

accelerate launch eval/finetune.py --task aclsum --maxlen 2048 --max-steps 20 --lora-rank 8 --output trained
accelerate launch eval/run.py --task aclsum --maxlen 2048 --model trained/best
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel

from eval.config.finetune import TrainConfig, load_train_config
from eval.errors import UserError
from eval.generation.decode import peak_bytes, reset_peak
from eval.prompting.prompts import PromptBuilder
from eval.records.record import default_output
from eval.reporting.trackers import check_trackers, start_trackers
from eval.reporting.training_report import CURVES, draw_curves, render_train_report
from eval.runtime.model import describe_weights, load_converted, resolve_plan
from eval.runtime.session import describe_session, now, run_script, set_threads, start_processes
from eval.training.checkpoint import keep_only_what_is_trained, write_checkpoint
from eval.training.folder import STATE, TrainFolder, find_checkpoint, step_of
from eval.training.lora import add_adapters, check_targets, num_trainable
from eval.training.record import train_identity, train_record, train_tasks
from eval.training.sequences import Pieces, Row, chosen_rows, count_rows, split_held_out, training_steps
from eval.training.trainer import Trainer, learning_rate_at, make_optimizer
from masformer import SpanPlan
from masformer.checkpoints.open import Checkpoint, has_learned_positions, max_positions, open_checkpoint
from masformer.checkpoints.positions import extend_table, extended_config
from masformer.loss import NextTokenLoss, check_packing
from tasks import LoadedExamples
from tasks.command import as_typed

MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training whose settings, data and folder have been checked.

    Attributes:
        before: `run.json` as it was when it was checked; None for a new training.
        start: Step of the checkpoint that it goes on from; 0 is the beginning.
    """

    config: TrainConfig
    threads: int
    checkpoint: Checkpoint
    plan: SpanPlan | None
    trained: Pieces
    held_out: Pieces
    folder: TrainFolder
    before: Mapping[str, Any] | None
    record: dict[str, Any]
    start: int

    @property
    def identity(self) -> Mapping[str, Any]:
        identity: Mapping[str, Any] = self.record["identity"]
        return identity


def main(arguments: Sequence[str]) -> int:
    """Train, and return the exit status: 0, or 2 after one line on what is wrong."""
    return run_script(arguments, _start, execute, again="the same command with --resume")


def _start(arguments: Sequence[str]) -> tuple[Job, Accelerator]:
    config = load_train_config(arguments)
    check_trackers(config.report_to)
    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    dtype = config.dtype or ("float32" if on_cpu else "bfloat16")
    if dtype not in MIXED_PRECISION:
        raise UserError(f"--dtype {dtype} is no dtype of trainings; use {', '.join(MIXED_PRECISION)}")
    if on_cpu and dtype == "float16":
        raise UserError("--dtype float16 trains on a GPU alone; use bfloat16 or float32 on a CPU")
    accelerator = start_processes(
        os.environ,
        mixed_precision=MIXED_PRECISION[dtype],
        gradient_accumulation_steps=config.gradient_accumulation,
        log_with=list(config.report_to) or None,
        project_dir=str(_folder_of(config).path),
    )
    if accelerator.device.type != "cuda" and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes"):
        raise UserError(
            "FSDP was asked for on a CPU, where accelerate trains with DDP without a word; use "
            "configs/accelerate/cpu_two_processes.yaml, or a machine with GPUs"
        )
    return prepare(config, accelerator), accelerator


def prepare(config: TrainConfig, accelerator: Accelerator) -> Job:
    """Return the training with everything checked that can be checked before weights load; writes nothing."""
    threads = set_threads(config.threads, os.environ)
    checkpoint = _extended(config, open_checkpoint(config.model, trust_remote_code=config.trust_remote_code))
    plan = resolve_plan(config.plan, checkpoint)
    if config.lora_rank:
        check_targets(config.lora_targets, checkpoint.config, trust_remote_code=config.trust_remote_code)
    loaded, pieces, held_pieces = _load_pieces(config, checkpoint)
    step_rows = config.batch_size * config.gradient_accumulation * accelerator.num_processes
    packing = config.packing and plan is not None
    total = config.max_steps
    if total is None:
        rows = count_rows(pieces, config.seed, step_rows, packing=packing)
        total = max(1, math.ceil(config.epochs * rows / step_rows))
    folder = _folder_of(config)
    dtype = next(name for name, precision in MIXED_PRECISION.items() if precision == accelerator.mixed_precision)
    identity = train_identity(config, checkpoint, plan, total, step_rows, packing, threads, dtype)
    tasks = train_tasks(config, loaded, pieces)
    before = folder.run.read_run()
    if before is None and config.resume:
        raise UserError(f"--resume: {folder.path} holds no training; leave --resume out to begin one")
    if before is not None and not config.resume:
        raise UserError(
            f"output folder {folder.path} holds a training; add --resume to go on, or give another with --output"
        )
    folder.run.check_accepts(identity, tasks)
    return Job(
        config=config,
        threads=threads,
        checkpoint=checkpoint,
        plan=plan,
        trained=pieces,
        held_out=held_pieces,
        folder=folder,
        before=deepcopy(before),
        record=train_record(config, identity, tasks, plan, pieces, held_pieces, before),
        start=_step_to_resume(config, folder) if before else 0,
    )


def _load_pieces(config: TrainConfig, checkpoint: Checkpoint) -> tuple[dict[str, LoadedExamples], Pieces, Pieces]:
    """Return the data of each task, what is trained on, and what is held out."""
    loaded = {name: config.load(name, config.split_of(name)) for name in config.tasks}
    builders = {name: PromptBuilder(checkpoint.tokenizer, config.template_of(name)) for name in config.tasks}
    examples = {name: of_task.examples for name, of_task in loaded.items()}
    trained, held_out = (
        Pieces(
            examples=some,
            builders=builders,
            objective=config.objective,
            maxlen=config.maxlen,
            truncation=config.truncation,
        )
        for some in split_held_out(examples, config.held_out, config.seed)
    )
    trained.check_targets()
    held_out.check_targets()
    return loaded, trained, held_out


def execute(job: Job, arguments: list[str], accelerator: Accelerator) -> None:
    """Train, with the other processes, and leave checkpoints, logs and a report."""
    folder = job.folder
    main_process = accelerator.is_main_process
    with folder.run.lock(job.before) if main_process else nullcontext():
        # All have looked at the folder before anyone writes to it.
        accelerator.wait_for_everyone()
        if main_process:
            session = describe_session(arguments, accelerator, job.threads) | {"first_step": job.start + 1}
            job.record["sessions"].append(session)
            folder.run.write_json("run.json", job.record)
            # From the beginning, the evaluation before the first step is made again.
            folder.cut_logs(job.start or -1)
            if job.start:
                folder.point("last", job.start)
            _introduce(job, accelerator)
        trainer, model, adapters = _build(job, accelerator)
        reset_peak(accelerator.device)
        if job.config.report_to:
            start_trackers(accelerator, "masformer-finetune", job.record["config"])
        _train(job, trainer, model, adapters)
        if main_process:
            job.record["sessions"][-1]["finished"] = now()
            _report(job)
            _conclude(job)


def _build(job: Job, accelerator: Accelerator) -> tuple[Trainer, PreTrainedModel, PeftModel | None]:
    """Return the trainer, at the step from which the training goes on, its decoder, and peft's view of that."""
    identity = job.identity
    set_seed(job.config.seed)
    model = load_converted(job.checkpoint, "float32", torch.device("cpu"), job.plan, job.config.plan, accelerator.print)
    if has_learned_positions(model.config) and job.config.maxlen > (max_positions(model.config) or job.config.maxlen):
        model = _with_longer_table(job, model)
    adapters = None
    if job.config.lora_rank:
        adapters = add_adapters(model, identity["lora_rank"], identity["lora_alpha"], job.config.lora_targets)
    if job.config.gradient_checkpointing:
        # The older name is on its way out.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    wrapped = NextTokenLoss(model)
    if identity["packing"]:
        check_packing(model)
    job.record["num_trainable"], job.record["num_parameters"] = num_trainable(wrapped)
    optimizer = make_optimizer(wrapped, job.config.weight_decay)
    _tell_deepspeed(job.config, accelerator)
    prepared, optimizer = accelerator.prepare(wrapped, optimizer)
    keep_only_what_is_trained(accelerator)
    if job.start:
        accelerator.load_state(str(job.folder.checkpoint(job.start) / STATE))
        # Its count of forward passes may be of another layout; a checkpoint lies between two steps.
        accelerator.step = 0
    trainer = Trainer(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        batch_size=job.config.batch_size,
        accumulation=job.config.gradient_accumulation,
        max_grad_norm=job.config.max_grad_norm,
    )
    return trainer, model, adapters


def _train(job: Job, trainer: Trainer, model: PreTrainedModel, adapters: PeftModel | None) -> None:
    config, folder, accelerator = job.config, job.folder, trainer.accelerator
    identity, total = job.identity, job.identity["total_steps"]
    held_rows = chosen_rows(job.held_out, config.held_out_limit, config.seed)
    job.record["num_held_out_rows"] = len(held_rows)
    every = config.eval_every or max(1, total // 10)
    steps = training_steps(job.trained, config.seed, identity["step_rows"], packing=identity["packing"])
    # A resumed training passes over the rows that it has seen.
    rows_of_steps = itertools.islice(steps, job.start, total)
    if not job.start and held_rows:
        _evaluate(job, trainer, held_rows, 0)
    bar = tqdm(
        total=total,
        initial=job.start,
        desc="training",
        disable=not accelerator.is_main_process,
        bar_format="{desc} {n}/{total} |{bar:24}| {elapsed} gone, {remaining} left{postfix}",
    )
    with bar:
        for number, rows in enumerate(rows_of_steps, start=job.start + 1):
            rate = learning_rate_at(number, identity["learning_rate"], identity["warmup_steps"], total, config.schedule)
            line = trainer.step(number, rows, rate)
            if accelerator.is_main_process:
                folder.log("steps.jsonl", line)
            accelerator.log({f"train/{name}": line[name] for name in ("loss", "learning_rate")}, step=number)
            bar.set_postfix_str(f"loss {line['loss']:.4f}", refresh=False)
            bar.update()
            if number % every == 0 or number == total:
                if held_rows:
                    _evaluate(job, trainer, held_rows, number)
                write_checkpoint(folder, trainer, model, job.checkpoint.tokenizer, adapters, number)
                if accelerator.is_main_process:
                    peaks = (job.record["peak_bytes"], peak_bytes(accelerator.device))
                    job.record["peak_bytes"] = max((peak for peak in peaks if peak is not None), default=None)
                    _report(job)


def _evaluate(job: Job, trainer: Trainer, rows: Sequence[Row], step: int) -> None:
    line = {"step": step} | trainer.evaluate(rows, step)
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        job.folder.log("evals.jsonl", line)
        tqdm.write(f"step {step:>6}  held-out loss {line['loss']:.4f} over {line['num_targets']:,} targets")
    accelerator.log({"held_out/loss": line["loss"]}, step=step)


def _introduce(job: Job, accelerator: Accelerator) -> None:
    config, identity = job.config, job.identity
    print(f"model   {config.model}: {describe_weights(job.checkpoint)}, {identity['dtype']} over float32 weights")
    print(f"spans   {job.record['plan_description']}")
    held, known = len(job.held_out.items), len(job.trained.items)
    print(
        f"data    {', '.join(config.task)}: {known} examples to train on, {held} held out, objective {config.objective}"
    )
    packed = "packed" if identity["packing"] else "one document each"
    print(
        f"steps   {identity['total_steps']} of {identity['step_rows']} row(s), {packed}, at most {config.maxlen} tokens"
    )
    print(f"machine {accelerator.device.type}, {accelerator.num_processes} process(es), {job.threads} thread(s) each")
    print(f"folder  {job.folder.path}" + (f": goes on after step {job.start}" if job.start else ""))


def _report(job: Job) -> None:
    folder = job.folder
    steps, evals = folder.read_log("steps.jsonl"), folder.read_log("evals.jsonl")
    best = folder.step_of("best")
    folder.run.write_json("run.json", job.record)
    folder.run.write_text(CURVES, draw_curves(steps, evals))
    folder.run.write_text("report.md", render_train_report(job.record, steps, evals, best))


def _conclude(job: Job) -> None:
    evals = job.folder.read_log("evals.jsonl")
    if evals:
        first, last = evals[0], evals[-1]
        lowest = min(evals, key=lambda line: line["loss"])
        print(
            f"held-out loss {first['loss']:.4f} at step {first['step']}, {last['loss']:.4f} at step {last['step']}, "
            f"lowest {lowest['loss']:.4f} at step {lowest['step']}"
        )
    again = as_typed("accelerate launch eval/run.py")
    print(f"folder: {job.folder.path}; evaluate with: {again} --model {job.folder.path}/best ...")


def _tell_deepspeed(config: TrainConfig, accelerator: Accelerator) -> None:
    """Give DeepSpeed, which counts and clips by itself, the settings of the command line."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation,
            "gradient_clipping": config.max_grad_norm,
        }
        accelerator.gradient_accumulation_steps = config.gradient_accumulation


def _extended(config: TrainConfig, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint, for positions up to maxlen if that was asked for."""
    known = max_positions(checkpoint.config)
    if known is None or config.maxlen <= known:
        return checkpoint
    if config.extend_positions is None:
        how = "copy" if has_learned_positions(checkpoint.config) else "yarn or linear"
        raise UserError(
            f"maxlen {config.maxlen} is beyond the {known} positions of '{config.model}'; lower it, or pass "
            f"--extend-positions {how}"
        )
    longer = extended_config(checkpoint.config, config.maxlen, config.extend_positions)
    # A learned table grows once its weights are there.
    return checkpoint if config.extend_positions == "copy" else replace(checkpoint, config=longer)


def _with_longer_table(job: Job, model: PreTrainedModel) -> PreTrainedModel:
    from masformer import apply_plan, remove_plan

    remove_plan(model)
    longer = extend_table(model, job.config.maxlen)
    if job.plan is not None:
        apply_plan(longer, job.plan)
    return longer


def _folder_of(config: TrainConfig) -> TrainFolder:
    if isinstance(config.resume, Path):
        return TrainFolder(find_checkpoint(config.resume))
    return TrainFolder(config.output or default_output("train", config, ("output", "resume", "report_to")))


def _step_to_resume(config: TrainConfig, folder: TrainFolder) -> int:
    chosen = config.resume if isinstance(config.resume, Path) else None
    if chosen is not None and chosen.resolve() != folder.path.resolve():
        step: int | None = step_of(chosen)
    else:
        step = folder.step_of("last")
    if step is None:
        return 0
    if not (folder.checkpoint(step) / STATE).is_dir():
        raise UserError(
            f"--resume {folder.checkpoint(step)} holds no {STATE}/; it is a model, and no checkpoint of a training"
        )
    return step


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
