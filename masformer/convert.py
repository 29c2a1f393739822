"""Put a span plan on a model and take it off.

    plan = read_plan("middle:8 span=1024 sinks=4", model.config)
    apply_plan(model, plan)          # weights are not touched
    remove_plan(model)               # exactly the model it was
    save_checkpoint(model, tokenizer, "smollm2-mas")                  # masformer/checkpoints/saving.py
    apply_plan(AutoModelForCausalLM.from_pretrained("smollm2-mas"))   # the stored plan; without this: full attention

Each conversion proves itself on a few random tokens, because transformers accepts an attention function for
architectures that never call it: every layer must call ours, the model's own spans must give the untouched logits, a
short span must change them, and decoding through the cache must equal one pass. Before the first plan with spans of
single heads, these must be what changes the logits, and decode as in one pass too.
"""

from __future__ import annotations

import inspect
import json
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from masformer.adapters import adapt, layer_of, set_attention, unadapt
from masformer.attention.cache import SpanCache
from masformer.attention.joined import can_join, join
from masformer.attention.kernels import ATTENTION_NAME, masformer_attention, register
from masformer.attention.prefill import prefill
from masformer.attention.visibility import span_mask
from masformer.errors import NumbersError, SpanError, first_line
from masformer.plans.shapes import changes_states, num_kv_heads, shared_layers
from masformer.plans.spans import FULL, HeadSpans, LayerSpan, PlanError, SpanPlan

# The largest difference of the probe's logits that rounding explains, relative to the largest logit.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
_PROBE_NAME = "masformer_probe"
_PROBE_TOKENS = 24
# Texts that are tried until one has logits that are numbers.
_PROBE_TRIES = 4
_PROBE_WINDOW = 5
_PROBE_SHORT = LayerSpan(span=2, sinks=1)


class ConversionError(ValueError):
    """An architecture on which spans would not do what they say."""


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the decoder's part of a config."""
    return config.get_text_config(decoder=True)


def num_layers(config: PreTrainedConfig) -> int:
    """Return the number of decoder layers."""
    return int(text_config(config).num_hidden_layers)


def read_plan(text: str, config: PreTrainedConfig) -> SpanPlan:
    """Return the plan that a person gives for a model, as text or in a .json file.

    The file holds what `SpanPlan.to_json` returns, alone or as `plan` of an object.

    Raises:
        PlanError: It is malformed or does not fit the model, or the file cannot be read.
    """
    if text.endswith(".json"):
        plan = _plan_in_file(text)
    else:
        plan = SpanPlan.parse(text, num_layers(config), num_kv_heads(config))
    check_fits(plan, config)
    return plan


def _plan_in_file(name: str) -> SpanPlan:
    try:
        stored = json.loads(Path(name).read_text(encoding="utf-8"))
        if isinstance(stored, dict):
            if "plan" not in stored:
                raise PlanError("it holds an object without 'plan'")
            stored = stored["plan"]
        return SpanPlan.from_json(stored)
    except OSError as error:
        raise PlanError(f"plan file '{name}' cannot be read: {error.strerror or error}; give another") from None
    except PlanError as error:
        raise PlanError(f"plan file '{name}': {error}") from None
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan file '{name}' is no JSON: {error}") from None


def check_fits(plan: SpanPlan, config: PreTrainedConfig) -> None:
    """Raise `PlanError` for a plan with other layers or heads than the model's."""
    plan.check_fits(num_layers(config), config.model_type, num_kv_heads(config))
    if plan.num_heads is not None and changes_states(config):
        raise PlanError(
            f"span plan has spans of single heads, and {config.model_type} computes keys or values of all heads from "
            "what it keeps; give whole layers"
        )
    for layer, producer in shared_layers(config).items():
        if plan[layer] != plan[producer]:
            raise PlanError(
                f"layer {layer} of this {config.model_type} model reads the keys of layer {producer}, and the plan "
                f"gives them '{plan[layer]}' and '{plan[producer]}'; give both the same"
            )


def stored_plan(config: PreTrainedConfig) -> SpanPlan | None:
    """Return the plan in a config, or None. Raises `PlanError` if it is malformed or does not fit the model."""
    stored = getattr(config, "masformer", None)
    if stored is None:
        return None
    if not isinstance(stored, dict) or "plan" not in stored:
        raise PlanError(f"config.json: 'masformer' holds {reprlib.repr(stored)}, an object with 'plan' was expected")
    plan = SpanPlan.from_json(stored["plan"])
    check_fits(plan, config)
    return plan


def native_plan(config: PreTrainedConfig) -> SpanPlan:
    """Return the spans that the architecture itself gives its layers. Raises `PlanError` if no span describes one."""
    config = text_config(config)
    count = int(config.num_hidden_layers)
    if hasattr(config, "attention_layers"):  # GPT-Neo
        window, names = config.window_size, {"global": "full_attention", "local": "sliding_attention"}
        kinds = [names.get(kind, kind) for kind in config.attention_layers]
    else:
        # A config.json may name a window that its architecture does not read: then neither the kinds of its layers nor
        # its class know of it. A class from elsewhere is believed.
        window = getattr(config, "sliding_window", None)
        known = hasattr(type(config), "sliding_window") or not type(config).__module__.startswith("transformers.")
        of_all = "sliding_attention" if window and known else "full_attention"
        kinds = list(getattr(config, "layer_types", None) or [of_all] * count)
    spans = []
    for layer, kind in enumerate(kinds):
        if kind == "full_attention":
            spans.append(FULL)
        elif kind == "sliding_attention" and window:
            spans.append(LayerSpan(span=int(window)))
        else:
            raise PlanError(
                f"layer {layer} of this {config.model_type} model is of kind '{kind}', which no span describes"
            )
    plan = SpanPlan(tuple(spans))
    plan.check_fits(count, config.model_type)
    return plan


def apply_plan(model: PreTrainedModel, plan: SpanPlan | None = None) -> SpanPlan:
    """Give each layer of the model the span that the plan says, in place, and return the plan.

    From then on the model's caches are `SpanCache`s, those that `generate` makes included. A converted model may be
    given another plan at any time.

    Without a plan, the one stored in the model's config is taken, else the spans of its architecture.

    Raises:
        PlanError: The plan does not fit the model.
        ConversionError: The architecture does not pass the probe; the model is left as it was.
    """
    if plan is None:
        plan = stored_plan(model.config) or native_plan(model.config)
    check_fits(plan, model.config)
    former_plan: SpanPlan | None = getattr(model, "span_plan", None)
    if former_plan is None:
        _probe(model)
        register()
        former = (model.config._attn_implementation, getattr(model.config, "masformer", None))
        set_attention(model, ATTENTION_NAME)
        # On the decoder, which every way of calling the model goes through.
        hook = decoder_of(model).register_forward_pre_hook(_prepare_cache, with_kwargs=True)
        adapt(model)
        model.masformer_former = (*former, hook)
    try:
        if former_plan is None:
            _probe_serving(model, _alternating(model.config), "spans")
        if plan.num_heads is not None and not hasattr(model, "proven_heads"):
            _probe_heads(model, plan.num_heads)
            model.proven_heads = True
    except (ConversionError, NumbersError):
        if former_plan is None:
            remove_plan(model)
        else:
            _give(model, former_plan)
        raise
    _give(model, plan)
    return plan


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a model that every way of calling it goes through, and that takes a cache."""
    decoder = model.get_decoder()
    # That of modernbert-decoder is the head over the vocabulary.
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model


def _give(model: PreTrainedModel, plan: SpanPlan) -> None:
    """Set the spans of a model that is converted."""
    _set_spans(model, plan)
    model.span_plan = decoder_of(model).span_plan = plan
    model.config.masformer = {"plan": plan.to_json()}


def remove_plan(model: PreTrainedModel) -> None:
    """Make a converted model the one it was before, in place."""
    if not hasattr(model, "masformer_former"):
        return
    attention, stored, hook = model.masformer_former
    hook.remove()
    unadapt(model)
    set_attention(model, attention)
    _clear_spans(model)
    if hasattr(model, "span_plan"):  # unless the probe has failed before any plan was given
        del model.span_plan, model.config.masformer
    del model.masformer_former
    if hasattr(model, "proven_heads"):
        del model.proven_heads
    if hasattr(decoder_of(model), "span_plan"):
        del decoder_of(model).span_plan
    if stored is not None:
        model.config.masformer = stored


def _set_spans(model: nn.Module, plan: SpanPlan) -> None:
    for module in model.modules():
        layer = layer_of(module)
        if layer is not None and layer < len(plan):
            module.layer_span = plan[layer]  # type: ignore[assignment]


def _clear_spans(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "layer_span"):
            del module.layer_span


def _prepare_cache(decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before each forward pass: see that the cache is a `SpanCache` of the plan and knows the padding."""
    if args:
        kwargs = {**inspect.signature(decoder.forward).bind_partial(*args).arguments, **kwargs}
    cache, mask, plan = kwargs.get("past_key_values"), kwargs.get("attention_mask"), decoder.span_plan
    if cache is None:
        use_cache = kwargs.get("use_cache")
        if decoder.training or not (decoder.config.use_cache if use_cache is None else use_cache):
            return (), {**kwargs, "use_cache": False}
        cache = SpanCache(plan)
    elif type(cache) is DynamicCache and cache.get_seq_length() == 0:
        # In place, because the caller goes on with the object that it gave.
        cache.__class__ = SpanCache
        cache.__dict__ = SpanCache(plan).__dict__
    elif not isinstance(cache, SpanCache):
        error = SpanError(f"a model with a span plan needs a SpanCache, got a {type(cache).__name__}")
        raise error.of(decoder.config)
    if cache.plan != plan:
        error = SpanError(f"the cache was made for the plan '{cache.plan}', the model has '{plan}'")
        raise error.of(decoder.config)
    cache.copies_forks, cache.config = changes_states(decoder.config), decoder.config
    try:
        cache.set_padding(mask)
    except SpanError as error:
        raise error.of(decoder.config) from error
    return (), {**kwargs, "past_key_values": cache}


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


def _probe(model: PreTrainedModel) -> None:
    """Raise `ConversionError` unless, on random tokens, a plan does what it says; leave the model as it was."""
    kind, count = model.config.model_type, num_layers(model.config)
    own = native_plan(model.config)
    called: set[int] = set()

    def counting(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        called.add(-1 if (layer := layer_of(module)) is None else layer)
        return masformer_attention(module, *args, **kwargs)

    config = text_config(model.config)
    # Windows are far longer than the probe; shortened to this, a model that ignores them shows itself.
    window = None if own.is_full else getattr(config, "sliding_window", None)
    if window is not None:
        own = SpanPlan(tuple(FULL if span.is_full else LayerSpan(span=_PROBE_WINDOW) for span in own))
    restores = model.config._attn_implementation
    short = SpanPlan((_PROBE_SHORT,) * count)
    refuse = f"{kind} models cannot take a span plan:"
    adapt(model)
    try:
        with inference(model):
            if window is not None:
                config.sliding_window = _PROBE_WINDOW
                if restores != "eager":
                    # Flash attention takes the window that each module copied; these take the mask's.
                    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
            tokens, untouched = probe_logits(model)
            untouched = untouched[-1]
            tolerance = tolerance_of(untouched)
            AttentionInterface.register(_PROBE_NAME, counting)
            AttentionMaskInterface.register(_PROBE_NAME, span_mask)
            set_attention(model, _PROBE_NAME)
            _set_spans(model, own)
            same = model(tokens, use_cache=False).logits[0, -1]
            missing = set(range(count)) - called
            if missing:
                raise ConversionError(
                    f"{refuse} {len(missing)} of {count} layers never call the attention function given to "
                    "transformers, and would go on with full attention"
                )
            check_close(same, untouched, tolerance, f"{refuse} with their own spans the logits are")
            _set_spans(model, short)
            changed = model(tokens, use_cache=False).logits[0, -1]
            if torch.equal(changed, same):
                raise ConversionError(f"{refuse} a span of 2 changes nothing in their logits")
            check_close(_decoded(model, tokens, short), changed, tolerance, f"{refuse} decoding through the cache is")
    except (ConversionError, NumbersError):
        raise
    except Exception as error:
        raise ConversionError(f"{refuse} {first_line(error)}") from error
    finally:
        if window is not None:
            config.sliding_window = window
        set_attention(model, restores)
        _clear_spans(model)
        unadapt(model)


def _probe_heads(model: PreTrainedModel, num_heads: int) -> None:
    """Raise `ConversionError` unless spans of single heads do what they say on a converted model; its plan is lost."""
    one = SpanPlan((HeadSpans((FULL, *(_PROBE_SHORT,) * (num_heads - 1))),) * num_layers(model.config))
    refuse = f"{model.config.model_type} models cannot take spans of single heads:"
    tokens, found = probe_tokens(model), []
    try:
        with inference(model):
            for plan in (SpanPlan.full(len(one)), SpanPlan((_PROBE_SHORT,) * len(one)), one):
                _give(model, plan)
                found.append(model(tokens, use_cache=False).logits[0, -1])
            *alike, mixed = found
            if any(torch.equal(mixed, logits) for logits in alike):
                raise ConversionError(f"{refuse} one full head among short ones changes nothing in their logits")
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(f"{refuse} {first_line(error)}") from error
    _probe_serving(model, one, "spans of single heads")


def _alternating(config: PreTrainedConfig) -> SpanPlan:
    """Return a plan in which every second layer sees everything; layers that share keys see alike."""
    spans: list[LayerSpan] = [(_PROBE_SHORT, FULL)[layer % 2] for layer in range(num_layers(config))]
    for layer, producer in shared_layers(config).items():
        spans[layer] = spans[producer]
    return SpanPlan(tuple(spans))


def _probe_serving(model: PreTrainedModel, plan: SpanPlan, what: str) -> None:
    """Raise `ConversionError` unless prompts that share a beginning get what each gets alone; the plan stays.

    As `eval/run.py` does it, on a converted model: two forks of a prefill, each with an end of its own, joined where
    the model can, of which one is padded; then a token is decoded.
    """
    refuse = f"{model.config.model_type} models cannot take {what}:"
    tokens, other = probe_tokens(model), probe_tokens(model, seed=1)
    shared, short = _PROBE_TOKENS // 2, _PROBE_TOKENS - 4
    prompts = [tokens, torch.cat([tokens[:, :shared], other[:, shared:short]], dim=1)]
    try:
        with inference(model):
            _give(model, plan)
            expected = torch.cat([model(prompt, use_cache=False).logits[:, -1] for prompt in prompts])
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
                found = torch.cat(
                    [_first_logits(model, [one], cache) for one, cache in zip(prompts, forks, strict=True)]
                )
            for row, name in enumerate(("a fork is", "a padded row of a batch is")):
                check_close(found[row], expected[row], tolerance_of(expected[row]), f"{refuse} decoding from {name}")
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(f"{refuse} {first_line(error)}") from error


def _first_logits(model: PreTrainedModel, prompts: Sequence[Tensor], cache: SpanCache) -> Tensor:
    """Return (B, V) logits of the first token that `generate` decodes after prompts, as it pads them."""
    longest = max(prompt.shape[1] for prompt in prompts)
    padding = [longest - prompt.shape[1] for prompt in prompts]
    ids = torch.cat([functional.pad(prompt, (pad, 0)) for prompt, pad in zip(prompts, padding, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=ids.device)
    config = GenerationConfig(
        max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0
    )
    made = model.generate(ids, attention_mask=mask, past_key_values=cache, generation_config=config)
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
    dtype = str(model.dtype).removeprefix("torch.")
    kind = model.config.model_type
    raise NumbersError(f"the logits of this {kind} model on each of {_PROBE_TRIES} random texts", dtype)


def probe_tokens(model: PreTrainedModel, count: int = _PROBE_TOKENS, seed: int = 0) -> Tensor:
    """Return (1, count) random tokens, the same at each call."""
    vocabulary, generator = int(text_config(model.config).vocab_size), torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (1, count), generator=generator).to(model.device)


def _decoded(model: PreTrainedModel, tokens: Tensor, plan: SpanPlan) -> Tensor:
    """Return the logits of the last token, on top of a cache of those before."""
    cache = SpanCache(plan)
    model(tokens[:, :-1], past_key_values=cache, use_cache=True)
    logits: Tensor = model(tokens[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
    return logits


def tolerance_of(logits: Tensor) -> float:
    """Return the largest difference that rounding explains."""
    return PROBE_TOLERANCE.get(logits.dtype, 1e-4) * max(1.0, float(logits.abs().max()))


def check_close(logits: Tensor, reference: Tensor, tolerance: float, what: str) -> None:
    """Raise `ConversionError` where logits differ by more than the tolerance."""
    difference = float((logits - reference).abs().max())
    if not difference <= tolerance:
        raise ConversionError(f"{what} {difference:.3g} off where rounding explains {tolerance:.3g}")
