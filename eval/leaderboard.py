"""Rank many scored runs by quality, beside what each cost: task x model x plan x template x length.

    python -m eval.leaderboard DIR [--profile hf] [--margin 0.01] [--cost cache_bytes] [--output DIR]

Each task has a board, under the profile that most of its runs were scored under, unless another is given. All that a
board ranks answered the same examples about the same documents, so that any two rows can be paired; every run that is
left out is named with the reason. Needs no model and no data set.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.errors import UserError
from eval.records.disk import inside
from eval.records.typed import to_json
from eval.reporting.columns import charted_costs
from eval.reporting.leaderboard_report import write_leaderboard
from eval.reporting.leaderboard_tables import render_terminal
from eval.runtime.jobs import CommandParser, command, margin_share
from eval.scoring.claims import MARGIN
from eval.scoring.leaderboard import make_leaderboard
from eval.scoring.profiles import PROFILES


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.leaderboard", __doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="run folders are looked for in it and below")
    parser.add_argument(
        "--profile",
        choices=list(PROFILES),
        metavar="NAME",
        help=f"of all boards, one of {', '.join(PROFILES)} (default: of each, what most runs have)",
    )
    parser.add_argument(
        "--margin", metavar="X", type=margin_share, default=MARGIN, help=f"of the best, a fraction (default: {MARGIN})"
    )
    parser.add_argument(
        "--cost",
        choices=list(charted_costs()),
        default="attention_flops",
        help="of the frontier (default: attention_flops)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="for what is written (default: DIR/leaderboard)")
    parser.add_argument("--json", action="store_true", help="print leaderboard.json instead of tables")
    return parser.parse_args(arguments)


@command()
def main(argv: Sequence[str]) -> None:
    """Rank what a command line names."""
    options = _parse(argv)
    output = options.output or inside(options.directory, "leaderboard")
    if (output / "run.json").exists():
        raise UserError(f"output folder {output} holds a run; give another with --output")
    content = make_leaderboard(options.directory, options.profile, options.margin, options.cost)
    write_leaderboard(output, content, options.directory)
    if options.json:
        print(json.dumps(to_json(content), indent=2, ensure_ascii=False))
    else:
        print(render_terminal(content))
        print(f"\nleaderboard: {output / 'leaderboard.html'}, and as .md, .csv, .json\nplots: {output / 'plots'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
