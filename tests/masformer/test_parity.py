"""Every supported architecture computes what its plan says: parity with the untouched model and a dense reference."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    StaticCache,
)
from transformers.masking_utils import AttentionMaskInterface

from masformer import (
    ConversionError,
    LayerSpan,
    PlanError,
    SpanCache,
    SpanPlan,
    apply_plan,
    native_plan,
    remove_plan,
)
from masformer.adapters import set_attention
from masformer.attention import kernels as attention
from masformer.attention.kernels import dense_attention
from masformer.attention.visibility import SpanMask, span_mask, visible_keys
from masformer.plans.spans import FULL, HeadSpans
from tests.helpers.tiny_models import BY_HEAD, LAYERS, REFUSED, SUPPORTED, VOCAB, plan_by_head, tiny_model

TOLERANCE = 1e-5  # fp32
NUM_TOKENS = 90
MIXED = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2)))
PADDING = [0, 11, 37]


def tokens(batch: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, (batch, NUM_TOKENS), generator=torch.Generator().manual_seed(1))


def padded_inputs() -> dict[str, Tensor]:
    mask = torch.ones(len(PADDING), NUM_TOKENS, dtype=torch.long)
    for row, pad in enumerate(PADDING):
        mask[row, :pad] = 0
    return {
        "input_ids": tokens(len(PADDING)),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }


def real(logits: Tensor) -> Tensor:
    return torch.cat([logits[row, pad:] for row, pad in enumerate(PADDING)])


def dense_reference(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: SpanMask,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    pad = torch.zeros(len(query), dtype=torch.long) if attention_mask.padding is None else attention_mask.padding
    positions = torch.arange(query.shape[2])[None] - pad[:, None]
    span: Any = module.layer_span
    spans = span.heads if isinstance(span, HeadSpans) else (span,) * key.shape[1]
    visible = torch.stack([visible_keys(positions, positions, each) for each in spans], dim=1)  # (B, K, T, T)
    visible = visible.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    out = dense_attention(query, key, value, visible, scaling, softcap=softcap, learned_sinks=s_aux)
    return out.transpose(1, 2), None


each_supported = pytest.mark.parametrize("kind", list(SUPPORTED))
PLANNED = [(kind, False, kind) for kind in SUPPORTED] + [(kind, True, f"{kind} by head") for kind in BY_HEAD]
each_planned = pytest.mark.parametrize(
    ("kind", "by_head"), [pytest.param(kind, by_head, id=name) for kind, by_head, name in PLANNED]
)
# Plain, with learned sinks, with windows of its own and without rotary positions: these are tried with everything.
OF_EACH_SORT = ("llama", "gpt_oss", "gemma3_text", "gpt2")


def planned_with(name: str, values: dict[str, Any], usual: str) -> pytest.MarkDecorator:
    """Try each architecture with the usual value, one of each sort with all; the rest is a matter of the night."""
    return pytest.mark.parametrize(
        ("kind", "by_head", name),
        [
            pytest.param(
                *(kind, by_head, value),
                id=f"{ident}-{planned}",
                marks=[] if ident == usual or kind in OF_EACH_SORT else pytest.mark.nightly,
            )
            for ident, value in values.items()
            for kind, by_head, planned in PLANNED
        ],
    )


def converted(kind: str, by_head: bool, **changes: Any) -> tuple[PreTrainedModel, SpanPlan]:
    model = tiny_model(kind, **changes)
    return model, apply_plan(model, plan_by_head(model.config) if by_head else MIXED)


@torch.no_grad()
@each_supported
def test_own_plan_gives_the_untouched_logits(kind: str) -> None:
    model = tiny_model(kind)
    inputs = padded_inputs()
    right = {"input_ids": tokens(2), "attention_mask": torch.ones(2, NUM_TOKENS, dtype=torch.long)}
    right["attention_mask"][1, 70:] = 0
    alone, padded, shorter = model(tokens()).logits, model(**inputs).logits, model(**right).logits[1, :70]
    plan = apply_plan(model)
    assert plan == native_plan(model.config)
    torch.testing.assert_close(model(tokens()).logits, alone, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(real(model(**inputs).logits), real(padded), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(model(**right).logits[1, :70], shorter, atol=TOLERANCE, rtol=0)
    remove_plan(model)
    assert torch.equal(model(tokens()).logits, alone)
    assert not hasattr(model.config, "masformer")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mistral", "ministral", "gemma3_text"])
def test_full_plan_removes_the_models_own_windows(kind: str) -> None:
    model, wide = tiny_model(kind), tiny_model(kind, sliding_window=10_000)
    windowed = model(tokens()).logits
    apply_plan(model, SpanPlan.full(LAYERS))
    torch.testing.assert_close(model(tokens()).logits, wide(tokens()).logits, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(windowed, wide(tokens()).logits, atol=1e-3)


@torch.no_grad()
@each_planned
def test_mixed_spans_equal_the_dense_reference(kind: str, by_head: bool) -> None:
    full = tiny_model(kind)(tokens()).logits
    model, _ = converted(kind, by_head)
    alone, padded = model(tokens()).logits, model(**padded_inputs()).logits
    assert not torch.allclose(alone, full, atol=1e-4)
    AttentionInterface.register("dense_reference", dense_reference)
    AttentionMaskInterface.register("dense_reference", span_mask)
    set_attention(model, "dense_reference")
    torch.testing.assert_close(alone, model(tokens(), use_cache=False).logits, atol=TOLERANCE, rtol=0)
    reference = model(**padded_inputs(), use_cache=False).logits
    torch.testing.assert_close(real(padded), real(reference), atol=TOLERANCE, rtol=0)


@torch.no_grad()
@each_planned
@pytest.mark.parametrize("steps", [(40, *[1] * 50), (1, 38, 1, 1, 29, 20)], ids=["decode", "chunks"])
def test_cached_equals_uncached(kind: str, by_head: bool, steps: tuple[int, ...]) -> None:
    model, plan = converted(kind, by_head)
    once = model(tokens(), use_cache=False).logits
    cache = SpanCache(plan)
    parts = [model(part, past_key_values=cache).logits for part in tokens().split(steps, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), once, atol=TOLERANCE, rtol=0)
    assert cache.layers[0].parts[-1].keys.shape[2] == 17 + 3
    assert cache.layers[2].parts[0].keys.shape[2] == 16 + 2


@torch.no_grad()
@planned_with(
    "steps",
    {"decode": (40, *[1] * 50), "chunks": (39, 1, 30, 20), "all padding at first": (8, 8, 1, 22, 40, 11)},
    "chunks",
)
def test_cached_equals_uncached_with_left_padding(kind: str, by_head: bool, steps: tuple[int, ...]) -> None:
    model, plan = converted(kind, by_head)
    inputs = padded_inputs()
    once = model(**inputs, use_cache=False).logits
    cache, parts, seen = SpanCache(plan), [], 0
    for step in steps:
        part = slice(seen, seen + step)
        seen += step
        parts.append(
            model(
                inputs["input_ids"][:, part],
                attention_mask=inputs["attention_mask"][:, :seen],
                position_ids=inputs["position_ids"][:, part],
                past_key_values=cache,
            ).logits
        )
    torch.testing.assert_close(real(torch.cat(parts, dim=1)), real(once), atol=TOLERANCE, rtol=0)
    for row, pad in enumerate(PADDING):
        alone = model(inputs["input_ids"][row : row + 1, pad:], use_cache=False).logits[0]
        torch.testing.assert_close(once[row, pad:], alone, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@planned_with(
    "options",
    {
        "greedy": {},
        "beams": {"num_beams": 3},
        "sampling": {"do_sample": True},
        "prefill in chunks": {"prefill_chunk_size": 20},
    },
    "greedy",
)
def test_generate_uses_a_span_cache(kind: str, by_head: bool, options: dict[str, Any]) -> None:
    # Large weights, so that what is read far away changes what is written.
    model, _ = converted(kind, by_head, initializer_range=0.4)
    inputs = {name: value for name, value in padded_inputs().items() if name != "position_ids"}
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    torch.manual_seed(0)
    cached = model.generate(**inputs, **settings, return_dict_in_generate=True)
    assert isinstance(cached.past_key_values, SpanCache)
    torch.manual_seed(0)
    uncached = model.generate(**inputs, **(settings | {"prefill_chunk_size": None}), use_cache=False)
    assert torch.equal(cached.sequences, uncached)


@torch.no_grad()
def test_a_mask_that_pads_otherwise_than_when_the_cache_was_filled_is_refused() -> None:
    model = tiny_model("llama")
    apply_plan(model, MIXED)
    inputs = padded_inputs()
    cache = SpanCache(MIXED)
    model(inputs["input_ids"][:, :40], past_key_values=cache)
    with pytest.raises(ValueError, match=r"attention_mask pads rows by \["):
        model(inputs["input_ids"][:, 40:], attention_mask=inputs["attention_mask"], past_key_values=cache)


PACKED = torch.cat([torch.arange(31), torch.arange(NUM_TOKENS - 31)])[None]


@torch.no_grad()
@each_planned
def test_packed_documents_do_not_see_each_other(kind: str, by_head: bool) -> None:
    model, _ = converted(kind, by_head)
    packed = tokens(2)
    logits = model(packed, position_ids=PACKED, use_cache=False).logits
    first, second = model(packed[:, :31]).logits, model(packed[:, 31:]).logits
    torch.testing.assert_close(logits, torch.cat([first, second], dim=1), atol=TOLERANCE, rtol=0)


def test_packed_documents_with_padding_or_a_cache_are_refused() -> None:
    model = tiny_model("llama")
    apply_plan(model, MIXED)
    mask = torch.ones(2, NUM_TOKENS, dtype=torch.long)
    mask[0, :5] = 0
    with pytest.raises(ValueError, match="packed documents"):
        model(tokens(2), position_ids=PACKED.expand(2, -1), attention_mask=mask)
    cache = SpanCache(MIXED)
    model(tokens(), past_key_values=cache)
    with pytest.raises(ValueError, match="packed documents"):
        model(tokens(), position_ids=PACKED, past_key_values=cache)
    with pytest.raises(ValueError, match="packed documents"):
        model(tokens(), position_ids=torch.arange(NUM_TOKENS)[None], past_key_values=cache)


@torch.no_grad()
def test_a_cache_that_the_user_made_is_filled() -> None:
    model = tiny_model("llama")
    apply_plan(model, MIXED)
    cache = DynamicCache()
    first = model(tokens()[:, :50], past_key_values=cache).logits
    second = model(tokens()[:, 50:], past_key_values=cache).logits
    assert cache.get_seq_length() == NUM_TOKENS
    expected = model(tokens(), use_cache=False).logits
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@each_supported
def test_the_inner_model_keeps_spans_and_padding_too(kind: str) -> None:
    model = tiny_model(kind)
    apply_plan(model, MIXED)
    inputs = padded_inputs()
    whole = model.base_model(**inputs, use_cache=False).last_hidden_state
    first = {name: value[:, :60] for name, value in inputs.items()}
    out = model.base_model(**first, use_cache=True)
    rest = {"input_ids": inputs["input_ids"][:, 60:], "position_ids": inputs["position_ids"][:, 60:]}
    more = model.base_model(**rest, attention_mask=inputs["attention_mask"], past_key_values=out.past_key_values)
    assert isinstance(out.past_key_values, SpanCache)
    cached = torch.cat([out.last_hidden_state, more.last_hidden_state], dim=1)
    torch.testing.assert_close(real(cached), real(whole), atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "granite", "olmo2", "gpt_neox"])
def test_a_window_that_the_architecture_does_not_read_is_no_plan(kind: str) -> None:
    model = tiny_model(kind, sliding_window=40)
    untouched = model(tokens()).logits
    assert native_plan(model.config).is_full
    apply_plan(model)
    torch.testing.assert_close(model(tokens()).logits, untouched, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mistral", "ministral", "gemma3_text", "qwen2", "qwen3", "phi3", "starcoder2"])
def test_windows_longer_than_the_probe_are_the_models_own(kind: str) -> None:
    changes: dict[str, Any] = {"sliding_window": 40}
    if kind.startswith("qwen"):
        changes |= {"use_sliding_window": True, "max_window_layers": 1}
    model = tiny_model(kind, **changes)
    untouched = model(tokens()).logits
    plan = apply_plan(model)
    assert not plan.is_full
    torch.testing.assert_close(model(tokens()).logits, untouched, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_decoder_inside_a_multimodal_model() -> None:
    text = SUPPORTED["gemma3_text"]
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=1
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    inputs = padded_inputs()
    untouched = model(**inputs).logits
    apply_plan(model)
    torch.testing.assert_close(real(model(**inputs).logits), real(untouched), atol=TOLERANCE, rtol=0)
    apply_plan(model, MIXED)
    inputs.pop("position_ids")
    cached = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
    uncached = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=False)
    assert torch.equal(cached, uncached)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_bfloat16_stays_near(kind: str) -> None:
    model = tiny_model(kind).bfloat16()
    untouched = model(tokens()).logits
    apply_plan(model)
    torch.testing.assert_close(model(tokens()).logits, untouched, atol=2e-2, rtol=0)


@pytest.mark.parametrize("kind", list(REFUSED))
def test_architectures_that_ignore_spans_are_refused_by_name_and_left_alone(kind: str) -> None:
    model = tiny_model(kind)
    with torch.no_grad():
        before = model(tokens()).logits
    with pytest.raises(ConversionError, match=rf"^{kind} models cannot take a span plan: \S"):
        apply_plan(model, SpanPlan.full(LAYERS))
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, before)


@torch.no_grad()
@pytest.mark.parametrize("kind", BY_HEAD)
def test_spans_of_heads_go_on_and_off_and_between_other_plans(kind: str) -> None:
    model = tiny_model(kind)
    untouched = model(tokens(), use_cache=False).logits
    apply_plan(model, MIXED)
    mixed = model(tokens(), use_cache=False).logits
    plan = apply_plan(model, plan_by_head(model.config))
    by_head = model(tokens(), use_cache=False).logits
    assert not torch.allclose(by_head, mixed, atol=1e-4)
    apply_plan(model, MIXED)
    assert torch.equal(model(tokens(), use_cache=False).logits, mixed)
    remove_plan(model)
    assert torch.equal(model(tokens(), use_cache=False).logits, untouched)
    apply_plan(model, plan)
    assert torch.equal(model(tokens(), use_cache=False).logits, by_head)


@pytest.mark.parametrize("kind", BY_HEAD)
def test_gradients_under_spans_of_heads_are_those_of_the_dense_reference(kind: str) -> None:
    model, _ = converted(kind, by_head=True)
    model.train()
    AttentionInterface.register("dense_reference", dense_reference)
    AttentionMaskInterface.register("dense_reference", span_mask)
    found = []
    for name in ("masformer", "dense_reference"):
        set_attention(model, name)
        model.zero_grad()
        torch.manual_seed(0)
        model(tokens(2), labels=tokens(2)).loss.backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("before", [None, MIXED])
def test_heads_that_a_model_does_not_tell_apart_are_refused_and_it_is_left_alone(
    before: SpanPlan | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    if before is not None:
        apply_plan(model, before)
    logits = model(tokens(), use_cache=False).logits
    # As if the heads of all layers were one.
    monkeypatch.setattr(
        attention, "attend_by_head", lambda attend, q, k, v, spans, sinks, seen: attend(q, k, v, FULL, sinks, None)
    )
    with pytest.raises(ConversionError, match=r"^llama models cannot take spans of single heads: one full head among"):
        apply_plan(model, plan_by_head(model.config))
    assert getattr(model, "span_plan", None) == before
    assert torch.equal(model(tokens(), use_cache=False).logits, logits)


def test_spans_of_heads_that_do_not_fit_are_refused() -> None:
    plan = plan_by_head(tiny_model("gpt_neox").config)
    with pytest.raises(
        PlanError, match="span plan has 4 key/value heads in layer 0, llama has 2; give one entry a head"
    ):
        apply_plan(tiny_model("llama"), plan)
    with pytest.raises(PlanError, match="spans of single heads, and deepseek_v3 computes keys or values of all heads"):
        apply_plan(tiny_model("deepseek_v3"), plan)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt_neo"])
@pytest.mark.parametrize("by_head", [False, True])
def test_copies_and_pickles_of_a_converted_model_stand_on_their_own(kind: str, by_head: bool) -> None:
    model, _ = converted(kind, by_head)
    expected = model(tokens(2), position_ids=PACKED, use_cache=False).logits
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    remove_plan(model)
    untouched = model(tokens(2), use_cache=False).logits
    for other in copies:
        assert torch.equal(other(tokens(2), position_ids=PACKED, use_cache=False).logits, expected)
        remove_plan(other)
        assert torch.equal(other(tokens(2), use_cache=False).logits, untouched)


def test_a_plan_of_another_length_is_refused() -> None:
    with pytest.raises(PlanError, match="span plan has 5 layers, llama has 3"):
        apply_plan(tiny_model("llama"), SpanPlan.full(5))


def test_other_caches_and_masks_are_refused() -> None:
    model = tiny_model("llama")
    apply_plan(model, MIXED)
    with pytest.raises(ValueError, match="needs a SpanCache, got a StaticCache"):
        model(tokens(), past_key_values=StaticCache(model.config, max_cache_len=NUM_TOKENS))
    with pytest.raises(ValueError, match="was made for the plan 'full'"):
        model(tokens(), past_key_values=SpanCache(SpanPlan.full(LAYERS)))
    with pytest.raises(ValueError, match="4D masks"):
        model(tokens(), attention_mask=torch.ones(1, 1, NUM_TOKENS, NUM_TOKENS, dtype=torch.bool))
    mask = torch.ones(1, NUM_TOKENS, dtype=torch.long)
    mask[0, 5] = 0
    with pytest.raises(ValueError, match="pad on the left"):
        model(tokens(), attention_mask=mask)


def test_a_plan_that_came_with_the_config_is_there_again_after_it_was_taken_off() -> None:
    model = tiny_model("llama")
    model.config.masformer = {"plan": MIXED.to_json()}
    assert apply_plan(model) == MIXED
    apply_plan(model, SpanPlan.full(LAYERS))
    remove_plan(model)
    assert model.config.masformer == {"plan": MIXED.to_json()}
