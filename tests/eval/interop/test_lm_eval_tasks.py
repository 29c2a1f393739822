"""The tasks of a run under lm-evaluation-harness, and the entry point by which it finds the model."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from eval.export import main as export
from eval.interop.lm_eval_tasks import score
from eval.records.schema import RunRecord
from eval.run import main as run
from eval.score import main as score_again
from tests.helpers.run_folders import document, run_record, sentence, with_task, write_run
from tests.helpers.tiny_models import save_tiny_checkpoint

lm_eval = pytest.importorskip("lm_eval", reason="needs pip install 'masformer[harness]'")

from lm_eval.api.model import LM  # noqa: E402
from lm_eval.api.registry import Registry  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from eval.interop.lm_eval_model import MasformerLM  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_plots")

ROOT = Path(__file__).resolve().parents[3]
PLAN = "full@0,2 span=24 sinks=2"


def test_the_harness_asks_and_scores_as_the_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_checkpoint(tmp_path / "tiny", chat=False)
    rows = [{"text": document(seed, 20), "summary": sentence(seed)} for seed in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--task", "custom", "--data", "rows.jsonl", "--context-field", "text", "--target-field", "summary"]
    sweep = ["--maxlen", "128", "256", "--max-new-tokens", "8", "--metrics", "chrf", "--threads", "1"]
    model = ["--model", "tiny", "--plan", PLAN, "--dtype", "float64"]
    assert run([*data, *sweep, *model, "--output", "run"]) == 0
    for form in ("lm-eval", "lm-eval-tasks"):
        assert export(["run", "--to", form]) == 0
    manager = TaskManager(include_path=str(tmp_path / "run" / "lm_eval_tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=MasformerLM(str(tmp_path / "tiny"), plan=PLAN, dtype="float64", device="cpu"),
        tasks=["masformer_custom"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert found["results"].keys() == {"custom_128", "custom_256"}
    (file,) = (tmp_path / "run" / "lm_eval").rglob("results_*.json")
    ours = json.loads(file.read_text())
    for task, samples in found["samples"].items():
        (file,) = (tmp_path / "run" / "lm_eval").rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [one["resps"] for one in samples] == [one["resps"] for one in lines]
        assert [one["chrf"] for one in samples] == [one["chrf"] for one in lines]
        assert found["results"][task]["chrf,none"] == pytest.approx(ours["results"][task]["chrf,none"])
        assert found["results"][task]["chrf,none"] > 0
    prompts = [samples[0]["arguments"][0][0] for samples in found["samples"].values()]
    assert len(prompts[0]) < len(prompts[1])


def test_a_task_that_counts_first_lines_does_so_there_too(tmp_path: Path) -> None:
    record = with_task(run_record(), scores_first_line=True, profile="f1")
    folder = write_run(tmp_path / "run", lambda example, maxlen: "\nthe model\nreads", record=record)
    assert score_again([str(folder.path)]) == 0
    assert export([str(folder.path), "--to", "lm-eval-tasks"]) == 0
    file = tmp_path / "run" / "lm_eval_tasks" / "plos_100.jsonl"
    doc = json.loads(file.read_text().splitlines()[0]) | {"references": ["the model"]}
    assert score(doc, ["\nthe model\nreads"]) == {"f1": 1.0, "exact_match": 1.0}
    assert score(doc | {"scores_first_line": False}, ["\nthe model\nreads"])["exact_match"] == 0


def test_former_lengths_of_a_task_are_taken_out(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name, lengths in (("long", (100, 200)), ("short", (100,))):
        folder = write_run(tmp_path / name, lambda example, maxlen: "the model", record=run_record(lengths=lengths))
        assert score_again([str(folder.path)]) == 0
        output.mkdir(exist_ok=True)
        (output / "mine.yaml").write_text("task: mine\ntag: masformer_plos\n")
        assert export([str(folder.path), "--to", "lm-eval-tasks", "--output", str(output)]) == 0
        expected = {f"plos_{maxlen}.{end}" for maxlen in lengths for end in ("yaml", "jsonl")}
        assert {file.name for file in output.iterdir()} == expected | {"mine.yaml", "masformer_tasks.py"}


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (with_task(run_record(), shots={"split": "train", "seed": 0, "ids": ["a", "b"]}), "2 shots"),
        (replace(run_record(), config={**run_record().config, "system": "Be brief."}), "a system message"),
    ],
)
def test_what_rows_cannot_hold_is_refused(
    record: RunRecord, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", lambda example, maxlen: "the model", record=record)
    assert score_again([str(folder.path)]) == 0
    capsys.readouterr()
    assert export([str(folder.path), "--to", "lm-eval-tasks"]) == 2
    assert f"prompts of task 'plos' begin with {what}, which its rows cannot hold" in capsys.readouterr().err
    assert not (tmp_path / "run" / "lm_eval_tasks").exists()


def test_the_entry_point_is_the_model() -> None:
    group = "lm_eval.models"
    ((name, value),) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][group].items()
    # As its release 0.4.14 registers what it finds.
    registry: Registry[type[LM]] = Registry("model", base_cls=LM)
    registry.register(name, target=EntryPoint(name, value, group))
    assert registry.get("masformer") is MasformerLM
