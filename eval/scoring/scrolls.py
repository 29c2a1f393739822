"""The SCROLLS score: one number of seven tasks, as the benchmark ranks by.

It is the mean of the seven headline scores: the geometric mean of R1, R2 and RL of three sets of summaries, F1 of two
sets of questions, exact match of two sets of choices. With a task missing there is no such number.

Source: `EXPECTED_TASKS` and the last lines of `main` in `evaluator/benchmark_evaluator.py` of tau-nlp/scrolls at
5802e97, and `DATASET_TO_METRICS` in `metrics/scrolls.py` of the hub's data set tau/scrolls. There each task's score is
rounded to four digits of a percent first; here nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from eval.scoring.profiles import headline
from eval.scoring.significance import Estimate

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

Result = Mapping[str, Any]


def mean_of_tasks(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates from independent samples, with its 95% interval; none where one of them has none.

    Tasks share no documents, so variances add. The distance from the mean to either end is the root of the sum of the
    squared distances of the tasks on that side, over their number: the ends of their intervals say how far each task
    may lie, skewness and few documents included, and no variance has to be known.

    Source: Zou and Donner, Construction of confidence intervals about effect measures, Statistics in Medicine 27
    (2008), where this is the interval of a sum.
    """
    num_tasks = len(estimates)
    mean = sum(one.mean for one in estimates) / num_tasks
    below = [one.mean - one.low for one in estimates if one.low is not None]
    above = [one.high - one.mean for one in estimates if one.high is not None]
    if len(below) < num_tasks or len(above) < num_tasks:
        return Estimate(mean=mean, low=None, high=None)
    return Estimate(mean=mean, low=mean - math.hypot(*below) / num_tasks, high=mean + math.hypot(*above) / num_tasks)


def scrolls_score(results: Iterable[Result], num_expected: Mapping[str, int] | None = None) -> dict[str, Any] | None:
    """Return the SCROLLS score of one system at each length, JSON-ready; None with fewer than two of its tasks.

    `scores` has an entry a length and set of templates at which all seven tasks are; `missing` says what is not there.
    Tasks have templates of their own names: a task with several has an entry for each, beside those
    of the others of the same name, or their only ones.

    Args:
        results: Of one system, of `scores.json` or rows of a leaderboard with `task` and `profile`; others than those
            of models on all examples pass by.
        num_expected: Examples of each task; one that lacks a prediction has no score, as in the benchmark.
    """
    of_models = [
        one
        for one in results
        if one["task"] in SCROLLS_TASKS and one.get("kind", "model") == "model" and one.get("subset", "all") == "all"
    ]
    tasks = {one["task"] for one in of_models}
    if len(tasks) < _MIN_TASKS:
        return None
    missing = [f"{task} (not there)" for task in SCROLLS_TASKS if task not in tasks]
    usable = []
    for one in of_models:
        task, profile = one["task"], SCROLLS_TASKS[one["task"]]
        absent = (num_expected or {}).get(task, 0) - one["num_examples"]
        if one["profile"] != profile:
            missing.append(f"{task} (scored under profile {one['profile']}, not {profile})")
        elif absent > 0:
            missing.append(f"{task} ({absent} predictions not there at {one['maxlen']:,})")
        else:
            usable.append(one)
    scores = list(_scores(usable))
    if not missing and not scores:
        missing.append("a length and a template that all seven have")
    return {"scores": scores, "missing": list(dict.fromkeys(missing))}


def _scores(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for maxlen in sorted({one["maxlen"] for one in results}):
        by_task: dict[str, dict[str, Result]] = {task: {} for task in SCROLLS_TASKS}
        for one in results:
            if one["maxlen"] == maxlen:
                by_task[one["task"]][one["template"]] = one
        several = dict.fromkeys(name for found in by_task.values() if len(found) > 1 for name in found)
        for template in several or [""]:
            chosen = {task: _one_of(found, template) for task, found in by_task.items()}
            parts = {task: one for task, one in chosen.items() if one is not None}
            if len(parts) == len(SCROLLS_TASKS):
                yield _entry(maxlen, template, parts)


def _one_of(found: Mapping[str, Result], template: str) -> Result | None:
    return next(iter(found.values())) if len(found) == 1 else found.get(template)


def _entry(maxlen: int, template: str, parts: Mapping[str, Result]) -> dict[str, Any]:
    each = {task: one["metrics"][headline(SCROLLS_TASKS[task])] for task, one in parts.items()}
    total = mean_of_tasks([Estimate(**estimate) for estimate in each.values()])
    return {
        "maxlen": maxlen,
        "template": template,
        "templates": {task: one["template"] for task, one in parts.items()},
        "mean": total.mean,
        "low": total.low,
        "high": total.high,
        "num_examples": {task: one["num_examples"] for task, one in parts.items()},
        "tasks": {task: estimate["mean"] for task, estimate in each.items()},
    }


def describe_missing(found: Mapping[str, Any]) -> str:
    """Return why there is no SCROLLS score, or not everywhere, in a sentence; empty where nothing is missing."""
    if not found["missing"]:
        return ""
    where = "not everywhere" if found["scores"] else "none"
    return f"SCROLLS score, the mean of seven tasks: {where}; missing: {', '.join(found['missing'])}."
