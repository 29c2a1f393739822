"""What of a study is done: by the folders of its parts, and by `study.json`, which says what made them.

study.json    title, and of each part that has ended the command, a digest of its settings, and when it ended
NAME/         the folder of a part
NAME.log      what its sessions have printed
report.md, plots/, gallery/   `eval.studies.report`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.run_folder import RunFolder
from eval.studies.parts import FINETUNE, PERPLEXITY, PLACEMENT, RUN, Part, Study

DONE, CHANGED, PARTLY, NOT_BEGUN = "done", "made by other settings or inputs", "partly", "not begun"
# Written last by each script.
_LAST_FILE = {RUN: "scores.json", PERPLEXITY: "scores.json", FINETUNE: "report.md", PLACEMENT: "report.md"}


@dataclass(kw_only=True)
class StudyFolder:
    """Reads and writes what is known of a study's parts.

    Attributes:
        study: As its file has it.
        path: Of the folder; need not exist.
        ended: Entries of `study.json`, by part.
    """

    study: Study
    path: Path
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)

    def log(self, part: Part) -> Path:
        """Return the file that has what a part's sessions have printed."""
        return self.path / f"{part.name}.log"

    def run_json(self, part: Part) -> dict[str, Any] | None:
        """Return `run.json` of a part; None where there is none that can be read."""
        try:
            record = RunFolder(self.path / part.name).read_run(is_replaced=True)
        except UserError:
            return None
        is_whole = record is not None and all(isinstance(session, dict) for session in record["sessions"])
        return record if is_whole else None

    def is_complete(self, part: Part) -> bool:
        """Return whether the last session of a part came to its end, whatever it was asked."""
        folder, record = self.path / part.name, self.run_json(part)
        if record is None or not record["sessions"] or not record["sessions"][-1].get("finished"):
            return False
        return (folder / _LAST_FILE[part.script]).is_file() and not any((folder / "journal").glob("*.jsonl"))

    def state(self, part: Part) -> str:
        """Return what there is of a part."""
        if not self.is_complete(part):
            return NOT_BEGUN if self.run_json(part) is None else PARTLY
        if (entry := self.ended.get(part.name)) is not None:
            is_same = entry["digest"] == self.study.digest(part.name)
            # A result that was used may have been made anew since.
            needs = entry.get("needs", {})
            is_same = is_same and all(self._finished(name) == stamp for name, stamp in needs.items())
            return DONE if is_same else CHANGED
        # The part's own command, run alone.
        session = (self.run_json(part) or {})["sessions"][-1]
        asked = [word for word in session.get("command", ()) if word != "--resume"]
        return DONE if asked == part.command(self.path)[1:] else CHANGED

    def missing_needs(self, part: Part) -> list[str]:
        """Return what a part needs and is not done."""
        return [name for name in part.needs if self.state(self.study.parts[name]) != DONE]

    def more(self, part: Part) -> list[str]:
        """Return what is added to a part's command where it has begun."""
        return ["--resume"] if part.script == FINETUNE and self.run_json(part) is not None else []

    def _finished(self, name: str) -> str | None:
        """Return when the last session of a part came to its end."""
        record = self.run_json(self.study.parts[name]) if name in self.study.parts else None
        return record["sessions"][-1].get("finished") if record and record["sessions"] else None

    def note_end(self, part: Part, finished: str) -> None:
        """Write down that a part has ended well."""
        self.ended[part.name] = {
            "command": part.shell(self.path),
            "digest": self.study.digest(part.name),
            "finished": finished,
            "needs": {name: self._finished(name) for name in part.needs},
        }
        content = {"title": self.study.title, "file": str(self.study.file), "parts": self.ended}
        RunFolder(self.path).write_json("study.json", content)


def open_study_folder(study: Study, path: Path) -> StudyFolder:
    """Return the folder of a study, with what is known of it.

    Raises:
        UserError: It is a file, holds a run, or its `study.json` cannot be read.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give another folder with --output")
    if (path / "run.json").exists():
        raise UserError(f"output folder {path} holds a run; give another with --output")
    file = path / "study.json"
    if not file.exists():
        return StudyFolder(study=study, path=path)
    try:
        ended = json.loads(file.read_text(encoding="utf-8"))["parts"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}; take it away, and parts are looked at anew") from error
    if not isinstance(ended, Mapping) or not all(
        isinstance(entry, dict) and isinstance(entry.get("digest"), str) for entry in ended.values()
    ):
        raise UserError(f"{file} is not the record of a study; give another folder with --output")
    return StudyFolder(study=study, path=path, ended=dict(ended))
