"""The names of what a figure was measured on; needs torch for a GPU alone."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def processor_name() -> str:
    """Return the system's name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device | None = None) -> str:
    """Return the name of a device for people; None is the processor."""
    if device is None or device.type != "cuda":
        return f"CPU ({processor_name()})"
    import torch

    return torch.cuda.get_device_name(device)
