"""What `run.json` and `examples.jsonl` say, and the settings by which a folder knows its own run again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.config import RunConfig
from eval.generate import GENERATION_VERSION
from eval.prompts import PromptBuilder
from masformer import SpanPlan
from masformer.checkpoints import Checkpoint
from tasks import TASKS, LoadedExamples


def identity_of(config: RunConfig, checkpoint: Checkpoint, plan: SpanPlan | None, dtype: str) -> dict[str, Any]:
    """Return the settings that hold for a whole run folder."""
    return {
        "model": checkpoint.provenance,
        "plan": None if plan is None else plan.to_json(),
        "dtype": dtype,
        "truncation": config.truncation,
        "profile": config.profile,
        "trust_remote_code": config.trust_remote_code,
        "threads": config.threads,
        "seed": config.seed,
        "generation_version": GENERATION_VERSION,
    }


def task_record(config: RunConfig, name: str, loaded: LoadedExamples, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what `run.json` says about a task."""
    task = TASKS[name]
    template = task.templates[task.default_template]
    return {
        "description": task.description,
        "version": task.version,
        "licence": task.licence,
        # How many rows were read depends on the limit, which may grow; the rest pins the content.
        "source": {key: value for key, value in loaded.provenance.items() if not key.startswith("num_")},
        "rows": {key: value for key, value in loaded.provenance.items() if key.startswith("num_")},
        "split": config.split or task.default_split,
        "template": task.default_template,
        "template_text": template,
        "prompt_sha256": PromptBuilder(checkpoint.tokenizer, template).sha256,
        "max_new_tokens": config.max_new_tokens or task.max_new_tokens,
        "limit": config.limit,
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
    for name, record in tasks.items():
        before = held["tasks"].get(name, {}).get("maxlen", [])
        record["maxlen"] = sorted({*record["maxlen"], *before})
    return {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in config.items()},
        "plan_description": "untouched" if plan is None else str(plan),
        "world_size": held["world_size"],
        "identity": identity,
        "tasks": held["tasks"] | tasks,
        "sessions": held["sessions"],
    }


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
            }
    return list(lines.values())


def default_output(kind: str, config: Any, free: Sequence[str]) -> Path:
    """Return a folder name that other settings do not share.

    Args:
        kind: What is run; empty for generation.
        config: A dataclass of settings.
        free: Names of those that may grow or change in a folder.
    """
    fixed = {name: str(value) for name, value in asdict(config).items() if name not in free}
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]
    words = "-".join([*([kind] if kind else []), *config.task, Path(config.model).name, config.plan])
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', words)[:80]}-{digest}"
