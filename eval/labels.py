"""Estimate what people would give all answers of a run, from labels of some of them and metrics of all.

    python -m eval.labels RUN --labels FILE [--rating NAME]

The file is a rating sheet of `eval.rate`, or a table as `eval.meta` reads it: id, document_id, system, prediction, and
ratings. The run's metrics, such as those
that `python -m eval.score RUN --metrics ...` has added, narrow the interval and do not move the mean away from people.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from eval.errors import UserError
from eval.ratings.judged import read_judgements
from eval.records.read_run import RunInputs, open_run, read_inputs
from eval.records.schema import Key
from eval.records.typed import to_json
from eval.reporting.columns import interval
from eval.reporting.tables import WIDTH, as_columns
from eval.runtime.jobs import CommandParser, command
from eval.scoring.examples import scored_text
from eval.scoring.labels import LabelRow, Labels, label_rows, words_of
from eval.scoring.scored_run import read_scored

_LEGEND = (
    "Mean of the labels over all answers, in their unit, with a 95% interval over documents (PPI++). Gain: times as "
    "many documents that labels alone would take for such an interval. Weight: what the metric counts for. It holds "
    "where the answers that have a label were drawn at random. Choose the metric before you look at the gains."
)


def render(rows: Sequence[LabelRow]) -> str:
    """Return the estimates for a terminal, a table a setting."""
    parts = []
    for (task, template, maxlen), group in groupby(rows, key=lambda row: (row.task, row.template, row.maxlen)):
        of_setting = list(group)
        first = of_setting[0].found
        counts = (
            f"{first.num_labels:,} of {first.num_answers:,} answers have a label, {first.num_documents:,} documents"
        )
        mean, low, high = first.labelled
        table = [
            ["with", "mean", "gain", "weight"],
            ["labels alone", f"{mean:.3f}{interval(low, high, '.3f')}", "", ""],
        ]
        for row in sorted(of_setting, key=lambda row: -(row.found.gain or 0)):
            one = row.found
            gain = "-" if one.gain is None else f"{one.gain:.2f}"
            mean_text = f"{one.mean:.3f}{interval(one.low, one.high, '.3f')}"
            table.append([row.metric, mean_text, gain, f"{one.weight:.3g}"])
        parts += [f"{task}, {template}, {maxlen:,}: {counts}", "", as_columns(table), ""]
    return "\n".join([*parts, textwrap.fill(_LEGEND, WIDTH)])


def _labels(file: Path, rating: str | None) -> Labels:
    """Return what people gave each answer, in the mean over raters.

    Raises:
        UserError: The file has no such rating.
        DataError: It cannot be read.
    """
    judgements = read_judgements(file)
    name = rating or judgements.headline
    if name not in judgements.ratings:
        raise UserError(f"{file} has no rating '{name}'; it has {', '.join(judgements.ratings)}")
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in judgements.answers:
        if (value := one.rating(name)) is not None:
            found[one.id, words_of(one.item.prediction)].append(value)
    if not found:
        raise UserError(f"{file} has no number for the rating '{name}'; rate some answers")
    # Several systems may have given one answer.
    return {key: statistics.fmean(values) for key, values in found.items()}


def _texts(inputs: RunInputs) -> dict[Key, str]:
    """Return what is scored of each prediction; of several samples the first."""
    return {one.key: scored_text(one, inputs.record) for one in inputs.predictions}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.labels", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a scored run")
    parser.add_argument(
        "--labels", metavar="FILE", type=Path, required=True, help="rated answers: .csv, .jsonl, .parquet ..."
    )
    parser.add_argument("--rating", metavar="NAME", help="which of the ratings (default: the first)")
    parser.add_argument("--metric", metavar="NAME", nargs="+", default=[], help="default: all that the run has")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


@command()
def main(argv: Sequence[str]) -> None:
    """Estimate what a command line names."""
    options = _parse(argv)
    labels = _labels(options.labels, options.rating)
    rows = label_rows(read_scored(options.run), _texts(read_inputs(*open_run(options.run))), labels)
    known = list(dict.fromkeys(row.metric for row in rows))
    if unknown := [name for name in options.metric if name not in known]:
        raise UserError(f"{options.run} has no metric '{unknown[0]}'; known: {', '.join(known)}")
    rows = [row for row in rows if not options.metric or row.metric in options.metric]
    print(json.dumps(to_json(rows), indent=2) if options.json else render(rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
