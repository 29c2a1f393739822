"""What was found of needles, by their depth in the prompt's context and by length.

    cells = found_by_depth(answers, examples, profiles)
    cells[0].maxlen, cells[0].depth, cells[0].found, cells[0].num_needles

A needle is a passage of `Example.evidence`. Where an example has one for each reference, each is found or not by its
own; where all references are about one passage, the example's score is that of the passage.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from eval.metrics.answers import answers_found
from eval.records.schema import DepthCell, ExampleRecord, Prediction
from eval.scoring.profiles import PROFILES, headline, score_prediction

NUM_DEPTHS = 5


def found_by_depth(
    predictions: Iterable[Prediction], examples: Iterable[ExampleRecord], profiles: Mapping[str, str]
) -> list[DepthCell]:
    """Return the share of needles found, by task, template, length and fifth of the context; empty without needles.

    Predictions are as they are scored, without thoughts. Needles that a prompt does not show have no depth there, and
    windows beside `head` move them, so their predictions count nowhere.
    """
    known = {(one.task, one.id): one for one in examples if one.evidence and PROFILES[profiles[one.task]].is_of_needles}
    found: dict[tuple[str, str, int, int], list[float]] = defaultdict(list)
    for prediction in predictions:
        example = known.get((prediction.task, prediction.id))
        if example is None or prediction.window is not None:
            continue
        for span, value in _needles(prediction, example, profiles[prediction.task]):
            if (depth := depth_of(span, prediction.context_spans)) is not None:
                fifth = min(int(NUM_DEPTHS * depth), NUM_DEPTHS - 1)
                found[prediction.task, prediction.template, prediction.maxlen, fifth].append(value)
    return [
        DepthCell(
            task=task,
            template=template,
            maxlen=maxlen,
            depth=fifth / NUM_DEPTHS,
            found=statistics.fmean(values),
            num_needles=len(values),
        )
        for (task, template, maxlen, fifth), values in sorted(found.items())
    ]


def _needles(prediction: Prediction, example: ExampleRecord, profile: str) -> Iterator[tuple[Sequence[int], float]]:
    """Yield each needle that answers, and how much of it was found: the mean over samples."""
    texts = [answer.text for answer in prediction.answers]
    evidence, references = example.evidence or [], example.references
    if len(evidence) == 1:
        scores = [score_prediction(profile, text, references)[headline(profile)] for text in texts]
        yield evidence[0], statistics.fmean(scores)
    elif len(evidence) == len(references):
        each = [answers_found(text, references) for text in texts]
        for span, values in zip(evidence, zip(*each, strict=True), strict=True):
            yield span, statistics.fmean(values)


def depth_of(span: Sequence[int], shown: Sequence[Sequence[int]]) -> float | None:
    """Return the share of the context that a prompt shows before a span, beside the span itself; None if it is cut.

    Args:
        span: Start and end in characters.
        shown: What the prompt shows, as starts and ends in order.
    """
    start, stop = span
    if not any(first <= start and stop <= last for first, last in shown):
        return None
    before = sum(min(last, start) - first for first, last in shown if first < start)
    rest = sum(last - first for first, last in shown) - (stop - start)
    return before / rest if rest else 0.0
