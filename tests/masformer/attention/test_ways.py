"""The way to compute windows: measured once for a shape and a CPU, remembered, and the same result by any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from masformer import SpanPlan, apply_plan, tuning
from masformer.attention import kernels, simd, ways
from masformer.attention.kernels import span_attention
from masformer.errors import OneLineError
from masformer.plans.spans import FULL, LayerSpan
from tests.helpers.attention_cases import WINDOWS, Case, assert_close, attend, cases, defined, gradients, random_states
from tests.helpers.joined_rows import Batch, tree
from tests.helpers.properties import tries
from tests.helpers.tensors import Largest
from tests.helpers.tiny_models import LAYERS, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
WINDOW = LayerSpan(span=20, sinks=4)


@pytest.fixture(autouse=True)
def no_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without choices, and a process that has made none and leaves our own kernel out."""
    monkeypatch.setenv("MASFORMER_WAYS", "attention=torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_settled", {})
    monkeypatch.setattr(tuning, "_used", {})


def choose(fastest: str, monkeypatch: pytest.MonkeyPatch, num_queries: int = 2000) -> tuple[str, list[str]]:
    """Return the way that is chosen where one is made the fastest, and the ways that were run for it."""
    run = Timed(fastest, monkeypatch)
    query, key = torch.empty(1, 4, num_queries, 8), torch.empty(1, 2, num_queries, 8)
    return ways.window_way(query, key, key, WINDOW, False, run), run.ran


class Timed:
    """What computes in a way, of which one is the fastest."""

    def __init__(self, fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fastest, self.ran, self.now = fastest, list[str](), 0.0
        monkeypatch.setattr(tuning.time, "perf_counter", lambda: self.now)

    def __call__(self, way: str, count: int = ways.MEASURED_QUERIES) -> None:
        assert count == ways.MEASURED_QUERIES
        self.ran.append(way)
        self.now += 1.0 if way == self.fastest else 2.0


def test_the_fastest_way_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    way, ran = choose("64", monkeypatch)
    assert way == "64"
    assert set(ran) == {"tiles", *ways.VIEWS}
    assert choose("tiles", monkeypatch) == ("64", [])
    assert tuning.chosen() == {"window 4 on 2 heads of 8, float32, span=20 sinks=4": "64"}


def test_few_queries_are_not_measured_and_take_what_another_process_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    few, key = ways.MEASURED_QUERIES - 1, "window 4 on 2 heads of 8, float32, span=20 sinks=4"
    assert choose("64", monkeypatch, num_queries=few) == ("tiles", [])
    assert choose("64", monkeypatch)[0] == "64"
    assert choose("64", monkeypatch, num_queries=few) == ("tiles", []), "a process keeps to its way"
    assert tuning.chosen() == {key: "64", f"{key}, short": "tiles"}
    monkeypatch.setattr(tuning, "_settled", {})
    assert choose("tiles", monkeypatch, num_queries=few) == ("64", [])
    monkeypatch.setattr(tuning, "_settled", {})
    tuning.take_up({key: "64", f"{key}, short": "tiles"})
    assert choose("tiles", monkeypatch, num_queries=few) == ("tiles", []), "and what goes on keeps to it"


@pytest.mark.parametrize("fastest", ["torch", "simd"])
@pytest.mark.parametrize("topic", ["attention", "pattern", "step"])
def test_our_own_kernel_is_measured_wherever_it_attends(
    topic: str, fastest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASFORMER_WAYS")
    other = "tiles" if topic == "pattern" else "torch"
    fastest = other if fastest == "torch" else fastest
    run = Timed(fastest, monkeypatch)

    def way(num_tokens: int) -> str:
        query = torch.empty(1, 4, num_tokens, 8)
        if topic == "step":
            return ways.step_way(query[:, :, :1], query[:, :2], "a cache", num_tokens, run)
        if topic == "pattern":
            return ways.pattern_way(query, query[:, :2], "full, soft caps", run)
        return ways.causal_way(query, query[:, :2], run)

    assert way(500) == "simd"
    assert not run.ran
    assert way(1024) == fastest
    assert set(run.ran) == {other, "simd"}
    run.ran.clear()
    monkeypatch.setattr(tuning, "_settled", {})
    assert way(500) == way(1024) == fastest
    assert not run.ran
    monkeypatch.setenv("MASFORMER_WAYS", "attention=simd")
    assert way(500) == way(1024) == "simd"
    monkeypatch.setenv("MASFORMER_WAYS", f"{'' if topic == 'attention' else 'attention=simd '}{topic}={other}")
    assert way(500) == way(1024) == other
    assert not run.ran


@pytest.mark.skipif(bool(simd.why_not()), reason=f"no kernel: {simd.why_not()}")
@torch.no_grad()
@pytest.mark.parametrize("fastest", ["torch", "simd"])
def test_a_step_of_joined_rows_is_measured_once(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, compared = tiny_model("llama"), list[tuple[str, ...]]()
    apply_plan(model, SpanPlan((FULL,) * LAYERS))
    prompts, caches = tree(model, SpanPlan((FULL,) * LAYERS), (12, 2, 25, 6))
    batch, ids = Batch(model, prompts, caches, room=8), torch.full((4, 1), 5)
    expected = [model(torch.tensor([[*prompt, 5]]), use_cache=False).logits[0, -1] for prompt in prompts]

    def measured(timed: Mapping[str, Callable[[], Any]], seconds: float) -> tuple[str, bool]:
        compared.append(tuple(timed))
        (out, lse), (other, other_lse) = (compute() for compute in timed.values())
        assert (out - other).abs().max() < 1e-5
        assert (lse - other_lse).abs().max() < 1e-5
        return fastest, True

    monkeypatch.delenv("MASFORMER_WAYS")
    monkeypatch.setattr(ways, "MEASURED_KEYS", batch.cache.get_seq_length() + 1)
    monkeypatch.setattr(tuning, "_fastest", measured)
    batch.step(ids)
    logits = batch.step(ids)
    assert compared == [("torch", "simd")]
    assert [way for key, way in tuning.chosen().items() if key.startswith("step")] == [fastest]
    for row, logit in enumerate(expected):
        assert (logits[row] - logit).abs().max() < 1e-5


@pytest.mark.parametrize("topic", ["window", "pattern", "step"])
def test_our_own_kernel_is_not_named_and_ruled_out_at_once(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.empty(1, 2, 4, 8)
    monkeypatch.setattr("masformer.compiled.why_not", lambda _: "")
    monkeypatch.setenv("MASFORMER_WAYS", f"attention=torch {topic}=simd")
    with pytest.raises(OneLineError, match=f"names 'simd' for {topic} and rules it out for attention; leave out one"):
        ways.is_simd(query, (query, query))


def test_a_named_way_is_taken_for_any_number_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASFORMER_WAYS", "attention=torch window=128")
    assert choose("tiles", monkeypatch) == ("128", [])
    assert choose("tiles", monkeypatch, num_queries=2) == ("128", [])
    monkeypatch.setenv("MASFORMER_WAYS", "attention=torch window=48")
    with pytest.raises(OneLineError, match="MASFORMER_WAYS names '48' for window; known: tiles, 32, 64, 128, simd"):
        choose("tiles", monkeypatch)


@torch.no_grad()
def test_a_long_window_is_measured_where_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, int]] = []

    def measured(timed: Mapping[str, Callable[[], object]], seconds: float) -> tuple[str, bool]:
        for way in ("tiles", "64"):
            timed[way]()
        return "64", True

    views = kernels._views

    def noting(query: Tensor, *rest: Any) -> Tensor:
        taken.append(("64", query.shape[2]))
        return views(query, *rest)

    monkeypatch.setattr(tuning, "_fastest", measured)
    monkeypatch.setattr(kernels, "_views", noting)
    case = Case(span=WINDOW, num_new=ways.MEASURED_QUERIES + 48, size=8, value_size=8)
    states = random_states(case)
    out = span_attention(states.query, states.key, states.value, WINDOW)
    assert taken == [("64", ways.MEASURED_QUERIES), ("64", case.num_new - 24)]
    assert_close(out, defined(case, states), 1e-10)


@torch.no_grad()
def test_views_copy_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASFORMER_WAYS", "attention=torch window=64")
    query, key = torch.randn(2, 2, 4096, 8), torch.randn(2, 1, 4096, 8)
    with Largest() as largest:
        span_attention(query, key, key, LayerSpan(span=512, sinks=4))
    assert 0 < largest.num_bytes <= 2 * query.nbytes


@tries(100)
@given(cases(longest=90, can_pad=False, by_head=False), WINDOWS, st.sampled_from(["7", "16"]))
def test_views_and_their_gradients_equal_the_definition(case: Case, window: LayerSpan, rows: str) -> None:
    assume(case.num_new > 1)
    case = Case(**{**vars(case), "span": window, "softcap": None, "learned": False, "value_size": case.size})
    states = random_states(case).with_grad()
    expected = defined(case, states)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "window_way", lambda *_: rows)
        out = attend(case, states)
    assert_close(out, expected, 1e-10)
    for ours, right in zip(gradients(out, states), gradients(expected, states), strict=True):
        assert_close(ours, right, 1e-10)
