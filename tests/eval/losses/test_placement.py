"""The search for a placement end to end, on a random tiny model and made-up texts."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eval.config.placement import PlacementConfig
from eval.losses.placement_job import open_placement
from eval.losses.windows import losses_of
from eval.placement import main
from eval.runtime.model import open_model
from eval.runtime.processes import start_accelerated
from masformer import SpanPlan, apply_plan
from masformer.checkpoints.open import Checkpoint
from masformer.convert import read_plan
from masformer.placement import PlanMeter, gate_gradients
from tests.helpers.texts import WORDS, read, text
from tests.helpers.tiny_models import add_word

ROOT = Path(__file__).resolve().parents[3]
# Under this span, of this model, layer 1 helps by seeing everything, and the others do harm.
LOCAL = "span=1 sinks=0"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for seed, length in enumerate((60, 80, 100, 5, 90, 70, 75, 85, 95)):
        (folder / f"{seed}.txt").write_text(text(seed, length, WORDS[:13]))
    return folder


@pytest.fixture
def least(model: Path, data: Path, tmp_path: Path) -> list[str]:
    """Arguments of a search that works: documents 0 and 1 calibrate."""
    arguments = f"--task text --data {data} --model {model} --maxlen 48 --limit 2 --threads 1 --budget layers=1"
    return [*arguments.split(), "--local", LOCAL, "--output", str(tmp_path / "run")]


@pytest.fixture
def judged(least: list[str]) -> list[str]:
    """Arguments of a search whose plans are judged on the seven other documents that are long enough."""
    split = next(iter(PlacementConfig.from_command_line(least).tasks["text"].splits))
    return [*least, "--held-out-split", split, "--random", "2", "--measure", "top:1 span=8 sinks=0"]


def token_ids_of(arguments: list[str]) -> list[tuple[str, Sequence[int]]]:
    """Return name and tokens of each document that a search reads."""
    config = PlacementConfig.from_command_line(arguments)
    opened = open_model(config, "full", start_accelerated(1), config.maxlen)
    return [(one.id, one.token_ids) for one in open_placement(config, opened).texts]


@torch.no_grad()
def test_a_search_finds_the_best_layer_and_judges_it_on_others(
    judged: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(judged) == 0
    found, lines = read(tmp_path / "run", "placement.json"), read(tmp_path / "run", "measurements.jsonl")
    alone = {entry["text"]: entry["loss"] for entry in found["found"] if len(entry["units"]) == 1}
    assert len(alone) == 3
    assert found["chosen"]["loss"] == min(alone.values())
    assert [score["unit"] for score in found["scores"]] == ["0", "1", "2"]
    assert all(score["only_local"] is not None for score in found["scores"])
    assert {line["id"] for line in lines if line["part"] == "calibration"} == {"0.txt", "1.txt"}
    # Document 3 is too short.
    assert {line["id"] for line in lines if line["part"] == "held-out"} == {f"{n}.txt" for n in (2, 4, 5, 6, 7, 8)}
    names = [row["name"] for row in found["held_out"]]
    assert names == ["full", "local", "top:1 span=8 sinks=0", "found", "random 1", "random 2"]
    assert found["chosen"]["units"] == ["1"]
    by_name = {row["name"]: row for row in found["held_out"]}
    assert by_name["found"]["plan"] == found["chosen"]["text"] == f"full@1 {LOCAL}"
    # The other two placements of one layer.
    assert {by_name[f"random {n}"]["plan"] for n in (1, 2)} == {f"full@0 {LOCAL}", f"full@2 {LOCAL}"}
    assert by_name["full"]["to_full"] is None
    ratio = by_name["found"]["perplexity"] / by_name["full"]["perplexity"]
    assert by_name["found"]["to_full"]["ratio"] == pytest.approx(ratio)
    # Each plan once: the local one, full attention, three with one full layer, three with one local layer.
    assert len(found["found"]) == len({entry["text"] for entry in found["found"]}) == 8
    assert all(row["num_documents"] == 6 and row["low"] < row["perplexity"] < row["high"] for row in found["held_out"])
    # Each loss is that of the model itself under the plan.
    checkpoint = AutoModelForCausalLM.from_pretrained(model).eval()
    documents = dict(token_ids_of(judged))
    for line in lines[::5]:
        apply_plan(checkpoint, SpanPlan.parse(line["plan"], 3))
        losses, _ = losses_of(checkpoint, documents[line["id"]])
        assert line["negative_log_likelihood"] == pytest.approx(float(losses[23:].sum()), rel=1e-5)
        assert line["num_tokens"] == 24
    # The plan is one that `--plan` takes.
    plan = read_plan(str(tmp_path / "run" / "plan.json"), checkpoint.config)
    assert str(plan) == found["chosen"]["text"]
    report = (tmp_path / "run" / "report.md").read_text()
    assert found["chosen"]["text"] in report
    for name in ("units", "frontier", "held-out"):
        assert (tmp_path / "run" / "plots" / f"{name}.svg").exists()
        assert f"plots/{name}.svg" in report
    assert "On held-out documents" in capsys.readouterr().out


def test_plans_are_judged_over_clusters_of_documents(model: Path, tmp_path: Path, no_plots: None) -> None:
    rows = [{"context": text(index, 60, WORDS[:13]), "target": "x"} for index in range(12)]
    found = {}
    # Clusters of one say what documents by themselves say; of clusters of three there are too few for an interval.
    for name, size in (("alone", None), ("ones", 1), ("twos", 2), ("threes", 3)):
        data, output = tmp_path / f"{name}.jsonl", tmp_path / name
        books = [row | {"book": index // (size or 1)} for index, row in enumerate(rows)]
        data.write_text("".join(f"{json.dumps(row)}\n" for row in books))
        arguments = f"--task custom --data {data} --model {model} --maxlen 48 --rank none --held-out-split test"
        clusters = ["--cluster-field", "book"] if size else []
        measured = ["--measure", "full", f"local {LOCAL}", "--threads", "1", "--output", str(output)]
        assert main([*arguments.split(), *clusters, *measured]) == 0
        full, local = read(output, "placement.json")["held_out"]
        found[name] = (full["low"], full["high"], local["to_full"]["low"], local["to_full"]["num_documents"])
        assert full["num_documents"] == local["num_documents"] == 12
    assert found["ones"] == found["alone"]
    assert all(one != other for one, other in zip(found["twos"], found["alone"], strict=True))
    assert found["twos"][-1] == 6
    assert found["threes"] == (None, None, None, 4)


def test_gates_rank_heads(least: list[str], model: Path, tmp_path: Path) -> None:
    assert main([*least, "--rank", "gates", "--units", "heads", "--candidates", "2"]) == 0
    found = read(tmp_path / "run", "placement.json")
    assert [score["unit"] for score in found["scores"]] == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]
    # The mean over the tokens of both documents.
    checkpoint = AutoModelForCausalLM.from_pretrained(model).eval()
    texts = [token_ids for _, token_ids in token_ids_of(least)]
    expected = gate_gradients(checkpoint, texts, 24, SpanPlan.parse(f"local {LOCAL}", 3))
    assert [-score["only_full"] for score in found["scores"]] == pytest.approx(expected.flatten().tolist(), rel=1e-4)
    ranked = sorted(found["scores"], key=lambda score: -score["only_full"])
    first = [entry for entry in found["found"] if len(entry["units"]) == 1]
    assert [entry["units"][0] for entry in first] == [score["unit"] for score in ranked[:2]]
    # Two heads of two are a layer, which is the budget.
    assert max(entry["cost"]["layers"] for entry in found["found"]) == 1
    assert len(found["chosen"]["units"]) <= 2


def test_what_is_measured_is_not_measured_again(
    judged: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None
) -> None:
    calls = 0
    measure = PlanMeter._loss

    def failing(self: PlanMeter, text: int, plan: SpanPlan) -> float:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return measure(self, text, plan)

    monkeypatch.setattr(PlanMeter, "_loss", failing)
    assert main(judged) == 130
    monkeypatch.setattr(PlanMeter, "_loss", measure)
    journal = tmp_path / "run" / "journal" / "00000.jsonl"
    before = journal.read_text()
    assert before.count("\n") >= 4
    journal.write_text(before + '{"task": "te')
    assert main(judged) == 0
    found = read(tmp_path / "run", "placement.json")
    written = (tmp_path / "run" / "predictions.jsonl").read_text()
    assert written.startswith(before)
    undisturbed = [*judged[:-1], judged[-1]]
    undisturbed[undisturbed.index("--output") + 1] = str(tmp_path / "other")
    assert main(undisturbed) == 0
    other = read(tmp_path / "other", "placement.json")
    assert other["chosen"]["text"] == found["chosen"]["text"]
    assert [row["perplexity"] for row in other["held_out"]] == [row["perplexity"] for row in found["held_out"]]
    # All is there: no weights load.
    monkeypatch.setattr(Checkpoint, "load_model", lambda *_: pytest.fail("weights were loaded"))
    assert main(judged) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "layers=x"], "budget 'layers=x' is none"),
        (["--budget", "flops=1%"], "--budget flops=1% leaves room for no layer"),
        (["--local", "wide"], "--local 'wide' is no span"),
        (["--local", "span=64"], "--local 'span=64' hides nothing of 48 tokens"),
        (["--score-from", "48"], "--score-from 48 must lie between 1 and maxlen 48"),
        (["--measure", "full"], "name their split with --held-out-split"),
        (["--rank", "none"], "--rank none searches nothing"),
        (["--maxlen", "500"], "no calibration document has 500 tokens"),
    ],
)
def test_bad_input_is_told_before_weights_load(
    more: list[str],
    message: str,
    least: list[str],
    no_weights: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main([*least, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_plan_to_judge_that_cannot_be_is_refused(
    judged: list[str], no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    judged[judged.index("--measure") + 1] = "bottom:9"
    assert main(judged) == 2
    assert "9 layers asked for, the model has 3" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_search(
    least: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PlanMeter, "_loss", lambda self, text, plan: math.nan)
    monkeypatch.setattr(PlanMeter, "_check_reuse", lambda self: None)
    assert main(least) == 2
    message = "losses or perplexities on document '0.txt' of task 'text', of 48 tokens are no numbers"
    assert message in capsys.readouterr().err


def test_another_model_length_or_first_token_is_refused(
    least: list[str], no_plots: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(least) == 0
    assert main([*least, "--score-from", "30"]) == 2
    assert "score_from is 24 there and 30 now" in capsys.readouterr().err


def test_plans_are_judged_without_a_search(judged: list[str], tmp_path: Path, no_plots: None) -> None:
    file = tmp_path / "heads" / "plan.json"
    file.parent.mkdir()
    file.write_text(json.dumps(SpanPlan.parse("full@0,2.1 span=8 sinks=0", 3, 2).to_json()))
    at = judged.index("--random")
    del judged[at : at + 2]
    assert main([*judged, str(file), "--rank", "none"]) == 0
    found = read(tmp_path / "run", "placement.json")
    assert found["chosen"] is None
    assert found["found"] == found["scores"] == []
    assert {row["name"]: row["plan"] for row in found["held_out"]} == {
        "top:1 span=8 sinks=0": "full@2 span=8 sinks=0",
        "heads": "full@0,2.1 span=8 sinks=0",
    }
    # All nine documents but the short one: nothing was calibrated on.
    assert all(row["num_documents"] == 8 for row in found["held_out"])


@pytest.mark.nightly
def test_two_processes_find_what_one_does(judged: list[str], tmp_path: Path, no_plots: None) -> None:
    # Each fold has its document on one of the processes alone.
    shared = [*judged, "--rank", "gates", "--units", "heads", "--folds", "2"]
    assert main(shared) == 0
    shared[shared.index("--output") + 1] = str(tmp_path / "two")
    launcher = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0", "eval/placement.py"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))}
    two = subprocess.run(
        [sys.executable, "-m", *launcher, *shared],
        cwd=ROOT,
        env=environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert two.returncode == 0, two.stderr
    assert read(tmp_path / "two", "run.json")["world_size"] == 2
    one, other = (read(tmp_path / name, "placement.json") for name in ("run", "two"))
    assert other["chosen"]["text"] == one["chosen"]["text"]
    assert [fold["chosen"]["text"] for fold in other["stability"]["folds"]] == [
        fold["chosen"]["text"] for fold in one["stability"]["folds"]
    ]
    for key in ("found", "held_out"):
        assert [row["perplexity"] for row in other[key]] == pytest.approx([row["perplexity"] for row in one[key]])


def test_a_list_of_plans_in_a_search_s_folder_keeps_what_was_found(
    judged: list[str], tmp_path: Path, no_plots: None
) -> None:
    assert main(judged) == 0
    before = read(tmp_path / "run", "placement.json")
    at = judged.index("--random")
    del judged[at : at + 2]
    assert main([*judged, "--rank", "none"]) == 0
    after = read(tmp_path / "run", "placement.json")
    assert {key: after[key] for key in ("scores", "found", "chosen")} == {
        key: before[key] for key in ("scores", "found", "chosen")
    }
    # What was calibrated on is not judged on.
    assert [(row["name"], row["num_documents"]) for row in after["held_out"]] == [("top:1 span=8 sinks=0", 6)]


def test_two_plans_of_one_name_are_refused(
    judged: list[str], tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / folder / "plan-a.json" for folder in ("one", "two")] + [tmp_path / "local.json"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(SpanPlan.parse("full@0 span=8 sinks=0", 3).to_json()))
    at = judged.index("--measure") + 1
    for names, name in ((files[:2], "plan-a"), (files[2:], "local")):
        assert main([*judged[:at], *map(str, names)]) == 2
        assert f"another plan is called '{name}' already" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["{x}", "rivers"])
@pytest.mark.usefixtures("no_weights")
def test_a_word_without_an_embedding_is_named_before_weights_load(
    word: str, least: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = add_word(Path(shutil.copytree(model, tmp_path / "model")), word)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text(f"{text(1, 60, WORDS[:13])} {word} again")
    assert main([*least, "--model", str(folder), "--data", str(tmp_path / "texts")]) == 2
    assert f"holds the token '{word}', number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_way_that_this_machine_lacks_is_told_before_the_weights_load(
    least: list[str], refuses_simd: Callable[..., None]
) -> None:
    refuses_simd("linear", lambda: main(least))
