"""The way to compute windows: measured once for a shape and a CPU, remembered, and the same result by any."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from masformer.attention import kernels, ways
from masformer.attention.kernels import span_attention
from masformer.errors import SpanError
from masformer.plans.spans import LayerSpan
from tests.helpers.attention_cases import WINDOWS, Case, assert_close, attend, cases, defined, gradients, random_states
from tests.helpers.properties import tries
from tests.helpers.tensors import Largest

pytestmark = pytest.mark.usefixtures("one_thread")
WINDOW = LayerSpan(span=20, sinks=4)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of choices, and a process that has made none."""
    monkeypatch.delenv("MASFORMER_WINDOWS", raising=False)
    monkeypatch.setenv("MASFORMER_CACHE", str(tmp_path / "cache"))
    ways._taken.cache_clear()
    yield tmp_path / "cache"
    ways._taken.cache_clear()


def choose(fastest: str, monkeypatch: pytest.MonkeyPatch, num_queries: int = 2000) -> tuple[str, list[str]]:
    """Return the way that is chosen where one is made the fastest, and the ways that were run for it."""
    clock, ran = [0.0], []
    monkeypatch.setattr(ways.time, "perf_counter", lambda: clock[0])

    def run(way: str, count: int) -> None:
        assert count <= num_queries
        ran.append(way)
        clock[0] += 1.0 if way == fastest else 2.0

    query, key = torch.empty(1, 4, num_queries, 8), torch.empty(1, 2, num_queries, 8)
    return ways.way_of(query, key, WINDOW, False, run), ran


def test_the_fastest_way_is_measured_once_and_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ways.ways_taken() == {}
    way, ran = choose("64", monkeypatch)
    assert way == "64"
    assert set(ran) == {"tiles", *ways.VIEWS}
    assert choose("tiles", monkeypatch) == ("64", [])
    assert ways.ways_taken() == {"4 on 2 heads of 8, float32, span=20 sinks=4, 1024 queries": "64"}
    # By another process too, but not with other threads.
    ways._taken.cache_clear()
    assert choose("tiles", monkeypatch) == ("64", [])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert choose("tiles", monkeypatch)[0] == "tiles"
    assert len(json.loads((folder / "windows.json").read_text())) == 2
    assert [path.name for path in folder.iterdir()] == ["windows.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a": 1}', '{"MACHINE": {"CASE": "128"}}', '{"MACHINE": {"CASE": []}}']
)
def test_a_file_that_is_not_ours_is_ignored(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "windows.json").write_text(text.replace("MACHINE", ways._machine()))
    assert choose("32", monkeypatch)[0] == "32"
    ways._taken.cache_clear()
    assert choose("tiles", monkeypatch) == ("32", [])


def test_a_folder_that_cannot_be_written_costs_a_measurement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("a file")
    assert choose("64", monkeypatch)[0] == "64"
    assert choose("tiles", monkeypatch) == ("64", [])


def test_few_queries_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("64", monkeypatch, num_queries=ways.LEAST_QUERIES - 1) == ("tiles", [])


def test_a_named_way_is_taken_and_another_name_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASFORMER_WINDOWS", "48")
    assert choose("tiles", monkeypatch) == ("48", [])
    assert ways.ways_taken() == {"all": "48"}
    for name in ("fast", "0", "-1"):
        monkeypatch.setenv("MASFORMER_WINDOWS", name)
        with pytest.raises(SpanError, match=f"MASFORMER_WINDOWS is '{name}'; 'tiles' or a number of queries"):
            choose("tiles", monkeypatch)


@torch.no_grad()
def test_a_long_window_is_measured_where_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, int]] = []

    def measured(run: Callable[[str, int], object]) -> str:
        for way in ("tiles", "64"):
            run(way, ways.MEASURED_QUERIES)
        return "64"

    views = kernels._views

    def noting(query: Tensor, *rest: Any) -> Tensor:
        taken.append(("64", query.shape[2]))
        return views(query, *rest)

    monkeypatch.setattr(ways, "_measured", measured)
    monkeypatch.setattr(kernels, "_views", noting)
    case = Case(span=WINDOW, num_new=ways.LEAST_QUERIES + 24, size=8, value_size=8)
    states = random_states(case)
    out = span_attention(states.query, states.key, states.value, WINDOW)
    assert taken == [("64", ways.MEASURED_QUERIES), ("64", case.num_new - 24)]
    assert_close(out, defined(case, states), 1e-10)


@torch.no_grad()
def test_views_copy_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASFORMER_WINDOWS", "64")
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
        patch.setenv("MASFORMER_WINDOWS", rows)
        out = attend(case, states)
    assert_close(out, expected, 1e-10)
    for ours, right in zip(gradients(out, states), gradients(expected, states), strict=True):
        assert_close(ours, right, 1e-10)
