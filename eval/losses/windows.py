"""Negative log likelihoods by a model that is loaded here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from eval.losses.readings import Reading, Tally
from eval.records.schema import DocumentLoss, PerplexityIdentity
from eval.runtime.memory import peak_bytes, reset_peak, storage_bytes
from eval.runtime.model import plan_of
from masformer import fixed_frequencies
from masformer.attention.prefill import CHUNK_TOKENS, new_cache
from masformer.errors import NumbersError
from masformer.loss import token_losses
from masformer.plans.cost import attention_flops
from masformer.tuning import now


def measure(readings: Iterable[Reading], model: PreTrainedModel, record: PerplexityIdentity) -> Iterator[DocumentLoss]:
    """Yield the losses of each reading.

    Args:
        readings: Work of this process.
        model: Model with its plan.
        record: How documents are read.

    Raises:
        NumbersError: A loss is none.
    """
    # Measurements are warm from the first on.
    losses_of(model, [token % model.config.get_text_config().vocab_size for token in range(3, 67)])
    for reading in readings:
        yield _measure(reading, model, record)


def _measure(reading: Reading, model: PreTrainedModel, record: PerplexityIdentity) -> DocumentLoss:
    spans = plan_of(model)
    reset_peak(model.device)
    started = now(model.device)
    tally = Tally(reading=reading)
    flops, cache_bytes = 0, 0
    for part in reading.parts:
        losses, num_bytes = losses_of(model, part.token_ids, part.scored)
        if not bool(losses.isfinite().all()):
            raise NumbersError(f"losses on {part.where}, at length {reading.maxlen}", record.dtype)
        cache_bytes = max(cache_bytes, num_bytes)
        tally.add(part, losses, lambda some: float(some.sum(dtype=torch.float64)))
        if spans is not None and len(part.token_ids) > 1:
            flops += attention_flops(model.config, spans, len(part.token_ids) - 1)
    return tally.line(
        record,
        seconds=now(model.device) - started,
        cache_bytes=cache_bytes,
        peak_bytes=peak_bytes(model.device),
        attention_flops=None if spans is None else flops,
    )


@torch.no_grad()
def losses_of(
    model: PreTrainedModel, token_ids: Sequence[int], scored: int = 1, cache: Cache | None = None
) -> tuple[torch.Tensor, int]:
    """Return (T - scored,) negative log likelihoods in nats of the tokens from there on, and the bytes of the cache.

    The tokens go through the model in chunks on top of a cache, so that memory does not grow with logits or masks.

    Args:
        cache: Of what stands before the tokens, which are added to it.
    """
    ids = torch.tensor([token_ids], device=model.device)
    cache = new_cache(model, len(token_ids)) if cache is None else cache
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
