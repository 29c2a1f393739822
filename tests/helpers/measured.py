"""Folders of perplexities written by hand, with losses that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.records.run_folder import RunFolder
from eval.records.schema import (
    DocumentLoss,
    Estimate,
    ModelRecord,
    PerplexityCost,
    PerplexityIdentity,
    PerplexityRecord,
    PerplexityResult,
    PerplexityScores,
    PerplexityTask,
    PositionLoss,
)
from tests.helpers.run_folders import run_record


def measured(
    folder: Path,
    gains: Sequence[float],
    share: int,
    tasks: Sequence[str] = ("plos",),
    identity: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write losses of documents, each with so many nats a token more from position 4,096 on, and a cost of this share.

    A second task has half of the gains. A folder of a smaller share has its lines in another order.
    """
    lines = []
    for number, task in enumerate(tasks):
        for index, gain in enumerate(gains):
            near = (0, 4096, (2.5 + 0.1 * index) * 4096, 4096)
            beyond = (4096, 8192, (2.0 + 0.1 * index + gain / (1 + number)) * 2048, 2048)
            line = DocumentLoss(
                task=task,
                template="text",
                id=f"d{index}",
                maxlen=8192,
                num_tokens=6144,
                num_tokens_dropped=0,
                negative_log_likelihood=near[2] + beyond[2],
                buckets=[near, beyond],
                seconds=2.0 * share,
                cache_bytes=1000 * share,
                peak_bytes=None,
                attention_flops=10**9 * share,
            )
            lines.append(replace(line, **changes))
    if share < 100:
        lines = lines[3:] + lines[:3]
    run = RunFolder(folder)
    run.write_json("run.json", measured_record(tasks, **(identity or {})))
    run.write_json("scores.json", PerplexityScores(results=[measured_result(task, len(gains)) for task in tasks]))
    run.write_lines("predictions.jsonl", lines)
    return folder


def measured_record(tasks: Sequence[str], **identity: Any) -> PerplexityRecord:
    settings = PerplexityIdentity(
        model=ModelRecord(reference="tiny", source="folder"),
        plan=None,
        dtype="float32",
        tokens=8192,
        perplexity_version=1,
    )
    source = {"kind": "package", "name": "allofplos", "version": "0"}
    task = PerplexityTask(version=1, source=source, split="test", limit=None, maxlen=[8192])
    return PerplexityRecord(
        config={},
        plan_description="full",
        world_size=1,
        identity=replace(settings, **identity),
        tasks=dict.fromkeys(tasks, task),
        sessions=run_record().sessions,
    )


def measured_result(task: str, num_documents: int) -> PerplexityResult:
    perplexity = Estimate(mean=12.0, low=11.0, high=13.0)
    return PerplexityResult(
        task=task,
        template="text",
        system="tiny",
        maxlen=8192,
        num_documents=num_documents,
        num_truncated=0,
        num_tokens=6144 * num_documents,
        metrics={"perplexity": perplexity},
        by_position=[
            PositionLoss(first=first, last=first + 4095, num_tokens=4096, perplexity=perplexity) for first in (0, 4096)
        ],
        cost=PerplexityCost(
            tokens_per_second=None, seconds=1.0, peak_memory_bytes=None, cache_bytes=0, attention_flops=None
        ),
    )
