"""Every architecture of the installed transformers is exact under spans, runs as it is, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, DynamicCache, GenerationConfig

from masformer import ConversionError, PlanError, SpanCache, SpanPlan, apply_plan, native_plan, prefill, read_plan
from masformer.attention.prefill import new_cache
from masformer.attention.visibility import SpanMask
from masformer.errors import NumbersError, SpanError
from masformer.plans.cost import attention_flops, cache_bytes
from masformer.plans.shapes import layer_shapes
from masformer.plans.spans import LayerSpan
from masformer.probe import probe_untouched
from tests.helpers.library import KINDS, WHOLES, examine, examine_whole, on_the_page, table
from tests.helpers.library_models import tiny_library_model

# In the gate: what was wrong once, and one of each sort.
OFTEN = ("diffllama", "gemma3n_text", "gemma4_text", "gemma4", "jetmoe", "modernbert-decoder", "mimo_v2_flash")
OFTEN += ("llama4_text", "deepseek_v3", "qwen3_next", "lfm2", "mamba", "jamba", "recurrent_gemma", "minimax", "bart")


WHOLES_OFTEN = ("mistral3", "llava", "qwen3_vl", "cohere2_vision", "glm4v", "git", "blip-2")


@pytest.mark.parametrize(
    "kind", [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.nightly) for kind in KINDS]
)
def test_an_architecture_is_exact_or_refused_as_its_page_says(kind: str) -> None:
    assert table([examine(kind)])[-1] == table([on_the_page(0)[kind]])[-1]


@pytest.mark.parametrize(
    "kind", [kind if kind in WHOLES_OFTEN else pytest.param(kind, marks=pytest.mark.nightly) for kind in WHOLES]
)
def test_a_model_that_also_sees_or_hears_is_opened_as_its_page_says(kind: str) -> None:
    assert table([examine_whole(kind)])[-1] == table([on_the_page(1)[kind]])[-1]


def test_the_page_has_every_architecture() -> None:
    assert tuple(on_the_page(0)) == KINDS
    assert tuple(on_the_page(1)) == WHOLES


def test_bytes_that_are_counted_wrong_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.helpers.library.cache_bytes", lambda *_: 1)
    with pytest.raises(AssertionError, match=r"llama under .*: 1 bytes counted, "):
        examine("llama")


def test_layers_that_share_keys_take_one_span() -> None:
    model = tiny_library_model("gemma3n_text")
    with pytest.raises(PlanError, match=r"layer 2 of this gemma3n_text model reads the keys of layer 0, and the plan"):
        read_plan("full@0 span=16", model.config)


@pytest.mark.parametrize("kind", ["mimo_v2_flash", "gemma3n_text", "gemma4_text", "llama4_text"])
def test_bytes_and_operations_are_those_of_each_layer(kind: str) -> None:
    model = tiny_library_model(kind)
    plan = apply_plan(model)
    cache = SpanCache(plan)
    with torch.no_grad():
        model(torch.arange(3, 63)[None], past_key_values=cache)
    assert cache_bytes(model.config, plan, 60, 8) == cache.num_bytes
    pairs = [span.num_pairs(60) for span in plan]  # type: ignore[union-attr]
    by_layer = [
        2 * shape.num_heads * (shape.query_size + shape.value_size) * count
        for shape, count in zip(layer_shapes(model.config), pairs, strict=True)
    ]
    assert attention_flops(model.config, plan, 60) == sum(by_layer)


def test_layers_that_store_nothing_have_no_bytes() -> None:
    config = tiny_library_model("gemma3n_text").config  # 4 layers, of which 2 read the keys of others
    one = cache_bytes(config, SpanPlan.full(4), 60, 1)
    assert one == 60 * 2 * 2 * (8 + 8)  # tokens, layers, heads, sizes


def test_chunks_of_llama_4_are_blocks() -> None:
    config = tiny_library_model("llama4_text", attention_chunk_size=16).config
    assert LayerSpan(block=16, previous=0, sinks=0) in native_plan(config)


@torch.no_grad()
def test_values_that_change_after_the_cache_stored_them_are_noticed() -> None:
    model = tiny_library_model("llama")
    cache = SpanCache(apply_plan(model, SpanPlan.full(4)))
    prefill(model, torch.arange(3, 20)[None], cache)
    fork = cache.fork()
    states = torch.randn(1, 2, 1, 8, dtype=torch.float64)
    keys, values = fork.update(states, states, 0)
    mask = SpanMask(offset=17, cache=fork)
    assert mask.seen_with(keys, values) is not None
    with pytest.raises(SpanError, match="changes values after the cache has stored them"):
        mask.seen_with(keys, values.clone())


@torch.no_grad()
def test_a_padded_cache_needs_its_mask_at_every_call() -> None:
    model = tiny_library_model("llama")
    apply_plan(model, SpanPlan.full(4))
    tokens, mask = torch.arange(3, 23).view(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[1, :4] = 0
    cache = model(tokens, attention_mask=mask, use_cache=True).past_key_values
    with pytest.raises(SpanError, match="the cache has padded rows; give every call the attention_mask"):
        model(tokens[:, :1], past_key_values=cache)


@torch.no_grad()
def test_an_error_after_the_probe_names_the_model_and_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_library_model("diffllama")
    model.config.name_or_path = "some/model"
    plan = apply_plan(model, SpanPlan.full(4))
    # As if nobody knew that it changes values.
    monkeypatch.setattr("masformer.attention.cache.changes_states", lambda config: False)
    cache = SpanCache(plan)
    prefill(model, torch.arange(3, 20)[None], cache)
    with pytest.raises(
        SpanError, match=r"^diffllama model some/model: .*report .*python -m masformer show some/model$"
    ):
        model(torch.tensor([[3]]), past_key_values=cache.fork())


@torch.no_grad()
def test_a_mistake_of_the_caller_asks_for_no_report() -> None:
    model = tiny_library_model("llama")
    apply_plan(model, SpanPlan.full(4))
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 0)
    with pytest.raises(
        SpanError, match=r"^llama model: a model with a span plan needs a SpanCache, got a DynamicCache$"
    ):
        model(torch.tensor([[3]]), past_key_values=cache)


@pytest.mark.parametrize("suggested", [{"num_beams": 4}, {"stop_strings": ["a"]}, {"cache_implementation": "static"}])
def test_what_a_checkpoint_suggests_for_generation_does_not_disturb_the_probe(suggested: dict[str, Any]) -> None:
    model = tiny_library_model("llama")
    model.generation_config = GenerationConfig(**suggested)
    probe_untouched(model)
    apply_plan(model)
    assert model.generation_config.to_diff_dict().items() >= suggested.items()


def test_heads_that_share_one_key_are_counted_as_one() -> None:
    falcon = CONFIG_MAPPING["falcon"](num_attention_heads=8, hidden_size=64, num_hidden_layers=2, multi_query=True)
    assert [shape.num_kv_heads for shape in layer_shapes(falcon)] == [1, 1]
    assert cache_bytes(falcon, SpanPlan.full(2), 20, 4) == 2 * 20 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("recurrent_gemma", "(decoding from a fork|a chunk on top of another) is"),
        ("jamba", "a chunk on top of another is"),
        ("rwkv", "they ignore the cache"),
    ],
)
def test_a_model_that_cannot_be_run_in_pieces_is_refused(kind: str, why: str) -> None:
    model = tiny_library_model(kind)
    with pytest.raises(ConversionError, match=f"^{kind} models cannot be run in pieces, which .*: .*{why}"):
        probe_untouched(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
def test_one_weight_of_attention_that_is_no_number_is_noticed(name: str, value: float) -> None:
    """With a plan and without, though attention of torch may hide it."""
    model = tiny_library_model("llama").float()
    with torch.no_grad():
        getattr(model.model.layers[1].self_attn, name).weight[3, 5] = value
    with pytest.raises(NumbersError, match="on each of 4 random texts are no numbers"):
        probe_untouched(model)
    with pytest.raises(NumbersError, match="on each of 4 random texts are no numbers"):
        apply_plan(model)


@pytest.mark.parametrize("kind", ["qwen3_next", "minimax"])
def test_a_hybrid_without_a_plan_runs_in_pieces(kind: str) -> None:
    model = tiny_library_model(kind)
    probe_untouched(model)
    assert isinstance(new_cache(model, 10), DynamicCache)
