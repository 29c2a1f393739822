"""A scored run as lm-evaluation-harness's files: its own functions read them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.export import main as export
from eval.records.schema import ExampleRecord, ModelRecord, Prediction, TemplateRecord
from eval.score import main as score
from tests.helpers.run_folders import WORDS, example_line, model_results, run_record, with_task, write_run

pytestmark = pytest.mark.usefixtures("no_plots")


def answer(example: ExampleRecord, maxlen: int) -> str:
    """Answer with more of the reference at greater lengths, as much as the example's number says."""
    words = example.references[0].split()
    return " ".join(words[: (maxlen // 100) * (2 + int(example.id.rpartition("-")[2]))])


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """Return what the command wrote for a run of two tasks, one of them with two templates."""
    ask = TemplateRecord(text="{query}?\n{context}")
    record = with_task(
        run_record(("plos", "qmsum"), model=ModelRecord(reference="org/tiny", source="folder")),
        "qmsum",
        templates={"query_first": ask, "context_first": ask},
    )
    examples = [example_line(index) for index in range(6)]
    examples += [example_line(index, task="qmsum", query="who", document_id=f"doc-{index + 6}") for index in range(2)]
    folder = write_run(tmp_path / "run", answer, examples, record=record)
    lines = folder.read_journal(Prediction).lines.values()
    both = [
        replace(line, template=template)
        for line in lines
        for template in (("query_first", "context_first") if line.task == "qmsum" else ("instruct",))
    ]
    folder.write_lines("predictions.jsonl", both)
    assert score([str(folder.path)]) == 0
    capsys.readouterr()
    assert export([str(folder.path), "--output", str(tmp_path / "out")]) == 0
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


def test_the_harness_prints_its_table_of_our_scores(files: list[Path], tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="needs pip install 'masformer[harness]'")
    content = json.loads(files[0].read_text())
    tasks = ["plos_100", "plos_200"]
    tasks += [f"qmsum_{template}_{n}" for template in ("query_first", "context_first") for n in (100, 200)]
    assert sorted(content["results"]) == sorted(tasks)
    (result,) = [one for one in model_results(tmp_path / "run") if (one.task, one.maxlen) == ("plos", 100)]
    written, estimate = content["results"]["plos_100"], result.metrics["rouge1"]
    assert (written["rouge1,none"], written["sample_len"]) == (estimate.mean, 6)
    assert 0.2 < estimate.value < 0.9
    assert written["rouge1_stderr,none"] == pytest.approx(estimate.error)
    # Six documents: the interval is wider than 1.96 standard errors to either side.
    assert written["rouge1_stderr,none"] < (estimate.high - estimate.low) / 3.92
    # Two documents have no interval.
    assert content["results"]["qmsum_query_first_100"]["rouge1_stderr,none"] == "N/A"
    rows = [[cell.strip() for cell in row.split("|")] for row in utils.make_table(content).splitlines()]
    (row,) = [row for row in rows if row[1] == "plos_100"]
    assert row[5:9] == ["rouge1", "↑", f"{estimate.mean:.4f}", "±"]
    assert row[9] == f"{written['rouge1_stderr,none']:.4f}"


def test_the_harness_finds_the_files_by_their_names(files: list[Path]) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="needs pip install 'masformer[harness]'")
    names = [str(file) for file in files]
    assert utils.get_results_filenames(names) == names[:1]
    assert utils.get_sample_results_filenames(names) == names[1:]
    content = json.loads(files[0].read_text())
    assert {utils.get_file_task_name(file.name) for file in files[1:]} == content["results"].keys()
    times = {utils.get_file_datetime(file.name).removesuffix(".json") for file in files}
    assert len(times) == 1
    assert {file.parent.name for file in files} == {utils.sanitize_model_name("org/tiny")}
    assert content["model_name_sanitized"] == "org__tiny"


def test_the_results_have_the_fields_of_its_own(files: list[Path]) -> None:
    schema = pytest.importorskip("lm_eval.result_schema", reason="needs pip install 'masformer[harness]'")
    content = json.loads(files[0].read_text())
    known = set(schema.EvalResults.__annotations__)
    assert content.keys() - known == {"start_time", "end_time"}, "which its tracker of runs adds"
    tokens = {"tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id"}
    assert known - content.keys() == {"groups", "samples", *tokens}
    assert content["end_time"] - content["start_time"] == float(content["total_evaluation_time_seconds"]) == 60
    assert content["lm_eval_version"] == "0.4.13"
    assert content["max_length"] == 200
    assert content["pretty_env_info"].startswith("Device: CPU (test)")


@pytest.mark.parametrize("given", ["Be terse.", None])
def test_the_results_name_the_system_message(given: str | None, tmp_path: Path) -> None:
    template = TemplateRecord(text="Summarize: {context}", system="Be brief.")
    record = with_task(run_record(), templates={"instruct": template})
    record = replace(record, config={**record.config, "system": given})
    folder = write_run(tmp_path / "run", answer, record=record)
    assert score([str(folder.path)]) == 0
    assert export([str(folder.path)]) == 0
    (file,) = (tmp_path / "run" / "lm_eval").rglob("results_*.json")
    content = json.loads(file.read_text())
    expected = given or "Be brief."
    assert content["system_instruction"] == expected, "that of the command wins"
    assert content["system_instruction_sha"] == hashlib.sha256(expected.encode()).hexdigest()


def test_samples_hold_prompts_answers_and_scores(files: list[Path]) -> None:
    by_task = {file.name.split("_2")[0].removeprefix("samples_"): file for file in files[1:] if "qmsum" in file.name}
    (file,) = [file for name, file in by_task.items() if "query_first_200" in file.name]
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    prompt = first["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.startswith("who?\n")
    assert set(prompt[5:].lower().replace(".", "").split()) <= set(WORDS)
    assert first["arguments"]["gen_args_0"]["arg_1"] == {"until": [], "max_gen_toks": 16, "do_sample": False}
    assert first["resps"] == [first["filtered_resps"]] == [[" ".join(first["target"].split()[:4])]]
    assert (first["doc_id"], second["doc_id"]) == (0, 1)
    assert first["doc"]["document_id"] == "doc-6"
    assert 0 < first["rouge1"] < second["rouge1"] < 1
    assert first["prompt_hash"] != second["prompt_hash"]


def test_its_loggers_and_data_sets_read_them(files: list[Path], tmp_path: Path) -> None:
    wandb = pytest.importorskip("lm_eval.loggers.wandb_logger", reason="needs pip install 'masformer[harness]'")
    datasets = pytest.importorskip("datasets", reason="needs pip install datasets")
    content = json.loads(files[0].read_text())
    logger = object.__new__(wandb.WandbLogger)
    logger.post_init(content)
    _, flat = logger._sanitize_results_dict()
    assert flat["plos_200/rouge1"] == content["results"]["plos_200"]["rouge1,none"]
    (file,) = [file for file in files[1:] if "plos_200" in file.name]
    rows = datasets.load_dataset(
        "json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    ).to_list()
    # In memory, its arguments are tuples.
    data = [row | {"arguments": [tuple(row["arguments"]["gen_args_0"].values())]} for row in rows]
    frame = logger._generate_dataset(data, content["configs"]["plos_200"])
    assert len(frame) == 6
    assert frame["rouge1"].mean() == pytest.approx(content["results"]["plos_200"]["rouge1,none"])


def test_what_is_not_scored_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path, answer)
    assert export([str(folder.path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "has no scores that can be read" in error
    assert not (tmp_path / "lm_eval").exists()
