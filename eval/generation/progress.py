"""How much of the predicted cost is done: a bar on a terminal, a line a group, and `progress.json` in the journal."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress

from tqdm import tqdm

from eval.config.generation import GenerationSettings
from eval.errors import UserError
from eval.generation.claims import Claims
from eval.generation.groups import DECODING, Group, Size
from eval.generation.prompt_tree import Node
from eval.generation.tree_decoder import Observer
from eval.records.disk import write_whole
from eval.records.schema import ProgressRecord
from eval.records.typed import to_json
from eval.runtime.processes import Process
from eval.runtime.provenance import utc_now

# Seconds between two writings of the file.
_WRITE_SECONDS = 5.0

# With hours in it and the longest of its remarks it fits a terminal of 80 columns.
BAR = "{desc} {percentage:3.0f}% |{bar:8}| {elapsed} elapsed, {remaining} left{postfix}"


class Progress(Observer):
    """Counts operations as they are done.

    Args:
        claims: Groups of the session.
        size: What tokens cost.
        process: The main process has the bar.
    """

    def __init__(self, claims: Claims, size: Size, process: Process) -> None:
        self.claims = claims
        self.size = size
        self.who = f"process {process.index}: " if process.count > 1 else ""
        self.within = 0.0
        self.started = time.monotonic()
        self.is_main = process.is_main
        self._written = self.started
        self.total = sum(claims.costs.values()) or 1.0
        self.bar = tqdm(
            total=self.total,
            desc="generating",
            smoothing=0,
            # None shows no bar where there is no terminal.
            disable=None if process.is_main else True,
            bar_format=BAR,
            dynamic_ncols=True,
        )

    @property
    def share(self) -> float:
        """Return the part of the predicted cost that is done."""
        return min((self.claims.done + self.within) / self.total, 1.0)

    def filled(self, node: Node) -> None:
        self._advance(self.size.prefill(node.start, node.stop), f"prefilled to {node.stop:,}")

    def decoded(self, batch: Sequence[Sequence[int]], settings: GenerationSettings, steps: int) -> None:
        a_step = DECODING * settings.num_rows * sum(self.size.decode(len(prompt), 1) for prompt in batch)
        self._advance(a_step * steps, f"decoding {len(batch)} rows")

    def _advance(self, cost: float, what: str) -> None:
        self.within += cost
        self.bar.set_postfix_str(what, refresh=False)
        self.bar.n = self.share * self.total
        self.bar.refresh()
        if self.is_main and time.monotonic() - self._written > _WRITE_SECONDS:
            self._write(what)

    def _write(self, what: str) -> None:
        self._written = time.monotonic()
        seconds = self._written - self.started
        record = ProgressRecord(share=self.share, seconds=seconds, doing=what, written=utc_now())
        # No answer is lost with it: what is in the way of answers is reported when one is written.
        with suppress(UserError):
            content = json.dumps(to_json(record)) + "\n"
            write_whole(self.claims.folder.parent, "progress.json", content.encode())

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.clear()
        print(self.who + text, flush=True)

    def finish(self, group: Group, text: str) -> None:
        """Print what a group came to, and how much time the rest will take."""
        self.within = 0.0
        self.bar.n = self.share * self.total
        spent, share = time.monotonic() - self.started, self.share
        left = f"; about {duration(spent * (1 - share) / share)} left" if 0 < share < 1 else ""
        self.print(f"group {self.claims.num_finished} of {len(self.claims.costs)}: {text}{left}")


def duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
