"""A scored run as entries and a data set of the hub, and as scores in the card of a checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from eval.export import main as export
from eval.records.schema import ExampleRecord, ModelRecord, RunRecord
from eval.score import main as score
from masformer import SpanPlan, apply_plan, save_checkpoint
from masformer.checkpoints.card import rename
from tests.helpers.run_folders import model_results, run_record, with_task, write_run
from tests.helpers.tiny_models import LAYERS, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_plots")

HUB = {"kind": "hub", "name": "owner/papers", "config": "long", "revision": "a" * 40}
PLAN = "full@1 span=16 sinks=2"


def answer(example: ExampleRecord, maxlen: int) -> str:
    """Answer with more of the reference at greater lengths and numbers, and half of a surrogate pair."""
    words = example.references[0].split()
    return " ".join(words[: (maxlen // 100) * (2 + int(example.id.rpartition("-")[2]))]) + " \ud800"


def scored(path: Path, record: RunRecord | None = None, *flags: str) -> Path:
    """Write a run, score it, and return its folder."""
    write_run(path, answer, record=record)
    assert score([str(path), *flags]) == 0
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a command said is wrong, which is one line."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_the_hub_reads_an_entry_for_each_length(tmp_path: Path) -> None:
    run = scored(tmp_path / "run", with_task(run_record(), source=HUB))
    assert export([str(run), "--to", "eval-results"]) == 0
    first, second = parse_eval_result_entries(yaml.safe_load((run / "eval_results" / "plos.yaml").read_text()))
    assert (first.dataset_id, first.task_id, first.dataset_revision) == ("owner/papers", "long", "a" * 40)
    (result,) = [one for one in model_results(run) if one.maxlen == 200]
    assert second.value == round(100 * result.metrics["rougeLsum"].value, 4)
    assert second.value > first.value > 10
    assert second.date == "2026-01-01T00:01:00+00:00"
    assert "rougeLsum x 100, profile hf; 200 tokens" in second.notes
    low, high = (100 * end for end in (result.metrics["rougeLsum"].low, result.metrics["rougeLsum"].high))
    assert f"6 documents (95% interval {low:.2f} to {high:.2f})" in second.notes


def test_the_subset_of_own_data_of_the_hub_is_the_task_of_an_entry(tmp_path: Path) -> None:
    source = {"kind": "hub", "name": "owner/papers", "subset": "short", "revision": "a" * 40}
    run = scored(tmp_path / "run", with_task(run_record(), source=source))
    assert export([str(run), "--to", "eval-results"]) == 0
    first, *_ = parse_eval_result_entries(yaml.safe_load((run / "eval_results" / "plos.yaml").read_text()))
    assert first.task_id == "short"


def test_a_benchmark_is_named_where_the_data_are_not_of_the_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scored(tmp_path / "run")
    capsys.readouterr()
    command = [str(run), "--to", "eval-results"]
    assert export(command) == 2
    assert "task 'plos' read no data set of the hub but allofplos" in said(capsys)
    for wrong in ("plos", "plos=papers", "=owner/papers", "plos=owner/papers:", "plos=owner/a b"):
        assert export([*command, "--benchmark", wrong]) == 2
        assert repr(wrong) in said(capsys)
    assert export([*command, "--benchmark", "arxiv=owner/papers"]) == 2
    assert "names task 'arxiv'" in said(capsys)
    assert not (run / "eval_results").exists()
    assert export([*command, "--benchmark", "plos=owner/papers:summaries"]) == 0
    entries = parse_eval_result_entries(yaml.safe_load((run / "eval_results" / "plos.yaml").read_text()))
    assert {(one.dataset_id, one.task_id, one.dataset_revision) for one in entries} == {
        ("owner/papers", "summaries", None)
    }


def test_a_run_is_a_data_set_with_its_samples(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs pip install datasets")
    run = scored(tmp_path / "run")
    assert export([str(run), "--to", "dataset", "--output", str(tmp_path / "out")]) == 0

    def load(name: str | None) -> list[dict[str, object]]:
        data = datasets.load_dataset(str(tmp_path / "out"), name, split="train", cache_dir=str(tmp_path / "cache"))
        return list(data.to_list())

    samples = load(None)  # by its card, the first configuration
    assert len(samples) == 12
    (result,) = [one for one in model_results(run) if one.maxlen == 200]
    of_length = [one for one in samples if one["maxlen"] == 200]
    assert sum(one["rouge1"] for one in of_length) / 6 == pytest.approx(result.metrics["rouge1"].mean)
    assert of_length[0]["answer"].endswith(" ?"), "half a surrogate pair is in no Parquet file"
    texts = {one["document_id"]: one["text"] for one in load("documents")}
    (span,) = of_length[5]["context_spans"]
    assert 0 < span[1] < len(texts[of_length[5]["document_id"]])
    means = {
        (one["system"], one["maxlen"], one["metric"]): one["mean"] for one in load("scores") if one["subset"] == "all"
    }
    assert means["tiny", 200, "rouge1"] == result.metrics["rouge1"].mean
    assert ("lead", 200, "rouge1") in means
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{100 * result.metrics['rougeLsum'].value:.2f}" in card
    assert "Summarize: {context}" in card


def test_a_data_set_of_a_run_without_texts_has_none(tmp_path: Path) -> None:
    run = scored(tmp_path / "run")
    assert export([str(run), "--to", "dataset"]) == 0
    assert (run / "dataset" / "documents.parquet").exists()
    assert score([str(run), "--no-texts"]) == 0
    assert export([str(run), "--to", "dataset"]) == 0
    assert not (run / "dataset" / "documents.parquet").exists()
    names = set(pq.read_schema(run / "dataset" / "samples.parquet").names)
    assert "rouge1" in names
    assert not names & {"query", "references", "answer", "scored_answer", "thought", "text"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a folder with a converted checkpoint."""
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer()))
    apply_plan(model, SpanPlan.parse(PLAN, LAYERS))
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "mas")
    return tmp_path / "mas"


def record_of(checkpoint: Path) -> RunRecord:
    """Return the record of a run of a checkpoint under its own plan."""
    files = {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    model = ModelRecord(reference=str(checkpoint), source="folder", files=files)
    return run_record(model=model, plan=SpanPlan.parse(PLAN, LAYERS).to_json())


def test_the_card_of_a_checkpoint_has_the_scores_of_its_runs(checkpoint: Path, tmp_path: Path) -> None:
    runs = [scored(tmp_path / name, record_of(checkpoint)) for name in ("one", "two")]
    former = (checkpoint / "README.md").read_text()
    assert "nothing on this page does" in former
    command = ["--to", "card", "--output", str(checkpoint)]
    assert export([*map(str, runs), *command]) == 0
    twice = (checkpoint / "README.md").read_text()
    assert export([str(runs[0]), *command]) == 0
    once = (checkpoint / "README.md").read_text()
    (result,) = [one for one in model_results(runs[0]) if one.maxlen == 200]
    row = f"| 200 | 6 | {result.words:.0f} |"
    assert (twice.count(row), once.count(row)) == (2, 1)
    assert f"{100 * result.metrics['rougeLsum'].value:.2f} [" in once
    assert once.count("## Scores") == 1
    assert once.index("## Scores") < once.index("## Paper")
    assert "nothing on this page does" not in once
    # All else is as it was, and what reads the card still can.
    assert [line for line in former.splitlines() if line not in once.splitlines()] == [
        "A plan changes what the model computes, so its quality has to be measured: nothing on this page does."
    ]
    assert ModelCard(once).data.to_dict() == ModelCard(former).data.to_dict()
    assert 'from_pretrained("owner/mas")' in rename(once, "owner/mas")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("weights", "model.safetensors is not the same"),
        ("plan", "another plan than the checkpoint"),
        ("quantize", "in 4bit and not of the checkpoint"),
        ("source", "not of the checkpoint"),
        ("folder", "holds no converted checkpoint"),
    ],
)
def test_scores_of_another_model_are_refused(
    change: str, told: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(checkpoint)
    identity = record.identity
    if change == "weights":
        other = replace(identity.model, files=identity.model.files | {"model.safetensors": "0" * 64})
        record = replace(record, identity=replace(identity, model=other))
    elif change == "plan":
        other = SpanPlan.parse("full", LAYERS).to_json()
        record = replace(record, identity=replace(identity, plan=other), config=record.config | {"plan": "full"})
    elif change == "quantize":
        record = replace(record, identity=replace(identity, model=replace(identity.model, quantize="4bit")))
    elif change == "source":
        record = replace(record, identity=replace(identity, model=ModelRecord(reference="org/tiny", source="hub")))
    run = scored(tmp_path / "run", record)
    folder = tmp_path / "elsewhere" if change == "folder" else checkpoint
    before = (checkpoint / "README.md").read_bytes()
    capsys.readouterr()
    assert export([str(run), "--to", "card", "--output", str(folder)]) == 2
    assert told in said(capsys)
    assert (checkpoint / "README.md").read_bytes() == before


def test_flags_that_go_with_another_format_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(scored(tmp_path / "run"))
    capsys.readouterr()
    for flags, told in (
        ([run], "takes one run and got 2"),
        (["--to", "card"], "--to card needs --output"),
        (["--benchmark", "plos=a/b"], "--benchmark is about --to eval-results"),
    ):
        assert export([run, *flags]) == 2
        assert told in said(capsys)
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["profiles"] == {"plos": "hf"}
