"""A dry run says what a training takes, and writes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eval.finetune import main
from eval.runtime.speed import count_weights
from masformer import SpanPlan, full_plan
from masformer.checkpoints.open import open_checkpoint
from masformer.plans.cost import attention_flops
from tests.helpers.trainings import lines

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_a_dry_run_counts_what_the_training_then_does_and_writes_nothing(
    least: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--objective", "lm", "--no-packing", "--plan", "local span=24 sinks=2"]
    assert main([*least, *settings, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main([*least, *settings]) == 0
    steps = lines(tmp_path / "run", "steps.jsonl")
    assert f"tokens  {sum(step['num_tokens'] for step in steps):,} in 6 steps" in said
    config = open_checkpoint(str(model)).config
    local = SpanPlan.parse("local span=24 sinks=2", config.num_hidden_layers)
    # One row a step, each of one document.
    ours, whole = (
        sum(attention_flops(config, plan, step["num_tokens"]) for step in steps) for plan in (local, full_plan(config))
    )
    assert f"{1 - ours / whole:.1%} saved" in said
    assert re.search(r"memory  about \d+\.\d GiB", said)


def test_a_dry_run_beside_a_training_names_what_is_there(least: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(least) == 0
    assert main([*least, "--dry-run"]) == 2
    assert "holds a training; add --resume to go on" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--lora-rank", "4"]])
def test_weights_that_are_trained_are_counted_without_making_them(
    extra: list[str], least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.training import forecast

    counted: list[int] = []
    real = forecast.num_trained
    monkeypatch.setattr(forecast, "num_trained", lambda *args: counted.append(real(*args)) or counted[-1])
    assert main([*least, *extra, "--dry-run"]) == 0
    assert main([*least, *extra]) == 0
    assert counted == [json.loads((tmp_path / "run" / "run.json").read_text())["num_trainable"]]


@pytest.mark.parametrize("extra", [[], ["--lora-rank", "4"]])
def test_a_teacher_takes_a_copy_of_the_weights_unless_it_is_the_model_without_adapters(
    extra: list[str], least: list[str], model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.training.forecast._GIB", 1)  # bytes
    needed = []
    for distill in ([], ["--distill", "0.5"]):
        assert main([*least, *extra, "--plan", "local span=24 sinks=2", *distill, "--dry-run"]) == 0
        found = re.search(r"memory  about (\d+)\.0 GiB", capsys.readouterr().out)
        assert found is not None
        needed.append(int(found[1]))
    copy = 4 * count_weights(open_checkpoint(str(model)).config).all
    assert needed[1] - needed[0] == (0 if extra else copy)
