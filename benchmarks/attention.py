"""The span kernel alone against what else computes attention on this machine: milliseconds of one forward pass.

    python benchmarks/attention.py [--repeats 7] [--heads 9] [--kv-heads 3] [--head-size 64]

Heads as SmolLM2-135M has them, batch 1, 4 sinks. All ways take turns in one process. Peers: full causal
`scaled_dot_product_attention`, and the attention function `sdpa` of transformers with the dense boolean mask that it
makes for a sliding window (the mask is made before the clock starts). The floor is the share of (query, key) pairs
that are visible; it can be passed where the peer is itself far from what the machine can do. A line names the CPU and
the ways that were chosen on it; the last line is JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.pairs import Case, alternate, finish, show
from eval.runtime.processes import set_threads
from masformer.attention.kernels import masformer_attention, span_attention
from masformer.attention.visibility import SpanMask, visible_keys
from masformer.hardware import dtype_name
from masformer.plans.spans import FULL, LayerSpan
from masformer.tuning import chosen, machine

# Tokens, dtype, span, target; full attention, block-sparse spans and fp16 for completeness.
AGAINST_FULL = (
    (8192, torch.float32, LayerSpan(span=1024, sinks=4), 3.2),
    (8192, torch.float32, LayerSpan(span=512, sinks=4), 5.5),
    (8192, torch.float32, LayerSpan(span=256, sinks=4), 9.0),
    (8192, torch.bfloat16, LayerSpan(span=1024, sinks=4), 3.2),
    (8192, torch.bfloat16, LayerSpan(span=512, sinks=4), 5.5),
    (8192, torch.bfloat16, LayerSpan(span=256, sinks=4), 9.0),
    (16384, torch.float32, LayerSpan(span=512, sinks=4), 10.0),
    (16384, torch.bfloat16, LayerSpan(span=512, sinks=4), 10.0),
    (8192, torch.float16, LayerSpan(span=512, sinks=4), None),
    (8192, torch.float32, FULL, None),
    (8192, torch.bfloat16, FULL, None),
    (8192, torch.float32, LayerSpan(block=512, previous=1, sinks=4), None),
    (8192, torch.bfloat16, LayerSpan(block=512, previous=1, sinks=4), None),
)
AGAINST_MASK = ((8192, torch.float32, 13.0), (8192, torch.bfloat16, 13.0))
BACKWARD = ((4096, torch.float32), (4096, torch.bfloat16))


def full(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def train(leaves: tuple[Tensor, ...], upstream: Tensor, attend: Callable[..., Tensor]) -> object:
    return torch.autograd.grad(attend(*leaves), leaves, upstream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-size", type=int, default=64)
    arguments = parser.parse_args()
    set_threads(None, {})
    usual = (arguments.heads, arguments.kv_heads, arguments.head_size) == (9, 3, 64)
    torch.manual_seed(0)

    def states(num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        counts = (arguments.heads, arguments.kv_heads, arguments.kv_heads)
        # Tokens before heads in memory, as projections leave them.
        shapes = [(1, num_tokens, count, arguments.head_size) for count in counts]
        query, key, value = (torch.randn(shape).to(dtype).transpose(1, 2) for shape in shapes)
        return query, key, value

    cases = []

    def compare(
        num_tokens: int,
        dtype: torch.dtype,
        span: LayerSpan,
        ways: Sequence[Callable[[], object]],
        peer: str,
        target: float | None = None,
        prefix: str = "",
    ) -> None:
        ours, theirs = (1000 * seconds for seconds in alternate(ways, arguments.repeats))
        kind = dtype_name(dtype)
        floor = FULL.num_pairs(num_tokens) / span.num_pairs(num_tokens)
        case = Case(
            case=f"{prefix}kernel, {num_tokens:,} tokens, {span}, {kind}, against {peer}",
            ours=ours,
            peer=theirs,
            unit="ms",
            target=target if usual else None,
            floor=floor,
        )
        show(case)
        cases.append(case)

    with torch.no_grad():
        for num_tokens, dtype, span, target in AGAINST_FULL:
            inputs = states(num_tokens, dtype)
            ways = [partial(span_attention, *inputs, span), partial(full, *inputs)]
            compare(num_tokens, dtype, span, ways, "full causal sdpa", target)
        for num_tokens, dtype, target in AGAINST_MASK:
            span, inputs = LayerSpan(span=512), states(num_tokens, dtype)
            positions = torch.arange(num_tokens)
            layer = nn.Module()
            layer.layer_span, layer.is_causal = span, True
            layer.num_key_value_groups = arguments.heads // arguments.kv_heads
            ways = [
                partial(masformer_attention, layer, *inputs, SpanMask(offset=0)),
                partial(sdpa_attention_forward, layer, *inputs, visible_keys(positions, positions, span)[None, None]),
            ]
            compare(num_tokens, dtype, span, ways, "transformers' sdpa with its dense mask", target)
    for num_tokens, dtype in BACKWARD:
        span, inputs = LayerSpan(span=512, sinks=4), states(num_tokens, dtype)
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        upstream = torch.randn_like(inputs[0])
        ways = [partial(train, leaves, upstream, attend) for attend in (partial(span_attention, span=span), full)]
        compare(num_tokens, dtype, span, ways, "full causal sdpa", prefix="forward and backward: ")
    print(f"chosen on {machine()}: {chosen()}")
    finish(cases)


if __name__ == "__main__":
    main()
