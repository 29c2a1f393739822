"""Score a run folder again, or anybody's predictions. Needs no model and no data set.

    python -m eval.score RUN [--profile scrolls]
    python -m eval.score --predictions FILE --references FILE --profile hf

A run folder is scored under its own profile unless another is given, and its scores and reports are written anew. Files
are plain text, an item a line, or JSON lines (see docs/scoring.md); their scores are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.command import CommandParser, margin, run_command
from eval.journal import RunFolderError, prediction_key
from eval.report import COMPARISON_LEGEND, COST_LEGEND, LEGEND, render_report, render_terminal
from eval.rouge_profiles import PROFILES
from eval.run_folder import RunFolder, keys_of
from eval.run_page import write_page
from eval.score_files import score_files
from eval.scored_run import predictions_digest
from eval.scoring import SCORING_VERSION, compare_settings, score_examples, summarize
from eval.significance import MARGIN


def score_run(
    folder: RunFolder,
    record: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    profile: str,
    margin: float = MARGIN,
    *,
    with_texts: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """Score the predictions of a run, write scores and reports, and return `scores.json` with what else is to be said.

    Args:
        folder: Of the run, locked.
        record: Its `run.json`.
        predictions: Lines of `predictions.jsonl`.
        profile: Of ROUGE.
        margin: Of non-inferiority.
        with_texts: Put texts of documents, references and predictions into the page.

    Raises:
        RunFolderError: The folder lacks what scoring needs.
    """
    examples, documents = folder.read_examples(), folder.read_documents()
    _check(folder, predictions, examples, documents)
    scores = score_examples(predictions, examples, documents, profile, record["identity"]["model"]["reference"])
    content = {
        "profile": profile,
        "scoring_version": SCORING_VERSION,
        "predictions": predictions_digest({prediction_key(line): line for line in predictions}),
        "yardsticks": scores.yardsticks,
        "results": summarize(scores.scored, profile),
        "comparisons": compare_settings(scores.scored, profile, margin),
    }
    lines = [scored.line for scored in scores.scored]
    folder.write_lines("example_scores.jsonl", lines)
    folder.write_json("scores.json", content)
    notes = _notes(record, predictions, examples)
    folder.write_text("report.md", render_report(record, content, notes))
    write_page(folder, record, content, lines, predictions, examples, documents, notes, with_texts=with_texts)
    return content, notes


def print_scores(folder: RunFolder, record: Mapping[str, Any], scores: Mapping[str, Any], notes: Sequence[str]) -> None:
    """Print the tables of a run that was scored."""
    legends = [textwrap.fill(legend, 120) for legend in (LEGEND, COMPARISON_LEGEND, COST_LEGEND)]
    print("\n" + render_terminal(record, scores))
    print("\n" + "\n".join([*notes, *legends, f"report: {folder.path / 'report.html'}", f"folder: {folder.path}"]))


def _check(
    folder: RunFolder,
    predictions: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    documents: Sequence[Mapping[str, Any]],
) -> None:
    if not predictions:
        raise RunFolderError(f"{folder.path} has no predictions yet; the run's own command makes them")
    texts = {(line["task"], line["document_id"]) for line in documents}
    known = {(line["task"], line["id"]): line["document_id"] for line in examples}
    for line in predictions:
        name = line["task"], line["id"]
        if name not in known or (line["task"], known[name]) not in texts or "context_spans" not in line:
            raise RunFolderError(
                f"{folder.path} lacks the document of {line['id']}, or what was shown of it, as runs of earlier "
                "versions do; make the run again with --overwrite"
            )


def _notes(
    record: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], examples: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return what prompts that begin alike have saved, and what is not there, in sentences."""
    asked = sum(line["prompt_tokens"] for line in predictions)
    prefilled = sum(line["prefilled_tokens"] for line in predictions)
    notes = [f"Prefilled: {prefilled:,} tokens of {asked:,} asked for ({prefilled / max(asked, 1):.2f})."]
    absent = {*keys_of(record, examples)} - {prediction_key(line) for line in predictions}
    notes += [f"Not there yet: {len(absent)} predictions of a run that was interrupted."] if absent else []
    return notes


def score_again(path: Path, profile: str | None, margin: float, *, with_texts: bool, as_json: bool) -> None:
    """Score a run folder without its model.

    Raises:
        RunFolderError: It holds no run, lacks what scoring needs, or is in use.
    """
    folder = RunFolder(path)
    record = folder.read_run()
    if record is None or "grouping" not in record:
        raise RunFolderError(f"{path} holds no run of eval/run.py; give the folder of one")
    with folder.lock(record):
        predictions = list(folder.read_predictions().lines.values())
        content, notes = score_run(
            folder, record, predictions, profile or record["identity"]["profile"], margin, with_texts=with_texts
        )
    if as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print_scores(folder, record, content, notes)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.score", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="folder of a run")
    parser.add_argument("--predictions", metavar="FILE", type=Path, help="of any system: .txt, or .jsonl")
    parser.add_argument("--references", metavar="FILE", type=Path, help="one or several an item: .txt, or .jsonl")
    parser.add_argument("--profile", choices=list(PROFILES), help="default: the run's own; hf for files")
    parser.add_argument(
        "--margin", metavar="X", type=margin, default=MARGIN, help=f"of non-inferiority (default: {MARGIN})"
    )
    parser.add_argument(
        "--texts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put texts into the page; --no-texts for one that is published",
    )
    parser.add_argument("--json", action="store_true", help="print scores.json instead of tables")
    asked = parser.parse_args(arguments)
    if (asked.run is None) == (asked.predictions is None) or (asked.predictions is None) != (asked.references is None):
        parser.error("give the folder of a run, or --predictions with --references")
    return asked


def main(arguments: Sequence[str]) -> int:
    """Score, and return the exit status: 0, or 2 after one line on what is wrong."""
    asked = _parse(arguments)

    def work() -> None:
        if asked.run is None:
            content = score_files(asked.predictions, asked.references, asked.profile or "hf")
            print(json.dumps(content, indent=2, ensure_ascii=False))
        else:
            score_again(asked.run, asked.profile, asked.margin, with_texts=asked.texts, as_json=asked.json)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
