"""The compiled kernel against the definition, how it is had, and that everything works where it is not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from masformer import compiled, tuning
from masformer.attention import kernels, simd
from masformer.attention.kernels import span_attention
from masformer.attention.simd import Keys
from masformer.errors import OneLineError
from masformer.hardware import dtype_name
from masformer.plans.spans import FULL, HeadSpans, LayerSpan
from tests.helpers.attention_cases import CASES, Case, assert_close, attend, cases, defined, random_states
from tests.helpers.properties import tries

BY_KERNEL = "attention=simd window=simd"
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
with_compiler = pytest.mark.skipif(bool(simd.why_not()), reason=f"no kernel: {simd.why_not()}")
DTYPES = [pytest.param(dtype, id=dtype_name(dtype), marks=with_compiler) for dtype in TOLERANCE]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A process that has not looked for the kernel, and the folder where it will keep it."""
    caches = (compiled.library, compiled._missing, simd._function)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MASFORMER_WAYS", BY_KERNEL)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path / "masformer"
    for cached in caches:
        cached.cache_clear()


def by_kernel(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """Return attention with the kernel wherever it takes a case, the definition, and how often it was called."""
    states, calls = random_states(case, dtype), []
    attended = simd.attend

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return attended(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASFORMER_WAYS", BY_KERNEL)
        patch.setattr(simd, "attend", counting)
        out = attend(case, states)
    return out, defined(case, states.map(lambda x: x.double())), len(calls)


def least_calls(case: Case, dtype: torch.dtype) -> int:
    """Return how many spans the kernel must be called for: those of a few tokens that need no mask, and all others."""
    states, mask = random_states(case, dtype), case.mask()
    assert simd.takes(states.query, (states.key, states.value))
    count = 0
    for span in set(case.span.heads if isinstance(case.span, HeadSpans) else (case.span,)):
        is_few = case.num_new == 1 or (case.num_new <= kernels._FEW_QUERIES and span.num_causal is not None)
        count += not (case.offset and is_few and mask.hidden(span, states.query) is not None)
    return count


@each_dtype
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@torch.no_grad()
def test_attention_is_that_of_the_definition(case: Case, threads: int, dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, expected, num_calls = by_kernel(case, dtype)
    finally:
        torch.set_num_threads(before)
    assert out.dtype == dtype
    assert_close(out.double(), expected, TOLERANCE[dtype])
    assert num_calls >= least_calls(case, dtype)


@with_compiler
@tries(150)
@given(cases(), st.sampled_from(list(TOLERANCE)))
@torch.no_grad()
def test_any_case_is_that_of_the_definition(case: Case, dtype: torch.dtype) -> None:
    case = replace(case, value_size=8)
    out, expected, num_calls = by_kernel(case, dtype)
    assert_close(out.double(), expected, TOLERANCE[dtype])
    assert num_calls >= least_calls(case, dtype)


@each_dtype
@pytest.mark.parametrize(("size", "value_size"), [(2, 8), (34, 40), (64, 64), (96, 72), (128, 128), (256, 256)])
@pytest.mark.parametrize("group_length", [(1, 1), (6, 1), (3, 4), (5, 8), (2, 300)], ids=str)
@torch.no_grad()
def test_heads_of_any_size(group_length: tuple[int, int], size: int, value_size: int, dtype: torch.dtype) -> None:
    """One query, a few, those of one vector of lanes, of more, and so many that no piece of a run is a thread's."""
    group, length = group_length
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((2, 2 * group, length, size), (2, 2, 333, size), (2, 2, 333, value_size))
    )
    for softcap in (None, 50.0):
        bounds = simd.causal_bounds(length, 333)
        assert simd.takes(query, (key, value))
        out, lse = simd.attend(query, [Keys(key, value, bounds)], scale=size**-0.5, softcap=softcap)
        wide = (x.double() for x in (key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)))
        keys, values = wide
        scores = query.double() @ keys.mT * size**-0.5
        scores = scores if softcap is None else softcap * (scores / softcap).tanh()
        place = torch.arange(333)
        scores = scores.masked_fill(place > place[-length:, None], -torch.inf)
        assert_close(out.double(), scores.softmax(dim=-1) @ values, 4e-6 if dtype == torch.float32 else 3e-2)
        assert_close(lse.double(), scores.logsumexp(dim=-1), 2e-5)


@with_compiler
@torch.no_grad()
def test_memory_that_runs_out_is_an_error_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 9, 16)
    monkeypatch.setattr(simd, "_function", lambda dtype: lambda problem: 1)
    with pytest.raises(MemoryError, match="no memory for attention to 9 keys"):
        simd.attend(query, [Keys(key, key)], scale=1.0)


@each_dtype
@tries(60)
@given(st.data())
@torch.no_grad()
def test_rows_that_share_runs_get_what_each_gets_alone(dtype: torch.dtype, data: st.DataObject) -> None:
    """Runs of all rows, of some and of one, with bounds and without, more queries than lanes."""
    rows, group, length = (data.draw(st.integers(1, most)) for most in (5, 4, 40))
    heads, size = 2, data.draw(st.sampled_from([16, 72]))
    query = torch.randn(rows, heads * group, length, size).to(dtype)
    runs, alone = [], [[] for _ in range(rows)]
    for _ in range(data.draw(st.integers(1, 4))):
        first = data.draw(st.integers(0, rows - 1))
        stop = data.draw(st.integers(first + 1, rows))
        count = data.draw(st.sampled_from([1, 2, 63, 64, 65, 700]))
        is_shared = data.draw(st.booleans())
        key, value = (torch.randn(1 if is_shared else rows, heads, count, size).to(dtype) for _ in range(2))
        bounds = None
        if data.draw(st.booleans()):
            ends = torch.randint(0, count + 1, (rows, length, 2)).sort(dim=-1).values
            bounds = ends.to(torch.int32)
        runs.append(Keys(key, value, bounds, (first, stop)))
        for row in range(first, stop):
            place = torch.arange(count)
            seen = torch.ones(length, count, dtype=torch.bool)
            if bounds is not None:
                seen = (place >= bounds[row, :, :1]) & (place < bounds[row, :, 1:])
            at = 0 if is_shared else row
            alone[row].append((key[at], value[at], seen))
    out, lse = simd.attend(query, runs, scale=0.3)
    for row, of_row in enumerate(alone):
        if not of_row:
            assert torch.equal(out[row], torch.zeros_like(out[row]))
            assert bool((lse[row] == -torch.inf).all())
            continue
        key, value, seen = (torch.cat(parts, dim=1) for parts in zip(*of_row, strict=True))
        key, value = (x.double().repeat_interleave(group, dim=0) for x in (key, value))
        scores = (query[row].double() @ key.mT * 0.3).masked_fill(~seen, -torch.inf)
        assert_close(lse[row].double(), scores.logsumexp(dim=-1), 1e-5)
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        assert_close(out[row].double(), scores.softmax(dim=-1).nan_to_num() @ value, tolerance)


@each_dtype
@pytest.mark.parametrize("count", [1, 9, 20, 400])
@torch.no_grad()
def test_scores_far_apart_and_no_numbers(count: int, dtype: torch.dtype) -> None:
    query, key = torch.ones(1, 1, count, 8, dtype=dtype), torch.zeros(1, 1, 300, 8, dtype=dtype)
    value = (torch.arange(300) % 256).to(dtype)[None, None, :, None].expand(-1, -1, -1, 8).contiguous()
    key[0, 0, 7] = -1000
    key[0, 0, 200] = 1000  # after a maximum that was far less
    out, lse = simd.attend(query, [Keys(key, value)], scale=1.0)
    assert torch.equal(out, torch.full_like(out, 200))
    assert torch.equal(lse, torch.full_like(lse, 8000))
    hidden = torch.tensor([[4, 300]], dtype=torch.int32).expand(1, count, 2).contiguous()
    key[0, 0, 3] = torch.nan
    out, _ = simd.attend(query, [Keys(key, value, hidden)], scale=1.0)
    assert torch.equal(out, torch.full_like(out, 200))
    out, _ = simd.attend(query, [Keys(key, value)], scale=1.0)
    assert bool(out.isnan().all())


@with_compiler
def test_what_it_does_not_take() -> None:
    query = torch.randn(1, 2, 5, 16)
    key, value = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    assert simd.takes(query, (key, value))
    assert not simd.takes(query.double(), (key.double(), value.double()))
    assert not simd.takes(query.half(), (key.half(), value.half()))
    assert not simd.takes(query.requires_grad_(), (key, value))
    with torch.no_grad():
        assert simd.takes(query, (key, value))
        assert not simd.takes(query, (key, value.mT.contiguous().mT))
        assert not simd.takes(query, (key, value[..., :12]))
        assert not simd.takes(query, (key.bfloat16(), value))
        assert not simd.takes(query[:, :, :0], (key, value))
        assert not simd.takes(query[..., :15], (key[..., :15], value))
        assert not simd.takes(query, (key[..., :8], value))
        assert not simd.takes(query, (key, value), (key, value[..., :8]))
        assert not simd.takes(query, (key, value[:, :, :5]))
        assert not simd.takes(query, (key[:, :1], value[:, :1]), (key, value))
        assert not simd.takes(query.repeat(1, 2, 1, 1)[:, :3], (key, value))
        assert not simd.takes(query.expand(3, -1, -1, -1), (key.expand(2, -1, -1, -1), value.expand(2, -1, -1, -1)))
        assert not simd.takes(query, (key.to("meta"), value.to("meta")))
        with FlopCounterMode(display=False):
            assert not simd.takes(query, (key, value))
        assert not simd.takes(nn.Parameter(query, requires_grad=False), (key, value))


@with_compiler
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:There is a performance drop:UserWarning", "ignore::DeprecationWarning"
)
@torch.no_grad()
def test_transforms_of_functions_and_other_default_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["full"]
    states = random_states(case, torch.float32)
    expected = defined(case, states.map(lambda x: x.double()))
    monkeypatch.setenv("MASFORMER_WAYS", BY_KERNEL)

    def full(query: Tensor) -> Tensor:
        return span_attention(query, states.key, states.value, FULL)

    assert_close(torch.jit.trace(full, states.query, check_trace=False)(states.query).double(), expected, 3e-6)
    assert_close(torch.func.vmap(full)(states.query[None])[0].double(), expected, 3e-6)
    with torch.device("meta"):
        assert_close(full(states.query).double(), expected, 3e-6)


@with_compiler
@torch.no_grad()
def test_every_kind_of_attention_is_measured_among_its_ways(forgotten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASFORMER_WAYS")
    monkeypatch.setattr(tuning, "_settled", {})
    monkeypatch.setattr(tuning, "_used", {})
    asked, place = list[tuple[str, ...]](), [0]

    def fastest(ways: Any, seconds: float) -> tuple[str, bool]:
        asked.append(tuple(ways))
        expected, *others = (compute() for compute in ways.values())
        for other in others:
            assert (other - expected).abs().max() < 3e-6
        return tuple(ways)[place[0]], True

    monkeypatch.setattr(tuning, "_fastest", fastest)
    window, patterns = ("tiles", "32", "64", "128", "simd"), ("tiles", "simd")
    cases = {
        Case(span=FULL, num_new=1100): ("torch", "simd"),
        Case(span=LayerSpan(span=20, sinks=4), num_new=1100): window,
        Case(span=LayerSpan(block=200, previous=1), num_new=1100): patterns,
        Case(span=LayerSpan(span=20, sinks=4), num_new=1100, learned=True): patterns,
        Case(span=FULL, num_new=1100, softcap=2.0): patterns,
        Case(span=FULL, num_new=600, offset=1100, softcap=2.0, forked=True): patterns,
        Case(span=FULL, num_new=1100, value_size=24): patterns,
        Case(span=FULL, num_new=1, offset=1100): ("torch", "simd"),
        Case(span=FULL, num_new=1, offset=1100, softcap=2.0, learned=True): ("torch", "simd"),
    }
    for case, ways in cases.items():
        for place[0] in (0, -1):
            asked.clear()
            tuning._settled.clear()
            tuning.choices_file().unlink(missing_ok=True)
            states = random_states(case, torch.float32)
            assert_close(attend(case, states).double(), defined(case, states.map(lambda x: x.double())), 3e-6)
            assert asked == [ways]


@with_compiler
def test_it_is_compiled_once_for_a_machine(forgotten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not simd.why_not()
    (file,) = forgotten.glob("simd-*.so")
    compiled.library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    assert not simd.why_not()
    assert [*forgotten.glob("simd-*")] == [file]


@with_compiler
@torch.no_grad()
@pytest.mark.parametrize("what", ["no compiler", "a compiler that fails", "no AVX2"])
def test_without_the_kernel_torch_attends(
    what: str, forgotten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "no AVX2":
        monkeypatch.setattr(compiled, "vector_instructions", lambda: "avx")
    else:
        broken = tmp_path / "broken"
        broken.write_text("#!/bin/sh\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken) if "fails" in what else "no-such-compiler")
    monkeypatch.setenv("MASFORMER_WAYS", "")
    case = CASES["window with sinks"]
    states = random_states(case, torch.float32)
    assert_close(attend(case, states).double(), defined(case, states.map(lambda x: x.double())), 3e-6)
    reasons = {"no compiler": "no C++ compiler", "no AVX2": "the processor has neither AVX-512 nor AVX2"}
    assert simd.why_not().startswith(reasons.get(what, "the compiler fails on it"))
    for topic in ("window", "pattern", "attention", "step"):
        monkeypatch.setenv("MASFORMER_WAYS", f"{topic}=simd")
        with pytest.raises(OneLineError, match=r"names 'simd', which this machine does not have: .*; leave it out"):
            attend(case, states)


@with_compiler
@torch.no_grad()
def test_a_folder_that_cannot_be_written_only_costs_the_time(
    forgotten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not simd.why_not()


@torch.no_grad()
def test_torch_is_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simd, "attend", None)
    monkeypatch.setenv("MASFORMER_WAYS", "attention=torch")
    case = CASES["full on a fork"]
    states = random_states(case, torch.float32)
    assert_close(attend(case, states).double(), defined(case, states.map(lambda x: x.double())), 3e-6)
    assert kernels.is_simd(states.query, (states.key, states.value)) is False
    monkeypatch.setenv("MASFORMER_WAYS", "attention=torch window=simd")
    with pytest.raises(OneLineError, match=r"names 'simd'"):
        attend(case, states)
    monkeypatch.setenv("MASFORMER_WAYS", "attention=sse")
    with pytest.raises(OneLineError, match="MASFORMER_WAYS names 'sse' for attention; known: torch, simd"):
        attend(case, states)


@with_compiler
def test_a_way_that_another_version_took_up_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASFORMER_WAYS", raising=False)
    monkeypatch.setattr(tuning, "_settled", {})
    monkeypatch.setattr(tuning, "_used", {})
    tuning.take_up({"attention": "of another version"})
    query = torch.randn(1, 2, 5, 16)
    assert kernels.is_simd(query, (query, query))
    assert tuning.chosen() == {"attention": "simd"}
    tuning.take_up({"linear": "plain"})  # of a version without our own kernel
    assert not kernels.is_simd(query, (query, query))
    assert tuning.chosen() == {"attention": "torch"}
