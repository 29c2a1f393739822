"""Run folders -> a leaderboard: a board for each task, the ranking by the SCROLLS score, and what was left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from eval.errors import UserError
from eval.records.schema import BoardRow, Leaderboard, LeftOut, RankedRun, ScrollsRow
from eval.scoring.board import Candidate, plain, rank, read_candidate, shorten
from eval.scoring.examples import SCORING_VERSION
from eval.scoring.profiles import PROFILES
from eval.scoring.scrolls import rank_scrolls

_NUM_REASONS = 5  # that an error names
Named = TypeVar("Named", BoardRow, ScrollsRow, RankedRun)


def make_leaderboard(
    directory: Path, profile: str | None, margin: float, cost: str, runs: Collection[Path] | None = None
) -> Leaderboard:
    """Rank the run folders in a directory and below.

    Each board has the profile that most runs of its task were scored under, unless one is given. The frontier is drawn
    against a field of `Cost`. Only `runs` count where they are given.

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
        counts = Counter(one.profiles[task] for one in of_task)
        of_board = profile or max(PROFILES, key=counts.__getitem__)
        for one in of_task:
            if one.profiles[task] != of_board:
                reason = f"scored under profile {one.profiles[task]} where {of_board} is ranked"
                left_out.append(LeftOut(run=one.name, task=task, reason=reason))
        if ranked := [one for one in of_task if one.profiles[task] == of_board]:
            board, apart = rank(ranked, task, of_board, margin, cost)
            boards.append(board)
            left_out += [LeftOut(run=name, task=task, reason=reason) for name, reason in apart.items()]
    if not boards:
        raise UserError(f"nothing to rank in {directory}: {_why(left_out)}")
    on_board = {row.run for board in boards for row in board.rows}
    made = [one.about for one in candidates if one.name in on_board]
    return _with_short_names(
        Leaderboard(
            margin=margin,
            cost=cost,
            scoring_version=SCORING_VERSION,
            boards=boards,
            scrolls_score=rank_scrolls(boards, {run.run: run for run in made}),
            left_out=sorted(left_out, key=lambda one: (one.run, one.task or "")),
            runs=made,
        )
    )


def _with_short_names(content: Leaderboard) -> Leaderboard:
    """Return a leaderboard whose models have short names, in commands too."""
    names = shorten(run.model for run in content.runs)

    def named(row: Named) -> Named:
        return replace(row, model=names[row.model])

    def shorter(run: RankedRun) -> RankedRun:
        return replace(named(run), commands=[one.replace(run.model, names[run.model]) for one in run.commands])

    scrolls = content.scrolls_score
    return replace(
        content,
        boards=[replace(board, rows=list(map(named, board.rows))) for board in content.boards],
        scrolls_score=scrolls and replace(scrolls, rows=list(map(named, scrolls.rows))),
        runs=list(map(shorter, content.runs)),
    )


def _read_all(root: Path, only: Collection[Path] | None) -> tuple[list[Candidate], list[LeftOut]]:
    """Return the runs that may be ranked, and why others are left out."""
    candidates: list[Candidate] = []
    left_out: list[LeftOut] = []
    unreadable: list[OSError] = []
    for path in tqdm(list(_find_runs(root, unreadable)), desc="reading runs", delay=2, leave=False, disable=None):
        if only is not None and path not in only:
            continue
        name = plain(path.relative_to(root).as_posix() if path != root else root.name)
        if path.is_symlink():
            left_out.append(LeftOut(run=name, task=None, reason="a link; give the folder that it leads to"))
            continue
        try:
            candidates.append(read_candidate(path, name))
        except UserError as error:
            left_out.append(LeftOut(run=name, task=None, reason=_reason(error, root, name)))
        except (LookupError, TypeError, AttributeError, ValueError, OSError) as error:
            # One broken folder among many must not hide the others.
            found = f"its files are not those of one scored run ({type(error).__name__}: {error})"
            left_out.append(LeftOut(run=name, task=None, reason=_reason(found, root, name)))
    for problem in unreadable:
        name = plain(Path(problem.filename).relative_to(root).as_posix())
        left_out.append(LeftOut(run=name, task=None, reason=f"cannot be read: {problem.strerror}"))
    return candidates, left_out


def _find_runs(root: Path, unreadable: list[OSError]) -> Iterator[Path]:
    """Yield each folder that holds a `run.json`, in order; links are yielded and not followed further.

    The list receives the errors of folders that cannot be listed.
    """
    for folder, names, files in os.walk(root, onerror=unreadable.append):
        names.sort()
        if "run.json" in files:
            yield Path(folder)
        yield from (
            link for name in names if (link := Path(folder) / name).is_symlink() and (link / "run.json").exists()
        )


def _reason(problem: object, root: Path, name: str) -> str:
    """Return why a run is left out, with paths as seen from the folder that is ranked.

    The remedy is cut off: a leaderboard gives it once for all, because it does not know where it is read.
    """
    text = plain(problem).partition("; run: ")[0]
    above = plain(root).rstrip(os.sep)
    if above:
        text = text.replace(f"{above}{os.sep}", "").replace(above, plain(root.name))
    return text.removeprefix(f"{name} ")


def _why(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "no folder in it or below holds a run.json"
    reasons = [f"{one.run}: {one.reason}" for one in left_out[:_NUM_REASONS]]
    more = len(left_out) - len(reasons)
    return " | ".join([*reasons, *([f"and {more} more"] if more else [])])
