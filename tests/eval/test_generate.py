"""Generation equals plain greedy decoding without any cache, and its measurements are those of real storage."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from eval.generate import generate, warm_up
from masformer import LayerSpan, SpanPlan, apply_plan
from masformer.cost import cache_bytes
from masformer.spans import FULL
from tests.tiny_models import SUPPORTED, tiny_model, tiny_tokenizer

MIXED = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2)))
NUM_NEW = 20


def greedy(model: PreTrainedModel, prompt: list[int], num_new: int, stops: set[int]) -> list[int]:
    """The definition: the best next token of the whole sequence, again and again."""
    tokens = list(prompt)
    for _ in range(num_new):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("plan", [None, MIXED], ids=["untouched", "mixed"])
@pytest.mark.parametrize("kind", list(SUPPORTED))
def test_generation_is_greedy_decoding(kind: str, plan: SpanPlan | None) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(kind, vocab_size=len(tokenizer), initializer_range=0.4)
    if plan is not None:
        apply_plan(model, plan)
    model.generation_config.eos_token_id = [2]
    model.generation_config.pad_token_id = 0
    prompt = torch.randint(3, len(tokenizer), (61,), generator=torch.Generator().manual_seed(3)).tolist()
    expected = greedy(model, prompt, NUM_NEW, {2})
    made = generate(model, tokenizer, prompt, NUM_NEW)
    assert made.text == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert made.num_generated_tokens == len(expected)
    assert made.finish_reason == ("stop" if expected[-1] == 2 else "length")


def test_an_end_token_stops() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), initializer_range=0.4)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    prompt = list(range(10, 60))
    free = greedy(model, prompt, NUM_NEW, set())
    stop = free[5]
    model.generation_config.eos_token_id = [stop]
    made = generate(model, tokenizer, prompt, NUM_NEW)
    assert made.finish_reason == "stop"
    assert made.num_generated_tokens == free.index(stop) + 1


def test_measurements() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = None
    apply_plan(model, MIXED)
    warm_up(model, tokenizer)
    made = generate(model, tokenizer, list(range(10, 60)), 6)
    # The room for the answer is allocated at once.
    assert made.cache_bytes == cache_bytes(model.config, MIXED, 56, 4)
    assert made.prefill_seconds > 0
    assert made.decode_seconds > 0
    assert made.peak_bytes is None or made.peak_bytes > 2**20
