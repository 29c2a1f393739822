"""Proofs on a few random tokens that a model computes what is asked of it, whatever its architecture.

transformers accepts an attention function for architectures that never call it, and a cache for those that ignore it.
Before the first plan, every layer must call ours, the model's own spans must give the untouched logits, a short span
must change them, and decoding through the cache must equal one pass. On the converted model, forks of a prefill that
are joined to a padded batch must decode as each prompt alone does; so must spans of single heads before the first plan
that has them. A model without a plan must compute in chunks and in a fork what it computes in one pass.

`own` always means the spans of the architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import AttentionMaskInterface

from masformer.adapters import (
    adapt,
    attention_names,
    clear_spans,
    give_plan,
    layer_of,
    set_attention,
    set_spans,
    unadapt,
)
from masformer.attention.cache import SpanCache, can_join, join
from masformer.attention.kernels import masformer_attention
from masformer.attention.prefill import fork, new_cache, prefill
from masformer.attention.visibility import span_mask
from masformer.errors import ConversionError, NumbersError, refusing
from masformer.hardware import dtype_name
from masformer.plans.layer_spans import resized
from masformer.plans.shapes import layers_with_states, shared_layers
from masformer.plans.spans import FULL, HeadSpans, LayerSpan, SpanPlan

# The largest difference of the probe's logits that rounding explains, relative to the largest logit.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
_STATE_TOLERANCE = PROBE_TOLERANCE[torch.float32]
_PROBE_NAME = "masformer_probe"
_PROBE_TOKENS = 24
# Texts that are tried until one has logits that are numbers.
_PROBE_TRIES = 4
_PROBE_WINDOW = 5
_PROBE_SHORT = LayerSpan(span=2, sinks=1)


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Put a model in eval mode without gradients, and back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def probe_spans(model: PreTrainedModel, own: SpanPlan) -> None:
    """Raise `ConversionError` unless, on random tokens, a plan does what it says; leave the model as it was."""
    kind = model.config.model_type
    called: set[int] = set()

    def counting(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        called.add(-1 if (layer := layer_of(module)) is None else layer)
        return masformer_attention(module, *args, **kwargs)

    config = model.config.get_text_config(decoder=True)
    # Windows and chunks are far longer than the probe; shortened to this, a model that ignores them shows itself.
    names = () if own.is_full else ("sliding_window", "attention_chunk_size")
    sizes = {name: size for name in names if (size := getattr(config, name, None)) is not None}
    if sizes:
        own = own.with_all(*(resized(own[layer], _PROBE_WINDOW) for layer in own.attending))
    restores = attention_names(model)
    short = own.with_all(_PROBE_SHORT)
    refuse = f"{kind} models cannot take a span plan:"
    adapt(model)
    try:
        with refusing(ConversionError, refuse), inference(model):
            if sizes:
                for name in sizes:
                    setattr(config, name, _PROBE_WINDOW)
                if restores[""] != "eager":
                    # Flash attention takes the window that each module copied; these take the mask's.
                    set_attention(model, "sdpa" if model._supports_sdpa else "eager")
            tokens, whole = probe_logits(model)
            untouched = whole[-1]
            tolerance = _tolerance_in_pieces(model, tokens, whole)
            AttentionInterface.register(_PROBE_NAME, counting)
            AttentionMaskInterface.register(_PROBE_NAME, span_mask)
            set_attention(model, _PROBE_NAME)
            set_spans(model, own)
            same = model(tokens, use_cache=False).logits[0, -1]
            missing = set(own.attending) - called
            if missing:
                of_all = f"{len(missing)} of {len(own.attending)} layers"
                raise ConversionError(
                    f"{refuse} {of_all} never call the attention function given to transformers, and would go on with "
                    "full attention"
                )
            check_close(same, untouched, tolerance, f"{refuse} with their own spans the logits are")
            set_spans(model, short)
            changed = model(tokens, use_cache=False).logits[0, -1]
            if torch.equal(changed, same):
                raise ConversionError(f"{refuse} a span of 2 changes nothing in their logits")
            check_close(_decoded(model, tokens, short), changed, tolerance, f"{refuse} decoding through the cache is")
    finally:
        for name, size in sizes.items():
            setattr(config, name, size)
        set_attention(model, restores)
        clear_spans(model)
        unadapt(model)


def probe_heads(model: PreTrainedModel, own: SpanPlan, num_heads: int) -> None:
    """Raise `ConversionError` unless spans of single heads do what they say on a converted model; its plan is lost."""
    one = own.with_all(HeadSpans((FULL, *(_PROBE_SHORT,) * (num_heads - 1))))
    refuse = f"{model.config.model_type} models cannot take spans of single heads:"
    tokens, found = probe_tokens(model), []
    with refusing(ConversionError, refuse), inference(model):
        for plan in (own.with_all(FULL), own.with_all(_PROBE_SHORT), one):
            give_plan(model, plan)
            found.append(model(tokens, use_cache=False).logits[0, -1])
        *alike, mixed = found
        if any(torch.equal(mixed, logits) for logits in alike):
            raise ConversionError(f"{refuse} one full head among short ones changes nothing in their logits")
    probe_serving(model, one, "spans of single heads")


def alternating_plan(config: PreTrainedConfig, own: SpanPlan) -> SpanPlan:
    """Return a plan in which every second layer with attention sees everything; layers that share keys see alike."""
    spans = list(own.with_all(_PROBE_SHORT, FULL))
    for layer, producer in shared_layers(config).items():
        spans[layer] = spans[producer]
    return SpanPlan(tuple(spans))


def probe_serving(model: PreTrainedModel, plan: SpanPlan, what: str) -> None:
    """Raise `ConversionError` unless prompts that share a beginning get what each gets alone; the plan stays.

    As `eval/run.py` does it, on a converted model: two forks of a prefill, each with an end of its own, joined where
    the model can, of which one is padded; then a token is decoded.
    """
    refuse = f"{model.config.model_type} models cannot take {what}:"
    tokens, other = probe_tokens(model), probe_tokens(model, seed=1)
    shared, short = _PROBE_TOKENS // 2, _PROBE_TOKENS - 4
    prompts = [tokens, torch.cat([tokens[:, :shared], other[:, shared:short]], dim=1)]
    with refusing(ConversionError, refuse), inference(model):
        give_plan(model, plan)
        whole = [model(prompt, use_cache=False).logits[0] for prompt in prompts]
        tolerances = [_tolerance_in_pieces(model, *pair) for pair in zip(prompts, whole, strict=True)]
        _check_chunk(model, tokens, whole[0], tolerances[0], refuse)
        made = model(tokens, use_cache=True).past_key_values
        if not isinstance(made, SpanCache):
            raise ConversionError(f"{refuse} they make a cache of their own, a {type(made).__name__}")
        beginning = SpanCache(plan)
        prefill(model, tokens[:, :shared], beginning)
        forks = [beginning.fork() for _ in prompts]
        for prompt, cache in zip(prompts, forks, strict=True):
            prefill(model, prompt[:, shared:-1], cache)
        if can_join(model.config):
            found = _first_logits(model, prompts, join(forks, 2))
        else:
            found = torch.cat([_first_logits(model, [one], cache) for one, cache in zip(prompts, forks, strict=True)])
        for row, name in enumerate(("a fork is", "a padded row of a batch is")):
            check_close(found[row], whole[row][-1], tolerances[row], f"{refuse} decoding from {name}")


def probe_untouched(model: PreTrainedModel) -> None:
    """Raise `ConversionError` unless a model without a plan computes in chunks and in a fork what one pass gives.

    Some models ignore a cache that transformers makes for them, or start anew at each chunk.
    """
    refuse = f"{model.config.model_type} models cannot be run in pieces, which long and shared prompts need:"
    shared = _PROBE_TOKENS // 2
    with refusing(ConversionError, refuse), inference(model):
        tokens, expected = probe_logits(model)
        cache = new_cache(model, _PROBE_TOKENS)
        prefill(model, tokens[:, :shared], cache)
        if cache.get_seq_length() != shared:
            raise ConversionError(f"{refuse} they ignore the cache that they are given")
        tolerance = _tolerance_in_pieces(model, tokens, expected)
        _check_chunk(model, tokens, expected, tolerance, refuse)
        other = fork(cache, _PROBE_TOKENS)
        prefill(model, probe_tokens(model, seed=1)[:, shared:], other)
        prefill(model, tokens[:, shared:-1], cache)
        found = _first_logits(model, [tokens], cache)
    check_close(found[0], expected[-1], tolerance, f"{refuse} decoding from a fork is")


def _check_chunk(model: PreTrainedModel, tokens: Tensor, whole: Tensor, tolerance: float, refuse: str) -> None:
    """Raise `ConversionError` unless the second half of a prompt on a cache of the first has the logits of one pass.

    Of all its tokens, because some models forget their states where a chunk begins, which soon fades. `whole` is the
    (T, V) logits of one pass over the (1, T) tokens.
    """
    cache, half = new_cache(model, tokens.shape[1]), tokens.shape[1] // 2
    model(tokens[:, :half], past_key_values=cache, use_cache=True)
    found = model(tokens[:, half:], past_key_values=cache, use_cache=True).logits[0]
    check_close(found, whole[half:], tolerance, f"{refuse} a chunk on top of another is")


def _first_logits(model: PreTrainedModel, prompts: Sequence[Tensor], cache: Cache) -> Tensor:
    """Return (B, V) logits of the first token that `generate` decodes after prompts, as it pads them."""
    longest = max(prompt.shape[1] for prompt in prompts)
    padding = [longest - prompt.shape[1] for prompt in prompts]
    ids = torch.cat([functional.pad(prompt, (pad, 0)) for prompt, pad in zip(prompts, padding, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=ids.device)
    config = GenerationConfig(
        max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0
    )
    # What the checkpoint suggests would fill what is left open: beams, static caches, stop texts.
    suggested, model.generation_config = model.generation_config, GenerationConfig()
    try:
        made = model.generate(ids, attention_mask=mask, past_key_values=cache, generation_config=config)
    finally:
        model.generation_config = suggested
    logits: Tensor = made.logits[0]
    return logits


def probe_logits(model: PreTrainedModel, count: int = _PROBE_TOKENS) -> tuple[Tensor, Tensor]:
    """Return (1, count) random tokens, and their (count, V) logits.

    Raises:
        NumbersError: The logits of no tokens that were tried are numbers.
    """
    for seed in range(_PROBE_TRIES):  # one damaged embedding is found by the documents that need it
        tokens = probe_tokens(model, count, seed)
        logits = model(tokens, use_cache=False).logits[0]
        if bool(logits.isfinite().all()):
            return tokens, logits
    kind, dtype = model.config.model_type, dtype_name(model.dtype)
    raise NumbersError(f"the logits of this {kind} model on each of {_PROBE_TRIES} random texts", dtype)


def probe_tokens(model: PreTrainedModel, count: int = _PROBE_TOKENS, seed: int = 0) -> Tensor:
    """Return (1, count) random tokens, the same at each call."""
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (1, count), generator=generator).to(model.device)


def _decoded(model: PreTrainedModel, tokens: Tensor, plan: SpanPlan) -> Tensor:
    """Return the logits of the last token, on top of a cache of those before."""
    cache = SpanCache(plan)
    cache.fit(model.config.get_text_config(decoder=True))
    model(tokens[:, :-1], past_key_values=cache, use_cache=True)
    logits: Tensor = model(tokens[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
    return logits


def tolerance_of(logits: Tensor) -> float:
    """Return the largest difference that rounding explains."""
    return PROBE_TOLERANCE.get(logits.dtype, 1e-4) * max(1.0, float(logits.abs().max()))


def _tolerance_in_pieces(model: PreTrainedModel, tokens: Tensor, logits: Tensor) -> float:
    """Return the largest difference that rounding explains where a prompt goes through a model in pieces.

    States are summed up in fp32, in another order for a whole prompt than token by token. So where a model has any, it
    is as much as the model itself differs by, four times, within bounds. The (T, V) logits are of one pass.
    """
    tolerance = tolerance_of(logits)
    if not layers_with_states(model.config):
        return tolerance
    cache, own = new_cache(model, tokens.shape[1]), 0.0
    half = tokens.shape[1] // 2
    model(tokens[:, :half], past_key_values=cache, use_cache=True)
    for place in range(half, tokens.shape[1]):
        one = model(tokens[:, place : place + 1], past_key_values=cache, use_cache=True).logits[0, -1]
        own = max(own, 4 * float((one - logits[place]).abs().max()))
    return max(tolerance, min(own, _STATE_TOLERANCE * max(1.0, float(logits.abs().max()))))


def check_close(logits: Tensor, reference: Tensor, tolerance: float, what: str) -> None:
    """Raise `ConversionError` where logits differ by more than the tolerance."""
    difference = float((logits - reference).abs().max())
    if not difference <= tolerance:
        raise ConversionError(f"{what} {difference:.3g} off where rounding explains {tolerance:.3g}")
