"""Ways to compute attention in a window or in blocks, against each other: those that are measured, and others.

    python benchmarks/candidates.py [--repeats 5]

8,192 tokens, heads as SmolLM2-135M has them, 4 sinks; all ways take turns in one process, and each is first checked to
give the kernel's numbers. The ratio is that to full causal `scaled_dot_product_attention`. A line names the CPU and
what was chosen on it; the last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.flex_attention import flex_attention as eager_flex_attention

from benchmarks.pairs import Case, alternate, finish, show
from eval.runtime.processes import set_threads
from masformer.attention.kernels import span_attention
from masformer.attention.parts import merge
from masformer.attention.visibility import is_visible
from masformer.attention.ways import TILES, VIEWS
from masformer.hardware import dtype_name
from masformer.plans.spans import FULL, LayerSpan
from masformer.tuning import chosen, machine

TOKENS, SINKS, WINDOW, BLOCK = 8192, 4, 512, 512
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}
attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def by_way(query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, way: str) -> Tensor:
    """Our kernel, told which way to take."""
    with mock.patch.dict(os.environ, MASFORMER_WAYS=f"window={way}"):
        return span_attention(query, key, value, span)


def merged_runs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Blocks as three calls without masks, merged: their own block, the one before, the sinks."""
    heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
    groups, count = heads // kv_heads, TOKENS // BLOCK
    own = query.reshape(heads, count, BLOCK, size).transpose(0, 1).contiguous()
    keys, values = (x.reshape(kv_heads, count, BLOCK, size).transpose(0, 1) for x in (key, value))
    out, total = attend(own, keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), is_causal=True)
    folded = own.reshape(count, kv_heads, groups * BLOCK, size)

    def add(first: int, seen: tuple[Tensor, Tensor]) -> None:
        part, part_total = attend(folded[first:], *seen)
        parts = part.reshape(-1, heads, BLOCK, size), part_total.reshape(-1, heads, BLOCK)
        merged, total[first:] = merge([(out[first:], total[first:]), parts])
        out[first:] = merged.to(out.dtype)

    add(1, (keys[:-1], values[:-1]))
    sinks = [x[:, :, :SINKS].expand(count - 2, kv_heads, SINKS, size) for x in (key, value)]
    add(2, (sinks[0], sinks[1]))
    return out.transpose(0, 1).reshape(1, heads, TOKENS, size)


def told(span: LayerSpan, way: str) -> Callable[..., Tensor]:
    return partial(by_way, span=span, way=way)


def compiled_flex(span: LayerSpan) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_visible(query, key, span)

    mask = create_block_mask(seen, None, None, TOKENS, TOKENS, device="cpu")
    return partial(torch.compile(eager_flex_attention), block_mask=mask, enable_gqa=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    set_threads(None, {})
    torch.manual_seed(0)
    window, blocks = LayerSpan(span=WINDOW, sinks=SINKS), LayerSpan(block=BLOCK, previous=1, sinks=SINKS)
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [torch.randn(1, TOKENS, heads, 64).to(dtype).transpose(1, 2) for heads in (9, 3, 3)]
        ways: list[tuple[str, LayerSpan, Callable[..., Tensor]]] = [
            ("full causal sdpa", FULL, partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)),
            ("chosen by measurement", window, partial(span_attention, span=window)),
            *(
                (f"overlapping views, {way} queries, sinks merged" if way != TILES else way, window, told(window, way))
                for way in (TILES, *VIEWS)
            ),
            ("compiled flex_attention", window, compiled_flex(window)),
            ("tiles", blocks, partial(span_attention, span=blocks)),
            ("own block, previous block and sinks merged", blocks, merged_runs),
        ]
        for name, span, way in ways[1:]:
            difference = float((way(*inputs) - span_attention(*inputs, span=span)).abs().max())
            assert difference < TOLERANCE[dtype], (name, difference)
        full, *others = (1000 * x for x in alternate([partial(way, *inputs) for *_, way in ways], repeats))
        for (name, span, _), ours in zip(ways[1:], others, strict=True):
            floor = FULL.num_pairs(TOKENS) / span.num_pairs(TOKENS)
            kind = dtype_name(dtype)
            case = Case(case=f"{name}; {span}, {kind}", ours=ours, peer=full, unit="ms", floor=floor)
            show(case)
            cases.append(case)
    print(f"chosen on {machine()}: {chosen()}")
    finish(cases)


if __name__ == "__main__":
    main()
