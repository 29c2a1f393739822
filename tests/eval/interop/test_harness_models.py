"""What lm-evaluation-harness gets from models that think, and from a base with an adapter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.run_folders import document
from tests.helpers.tiny_models import CHAT_TEMPLATE, save_chain_model, save_tiny_checkpoint, tiny_tokenizer

pytest.importorskip("lm_eval", reason="needs pip install 'masformer[harness]'")

from eval.interop.lm_eval_model import MasformerLM

# As Qwen3's: an empty thought keeps the model from thinking.
TEMPLATE = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}", "assistant\n{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)


def opened(folder: Path, **options: Any) -> MasformerLM:
    return MasformerLM(str(folder), **{"plan": "full", "dtype": "float64", "device": "cpu"} | options)


def written(lm: MasformerLM, prompts: list[str], room: int) -> list[str]:
    asked = {"until": [], "max_gen_toks": room, "do_sample": False}
    answers: list[str] = lm.generate_until([SimpleNamespace(args=(prompt, asked)) for prompt in prompts])
    return answers


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"thinking": "on"}, "Yes"),
        # Cut off after two tokens, and the answer still has all of its room.
        ({"thinking": "on", "max_thinking_tokens": 2}, "Yes"),
        ({"max_thinking_tokens": 30}, "Yes"),
        ({}, "<th"),
    ],
)
def test_a_thought_has_a_room_of_its_own_and_is_no_answer(options: dict[str, Any], answer: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("</think>", special=False)])
    tokenizer.chat_template = TEMPLATE
    folder = save_chain_model(tmp_path, tokenizer, ["Ċ", *"<think>", *"lumpy", "</think>", *"Yes", "<|im_end|>"])
    lm = opened(folder, plan="local span=64 sinks=4", **options)
    prompt = lm.apply_chat_template([{"role": "user", "content": "So?"}])
    assert written(lm, [prompt], 3) == [answer]


def test_an_adapter_answers_as_the_model_that_it_is_merged_into(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "base", chat=False)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "merged")
    prompts = [document(seed)[:200] for seed in (1, 2)]
    merged = written(opened(tmp_path / "merged"), prompts, 12)
    assert written(opened(folder, adapter=str(tmp_path / "adapter")), prompts, 12) == merged
    assert merged != written(opened(folder), prompts, 12)
