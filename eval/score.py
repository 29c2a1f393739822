"""Score a run folder again, or anybody's predictions. Needs no model and no data set.

    python -m eval.score RUN [--profile scrolls]
    python -m eval.score --predictions FILE --references FILE --profile hf

The tasks of a run folder are scored under their own profiles unless another is given for all of them, and scores and
reports are written anew. Files are plain text, an item a line, or JSON lines (see docs/reports.md); their scores are
printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.jobs import CommandParser, margin_share, run_command
from eval.records.journal import fingerprint
from eval.records.read_run import RunInputs, open_run, profiles_of, read_inputs, tasks_scored_by_first_line
from eval.records.run_folder import RunFolder
from eval.reporting.run_report import write_page
from eval.reporting.tables import COMPARISON_LEGEND, COST_LEGEND, LEGEND, render_report, render_terminal
from eval.scoring.examples import SCORING_VERSION, compare_settings, score_examples, summarize
from eval.scoring.files import score_files
from eval.scoring.profiles import PROFILES
from eval.scoring.scored_run import predictions_digest
from eval.scoring.scrolls import scrolls_score
from eval.scoring.significance import MARGIN


def score_run(
    folder: RunFolder, inputs: RunInputs, profile: str | None, margin: float = MARGIN, *, with_texts: bool
) -> tuple[dict[str, Any], list[Path]]:
    """Score the predictions of a run, write scores and reports, and return `scores.json` and the plots.

    Args:
        folder: Of the run, locked.
        inputs: Of the folder.
        profile: Of all tasks; None takes each task's own.
        margin: Of non-inferiority.
        with_texts: Put texts of documents, references and predictions into the page.
    """
    profiles = {task: profile or own for task, own in profiles_of(inputs.record).items()}
    system = inputs.record["identity"]["model"]["reference"]
    scores = score_examples(
        inputs.predictions,
        inputs.examples,
        inputs.documents,
        profiles,
        system,
        tasks_scored_by_first_line(inputs.record),
    )
    lines = [scored.line for scored in scores.scored]
    results = summarize(scores.scored)
    content = {
        "profiles": profiles,
        "scoring_version": SCORING_VERSION,
        "predictions": predictions_digest(inputs.predictions),
        "example_scores": fingerprint(lines),
        "texts": with_texts,
        "yardsticks": scores.yardsticks,
        "results": results,
        "comparisons": compare_settings(scores.scored, margin),
        "scrolls_score": scrolls_score(results, Counter(line["task"] for line in inputs.examples)),
    }
    folder.write_lines("example_scores.jsonl", lines)
    folder.write_text("report.md", render_report(inputs.record, content, inputs.notes))
    plots = write_page(folder, inputs, content, lines, with_texts=with_texts)
    # The last of all: until it is there, the folder's scores are not those that it describes, and are refused.
    folder.write_json("scores.json", content)
    return content, plots


def print_scores(folder: RunFolder, inputs: RunInputs, scores: Mapping[str, Any]) -> None:
    """Print the tables of a run that was scored."""
    legends = [textwrap.fill(legend, 120) for legend in (LEGEND, COMPARISON_LEGEND, COST_LEGEND)]
    print("\n" + render_terminal(inputs.record, scores))
    print(
        "\n" + "\n".join([*inputs.notes, *legends, f"report: {folder.path / 'report.html'}", f"folder: {folder.path}"])
    )


def score_again(path: Path, profile: str | None, margin: float, *, with_texts: bool | None, as_json: bool) -> None:
    """Score a run folder without its model.

    Args:
        path: Of the folder.
        profile: Of all tasks; None takes each task's own.
        margin: Of non-inferiority.
        with_texts: None does as the last time, and first as the run did.
        as_json: Print `scores.json` rather than tables.

    Raises:
        UserError: It holds no run, lacks what scoring needs, or is in use.
    """
    folder, record = open_run(path)
    if with_texts is None:
        with_texts = _had_texts(path) if (path / "scores.json").exists() else has_texts(path, record)
    with folder.lock(record):
        inputs = read_inputs(folder, record)
        content, _ = score_run(folder, inputs, profile, margin, with_texts=with_texts)
    if as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print_scores(folder, inputs, content)


def has_texts(path: Path, record: Mapping[str, Any]) -> bool:
    """Return whether the page of a run is to hold texts: as its last session was told, or else as the page is.

    Args:
        path: Of the folder.
        record: `run.json`.
    """
    told = record["config"].get("texts")
    return _had_texts(path) if told is None else bool(told)


def _had_texts(path: Path) -> bool:
    try:
        scores = json.loads((path / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return bool(scores.get("texts", True)) if isinstance(scores, dict) else True


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.score", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="folder of a run")
    parser.add_argument("--predictions", metavar="FILE", type=Path, help="of any system: .txt, or .jsonl")
    parser.add_argument("--references", metavar="FILE", type=Path, help="one or several an item: .txt, or .jsonl")
    parser.add_argument(
        "--profile", choices=list(PROFILES), help="of all tasks (default: each task's own; hf for files)"
    )
    parser.add_argument("--margin", metavar="X", type=margin_share, help=f"of non-inferiority (default: {MARGIN})")
    parser.add_argument(
        "--texts",
        action=argparse.BooleanOptionalAction,
        help="put texts into the page; --no-texts for one that is published (default: as before)",
    )
    parser.add_argument("--json", action="store_true", help="print scores.json instead of tables")
    asked = parser.parse_args(arguments)
    if (asked.run is None) == (asked.predictions is None) or (asked.predictions is None) != (asked.references is None):
        parser.error("give either the folder of a run, or --predictions with --references")
    if asked.run is None:
        for flag, value in (("--margin", asked.margin), ("--texts", asked.texts), ("--json", asked.json or None)):
            if value is not None:
                parser.error(f"{flag} is for the folder of a run; files are compared with nothing and printed as JSON")
    return asked


def main(arguments: Sequence[str]) -> int:
    """Score, and return the exit status: 0, or 2 after one line on what is wrong."""
    asked = _parse(arguments)

    def work() -> None:
        if asked.run is None:
            content = score_files(asked.predictions, asked.references, asked.profile or "hf")
            print(json.dumps(content, indent=2, ensure_ascii=False))
        else:
            margin = MARGIN if asked.margin is None else asked.margin
            score_again(asked.run, asked.profile, margin, with_texts=asked.texts, as_json=asked.json)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
