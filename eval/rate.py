"""Rate the answers of runs side by side, blinded, on a page of this machine. Needs no model and no network.

    python -m eval.rate RUN [RUN ...] [--maxlen 1024 8192] [--scale overall:1-5 complete faithful] [--output FILE.jsonl]
    python -m eval.meta --data FILE.jsonl

It prints an address to open in a browser, and saves every rating at once. The same command goes on where it stopped;
another --rater rates the same answers in another order. With one run, its lengths stand side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.ratings.serve import RatingServer
from eval.ratings.sheet import Scale, SheetFile, gather
from eval.runtime.jobs import CommandParser, command

_NUM_EXAMPLES = 30


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.rate", __doc__)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run")
    parser.add_argument(
        "--maxlen", metavar="N", type=int, nargs="+", default=[], help="lengths whose answers are rated (default: all)"
    )
    parser.add_argument(
        "--scale",
        metavar="NAME[:LOW-HIGH]",
        nargs="+",
        default=["overall:1-5"],
        help="what is rated, from one digit to another (default: overall:1-5); the first is the headline of eval.meta",
    )
    parser.add_argument(
        "--sample",
        metavar="N",
        type=int,
        default=_NUM_EXAMPLES,
        help=f"examples, drawn by a hash of their names (default: {_NUM_EXAMPLES})",
    )
    parser.add_argument("--sample-seed", metavar="S", type=int, default=0, help="of that draw and of the orders")
    parser.add_argument("--rater", metavar="NAME", default="1", help="who rates (default: 1)")
    parser.add_argument(
        "--references", action=argparse.BooleanOptionalAction, default=True, help="show references, folded"
    )
    parser.add_argument(
        "--output", metavar="FILE.jsonl", type=Path, default=Path("ratings.jsonl"), help="default: ratings.jsonl"
    )
    parser.add_argument("--port", metavar="N", type=int, default=0, help="of the page (default: a free one)")
    options = parser.parse_args(arguments)
    if options.output.suffix != ".jsonl":
        parser.error(f"--output {options.output}: name a file that ends in .jsonl")
    for name, values in (("--rater", [options.rater]), ("--scale", options.scale)):
        for value in values:
            if not _is_utf8(value):
                parser.error(f"{name} {value!a} is not valid UTF-8 text; type it again in a terminal of UTF-8")
    options.rater = options.rater.strip()
    if options.sample < 1 or not 0 <= options.port < 1 << 16 or not options.rater:
        parser.error("--sample is at least 1, --port at most 65535, and --rater a name")
    return options


def _is_utf8(text: str) -> bool:
    # The system gives bytes that are none as halves of surrogate pairs.
    return not any("\ud800" <= one <= "\udfff" for one in text)


@command(again="the same command")
def main(argv: Sequence[str]) -> None:
    """Serve the page that a command line asks for, until it is interrupted."""
    options = _parse(argv)
    scales = [Scale.parse(text) for text in options.scale]
    sheet = gather(options.runs, scales, options.maxlen, options.sample, options.sample_seed)
    file = SheetFile(options.output, sheet)
    with RatingServer(sheet, file, options.rater, with_references=options.references, port=options.port) as server:
        print(f"{len(sheet.screens())} screens; ratings of {options.rater} go to {options.output}")
        print(f"open {server.address} in a browser; Ctrl-C ends", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
