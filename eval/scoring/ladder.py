"""The context ladder: what a longer window shows, what the likelihood uses, what answers say, what the metric credits.

    lines = ladder_lines(inputs, scored_lines, likelihoods)
    rungs = ladder_rungs(lines, {"plos": "hf"})
    where_lost(rungs)  # "from 1,024 to 8,192 tokens ...: lost between used and said"

All four are gains over the smallest length of the run, paired by example:

- shown: the visible oracle's score less that of its floor, the `foreign_oracle`, whose window goes on with another
  document's text; where a task names the evidence, the share of it that is visible instead.
- used: the fall of the negative log likelihood of the reference, in nats a token.
- said: the share of newly shown key sentences that the answer says, less what the answer of the smallest length says of
  them without having seen them. Key sentences are those of the oracle or of the evidence. Short answers say no
  sentences, so tasks of them do not have this rung.
- credited: the headline score; of several metrics the mean, so that it is on the scale of the oracle.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import REQUEST, Item
from eval.metrics.document_index import index_document
from eval.records.read_run import RunInputs
from eval.records.schema import ExampleRecord, ExampleScore, Key, LadderLine, LadderRung, Prediction
from eval.records.windows import HEAD, window_of
from eval.scoring.baselines import visible_share
from eval.scoring.claims import compare_table
from eval.scoring.examples import scored_texts
from eval.scoring.exchanges import Pair
from eval.scoring.metric_files import MetricFile
from eval.scoring.profiles import PROFILES, headline, metric_range
from eval.scoring.significance import FRACTIONS, Range, size_of

# Raised by hand whenever a change of the code changes the values.
LADDER_VERSION = 2
# An answer says a key sentence where it has this share of what the sentence says. Of SmolLM2-135M's answers and the
# abstracts about 50 Ethereum proposals, 10% and 42% of their own document's key sentences are said at this share, and
# none and 2% of another document's. At 30% the latter are 1% and 7%; at 50% only 27% are left of the abstracts' own.
SAID = 0.4
# The metric of the likelihood and its value, and what that depends on: it is measured by `eval.losses.likelihood`.
LIKELIHOOD, NLL = "likelihood", "nll"
LIKELIHOOD_READS = ("references", REQUEST)
Rung = Literal["shown", "used", "said", "credited"]
RUNGS: tuple[Rung, ...] = ("shown", "used", "said", "credited")
_ORACLE, _FLOOR = "visible_oracle", "foreign_oracle"


def ladder_lines(
    inputs: RunInputs, scored: Iterable[ExampleScore], likelihoods: Mapping[Key, float], profiles: Mapping[str, str]
) -> list[LadderLine]:
    """Return each answered example at each length but the smallest, where that one cut its document.

    Other windows than `head` are left out: they do not show more of a document with length.

    Args:
        inputs: The run.
        scored: Lines of `example_scores.jsonl`.
        likelihoods: Nats a token of references, by task, template, id and maxlen.
        profiles: Of each task.
    """
    by_key: dict[Key, dict[str, ExampleScore]] = defaultdict(dict)
    for line in scored:
        system = "" if line.is_model else line.system
        by_key[line.task, line.template, line.id, line.maxlen][system] = line
    texts = {(one.task, one.document_id): one.text for one in inputs.documents}
    examples = {(one.task, one.id): one for one in inputs.examples}
    by_example: dict[tuple[str, str, str], list[Prediction]] = defaultdict(list)
    for prediction in inputs.predictions:
        if prediction.window is None:
            by_example[prediction.task, prediction.template, prediction.id].append(prediction)
    smallest = _smallest(one.key for of_one in by_example.values() for one in of_one)
    without = {task for task, _, name in by_example if not examples[task, name].evidence}
    found = []
    for (task, template, name), predictions in by_example.items():
        first, *others = sorted(predictions, key=lambda one: one.maxlen)
        example = examples[task, name]
        # What a task names for some examples alone could not be compared with the others' oracle.
        evidence = None if task in without else example.evidence
        # An unfinished run may lack the answer at the smallest length: there is nothing to compare with then.
        is_cut = first.maxlen == smallest[task, template] and first.context_tokens_dropped
        for other in others if is_cut else ():
            before, after = by_key[first.key], by_key[other.key]
            sentences = evidence or (after[_ORACLE].sentences if _ORACLE in after else None) or ()
            found.append(
                LadderLine(
                    **_about(example, template, first.maxlen, other.maxlen, "evidence" if evidence else "oracle"),
                    shown=_both(visible_share(evidence, one.context_spans) for one in (first, other))
                    if evidence
                    else _both(_headline(after.get(system), profiles[task]) for system in (_FLOOR, _ORACLE)),
                    used=_both(likelihoods.get(one.key) for one in (first, other)),
                    said=_said(
                        texts[task, example.document_id],
                        sentences,
                        [one.context_spans for one in (first, other)],
                        [scored_texts(one, inputs.record) for one in (first, other)],
                    )
                    if _writes_sentences(profiles[task])
                    else None,
                    credited=_both(_headline(one.get(""), profiles[task]) for one in (before, after)),
                )
            )
    return found


def likelihood_item(references: Sequence[str], request: str) -> Item:
    """Return what a likelihood is of, from the references of an example and the fingerprint of a request."""
    return Item.read(LIKELIHOOD_READS, prediction="", references=tuple(references), request=request)


def likelihoods_of(file: MetricFile, inputs: RunInputs) -> dict[Key, float]:
    """Return the nats a token of the references at each prediction that has them."""
    references = {(one.task, one.id): one.references for one in inputs.examples}
    found = {}
    for one in inputs.predictions:
        values = file.values.get(likelihood_item(references[one.task, one.id], one.fingerprint).fingerprint, {})
        if (value := values.get(NLL)) is not None:
            found[one.key] = value
    return found


def unanswered_lines(examples: Iterable[ExampleRecord], likelihoods: Mapping[Key, float]) -> list[LadderLine]:
    """Return the lines of a run without answers: what its model uses. Equal likelihoods are of the same prompt."""
    by_example: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for (task, template, name, maxlen), value in likelihoods.items():
        if window_of(template) == HEAD:
            by_example[task, template, name][maxlen] = value
    smallest = _smallest(likelihoods)
    known = {(one.task, one.id): one for one in examples}
    found = []
    for (task, template, name), values in by_example.items():
        least = smallest[task, template]
        for maxlen in sorted(values) if least in values else ():
            if values[maxlen] != values[least]:
                about = _about(known[task, name], template, least, maxlen)
                used = [values[least], values[maxlen]]
                found.append(LadderLine(**about, shown=None, used=used, said=None, credited=None))
    return found


def _smallest(keys: Iterable[Key]) -> dict[tuple[str, str], int]:
    """Return the smallest length of each task and template."""
    found: dict[tuple[str, str], int] = {}
    for task, template, _, maxlen in keys:
        found[task, template] = min(maxlen, found.get((task, template), maxlen))
    return found


def _about(
    example: ExampleRecord, template: str, smallest: int, maxlen: int, of: Literal["oracle", "evidence"] = "oracle"
) -> dict[str, Any]:
    return {
        "of": of,
        **{name: getattr(example, name) for name in ("task", "id", "document_id", "cluster_id")},
        "template": template,
        "smallest": smallest,
        "maxlen": maxlen,
    }


def _both(values: Iterable[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return known if len(known) == 2 else None


def _headline(line: ExampleScore | None, profile: str) -> float | None:
    return None if line is None else statistics.fmean(line.metrics[name] for name in PROFILES[profile].headline)


def _writes_sentences(profile: str) -> bool:
    objective = PROFILES[profile].objective
    return objective is not None and objective.is_of_summaries


def _said(
    text: str,
    wanted: Sequence[Sequence[int]],
    windows: Sequence[Sequence[Sequence[int]]],
    pair: Sequence[Sequence[str]],
) -> list[float] | None:
    """Return the share of the key sentences that only the longer window shows, which each of two answers says.

    A sentence is said where an answer has at least `SAID` of the weight of its words; see `DocumentIndex.covered`.

    Args:
        text: The document.
        wanted: Characters of the key sentences.
        windows: Characters that each window shows.
        pair: What is scored of the samples of each answer.
    """
    document = index_document(text)
    before, after = map(document.sentences_within, windows)
    new = document.sentences_touching(wanted) & after & ~before
    if not new.any():
        return None
    return [
        statistics.fmean(float((document.covered(document.answer(one))[new] >= SAID).mean()) for one in samples)
        for samples in pair
    ]


def ladder_rungs(lines: Sequence[LadderLine], profiles: Mapping[str, str]) -> list[LadderRung]:
    """Return the gains of each length over the smallest one, by rung.

    The rows of a task and template make one table, at whose level their corrected p-values hold.
    """
    tables: dict[tuple[str, str], list[LadderLine]] = defaultdict(list)
    for line in lines:
        tables[line.task, line.template].append(line)
    return [rung for table in tables.values() for rung in _rungs_of(table, profiles)]


def _rungs_of(lines: Sequence[LadderLine], profiles: Mapping[str, str]) -> Iterator[LadderRung]:
    rows: list[tuple[Rung, list[LadderLine]]] = []
    for smallest, maxlen in sorted({(line.smallest, line.maxlen) for line in lines}):
        of_length = [line for line in lines if (line.smallest, line.maxlen) == (smallest, maxlen)]
        for rung in RUNGS:
            if known := [line for line in of_length if getattr(line, rung) is not None]:
                rows.append((rung, known))
    pairs = [gains_of(rung, known, profiles[known[0].task]) for rung, known in rows]
    for (rung, known), pair, result in zip(rows, pairs, compare_table(pairs), strict=True):
        line, sign = known[0], -1.0 if rung == "used" else 1.0
        # The margin of a table is of scores; a ladder claims no equality.
        result = replace(result, non_inferior=False, claim_low=None)
        yield LadderRung(
            task=line.task,
            template=line.template,
            smallest=line.smallest,
            maxlen=line.maxlen,
            rung=rung,
            of=_measure_of(rung, line.of, profiles[line.task]),
            before=sign * float(np.asarray(pair.first).mean()),
            after=sign * float(np.asarray(pair.second).mean()),
            **vars(result),
        )


def gains_of(rung: Rung, lines: Sequence[LadderLine], profile: str) -> Pair:
    """Return the values of lines at both of their lengths; more is better."""
    values = _values(rung, lines)
    return _pair(rung, lines, profile, values[:, 0], values[:, 1])


def beside(
    rung: Rung, lines: Sequence[LadderLine], others: Sequence[LadderLine], profile: str, *, is_gain: bool
) -> Pair:
    """Return what lines of a run have beside those of another, of the same examples in the same order.

    Args:
        rung: One that all lines have.
        lines: Of one task, or of several under one profile.
        others: Of the other run.
        profile: Of the tasks.
        is_gain: Compare gains over the smallest length, and not the values at the greater one.
    """
    after, before = _values(rung, lines), _values(rung, others)
    if not is_gain:
        return _pair(rung, lines, profile, before[:, 1], after[:, 1])
    pair = _pair(rung, lines, profile, before[:, 1] - before[:, 0], after[:, 1] - after[:, 0])
    size = size_of(pair.within)
    return replace(pair, within=(-np.inf, np.inf) if rung == "used" else (-size, size), are_answers=False)


def _values(rung: Rung, lines: Sequence[LadderLine]) -> NDArray[np.float64]:
    """Return (N, 2) values at both lengths, in which more is better."""
    values = np.array([getattr(line, rung) for line in lines], dtype=np.float64)
    return -values if rung == "used" else values


def _pair(rung: Rung, lines: Sequence[LadderLine], profile: str, first: Any, second: Any) -> Pair:
    is_score = rung == "credited" or (rung == "shown" and lines[0].of == "oracle")
    within: Range = (-np.inf, 0.0) if rung == "used" else FRACTIONS
    return Pair(
        first=first,
        second=second,
        # Documents of two tasks may have one name.
        documents=[(line.task, line.unit) for line in lines],
        within=metric_range(profile, headline(profile)) if is_score else within,
        are_answers=rung == "credited" and PROFILES[profile].has_common_answer,
    )


def _measure_of(rung: Rung, of: str, profile: str) -> str:
    return {"shown": of, "used": "nll", "said": "sentences", "credited": headline(profile)}[rung]
