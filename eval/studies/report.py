"""The report of a study, from the folders of its parts alone: `report.md`, `plots/`, and `gallery/`.

What is missing is said, with the command that makes it. Neither report nor gallery holds texts of documents or answers.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from eval.errors import UserError
from eval.records.run_folder import RunFolder
from eval.reporting.charts import COSTS, Spec, save_charts
from eval.reporting.leaderboard_report import write_leaderboard
from eval.reporting.tables import as_markdown
from eval.scoring.leaderboard import make_leaderboard
from eval.scoring.significance import MARGIN
from eval.studies.answers import repetition_section, rouge_section
from eval.studies.costs import cost_section, training_section
from eval.studies.losses import perplexity_section, placements_section
from eval.studies.parts import KINDS, RUN, Section
from eval.studies.section import Content, Given
from eval.studies.state import DONE, StudyFolder

SECTIONS: dict[str, Callable[[Given], Content]] = {
    "perplexity": perplexity_section,
    "placements": placements_section,
    "rouge": rouge_section,
    "training": training_section,
    "cost": cost_section,
    "repetition": repetition_section,
}
_COST = next(iter(COSTS))


def write_report(folder: StudyFolder) -> str:
    """Write the report of what is there, and return a line on where it is.

    Raises:
        UserError: The disk refuses.
    """
    study = folder.study
    charts: dict[str, Spec] = {}
    blocks = [f"# {study.title}", *([study.text.strip()] if study.text else []), *_parts(folder)]
    for section in study.sections:
        content = _section(folder, section)
        blocks += [f"## {section.title}", *([section.text.strip()] if section.text else []), *content.blocks]
        blocks.append(_commands(folder, section))
        charts |= content.charts
    save_charts(folder.path / "plots", charts, rf"({'|'.join(KINDS)})-.+")
    gallery = _make_gallery(folder)
    blocks += ["## Gallery", gallery]
    RunFolder(folder.path).write_text("report.md", "\n\n".join(blocks) + "\n")
    num_done = sum(folder.state(part) == DONE for part in study.parts.values())
    return f"{num_done} of {len(study.parts)} parts are done; report: {folder.path / 'report.md'}"


def _parts(folder: StudyFolder) -> list[str]:
    """Return the parts with their states, and the command that makes all."""
    rows = [["part", "script", "state"]]
    rows += [[part.name, f"`{part.script}`", folder.state(part)] for part in folder.study.parts.values()]
    words = ["python", "-m", "eval.study", str(folder.study.file), "--output", str(folder.path)]
    return [_shell(shlex.join(words)), as_markdown(rows, 3)]


def _shell(*commands: str) -> str:
    return "\n".join(["```sh", *commands, "```"])


def _section(folder: StudyFolder, section: Section) -> Content:
    """Return what a section says of those of its parts that are complete."""
    parts = {name: folder.study.parts[name] for name in section.parts}
    there = {name: folder.path / name for name, part in parts.items() if folder.is_complete(part)}
    content = Content(section=section)
    if there:
        given = Given(section=section, folders=there, scripts={name: part.script for name, part in parts.items()})
        try:
            content = SECTIONS[section.kind](given)
        except UserError as error:
            content.say(f"This section cannot be made: {error}.")
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            # One broken folder among many must not hide the other sections.
            content.say(f"This section cannot be made: a folder is broken ({type(error).__name__}: {error}).")
    content.blocks[:0] = _remarks(folder, section, there)
    return content


def _remarks(folder: StudyFolder, section: Section, there: Mapping[str, Path]) -> list[str]:
    """Return what is to be known of the parts of a section before its tables."""
    states = {name: folder.state(folder.study.parts[name]) for name in section.parts}
    remarks = []
    if missing := [f"`{name}` ({states[name]})" for name in section.parts if name not in there]:
        remarks.append(f"Missing: {', '.join(missing)}. The commands below make them.")
    if changed := [f"`{name}`" for name in there if states[name] != DONE]:
        remarks.append(f"Made by other settings than the study has now: {', '.join(changed)}.")
    if section.reference is not None and section.reference not in there:
        remarks.append(f"Nothing is compared, because the reference `{section.reference}` is missing.")
    return remarks


def _commands(folder: StudyFolder, section: Section) -> str:
    """Return the commands that make the parts of a section, what they need first."""
    parts = folder.study.chosen(section.parts)
    return _shell(*(part.shell(folder.path, *folder.more(part) * (not folder.is_complete(part))) for part in parts))


def _make_gallery(folder: StudyFolder) -> str:
    """Rank the runs of answers, and return a line on where, or why not."""
    runs = [folder.path / p.name for p in folder.study.parts.values() if p.script == RUN and folder.is_complete(p)]
    if not runs:
        return "There is no gallery: no part of `eval/run.py` is there."
    try:
        content = make_leaderboard(folder.path, None, MARGIN, _COST, runs)
    except UserError as error:
        return f"There is no gallery: {error}"
    write_leaderboard(folder.path / "gallery", content)
    return "A ranking of all runs: [gallery/leaderboard.html](gallery/leaderboard.html), without texts."
