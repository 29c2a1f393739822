"""Numbers, tables and plots for the trackers that accelerate supports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from eval.errors import UserError
from eval.records.schema import Estimate, RunRecord, Scores
from eval.reporting.columns import costs_of
from eval.reporting.run_report import all_blocks
from eval.reporting.tables import as_markdown

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers are known and installed.

    Raises:
        UserError: One is not.
    """
    # Imported here: reports are made without accelerate, which loads torch.
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    known = sorted(str(getattr(name, "value", name)) for name in LOGGER_TYPE_TO_CLASS)
    for name in names:
        if name not in known:
            raise UserError(f"--report-to {name} is no tracker of accelerate; known: {', '.join(known)}")
        if name not in installed:
            raise UserError(f"--report-to {name}: its package is not installed; run: pip install {name}")


def start_trackers(accelerator: Accelerator, project: str, config: Mapping[str, Any]) -> None:
    """Start the trackers that the accelerator was made with; they take no lists and no None as settings."""
    plain = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in config.items()}
    accelerator.init_trackers(project, config=plain)


def log_scores(trackers: Sequence[GeneralTracker], record: RunRecord, scores: Scores, plots: Sequence[Path]) -> None:
    """Give trackers what the report has: metrics and costs at each length as a step, tables, pictures.

    What a tracker does not take through accelerate is left out, and that is printed.
    """
    steps = values_by_length(scores)
    tables = {block.title: block.rows for block in all_blocks(record, scores) if len(block.rows) > 1}
    pictures = {file.stem: np.asarray(Image.open(file).convert("RGB"))[None] for file in plots}
    for tracker in trackers:
        for maxlen, values in sorted(steps.items()):
            tracker.log(values, step=maxlen)
        refused = []
        for title, (header, *rows) in tables.items():
            if tracker.name == "tensorboard":
                tracker.log({title: as_markdown([header, *rows])}, step=max(steps))
            elif hasattr(tracker, "log_table"):
                tracker.log_table(title, columns=header, data=rows, step=max(steps))
            else:
                refused = ["tables"]
        if tracker.name == "tensorboard":
            tracker.log_images(pictures, step=max(steps), dataformats="NHWC")
        elif tracker.name == "aim":
            tracker.log_images({name: picture[0] for name, picture in pictures.items()}, step=max(steps))
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: list(picture) for name, picture in pictures.items()}, step=max(steps))
        elif hasattr(tracker, "log_artifact"):
            for file in plots:
                tracker.log_artifact(str(file))
        else:
            refused.append("pictures")
        if refused:
            print(f"{tracker.name} takes no {' and no '.join(refused)} through accelerate; they are in the run folder")


def values_by_length(scores: Scores) -> dict[int, dict[str, float]]:
    """Return what trackers log at each length: metrics, costs and the SCROLLS score of all examples, if known."""
    steps: dict[int, dict[str, float | None]] = {}
    for result in scores.results:
        if result.subset != "all":
            continue
        values = steps.setdefault(result.maxlen, {})
        where = f"{result.task}/{result.template}/"
        for metric, estimate in result.metrics.items():
            if result.kind == "model":
                values |= _ends(f"{where}{metric}", estimate)
            else:
                values[f"{where}{result.system}/{metric}"] = estimate.mean
        if result.cost is not None:
            values |= {f"{where}cost/{column.key}": column.value(result.cost) for column in costs_of([result])}
    for row in scores.scrolls_score.scores if scores.scrolls_score else []:
        steps[row.maxlen] |= _ends(f"scrolls_score/{row.template}" if row.template else "scrolls_score", row)
    return {
        maxlen: {name: float(value) for name, value in values.items() if value is not None}
        for maxlen, values in steps.items()
    }


def _ends(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {f"{name}/mean": estimate.mean, f"{name}/low": estimate.low, f"{name}/high": estimate.high}
