"""What decoding does on CUDA, without CUDA: the kernels that it chooses there, and a graph that is replayed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from masformer.attention import cache as cache_module
from masformer.attention import cuda, cuda_joined, kernels
from masformer.step_graph import StepGraph
from tests.helpers import varlen_standin


class AsOnCuda:
    """Chooses kernels as on CUDA for a dtype, and counts the calls of `varlen_attn`.

    Attributes:
        calls: Calls of `varlen_attn`.
        lists: Tensors that were read by `tolist`, outside of these calls.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32) -> None:
        self.calls = self.lists = 0
        monkeypatch.setattr(cuda, "is_ready", lambda device: True)
        monkeypatch.setattr(cuda, "DTYPES", (dtype,))
        monkeypatch.setattr(cuda, "varlen_attn", self.attend)
        monkeypatch.setattr(cache_module, "is_slow_to_read", lambda tensor: True)
        monkeypatch.setattr(cuda_joined, "PIECE_KEYS", 11)
        choose = kernels.choose_kernel

        def choose_on_cuda(query: Tensor, *args: Any) -> str:
            alike: Any = SimpleNamespace(device=torch.device("cuda"), dtype=query.dtype, shape=query.shape)
            return choose(alike, *args)

        monkeypatch.setattr(kernels, "choose_kernel", choose_on_cuda)
        tolist = Tensor.tolist

        def counting(tensor: Tensor) -> Any:
            self.lists += 1
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", counting)

    def attend(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        lists = self.lists
        with _disable_current_modes():
            out = varlen_standin.varlen_attn(*args, **options)
        self.lists = lists
        return out


class Replayed(StepGraph):
    """A graph without a device: a pass after which Python's counts are as if it had not been, whatever they were."""

    def _rehearsed(self) -> Tensor:
        return self._pass()

    def _record(self) -> None:
        self.recorded, self.graph = self.cache.counts, object()  # type: ignore[assignment]

    def _replay(self, graph: Any) -> Tensor:
        counts = self.cache.counts
        self.cache.counts = self.recorded
        scores = self._pass()
        self.cache.counts = [count + 1 for count in counts]
        return scores
