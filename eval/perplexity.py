"""Perplexity of long documents at several lengths and by position: exp(negative log likelihood / tokens).

accelerate launch eval/perplexity.py --task aclsum --maxlen 1024 2048 4096 8192 --limit 4

The same tokens of a document are read at every length: in consecutive windows of that many tokens, each on its own. The
first token of a window is not predicted. A position is the number of tokens that a prediction could see.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from eval.config.perplexity import PerplexityConfig
from eval.errors import UserError
from eval.generation.decode import peak_bytes, reset_peak, storage_bytes
from eval.prompting.prompts import PromptBuilder
from eval.records.journal import Key, append_line
from eval.records.read_run import notes_on_tasks
from eval.records.record import default_output, merge_examples, merge_record
from eval.records.run_folder import RunFolder
from eval.reporting.perplexity_report import (
    LEGEND,
    TEMPLATE,
    position_table,
    render_perplexity_report,
    score_lines,
    table,
)
from eval.reporting.tables import as_columns
from eval.runtime.model import check_positions, default_dtype, describe_weights, load_converted, plan_of, resolve_plan
from eval.runtime.session import describe_session, now, run_script, set_threads, start_processes
from masformer import SpanCache, SpanPlan, fixed_frequencies
from masformer.attention.prefill import CHUNK_TOKENS
from masformer.checkpoints.open import Checkpoint, CheckpointError, open_checkpoint
from masformer.loss import check_head, token_losses
from masformer.plans.cost import attention_flops
from tasks import Example, LoadedExamples, Template

# Raised by hand whenever a change of the code changes what is measured.
PERPLEXITY_VERSION = 1
# Where the second bucket of positions begins; each later one is twice as long as the one before.
_FIRST_EDGE = 256


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run whose settings, data and folder have been checked."""

    config: PerplexityConfig
    threads: int
    dtype: str
    checkpoint: Checkpoint
    plan: SpanPlan | None
    loaded: Mapping[str, LoadedExamples]
    lengths: Mapping[str, Sequence[int]]
    tokens: int
    folder: RunFolder
    held: dict[str, Any] | None
    record: dict[str, Any]

    @property
    def work(self) -> Iterator[tuple[str, Example, int]]:
        """Return each (task, document, length) to be measured."""
        for task, loaded in self.loaded.items():
            for example in loaded.examples:
                for maxlen in self.lengths[task]:
                    yield task, example, maxlen


def main(arguments: Sequence[str]) -> int:
    """Measure, and return the exit status: 0, or 2 after one line on what is wrong."""
    return run_script(arguments, _start, execute)


def _start(arguments: Sequence[str]) -> tuple[Job, Accelerator]:
    config = PerplexityConfig.from_command_line(arguments)
    accelerator = start_processes(os.environ)
    return prepare(config, accelerator), accelerator


def prepare(config: PerplexityConfig, accelerator: Accelerator) -> Job:
    """Return the run with everything checked that can be checked before weights load; writes nothing."""
    threads = set_threads(config.threads, os.environ)
    torch.manual_seed(config.seed)
    dtype = config.dtype or default_dtype(accelerator)
    checkpoint = open_checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    loaded = {name: _long_enough(config.load_documents(name), config, checkpoint) for name in config.tasks}
    plan = resolve_plan(config.plan, checkpoint)
    check_positions(max(config.maxlen), checkpoint, allow_extrapolation=config.allow_extrapolation)
    folder = RunFolder(config.output or default_output("perplexity", config, ("maxlen", "limit", "output")))
    held = folder.read_run()
    # A folder of another kind names no tokens, and is refused below.
    tokens = config.tokens or (held["identity"].get("tokens") if held else None) or config.maxlen[-1]
    if held and tokens < config.maxlen[-1]:
        raise UserError(
            f"output folder {folder.path} reads {tokens} tokens a document, fewer than maxlen {config.maxlen[-1]}; "
            "give another folder with --output (--tokens N leaves room for lengths up to N)"
        )
    identity = {
        "model": checkpoint.provenance,
        "plan": None if plan is None else plan.to_json(),
        "dtype": dtype,
        "tokens": tokens,
        "trust_remote_code": config.trust_remote_code,
        "threads": threads,
        "perplexity_version": PERPLEXITY_VERSION,
    }
    tasks = {
        name: {
            "description": config.tasks[name].description,
            "version": config.tasks[name].version,
            "source": {key: value for key, value in of_task.provenance.items() if not key.startswith("num_")},
            "rows": {key: value for key, value in of_task.provenance.items() if key.startswith("num_")},
            "split": config.split or config.tasks[name].default_split,
            "limit": config.limit,
            "min_tokens": config.min_tokens,
            "min_words": config.min_words,
            "maxlen": list(config.maxlen),
        }
        for name, of_task in loaded.items()
    }
    folder.check_accepts(identity, tasks)
    resolved = asdict(config) | {"dtype": dtype, "output": folder.path, "threads": threads, "tokens": tokens}
    record = merge_record(deepcopy(held), identity, tasks, resolved, plan)
    return Job(
        config=config,
        threads=threads,
        dtype=dtype,
        checkpoint=checkpoint,
        plan=plan,
        loaded=loaded,
        lengths={name: record["tasks"][name]["maxlen"] for name in loaded},
        tokens=tokens,
        folder=folder,
        held=held,
        record=record,
    )


def _long_enough(loaded: LoadedExamples, config: PerplexityConfig, checkpoint: Checkpoint) -> LoadedExamples:
    """Return the documents of a task that have the tokens asked for."""
    if config.min_tokens is None:
        return loaded
    builder = PromptBuilder(checkpoint.tokenizer, Template(text="{context}"))
    kept = tuple(one for one in loaded.examples if len(builder.document(one.context)) >= config.min_tokens)
    if not kept:
        raise UserError(
            f"none of {len(loaded.examples)} documents has --min-tokens {config.min_tokens}; lower it, or raise --limit"
        )
    num_few = len(loaded.examples) - len(kept)
    return replace(loaded, examples=kept, provenance={**loaded.provenance, "num_few_tokens": num_few})


def execute(job: Job, arguments: list[str], accelerator: Accelerator) -> None:
    """Measure what is missing, with the other processes, and finish the folder."""
    folder, main_process = job.folder, accelerator.is_main_process
    with folder.lock(job.held) if main_process else nullcontext():
        found = folder.read_predictions()
        # All have read the folder before anyone writes to it.
        accelerator.wait_for_everyone()
        missing = [item for item in job.work if _key(*item) not in found.lines]
        if main_process:
            if missing:
                job.record["world_size"] = accelerator.num_processes
                session = describe_session(arguments, accelerator, job.threads)
                job.record["sessions"].append(session | {"num_to_measure": len(missing)})
            folder.write_json("run.json", job.record)
            folder.write_lines("examples.jsonl", merge_examples(folder.read_examples(), job.loaded))
            _introduce(job, len(missing), found.describe(), accelerator)
        if missing:
            model = load_converted(
                job.checkpoint, job.dtype, accelerator.device, job.plan, job.config.plan, accelerator.print
            )
            check_head(model)
            mine = missing[accelerator.process_index :: accelerator.num_processes]
            _measure(job, mine, model, accelerator)
        accelerator.wait_for_everyone()
        if main_process:
            _finish(job, bool(missing))


def _key(task: str, example: Example, maxlen: int) -> Key:
    return task, TEMPLATE, example.id, maxlen


def _measure(
    job: Job, work: Sequence[tuple[str, Example, int]], model: PreTrainedModel, accelerator: Accelerator
) -> None:
    """Measure this process's share, one line in its journal each."""
    builder, spans = PromptBuilder(job.checkpoint.tokenizer, Template(text="{context}")), plan_of(model)
    # Predictions are warm from the first on.
    losses_of(model, [token % model.config.get_text_config().vocab_size for token in range(3, 67)])
    bar = tqdm(
        total=len(work),
        desc="measuring",
        disable=not accelerator.is_main_process,
        bar_format="{desc} {n}/{total} |{bar:24}| {elapsed} gone, {remaining} left{postfix}",
    )
    with job.folder.open_journal(f"{accelerator.process_index:05}") as journal, bar:
        for task, example, maxlen in work:
            whole = builder.document(example.context)
            token_ids = whole[: job.tokens]
            reset_peak(model.device)
            started = time.perf_counter()
            buckets: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0])
            flops, cache_bytes = 0, 0
            for first in range(0, len(token_ids), maxlen):
                window = token_ids[first : first + maxlen]
                losses, held = losses_of(model, window)
                if not bool(losses.isfinite().all()):
                    raise CheckpointError(
                        f"a loss on {example.id} is no number in {job.dtype}; try --dtype float32, or mend the weights"
                    )
                cache_bytes = max(cache_bytes, held)
                for start, stop in buckets_of(maxlen):
                    # The token at index i is predicted from i tokens before it.
                    part = losses[max(start, 1) - 1 : stop - 1]
                    if len(part):
                        buckets[start, stop][0] += float(part.sum(dtype=torch.float64))
                        buckets[start, stop][1] += len(part)
                if spans is not None and len(window) > 1:
                    flops += attention_flops(model.config, spans, len(window) - 1)
            names = ("task", "template", "id", "maxlen")
            append_line(
                journal,
                {
                    **dict(zip(names, _key(task, example, maxlen), strict=True)),
                    "num_tokens": sum(int(count) for _, count in buckets.values()),
                    "num_tokens_dropped": len(whole) - len(token_ids),
                    "negative_log_likelihood": sum(loss for loss, _ in buckets.values()),
                    "buckets": [[*edges, loss, int(count)] for edges, (loss, count) in buckets.items()],
                    "seconds": time.perf_counter() - started,
                    "cache_bytes": cache_bytes,
                    "peak_bytes": peak_bytes(model.device),
                    "attention_flops": None if spans is None else flops,
                },
            )
            bar.set_postfix_str(f"{example.id} at {maxlen}", refresh=False)
            bar.update()


def buckets_of(maxlen: int) -> list[tuple[int, int]]:
    """Return [start, stop) ranges of positions: 0 to 255, to 511, to 1,023, each as long as all before it."""
    edges = [0, _FIRST_EDGE]
    while edges[-1] < maxlen:
        edges.append(2 * edges[-1])
    return [(start, min(stop, maxlen)) for start, stop in pairwise(edges) if start < maxlen]


@torch.no_grad()
def losses_of(model: PreTrainedModel, token_ids: Sequence[int]) -> tuple[torch.Tensor, int]:
    """Return (T - 1,) negative log likelihoods in nats of all tokens but the first, and the bytes of the cache.

    The tokens go through the model in chunks on top of a cache, so that memory does not grow with logits or masks.
    """
    ids = torch.tensor([token_ids], device=model.device)
    plan = getattr(model, "span_plan", None)
    cache = DynamicCache(config=model.config) if plan is None else SpanCache(plan, len(token_ids))
    parts = [torch.zeros(0)]
    with fixed_frequencies(model, len(token_ids)):
        for first in range(0, len(token_ids) - 1, CHUNK_TOKENS):
            chunk = ids[:, first : min(first + CHUNK_TOKENS, len(token_ids) - 1)]
            hidden = model.get_decoder()(input_ids=chunk, past_key_values=cache, use_cache=True).last_hidden_state[0]
            parts.append(token_losses(model, hidden, ids[0, first + 1 : first + 1 + len(hidden)]).cpu())
    return torch.cat(parts), storage_bytes(cache)


def _introduce(job: Job, missing: int, dropped: str, accelerator: Accelerator) -> None:
    print(f"model   {job.config.model}: {describe_weights(job.checkpoint)}, {job.dtype}")
    print(f"spans   {job.record['plan_description']}")
    for name, loaded in job.loaded.items():
        print(f"task    {name}: {len(loaded.examples)} documents, {job.tokens} tokens of each at most")
    print(f"lengths {', '.join(map(str, job.config.maxlen))}")
    print(f"machine {accelerator.device.type}, {accelerator.num_processes} process(es), {job.threads} thread(s) each")
    total = sum(1 for _ in job.work)
    print(f"folder  {job.folder.path}: {total - missing} of {total} measurements are there")
    if dropped:
        print(f"        {dropped}")


def _finish(job: Job, has_measured: bool) -> None:
    """Merge the journals, score, write the report, and print its tables."""
    record, examples = job.record, job.folder.read_examples()
    order: list[Key] = [
        (line["task"], TEMPLATE, line["id"], maxlen)
        for line in examples
        for maxlen in record["tasks"][line["task"]]["maxlen"]
    ]
    lines, absent = job.folder.merge_journal(order, {_key(*item) for item in job.work})
    results = score_lines(lines, examples, record["identity"]["model"]["reference"])
    if has_measured:
        record["sessions"][-1]["finished"] = now()
    job.folder.write_json("run.json", record)
    job.folder.write_json("scores.json", {"results": results})
    notes = [f"Not there yet: {len(absent)} measurements of a task whose run was interrupted."] if absent else []
    notes += notes_on_tasks(record)
    job.folder.write_text("report.md", render_perplexity_report(record, results, notes))
    for name in record["tasks"]:
        some = [result for result in results if result["task"] == name]
        print(f"\n{name}, perplexity\n{as_columns(table(some))}\n\nby position\n{as_columns(position_table(some))}")
    print("\n" + "\n".join([*notes, textwrap.fill(LEGEND, 120), f"folder: {job.folder.path}"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
