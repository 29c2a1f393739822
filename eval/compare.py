"""Compare two runs on the same examples: differences with intervals, tests, and the examples that changed most.

    python -m eval.compare RUN_A RUN_B [--metric rouge1] [--margin 0.01]
    python -m eval.compare RUN RUN --maxlen-a 1024 --maxlen-b 8192
    python -m eval.compare RUN_A RUN_B --html

Positive differences favour the second run. Runs whose examples, references or profiles differ are refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.config.claim import DIRECTIONS
from eval.errors import UserError
from eval.records.disk import write_whole
from eval.records.run_folder import comparison_page
from eval.records.schema import Comparison
from eval.reporting.columns import COMPARISON_LEGEND
from eval.reporting.compare_page import render_comparison_page
from eval.reporting.stops import warn_of_stop
from eval.reporting.tables import as_columns, comparison_table
from eval.runtime.jobs import CommandParser, command, margin_share
from eval.scoring.beforehand import provenance
from eval.scoring.claims import MARGIN
from eval.scoring.compare_runs import (
    SUBSETS,
    RunComparison,
    check_comparable,
    compare_runs,
    comparison_json,
    name_comparison,
)
from eval.scoring.metric_files import metric_of
from eval.scoring.profiles import describe_profiles, metric_name
from eval.scoring.scored_run import read_scored

_WIDTH = 120


def render_comparison(content: RunComparison) -> str:
    """Return a comparison for a terminal."""
    parts = [
        f"{letter}: {side.run}: {side.model}, {side.plan}"
        + (f" ({side.num_absent} predictions not there yet)" if side.num_absent else "")
        for letter, side in (("A", content.a), ("B", content.b))
    ]
    parts += [
        f"differ in {name}: {_short(first)} | {_short(second)}" for name, (first, second) in content.differences.items()
    ]
    parts += ["", f"B minus A; {describe_profiles(content.profiles).replace('`', '')}", ""]
    for subset in SUBSETS:
        rows = [row for row in content.comparisons if row.subset == subset]
        if rows:
            parts += ["Where both lengths cut:", ""] if subset == "always_truncated" else []
            parts += [as_columns(comparison_table(rows, "task, template, maxlen", name_comparison)), ""]
    for name, rows in _further(content).items():
        parts += [f"{name}:", "", as_columns(comparison_table(rows, "task, template, maxlen", name_comparison)), ""]
    parts += [part for text in content.left_out for part in (textwrap.fill(f"Left out: {text}.", _WIDTH), "")]
    parts += ["Examples that changed most, by the headline of each, or the mean of the scores that it joins:", ""]
    rows_of_changes = [["example", "task, template, maxlen", "metric", "A", "B", "change"]]
    for one in content.changed_most:
        scores = [f"{100 * one.a:.2f}", f"{100 * one.b:.2f}", f"{100 * one.difference:+.2f}"]
        rows_of_changes.append([one.id, one.name, metric_name(one.metric), *scores])
    legend = COMPARISON_LEGEND
    if content.recorded is not None:
        legend = legend.replace(provenance(None), provenance(content.recorded))
    claim = [textwrap.fill(content.claim, _WIDTH), ""] if content.claim else []
    return "\n".join([*parts, as_columns(rows_of_changes), "", *claim, textwrap.fill(legend, _WIDTH)])


def _further(content: RunComparison) -> dict[str, list[Comparison]]:
    """Return the rows of each table of further metrics, by its title."""
    tables: dict[str, list[Comparison]] = {}
    for row in content.further:
        cut = "" if row.subset == "all" else ", where both lengths cut"
        tables.setdefault(f"{metric_of(row.metric)}{cut}", []).append(row)
    return tables


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.compare", __doc__)
    parser.add_argument("first", metavar="RUN_A", type=Path, help="folder of a run")
    parser.add_argument("second", metavar="RUN_B", type=Path, help="folder of another, or of the same")
    parser.add_argument("--metric", metavar="NAME", nargs="+", default=[], help="default: all of each task's profile")
    parser.add_argument("--maxlen-a", metavar="N", type=int, help="length of the first run (default: all)")
    parser.add_argument("--maxlen-b", metavar="N", type=int, help="length of the second (default: the first's)")
    parser.add_argument(
        "--margin", metavar="X", type=margin_share, default=MARGIN, help=f"of non-inferiority (default: {MARGIN})"
    )
    parser.add_argument(
        "--claim", choices=DIRECTIONS, help="what is claimed of RUN_B; says whether its run.json recorded it beforehand"
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        nargs="?",
        type=Path,
        const=Path(),
        help="write a page with all answers side by side (default: compare-RUN_A.html in RUN_B)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


def _page_of(options: argparse.Namespace) -> Path | None:
    """Return where the page is written, None for no page.

    Raises:
        UserError: It is a folder, no page, or the report of a run.
    """
    if options.html is None:
        return None
    lengths = f"-{options.maxlen_a}" * bool(options.maxlen_a) + f"-to-{options.maxlen_b}" * bool(options.maxlen_b)
    page: Path = options.html if options.html.name else comparison_page(options.first, options.second, lengths)
    if page.suffix != ".html":
        raise UserError(f"--html is {page}; give the name of a page, which ends in .html, behind the runs")
    if page.is_dir() or page.name == "report.html":
        what = "a folder" if page.is_dir() else "what the report of a run is called"
        raise UserError(f"--html is {page}, {what}; give another name")
    return page


@command()
def main(argv: Sequence[str]) -> None:
    """Compare what a command line names."""
    options = _parse(argv)
    page = _page_of(options)
    first, second = read_scored(options.first), read_scored(options.second)
    check_comparable(first, second)
    maxlens = options.maxlen_a, options.maxlen_b
    content = compare_runs(first, second, options.metric, options.margin, maxlens, options.claim)
    if page is not None:
        write_whole(page.parent, page.name, render_comparison_page(content, first, second, maxlens).encode())
    if options.json:
        print(json.dumps(comparison_json(content), indent=2, ensure_ascii=False))
    else:
        print(render_comparison(content))
        for side in {first.path: first, second.path: second}.values():
            if side.record.until is not None and (warning := warn_of_stop(side.record.until)):
                print("\n" + textwrap.fill(f"{side.path}: {warning}", _WIDTH))
        if page is not None:
            print(f"\npage: {page}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
