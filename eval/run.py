"""The main job: generate at several truncation lengths, score, report.

accelerate launch eval/run.py --task plos --maxlen 1024 2048 4096 8192 --limit 4
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.config.run import RunConfig
from eval.runtime.given import check_given
from eval.runtime.jobs import command


@command(again="the same command")
def main(argv: Sequence[str]) -> None:
    """Run what a command line asks for."""
    config = RunConfig.from_command_line(argv)
    check_given(config)  # plan, names and paths
    # What answers and scores takes seconds to import, and comes after the checks.
    from eval.generation.backend import open_backend
    from eval.generation.run_job import open_run

    backend = open_backend(config)  # checks model, plan and positions; no weights yet
    process = backend.process
    if config.likelihood:
        from eval.generation.local import LocalBackend
        from eval.losses.likelihood import WhileAnswering, check_backend

        check_backend(backend, lets_think=config.handles_thoughts)
    data = config.load_tasks()  # tasks/
    notes = config.check_letters(data)  # scoring/: whether the profiles have words for the references
    if process.is_main:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    run = open_run(config, data, backend)  # resumes, or says why it cannot
    requests = run.requests(backend)  # prompting/: cuts each context to each maxlen
    if config.dry_run:
        run.print_forecast(requests, backend)
    else:
        with run.lock(process):
            requests, shared = run.start(requests, backend, argv)  # without what earlier sessions answered
            if config.likelihood:
                assert isinstance(backend, LocalBackend)
                likelihoods = WhileAnswering(backend, run.folder.path, f"{process.index:05}-{run.token}")
                backend.answered = likelihoods
            if config.generate:
                with backend.kept():
                    for part in run.parts(requests, shared, process):  # one, or with --until as many as it takes
                        for prediction in backend.answer(*part):
                            run.append(prediction, process)
                if config.likelihood:
                    process.wait()
                    if process.is_main:
                        likelihoods.keep()
                run.finish(requests, process)  # merges the journals, scores, reports
    process.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
