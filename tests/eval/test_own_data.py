"""Data and code of others, from a task file to the page: the hub, a folder of Parquet, and an installed package."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from eval.run import main
from eval.score import main as score
from tests.helpers.hub_standin import hub_standin
from tests.helpers.tiny_models import save_tiny_checkpoint

ROOT = Path(__file__).parents[2]
TEXT = "long documents hold many words and every word costs a token of context to read"
WORDS = TEXT.split()
ROWS = [
    {
        "key": f"k{i}",
        "title": f"Ticket {i}",
        "body": " ".join(WORDS[(i + j) % len(WORDS)] for j in range(40 + 20 * i)),
        "gist": " ".join(WORDS[i : i + 5]),
    }
    for i in range(5)
]
TASK = """
data: {data}
subset: mail
split: dev
id_field: key
context_field: "{{{{ title }}}}\\n{{{{ body }}}}"
target_field: gist
instruction: Say it in five words.
system: You are terse.
shots: 1
max_new_tokens: 8
maxlen: [600, 900]
"""
CARD = b"""---
configs:
- config_name: mail
  data_files:
  - {split: train, path: mail/train-*}
  - {split: dev, path: mail/dev-*}
- config_name: news
  data_files:
  - {split: dev, path: news/*}
---
"""


def parquet(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    other = [{**row, "body": row["body"].upper()} for row in ROWS]
    parts = {"mail/dev-0.parquet": ROWS[:2], "mail/dev-1.parquet": ROWS[2:], "mail/train-0.parquet": other}
    return {
        "README.md": CARD,
        "news/a.parquet": parquet(other),
        **{name: parquet(rows) for name, rows in parts.items()},
    }


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def predictions(folder: Path) -> list[tuple[str, int, str]]:
    lines = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    return [(line["id"], line["maxlen"], line["text"]) for line in lines]


def run(environment: Mapping[str, str], *tasks_and_outputs: tuple[Path, Path]) -> str:
    """Run in a process of its own, because the endpoint of the hub is read at import; return what it prints."""
    code = """
import sys
from eval.reporting import page, run_report
from eval.run import main
# Charts and their library take seconds, and have tests of their own.
page._vega, run_report.save_charts = lambda: "", lambda folder, specs, own: []
for task, output in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    assert main(["--engine", "mock", "--task", task, "--output", output]) == 0
"""
    command = [sys.executable, "-c", code, *(str(path) for pair in tasks_and_outputs for path in pair)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_set_of_the_hub_goes_from_its_task_file_to_the_page_and_again_without_the_hub(tmp_path: Path) -> None:
    task, local = tmp_path / "tickets.yaml", tmp_path / "local.yaml"
    task.write_text(TASK.format(data="hf://owner/tickets"))
    content = files()
    with hub_standin({"datasets/owner/tickets": content}) as hub:
        environment = hub.environment(tmp_path / "home")
        printed = run(environment, (task, tmp_path / "first"))
        assert f"hub owner/tickets, {hub.commit('datasets/owner/tickets')}" in printed
        assert not any(path.startswith("news/") for path in hub.fetched)
    about = read(tmp_path / "first", "run.json")["tasks"]["tickets"]
    assert about["source"]["name"] == "owner/tickets"
    assert about["source"]["subset"] == "mail"
    assert (about["split"], about["maxlen"]) == ("dev", [600, 900])
    assert about["shots"]["split"] == "train"
    assert len(about["shots"]["ids"]) == 1
    assert about["templates"]["instruct"]["system"] == "You are terse."
    answers = predictions(tmp_path / "first")
    assert {name for name, *_ in answers} == {row["key"] for row in ROWS}
    assert "Ticket 3" in (tmp_path / "first" / "report.html").read_text()

    for path, data in content.items():
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).write_bytes(data)
    local.write_text(TASK.format(data="set") + "name: tickets\n")
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    run(offline, (task, tmp_path / "second"), (local, tmp_path / "third"))
    assert predictions(tmp_path / "second") == answers
    assert predictions(tmp_path / "third") == answers
    assert read(tmp_path / "third", "scores.json")["results"] == read(tmp_path / "first", "scores.json")["results"]


@pytest.mark.usefixtures("no_plots")
def test_a_folder_keeps_the_scan_that_its_sample_is_drawn_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = f"--engine mock --task custom --data {tmp_path / 'a.jsonl'} --context-field body --target-field gist"
    arguments = [*command.split(), "--sample", "2", "--maxlen", "60", "--max-new-tokens", "4"]
    arguments += ["--output", str(tmp_path / "run"), "--scan"]
    assert main([*arguments, "4"]) == 0
    assert "2 documents drawn with seed 0 from the first 4 rows" in (tmp_path / "run" / "report.md").read_text()
    capsys.readouterr()
    assert main([*arguments, "5"]) == 2
    assert "source of custom scan is 4 there and 5 now" in capsys.readouterr().err


# A package that brings a task, a metric and a model

MODULE = '''
"""Tickets of a company."""
from pathlib import Path
from eval.metrics.base import Metric, Value

TASK = Path(__file__).with_name("tickets.yaml")
MODEL = Path(__file__).with_name("model")


class Shouting(Metric):
    """Share of capital letters."""

    name, version = "shouting", 1
    values = {"capitals": Value(label="capitals", title="capital letters", low=0.0, high=1.0, better=None)}

    def score(self, items):
        return [{"capitals": sum(map(str.isupper, one.prediction)) / max(1, len(one.prediction))} for one in items]
'''
POINTS = """
[masformer.tasks]
tickets = small_package:TASK
broken = small_package:MODEL_OF_NOBODY

[masformer.metrics]
shouting = small_package:Shouting

[masformer.models]
tiny-tickets = small_package:MODEL
odd = small_package:Shouting
lost = nowhere_to_be_found:MODEL
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a package, which lies as an installer leaves it."""
    site = tmp_path / "site"
    folder, about = site / "small_package", site / "small_package-1.0.dist-info"
    folder.mkdir(parents=True)
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: small-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    (folder / "__init__.py").write_text(MODULE)
    (folder / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    lines = TASK.format(data="tickets.jsonl").splitlines()
    (folder / "tickets.yaml").write_text("\n".join(line for line in lines if "subset" not in line))
    save_tiny_checkpoint(folder / "model")
    monkeypatch.syspath_prepend(str(site))
    return folder


@pytest.mark.usefixtures("no_plots")
def test_an_installed_package_brings_a_task_a_metric_and_a_model(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main(["--task", "tickets", "--model", "tiny-tickets", "--threads", "1", "--output", str(output)]) == 0
    about = read(output, "run.json")
    assert about["identity"]["model"]["reference"] == str(package / "model")
    (shot,) = about["tasks"]["tickets"]["shots"]["ids"]
    assert shot not in {name for name, *_ in predictions(output)}, (
        "one file serves all splits, and shots are not scored"
    )
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (len(ROWS) - 1)
    longest = sum(line["prompt_tokens"] for line in lines if line["maxlen"] == 900)
    assert sum(line["prefilled_tokens"] for line in lines) < longest, "documents share the prefill of the shots"
    assert "begins with solved examples of split train (1), whose" in (output / "report.md").read_text()
    assert score([str(output), "--metrics", "shouting"]) == 0
    assert "shouting, version 1" in (output / "report.html").read_text()

    capsys.readouterr()
    assert main(["--task", "broken", "--model", "tiny-tickets", "--maxlen", "600"]) == 2
    assert "task 'broken' of the entry point small_package:MODEL_OF_NOBODY cannot be loaded" in capsys.readouterr().err
    for model, reason in (("odd", "is a Shouting; it must be a path or a hub id"), ("lost", "cannot be loaded")):
        assert main(["--task", "tickets", "--model", model]) == 2
        assert reason in capsys.readouterr().err
    assert main(["--task", "tickts", "--maxlen", "600"]) == 2
    assert "unknown task 'tickts', perhaps 'tickets'" in capsys.readouterr().err
