"""Packed linear layers against torch's own: each shape of SmolLM2-135M, a decoded token, and a chunk of a prefill.

    python benchmarks/linear.py [--tokens 1024] [--repeats 20] [--threads N]

Both ways take turns in one process, and the packed one is used throughout, whatever would be chosen here. Layers of a
shape are run through one after the other, so that weights come from memory. The CPU is printed first; the last line is
JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.pairs import MIXED, Case, alternate, finish, show
from benchmarks.texts import long_text
from eval.runtime.processes import set_threads
from masformer import SpanCache, apply_plan, read_plan
from masformer.checkpoints.open import open_checkpoint
from masformer.linear import PackedLinear, pack
from masformer.tuning import WAYS, machine

ROWS = (1, 4, 16, 48, 512)
BATCHES = (1, 16)


def in_turns(layers: list[PackedLinear], compute: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median seconds of a computation with packed layers, and with torch's own."""

    def with_class(kind: type[nn.Linear]) -> Callable[[], object]:
        def way() -> object:
            for layer in layers:
                layer.__class__ = kind  # the copies stay in place
            return compute()

        return way

    packed, plain = alternate([with_class(PackedLinear), with_class(nn.Linear)], repeats)
    return packed, plain


def shapes(layers: list[PackedLinear], dtype: str, repeats: int) -> list[Case]:
    """Return a case for each shape and number of rows, and print it."""
    cases = []
    for shape in sorted({layer.weight.shape for layer in layers}):
        alike = [layer for layer in layers if layer.weight.shape == shape][:16]
        for rows in ROWS:
            inputs = torch.randn(rows, shape[1], dtype=alike[0].weight.dtype)

            def compute(alike: list[PackedLinear] = alike, inputs: Tensor = inputs) -> object:
                return [layer(inputs) for layer in alike]

            ours, peer = (1e6 * seconds / len(alike) for seconds in in_turns(alike, compute, repeats))
            cases.append(Case(case=f"{dtype}, {shape[1]} to {shape[0]}, {rows} rows", ours=ours, peer=peer, unit="us"))
            show(cases[-1])
    return cases


def passes(model: PreTrainedModel, layers: list[PackedLinear], prompt: Tensor, dtype: str, repeats: int) -> list[Case]:
    """Return a case for a chunk of a prefill and for a decoded token of each batch, and print it."""
    cases = []

    def add(name: str, compute: Callable[[], object], repeats: int) -> None:
        ours, peer = (1000 * seconds for seconds in in_turns(layers, compute, repeats))
        cases.append(Case(case=f"{dtype}, {name}", ours=ours, peer=peer, unit="ms"))
        show(cases[-1])

    add(f"prefill of {prompt.shape[1]:,}", lambda: model.base_model(prompt, use_cache=False), max(2, repeats // 5))
    for batch in BATCHES:
        rows = prompt.expand(batch, -1)
        cache = SpanCache(model.span_plan, prompt.shape[1] + 2 * repeats + 4)
        model.base_model(rows, past_key_values=cache, use_cache=True)
        token = rows[:, -1:].contiguous()
        add(
            f"a token after {prompt.shape[1]:,}, batch {batch}",
            lambda token=token, cache=cache: model(token, past_key_values=cache, use_cache=True),
            repeats,
        )
    return cases


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()

    os.environ[WAYS] = "linear=packed"
    set_threads(arguments.threads, {})
    print(machine(), flush=True)
    checkpoint = open_checkpoint("smollm2-135m")
    prompt = long_text(checkpoint.tokenizer, arguments.tokens)[None]
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        model = checkpoint.load_model(dtype)
        apply_plan(model, read_plan(MIXED, model.config))
        pack(model)
        layers = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
        name = str(dtype).removeprefix("torch.")
        cases += shapes(layers, name, arguments.repeats)
        cases += passes(model, layers, prompt, name, arguments.repeats)
    finish(cases)


if __name__ == "__main__":
    main()
