"""The names of what a figure was measured on and in; needs torch for a GPU and bfloat16 alone."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def processor_name() -> str:
    """Return the system's name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def vector_instructions() -> str:
    """Return the names of the processor's vector and matrix instructions; empty where the system tells none."""
    names = {*_cpuinfo("flags").split(), *_cpuinfo("Features").split()}  # the latter on ARM
    return " ".join(sorted(name for name in names if name.startswith(("avx", "amx", "asimd", "sve"))))


def multiplies_bfloat16() -> bool:
    """Return whether torch multiplies bfloat16 by instructions of this processor."""
    import torch

    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _cpuinfo(field: str) -> str:
    """Return a field of Linux's description of the first processor; empty where there is none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as people and configs write it, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device | None = None) -> str:
    """Return the name of a device for people; None is the processor."""
    if device is None or device.type != "cuda":
        return f"CPU ({processor_name()})"
    import torch

    return torch.cuda.get_device_name(device)
