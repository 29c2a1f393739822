"""Logits that are no numbers end a run with the document, and never become an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from eval.config.generation import GenerationSettings
from eval.generation.decode import decode
from eval.run import main
from masformer.errors import NumbersError
from tests.helpers.tiny_models import save_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots", "fresh_accelerator")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that only a text with a tilde breaks, where its check of random texts cannot see it."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("model"))
    broken = AutoModelForCausalLM.from_pretrained(folder)
    broken.model.embed_tokens.weight.data[AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("~")] = torch.inf
    broken.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"temperature": 0.7}], ids=["greedy", "beams", "sampling"])
def test_no_way_to_decode_takes_them(value: float, options: dict[str, Any], model: Path) -> None:
    broken = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16)
    broken.lm_head.weight.data.fill_(value)
    settings = GenerationSettings(max_new_tokens=4, **options)
    with pytest.raises(NumbersError, match=r"a prompt of 5 tokens are no numbers .* in float16.*--dtype bfloat16"):
        decode(broken, AutoTokenizer.from_pretrained(model), [[5, 6, 7, 8, 9]], [DynamicCache()], settings)


@pytest.mark.parametrize("more", ["", "--temperature 0.5", "--num-beams 2"])
def test_a_run_names_the_document(more: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"id": "report-7", "context": "Some ~ text.", "target": "Yes"}) + "\n")
    arguments = f"--task custom --data {data} --model {model} --dtype float16 --maxlen 300 --max-new-tokens 4"
    assert main([*f"{arguments} --threads 1 --output {tmp_path / 'run'} {more}".split()]) == 2
    said = capsys.readouterr().err.splitlines()
    (error,) = (line for line in said if line.startswith("error: "))
    assert "the logits on document 'report-7' of task 'custom'" in error
    assert "maxlen 300" in error
    assert "no numbers (NaN or infinite) in float16" in error
    assert not any("Traceback" in line for line in said)
    assert not (tmp_path / "run" / "scores.json").exists()
