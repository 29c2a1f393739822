"""Write scored run folders in the formats of others, for whatever reads those.

    python -m eval.export RUN                          # files of lm-evaluation-harness, in RUN/lm_eval
    python -m eval.export RUN --to lm-eval-tasks       # its tasks, for any model of lm-evaluation-harness
    python -m eval.export RUN --to inspect             # a log for each task and length, for `inspect view`
    python -m eval.export RUN --to eval-results        # entries of the hub's .eval_results
    python -m eval.export RUN --to dataset             # a data set with all samples, and its card
    python -m eval.export RUN RUN --to card --output CHECKPOINT   # scores into the card of a converted checkpoint

Needs no model, and none of the programs that read the files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from eval.errors import UserError
from eval.interop import cards, hub_results, inspect_log, lm_eval_files, lm_eval_tasks
from eval.records.disk import inside
from eval.runtime.jobs import CommandParser, command
from eval.scoring.scored_run import ScoredRun, read_scored


@dataclass(frozen=True, kw_only=True)
class Format:
    """What runs are written as.

    Attributes:
        write: Writes runs into a folder, and returns the files.
        folder: Where the files go by default, within the run; empty where a folder must be given, which takes several
            runs.
    """

    write: Callable[[Sequence[ScoredRun], Path, argparse.Namespace], list[Path]]
    folder: str = ""


def _write_dataset(runs: Sequence[ScoredRun], output: Path, _: argparse.Namespace) -> list[Path]:
    from eval.interop import hub_dataset  # after the flags: it imports pyarrow

    return hub_dataset.export_run(runs[0], output)


FORMATS = {
    "lm-eval": Format(
        write=lambda runs, output, _: lm_eval_files.export_run(runs[0], output, datetime.now()), folder="lm_eval"
    ),
    "lm-eval-tasks": Format(
        write=lambda runs, output, _: lm_eval_tasks.export_run(runs[0], output), folder="lm_eval_tasks"
    ),
    "inspect": Format(write=lambda runs, output, _: inspect_log.export_run(runs[0], output), folder="inspect"),
    "eval-results": Format(
        write=lambda runs, output, options: hub_results.export_run(
            runs[0], output, hub_results.parse_benchmarks(options.benchmark)
        ),
        folder="eval_results",
    ),
    "dataset": Format(write=_write_dataset, folder="dataset"),
    "card": Format(write=lambda runs, output, _: [cards.add_to_checkpoint(runs, output)]),
}


@command()
def main(argv: Sequence[str]) -> None:
    """Export what a command line names."""
    parser = CommandParser("python -m eval.export", __doc__)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a scored run; several with card")
    parser.add_argument("--to", choices=FORMATS, default="lm-eval", help="default: lm-eval")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="default: a folder of the format's name in RUN; with card, the converted checkpoint",
    )
    parser.add_argument(
        "--benchmark",
        metavar="TASK=OWNER/NAME:ID",
        nargs="+",
        default=[],
        help="with eval-results: data set of the hub, and task of its eval.yaml (default: default), that a task is; "
        "default: the data set that was read, and its config",
    )
    options = parser.parse_args(argv)
    known = FORMATS[options.to]
    if known.folder and len(options.runs) > 1:
        raise UserError(f"--to {options.to} takes one run and got {len(options.runs)}; export one after the other")
    if not known.folder and options.output is None:
        raise UserError(f"--to {options.to} needs --output DIR, the folder of a converted checkpoint")
    if options.benchmark and options.to != "eval-results":
        raise UserError("--benchmark is about --to eval-results; leave it out")
    runs = [read_scored(run) for run in options.runs]
    for file in known.write(runs, options.output or inside(options.runs[0], known.folder), options):
        print(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
