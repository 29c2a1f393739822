"""Trainings that were stopped go on to the bit, and no checkpoint is ever lost or mixed with another's."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from eval.finetune import main
from eval.records.schema import Evaluation, TrainingStep
from eval.training.folder import TrainFolder
from eval.training.trainer import Trainer
from tests.helpers.forks import start_forked
from tests.helpers.tiny_models import save_tiny_checkpoint
from tests.helpers.trainings import COMPARED, expect_error, lines

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], marks=pytest.mark.nightly),
        ["--lora-rank", "2"],
        ["--no-packing", "--gradient-accumulation", "2"],
        ["--model", "gpt2"],
        ["--model", "gpt2", "--lora-rank", "2", "--plan", "local span=24 sinks=2", "--distill", "0.5"],
        pytest.param(["--plan", "local span=24 sinks=2", "--distill", "1"], marks=pytest.mark.nightly),
    ],
    ids=["all weights", "lora", "accumulation", "dropout", "distilled lora", "distilled"],
)
def test_a_resumed_training_has_the_losses_of_an_undisturbed_one(
    extra: list[str], least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "gpt2" in extra:
        # An architecture with dropout, whose random numbers have to go on where they were.
        gpt2 = save_tiny_checkpoint(tmp_path / "gpt2", kind="gpt2")
        assert AutoModelForCausalLM.from_pretrained(gpt2).config.resid_pdrop == 0.1
        extra = ["--model", str(gpt2), *extra[2:]]
    whole = [*least[:-1], str(tmp_path / "whole"), *extra]
    assert main(whole) == 0
    original = Trainer.step

    def interrupted(trainer: Trainer, number: int, *arguments: Any) -> TrainingStep:
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
    process = start_forked("eval.finetune", longer)
    log = tmp_path / "run" / "steps.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 7) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.signal(signal.SIGKILL)
    assert process.end().returncode == -signal.SIGKILL
    assert 7 <= len(log.read_text().splitlines()) < 40
    assert main([*longer, "--resume"]) == 0
    assert main([*longer[:-1], str(tmp_path / "whole")]) == 0
    for name in COMPARED:
        assert lines(tmp_path / "run", name) == lines(tmp_path / "whole", name)


def test_a_training_killed_before_its_first_checkpoint_begins_anew(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step

    def interrupted(trainer: Trainer, number: int, *arguments: Any) -> TrainingStep:
        if number == 2:
            raise KeyboardInterrupt
        return original(trainer, number, *arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert main(least) == 130
    monkeypatch.setattr(Trainer, "step", original)
    assert main([*least, "--resume"]) == 0
    assert [line["step"] for line in lines(tmp_path / "run", "steps.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(tmp_path / "run", "evals.jsonl")] == [0, 2, 4, 6]


def test_going_on_from_an_earlier_checkpoint_makes_it_the_last(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of equal losses the first is the best, so that the checkpoint of step 2 is kept.
    monkeypatch.setattr(
        Trainer,
        "evaluate",
        lambda _, rows, step: Evaluation(step=step, loss=1.0, perplexity=2.7, num_targets=1, seconds=0),
    )
    assert main(least) == 0
    folder = tmp_path / "run"
    whole = lines(folder, "steps.jsonl")
    assert [(folder / name).resolve().name for name in ("best", "last")] == ["step-000002", "step-000006"]
    original = Trainer.step

    def interrupted(trainer: Trainer, number: int, *arguments: Any) -> TrainingStep:
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


def test_a_kill_between_the_links_of_a_checkpoint_is_made_good(least: list[str], tmp_path: Path) -> None:
    assert main(least) == 0
    folder = tmp_path / "run"
    evaluations = lines(folder, "evals.jsonl")
    best = (folder / "best").resolve()
    assert best.name == f"step-{min(evaluations[1:], key=lambda line: line['loss'])['step']:06}"
    # As if `last` had been set and `best` not yet.
    (folder / "best").unlink()
    (folder / "best").symlink_to("checkpoints/step-000002")
    (folder / ".best").symlink_to("checkpoints/step-000006")
    assert main([*least, "--resume"]) == 0
    assert (folder / "best").resolve() == best
    assert sorted(path.name for path in folder.iterdir() if path.is_symlink()) == ["best", "last"]


def test_a_kill_before_the_former_checkpoint_is_deleted_leaves_none_behind(least: list[str], tmp_path: Path) -> None:
    assert main(least) == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    named = {(tmp_path / "run" / name).resolve().name for name in ("best", "last")}
    for left in ("step-000003", ".step-000004.former"):
        shutil.copytree((tmp_path / "run" / "last").resolve(), checkpoints / left)
    assert main([*least, "--resume"]) == 0
    assert {path.name for path in checkpoints.iterdir()} == named


def test_a_training_killed_before_its_logs_begins_anew(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainFolder, "cut_logs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(least) == 130
    assert (tmp_path / "run" / "run.json").is_file()
    monkeypatch.undo()
    assert main([*least, "--resume"]) == 0


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

    def filling(trainer: Trainer, number: int, *arguments: Any) -> TrainingStep:
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
