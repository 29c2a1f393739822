"""What CUDA uses, without CUDA: `flex_attention` uncompiled, and flash-attn played by what its documentation says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from masformer.attention import cuda as device_attention
from masformer.attention import kernels as attention
from masformer.attention.cuda import flash_attention, flex_attention, has_flash_attention
from masformer.plans.spans import FULL, LayerSpan
from tests.helpers.attention_cases import (
    CASES,
    Case,
    assert_close,
    attend,
    cached,
    cases,
    defined,
    random_states,
)
from tests.helpers.properties import tries

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}
EXACT = TOLERANCE[torch.float64]


def documented_flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """Return (B, Tq, H, D) as the docstring of `flash_attn_func` has it, in loops."""
    batch, length, heads, size = q.shape
    _, keys, kv_heads, _ = k.shape
    assert k.shape == v.shape == (batch, keys, kv_heads, size), "one head size for all"
    assert size <= 256, "head dimension at most 256"
    assert dropout_p == 0
    assert alibi_slopes is None
    assert not return_attn_probs
    left, right = window_size
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(heads // kv_heads, dim=2))
    scores = scores * (size**-0.5 if softmax_scale is None else softmax_scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    for query in range(length):
        # Aligned to the bottom right corner.
        at = query + keys - length
        for key in range(keys):
            is_seen = (left < 0 or key >= at - left) and (right < 0 or key <= at + right)
            if not is_seen or (causal and key > at):
                scores[:, :, query, key] = -torch.inf
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.repeat_interleave(heads // kv_heads, dim=2))


@pytest.fixture(autouse=True)
def _flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.flash_attn_func = documented_flash_attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)


# One token on top of a cache needs no kernel, and its keys are in no order.
ON_A_CACHE = {
    name: case for name, case in CASES.items() if not (case.padding or case.forked or case.by_head) and case.num_new > 1
}


def flex(case: Case, dtype: torch.dtype) -> None:
    states = random_states(case, dtype)
    key, value = cached(case, states)
    out = flex_attention(states.query, key, value, case.span, case.offset, case.scores, states.learned_sinks)
    assert out.dtype == dtype
    expected = defined(case, states.map(Tensor.double))
    assert_close(out.double(), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("case", ON_A_CACHE.values(), ids=ON_A_CACHE)
@torch.no_grad()
def test_flex_attention_equals_the_definition(case: Case) -> None:
    flex(case, torch.float32)


@tries(25)
@given(cases(longest=90, can_pad=False, by_head=False))
@torch.no_grad()
def test_flex_attention_of_any_case_equals_the_definition(case: Case) -> None:
    assume(case.num_new > 1 or not case.offset)
    flex(case, torch.float64)


@pytest.mark.parametrize("span", [LayerSpan(span=16, sinks=4), LayerSpan(block=8, previous=1), FULL], ids=str)
@torch.no_grad()
def test_flex_attention_is_not_compiled_for_each_length_and_offset(span: LayerSpan) -> None:
    compiled = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=counting)):
        on_cuda = device_attention._flex.__wrapped__("cuda")
    with mock.patch.object(device_attention, "_flex", return_value=on_cuda):
        for offset in (0, 40, 113):
            for num_new in (32, 150, 211):
                case = Case(span=span, num_new=num_new, offset=offset)
                states = random_states(case, torch.float32)
                key, value = cached(case, states)
                flex_attention(states.query, key, value, span, offset, case.scores)
    # After eight for all kinds of spans, torch would go on without compiling.
    assert 0 < len(compiled) <= 6


@tries(60)
@given(cases(longest=40, can_pad=False, by_head=False), st.none() | st.integers(1, 60))
@torch.no_grad()
def test_flash_attention_equals_the_definition(case: Case, span: int | None) -> None:
    assume(case.num_new > 1 or not case.offset)
    case = Case(**{**vars(case), "span": LayerSpan(span=span), "learned": False, "value_size": case.size})
    states = random_states(case)
    key, value = cached(case, states)
    out = flash_attention(states.query, key, value, case.span, case.scores)
    assert_close(out, defined(case, states), EXACT)


def attend_as_on_cuda(case: Case, dtype: torch.dtype, has_flash: bool) -> set[str]:
    """Check attention by the kernels that CUDA would choose for a dtype, in fp64; return which they were."""
    chosen: set[str] = set()
    choose = attention.choose_kernel

    def choose_on_cuda(query: Tensor, *args: Any) -> str:
        alike: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=dtype, shape=query.shape)
        kernel = choose(alike, *args)
        chosen.add(kernel)
        return kernel

    states = random_states(case)
    with (
        mock.patch.object(attention, "choose_kernel", choose_on_cuda),
        mock.patch.object(attention, "has_flash_attention", return_value=has_flash),
    ):
        assert_close(attend(case, states), defined(case, states), EXACT)
    return chosen


# A dtype, and whether flash-attn is installed.
DEVICES = st.sampled_from([*[(torch.bfloat16, True)] * 4, (torch.bfloat16, False), (torch.float64, True)])


@tries(150)
@given(cases(longest=60), DEVICES)
@torch.no_grad()
def test_what_cuda_chooses_equals_the_definition(case: Case, device: tuple[torch.dtype, bool]) -> None:
    attend_as_on_cuda(case, *device)


@torch.no_grad()
def test_cuda_takes_each_kernel_for_some_case() -> None:
    window = LayerSpan(span=16)
    assert attend_as_on_cuda(Case(span=window, num_new=40), torch.bfloat16, True) == {"flash"}
    assert attend_as_on_cuda(Case(span=window, num_new=40), torch.bfloat16, False) == {"flex"}
    assert attend_as_on_cuda(Case(span=window, num_new=40), torch.float64, True) == {"tiles"}
    assert attend_as_on_cuda(Case(span=window, num_new=16), torch.bfloat16, True) == {"causal"}
    assert attend_as_on_cuda(Case(span=window, num_new=1, offset=40), torch.bfloat16, True) == set()


@pytest.mark.parametrize(
    "case",
    [
        Case(span=LayerSpan(span=16, sinks=4), num_new=19, softcap=20.0),
        Case(span=LayerSpan(span=16, sinks=4), num_new=9, offset=10),
    ],
    ids=["softcap", "cache"],
)
@torch.no_grad()
def test_sinks_that_the_span_has_just_left_are_seen_with_flash_attention(case: Case) -> None:
    attend_as_on_cuda(case, torch.bfloat16, True)


@torch.no_grad()
def test_head_sizes_that_flash_attention_does_not_take_go_elsewhere() -> None:
    attend_as_on_cuda(Case(span=LayerSpan(span=16), num_new=40, value_size=8), torch.bfloat16, True)
    attend_as_on_cuda(Case(span=LayerSpan(span=16), num_new=40, size=264, value_size=264), torch.bfloat16, True)


@pytest.mark.parametrize("found", [None, object()])
def test_flash_attention_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    names = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: names.append(name) or found)
    assert has_flash_attention.__wrapped__() == (found is not None)
    assert names == ["flash_attn"]
