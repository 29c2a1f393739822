"""The context ladder of a run: what longer windows show, what the model's likelihood uses, what answers say and score.

    python -m eval.ladder RUN [--no-likelihood]

The likelihood of the references is measured with the model of the run, without decoding, and written to its folder line
by line. See docs/ladder.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.config.run import RunConfig
from eval.errors import UserError
from eval.records.journal import append_line
from eval.records.read_run import open_run, read_inputs
from eval.records.run_folder import RunFolder
from eval.records.schema import ExampleScore, LadderRecord, MetricLine, Prediction, RunRecord
from eval.records.typed import to_json
from eval.reporting.ladder_page import ladder_table, tables_of, where_lost, write_ladder
from eval.reporting.tables import as_columns
from eval.reporting.terminal import fill, width
from eval.runtime.given import check_given
from eval.runtime.jobs import CommandParser, command
from eval.scoring.ladder import (
    LADDER_VERSION,
    LIKELIHOOD,
    NLL,
    ladder_lines,
    ladder_rungs,
    likelihoods_of,
    unanswered_lines,
)
from eval.scoring.metric_files import open_metric_file, read_metric_files, take_pending
from eval.scoring.scored_run import read_scored

# Engines that tell the likelihood of tokens that they are given.
MEASURING = ("local", "endpoint", "vllm", "sglang")


def measure(folder: RunFolder, record: RunRecord, *, again: bool) -> None:
    """Measure the likelihood of the references of a run, as far as it is not in the folder.

    Where there are answers, only their prompts are measured, else all of the run or shard.

    Raises:
        UserError: The run has another engine, or its settings do not lead to the run any more.
    """
    if (engine := engine_of(record)) not in MEASURING:
        raise UserError(
            f"{folder.path} was answered by --engine {engine}, and likelihoods are measured by {', '.join(MEASURING)}; "
            "see the other rungs with --no-likelihood"
        )
    config = RunConfig.recorded(record.config, folder.path, record.identity.threads)
    check_given(config)
    if others := record.tasks.keys() - config.tasks.keys():
        names = ", ".join(sorted(others))
        print(f"note: not measured are tasks of earlier commands in this folder: {names}", file=sys.stderr)
    # What measures takes seconds to import.
    from eval.generation.backend import open_backend
    from eval.generation.local import LocalBackend
    from eval.generation.run_job import open_run as open_job
    from eval.losses.likelihood import check_backend, likelihood_record, measure_likelihood

    backend = open_backend(config)
    check_backend(backend, lets_think=config.handles_thoughts)
    if backend.process.count > 1:
        raise UserError(f"likelihoods are measured by one process, and this launch has {backend.process.count}")
    if isinstance(backend, LocalBackend):
        measured: Callable[..., Iterator[MetricLine]] = partial(measure_likelihood, backend=backend)
    else:
        from eval.engines.likelihood import measure_served, served

        measured = partial(measure_served, backend=served(backend), folder=folder.path)
    job = open_job(config, config.load_tasks(), backend)
    requests, metric = job.requests(backend), likelihood_record(backend.tokenizer)
    with (
        job.lock(backend.process),
        open_metric_file(folder.path, metric, again=again) as (journal, seen),
    ):
        seen |= take_pending(folder.path, metric, journal, seen)  # of a run that has not come to its end
        answered = folder.read_journal(Prediction).lines
        digests = requests.fingerprints
        wanted = {
            key
            for key in requests.keys
            if not answered or (key in answered and answered[key].fingerprint == digests[key])
        }
        lines, total = measured(requests, wanted=wanted, seen=frozenset(seen)), len(wanted)
        for line in tqdm(lines, desc="likelihood", total=total, initial=min(len(seen), total), disable=None):
            append_line(journal, line)


def engine_of(record: RunRecord) -> str:
    """Return the engine that answered a run."""
    return str(record.config.get("engine", "local"))


def climb(folder: RunFolder, record: RunRecord) -> LadderRecord:
    """Return the ladder of a run, as far as it is known: without answers only what its model uses.

    Raises:
        UserError: The scores of the run are not those of its predictions.
    """
    file = read_metric_files(folder.path).get(LIKELIHOOD)
    profiles, predictions = record.profiles, None
    if folder.read_journal(Prediction).lines:
        scores = read_scored(folder.path).scores  # whether they are the predictions' own
        inputs, profiles, predictions = read_inputs(folder, record), scores.profiles, scores.predictions
        lines = folder.read_lines(ExampleScore, "example_scores.jsonl")
        found = ladder_lines(inputs, lines, likelihoods_of(file, inputs) if file else {}, profiles)
    else:
        measured = file.lines.values() if file else ()
        likelihoods = {(one.task, one.template, one.id, one.maxlen): one.values[NLL] for one in measured}
        known = {key: value for key, value in likelihoods.items() if value is not None}
        found = unanswered_lines(folder.read_examples(), known)
    rungs = ladder_rungs(found, profiles)
    return LadderRecord(
        ladder_version=LADDER_VERSION,
        model=record.identity.model.label,
        plan=record.plan_description,
        rungs=rungs,
        words={"/".join(at): where_lost(of_one) for at, of_one in tables_of(rungs).items()},
        lines=found,
        predictions=predictions,
    )


def print_ladder(folder: RunFolder, ladder: LadderRecord, *, could_measure: bool) -> None:
    """Print the rungs of each task and template, and last of all what they mean.

    Args:
        folder: Folder of the run.
        ladder: Its ladder.
        could_measure: Its likelihood was not asked for, and could be measured.
    """
    if not ladder.rungs:
        print("no ladder: it takes two lengths, and documents that the smaller one cuts")
        return
    for at, rungs in tables_of(ladder.rungs).items():
        print("\n".join([", ".join(at), as_columns(ladder_table(rungs), width(), 2), ""]))
    for words in ladder.words.values():
        print(fill(words))
    if "credited" not in {rung.rung for rung in ladder.rungs}:
        print(fill("The other rungs take answers: run the command of the run without --no-generate."))
    if could_measure and "used" not in {rung.rung for rung in ladder.rungs}:
        print(fill("The likelihood is not measured: leave out --no-likelihood."))
    print(f"page: {folder.path / 'ladder.html'}")


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
    parser.add_argument("--json", action="store_true", help="print ladder.json instead of tables")
    options = parser.parse_args(arguments)
    if options.metrics_again and not options.likelihood:
        parser.error("--metrics-again measures likelihoods anew, and --no-likelihood none; leave one out")
    return options


@command(again="the same command")
def main(argv: Sequence[str]) -> None:
    """Measure and print the ladder of a run."""
    options = _parse(argv)
    folder, record = open_run(options.run)
    if options.likelihood:
        if folder.read_journal(Prediction).lines:
            read_scored(folder.path)  # what is missing there would be found after hours
        measure(folder, record, again=options.metrics_again)
    with folder.lock(record, RunRecord):
        ladder = climb(folder, record)
        write_ladder(folder, ladder)
    if options.json:
        print(json.dumps(to_json(ladder), indent=2, ensure_ascii=False))
    else:
        takes_ids = (record.identity.engine or {}).get("prompts_as", "ids") == "ids"
        could_measure = engine_of(record) in MEASURING and takes_ids and record.identity.thinking is None
        print_ladder(folder, ladder, could_measure=could_measure and not options.likelihood)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
