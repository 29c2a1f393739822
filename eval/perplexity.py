"""Perplexity of long documents at several lengths and by position: exp(negative log likelihood / tokens).

accelerate launch eval/perplexity.py --task aclsum --maxlen 1024 2048 4096 8192 --limit 4

The same tokens of a document are read at every length: in consecutive windows of that many tokens, each on its own,
whose first token is not predicted; or with `--stride` in windows that overlap, of which the end is scored. A position
is the number of tokens that a prediction could see.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.config.perplexity import PerplexityConfig
from eval.runtime.given import check_given
from eval.runtime.jobs import command


@command(again="the same command")
def main(argv: Sequence[str]) -> None:
    """Measure under the settings of a command line."""
    config = PerplexityConfig.from_command_line(argv)
    check_given(config)  # plan, names and paths
    # What measures takes seconds to import, and comes after the checks.
    from eval.losses.meter import open_meter
    from eval.losses.perplexity_job import open_perplexity

    meter = open_meter(config)  # checks model and settings; no weights yet
    process = meter.process
    job = open_perplexity(config, meter)  # resumes, or says why it cannot
    with job.lock(process):
        missing = job.start(meter, argv)
        if missing:
            mine = missing[process.index :: process.count]
            lines = meter.measure(map(job.reading, mine), job.record.identity, job.folder.path)
            with job.folder.open_journal(f"{process.index:05}") as journal:
                for line in job.shown(lines, len(mine), process):
                    job.write_line(journal, line, process)
        process.wait()
        if process.is_main:
            job.finish()
    process.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
