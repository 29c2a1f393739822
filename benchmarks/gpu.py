"""Attention and decoding on a CUDA device, in bfloat16: milliseconds, ours against torch's own and vLLM.

    python benchmarks/gpu.py [--repeats 20] [--engine-python ENVIRONMENT/bin/python]

Prefill: a window with 4 sinks, forward and with gradients, heads as Llama 3.1 8B has them, batch 1. Peers are the same
window without sinks in one call of FlashAttention (torch's `varlen_attn`), which says what sinks cost, and full causal
`scaled_dot_product_attention`, whose floor is the share of pairs that are visible.

Decoding: one layer of rows behind a common document, against `scaled_dot_product_attention` on a copy of all keys for
each row; and whole steps of a random model (16 layers, 2,048 wide), as a graph (`masformer.step_graph`) and without
one, against transformers' DynamicCache and sdpa.

All ways take turns in one process. With `--engine-python`, benchmarks/engines.py follows: the same prompts through this
suite's engine and through vLLM. The last line is JSON.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.attention import full, train
from benchmarks.pairs import Case, alternate, finish, show
from masformer import SpanCache, apply_plan, prefill, read_plan
from masformer.attention import cuda
from masformer.attention.cache import cache_layer, join
from masformer.attention.kernels import span_attention
from masformer.attention.visibility import SpanMask
from masformer.hardware import device_name
from masformer.plans.spans import FULL, LayerSpan
from masformer.step_graph import StepGraph

DTYPE = torch.bfloat16
HEADS, KV_HEADS, HEAD_SIZE = 32, 8, 128
WINDOWS = ((8192, 1024), (32768, 1024), (32768, 4096))  # tokens, span
# Rows, keys that they share, keys of each alone.
DECODING = ((1, 8192, 128), (16, 8192, 128), (64, 32768, 128))
MODEL = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 65536,
}
STEPS = ((16, 8192, 32), (64, 8192, 32))  # rows, tokens that they share, tokens of each alone
PLANS = ("full", "every:4 span=1024 sinks=4")


def states(num_tokens: int, heads: int, device: torch.device, rows: int = 1) -> Tensor:
    """Return (B, heads, T, D), tokens before heads in memory, as projections leave them."""
    return torch.randn(rows, num_tokens, heads, HEAD_SIZE, device=device, dtype=DTYPE).transpose(1, 2)


def windowed(query: Tensor, key: Tensor, value: Tensor, span: int) -> Tensor:
    """Return (B, H, T, D) attention in a window without sinks: one call of FlashAttention."""
    return cuda.attend(query, key, value, (), LayerSpan(span=span), 0, HEAD_SIZE**-0.5)


def timed(ways: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Return the median milliseconds of each way, until the device is done."""

    def whole(way: Callable[[], object]) -> None:
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return [1000 * seconds for seconds in alternate([partial(whole, way) for way in ways], repeats)]


def prefills(device: torch.device, repeats: int) -> Iterator[Case]:
    """Yield a window with sinks against one without, and against full attention."""
    for num_tokens, width in WINDOWS:
        span = LayerSpan(span=width, sinks=4)
        inputs = [states(num_tokens, heads, device) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        attends = [partial(span_attention, span=span), partial(windowed, span=width), full]
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        upstream = torch.randn_like(inputs[0])
        for name in ("forward", "forward and backward"):
            if name == "forward":
                with torch.no_grad():
                    ours, flash, causal = timed([partial(attend, *inputs) for attend in attends], repeats, device)
            else:
                ways = [partial(train, leaves, upstream, attend) for attend in attends]
                ours, flash, causal = timed(ways, repeats, device)
            case = f"{name}, {num_tokens:,} tokens, {span}"
            yield Case(case=f"{case}, against the window alone", ours=ours, peer=flash, unit="ms")
            floor = FULL.num_pairs(num_tokens) / span.num_pairs(num_tokens)
            yield Case(case=f"{case}, against full attention", ours=ours, peer=causal, unit="ms", floor=floor)


@torch.no_grad()
def layers(device: torch.device, repeats: int) -> Iterator[Case]:
    """Yield a step of one full layer of rows behind a common document, against keys copied for each row."""
    for rows, shared, own in DECODING:
        trunk = cache_layer(FULL)
        trunk.update(*(states(shared, KV_HEADS, device) for _ in range(2)))
        forks = [trunk.fork() for _ in range(rows)]
        for fork in forks:
            fork.update(*(states(own, KV_HEADS, device) for _ in range(2)))
        joined = type(trunk).join(forks, [shared + own] * rows, 1)
        key, value = joined.update(*(states(1, KV_HEADS, device, rows) for _ in range(2)))
        query = states(1, HEADS, device, rows)
        seen, mask = joined.seen, SpanMask(offset=shared + own)
        copies = [states(shared + own + 1, KV_HEADS, device, rows).contiguous() for _ in range(2)]
        folded = query.reshape(rows, KV_HEADS, -1, HEAD_SIZE)
        ways = [
            partial(span_attention, query, key, value, FULL, mask, seen=seen),
            partial(F.scaled_dot_product_attention, folded, *copies),
        ]
        ours, peer = timed(ways, repeats, device)
        yield Case(case=f"a layer's step, {rows} rows behind {shared:,} tokens", ours=ours, peer=peer, unit="ms")


@torch.no_grad()
def steps(device: torch.device, repeats: int) -> Iterator[Case]:
    """Yield steps of a model of rows behind a common document, against transformers' own cache and attention."""
    with device:
        peer, ours = (LlamaForCausalLM(LlamaConfig(**MODEL)).to(DTYPE).eval() for _ in range(2))
    peer.set_attn_implementation("sdpa")
    for rows, shared, own in STEPS:
        ids = torch.randint(3, peer.config.vocab_size, (1, shared + own), device=device)
        length = shared + own
        theirs = DynamicCache(config=peer.config)
        peer.base_model(ids, past_key_values=theirs)
        theirs.batch_repeat_interleave(rows)
        for text in PLANS:
            plan = apply_plan(ours, read_plan(text, ours.config))
            trunk = SpanCache(plan, length)
            prefill(ours, ids[:, :shared], trunk)
            forks = [trunk.fork() for _ in range(rows)]
            for fork in forks:
                prefill(ours, ids[:, shared:], fork)
            # One round is not counted.
            cache, token = join(forks, repeats + 1), ids[:, -1:].expand(rows, -1)
            mask = torch.ones(rows, length + len(PLANS) * (repeats + 1), dtype=torch.long, device=device)

            def step(model: LlamaForCausalLM, cache: SpanCache | DynamicCache) -> None:
                done = cache.get_seq_length()
                positions = torch.full_like(token, done)  # noqa: B023
                more = {"attention_mask": mask[:, : done + 1], "position_ids": positions}  # noqa: B023
                model(token, past_key_values=cache, **more)  # noqa: B023

            # One round is not counted, and four come before: the last of them is compared with one that is no graph.
            room = repeats + 5
            graph = StepGraph.of(ours, join(forks, room), torch.full_like(token, length), None, room)
            if graph is not None:
                for _ in range(4):
                    graph(token)
            name = f"a step of {MODEL['num_hidden_layers']} layers, {plan}, {rows} rows behind {shared:,} tokens"
            ways = [partial(step, ours, cache), partial(step, peer, theirs)]
            if graph is not None and graph.graph is not None:
                ways.append(partial(graph, token))
            mine, other, *recorded = timed(ways, repeats, device)
            for one in recorded:
                yield Case(case=f"{name}, as a graph", ours=one, peer=other, unit="ms")
            yield Case(case=name, ours=mine, peer=other, unit="ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--engine-python", help="of an environment that holds vLLM (docs/engines.md)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: this measures a CUDA device and there is none; benchmarks/attention.py measures a CPU")
    device = torch.device("cuda")
    if not cuda.is_ready(device):
        raise SystemExit(f"error: {device_name(device)} or torch {torch.__version__} has no varlen_attn with windows")
    print(f"{device_name(device)}, torch {torch.__version__}", flush=True)
    torch.manual_seed(0)
    cases = []
    for measure in (prefills, layers, steps):
        for case in measure(device, arguments.repeats):
            show(case)
            cases.append(case)
    if arguments.engine_python:
        script = Path(__file__).with_name("engines.py")
        more = ["--engine-python", arguments.engine_python, "--dtype", "bfloat16"]
        subprocess.run([sys.executable, str(script), *more], check=True)
    finish(cases)


if __name__ == "__main__":
    main()
