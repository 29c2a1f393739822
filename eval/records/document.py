"""Write the tables of docs/run-folder.md from the records: python -m eval.records.document [PAGE]."""

from __future__ import annotations

import sys
from pathlib import Path

from eval.records import schema
from eval.records.typed import describe_fields

PAGE = Path(__file__).resolve().parents[2] / "docs" / "run-folder.md"
# Records of each section of the page, by the name in its markers.
SECTIONS: dict[str, tuple[type, ...]] = {
    "run": (schema.RunRecord,),
    "examples": (schema.ExampleRecord, schema.DocumentRecord),
    "predictions": (schema.Prediction, schema.ProgressRecord),
    "scores": (schema.Scores,),
    "example-scores": (schema.ExampleScore,),
    "metrics": (schema.MetricRecord, schema.MetricLine),
    "ladder": (schema.LadderRecord,),
    "perplexity": (schema.PerplexityRecord, schema.DocumentLoss, schema.PerplexityScores),
    "placement": (schema.PlacementRecord, schema.PlanLoss, schema.PlanMeasurement, schema.PlacementResult),
    "training": (schema.TrainingRecord, schema.TrainingStep, schema.Evaluation),
    "study": (schema.StudyRecord, schema.ClaimsRecord),
    "leaderboard": (schema.Leaderboard,),
}


def document(page: str) -> str:
    """Return a page with the tables of each section between its markers."""
    for name, kinds in SECTIONS.items():
        before, start, rest = page.partition(f"<!-- fields: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        tables = "\n\n".join(f"{kind.__doc__}\n\n{_table(kind)}" for kind in kinds)
        page = f"{before}{start}{tables}\n{end}{after}"
    return page


def _table(kind: type) -> str:
    # What the run.json of other kinds shares with that of a run is listed once.
    shared = set() if kind is schema.RunRecord else set(describe_fields(schema.RunRecord))
    fields = [row for row in describe_fields(kind) if row not in shared]
    rows = [f"| `{name}` | {hint} | {meaning} |" for name, hint, meaning in fields]
    return "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    file.write_text(document(file.read_text(encoding="utf-8")), encoding="utf-8")
