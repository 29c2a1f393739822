"""Where the sentences of the oracle lie in the documents, and what was shown of them, as a Vega-Lite spec."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from eval.records.schema import ExampleScore, Prediction
from eval.reporting.charts import SCHEMA, WIDTH, Layer, Spec, layer, quantity, tooltip

_TITLE = "Position in the document (%)"
_POSITIONS = 100  # points of a document at which the share of examples that show it is counted


def oracle_positions(positions: Iterable[Mapping[str, float]], coverage: Sequence[Mapping[str, float]]) -> Spec:
    """Return where the oracle's sentences lie in the documents, under what was shown of them at each length.

    Args:
        positions: {"maxlen", "position"}, one a sentence, position in percent of its document; those of the
            longest length count.
        coverage: {"maxlen", "position", "share"}, the fraction of documents whose text at that position was shown.
    """
    histogram = _histogram(list(positions))
    along = {
        "scale": {"domain": [0, 100], "nice": False},
        "axis": {"values": [0, 20, 40, 60, 80, 100], "grid": False},
    }
    x = quantity("position", _TITLE, **along)
    views = [{"height": 140, "width": WIDTH, **_shown(coverage, x | ({"axis": None} if histogram else {}))}]
    if histogram:
        starts = quantity("start", _TITLE, **along, bin={"binned": True, "step": 5})
        views.append({"height": 110, "width": WIDTH, **_sentences(histogram, starts)})
    described = "Share of examples that show each position of their document, by length"
    described += "; below it, the oracle's sentences." if histogram else "."
    return {"$schema": SCHEMA, "description": described, "spacing": 12, "vconcat": views}


def _histogram(positions: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the share of the sentences of the longest length in each twentieth of the documents."""
    longest = max((line["maxlen"] for line in positions), default=0)
    bins = [0] * 20
    for line in positions:
        if line["maxlen"] == longest:
            bins[min(int(line["position"] // 5), 19)] += 1
    total = sum(bins)
    return [
        {"start": 5 * index, "end": 5 * index + 5, "share": count / total} for index, count in enumerate(bins) if total
    ]


def _shown(coverage: Sequence[Mapping[str, float]], x: Layer) -> Layer:
    y = quantity(
        "share",
        ["Examples that", "show this (%)"],
        scale={"domain": [0, 1.02], "nice": False},
        axis={"labelExpr": "datum.value * 100", "values": [0, 0.25, 0.5, 0.75, 1]},
    )
    colour = {
        "field": "length",
        "type": "ordinal",
        "sort": [f"{length:,}" for length in sorted({int(line["maxlen"]) for line in coverage})],
        "legend": {"title": "Maximum length (tokens)", "orient": "top", "direction": "horizontal"},
    }
    tips = tooltip(
        length=("maximum length", ""), position=("position (%)", ".0f"), share=("examples that show it", ".0%")
    )
    rows = [dict(line) | {"length": f"{line['maxlen']:,}"} for line in coverage]
    mark = {"type": "line", "strokeWidth": 2.5, "interpolate": "monotone", "clip": True}
    return layer(rows, mark, x=x, y=y, color=colour, tooltip=tips)


def _sentences(histogram: Sequence[Mapping[str, float]], x: Layer) -> Layer:
    y = quantity("share", ["Oracle's", "sentences (%)"], axis={"labelExpr": "datum.value * 100", "tickCount": 4})
    tips = tooltip(start=("from (%)", ""), end=("to (%)", ""), share=("oracle's sentences", ".1%"))
    return layer(histogram, {"type": "bar", "style": "histogram"}, x=x, x2={"field": "end"}, y=y, tooltip=tips)


def document_positions(
    example_scores: Iterable[ExampleScore], predictions: Iterable[Prediction], lengths: Mapping[str, int]
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return `positions` and `coverage` for `oracle_positions`; an example counts as a document with a query.

    Lines and predictions are those of one task and template; lengths are characters of each document, by its id.
    """
    length_of: dict[str, int] = {}
    positions = []
    for line in example_scores:
        length_of[line.id] = length = lengths[line.document_id] or 1  # an empty one shows nothing anywhere
        if line.system == "visible_oracle":
            positions += [
                {"maxlen": line.maxlen, "position": 50 * (start + end) / length} for start, end in line.sentences or ()
            ]
    edges: dict[int, list[float]] = {}  # how many more examples show a position than the one before it
    counts: Counter[int] = Counter()
    for one in predictions:
        length, steps = length_of[one.id], edges.setdefault(one.maxlen, [0.0] * (_POSITIONS + 1))
        counts[one.maxlen] += 1
        for start, end in one.context_spans:
            steps[_first_position(start, length)] += 1
            steps[_first_position(end, length)] -= 1
    coverage = [
        {"maxlen": maxlen, "position": 100 * (index + 0.5) / _POSITIONS, "share": shown / counts[maxlen]}
        for maxlen, steps in sorted(edges.items())
        for index, shown in enumerate(accumulate(steps[:-1]))
    ]
    return positions, coverage


def _first_position(character: int, length: int) -> int:
    """Return the first of the positions, midpoints of equal parts of a document, that is not before a character."""
    return min(max(math.ceil(character / length * _POSITIONS - 0.5), 0), _POSITIONS)
