"""What all benchmarks share: ours and the peer's in turn, medians, a table, and the last line of JSON."""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# The mixed plan that facts and targets are about.
MIXED = "full@17,18,20,23 span=512 sinks=4"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        case: A name that a reader of the docs recognizes.
        ours: Median of our way.
        peer: Median of the peer's way.
        unit: Unit of both figures.
        target: The ratio to reach; None where none was set.
        floor: The ratio by arithmetic alone; None where there is none.
        saves: The ratio is peer / ours, more is better; else ours / peer, less is better.
    """

    case: str
    ours: float
    peer: float
    unit: str
    target: float | None = None
    floor: float | None = None
    saves: bool = True

    @property
    def ratio(self) -> float:
        return self.peer / self.ours if self.saves else self.ours / self.peer


def alternate(ways: Sequence[Callable[[], object]], repeats: int, warm_up: bool = True) -> list[float]:
    """Return the median seconds of each way; they take turns, by default after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(-int(warm_up), repeats):
        for way, times in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            if turn >= 0:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


@contextmanager
def sources_of(commit: str) -> Iterator[Path]:
    """Yield a folder with the packages of an earlier commit."""
    archive = subprocess.run(
        ["git", "archive", commit, "benchmarks", "eval", "tasks", "masformer"],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        check=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
            packed.extractall(folder, filter="data")
        yield Path(folder)


def show(case: Case) -> None:
    """Print one line of the table."""
    number = "{:,.3g}" if max(case.ours, case.peer) < 1000 else "{:,.0f}"
    ours, peer = number.format(case.ours), number.format(case.peer)
    goal = "" if case.target is None else f"  target {case.target:g}"
    limit = "" if case.floor is None else f"  floor {case.floor:.3g}"
    print(
        f"{case.case:68} ours {ours:>7}  peer {peer:>7} {case.unit:3} ratio {case.ratio:6.3g}{goal}{limit}", flush=True
    )


def finish(cases: Sequence[Case]) -> None:
    """Print the last line: a JSON list of the cases."""
    print(
        json.dumps(
            [
                {"case": c.case, "ratio": round(c.ratio, 4), "target": c.target, "floor": c.floor and round(c.floor, 4)}
                for c in cases
            ]
        )
    )
