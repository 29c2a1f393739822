"""Ways of a linear layer against torch's own: each shape of SmolLM2-135M, a prefill, a decoded token.

    python benchmarks/linear.py [--tokens 1024] [--repeats 20] [--threads N]

The ways take turns in one process, whatever would be chosen here: `direct` is oneDNN with the weight as it is, `packed`
with a copy that is arranged once, `simd` our own kernel where it takes the dtype. Layers of a shape are run through one
after the other, so that weights come from memory. The CPU is printed first; the last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.pairs import MIXED, Case, alternate, finish, show
from benchmarks.texts import long_text
from eval.runtime.processes import set_threads
from masformer import SpanCache, apply_plan, read_plan, tuning
from masformer.checkpoints.open import open_checkpoint
from masformer.hardware import dtype_name
from masformer.linear import DIRECT, PACKED, PLAIN, SIMD, TunedLinear, arrange, has_simd, tune

ROWS = (1, 4, 16, 48, 512)
BATCHES = (1, 16)

Copies = dict[str, dict[TunedLinear, Tensor]]


def in_turns(
    name: str, unit: str, copies: Copies, layers: Sequence[TunedLinear], compute: Callable[[], object], repeats: int
) -> list[Case]:
    """Return a case for each way against torch's own, and print it; `copies` are those of all layers for each way."""

    def going(way: str) -> Callable[[], object]:
        def run() -> object:
            for layer in layers:
                layer.ways, layer.arranged = (way,) * 3, copies.get(way, {}).get(layer)
            return compute()

        return run

    scale = {"us": 1e6, "ms": 1e3}[unit]
    ways = (DIRECT, *copies)
    plain, *times = (scale * seconds for seconds in alternate([*map(going, (PLAIN, *ways))], repeats))
    cases = [
        Case(case=f"{name}, {way}", ours=ours, peer=plain, unit=unit) for way, ours in zip(ways, times, strict=True)
    ]
    for case in cases:
        show(case)
    return cases


def shapes(copies: Copies, layers: Sequence[TunedLinear], dtype: str, repeats: int) -> list[Case]:
    """Return the cases of each shape and number of rows; times are those of up to 16 layers."""
    cases = []
    for shape in sorted({layer.weight.shape for layer in layers}):
        alike = [layer for layer in layers if layer.weight.shape == shape][:16]
        for rows in ROWS:
            inputs = torch.randn(rows, shape[1], dtype=alike[0].weight.dtype)

            def compute(alike: list[TunedLinear] = alike, inputs: Tensor = inputs) -> object:
                return [layer(inputs) for layer in alike]

            name = f"{dtype}, {shape[1]} to {shape[0]}, {rows} rows"
            cases += in_turns(name, "us", copies, alike, compute, repeats)
    return cases


def passes(
    copies: Copies, model: PreTrainedModel, layers: Sequence[TunedLinear], prompt: Tensor, dtype: str, repeats: int
) -> list[Case]:
    """Return the cases of a prefill and of a decoded token of each batch."""
    count = prompt.shape[1]

    def prefill() -> object:
        return model.base_model(prompt, use_cache=False)

    name = f"{dtype}, prefill of {count:,}"
    cases = in_turns(name, "ms", copies, layers, prefill, max(2, repeats // 5))
    for batch in BATCHES:
        rows, last = prompt.expand(batch, -1), prompt[:, -1:].repeat(batch, 1)
        cache = SpanCache(model.span_plan, count + 4 * repeats + 5)
        model.base_model(rows, past_key_values=cache, use_cache=True)

        def decode(token: Tensor = last, cache: SpanCache = cache) -> object:
            return model(token, past_key_values=cache, use_cache=True)

        cases += in_turns(f"{dtype}, a token after {count:,}, batch {batch}", "ms", copies, layers, decode, repeats)
    return cases


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()

    os.environ[tuning.WAYS] = f"linear={PACKED}"
    set_threads(arguments.threads, {})
    print(tuning.machine(), flush=True)
    checkpoint = open_checkpoint("smollm2-135m")
    prompt = long_text(checkpoint.tokenizer, arguments.tokens)[None]
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        model = checkpoint.load_model(dtype)
        apply_plan(model, read_plan(MIXED, model.config))
        tune(model)
        layers = [layer for layer in model.modules() if isinstance(layer, TunedLinear)]
        if not layers:
            print(f"oneDNN multiplies no {dtype_name(dtype)} on this processor", flush=True)
            continue
        copies: Copies = {PACKED: {layer: layer.arranged for layer in layers}}
        if has_simd(dtype):
            copies[SIMD] = {layer: arrange(SIMD, layer.weight) for layer in layers}
        name = dtype_name(dtype)
        cases += shapes(copies, layers, name, arguments.repeats)
        cases += passes(copies, model, layers, prompt, name, arguments.repeats)
    finish(cases)


if __name__ == "__main__":
    main()
