"""Linear layers are tuned for answers and losses on a CPU, with copies where memory has room, and not for training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from eval.runtime.jobs import user_message
from eval.runtime.memory import copy_bytes, memory_budget
from eval.runtime.model import load_converted
from masformer.attention.ways import check_attention_ways
from masformer.checkpoints.open import open_checkpoint
from masformer.errors import OneLineError
from masformer.linear import TunedLinear, check_linear_way, tune
from masformer.plans.spans import SpanPlan
from tests.helpers.tiny_models import LAYERS, save_tiny_checkpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WIDE = {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64}


@pytest.fixture(autouse=True)
def no_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masformer.tuning._used", {})  # it is written into the records of runs


def kinds(folder: Path, plan: SpanPlan | None, *, is_served: bool = True) -> set[type[nn.Module]]:
    model = load_converted(open_checkpoint(str(folder)), "float32", CPU, plan, "auto", print, is_served=is_served)
    return {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)}


@pytest.mark.skipif(not torch._C._has_mkldnn, reason="torch was built without oneDNN")
@pytest.mark.parametrize("plan", [None, SpanPlan.full(LAYERS)])
def test_a_model_that_is_served_is_tuned_with_copies_where_memory_has_room(
    plan: SpanPlan | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_checkpoint(tmp_path, **WIDE)
    monkeypatch.setenv("MASFORMER_WAYS", "linear=packed")
    assert TunedLinear in kinds(tmp_path, plan)
    assert kinds(tmp_path, plan, is_served=False) == {nn.Linear}
    monkeypatch.setattr("eval.runtime.memory._machine_memory", lambda: 2**20)
    assert kinds(tmp_path, plan) == {nn.Linear}
    monkeypatch.setenv("MASFORMER_WAYS", "linear=direct")
    assert TunedLinear in kinds(tmp_path, plan)


@pytest.mark.skipif(not torch._C._has_mkldnn, reason="torch was built without oneDNN")
def test_copies_are_counted_where_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.runtime.memory._machine_memory", lambda: 4000)
    monkeypatch.setenv("MASFORMER_WAYS", "linear=packed")
    wide = torch.float32
    assert copy_bytes(1000, wide, {}) == 1000
    assert copy_bytes(1001, wide, {}) == 0
    assert copy_bytes(501, wide, {"LOCAL_WORLD_SIZE": "2"}) == 0
    assert memory_budget(CPU, 1000, wide, {}, None) == (4000 - 2 * 1000) // 2
    assert memory_budget(CPU, 1002, wide, {}, None) == (4000 - 1002) // 2
    # Where none are made, none are counted.
    for is_there in (True, False):
        with monkeypatch.context() as patch:
            patch.setenv("MASFORMER_WAYS", "linear=simd")
            patch.setattr("masformer.linear.has_simd", lambda dtype, is_there=is_there: is_there)
            assert copy_bytes(1000, wide, {}) == (1000 if is_there else 0)
    assert memory_budget(CPU, 1000, wide, {}, "auto") == (4000 - 1000) // 2
    assert memory_budget(CPU, 1000, torch.float16, {}, None) == (4000 - 1000) // 2
    monkeypatch.setenv("MASFORMER_WAYS", "linear=direct")
    assert memory_budget(CPU, 1000, wide, {}, None) == (4000 - 1000) // 2


def test_a_way_that_there_is_not_is_one_line_for_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_checkpoint(tmp_path, **WIDE)
    monkeypatch.setenv("MASFORMER_WAYS", "linear=pakced")
    with pytest.raises(OneLineError) as error:
        kinds(tmp_path, None)
    assert user_message(error.value) == "MASFORMER_WAYS names 'pakced' for linear; known: plain, direct, packed, simd"


def test_ways_are_refused_only_where_they_would_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masformer.compiled.why_not", lambda source: "no C++ compiler")
    monkeypatch.setenv("MASFORMER_WAYS", "linear=simd")
    check_attention_ways(CPU)
    check_linear_way(CUDA)
    assert tune(nn.Linear(8, 8)) == 0  # a small layer goes torch's way, as those of other devices do
    with pytest.raises(OneLineError, match=r"no C\+\+ compiler; leave it out"):
        check_linear_way(CPU)
    monkeypatch.setenv("MASFORMER_WAYS", "step=simd")
    check_linear_way(CPU)
    check_attention_ways(CUDA)
    with pytest.raises(OneLineError, match=r"no C\+\+ compiler; leave it out"):
        check_attention_ways(CPU)
