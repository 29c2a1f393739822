"""Negative log likelihoods of a document, read in windows of some tokens, each without those before it.

Without a stride, windows follow each other, and most of what a short one loses against a long one it loses at its own
beginning. With a stride they overlap: after the first, the last `stride` tokens of each are scored, so that every token
but the document's first is scored once, with at least `maxlen - stride` tokens before it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from eval.prompting.prompts import PromptBuilder
from eval.records.schema import DocumentLoss, PerplexityIdentity
from eval.reporting.perplexity_report import TEMPLATE
from eval.runtime.memory import peak_bytes, reset_peak, storage_bytes
from eval.runtime.model import plan_of
from eval.runtime.processes import Process
from masformer import fixed_frequencies
from masformer.attention.prefill import CHUNK_TOKENS, new_cache
from masformer.errors import NumbersError
from masformer.loss import token_losses
from masformer.plans.cost import attention_flops
from tasks import Example

# Where the second bucket of positions begins; each later one is twice as long as the one before.
_FIRST_EDGE = 256


@dataclass(frozen=True, kw_only=True)
class Window:
    """A document to be read in windows of `maxlen` tokens."""

    task: str
    example: Example
    maxlen: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.task, TEMPLATE, self.example.id, self.maxlen


def measure(
    windows: Sequence[Window],
    model: PreTrainedModel,
    builder: PromptBuilder,
    record: PerplexityIdentity,
    process: Process,
) -> Iterator[DocumentLoss]:
    """Yield the losses of each document at its length.

    Args:
        windows: Work of this process.
        model: Model with its plan.
        builder: Turns a text into tokens.
        record: How documents are read.
        process: The main process has a bar.

    Raises:
        NumbersError: A loss is none.
    """
    # Measurements are warm from the first on.
    losses_of(model, [token % model.config.get_text_config().vocab_size for token in range(3, 67)])
    bar = tqdm(
        total=len(windows),
        desc="measuring",
        disable=not process.is_main,
        bar_format="{desc} {n}/{total} |{bar:24}| {elapsed} gone, {remaining} left{postfix}",
    )
    with bar:
        for window in windows:
            yield _measure(window, model, builder.document(window.example.context), record)
            bar.set_postfix_str(f"{window.example.id} at {window.maxlen}", refresh=False)
            bar.update()


def _measure(window: Window, model: PreTrainedModel, whole: Sequence[int], record: PerplexityIdentity) -> DocumentLoss:
    spans, maxlen = plan_of(model), window.maxlen
    token_ids = whole[: record.tokens]
    reset_peak(model.device)
    started = time.perf_counter()
    sums: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0])
    flops, cache_bytes = 0, 0
    by_token: list[float | None] = [None] * len(token_ids)
    for first, scored in windows_of(len(token_ids), maxlen, record.stride):
        part = token_ids[first : first + maxlen]
        losses, num_bytes = losses_of(model, part, scored)
        if not bool(losses.isfinite().all()):
            where = f"document '{window.example.id}' of task '{window.task}', tokens {first} to {first + len(part) - 1}"
            raise NumbersError(f"losses on {where}, at length {maxlen}", record.dtype)
        cache_bytes = max(cache_bytes, num_bytes)
        for start, stop in buckets_of(maxlen):
            # The token at index i is predicted from i tokens before it.
            of_bucket = losses[max(start - scored, 0) : max(stop - scored, 0)]
            if len(of_bucket):
                sums[start, stop][0] += float(of_bucket.sum(dtype=torch.float64))
                sums[start, stop][1] += len(of_bucket)
        by_token[first + scored : first + len(part)] = [round(loss, 5) for loss in losses.tolist()]
        if spans is not None and len(part) > 1:
            flops += attention_flops(model.config, spans, len(part) - 1)
    total, count = (sum(one[place] for one in sums.values()) for place in (0, 1))
    if count and not total / count < 700:  # or its exponential, which is what is reported, is infinite
        raise NumbersError(
            f"perplexities on document '{window.example.id}' of task '{window.task}', at length {maxlen}", record.dtype
        )
    task, template, example_id, _ = window.key
    return DocumentLoss(
        task=task,
        template=template,
        id=example_id,
        maxlen=maxlen,
        num_tokens=sum(int(count) for _, count in sums.values()),
        num_tokens_dropped=len(whole) - len(token_ids),
        negative_log_likelihood=sum(loss for loss, _ in sums.values()),
        buckets=[(*edges, loss, int(count)) for edges, (loss, count) in sums.items()],
        seconds=time.perf_counter() - started,
        cache_bytes=cache_bytes,
        peak_bytes=peak_bytes(model.device),
        attention_flops=None if spans is None else flops,
        token_losses=by_token if record.token_losses else None,
    )


def windows_of(num_tokens: int, maxlen: int, stride: int | None) -> Iterator[tuple[int, int]]:
    """Yield the first token of each window of a document, and the first token within it that is scored."""
    if stride is None:
        yield from ((first, 1) for first in range(0, num_tokens, maxlen))
        return
    first, end = 0, 1
    while end < num_tokens:
        yield first, end - first
        end = min(first + maxlen, num_tokens)
        first += stride


def buckets_of(maxlen: int) -> list[tuple[int, int]]:
    """Return [start, stop) ranges of positions: 0 to 255, to 511, to 1,023, each as long as all before it."""
    edges = [0, _FIRST_EDGE]
    while edges[-1] < maxlen:
        edges.append(2 * edges[-1])
    return [(start, min(stop, maxlen)) for start, stop in pairwise(edges) if start < maxlen]


@torch.no_grad()
def losses_of(model: PreTrainedModel, token_ids: Sequence[int], scored: int = 1) -> tuple[torch.Tensor, int]:
    """Return (T - scored,) negative log likelihoods in nats of the tokens from there on, and the bytes of the cache.

    The tokens go through the model in chunks on top of a cache, so that memory does not grow with logits or masks.
    """
    ids = torch.tensor([token_ids], device=model.device)
    cache = new_cache(model, len(token_ids))
    parts = [torch.zeros(0)]
    with fixed_frequencies(model, len(token_ids)):
        for first in range(0, len(token_ids) - 1, CHUNK_TOKENS):
            chunk = ids[:, first : min(first + CHUNK_TOKENS, len(token_ids) - 1)]
            hidden = model.get_decoder()(input_ids=chunk, past_key_values=cache, use_cache=True).last_hidden_state[0]
            skipped = max(scored - 1 - first, 0)
            hidden = hidden[skipped:]
            following = ids[0, first + skipped + 1 : first + skipped + 1 + len(hidden)]
            parts.append(token_losses(model, hidden, following).cpu())
    return torch.cat(parts), storage_bytes(cache)
