"""What a scored run tells of runs to come: how far its documents and samples differ, and what a document costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from eval.errors import UserError
from eval.records.schema import ExampleScore, Prediction, Unit
from eval.scoring.bootstrap import Floats
from eval.scoring.planning import Costs, Pilot
from eval.scoring.profiles import PROFILES, headline, metric_columns, metric_name
from eval.scoring.scored_run import ScoredRun

# Lines of one task and template, by length and example.
Lines = Mapping[int, Mapping[str, ExampleScore]]


def lines_by_length(
    run: ScoredRun, task: str, template: str, lengths: Sequence[int] = ()
) -> dict[int, dict[str, ExampleScore]]:
    """Return the lines of a task and template at these lengths, or at all.

    Raises:
        UserError: A length is not there.
    """
    found = {
        setting[2]: dict(lines)
        for setting, lines in sorted(run.lines.items(), key=lambda item: item[0][2])
        if setting[:2] == (task, template)
    }
    if absent := [length for length in lengths if length not in found]:
        known = ", ".join(f"{length:,}" for length in found)
        raise UserError(f"{run.path} has no answers of {task}, {template} at {absent[0]:,} tokens; it has {known}")
    return {length: lines for length, lines in found.items() if not lengths or length in lengths}


def check_metric(profile: str, metric: str | None) -> str:
    """Return the metric to plan for, the headline without one.

    Raises:
        UserError: The profile has no such metric, or it is one of all documents together.
    """
    columns = metric_columns(profile)
    known = [name for name, parts in columns.items() if len(parts) == 1]
    asked = headline(profile) if metric is None else metric
    if asked not in known:
        what = "joins means over all documents" if asked in columns else f"is no metric of profile {profile}"
        raise UserError(f"'{asked}' {what}; give one of {', '.join(known)} with --metric")
    return asked


def pilots_of(lines: Lines, profile: str, metric: str, beside: Lines | None, *, has_means: bool) -> list[Pilot]:
    """Return what can be measured: the mean at each length, and each difference of two; or differences to another run.

    Args:
        lines: Of the run.
        profile: What scores it.
        metric: One that each example has a value of.
        beside: Lines of another run with the same examples; None compares lengths.
        has_means: Whether means at one length can be a goal.

    Raises:
        UserError: Fewer than three documents or clusters tell something.
    """
    name = metric_name(metric)
    if beside is not None:
        return [
            _pilot(f"{name} at {length:,}", (length,), shared, shared, other, lines[length], profile, metric)
            for length, other in beside.items()
            if length in lines
            for shared in [[id for id in lines[length] if id in other]]
        ]
    pilots = [
        _pilot(f"{name} at {length:,}", (length,), [*of_length], [*of_length], None, of_length, profile, metric)
        for length, of_length in (lines.items() if has_means else ())
    ]
    for one, other in combinations(lines, 2):
        first, second = lines[one], lines[other]
        shared = [id for id in first if id in second]
        # Examples that both lengths show whole cannot differ.
        names = [id for id in shared if first[id].is_truncated or second[id].is_truncated]
        if names:
            what = f"{name}, {one:,} to {other:,}"
            pilots.append(_pilot(what, (one, other), names, shared, first, second, profile, metric))
    return pilots


def _values(lines: Mapping[str, ExampleScore], names: Iterable[str], metric: str) -> Floats:
    """Return (N, K) scores of the samples of each example."""
    rows = [[each[metric] for each in lines[name].samples or [lines[name].metrics]] for name in names]
    return np.array(rows, dtype=np.float64)


def _pilot(
    name: str,
    lengths: tuple[int, ...],
    names: Sequence[str],
    answered: Sequence[str],
    first: Mapping[str, ExampleScore] | None,
    second: Mapping[str, ExampleScore],
    profile: str,
    metric: str,
) -> Pilot:
    """Return what those of the answered examples that differ tell of a second setting, less a first one if any."""
    documents = [second[each].unit for each in names]
    if (num_units := len(set(documents))) < 3:
        raise UserError(
            f"{name}: a spread takes at least 3 documents, and {num_units} can be used; leave this length out "
            "with --maxlen, or answer more"
        )
    of_unit = {second[each].document_id: second[each].unit for each in answered}
    num_answered = len(set(of_unit.values()))
    values = _values(second, names, metric)
    beside = values if first is None else _values(first, names, metric)
    if first is not None and len(lengths) == 2 and beside.shape == values.shape:
        values = values - beside
    elif first is not None:  # answers of another run stay as they are
        values = values - beside.mean(axis=1, keepdims=True)
    return Pilot(
        name=name,
        lengths=lengths,
        values=values,
        documents=documents,
        collapse=1.0 if PROFILES[profile].has_common_answer else float(np.abs(beside.mean(axis=1)).max()),
        share=num_units / num_answered,
        per_unit=len(of_unit) / num_answered,
    )


def costs_of(predictions: Iterable[Prediction], units: Mapping[str, Unit]) -> Costs:
    """Return what a document costs, from the seconds of a run's predictions of one task and template.

    Args:
        predictions: At all lengths.
        units: Document or cluster of each example, by its id.
    """
    prefill: dict[int, float] = defaultdict(float)
    decode: dict[int, float] = defaultdict(float)
    prompt_tokens: dict[int, int] = defaultdict(int)
    prefilled, answered = 0, set()
    for one in predictions:
        if one.seconds is None:
            return Costs(prefill=None, decode=None, shared=None)
        reading = one.prefill_seconds or 0.0
        prefill[one.maxlen] += reading
        decode[one.maxlen] += (one.seconds - reading) / len(one.answers)
        prompt_tokens[one.maxlen] += one.prompt_tokens
        prefilled += one.prompt_tokens if one.prefilled_tokens is None else one.prefilled_tokens
        answered.add(units[one.id])
    count = len(answered)
    # What is computed for all lengths lies on the way to the greatest one, where these are parts of each other.
    share = prefilled / prompt_tokens[max(prompt_tokens)]
    shares_lengths = len(prompt_tokens) > 1 and prefilled < 0.99 * sum(prompt_tokens.values())
    return Costs(
        prefill={length: seconds / count for length, seconds in prefill.items()},
        decode={length: seconds / count for length, seconds in decode.items()},
        shared=min(share, 1.0) if shares_lengths or len(prompt_tokens) == 1 else None,
    )
