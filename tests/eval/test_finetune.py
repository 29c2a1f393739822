"""Training end to end on a random tiny model: it learns, resumes to the bit, and what it writes is what runs."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from peft import PeftModel
from transformers import AutoModelForCausalLM

from eval import run
from eval.config.finetune import TrainConfig
from eval.finetune import main
from eval.training.sequences import Batch
from eval.training.trainer import Trainer, learning_rate_at
from tests.helpers.run_folders import model_results
from tests.helpers.tiny_models import save_tiny_checkpoint

ROOT = Path(__file__).parents[2]
TEXT = "long documents hold many words and every word costs a token of context to read"
WORDS = TEXT.split()
PLANS = [
    "full",
    "local span=24 sinks=2",
    "local block=32 previous=1 sinks=1",
    "full@1 span=24 sinks=2",
    "full@0.1,1 span=24 sinks=2",
]
COMPARED = {
    "steps.jsonl": ("step", "loss", "grad_norm", "learning_rate", "num_tokens"),
    "evals.jsonl": ("step", "loss"),
}


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Let each test set up accelerate anew, whose state belongs to the process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def text(seed: int, num_words: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * (seed + 3)) % len(WORDS)] for i in range(num_words))


def write_rows(file: Path, count: int, **changes: Any) -> Path:
    rows = [{"article": text(i, 12 + 5 * i), "abstract": text(i + 50, 4), **changes} for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", 12)


@pytest.fixture
def least(model: Path, data: Path, tmp_path: Path) -> list[str]:
    """Arguments of a training that works."""
    arguments = (
        f"--task arxiv --model {model} --data {data} --maxlen 400 --threads 1 --learning-rate 1e-3 --max-steps 6"
    )
    return [*arguments.split(), "--held-out", "0.2", "--eval-every", "2", "--output", str(tmp_path / "run")]


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return what does not differ between two trainings that are the same: all but times."""
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: line[key] for key in COMPARED[name]} for line in found]


def launch(arguments: list[str], *launcher: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))} | environment
    command = ["-m", "accelerate.commands.accelerate_cli", "launch", "-q", *launcher, "eval/finetune.py", *arguments]
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("plan", [*(pytest.param(one, marks=pytest.mark.nightly) for one in PLANS[:3]), *PLANS[3:]])
def test_two_examples_are_memorized_under_every_kind_of_plan_and_written_again(
    plan: str, model: Path, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "two.jsonl", 2)
    common = f"--task arxiv --model {model} --data {file} --maxlen 400 --threads 1".split()
    steps = ["--max-steps", "150", "--learning-rate", "1e-2", "--held-out", "0", "--eval-every", "150"]
    trained = tmp_path / "trained"
    assert main([*common, *steps, "--plan", plan, "--output", str(trained)]) == 0
    assert lines(trained, "steps.jsonl")[-1]["loss"] < 0.01
    arguments = f"--task arxiv --model {trained}/best --data {file} --maxlen 400 --max-new-tokens 40 --threads 1"
    assert run.main([*arguments.split(), "--output", str(tmp_path / "scored")]) == 0
    record = json.loads((tmp_path / "scored" / "run.json").read_text())
    assert record["plan_description"].replace(" sinks=0", "") == plan
    (result,) = model_results(tmp_path / "scored")
    assert result.metrics["rouge1"].mean == 1
    predictions = [json.loads(line) for line in (tmp_path / "scored" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["text"], line["finish_reason"]) for line in predictions] == [
        (text(50, 4), "stop"),
        (text(51, 4), "stop"),
    ]


def test_a_training_leaves_logs_checkpoints_and_a_report(least: list[str], tmp_path: Path) -> None:
    assert main([*least, "--plan", PLANS[3]]) == 0
    folder = tmp_path / "run"
    steps = lines(folder, "steps.jsonl")
    assert [line["step"] for line in steps] == list(range(1, 7))
    assert [line["step"] for line in lines(folder, "evals.jsonl")] == [0, 2, 4, 6]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        (folder / name).resolve().name for name in ("best", "last")
    }
    assert (folder / "last").resolve().name == "step-000006"
    best = min(lines(folder, "evals.jsonl")[1:], key=lambda line: line["loss"])["step"]
    assert (folder / "best").resolve().name == f"step-{best:06}"
    record = json.loads((folder / "run.json").read_text())
    assert record["num_train_examples"] == 10
    assert len(record["held_out_documents"]["arxiv"]) == 2
    assert record["sessions"][0]["finished"]
    report = (folder / "report.md").read_text()
    assert "![loss, learning rate and gradient norm by step](curves.svg)" in report
    assert report.count("| best |") == 1
    assert (folder / "curves.svg").read_text().count("<path") > 10


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], marks=pytest.mark.nightly),
        ["--lora-rank", "2"],
        ["--no-packing", "--gradient-accumulation", "2"],
        ["--model", "gpt2"],
    ],
    ids=["all weights", "lora", "accumulation", "dropout"],
)
def test_a_resumed_training_has_the_losses_of_an_undisturbed_one(
    extra: list[str], least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "gpt2" in extra:
        # An architecture with dropout, whose random numbers have to go on where they were.
        gpt2 = save_tiny_checkpoint(tmp_path / "gpt2", kind="gpt2")
        assert AutoModelForCausalLM.from_pretrained(gpt2).config.resid_pdrop == 0.1
        extra = ["--model", str(gpt2)]
    whole = [*least[:-1], str(tmp_path / "whole"), *extra]
    assert main(whole) == 0
    original = Trainer.step

    def interrupted(trainer: Trainer, number: int, *arguments: Any) -> dict[str, Any]:
        if number == 6:
            raise KeyboardInterrupt
        return original(trainer, number, *arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert main([*least, *extra]) == 130
    assert [line["step"] for line in lines(tmp_path / "run", "steps.jsonl")] == [1, 2, 3, 4, 5]
    assert (tmp_path / "run" / "last").resolve().name == "step-000004"
    monkeypatch.setattr(Trainer, "step", original)
    assert main([*least, *extra, "--resume"]) == 0
    for name in COMPARED:
        assert lines(tmp_path / "run", name) == lines(tmp_path / "whole", name)
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "last").state_dict() for name in ("run", "whole")
    )
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]) == 2


def test_a_training_killed_at_any_moment_resumes_to_the_bit(least: list[str], tmp_path: Path) -> None:
    longer = [argument if argument != "6" else "40" for argument in least]
    process = subprocess.Popen(
        [sys.executable, "eval/finetune.py", *longer], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = tmp_path / "run" / "steps.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 7) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 7 <= len(log.read_text().splitlines()) < 40
    assert main([*longer, "--resume"]) == 0
    assert main([*longer[:-1], str(tmp_path / "whole")]) == 0
    for name in COMPARED:
        assert lines(tmp_path / "run", name) == lines(tmp_path / "whole", name)


@pytest.mark.parametrize("extra", [[], ["--gradient-checkpointing"], ["--dtype", "bfloat16"]])
def test_accumulation_changes_how_a_step_is_computed_and_not_what_it_is(
    extra: list[str], least: list[str], tmp_path: Path
) -> None:
    assert main([*least[:-1], str(tmp_path / "four"), "--batch-size", "4"]) == 0
    AcceleratorState._reset_state(True)
    assert main([*least, "--batch-size", "2", "--gradient-accumulation", "2", *extra]) == 0
    tolerance = 0.02 if "bfloat16" in extra else 1e-4
    for one, other in zip(lines(tmp_path / "four", "steps.jsonl"), lines(tmp_path / "run", "steps.jsonl"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.2 if "bfloat16" in extra else 1e-3)


def test_a_training_killed_before_its_first_checkpoint_begins_anew(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step

    def interrupted(trainer: Trainer, number: int, *arguments: Any) -> dict[str, Any]:
        if number == 2:
            raise KeyboardInterrupt
        return original(trainer, number, *arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert main(least) == 130
    monkeypatch.setattr(Trainer, "step", original)
    assert main([*least, "--resume"]) == 0
    assert [line["step"] for line in lines(tmp_path / "run", "steps.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(tmp_path / "run", "evals.jsonl")] == [0, 2, 4, 6]


def test_a_tracker_gets_the_losses(least: list[str], tmp_path: Path) -> None:
    assert main([*least, "--report-to", "tensorboard"]) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*.0")
    found = EventAccumulator(str(events.parent)).Reload()
    steps = lines(tmp_path / "run", "steps.jsonl")
    assert [event.step for event in found.Scalars("train/loss")] == [line["step"] for line in steps]
    assert [event.value for event in found.Scalars("train/loss")] == pytest.approx([line["loss"] for line in steps])
    assert [event.step for event in found.Scalars("held_out/loss")] == [0, 2, 4, 6]


def test_two_processes_train_what_one_does_with_the_same_global_batch(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*least, "--batch-size", "2"]) == 0
    one = capsys.readouterr().out
    shared = [*least[:-1], str(tmp_path / "two")]
    layout = ["--config_file", "configs/accelerate/cpu_two_processes.yaml", "--main_process_port", "0"]
    two = launch(shared, *layout, ACCELERATE_USE_CPU="true")
    assert two.returncode == 0, two.stderr
    # Sums are taken in another order, in float32.
    for name in COMPARED:
        for ours, theirs in zip(lines(tmp_path / "run", name), lines(tmp_path / "two", name), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert ours["step"] == theirs["step"]
    assert two.stdout.count("held-out loss") == one.count("held-out loss")


def test_merged_adapters_compute_what_the_adapters_do(least: list[str], model: Path, tmp_path: Path) -> None:
    for kind in ("llama", "gpt2"):
        base = save_tiny_checkpoint(tmp_path / kind, kind=kind)
        out = tmp_path / f"{kind}-run"
        arguments = [*least[:-1], str(out), "--model", str(base), "--lora-rank", "3", "--plan", PLANS[1]]
        assert main([*arguments, "--learning-rate", "1e-2"]) == 0
        merged = AutoModelForCausalLM.from_pretrained(out / "last").eval()
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / "last" / "adapter").eval()
        untouched = AutoModelForCausalLM.from_pretrained(base).eval()
        tokens = torch.arange(3, 60)[None]
        with torch.no_grad():
            found, expected = merged(tokens).logits, adapted(tokens).logits
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(expected, untouched(tokens).logits, atol=1e-2)
        record = json.loads((out / "run.json").read_text())
        assert 0 < record["num_trainable"] < record["num_parameters"] / 4
        AcceleratorState._reset_state(True)


def test_documents_of_texts_are_trained_on_whole(least: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(text(number, 150))
    arguments = [*least, "--task", "text", "--data", str(folder), "--objective", "lm", "--maxlen", "300"]
    assert main(arguments) == 0
    evals = lines(tmp_path / "run", "evals.jsonl")
    assert evals[-1]["loss"] < evals[0]["loss"]


def test_positions_are_extended_when_asked_for(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = [*least, "--maxlen", "3000", "--max-steps", "1"]
    expect_error(longer, capsys, "maxlen 3000 is beyond the 2048 positions", "--extend-positions yarn or linear")
    assert main([*longer, "--extend-positions", "yarn"]) == 0
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "last").config
    assert (config.max_position_embeddings, config.rope_parameters["rope_type"]) == (3000, "yarn")
    gpt2 = save_tiny_checkpoint(tmp_path / "gpt2", kind="gpt2")
    table = [*longer[: longer.index("--output")], "--model", str(gpt2), "--maxlen", "3000", "--max-steps", "1"]
    assert main([*table, "--extend-positions", "copy", "--output", str(tmp_path / "table")]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "table" / "last").config.n_positions == 3000


def expect_error(arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Assert that a training ends with status 2 and one line that holds the parts."""
    capsys.readouterr()
    assert main(arguments) == 2
    found = capsys.readouterr().err.splitlines()
    errors = [line for line in found if line.startswith("error: ")]
    assert len(errors) == 1, found
    assert not any("Traceback" in line for line in found)
    for part in parts:
        assert part in errors[0], errors[0]


@pytest.mark.usefixtures("no_weights")
def test_wrong_input_is_one_line_before_weights_load(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_data = [*least[: least.index("--data")], *least[least.index("--data") + 2 :]]
    long = write_rows(tmp_path / "long.jsonl", 3, abstract="zebra " * 100)
    for arguments, parts in (
        ([*without_data, "--task", "plos"], ("'plos' has no training split", "it has test", "--data")),
        ([*least, "--data", str(long)], ("the target of train-", "does not fit", "more than maxlen 400")),
        ([*least, "--lora-rank", "2", "--lora-targets", "q_proj", "nope"], ("'nope'", "no linear layer", "k_proj")),
        ([*least, "--lora-rank", "2", "--lora-targets", "lm_head"], ("'lm_head'", "no linear layer of its decoder")),
        ([*least, "--objective", "lm", "--maxlen", "1"], ("maxlen 1 leaves nothing to predict",)),
        ([*least, "--lora-targets", "q_proj"], ("need --lora-rank",)),
        ([*least, "--learning-rate", "0"], ("--learning-rate: 0 must be above 0",)),
        ([*least, "--learning-rate", "2"], ("--learning-rate 2 is above 1",)),
        ([*least, "--held-out", "1"], ("--held-out: 1 must be at least 0 and below 1",)),
        ([*least, "--report-to", "nope"], ("--report-to nope is no tracker", "tensorboard")),
        ([*least, "--report-to", "clearml"], ("--report-to clearml: its package is not installed",)),
        ([*least, "--resume"], ("holds no training", "leave --resume out")),
        ([*least, "--resume", str(tmp_path)], ("names the folder to go on in; leave --output out",)),
        ([*least[:-2], "--resume", str(tmp_path)], ("is no training folder",)),
        ([*least, "--dtype", "float16"], ("float16 trains on a GPU alone",)),
        ([*least, "--task", "text"], ("'text' has no targets", "--objective lm")),
        ([*least, "--split", "dev"], ("'arxiv' has no split 'dev'",)),
        ([*least, "--extend-positions", "copy", "--maxlen", "9000"], ("no learned table",)),
    ):
        expect_error(arguments, capsys, *parts)
        AcceleratorState._reset_state(True)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_training_is_refused_and_left_as_it_was(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(least) == 0
    folder = tmp_path / "run"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    other = save_tiny_checkpoint(tmp_path / "other", rms_norm_eps=1e-3)
    expect_error(least, capsys, "holds a training; add --resume")
    for arguments, part in (
        (["--model", str(other)], "model files config.json is"),
        (["--plan", "local span=32"], "plan is null there"),
        (["--max-steps", "7"], "total_steps is 6 there and 7 now"),
        (["--learning-rate", "1e-4"], "learning_rate is 0.001 there and 0.0001 now"),
        (["--batch-size", "2"], "batch_size is 1 there and 2 now"),
        (["--task", "pubmed"], 'task is ["arxiv"] there and ["pubmed"] now'),
    ):
        expect_error([*least, *arguments, "--resume"], capsys, "holds another run", part)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    model_only = folder / "checkpoints" / "step-000001"
    model_only.mkdir()
    expect_error([*least[:-2], "--resume", str(model_only)], capsys, "holds no state/")


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._loss

    def breaking(trainer: Trainer, batch: Batch) -> torch.Tensor:
        loss = original(trainer, batch)
        return loss * torch.nan if (tmp_path / "run" / "last").exists() and trainer.model.training else loss

    monkeypatch.setattr(Trainer, "_loss", breaking)
    expect_error(least, capsys, "the loss is nan at step 3 on train-", "the last checkpoint is kept")
    last = tmp_path / "run" / "last"
    assert last.resolve().name == "step-000002"
    assert (last / "model.safetensors").is_file()
    assert [line["step"] for line in lines(tmp_path / "run", "steps.jsonl")] == [1, 2]
    monkeypatch.setattr(Trainer, "_loss", original)
    assert main([*least, "--resume"]) == 0


def test_weights_that_are_no_numbers_are_refused(
    least: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = AutoModelForCausalLM.from_pretrained(model)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    shutil.copytree(model, tmp_path / "broken")
    broken.save_pretrained(tmp_path / "broken")
    expect_error(
        [*least, "--model", str(tmp_path / "broken")],
        capsys,
        "gives logits that are no numbers; its weights are broken",
    )


def test_a_held_out_loss_that_is_no_number_is_never_a_checkpoint(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._loss

    def breaking(trainer: Trainer, batch: Batch) -> torch.Tensor:
        loss = original(trainer, batch)
        return loss * torch.nan if (tmp_path / "run" / "last").exists() and not trainer.model.training else loss

    monkeypatch.setattr(Trainer, "_loss", breaking)
    expect_error(least, capsys, "the held-out loss is nan after step 4", "the last checkpoint before it is kept")
    assert {(tmp_path / "run" / name).resolve().name for name in ("best", "last")} == {"step-000002"}


def test_going_on_from_an_earlier_checkpoint_makes_it_the_last(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of equal losses the first is the best, so that the checkpoint of step 2 is kept.
    monkeypatch.setattr(
        Trainer, "evaluate", lambda *_: {"loss": 1.0, "perplexity": 2.7, "num_targets": 1, "seconds": 0}
    )
    assert main(least) == 0
    folder = tmp_path / "run"
    whole = lines(folder, "steps.jsonl")
    assert [(folder / name).resolve().name for name in ("best", "last")] == ["step-000002", "step-000006"]
    original = Trainer.step

    def interrupted(trainer: Trainer, number: int, *arguments: Any) -> dict[str, Any]:
        if number == 4:
            raise KeyboardInterrupt
        return original(trainer, number, *arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)
    from_best = [*least[: least.index("--output")], "--resume", str(folder / "best")]
    assert main(from_best) == 130
    assert (folder / "last").resolve().name == "step-000002"
    monkeypatch.setattr(Trainer, "step", original)
    assert main([*least, "--resume"]) == 0
    assert lines(folder, "steps.jsonl") == whole
    assert (folder / "last").resolve().name == "step-000006"


def test_a_folder_copied_without_its_links_says_what_to_give(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(least) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "copied", symlinks=False)
    expect_error([*least[:-1], str(tmp_path / "copied"), "--resume"], capsys, "last is a copy and not a link")
    (tmp_path / "run" / "last").unlink()
    (tmp_path / "run" / "last").symlink_to("checkpoints/step-000099")
    expect_error([*least, "--resume"], capsys, "last names a checkpoint that is not there")


def test_a_full_disk_leaves_the_checkpoint_before(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(trainer: Trainer, number: int, *arguments: Any) -> dict[str, Any]:
        if number == 4:
            # Files may grow no further than this: what a full disk does to large ones.
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        return original(trainer, number, *arguments)

    monkeypatch.setattr(Trainer, "step", filling)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        expect_error(least, capsys, "the checkpoint of step 4 cannot be written", "step 2, is whole", "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    folder = tmp_path / "run"
    assert (folder / "last").resolve().name == "step-000002"
    assert not list((folder / "checkpoints").glob(".*"))
    monkeypatch.setattr(Trainer, "step", original)
    assert main([*least, "--resume"]) == 0
    assert (folder / "last").resolve().name == "step-000006"


def test_fsdp_on_a_cpu_is_refused(least: list[str], tmp_path: Path) -> None:
    done = launch(least, ACCELERATE_USE_FSDP="true", ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert "FSDP was asked for on a CPU, where accelerate trains with DDP without a word" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(step, 1.0, 4, 20, "cosine") for step in range(1, 21)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == max(rates) == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.02
    assert learning_rate_at(20, 1.0, 4, 20, "constant") == 1.0
    assert learning_rate_at(13, 1.0, 4, 20, "linear") == pytest.approx(8 / 16)


def test_every_flag_is_a_setting_and_every_setting_a_flag() -> None:
    flags = {action.dest for action in TrainConfig.build_parser()._actions} - {"help", "config"}
    assert flags == {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "finetune").glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_config_loads(file: Path) -> None:
    assert TrainConfig.from_command_line(["--config", str(file)]).task
