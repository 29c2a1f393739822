"""A scored run folder as the files that lm-evaluation-harness writes, for whatever reads those.

    python -m eval.export RUN [--output DIR]

Writes DIR/MODEL/results_TIME.json and, for each task and length, DIR/MODEL/samples_TASK_TIME.jsonl; by default DIR is
RUN/lm_eval. A length is a task there: `arxiv_4096`, or `arxiv_instruct_4096` where a run has several templates. Scores
are the model's on all examples, as fractions. `METRIC_stderr,none` is the width of the 95% interval over 2 x 1.96, that
of a normal interval as wide, though ours need not be symmetric; without an interval it is N/A.

A prompt in a samples file is the template with what was shown of the document, before the chat template. Needs no
model, and no lm-evaluation-harness.

Source: `EvaluationTracker` in lm_eval/loggers/evaluation_tracker.py and lm_eval/result_schema.py of
lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.records.run_folder import RunFolder
from eval.runtime.jobs import CommandParser, run_command
from eval.scoring.examples import Setting
from eval.scoring.scored_run import ScoredRun, read_scored, settings_of

# Half the width of a normal 95% interval, in standard errors.
_NORMAL = 1.959964

Line = Mapping[str, Any]


def export_run(run: ScoredRun, output: Path, now: datetime) -> list[Path]:
    """Write a run's results and samples, and return the files, the results first.

    Args:
        run: Scored.
        output: Folder, made where it is not there.
        now: Goes into the names.
    """
    model = run.record["identity"]["model"]["reference"]
    folder = output / _sanitized(model)
    folder.mkdir(parents=True, exist_ok=True)
    time = now.isoformat().replace(":", "-")
    names = {setting: task_name(setting, run.record) for setting in run.lines}
    samples = _all_samples(run)
    files = [folder / f"results_{time}.json"]
    content = results_of(run, names, {names[setting]: lines for setting, lines in samples.items()})
    files[0].write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    for setting, lines in samples.items():
        files.append(folder / f"samples_{names[setting]}_{time}.jsonl")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        files[-1].write_text(text, encoding="utf-8", errors="backslashreplace")
    return files


def task_name(setting: Setting, record: Line) -> str:
    """Return the name of a setting as a task, unique in its run."""
    task, template, maxlen = setting
    return f"{task}_{maxlen}" if len(record["tasks"][task]["templates"]) == 1 else f"{task}_{template}_{maxlen}"


def results_of(
    run: ScoredRun, names: Mapping[Setting, str], samples: Mapping[str, Sequence[Line]] | None = None
) -> dict[str, Any]:
    """Return the content of the results file.

    Args:
        run: Scored.
        names: Of the settings to tell about.
        samples: Lines of the samples files by name.
    """
    record, session = run.record, run.record["sessions"][-1]
    name = record["identity"]["model"]["reference"]
    found = {
        names[setting]: result
        for result in run.scores["results"]
        if (result["kind"], result["subset"]) == ("model", "all")
        and (setting := (result["task"], result["template"], result["maxlen"])) in names
    }
    hashes = {
        key: _digest("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines))
        for key, lines in (samples or {}).items()
    }
    return {
        "results": {key: _scores(key, result) for key, result in found.items()},
        "group_subtasks": {key: [] for key in found},
        "configs": {key: _task_config(key, run, result) for key, result in found.items()},
        "versions": {key: record["tasks"][result["task"]]["version"] for key, result in found.items()},
        "n-shot": dict.fromkeys(found, 0),
        "higher_is_better": {key: dict.fromkeys(result["metrics"], True) for key, result in found.items()},
        "n-samples": {
            key: {"original": result["num_examples"], "effective": result["num_examples"]}
            for key, result in found.items()
        },
        "config": _run_config(record),
        "git_hash": session["commit"],
        "date": datetime.fromisoformat(session["started"]).timestamp(),
        "task_hashes": hashes,
        "model_source": "masformer",
        "model_name": name,
        "model_name_sanitized": _sanitized(name),
    }


def _run_config(record: Line) -> dict[str, Any]:
    identity = record["identity"]
    model = identity["model"]
    return {
        "model": "masformer",
        "model_args": {
            "pretrained": model["reference"],
            "plan": record["plan_description"],
            "dtype": identity["dtype"],
        },
        "model_dtype": identity["dtype"],
        "model_revision": model.get("revision", ""),
        "model_sha": model.get("revision", ""),
        "model_provenance": dict(model),
        "batch_size": record["grouping"]["batch_size"],
        "batch_sizes": [],
        "device": record["sessions"][-1]["machine"]["device"],
        "limit": next(iter(record["tasks"].values()))["limit"],
        "gen_kwargs": None,
        "random_seed": identity.get("seed"),
    }


def _scores(key: str, result: Line) -> dict[str, Any]:
    scores: dict[str, Any] = {"name": key, "alias": key, "sample_len": result["num_examples"]}
    for metric, estimate in result["metrics"].items():
        has_interval = estimate["low"] is not None and estimate["high"] is not None
        scores[f"{metric},none"] = estimate["mean"]
        scores[f"{metric}_stderr,none"] = (
            (estimate["high"] - estimate["low"]) / (2 * _NORMAL) if has_interval else "N/A"
        )
    return scores


def _task_config(key: str, run: ScoredRun, result: Line) -> dict[str, Any]:
    """Return what a task of lm-evaluation-harness would say about how the answers came about."""
    about, settings = run.record["tasks"][result["task"]], settings_of(run.record, result["task"])
    (one, *_) = run.lines[result["task"], result["template"], result["maxlen"]].values()
    return {
        "task": key,
        "dataset_path": about["source"]["name"],
        "dataset_kwargs": dict(about["source"]),
        "test_split": about["split"],
        "output_type": "generate_until",
        "doc_to_text": about["templates"][result["template"]]["text"],
        "doc_to_target": "references",
        "num_fewshot": 0,
        "repeats": 1,
        "generation_kwargs": _generation(settings),
        # Those of each example; a geometric mean is one of means.
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in one["metrics"]],
        "metadata": {
            "version": about["version"],
            "profile": result["profile"],
            "template": result["template"],
            "maxlen": result["maxlen"],
            "num_documents": result["num_documents"],
            "num_truncated": result["num_truncated"],
            **settings,
        },
    }


def _generation(settings: Line) -> dict[str, Any]:
    samples = settings.get("temperature") is not None
    return {"until": list(settings.get("stop") or ()), "max_gen_toks": settings["max_new_tokens"], "do_sample": samples}


def _all_samples(run: ScoredRun) -> dict[Setting, list[dict[str, Any]]]:
    """Return the lines of each samples file, in the order of the examples."""
    folder = RunFolder(run.path)
    predictions = folder.read_predictions().lines
    documents = {(line["task"], line["document_id"]): line["text"] for line in folder.read_documents()}
    samples: dict[Setting, list[dict[str, Any]]] = {}
    for setting, lines in run.lines.items():
        task, template, maxlen = setting
        about = run.record["tasks"][task]
        order = [name for of, name in run.examples if of == task]
        for doc_id, name in enumerate(order):
            if name not in lines:
                continue
            example = run.examples[task, name]
            line = predictions[task, template, name, maxlen]
            text = documents[task, example["document_id"]]
            shown = "".join(text[start:stop] for start, stop in line["context_spans"])
            before, _, after = about["templates"][template]["text"].partition("{context}")
            query = example["query"] or ""
            prompt = before.replace("{query}", query) + shown + after.replace("{query}", query)
            arguments = {"arg_0": prompt, "arg_1": _generation(settings_of(run.record, task))}
            samples.setdefault(setting, []).append(_sample(doc_id, example, arguments, line, lines[name]["metrics"]))
    return samples


def _sample(
    doc_id: int, example: Line, arguments: dict[str, Any], line: Line, metrics: Mapping[str, float]
) -> dict[str, Any]:
    doc = {name: example[name] for name in ("id", "document_id", "query", "references")}
    target = str(example["references"][0]) if len(example["references"]) == 1 else str(example["references"])
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": arguments},
        "resps": [[line["text"]]],
        "filtered_resps": [line["text"]],
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _digest(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _digest(arguments["arg_0"]),
        "target_hash": _digest(target),
        **metrics,
    }


def _sanitized(model: str) -> str:
    """Return a model's name as it stands in paths there."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def main(arguments: Sequence[str]) -> int:
    """Export, and return the exit status: 0, or 2 after one line on what is wrong."""
    parser = CommandParser("python -m eval.export", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a scored run")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: RUN/lm_eval")
    asked: argparse.Namespace = parser.parse_args(arguments)

    def work() -> None:
        run = read_scored(asked.run)
        for file in export_run(run, asked.output or asked.run / "lm_eval", datetime.now()):
            print(file)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
