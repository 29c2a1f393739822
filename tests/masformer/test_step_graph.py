"""Steps of a pinned cache, replayed as a graph would: with the numbers in Python that there were at the recording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from masformer import LayerSpan, SpanPlan, apply_plan
from masformer.attention import full
from masformer.attention.cache import SpanCache, join
from masformer.errors import SpanError
from masformer.plans.spans import FULL, HeadSpans
from masformer.step_graph import StepGraph
from tests.helpers.joined_rows import tokens, tree
from tests.helpers.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
WINDOW = LayerSpan(span=17, sinks=3)
PLAN = SpanPlan((WINDOW, FULL, LayerSpan(span=9)))
BY_HEAD = SpanPlan((FULL, HeadSpans((WINDOW, FULL)), WINDOW))
STEPS = 12


class Replayed(StepGraph):
    """A graph without a device: a pass after which Python's counts are as if it had not been, whatever they were."""

    def _rehearsed(self) -> Tensor:
        return self._pass()

    def _record(self) -> None:
        self.recorded, self.graph = self.cache.counts, object()  # type: ignore[assignment]

    def _replay(self, graph: Any) -> Tensor:
        counts = self.cache.counts
        self.cache.counts = self.recorded
        scores = self._pass()
        self.cache.counts = [count + 1 for count in counts]
        return scores


class Device:
    """What `torch.cuda` has for recordings, without a device; a pass fails when nothing may wait, or is recorded."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, *, fails_at: str) -> None:
        self.mode, self.is_recording, self.fails_at = 0, False, fails_at
        for name, value in {
            "CUDAGraph": object,
            "Stream": object,
            "current_stream": lambda device: None,
            "stream": lambda stream: nullcontext(),
            "graph": lambda graph, **options: self.recording(),
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        last = model.model.layers[-1].forward

        def failing(*args: Any, **options: Any) -> Any:
            if (fails_at == "rehearsal" and self.mode == "error") or (fails_at != "rehearsal" and self.is_recording):
                raise torch.OutOfMemoryError if fails_at == "memory" else RuntimeError("it waits")
            return last(*args, **options)

        model.model.layers[-1].forward = failing

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.is_recording = True
        try:
            yield
        finally:
            self.is_recording = False


def rows_of(
    model: PreTrainedModel,
    plan: SpanPlan,
    ends: tuple[int, ...],
    room: int = STEPS,
    kind: type[StepGraph] = Replayed,
) -> tuple[Any, StepGraph]:
    """Return the prompts of rows and their steps, which begin with the last token of each prompt."""
    prompts, caches = tree(model, plan, ends)
    cache, longest = join(caches, room), max(map(len, prompts))
    places = cache.pin()
    assert places is not None
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * (len(row) + room) for row in prompts])
    positions = torch.tensor([[len(row) - 1] for row in prompts])
    return prompts, kind(model, cache, places, positions, mask if len(prompts) > 1 else None, room)


def model_of(kind: str, plan: SpanPlan) -> PreTrainedModel:
    model = tiny_model(kind)
    apply_plan(model, plan)
    return model


@torch.no_grad()
@pytest.mark.parametrize("ends", [(12, 2, 25, 6), (12,)], ids=["rows", "one"])
@pytest.mark.parametrize("tail_tokens", [0, 20])
@pytest.mark.parametrize(
    ("kind", "plan"),
    [("llama", PLAN), ("llama", BY_HEAD), ("llama", SpanPlan.full(3)), ("gpt_oss", PLAN), ("gemma2", PLAN)],
    ids=["llama", "heads", "full", "gpt_oss", "gemma2"],
)
def test_replayed_steps_give_each_row_what_it_gets_alone(
    kind: str, plan: SpanPlan, tail_tokens: int, ends: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "TAIL_TOKENS", tail_tokens)
    model = model_of(kind, plan)
    prompts, step = rows_of(model, plan, ends)
    texts = [prompt + tokens(20 + row, STEPS) for row, prompt in enumerate(prompts)]
    alone = [model(torch.tensor([text]), use_cache=False).logits[0].float() for text in texts]
    for count in range(STEPS):
        last = [len(prompt) - 1 + count for prompt in prompts]
        scores = step(torch.tensor([[text[at]] for text, at in zip(texts, last, strict=True)]))
        for row, at in enumerate(last):
            torch.testing.assert_close(scores[row, 0], alone[row][at], atol=1e-5, rtol=0)
    assert step.graph is not None
    with pytest.raises(SpanError, match="the room of a joined cache is used up"):
        step(torch.tensor([[3]] * len(prompts)))


@torch.no_grad()
def test_a_model_whose_python_counts_tokens_goes_on_without_a_graph() -> None:
    model = model_of("llama", PLAN)
    forward = model.model.layers[0].forward

    def counting(states: Tensor, *args: Any, **options: Any) -> Any:
        return forward(states + options["past_key_values"].get_seq_length() / 100, *args, **options)

    model.model.layers[0].forward = counting
    prompts, step = rows_of(model, PLAN, (12,))
    text = prompts[0] + tokens(20, STEPS)
    cache = join(tree(model, PLAN, (12,))[1], STEPS)
    for at in range(len(prompts[0]) - 1, len(text) - 1):
        plain = model(torch.tensor([[text[at]]]), past_key_values=cache).logits.float()
        torch.testing.assert_close(step(torch.tensor([[text[at]]])), plain, atol=1e-5, rtol=0)
    assert step.graph is None
    assert step.equals is False


@torch.no_grad()
@pytest.mark.parametrize("fails_at", ["rehearsal", "recording", "memory"])
def test_a_step_that_cannot_be_recorded_is_taken_as_always(fails_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama", PLAN)
    prompts, step = rows_of(model, PLAN, (12,), kind=StepGraph)
    text = prompts[0] + tokens(20, STEPS)
    alone = model(torch.tensor([text]), use_cache=False).logits[0].float()
    device = Device(model, monkeypatch, fails_at=fails_at)
    for at in range(len(prompts[0]) - 1, len(text) - 1):
        torch.testing.assert_close(step(torch.tensor([[text[at]]]))[0, 0], alone[at], atol=1e-5, rtol=0)
    assert (step.graph, device.mode) == (None, 0)
    assert step.equals is (None if fails_at == "memory" else False), "without memory, it is tried again"


@torch.no_grad()
@pytest.mark.parametrize(
    "plan",
    [SpanPlan((LayerSpan(span=90), FULL, FULL)), SpanPlan((LayerSpan(block=8, previous=1, sinks=2), FULL, FULL))],
    ids=["a ring that is not full", "blocks"],
)
def test_what_must_grow_or_hides_keys_is_not_pinned(plan: SpanPlan) -> None:
    model = model_of("llama", plan)
    assert join(tree(model, plan, (12,))[1], STEPS).pin() is None


@torch.no_grad()
def test_other_rows_end_what_is_pinned() -> None:
    model = model_of("llama", PLAN)
    cache = join(tree(model, PLAN, (12, 2, 25))[1], STEPS)
    assert cache.pin() is not None
    cache.batch_select_indices(torch.tensor([0, 2]))
    assert all(part.place is None for part in cache._parts())


def test_a_model_on_the_cpu_has_no_graph() -> None:
    model = model_of("llama", PLAN)
    assert StepGraph.of(model, SpanCache(PLAN), torch.zeros(1, 1), None, STEPS) is None
