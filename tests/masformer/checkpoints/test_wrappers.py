"""Checkpoints of models that also see or hear: every command takes the text part, and it is exactly theirs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoTokenizer, MistralForCausalLM

from eval.perplexity import main as perplexity
from eval.placement import main as placement
from eval.run import main as run
from eval.runtime.model import suggested_ends
from masformer import SpanPlan, remove_plan, stored_plan
from masformer.__main__ import main as masformer
from masformer.checkpoints.open import open_checkpoint
from masformer.errors import CheckpointError
from tests.helpers.library_models import LAYERS, tiny_whole_model
from tests.helpers.run_folders import document, without_checksums
from tests.helpers.tiny_models import tiny_tokenizer

PLAN = "full@1 span=16 sinks=2"
PART = "the text part of this mistral3 model, without its vision"
TOKENS = torch.arange(3, 93)[None]


def save_whole(folder: Path, kind: str = "mistral3", **options: Any) -> Path:
    """Write a random tiny model that also sees, and a tokenizer."""
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    sizes = {"vocab_size": size, "max_position_embeddings": 2048}
    if kind == "gemma4":
        sizes["vocab_size_per_layer_input"] = size
    model = tiny_whole_model(kind, initializer_range=0.4, eos_token_id=None, **sizes)
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whole(tmp_path_factory.mktemp("whole"))


@torch.no_grad()
def logits_of_whole(folder: Path) -> torch.Tensor:
    whole = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float64).eval()
    logits: torch.Tensor = whole(input_ids=TOKENS, use_cache=False).logits
    return logits


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("mistral3", "MistralForCausalLM"),
        ("gemma3", "Gemma3ForCausalLM"),
        ("gemma4", "Gemma4ForCausalLM"),
        ("llama4", "Llama4ForCausalLM"),
        ("exaone4_5", "Exaone4ForCausalLM"),
        ("qwen2_5_vl", "Qwen2ForCausalLM"),
        ("qwen3_vl", "Qwen3ForCausalLM"),
        ("idefics2", "MistralForCausalLM"),
        ("voxtral", "LlamaForCausalLM"),
    ],
)
def test_the_text_part_computes_what_the_whole_model_does(kind: str, cls: str, tmp_path: Path) -> None:
    save_whole(tmp_path, kind)
    model = open_checkpoint(str(tmp_path)).load_model(torch.float64)
    assert type(model).__name__ == cls
    torch.testing.assert_close(model(TOKENS).logits, logits_of_whole(tmp_path), atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("is_new", [True, False])
def test_weights_are_found_by_their_names_of_today_and_by_earlier_ones(tmp_path: Path, *, is_new: bool) -> None:
    save_whole(tmp_path, save_original_format=not is_new)
    prefix = "model.language_model.layers." if is_new else "language_model.model.layers."
    assert any(name.startswith(prefix) for name in weights(tmp_path))
    model = open_checkpoint(str(tmp_path)).load_model(torch.float64)
    torch.testing.assert_close(model(TOKENS).logits, logits_of_whole(tmp_path), atol=1e-12, rtol=0)


def test_every_command_takes_it_and_says_once_what_is_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for report in ("run", "placement"):
        monkeypatch.setattr(f"eval.reporting.{report}_report.save_charts", lambda *_: [])
    data = tmp_path / "data"
    data.mkdir()
    for seed in range(4):
        (data / f"{seed}.txt").write_text(document(seed)[:200])
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"article": document(seed), "abstract": document(seed)[:40]}) + "\n" for seed in (1, 2))
    )
    commands = {
        run: f"--task arxiv --data {tmp_path}/rows.jsonl --maxlen 200 300 --max-new-tokens 4 --plan '{PLAN}'",
        perplexity: f"--task text --data {data} --maxlen 48 --plan '{PLAN}'",
        placement: f"--task text --data {data} --maxlen 48 --limit 2 --budget layers=1 --local 'span=1 sinks=0'",
    }
    for main, text in commands.items():
        output = tmp_path / main.__module__
        assert main([*shlex.split(text), "--model", str(folder), "--threads", "1", "--output", str(output)]) == 0
        assert capsys.readouterr().out.count(PART) == 1
    lines = without_checksums((tmp_path / "eval.run" / "predictions.jsonl").read_text()).splitlines()
    assert len(lines) == 4


def test_the_harness_takes_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("lm_eval", reason="needs pip install 'masformer[harness]'")
    from eval.interop.lm_eval_model import MasformerLM

    harness = MasformerLM(str(folder), plan=PLAN, dtype="float64", device="cpu")
    assert isinstance(harness.model, MistralForCausalLM)
    assert caplog.text.count(PART) == 1


@torch.no_grad()
def test_convert_writes_the_text_model_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(folder), "--plan", PLAN, "--output", str(tmp_path / "mas"), "--no-measure"]
    assert masformer([*arguments, "--dtype", "float64"]) == 0
    assert PART in capsys.readouterr().out
    config = json.loads((tmp_path / "mas" / "config.json").read_text())
    base = config["masformer"]["base"]
    assert (base["model_type"], base["architectures"]) == ("mistral", ["MistralForCausalLM"])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "mas", dtype=torch.float64).eval()
    assert isinstance(plain, MistralForCausalLM)
    remove_plan(plain)
    torch.testing.assert_close(plain(TOKENS).logits, logits_of_whole(folder), atol=1e-12, rtol=0)
    assert all(name.startswith(("model.", "lm_head.")) for name in weights(tmp_path / "mas"))
    assert stored_plan(open_checkpoint(str(tmp_path / "mas")).config) == SpanPlan.parse(PLAN, LAYERS)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "mas")) == len(tiny_tokenizer())


def test_a_plan_that_a_whole_model_carries_comes_with_its_text_part(tmp_path: Path) -> None:
    """As earlier versions saved Gemma 3."""
    config = json.loads((save_whole(tmp_path, "gemma3") / "config.json").read_text())
    plan = SpanPlan.parse(PLAN, LAYERS)
    config["masformer"] = {"plan": plan.to_json()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(tmp_path))
    assert stored_plan(checkpoint.config) == plan
    assert stored_plan(checkpoint.load_model(torch.float32).config) == plan


def test_end_tokens_come_from_the_config_of_all(tmp_path: Path) -> None:
    config = json.loads((save_whole(tmp_path) / "config.json").read_text())
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 7]}))
    checkpoint = open_checkpoint(str(tmp_path))
    assert suggested_ends(checkpoint) == {"config": [2, 7]}
    assert checkpoint.load_model(torch.float32).generation_config.eos_token_id == [2, 7]


def test_weights_that_lack_or_exceed_the_text_part_are_refused(tmp_path: Path) -> None:
    whole = weights(save_whole(tmp_path))
    norm = next(name for name in whole if name.endswith("layers.2.input_layernorm.weight") and "language" in name)
    save_file({name: tensor for name, tensor in whole.items() if name != norm}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lack 1 tensors of its config, .*layers\.2\.input_layernorm"):
        open_checkpoint(str(tmp_path)).load_model(torch.float32)
    save_file(whole | {norm.replace("layers.2", "layers.9"): whole[norm].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"hold 1 tensors that its config does not use, .*layers\.9\."):
        open_checkpoint(str(tmp_path)).load_model(torch.float32)
    save_file(whole | {"foreign.weight": whole[norm].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"hold 1 tensors that its config does not use, foreign\.weight"):
        open_checkpoint(str(tmp_path)).load_model(torch.float32)
    # What is left out may be absent, or too much.
    seen = {"vision_tower.more": whole[norm].clone()}
    rest = {name: tensor for name, tensor in whole.items() if "vision" not in name}
    for kept in (rest, whole | seen):
        save_file(kept, tmp_path / "model.safetensors")
        open_checkpoint(str(tmp_path)).load_model(torch.float32)


def test_a_text_part_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """Cohere's decoders scale logits, which those with vision do not."""
    save_whole(tmp_path, "cohere2_vision")
    why = r"^'.*': the text part of this cohere2_vision model cannot be used alone: its logits are .* off"
    with pytest.raises(CheckpointError, match=why):
        open_checkpoint(str(tmp_path)).load_model(torch.float64)


def test_a_text_part_that_is_no_model_of_its_own_is_refused_before_weights(tmp_path: Path) -> None:
    (save_whole(tmp_path, "glm4v") / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a glm4v with a glm4v_text for text, which is no causal language"):
        open_checkpoint(str(tmp_path))
