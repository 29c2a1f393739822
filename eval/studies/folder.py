"""What of a study is done: by the folders of its parts, and by `study.json`, which says what made them.

study.json    what made each part that has ended (`StudyRecord`)
claims.json   what was claimed, and when (`ClaimsRecord`)
NAME/         the folder of a part
NAME.log      what its sessions have printed
report.md, plots/, gallery/   `eval.studies.report`
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from eval.errors import UserError
from eval.records.disk import read_json
from eval.records.run_folder import RunFolder
from eval.records.schema import (
    PerplexityRecord,
    PlacementRecord,
    RunRecord,
    StudyPart,
    StudyRecord,
    TrainingRecord,
)
from eval.records.typed import from_json
from eval.studies.parts import FINETUNE, PERPLEXITY, PLACEMENT, RUN, Part, Study

PartRecord: TypeAlias = RunRecord | PerplexityRecord | TrainingRecord | PlacementRecord

DONE, CHANGED, PARTLY, NOT_BEGUN = "done", "made by other settings or inputs", "partly", "not begun"
_RECORDS: dict[str, type[PartRecord]] = {
    RUN: RunRecord,
    PERPLEXITY: PerplexityRecord,
    FINETUNE: TrainingRecord,
    PLACEMENT: PlacementRecord,
}
# What `eval.ladder` writes into the folder of a run.
LADDER = "ladder.json"
# Written last by each script.
_LAST_FILE = {RUN: "scores.json", PERPLEXITY: "scores.json", FINETUNE: "report.md", PLACEMENT: "report.md"}


@dataclass(kw_only=True)
class StudyFolder:
    """Reads and writes what is known of a study's parts."""

    study: Study
    path: Path  # need not exist
    ended: dict[str, StudyPart] = field(default_factory=dict)  # `study.json`

    def log(self, part: Part) -> Path:
        """Return the file that holds what a part's sessions have printed."""
        return self.path / f"{part.name}.log"

    def record(self, part: Part) -> PartRecord | None:
        """Return `run.json` of a part; None where there is none that can be read."""
        try:
            return RunFolder(self.path / part.name).read_record(_RECORDS[part.script])
        except UserError:
            return None

    def is_complete(self, part: Part) -> bool:
        """Return whether the last session of a part came to its end, whatever its settings."""
        folder = self.path / part.name
        if self._finished(part) is None or any((folder / "journal").glob("*.jsonl")):
            return False
        return (folder / _LAST_FILE[part.script]).is_file() and (not part.ladder or has_ladder(folder))

    def state(self, part: Part) -> str:
        """Return how far a part has come."""
        record = self.record(part)
        if record is None:
            return NOT_BEGUN
        if not self.is_complete(part):
            return PARTLY
        if (entry := self.ended.get(part.name)) is None:
            # The part's own command, run alone.
            words, own = (
                [word for word in command if word not in ("--resume", "--likelihood")]
                for command in (record.sessions[-1].command, part.command(self.path)[1:])
            )
            return DONE if words == own else CHANGED
        # A result that was used may have been made anew since.
        is_same = entry.digest == self.study.digest(part.name) and entry.needs == {
            name: self._finished(self.study.parts.get(name)) for name in entry.needs
        }
        return DONE if is_same else CHANGED

    def begun(self) -> list[str]:
        """Return the parts that were ever at work here, by whatever name the study's file has them now."""
        there = sorted(file.parent.name for file in self.path.glob("*/run.json"))
        names = dict.fromkeys([*self.study.parts, *self.ended, *there])
        return [name for name in names if name in self.ended or name in there]

    def missing_needs(self, part: Part) -> list[str]:
        """Return what a part needs and is not done."""
        return [name for name in part.needs if self.state(self.study.parts[name]) != DONE]

    def more(self, part: Part) -> list[str]:
        """Return what is added to a part's command where it has begun."""
        return ["--resume"] if part.script == FINETUNE and self.record(part) is not None else []

    def _finished(self, part: Part | None) -> str | None:
        """Return when the last session of a part came to its end; None where it did not."""
        record = None if part is None else self.record(part)
        return record.sessions[-1].finished if record and record.sessions else None

    def note_done(self, part: Part) -> None:
        """Write down that a part has ended, where the study was killed before it could, or the part was run alone."""
        finished = self._finished(part)
        if part.name not in self.ended and finished is not None:
            self.note_end(part, finished)

    def note_end(self, part: Part, finished: str) -> None:
        """Write down that a part has ended well."""
        self.ended[part.name] = StudyPart(
            command=part.shell(self.path),
            digest=self.study.digest(part.name),
            finished=finished,
            needs={name: self._finished(self.study.parts[name]) for name in part.needs},
        )
        record = StudyRecord(title=self.study.title, file=str(self.study.file), parts=self.ended)
        RunFolder(self.path).write_json("study.json", record)


def has_ladder(folder: Path) -> bool:
    """Return whether a run has a context ladder, and one of the predictions that were scored."""
    digests = []
    for name in (LADDER, "scores.json"):
        try:
            content = read_json(folder / name)
        except (OSError, ValueError):
            return False
        digests.append(content.get("predictions") if isinstance(content, dict) else None)
    return digests[0] is not None and digests[0] == digests[1]


def open_study_folder(study: Study, path: Path) -> StudyFolder:
    """Return the folder of a study, with what is known of it.

    Raises:
        UserError: It is a file, holds a run, or its `study.json` cannot be read.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give another folder with --output")
    if (path / "run.json").exists():
        raise UserError(f"output folder {path} holds a run; give another with --output")
    file, remedy = path / "study.json", "take it away, and parts are looked at anew; or give another with --output"
    if not file.exists():
        return StudyFolder(study=study, path=path)
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; {remedy}") from error
    return StudyFolder(study=study, path=path, ended=from_json(StudyRecord, content, str(file), remedy=remedy).parts)
