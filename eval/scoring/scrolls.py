"""The SCROLLS score: one number of seven tasks, as the benchmark ranks by.

It is the mean of the seven headline scores: the geometric mean of R1, R2 and RL of three sets of summaries, F1 of two
sets of questions, exact match of two sets of choices. With a task missing there is no such number.

Source: `EXPECTED_TASKS` and the last lines of `main` in `evaluator/benchmark_evaluator.py` of tau-nlp/scrolls at
5802e97, and `DATASET_TO_METRICS` in `metrics/scrolls.py` of the hub's data set tau/scrolls. There each task's score is
rounded to four digits of a percent first; here nothing is.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from eval.records.journal import fingerprint
from eval.records.schema import (
    Board,
    BoardRow,
    Estimate,
    RankedRun,
    Result,
    ScrollsBoard,
    ScrollsEntry,
    ScrollsMissing,
    ScrollsRow,
    ScrollsScore,
)
from eval.scoring.board import result_of
from eval.scoring.examples import setting_of
from eval.scoring.profiles import headline

SCROLLS_TASKS = {
    "gov_report": "scrolls",
    "summ_screen_fd": "scrolls",
    "qmsum": "scrolls",
    "narrative_qa": "f1",
    "qasper": "f1",
    "quality": "exact_match",
    "contract_nli": "exact_match",
}
_MIN_TASKS = 2  # fewer are no attempt at the benchmark


def mean_of_tasks(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates from independent samples, with its 95% interval; none where one of them has none.

    Tasks share no documents, so variances add. The distance from the mean to either end is the root of the sum of the
    squared distances of the tasks on that side, over their number: the ends of their intervals say how far each task
    may lie, skewness and few documents included, and no variance has to be known.

    Source: Zou and Donner, Construction of confidence intervals about effect measures, Statistics in Medicine 27
    (2008), where this is the interval of a sum.
    """
    num_tasks = len(estimates)
    mean = sum(one.value for one in estimates) / num_tasks
    below = [one.value - one.low for one in estimates if one.low is not None]
    above = [one.high - one.value for one in estimates if one.high is not None]
    if len(below) < num_tasks or len(above) < num_tasks:
        return Estimate(mean=mean, low=None, high=None)
    return Estimate(mean=mean, low=mean - math.hypot(*below) / num_tasks, high=mean + math.hypot(*above) / num_tasks)


def scrolls_score(results: Iterable[Result], num_expected: Mapping[str, int] = {}) -> ScrollsScore | None:
    """Return the SCROLLS score of a run at each length; None with fewer than two of its tasks.

    A task with several templates has an entry for each, beside those of the other tasks of the same name, or their only
    ones.

    Given how many examples each task should have, one that lacks a prediction has no score, as in the benchmark.
    """
    of_benchmark = [one for one in results if one.task in SCROLLS_TASKS and (one.kind, one.subset) == ("model", "all")]
    tasks = {one.task for one in of_benchmark}
    if len(tasks) < _MIN_TASKS:
        return None
    missing = [f"{task} (not there)" for task in SCROLLS_TASKS if task not in tasks]
    usable = []
    for one in of_benchmark:
        expected = SCROLLS_TASKS[one.task]
        num_absent = num_expected.get(one.task, 0) - one.num_examples
        if one.profile != expected:
            missing.append(f"{one.task} (scored under profile {one.profile}, not {expected})")
        elif num_absent > 0:
            missing.append(f"{one.task} ({num_absent} predictions not there at {one.maxlen:,})")
        else:
            usable.append(one)
    scores = list(_entries(usable))
    if not missing and not scores:
        missing.append("a length and a template that all seven have")
    return ScrollsScore(scores=scores, missing=list(dict.fromkeys(missing)))


def _entries(usable: Sequence[Result]) -> Iterator[ScrollsEntry]:
    for maxlen in sorted({one.maxlen for one in usable}):
        by_task: dict[str, dict[str, Result]] = {task: {} for task in SCROLLS_TASKS}
        for one in usable:
            if one.maxlen == maxlen:
                by_task[one.task][one.template] = one
        several = dict.fromkeys(name for found in by_task.values() if len(found) > 1 for name in found)
        for template in several or [""]:
            chosen = {
                task: next(iter(found.values())) if len(found) == 1 else found.get(template)
                for task, found in by_task.items()
            }
            parts = {task: result for task, result in chosen.items() if result is not None}
            if len(parts) == len(SCROLLS_TASKS):
                yield _entry(maxlen, template, parts)


def _entry(maxlen: int, template: str, parts: Mapping[str, Result]) -> ScrollsEntry:
    each = {task: one.metrics[headline(SCROLLS_TASKS[task])] for task, one in parts.items()}
    return ScrollsEntry(
        maxlen=maxlen,
        template=template,
        templates={task: one.template for task, one in parts.items()},
        **vars(mean_of_tasks(list(each.values()))),
        num_examples={task: one.num_examples for task, one in parts.items()},
        tasks={task: estimate.value for task, estimate in each.items()},
    )


def rank_scrolls(boards: Iterable[Board], runs: Mapping[str, RankedRun]) -> ScrollsBoard | None:
    """Return the SCROLLS score of each system on the boards; None where no system has two of the seven tasks.

    A system is a model under a plan and a way to generate on one split; its tasks may be answered in several run
    folders, each in one of them.
    """
    systems: dict[str, list[tuple[BoardRow, Result]]] = {}
    for board in boards:
        for row in board.rows:
            systems.setdefault(_system(row, runs[row.run]), []).append((row, result_of(board, row, row.model)))
    rows: list[ScrollsRow] = []
    missing: list[ScrollsMissing] = []
    for results in systems.values():
        scores = [score for _, score in results]
        found = scrolls_score(scores)
        if found is None:
            continue
        names, first = list(dict.fromkeys(row.run for row, _ in results)), results[0][0]
        if twice := _answered_twice(scores):
            unclear = f"which folder counts for {', '.join(twice)}"
            missing.append(ScrollsMissing(runs=names, missing=[unclear], has_scores=False))
            continue
        rows += [
            ScrollsRow(model=first.model, plan=first.plan, dtype=first.dtype, runs=names, **vars(entry))
            for entry in found.scores
        ]
        if found.missing:
            missing.append(ScrollsMissing(runs=names, missing=found.missing, has_scores=bool(found.scores)))
    if not rows and not missing:
        return None
    rows.sort(key=lambda row: (-row.value, row.runs, row.template, row.maxlen))
    return ScrollsBoard(rows=rows, missing=missing)


def _system(row: BoardRow, run: RankedRun) -> str:
    # The room for an answer belongs to the task, and so do the solved examples, but not their number and seed.
    shots = row.settings.get("shots")
    drawn = shots and [len(shots["ids"]), shots.get("seed")]
    settings = row.settings | {"max_new_tokens": None, "shots": drawn}
    return fingerprint(row.model, run.weights, row.plan, row.dtype, json.dumps(settings, sort_keys=True))


def _answered_twice(scores: Sequence[Result]) -> list[str]:
    """Return the tasks that a system has answered in several folders under one template and length."""
    keys = Counter(setting_of(one) for one in scores)
    return sorted({task for (task, _, _), count in keys.items() if count > 1})
