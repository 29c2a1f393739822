"""What a training will take, before any weights load: rows, steps, attention operations, time, memory.

Shapes: R rows of a step, T tokens of the longest row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

from eval.runtime.processes import AcceleratedProcess
from eval.runtime.speed import WeightCount, count_weights, in_hours, product_speed
from eval.training.job import TrainingJob
from eval.training.lora import num_trained
from eval.training.sequences import Row, training_steps
from masformer import SpanPlan, full_plan
from masformer.plans.cost import PlanCost

# Steps whose rows are counted; the others are taken to be like these.
_COUNTED = 64
_GIB = 2**30


def print_forecast(job: TrainingJob, process: AcceleratedProcess) -> None:
    """Print what the training would do and take; writes nothing."""
    if process.is_main:
        job.introduce(process)
        print(f"\n{describe_training(job, process)}")


def describe_training(job: TrainingJob, process: AcceleratedProcess) -> str:
    """Return what the training would take, for people."""
    config, identity, checkpoint = job.config, job.identity, job.model.checkpoint
    plan, full = job.model.plan or full_plan(checkpoint.config), full_plan(checkpoint.config)
    weights = count_weights(checkpoint.config, trust_remote_code=config.trust_remote_code)
    steps = training_steps(job.trained, config.seed, identity.step_rows, packing=identity.packing)
    counted = list(itertools.islice(steps, min(identity.total_steps, _COUNTED)))
    rows = [row for step in counted for row in step]
    share = identity.total_steps / len(counted)
    num_tokens = share * sum(len(piece) for row in rows for piece in row)
    ours, whole = (share * _attention(checkpoint.config, one, rows) for one in (plan, full))
    # A backward pass takes two products for each of the forward pass, which checkpointing makes once more.
    passes = 4 if identity.gradient_checkpointing else 3
    products = 2 * (weights.body + weights.head) * num_tokens
    operations = passes * (products + ours)
    if config.distill is not None:  # the teacher's forward pass
        operations += products + share * _attention(checkpoint.config, job.teacher_plan or full, rows)
    width = int(checkpoint.config.get_text_config(decoder=True).hidden_size)
    dtype = getattr(torch, identity.dtype)
    speed = product_speed(width, dtype, process.device)
    of_rows = [sum(map(len, row)) for row in rows]
    state, activations = _memory(job, weights, config.batch_size * max(of_rows))
    facts = {
        "rows": f"{len(rows) * share:,.0f} of {sum(of_rows) / len(rows):,.0f} tokens on average, {max(of_rows):,} at "
        "most",
        "tokens": f"{num_tokens:,.0f} in {identity.total_steps:,} steps",
        "plan": f"{ours:.3g} attention operations forward, {ours / whole:.1%} of full attention's: "
        f"{1 - ours / whole:.1%} saved",
        "time": f"{in_hours(operations / speed / process.count)} at least, without evaluations and checkpoints",
        "": f"{process.count} process(es) at {speed / 1e9:,.0f} GFLOP/s, by a product timed now; steps on a CPU took "
        "up to three times as long",
        "memory": f"about {(state + activations) / _GIB:.1f} GiB beside the program, a process that shards nothing: "
        f"{state / _GIB:.1f} of weights, gradients and optimizer, {activations / _GIB:.1f} of what the backward pass "
        "keeps",
    }
    lines = [f"{name:<7} {text}" for name, text in facts.items()]
    return "\n".join([*lines, "nothing was written, and no weights were loaded"])


def _attention(config: PreTrainedConfig, plan: SpanPlan, rows: Sequence[Row]) -> int:
    """Return the attention operations of a forward pass over some rows, whose documents do not see each other."""
    cost = PlanCost(config, plan)
    return sum(cost.attention_flops(len(piece)) for row in rows for piece in row)


def _memory(job: TrainingJob, weights: WeightCount, num_tokens: int) -> tuple[float, float]:
    """Return the bytes of weights with all that belongs to them, and those that a backward pass of many tokens needs.

    Weights, gradients and the two moments of AdamW are fp32; autocast keeps a copy of the weights in its own dtype.
    """
    config, identity = job.model.checkpoint.config.get_text_config(decoder=True), job.identity
    size = getattr(torch, identity.dtype).itemsize
    # A teacher beside adapters is the model without them; else it is a copy.
    copies = 2 if identity.distill is not None and not identity.lora_rank else 1
    state = (
        4 * copies * weights.all
        + 12 * num_trained(job.config, job.model.checkpoint.config)
        + (size * weights.all if size < 4 else 0)
    )
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    # Of a layer and token: what products read, in the computation's dtype, and what norms and residuals read in fp32.
    of_layer = size * (6 * width + 4 * inner) + 4 * 4 * width
    kept = layers * 4 * width + of_layer if identity.gradient_checkpointing else layers * of_layer
    return state, float(kept * num_tokens)
