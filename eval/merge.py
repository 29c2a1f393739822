"""Join the folders of a run's shards, score them together, and report.

python eval/merge.py part-1 part-2 --output whole

Parts that lack predictions are joined too, which is said; the run's own command on the joined folder makes them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.runtime.jobs import CommandParser, command


@command()
def main(argv: Sequence[str]) -> None:
    """Join what a command line names."""
    parser = CommandParser("python eval/merge.py", __doc__)
    parser.add_argument("parts", metavar="FOLDER", type=Path, nargs="+", help="folder of one shard")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="new folder for the whole run")
    options = parser.parse_args(argv)
    from eval.generation.merged_runs import merge_runs  # takes a while to import, so after the flags

    merge_runs(options.parts, options.output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
