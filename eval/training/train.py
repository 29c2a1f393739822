"""The training itself: model, adapters and optimizer, steps, evaluations, checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import load as load_state_file
from accelerate.utils import set_seed
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel

from eval.config.finetune import TrainConfig
from eval.errors import UserError
from eval.records.schema import Evaluation, TrainingStep
from eval.runtime.memory import peak_bytes
from eval.runtime.model import load_converted
from eval.runtime.processes import AcceleratedProcess
from eval.training.checkpoint import keep_only_what_is_trained, write_checkpoint
from eval.training.folder import STATE
from eval.training.job import TrainingJob
from eval.training.lora import add_adapters, num_trainable
from eval.training.sequences import Row, chosen_rows, training_steps
from eval.training.teacher import make_teacher
from eval.training.trainer import Trainer, learning_rate_at, make_optimizer
from masformer import apply_plan, remove_plan
from masformer.attention.ways import check_attention_ways
from masformer.checkpoints.open import has_learned_positions, max_positions
from masformer.checkpoints.positions import extend_table
from masformer.errors import first_line, is_out_of_memory
from masformer.loss import DistilledLoss, NextTokenLoss, check_packing


def build_trainer(job: TrainingJob, process: AcceleratedProcess) -> tuple[Trainer, PreTrainedModel, PeftModel | None]:
    """Return the trainer, at the step from which the training goes on, its decoder, and peft's view of that."""
    config, identity, accelerator = job.config, job.identity, process.accelerator
    set_seed(config.seed)
    checkpoint, plan = job.model.checkpoint, job.model.plan
    check_attention_ways(process.device)
    model = load_converted(
        checkpoint, "float32", torch.device("cpu"), plan, config.plan, process.print, is_served=False
    )
    if has_learned_positions(model.config) and config.maxlen > (max_positions(model.config) or config.maxlen):
        model = _with_longer_table(job, model)
    adapters = None
    if config.lora_rank:
        base = identity.model
        adapters = add_adapters(model, identity.lora_rank, identity.lora_alpha, config.lora_targets, base)
    if config.gradient_checkpointing:
        # The older name is on its way out.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    wrapped = NextTokenLoss(model)
    if config.distill is not None:
        teacher = make_teacher(config.distill, job.model, job.teacher_plan, model, adapters)
        wrapped = DistilledLoss(model, teacher)
    if identity.packing:
        check_packing(model)
    trainable, parameters = num_trainable(wrapped)
    job.change(num_trainable=trainable, num_parameters=parameters)
    optimizer = make_optimizer(wrapped, config.weight_decay)
    _tell_deepspeed(config, accelerator)
    prepared, optimizer = accelerator.prepare(wrapped, optimizer)
    keep_only_what_is_trained(accelerator)
    if job.first:
        state = job.training.checkpoint(job.first) / STATE
        try:
            random_states = state / f"random_states_{accelerator.process_index}.pkl"
            if random_states.is_file() or not accelerator.process_index:  # a resume may have more processes
                load_state_file(random_states)  # accelerate goes on without one that it cannot read
            accelerator.load_state(str(state))
        except Exception as error:  # torch, safetensors and pickle each have their own
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{state} cannot be read in full ({first_line(error)}); give --resume another checkpoints/step-*, or "
                "begin anew with another --output"
            ) from error
        # Its count of forward passes may be of another layout; a checkpoint lies between two steps.
        accelerator.step = 0
    trainer = Trainer(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation,
        max_grad_norm=config.max_grad_norm,
        num_losses=1 if config.distill is None else 3,
    )
    return trainer, model, adapters


def train(job: TrainingJob, trainer: Trainer, model: PreTrainedModel, adapters: PeftModel | None) -> None:
    """Train to the last step, with evaluations and checkpoints on the way."""
    config, identity, accelerator = job.config, job.identity, trainer.accelerator
    total = identity.total_steps
    held_rows = chosen_rows(job.held_out, config.held_out_limit, config.seed)
    job.change(num_held_out_rows=len(held_rows))
    every = config.eval_every or max(1, total // 10)
    steps = training_steps(job.trained, config.seed, identity.step_rows, packing=identity.packing)
    # A resumed training passes over the rows that it has seen.
    rows_of_steps = itertools.islice(steps, job.first, total)
    if not job.first and held_rows:
        _evaluate(job, trainer, held_rows, 0)
    bar = tqdm(
        total=total,
        initial=job.first,
        desc="training",
        disable=None if accelerator.is_main_process else True,  # none where there is no terminal
        bar_format="{desc} {n}/{total} |{bar:12}| {elapsed} elapsed, {remaining} left{postfix}",
        dynamic_ncols=True,
    )
    with bar:
        for number, rows in enumerate(rows_of_steps, start=job.first + 1):
            rate = learning_rate_at(number, identity.learning_rate, identity.warmup_steps, total, config.schedule)
            line = trainer.step(number, rows, rate)
            if accelerator.is_main_process:
                job.log(line)
            accelerator.log(_logged("train", line) | {"train/learning_rate": line.learning_rate}, step=number)
            bar.set_postfix_str(f"loss {line.loss:.4f}", refresh=False)
            bar.update()
            if number % every == 0 or number == total:
                if held_rows:
                    _evaluate(job, trainer, held_rows, number)
                tokenizer = job.model.checkpoint.tokenizer
                how = config.extend_positions
                write_checkpoint(job.training, trainer, model, tokenizer, adapters, number, extend_positions=how)
                if accelerator.is_main_process:
                    peaks = (job.record.peak_bytes, peak_bytes(accelerator.device))
                    job.change(peak_bytes=max((peak for peak in peaks if peak is not None), default=None))
                    job.report()


def _evaluate(job: TrainingJob, trainer: Trainer, rows: Sequence[Row], step: int) -> None:
    line = trainer.evaluate(rows, step)
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        job.log(line)
        divergence = "" if line.kl_divergence is None else f", KL {line.kl_divergence:.4f}"
        tqdm.write(f"step {step:>6}  held-out loss {line.loss:.4f}{divergence} over {line.num_targets:,} targets")
    accelerator.log(_logged("held_out", line), step=step)


def _logged(part: str, line: TrainingStep | Evaluation) -> dict[str, float]:
    """Return what trackers get of a line."""
    losses = {"loss": line.loss, "kl_divergence": line.kl_divergence}
    return {f"{part}/{name}": value for name, value in losses.items() if value is not None}


def _with_longer_table(job: TrainingJob, model: PreTrainedModel) -> PreTrainedModel:
    remove_plan(model)
    longer = extend_table(model, job.config.maxlen)
    if job.model.plan is not None:
        apply_plan(longer, job.model.plan)
    return longer


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
