"""Tokens that are taken back leave no trace: a cache goes on as if they had never come."""

from __future__ import annotations

import pytest
import torch

from masformer import SpanCache, SpanPlan, apply_plan, prefill
from masformer.attention.cache import join
from tests.helpers.library_models import tiny_library_model
from tests.helpers.tiny_models import tiny_model
from tests.masformer.attention.test_joined import BLOCKS, PLANS_OF_KINDS, WINDOWS, left_padded, tokens, tree

TOLERANCE = 1e-5  # fp32
# How many of the tokens of a pass stay; some passes cross a ring's end, a block's, and the end of the sinks.
COUNTS = (1, 4, 2, 5, 1, 3)
# Of one row and of four; latent caches do not join.
CASES = [(kind, plan, rows, f"{name}-{rows}") for kind, plan, name in PLANS_OF_KINDS for rows in (1, 4)]
CASES += [("deepseek_v3", plan, 1, f"deepseek_v3-{at}") for at, plan in enumerate((WINDOWS, BLOCKS))]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "plan", "num_rows"), [pytest.param(*case[:3], id=case[3]) for case in CASES])
def test_a_cache_goes_on_from_the_tokens_that_were_kept(kind: str, plan: SpanPlan, num_rows: int) -> None:
    model = tiny_model(kind)
    apply_plan(model, plan)
    prompts, caches = tree(model, plan)
    prompts, caches = prompts[-num_rows:], caches[-num_rows:]
    batch = caches[0] if kind == "deepseek_v3" else join(caches, room=30)
    right = [tokens(10 + row, 24) for row in range(num_rows)]
    alone = [model(torch.tensor([p + more]), use_cache=False).logits[0] for p, more in zip(prompts, right, strict=True)]
    done = 0
    for seed, count in enumerate(COUNTS):
        wrong = [tokens(20 + seed, 5)] * num_rows
        texts = [p[-1:] + more for p, more in zip(prompts, right, strict=True)]
        passed = [(text[done : done + count] + w)[:5] for text, w in zip(texts, wrong, strict=True)]
        _, mask = left_padded([p + [0] * (done + 4) for p in prompts])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -5:]
        batch.draft()
        logits = model(torch.tensor(passed), attention_mask=mask, position_ids=positions, past_key_values=batch).logits[
            :, :count
        ]
        batch.commit(count)
        for row, prompt in enumerate(prompts):
            first = len(prompt) - 1 + done
            torch.testing.assert_close(logits[row], alone[row][first : first + count], atol=TOLERANCE, rtol=0)
        done += count
        assert batch.get_seq_length() == max(map(len, prompts)) - 1 + done


def test_states_take_nothing_back() -> None:
    model = tiny_library_model("lfm2")
    plan = apply_plan(model)
    cache = SpanCache(plan)
    prefill(model, torch.tensor([[5, 6, 7]]), cache)
    assert not cache.can_draft
    llama = tiny_model("llama")
    plain = SpanCache(apply_plan(llama))
    prefill(llama, torch.tensor([[5, 6, 7]]), plain)
    assert plain.can_draft
