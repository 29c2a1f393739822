"""More positions than a model was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from masformer import SpanPlan, apply_plan
from masformer.checkpoints.positions import PositionError, extend_table, extended_config
from tests.helpers.tiny_models import VOCAB, tiny_model


def tokens(count: int) -> torch.Tensor:
    return torch.randint(3, VOCAB, (1, count), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("how", ["linear", "yarn"])
def test_rotary_positions_are_scaled_and_the_checkpoint_says_so(how: str, tmp_path: Path) -> None:
    model = tiny_model("llama", max_position_embeddings=64)
    config = extended_config(model.config, 256, how)
    assert model.config.max_position_embeddings == 64
    rope = config.rope_parameters
    assert (config.max_position_embeddings, rope["rope_type"], rope["factor"]) == (256, how, 4.0)
    assert rope["original_max_position_embeddings"] == 64
    model.save_pretrained(tmp_path)
    longer = AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    longer.save_pretrained(tmp_path / "longer")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "longer")
    with torch.no_grad():
        assert torch.equal(again(tokens(200)).logits, longer(tokens(200)).logits)
        assert not torch.allclose(again(tokens(60)).logits, model(tokens(60)).logits, atol=1e-6)


def test_linear_scaling_reads_position_four_where_one_was() -> None:
    model = tiny_model("llama", max_position_embeddings=64)
    config = extended_config(model.config, 256, "linear")
    longer = type(model)(config)
    longer.load_state_dict(model.state_dict())
    with torch.no_grad():
        near = model(tokens(20), position_ids=torch.arange(20)[None]).logits
        far = longer.eval()(tokens(20), position_ids=4 * torch.arange(20)[None]).logits
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neo"])
def test_a_learned_table_repeats_itself(kind: str, tmp_path: Path) -> None:
    size = {"n_positions": 64} if kind == "gpt2" else {"max_position_embeddings": 64}
    model = tiny_model(kind, **size)
    longer = extend_table(model, 150)
    with torch.no_grad():
        torch.testing.assert_close(longer(tokens(60)).logits, model(tokens(60)).logits, atol=1e-6, rtol=0)
    apply_plan(longer, SpanPlan.parse("every:2 span=16 sinks=2", 3))
    longer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (again.config.n_positions if kind == "gpt2" else again.config.max_position_embeddings) == 150
    apply_plan(again)
    with torch.no_grad():
        assert torch.equal(again(tokens(150)).logits, longer(tokens(150)).logits)


def test_as_many_positions_as_there_are_change_nothing() -> None:
    config = tiny_model("llama").config
    assert extended_config(config, 512, "yarn") is config


def test_positions_of_another_kind_are_refused() -> None:
    with pytest.raises(PositionError, match="gpt2 models have a learned table of positions, extended by 'copy'"):
        extended_config(tiny_model("gpt2").config, 1024, "yarn")
    with pytest.raises(PositionError, match="llama models have no learned table of positions; 'copy' does not apply"):
        extended_config(tiny_model("llama").config, 1024, "copy")
    scaled = extended_config(tiny_model("llama").config, 1024, "yarn")
    with pytest.raises(PositionError, match=r"scaled already \(yarn\)"):
        extended_config(scaled, 4096, "linear")
