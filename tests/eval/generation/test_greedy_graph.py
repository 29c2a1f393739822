"""Batches whose steps are replayed: rows leave, others enter, and answers are those without a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eval.config.generation import GenerationSettings
from eval.generation import greedy
from eval.generation.greedy import _Batch
from masformer import LayerSpan, SpanPlan, apply_plan, step_graph
from masformer.attention.full import JoinedLayer
from masformer.plans.spans import FULL
from masformer.step_graph import StepGraph
from tests.helpers.cuda_standin import AsOnCuda, Replayed
from tests.helpers.streams import streamed
from tests.helpers.tiny_models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
# Of rings that the shortest prompt fills: others are not pinned.
WINDOWS = SpanPlan((LayerSpan(span=7, sinks=2), FULL, LayerSpan(span=9)))


def prompts_of_two_documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(12, len(TOKENIZER), (count,), generator=generator).tolist()

    first, second = tokens(30), tokens(14)
    return [[*(first, second)[row % 2], *tokens(2 + row)] for row in range(9)]


@torch.no_grad()
@pytest.mark.parametrize("plan", [WINDOWS, SpanPlan.full(3)], ids=["windows", "full"])
def test_answers_of_replayed_steps_are_those_without(plan: SpanPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    # In fp64, where the order of sums decides nothing.
    model = tiny_model("llama", vocab_size=len(TOKENIZER), initializer_range=0.4).double()
    apply_plan(model, plan)
    model.generation_config.eos_token_id = list(range(2, len(TOKENIZER), 16))
    settings, prompts = GenerationSettings(max_new_tokens=40), prompts_of_two_documents()
    expected, _ = streamed(model, TOKENIZER, prompts, settings, most=4)

    batches = list[tuple[str, StepGraph | None]]()

    def noted(name: str) -> Any:
        original = getattr(_Batch, name)

        def call(batch: _Batch, *args: Any) -> None:
            original(batch, *args)
            batches.append((name, batch.graph))
            if batch.graph is not None:
                for part in batch.cache._parts():
                    if isinstance(part, JoinedLayer):
                        num_slots = part.num_tokens - part.num_tail + part.keys.shape[2]
                        assert batch.graph.last <= num_slots, "a graph would write behind the buffer"

        return call

    with monkeypatch.context() as patch:
        for name in ("__init__", "drop_ended"):
            patch.setattr(_Batch, name, noted(name))
        AsOnCuda(patch, torch.float64)
        patch.setattr(step_graph, "is_on_one_gpu", lambda model: True)
        patch.setattr(greedy, "StepGraph", Replayed)
        answers, entered = streamed(model, TOKENIZER, prompts, settings, most=4)
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    for prompt, answer in zip(prompts, answers, strict=True):
        scores = model(torch.tensor([[*prompt, *answer.token_ids]]), use_cache=False).logits[0]
        assert scores[len(prompt) - 1 : -1].argmax(dim=-1).tolist() == list(answer.token_ids)
    assert any(going for going, _ in entered)
    assert any(name == "drop_ended" and graph is not None for name, graph in batches)
    # Only what has few steps left is not worth one.
    assert all(graph is not None for name, graph in batches if name == "__init__")
    assert all(graph.graph is not None for _, graph in batches if graph is not None and graph.num_steps > 4)
