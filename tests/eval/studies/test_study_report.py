"""A study's sections from folders that are written by hand: known numbers come out, and what is missing is said."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.metrics.diagnostics import repeated_share
from eval.records.journal import read_lines
from eval.records.run_folder import RunFolder, kind_of
from eval.records.schema import (
    DocumentLoss,
    Evaluation,
    ExampleRecord,
    ModelRecord,
    PlacementResult,
    PlanMeasurement,
    Prediction,
    TrainingIdentity,
    TrainingRecord,
    TrainingStep,
    TrainingTask,
)
from eval.reporting.placement_report import held_out_rows
from eval.score import main as score
from eval.studies.charts import length_title, loss_chart, ratio_chart, strip_chart
from eval.studies.parts import Section
from eval.studies.report import SECTIONS
from eval.studies.section import Draft
from tests.helpers.measured import measured
from tests.helpers.placements import HEAD, STABILITY
from tests.helpers.run_folders import example_line, model_results, run_record, write_run

NUM_DOCUMENTS = 8

pytestmark = pytest.mark.usefixtures("no_plots")


def write(kind: str, folders: dict[str, Path], reference: str | None = None, **more: Any) -> Draft:
    """Return a section about these folders."""
    section = Section(number=2, kind=kind, title="A title", parts=tuple(folders), reference=reference, **more)
    draft = Draft(section=section, folders=folders, records={name: record_of(path) for name, path in folders.items()})
    SECTIONS[kind](draft)
    return draft


def record_of(folder: Path) -> Any:
    kind = kind_of(json.loads((folder / "run.json").read_text()))
    assert kind is not None
    return RunFolder(folder).read_record(kind)


def change_task(folder: Path, **changes: Any) -> None:
    """Change what a folder's record says about its task."""
    record = record_of(folder)
    tasks = {name: replace(task, **changes) for name, task in record.tasks.items()}
    RunFolder(folder).write_json("run.json", replace(record, tasks=tasks))


def table(content: Draft, title: str) -> list[dict[str, str]]:
    """Return the rows of a table by the names of their columns; a name that comes again has a mark."""
    (index,) = [i for i, block in enumerate(content.blocks) if block == f"**{title}**"]
    lines = [[cell.strip() for cell in line.split(" | ")] for line in content.blocks[index + 1].splitlines()]
    lines = [[cell.strip("| ") for cell in line] for line in lines]
    header: list[str] = []
    for name in lines[0]:
        header.append(f"{name}'" if name in header else name)
    return [dict(zip(header, line, strict=True)) for line in lines[2:]]


EQUAL = [0.0] * NUM_DOCUMENTS
GAINS = [0.01, 0.05, 0.02, 0.04, 0.03, 0.03, 0.0, 0.06]  # of mean 0.03


def test_ratios_of_perplexities_are_paired_by_document(tmp_path: Path) -> None:
    folders = {"full": measured(tmp_path / "a", EQUAL, 100), "local": measured(tmp_path / "b", GAINS, 25)}
    content = write("perplexity", folders, "full", from_position=4096)
    full, local = table(content, "By length")
    assert (full["ratio"], full["perplexity"]) == ("1", "12.000 [11.00, 13.00]")
    # Documents that differ far more from each other than the two systems do: were they not paired, nothing would show.
    assert local["ratio"] == f"{math.exp(0.03 / 3):.4f} [1.0044, 1.0157]"
    assert local["ratio from 4,096 on"] == f"{math.exp(0.03):.4f} [1.0133, 1.0479]"
    assert (local["shared"], local["detectable"]) == ("8", "1.0078")
    # Of noncentral t with seven degrees about 3.27, four in five lie above Student's 2.365.
    error = statistics.stdev(GAINS) / math.sqrt(NUM_DOCUMENTS)
    assert local["shared'"] == "8"
    assert math.exp(3.27 * error) < float(local["detectable'"]) < math.exp(3.6 * error)
    assert (local["attention"], local["cache"], local["seconds"]) == ("25.0%", "25.0%", "25.0%")
    near, far = table(content, "By position, plos at 8,192")
    assert (near["local: ratio"], far["local: ratio"]) == ("1.0000", local["ratio from 4,096 on"])
    assert list(content.charts) == [
        "perplexity-2-a-title-plos-8192-from-0",
        "perplexity-2-a-title-plos-8192-from-4096",
    ]


def test_clusters_of_documents_are_resampled_as_one(tmp_path: Path) -> None:
    folders = {
        "full": measured(tmp_path / "a", [0.0] * 16, 100),
        # Two documents of a cluster gain alike.
        "local": measured(tmp_path / "b", [gain for gain in GAINS for _ in range(2)], 25),
    }
    for folder in folders.values():
        examples = [replace(example_line(index), id=f"d{index}", cluster_id=f"{index // 2}") for index in range(16)]
        RunFolder(folder).write_lines("examples.jsonl", examples)
    _, local = table(write("perplexity", folders, "full"), "By length")
    # As of eight documents, each of them twice as long.
    assert (local["n"], local["shared"], local["detectable"]) == ("16", "8", "1.0078")
    assert local["ratio"] == f"{math.exp(0.03 / 3):.4f} [1.0044, 1.0157]"


def test_documents_of_all_tasks_are_pooled(tmp_path: Path) -> None:
    tasks = ("plos", "aclsum")
    folders = {"full": measured(tmp_path / "a", EQUAL, 100, tasks), "local": measured(tmp_path / "b", GAINS, 25, tasks)}
    folders["one"] = measured(tmp_path / "c", GAINS, 25)
    content = write("perplexity", folders, "full", from_position=4096)
    rows = [row for row in table(content, "By length") if row["task"] == "all tasks"]
    # A part that has measured one of the tasks has no figure for all.
    assert [row["part"] for row in rows] == ["full", "local"]
    assert (rows[0]["ratio"], rows[0]["n"], rows[1]["shared"], rows[1]["shared'"]) == ("1", "16", "16", "16")
    # Documents are resampled within their task, and the intervals of the table hold together.
    assert rows[1]["ratio"] == f"{math.exp(0.75 * 0.01):.4f} [1.0036, 1.0115]"
    assert rows[1]["ratio from 4,096 on"].startswith(f"{math.exp(0.75 * 0.03):.4f} [")
    losses = [value + 0.1 * index for index in range(NUM_DOCUMENTS) for value in (2.5, 2.5, 2.0)]
    perplexity = math.exp(statistics.mean(losses) + 0.75 * 0.01)
    assert rows[1]["perplexity"].startswith(f"{perplexity:.3f} [")


def test_ratios_are_of_the_documents_that_both_have(tmp_path: Path) -> None:
    folders = {"full": measured(tmp_path / "a", EQUAL[:7], 100), "local": measured(tmp_path / "b", GAINS, 25)}
    _, local = table(write("perplexity", folders, "full"), "By length")
    assert (local["n"], local["shared"], local["attention"]) == ("8", "7", "25.0%")
    assert local["ratio"].startswith(f"{math.exp(0.18 / 7 / 3):.4f} [")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_tokens_dropped": 5}, "'d3' has 6144 tokens and 5 left out there and 6144 tokens and 0 left out here"),
        ({"num_tokens": 6145}, "'d3' has 6145 tokens and 0 left out there and 6144 tokens and 0 left out here"),
        ({}, "the data, or the version of the task, is another"),
    ],
    ids=["tokenizer", "tokens", "data"],
)
def test_other_data_and_other_tokens_are_not_compared(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folders = {"full": measured(tmp_path / "a", EQUAL, 100), "other": measured(tmp_path / "b", GAINS, 25, **changes)}
    if not changes:
        change_task(folders["other"], source={"kind": "package", "name": "allofplos", "version": "1"})
    content = write("perplexity", folders, "full")
    assert content.blocks[0].startswith(f"`other` is not compared with `full` on plos: {said}")
    _, row = table(content, "By length")
    assert (row["ratio"], row["shared"], row["detectable"], row["attention"]) == ("-", "-", "-", "-")
    assert all("other: ratio" not in block for block in content.blocks)
    assert not content.charts


def test_the_same_content_under_another_name_is_compared(tmp_path: Path) -> None:
    folders = {"full": measured(tmp_path / "a", EQUAL, 100), "local": measured(tmp_path / "b", GAINS, 25)}
    for folder, named in ((folders["full"], "package"), (folders["local"], "file")):
        change_task(folder, source={"kind": named, "name": named, "sha256": "0"})
    _, local = table(write("perplexity", folders, "full"), "By length")
    assert local["ratio"] == "1.0101 [1.0044, 1.0157]"


def test_what_else_a_ratio_may_come_from_is_named(tmp_path: Path) -> None:
    model = ModelRecord(reference="tiny", source="folder", files={"tokenizer.json": "0"})
    identity = {"dtype": "bfloat16", "model": replace(model, files={"tokenizer.json": "1"})}
    folders = {
        "full": measured(tmp_path / "a", EQUAL, 100, identity={"model": model}),
        "other": measured(tmp_path / "b", GAINS, 25, identity=identity),
    }
    said = write("perplexity", folders, "full").blocks[0]
    assert said.startswith("`other`, unlike `full`, computes in bfloat16 instead of float32 and has another tokenizer")


def test_a_missing_reference_is_not_compared_with(tmp_path: Path) -> None:
    alone = write("perplexity", {"other": measured(tmp_path, GAINS, 25)}, "full", from_position=4096)
    (row,) = table(alone, "By length")
    assert (row["ratio"], row["attention"], row["perplexity"]) == ("-", "-", "12.000 [11.00, 13.00]")
    assert not alone.charts


def test_plans_are_set_beside_random_ones(tmp_path: Path) -> None:
    gains = {"full": 0.0, "chosen": 0.01} | {f"random {index}": 0.005 * index for index in range(1, 5)}
    cost = {"flops": 0.3, "cache": 0.25, "layers": 4}
    lines = [
        PlanMeasurement(
            part="held-out",
            task="plos",
            id=f"{index}",
            plan=f"plan of {name}",
            negative_log_likelihood=100 * index * (2.3 + gain),
            num_tokens=100 * index,
        )
        for name, gain in gains.items()
        for index in (1, 2)
    ]
    judged = {name: (f"plan of {name}", cost | ({"flops": 1.0} if name == "full" else {})) for name in gains}
    run = RunFolder(tmp_path)
    run.write_json("run.json", run_record())
    run.write_json("placement.json", PlacementResult(held_out=held_out_rows(judged, lines, {})))
    # What is there of other documents, as those that calibrate now, is not of the rows.
    run.write_lines("measurements.jsonl", [replace(line, id="3") for line in lines])
    content = write("placements", {"search": tmp_path})
    full, chosen = table(content, "search, held-out documents")
    assert (full["plan"], full["ratio"], full["random better"]) == ("full", "1", "-")
    assert (chosen["ratio"], chosen["n"], chosen["random better"]) == (f"{math.exp(0.01):.4f}", "2", "1 of 4")
    assert (chosen["attention"], chosen["cache"], chosen["spans"]) == ("30.0%", "25.0%", "`plan of chosen`")
    assert "4 random plans: ratios from 1.0050 to 1.0202, median 1.0126." in content.blocks
    assert list(content.charts) == ["placements-2-a-title-search"]


def test_placements_show_what_their_folds_found(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_json("run.json", run_record())
    RunFolder(tmp_path).write_json("placement.json", PlacementResult(rank="gates", scores=[HEAD], stability=STABILITY))
    content = write("placements", {"search": tmp_path})
    assert content.blocks[0].startswith("`search`: Of the units that either of two folds chose")
    assert "a share (Jaccard index) of 0.50 in the median over 3 pairs" in content.blocks[0]
    rows = table(content, "search: units by the number of folds that chose them, of 3")
    assert rows == [{"folds": "3", "units": "0.1"}, {"folds": "1", "units": "2.0"}]
    assert list(content.charts) == ["placements-2-a-title-search-folds"]
    assert not [block for block in content.blocks if "nothing to compare with" in block or "random better" in block]


def answers(folder: Path, num_words: int, repeats: int = 1) -> Path:
    """Write a run whose answers are the first words of the references, said again and again."""

    def answer(example: ExampleRecord, maxlen: int) -> str:
        more = example.id == "test-0"  # answers that are all alike have no interval
        return " ".join([*example.references[0].split()[: num_words + more]] * repeats)

    write_run(folder, answer, [example_line(index) for index in range(8)], record=run_record())
    assert score([str(folder)]) == 0
    return folder


def test_scores_are_compared_with_the_reference_at_each_length(tmp_path: Path) -> None:
    folders = {"good": answers(tmp_path / "a", 12), "bad": answers(tmp_path / "b", 3)}
    content = write("rouge", folders, "good")
    rows = table(content, "Scores: plos, template instruct")
    assert [(row["maxlen"], row["part"]) for row in rows] == [
        ("100", "good"),
        ("100", "bad"),
        ("200", "good"),
        ("200", "bad"),
    ]
    assert rows[0]["RLsum"].endswith("]")
    assert rows[0]["oracle at length"] != "-"
    differences = table(content, "Differences from good")
    assert [row["part: task, template, maxlen"] for row in differences] == [
        "bad: plos, instruct, 100",
        "bad: plos, instruct, 200",
    ]
    assert all(row["difference"].startswith("-") and row["verdict"] == "worse" for row in differences)
    by_length = table(content, "Longest maxlen against the shortest, by part")
    assert [row["part: task, template, maxlen"] for row in by_length] == [
        "good: plos, instruct, 100 to 200",
        "bad: plos, instruct, 100 to 200",
    ]
    assert [row["wins/ties/losses"] for row in by_length] == ["0/6/0"] * 2
    # Two documents fit 100 tokens, so that both lengths show the same of them: six are left.
    assert [row["n"] for row in by_length] == ["6"] * 2
    # Two tests make one table, but their rows are alike: 2 / 2^8, as of one.
    assert [(row["p"], row["corrected"]) for row in differences] == [("0.008", "0.008")] * 2
    assert list(content.charts) == ["rouge-2-a-title-plos-instruct"]


def test_a_task_without_baselines_has_no_columns_of_dashes(tmp_path: Path) -> None:
    file = answers(tmp_path / "a", 12) / "scores.json"
    scores = json.loads(file.read_text())
    scores["results"] = [one for one in scores["results"] if one["kind"] == "model"]
    file.write_text(json.dumps(scores))
    rows = table(write("rouge", {"needles": file.parent}, "needles"), "Scores: plos, template instruct")
    assert list(rows[0])[-1] == "RLsum"


def test_a_part_is_compared_between_its_shortest_and_longest_length(tmp_path: Path) -> None:
    def answer(example: ExampleRecord, maxlen: int) -> str:
        words = example.references[0].split()
        return " ".join(words[: maxlen // 20 + (example.id == "test-0")])

    for name, lengths in (("all", (60, 100, 200)), ("one", (100,))):
        examples = [example_line(index) for index in range(8)]
        write_run(tmp_path / name, answer, examples, record=run_record(lengths=lengths))
        assert score([str(tmp_path / name)]) == 0
    content = write("rouge", {name: tmp_path / name for name in ("all", "one")}, "all")
    (row,) = table(content, "Longest maxlen against the shortest, by part")
    assert row["part: task, template, maxlen"] == "all: plos, instruct, 60 to 200"
    means = {one.maxlen: one.metrics["rougeLsum"].value for one in model_results(tmp_path / "all")}
    assert row["difference"].startswith(f"{100 * (means[200] - means[60]):+.2f} [")
    # Every document is better: 2 / 2^8, of one test.
    assert (row["metric"], row["n"], row["p"], row["corrected"]) == ("RLsum", "8", "0.008", "0.008")
    assert row["wins/ties/losses"] == "8/0/0"
    assert float(row["detectable"]) > 0
    useful = table(content, "Useful length, by part")
    assert [(one["part: task, template"], one["system"]) for one in useful] == [
        ("all: plos, instruct", "model"),
        ("all: plos, instruct", "visible oracle"),
    ]
    assert useful[0]["useful length"].endswith("200+]"), "eight documents do not settle it"


def test_runs_on_other_examples_are_named_and_not_compared(tmp_path: Path) -> None:
    folders = {"one": answers(tmp_path / "a", 12), "two": tmp_path / "b"}
    write_run(folders["two"], lambda line, maxlen: "a", [example_line(index + 1) for index in range(8)])
    assert score([str(folders["two"])]) == 0
    content = write("rouge", folders, "one")
    assert any(block.startswith("`two` is not compared with `one`: examples differ") for block in content.blocks)
    assert "**Differences from one**" not in content.blocks


def test_repeated_4_grams_by_hand() -> None:
    assert repeated_share("a b c") is None
    assert repeated_share("a b c d") == 0
    # Of the runs abcd bcda cdab dabc abcd, the last stands there before.
    assert repeated_share("A b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_share("a a a a a a a") == pytest.approx(3 / 4)


def test_repetition_stands_beside_length_and_scores(tmp_path: Path) -> None:
    folders = {"plain": answers(tmp_path / "a", 8), "again": answers(tmp_path / "b", 8, repeats=3)}
    content = write("repetition", folders, "plain")
    plain, again, *_ = table(content, "Repetition and scores")
    shares = [repeated_share(json.loads(line)["text"]) for line in (tmp_path / "b/predictions.jsonl").open()]
    mean = 100 * sum(share for share in shares if share is not None) / len(shares)
    assert float(again["repeated 4-grams"].split()[0]) == pytest.approx(mean, abs=0.01)
    assert float(plain["repeated 4-grams"].split()[0]) < mean
    assert (plain["words"], again["words"]) == ("8.1", "24.4")
    rows = table(content, "Repeated 4-grams, difference from plain")
    assert all(row["difference"].startswith("+") and row["p"] == "0.008" for row in rows)
    assert "verdict" not in rows[0]
    assert table(content, "Differences from plain")[0]["metric"] == "RLsum"


def test_costs_are_means_and_shares_of_the_reference(tmp_path: Path) -> None:
    folders = {"full": measured(tmp_path / "a", EQUAL, 2000), "local": measured(tmp_path / "b", EQUAL, 500)}
    content = write("cost", folders, "full")
    full, local = table(content, "Cost")
    assert (full["attn TFLOP"], full["prefill s"], full["decode s"]) == ("2.000", "4,000.00", "-")
    assert (local["attn TFLOP"], local["prefill s"]) == ("0.500 (25.0%)", "1,000.00 (25.0%)")
    # Shares are of the documents that both have, whatever others cost.
    some = measured(tmp_path / "d", EQUAL[:6], 500)
    lines = read_lines(DocumentLoss, some / "predictions.jsonl")
    more = replace(lines[0], id="alone", attention_flops=3 * 10**12)
    RunFolder(some).write_lines("predictions.jsonl", [*lines, more])
    _, part = table(write("cost", {"full": folders["full"], "some": some}, "full"), "Cost")
    assert (part["n"], part["shared"], part["cache MiB"]) == ("7", "6", "0.5 (25.0%)")
    assert part["attn TFLOP"] == f"{(6 * 0.5 + 3) / 7:.3f} (25.0%)"
    run = answers(tmp_path / "c", 5)
    (short, _) = table(write("cost", {"run": run}, "run"), "Cost")
    assert (short["prefill s"], short["decode s"]) == ("2.00", "1.00")


def test_seconds_of_a_server_are_no_share_of_the_reference(tmp_path: Path) -> None:
    local, server = answers(tmp_path / "a", 5), answers(tmp_path / "b", 5)
    RunFolder(server).write_json("run.json", run_record(engine={"name": "vllm"}))
    lines = read_lines(Prediction, server / "predictions.jsonl")
    unknown = dict.fromkeys(("cache_bytes", "attention_flops", "peak_bytes", "decode_seconds"))
    RunFolder(server).write_lines("predictions.jsonl", [replace(line, **unknown) for line in lines])
    content = write("cost", {"local": local, "server": server}, "local")
    rows = {row["part"]: row for row in table(content, "Cost")}
    assert rows["server"]["prefill s"] == "2.00"
    assert {rows["server"][name] for name in ("attn TFLOP", "cache MiB", "decode s")} == {"-"}
    said = "Seconds were taken in different ways and do not compare"
    assert [block for block in content.blocks if block.startswith(said)]
    alike = write("cost", {"local": local, "again": local}, "local")
    assert table(alike, "Cost")[1]["prefill s"] == "2.00 (100.0%)"
    assert not [block for block in alike.blocks if block.startswith(said)]


def test_charts_whose_titles_look_alike_have_files_of_their_own() -> None:
    section = Section(number=3, kind="placements", title="Ä", parts=("a.b", "a-b"))
    content = Draft(section=section, folders={}, records={})
    for part in content.section.parts:
        content.chart(part, f"Of {part}", {})
    assert list(content.charts) == ["placements-3-a-b", "placements-3-a-b-more"]
    assert content.blocks[1] == "![Of a-b](plots/placements-3-a-b-more.svg)"


def trained(folder: Path, losses: Mapping[int, float], seconds: Sequence[float], **changes: Any) -> Path:
    """Write a training with these held-out losses by step, and a step of each of these times."""
    identity = TrainingIdentity(
        task=["plos"],
        model=ModelRecord(reference="tiny", source="folder"),
        plan=None,
        dtype="float32",
        objective="lm",
        maxlen=300,
        limit=None,
        held_out=0.1,
        held_out_limit=4,
        truncation="head",
        extend_positions=None,
        schedule="cosine",
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        lora_rank=0,
        seed=0,
        batch_size=1,
        lora_alpha=16,
        lora_targets=[],
        learning_rate=1e-4,
        warmup_steps=0,
        total_steps=len(seconds),
        step_rows=1,
        packing=False,
        threads=1,
    )
    record = TrainingRecord(
        config={},
        plan_description="full",
        identity=identity,
        tasks={"plos": TrainingTask(source={}, split="train", version=1, prompt_sha256="0")},
        num_train_examples=8,
        num_held_out_examples=3,
        held_out_documents={"plos": ["a", "b", "c"]},
        num_held_out_rows=2,
        peak_bytes=3 * 2**29,
        sessions=run_record().sessions,
    )
    run = RunFolder(folder)
    run.write_json("run.json", replace(record, **changes))
    rates: dict[str, Any] = {"loss": 1.0, "grad_norm": None, "learning_rate": 1e-4, "num_targets": 600}
    steps = [TrainingStep(step=i, seconds=value, num_tokens=600, **rates) for i, value in enumerate(seconds, start=1)]
    run.write_lines("steps.jsonl", steps)
    evals = [Evaluation(step=i, loss=loss, perplexity=None, num_targets=9, seconds=1.0) for i, loss in losses.items()]
    run.write_lines("evals.jsonl", evals)
    return folder


def test_trainings_are_set_beside_the_reference_at_each_step(tmp_path: Path) -> None:
    folders = {
        "full": trained(tmp_path / "a", {0: 3.0, 2: 2.5, 4: 2.25}, [2.0, 1.0, 4.0, 1.5]),
        "local": trained(tmp_path / "b", {0: 3.125, 2: 2.375, 3: 2.4375}, [1.0, 0.5, 0.75], plan_description="local"),
    }
    content = write("training", folders, "full")
    assert table(content, "Held-out loss by step") == [
        {"step": "0", "full": "3.0000", "local": "3.1250 (+0.1250)"},
        {"step": "2", "full": "2.5000", "local": "2.3750 (-0.1250)"},
        {"step": "3", "full": "", "local": "2.4375"},
        {"step": "4", "full": "2.2500", "local": ""},
    ]
    full, local = table(content, "Trainings")
    assert full == {"part": "full", "spans": "`full`", "steps": "4", "tokens": "2,400", "s/step, median": "1.75"} | {
        "peak GiB": "1.50",
        "rows held out": "2",
        "lowest loss": "2.2500",
        "at step": "4",
    }
    assert [local[name] for name in ("spans", "s/step, median", "lowest loss", "at step")] == [
        "`local`",
        "0.75",
        "2.3750",
        "2",
    ]
    assert list(content.charts) == ["training-2-a-title-loss"]
    assert not any("holds out other documents" in block for block in content.blocks)
    folders["other"] = trained(tmp_path / "c", {0: 1.0, 2: 0.5}, [1.0], held_out_documents={"plos": ["a", "c"]})
    content = write("training", folders, "full")
    assert "`other` holds out other documents than `full`: their losses do not compare." in content.blocks
    first = table(content, "Held-out loss by step")[0]
    assert (first["local"], first["other"]) == ("3.1250 (+0.1250)", "1.0000")
    (chart,) = content.charts.values()
    assert chart["title"]["text"] == ["Local: +0.1250 nats at step 0, -0.1250 at step 2"]


def test_a_chart_names_its_parts_and_draws_the_intervals_that_are_known() -> None:
    points: list[dict[str, Any]] = [
        {"name": "reference", "share": 1.0, "ratio": 1.0, "low": None, "high": None},
        {"name": "local", "share": 0.3, "ratio": 1.1, "low": 1.05, "high": 1.15},
    ]
    spec = ratio_chart(points, "Ratio")
    _, intervals, dots, names = spec["layer"]
    assert (intervals["data"]["values"], dots["data"]["values"]) == (points[1:], points)
    assert (intervals["encoding"]["y"]["field"], intervals["encoding"]["y2"]["field"]) == ("low", "high")
    assert (names["encoding"]["text"], names["data"]["values"]) == ({"field": "name"}, points)
    assert spec["title"]["text"] == ["Local: +10.0% perplexity for 30% of the attention"]
    assert spec["title"]["subtitle"] == "Lower is better; beside reference"
    assert len(ratio_chart(points[:1], "Ratio")["layer"]) == 3


def test_titles_state_what_the_numbers_of_a_chart_show() -> None:
    names = ("full", "chosen", "rule", "random", "random", "random")
    ratios = (1.0, 1.026, 1.146, 1.150, 1.118, 1.144)
    points = [
        {"name": name, "share": 0.5, "ratio": ratio, "low": None, "high": None}
        for name, ratio in zip(names, ratios, strict=True)
    ]
    assert strip_chart(points, "Ratio")["title"]["text"] == ["Chosen: +2.6% perplexity", "Random: +11.8% to +15.0%"]
    losses = {"full": {0: 3.0, 6: 2.5, 12: 2.25}, "local": {0: 3.5, 12: 2.5}, "late": {6: 2.0}, "none": {}}
    curves = loss_chart(losses, "full")
    assert curves["title"]["text"] == ["Local: +0.5000 nats at step 0, +0.2500 at step 12"]
    assert [row["label"] for row in curves["layer"][-1]["data"]["values"]] == ["late", "full", "local"]
    scores = {"full": {1024: 0.304, 4096: None, 8192: 0.284}, "one": {1024: 0.3}, "oracle": {1024: 0.4, 8192: 0.5}}
    title = length_title(scores)
    assert title["text"] == ["Full: 30.4 to 28.4 from 1,024 to 8,192 tokens", "Oracle: 40.0 to 50.0"]
    assert title["subtitle"] == "Higher is better"


def test_charts_call_parts_by_their_labels(tmp_path: Path) -> None:
    folders = {
        "full": trained(tmp_path / "a", {0: 3.0, 2: 2.5}, [2.0, 1.0]),
        "local": trained(tmp_path / "b", {0: 3.125, 2: 2.375}, [1.0, 0.5], plan_description="local"),
    }
    content = write("training", folders, "full", labels={"local": "spans alone"})
    (chart,) = content.charts.values()
    assert chart["title"]["text"] == ["Spans alone: +0.1250 nats at step 0, -0.1250 at step 2"]
    assert table(content, "Held-out loss by step")[0].keys() == {"step", "full", "local"}
