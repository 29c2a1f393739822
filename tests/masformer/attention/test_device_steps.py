"""Decoding steps as CUDA takes them, without CUDA: each row as alone, no waiting for the device, a bounded step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from masformer import LayerSpan, SpanPlan, apply_plan
from masformer.attention import cache as cache_module
from masformer.attention import cuda, cuda_joined, kernels
from masformer.attention import full as full_module
from masformer.attention.cache import join
from masformer.plans.spans import FULL, HeadSpans
from tests.helpers import varlen_standin
from tests.helpers.joined_rows import Batch, tokens, tree
from tests.helpers.reads import Counting
from tests.helpers.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-5  # fp32
# Of a step of three layers, views included: 296 when it was counted.
MOST_OPERATIONS = 310
WINDOW = LayerSpan(span=17, sinks=3)
PLAN = SpanPlan((WINDOW, FULL, LayerSpan(span=9)))
BY_HEAD = SpanPlan((FULL, HeadSpans((WINDOW, FULL)), WINDOW))


class AsOnCuda:
    """Counts the calls of `varlen_attn`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(cuda, "is_ready", lambda device: True)
        monkeypatch.setattr(cuda, "DTYPES", (torch.float32,))
        monkeypatch.setattr(cuda, "varlen_attn", self.attend)
        monkeypatch.setattr(cache_module, "is_slow_to_read", lambda tensor: True)
        monkeypatch.setattr(cuda_joined, "PIECE_KEYS", 11)
        choose = kernels.choose_kernel

        def choose_on_cuda(query: Tensor, *args: Any) -> str:
            alike: Any = SimpleNamespace(device=torch.device("cuda"), dtype=query.dtype, shape=query.shape)
            return choose(alike, *args)

        monkeypatch.setattr(kernels, "choose_kernel", choose_on_cuda)

    def attend(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        with _disable_current_modes():
            return varlen_standin.varlen_attn(*args, **options)


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> AsOnCuda:
    return AsOnCuda(monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize("tail_tokens", [0, 20, 512])
@pytest.mark.parametrize(
    ("kind", "plan"), [("llama", PLAN), ("llama", BY_HEAD), ("gpt_oss", PLAN)], ids=["llama", "heads", "gpt_oss"]
)
def test_each_row_gets_the_logits_it_gets_alone(
    kind: str, plan: SpanPlan, tail_tokens: int, as_on_cuda: AsOnCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_module, "TAIL_TOKENS", tail_tokens)
    monkeypatch.setattr(full_module, "_MIN_HALF", 4)
    model = tiny_model(kind)
    apply_plan(model, plan)
    prompts, caches = tree(model, plan, (12, 2, 25, 6))
    more = [tokens(20 + row, 8) for row in range(4)]
    alone = [model(torch.tensor([prompts[row] + more[row]]), use_cache=False).logits[0] for row in range(4)]
    batch, rows = Batch(model, prompts, caches, room=8), [0, 1, 2, 3]
    before = as_on_cuda.calls
    for step in range(8):
        if step == 5:
            rows = [1, 3]
            batch.select(rows)
        logits = batch.step(torch.tensor([more[row][step : step + 1] for row in rows]))
        for at, row in enumerate(rows):
            expected = alone[row][len(prompts[row]) + step - 1]
            torch.testing.assert_close(logits[at], expected, atol=TOLERANCE, rtol=0)
    assert as_on_cuda.calls > before


@torch.no_grad()
def test_several_tokens_a_row_at_once(as_on_cuda: AsOnCuda) -> None:
    model = tiny_model("llama")
    plan = SpanPlan.full(3)
    apply_plan(model, plan)
    prompts, caches = tree(model, plan, (12, 12, 12))
    batch = join([cache for cache in caches if cache.get_seq_length() == 82], room=9)
    rows = [prompt for prompt in prompts if len(prompt) == 83]
    more = [tokens(30 + row, 4) for row in range(len(rows))]
    ids = torch.tensor([row[-1:] + own for row, own in zip(rows, more, strict=True)])
    logits = model(ids, past_key_values=batch).logits
    for at, row in enumerate(rows):
        expected = model(torch.tensor([row + more[at]]), use_cache=False).logits[0, -5:]
        torch.testing.assert_close(logits[at], expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("num_rows", [4, 12])
def test_a_step_waits_for_nothing_and_takes_two_calls_a_full_layer(num_rows: int, as_on_cuda: AsOnCuda) -> None:
    model = tiny_model("llama")
    apply_plan(model, PLAN)
    prompts, caches = tree(model, PLAN, tuple(range(20, 20 + num_rows)))
    batch = Batch(model, prompts, caches, room=9)
    ids = torch.full((num_rows, 1), 5)
    batch.step(ids)  # what all steps share is made
    before = as_on_cuda.calls
    with Counting() as counted:
        batch.step(ids)
    assert not counted.reading
    assert as_on_cuda.calls == before + 2
    # Of three layers; it does not grow with rows and runs.
    assert counted.operations.total() <= MOST_OPERATIONS
