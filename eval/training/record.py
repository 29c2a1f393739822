"""What `run.json` says about a training, and the settings by which a folder knows its own training again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.config.finetune import TrainConfig
from eval.training.sequences import Pieces
from masformer import SpanPlan
from masformer.checkpoints.open import Checkpoint
from tasks import LoadedExamples


def train_identity(
    config: TrainConfig,
    checkpoint: Checkpoint,
    plan: SpanPlan | None,
    total: int,
    step_rows: int,
    packing: bool,
    threads: int,
    dtype: str,
) -> dict[str, Any]:
    """Return what a resumed training must share with the one it goes on with."""
    rate = config.learning_rate or (2e-4 if config.lora_rank else 5e-5)
    fixed = ("objective", "maxlen", "limit", "held_out", "held_out_limit", "truncation", "extend_positions", "schedule")
    more = ("min_words", "weight_decay", "max_grad_norm", "gradient_checkpointing", "lora_rank", "seed", "batch_size")
    return {
        "task": list(config.task),
        "model": checkpoint.provenance,
        "plan": None if plan is None else plan.to_json(),
        "dtype": dtype,
        **{name: getattr(config, name) for name in (*fixed, *more)},
        "lora_alpha": config.lora_alpha or 2 * config.lora_rank,
        "lora_targets": list(config.lora_targets),
        "learning_rate": rate,
        "warmup_steps": min(100, total // 10) if config.warmup_steps is None else config.warmup_steps,
        "total_steps": total,
        "step_rows": step_rows,
        "packing": packing,
        "threads": threads,
    }


def train_tasks(config: TrainConfig, loaded: Mapping[str, LoadedExamples], pieces: Pieces) -> dict[str, dict[str, Any]]:
    """Return what pins the data and the prompts of each task."""
    return {
        name: {
            "source": dict(of_task.provenance),
            "split": config.split_of(name),
            "version": config.tasks[name].version,
            "prompt_sha256": pieces.builders[name].sha256,
        }
        for name, of_task in loaded.items()
    }


def train_record(
    config: TrainConfig,
    identity: dict[str, Any],
    tasks: dict[str, dict[str, Any]],
    plan: SpanPlan | None,
    trained: Pieces,
    held_out: Pieces,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return `run.json`; what is None becomes known once the model is there.

    Args:
        config: Settings.
        identity: Of `train_identity`.
        tasks: Of `train_tasks`.
        plan: Of the model.
        trained: What is trained on.
        held_out: What is not.
        before: `run.json` of the sessions before; None for a new training.
    """
    return {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "plan_description": "untouched" if plan is None else str(plan),
        "identity": identity,
        "tasks": tasks,
        "num_train_examples": len(trained.items),
        "num_held_out_examples": len(held_out.items),
        "held_out_documents": {
            task: sorted({example.document_id for example in of_task}) for task, of_task in held_out.examples.items()
        },
        "num_held_out_rows": None,
        "num_trainable": None,
        "num_parameters": None,
        "peak_bytes": before["peak_bytes"] if before else None,
        "sessions": before["sessions"] if before else [],
    }
