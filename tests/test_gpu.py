"""On a CUDA device: attention, cache and the main job agree with the CPU. Opt in with `-m gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eval.run import main
from masformer import LayerSpan, SpanCache, SpanPlan, apply_plan
from masformer.spans import FULL
from tests.tiny_models import SUPPORTED, save_tiny_checkpoint, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PLAN = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2)))
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


@torch.no_grad()
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("kind", list(SUPPORTED))
def test_device_equals_cpu_in_one_pass_and_through_the_cache(kind: str, dtype: torch.dtype) -> None:
    tokens = torch.arange(3, 93)[None]
    model = tiny_model(kind)
    apply_plan(model, PLAN)
    expected = model(tokens, use_cache=False).logits
    model = model.to("cuda", dtype)
    tokens = tokens.to("cuda")
    logits = model(tokens, use_cache=False).logits.float().cpu()
    torch.testing.assert_close(logits, expected, atol=TOLERANCE[dtype], rtol=0)
    cache = SpanCache(PLAN)
    parts = [model(part, past_key_values=cache).logits for part in tokens.split((40, *[1] * 50), dim=1)]
    cached = torch.cat(parts, dim=1).float().cpu()
    torch.testing.assert_close(cached, expected, atol=TOLERANCE[dtype], rtol=0)


def test_main_job_uses_the_device_and_bfloat16(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"article": "many words " * 200, "abstract": "some words"}) + "\n")
    arguments = f"--task arxiv --model {model} --data {data} --maxlen 400 --max-new-tokens 8 --plan every:2"
    assert main([*arguments.split(), "--output", str(tmp_path / "run")]) == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["identity"]["dtype"] == "bfloat16"
    assert torch.cuda.get_device_name() in run["sessions"][0]["machine"]["device"]
