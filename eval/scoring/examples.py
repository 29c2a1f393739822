"""Predictions -> scores of each example, means with intervals, and comparisons. Needs no model and no data set.

    scores = score_examples(predictions, examples, documents, {"plos": "hf", "qasper": "f1"}, "smollm2-135m")
    results = summarize(scores.scored)

Beside each prediction stand the yardsticks that need no model (`eval.scoring.baselines`), from what the prompt showed
of the document. Intervals and tests resample documents (`eval.scoring.significance`).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.scoring.answers import first_line
from eval.scoring.baselines import (
    Yardstick,
    common_answer,
    objective,
    prepare_document,
    visible_share,
    word_budget,
    yardsticks,
)
from eval.scoring.profiles import PROFILES, headline, metric_columns, score_prediction
from eval.scoring.significance import MARGIN, compare_paired, holm, is_non_inferior, mean_interval

# Raised by hand when the code changes what a score is: runs that are compared were scored alike.
SCORING_VERSION = 2

Line = Mapping[str, Any]
Setting = tuple[str, str, int]  # task, template, maxlen


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One text beside its references.

    Attributes:
        line: Of `example_scores.jsonl`.
        profile: Under which its task is scored.
        prediction: Line of `predictions.jsonl` that it is, or whose window it is drawn from.
        evidence_visible: Share of the gold evidence that was shown; None where the source names none.
    """

    line: dict[str, Any]
    profile: str
    prediction: Line
    evidence_visible: float | None

    @property
    def is_model(self) -> bool:
        return bool(self.line["is_model"])

    @property
    def setting(self) -> Setting:
        return self.line["task"], self.line["template"], self.line["maxlen"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What scoring leaves.

    Attributes:
        scored: In the order of the predictions, each followed by its yardsticks.
        yardsticks: By task, what those beside it are made with: `word_budget` and `objective`, None where there is no
            part of the document among them, and `common_answer`, None where it is not one.
    """

    scored: Sequence[Scored]
    yardsticks: dict[str, dict[str, Any]]


def values_of(lines: Iterable[Line], columns: Sequence[str]) -> NDArray[np.float64]:
    """Return (N, k) scores of lines of `example_scores.jsonl`."""
    return np.array([[line["metrics"][column] for column in columns] for line in lines], dtype=np.float64)


def score_examples(
    predictions: Sequence[Line],
    examples: Iterable[Line],
    documents: Iterable[Line],
    profiles: Mapping[str, str],
    system: str,
    first_line_tasks: Collection[str] = (),
) -> Scores:
    """Return the score of each prediction and of the yardsticks beside it.

    Args:
        predictions: Lines of `predictions.jsonl`.
        examples: Lines of `examples.jsonl`.
        documents: Lines of `documents.jsonl.gz`.
        profiles: Of `PROFILES`, by task.
        system: Name of what predicted.
        first_line_tasks: Whose predictions are scored by their first line; yardsticks are scored whole.
    """
    known = {(line["task"], line["id"]): line for line in examples}
    by_document: dict[tuple[str, str], dict[str, dict[str, list[Line]]]] = {}
    references: dict[str, list[Sequence[str]]] = defaultdict(list)
    for line in predictions:
        example = known[line["task"], line["id"]]
        of_document = by_document.setdefault((line["task"], example["document_id"]), {})
        if line["id"] not in of_document:
            references[line["task"]].append(example["references"])
        of_document.setdefault(line["id"], {}).setdefault(line["template"], []).append(line)
    made_with = {task: _made_with(profiles[task], of_task) for task, of_task in references.items()}
    texts = {(line["task"], line["document_id"]): line["text"] for line in documents}
    found: dict[tuple[str, str, str, int], list[Scored]] = {}
    for (task, name), asked in tqdm(by_document.items(), desc="scoring", delay=2, leave=False, disable=None):
        beside = _Beside(profiles[task], texts[task, name], made_with[task])
        for example_id, by_template in asked.items():
            example = known[task, example_id]
            memory = _Memory(profiles[task], example["references"])
            for lines in by_template.values():
                rows = beside.rows(lines, example)
                for line in lines:
                    text = first_line(line["text"]) if task in first_line_tasks else line["text"]
                    spoken: list[tuple[str, str, Any]] = [(system, text, None)]
                    spoken += [
                        (row.system, row.text, row.sentences if row.system == "visible_oracle" else None)
                        for row in rows[line["maxlen"]]
                    ]
                    found[task, line["template"], example_id, line["maxlen"]] = [
                        Scored(
                            line=_score_line(line, name, who, memory.score(text), sentences, is_model=index == 0),
                            profile=profiles[task],
                            prediction=line,
                            evidence_visible=visible_share(example["evidence"], line["context_spans"]),
                        )
                        for index, (who, text, sentences) in enumerate(spoken)
                    ]
    order = [(line["task"], line["template"], line["id"], line["maxlen"]) for line in predictions]
    return Scores(scored=[scored for key in order for scored in found[key]], yardsticks=made_with)


def _made_with(profile: str, references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return what the yardsticks of a task are made with; see `Scores`."""
    beside = PROFILES[profile].yardsticks
    has_parts = "lead" in beside
    return {
        "word_budget": word_budget(text for texts in references for text in texts) if has_parts else None,
        "objective": objective(profile) if has_parts else None,
        "common_answer": common_answer(references) if "common_answer" in beside else None,
    }


class _Beside:
    """The yardsticks about one document.

    Args:
        profile: Of its task.
        text: Of the document.
        made_with: Of `_made_with`.
    """

    def __init__(self, profile: str, text: str, made_with: Mapping[str, Any]) -> None:
        self._budget, answer = made_with["word_budget"], made_with["common_answer"]
        self._document = None if self._budget is None else prepare_document(text, profile)
        self._everywhere = [] if answer is None else [Yardstick(system="common_answer", text=answer)]

    def rows(self, lines: Sequence[Line], example: Line) -> dict[int, list[Yardstick]]:
        """Return the rows beside predictions of one example and template, by maxlen."""
        windows = {line["maxlen"]: line["context_spans"] for line in lines}
        if self._document is None:
            return dict.fromkeys(windows, self._everywhere)
        parts = yardsticks(self._document, windows, example["references"], example["query"], self._budget)
        return {maxlen: [*rows, *self._everywhere] for maxlen, rows in parts.items()}


class _Memory:
    """Scores of texts against the references of one example; many windows give the same text."""

    def __init__(self, profile: str, references: Sequence[str]) -> None:
        self.profile = profile
        self.references = references
        self._scores: dict[str, dict[str, float]] = {}

    def score(self, text: str) -> dict[str, float]:
        if text not in self._scores:
            self._scores[text] = score_prediction(self.profile, text, self.references)
        return self._scores[text]


def _score_line(
    prediction: Line,
    document: str,
    system: str,
    metrics: dict[str, float],
    sentences: Sequence[Any] | None,
    *,
    is_model: bool,
) -> dict[str, Any]:
    line = {name: prediction[name] for name in ("task", "template", "id")}
    line |= {"document_id": document, "maxlen": prediction["maxlen"], "system": system}
    line |= {"is_truncated": prediction["context_tokens_dropped"] > 0}
    line |= {"is_model": is_model, "metrics": metrics}
    return line if sentences is None else line | {"sentences": [list(span) for span in sentences]}


def summarize(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Return one result a task, template, length, subset and system: means with intervals, counts, cost.

    The subset `always_truncated` holds the examples that even the greatest length truncates: short documents, which all
    lengths show alike, dilute what length does. It is left out for a task and template where it is empty or everything.
    """
    results = []
    for subset, members in _subsets(scored):
        groups: dict[tuple[Setting, bool, str], list[Scored]] = defaultdict(list)
        for one in members:
            groups[one.setting, one.is_model, one.line["system"]].append(one)
        for ((task, template, maxlen), is_model, system), group in groups.items():
            lines, profile = [one.line for one in group], group[0].profile
            predictions = [one.prediction for one in group]
            documents = [line["document_id"] for line in lines]
            shares = [(one.evidence_visible, one.line["document_id"]) for one in group]
            results.append(
                {
                    "task": task,
                    "template": template,
                    "profile": profile,
                    "system": system,
                    "kind": "model" if is_model else "yardstick",
                    "subset": subset,
                    "maxlen": maxlen,
                    "num_examples": len(lines),
                    "num_documents": len(set(documents)),
                    "num_truncated": sum(line["context_tokens_dropped"] > 0 for line in predictions),
                    "metrics": {
                        metric: asdict(mean_interval(values_of(lines, columns), documents))
                        for metric, columns in metric_columns(profile).items()
                    },
                    "evidence_visible": _mean_share(shares) if is_model else None,
                    "cost": cost(predictions) if is_model else None,
                }
            )
    return results


def _subsets(scored: Sequence[Scored]) -> Iterator[tuple[str, list[Scored]]]:
    """Yield all, then those that the greatest length of their task and template truncates, unless none or all of it."""
    yield "all", list(scored)
    groups: dict[tuple[str, str], list[Scored]] = defaultdict(list)
    for one in scored:
        groups[one.setting[:2]].append(one)
    longest: list[Scored] = []
    for group in groups.values():
        greatest = max(one.setting[2] for one in group)
        truncated = {
            one.line["id"]
            for one in group
            if one.setting[2] == greatest and one.prediction["context_tokens_dropped"] > 0
        }
        members = [one for one in group if one.line["id"] in truncated]
        longest += members if len(members) < len(group) else []
    if longest:
        yield "always_truncated", longest


def _mean_share(shares: Sequence[tuple[float | None, str]]) -> dict[str, Any] | None:
    known = [(share, document) for share, document in shares if share is not None]
    if not known:
        return None
    estimate = mean_interval([share for share, _ in known], [document for _, document in known])
    return {**asdict(estimate), "num_examples": len(known)}


def compare_settings(scored: Sequence[Scored], margin: float = MARGIN) -> list[dict[str, Any]]:
    """Return paired comparisons within a run, by the headline metric of each task.

    Each length is compared with the one before, the greatest with the smallest, and each template with the first at
    every length; the examples are those that both have. P values are corrected (Holm) over the comparisons of a
    task and subset, which make one table.
    """
    profiles = {one.line["task"]: one.profile for one in scored}
    comparisons: list[dict[str, Any]] = []
    for subset, members in _subsets([one for one in scored if one.is_model]):
        by_setting: dict[Setting, dict[str, Line]] = defaultdict(dict)
        for one in members:
            by_setting[one.setting][one.line["id"]] = one.line
        for task in dict.fromkeys(task for task, _, _ in by_setting):
            metric, table = headline(profiles[task]), []
            columns = metric_columns(profiles[task])[metric]
            for first, second in _pairs([setting for setting in by_setting if setting[0] == task]):
                if by_setting[first].keys() & by_setting[second].keys():
                    result = compare_lines(by_setting[first], by_setting[second], columns, margin)
                    ends = {
                        end: {"template": setting[1], "maxlen": setting[2]}
                        for end, setting in (("first", first), ("second", second))
                    }
                    table.append({"task": task, "subset": subset, "metric": metric, **ends, **result})
            comparisons += correct(table)
    return comparisons


def _pairs(settings: Sequence[Setting]) -> Iterator[tuple[Setting, Setting]]:
    templates = list(dict.fromkeys(template for _, template, _ in settings))
    for template in templates:
        lengths = sorted(setting for setting in settings if setting[1] == template)
        yield from itertools.pairwise(lengths)
        if len(lengths) > 2:
            yield lengths[0], lengths[-1]
    for template in templates[1:]:
        for task, other, maxlen in sorted(settings):
            if other == template and (task, templates[0], maxlen) in settings:
                yield (task, templates[0], maxlen), (task, template, maxlen)


def compare_lines(
    first: Mapping[str, Line], second: Mapping[str, Line], columns: Sequence[str], margin: float
) -> dict[str, Any]:
    """Return what `second` has over `first` on the examples that both have; there is one at least.

    Args:
        first: Lines of `example_scores.jsonl` by id.
        second: The same.
        columns: Scores of an example; several are joined by a geometric mean.
        margin: Loss, as a fraction, up to which the second counts as no worse; fixed beforehand.
    """
    shared = [name for name in first if name in second]
    before, after = (values_of((lines[name] for name in shared), columns) for lines in (first, second))
    result = compare_paired(before, after, [first[name]["document_id"] for name in shared])
    return {**asdict(result), "margin": margin, "non_inferior": is_non_inferior(result, margin)}


def correct(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return comparisons of one table with `p_holm`: p values corrected for their number."""
    corrected = holm([row["p_value"] for row in table])
    return [row | {"p_holm": p} for row, p in zip(table, corrected, strict=True)]


def cost(lines: Sequence[Line]) -> dict[str, float | int | None]:
    """Return what the predictions cost.

    Speeds are tokens of all predictions over seconds of all, of one process; memory is the largest of any; attention
    FLOPs are the mean of a prediction, None where the attention is of a kind that has no closed form here.
    """
    peaks = [line["peak_bytes"] for line in lines if line["peak_bytes"] is not None]
    flops = [line["attention_flops"] for line in lines if line["attention_flops"] is not None]
    return {
        "prefill_tokens_per_second": _rate(lines, "prompt_tokens", "prefill_seconds"),
        "decode_tokens_per_second": _rate(lines, "num_generated_tokens", "decode_seconds"),
        "seconds": float(np.mean([line["seconds"] for line in lines])),
        "peak_memory_bytes": max(peaks, default=None),
        "cache_bytes": max(line["cache_bytes"] for line in lines),
        "attention_flops": float(np.mean(flops)) if len(flops) == len(lines) else None,
    }


def _rate(lines: Sequence[Line], tokens: str, seconds: str) -> float | None:
    total = sum(line[seconds] for line in lines)
    return sum(line[tokens] for line in lines) / total if total > 0 else None
