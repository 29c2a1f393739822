"""Look at a folder of runs in a browser: what is there, reports, comparisons, and a run in progress.

    python -m eval.view RUNS [--port N]

It prints an address of this machine to open, and needs no model and no network. All that it shows is in files of the
run folders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.runtime.jobs import CommandParser, command
from eval.viewing.runs import find_runs
from eval.viewing.serve import ViewServer


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.view", __doc__)
    parser.add_argument("directory", metavar="RUNS", type=Path, help="run folders are looked for in it and below")
    parser.add_argument("--port", metavar="N", type=int, default=0, help="of the page (default: a free one)")
    options = parser.parse_args(arguments)
    if not 0 <= options.port < 1 << 16:
        parser.error(f"--port {options.port}: give a number up to 65535")
    return options


@command()
def main(argv: Sequence[str]) -> None:
    """Serve the folder that a command line names, until it is interrupted."""
    options = _parse(argv)
    with ViewServer(options.directory, options.port) as server:
        print(f"{len(find_runs(options.directory))} runs in {options.directory}")
        print(f"open {server.address} in a browser; Ctrl-C ends", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
