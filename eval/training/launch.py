"""The processes of a training: mixed precision, accumulation, and launches that would train as something else."""

from __future__ import annotations

import os

import torch

from eval.config.finetune import TrainConfig
from eval.errors import UserError
from eval.reporting.trackers import check_trackers
from eval.runtime.processes import AcceleratedProcess, start_accelerated
from eval.training.job import folder_of

MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def start_training(config: TrainConfig) -> tuple[AcceleratedProcess, str]:
    """Return this process, and the dtype of the computation.

    Raises:
        UserError: The dtype or the launch cannot train here.
    """
    check_trackers(config.report_to)
    if config.distill is not None and (_is_on("ACCELERATE_USE_FSDP") or _is_on("ACCELERATE_USE_DEEPSPEED")):
        raise UserError(
            f"--distill {config.distill:g} needs whole weights in each process, and FSDP and DeepSpeed shard them; "
            "launch with configs/accelerate/several_gpus.yaml, or leave --distill out"
        )
    on_cpu = not torch.cuda.is_available() or _is_on("ACCELERATE_USE_CPU")
    dtype = config.dtype or ("float32" if on_cpu else "bfloat16")
    if dtype not in MIXED_PRECISION:
        raise UserError(f"--dtype {dtype} is no dtype of trainings; use {', '.join(MIXED_PRECISION)}")
    if on_cpu and dtype == "float16":
        raise UserError("--dtype float16 trains on a GPU alone; use bfloat16 or float32 on a CPU")
    process = start_accelerated(
        config.threads,
        mixed_precision=MIXED_PRECISION[dtype],
        gradient_accumulation_steps=config.gradient_accumulation,
        log_with=list(config.report_to) or None,
        project_dir=str(folder_of(config).path),
    )
    if process.device_type != "cuda" and _is_on("ACCELERATE_USE_FSDP"):
        raise UserError(
            "FSDP was asked for on a CPU, where accelerate trains with DDP without a word; use "
            "configs/accelerate/cpu_two_processes.yaml, or a machine with GPUs"
        )
    # What the launcher chose wins over the flag, as in accelerate.
    precision = process.accelerator.mixed_precision
    return process, next(name for name, value in MIXED_PRECISION.items() if value == precision)


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
