"""Count what a program does with tensors, and where it would wait for a device, without a device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode


class Counting(TorchDispatchMode):
    """Counts the operations that run, and those that read a tensor's numbers, for which a program waits."""

    READING = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select", "item")

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.reading: Counter[str] = Counter()

    def __enter__(self) -> Counting:
        tolist = self._tolist = Tensor.tolist

        def counting(tensor: Tensor) -> Any:  # which is no operation
            if _get_current_dispatch_mode() is self:
                self.reading["tolist"] += 1
            return tolist(tensor)

        Tensor.tolist = counting  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        Tensor.tolist = self._tolist  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.operations[name] += 1
        by_bools = name in ("index", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in self.READING or by_bools:
            self.reading[name] += 1
        return func(*args, **(kwargs or {}))
