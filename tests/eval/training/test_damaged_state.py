"""A training goes on from a state that is whole, or says in one line what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from eval.finetune import main
from eval.training.sequences import Batch
from eval.training.trainer import Trainer
from tests.helpers.trainings import expect_error, lines

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
STATE = ("optimizer.bin", "random_states_0.pkl", "trainable.safetensors")


@pytest.fixture(scope="module")
def trained(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Return the arguments of a training that has ended, and its folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = f"--task arxiv --model {model} --data {data} --maxlen 400 --threads 1 --max-steps 4 --eval-every 2"
    whole = [*arguments.split(), "--held-out", "0.2"]
    assert main([*whole, "--output", str(folder)]) == 0
    return whole, folder


@pytest.fixture
def resume(trained: tuple[list[str], Path], tmp_path: Path) -> list[str]:
    """Return the arguments that go on with a copy of the training in `tmp_path / "run"`."""
    arguments, folder = trained
    shutil.copytree(folder, tmp_path / "run", symlinks=True)
    return [*arguments, "--output", str(tmp_path / "run"), "--resume"]


def made_by_01(run: Path) -> Path:
    """Make a training one of version 0.1, which noted no digests, and return its last state."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "checksums": False}))
    for file in run.glob("checkpoints/*/state/files.json"):
        file.unlink()
    return run / "last" / "state"


def flip(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", flip])
@pytest.mark.parametrize("name", [*STATE, "files.json"])
def test_a_damaged_file_of_a_state_is_refused_before_anything_loads(
    name: str,
    damage: Callable[[bytes], bytes],
    resume: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eval.training.train.build_trainer", lambda *_: pytest.fail("the model was loaded"))
    file = tmp_path / "run" / "last" / "state" / name
    assert sorted(json.loads((file.parent / "files.json").read_text())) == sorted(STATE)
    file.write_bytes(damage(file.read_bytes()))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    # Of digests of which one bit is wrong, the file is refused to which it belongs.
    expect_error(resume, capsys, name if name in STATE else "/state/", "give --resume another of checkpoints/step-*")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_file_that_is_missing_is_named(resume: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "last" / "state" / "optimizer.bin").unlink()
    expect_error(resume, capsys, "optimizer.bin is missing")


@pytest.mark.parametrize("name", STATE)
def test_a_state_without_digests_is_refused_where_it_cannot_be_loaded(
    name: str, resume: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = made_by_01(tmp_path / "run")
    assert main(resume) == 0
    AcceleratorState._reset_state(True)
    # It has digests now: a later resume needs them, whether or not a checkpoint was written since.
    assert sorted(STATE) == sorted(json.loads((state / "files.json").read_text()))
    made_by_01(tmp_path / "run")
    (state / name).write_bytes((state / name).read_bytes()[:50])
    expect_error(resume, capsys, "/state cannot be read in full")


def test_digests_that_are_missing_are_those_of_a_damaged_state(
    resume: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "last" / "state" / "files.json").unlink()
    expect_error(resume, capsys, "files.json is missing", "give --resume another of checkpoints/step-*")


@pytest.mark.parametrize("content", ["{}", '{"optimizer.bin": 7}', "[" * 100_000, "null"])
def test_digests_that_are_not_of_each_file_are_refused(
    content: str, resume: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "last" / "state" / "files.json").write_text(content)
    expect_error(resume, capsys, "/state/", "give --resume another of checkpoints/step-*")


@pytest.mark.parametrize("name", STATE)
def test_a_state_without_digests_is_refused_where_a_file_is_missing(
    name: str, resume: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = made_by_01(tmp_path / "run")
    (state / name).unlink()
    expect_error(resume, capsys, "/state cannot be read in full")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("steps.jsonl", flip, "steps.jsonl, line 4 is damaged"),
        ("steps.jsonl", lambda content: content.replace(b'"loss"', b'"lose"', 1), "steps.jsonl, line 1 is damaged"),
        ("steps.jsonl", lambda content: b"[" * 100_000 + b"\n" + content, "line 1 is damaged"),
        ("steps.jsonl", lambda content: b"\xff\n", "line 1 is damaged"),
        ("steps.jsonl", lambda content: b"", "does not hold each step to the checkpoint of step 4 once"),
        ("steps.jsonl", lambda content: content[:-20], "does not hold each step"),
        ("steps.jsonl", lambda content: content[content.index(b"\n") + 1 :], "does not hold each step"),
        ("steps.jsonl", lambda content: content + content, "does not hold each step"),
        ("evals.jsonl", lambda content: b'{"step": 4, "loss": 1.0}\n', "evals.jsonl, line 1 is damaged"),
        ("evals.jsonl", lambda content: b"", "evals.jsonl lacks the evaluation after step 4"),
    ],
)
def test_a_damaged_log_is_refused(
    name: str,
    damage: Callable[[bytes], bytes],
    said: str,
    resume: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "run" / name
    file.write_bytes(damage(file.read_bytes()))
    expect_error(resume, capsys, said)


def test_a_held_out_example_without_a_number_is_named(
    resume: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Trainer._losses, []

    def breaking(trainer: Trainer, batch: Batch) -> torch.Tensor:
        loss = original(trainer, batch)
        if not trainer.model.training:
            calls.append(1)
        return loss * torch.inf if len(calls) == 2 else loss

    monkeypatch.setattr(Trainer, "_losses", breaking)
    anew = [*resume[:-3], "--output", str(tmp_path / "anew")]
    expect_error(anew, capsys, "the held-out loss is inf after step 0 (train-", ") in float32; ")
    assert not lines(tmp_path / "anew", "evals.jsonl") if (tmp_path / "anew" / "evals.jsonl").exists() else True


def test_memory_that_runs_out_is_no_damage(
    resume: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    anew = [*resume[:-2], str(tmp_path / "anew")]
    for place, arguments in (("load_state", resume), ("save_state", anew)):
        with monkeypatch.context() as patch:
            patch.setattr(Accelerator, place, no_memory)
            expect_error(arguments, capsys, "memory ran out: CUDA out of memory")
        AcceleratorState._reset_state(True)
    assert not list((tmp_path / "anew" / "checkpoints").iterdir())
    assert main(resume) == 0
