"""Steps of a pinned cache, replayed as a graph would: with the numbers in Python that there were at the recording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from masformer import LayerSpan, SpanPlan, apply_plan, step_graph, tuning
from masformer.attention import full, joined
from masformer.attention.cache import SpanCache, join
from masformer.attention.full import JoinedLayer
from masformer.errors import SpanError
from masformer.plans.spans import FULL, HeadSpans
from masformer.step_graph import StepGraph, is_on_one_gpu
from tests.helpers.cuda_standin import AsOnCuda, Replayed
from tests.helpers.joined_rows import pinned_rows, tokens, tree
from tests.helpers.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
WINDOW = LayerSpan(span=17, sinks=3)
PLAN = SpanPlan((WINDOW, FULL, LayerSpan(span=9)))
BY_HEAD = SpanPlan((FULL, HeadSpans((WINDOW, FULL)), WINDOW))
STEPS = 12
ROOM = 20  # fewer steps are not worth a graph


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


def model_of(kind: str, plan: SpanPlan) -> PreTrainedModel:
    model = tiny_model(kind)
    apply_plan(model, plan)
    return model


@torch.no_grad()
@pytest.mark.parametrize("is_on_cuda", [False, True], ids=["cpu", "as on cuda"])
@pytest.mark.parametrize("ends", [(12, 2, 25, 6), (12,)], ids=["rows", "one"])
@pytest.mark.parametrize("tail_tokens", [0, 20])
@pytest.mark.parametrize(
    ("kind", "plan"),
    [("llama", PLAN), ("llama", BY_HEAD), ("llama", SpanPlan.full(3)), ("gpt_oss", PLAN), ("gemma2", PLAN)],
    ids=["llama", "heads", "full", "gpt_oss", "gemma2"],
)
def test_replayed_steps_give_each_row_what_it_gets_alone(
    kind: str,
    plan: SpanPlan,
    tail_tokens: int,
    ends: tuple[int, ...],
    is_on_cuda: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(full, "TAIL_TOKENS", tail_tokens)
    model = model_of(kind, plan)
    prompts, step = pinned_rows(model, plan, ends, STEPS, Replayed)
    texts = [prompt + tokens(20 + row, STEPS) for row, prompt in enumerate(prompts)]
    alone = [model(torch.tensor([text]), use_cache=False).logits[0].float() for text in texts]
    joined_calls = []
    if is_on_cuda:
        AsOnCuda(monkeypatch)
        attend = joined.attend_joined

        def noting(query: Tensor, key: Tensor, value: Tensor, layer: JoinedLayer, *args: Any) -> Tensor:
            joined_calls.append(layer.place is not None)
            return attend(query, key, value, layer, *args)

        monkeypatch.setattr(joined, "attend_joined", noting)
    for count in range(STEPS):
        last = [len(prompt) - 1 + count for prompt in prompts]
        scores = step(torch.tensor([[text[at]] for text, at in zip(texts, last, strict=True)]))
        for row, at in enumerate(last):
            torch.testing.assert_close(scores[row, 0], alone[row][at], atol=1e-5, rtol=0)
    assert step.graph is not None
    # Soft caps are computed elsewhere.
    assert set(joined_calls) == ({True} if is_on_cuda and kind != "gemma2" else set())
    with pytest.raises(SpanError, match="the room of a joined cache is used up"):
        step(torch.tensor([[3]] * len(prompts)))


@torch.no_grad()
def test_a_model_whose_python_counts_tokens_goes_on_without_a_graph() -> None:
    model = model_of("llama", PLAN)
    forward = model.model.layers[0].forward

    def counting(states: Tensor, *args: Any, **options: Any) -> Any:
        return forward(states + options["past_key_values"].get_seq_length() / 100, *args, **options)

    model.model.layers[0].forward = counting
    prompts, step = pinned_rows(model, PLAN, (12,), STEPS, Replayed)
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
    prompts, step = pinned_rows(model, PLAN, (12,), STEPS, StepGraph)
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
    assert StepGraph.of(model, SpanCache(PLAN), torch.zeros(1, 1), None, ROOM) is None


def test_only_a_model_on_one_cuda_device_has_a_graph() -> None:
    def on(*names: str) -> Any:
        devices = [torch.device(name) for name in names]
        return SimpleNamespace(
            device=devices[0], parameters=lambda: [SimpleNamespace(device=device) for device in devices]
        )

    assert is_on_one_gpu(on("cuda:0", "cuda:0"))
    assert not is_on_one_gpu(on("cuda:0", "cuda:1"))
    assert not is_on_one_gpu(on("cuda:0", "cpu"))
    assert not is_on_one_gpu(on("cpu"))


@pytest.fixture
def on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graph, "is_on_one_gpu", lambda model: True)


def steps_of(model: PreTrainedModel, plan: SpanPlan, room: int = ROOM) -> tuple[list[int], SpanCache, Replayed | None]:
    """Return a prompt, its cache with room for some tokens, and its steps as they are for a model on a device."""
    prompts, caches = tree(model, plan, (12,))
    cache = join(caches, room)
    return prompts[0], cache, Replayed.of(model, cache, torch.tensor([[len(prompts[0]) - 1]]), None, room)


def is_pinned(cache: SpanCache) -> bool:
    (pinned,) = {part.place is not None for part in cache._parts()}
    return pinned


@torch.no_grad()
@pytest.mark.usefixtures("on_one_gpu")
def test_a_model_that_has_passed_is_recorded_at_the_second_step() -> None:
    model = model_of("llama", PLAN)
    for recorded in (3, 2):
        prompt, cache, steps = steps_of(model, PLAN)
        assert steps is not None
        assert is_pinned(cache)
        assert tuning.chosen()["decoding step"] == "graph"
        text = prompt + tokens(20, 6)
        alone = model(torch.tensor([text]), use_cache=False).logits[0].float()
        for count, at in enumerate(range(len(prompt) - 1, len(text) - 1), start=1):
            torch.testing.assert_close(steps(torch.tensor([[text[at]]]))[0, 0], alone[at], atol=1e-5, rtol=0)
            assert (steps.graph is not None) == (count >= recorded)
        assert steps.equals is True


@torch.no_grad()
@pytest.mark.usefixtures("on_one_gpu")
def test_positions_stay_those_of_the_caller() -> None:
    model = model_of("llama", PLAN)
    positions = torch.tensor([[52]])
    steps = Replayed.of(model, join(tree(model, PLAN, (12,))[1], ROOM), positions, None, ROOM)
    assert steps is not None
    steps(torch.tensor([[3]]))
    assert steps.positions.tolist() == [[53]]
    assert positions.tolist() == [[52]]


@torch.no_grad()
@pytest.mark.usefixtures("on_one_gpu")
@pytest.mark.parametrize("reason", ["few steps", "blocks", "known to differ"])
def test_steps_that_gain_nothing_by_a_graph_are_taken_as_always(reason: str) -> None:
    plan = SpanPlan((LayerSpan(block=8, previous=1, sinks=2), FULL, FULL)) if reason == "blocks" else PLAN
    model = model_of("llama", plan)
    if reason == "known to differ":
        first = steps_of(model, plan)[2]
        assert first is not None
        first._settle(is_equal=False)
    _, cache, steps = steps_of(model, plan, room=15 if reason == "few steps" else ROOM)
    assert steps is None
    assert not is_pinned(cache)
    assert tuning.chosen()["decoding step"] == "launches"
    if reason == "known to differ":  # under this plan, without padding
        full_plan = SpanPlan.full(3)
        apply_plan(model, full_plan)
        assert steps_of(model, full_plan)[2] is not None
