"""Write a scored run folder as the files of lm-evaluation-harness, for whatever reads those.

    python -m eval.export RUN [--output DIR]

Writes DIR/MODEL/results_TIME.json and, for each task and length, DIR/MODEL/samples_TASK_TIME.jsonl; by default DIR is
RUN/lm_eval. Needs no model, and no lm-evaluation-harness.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from eval.interop.lm_eval_files import export_run
from eval.records.disk import inside
from eval.runtime.jobs import CommandParser, command
from eval.scoring.scored_run import read_scored


@command()
def main(argv: Sequence[str]) -> None:
    """Export what a command line names."""
    parser = CommandParser("python -m eval.export", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a scored run")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: RUN/lm_eval")
    options = parser.parse_args(argv)
    output = options.output or inside(options.run, "lm_eval")
    for file in export_run(read_scored(options.run), output, datetime.now()):
        print(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
