"""Small run folders written by hand, for tests of what reads them: no model, no generation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records.run_folder import RunFolder

WORDS = [
    "the",
    "model",
    "reads",
    "a",
    "long",
    "paper",
    "and",
    "finds",
    "what",
    "its",
    "authors",
    "say",
    "about",
    "attention",
    "over",
    "many",
    "tokens",
]
LENGTHS = (100, 200)


def sentence(seed: int, num_words: int = 8) -> str:
    return " ".join(WORDS[(seed * 7 + index * (seed + 3)) % len(WORDS)] for index in range(num_words)) + "."


def document(seed: int, num_sentences: int = 12) -> str:
    return " ".join(sentence(seed * 31 + index).capitalize() for index in range(num_sentences))


def example_line(index: int, **changes: Any) -> dict[str, Any]:
    reference = f"{sentence(index * 31 + 2)} {sentence(index * 31 + 9)}"
    line = {"task": "plos", "id": f"test-{index}", "document_id": f"doc-{index}", "query": None, "evidence": None}
    return line | {"references": [reference]} | changes


def prediction_line(example: Mapping[str, Any], maxlen: int, text: str, num_characters: int, **changes: Any) -> Any:
    """Return a line whose prompt showed a character of the document for each token of maxlen."""
    kept = min(2 * maxlen, num_characters)
    line = {
        "task": example["task"],
        "template": "instruct",
        "id": example["id"],
        "maxlen": maxlen,
        "fingerprint": f"{example['id']}-{maxlen}",
        "text": text,
        "prompt_tokens": maxlen,
        "prefilled_tokens": 10,
        "context_tokens_kept": kept,
        "context_tokens_dropped": num_characters - kept,
        "context_spans": [[0, kept]],
        "num_generated_tokens": 10,
        "finish_reason": "stop",
        "seconds": 3.0,
        "prefill_seconds": 2.0,
        "decode_seconds": 1.0,
        "batch_size": 2,
        "group": 0,
        "truncation": "head",
        "cache_bytes": 1000 * maxlen,
        "peak_bytes": 2**30,
        "attention_flops": 10**9 * maxlen**2,
    }
    return line | changes


def model_results(folder: Path) -> list[dict[str, Any]]:
    """Return the results of a scored folder that are a model's, about all of its examples."""
    results = json.loads((folder / "scores.json").read_text())["results"]
    return [result for result in results if (result["kind"], result["subset"]) == ("model", "all")]


def run_record(
    tasks: Sequence[str] = ("plos",), lengths: Sequence[int] = LENGTHS, profile: str = "hf", **identity: Any
) -> dict[str, Any]:
    about = {
        "description": "paper -> abstract",
        "version": 1,
        "licence": "CC BY",
        "source": {"kind": "package", "name": "allofplos", "version": "0"},
        "split": "test",
        "templates": {"instruct": {"text": "Summarize: {context}", "chat": True, "prompt_sha256": "0"}},
        "profile": profile,
        "scores_first_line": False,
        "max_new_tokens": 16,
        "limit": None,
        "maxlen": list(lengths),
    }
    session = {
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "command": ["--task", "plos"],
        "world_size": 1,
        "threads": 1,
        "machine": {"device": "CPU (test)"},
        "commit": "0" * 40,
        "dirty": False,
    }
    model = {"reference": "tiny", "source": "folder"}
    held = {"model": model, "plan": None, "dtype": "float32", "truncation": "head"} | identity
    return {
        "config": {"shard": None},
        "plan_description": "full",
        "world_size": 1,
        "identity": held,
        "tasks": {task: dict(about) for task in tasks},
        "sessions": [session],
        "grouping": {"num_shares": 1, "batch_size": 16, "memory_budget": 1},
    }


def write_run(
    path: Path,
    answer: Callable[[Mapping[str, Any], int], str],
    examples: Sequence[Mapping[str, Any]] | None = None,
    documents: Mapping[str, str] | None = None,
    record: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Write a run that has ended and was not scored.

    Args:
        path: Of the folder.
        answer: From a line of `examples.jsonl` and a maxlen to the text of a prediction.
        examples: Lines of `examples.jsonl`; six of `example_line` by default.
        documents: Texts by document id; those of `document` by default.
        record: `run.json`; that of `run_record` by default.
    """
    examples = [example_line(index) for index in range(6)] if examples is None else examples
    record = record or run_record()
    names = {line["document_id"]: line["task"] for line in examples}
    # The first two documents are short, so that the greatest length shows all of them.
    texts = documents or {name: document(index, 3 if index < 2 else 20) for index, name in enumerate(sorted(names))}
    folder = RunFolder(path)
    folder.write_json("run.json", record)
    folder.write_lines("examples.jsonl", examples)
    folder.write_documents(
        {"task": names[name], "document_id": name, "text": text} for name, text in texts.items() if name in names
    )
    folder.write_lines(
        "predictions.jsonl",
        [
            prediction_line(line, maxlen, answer(line, maxlen), len(texts[line["document_id"]]))
            for line in examples
            for maxlen in record["tasks"][line["task"]]["maxlen"]
        ],
    )
    return folder
