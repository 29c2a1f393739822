"""Writing and reading the checkpoints of a training, by all processes together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.records.schema import Evaluation
from eval.training.folder import STATE, TrainFolder
from eval.training.lora import merged_state, trainable_names
from eval.training.trainer import Trainer
from masformer import save_checkpoint, stored_plan
from masformer.checkpoints.lora import note_training

_TRAINABLE = "trainable.safetensors"


def write_checkpoint(
    folder: TrainFolder,
    trainer: Trainer,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapters: PeftModel | None,
    step: int,
    *,
    extend_positions: str | None,
) -> None:
    """Write a checkpoint: a model folder, and in it what a resume needs.

    Args:
        folder: Folder of the training.
        trainer: Trainer with the weights.
        model: Decoder within the trainer; its config is written.
        tokenizer: Tokenizer to write beside it.
        adapters: peft's view of the model; None when all weights are trained.
        step: Last step.
        extend_positions: How the positions of the base were extended; None where they are its own.

    Raises:
        UserError: The disk is full, or gone; the checkpoint before is whole.
    """
    accelerator = trainer.accelerator
    main_process = accelerator.is_main_process
    if main_process:
        folder.begin_checkpoint(step)
    accelerator.wait_for_everyone()
    folder.written(step, lambda: accelerator.save_state(str(folder.partial(step) / STATE)))
    accelerator.wait_for_everyone()  # each writes its own random state
    if main_process:
        folder.note_state(step)
    # Gathered by all processes where weights are sharded.
    weights = accelerator.get_state_dict(trainer.model)
    if main_process:
        own = {name.removeprefix("module.").removeprefix("model."): value for name, value in weights.items()}

        def write() -> None:
            save_checkpoint(model, tokenizer, folder.partial(step), merged_state(model, own))
            if adapters is not None:
                alone = folder.partial(step) / "adapter"
                state = {f"base_model.model.{name}": value for name, value in own.items()}
                adapters.save_pretrained(str(alone), state_dict=state)
                note_training(alone, stored_plan(model.config), extend_positions)

        folder.written(step, write)
        best = _best_step(folder.evaluations(), step)
        folder.end_checkpoint(step, is_best=best == step)
    accelerator.wait_for_everyone()


def _best_step(evals: Sequence[Evaluation], step: int) -> int:
    """Return the step of the lowest held-out loss among the checkpoints; the newest where nothing is held out."""
    with_checkpoint = [line for line in evals if 0 < line.step <= step]
    return min(with_checkpoint, key=lambda line: line.trained_on).step if with_checkpoint else step


def keep_only_what_is_trained(accelerator: Accelerator) -> None:
    """Let `save_state` write, and `load_state` read, only the weights that are trained, where they are not sharded."""

    def save(models: list[torch.nn.Module], weights: list[Any], folder: str) -> None:
        if not weights:
            return  # sharded: FSDP and DeepSpeed write their own
        weights.clear()
        if accelerator.is_main_process:
            model = accelerator.unwrap_model(models[0])
            names = trainable_names(model)
            trained = {name: value.detach().contiguous() for name, value in model.named_parameters() if name in names}
            save_file(trained, Path(folder) / _TRAINABLE)

    def load(models: list[torch.nn.Module], folder: str) -> None:
        if not models:
            return  # sharded: FSDP and DeepSpeed read their own
        file = Path(folder) / _TRAINABLE
        model = accelerator.unwrap_model(models.pop())
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in load_file(file).items():
                parameters[name].copy_(value)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
