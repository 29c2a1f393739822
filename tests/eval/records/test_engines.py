"""Engines have names for people, and clocks that tell which seconds compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eval.records.engines import (
    REQUEST_BESIDE_OTHERS,
    SHARE_OF_BATCH,
    clock_of,
    clocks_apart,
    describe_clock,
    describe_engine,
    engine_facts,
)
from eval.records.schema import Session
from tests.helpers.run_folders import run_record

VLLM = {"name": "vllm", "prompts_as": "ids", "args": ["--tensor-parallel-size", "2"]}


def session(**engine: Any) -> Session:
    return replace(run_record().sessions[0], engine=engine or None)


@pytest.mark.parametrize(
    ("engine", "told", "name"),
    [
        (None, {}, "local"),
        ({"kind": "encoder-decoder", "encoder": "full"}, {}, "encoder-decoder"),
        ({"name": "mock", "answers": "0"}, {}, "mock"),
        (VLLM, {"name": "vllm", "version": "0.32.0", "command": "vllm serve"}, "vllm 0.32.0"),
        ({"name": "endpoint"}, {"name": "vllm 0.32.0", "address": "http://x/v1"}, "endpoint (vllm 0.32.0)"),
        ({"name": "endpoint"}, {"name": None, "address": "http://x/v1"}, "endpoint"),
    ],
)
def test_an_engine_is_called_by_its_name_and_the_server_that_answered(
    engine: dict[str, Any] | None, told: dict[str, Any], name: str
) -> None:
    assert describe_engine(engine, [session(**told)]) == name


def test_all_versions_that_answered_a_run_are_named() -> None:
    sessions = [session(name="vllm", version=version) for version in ("0.31.0", "0.32.0", "0.32.0")]
    assert describe_engine(VLLM, sessions) == "vllm (vllm 0.31.0, vllm 0.32.0)"


def test_servers_have_another_clock_than_what_computes_here() -> None:
    here = [None, {"kind": "encoder-decoder"}, {"name": "mock"}]
    assert {clock_of(engine) for engine in here} == {SHARE_OF_BATCH}
    served = [{"name": name} for name in ("endpoint", "vllm", "sglang", "llamacpp")]
    assert {clock_of(engine) for engine in served} == {REQUEST_BESIDE_OTHERS}
    assert [describe_clock(engine, session()) for engine in here] == ["", "", ""]
    assert "at most 8 at a time" in describe_clock(VLLM, session(name="vllm", concurrency=8))
    assert clocks_apart({SHARE_OF_BATCH: ["a", "b"]}) == ""
    assert clocks_apart({SHARE_OF_BATCH: ["a"], REQUEST_BESIDE_OTHERS: ["b"]}).endswith(
        "do not compare: share of a batch: a; request beside others: b."
    )


def test_a_report_says_which_server_answered_and_how_it_was_asked() -> None:
    assert engine_facts(None, session()) == engine_facts({"name": "mock"}, session()) == {}
    assert engine_facts(VLLM, session(name="vllm", version="0.32.0")) == {
        "engine": "vllm 0.32.0, prompts as token ids, arguments `--tensor-parallel-size 2`"
    }
    endpoint = {"name": "endpoint", "model": "tiny", "prompts_as": "messages"}
    assert engine_facts(endpoint, session(address="http://x/v1")) == {
        "engine": "endpoint, at http://x/v1, serving `tiny`, prompts as chat messages"
    }
