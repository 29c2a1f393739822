"""Training end to end on a random tiny model: it learns, resumes to the bit, and what it writes is what runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from transformers import AutoModelForCausalLM

from eval import run
from eval.config.finetune import TrainConfig
from eval.finetune import main
from eval.training.sequences import Batch
from eval.training.trainer import Trainer
from masformer import remove_plan
from tests.helpers.forks import run_forked, run_ranks
from tests.helpers.run_folders import model_results
from tests.helpers.texts import text
from tests.helpers.tiny_models import save_tiny_checkpoint
from tests.helpers.trainings import COMPARED, ROOT, expect_error, launch, lines, write_rows

PLANS = [
    "full",
    "local span=24 sinks=2",
    "local block=32 previous=1 sinks=1",
    "full@1 span=24 sinks=2",
    "full@0.1,1 span=24 sinks=2",
]

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.mark.parametrize("plan", [*(pytest.param(one, marks=pytest.mark.nightly) for one in PLANS[:4]), PLANS[4]])
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


def test_a_tracker_gets_the_losses(least: list[str], tmp_path: Path) -> None:
    assert main([*least, "--report-to", "tensorboard"]) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*.0")
    found = EventAccumulator(str(events.parent)).Reload()
    steps = lines(tmp_path / "run", "steps.jsonl")
    assert [event.step for event in found.Scalars("train/loss")] == [line["step"] for line in steps]
    assert [event.value for event in found.Scalars("train/loss")] == pytest.approx([line["loss"] for line in steps])
    assert [event.step for event in found.Scalars("held_out/loss")] == [0, 2, 4, 6]


@pytest.mark.parametrize("by", ["variables", pytest.param("the launcher", marks=pytest.mark.nightly)])
def test_two_processes_train_what_one_does_with_the_same_global_batch(
    by: str, least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*least, "--batch-size", "2"]) == 0
    one = capsys.readouterr().out
    shared = [*least[:-1], str(tmp_path / "two")]
    if by == "the launcher":
        layout = ["--config_file", "configs/accelerate/cpu_two_processes.yaml", "--main_process_port", "0"]
        two = launch(shared, *layout, ACCELERATE_USE_CPU="true")
    else:
        two = run_ranks("eval.finetune", shared)
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
        assert json.loads((out / "last" / "config.json").read_text())["model_type"] == "masformer"
        merged = AutoModelForCausalLM.from_pretrained(out / "last").eval()
        assert str(merged.span_plan) == PLANS[1]
        remove_plan(merged)
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


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._losses

    def breaking(trainer: Trainer, batch: Batch) -> torch.Tensor:
        loss = original(trainer, batch)
        return loss * torch.nan if (tmp_path / "run" / "last").exists() and trainer.model.training else loss

    monkeypatch.setattr(Trainer, "_losses", breaking)
    expect_error(least, capsys, "the loss is nan at step 3 on train-", "the last checkpoint is kept")
    last = tmp_path / "run" / "last"
    assert last.resolve().name == "step-000002"
    assert (last / "model.safetensors").is_file()
    assert [line["step"] for line in lines(tmp_path / "run", "steps.jsonl")] == [1, 2]
    monkeypatch.setattr(Trainer, "_losses", original)
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
        "the logits of this llama model on each of 4 random texts are no numbers (NaN or infinite) in float32",
    )


def test_a_held_out_loss_that_is_no_number_is_never_a_checkpoint(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._losses

    def breaking(trainer: Trainer, batch: Batch) -> torch.Tensor:
        loss = original(trainer, batch)
        return loss * torch.nan if (tmp_path / "run" / "last").exists() and not trainer.model.training else loss

    monkeypatch.setattr(Trainer, "_losses", breaking)
    expect_error(least, capsys, "the held-out loss is nan after step 4", "the last checkpoint before it is kept")
    assert {(tmp_path / "run" / name).resolve().name for name in ("best", "last")} == {"step-000002"}


def test_fsdp_on_a_cpu_is_refused(least: list[str], tmp_path: Path) -> None:
    done = run_forked("eval.finetune", least, ACCELERATE_USE_FSDP="true", ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert "FSDP was asked for on a CPU, where accelerate trains with DDP without a word" in done.stderr
    assert not (tmp_path / "run").exists()


def test_every_flag_is_a_setting_and_every_setting_a_flag() -> None:
    flags = {action.dest for action in TrainConfig.build_parser()._actions} - {"help", "config"}
    assert flags == {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "finetune").glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_config_loads(file: Path) -> None:
    assert TrainConfig.from_command_line(["--config", str(file)]).task


def test_a_way_that_this_machine_lacks_is_told_before_the_weights_load(
    least: list[str], refuses_simd: Callable[..., None]
) -> None:
    refuses_simd("attention", lambda: main(least))
