"""Rank many scored runs by quality, beside what each cost: task x model x plan x template x length.

    python -m eval.leaderboard DIR [--profile hf] [--margin 0.01] [--cost cache_bytes] [--output DIR]

Each task has a board, under the profile that most of its runs were scored under, unless another is given. All that a
board ranks answered the same examples about the same documents, so that any two rows can be paired; every run that is
left out is named with the reason. Needs no model and no data set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.errors import UserError
from eval.jobs import CommandParser, margin_share, run_command
from eval.reporting.charts import COSTS
from eval.reporting.leaderboard_report import write_leaderboard
from eval.reporting.leaderboard_tables import render_terminal
from eval.scoring.board import Candidate, plain, rank, read_candidate
from eval.scoring.examples import SCORING_VERSION
from eval.scoring.profiles import PROFILES
from eval.scoring.scrolls_ranking import scrolls_ranking
from eval.scoring.significance import MARGIN

_NUM_REASONS = 5  # that an error names


def make_leaderboard(
    directory: Path, profile: str | None, margin: float, cost: str, runs: Collection[Path] | None = None
) -> dict[str, Any]:
    """Return `leaderboard.json`: boards, what was left out, and the runs that are ranked.

    Args:
        directory: Run folders are looked for in it and below.
        profile: Of all boards; None takes for each the one that most runs of its task were scored under.
        margin: That "as good as the best" allows, fixed beforehand.
        cost: Of `COSTS`, against which the frontier is drawn.
        runs: Those in the directory that are looked at; None looks at all.

    Raises:
        UserError: There is nothing to rank; it says why.
    """
    root = directory.absolute()
    if not root.is_dir():
        raise UserError(f"{directory} is not a folder; give one that holds run folders")
    candidates, left_out = _read_all(root, None if runs is None else {run.absolute() for run in runs})
    boards = []
    for task in dict.fromkeys(task for candidate in candidates for task in candidate.tasks):
        of_task = [one for one in candidates if task in one.tasks]
        of_board = profile or _most_common_profile(one.profiles[task] for one in of_task)
        ranked, others = _split(of_task, task, of_board)
        left_out += others
        if ranked:
            board, apart = rank(ranked, task, of_board, margin, cost)
            boards.append(board)
            left_out += [_left_out(name, task, reason) for name, reason in apart.items()]
    if not boards:
        raise UserError(f"nothing to rank in {directory}: {_why(left_out)}")
    on_board = {row["run"] for board in boards for row in board["rows"]}
    ranked = [one for one in candidates if one.name in on_board]
    models = shorten([candidate.about["model"] for candidate in ranked])
    scrolls = scrolls_ranking(boards, {one.name: one.about for one in ranked})
    for row in [*(row for board in boards for row in board["rows"]), *(scrolls["rows"] if scrolls else [])]:
        row["model"] = models[row["model"]]
    commands = {
        one.name: [command.replace(one.about["model"], models[one.about["model"]]) for command in one.about["commands"]]
        for one in ranked
    }
    return {
        "margin": margin,
        "cost": cost,
        "scoring_version": SCORING_VERSION,
        "boards": boards,
        "scrolls_score": scrolls,
        "left_out": sorted(left_out, key=lambda one: (one["run"], one["task"] or "")),
        "runs": [
            {"run": one.name, **one.about, "model": models[one.about["model"]], "commands": commands[one.name]}
            for one in ranked
        ],
    }


def _read_all(root: Path, only: Collection[Path] | None) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Return the runs that may be ranked, and why others are left out."""
    candidates: list[Candidate] = []
    left_out: list[dict[str, Any]] = []
    unreadable: list[OSError] = []
    for path in tqdm(list(_find_runs(root, unreadable)), desc="reading runs", delay=2, leave=False, disable=None):
        if only is not None and path not in only:
            continue
        name = plain(path.relative_to(root).as_posix() if path != root else root.name)
        if path.is_symlink():
            left_out.append(_left_out(name, None, "a link; give the folder that it leads to"))
            continue
        try:
            candidates.append(read_candidate(path, name))
        except UserError as error:
            left_out.append(_left_out(name, None, _reason(error, root, name)))
        except (LookupError, TypeError, AttributeError, ValueError, OSError) as error:
            # One broken folder among many must not hide the others.
            found = f"its files are not those of one scored run ({type(error).__name__}: {error})"
            left_out.append(_left_out(name, None, _reason(found, root, name)))
    for problem in unreadable:
        name = plain(Path(problem.filename).relative_to(root).as_posix())
        left_out.append(_left_out(name, None, f"cannot be read: {problem.strerror}"))
    return candidates, left_out


def _find_runs(root: Path, unreadable: list[OSError]) -> Iterator[Path]:
    """Yield each folder that holds a `run.json`, in order; links are yielded and not followed further.

    Args:
        root: Where to begin.
        unreadable: Takes what the disk says of folders that cannot be looked into.
    """
    for folder, names, files in os.walk(root, onerror=unreadable.append):
        names.sort()
        if "run.json" in files:
            yield Path(folder)
        yield from (
            link for name in names if (link := Path(folder) / name).is_symlink() and (link / "run.json").exists()
        )


def _left_out(run: str, task: str | None, reason: str) -> dict[str, Any]:
    return {"run": run, "task": task, "reason": reason}


def _reason(problem: object, root: Path, name: str) -> str:
    """Return why a run is left out, with paths as seen from the folder that is ranked.

    What to type against it is told once for all (`RESCORE`), because a board does not know where it is read.
    """
    text = plain(problem).partition("; run: ")[0]
    above = plain(root).rstrip(os.sep)
    if above:
        text = text.replace(f"{above}{os.sep}", "").replace(above, plain(root.name))
    return text.removeprefix(f"{name} ")


def _most_common_profile(profiles: Iterable[str]) -> str:
    counts = Counter(profiles)
    return max(PROFILES, key=lambda profile: counts[profile])


def _split(candidates: Sequence[Candidate], task: str, profile: str) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Return the runs whose scores of a task are under the profile, and the others as left out."""
    ranked = [one for one in candidates if one.profiles[task] == profile]
    left_out = [
        _left_out(one.name, task, f"scored under profile {one.profiles[task]} where {profile} is ranked")
        for one in candidates
        if one.profiles[task] != profile
    ]
    return ranked, left_out


def _why(left_out: Sequence[dict[str, Any]]) -> str:
    if not left_out:
        return "no folder in it or below holds a run.json"
    reasons = [f"{one['run']}: {one['reason']}" for one in left_out[:_NUM_REASONS]]
    more = len(left_out) - len(reasons)
    return " | ".join([*reasons, *([f"and {more} more"] if more else [])])


def shorten(references: Iterable[str]) -> dict[str, str]:
    """Return what each model is called: its reference, and of an absolute path the last parts.

    Three parts, or as many as tell all paths apart: what lies above them is one machine's own.
    """
    references = list(dict.fromkeys(references))
    parts = {name: Path(name).parts[1:] for name in references if Path(name).is_absolute()}
    num_parts = 3
    while len({path[-num_parts:] for path in parts.values()}) < len(set(parts.values())):
        num_parts += 1
    return {name: "/".join(parts[name][-num_parts:]) if name in parts else name for name in references}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.leaderboard", __doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="run folders are looked for in it and below")
    parser.add_argument(
        "--profile", choices=list(PROFILES), help="of all boards (default: of each, what most runs have)"
    )
    parser.add_argument(
        "--margin", metavar="X", type=margin_share, default=MARGIN, help=f"of the best, a fraction (default: {MARGIN})"
    )
    parser.add_argument(
        "--cost", choices=list(COSTS), default="attention_flops", help="of the frontier (default: attention_flops)"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="for what is written (default: DIR/leaderboard)")
    parser.add_argument("--json", action="store_true", help="print leaderboard.json instead of tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Rank, and return the exit status: 0, or 2 after one line on what is wrong."""
    asked = _parse(arguments)
    output = asked.output or asked.directory / "leaderboard"

    def work() -> None:
        if (output / "run.json").exists():
            raise UserError(f"output folder {output} holds a run; give another with --output")
        content = make_leaderboard(asked.directory, asked.profile, asked.margin, asked.cost)
        write_leaderboard(output, content)
        if asked.json:
            print(json.dumps(content, indent=2, ensure_ascii=False))
        else:
            print(render_terminal(content))
            print(f"\nleaderboard: {output / 'leaderboard.html'}, and as .md, .csv, .json\nplots: {output / 'plots'}")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
