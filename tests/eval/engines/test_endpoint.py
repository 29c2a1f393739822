"""Runs by a server with OpenAI's interfaces, from the command line to the report."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm
from transformers import AutoTokenizer

from eval.engines.bodies import prompt_fields
from eval.engines.order import order_of
from eval.runtime.processes import Process
from tests.eval.engines.conftest import Runs
from tests.helpers.engine_answers import BLOCK, words_of
from tests.helpers.engine_faults import Call
from tests.helpers.engine_standin import EngineStandIn, engine_standin
from tests.helpers.official_files import as_lines, sample_records
from tests.helpers.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer that has a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def prompts(server: EngineStandIn) -> list[Call]:
    """Return the requests for answers, without those that tried the server out."""
    return [call for call in server.asked if call.body["max_tokens"] > 1]


def test_a_run_goes_from_the_command_line_to_the_report(run: Runs, server: EngineStandIn, tokenizer: Path) -> None:
    done = run(server)
    assert done.status == 0, done.err
    assert "vllm 0.32.0 at http://127.0.0.1" in done.out
    assert (run.folder / "report.html").exists()
    lines = run.read("predictions.jsonl")
    assert [(line["id"], line["maxlen"]) for line in lines] == [(f"doc{i}", n) for i in range(4) for n in (400, 700)]
    asked = {tuple(call.ids): call for call in prompts(server)}
    assert len(asked) == len(prompts(server)) == 8
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    shown = {encoder.decode(ids): ids for ids in asked}
    for line in lines:
        text, ids = next(
            (text, ids)
            for text, ids in shown.items()
            if f"Report {line['id'][3]}" in text and len(ids) == line["prompt_tokens"]
        )
        # The context alone is cut: what stands around it is whole, and the room of the answer is left.
        assert text.startswith("<|im_start|>user\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert line["prompt_tokens"] == line["maxlen"] - 8 == line["reported_prompt_tokens"]
        words = words_of(ids)
        assert line["text"] == " ".join(words[:8])
        assert line["num_generated_tokens"] == min(len(words) + 1, 8)
        assert line["cached_tokens"] == asked[ids].cached
        assert line["prefilled_tokens"] == line["prompt_tokens"] - line["cached_tokens"]
        assert 0 < line["first_token_seconds"] <= line["seconds"]
        assert line["token_seconds"] > 0
        assert {line[name] for name in ("cache_bytes", "peak_bytes", "attention_flops", "prefill_seconds")} == {None}
    record = run.read("run.json")
    engine = record["identity"]["engine"]
    assert {name: engine[name] for name in ("name", "server", "model", "prompts_as")} == {
        "name": "endpoint",
        "server": "vllm",
        "model": "tiny-instruct",
        "prompts_as": "ids",
    }
    (session,) = record["sessions"]
    assert session["engine"] == {"name": "vllm 0.32.0", "address": server.base_url, "concurrency": 16}


def test_all_that_an_engine_would_take_from_the_checkpoint_is_said(run: Runs, server: EngineStandIn) -> None:
    assert run(server, "--stop", "papers").status == 0
    body = prompts(server)[0].body
    assert {name: body[name] for name in ("temperature", "top_k", "min_p", "repetition_penalty", "min_tokens")} == {
        "temperature": 0.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
    }
    assert (body["max_tokens"], body["stop"], body["stop_token_ids"]) == (8, ["papers"], [2])
    assert not any("papers" in text for text in run.answers.values())


@pytest.mark.parametrize(("num_extra", "more"), [(0, ()), (1, ()), (0, ("--prompts-as", "text"))])
def test_prompts_go_as_text_where_ids_are_not_taken_or_not_wanted(
    num_extra: int, more: tuple[str, ...], run: Runs, tokenizer: Path
) -> None:
    takes = ("ids", "text", "messages") if more else ("text",)
    with engine_standin(takes=takes, num_extra=num_extra) as server:
        done = run(server, *more)
    assert done.status == 0, done.err
    assert "prompts as text" in done.out
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    sent = {call.body["prompt"] for call in prompts(server)}
    lines = run.read("predictions.jsonl")
    assert sorted(len(encoder(text).input_ids) for text in sent) == sorted(line["prompt_tokens"] for line in lines)
    assert all(text.endswith("<|im_end|>\n<|im_start|>assistant\n") for text in sent)
    # What the server puts before each text was told by the first one, and is no cut.
    assert {line["reported_prompt_tokens"] - line["prompt_tokens"] for line in lines} == {num_extra}
    assert run.read("run.json")["identity"]["engine"]["prompts_as"] == "text"


def test_what_follows_a_document_that_is_cut_goes_as_text_too(run: Runs, tokenizer: Path, tmp_path: Path) -> None:
    (record, *_) = sample_records("helmet_narrativeqa")
    file = tmp_path / "test.jsonl"
    file.write_bytes(as_lines([{**record, "document": {"id": "a", "text": "The river rose. " * 60}}]))
    with engine_standin(takes=("text",)) as server:
        done = run(server, "--task", "helmet_narrativeqa", "--data", str(file), "--shots", "0")
    assert done.status == 0, done.err
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    sent = {call.body["prompt"] for call in prompts(server)}
    assert all(" ... [the rest" in text for text in sent)
    counts = [line["prompt_tokens"] for line in run.read("predictions.jsonl")]
    assert sorted(len(encoder(text).input_ids) for text in sent) == sorted(counts) == [392, 692]


@pytest.mark.parametrize("num_extra", [0, 31])
def test_prompts_go_as_messages_where_the_server_takes_nothing_else(num_extra: int, run: Runs) -> None:
    with engine_standin(takes=("messages",), engine="somebody", is_strict=True, num_extra=num_extra) as server:
        done = run(server, "--system", "Be short.")
    assert done.status == 0, done.err
    for call in prompts(server):
        system, user = call.body["messages"]
        assert system == {"role": "system", "content": "Be short."}
        assert user["role"] == "user"
        assert "<|im_start|>" not in user["content"]
        assert "Report" in user["content"]
    lines = run.read("predictions.jsonl")
    assert {line["reported_prompt_tokens"] - line["prompt_tokens"] for line in lines} == {num_extra}
    assert run.read("run.json")["identity"]["engine"]["prompts_as"] == "messages"


def test_a_model_that_names_the_room_otherwise_is_asked_so(run: Runs) -> None:
    with engine_standin(takes=("messages",), engine="openai", is_strict=True, is_new=True) as server:
        done = run(server)
    assert done.status == 0, done.err
    assert {call.body["max_completion_tokens"] for call in prompts(server)} == {8}
    assert len(prompts(server)) == len(run.answers) == 8


def test_a_plain_prompt_is_none_for_messages(run: Runs) -> None:
    with engine_standin(takes=("messages",)) as server:
        done = run(server, "--template", "instruct-plain")
    assert done.status == 2
    assert "--template" in done.error
    assert not prompts(server)


@pytest.mark.parametrize("form", ["ids", "text"])
def test_a_form_that_the_server_does_not_take_is_one_line(form: str, run: Runs) -> None:
    with engine_standin(takes=("messages",)) as server:
        done = run(server, "--prompts-as", form)
    assert done.status == 2
    assert "404: This is a chat model and not supported in the v1/completions endpoint" in done.error
    assert not run.folder.exists()


def test_a_server_of_openai_is_asked_with_its_own_fields_alone(run: Runs) -> None:
    with engine_standin(engine="openai-internal", is_strict=True, takes=("text",)) as server:
        assert run(server).status == 0
        assert len(prompts(server)) == 8
        refused = run(server, "--top-k", "5", "--temperature", "1", "--overwrite")
    assert refused.status == 2
    assert "--top-k 5 cannot be told to a server of an unknown kind" in refused.error
    assert len(run.answers) == 8  # what was there is there


@pytest.mark.parametrize("flag", ["--batch-size 4", "--memory-budget 2", "--threads 2", "--dtype float32"])
def test_a_setting_of_a_model_that_is_loaded_here_is_refused(flag: str, run: Runs, server: EngineStandIn) -> None:
    done = run(server, *flag.split())
    assert done.status == 2
    assert flag.split()[0] in done.error
    assert "is of a model that is loaded here" in done.error
    assert not server.calls


def test_a_bar_counts_what_a_shard_asks(run: Runs, server: EngineStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    totals = []

    def bar(*_: Any, total: int, **__: Any) -> Any:
        totals.append(total)
        return tqdm(total=total, disable=True)

    monkeypatch.setattr("eval.engines.served.tqdm", bar)
    done = run(server, "--shard", "1/2")
    assert done.status == 0, done.err
    assert totals == [len(prompts(server))] == [4]


def test_one_process_asks_a_server(run: Runs, server: EngineStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.generation.backend.start_accelerated", lambda *_, **__: Process(1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = run(server, "--max-requests", "100")
    assert done.status == 2
    assert "--engine endpoint is asked by one process, and 2 were launched" in done.err
    assert not server.calls


def test_several_answers_are_drawn_with_one_request(run: Runs, server: EngineStandIn) -> None:
    done = run(server, "--num-samples", "3", "--temperature", "0.7", "--seed", "5")
    assert done.status == 0, done.err
    assert {(call.body["n"], call.body["seed"], call.body["temperature"]) for call in prompts(server)} == {(3, 5, 0.7)}
    lines = run.read("predictions.jsonl")
    assert len(prompts(server)) == len(lines) == 8
    for line in lines:
        assert len(line["samples"]) == 3
        assert line["num_generated_tokens"] == sum(one["num_generated_tokens"] for one in line["samples"])
        # Time a token is that of one answer, and three came at once.
        assert "token_seconds" not in line
        for one in line["samples"]:
            assert one["num_generated_tokens"] == len(one["text"].split()) + (one["finish_reason"] == "stop")


def test_what_a_server_does_not_tell_is_unknown_and_not_0(run: Runs) -> None:
    with engine_standin(engine="somebody", tells_cached=False) as server:
        assert run(server).status == 0
    for line in run.read("predictions.jsonl"):
        assert "cached_tokens" not in line
        assert line["prefilled_tokens"] is None
    with engine_standin(engine="somebody") as server:
        assert run(server, "--overwrite").status == 0
    assert all(line["cached_tokens"] >= 0 for line in run.read("predictions.jsonl"))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_as_many_requests_run_as_are_allowed(concurrency: int, run: Runs) -> None:
    # No answer comes before so many are there.
    with engine_standin(gathers=concurrency) as server:
        done = run(server, "--concurrency", str(concurrency))
    assert done.status == 0, done.err
    assert server.most_at_once == concurrency
    assert len(run.answers) == 8


def test_prompts_come_in_the_order_that_the_prefix_cache_serves(run: Runs, tokenizer: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"{document}-{query}",
            "context": f"Paper {document}. " + f"It says {document}. " * 60,
            "query": f"What of {query}?",
            "target": "It.",
        }
        for document in range(3)
        for query in range(4)
    ]
    file = tmp_path / "queries.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with engine_standin(token_seconds=0.002) as server:
        done = run(server, "--data", str(file), "--query-field", "query", "--maxlen", "300", "500", "800")
    assert done.status == 0, done.err
    cached = {tuple(call.ids): call.cached for call in prompts(server)}
    assert len(cached) == 36
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    by_document: dict[str, list[tuple[int, ...]]] = {}
    texts = {ids: encoder.decode(ids) for ids in cached}
    # As requests are made: by query and length.
    for ids in sorted(cached, key=lambda ids: (texts[ids].split("What of ")[1][0], len(ids))):
        by_document.setdefault(texts[ids].split("Paper ")[1][0], []).append(ids)
    assert [len(mine) for mine in by_document.values()] == [12, 12, 12]
    for mine in by_document.values():
        # The first has what documents share: the beginning of the template. Each other one has all that an earlier one
        # begins with, although many run at a time.
        (_, none), *others = order_of(mine)
        assert none is None
        for place, before in others:
            assert before is not None
            pairs = enumerate(zip(mine[place], mine[before], strict=False))
            shared = next(number for number, (one, other) in pairs if one != other)
            assert cached[mine[place]] == shared // BLOCK * BLOCK > 150
    lines = run.read("predictions.jsonl")
    assert sum(line["cached_tokens"] for line in lines) == sum(cached.values())


@pytest.mark.usefixtures("no_page")
def test_what_is_answered_is_asked_no_more(run: Runs, server: EngineStandIn) -> None:
    assert run(server, "--dry-run").status == 0
    assert not prompts(server)
    assert not run.folder.exists()
    assert run(server).status == 0
    first = run.answers
    assert len(prompts(server)) == len(first) == 8
    done = run(server, "--maxlen", "400", "500", "700")
    assert done.status == 0, done.err
    assert "8 of 12 predictions are there" in done.out
    assert {len(call.ids) for call in prompts(server)[8:]} == {492}
    assert first.items() <= run.answers.items()
    assert len(prompts(server)) == 12


def test_prompts_are_made_by_one_thread(run: Runs, server: EngineStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    # Builders remember the context that they were asked about last: of two threads one would show the other's document.
    makers = set()

    def made(*arguments: Any) -> Any:
        makers.add(threading.current_thread())
        return prompt_fields(*arguments)

    monkeypatch.setattr("eval.engines.served.prompt_fields", made)
    assert run(server, "--prompts-as", "text", "--concurrency", "4").status == 0
    assert makers == {threading.main_thread()}
