"""The files of lm-evaluation-harness, made from a scored run folder.

Scores are the model's on all examples, as fractions. `METRIC_stderr,none` is the standard error over documents; of
folders that were scored by version 0.1 it is the width of the 95% interval over 2 x 1.96. Without an interval it is
N/A.

Source: `EvaluationTracker` in lm_eval/loggers/evaluation_tracker.py and lm_eval/result_schema.py of
lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.interop.samples import (
    AnsweredExample,
    answered_examples,
    file_name,
    generation_arguments,
    model_results,
    system_message,
    task_name,
)
from eval.records.disk import write_whole
from eval.records.journal import sha256
from eval.records.schema import Estimate, Result, RunRecord, Session
from eval.records.typed import to_json
from eval.scoring.examples import setting_of
from eval.scoring.scored_run import ScoredRun, settings_of

# The version whose files these are; readers tell its files from others by it.
_FORMAT = "0.4.13"
# Half the width of a normal 95% interval, in standard errors.
_NORMAL = 1.959964

Sample = dict[str, Any]  # a line of a samples file


def export_run(run: ScoredRun, output: Path, now: datetime) -> list[Path]:
    """Write a run's results and samples into a folder, and return the files, the results first."""
    folder = file_name(run.record.identity.model.label)
    time = now.isoformat().replace(":", "-")
    samples = {
        task_name(setting, run.record): _lines_of(examples, generation_arguments(settings_of(run.record, setting[0])))
        for setting, examples in answered_examples(run)
    }
    texts = {f"results_{time}.json": json.dumps(results_of(run, samples), indent=2, ensure_ascii=False)}
    for name, lines in samples.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        texts[f"samples_{name}_{time}.jsonl"] = text
    return [
        write_whole(output, f"{folder}/{name}", text.encode(errors="backslashreplace")) for name, text in texts.items()
    ]


def results_of(run: ScoredRun, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Return the content of the results file; the lines of the samples files are given by the name of their task."""
    record, session = run.record, run.record.sessions[-1]
    model = record.identity.model.label
    start = datetime.fromisoformat(session.started).timestamp()
    found = {task_name(setting, record): result for setting, result in model_results(run).items()}
    systems = {system_message(setting, record) or None for setting in model_results(run)}
    # The format has one for all tasks.
    system = systems.pop() if len(systems) == 1 else None
    end = datetime.fromisoformat(session.finished).timestamp() if session.finished else None
    return {
        "results": {key: _scores(key, result) for key, result in found.items()},
        "group_subtasks": {key: [] for key in found},
        "configs": {key: _task_config(key, run, result) for key, result in found.items()},
        "versions": {key: record.tasks[result.task].version for key, result in found.items()},
        "n-shot": {key: _num_shots(record, result.task) for key, result in found.items()},
        "higher_is_better": {key: dict.fromkeys(result.metrics, True) for key, result in found.items()},
        "n-samples": {
            key: {"original": result.num_examples, "effective": result.num_examples} for key, result in found.items()
        },
        "config": _run_config(record),
        "git_hash": session.commit,
        "date": start,
        "pretty_env_info": _environment(session),
        "transformers_version": session.versions.get("transformers", "N/A"),
        "lm_eval_version": _FORMAT,
        "upper_git_hash": None,
        "max_length": max(result.maxlen for result in found.values()),
        "task_hashes": {
            key: sha256("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines))
            for key, lines in samples.items()
        },
        "model_source": "masformer",
        "model_name": model,
        "model_name_sanitized": file_name(model),
        "system_instruction": system,
        "system_instruction_sha": None if system is None else sha256(system),
        "fewshot_as_multiturn": False,
        # Templates of chats are of the tokenizer, which a run does not keep.
        "chat_template": None,
        "chat_template_sha": None,
        "start_time": start,
        "end_time": end,
        "total_evaluation_time_seconds": "N/A" if end is None else str(end - start),
    }


def _environment(session: Session) -> str:
    """Return what a session ran on and with, for people."""
    machine = session.machine
    about = {"Device": machine.device, "Processor": machine.processor, "System": machine.system}
    known = {name: value for name, value in about.items() if value is not None}
    return "\n".join(f"{name}: {value}" for name, value in (known | session.versions).items())


def _run_config(record: RunRecord) -> dict[str, Any]:
    identity, model = record.identity, record.identity.model
    more = {"adapter": model.adapter and model.adapter.reference, "quantize": model.quantize}
    return {
        "model": "masformer",
        "model_args": {"pretrained": model.reference, "plan": record.plan_description, "dtype": identity.dtype}
        | {name: value for name, value in more.items() if value is not None},
        "model_dtype": identity.dtype,
        "model_revision": model.revision or "",
        "model_sha": model.revision or "",
        "model_provenance": to_json(model),
        "batch_size": record.grouping.batch_size,
        "batch_sizes": [],
        "device": record.sessions[-1].machine.device,
        "limit": next(iter(record.tasks.values())).limit,
        "gen_kwargs": None,
        "random_seed": identity.seed,
    }


def _num_shots(record: RunRecord, task: str) -> int:
    return len((record.tasks[task].shots or {"ids": ()})["ids"])


def _scores(key: str, result: Result) -> dict[str, Any]:
    scores: dict[str, Any] = {"name": key, "alias": key, "sample_len": result.num_examples}
    for metric, estimate in result.metrics.items():
        scores[f"{metric},none"] = estimate.mean
        scores[f"{metric}_stderr,none"] = _standard_error(estimate)
    return scores


def _standard_error(estimate: Estimate) -> float | str:
    if estimate.low is None or estimate.high is None:
        return "N/A"
    if estimate.error is not None:
        return estimate.error
    return (estimate.high - estimate.low) / (2 * _NORMAL)


def _task_config(key: str, run: ScoredRun, result: Result) -> dict[str, Any]:
    """Return what a task of lm-evaluation-harness would say about how the answers were made."""
    about, settings = run.record.tasks[result.task], settings_of(run.record, result.task)
    (one, *_) = run.lines[setting_of(result)].values()
    return {
        "task": key,
        "dataset_path": about.source["name"],
        "dataset_kwargs": dict(about.source),
        "test_split": about.split,
        "output_type": "generate_until",
        "doc_to_text": about.templates[result.template].text,
        "doc_to_target": "references",
        "num_fewshot": _num_shots(run.record, result.task),
        "repeats": result.num_samples or 1,
        "generation_kwargs": generation_arguments(settings),
        # The metrics of each example; a geometric mean is one of means.
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in one.metrics],
        "metadata": {
            "version": about.version,
            "profile": result.profile,
            "template": result.template,
            "maxlen": result.maxlen,
            "num_documents": result.num_documents,
            "num_truncated": result.num_truncated,
            **settings,
        },
    }


def _lines_of(samples: Iterable[AnsweredExample], generation: Mapping[str, Any]) -> list[Sample]:
    """Return the lines of a samples file."""
    return [_line(one, {"arg_0": one.prompt, "arg_1": dict(generation)}) for one in samples]


def _line(one: AnsweredExample, arguments: dict[str, Any]) -> Sample:
    doc = {name: getattr(one.example, name) for name in ("id", "document_id", "query", "references")}
    references = one.example.references
    target = references[0] if len(references) == 1 else str(references)
    return {
        "doc_id": one.number,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": arguments},
        "resps": [[answer.text for answer in one.prediction.answers]],
        "filtered_resps": list(one.scored),
        "filter": "none",
        "metrics": list(one.line.metrics),
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": sha256(one.prompt),
        "target_hash": sha256(target),
        **one.line.metrics,
    }
