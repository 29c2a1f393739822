"""How a process was launched: threads shared, and launches that are not what they look like."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from eval.errors import UserError
from eval.run import main as run
from eval.runtime.processes import _num_cores, check_launch, is_first_here, rank_of, set_threads, start_accelerated


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_cores_are_shared_among_the_processes_of_this_machine() -> None:
    cores = _num_cores()
    assert 1 <= cores <= len(os.sched_getaffinity(0))
    assert set_threads(None, {}) == cores == torch.get_num_threads()
    assert set_threads(None, {"LOCAL_WORLD_SIZE": "2"}) == max(1, cores // 2) == torch.get_num_threads()
    assert set_threads(None, {"LOCAL_WORLD_SIZE": str(10 * cores)}) == 1
    assert set_threads(3, {"LOCAL_WORLD_SIZE": "2"}) == 3 == torch.get_num_threads()


def test_processes_that_each_believe_they_are_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started and each believes it is alone"):
        start_accelerated(None)


def test_a_device_without_memory_is_no_mistake_in_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty", no_memory)
    with pytest.raises(RuntimeError, match=r"^CUDA error: out of memory"):
        start_accelerated(None)


def test_one_process_where_accelerate_was_asked_for_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    simple = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}
    with pytest.raises(UserError, match="several processes were asked for and accelerate started one"):
        check_launch(simple)
    check_launch(simple | {"OMPI_COMM_WORLD_SIZE": "2"})  # mpirun starts them all
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert start_accelerated(None).count == 1


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x' in the environment"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        (
            {"WORLD_SIZE": "0"},
            "WORLD_SIZE is '0' in the environment; a launcher sets it to a whole number of at least 1",
        ),
        ({"WORLD_SIZE": "2_0"}, "WORLD_SIZE is '2_0'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": "-2"}, "RANK is '-2'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2 in the environment; processes count from 0"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK is '1.5'"),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK is 1 and LOCAL_WORLD_SIZE 1"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0'"),
        ({"LOCAL_WORLD_SIZE": "\u0663"}, "LOCAL_WORLD_SIZE is "),
    ],
)
@pytest.mark.parametrize("engine", ["mock", "local"])
def test_odd_numbers_of_a_launch_are_one_line(
    environ: dict[str, str],
    told: str,
    engine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tasks.command.handle_signals", lambda handler: None)
    data = tmp_path / "a.jsonl"
    data.write_text('{"context": "It rains.", "target": "Rain."}\n')
    argv = ["--task", "custom", "--data", str(data), "--output", str(tmp_path / "run"), "--maxlen", "64"]
    if engine == "local":
        with pytest.raises(UserError) as caught:
            start_accelerated(None)
        error = str(caught.value)
    else:
        assert run([*argv, "--engine", "mock"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.splitlines()) == 1
    assert told in error
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="names a device that is not there")
def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:7")
    AcceleratorState._reset_state(True)
    try:
        with pytest.raises(UserError, match=r"^accelerate cannot start what the launch asks for: .*ACCELERATE_"):
            start_accelerated(1)
    finally:
        AcceleratorState._reset_state(True)


def test_an_old_way_to_say_that_a_process_is_alone_is_taken() -> None:
    check_launch({"LOCAL_RANK": "-1", "SOURCE_DATE_EPOCH": "1700000000"})
    with pytest.raises(UserError, match=r"^SOURCE_DATE_EPOCH is 'now' in the environment, and numpy reads seconds"):
        check_launch({"SOURCE_DATE_EPOCH": "now"})
    check_launch({"LOCAL_RANK": "0"})
    assert [is_first_here({"LOCAL_RANK": rank}) for rank in ("-1", "0", "x", "1")] == [True, True, True, False]
    assert [rank_of({"WORLD_SIZE": size, "RANK": "1"}) for size in ("2", "1", "x")] == [1, None, None]
    assert rank_of({"WORLD_SIZE": "2"}) == 0


def test_evaluation_ignores_the_mixed_precision_of_a_saved_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.state.AcceleratorState._shared_state", {})
    for precision in ("fp16", "bf16", "fp8"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        assert start_accelerated(None).accelerator.mixed_precision == "no"


def test_what_accelerate_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"accelerate cannot start what the launch asks for: .*; check the file of"):
        start_accelerated(None)
