"""Perplexity by a server, from the command line to the report, against likelihoods that the test knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from eval import perplexity
from eval.engines import losses
from tests.eval.engines.conftest import Outcome, read
from tests.helpers.engine_answers import log_likelihood
from tests.helpers.engine_faults import BROKEN, NO_IDS, Fault, from_number, numbered
from tests.helpers.engine_standin import EngineStandIn
from tests.helpers.texts import text

Measure = Callable[..., Outcome]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, length in enumerate((30, 120, 260)):
        (folder / f"{number}.txt").write_text(text(number, length))
    return folder


@pytest.fixture
def measure(tokenizer: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Measure:
    def once(server: EngineStandIn, *more: str) -> Outcome:
        command = f"--engine endpoint --base-url {server.base_url} --model tiny-instruct --tokenizer {tokenizer}"
        command += f" --task text --data {texts} --maxlen 200 600 --output {tmp_path / 'run'}"
        capsys.readouterr()
        status = perplexity.main([*command.split(), *more])
        printed = capsys.readouterr()
        return Outcome(status, printed.out, printed.err)

    return once


def documents(tokenizer: Path, texts: Path) -> dict[str, list[int]]:
    """Return the tokens of each document that are read."""
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    return {
        file.name: [*encoder(file.read_text(), add_special_tokens=False).input_ids, encoder.eos_token_id][:600]
        for file in texts.iterdir()
    }


@pytest.mark.parametrize("engine", ["vllm", "sglang", "someone"])
def test_perplexity_is_that_of_the_likelihoods_that_a_server_tells(
    engine: str, measure: Measure, server: EngineStandIn, tokenizer: Path, texts: Path, tmp_path: Path
) -> None:
    server.engine = engine
    done = measure(server, "--stride", "70", "--token-losses", "--concurrency", "3")
    assert done.status == 0, done.err
    lines = {(line["id"], line["maxlen"]): line for line in read(tmp_path / "run", "predictions.jsonl")}
    assert len(lines) == 6
    for name, ids in documents(tokenizer, texts).items():
        for maxlen in (200, 600):
            line, expected = lines[name, maxlen], []
            for place in range(1, len(ids)):
                # The first window to hold a token tells its loss.
                first = max(0, math.ceil((place + 1 - maxlen) / 70)) * 70
                value = log_likelihood(ids[first : first + maxlen], place - first)
                assert value is not None
                expected.append(-value)
            assert line["token_losses"] == [None, *expected]
            assert line["negative_log_likelihood"] == pytest.approx(sum(expected), rel=1e-12)
            assert (line["num_tokens"], line["num_tokens_dropped"] > 0) == (len(ids) - 1, len(ids) == 600)
            assert line["seconds"] > 0
            assert {line[cost] for cost in ("cache_bytes", "peak_bytes", "attention_flops")} == {None}
    record = read(tmp_path / "run", "run.json")
    told = record["identity"]["engine"]
    known = engine if engine != "someone" else "unknown"
    assert (told["name"], told["server"], told["prompts_as"]) == ("endpoint", known, "ids")
    assert record["sessions"][0]["engine"]["address"] == server.base_url
    assert record["identity"]["threads"] is None
    total = sum(lines[name, 600]["negative_log_likelihood"] for name in documents(tokenizer, texts))
    count = sum(lines[name, 600]["num_tokens"] for name in documents(tokenizer, texts))
    results = {result["maxlen"]: result for result in read(tmp_path / "run", "scores.json")["results"]}
    assert results[600]["metrics"]["perplexity"]["mean"] == pytest.approx(math.exp(total / count))
    assert results[600]["cost"]["cache_bytes"] is None
    report = (tmp_path / "run" / "report.md").read_text()
    name = {"vllm": "endpoint (vllm 0.32.0)", "sglang": "endpoint (sglang)"}.get(engine, "endpoint")
    assert f"- engine: {name}, at {server.base_url}, serving " in report
    assert "- seconds: Seconds are those of a request beside others, at most 3 at a time, " in report
    assert server.most_at_once <= 3


def test_a_key_in_the_place_of_a_name_is_not_repeated(
    measure: Measure, server: EngineStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.key = "sk-standin-4f9a1c77e2"
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    server.fail(Fault(model=server.key), from_number(3))
    done = measure(server)
    assert "was answered by the model '***'" in done.error
    files = [file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert server.key not in done.out + done.err
    assert not any(server.key.encode() in content for content in files)


def test_windows_of_a_server_that_failed_are_asked_again_and_no_others(
    measure: Measure, server: EngineStandIn, tmp_path: Path
) -> None:
    # Two requests try the server out; the longest document has the last windows.
    server.fail(BROKEN, from_number(5))
    done = measure(server, "--concurrency", "1", "--max-retries", "1")
    assert done.status == 2
    assert "failed 2 times" in done.error
    assert "document '" in done.error
    kept = [path.read_text() for path in (tmp_path / "run" / "journal").iterdir()]
    assert sum(content.count("\n") for content in kept) >= 1
    server.faults.clear()
    num_before = len(server.asked)
    again = measure(server, "--concurrency", "2")
    assert again.status == 0, again.err
    assert "of 6 measurements are there" in again.out
    assert "0 of 6 measurements are there" not in again.out
    lines = read(tmp_path / "run", "predictions.jsonl")
    assert len({(line["id"], line["maxlen"]) for line in lines}) == len(lines) == 6
    whole = measure(server, "--output", str(tmp_path / "whole"))
    assert whole.status == 0, whole.err
    assert len(server.asked) - num_before < 2 * len(server.asked) - 2 * num_before
    metrics = [[one["metrics"] for one in read(tmp_path / name, "scores.json")["results"]] for name in ("run", "whole")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("engine", ["vllm", "someone"])
def test_a_server_without_likelihoods_of_prompts_is_refused_by_name(
    engine: str, measure: Measure, server: EngineStandIn, tmp_path: Path
) -> None:
    server.engine, server.tells_prompt_losses = engine, False
    error = measure(server).error
    assert f"--engine endpoint: the server at {server.base_url} gives no log-likelihoods of prompts" in error
    assert "the server told none of their likelihoods" in error
    server.tells_prompt_losses = True
    server.fail(Fault(status=400, body={"error": {"message": "Only no echo is supported"}}), numbered(3))
    error = measure(server).error
    assert "gives no log-likelihoods of prompts" in error
    assert "Only no echo is supported" in error
    assert not (tmp_path / "run").exists()


def test_a_server_that_takes_no_ids_is_refused_by_name(measure: Measure, server: EngineStandIn, tmp_path: Path) -> None:
    server.fail(NO_IDS)
    assert "gives no log-likelihoods of prompts: it takes no token ids" in measure(server).error
    assert not (tmp_path / "run").exists()


def test_what_a_server_cannot_be_told_is_one_line(measure: Measure, server: EngineStandIn, tmp_path: Path) -> None:
    for more, part in (
        (["--engine", "mock"], "--engine mock has no model"),
        (["--engine", "llamacpp"], "--engine llamacpp gives no log-likelihoods of prompts"),
        (["--prompts-as", "text"], "--prompts-as text lets the server choose the tokens"),
        (["--plan", "full"], "--plan full is of a model that is loaded here"),
        (["--threads", "2"], "--threads 2 is of a model that is loaded here"),
    ):
        done = measure(server, *more)
        assert (done.status, part in done.error) == (2, True), done.err
    server.max_model_len = 600
    assert "maxlen 600 and the token that a server must answer are beyond the 600 tokens" in measure(server).error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", ["vllm", "someone"])
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda values: values[:-2], "has 8 tokens, and the server told"),
        (lambda values: [0.0, *values[1:]], "has 8 tokens, and the server told"),
        (lambda values: [None, *[0.5] * (len(values) - 1)], "gives 0.5 as the logarithm of a likelihood"),
        (lambda values: [None, *[-9999.0] * (len(values) - 1)], "gives -9999.0 as the logarithm of a likelihood"),
        (lambda values: [None, *[None] * (len(values) - 1)], "gives None as the logarithm of a likelihood"),
        (lambda values: [None, *[True] * (len(values) - 1)], "gives True as the logarithm of a likelihood"),
    ],
)
def test_each_token_must_have_one_likelihood(engine: str, change: Callable[[Any], Any], part: str) -> None:
    ids = [5, 3, 9, 5, 7, 2, 8, 4]
    values = change([None, *[-0.25] * (len(ids) - 1)])
    given = [{str(ids[place]): {"logprob": value}} for place, value in enumerate(values)]
    choice: dict[str, Any] = {"prompt_logprobs": [None if values[0] is None else given[0], *given[1:]]}
    if engine != "vllm":
        choice = {"logprobs": {"token_logprobs": values}}

    class Told:
        def post(self, body: Any, **_: Any) -> Any:
            return {"model": "x", "choices": [choice]}, 1.0

    server = losses.Server(
        dialect=engine if engine == "vllm" else "unknown",
        version=None,
        form="ids",
        offset=0,
        model="x",
        max_length=None,
    )
    with pytest.raises(losses.EngineError) as error:
        losses.losses_of(Told(), server, ids, 1, "a prompt")  # type: ignore[arg-type]
    assert part in str(error.value)


def test_a_likelihood_of_another_token_is_none() -> None:
    choice = {"prompt_logprobs": [None, {"4": {"logprob": -0.5}}, {"6": {"logprob": -0.5}}]}
    assert losses._of_vllm(choice, [3, 4, 5]) == [None, -0.5, None]
