"""Perplexity end to end on a random tiny model, against logits of whole windows."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.config.perplexity import PerplexityConfig
from eval.losses import windows
from eval.losses.readings import buckets_of, windows_of
from eval.losses.windows import losses_of
from eval.perplexity import main
from eval.runtime import jobs
from masformer import SpanPlan, apply_plan
from tests.helpers.texts import read, text
from tests.helpers.tiny_models import tiny_model


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number, length in enumerate((30, 120, 260)):
        (folder / f"{number}.txt").write_text(text(number, length))
    return folder


@pytest.fixture
def least(model: Path, data: Path, tmp_path: Path) -> list[str]:
    """Arguments of a measurement that works."""
    arguments = f"--task text --data {data} --model {model} --maxlen 200 600 --threads 1"
    return [*arguments.split(), "--output", str(tmp_path / "run")]


@torch.no_grad()
@pytest.mark.parametrize("plan", ["auto", "local span=40 sinks=2"])
def test_perplexity_is_that_of_the_logits_of_each_window(
    plan: str, least: list[str], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.losses.windows.CHUNK_TOKENS", 64)
    assert main([*least, "--plan", plan]) == 0
    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    if plan != "auto":
        apply_plan(reference, SpanPlan.parse(plan, 3))
    tokenizer = AutoTokenizer.from_pretrained(model)
    results = {result["maxlen"]: result for result in read(tmp_path / "run", "scores.json")["results"]}
    for maxlen in (200, 600):
        total, count = 0.0, 0
        far = [0.0, 0]
        for file in sorted(data.iterdir()):
            ids = [*tokenizer(file.read_text(), add_special_tokens=False).input_ids, tokenizer.eos_token_id][:600]
            for first in range(0, len(ids), maxlen):
                window = torch.tensor([ids[first : first + maxlen]])
                logits = reference(window, use_cache=False).logits[0, :-1]
                losses = F.cross_entropy(logits, window[0, 1:], reduction="none")
                total, count = total + float(losses.sum()), count + len(losses)
                # Positions 256 and on are predicted from as many tokens.
                far = [far[0] + float(losses[255:].sum()), far[1] + len(losses[255:])]
        metric = results[maxlen]["metrics"]["perplexity"]
        assert metric["mean"] == pytest.approx(math.exp(total / count), rel=1e-4)
        assert (metric["low"], metric["high"]) == (None, None)  # three documents are too few
        assert results[maxlen]["num_tokens"] == count
        if maxlen == 600:
            buckets = results[maxlen]["by_position"]
            assert [(b["first"], b["last"]) for b in buckets] == [(0, 255), (256, 511), (512, 599)]
            log_far = sum(b["num_tokens"] * math.log(b["perplexity"]["mean"]) for b in buckets[1:])
            assert log_far / far[1] == pytest.approx(far[0] / far[1], rel=1e-4)
            assert sum(b["num_tokens"] for b in buckets) == count
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| 600 | 3 |" in report
    assert "| 256 to 511 |" in report


def test_lengths_may_be_added_and_what_is_there_is_kept(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*least, "--tokens", "700"]) == 0
    before = read(tmp_path / "run", "predictions.jsonl")
    assert main([*least, "--tokens", "700", "--maxlen", "400"]) == 0
    assert "6 of 9 measurements are there" in capsys.readouterr().out
    after = read(tmp_path / "run", "predictions.jsonl")
    assert [line for line in after if line["maxlen"] != 400] == before
    assert [result["maxlen"] for result in read(tmp_path / "run", "scores.json")["results"]] == [200, 400, 600]
    assert main([*least, "--tokens", "800"]) == 2
    assert "tokens is 700 there and 800 now" in capsys.readouterr().err
    # What the folder reads of each document is what later lengths read.
    assert main([*least, "--maxlen", "300"]) == 0
    assert main([*least, "--maxlen", "701"]) == 2
    assert "reads 700 tokens a document, fewer than maxlen 701" in capsys.readouterr().err


def test_a_measurement_that_was_interrupted_resumes_to_the_same_result(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    original = jobs.append_line

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(jobs, "append_line", interrupted)
    assert main(least) == 130
    monkeypatch.setattr(jobs, "append_line", original)
    assert len((tmp_path / "run" / "journal" / "00000.jsonl").read_text().splitlines()) == 3
    assert main(least) == 0
    assert main([*least[:-1], str(tmp_path / "whole")]) == 0
    found, expected = (
        [result["metrics"] for result in read(tmp_path / name, "scores.json")["results"]] for name in ("run", "whole")
    )
    assert found == expected


def test_weights_that_are_no_numbers_are_refused(
    least: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = AutoModelForCausalLM.from_pretrained(model)
    broken.model.layers[0].self_attn.q_proj.weight.data[:] = torch.inf
    shutil.copytree(model, tmp_path / "broken")
    broken.save_pretrained(tmp_path / "broken")
    assert main([*least, "--model", str(tmp_path / "broken")]) == 2
    assert "are no numbers (NaN or infinite) in float32" in capsys.readouterr().err
    assert not (tmp_path / "run" / "scores.json").exists()


def test_losses_whose_perplexity_is_infinite_are_refused(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = windows.losses_of

    def large(*arguments: Any) -> Any:
        losses, num_bytes = original(*arguments)
        return losses + 800, num_bytes

    monkeypatch.setattr(windows, "losses_of", large)
    assert main(least) == 2
    said = capsys.readouterr().err
    assert "perplexities on document '" in said
    assert "are no numbers (NaN or infinite) in float32" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "scores.json").exists()


def test_buckets_double_and_end_with_the_window() -> None:
    assert buckets_of(200) == [(0, 200)]
    assert buckets_of(256) == [(0, 256)]
    assert buckets_of(1024) == [(0, 256), (256, 512), (512, 1024)]
    assert buckets_of(1500)[-1] == (1024, 1500)


@torch.no_grad()
@pytest.mark.parametrize("plan", ["auto", "local span=40 sinks=2"])
def test_overlapping_windows_score_each_token_once_with_what_came_before_it(
    plan: str, least: list[str], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.losses.windows.CHUNK_TOKENS", 64)
    assert main([*least, "--plan", plan, "--stride", "70", "--token-losses"]) == 0
    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    if plan != "auto":
        apply_plan(reference, SpanPlan.parse(plan, 3))
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = {(line["id"], line["maxlen"]): line for line in read(tmp_path / "run", "predictions.jsonl")}
    for file in sorted(data.iterdir()):
        ids = [*tokenizer(file.read_text(), add_special_tokens=False).input_ids, tokenizer.eos_token_id][:600]
        for maxlen in (200, 600):
            line = lines[file.name, maxlen]
            # Window k ends at token maxlen + 70 k, and what no window before it holds is scored.
            expected: list[float] = []
            end = 1
            for first in range(0, len(ids), 70):
                window = torch.tensor([ids[first : first + maxlen]])
                losses = F.cross_entropy(
                    reference(window, use_cache=False).logits[0, :-1], window[0, 1:], reduction="none"
                )
                expected += losses[end - first - 1 :].tolist()
                end = first + window.shape[1]
                if end == len(ids):
                    break
            assert line["token_losses"][0] is None
            assert line["token_losses"][1:] == pytest.approx(expected, rel=1e-3, abs=1e-4)
            assert line["num_tokens"] == len(ids) - 1
            assert line["negative_log_likelihood"] == pytest.approx(sum(expected), rel=1e-4)
            if len(ids) > 200 == maxlen:
                assert line["buckets"][0][:2] == [0, 200]
    assert "the last 70 tokens of each are scored" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(("num_tokens", "maxlen", "stride"), [(1, 4, 2), (2, 4, 2), (4, 4, 3), (9, 4, 1), (10, 4, 3)])
def test_overlapping_windows_leave_nothing_out(num_tokens: int, maxlen: int, stride: int) -> None:
    scored: list[int] = []
    for first, begin in windows_of(num_tokens, maxlen, stride):
        end = min(first + maxlen, num_tokens)
        assert begin >= (maxlen - stride if first else 1)
        scored += range(first + begin, end)
    assert scored == list(range(1, num_tokens))


def test_a_stride_that_leaves_tokens_out_or_differs_is_refused(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*least, "--stride", "200"]) == 2
    assert "--stride 200 leaves no token in common to windows of maxlen 200" in capsys.readouterr().err
    assert main(least) == 0
    assert main([*least, "--stride", "100"]) == 2
    assert "stride is null there and 100 now" in capsys.readouterr().err
    assert main([*least, "--token-losses"]) == 2
    assert "token_losses is false there and true now" in capsys.readouterr().err


def test_documents_of_few_tokens_are_left_out_before_the_limit_counts(least: list[str], tmp_path: Path) -> None:
    assert main([*least, "--min-tokens", "400", "--limit", "1"]) == 0
    (result, _) = read(tmp_path / "run", "scores.json")["results"]
    assert result["num_documents"] == 1
    assert [line["id"] for line in read(tmp_path / "run", "examples.jsonl")] == ["1.txt"]
    assert "1 documents of text were left out" in (tmp_path / "run" / "report.md").read_text()


def test_copies_under_another_name_are_told(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(text(name == "c", 60))
    least[least.index("--data") + 1] = str(folder)
    assert main(least) == 0
    told = "1 documents of text are copies of others under another id, such as 'a.txt' and 'b.txt'"
    assert told in " ".join(capsys.readouterr().out.split())
    assert told in (tmp_path / "run" / "report.md").read_text()


def test_losses_of_one_token_are_none() -> None:
    model = tiny_model("llama")
    losses, _ = losses_of(model, [5])
    assert len(losses) == 0


def test_documents_of_several_queries_are_read_once(tmp_path: Path, model: Path) -> None:
    meeting = {
        "meeting_transcripts": [{"speaker": "A", "content": text(1, 80)}],
        "general_query_list": [{"query": "one", "answer": "x"}, {"query": "two", "answer": "y"}],
        "specific_query_list": [],
    }
    file = tmp_path / "val.jsonl"
    file.write_text(json.dumps(meeting) + "\n")
    arguments = f"--task qmsum --data {file} --model {model} --maxlen 300 --threads 1 --output {tmp_path / 'run'}"
    assert main(arguments.split()) == 0
    assert len(read(tmp_path / "run", "predictions.jsonl")) == 1


@pytest.mark.usefixtures("no_weights")
def test_wrong_input_is_one_line_before_weights_load(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, part in (
        (["--maxlen", "1"], "maxlen 1 leaves nothing to predict"),
        (["--maxlen", "4000"], "beyond the 2048 positions"),
        (["--tokens", "100"], "--tokens 100 is below maxlen 600"),
        (["--data", str(empty)], "holds no .txt or .md file"),
        (["--task", "nope"], "unknown task 'nope'"),
        (["--plan", "middle:9"], "9 layers asked for"),
    ):
        capsys.readouterr()
        assert main([*least, *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert part in line
    assert not (tmp_path / "run").exists()


def test_every_flag_is_a_setting_and_every_setting_a_flag() -> None:
    flags = {action.dest for action in PerplexityConfig.build_parser()._actions} - {"help", "config"}
    assert flags == {field.name for field in fields(PerplexityConfig)}


def test_short_documents_are_left_out_and_said(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*least, "--min-words", "100", "--limit", "1"]
    assert main(arguments) == 0
    run = read(tmp_path / "run", "run.json")
    assert (run["tasks"]["text"]["min_words"], run["tasks"]["text"]["rows"]["num_short"]) == (100, 1)
    assert {line["id"] for line in read(tmp_path / "run", "predictions.jsonl")} == {"1.txt"}
    note = "1 examples of text were left out: their documents have fewer than 100 words."
    assert note in (tmp_path / "run" / "report.md").read_text()
    capsys.readouterr()
    assert main([*least, "--min-words", "101", "--limit", "1"]) == 2
    assert "min_words of text is 100 there and 101 now" in capsys.readouterr().err
    assert main([*least, "--min-words", "1000"]) == 2
    assert capsys.readouterr().err.endswith("the longest of 260; lower --min-words\n")


def test_documents_with_too_few_tokens_are_left_out(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*least, "--min-tokens", "400"]) == 0
    measured = {line["id"] for line in read(tmp_path / "run", "predictions.jsonl")}
    every = {line["id"]: line["num_tokens"] for line in read(tmp_path / "run", "predictions.jsonl")}
    assert measured < {"0.txt", "1.txt", "2.txt"}
    assert min(every.values()) >= 399
    assert main([*least, "--min-tokens", "100000"]) == 2
    assert (
        "texts0 has no document of enough tokens in split train: 3 were read; lower --min-tokens"
        in capsys.readouterr().err
    )
