"""A leaderboard as the files of its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

from eval.records.run_folder import RunFolder
from eval.records.schema import Leaderboard
from eval.records.typed import to_json
from eval.reporting.board_charts import charts_of
from eval.reporting.charts import save_charts
from eval.reporting.leaderboard_page import render_html
from eval.reporting.leaderboard_tables import render_csv, render_markdown

_PREFIX = "leaderboard"


def write_leaderboard(output: Path, content: Leaderboard, directory: Path) -> None:
    """Write `leaderboard.md`, `.csv`, `.json` and `.html`, and `plots/`; each file is there whole or not at all.

    The rows of the page lead to the reports of their runs, which are in the directory that was ranked.

    Raises:
        UserError: The disk refuses.
    """
    folder = RunFolder(output)
    charts = {
        board.task: {f"{_PREFIX}-{name}": chart for name, chart in charts_of(board, content.cost).items()}
        for board in content.boards
    }
    specs = {name: chart.spec for of_task in charts.values() for name, chart in of_task.items()}
    save_charts(output / "plots", specs, rf"{_PREFIX}-.+-(length|cost)(-\w+)?")
    pictures = {
        task: [(chart.title, f"plots/{name}.svg") for name, chart in of_task.items()]
        for task, of_task in charts.items()
    }
    texts = {
        "md": render_markdown(content, pictures),
        "csv": render_csv(content),
        "json": json.dumps(to_json(content), indent=2, ensure_ascii=False) + "\n",
        "html": render_html(content, charts, _links(output, content, directory)),
    }
    for suffix, text in texts.items():
        folder.write_text(f"{_PREFIX}.{suffix}", text)


def _links(output: Path, content: Leaderboard, directory: Path) -> dict[str, str]:
    """Return where the reports of runs are, as seen from the leaderboard; of runs that have one."""
    links = {}
    for one in content.runs:
        is_itself = one.run == directory.absolute().name and (directory / "run.json").exists()
        report = (directory if is_itself else directory / one.run) / "report.html"
        if report.is_file():
            # Quoted, a name with a colon is no protocol.
            links[one.run] = quote(os.path.relpath(report, output))
    return links
