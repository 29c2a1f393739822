"""The installed wheel, from folders that are no checkout: `tox -e wheel` builds it and runs this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution, files
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_models import save_tiny_checkpoint

SUITE = Path(sysconfig.get_path("purelib")) / "masformer" / "_suite"
PROGRAMS = Path(sys.executable).parent
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
FIELDS = ["--context-field", "text", "--target-field", "summary"]
DATA = ["--task", "custom", "--data", "rows.jsonl", *FIELDS, "--model", "tiny", "--threads", "1"]
SWEEP = [*DATA, "--maxlen", "128", "256", "--max-new-tokens", "4"]

pytestmark = pytest.mark.skipif(not SUITE.is_dir(), reason="needs an installed wheel: tox -e wheel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model, three rows, and a run of both."""
    folder = tmp_path_factory.mktemp("elsewhere")
    save_tiny_checkpoint(folder / "tiny")
    rows = [{"text": f"{word} long documents hold many words. " * 40, "summary": word} for word in ("a", "b", "c")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call("masformer", "run", *SWEEP, "--output", "run", folder=folder)
    return folder


def call(program: str, *arguments: str, folder: Path, status: int = 0, **environment: str) -> str:
    """Run a program of this environment, and return what it prints."""
    words = [str(PROGRAMS / program), *arguments]
    done = subprocess.run(
        words, cwd=folder, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == status, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def predictions(run: Path) -> dict[str, str]:
    lines = [json.loads(line) for file in run.glob("predictions*.jsonl") for line in file.read_text().splitlines()]
    return {line["fingerprint"]: line["text"] for line in lines}


def session(run: Path) -> dict[str, Any]:
    (session,) = json.loads((run / "run.json").read_text())["sessions"]
    return dict(session)


def test_the_wheel_takes_no_other_name_than_its_own(folder: Path) -> None:
    tops = {file.parts[0] for file in files("masformer") or () if file.parts[0] != ".."}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"masformer"}
    call("python", "-c", "import masformer; masformer.SpanPlan", folder=folder)
    for name in ("eval", "tasks"):
        assert "ModuleNotFoundError" in call("python", "-c", f"import {name}", folder=folder, status=1)


def test_a_run_records_the_version_and_no_commit_of_a_repository_around_it(folder: Path) -> None:
    assert len(predictions(folder / "run")) == 6
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    about = session(folder / "run")
    assert f"masformer {about['versions']['masformer']}\n" == call("masformer", "--version", folder=folder)
    assert (about["commit"], about["dirty"]) == (None, None)


def test_commands_that_need_no_model_read_its_folder(folder: Path) -> None:
    assert "rouge" in call("masformer", "score", "run", folder=folder).lower()
    call("masformer", "compare", "run", "run", "--maxlen-a", "128", "--maxlen-b", "256", folder=folder)
    call("masformer", "leaderboard", "run", "--output", "board", folder=folder)
    call("masformer", "export", "run", "--output", "exported", folder=folder)


def test_other_programs_find_it_by_its_entry_points() -> None:
    found = {(one.group, one.name): one.value for one in distribution("masformer").entry_points}
    assert found["lm_eval.models", "masformer"] == "masformer.lm_eval_plugin:MasformerLM"


def test_what_metrics_and_judges_read_comes_with_it(folder: Path) -> None:
    told = call("masformer", "score", "run", "--metrics", "diagnostics", folder=folder)
    assert "r with people" in told, "agreement.json"
    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "none", "max_retries": 0}
    for mode, command in {"key-points": ["score", "run", "--metrics"], "pairwise": ["judge", "run", "run"]}.items():
        (folder / f"{mode}.yaml").write_text(json.dumps({**judge, "mode": mode}))
        named = ["--judge", f"{mode}.yaml"] if command[0] == "judge" else [f"judge:{mode}.yaml"]
        lengths = ["--maxlen-a", "128", "--maxlen-b", "256"] if command[0] == "judge" else []
        told = call("masformer", *command, *named, *lengths, folder=folder, status=2)
        # Its prompts were read, so all that is missing is the server, or what asks it.
        assert "127.0.0.1:9" in told or "masformer[endpoint]" in told


def test_parts_of_a_run_are_joined(folder: Path) -> None:
    for shard in ("1", "2"):
        call("masformer", "run", *SWEEP, "--shard", f"{shard}/2", "--output", f"part{shard}", folder=folder)
    call("masformer", "merge", "part1", "part2", "--output", "joined", folder=folder)
    assert predictions(folder / "joined") == predictions(folder / "run")


@pytest.mark.parametrize("module", [("masformer", "run"), ("masformer.run",)])
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_launches_it_on_one_process_and_on_two(
    module: tuple[str, ...], processes: int, folder: Path
) -> None:
    several = ["--multi_gpu", "--num_processes", "2"] if processes == 2 else []
    output = f"launched-{module[0]}-{processes}"
    launch = ["launch", *several, "-m", *module, *SWEEP, "--output", output]
    call("accelerate", *launch, folder=folder, ACCELERATE_USE_CPU="true")
    assert session(folder / output)["world_size"] == processes
    assert predictions(folder / output) == predictions(folder / "run")


def test_the_other_commands_that_load_a_model(folder: Path) -> None:
    launch = ["launch", "-m", "masformer"]
    call("accelerate", *launch, "perplexity", *DATA, "--maxlen", "128", "--output", "losses", folder=folder)
    training = ["--maxlen", "128", "--max-steps", "1", "--output", "trained"]
    told = call("accelerate", *launch, "finetune", *DATA, *training, folder=folder)
    assert "evaluate with: accelerate launch -m masformer run --model trained/best" in told
    scan = [
        "--maxlen",
        "128",
        "--local",
        "span=8 sinks=1",
        "--budget",
        "layers=1",
        "--rank",
        "scan",
        "--output",
        "scan",
    ]
    call("accelerate", *launch, "placement", *DATA, *scan, folder=folder)


def test_a_study_starts_its_parts(folder: Path) -> None:
    settings = {"task": "custom", "data": "rows.jsonl", "context_field": "text", "target_field": "summary"}
    settings |= {"model": "tiny", "maxlen": [128], "max_new_tokens": 4, "threads": 1}
    parts = [{"name": "short", "script": "eval/run.py", "settings": settings}]
    study = {
        "title": "Small",
        "parts": parts,
        "sections": [{"kind": "cost", "title": "Costs", "reference": "short", "parts": ["short"]}],
    }
    (folder / "study.yaml").write_text(json.dumps(study))
    told = call("masformer", "study", "study.yaml", "--output", "studied", folder=folder)
    assert "short: accelerate launch -m masformer run --task custom" in told
    assert predictions(folder / "studied" / "short").items() <= predictions(folder / "run").items()


def test_tasks_and_checkpoints(folder: Path) -> None:
    assert "qasper" in call("masformer", "tasks", "list", folder=folder)
    assert "plan    local span=8 sinks=1" in call(
        "masformer", "show", "tiny", "--plan", "local span=8 sinks=1", folder=folder
    )
    convert = ["tiny", "--plan", "local span=8 sinks=1", "--no-measure", "--output", "mas"]
    call("masformer", "convert", *convert, folder=folder)
    assert "is no name for a repository" in call("masformer", "push", "mas", "no name", folder=folder, status=2)


def test_remedies_name_commands_that_the_wheel_has(folder: Path) -> None:
    told = call("masformer", "run", "--task", "nope", "--maxlen", "128", folder=folder, status=2)
    assert "masformer tasks list names all" in told
    assert "example: accelerate launch -m masformer run --task" in call("masformer", "run", "--help", folder=folder)
    assert "    masformer score RUN" in call("masformer", "score", "--help", folder=folder)
