"""The native form of a plan: what transformers then computes by itself, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from eval.runtime.model import resolve_plan
from masformer import ConversionError, SpanPlan, apply_plan, native_plan, save_checkpoint, stored_plan
from masformer.__main__ import main
from masformer.checkpoints import native
from masformer.checkpoints.native import ANY_LAYER, native_config
from masformer.checkpoints.open import open_checkpoint
from masformer.checkpoints.saving import checkpoint_files
from masformer.plans.spans import FULL, LayerSpan
from tests.helpers.library import tiny_library_model
from tests.helpers.tiny_models import LAYERS, save_tiny_checkpoint, tiny_model, tiny_tokenizer

WINDOW = LayerSpan(span=9)
MIXED = SpanPlan((WINDOW, FULL, WINDOW, WINDOW))
ALL = SpanPlan((WINDOW,) * 4)
PLAN = "full@1 span=16 sinks=0"
# In the gate: one that names another type, one with a switch of its own, and one with learned sinks.
OFTEN = ("llama", "qwen2", "gpt_oss")


def often(kind: str) -> Any:
    return kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.nightly)


@torch.no_grad()
def check_native(kind: str, plan: SpanPlan, folder: Path, **changes: Any) -> None:
    """Assert that what plain transformers loads from the folder gives the logits of the plan, and reads as it."""
    model = tiny_library_model(kind, **changes)
    untouched = model(torch.arange(3, 63)[None]).logits
    apply_plan(model, plan)
    expected = model(torch.arange(3, 63)[None]).logits
    save_checkpoint(model, tiny_tokenizer(), folder, native=True)
    plain = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    assert not hasattr(plain, "span_plan")
    assert (native_plan(plain.config), stored_plan(plain.config)) == (plan, None)
    found = plain(torch.arange(3, 63)[None]).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * max(1.0, float(expected.abs().max())))
    assert float((untouched - expected).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", [often(kind) for kind in ANY_LAYER])
def test_any_layer_of_these_types_has_the_window_or_not(kind: str, tmp_path: Path) -> None:
    for plan in (MIXED, ALL):
        check_native(kind, plan, tmp_path / str(plan.is_full) / str(len(set(plan))))


@pytest.mark.parametrize("kind", ["phi3", pytest.param("mixtral", marks=pytest.mark.nightly)])
def test_where_all_layers_have_one_window_a_plan_sets_it(kind: str, tmp_path: Path) -> None:
    check_native(kind, ALL, tmp_path / "native", sliding_window=None)
    with pytest.raises(ConversionError, match=rf"{kind} models have no window for each layer; these do: cwm, .*llama"):
        native_config(tiny_library_model(kind).config, MIXED)


def test_kinds_of_layers_that_decide_positions_too_keep_their_places(tmp_path: Path) -> None:
    kinds = ["full_attention" if span.is_full else "sliding_attention" for span in MIXED]
    check_native("gemma3_text", MIXED, tmp_path / "native", layer_types=kinds)
    with pytest.raises(ConversionError, match=r"a gemma3_text layer's kind decides more than its window"):
        native_config(tiny_library_model("gemma3_text", layer_types=kinds).config, ALL)


def test_hybrids_have_their_own_plan_as_native_form_alone(tmp_path: Path) -> None:
    model = tiny_library_model("qwen3_5_text", initializer_range=0.4)
    own = apply_plan(model)
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "native", native=True)
    assert native_plan(open_checkpoint(str(tmp_path / "native")).config) == own
    with pytest.raises(ConversionError, match=r"qwen3_5_text models have layers without attention; give the model's"):
        native_config(model.config, own.with_all(LayerSpan(span=16)))


def test_chunks_of_llama_4_are_chunks_there(tmp_path: Path) -> None:
    chunk = LayerSpan(block=8, previous=0, sinks=0)
    check_native("llama4_text", SpanPlan((FULL, chunk, chunk, FULL)), tmp_path / "native")
    with pytest.raises(ConversionError, match="chunks are for llama4_text models, windows for others"):
        native_config(tiny_library_model("llama").config, SpanPlan((chunk,) * 4))
    with pytest.raises(ConversionError, match="chunks are for llama4_text models, windows for others"):
        native_config(tiny_library_model("llama4_text").config, MIXED)


def test_windows_of_a_mistral_are_taken_off(tmp_path: Path) -> None:
    model = tiny_model("mistral")
    apply_plan(model, SpanPlan.full(LAYERS))
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "native", native=True)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "native").config
    assert native_plan(config).is_full
    assert config.model_type in ("mistral", "ministral")


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ("full@1 span=16 sinks=2", "layer 0 has sinks; give sinks=0"),
        ("full@1,2.0 span=16 sinks=0", "layer 2 has spans of single heads; give whole layers"),
        ("full@1 block=16 previous=1 sinks=0", "layer 0 has blocks that see the one before"),
        ("full@1 block=16 previous=0 sinks=0", "chunks are for llama4_text models, windows for others"),
        ("full@1; span=16 sinks=0@0; span=8 sinks=0@2", "it has 'span=16 sinks=0' and 'span=8 sinks=0'"),
    ],
)
def test_a_plan_without_a_native_form_is_one_line_before_weights_load(
    plan: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_tiny_checkpoint(tmp_path / "tiny")
    monkeypatch.setattr(
        "masformer.checkpoints.open.Checkpoint.load_model", lambda *_: pytest.fail("weights were loaded")
    )
    capsys.readouterr()
    assert main(["convert", str(base), "--plan", plan, "--output", str(tmp_path / "out"), "--native"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --native: transformers has no form for the plan '")
    assert why in line
    assert line.endswith("or leave --native out")
    assert not (tmp_path / "out").exists()


def test_weights_that_the_other_type_has_no_place_for_are_refused() -> None:
    with pytest.raises(ConversionError, match=r"do not fit a ministral model, .* model.layers.0.self_attn.k_proj.bias"):
        native_config(tiny_library_model("llama", attention_bias=True).config, MIXED)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_type_that_computes_something_else_is_found_and_nothing_is_left(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Cohere 2 has the weights of Cohere, and no positions in its full layers.
    monkeypatch.setitem(ANY_LAYER, "cohere", "cohere2")
    model = tiny_library_model("cohere", initializer_range=0.4).to(dtype)
    apply_plan(model, MIXED)
    with pytest.raises(ConversionError, match=r"what transformers computes from the native form is \S+ off where"):
        save_checkpoint(model, tiny_tokenizer(), tmp_path / "native", native=True)
    assert not (tmp_path / "native").exists()
    assert model.span_plan == MIXED


def test_a_proof_that_cannot_tell_the_window_from_full_attention_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    plan = apply_plan(model, SpanPlan.parse(PLAN, LAYERS))
    offsets = iter((0.0, 1e-6, 2e-6))  # plain, under the plan, under full attention
    monkeypatch.setattr(native, "_last_logits", lambda *_: torch.full((1, 4), next(offsets)))
    with pytest.raises(ConversionError, match=r"which proves nothing; give --dtype float32"):
        save_checkpoint(model, tiny_tokenizer(), tmp_path / "native", native=True)
    assert (model.span_plan, (tmp_path / "native").exists()) == (plan, False)


def test_other_tokens_under_the_other_type_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer()))
    apply_plan(model, SpanPlan.parse(PLAN, LAYERS))
    other = tiny_tokenizer(chat=False)
    monkeypatch.setattr("masformer.checkpoints.native.AutoTokenizer.from_pretrained", lambda _: other)
    with pytest.raises(ConversionError, match="under the model type ministral transformers makes other tokens"):
        save_checkpoint(model, tiny_tokenizer(), tmp_path / "native", native=True)


def test_a_window_longer_than_a_proof_is_cut_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_MOST_PROVEN", 8)
    seen = []
    last_logits = native._last_logits

    def note(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        seen.append((tokens.shape[1], native_plan(model.config)[0].span))
        return last_logits(model, tokens)

    monkeypatch.setattr(native, "_last_logits", note)
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer()))
    apply_plan(model, SpanPlan.parse("full@1 span=300 sinks=0", LAYERS))
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "native", native=True)
    assert seen == [(136, 8), (136, None), (136, None)]
    assert json.loads((tmp_path / "native" / "config.json").read_text())["sliding_window"] == 300


def test_a_native_folder_is_shown_opened_pushed_and_replaced_as_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = save_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "native"
    arguments = ["convert", str(base), "--plan", PLAN, "--output", str(out), "--no-measure", "--native"]
    assert main(arguments) == 0
    assert "plain transformers computes the plan from the folder" in capsys.readouterr().out
    checkpoint = open_checkpoint(str(out))
    assert str(resolve_plan("auto", checkpoint)) == PLAN
    assert main(["show", str(out), "--lengths", "64"]) == 0
    assert f"plan    {PLAN}" in capsys.readouterr().out
    assert "model.safetensors" in checkpoint_files(out)
    card = (out / "README.md").read_text()
    assert "needs no masformer" in card
    assert "import masformer" not in card
    assert main([*arguments, "--overwrite"]) == 0
    # Of a model without a plan on it, the list is that of the files beside it all the same.
    save_checkpoint(checkpoint.load_model(torch.float32), checkpoint.tokenizer, tmp_path / "again")
    assert "masformer_cost.json" not in checkpoint_files(tmp_path / "again")
