"""A scored run as logs of inspect, read by `datasets` here and by inspect itself in the nightly tests."""

from __future__ import annotations

import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.export import main as export
from eval.records.schema import ExampleRecord, Prediction, Sample
from eval.score import main as score
from tests.helpers.engine_environments import python_of
from tests.helpers.run_folders import example_line, model_results, run_record, write_run

pytestmark = pytest.mark.usefixtures("no_plots")

READ = """
import json, sys
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_sample, read_eval_log_sample_summaries

logs = sorted(list_eval_logs(sys.argv[1]), key=lambda one: one.name)
found = []
for info in logs:
    log = read_eval_log(info)
    (summary, *_) = read_eval_log_sample_summaries(info)
    sample = read_eval_log_sample(info, id=2, epoch=2)
    found.append({
        "task": log.eval.task,
        "listed": info.task,
        "status": log.status,
        "means": {one.name: one.metrics["mean"].value for one in log.results.scores},
        "headline": log.results.headline.score,
        "num_samples": len(log.samples),
        "summary": summary.model_dump(mode="json"),
        "answer": sample.output.completion,
        "tokens": sample.output.usage.output_tokens,
        "stop": sample.output.stop_reason,
        "score": sample.scores["rouge1"].value,
        "content": [part.type for part in sample.messages[-1].content],
    })
print(json.dumps(found))
"""


def answer(example: ExampleRecord, maxlen: int) -> str:
    """Answer with the beginning of the reference, and half of a surrogate pair."""
    return " ".join(example.references[0].split()[: maxlen // 50]) + " \ud800"


def sampled(one: Prediction) -> Prediction:
    """Return a prediction with two samples, the second of which was thought about and cut off."""
    first = Sample(text=one.text, num_generated_tokens=10, finish_reason="stop")
    thought = {"thought": "which words?", "num_thought_tokens": 4, "thought_finish_reason": "stop"}
    second = Sample(text="the model", num_generated_tokens=7, finish_reason="length", **thought)
    return replace(one, samples=[first, second], num_generated_tokens=17)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a scored run of six examples at two lengths, each answered twice."""
    generation = {"temperature": 0.7, "top_p": 0.9, "num_samples": 2, "stop": ["\n\n"]}
    folder = write_run(
        tmp_path / "run",
        answer,
        [example_line(index, id=f"of/{index}") for index in range(6)],
        record=run_record(generation=generation, seed=3),
    )
    folder.write_lines("predictions.jsonl", map(sampled, folder.read_journal(Prediction).lines.values()))
    assert score([str(folder.path)]) == 0
    return folder.path


@pytest.fixture
def logs(run: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    capsys.readouterr()
    assert export([str(run), "--to", "inspect"]) == 0
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


def parts_of(log: Path) -> dict[str, Any]:
    with zipfile.ZipFile(log) as archive:
        return {name: json.loads(archive.read(name)) for name in archive.namelist()}


def test_a_log_holds_the_scores_and_settings_of_one_length(logs: list[Path], run: Path) -> None:
    assert [log.parent for log in logs] == [run / "inspect"] * 2
    assert [log.name.split("_")[1] for log in logs] == ["plos-100", "plos-200"]
    header = parts_of(logs[1])["header.json"]
    (result,) = [one for one in model_results(run) if one.maxlen == 200]
    scores = {one["name"]: one["metrics"] for one in header["results"]["scores"]}
    assert list(scores) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert scores["rougeL"]["mean"]["value"] == result.metrics["rougeL"].mean
    assert scores["rougeL"]["stderr"]["value"] == result.metrics["rougeL"].error
    assert header["results"]["headline"]["score"] == "rougeLsum"
    assert header["eval"]["task_args"]["maxlen"] == 200
    assert header["eval"]["config"] == {"limit": None, "epochs": 2, "epochs_reducer": ["mean"]}
    assert header["eval"]["model_generate_config"] == {
        "max_tokens": 16,
        "stop_seqs": ["\n\n"],
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 3,
    }


def test_the_same_run_gives_the_same_logs(logs: list[Path], run: Path, tmp_path: Path) -> None:
    assert export([str(run), "--to", "inspect", "--output", str(tmp_path / "again")]) == 0
    assert [log.read_bytes() for log in logs] == [(tmp_path / "again" / log.name).read_bytes() for log in logs]


def test_data_sets_are_made_of_logs(logs: list[Path], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs pip install datasets")
    files = [str(log) for log in logs]
    rows = datasets.load_dataset("eval", data_files=files, split="train", cache_dir=str(tmp_path / "cache")).to_list()
    assert [(one["id"], one["epoch"]) for one in rows[:12]] == [(n, epoch) for epoch in (1, 2) for n in range(1, 7)]
    assert len(rows) == 24
    assert json.loads(rows[0]["metadata"])["id"] == "of/0"
    assert rows[0]["input"].startswith("Summarize: ")
    scores = [json.loads(one["scores"])["rouge1"]["value"] for one in rows[:12]]
    header = parts_of(logs[0])["header.json"]
    assert sum(scores) / 12 == pytest.approx(header["results"]["scores"][0]["metrics"]["mean"]["value"])


@pytest.mark.nightly
@pytest.mark.skipif(python_of("inspect") is None, reason="needs an environment with inspect: tox -e engines")
def test_inspect_opens_the_logs(logs: list[Path], run: Path) -> None:
    command = [str(python_of("inspect")), "-c", READ, str(run / "inspect")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert (first["task"], first["listed"], first["status"]) == ("plos_100", "plos-100", "success")
    (result,) = [one for one in model_results(run) if one.maxlen == 200]
    assert second["means"] == {name: estimate.mean for name, estimate in result.metrics.items()}
    assert (second["headline"], second["num_samples"]) == ("rougeLsum", 12)
    assert (second["summary"]["id"], second["summary"]["completed"]) == (1, True)
    assert second["summary"]["scores"]["rouge1"]["value"] > 0
    assert second["summary"]["scores"]["rouge1"]["answer"].endswith(" ?"), "half a surrogate pair is no Unicode"
    assert (second["answer"], second["tokens"], second["stop"]) == ("the model", 7, "max_tokens")
    assert second["content"] == ["reasoning", "text"]
    assert 0 <= second["score"] <= 1
