"""Span attention against the definition, pair by pair: values, gradients, dtypes, and the memory it takes."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from masformer.attention import cuda, parts, tiles
from masformer.attention import kernels as attention
from masformer.attention.heads import attend_by_head
from masformer.attention.kernels import choose_kernel, dense_attention, span_attention
from masformer.attention.tiles import ScoreRule
from masformer.attention.visibility import SpanMask, left_padding, visible_keys
from masformer.plans.spans import FULL, HeadSpans, LayerSpan
from tests.helpers.attention_cases import (
    CASES,
    LANES,
    SPANS,
    Case,
    States,
    assert_close,
    attend,
    cached,
    cases,
    defined,
    gradients,
    lanes_at_once,
    random_states,
    sees,
    visible,
)
from tests.helpers.properties import tries
from tests.helpers.tensors import Largest

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
EXACT = TOLERANCE[torch.float64]
HEAD_SIZE = 8
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@tries(60)
@given(SPANS, st.integers(0, 30), st.integers(-3, 60))
def test_visible_keys_is_the_definition(span: LayerSpan, first: int, start: int) -> None:
    queries, keys = torch.arange(first, first + 30), torch.arange(start, start + 40)
    expected = [[sees(int(q), int(k), span) for k in keys] for q in queries]
    assert torch.equal(visible_keys(queries, keys, span), torch.tensor(expected))


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("learned", [False, True])
def test_dense_attention_is_the_formula(softcap: float | None, learned: bool) -> None:
    case = Case(span=LayerSpan(span=3, sinks=1), num_new=7, heads=4, kv_heads=2, size=3, value_size=2, learned=learned)
    states, sight = random_states(case), visible(case.span, 0, 7)
    out = dense_attention(
        states.query, states.key, states.value, sight, 0.9, softcap=softcap, learned_sinks=states.learned_sinks
    )
    query, key, value = (x[0].tolist() for x in (states.query, states.key, states.value))
    for head in range(4):
        for q in range(7):
            scores = {
                k: 0.9 * sum(x * y for x, y in zip(query[head][q], key[head // 2][k], strict=True))
                for k in range(7)
                if sees(q, k, case.span)
            }
            if softcap is not None:
                scores = {k: softcap * math.tanh(score / softcap) for k, score in scores.items()}
            total = sum(math.exp(score) for score in scores.values())
            if states.learned_sinks is not None:
                total += math.exp(float(states.learned_sinks[head]))
            for at in range(2):
                expected = sum(math.exp(score) / total * value[head // 2][k][at] for k, score in scores.items())
                assert float(out[0, head, q, at]) == pytest.approx(expected, abs=EXACT)


@tries(150)
@given(cases(), LANES, st.sampled_from([5, 8192]))
@torch.no_grad()
def test_attention_on_top_of_a_cache_equals_the_definition(case: Case, lanes: int | None, run_keys: int) -> None:
    states = random_states(case)
    with lanes_at_once(lanes), mock.patch.object(parts, "RUN_KEYS", run_keys):
        assert_close(attend(case, states), defined(case, states), EXACT)


@tries(150)
@given(cases(longest=90), LANES)
def test_gradients_equal_those_of_the_definition(case: Case, lanes: int | None) -> None:
    states = random_states(case).with_grad()
    with lanes_at_once(lanes):
        out = attend(case, states)
        found = gradients(out, states)
    expected = defined(case, states)
    assert_close(out, expected, EXACT)
    for ours, theirs in zip(found, gradients(expected, states), strict=True):
        assert_close(ours, theirs, EXACT)


@tries(60)
@given(cases(longest=120, can_pad=False, can_cache=False), st.data(), LANES)
def test_packed_documents_equal_each_document_alone(case: Case, data: st.DataObject, lanes: int | None) -> None:
    states = random_states(case)
    starts = st.sets(st.integers(0, case.num_new - 1), max_size=4)
    documents = [sorted({0, *data.draw(starts)}) for _ in range(case.batch)]
    options = {"scale": case.scale, "softcap": case.softcap, "learned_sinks": states.learned_sinks}
    mask = SpanMask(offset=0, documents=documents)
    with torch.no_grad(), lanes_at_once(lanes):
        out = span_attention(states.query, states.key, states.value, case.span, mask, **options)  # type: ignore[arg-type]
    for row, firsts in enumerate(documents):
        for first, stop in zip(firsts, [*firsts[1:], case.num_new], strict=True):
            part = (slice(row, row + 1), slice(None), slice(first, stop))
            alone = replace(case, num_new=stop - first, batch=1)
            document = States(
                query=states.query[part],
                key=states.key[part],
                value=states.value[part],
                learned_sinks=states.learned_sinks,
            )
            assert_close(out[part], defined(alone, document), EXACT)


@tries(100)
@given(cases(can_cache=False), st.sampled_from([7, 512]))
def test_attention_with_dropout_that_drops_nothing_equals_the_definition(case: Case, mask_rows: int) -> None:
    states = random_states(case)
    with mock.patch.object(attention, "_MASK_ROWS", mask_rows):
        assert_close(attend(case, states, dropout=1e-14), defined(case, states), EXACT)


def test_dropout_drops_weights_and_scales_the_others() -> None:
    case = CASES["window with sinks"]
    states = random_states(case)
    ones = replace(states, value=torch.ones_like(states.value))
    torch.manual_seed(0)
    sums = attend(case, ones, dropout=0.25)[:, :, 100:]
    assert sums.std() > 0.01
    assert sums.mean() == pytest.approx(1, abs=0.01)


def test_scores_far_from_zero_give_finite_weights() -> None:
    for case in (CASES["window with sinks, softcap"], CASES["window with sinks, learned sinks"], CASES["blocks"]):
        states = random_states(replace(case, scale=500.0)).with_grad()
        out, expected = attend(replace(case, scale=500.0), states), defined(replace(case, scale=500.0), states)
        assert_close(out, expected, EXACT)
        for ours, theirs in zip(gradients(out, states), gradients(expected, states), strict=True):
            assert_close(ours / 500, theirs / 500, EXACT)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@each_case
@torch.no_grad()
def test_each_dtype_is_as_exact_as_torch_with_a_mask(case: Case, dtype: torch.dtype) -> None:
    states = random_states(case, dtype)
    exact = defined(case, states.map(Tensor.double))
    out = attend(case, states)
    assert out.dtype == dtype
    assert_close(out.double(), exact, TOLERANCE[dtype])
    if case.is_plain and case.padding is None and dtype != torch.float64:
        assert_as_exact(out, with_a_mask(case, states), exact, case, states)


def assert_as_exact(ours: Tensor, torchs: Tensor, exact: Tensor, case: Case, states: States) -> None:
    """Check that our error is at most twice torch's, plus what rounding one score explains.

    A score is exact to its size times the rounding of fp32, and a weight is off by that share. One key may hold most of
    the weight: then its one score decides the error, and which library rounds it better is luck. In the case "one token
    on a fork" one key of 301 makes 94% of our squared error, because MKL's code for AVX-512 and AMX rounds its score by
    8.2e-7. MKL's code for AVX2 rounds it by 1.3e-7, as torch's own kernel does (`MKL_ENABLE_INSTRUCTIONS=AVX2`; oneDNN
    has no part in fp32 here).
    """
    key = states.key.repeat_interleave(case.heads // case.kv_heads, dim=1)
    scores = states.query.double() @ key.double().transpose(-1, -2) * case.size**-0.5
    largest = scores.masked_fill(~case.sight(case.offset, case.num_tokens), 0).abs().max()
    of_one_score = torch.finfo(torch.float32).eps * float(largest.detach()) * root_mean_square(exact)
    assert root_mean_square(ours - exact) <= 2 * root_mean_square(torchs - exact) + of_one_score


def with_a_mask(case: Case, states: States) -> Tensor:
    sight = case.sight(case.offset, case.num_tokens)
    return F.scaled_dot_product_attention(states.query, states.key, states.value, attn_mask=sight, enable_gqa=True)


def root_mean_square(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@each_case
def test_gradients_of_each_dtype_are_as_exact_as_those_of_torch(case: Case, dtype: torch.dtype) -> None:
    states = random_states(case, dtype).with_grad()
    wide = states.map(Tensor.double).with_grad()
    found, exact = gradients(attend(case, states), states), gradients(defined(case, wide), wide)
    for ours, right in zip(found, exact, strict=True):
        assert ours.dtype == dtype
        assert_close(ours.double(), right, TOLERANCE[dtype] * max(4.0, float(right.abs().max())))
    if case.is_plain and case.padding is None:
        for ours, torchs, right in zip(found, gradients(with_a_mask(case, states), states), exact, strict=True):
            assert_as_exact(ours, torchs, right, case, states)


@pytest.mark.parametrize("multiplies", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_products_of_dtypes_that_a_processor_does_not_multiply_are_in_fp32(
    dtype: torch.dtype, multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "multiplies_bfloat16", lambda: multiplies)
    used, original = set(), tiles._Lanes.outputs
    monkeypatch.setattr(
        tiles._Lanes, "outputs", lambda self, *rest: used.add(self.values.dtype) or original(self, *rest)
    )
    case = Case(span=LayerSpan(block=16, previous=1, sinks=2), num_new=70)
    states = random_states(case, dtype)
    assert_close(attend(case, states).double(), defined(case, states.map(Tensor.double)), TOLERANCE[dtype])
    assert used == {dtype if multiplies and dtype == torch.bfloat16 else torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_small_gradients_of_a_sink_add_up(dtype: torch.dtype) -> None:
    case = Case(span=LayerSpan(span=32, sinks=2), num_new=1200, learned=True)
    states = random_states(case, dtype).with_grad()
    wide = states.map(Tensor.double).with_grad()
    with lanes_at_once(1):
        found = torch.autograd.grad(attend(case, states).sum(), states.all())
    exact = torch.autograd.grad(defined(case, wide).sum(), wide.all())
    for ours, right in zip(found[1:], exact[1:], strict=True):
        first = (..., slice(case.span.sinks), slice(None)) if right.dim() > 1 else ...
        # Rounded once, at the end.
        tolerance = 0.6 * torch.finfo(dtype).eps * float(right[first].abs().max())
        assert_close(ours[first].double(), right[first], tolerance)


@torch.no_grad()
def test_autocast_leaves_fp64_alone_as_torch_does() -> None:
    case = Case(span=LayerSpan(span=20, sinks=2), num_new=50)
    states = random_states(case)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(attend(case, states), defined(case, states), EXACT)


def test_a_backward_pass_under_autocast_keeps_its_sums_wide() -> None:
    case = Case(span=LayerSpan(span=20, sinks=2), num_new=90)
    states = random_states(case, torch.float32).with_grad()
    expected = gradients(attend(case, states), states)
    out = attend(case, states)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(out, states)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, theirs, TOLERANCE[torch.float32])


def test_dropout_on_a_cache_that_has_dropped_keys_is_refused() -> None:
    case = Case(span=LayerSpan(span=20, sinks=2), num_new=30, offset=100)
    with pytest.raises(ValueError, match="needs all 130 keys, and a cache of 'span=20 sinks=2' has kept 52"):
        attend(case, random_states(case), dropout=0.1)


@each_case
def test_autocast_computes_in_its_dtype_forward_and_backward(case: Case) -> None:
    states = random_states(case, torch.float32).with_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(case, states)
    assert out.dtype == torch.bfloat16
    wide = states.map(Tensor.double).with_grad()
    exact = defined(case, wide)
    # Inputs are rounded too.
    tolerance = 4 * TOLERANCE[torch.bfloat16]
    assert_close(out.double(), exact, tolerance)
    for ours, theirs in zip(gradients(out, states), gradients(exact, wide), strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours.double(), theirs, tolerance * max(1.0, float(theirs.abs().max())))


WINDOW, SINKS, BLOCK = LayerSpan(span=64), LayerSpan(span=64, sinks=4), LayerSpan(block=32, previous=1, sinks=4)
EARLY = LayerSpan(block=32, previous=1, sinks=40)  # sinks reach into the second block, so that three see everything
CAPPED = {"softcap": 50.0}
LEARNED = {"learned": True}
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def kernel(
    device: str,
    dtype: torch.dtype,
    span: LayerSpan,
    num_new: int,
    offset: int,
    *,
    softcap: float | None = None,
    learned: bool = False,
    dropout: float = 0.0,
    size: int = 16,
    value_size: int = 16,
) -> str:
    query: Any = SimpleNamespace(device=SimpleNamespace(type=device), dtype=dtype, shape=(1, 2, num_new, size))
    return choose_kernel(query, span, offset, ScoreRule(scale=1.0, softcap=softcap), learned, dropout, value_size)


@pytest.mark.parametrize(
    ("span", "num_new", "offset", "options", "expected"),
    [
        (FULL, 500, 0, {}, "causal"),
        (FULL, 500, 9, {}, "causal"),
        (FULL, 500, 0, CAPPED, "tiles"),
        (FULL, 500, 0, LEARNED, "tiles"),
        (FULL, 500, 0, {"dropout": 0.1}, "masked"),
        (WINDOW, 64, 0, {}, "causal"),
        (WINDOW, 65, 0, {}, "tiles"),
        (WINDOW, 60, 4, {}, "causal"),
        (WINDOW, 60, 5, {}, "tiles"),
        (WINDOW, 60, 0, CAPPED, "tiles"),
        (WINDOW, 60, 0, LEARNED, "tiles"),
        (WINDOW, 500, 0, {"dropout": 0.1}, "masked"),
        (SINKS, 68, 0, {}, "causal"),
        (SINKS, 69, 0, {}, "tiles"),
        (BLOCK, 64, 0, {}, "causal"),
        (BLOCK, 65, 0, {}, "tiles"),
        (EARLY, 96, 0, {}, "causal"),
        (EARLY, 97, 0, {}, "tiles"),
    ],
)
def test_kernels_on_the_cpu(span: LayerSpan, num_new: int, offset: int, options: dict[str, Any], expected: str) -> None:
    assert kernel("cpu", BF16, span, num_new, offset, **options) == expected


@pytest.mark.parametrize(
    ("dtype", "span", "num_new", "offset", "options", "expected", "before_ampere"),
    [
        (BF16, FULL, 500, 0, {}, "causal", "causal"),
        (BF16, FULL, 500, 9, {}, "varlen", "flex"),
        (FP16, FULL, 500, 9, {}, "varlen", "flex"),
        (FP32, FULL, 500, 9, {}, "flex", "flex"),
        (FP64, FULL, 500, 9, {}, "tiles", "tiles"),
        (FP64, FULL, 500, 0, {}, "causal", "causal"),
        (BF16, FULL, 500, 0, CAPPED, "flex", "flex"),
        (BF16, FULL, 500, 0, LEARNED, "varlen", "flex"),
        (FP32, FULL, 500, 0, CAPPED, "flex", "flex"),
        (FP64, FULL, 500, 0, CAPPED, "tiles", "tiles"),
        (BF16, FULL, 500, 0, {"dropout": 0.1}, "masked", "masked"),
        (BF16, WINDOW, 64, 0, {}, "causal", "causal"),
        (BF16, WINDOW, 65, 0, {}, "varlen", "flex"),
        (BF16, WINDOW, 500, 100, {}, "varlen", "flex"),
        (BF16, WINDOW, 500, 0, CAPPED, "flex", "flex"),
        (BF16, WINDOW, 500, 0, LEARNED, "varlen", "flex"),
        (FP32, WINDOW, 500, 0, {}, "flex", "flex"),
        (FP64, WINDOW, 500, 0, {}, "tiles", "tiles"),
        (BF16, SINKS, 68, 0, {}, "causal", "causal"),
        (BF16, SINKS, 69, 0, {}, "varlen", "flex"),
        (BF16, SINKS, 500, 100, {}, "varlen", "flex"),
        (BF16, SINKS, 500, 0, CAPPED, "flex", "flex"),
        (FP64, SINKS, 500, 0, LEARNED, "tiles", "tiles"),
        (BF16, BLOCK, 64, 0, {}, "causal", "causal"),
        (BF16, BLOCK, 65, 0, {}, "varlen", "flex"),
        (BF16, BLOCK, 20, 20, {}, "varlen", "flex"),
        (BF16, BLOCK, 60, 0, CAPPED, "flex", "flex"),
        (BF16, BLOCK, 500, 0, {"dropout": 0.1}, "masked", "masked"),
        # Compiled flex_attention takes no smaller heads, varlen_attn no larger ones.
        (BF16, SINKS, 500, 0, {"size": 264}, "flex", "flex"),
        (BF16, SINKS, 500, 0, {"size": 8}, "varlen", "tiles"),
        (BF16, SINKS, 500, 0, {"value_size": 8}, "varlen", "tiles"),
    ],
)
def test_kernels_on_cuda(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    span: LayerSpan,
    num_new: int,
    offset: int,
    options: dict[str, Any],
    expected: str,
    before_ampere: str,
) -> None:
    for ready, name in ((True, expected), (False, before_ampere)):
        monkeypatch.setattr(cuda, "is_ready", lambda device, ready=ready: ready)
        assert kernel("cuda", dtype, span, num_new, offset, **options) == name


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("offset", [0, 6144])
@pytest.mark.parametrize(
    ("span", "softcap"),
    [
        (LayerSpan(span=256, sinks=4), None),
        (LayerSpan(span=256, sinks=4), 30.0),
        (LayerSpan(block=512, previous=1, sinks=4), None),
        (LayerSpan(block=512, previous=1, sinks=4), 30.0),
        (FULL, 30.0),
    ],
    ids=str,
)
def test_no_mask_or_scores_of_the_whole_sequence(
    span: LayerSpan, softcap: float | None, offset: int, backward: bool
) -> None:
    tokens = 8192
    case = Case(span=span, num_new=tokens - offset, offset=offset, kv_heads=1, size=HEAD_SIZE, value_size=HEAD_SIZE)
    states = random_states(case, torch.float32)
    states = states.with_grad() if backward else states
    key, value = cached(case, states)
    with Largest() as largest:
        out = span_attention(states.query, key, value, span, SpanMask(offset=offset), softcap=softcap)
        if backward:
            out.sum().backward()
    # Scores of the whole sequence take 64 MiB a head on top of the cache and 256 MiB without, a mask a quarter of it.
    rows = 128 * case.heads * tokens * 4
    assert 0 < largest.num_bytes <= (rows if span.is_full else rows / 4)


def test_dropout_masks_a_few_rows_at_a_time() -> None:
    query, key = torch.randn(1, 2, 8192, HEAD_SIZE), torch.randn(1, 1, 8192, HEAD_SIZE)
    with torch.no_grad(), Largest() as largest:
        span_attention(query, key, key, LayerSpan(span=256, sinks=4), dropout=0.1)
    assert 0 < largest.num_bytes <= 2 * 512 * 8192 * 4


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_full_attention_is_one_call_of_torch(dtype: torch.dtype, kv_heads: int) -> None:
    query = torch.randn(1, 4, 4096, HEAD_SIZE, dtype=dtype)
    key = torch.randn(1, kv_heads, 4096, HEAD_SIZE, dtype=dtype)
    with Largest() as largest:
        span_attention(query, key, key, FULL)
    assert "_scaled_dot_product_flash_attention_for_cpu" in largest.operations
    assert largest.num_bytes <= query.nbytes


def test_values_of_another_size_take_no_scores_of_the_whole_sequence() -> None:
    query, value = torch.randn(1, 2, 4096, HEAD_SIZE), torch.randn(1, 2, 4096, 2 * HEAD_SIZE)
    with Largest() as largest:
        span_attention(query, query, value, FULL)
    assert 0 < largest.num_bytes <= 2 * 512 * 4096 * 4


@pytest.mark.parametrize("previous", [0, 1])
@torch.no_grad()
def test_long_blocks_side_by_side(previous: int) -> None:
    case = Case(span=LayerSpan(block=600, previous=previous, sinks=3), num_new=2600, heads=4, size=HEAD_SIZE)
    states, positions = random_states(case), torch.arange(2600)
    expected = dense_attention(states.query, states.key, states.value, visible_keys(positions, positions, case.span))
    for lanes in (None, 1, 2):
        with lanes_at_once(lanes):
            assert_close(attend(case, states), expected, EXACT)


def test_keys_of_another_cache_are_refused() -> None:
    query = torch.randn(1, 2, 1, HEAD_SIZE)
    key = torch.randn(1, 2, 50, HEAD_SIZE)
    with pytest.raises(ValueError, match="got 50 keys where a SpanCache returns 12"):
        span_attention(query, key, key, LayerSpan(span=10, sinks=2), SpanMask(offset=49))


@torch.no_grad()
def test_heads_that_stand_side_by_side_are_not_copied() -> None:
    window = LayerSpan(span=64, sinks=4)
    states = random_states(Case(span=FULL, num_new=300, heads=8, kv_heads=4))
    handed: list[Tensor] = []

    def noting(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
        handed.extend((query, key, value))
        return query

    spans = HeadSpans((window, FULL, FULL, window))
    out = attend_by_head(noting, states.query, states.key, states.value, spans, None)
    assert torch.equal(out, states.query)
    pairs = zip(handed, states.all() * 2, strict=True)
    shared = [x.data_ptr() in range(y.data_ptr(), y.data_ptr() + y.nbytes) for x, y in pairs]
    # Heads 0 and 3 are put together; heads 1 and 2 are read where they are.
    assert shared == [False] * 3 + [True] * 3


def test_spans_of_other_heads_are_refused() -> None:
    query, key = torch.randn(1, 4, 9, HEAD_SIZE), torch.randn(1, 4, 9, HEAD_SIZE)
    with pytest.raises(ValueError, match="spans of 2 key/value heads got 4 of them"):
        span_attention(query, key, key, HeadSpans((FULL, LayerSpan(span=4))))


@torch.no_grad()
def test_keys_of_heads_that_a_model_has_changed_after_the_cache_are_refused() -> None:
    spans = HeadSpans((FULL, LayerSpan(span=10, sinks=2)))
    states = random_states(Case(span=spans, num_new=1, offset=49))
    key, value = cached(Case(span=spans, num_new=1, offset=49), states)
    with pytest.raises(ValueError, match="got 1 keys where a SpanCache returns 50"):
        span_attention(states.query, key * 1, value, spans, SpanMask(offset=49))


@tries(60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=4))
@example([(0, 5, 0), (2, 3, 0)])
def test_left_padding(rows: list[tuple[int, int, int]]) -> None:
    width = max(sum(row) for row in rows) + 1
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (left, real, _) in enumerate(rows):
        mask[row, left : left + real] = 1
    # Padding after the text hides nothing, and a row without text is padding as yet.
    expected = [left if real else width for left, real, _ in rows]
    found = left_padding(mask)
    assert (found is None) == (not any(expected))
    assert found is None or found.tolist() == expected


def test_padding_between_real_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="between real tokens"):
        left_padding(torch.tensor([[1, 0, 1]]))
