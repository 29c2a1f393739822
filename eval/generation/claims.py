"""Which groups of a session are taken, and which are finished, by files that all its processes see."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.errors import UserError
from eval.generation.groups import Group
from eval.records.disk import disk_errors

# Seconds between two looks at what the other processes have finished.
_LOOK_SECONDS = 2.0
# Seconds that a folder on a network may take to show other machines what one has written.
_VISIBLE_SECONDS = 30


class Claims:
    """Hands out groups, each to one process.

    Args:
        folder: Folder of this session alone; the main process has made it.
        groups: In the order in which they are taken.

    Raises:
        UserError: This process does not see the folder: it is another one on this machine.
    """

    def __init__(self, folder: Path, groups: Sequence[Group]) -> None:
        deadline = time.monotonic() + _VISIBLE_SECONDS
        while not folder.is_dir():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{folder} was made by the main process and is not here; processes on several machines need "
                    "--output on a shared disk, or run as independent jobs with --shard I/N"
                )
            time.sleep(0.2)
        self.folder = folder
        self.costs = {group.index: group.cost for group in groups}
        self._groups = groups
        self._mine: set[int] = set()
        self._finished: set[int] = set()
        self._taken: set[int] = set()
        self._looked = -_LOOK_SECONDS

    def take(self) -> Iterator[Group]:
        """Yield groups that no process has taken, until there is none left."""
        for group in self._groups:
            with disk_errors(self.folder):
                try:
                    os.close(os.open(self.folder / str(group.index), os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
            self._mine.add(group.index)
            yield group

    def finish(self, group: Group) -> None:
        """Mark a group as finished."""
        with disk_errors(self.folder):
            (self.folder / f"{group.index}.done").touch()
        self._finished.add(group.index)

    @property
    def num_finished(self) -> int:
        """Return how many groups are finished, as it was a moment ago."""
        self._look()
        return len(self._finished)

    @property
    def done(self) -> float:
        """Return the predicted cost of all finished groups, and half of that of those that others are at."""
        self._look()
        at_work = self._taken - self._finished - self._mine
        return sum(self.costs[index] for index in self._finished) + sum(self.costs[index] for index in at_work) / 2

    def _look(self) -> None:
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            with disk_errors(self.folder):
                for file in self.folder.iterdir():
                    (self._finished if file.suffix else self._taken).add(int(file.stem))
            self._looked = time.monotonic()
