"""What a section of a study's report is made from, and what it comes to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.run_folder import RunFolder
from eval.reporting.charts import Spec
from eval.reporting.tables import Rows, as_markdown
from eval.studies.parts import Section

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Given:
    """A section with the folders of those of its parts that are done.

    Attributes:
        section: As the study's file has it.
        folders: By part, in the order of the section.
        scripts: By part.
    """

    section: Section
    folders: Mapping[str, Path]
    scripts: Mapping[str, str]

    @property
    def reference(self) -> str | None:
        """Return the part that the others are compared with; None where it is not there."""
        return self.section.reference if self.section.reference in self.folders else None

    @property
    def others(self) -> list[str]:
        return [name for name in self.folders if name != self.section.reference]

    def records(self) -> dict[str, Record]:
        """Return `run.json` of each part.

        Raises:
            UserError: One cannot be read.
        """
        return {name: read_record(folder) for name, folder in self.folders.items()}


@dataclass(kw_only=True)
class Content:
    """Markdown, and the charts that it shows, by the names of their files without ends."""

    section: Section
    blocks: list[str] = field(default_factory=list)
    charts: dict[str, Spec] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Add a paragraph, which may be empty."""
        if text:
            self.blocks.append(text)

    def table(self, title: str, rows: Rows) -> None:
        """Add a table, if it has a row below its header."""
        if len(rows) > 1:
            self.blocks += [f"**{title}**", as_markdown(rows, 1)]

    def chart(self, name: str, title: str, spec: Spec) -> None:
        """Add a chart under a name that no other has, whatever is lost of titles."""
        file = slug(f"{self.section.kind} {self.section.number} {self.section.title} {name}")
        while file in self.charts:
            file += "-more"
        self.charts[file] = spec
        self.blocks.append(f"![{title}](plots/{file}.svg)")


def slug(text: str) -> str:
    """Return a text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read_record(folder: Path) -> Record:
    """Return `run.json` of a part.

    Raises:
        UserError: It cannot be read, or is not there.
    """
    record = RunFolder(folder).read_run()
    if record is None:
        raise UserError(f"{folder} holds no run; its command makes one")
    return record


def read_json(file: Path) -> Any:
    """Return what a JSON file of a part holds.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; run its part again") from error


def timed_alike(records: Mapping[str, Record]) -> str:
    """Return a remark where times of the parts do not compare; empty where they do."""
    places = {
        (session["machine"]["device"], session["world_size"], session["threads"])
        for record in records.values()
        for session in record["sessions"]
    }
    if len(places) < 2:
        return ""
    named = "; ".join(f"{device}, {size} process(es), {threads} thread(s)" for device, size, threads in sorted(places))
    return f"Times were measured in different places and do not compare: {named}."


def share(value: float | None, of: float | None) -> str:
    """Return a part of something as a percentage, a dash where one is not known."""
    return "-" if value is None or not of else f"{value / of:.1%}"


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of numbers that are all known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
