"""The folder of a training: its record, opened or resumed, and its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.config.finetune import TrainConfig
from eval.errors import UserError
from eval.prompting.chat import ChatTemplate
from eval.prompting.prompts import PromptBuilder
from eval.records.merging import selection
from eval.records.run_folder import default_output
from eval.records.schema import Evaluation, Prediction, TrainingIdentity, TrainingRecord, TrainingStep, TrainingTask
from eval.reporting.training_report import CURVES, describe_teacher, draw_curves, render_train_report
from eval.runtime.jobs import Job, print_facts, settings_json, template_clock
from eval.runtime.model import OpenedModel, describe_weights, open_configured, resolve_plan
from eval.runtime.processes import AcceleratedProcess
from eval.training.folder import STATE, TrainFolder, find_checkpoint, step_of
from eval.training.lora import check_targets
from eval.training.sequences import Pieces, count_rows, in_order, split_held_out
from eval.training.teacher import check_teacher
from masformer import SpanPlan
from masformer.checkpoints.open import Checkpoint, has_learned_positions, max_positions
from masformer.checkpoints.positions import extended_config
from masformer.plans.shapes import layers_with_states
from tasks import LoadedExamples
from tasks.command import as_typed


@dataclass(kw_only=True)
class TrainingJob(Job[TrainingRecord, Prediction]):
    """The folder of a training, and what is trained on.

    Attributes:
        config: Settings of the training.
        training: Checkpoints and logs of the folder.
        model: The model to begin with.
        trained: Sequences that are trained on.
        held_out: Sequences that measure the loss.
        teacher_plan: Spans of the teacher of `--distill`; None leaves it untouched.
        first: Step of the checkpoint from which it goes on; 0 is the beginning.
    """

    config: TrainConfig
    training: TrainFolder
    model: OpenedModel
    trained: Pieces
    held_out: Pieces
    teacher_plan: SpanPlan | None
    first: int

    @property
    def identity(self) -> TrainingIdentity:
        return self.record.identity

    def start(self, process: AcceleratedProcess, argv: Sequence[str]) -> None:
        """Write what is about to be done."""
        process.wait()  # all have looked at the folder before the main process writes
        if not process.is_main:
            return
        self.add_session(process, argv, first_step=self.first + 1)
        self.folder.write_json("run.json", self.record)  # the first of all files: without it the folder is no training
        # From the beginning, the evaluation before the first step is made again.
        self.training.cut_logs(self.first or -1)
        if not self.record.checksums:
            self.training.note_states()
        self.change(checksums=True)  # now that the lines of earlier versions have theirs
        self.folder.write_json("run.json", self.record)
        if self.first:
            self.training.point_again(self.first)
        self.introduce(process)

    def introduce(self, process: AcceleratedProcess) -> None:
        """Print what is trained on what."""
        config, identity = self.config, self.identity
        packed = "packed" if identity.packing else "one document each"
        where = f": goes on after step {self.first}" if self.first else ""
        num_trained, num_held_out = len(self.trained.items), len(self.held_out.items)
        print_facts(
            {
                "model": f"{self.model.record.label}: {describe_weights(self.model.checkpoint)}, {identity.dtype} over "
                "float32 weights",
                "spans": self.record.plan_description,
                "data": f"{', '.join(config.task)}: {num_trained} examples to train on, {num_held_out} held out, "
                f"objective {config.objective}",
                "teacher": describe_teacher(identity) or "",
                "steps": f"{identity.total_steps} of {identity.step_rows} row(s), {packed}, at most {config.maxlen} "
                "tokens",
                "machine": process.describe(),
                "folder": f"{self.folder.path}{where}",
            }
        )

    def log(self, line: TrainingStep | Evaluation) -> None:
        """Append a line to its log, as `TrainFolder.log`."""
        self.note_ways()
        self.training.log(line)

    def report(self) -> None:
        """Write the record, the curves and the report."""
        steps, evals = self.training.steps(), self.training.evaluations()
        self.folder.write_json("run.json", self.record)
        self.folder.write_text(CURVES, draw_curves(steps, evals))
        best = self.training.step_of("best")
        self.folder.write_text("report.md", render_train_report(self.record, steps, evals, best))

    def finish(self) -> None:
        """Report, and print what the training came to."""
        self.end()
        self.report()
        self.training.clean()
        if evals := self.training.evaluations():
            first, last, lowest = evals[0], evals[-1], min(evals, key=lambda line: line.trained_on)
            print(
                f"held-out loss {first.loss:.4f} at step {first.step}, {last.loss:.4f} at step {last.step}, "
                f"lowest {lowest.loss:.4f} at step {lowest.step}"
                if lowest.mixture is None
                else f"held-out loss {first.loss:.4f} and KL {first.kl_divergence:.4f} at step {first.step}, "
                f"{last.loss:.4f} and {last.kl_divergence:.4f} at step {last.step}; best at step {lowest.step}"
            )
        path = self.folder.path
        again = as_typed("accelerate launch eval/run.py")
        print(f"folder: {path}; evaluate with: {again} --model {path}/best ...")


def open_training(config: TrainConfig, process: AcceleratedProcess, dtype: str) -> TrainingJob:
    """Return the folder of a training, new or to be resumed; writes nothing and loads no weights.

    Args:
        config: Settings of the training.
        process: This process.
        dtype: dtype of the computation.

    Raises:
        UserError: A setting does not fit, or the folder holds another training.
    """
    opened = open_configured(config)
    _check_trainable(config, opened)
    checkpoint = _extended(config, opened)
    plan = resolve_plan(config.plan, checkpoint)
    teacher_plan = None
    if config.distill is not None:
        # A teacher reads packed rows too, and these only a plan keeps apart.
        teacher_plan = resolve_plan("auto", checkpoint, keeps_full=plan is not None)
        check_teacher(config.distill, plan, teacher_plan, is_extended=_extends(config, opened))
    if config.lora_rank:
        check_targets(config.lora_targets, checkpoint.config, trust_remote_code=config.trust_remote_code)
    training = folder_of(config)
    saved = training.run.read_record(TrainingRecord)
    chat = ChatTemplate(checkpoint.tokenizer, config.chat_settings())
    has_clock = any(config.template_of(name).chat for name in config.tasks) and chat.uses_clock
    date = process.broadcast(template_clock(has_clock, config.template_date, saved, training.path))
    data, trained, held_out = _load_pieces(config, checkpoint, date)
    if checkpoint.has_tokens_beyond:
        for example in (one for loaded in data.values() for one in loaded.examples):
            text = "\n".join((example.context, example.query or "", *example.references))
            checkpoint.check_text(text, f"example '{example.id}'")
        for pieces in (trained, held_out):
            for piece in (one for row in in_order(pieces) for one in row):
                checkpoint.check_tokens(piece.token_ids, f"example '{piece.id}'")
    step_rows = config.batch_size * config.gradient_accumulation * process.count
    # States know no boundary between documents.
    packing = config.packing and plan is not None and not layers_with_states(checkpoint.config)
    total = config.max_steps
    if total is None:
        rows = count_rows(trained, config.seed, step_rows, packing=packing)
        total = max(1, math.ceil(config.epochs * rows / step_rows))
    if saved is None and config.resume:
        raise UserError(f"--resume: {training.path} holds no training; leave --resume out to begin one")
    if saved is not None and not config.resume:
        raise UserError(
            f"output folder {training.path} holds a training; add --resume to go on, or give another with --output"
        )
    # Weights are float32 under any dtype of the computation.
    model = OpenedModel(process=process, checkpoint=checkpoint, plan=plan, dtype="float32", requested_plan=config.plan)
    identity = _identity(config, model, total, step_rows, packing=packing, dtype=dtype, teacher_plan=teacher_plan)
    tasks = {
        name: TrainingTask(
            source=dict(loaded.provenance),
            split=config.split_of(name),
            version=config.tasks[name].version,
            prompt_sha256=trained.builders[name].sha256,
        )
        for name, loaded in data.items()
    }
    training.run.check_accepts(saved, identity, tasks)
    record = TrainingRecord(
        config={name: value for name, value in settings_json(config).items() if name not in config.unset_options},
        plan_description=model.plan_description,
        identity=identity,
        tasks=tasks,
        num_train_examples=len(trained.items),
        num_held_out_examples=len(held_out.items),
        held_out_documents={
            task: sorted({example.document_id for example in examples}) for task, examples in held_out.examples.items()
        },
        peak_bytes=saved.peak_bytes if saved else None,
        sessions=list(saved.sessions) if saved else [],
        template_date=date,
        checksums=saved.checksums if saved else True,
    )
    return TrainingJob(
        folder=training.run,
        line=Prediction,  # trainings have no journal
        saved=saved,
        record=record,
        config=config,
        training=training,
        model=model,
        trained=trained,
        held_out=held_out,
        teacher_plan=teacher_plan,
        first=_step_to_resume(config, training, saved, process) if saved else 0,
    )


def _identity(
    config: TrainConfig,
    model: OpenedModel,
    total: int,
    step_rows: int,
    *,
    packing: bool,
    dtype: str,
    teacher_plan: SpanPlan | None,
) -> TrainingIdentity:
    return TrainingIdentity(
        task=list(config.task),
        model=model.record,
        plan=model.plan_json,
        dtype=dtype,
        objective=config.objective,
        distill=config.distill,
        teacher_plan=None if config.distill is None else "untouched" if teacher_plan is None else str(teacher_plan),
        maxlen=config.maxlen,
        limit=config.limit,
        **selection(config),
        held_out=config.held_out,
        held_out_limit=config.held_out_limit,
        truncation=config.truncation,
        extend_positions=config.extend_positions,
        schedule=config.schedule,
        min_words=config.min_words,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        lora_rank=config.lora_rank,
        seed=config.seed,
        batch_size=config.batch_size,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_targets=list(config.lora_targets),
        learning_rate=config.learning_rate or (2e-4 if config.lora_rank else 5e-5),
        warmup_steps=min(100, total // 10) if config.warmup_steps is None else config.warmup_steps,
        total_steps=total,
        step_rows=step_rows,
        packing=packing,
        threads=model.process.threads,
    )


def _load_pieces(
    config: TrainConfig, checkpoint: Checkpoint, date: str | None
) -> tuple[Mapping[str, LoadedExamples], Pieces, Pieces]:
    """Return the data of each task, what is trained on, and what is held out."""
    data = {name: config.load(name, config.split_of(name)) for name in config.tasks}
    chat = config.chat_settings(date)
    builders = {name: PromptBuilder(checkpoint.tokenizer, config.template_of(name), chat) for name in config.tasks}
    for name, builder in builders.items():
        builder.check()
        builder.check_letters(name, [one.context for one in data[name].examples])
    examples = {name: loaded.examples for name, loaded in data.items()}
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
    return data, trained, held_out


def _extends(config: TrainConfig, checkpoint: Checkpoint) -> bool:
    """Return whether maxlen is beyond the positions of the checkpoint."""
    known = max_positions(checkpoint.config)
    return known is not None and config.maxlen > known


def _extended(config: TrainConfig, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint, for positions up to maxlen if that was requested."""
    known = max_positions(checkpoint.config)
    if not _extends(config, checkpoint):
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


def _check_trainable(config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Raise `UserError` for weights that are not trained, or that a new adapter would not fit again."""
    if checkpoint.quantization is not None:
        raise UserError(
            f"weights {checkpoint.quantization} are not trained; give a model with plain weights, without --quantize"
        )
    if checkpoint.adapter is not None and config.lora_rank:
        raise UserError(
            f"{checkpoint.adapter.name} would be merged into the base of the new one, which no file would hold; merge "
            f"and save it first, with: masformer convert {checkpoint.adapter.reference} --plan ... --output DIR, or "
            "leave --lora-rank out to train all weights"
        )


def folder_of(config: TrainConfig) -> TrainFolder:
    """Return the folder that settings name, or one named after them."""
    if isinstance(config.resume, Path):
        return TrainFolder(find_checkpoint(config.resume))
    free = ("output", "resume", "report_to", *config.unset_options)
    return TrainFolder(config.output or default_output("train", config, free))


def _step_to_resume(
    config: TrainConfig, folder: TrainFolder, saved: TrainingRecord, process: AcceleratedProcess
) -> int:
    """Return the step of the checkpoint from which a training goes on, once it is known to be whole; 0 without one."""
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
    problem = None
    if process.is_main:  # it reads as much as a resume does
        try:
            folder.check_state(step, has_evaluations=bool(saved.num_held_out_rows))
        except UserError as error:
            problem = str(error)
    if problem := process.broadcast(problem):
        raise UserError(problem)
    return step
