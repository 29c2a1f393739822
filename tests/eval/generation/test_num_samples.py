"""Several samples of an answer: what is decoded, written, scored and reported of them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from eval.config.generation import GenerationSettings
from eval.export import main as export
from eval.generation.answer import Answer
from eval.generation.decode import decode
from eval.generation.library_loop import _seed_of
from eval.generation.prompt_tree import PromptTree, TreeCaches
from eval.records.read_run import answer_of
from eval.records.schema import Sample
from eval.run import main
from eval.scoring.noise import noise_of
from eval.scoring.profiles import score_prediction
from masformer import SpanPlan
from tests.eval.generation.test_generate import MIXED, TOKENIZER, prompts_of_a_sweep, random_model
from tests.helpers.records import prediction
from tests.helpers.run_folders import model_results
from tests.helpers.texts import text
from tests.helpers.tiny_models import save_tiny_checkpoint


def samples_of(model: PreTrainedModel, settings: GenerationSettings, num_prompts: int) -> list[list[Answer]]:
    prompts = prompts_of_a_sweep()[:num_prompts]
    tree = PromptTree(prompts)
    caches = TreeCaches(model, tree, range(num_prompts))
    made = {leaf: decode(model, TOKENIZER, [prompts[leaf]], [caches.take(leaf)], settings) for leaf in tree.order}
    return [made[leaf] for leaf in range(num_prompts)]


@pytest.mark.parametrize("plan", [None, MIXED], ids=["untouched", "mixed"])
def test_samples_are_those_of_transformers_without_a_shared_prefill(plan: SpanPlan | None) -> None:
    model = random_model("llama", plan)
    model.generation_config.eos_token_id = None
    # As many tokens as a batch decodes at once, so that all are drawn by one call.
    settings = GenerationSettings(max_new_tokens=20, temperature=0.8, top_k=50, num_samples=3, seed=4)
    for prompt, made in zip(prompts_of_a_sweep(), samples_of(model, settings, 2), strict=False):
        config = GenerationConfig(
            max_new_tokens=20, do_sample=True, temperature=0.8, top_k=50, num_return_sequences=3, pad_token_id=0
        )
        torch.manual_seed(_seed_of(settings.seed, prompt))
        expected = model.generate(torch.tensor([prompt]), use_cache=False, generation_config=config)[:, len(prompt) :]
        assert [answer.token_ids for answer in made] == [tuple(row.tolist()) for row in expected]
        assert len({answer.token_ids for answer in made}) == 3


def test_samples_end_each_at_its_own_end() -> None:
    model = random_model("llama", MIXED)
    settings = GenerationSettings(max_new_tokens=80, temperature=1.0, num_samples=8)
    [made] = samples_of(model, settings, 1)
    ends = model.generation_config.eos_token_id
    assert len({len(answer.token_ids) for answer in made}) > 2
    for answer in made:
        assert not any(token in ends for token in answer.token_ids[:-1])
        assert (answer.finish_reason == "stop") == (answer.token_ids[-1] in ends)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    rows = [{"context": text(seed, 60), "target": text(seed + 20, 12)} for seed in range(7)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"--task custom --data {tmp_path / 'data.jsonl'} --maxlen 40 60 --max-new-tokens 6 --temperature 0.9"
    return [*command.split(), "--output", str(tmp_path / "run")]


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.usefixtures("no_plots")
def test_a_run_with_samples_resumes_to_what_it_would_have_been(arguments: list[str], tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    command = [*arguments, "--model", str(model), "--num-samples", "3", "--maxlen", "200", "240"]
    assert main(command) == 0
    lines = read(tmp_path / "run", "predictions.jsonl")
    assert {len(line["samples"]) for line in lines} == {3}
    for line in lines:
        assert line["text"] == line["samples"][0]["text"]
        assert line["num_generated_tokens"] == sum(one["num_generated_tokens"] for one in line["samples"])
        assert len({one["text"] for one in line["samples"]}) > 1
    file = tmp_path / "run" / "predictions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]))
    assert main(command) == 0
    costs = ("seconds", "prefill_seconds", "decode_seconds", "peak_bytes", "prefilled_tokens", "group", "crc32")
    again = read(tmp_path / "run", "predictions.jsonl")
    assert [{key: line[key] for key in line if key not in costs} for line in again] == [
        {key: line[key] for key in line if key not in costs} for line in lines
    ]


@pytest.mark.usefixtures("no_plots")
def test_the_mean_over_samples_is_scored_and_both_spreads_are_told(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*arguments, "--engine", "mock", "--num-samples", "3"]) == 0
    assert "3 samples of each answer at 60 tokens: standard deviation" in " ".join(capsys.readouterr().out.split())
    examples = {one["id"]: one["references"] for one in read(folder, "examples.jsonl")}
    scores = {(one["id"], one["maxlen"]): one for one in read(folder, "example_scores.jsonl") if one["is_model"]}
    for line in read(folder, "predictions.jsonl"):
        each = [score_prediction("hf", one["text"], examples[line["id"]]) for one in line["samples"]]
        scored = scores[line["id"], line["maxlen"]]
        assert scored["samples"] == each
        assert scored["metrics"]["rouge1"] == statistics.fmean(one["rouge1"] for one in each)
    for result in model_results(folder):
        assert result.num_samples == 3
        assert result.num_ended_by_length == 3 * result.num_examples
        assert result.noise is not None
        assert result.noise["rouge1"].samples > 0
    report = (folder / "report.md").read_text()
    assert "due to samples" in report
    assert "| 100% |" in report  # of the answers ended by length
    assert "300%" not in report
    assert "[sample 2 of 3]" in (folder / "report.html").read_text()
    # Samples of an answer are those of one prompt: an exported line holds them together.
    assert export([str(folder), "--output", str(tmp_path / "exported")]) == 0
    [file] = (tmp_path / "exported").rglob("samples_custom_40_*.jsonl")
    assert {len(one["resps"][0]) for one in map(json.loads, file.read_text().splitlines())} == {3}
    assert main([*arguments, "--engine", "mock", "--num-samples", "4"]) == 2
    assert "num_samples" in capsys.readouterr().err


def test_samples_without_a_temperature_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    at = arguments.index("--temperature")
    assert main([*arguments[:at], *arguments[at + 2 :], "--engine", "mock", "--num-samples", "4"]) == 2
    assert "--num-samples 4 would be as many times the same answer; give --temperature" in capsys.readouterr().err


def test_thinking_is_left_out_of_each_sample() -> None:
    samples = [
        Sample(text=f"thoughts {number}</think> answer {number}", num_generated_tokens=3, finish_reason="stop")
        for number in range(2)
    ]
    found = answer_of(prediction("a", 100, text=samples[0].text, samples=samples), "</think>")
    assert found.text == "answer 0"
    assert [one.text for one in found.answers] == ["answer 0", "answer 1"]


def test_an_answer_that_never_leaves_its_thought_is_empty() -> None:
    for whole, answer in (("<think> on and on", ""), ("\n<think>a</think>b", "b"), ("No thought.", "No thought.")):
        assert answer_of(prediction("a", 100, text=whole), "</think>").text == answer


def test_both_parts_of_the_spread_are_found_again() -> None:
    rng = np.random.default_rng(7)
    num_documents, num_prompts, num_samples = 4000, 2, 3
    documents = np.repeat(np.arange(num_documents), num_prompts)
    of_documents = rng.normal(0.3, 0.04, num_documents)[documents]
    scores = of_documents[:, None] + rng.normal(0, 0.06, (len(documents), num_samples))
    error = float(scores.mean(axis=1).reshape(num_documents, num_prompts).mean(axis=1).std(ddof=1)) / num_documents**0.5
    found = noise_of(scores[..., None], documents, error)
    assert found.samples == pytest.approx(0.06, rel=0.03)
    assert found.documents == pytest.approx(0.04, rel=0.05)
    # The variance of a document's mean over six draws, beside that of documents.
    expected = 0.06**2 / 6 / (0.06**2 / 6 + 0.04**2)
    assert found.share_of_samples == pytest.approx(expected, rel=0.1)
    # A geometric mean of a column with itself is that column.
    twice = noise_of(np.repeat(scores[..., None], 2, axis=2), documents, error)
    assert twice.samples == pytest.approx(found.samples)
    alike = noise_of(np.repeat(of_documents[:, None, None], 3, axis=1), documents, None)
    assert (alike.samples, alike.share_of_samples) == (pytest.approx(0, abs=1e-9), None)
