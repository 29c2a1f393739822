"""Runs of chat models: answers end with the turn, thinking can be left out of scores, the date is the record's."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from eval.errors import UserError
from eval.merge import main as merge
from eval.run import main
from eval.scoring.scored_run import read_scored, settings_of
from tests.helpers.run_folders import model_results
from tests.helpers.tiny_models import CHAT_TEMPLATE, save_chain_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_plots", "fresh_accelerator")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose turns end with a token that neither its config nor its tokenizer calls an end."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    # Neither is a special token, so that decoding leaves none of them out.
    tokenizer.add_tokens([AddedToken("</think>", special=False), AddedToken("<turn_end>", special=False)])
    tokenizer.chat_template = "{{ strftime_now('%d %H:%M:%S') }}{{ mood }}" + CHAT_TEMPLATE.replace(
        "<|im_end|>", "<turn_end>"
    )
    tokens = ["Ċ", *"hm", "</think>", *"Yes", "<turn_end>", "U", "V", "U"]
    return save_chain_model(tmp_path_factory.mktemp("model"), tokenizer, tokens)


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the model in one folder and returns the status."""
    monkeypatch.chdir(tmp_path)
    rows = [{"context": f"Text {index}.", "target": "Yes"} for index in (1, 2)]
    Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--task custom --data d.jsonl --model {model} --maxlen 300 --max-new-tokens 12 --threads 1 --output run"
    return lambda *more: main([*flags.split(), *more])


def record() -> Any:
    return json.loads(Path("run/run.json").read_text())


def rouge() -> float:
    (result,) = model_results(Path("run"))
    return result.metrics["rouge1"].value


def test_an_answer_ends_with_the_turn_and_thinking_is_scored_only_by_default(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--limit", "1") == 0
    printed = capsys.readouterr().out
    (line,) = map(json.loads, Path("run/predictions.jsonl").read_text().splitlines())
    assert (line["text"], line["finish_reason"]) == ("hm</think>Yes", "stop")
    assert record()["ends"]["<turn_end>"] == ["chat template"]
    assert "tokenizer" in record()["ends"]["<|endoftext|>"]
    assert record()["identity"]["turn_ends"] == ["<turn_end>"]
    assert "<turn_end> (chat template)" in printed
    assert "1 of 1 answers hold thinking" in printed
    assert rouge() < 1

    assert run("--limit", "1", "--think-end-token", "</think>") == 0
    assert rouge() == 1
    assert json.loads(Path("run/predictions.jsonl").read_text()) == line
    scored = read_scored(Path("run"))
    assert settings_of(scored.record, "custom")["think_end_token"] == "</think>"

    # Scores of another part of the answers are stale.
    changed = record() | {"think_end_token": None}
    Path("run/run.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="the scores in run are not those of its predictions"):
        read_scored(Path("run"))


def test_a_run_resumes_on_another_day_with_the_date_it_began_with(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--limit", "1", "--template-date", "2026-02-03") == 0
    digest = record()["tasks"]["custom"]["templates"]
    assert run() == 0  # the clock of this machine shows something else
    assert record()["tasks"]["custom"]["templates"] == digest
    assert record()["template_date"] == "2026-02-03"
    capsys.readouterr()
    assert run("--template-date", "2026-02-04") == 2
    assert "has prompts of 2026-02-03, and --template-date is 2026-02-04" in capsys.readouterr().err
    assert run("--template-kwargs", "mood: glad") == 2
    assert "prompt_sha256" in capsys.readouterr().err


def test_shards_begun_on_two_days_are_joined_under_one_date_only(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for part, date in [("1", "2026-02-03"), ("2", "2026-02-04"), ("2", "2026-02-03")]:
        shard = ["--shard", f"{part}/2", "--template-date", date, "--output", f"part-{part}"]
        assert run(*shard, "--overwrite") == 0
        capsys.readouterr()
        status = merge(["part-1", "part-2", "--output", "whole"]) if part == "2" else 0
        error = capsys.readouterr().err
        if date.endswith("4"):
            assert status == 2
            assert "part-2 has prompts of 2026-02-04" in error
            assert "part-1 of 2026-02-03" in error
            assert "begin all shards with the same --template-date" in error
        else:
            assert status == 0, error


@pytest.mark.usefixtures("no_weights")
def test_settings_of_a_chat_template_that_cannot_be_are_one_line(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in [
        (["--template-kwargs", "[1]"], "is no mapping of names"),
        (["--template-kwargs", "day: 2026-01-31"], "put it in quotes"),
        (["--template-kwargs", "{"], "is not YAML"),
        (["--template-date", "tomorrow"], "write 2026-01-31"),
        (["--chat-template", "rag"], "has one chat template only"),
        (["--think-end-token", " "], "--think-end-token is empty"),
    ]:
        assert run(*flags) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("command", ["run", "perplexity", "finetune"])
def test_documents_in_a_script_that_the_tokenizer_drops_are_refused(
    command: str, run: Any, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, "lossy")
    tokenizer = json.loads(Path("lossy/tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[ء-ي]"}, "content": ""}
    Path("lossy/tokenizer.json").write_text(json.dumps(tokenizer))
    Path("a.jsonl").write_text(json.dumps({"context": "Sea: البحر كبير جدا " * 9, "target": "Yes"}) + "\n")
    flags = "--task custom --data a.jsonl --model lossy --maxlen 30 --threads 1 --output run"
    if command == "run":
        assert run("--data", "a.jsonl", "--model", "lossy") == 2
    else:
        assert importlib.import_module(f"eval.{command}").main(flags.split()) == 2
    error = capsys.readouterr().err
    assert "task 'custom': the tokenizer of lossy keeps 20% of the letters" in error
    assert "'البحر'" in error
    assert error.count("\n") == 1
    assert not Path("run").exists()
