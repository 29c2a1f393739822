"""The tasks of a scored run as tasks of lm-evaluation-harness: what each prompt showed, for any model of it.

    lm_eval --model hf --model_args pretrained=MODEL --include_path runs/my-run/lm_eval_tasks --tasks plos_4096

A YAML file and its rows a task and length, and one module, whose functions are those below. A prompt is cut as in the
run, so that other models read the same text. Scores are those of the task's profile.

Source: docs/task_guide.md and `ConfigurableTask` in lm_eval/api/task.py of lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.errors import UserError
from eval.interop.samples import (
    answered_examples,
    generation_arguments,
    model_results,
    system_message,
    task_name,
)
from eval.metrics.answers import first_line
from eval.records.disk import write_whole
from eval.records.schema import RunRecord
from eval.scoring.examples import Setting
from eval.scoring.profiles import PROFILES, score_prediction
from eval.scoring.scored_run import ScoredRun, settings_of

_MODULE = '''\
"""Rows and scores of the tasks in this folder, which `python -m eval.export` of masformer made."""

from pathlib import Path

from masformer.suite import suite_module

_tasks = suite_module("eval.interop.lm_eval_tasks")
score = _tasks.score


def rows(**about):
    return _tasks.rows(Path(__file__).parent, about["file"])
'''


class _Function(str):
    """A name that YAML marks as that of a function."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def export_run(run: ScoredRun, output: Path) -> list[Path]:
    """Write a run's tasks and their rows into a folder, and return the files, the module first.

    Former lengths and templates of these tasks are removed, because a tag names all there are.

    Raises:
        UserError: The run's prompts begin with solved examples or a system message, which no row can hold.
    """
    results = model_results(run)
    for setting in results:
        _check_prompts(setting, run.record)
    files = [write_whole(output, "masformer_tasks.py", _MODULE.encode())]
    for setting, examples in answered_examples(run):
        name, (task, template, maxlen) = task_name(setting, run.record), setting
        about = run.record.tasks[task]
        profile = results[setting].profile
        lines = [
            {
                "id": one.example.id,
                "document_id": one.example.document_id,
                "prompt": one.prompt,
                "references": list(one.example.references),
                "profile": profile,
                "scores_first_line": about.scores_first_line,
                **({"classes": one.example.classes} if one.example.classes else {}),
            }
            for one in examples
        ]
        content = {
            "task": name,
            "tag": f"masformer_{task}",
            "custom_dataset": _Function("masformer_tasks.rows"),
            "dataset_kwargs": {"file": f"{name}.jsonl"},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{references[0]}}",
            "process_results": _Function("masformer_tasks.score"),
            "generation_kwargs": generation_arguments(settings_of(run.record, task)),
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                for metric in PROFILES[profile].metrics
            ],
            "metadata": {
                "version": about.version,
                "profile": profile,
                "template": template,
                "maxlen": maxlen,
                "chat": about.templates[template].chat,
            },
        }
        rows_text = "".join(json.dumps(line) + "\n" for line in lines)
        files.append(write_whole(output, f"{name}.jsonl", rows_text.encode()))
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        files.append(write_whole(output, f"{name}.yaml", text.encode()))
    _remove_former(output, run.record.tasks, files)
    return files


def _check_prompts(setting: Setting, record: RunRecord) -> None:
    task = setting[0]
    what = "a system message" if system_message(setting, record) else ""
    if shots := record.tasks[task].shots:
        what = f"{len(shots['ids'])} shots"
    if what:
        raise UserError(
            f"--to lm-eval-tasks: prompts of task '{task}' begin with {what}, which its rows cannot hold; export a run "
            "without"
        )


def _remove_former(folder: Path, tasks: Iterable[str], files: Sequence[Path]) -> None:
    tags = {f"tag: masformer_{task}" for task in tasks}
    for file in set(folder.glob("*.yaml")).difference(files):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        if tags.intersection(lines) and any("masformer_tasks.rows" in line for line in lines):
            file.with_suffix(".jsonl").unlink(missing_ok=True)
            file.unlink()


def rows(folder: Path, file: str) -> Any:
    """Return the rows of an exported task as lm-evaluation-harness takes a data set."""
    from datasets import Dataset, DatasetDict

    lines = [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]
    return DatasetDict({"test": Dataset.from_list(lines)})


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return the scores of an answer to a row of an exported task, by metric."""
    answer = first_line(results[0]) if doc["scores_first_line"] else results[0]
    return score_prediction(doc["profile"], answer, doc["references"], doc.get("classes", ()))
