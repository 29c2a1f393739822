"""A LoRA adapter opens on its base, and computes what peft's own model computes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from masformer import apply_plan, read_plan, stored_plan
from masformer.checkpoints import hub
from masformer.checkpoints.open import open_checkpoint
from masformer.checkpoints.saving import save_checkpoint
from masformer.errors import CheckpointError
from tests.helpers.tiny_models import save_tiny_checkpoint

IDS = torch.arange(3, 70)[None]
TIED = {"tie_word_embeddings": True}
# Names of adapters, with the model that each is for and its settings.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {}, {"target_modules": ["q_proj", "v_proj"]}),
    "all layers, rank-stabilised": ("llama", {}, {"target_modules": "all-linear", "use_rslora": True}),
    "dora": ("llama", {}, {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "ranks by layer": ("qwen3", {}, {"target_modules": ["q_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2}}),
    "biases": ("qwen2", {}, {"target_modules": ["q_proj"], "bias": "all"}),
    "biases of its layers": ("qwen2", {}, {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "conv1d": ("gpt2", {}, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "heads saved whole": ("llama", {}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, output saved whole": ("llama", TIED, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied, input changed": ("llama", TIED, {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied, output changed": ("llama", TIED, {"target_modules": ["q_proj", "lm_head"]}),
    "tied, both": ("llama", TIED, {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}),
    "tokens": ("llama", {}, {"target_modules": ["q_proj"], "trainable_token_indices": [4, 9]}),
    "tokens, tied": ("llama", TIED, {"target_modules": ["q_proj"], "trainable_token_indices": [4, 9]}),
    "fused": ("phi3", {}, {"target_modules": ["qkv_proj"]}),
    "one layer": ("gemma3_text", {}, {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "experts": ("qwen3_moe", {}, {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}),
}


def save_adapter(folder: Path, base: Path, *, tokens: int = 0, **settings: Any) -> Path:
    """Write a random adapter of a base as peft writes it; `tokens` are added to the base's first."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        model.resize_token_embeddings(model.config.vocab_size + tokens, mean_resizing=False)
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | settings
    adapted = get_peft_model(model, LoraConfig(**settings, init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and ".lora_" not in name:  # whole modules, biases and tokens begin as the base's
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return save_adapter(tmp_path / "adapter", base)


def change(adapter: Path, **settings: Any) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return adapter


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel) -> Tensor:
    found: Tensor = model.eval()(IDS).logits
    return found


def have_equal_weights(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Return whether all weights are the same bits; logits also depend on where in memory weights lie."""
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def by_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float64, tokens: int = 0) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if tokens:
        model.resize_token_embeddings(model.config.vocab_size + tokens, mean_resizing=False)
    return PeftModel.from_pretrained(model, str(adapter))


@pytest.mark.parametrize("name", KINDS)
def test_a_merged_adapter_computes_what_peft_computes(tmp_path: Path, name: str) -> None:
    kind, changes, settings = KINDS[name]
    base = save_tiny_checkpoint(tmp_path / "base", kind=kind, **changes)
    adapter = save_adapter(tmp_path / "adapter", base, **settings)
    # torch multiplies grouped matrices of experts in float32 at most.
    dtype, close = (torch.float32, 1e-3) if "moe" in kind else (torch.float64, 1e-9)
    plain = logits(open_checkpoint(str(base)).load_model(dtype))
    checkpoint = open_checkpoint(str(adapter))
    merged = checkpoint.load_model(dtype)
    found = logits(merged)
    assert torch.allclose(found, logits(by_peft(base, adapter, dtype)), rtol=close, atol=close)
    assert not torch.allclose(found, plain, atol=1e-2)
    assert not any(".lora_" in key or "base_layer" in key for key in merged.state_dict())
    save_checkpoint(merged, checkpoint.tokenizer, tmp_path / "merged")
    again = open_checkpoint(str(tmp_path / "merged")).load_model(dtype)
    assert have_equal_weights(again, merged)


def test_a_merge_in_half_precision_rounds_once(base: Path, adapter: Path) -> None:
    merged = open_checkpoint(str(adapter)).load_model(torch.bfloat16).state_dict()
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    wide = PeftModel.from_pretrained(half.float(), str(adapter)).merge_and_unload().state_dict()
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    assert all(torch.equal(value, wide[name].bfloat16()) for name, value in merged.items())


def test_one_model_comes_of_an_adapter_alone_and_of_its_base_with_it(base: Path, adapter: Path) -> None:
    alone, both = open_checkpoint(str(adapter)), open_checkpoint(str(base), adapter=str(adapter))
    assert alone.provenance == both.provenance
    assert alone.provenance["reference"] == str(base)
    assert alone.provenance["adapter"]["reference"] == str(adapter)
    assert have_equal_weights(alone.load_model(torch.float32), both.load_model(torch.float32))


def test_a_base_that_is_given_counts_in_the_place_of_the_one_in_the_config(tmp_path: Path, base: Path) -> None:
    adapter = change(save_adapter(tmp_path / "adapter", base), base_model_name_or_path="no/such-model", revision="v1")
    other = open_checkpoint(str(base), adapter=str(adapter)).load_model(torch.float64)
    assert torch.allclose(logits(other), logits(by_peft(base, adapter)), atol=1e-9)
    refused(r"names 'no/such-model' as its base: .*; or name its base: --model BASE --adapter", str(adapter))


def test_digests_cover_the_adapter_and_its_base(base: Path, adapter: Path) -> None:
    before = open_checkpoint(str(adapter)).provenance
    assert sorted(before["adapter"]["files"]) == ["adapter_config.json", "adapter_model.safetensors"]
    change(adapter, lora_alpha=99)
    after = open_checkpoint(str(adapter)).provenance
    assert before["files"] == after["files"] == open_checkpoint(str(base)).provenance["files"]
    assert before["adapter"]["files"] != after["adapter"]["files"]


@pytest.mark.parametrize("changes", [{}, TIED], ids=["untied", "tied"])
def test_tokens_that_an_adapter_brings_have_embeddings(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = save_tiny_checkpoint(tmp_path / "base", **changes)
    adapter = save_adapter(tmp_path / "adapter", base, tokens=2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(adapter)
    checkpoint = open_checkpoint(str(adapter))
    assert checkpoint.config.vocab_size == len(checkpoint.tokenizer) == len(tokenizer)
    checkpoint.check_text("a <two> b", "a text")
    model = checkpoint.load_model(torch.float64)
    assert torch.allclose(logits(model), logits(by_peft(base, adapter, tokens=2)), atol=1e-9)
    save_checkpoint(model, checkpoint.tokenizer, tmp_path / "merged")
    assert have_equal_weights(open_checkpoint(str(tmp_path / "merged")).load_model(torch.float64), model)


def test_tokens_without_embeddings_in_the_adapter_are_refused_in_texts(base: Path, adapter: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<one>"])
    tokenizer.save_pretrained(adapter)
    checkpoint = open_checkpoint(str(adapter))
    with pytest.raises(CheckpointError, match="document 1 holds the token '<one>'"):
        checkpoint.check_text("a <one> b", "document 1")


def test_the_chat_template_beside_an_adapter_is_used(adapter: Path) -> None:
    before = open_checkpoint(str(adapter)).provenance["adapter"]["files"]
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    checkpoint = open_checkpoint(str(adapter))
    assert checkpoint.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a!"
    assert checkpoint.provenance["adapter"]["files"] != before


def test_the_plan_of_a_base_is_kept(tmp_path: Path, base: Path, adapter: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    apply_plan(model, plan := read_plan("full@1 span=12 sinks=2", model.config))
    save_checkpoint(model, AutoTokenizer.from_pretrained(base), tmp_path / "mixed")
    opened = open_checkpoint(str(tmp_path / "mixed"), adapter=str(adapter))
    assert stored_plan(opened.config) == plan
    mixed = opened.load_model(torch.float64)
    apply_plan(mixed)
    assert mixed.span_plan == plan
    model = by_peft(base, adapter).merge_and_unload()
    apply_plan(model, plan)
    assert torch.allclose(logits(mixed), logits(model), atol=1e-9)


def refused(expected: str, reference: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=expected) as error:
        open_checkpoint(reference, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"task_type": "SEQ_CLS"}, "is for the task 'SEQ_CLS'; one of a decoder"),
        ({"peft_type": "IA3"}, "is of type 'IA3'; LoRA adapters are loaded"),
        ({"alora_invocation_tokens": [1]}, "switched on by words of the prompt"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "repeats layers of its base"),
        ({"use_new_thing": True}, "sets use_new_thing, which peft .* does not know"),
        ({"target_modules": ["c_attn"]}, "does not fit its base .*c_attn.* not found in the base model"),
        ({"target_modules": ["q_proj"]}, r"has 6 tensors that its base has no place for, .*v_proj.lora_A.weight among"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, r"lacks 6 tensors .* model.layers.0.self_attn.o_proj"),
        ({"r": 8}, r"does not fit its base .*size mismatch for .*q_proj.lora_A"),
        ({"modules_to_save": ["lm_head"]}, "does not fit its base"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path; give the model .* --model"),
    ],
    ids=str,
)
def test_an_adapter_that_cannot_be_meant_is_refused_before_weights_load(
    adapter: Path, settings: dict[str, Any], expected: str
) -> None:
    refused(expected, str(change(adapter, **settings)))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, adapter: Path) -> None:
    other = save_tiny_checkpoint(tmp_path / "other", hidden_size=64)
    refused("does not fit its base .*size mismatch", str(other), adapter=str(adapter))
    fewer = save_tiny_checkpoint(tmp_path / "fewer", num_hidden_layers=2)
    refused("has 4 tensors that its base has no place for, .*layers.2", str(fewer), adapter=str(adapter))


def test_new_tokens_of_which_a_half_is_missing_are_refused(tmp_path: Path, base: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, tokens=2)
    file = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "lm_head" not in name}, file)
    refused("was trained with .* tokens, its base .* has embeddings for .* lacks those of the others", str(adapter))


def test_pickled_and_absent_weights_of_an_adapter_are_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused("adapter_model.bin is a pickle, which is not loaded; write it as safetensors: python -c", str(adapter))
    (adapter / "adapter_model.bin").unlink()
    refused("holds no adapter_model.safetensors; save it again", str(adapter))


def test_damaged_weights_of_an_adapter_are_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"no")
    refused("adapter_model.safetensors of adapter .* cannot be read", str(adapter))


def test_what_is_no_adapter_and_adapters_of_adapters_are_refused(base: Path, adapter: Path) -> None:
    refused("holds no adapter_config.json", str(base), adapter=str(base))
    refused("is a LoRA adapter itself; merge it first", str(adapter), adapter=str(adapter))
    refused("is a LoRA adapter itself; merge it first", str(change(adapter, base_model_name_or_path=str(adapter))))
    refused("adapter folder './none' does not exist", str(base), adapter="./none")
    refused("is on this machine and has no revision 'v1'", str(base), adapter=str(adapter), adapter_revision="v1")


def test_an_adapter_on_the_hub_is_read_at_its_commit(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def info(repository: str, *, revision: str | None, **_: Any) -> Any:
        asked.append((repository, revision))
        files = [SimpleNamespace(rfilename=file.name) for file in adapter.iterdir()]
        return SimpleNamespace(sha="1" * 40, siblings=files)

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "model_info", info)
    monkeypatch.setattr(hub, "hf_hub_download", lambda _, file, **__: str(adapter / file))
    checkpoint = open_checkpoint(str(base), adapter="owner/adapter", adapter_revision="v2")
    assert asked == [("owner/adapter", "v2")]
    expected = {"reference": "owner/adapter", "source": "hub", "hub_id": "owner/adapter", "revision": "1" * 40}
    assert checkpoint.provenance["adapter"] == expected
    assert torch.allclose(logits(checkpoint.load_model(torch.float64)), logits(by_peft(base, adapter)), atol=1e-9)
    # Given as a model, the revision is that of the adapter, and its config names the base.
    assert open_checkpoint("owner/adapter", revision="v3").provenance["reference"] == str(base)
    assert asked[-1] == ("owner/adapter", "v3")


def test_the_revision_of_a_base_on_the_hub_comes_from_the_config_of_the_adapter(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def info(repository: str, *, revision: str | None, **_: Any) -> Any:
        asked.append((repository, revision))
        raise OSError("no network here")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "model_info", info)
    refused("names 'owner/base' as its base", str(change(adapter, base_model_name_or_path="owner/base", revision="v1")))
    assert asked == [("owner/base", "v1")]
