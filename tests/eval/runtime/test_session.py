"""How a process was launched: threads shared, and launches that are not what they look like."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from eval.errors import UserError
from eval.runtime.session import _num_cores, set_threads, start_processes


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


def test_processes_that_each_believe_they_are_alone_are_refused() -> None:
    with pytest.raises(UserError, match="2 processes were started and each believes it is alone"):
        start_processes({"WORLD_SIZE": "2"})


def test_one_process_where_accelerate_was_asked_for_several_is_refused() -> None:
    with pytest.raises(UserError, match="several processes were asked for and accelerate started one"):
        start_processes({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"})
    assert start_processes({"ACCELERATE_MIXED_PRECISION": "no"}).num_processes == 1
