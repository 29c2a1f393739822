"""What `run.json` and `examples.jsonl` say, and the settings by which a folder knows its own run again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from eval.config.generation import GenerationOptions
from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.decode import GENERATION_VERSION
from eval.prompting.prompts import PromptBuilder
from masformer import SpanPlan
from masformer.checkpoints.open import Checkpoint
from tasks import LoadedExamples

# Whose faults are kept by name; all are counted.
_MAX_BAD_ROWS = 100


def identity_of(config: RunConfig, checkpoint: Checkpoint, plan: SpanPlan | None, dtype: str) -> dict[str, Any]:
    """Return the settings that hold for a whole run folder."""
    return {
        "model": checkpoint.provenance,
        "plan": None if plan is None else plan.to_json(),
        "dtype": dtype,
        "truncation": config.truncation,
        "trust_remote_code": config.trust_remote_code,
        "threads": config.threads,
        "seed": config.seed,
        "generation": {
            field.name: getattr(config, field.name) for field in fields(GenerationOptions) if field.name != "seed"
        },
        "generation_version": GENERATION_VERSION,
    }


def task_record(
    config: RunConfig, name: str, loaded: LoadedExamples, checkpoint: Checkpoint, held: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what `run.json` says about a task; templates that the folder has already are among those asked for."""
    task = config.tasks[name]
    before = (held or {"tasks": {}})["tasks"].get(name, {}).get("templates", {})
    lost = [template for template in before if template not in task.templates]
    if lost:
        raise UserError(
            f"the output folder has template '{lost[0]}' of task '{name}', which the task file no longer has; put it "
            "back, or give another folder with --output"
        )
    asked = config.template or (task.default_template,)
    templates = [template for template in dict.fromkeys([*before, *asked]) if template in task.templates]
    return {
        "description": task.description,
        "version": task.version,
        "licence": task.licence,
        # How many rows were read depends on the limit, which may grow; the rest pins the content.
        "source": {key: value for key, value in loaded.provenance.items() if not key.startswith("num_")},
        "rows": {key: value for key, value in loaded.provenance.items() if key.startswith("num_")}
        | {"bad": list(loaded.bad_rows[:_MAX_BAD_ROWS])},
        "split": config.split or task.default_split,
        "templates": {
            template: {
                "text": task.templates[template].text,
                "chat": task.templates[template].chat,
                "prompt_sha256": PromptBuilder(checkpoint.tokenizer, task.templates[template]).sha256,
            }
            for template in templates
        },
        "profile": config.profile or task.profile,
        "scores_first_line": task.scores_first_line,
        "max_new_tokens": config.max_new_tokens or task.max_new_tokens,
        "limit": config.limit,
        "min_words": config.min_words,
        "maxlen": list(config.maxlen),
    }


def merge_record(
    held: dict[str, Any] | None,
    identity: dict[str, Any],
    tasks: dict[str, dict[str, Any]],
    config: dict[str, Any],
    plan: SpanPlan | None,
) -> dict[str, Any]:
    """Return `run.json` with the settings of this session merged into what the folder held."""
    held = held or {"tasks": {}, "sessions": [], "world_size": None}
    return {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in config.items()},
        "plan_description": "untouched" if plan is None else str(plan),
        "world_size": held["world_size"],
        "identity": identity,
        "tasks": merge_tasks(held["tasks"], tasks),
        "sessions": held["sessions"],
    }


def merge_tasks(held: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two records say about tasks, with the lengths and templates of both."""
    merged = dict(held)
    for name, record in tasks.items():
        before = held.get(name, {})
        merged[name] = record | {"maxlen": sorted({*record["maxlen"], *before.get("maxlen", [])})}
        if "templates" in record:
            merged[name]["templates"] = before.get("templates", {}) | record["templates"]
    return merged


def merge_examples(held: list[dict[str, Any]], loaded: Mapping[str, LoadedExamples]) -> list[dict[str, Any]]:
    lines = {(line["task"], line["id"]): line for line in held}
    for name, source in loaded.items():
        for example in source.examples:
            lines[name, example.id] = {
                "task": name,
                "id": example.id,
                "document_id": example.document_id,
                "query": example.query,
                "references": list(example.references),
                "evidence": None if example.evidence is None else [list(span) for span in example.evidence],
            }
    return list(lines.values())


def merge_documents(
    held: Sequence[Mapping[str, Any]], loaded: Mapping[str, LoadedExamples]
) -> list[Mapping[str, Any]] | None:
    """Return the lines of `documents.jsonl.gz`; None where all that is loaded is held."""
    lines = {(line["task"], line["document_id"]): line for line in held}
    for name, source in loaded.items():
        for example in source.examples:
            line = {"task": name, "document_id": example.document_id, "text": example.context}
            lines.setdefault((name, example.document_id), line)
    return list(lines.values()) if len(lines) > len(held) else None


def default_output(kind: str, config: Any, free: Sequence[str]) -> Path:
    """Return a folder name that other settings do not share.

    Args:
        kind: What is run; empty for generation.
        config: A dataclass of settings.
        free: Names of those that may grow or change in a folder.
    """
    fixed = {name: str(value) for name, value in asdict(config).items() if name not in free}
    for name in ("min_words", "min_tokens"):  # folders of versions without these settings keep their names
        if fixed.get(name) == "None":
            del fixed[name]
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]
    words = "-".join([*([kind] if kind else []), *config.tasks, Path(config.model).name, Path(config.plan).name])
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', words)[:80]}-{digest}"
