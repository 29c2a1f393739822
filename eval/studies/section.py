"""A section of a study's report while it is written, and what sections share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eval.errors import UserError
from eval.records.disk import read_json
from eval.records.engines import clock_of, clocks_apart
from eval.records.run_folder import RunFolder
from eval.records.schema import DocumentLoss, ExampleRecord, Prediction, RunRecord
from eval.records.typed import Record, from_json
from eval.reporting.charts import Spec
from eval.reporting.tables import Rows, as_markdown, markdown
from eval.scoring.examples import Setting
from eval.studies.parts import Section

Line = TypeVar("Line")


@dataclass(kw_only=True)
class Draft:
    """A section with those of its parts that are there, and the Markdown and charts that it comes to."""

    section: Section
    folders: Mapping[str, Path]  # by part, in the order of the section
    records: Mapping[str, Any]  # `run.json` by part
    blocks: list[str] = field(default_factory=list)
    charts: dict[str, Spec] = field(default_factory=dict)  # by file name without its end

    @property
    def reference(self) -> str | None:
        """Return the part that the others are compared with; None where it is not there."""
        return self.section.reference if self.section.reference in self.folders else None

    @property
    def others(self) -> list[str]:
        return [name for name in self.folders if name != self.section.reference]

    def read(self, kind: type[Record], name: str, file: str) -> Record:
        """Return what a JSON file of a part holds.

        Raises:
            UserError: It cannot be read.
        """
        path, remedy = self.folders[name] / file, "run its part again"
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; {remedy}") from error
        return from_json(kind, content, str(path), remedy=remedy)

    def lines(self, name: str) -> dict[Setting, dict[str, Any]]:
        """Return the answers or measurements of a part by setting, then by id."""
        kind: type[Any] = Prediction if isinstance(self.records[name], RunRecord) else DocumentLoss
        lines: dict[Setting, dict[str, Any]] = {}
        for line in RunFolder(self.folders[name]).read_lines(kind, "predictions.jsonl"):
            lines.setdefault((line.task, line.template, line.maxlen), {})[line.id] = line
        return lines

    def examples(self, name: str) -> list[ExampleRecord]:
        """Return the examples of a part."""
        return RunFolder(self.folders[name]).read_examples()

    def say(self, text: str) -> None:
        """Add a paragraph of prose, with `code` between backquotes."""
        self.blocks.append(markdown(text))

    def table(self, title: str, rows: Rows) -> None:
        """Add a table, if it has a row below its header."""
        if len(rows) > 1:
            self.blocks += [f"**{title}**", as_markdown(rows, 1)]

    def chart(self, name: str, title: str, spec: Spec) -> None:
        """Add a chart under a file name that no other has, even where names differ in signs alone."""
        words = f"{self.section.kind} {self.section.number} {self.section.title} {name}"
        file = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        while file in self.charts:
            file += "-more"
        self.charts[file] = spec
        self.blocks.append(f"![{title}](plots/{file}.svg)")

    def is_timed_alike(self, name: str) -> bool:
        """Return whether the seconds of a part are of the kind that the reference's are."""
        return self.reference is None or self._clock(name) == self._clock(self.reference)

    def _clock(self, name: str) -> str:
        return clock_of(getattr(self.records[name].identity, "engine", None))

    def note_machines(self) -> None:
        """Say so where the parts were timed in different places, or in different ways."""
        clocks: dict[str, list[str]] = {}
        for name in self.records:
            clocks.setdefault(self._clock(name), []).append(f"`{name}`")
        if apart := clocks_apart(clocks):
            self.say(apart)
        places = {
            (session.machine.device, session.world_size, session.threads)
            for record in self.records.values()
            for session in record.sessions
        }
        if len(places) > 1:
            names = [f"{device}, {size} process(es), {threads} thread(s)" for device, size, threads in sorted(places)]
            self.say(f"Times were measured in different places and do not compare: {'; '.join(names)}.")


def in_both(before: Mapping[str, Line], after: Mapping[str, Line]) -> tuple[dict[str, Line], dict[str, Line]]:
    """Return the lines whose ids both have, in one order."""
    shared = [name for name in before if name in after]
    return {name: before[name] for name in shared}, {name: after[name] for name in shared}


def share(value: float | None, of: float | None) -> str:
    """Return a part of something as a percentage; a dash where one is not known."""
    return "-" if value is None or not of else f"{value / of:.1%}"
