"""What the documents that a run has answered so far say of two sides: `--until` of eval/run.py.

    watch = Watch(record, examples, units, "plos", "hf", "instruct", metric="rougeLsum", subject=8192, beside=1024)
    watch.add(ids, predictions)  # after each group of documents
    watch.judged(until)          # e-values, and which claim they let one make

Scoring needs no model, so a run scores its answers as they come. A side is a length of the run, or another run's lines.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from eval.errors import UserError
from eval.records.schema import ExampleRecord, ExampleScore, Key, Prediction, RunRecord, Unit, UntilRecord
from eval.scoring.anytime import AS_GOOD, DIFFERS, anytime_interval, as_good, differs
from eval.scoring.comparisons import Compare
from eval.scoring.examples import score_line, scored_texts
from eval.scoring.profiles import PROFILES, metric_range, score_prediction
from eval.scoring.scored_run import ScoredRun
from eval.scoring.significance import fractions

# A length of the run, or the lines of another run by the name of their example.
Side: TypeAlias = int | Mapping[str, ExampleScore]


class Watch:
    """Compares two sides document by document, clusters whole, each document counted once.

    Args:
        record: `run.json` of the run.
        examples: Of the task.
        units: Document or cluster of each example, by its id; one text under several names is one document.
        task: The only one that this session answers.
        profile: What scores it.
        template: Prompts that are compared.
        metric: One of the profile's that each example has a value of.
        subject: What claims are about.
        beside: What it stands beside.
    """

    def __init__(
        self,
        record: RunRecord,
        examples: Iterable[ExampleRecord],
        units: Mapping[str, Unit],
        task: str,
        profile: str,
        template: str,
        *,
        metric: str,
        subject: Side,
        beside: Side,
    ) -> None:
        self.record, self.task, self.profile, self.template, self.metric = record, task, profile, template, metric
        self.subject, self.beside = subject, beside
        self._examples = {one.id: one for one in examples}
        self._units = units
        self._members: dict[Unit, list[str]] = defaultdict(list)
        for name in self._examples:
            self._members[units[name]].append(name)
        self._missing = {unit: set(names) for unit, names in self._members.items()}
        self._lines: dict[int, dict[str, ExampleScore]] = {
            side: {} for side in (subject, beside) if isinstance(side, int)
        }
        self.gains: list[float] = []

    def add(self, ids: Sequence[str], predictions: Mapping[Key, Prediction]) -> None:
        """Score the answers about some examples, and compare the documents or clusters that are complete with them."""
        for maxlen, lines in self._lines.items():
            for name in ids:
                lines[name] = self._score(predictions[self.task, self.template, name, maxlen])
        complete: dict[Unit, None] = {}
        for name in ids:
            unit = self._units[name]
            self._missing[unit].discard(name)
            if not self._missing[unit]:
                complete[unit] = None
        for unit in complete:
            self._compare(self._members[unit])

    def _score(self, prediction: Prediction) -> ExampleScore:
        example = self._examples[prediction.id]
        texts = scored_texts(prediction, self.record)
        each = [score_prediction(self.profile, text, example.references, example.classes or ()) for text in texts]
        return score_line(prediction, example, self.record.identity.model.label, each, is_model=True)

    def _compare(self, names: Sequence[str]) -> None:
        """Add what a document says; one that both sides show alike says nothing."""
        is_same_model = len(self._lines) == 2
        row = Compare(self._side(self.beside), self._side(self.subject), self.metric, is_same_model=is_same_model)
        kept = [name for name in names if not row.has_same_prompt(name)]
        if kept:
            within = metric_range(self.profile, self.metric)
            first, second = (
                float(fractions([lines[name].metrics[self.metric] for name in kept], within).mean())
                for lines in (row.first, row.second)
            )
            self.gains.append(second - first)

    def _side(self, side: Side) -> Mapping[str, ExampleScore]:
        return self._lines[side] if isinstance(side, int) else side

    def judged(self, until: UntilRecord) -> UntilRecord:
        """Return what is known now, and the claim that can be made, as `stopped`: a difference before 'as good'."""
        low, high = anytime_interval(self.gains)
        against_alike, against_loss = differs(self.gains), None
        if until.margin is not None:
            are_answers = PROFILES[self.profile].has_common_answer
            against_loss = as_good(self.gains, until.margin, are_answers=are_answers)
        judged = replace(
            until,
            num_compared=len(self.gains),
            difference=float(np.mean(self.gains)) if self.gains else None,
            low=low,
            high=high,
            e_differs=against_alike,
            e_as_good=against_loss,
        )
        if until.differs and against_alike >= DIFFERS:
            return replace(judged, stopped="differs")
        return replace(judged, stopped="as good") if against_loss is not None and against_loss >= AS_GOOD else judged


def lines_beside(
    other: ScoredRun, profile: str, setting: tuple[str, str, int], contents: Mapping[str, str]
) -> Mapping[str, ExampleScore]:
    """Return another run's lines about the examples of a run.

    Args:
        other: The other run.
        profile: Profile of the run.
        setting: Task, template and length that are compared.
        contents: Digest of each example of the run, as `ScoredRun.content` has it.

    Raises:
        UserError: The other run lacks the setting or an example, has another text, or was scored otherwise.
    """
    task, template, maxlen = setting
    if setting not in other.lines:
        known = "; ".join(f"{task} {template} {maxlen:,}" for task, template, maxlen in other.lines)
        raise UserError(
            f"--until: {other.path} has no answers of {task}, {template} at {maxlen:,} tokens, only {known}"
        )
    if (theirs := other.scores.profiles[task]) != profile:
        raise UserError(
            f"--until: {other.path} was scored under profile {theirs} and this run will be under {profile}; run: "
            f"python -m eval.score {other.path} --profile {profile}"
        )
    lines = other.lines[setting]
    if absent := [name for name in contents if name not in lines]:
        raise UserError(
            f"--until: {other.path} lacks {len(absent)} of the {len(contents)} examples, '{absent[0]}' among them; "
            "give this run the --sample or --limit of that one"
        )
    for name, digest in contents.items():
        if other.content[task, name] != digest:
            raise UserError(
                f"--until: '{name}' of {task} has another document, query or reference in {other.path}; name a run on "
                "the same data"
            )
    return lines
