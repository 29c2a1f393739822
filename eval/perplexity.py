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

import torch

from eval.config.perplexity import PerplexityConfig
from eval.losses.perplexity_job import open_perplexity
from eval.losses.windows import measure
from eval.records.journal import append_line
from eval.runtime.jobs import command
from eval.runtime.model import open_model
from eval.runtime.processes import start_accelerated
from masformer.loss import check_head


@command(again="the same command")
def main(argv: Sequence[str]) -> None:
    """Measure under the settings of a command line."""
    config = PerplexityConfig.from_command_line(argv)
    process = start_accelerated(config.threads)
    torch.manual_seed(config.seed)
    model = open_model(config, config.plan, process, max(config.maxlen))  # checks plan and positions; no weights yet
    job = open_perplexity(config, model)  # resumes, or says why it cannot
    with job.lock(process):
        missing = job.start(model, process, argv)
        if missing:
            loaded = model.load()
            check_head(loaded)
            mine = missing[process.index :: process.count]
            with job.folder.open_journal(f"{process.index:05}") as journal:
                for line in measure(mine, loaded, job.builder, job.record.identity, process):
                    append_line(journal, line)
        process.wait()
        if process.is_main:
            job.finish()
    process.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
