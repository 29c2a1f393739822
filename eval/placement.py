"""Which layers, or which key/value heads, need full attention: a search on calibration documents, judged on others.

accelerate launch eval/placement.py --task aclsum --split validation --limit 3 --maxlen 4096 --budget layers=4

Measurements go to the folder line by line: the loss of one document under one plan. A run that was killed measures what
is missing, and another budget or way of searching in the same folder measures what is new.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.config.placement import PlacementConfig
from eval.runtime.given import check_given
from eval.runtime.jobs import command
from eval.runtime.processes import start_accelerated


@command(again="the same command")
def main(argv: Sequence[str]) -> None:
    """Search under the settings of a command line."""
    config = PlacementConfig.from_command_line(argv)
    check_given(config)  # plans, names and paths
    # What measures takes seconds to import, and comes after the checks.
    from eval.losses.ledger import HELD_OUT, Ledger
    from eval.losses.placement_job import open_placement
    from eval.losses.search import plans_to_judge, search
    from eval.losses.stability import search_folds
    from eval.runtime.model import open_model

    process = start_accelerated(config.threads)
    model = open_model(config, "full", process, config.maxlen)  # plans are put on it one by one; no weights yet
    job = open_placement(config, model)  # resumes, or says why it cannot
    with job.lock(process):
        lines = job.start(model, process, argv)
        with job.folder.open_journal(f"{process.index:05}") as journal:
            write = partial(job.write_line, journal, process=process)
            ledger = Ledger(model, job.texts, config.first, lines, write)
            result = None if config.rank == "none" else search(config, job.space, ledger)
            chosen = None if result is None else result.chosen
            folds = None if config.folds is None else search_folds(config, job.space, ledger, job.num_in_folds)
            majority = None if folds is None else folds.majority
            judged = plans_to_judge(config, job.space, model.checkpoint, job.judged, chosen, majority)
            ledger.measure(HELD_OUT, list(dict.fromkeys(judged.values())))
            num_layers_run = ledger.total_layers_run()
        process.wait()
        if process.is_main:
            job.finish(result, folds, judged, ledger.seconds, num_layers_run)
    process.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
