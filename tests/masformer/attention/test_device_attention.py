"""What CUDA uses, without CUDA: `flex_attention` uncompiled, and a stand-in for `varlen_attn` that keeps its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import varlen as torch_varlen

from masformer.attention import cuda, cuda_joined, parts
from masformer.attention import flex as flex_module
from masformer.attention import kernels as attention
from masformer.attention.calls import call_of, calls_of
from masformer.attention.flex import flex_attention
from masformer.attention.full import FullLayer, JoinedLayer
from masformer.attention.kernels import dense_attention, span_attention
from masformer.attention.layers import Place
from masformer.attention.visibility import SpanMask, visible_keys
from masformer.plans.spans import FULL, LayerSpan
from tests.helpers import varlen_standin
from tests.helpers.attention_cases import (
    CASES,
    Case,
    assert_close,
    attend,
    cached,
    cases,
    defined,
    from_a_cache,
    gradients,
    random_states,
)
from tests.helpers.properties import tries

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}
EXACT = TOLERANCE[torch.float64]
GRADIENT_TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def _varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "varlen_attn", varlen_standin.varlen_attn)
    monkeypatch.setattr(cuda, "flash_backward", varlen_standin.flash_backward)
    monkeypatch.setattr(cuda, "is_ready", lambda device: True)


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


@torch.no_grad()
def test_one_compilation_of_flex_attention_serves_all_lengths_offsets_and_numbers() -> None:
    compiled = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=counting)):
        on_cuda = flex_module._flex.__wrapped__("cuda")
    # A single block of 128 tokens would be a shape of its own.
    windows = [(16, 4, 40, 150), (9, 1, 0, 232), (33, 2, 113, 211), (50, 0, 70, 290), (16, 4, 0, 175), (3, 7, 300, 260)]
    with mock.patch.object(flex_module, "_flex", return_value=on_cuda):
        for width, sinks, offset, num_new in windows:
            case = Case(span=LayerSpan(span=width, sinks=sinks), num_new=num_new, offset=offset, softcap=20.0)
            states = random_states(case, torch.float32)
            out = flex_attention(states.query, *cached(case, states), case.span, offset, case.scores)
            assert_close(out.double(), defined(case, states.map(Tensor.double)), TOLERANCE[torch.float32])
    # One that takes queries and keys of one number, and one that does not.
    assert 0 < len(compiled) <= 2


def attend_as_on_cuda(case: Case, dtype: torch.dtype = torch.bfloat16, documents: Any = None) -> set[str]:
    """Check attention, and its gradients, by what CUDA would choose for a dtype, in fp64; return what it was."""
    chosen: set[str] = set()
    choose = attention.choose_kernel

    def choose_on_cuda(query: Tensor, *args: Any) -> str:
        alike: Any = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=query.shape)
        kernel = choose(alike, *args)
        chosen.add(kernel)
        return kernel

    with mock.patch.object(attention, "choose_kernel", choose_on_cuda):
        states = random_states(case)
        with torch.no_grad():
            assert_close(attend(case, states), defined(case, states), EXACT)
        if "flex" in chosen:  # it has no gradients on the CPU
            return chosen
        ours, theirs = states.with_grad(), states.with_grad()
        found, exact = gradients(attend(case, ours), ours), gradients(defined(case, theirs), theirs)
        for mine, expected in zip(found, exact, strict=True):
            assert_close(mine, expected, GRADIENT_TOLERANCE)
    return chosen


@tries(60)
@given(cases(longest=60), st.sampled_from([torch.bfloat16] * 4 + [torch.float64]))
def test_what_cuda_chooses_equals_the_definition(case: Case, dtype: torch.dtype) -> None:
    attend_as_on_cuda(case, dtype)


@tries(60)
@given(cases(longest=60, can_cap=False))
def test_gradients_of_what_cuda_chooses_equal_those_of_the_definition(case: Case) -> None:
    assert "flex" not in attend_as_on_cuda(case)  # with which gradients were not compared


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_case_on_cuda_equals_the_definition(case: Case) -> None:
    attend_as_on_cuda(case)


def test_cuda_takes_each_kernel_for_some_case() -> None:
    window = LayerSpan(span=16)
    assert attend_as_on_cuda(Case(span=window, num_new=40)) == {"varlen"}
    assert attend_as_on_cuda(Case(span=window, num_new=40, softcap=1.0)) == {"flex"}
    assert attend_as_on_cuda(Case(span=window, num_new=40), torch.float64) == {"tiles"}
    assert attend_as_on_cuda(Case(span=window, num_new=16)) == {"causal"}
    assert attend_as_on_cuda(Case(span=window, num_new=1, offset=40)) == set()
    assert attend_as_on_cuda(Case(span=window, num_new=40, size=264, value_size=264)) == {"flex"}
    assert attend_as_on_cuda(Case(span=LayerSpan(block=4, previous=5), num_new=40)) == {"flex"}


def test_packed_documents_on_cuda_do_not_see_each_other() -> None:
    spans = [FULL, LayerSpan(span=7, sinks=3), LayerSpan(block=6, previous=1, sinks=2)]
    starts = [[0, 11, 30], [0, 1, 2, 25]]
    for span in spans:
        case = Case(span=span, num_new=40, batch=2, heads=4, kv_heads=2)
        states = random_states(case)
        mask = SpanMask(offset=0, documents=starts)
        with mock.patch.object(attention, "choose_kernel", return_value="varlen"):
            out = span_attention(*states.all(), span, mask)
        for row, firsts in enumerate(starts):
            for first, stop in zip(firsts, [*firsts[1:], 40], strict=True):
                alone = states.map(lambda x, row=row, first=first, stop=stop: x[row : row + 1, :, first:stop])
                expected = defined(replace(case, num_new=stop - first, batch=1), alone)
                assert_close(out[row : row + 1, :, first:stop], expected, EXACT)


def test_what_lies_apart_is_read_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Tensor] = []

    def noting(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
        handed.extend((query, key, value))
        return varlen_standin.varlen_attn(query, key, value, *args, **options)

    monkeypatch.setattr(cuda, "varlen_attn", noting)
    query = torch.randn(2, 30, 4, 16, dtype=torch.float64).transpose(1, 2)
    buffers = [torch.randn(2, 2, 90, 16, dtype=torch.float64) for _ in range(2)]
    key, value = (buffer[:, :, :70] for buffer in buffers)
    out = cuda.attend(query, key, value, (), FULL, 40, 0.25)
    visible = visible_keys(torch.arange(40, 70), torch.arange(70), FULL)
    assert_close(out, dense_attention(query, key, value, visible, 0.25), EXACT)
    assert [x.untyped_storage().data_ptr() for x in handed] == [
        x.untyped_storage().data_ptr() for x in (query, *buffers)
    ]


@pytest.mark.parametrize("span", [FULL, LayerSpan(span=64, sinks=4), LayerSpan(block=32, sinks=4)], ids=str)
def test_calls_fit_what_torch_declares(span: LayerSpan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    # A build for the CPU has no kernels, but knows the shapes and dtypes that go in and out.
    calls_of.cache_clear(), call_of.cache_clear()
    with FakeTensorMode():
        query = torch.empty(2, 8, 100, 64, dtype=torch.bfloat16, requires_grad=True)
        key, value = (torch.empty(2, 2, 100, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        learned = torch.empty(8, dtype=torch.bfloat16, requires_grad=True)
        out = cuda.attend(query, key, value, (), span, 0, 0.125, learned_sinks=learned)
        assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
        states = (query, key, value, learned)
        for grad, own in zip(torch.autograd.grad(out.sum(), states), states, strict=True):
            assert (grad.shape, grad.dtype) == (own.shape, torch.bfloat16)
    calls_of.cache_clear(), call_of.cache_clear()


def assert_as_declared(attend: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that torch takes the calls of a function, and that what it declares has the shapes of the stand-in's."""
    found = attend()  # what is kept between passes is made of real numbers
    monkeypatch.setattr(cuda, "varlen_attn", torch_varlen.varlen_attn)
    with FakeTensorMode(allow_non_fake_inputs=True):
        declared = attend()
    for ours, fake in zip(*((x,) if isinstance(x, Tensor) else x for x in (found, declared)), strict=True):
        assert isinstance(fake, FakeTensor)
        assert (fake.shape, fake.dtype) == (ours.shape, ours.dtype)


@torch.no_grad()
@pytest.mark.parametrize("how", ["cache", "fork", "padding", "padding on a cache"])
@pytest.mark.parametrize("span", [FULL, LayerSpan(span=16, sinks=4), LayerSpan(block=8, sinks=4)], ids=str)
def test_calls_on_a_cache_fit_what_torch_declares(span: LayerSpan, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offset, padding = 0 if how == "padding" else 30, (0, 7) if "padding" in how else None
    case = Case(span=span, num_new=20, offset=offset, batch=2, heads=4, padding=padding, learned=True)
    states = random_states(case, torch.bfloat16)
    key, value, seen = from_a_cache(case, states, forked=how == "fork")
    before = () if seen is None else seen.runs
    assert bool(before) == (how == "fork" and span.is_full)
    more = {"padding": padding, "learned_sinks": states.learned_sinks}
    assert_as_declared(
        lambda: cuda.attend(states.query, key, value, before, span, case.offset, 0.25, **more), monkeypatch
    )


@torch.no_grad()
def test_a_part_fits_what_torch_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(span=FULL, num_new=1, offset=40, batch=2, heads=4, value_size=8)
    states = random_states(case, torch.bfloat16)
    assert_as_declared(lambda: cuda.partial(*states.all(), scale=0.25), monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize("learned", [False, True], ids=["plain", "learned sinks"])
@pytest.mark.parametrize("ends", [(6, 2), (3, 3)], ids=["rows of two lengths", "rows of one length"])
@pytest.mark.parametrize(("num_new", "is_pinned"), [(1, True), (1, False), (3, False)])
def test_calls_of_joined_rows_fit_what_torch_declares(
    num_new: int, is_pinned: bool, ends: tuple[int, ...], learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states(rows: int, heads: int, length: int) -> Tensor:
        return torch.randn(rows, heads, length, 16).bfloat16()

    trunk = FullLayer(FULL)
    trunk.update(states(1, 2, 40), states(1, 2, 40))
    forks = [trunk.fork() for _ in ends]
    for fork, count in zip(forks, ends, strict=True):
        fork.update(states(1, 2, count), states(1, 2, count))
    joined = FullLayer.join(forks, [40 + count for count in ends], 5)
    assert isinstance(joined, JoinedLayer)
    assert joined.runs
    if is_pinned:
        slot = joined.next_place(0)
        assert slot is not None
        joined.place = Place(*slot, device=torch.device("cpu"))
    key, value = joined.update(states(2, 2, num_new), states(2, 2, num_new))
    query, sinks = states(2, 4, num_new), torch.randn(4).bfloat16() if learned else None
    assert_as_declared(lambda: cuda_joined.attend_joined(query, key, value, joined, 0.25, sinks), monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, case in ON_A_CACHE.items() if case.softcap is None])
def test_calls_in_half_precision_merge_to_what_one_would_round_to(name: str) -> None:
    case = ON_A_CACHE[name]
    states = random_states(case, torch.bfloat16)
    key, value = cached(case, states)
    more = {"learned_sinks": states.learned_sinks}
    out = cuda.attend(states.query, key, value, (), case.span, case.offset, case.scores.scale, **more)
    assert out.dtype == torch.bfloat16
    assert_close(out.double(), defined(case, states.map(Tensor.double)), 1.6e-2)


def test_a_half_precision_merge_is_exact_to_the_last_bit_or_so() -> None:
    # Outputs, and the logs of their sums, as a kernel returns them.
    out, part = (torch.randn(500, 4, 16, dtype=torch.float64).bfloat16() for _ in range(2))
    total, part_total = torch.randn(4, 500) * 3, torch.randn(4, 500) * 3
    share = torch.sigmoid((part_total - total).double()).T.unsqueeze(-1)
    exact = torch.lerp(out.double(), part.double(), share)
    size = out.double().abs() + part.double().abs()  # a result near 0 is as exact as what it is made of
    sums = cuda._merge(out, total, part, part_total)
    assert bool(((out.double() - exact).abs() <= 2**-7 * size).all())
    torch.testing.assert_close(sums, torch.logaddexp(total, part_total))


@torch.no_grad()
def test_a_part_on_cuda_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    states = random_states(Case(span=FULL, num_new=20, offset=13, batch=2, heads=4, value_size=8))
    expected = parts.partial(*states.all(), scale=0.3)
    called = mock.Mock(side_effect=varlen_standin.varlen_attn)
    monkeypatch.setattr(cuda, "varlen_attn", called)
    monkeypatch.setattr(cuda, "DTYPES", (torch.float64,))
    for ours, exact in zip(parts.partial(*states.all(), scale=0.3), expected, strict=True):
        assert_close(ours, exact, EXACT)
    called.assert_called_once()
