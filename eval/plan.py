"""How many documents and samples a run takes to reach a goal, and how long, from an earlier run or a small pilot.

    python -m eval.plan RUN --difference 0.02 [--power 0.8]
    python -m eval.plan RUN --width 0.04
    python -m eval.plan RUN --margin 0.01 --against OTHER

Numbers are fractions: 0.01 is one point. No model is loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from eval.errors import UserError
from eval.records.read_run import open_run, read_inputs
from eval.records.typed import to_json
from eval.reporting.tables import WIDTH, as_columns
from eval.runtime.jobs import CommandParser, command
from eval.scoring.bootstrap import POWER
from eval.scoring.compare_runs import check_comparable
from eval.scoring.pilots import check_metric, costs_of, lines_by_length, pilots_of
from eval.scoring.planning import Goal, Plan, cost_of, plans_of
from eval.scoring.scored_run import read_scored

_MOST_SAMPLES = 8
_LEGEND = (
    "sd: standard deviation between documents, and what one sample adds to a document, x 100. documents: what a row "
    "takes, or clusters, if they differ as those of the pilot do; at most: if they differ more, as such few documents "
    "hide in one case of five. --sample: documents to draw so that a row has that many, as it leaves out those that "
    "both lengths show whole, and a cluster holds several. minutes: of all that are drawn, of one process on the "
    "machine of the pilot, without loading the model. Fix the number before you look at a score, or let the run stop "
    "itself (--until of eval/run.py)."
)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and below 1; scores count from 0 to 1 here")
    return value


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.plan", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a scored run")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--width", metavar="X", type=_fraction, help="95%% intervals that are so wide, from end to end")
    goal.add_argument("--difference", metavar="X", type=_fraction, help="show a true difference of so much")
    goal.add_argument("--margin", metavar="X", type=_fraction, help="show that a system that loses nothing is as good")
    parser.add_argument("--power", metavar="P", type=_fraction, default=POWER, help=f"of showing it (default: {POWER})")
    parser.add_argument("--against", metavar="OTHER", type=Path, help="plan differences to this run, not of lengths")
    parser.add_argument("--metric", metavar="NAME", help="one of the profile (default: the headline)")
    parser.add_argument("--maxlen", metavar="N", type=int, nargs="+", default=[], help="lengths (default: all of RUN)")
    samples = f"samples of an answer at most, where RUN has several (default: {_MOST_SAMPLES})"
    parser.add_argument("--max-samples", metavar="K", type=int, default=_MOST_SAMPLES, help=samples)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> dict[tuple[str, str], list[Plan]]:
    """Return the plans for each task and template of a run."""
    run, other = read_scored(options.run), None
    if options.against is not None:
        other = read_scored(options.against)
        check_comparable(other, run)
    goal = Goal(width=options.width, difference=options.difference, margin=options.margin, power=options.power)
    predictions = read_inputs(*open_run(options.run)).predictions
    found = {}
    for task, template in dict.fromkeys(setting[:2] for setting in run.lines):
        profile = run.scores.profiles[task]
        metric = check_metric(profile, options.metric)
        lines = lines_by_length(run, task, template, options.maxlen)
        beside = None if other is None else lines_by_length(other, task, template)
        pilots = pilots_of(lines, profile, metric, beside, has_means=goal.width is not None)
        if not pilots:
            what = "one length; a difference takes two, or --against"
            if beside is not None:
                what = f"{options.against} has no length in common with it; give one that has"
            elif len(lines) > 1:
                what = "no length cuts a document, so none can differ; take shorter ones, or give --against"
            raise UserError(f"{options.run}, {task}, {template}: {what}")
        units = {name: line.unit for of_length in lines.values() for name, line in of_length.items()}
        of_setting = [one for one in predictions if one.task == task and one.template == template and one.id in units]
        found[task, template] = list(plans_of(pilots, costs_of(of_setting, units), goal, options.max_samples))
    return found


def render(found: dict[tuple[str, str], list[Plan]]) -> str:
    """Return the plans for a terminal, a table a setting, and the cheapest of each."""
    parts = []
    for (task, template), plans in found.items():
        rows = [["what", "pilot", "sd", "of a sample", "documents", "at most", "--sample", "samples", "minutes"]]
        rows += [
            [
                one.name,
                str(one.num_pilot),
                f"{100 * one.between:.1f}",
                "-" if one.of_samples is None else f"{100 * one.of_samples:.1f}",
                _count(one.num_documents),
                _count(one.at_most),
                _count(one.num_drawn),
                str(one.num_samples),
                "-" if one.seconds is None else f"{one.seconds / 60:,.1f}",
            ]
            for one in plans
        ]
        best, has_samples = min(plans, key=cost_of), any(one.of_samples is not None for one in plans)
        lengths = " ".join(map(str, best.lengths))
        flags = f"--sample {best.num_drawn} --maxlen {lengths}" + f" --num-samples {best.num_samples}" * has_samples
        said = [] if best.num_documents is None else [f"Cheapest: {best.name}, {flags}", ""]
        parts += [f"{task}, {template}:", "", as_columns(rows), "", *said]
    return "\n".join([*parts, textwrap.fill(_LEGEND, WIDTH)])


def _count(number: int | None) -> str:
    return "over a million" if number is None else f"{number:,}"


@command()
def main(argv: Sequence[str]) -> None:
    """Plan what a command line asks for."""
    options = _parse(argv)
    if options.max_samples < 1:
        raise UserError(f"--max-samples is {options.max_samples}; give 1 or more")
    found = plan(options)
    if options.json:
        plans = [
            {"task": task, "template": template, **to_json(one)}
            for (task, template), of_setting in found.items()
            for one in of_setting
        ]
        print(json.dumps(plans, indent=2, ensure_ascii=False))
    else:
        print(render(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
