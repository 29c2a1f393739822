"""How often claims about a table of comparisons are false, and how often true ones are made, in simulations.

    python benchmarks/claims.py [--tables 400]

Four dependent rows a table, margin of one point: near-normal differences, one document in ten that collapses by 15
points, right or wrong answers, F1, and scores of which a few are high. Columns: coverage of each row's own interval;
tables that show a difference where the systems are alike (5% are allowed); tables that call a row as good that loses
the margin (2.5%); rows shown to differ that do, by 3 points (30 of right or wrong answers); rows called as good that
lose nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from tests.helpers.simulations import ALL_DRAWS, DOCUMENTS, rates


def main() -> None:
    """Print a table in Markdown, a row a kind of scores and number of documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=400, help="of each row and column")
    parser.add_argument("--scores", nargs="+", choices=ALL_DRAWS, default=list(ALL_DRAWS), help="kinds (default: all)")
    options = parser.parse_args()
    print("| scores | documents | covered | false differences | false as good | differences found | as good found |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in options.scores:
        for num_documents in DOCUMENTS:
            found = rates(name, num_documents, options.tables)
            covered = "-" if found.covered is None else f"{found.covered:.1%}"
            shares = (found.false_difference, found.false_as_good, found.power, found.as_good)
            print(
                f"| {name} | {num_documents} | {covered} | {' | '.join(f'{one:.1%}' for one in shares)} |", flush=True
            )


if __name__ == "__main__":
    main()
