"""The likelihood of references after their prompts, against logits of whole prompts and likelihoods of a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.config.perplexity import PerplexityConfig
from eval.losses import perplexity_job
from eval.perplexity import main
from eval.records.run_folder import default_output
from eval.records.schema import DocumentLoss
from eval.reporting.perplexity_report import perplexity_table, score_perplexity
from tests.helpers.engine_answers import log_likelihood
from tests.helpers.engine_standin import engine_standin
from tests.helpers.run_folders import example_line
from tests.helpers.texts import read, text

INSTRUCTION = "Say what the report tells."


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, str]]:
    rows = [
        {"id": f"doc{number}", "context": text(number, 60 + 90 * number), "target": f"River {number} rose."}
        for number in range(3)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def least(rows: list[dict[str, str]], tmp_path: Path) -> list[str]:
    arguments = f"--of references --task custom --data {tmp_path / 'data.jsonl'} --maxlen 200 400 --token-losses"
    return [*arguments.split(), "--instruction", INSTRUCTION, "--output", str(tmp_path / "run")]


def prompted(model: Path, context: str, target: str, maxlen: int) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt that leaves room for its reference, and those of the reference."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    before, after = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    whole = PerplexityConfig.from_command_line(
        ["--task", "custom", "--data", "x.jsonl", "--maxlen", "9", "--instruction", INSTRUCTION]
    ).tasks
    (task,) = whole.values()
    first, last = task.templates[task.default_template].text.split("{context}")
    ids = [tokenizer(part, add_special_tokens=False).input_ids for part in (before + first, context, last + after)]
    answer = [*tokenizer(target, add_special_tokens=False).input_ids, *tokenizer("<|im_end|>").input_ids[-1:]]
    room = maxlen - len(ids[0]) - len(ids[2]) - len(answer)
    return [*ids[0], *ids[1][:room], *ids[2]], answer


@torch.no_grad()
def test_references_are_scored_after_the_prompt_that_leaves_room_for_them(
    least: list[str], rows: list[dict[str, str]], model: Path, tmp_path: Path
) -> None:
    assert main([*least, "--model", str(model), "--threads", "1"]) == 0
    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    lines = {(line["id"], line["maxlen"]): line for line in read(tmp_path / "run", "predictions.jsonl")}
    assert len(lines) == 6
    for row in rows:
        for maxlen in (200, 400):
            prompt, answer = prompted(model, row["context"], row["target"], maxlen)
            window = torch.tensor([[*prompt, *answer]])
            assert window.shape[1] <= maxlen
            logits = reference(window, use_cache=False).logits[0, len(prompt) - 1 : -1]
            losses = F.cross_entropy(logits, window[0, len(prompt) :], reduction="none")
            line = lines[row["id"], maxlen]
            assert line["token_losses"] == pytest.approx(losses.tolist(), abs=1e-3)
            assert line["negative_log_likelihood"] == pytest.approx(float(losses.sum()), rel=1e-5)
            assert line["num_tokens"] == len(answer)
    record = read(tmp_path / "run", "run.json")
    assert (record["identity"]["of"], record["identity"]["tokens"]) == ("references", None)
    (task,) = record["tasks"].values()
    assert {line["template"] for line in lines.values()} == {task["template"]}
    short, long = read(tmp_path / "run", "scores.json")["results"]
    total = {n: sum(line["negative_log_likelihood"] for (_, m), line in lines.items() if m == n) for n in (200, 400)}
    count = sum(line["num_tokens"] for (_, m), line in lines.items() if m == 200)
    assert short["metrics"]["nats"]["mean"] == pytest.approx(total[200] / count)
    assert long["metrics"]["nats_to_shortest"]["mean"] == pytest.approx((total[400] - total[200]) / count)
    assert short["by_position"] == []
    report = (tmp_path / "run" / "report.md").read_text()
    assert report.startswith("# Likelihood of references")
    assert "By position" not in report


def test_a_server_scores_references_too(
    least: list[str], rows: list[dict[str, str]], model: Path, tmp_path: Path
) -> None:
    with engine_standin() as server:
        command = f"--engine endpoint --base-url {server.base_url} --model tiny-instruct --tokenizer {model}"
        assert main([*least, *command.split()]) == 0
    for line in read(tmp_path / "run", "predictions.jsonl"):
        row = next(row for row in rows if row["id"] == line["id"])
        prompt, answer = prompted(model, row["context"], row["target"], line["maxlen"])
        ids = [*prompt, *answer]
        values = [log_likelihood(ids, place) for place in range(len(prompt), len(ids))]
        assert line["token_losses"] == [-value for value in values if value is not None]


@pytest.mark.usefixtures("no_weights")
def test_what_does_not_fit_references_is_one_line_before_weights_load(
    least: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    least += ["--model", str(model)]
    for more, part in (
        (["--stride", "9"], "--stride 9 is of documents"),
        (["--tokens", "900"], "--tokens 900 is of documents"),
        (
            ["--maxlen", "60", "200"],
            "maxlen 60 is too small: a reference of 'doc0' of task 'custom' and its",
        ),
    ):
        assert main([*least, *more]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert part in line
    assert not (tmp_path / "run").exists()


def test_differences_between_lengths_are_paired() -> None:
    common = {"task": "plos", "template": "instruct", "num_tokens_dropped": 0, "buckets": [], "seconds": 1.0}
    unknown = {"cache_bytes": None, "peak_bytes": None, "attention_flops": None}
    lines = [
        # Examples differ by far more than lengths do.
        DocumentLoss(
            id=f"test-{index}",
            maxlen=maxlen,
            num_tokens=100,
            negative_log_likelihood=100.0 + 40 * index - less * (1 + 0.1 * index),
            **common,  # type: ignore[arg-type]
            **unknown,  # type: ignore[arg-type]
        )
        for index in range(8)
        for maxlen, less in ((1024, 0.0), (2048, 5.0), (4096, 6.0))
    ]
    results = score_perplexity(lines, [example_line(index) for index in range(8)], "tiny")
    last = results[-1].metrics
    assert last["nats_to_shortest"].mean == pytest.approx(-0.06 * 1.35)
    assert last["nats_to_previous"].mean == pytest.approx(-0.01 * 1.35)
    low, high = last["nats_to_shortest"].low, last["nats_to_shortest"].high
    assert low is not None
    assert high is not None
    assert -0.11 < low < -0.081 < high < -0.05
    assert "nats_to_shortest" not in results[0].metrics
    header, *rows = perplexity_table(results)
    at = header.index("to shortest")
    assert rows[0][at] == "-"
    assert rows[2][at].startswith("-0.0810 [")


def test_folders_of_references_have_names_of_their_own() -> None:
    command = "--task aclsum --maxlen 1024 2048 4096 8192 --limit 4"
    names = []
    for more in ("", "--of references", "--engine endpoint --base-url http://localhost:1/v1"):
        config = PerplexityConfig.from_command_line(f"{command} {more}".split())
        names.append(str(default_output("perplexity", config, perplexity_job.free_options(config))))
    assert names[0] == "runs/perplexity-aclsum-smollm2-135m-auto-ad929da4"
    assert len(set(names)) == 3
