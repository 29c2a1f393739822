"""The context ladder of a run: what longer windows show, what the model's likelihood uses, what answers say and score.

    python -m eval.ladder RUN [--no-likelihood]

The likelihood of the references is measured with the model of the run, without decoding, and written to its folder line
by line. See docs/ladder.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from eval.config.run import RunConfig
from eval.errors import UserError
from eval.records.journal import append_line
from eval.records.read_run import open_run
from eval.records.run_folder import RunFolder
from eval.records.schema import RunRecord
from eval.runtime.given import check_given
from eval.runtime.jobs import CommandParser, command
from eval.scoring.metric_files import open_metric_file


def measure(folder: RunFolder, record: RunRecord, *, again: bool) -> None:
    """Measure the likelihood of the references of a run, as far as it is not in the folder.

    Raises:
        UserError: The run has another engine, or its settings do not lead to the run any more.
    """
    config = RunConfig.recorded(record.config, folder.path, record.identity.threads)
    if config.engine != "local":
        raise UserError(
            f"{folder.path} was answered by --engine {config.engine}, and likelihoods are measured with --engine local "
            "alone; see the other rungs with --no-likelihood"
        )
    check_given(config)
    # What measures takes seconds to import.
    from eval.generation.backend import open_backend
    from eval.generation.run_job import open_run as open_job
    from eval.losses.likelihood import check_backend, likelihood_record, measure_likelihood

    backend = check_backend(open_backend(config))
    job = open_job(config, config.load_tasks(), backend)
    requests = job.requests(backend)
    with (
        job.lock(backend.process),
        open_metric_file(folder.path, likelihood_record(backend.tokenizer), again=again) as (journal, seen),
    ):
        total = sum(len(source.fingerprints) for source in requests.sources)
        lines = measure_likelihood(requests, backend, frozenset(seen))
        for line in tqdm(lines, desc="likelihood", total=total, initial=min(len(seen), total), disable=None):
            append_line(journal, line)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.ladder", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument(
        "--likelihood",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the likelihood of references with the model, where it is missing (default: on)",
    )
    parser.add_argument(
        "--metrics-again", action="store_true", help="forget the likelihoods that are there, and measure all anew"
    )
    return parser.parse_args(arguments)


@command(again="the same command")
def main(argv: Sequence[str]) -> None:
    """Measure and print the ladder of a run."""
    options = _parse(argv)
    folder, record = open_run(options.run)
    if options.likelihood:
        measure(folder, record, again=options.metrics_again)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
