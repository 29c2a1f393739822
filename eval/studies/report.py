"""The report of a study, from the folders of its parts alone: `report.md`, `plots/`, and `gallery/`.

What is missing is said, with the command that makes it. Neither report nor gallery holds texts of documents or answers.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from eval.errors import UserError
from eval.records.disk import inside
from eval.records.run_folder import RunFolder
from eval.reporting.charts import Spec, save_charts
from eval.reporting.columns import charted_costs
from eval.reporting.leaderboard_report import write_leaderboard
from eval.reporting.tables import as_markdown
from eval.scoring.claims import MARGIN
from eval.scoring.leaderboard import make_leaderboard
from eval.studies.answers import write_repetition, write_scores
from eval.studies.claims_section import EXPLORATORY, write_claims
from eval.studies.costs import write_costs, write_training
from eval.studies.folder import DONE, StudyFolder
from eval.studies.ladders import write_ladders
from eval.studies.losses import write_perplexity, write_placements
from eval.studies.parts import KINDS, RUN, Section
from eval.studies.section import Draft
from tasks.command import as_typed

SECTIONS: dict[str, Callable[[Draft], None]] = {
    "perplexity": write_perplexity,
    "placements": write_placements,
    "rouge": write_scores,
    "ladder": write_ladders,
    "training": write_training,
    "cost": write_costs,
    "repetition": write_repetition,
}


def write_report(folder: StudyFolder) -> str:
    """Write the report of what is there, and return a line on where it is.

    Raises:
        UserError: The disk refuses.
    """
    study, states = folder.study, {name: folder.state(part) for name, part in folder.study.parts.items()}
    command = shlex.join(["python", "-m", "eval.study", str(study.file), "--output", str(folder.path)])
    rows = [["part", "script", "state"]]
    rows += [[name, f"`{part.script}`", states[name]] for name, part in study.parts.items()]
    blocks = [f"# {study.title}", study.text.strip(), _shell(as_typed(command)), as_markdown(rows, 3)]
    claims = write_claims(folder)
    blocks += claims
    charts: dict[str, Spec] = {}
    for section in study.sections:
        draft = _section(folder, section)
        exploratory = [EXPLORATORY] if claims else []
        remarks = [section.text.strip(), *exploratory, *_remarks(section, draft, states)]
        blocks += [f"## {section.title}", *remarks, *draft.blocks]
        # What a complete part is made by anew, and how others go on.
        more = {part: () if folder.is_complete(part) else folder.more(part) for part in study.chosen(section.parts)}
        blocks.append(_shell(*(one for part, words in more.items() for one in part.shells(folder.path, *words))))
        charts |= draft.charts
    save_charts(folder.path / "plots", charts, rf"({'|'.join(KINDS)})-.+")
    blocks += ["## Gallery", _make_gallery(folder)]
    RunFolder(folder.path).write_text("report.md", "\n\n".join(block for block in blocks if block) + "\n")
    num_done = sum(state == DONE for state in states.values())
    return f"{num_done} of {len(states)} parts are done; report: {folder.path / 'report.md'}"


def _shell(*commands: str) -> str:
    return "\n".join(["```sh", *commands, "```"])


def _section(folder: StudyFolder, section: Section) -> Draft:
    """Return what a section says of those of its parts that are complete."""
    parts = [part for name in section.parts if folder.is_complete(part := folder.study.parts[name])]
    draft = Draft(
        section=section,
        folders={part.name: folder.path / part.name for part in parts},
        records={part.name: folder.record(part) for part in parts},
    )
    try:
        if parts:
            SECTIONS[section.kind](draft)
    except UserError as error:
        draft.say(f"This section cannot be made: {error}.")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        # One broken folder among many must not hide the other sections.
        draft.say(f"This section cannot be made: a folder is broken ({type(error).__name__}: {error}).")
    return draft


def _remarks(section: Section, draft: Draft, states: dict[str, str]) -> list[str]:
    """Return what is to be known of the parts of a section before its tables."""
    remarks = []
    if missing := [f"`{name}` ({states[name]})" for name in section.parts if name not in draft.folders]:
        remarks.append(f"Missing: {', '.join(missing)}. The commands below make them.")
    if changed := [f"`{name}`" for name in draft.folders if states[name] != DONE]:
        remarks.append(f"Made by other settings than the study has now: {', '.join(changed)}.")
    if section.reference is not None and section.reference not in draft.folders:
        remarks.append(f"Nothing is compared, because the reference `{section.reference}` is missing.")
    return remarks


def _make_gallery(folder: StudyFolder) -> str:
    """Rank the runs of answers, and return a line on where, or why not."""
    runs = [folder.path / p.name for p in folder.study.parts.values() if p.script == RUN and folder.is_complete(p)]
    if not runs:
        return "There is no gallery: no part of `eval/run.py` is there."
    try:
        content = make_leaderboard(folder.path, None, MARGIN, next(iter(charted_costs())), runs)
    except UserError as error:
        return f"There is no gallery: {error}"
    write_leaderboard(inside(folder.path, "gallery"), content, folder.path)
    return (
        "A ranking of all runs, without texts: [gallery/leaderboard.md](gallery/leaderboard.md); "
        "`gallery/leaderboard.html` beside it is a page to sort and filter."
    )
