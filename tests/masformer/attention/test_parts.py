"""Parts of attention, against the definition: alone, and merged with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from masformer.attention import parts as parts_module
from masformer.attention.kernels import dense_attention
from masformer.attention.parts import attend, merge, partial
from tests.helpers.attention_cases import assert_close
from tests.helpers.properties import tries
from tests.helpers.tensors import Largest

pytestmark = pytest.mark.usefixtures("one_thread")
EXACT = 1e-10
TOLERANCE = {torch.float64: EXACT, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One call of `partial`; `hides` draws keys that each row hides."""

    length: int
    num_keys: int
    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    size: int = 8
    value_size: int = 8
    causal: bool = False
    window: int | None = None
    hides: bool = False
    softcap: float | None = None
    seed: int = 0

    def states(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        shapes = (
            (self.batch, self.heads, self.length, self.size),
            (self.batch, self.kv_heads, self.num_keys, self.size),
            (self.batch, self.kv_heads, self.num_keys, self.value_size),
        )
        query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
        return query, key, value

    def hidden(self, dtype: torch.dtype = torch.float64) -> Tensor | None:
        if not self.hides:
            return None
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.rand((self.batch, 1, 1, self.num_keys), generator=generator) < 0.6
        return torch.zeros(chosen.shape, dtype=dtype).masked_fill(chosen, -torch.inf)

    def options(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        return {
            "scale": 0.4,
            "causal": self.causal,
            "window": self.window,
            "hidden": self.hidden(dtype),
            "softcap": self.softcap,
        }

    def defined(self, states: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the output and log-sum-exp by the definition, in fp64."""
        query, *rest = (x.double() for x in states)
        key, value = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in rest)
        scores = query @ key.transpose(-1, -2) * 0.4
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        at = torch.arange(self.length)[:, None] + self.num_keys - self.length
        keys = torch.arange(self.num_keys)
        if self.causal or self.window is not None:
            scores = scores.masked_fill(keys > at, -torch.inf)
        if self.window is not None:
            scores = scores.masked_fill(keys <= at - self.window, -torch.inf)
        if (hidden := self.hidden()) is not None:
            scores = scores + hidden
        return torch.nan_to_num(scores.softmax(-1)) @ value, scores.logsumexp(-1)


@st.composite
def calls(draw: st.DrawFn) -> Asked:
    length = draw(st.integers(1, 40))
    pattern = draw(st.sampled_from(["all", "causal", "window"]))
    heads, kv_heads = draw(st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 1)]))
    size, value_size = draw(st.sampled_from([(8, 8), (4, 8)]))
    return Asked(
        length=length,
        num_keys=draw(st.integers(0, 60)) if pattern == "all" else length + draw(st.integers(0, 50)),
        batch=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=kv_heads,
        size=size,
        value_size=value_size,
        causal=pattern == "causal",
        window=draw(st.integers(1, 50)) if pattern == "window" else None,
        hides=pattern != "window" and draw(st.booleans()),
        softcap=None if pattern == "window" else draw(st.sampled_from([None, 0.7])),
        seed=draw(st.integers(0, 1000)),
    )


@tries(150)
@given(calls(), st.sampled_from([7, 16]))
@example(Asked(length=30, num_keys=50, window=5), 16)
@example(Asked(length=3, num_keys=2, hides=True, seed=3), 16)
def test_a_part_equals_the_definition(asked: Asked, rows: int) -> None:
    states = asked.states()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "RUN_KEYS", 24)
        found = partial(*states, rows=rows, **asked.options())
    for ours, right in zip(found, asked.defined(states), strict=True):
        assert_close(ours, right, EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "asked",
    [
        Asked(length=90, num_keys=200, heads=6, kv_heads=2, causal=True),
        Asked(length=200, num_keys=230, window=50),
        Asked(length=1, num_keys=300, heads=4, softcap=1.5),
        Asked(length=20, num_keys=70, value_size=16),
    ],
    ids=["causal", "window", "softcap", "values of another size"],
)
def test_a_part_in_another_dtype_is_rounded_only(asked: Asked, dtype: torch.dtype) -> None:
    states = asked.states(dtype)
    out, lse = partial(*states, **asked.options(dtype))
    right, right_lse = asked.defined(states)
    assert lse.dtype == torch.float32
    assert_close(out.double(), right, TOLERANCE[dtype])
    assert_close(lse.double(), right_lse, 1e-4)


@tries(60)
@given(calls(), st.lists(st.integers(0, 60), max_size=4))
def test_parts_over_any_runs_of_keys_merge_to_the_whole(asked: Asked, cuts: list[int]) -> None:
    asked = Asked(**{**vars(asked), "causal": False, "window": None})
    query, key, value = asked.states()
    stops = [*sorted(min(cut, asked.num_keys) for cut in cuts), asked.num_keys]
    hidden = asked.hidden()
    found = []
    for first, stop in zip([0, *stops], stops, strict=False):
        less = None if hidden is None else hidden[..., first:stop]
        run = key[:, :, first:stop], value[:, :, first:stop]
        found.append(partial(query, *run, scale=0.4, hidden=less, softcap=asked.softcap))
    for ours, right in zip(merge(found), asked.defined((query, key, value)), strict=True):
        assert_close(ours, right, EXACT)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 3])
def test_a_soft_cap_widens_a_block_of_keys_at_a_time(
    length: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "RUN_KEYS", 512)
    asked = Asked(length=length, num_keys=1024, heads=4, kv_heads=2, size=64, value_size=64, softcap=1.5)
    states = asked.states(dtype)
    with Largest() as largest:
        out, _ = partial(*states, **asked.options(dtype))
    # A block of half of these keys takes as much in fp32.
    assert 0 < largest.num_bytes <= states[1].nbytes
    assert_close(out.double(), asked.defined(states)[0], TOLERANCE[dtype])


@dataclass(frozen=True, kw_only=True)
class Run:
    """Keys that `attend` gets with options of their own; `hides` is how many rows and queries hide some apart."""

    num_keys: int
    causal: bool = False
    window: int | None = None
    hides: tuple[int, int] | None = None

    def options(self, generator: torch.Generator) -> dict[str, Any]:
        if self.window is not None:
            return {"window": self.window, "rows": 7}
        hidden = None
        if self.hides is not None:
            chosen = torch.rand((self.hides[0], 1, self.hides[1], self.num_keys), generator=generator) < 0.6
            hidden = torch.zeros(chosen.shape, dtype=torch.float64).masked_fill(chosen, -torch.inf)
        return {"causal": self.causal, "hidden": hidden}

    def visible(self, batch: int, length: int, hidden: Tensor | None) -> Tensor:
        """Return (B, 1, Tq, Tk) bools by the definition."""
        distance = torch.arange(length)[:, None] + self.num_keys - length - torch.arange(self.num_keys)
        seen = torch.ones((batch, 1, length, self.num_keys), dtype=torch.bool)
        if self.causal or self.window is not None:
            seen = seen & (distance >= 0)
        if self.window is not None:
            seen = seen & (distance < self.window)
        return seen if hidden is None else seen & (hidden == 0)


@st.composite
def runs_of(draw: st.DrawFn, batch: int, length: int) -> Run:
    pattern = draw(st.sampled_from(["all", "causal", "window"]))
    num_keys = draw(st.integers(0, 60)) if pattern == "all" else length + draw(st.integers(0, 50))
    if pattern == "window":
        return Run(num_keys=num_keys, window=draw(st.integers(1, 50)))
    sizes = st.tuples(st.sampled_from([1, batch]), st.sampled_from([1, length]))
    return Run(num_keys=num_keys, causal=pattern == "causal", hides=draw(st.none() | sizes))


@tries(100)
@given(st.data())
def test_attention_to_any_runs_and_its_gradients_equal_the_definition(data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    heads, kv_heads = data.draw(st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 1)]))
    runs = data.draw(st.lists(runs_of(batch, length), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, grad = (random(batch, heads, length, 8) for _ in range(2))
    learned = random(heads) if data.draw(st.booleans()) else None
    states = [tuple(random(batch, kv_heads, run.num_keys, 8) for _ in range(2)) for run in runs]
    options = [run.options(generator) for run in runs]
    visible = [run.visible(batch, length, more.get("hidden")) for run, more in zip(runs, options, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "RUN_KEYS", 24)
        given_runs = [(*each, more) for each, more in zip(states, options, strict=True)]
        out = attend(query, given_runs, learned, scale=0.4)
        asked = [query, *(x for each in states for x in each), *([] if learned is None else [learned])]
        found = torch.autograd.grad(out, asked, grad)
    key, value = (torch.cat(each, dim=2) for each in zip(*states, strict=True))
    expected = dense_attention(query, key, value, torch.cat(visible, dim=3), 0.4, learned_sinks=learned)
    assert_close(out, expected, EXACT)
    for ours, right in zip(found, torch.autograd.grad(expected, asked, grad), strict=True):
        assert_close(ours, right, EXACT)
