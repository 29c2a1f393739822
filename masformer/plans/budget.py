"""What full attention may cost in a plan, as a person gives it: `layers=4`, `cache=30%`, `flops=25%`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from masformer.plans.spans import PlanError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan may cost.

    Attributes:
        kind: `layers` counts full layers, a head as its share of a layer; `cache` and `flops` are bytes of the cache
            and attention operations at the length of the placements, relative to full attention.
    """

    kind: Literal["layers", "cache", "flops"]
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Return the budget that `layers=4`, `cache=30%` or `flops=25%` describes. Raises `PlanError` for others."""
        match = re.fullmatch(r"(layers)=(\d{1,4}(?:\.\d+)?)|(cache|flops)=(\d{1,3}(?:\.\d+)?)%", text)
        if match is None:
            raise PlanError(f"budget '{text}' is none; write layers=N, cache=N% or flops=N%")
        kind, limit = (match[1], float(match[2])) if match[1] else (match[3], float(match[4]) / 100)
        if not limit or (kind != "layers" and limit > 1):
            raise PlanError(f"budget '{text}' must be above 0, and a share at most 100%")
        return cls(kind=kind, limit=limit)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"layers={self.limit:g}" if self.kind == "layers" else f"{self.kind}={100 * self.limit:g}%"
