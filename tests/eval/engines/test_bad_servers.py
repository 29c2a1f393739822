"""Servers in bad health: what may pass is asked again; what lasts leaves one line, and a run that goes on later."""

from __future__ import annotations

import socket
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from eval.run import main
from tests.eval.engines.conftest import Runs, answers_of
from tests.helpers.engine_faults import (
    BROKEN,
    BUSY,
    NO_QUOTA,
    PAGE,
    TOO_LONG_FOR_OPENAI,
    TOO_LONG_FOR_VLLM,
    TOO_MANY,
    WRONG_KEY,
    Call,
    Fault,
    from_number,
    numbered,
    with_headers,
)
from tests.helpers.engine_standin import EngineStandIn, engine_standin

pytestmark = pytest.mark.usefixtures("no_page")

IN_STREAM = {"error": {"message": "EngineCore is dead", "type": "InternalServerError", "code": 500}}
# What may pass, and what is said of it.
PASSING: dict[str, tuple[Fault, str]] = {
    "429": (TOO_MANY, "429: Rate limit reached for requests rate_limit_exceeded"),
    "429 with a time": (with_headers(TOO_MANY, retry_after="0.01"), "sent again in 0.0 s (1 of 6): 429: Rate limit"),
    "500": (BROKEN, "500: EngineCore encountered an issue."),
    "503 with a page": (BUSY, "503: <html><head><title>503 Service Temporarily Unavailable"),
    "closed before an answer": (Fault(close_after=0), "no connection: "),
    "closed in mid-answer": (Fault(close_after=2), "no connection: peer closed connection"),
    "closed as if whole": (Fault(close_after=2, is_clean=True), "the answer ended in its middle"),
    "no JSON": (Fault(garble_after=2), "an answer that cannot be read: JSONDecodeError"),
    "a page in the place of an answer": (PAGE, "an answer without choices"),
    "an error in mid-answer": (Fault(told_after=2, body=IN_STREAM), "an error in mid-answer: EngineCore is dead"),
    "silence at first": (Fault(silent_after=0, silence=2.0), "no byte for 0.4 s"),
    "silence in mid-answer": (Fault(silent_after=2, silence=2.0), "no byte for 0.4 s"),
    "no choices": (Fault(is_empty=True), "an answer without choices"),
    "an end without a reason": (Fault(finish_reason=None), "the answer ended in its middle"),
    "aborted": (Fault(finish_reason="abort"), "the answer ended in its middle"),
    "more answers than asked for": (Fault(num_choices=2), "the answer ended in its middle"),
}
# What does not pass by itself: not asked again.
FINAL: dict[str, tuple[Fault, str]] = {
    "no quota": (NO_QUOTA, "429: You exceeded your current quota"),
    "too long for vLLM": (TOO_LONG_FOR_VLLM, "400: This model's maximum context length is None tokens. However, your"),
    "too long for OpenAI": (TOO_LONG_FOR_OPENAI, "context_length_exceeded"),
    "a wrong key": (WRONG_KEY, "put the key into the environment variable that --api-key-env names"),
    "another model": (
        Fault(model="tiny-base"),
        "was answered by the model 'tiny-base', and 'tiny-instruct' was asked",
    ),
    "a cut prompt": (Fault(lost_tokens=5), "the server read 687 tokens of the prompt about"),
    "an answer cut too early": (Fault(max_tokens=2), "at 2 of the 8 tokens"),
}
LASTING = FINAL | {
    name: (PASSING[name][0], f"failed 2 times at http://127.0.0.1:{{port}}/v1: {said}")
    for name, said in {
        "500": "500: EngineCore encountered an issue.",
        "closed in mid-answer": "no connection: peer closed connection",
        "a page in the place of an answer": "an answer without choices",
        "silence in mid-answer": "no byte for 0.4 s",
    }.items()
}
IMPATIENT = ("--request-timeout", "0.4")


@pytest.fixture(scope="module")
def undisturbed(tokenizer: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], str]:
    """The answers of a healthy server."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    text = f"--engine endpoint --tokenizer {tokenizer} --task custom --data {data} --max-new-tokens 8 --no-texts"
    with engine_standin() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.reporting.run_report.save_charts", lambda folder, specs, own: [])
        where = ["--base-url", server.base_url, "--model", server.models[0], "--output", str(folder)]
        assert main([*text.split(), "--maxlen", "400", "700", *where]) == 0
    return answers_of(folder)


def whole_answers(server: EngineStandIn) -> Counter[tuple[int, ...]]:
    """Return how often each prompt was answered to its end, without those that tried the server out."""
    asked = [call for call in server.asked if call.body["max_tokens"] > 1]
    return Counter(tuple(call.ids) for call in asked if call.status == 200 and call.is_whole)


@pytest.mark.parametrize("case", PASSING)
def test_what_may_pass_is_asked_again(case: str, run: Runs, server: EngineStandIn) -> None:
    fault, said = PASSING[case]
    server.fail(fault, numbered(1))
    done = run(server, "--limit", "1", "--concurrency", "1", *IMPATIENT)
    assert done.status == 0, done.err
    (line,) = [line for line in done.err.splitlines() if "is sent again" in line]
    assert said in line
    assert "the prompt about 'doc0' of task 'custom'" in line
    assert server.asked[1].ids == server.asked[2].ids
    # The first one tried the server; two answers were made, and one of them twice.
    assert len(server.asked) == 4
    assert len(run.answers) == 2
    assert {line["reported_prompt_tokens"] for line in run.read("predictions.jsonl")} == {392, 692}


@pytest.mark.parametrize("case", LASTING)
def test_what_lasts_is_one_line_and_the_same_command_goes_on(
    case: str, run: Runs, server: EngineStandIn, undisturbed: dict[tuple[str, int], str]
) -> None:
    fault, said = LASTING[case]
    server.fail(fault, from_number(4))
    done = run(server, "--concurrency", "1", "--max-retries", "1", *IMPATIENT)
    assert done.status == 2
    assert said.format(port=server.port) in done.error
    assert len(server.asked) == (5 if case in FINAL else 6)
    there = {(line["id"], line["maxlen"]): line["text"] for line in run.journal}
    assert len(there) == len(run.journal) == 3
    assert there.items() <= undisturbed.items()
    assert not (run.folder / "scores.json").exists()
    server.faults.clear()
    num_asked = len(server.asked)
    done = run(server, *IMPATIENT)
    assert done.status == 0, done.err
    assert "3 of 8 predictions are there" in done.out
    assert run.answers == undisturbed
    # One tries the server, and five are answered.
    assert len(server.asked) == num_asked + 6


def test_requests_that_run_beside_a_failed_one_are_kept(run: Runs, undisturbed: dict[tuple[str, int], str]) -> None:
    with engine_standin(gathers=4, token_seconds=0.01) as server:
        server.fail(WRONG_KEY, numbered(5))
        done = run(server, "--concurrency", "4")
        assert done.status == 2
        assert "put the key into" in done.error
        assert len(run.journal) >= 4
        assert sum(whole_answers(server).values()) == len(run.journal)
        assert run(server).status == 0
        assert run.answers == undisturbed
        assert set(whole_answers(server).values()) == {1}


@pytest.mark.parametrize("more", ["-mini", "-70b", "-405b-chat", "2"])
def test_a_name_that_goes_on_is_that_of_another_model(more: str, run: Runs, server: EngineStandIn) -> None:
    server.fail(Fault(model=f"tiny-instruct{more}"))
    assert f"was answered by the model 'tiny-instruct{more}', and 'tiny-instruct' was asked" in run(server).error
    assert not run.folder.exists()


@pytest.mark.parametrize("date", ["-2024-08-06", "-0613", "-1106-preview"])
def test_a_name_with_a_date_after_it_is_that_of_the_model(date: str, run: Runs, server: EngineStandIn) -> None:
    server.fail(Fault(model=f"tiny-instruct{date}"))
    assert run(server, "--limit", "1").status == 0
    assert run.read("run.json")["identity"]["engine"]["model"] == f"tiny-instruct{date}"


def test_a_slow_drip_is_waited_for(run: Runs, server: EngineStandIn) -> None:
    server.fail(Fault(byte_seconds=0.0005), numbered(1))
    done = run(server, "--limit", "1", *IMPATIENT)
    assert done.status == 0, done.err
    assert "is sent again" not in done.err
    assert len(run.answers) == 2


def test_answers_that_are_not_counted_are_counted_here(
    run: Runs, server: EngineStandIn, undisturbed: dict[tuple[str, int], str]
) -> None:
    server.fail(Fault(has_usage=False), from_number(1))
    assert run(server).status == 0
    assert run.answers == undisturbed
    for line in run.read("predictions.jsonl"):
        assert not {"reported_prompt_tokens", "cached_tokens"} & set(line)
        assert line["prefilled_tokens"] is None
        assert line["num_generated_tokens"] == len(line["text"].encode()) + (line["finish_reason"] == "stop")


def test_ids_go_to_a_server_that_counts_what_it_reads_alone(run: Runs, server: EngineStandIn) -> None:
    server.fail(Fault(has_usage=False))
    done = run(server)
    assert done.status == 0, done.err
    assert "prompts as text" in done.out
    assert all(isinstance(call.body["prompt"], str) for call in server.asked if call.body["max_tokens"] > 1)
    refused = run(server, "--prompts-as", "ids", "--overwrite")
    assert refused.status == 2
    assert "it does not count the tokens that were sent" in refused.error


def test_an_answer_that_a_filter_ended_says_so(run: Runs, server: EngineStandIn) -> None:
    server.fail(Fault(finish_reason="content_filter"), numbered(1))
    done = run(server, "--limit", "1", "--concurrency", "1")
    assert done.status == 0, done.err
    reasons = Counter(line["finish_reason"] for line in run.read("predictions.jsonl"))
    assert reasons["content_filter"] == 1


def test_a_wait_longer_than_the_timeout_is_said_and_not_waited(run: Runs, server: EngineStandIn) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    for time, said in (("7200", "asks to wait 7,200 s"), (later, "asks to wait 7,")):
        server.faults = []
        server.fail(with_headers(TOO_MANY, retry_after=time), numbered(len(server.asked) + 1))
        done = run(server, "--limit", "1", "--concurrency", "1")
        assert done.status == 2
        assert said in done.error
        assert "--request-timeout 600" in done.error


def test_a_pause_of_our_own_may_be_longer_than_the_timeout(
    run: Runs, server: EngineStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.engines.client._FIRST_DELAY", 0.6)
    server.fail(BROKEN, numbered(1))
    done = run(server, "--limit", "1", "--concurrency", "1", *IMPATIENT)
    assert done.status == 0, done.err
    assert "is sent again in 0." in done.err


def test_a_server_that_ends_in_mid_run_leaves_a_run_that_goes_on(
    run: Runs, undisturbed: dict[tuple[str, int], str]
) -> None:
    with engine_standin() as server:
        server.fail(Fault(dies=True), numbered(5))
        done = run(server, "--concurrency", "2", "--max-retries", "1")
    assert done.status == 2
    assert f"at {server.base_url}: no connection" in done.error
    assert 3 <= len(run.journal) <= 5
    with engine_standin() as another:
        done = run(another)  # at another address
    assert done.status == 0, done.err
    assert run.answers == undisturbed
    assert sum(whole_answers(another).values()) == 8 - int(done.out.split(" of 8 predictions are there")[0].split()[-1])


def test_a_server_that_is_not_there_is_one_line(run: Runs, server: EngineStandIn) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.port = free.getsockname()[1]
    done = run(server, "--max-retries", "1")
    assert done.status == 2
    assert f"the list of models failed 2 times at {server.base_url}: no connection" in done.error
    assert not run.folder.exists()


def test_an_address_without_its_version_is_one_line(run: Runs, server: EngineStandIn) -> None:
    done = run(server, "--base-url", server.base_url.removesuffix("/v1"))
    assert done.status == 2
    assert "the server takes prompts in no form" in done.error
    assert "404: Not Found; look at --base-url and --model" in done.error
    assert not run.folder.exists()


@pytest.mark.parametrize(
    "told",
    [
        '{"data": 5}',
        "null",
        '[{"id": "tiny-instruct"}]',
        '{"data": [5, null, "tiny-instruct"]}',
        '{"data": [{"id": "tiny-instruct", "max_model_len": "512"}]}',
        '{"data": [{"id": "tiny-instruct", "owned_by": "vllm"}], "version": null}',
    ],
)
def test_a_list_of_models_that_is_none_ends_no_run_or_is_one_line(
    told: str, run: Runs, server: EngineStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(self: Any) -> None:
        self._send(Call("GET", self.path, {}), 200, told, "application/json", {})

    monkeypatch.setattr("tests.helpers.engine_standin._Handler.do_GET", answer)
    done = run(server, "--limit", "1")
    if done.status:
        assert "the list of models failed" in done.error
    else:
        assert run.read("run.json")["sessions"][0]["engine"].get("name") in (None, "vllm")


def test_a_server_of_another_model_says_what_it_has(run: Runs) -> None:
    with engine_standin(models=["tiny-base", "tiny-coder"]) as server:
        done = run(server, "--model", "tiny-instruct")
    assert done.status == 2
    assert f"{server.base_url} serves no --model tiny-instruct; it has tiny-base, tiny-coder" in done.error
    assert not server.asked


def test_a_context_shorter_than_the_lengths_is_told_before_the_run(run: Runs) -> None:
    with engine_standin(max_model_len=512) as server:
        done = run(server)
    assert done.status == 2
    assert "maxlen 700 is beyond the 512 tokens that the server takes" in done.error
    assert not server.asked


@pytest.mark.parametrize("engine", ["vllm", "somebody"])
def test_a_context_that_the_server_does_not_tell_ends_the_run_at_the_first_longer_prompt(
    engine: str, run: Runs
) -> None:
    with engine_standin(max_model_len=512, tells_length=False, engine=engine) as server:
        done = run(server)
    assert done.status == 2
    assert "This model's maximum context length is 512 tokens" in done.error
    assert not (run.folder / "scores.json").exists()


def test_an_answer_for_which_a_server_has_too_little_room_is_no_answer(run: Runs) -> None:
    # vLLM cuts the room and says that the answer came to its length.
    with engine_standin(max_model_len=694, tells_length=False) as server:
        done = run(server, "--limit", "1", "--concurrency", "1")
    assert done.status == 2
    assert "at 2 of the 8 tokens" in done.error
    assert [line["maxlen"] for line in run.journal] == [400]


def test_a_limit_of_requests_ends_a_session_and_not_a_run(
    run: Runs, server: EngineStandIn, undisturbed: dict[tuple[str, int], str]
) -> None:
    done = run(server, "--max-requests", "5")
    assert done.status == 2
    assert "--max-requests 5 are sent" in done.error
    assert len(server.calls) - sum(call.path == "/version" for call in server.calls) == 5
    assert len(run.journal) == 3  # the list of models and one to try are requests too
    assert run(server, "--max-requests", "10").status == 0
    assert run.answers == undisturbed
    assert set(whole_answers(server).values()) == {1}


def test_a_limit_of_tokens_counts_what_an_answer_could_need(
    run: Runs, server: EngineStandIn, undisturbed: dict[tuple[str, int], str]
) -> None:
    done = run(server, "--max-total-tokens", "2000", "--concurrency", "1")
    assert done.status == 2
    assert "--max-total-tokens 2000" in done.error
    spent = sum(len(call.ids) + 8 for call in server.asked)
    assert spent <= 2000 < spent + 700
    assert len(run.journal) == len(server.asked) - 1
    assert run(server).status == 0
    assert run.answers == undisturbed
    assert set(whole_answers(server).values()) == {1}


@pytest.mark.parametrize(("fault", "num_asked"), [(BROKEN, 4), (Fault(close_after=2), 3)])
def test_answers_that_break_off_count_among_the_tokens(
    fault: Fault, num_asked: int, run: Runs, server: EngineStandIn
) -> None:
    # There is room for the prompt that tries the server and for two requests of 400 tokens; a status 500 costs none.
    server.fail(fault, numbered(1, 2))
    limits = ("--max-total-tokens", "1250", "--max-retries", "2")
    done = run(server, "--limit", "1", "--maxlen", "400", "--concurrency", "1", *limits)
    assert len(server.asked) == num_asked
    assert done.status == (0 if fault is BROKEN else 2), done.err
    assert fault is BROKEN or "--max-total-tokens 1250" in done.error


def test_failed_tries_count_among_the_requests(run: Runs, server: EngineStandIn) -> None:
    server.fail(BROKEN, numbered(1, 2))
    done = run(server, "--max-requests", "4", "--concurrency", "1")
    assert done.status == 2
    assert "--max-requests 4 are sent" in done.error
    assert len(server.asked) == 3
