"""The files of lm-evaluation-harness, made from a scored run folder.

A length is a task there: `arxiv_4096`, or `arxiv_instruct_4096` where a run has several templates. Scores are the
model's on all examples, as fractions. `METRIC_stderr,none` is the standard error over documents; of folders that were
scored by version 0.1 it is the width of the 95% interval over 2 x 1.96. Without an interval it is N/A. A prompt in a
samples file is the template with what was shown of the document, before the chat template.

Source: `EvaluationTracker` in lm_eval/loggers/evaluation_tracker.py and lm_eval/result_schema.py of
lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.records.disk import write_whole
from eval.records.journal import sha256
from eval.records.read_run import answer_of
from eval.records.run_folder import RunFolder
from eval.records.schema import Estimate, ExampleRecord, ExampleScore, Prediction, Result, RunRecord
from eval.records.typed import to_json
from eval.scoring.examples import Setting, setting_of
from eval.scoring.scored_run import ScoredRun, settings_of

# Half the width of a normal 95% interval, in standard errors.
_NORMAL = 1.959964

_MAX_NAME = 60  # characters, of which each may take four bytes in a file system

Sample = dict[str, Any]  # a line of a samples file


def export_run(run: ScoredRun, output: Path, now: datetime) -> list[Path]:
    """Write a run's results and samples into a folder, and return the files, the results first."""
    folder = _sanitized(run.record.identity.model.label)
    time = now.isoformat().replace(":", "-")
    names = {setting: task_name(setting, run.record) for setting in run.lines}
    samples = _all_samples(run)
    content = results_of(run, names, {names[setting]: lines for setting, lines in samples.items()})
    texts = {f"results_{time}.json": json.dumps(content, indent=2, ensure_ascii=False)}
    for setting, lines in samples.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        texts[f"samples_{names[setting]}_{time}.jsonl"] = text
    return [
        write_whole(output, f"{folder}/{name}", text.encode(errors="backslashreplace")) for name, text in texts.items()
    ]


def task_name(setting: Setting, record: RunRecord) -> str:
    """Return the name of a setting as a task, unique in its run."""
    task, template, maxlen = setting
    return f"{task}_{maxlen}" if len(record.tasks[task].templates) == 1 else f"{task}_{template}_{maxlen}"


def results_of(run: ScoredRun, names: Mapping[Setting, str], samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Return the content of the results file.

    Names of the run's settings as tasks are given, and the lines of the samples files by these names.
    """
    record, session = run.record, run.record.sessions[-1]
    model = record.identity.model.label
    found = {
        names[setting_of(one)]: one
        for one in run.scores.results
        if (one.kind, one.subset) == ("model", "all") and setting_of(one) in names
    }
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
        "date": datetime.fromisoformat(session.started).timestamp(),
        "task_hashes": {
            key: sha256("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines))
            for key, lines in samples.items()
        },
        "model_source": "masformer",
        "model_name": model,
        "model_name_sanitized": _sanitized(model),
    }


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
        "generation_kwargs": _generation(settings),
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


def _generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    samples = settings.get("temperature") is not None
    return {"until": list(settings.get("stop") or ()), "max_gen_toks": settings["max_new_tokens"], "do_sample": samples}


def _all_samples(run: ScoredRun) -> dict[Setting, list[Sample]]:
    """Return the lines of each samples file, in the order of the examples."""
    folder = RunFolder(run.path)
    predictions = folder.read_journal(Prediction).lines
    documents = {(one.task, one.document_id): one.text for one in folder.read_documents()}
    samples: dict[Setting, list[Sample]] = {}
    for setting, lines in run.lines.items():
        task, template, maxlen = setting
        text = run.record.tasks[task].templates[template].text
        generation = _generation(settings_of(run.record, task))
        examples = [one for (of_task, _), one in run.examples.items() if of_task == task]
        for doc_id, example in enumerate(examples):
            if example.id in lines:
                prediction = predictions[task, template, example.id, maxlen]
                prompt = _prompt(text, documents[task, example.document_id], prediction, example.query or "")
                arguments = {"arg_0": prompt, "arg_1": generation}
                scored = answer_of(prediction, run.record.think_end_token)
                sample = _sample(doc_id, example, arguments, prediction, scored, lines[example.id])
                samples.setdefault(setting, []).append(sample)
    return samples


def _prompt(template: str, document: str, prediction: Prediction, query: str) -> str:
    shown = "".join(document[start:stop] for start, stop in prediction.context_spans)
    before, _, after = template.partition("{context}")
    return before.replace("{query}", query) + shown + after.replace("{query}", query)


def _sample(
    doc_id: int,
    example: ExampleRecord,
    arguments: dict[str, Any],
    prediction: Prediction,
    scored: Prediction,
    line: ExampleScore,
) -> Sample:
    doc = {name: getattr(example, name) for name in ("id", "document_id", "query", "references")}
    target = example.references[0] if len(example.references) == 1 else str(example.references)
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": arguments},
        "resps": [[one.text for one in prediction.answers]],
        "filtered_resps": [one.text for one in scored.answers],
        "filter": "none",
        "metrics": list(line.metrics),
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": sha256(arguments["arg_0"]),
        "target_hash": sha256(target),
        **line.metrics,
    }


def _sanitized(model: str) -> str:
    """Return a model's name as paths there have it; of a long one the end, and no name that leads elsewhere."""
    name = re.sub(r"[\"<>:/|\\?*\[\]\x00-\x1f\x7f-\x9f\ud800-\udfff]+", "__", model)
    return re.sub(r"^\.+$", "__", name)[-_MAX_NAME:] or "__"
