"""Entries of the hub's `.eval_results`, made from a scored run folder: the hub shows them on a model's page.

    hf upload OWNER/MODEL runs/my-run/eval_results .eval_results

A file a task, and in it an entry a template and length: the task's headline metric x 100.

Source: docs/hub/eval-results.md of huggingface/hub-docs at 064c754.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from eval.errors import UserError
from eval.interop.samples import model_results
from eval.records.disk import write_whole
from eval.records.schema import Result, RunRecord
from eval.scoring.profiles import headline
from eval.scoring.scored_run import ScoredRun

_DEFAULT = "default"  # what the hub calls the only task of a benchmark


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A data set of the hub, and the name that its `eval.yaml` gives to a task; a commit where it is known."""

    dataset: str
    task: str = _DEFAULT
    revision: str | None = None


def parse_benchmarks(texts: Sequence[str]) -> dict[str, Benchmark]:
    """Return the benchmarks that a command line names as `TASK=OWNER/NAME` or `TASK=OWNER/NAME:ID`, by task.

    Raises:
        UserError: One is written in another way.
    """
    found = {}
    for text in texts:
        task, _, name = text.partition("=")
        dataset, _, number = name.partition(":")
        try:
            validate_repo_id(dataset)
        except HFValidationError:
            dataset = ""
        if not task or "/" not in dataset or name.endswith(":"):
            raise UserError(f"--benchmark {text!r} is no benchmark; write TASK=OWNER/NAME or TASK=OWNER/NAME:ID")
        found[task] = Benchmark(dataset=dataset, task=number or _DEFAULT)
    return found


def export_run(run: ScoredRun, output: Path, benchmarks: Mapping[str, Benchmark]) -> list[Path]:
    """Write the entries of a run into a folder, a file a task, and return the files.

    Args:
        benchmarks: By task; those that are missing are the data sets of the hub that the run read.

    Raises:
        UserError: A benchmark is of no task of the run, or a task has none.
    """
    if unknown := sorted(benchmarks.keys() - run.record.tasks.keys()):
        raise UserError(f"--benchmark names task '{unknown[0]}', and {run.path} has {', '.join(run.record.tasks)}")
    known = {task: benchmarks.get(task) or _benchmark(task, about.source) for task, about in run.record.tasks.items()}
    entries: dict[str, list[EvalResultEntry]] = {}
    for result in model_results(run).values():
        entries.setdefault(result.task, []).append(_entry(result, known[result.task], run.record))
    return [
        write_whole(
            output,
            f"{task}.yaml",
            yaml.safe_dump(
                eval_result_entries_to_yaml(of_task), sort_keys=False, allow_unicode=True, width=10_000
            ).encode(),
        )
        for task, of_task in entries.items()
    ]


def _benchmark(task: str, source: Mapping[str, Any]) -> Benchmark:
    if source["kind"] != "hub":
        raise UserError(
            f"task '{task}' read no data set of the hub but {source['name']}, and an entry names one; give "
            f"--benchmark {task}=OWNER/NAME:ID"
        )
    return Benchmark(
        dataset=str(source["name"]),
        task=str(source.get("config") or source.get("subset") or _DEFAULT),
        revision=source.get("revision"),
    )


def _entry(result: Result, benchmark: Benchmark, record: RunRecord) -> EvalResultEntry:
    metric, session = headline(result.profile), record.sessions[-1]
    score = result.metrics[metric]
    of_documents = f"{result.num_documents:,} documents"
    if score.low is not None and score.high is not None:
        of_documents += f" (95% interval {100 * score.low:.2f} to {100 * score.high:.2f})"
    notes = [
        f"{metric} x 100, profile {result.profile}",
        f"{result.maxlen:,} tokens, prompt '{result.template}', split {record.tasks[result.task].split}",
        of_documents,
        f"plan {record.plan_description}, {record.identity.dtype}",
        "MASFormer evaluation",
    ]
    return EvalResultEntry(
        dataset_id=benchmark.dataset,
        task_id=benchmark.task,
        dataset_revision=benchmark.revision,
        value=round(100 * score.value, 4),
        date=session.finished or session.started,
        notes="; ".join(notes),
    )
