"""Measure how well metrics agree with people, on answers that people have rated. Needs no run and no model of its own.

    python -m eval.meta --data FILE [FILE ...] [--metrics hf,diagnostics]
    python -m eval.meta --data labels.csv --output agreement.json

A file is LongSciVerify's, SQuALITY's or that of Koh et al. (see docs/metrics.md), a rating sheet of `eval.rate`, or a
table with the columns document_id, system, prediction and rating:NAME, and id, references, document, query, window,
length, rater where there are any.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from eval.judging.judge import open_judge
from eval.metrics.open import BUILT_IN
from eval.ratings.judged import read_judgements
from eval.ratings.measure import default_metrics, measure, open_named, rounded
from eval.ratings.schema import Agreements
from eval.ratings.table import LEGEND, describe_sets, describe_skipped, sections
from eval.records.disk import write_whole
from eval.records.typed import to_json
from eval.reporting.tables import as_columns
from eval.runtime.jobs import CommandParser, command, listed_names
from eval.scoring.profiles import PROFILES

_WIDTH = 120


def render(content: Agreements, *, is_full: bool) -> str:
    """Return the tables for a terminal."""
    parts = [textwrap.fill(line, _WIDTH) for line in [*describe_sets(content), *describe_skipped(content)]]
    for title, rows in sections(content, is_full=is_full):
        parts += ["", f"{title}:", "", as_columns(rows)]
    return "\n".join([*parts, "", textwrap.fill(LEGEND, _WIDTH)])


def _in_lines(content: dict[str, Any]) -> str:
    """Return JSON with a line for each entry of a list, so that files of two calls can be compared."""
    parts = []
    for name, value in content.items():
        entries = [json.dumps(one, ensure_ascii=False) for one in value] if isinstance(value, list) else []
        text = "[\n" + ",\n".join(entries) + "\n]" if entries else json.dumps(value, ensure_ascii=False)
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.meta", __doc__)
    parser.add_argument("--data", metavar="FILE", type=Path, nargs="+", required=True, help="rated answers")
    parser.add_argument(
        "--metrics",
        metavar="A,B",
        type=listed_names,
        help=f"profiles ({', '.join(PROFILES)}) and metrics ({', '.join(BUILT_IN)} ...); default: all that need "
        "nothing but this suite",
    )
    parser.add_argument(
        "--judge-may-see-documents",
        action="store_true",
        help="send documents to a judge's address, where its prompt shows them; see docs/judge.md",
    )
    parser.add_argument("--output", metavar="FILE.json", type=Path, help="write all numbers")
    parser.add_argument("--full", action="store_true", help="print tables of all ratings, not of the headline alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    if options.output is not None and options.output.suffix != ".json":
        parser.error(f"--output {options.output}: name a file that ends in .json")
    return options


@command()
def main(argv: Sequence[str]) -> None:
    """Measure what a command line names."""
    options = _parse(argv)
    judgements = [read_judgements(path) for path in options.data]
    with ExitStack() as opened:
        if options.metrics:
            names = dict.fromkeys(options.metrics)
            judge = partial(open_judge, may_see_documents=options.judge_may_see_documents)
            metrics = [opened.enter_context(closing(open_named(name, {"judge": judge}))) for name in names]
        else:
            metrics, reasons = default_metrics()
            for reason in reasons:
                print(reason, file=sys.stderr)
        content = measure(judgements, metrics)
    lines = rounded(to_json(content))
    if options.output is not None:
        write_whole(options.output.parent, options.output.name, _in_lines(lines).encode())
    if options.json:
        print(json.dumps(lines, indent=2, ensure_ascii=False))
    else:
        print(render(content, is_full=options.full))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
