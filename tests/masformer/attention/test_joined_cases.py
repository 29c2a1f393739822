"""Rows that read common runs of keys, whatever they share, against the definition: by torch, our kernel and CUDA's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from masformer.attention import cuda, cuda_joined, full, parts, simd
from masformer.attention.cuda_joined import attend_joined
from masformer.attention.full import FullLayer, JoinedLayer
from masformer.attention.joined import joined_attention
from masformer.attention.kernels import dense_attention
from masformer.attention.tiles import ScoreRule
from masformer.plans.spans import FULL
from tests.helpers import varlen_standin
from tests.helpers.attention_cases import assert_close
from tests.helpers.properties import tries

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = st.sampled_from(list(TOLERANCE))

# (B, H, Tq, D) of queries, tails, the layer they are of, the rule of scores and learned sinks.
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, JoinedLayer, ScoreRule, Tensor | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Rows that were filled as forks, and the steps that they take together.

    Attributes:
        texts: The earlier text that each goes on from, and the tokens that it adds; text 0 is empty.
        rows: The text that each row goes on from, and the tokens of its own.
        steps: Tokens a row of each step, and how many of them stay.
        tail_tokens: Tokens of a row's own runs that are copied at most.
    """

    texts: tuple[tuple[int, int], ...]
    rows: tuple[tuple[int, int], ...]
    steps: tuple[tuple[int, int], ...]
    tail_tokens: int
    heads: int
    kv_heads: int
    size: int
    value_size: int
    scale: float
    softcap: float | None
    learned: bool
    seed: int


@st.composite
def joined_rows(draw: st.DrawFn, *, can_cap: bool = True) -> Joined:
    texts = tuple((draw(st.integers(0, at)), draw(st.integers(1, 60))) for at in range(draw(st.integers(0, 3))))
    rows = st.tuples(st.integers(0, len(texts)), st.integers(0, 9) | st.integers(0, 40))
    given_tokens = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    heads, kv_heads = draw(st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 1)]))
    size, value_size = draw(st.sampled_from([(8, 8), (4, 8), (8, 4)]))
    return Joined(
        texts=texts,
        rows=tuple(draw(st.lists(rows, min_size=1, max_size=5))),
        steps=tuple((count, draw(st.integers(1, count))) for count in given_tokens),
        tail_tokens=draw(st.sampled_from([0, 5, 512])),
        heads=heads,
        kv_heads=kv_heads,
        size=size,
        value_size=value_size,
        scale=draw(st.sampled_from([0.3, 1.0])),
        softcap=draw(st.sampled_from([None, 0.5, 20.0])) if can_cap else None,
        learned=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


@dataclass(frozen=True, kw_only=True)
class Text:
    """A layer, and all keys and values (1, K, T, D) that it holds."""

    layer: FullLayer
    key: Tensor
    value: Tensor

    def followed_by(self, key: Tensor, value: Tensor) -> Text:
        layer = self.layer.fork()
        if key.shape[2]:
            layer.update(key, value)
        return Text(layer=layer, key=torch.cat([self.key, key], dim=2), value=torch.cat([self.value, value], dim=2))


def assert_rows_are_as_alone(case: Joined, dtype: torch.dtype, attend: Attend) -> None:
    """Check each step of the rows against the definition, each row alone."""
    generator = torch.Generator().manual_seed(case.seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def states(rows: int, count: int) -> tuple[Tensor, Tensor]:
        return random(rows, case.kv_heads, count, case.size), random(rows, case.kv_heads, count, case.value_size)

    key, value = states(1, 0)
    texts = [Text(layer=FullLayer(FULL), key=key, value=value)]
    for source, count in case.texts:
        texts.append(texts[source].followed_by(*states(1, count)))
    # A row holds a token at least.
    rows = [texts[source].followed_by(*states(1, count if source else max(count, 1))) for source, count in case.rows]
    learned = random(case.heads) if case.learned else None
    rule = ScoreRule(scale=case.scale, softcap=case.softcap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full, "TAIL_TOKENS", case.tail_tokens)
        patch.setattr(full, "_MIN_HALF", 4)
        patch.setattr(parts, "RUN_KEYS", 24)
        patch.setattr(cuda_joined, "PIECE_KEYS", 11)
        lengths, room = [row.key.shape[2] for row in rows], sum(count for count, _ in case.steps)
        joined = FullLayer.join([row.layer for row in rows], lengths, room)
        assert isinstance(joined, JoinedLayer)
        done = [(row.key, row.value) for row in rows]
        for count, kept in case.steps:
            query, new = random(len(rows), case.heads, count, case.size), states(len(rows), count)
            joined.draft()
            out = attend(query, *joined.update(*new), joined, rule, learned)
            joined.commit(kept)
            assert out.dtype == dtype
            for row, before in enumerate(done):
                whole = [torch.cat([old, own[row : row + 1]], dim=2) for old, own in zip(before, new, strict=True)]
                num_keys = whole[0].shape[2]
                visible = torch.ones(count, num_keys, dtype=torch.bool).tril(num_keys - count)
                wide = [x.double() for x in (query[row : row + 1], *whole)]
                more: dict[str, Any] = {"softcap": case.softcap, "learned_sinks": learned}
                expected = dense_attention(*wide, visible, case.scale, **more)
                assert_close(out[row : row + 1].double(), expected, TOLERANCE[dtype])
                done[row] = whole[0][:, :, : num_keys - count + kept], whole[1][:, :, : num_keys - count + kept]


@tries(100)
@given(joined_rows(), DTYPES)
@torch.no_grad()
def test_any_rows_by_torch_are_as_alone(case: Joined, dtype: torch.dtype) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simd, "attend", None)
        assert_rows_are_as_alone(case, dtype, joined_attention)


@pytest.mark.skipif(bool(simd.why_not()), reason=f"no kernel: {simd.why_not()}")
@tries(100)
@given(joined_rows(), st.sampled_from([torch.float32, torch.bfloat16]))
@torch.no_grad()
def test_any_rows_by_our_kernel_are_as_alone(case: Joined, dtype: torch.dtype) -> None:
    calls, attended = list[Any](), simd.attend

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return attended(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASFORMER_WAYS", "attention=simd window=simd")
        patch.setattr(simd, "attend", counting)
        assert_rows_are_as_alone(replace(case, value_size=8), dtype, joined_attention)
    assert len(calls) == len(case.steps)


@tries(80)
@given(joined_rows(can_cap=False), DTYPES)
@torch.no_grad()
def test_any_rows_on_cuda_are_as_alone(case: Joined, dtype: torch.dtype) -> None:
    def on_cuda(
        query: Tensor, key: Tensor, value: Tensor, joined: JoinedLayer, rule: ScoreRule, learned: Tensor | None
    ) -> Tensor:
        return attend_joined(query, key, value, joined, rule.scale, learned)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "varlen_attn", varlen_standin.varlen_attn)
        assert_rows_are_as_alone(case, dtype, on_cuda)
