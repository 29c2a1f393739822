"""Which predictions are to be made, by which process, and making them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedModel

from eval.config import RunConfig
from eval.generate import generate, warm_up
from eval.model import plan_of
from eval.prompts import PromptBuilder, fit
from eval.run_folder import Key, RunFolder, append_line
from masformer.checkpoints import Checkpoint
from masformer.cost import attention_flops
from tasks import TASKS, Example, LoadedExamples


@dataclass(frozen=True, kw_only=True)
class Work:
    """One example of one task, to be answered at several lengths."""

    task: str
    example: Example
    builder: PromptBuilder
    lengths: tuple[int, ...]
    max_new_tokens: int

    def cost(self, maxlen: int) -> int:
        """Return the tokens to compute, estimated from characters, so that nothing is tokenized before its turn."""
        return min(maxlen, len(self.example.context) // 3 + self.max_new_tokens)

    def key(self, maxlen: int) -> Key:
        return self.task, TASKS[self.task].default_template, self.example.id, maxlen


def plan_work(
    config: RunConfig, name: str, loaded: LoadedExamples, checkpoint: Checkpoint, held: dict[str, Any] | None
) -> list[Work]:
    """Return one entry an example, with the lengths asked for now and those that the folder already has."""
    task = TASKS[name]
    before = held["tasks"].get(name, {}).get("maxlen", []) if held else []
    lengths = tuple(sorted({*config.maxlen, *before}))
    builder = PromptBuilder(checkpoint.tokenizer, task.templates[task.default_template])
    return [
        Work(
            task=name,
            example=example,
            builder=builder,
            lengths=lengths,
            max_new_tokens=config.max_new_tokens or task.max_new_tokens,
        )
        for example in loaded.examples
    ]


def check_prompts(work: Sequence[Work]) -> None:
    """Check that every query and instruction fits at the smallest length, before any weights load."""
    for item in work:
        fit(item.builder.fixed_parts(item.example.query), item.lengths[0], item.max_new_tokens, "head")


def share(work: Sequence[Work], process_index: int, num_processes: int) -> list[Work]:
    """Return the examples of one process: dealt out by predicted cost, largest first, to whoever has least."""
    loads = [0] * num_processes
    mine = []
    for item in sorted(work, key=_total_cost, reverse=True):
        process = loads.index(min(loads))
        loads[process] += _total_cost(item)
        if process == process_index:
            mine.append(item)
    return mine


def _total_cost(item: Work) -> int:
    return sum(item.cost(maxlen) for maxlen in item.lengths)


def answer_share(
    work: Sequence[Work],
    model: PreTrainedModel,
    folder: RunFolder,
    done: set[Key],
    accelerator: Accelerator,
    config: RunConfig,
) -> None:
    """Answer what is missing of this process's share, one line in its journal each."""
    spans = plan_of(model)
    todo = [(item, [n for n in item.lengths if item.key(n) not in done]) for item in work]
    total = sum(item.cost(n) for item, lengths in todo for n in lengths)
    bar = tqdm(
        total=total,
        desc="generating",
        unit="tok",
        unit_scale=True,
        disable=not accelerator.is_main_process,
        bar_format="{desc} {percentage:3.0f}% |{bar:24}| {elapsed} gone, {remaining} left{postfix}",
    )
    if total:
        warm_up(model, work[0].builder.tokenizer)
    with folder.open_journal(accelerator.process_index) as journal, bar:
        for item, lengths in todo:
            parts = item.builder.parts(item.example) if lengths else None
            for maxlen in lengths:
                assert parts is not None
                prompt = fit(parts, maxlen, item.max_new_tokens, config.truncation)
                answer = generate(model, item.builder.tokenizer, prompt.token_ids, item.max_new_tokens)
                task, template, example_id, _ = item.key(maxlen)
                num_tokens = len(prompt.token_ids) + answer.num_generated_tokens
                append_line(
                    journal,
                    {
                        "task": task,
                        "template": template,
                        "id": example_id,
                        "maxlen": maxlen,
                        "text": answer.text,
                        "prompt_tokens": len(prompt.token_ids),
                        "context_tokens_kept": prompt.num_context_kept,
                        "context_tokens_dropped": prompt.num_context_dropped,
                        "num_generated_tokens": answer.num_generated_tokens,
                        "finish_reason": answer.finish_reason,
                        "seconds": answer.prefill_seconds + answer.decode_seconds,
                        "prefill_seconds": answer.prefill_seconds,
                        "decode_seconds": answer.decode_seconds,
                        "truncation": config.truncation,
                        "cache_bytes": answer.cache_bytes,
                        "peak_bytes": answer.peak_bytes,
                        "attention_flops": spans and attention_flops(model.config, spans, num_tokens),
                    },
                )
                bar.set_postfix_str(f"{example_id} at {maxlen}", refresh=False)
                bar.update(item.cost(maxlen))
