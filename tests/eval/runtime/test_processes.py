"""How a process was launched: threads shared, and launches that are not what they look like."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from eval.errors import UserError
from eval.runtime.processes import _num_cores, check_launch, set_threads, start_accelerated


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


def test_one_process_where_accelerate_was_asked_for_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    simple = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}
    with pytest.raises(UserError, match="several processes were asked for and accelerate started one"):
        check_launch(simple)
    check_launch(simple | {"OMPI_COMM_WORLD_SIZE": "2"})  # mpirun starts them all
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert start_accelerated(None).count == 1
