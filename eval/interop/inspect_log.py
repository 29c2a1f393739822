"""Logs of inspect, made from a scored run folder: `inspect view` shows them, `inspect_ai.log` and `datasets` read them.

One `.eval` file a task and length: a ZIP archive with a header, what a list of samples shows, and a file a sample.
Samples have the numbers of their examples, which `datasets` needs; several answers to a prompt are epochs. Scores are
the model's on all examples, as fractions.

Source: `EvalLog`, `EvalSample` and `EvalSampleSummary` in log/_log.py and the names of files in log/_recorders/eval.py
of inspect_ai 0.3.285. It is written here because inspect brings 40 packages and holds others at versions of its own;
the nightly tests read it by inspect's own functions.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.interop.samples import AnsweredExample, answered_examples, model_results, task_name
from eval.records.disk import write_whole
from eval.records.journal import fingerprint
from eval.records.schema import Result, RunRecord, Sample
from eval.records.windows import shown_of
from eval.scoring.examples import Setting
from eval.scoring.profiles import headline
from eval.scoring.scored_run import ScoredRun, settings_of

_VERSION = 2  # of the format
# What a list of samples shows of a text, as inspect cuts it.
_SHOWN_CHARACTERS = 1000
_MAX_TASK = 120  # characters of a task in the name of a file
_STOP_REASONS = {"stop": "stop", "length": "max_tokens"}

Json = dict[str, Any]


def export_run(run: ScoredRun, output: Path) -> list[Path]:
    """Write a log for each task and length into a folder, and return the files."""
    results, files = model_results(run), []
    for setting, examples in answered_examples(run):
        samples = [sample for one in examples for sample in _samples(one, run.record)]
        header = _header(run, setting, results[setting], examples)
        start = {name: header[name] for name in ("version", "eval", "plan")}
        parts: dict[str, Any] = {"_journal/start.json": start, "summaries.json": list(map(_summary, samples))}
        parts |= {f"samples/{one['id']}_epoch_{one['epoch']}.json": one for one in samples}
        task = task_name(setting, run.record).replace("_", "-")
        time, number = header["eval"]["created"].replace(":", "-"), header["eval"]["task_id"]
        name = f"{time}_{task[:_MAX_TASK]}_{number}.eval"
        files.append(write_whole(output, name, _archive(parts | {"header.json": header})))
    return files


def _archive(parts: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            # What is no Unicode, as a half of a surrogate pair, is refused by its reader.
            text = json.dumps(content, ensure_ascii=False).encode(errors="replace")
            # A fixed date, so that the same run gives the same file.
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _header(run: ScoredRun, setting: Setting, result: Result, examples: Sequence[AnsweredExample]) -> Json:
    """Return what is known of all samples together."""
    record, session = run.record, run.record.sessions[-1]
    task, template, maxlen = setting
    about, settings = record.tasks[task], settings_of(record, task)
    model, digest = record.identity.model.label, fingerprint(run.scores.predictions)
    num_epochs = result.num_samples or 1
    num_samples, num_scored = len(examples) * num_epochs, sum(len(one.scored) for one in examples)
    spec = {
        "eval_id": fingerprint(digest, setting)[:22],
        "run_id": digest[:22],
        "task_id": fingerprint(setting)[:22],
        "created": record.sessions[0].started,
        "task": task_name(setting, record),
        "task_version": about.version,
        "task_description": about.description,
        "task_args": {"template": template, "maxlen": maxlen, **settings},
        "dataset": {
            "name": str(about.source["name"]),
            "samples": len(examples),
            "sample_ids": [one.number + 1 for one in examples],
            "shuffled": about.sample is not None,
        },
        "model": model,
        "model_generate_config": _generation(settings),
        "model_args": {"plan": record.plan_description, "dtype": record.identity.dtype},
        "config": {"limit": about.limit, "epochs": num_epochs, "epochs_reducer": ["mean"]},
        "packages": session.versions,
        "metadata": {
            "framework": "MASFormer",
            "profile": result.profile,
            "template": about.templates[template].text,
            "source": about.source,
            "licence": about.licence,
            "num_documents": result.num_documents,
            "num_truncated": result.num_truncated,
        },
        "scorers": [{"name": metric, "options": {"profile": result.profile}} for metric in result.metrics],
    }
    if session.commit is not None:
        spec["revision"] = {"type": "git", "origin": "", "commit": session.commit, "dirty": session.dirty}
    return {
        "version": _VERSION,
        "status": "cancelled" if run.num_absent else "success",
        "eval": spec,
        "plan": {"name": "plan", "steps": [], "config": _generation(settings)},
        "results": {
            "total_samples": num_samples,
            "completed_samples": num_scored,
            "scores": list(_scores(result, num_scored)),
            "headline": {"scorer": headline(result.profile), "score": headline(result.profile), "metric": "mean"},
        },
        "stats": {
            "started_at": record.sessions[0].started,
            "completed_at": session.finished or "",
            "model_usage": {
                model: _usage(
                    sum(one.prediction.prompt_tokens for one in examples),
                    sum(one.prediction.num_generated_tokens for one in examples),
                )
            },
        },
    }


def _scores(result: Result, num_scored: int) -> Iterator[Json]:
    """Yield each metric as the score of a scorer of its name."""
    for metric, estimate in result.metrics.items():
        known = {"mean": estimate.mean, "stderr": estimate.error, "low": estimate.low, "high": estimate.high}
        yield {
            "name": metric,
            "scorer": metric,
            "scored_samples": num_scored,
            "unscored_samples": 0,
            "params": {"profile": result.profile},
            "metrics": {
                name: {"name": name, "value": value, "params": {}} for name, value in known.items() if value is not None
            },
        }


def _samples(one: AnsweredExample, record: RunRecord) -> Iterator[Json]:
    """Yield each answer to an example: several answers are epochs."""
    example, prediction, model = one.example, one.prediction, record.identity.model.label
    scores = one.line.samples or [one.line.metrics]
    shown_document_id, shown_spans = shown_of(prediction, example.document_id)
    for epoch, (answer, scored, values) in enumerate(zip(prediction.answers, one.scored, scores, strict=True), start=1):
        message = {"role": "assistant", "source": "generate", "model": model, "content": _content(answer)}
        usage = _usage(prediction.prompt_tokens, answer.num_generated_tokens, answer.num_thought_tokens)
        yield {
            "id": one.number + 1,
            "epoch": epoch,
            "uuid": fingerprint(prediction.fingerprint, epoch)[:22],
            "input": one.prompt,
            "target": example.references,
            "messages": [{"role": "user", "source": "input", "content": one.prompt}, message],
            "output": {
                "model": model,
                "choices": [
                    {"message": message, "stop_reason": _STOP_REASONS.get(answer.finish_reason, "unknown")},
                ],
                "completion": answer.text,
                "usage": usage,
                "time": prediction.seconds,
            },
            "scores": {metric: {"value": value, "answer": scored} for metric, value in values.items()},
            "metadata": {
                "id": example.id,
                "document_id": example.document_id,
                "query": example.query,
                "maxlen": prediction.maxlen,
                "context_tokens_kept": prediction.context_tokens_kept,
                "context_tokens_dropped": prediction.context_tokens_dropped,
                "context_spans": prediction.context_spans,
                "shown_document_id": shown_document_id,
                "shown_spans": shown_spans,
                "cache_bytes": prediction.cache_bytes,
                "attention_flops": prediction.attention_flops,
                "peak_bytes": prediction.peak_bytes,
            },
            "store": {},
            "events": [],
            "model_usage": {model: usage},
            "total_time": prediction.seconds,
            "working_time": prediction.seconds,
            "attachments": {},
        }


def _summary(sample: Json) -> Json:
    """Return what a list of samples shows of one."""
    same = ("id", "epoch", "uuid", "model_usage", "total_time", "working_time")
    return {name: sample[name] for name in same} | {
        "input": sample["input"][:_SHOWN_CHARACTERS],
        "target": [text[:_SHOWN_CHARACTERS] for text in sample["target"]],
        "metadata": {name: value for name, value in sample["metadata"].items() if not name.endswith("_spans")},
        "scores": {
            metric: score | {"answer": score["answer"][:_SHOWN_CHARACTERS]}
            for metric, score in sample["scores"].items()
        },
        "completed": True,
        "message_count": len(sample["messages"]),
    }


def _content(answer: Sample) -> str | list[Json]:
    if answer.thought is None:
        return answer.text
    return [{"type": "reasoning", "reasoning": answer.thought}, {"type": "text", "text": answer.text}]


def _usage(num_prompt: int, num_answer: int, num_thought: int | None = None) -> Json:
    usage = {"input_tokens": num_prompt, "output_tokens": num_answer, "total_tokens": num_prompt + num_answer}
    return usage if num_thought is None else usage | {"reasoning_tokens": num_thought}


def _generation(settings: Mapping[str, Any]) -> Json:
    samples = settings.get("temperature") is not None
    known = {
        "max_tokens": settings["max_new_tokens"],
        "stop_seqs": list(settings.get("stop") or ()) or None,
        "temperature": settings["temperature"] if samples else 0.0,
        **({name: settings.get(name) for name in ("top_p", "top_k", "seed")} if samples else {}),
    }
    return {name: value for name, value in known.items() if value is not None}
