"""Score a run folder again, or anybody's predictions. Needs no model and no data set.

    python -m eval.score RUN [--profile scrolls] [--full] [--explain] [--metrics diagnostics,evaluate:rouge]
    python -m eval.score --predictions FILE --references FILE --profile hf [--metrics diagnostics]

The tasks of a run folder are scored under their own profiles unless another is given for all of them, and scores and
reports are written anew. Files are plain text, an item a line, JSON lines, or tables (see docs/reports.md); their
scores are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from eval.errors import UserError
from eval.judging.judge import open_judge
from eval.metrics.base import Metric
from eval.metrics.open import BUILT_IN, open_metric
from eval.records.read_run import open_run, read_inputs
from eval.records.schema import RunRecord
from eval.records.typed import to_json
from eval.reporting.score_run import had_texts, has_texts, print_scores, score_run
from eval.runtime.jobs import CommandParser, command, listed_names, margin_share
from eval.scoring.claims import MARGIN
from eval.scoring.files import Fields, score_files
from eval.scoring.profiles import PROFILES


def score_again(options: argparse.Namespace) -> None:
    """Score a run folder without its model.

    Raises:
        UserError: It holds no run, lacks what scoring needs, or is in use.
    """
    path: Path = options.run
    folder, record = open_run(path)
    with_texts = options.texts
    if with_texts is None:
        # As the last time; a run without scores has the setting of its last session.
        with_texts = had_texts(path) if (path / "scores.json").exists() else has_texts(path, record)
    with ExitStack() as opened:
        metrics = _open_metrics(options, opened)
        opened.enter_context(folder.lock(record, RunRecord))
        inputs = read_inputs(folder, record)
        margin = MARGIN if options.margin is None else options.margin
        scores, _ = score_run(
            folder,
            inputs,
            options.profile,
            margin,
            with_texts=with_texts,
            accept_ascii_words=options.accept_ascii_words,
            metrics=metrics,
            metrics_again=options.metrics_again,
            answers_alone=options.no_floors,
        )
    if options.json:
        print(json.dumps(to_json(scores), indent=2, ensure_ascii=False))
    else:
        print_scores(folder, inputs, scores, is_full=options.full, is_explained=options.explain)


def _open_metrics(options: argparse.Namespace, opened: ExitStack) -> list[Metric]:
    judge = partial(open_judge, may_see_documents=options.judge_may_see_documents)
    metrics: dict[str, Metric] = {}
    names: dict[str, str] = {}
    for given in dict.fromkeys(options.metrics):
        metric = opened.enter_context(closing(open_metric(given, {"judge": judge})))
        if metric.name in metrics:
            raise UserError(
                f"--metrics {names[metric.name]} and {given} are both called {metric.name}; rename one, or score them "
                "one after the other"
            )
        metrics[metric.name], names[metric.name] = metric, given
    return list(metrics.values())


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.score", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="folder of a run")
    parser.add_argument("--predictions", metavar="FILE", type=Path, help="of any system: .txt, .jsonl, .csv ...")
    parser.add_argument("--references", metavar="FILE", type=Path, help="one or several an item")
    for name, about in {
        "prediction": "field or column of predictions (default: prediction or text)",
        "reference": "field or column of references (default: references, reference or output)",
        "id": "field or column that joins both files (default: id)",
    }.items():
        parser.add_argument(f"--{name}-field", metavar="NAME", help=about)
    parser.add_argument(
        "--profile",
        choices=list(PROFILES),
        metavar="NAME",
        help=f"of all tasks, one of {', '.join(PROFILES)} (default: each task's own; hf for files)",
    )
    parser.add_argument(
        "--accept-ascii-words",
        action="store_true",
        help="score under a profile that drops more than a tenth of the references' letters",
    )
    parser.add_argument(
        "--metrics",
        metavar="NAME",
        type=listed_names,
        action="extend",
        default=[],
        help=f"further metrics, parted by commas: {', '.join(BUILT_IN)}, evaluate:NAME, FILE.py:NAME, "
        "judge:FILE.yaml; see docs/metrics.md",
    )
    parser.add_argument(
        "--judge-may-see-documents",
        action="store_true",
        help="send documents to a judge's address, where its prompt shows them; see docs/judge.md",
    )
    parser.add_argument(
        "--metrics-again", action="store_true", help="forget what these metrics have scored, and score all anew"
    )
    parser.add_argument(
        "--no-floors",
        action="store_true",
        help="score the model's answers alone by these metrics, no floors and ceilings: a judge asks less",
    )
    parser.add_argument("--margin", metavar="X", type=margin_share, help=f"of non-inferiority (default: {MARGIN})")
    parser.add_argument(
        "--texts",
        action=argparse.BooleanOptionalAction,
        help="put texts into the page; --no-texts for one that is published (default: as before)",
    )
    parser.add_argument("--full", action="store_true", help="print all tables of the report")
    parser.add_argument("--explain", action="store_true", help="print what the columns of the tables mean")
    parser.add_argument("--json", action="store_true", help="print scores.json instead of tables")
    options = parser.parse_args(arguments)
    files = options.predictions, options.references
    if (options.run is None) == (files[0] is None) or (files[0] is None) != (files[1] is None):
        parser.error("give either the folder of a run, or --predictions with --references")
    if options.run is None:
        given = {"margin": options.margin, "texts": options.texts}
        flags = ("full", "explain", "json", "metrics_again", "no_floors")
        given |= {name: getattr(options, name) or None for name in flags}
        for name, value in given.items():
            if value is not None:
                flag = f"--{name.replace('_', '-')}"
                parser.error(f"{flag} is for the folder of a run; files are compared with nothing and printed as JSON")
    elif any(getattr(options, f"{name}_field") for name in ("prediction", "reference", "id")):
        parser.error("--prediction-field, --reference-field and --id-field are for files; a run folder has its own")
    if options.metrics_again and not options.metrics:
        parser.error("--metrics-again forgets what the metrics of --metrics have scored; name them")
    if options.judge_may_see_documents and not options.metrics:
        parser.error("--judge-may-see-documents is for a judge among --metrics; name it")
    if options.no_floors and not options.metrics:
        parser.error("--no-floors is for the metrics of --metrics; name them")
    return options


@command()
def main(argv: Sequence[str]) -> None:
    """Score what a command line names."""
    options = _parse(argv)
    if options.run is None:
        fields = Fields(
            prediction=options.prediction_field, reference=options.reference_field, id=options.id_field or "id"
        )
        files, accepts = (options.predictions, options.references), options.accept_ascii_words
        with ExitStack() as opened:
            opens = partial(_open_metrics, options, opened)
            content = score_files(
                *files, options.profile or "hf", fields, accept_ascii_words=accepts, open_metrics=opens
            )
        print(json.dumps(to_json(content), indent=2, ensure_ascii=False))
    else:
        score_again(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
