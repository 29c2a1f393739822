"""Numbers, tables and plots to the trackers that accelerate knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from eval.errors import UserError
from eval.reporting.tables import as_markdown, blocks_of, scrolls_blocks


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers are known and installed.

    Raises:
        UserError: One is not.
    """
    there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    known = sorted(str(getattr(name, "value", name)) for name in LOGGER_TYPE_TO_CLASS)
    for name in names:
        if name not in known:
            raise UserError(f"--report-to {name} is no tracker of accelerate; known: {', '.join(known)}")
        if name not in there:
            raise UserError(f"--report-to {name}: its package is not installed; run: pip install {name}")


def start_trackers(accelerator: Accelerator, project: str, config: Mapping[str, Any]) -> None:
    """Start the trackers that the accelerator was made with.

    Args:
        accelerator: Of all processes.
        project: Name under which trackers file the run.
        config: Its settings; trackers take no lists and no None.
    """
    plain = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in config.items()}
    accelerator.init_trackers(project, config=plain)


def log_scores(
    trackers: Sequence[GeneralTracker], record: Mapping[str, Any], scores: Mapping[str, Any], plots: Sequence[Path]
) -> None:
    """Give trackers what the report has: metrics and costs at each length as a step, tables, pictures.

    What a tracker does not take through accelerate it does not get, and that is printed.

    Args:
        trackers: That were started.
        record: `run.json`.
        scores: `scores.json`.
        plots: PNG files.
    """
    steps = _values_by_length(scores)
    blocks = [block for task in record["tasks"] for block in blocks_of(record, scores, task)]
    tables = {title: rows for title, _, rows in [*blocks, *scrolls_blocks(scores)] if len(rows) > 1}
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


def _values_by_length(scores: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    steps: dict[int, dict[str, float]] = {}
    for result in scores["results"]:
        if result["subset"] != "all":
            continue
        values = steps.setdefault(result["maxlen"], {})
        where = f"{result['task']}/{result['template']}/"
        for metric, estimate in result["metrics"].items():
            if result["kind"] == "model":
                values |= {f"{where}{metric}/{end}": estimate[end] for end in ("mean", "low", "high")}
            else:
                values[f"{where}{result['system']}/{metric}"] = estimate["mean"]
        values |= {f"{where}cost/{name}": value for name, value in (result["cost"] or {}).items()}
    for row in (scores["scrolls_score"] or {"scores": []})["scores"]:
        where = f"scrolls_score/{row['template']}/" if row["template"] else "scrolls_score/"
        steps[row["maxlen"]] |= {f"{where}{end}": row[end] for end in ("mean", "low", "high")}
    return {
        maxlen: {name: float(value) for name, value in values.items() if value is not None}
        for maxlen, values in steps.items()
    }
