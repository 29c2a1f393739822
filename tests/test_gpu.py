"""On a CUDA device: attention equals the definition, cache and main job agree with the CPU. Opt in with `-m gpu`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen
from torch.nn.attention.varlen import AuxRequest

from eval.config.generation import GenerationSettings
from eval.generation.greedy import Entered, decode_greedily
from eval.run import main
from masformer import LayerSpan, SpanCache, SpanPlan, apply_plan, step_graph
from masformer.attention import cuda, full
from masformer.attention.cache import join
from masformer.attention.flex import flex_attention
from masformer.attention.kernels import choose_kernel
from masformer.placement import PlanMeter, gate_gradients
from masformer.plans.spans import FULL, HeadSpans
from masformer.step_graph import StepGraph
from tests.helpers import varlen_standin
from tests.helpers.attention_cases import CASES, Case, assert_close, attend, cached, defined, gradients, random_states
from tests.helpers.joined_rows import Batch, tokens, tree
from tests.helpers.tiny_models import SUPPORTED, save_tiny_checkpoint, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PLAN = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2)))
PINNED = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(span=9)))
BY_HEAD = SpanPlan((FULL, HeadSpans((PINNED[0], FULL)), PINNED[0]))
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}  # of logits
# Of attention, whose inputs the reference shares.
ATTENTION_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
HALF = [torch.float16, torch.bfloat16]
DEVICE = "cuda"
# What a kernel computes; one token on top of a cache needs none.
SEVERAL = {
    name: case for name, case in CASES.items() if not (case.padding or case.forked or case.by_head) and case.num_new > 1
}
FOR_VARLEN = {name: case for name, case in SEVERAL.items() if case.softcap is None}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize("dtype", list(ATTENTION_TOLERANCE), ids=str)


@pytest.fixture(autouse=True)
def _compiled_or_failed() -> Iterator[None]:
    # After a few compilations torch would go on without, and a compiled kernel would pass untested.
    with torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True):
        yield


def kernel(case: Case, dtype: torch.dtype) -> str:
    query = random_states(case, dtype, DEVICE).query
    return choose_kernel(query, case.span, case.offset, case.scores, case.learned, 0.0, case.value_size)


def flex_cases() -> list[object]:
    dtypes = [dtype for dtype in ATTENTION_TOLERANCE if dtype != torch.float64]
    return [pytest.param(case, dtype, id=f"{name}-{dtype}") for name, case in SEVERAL.items() for dtype in dtypes]


def assert_gradients_close(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == dtype
        assert_close(ours.double(), theirs, ATTENTION_TOLERANCE[dtype] * max(4.0, float(theirs.abs().max())))


@each_dtype
def test_each_kernel_is_chosen_for_some_case(dtype: torch.dtype) -> None:
    chosen = {kernel(case, dtype) for case in SEVERAL.values()}
    if dtype == torch.float64:
        assert chosen == {"causal", "tiles"}
    elif dtype in HALF and cuda.is_ready(torch.device(DEVICE)):
        assert chosen == {"causal", "varlen", "flex"}
    else:
        assert chosen == {"causal", "flex"}


@torch.no_grad()
@each_dtype
@each_case
def test_attention_equals_the_definition(case: Case, dtype: torch.dtype) -> None:
    states = random_states(case, dtype, DEVICE)
    out = attend(case, states)
    assert out.dtype == dtype
    assert_close(out.double(), defined(case, states.map(Tensor.double)), ATTENTION_TOLERANCE[dtype])


@each_dtype
@each_case
def test_gradients_equal_those_of_the_definition(case: Case, dtype: torch.dtype) -> None:
    states = random_states(case, dtype, DEVICE).with_grad()
    wide = states.map(Tensor.double).with_grad()
    found = gradients(attend(case, states), states)
    assert_gradients_close(found, gradients(defined(case, wide), wide), dtype)


@pytest.mark.parametrize(("case", "dtype"), flex_cases())
def test_flex_attention_equals_the_definition_with_gradients(case: Case, dtype: torch.dtype) -> None:
    states = random_states(case, dtype, DEVICE).with_grad()
    wide = states.map(Tensor.double).with_grad()
    key, value = cached(case, states)
    out = flex_attention(states.query, key, value, case.span, case.offset, case.scores, states.learned_sinks)
    exact = defined(case, wide)
    assert_close(out.double(), exact, ATTENTION_TOLERANCE[dtype])
    assert_gradients_close(gradients(out, states), gradients(exact, wide), dtype)


needs_varlen = pytest.mark.skipif(
    not (torch.cuda.is_available() and cuda.is_ready(torch.device(DEVICE))),
    reason="needs a device of compute capability 8.0 and torch 2.13",
)


@needs_varlen
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", FOR_VARLEN.values(), ids=FOR_VARLEN)
def test_varlen_attention_equals_the_definition_with_gradients(case: Case, dtype: torch.dtype) -> None:
    states = random_states(case, dtype, DEVICE).with_grad()
    wide = states.map(Tensor.double).with_grad()
    key, value = cached(case, states)
    more = {"learned_sinks": states.learned_sinks}
    out = cuda.attend(states.query, key, value, (), case.span, case.offset, case.scores.scale, **more)
    exact = defined(case, wide)
    assert_close(out.double(), exact, ATTENTION_TOLERANCE[dtype])
    assert_gradients_close(gradients(out, states), gradients(exact, wide), dtype)


@needs_varlen
@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_varlen_attention_is_what_the_stand_in_says(heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(40, 4, 64, generator=generator).to(DEVICE, torch.bfloat16)
    key, value = (torch.randn(50, heads, 64, generator=generator).to(DEVICE, torch.bfloat16) for _ in range(2))
    # Sequences without queries and without keys, and with fewer keys used than there are.
    cu_queries, cu_keys = ([0, 9, 9, 20, 40, 40], [0, 20, 25, 25, 45, 50])
    used = torch.tensor([18, 5, 0, 20, 5], dtype=torch.int32)
    for window in ((-1, -1), (-1, 0), (6, 0)):
        for seqused in (None, used):
            arguments = [torch.tensor(cu, dtype=torch.int32) for cu in (cu_queries, cu_keys)]
            options = {"window_size": window, "enable_gqa": heads != 4, "num_splits": 1, "return_aux": AuxRequest(True)}
            expected = varlen_standin.varlen_attn(
                *(x.cpu().double() for x in (query, key, value)), *arguments, 20, 20, seqused_k=seqused, **options
            )
            arguments = [x.to(DEVICE) for x in arguments]
            seqused = None if seqused is None else seqused.to(DEVICE)
            found = torch_varlen.varlen_attn(query, key, value, *arguments, 20, 20, seqused_k=seqused, **options)
            for ours, exact in zip(found, expected, strict=True):
                assert_close(ours.cpu().double(), exact, ATTENTION_TOLERANCE[torch.bfloat16])


@needs_varlen
@pytest.mark.parametrize("is_used", [False, True], ids=["all keys", "some keys"])
def test_varlen_attention_is_what_torch_declares(is_used: bool) -> None:
    # What tests without a device take shapes and dtypes from.
    query = torch.randn(40, 4, 64, dtype=torch.bfloat16, device=DEVICE)
    key, value = (torch.randn(50, 2, 64, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    queries, keys, used = (
        torch.tensor(numbers, dtype=torch.int32, device=DEVICE)
        for numbers in ([0, 9, 9, 40], [0, 20, 25, 50], [18, 5, 20])
    )
    arguments = (query, key, value, queries, keys, 31, 25, False, 0.125, [6, 0], True, used if is_used else None)
    torch.library.opcheck(
        torch.ops.torch_attn._varlen_attn.default,
        (*arguments, None, 1),
        test_utils=("test_schema", "test_faketensor"),
    )


@needs_varlen
@torch.no_grad()
def test_a_row_gets_the_same_bits_whatever_its_batch() -> None:
    case = Case(span=LayerSpan(span=64, sinks=4), num_new=300, batch=4, heads=4, size=64, value_size=64)
    states = random_states(case, torch.bfloat16, DEVICE)
    together = attend(case, states)
    for row in range(4):
        alone = attend(replace(case, batch=1), states.map(lambda x, row=row: x[row : row + 1]))
        assert torch.equal(alone, together[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize(
    "span",
    [LayerSpan(span=256, sinks=4), LayerSpan(block=512, previous=1, sinks=4), LayerSpan(span=256), FULL],
    ids=str,
)
def test_no_mask_or_scores_of_the_whole_sequence(
    span: LayerSpan, softcap: float | None, kv_heads: int, dtype: torch.dtype
) -> None:
    tokens = 32_768
    case = Case(span=span, num_new=tokens, kv_heads=kv_heads, softcap=softcap)
    states = random_states(case, dtype, DEVICE).with_grad()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(case, states).sum().backward()
    # A mask of the whole sequence takes a byte a pair.
    assert torch.cuda.max_memory_allocated() - before < tokens * tokens / 2


@torch.no_grad()
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("kind", list(SUPPORTED))
def test_device_equals_cpu_in_one_pass_and_through_the_cache(kind: str, dtype: torch.dtype) -> None:
    tokens = torch.arange(3, 93)[None]
    model = tiny_model(kind)
    apply_plan(model, PLAN)
    expected = model(tokens, use_cache=False).logits
    model = model.to("cuda", dtype)
    tokens = tokens.to("cuda")
    logits = model(tokens, use_cache=False).logits.float().cpu()
    torch.testing.assert_close(logits, expected, atol=TOLERANCE[dtype], rtol=0)
    cache = SpanCache(PLAN)
    parts = [model(part, past_key_values=cache).logits for part in tokens.split((40, *[1] * 50), dim=1)]
    cached = torch.cat(parts, dim=1).float().cpu()
    torch.testing.assert_close(cached, expected, atol=TOLERANCE[dtype], rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "gemma2"])
def test_rows_that_share_runs_decode_as_each_alone_on_the_cpu(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "TAIL_TOKENS", 20)
    model = tiny_model(kind)
    apply_plan(model, PLAN)
    more = [tokens(20 + row, 8) for row in range(4)]
    prompts, _ = tree(model, PLAN, (12, 2, 25, 6))
    alone = [model(torch.tensor([prompts[row] + more[row]]), use_cache=False).logits[0] for row in range(4)]
    model = model.to(DEVICE, dtype)
    prompts, caches = tree(model, PLAN, (12, 2, 25, 6))
    batch = Batch(model, prompts, caches, room=8)
    for step in range(8):
        logits = batch.step(torch.tensor([own[step : step + 1] for own in more], device=DEVICE)).float().cpu()
        expected = torch.stack([alone[row][len(prompts[row]) + step - 1] for row in range(4)])
        torch.testing.assert_close(logits, expected, atol=TOLERANCE[dtype], rtol=0)


@needs_varlen
@torch.no_grad()
def test_a_step_of_joined_rows_waits_for_nothing() -> None:
    plan = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(span=9)))
    model = tiny_model("llama").to(DEVICE, torch.bfloat16)
    apply_plan(model, plan)
    batch = Batch(model, *tree(model, plan, (12, 2, 25, 6)), room=8)
    ids = torch.full((4, 1), 5, device=DEVICE)
    batch.step(ids)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(6):
            batch.step(ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("kind", "plan"), [("llama", PINNED), ("llama", BY_HEAD), ("gpt_oss", PINNED), ("gemma2", PINNED)]
)
def test_a_step_is_a_graph_that_gives_rows_what_they_get_alone_on_the_cpu(
    kind: str, plan: SpanPlan, dtype: torch.dtype
) -> None:
    model = tiny_model(kind)
    apply_plan(model, plan)
    more = [tokens(20 + row, 12) for row in range(4)]
    prompts, _ = tree(model, plan, (12, 2, 25, 6))
    alone = [model(torch.tensor([prompts[row] + more[row]]), use_cache=False).logits[0] for row in range(4)]
    model = model.to(DEVICE, dtype)
    room = 20  # fewer steps are not worth a graph
    cache, longest = join(tree(model, plan, (12, 2, 25, 6))[1], room), max(map(len, prompts))
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * (len(row) + room) for row in prompts], device=DEVICE)
    positions = torch.tensor([[len(row) - 1] for row in prompts], device=DEVICE)
    steps = StepGraph.of(model, cache, positions, mask, room)
    assert steps is not None
    # Experts in fp32 wait for the device.
    is_recorded = kind != "gpt_oss" or dtype != torch.float32
    for count in range(12):
        texts = [[*prompt, *own][len(prompt) - 1 + count] for prompt, own in zip(prompts, more, strict=True)]
        ids = torch.tensor(texts, device=DEVICE)[:, None]
        if count == 4 and is_recorded:  # the fourth was the last that is compared
            torch.cuda.set_sync_debug_mode("error")
        try:
            scores = steps(ids)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = torch.stack([alone[row][len(prompts[row]) - 1 + count] for row in range(4)])
        torch.testing.assert_close(scores[:, 0].cpu(), expected, atol=TOLERANCE[dtype], rtol=0)
    assert (steps.graph is not None) == is_recorded


def test_answers_are_the_same_with_and_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    apply_plan(model, PINNED)
    model = model.to(DEVICE)

    def answers() -> list[list[int]]:
        prompts, caches = tree(model, PINNED, (12, 2, 25, 6))
        longest = max(map(len, prompts))
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=DEVICE)
        settings = GenerationSettings(max_new_tokens=40)
        tokenizer: Any = None  # nothing is decoded without texts to stop at
        entered = [Entered(numbers=range(4), prompts=prompts, cache=join(caches, 40), mask=mask)]
        rows = decode_greedily(
            *(model, tokenizer, lambda going: entered.pop if entered else None, settings, 0),
            lambda going, steps: None,
        )
        return [row.tokens for row in sorted(rows, key=lambda row: row.number)]

    with_graph = answers()
    assert {*step_graph._EQUALS[model].values()} == {True}
    monkeypatch.setattr(StepGraph, "of", lambda *_: None)
    assert answers() == with_graph


def test_chunks_of_any_length_compile_flex_attention_within_its_limit() -> None:
    torch._dynamo.reset()
    # Torch's own limit; more is an error here.
    with torch._dynamo.config.patch(recompile_limit=8):
        for width, sinks, offset, num_new in ((16, 4, 140, 150), (9, 1, 0, 232), (33, 2, 213, 211), (50, 3, 170, 390)):
            for span in (LayerSpan(span=width, sinks=sinks), LayerSpan(block=width, previous=1, sinks=sinks)):
                case = Case(span=span, num_new=num_new, offset=offset, softcap=20.0)
                states = random_states(case, torch.float32, DEVICE)
                exact = defined(case, states.map(Tensor.double))
                assert_close(attend(case, states).double(), exact, ATTENTION_TOLERANCE[torch.float32])


def test_main_job_uses_the_device_and_bfloat16(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"article": "many words " * 200, "abstract": "some words"}) + "\n")
    arguments = f"--task arxiv --model {model} --data {data} --maxlen 400 --max-new-tokens 8 --plan every:2"
    assert main([*arguments.split(), "--output", str(tmp_path / "run")]) == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["identity"]["dtype"] == "bfloat16"
    assert torch.cuda.get_device_name() in run["sessions"][0]["machine"]["device"]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_plans_and_gates_are_measured_as_on_the_cpu(kind: str) -> None:
    text, plans = list(range(3, 93)), [SpanPlan.full(3), PLAN, SpanPlan((FULL, *PLAN.layers[1:]))]
    model = tiny_model(kind)
    losses, gates = PlanMeter(model, [text], 40).measure(plans), gate_gradients(model, [text], 40, PLAN)
    model = model.to(DEVICE)
    assert PlanMeter(model, [text], 40).measure(plans) == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(gate_gradients(model, [text], 40, PLAN), gates, atol=1e-4, rtol=1e-2)
