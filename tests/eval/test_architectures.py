"""Architectures whose layers are not all alike, from a checkpoint to predictions, under a mixed plan."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from eval.config.generation import GenerationSettings
from eval.generation import tree_decoder
from eval.generation.answer import Answer
from eval.generation.decode import Prompts, decode_stream
from eval.run import main
from masformer import apply_plan, read_plan
from tests.helpers.library_models import tiny_library_model
from tests.helpers.streams import streamed
from tests.helpers.tiny_models import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_plots")

TEXT = "long documents hold many words and each of them costs a token of context"
TOKENIZER = tiny_tokenizer()
# Layers without attention in between, attention beside states, keys that layers share, chunks.
PLANS = {
    "qwen3_5_text": "local span=17 sinks=3",
    "lfm2": "bottom:1 span=17 sinks=3",
    "falcon_h1": "full@1,3 block=16 previous=1 sinks=2",
    "olmo_hybrid": "span=9 sinks=2@3; none@0-2",
    "gemma3n_text": "full@1,3 span=17 sinks=3",
    "gemma4_text": "full@0,2 span=17 sinks=3",
    "llama4_text": "full@2 span=17 sinks=3",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    words = TEXT.split()
    texts = [" ".join(words[(seed + i * (seed + 3)) % len(words)] for i in range(150)) for seed in range(2)]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps({"article": text, "abstract": "words about context"}) + "\n" for text in texts))
    return file


@torch.no_grad()
def check_greedy(model: PreTrainedModel, prompt: Sequence[int], answer: Answer) -> None:
    """Assert that each token is the likeliest after all before it, by one pass without a cache."""
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    likeliest = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(dim=-1)
    assert answer.token_ids == tuple(likeliest.tolist())


@pytest.mark.parametrize("kind", list(PLANS))
def test_a_run_of_two_lengths_writes_what_plain_decoding_does(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"vocab_size": len(TOKENIZER), "max_position_embeddings": 2048}
    sizes |= {"vocab_size_per_layer_input": len(TOKENIZER)} if kind.startswith("gemma") else {}
    model = tiny_library_model(kind, initializer_range=0.4, **sizes)
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    seen: list[tuple[int, str]] = []

    def checked(model: PreTrainedModel, tokenizer: Any, enter: Any, *rest: Any) -> Iterator[tuple[int, Answer]]:
        prompts: dict[int, Sequence[int]] = {}

        def noted(going: Sequence[int]) -> Prompts | None:
            if (more := enter(going)) is not None:
                prompts.update(zip(more.numbers, more.tokens, strict=True))
            return more

        for number, answer in decode_stream(model, tokenizer, noted, *rest):
            check_greedy(model, prompts[number], answer)
            seen.append((len(prompts[number]), str(model.span_plan)))
            yield number, answer

    monkeypatch.setattr(tree_decoder, "decode_stream", checked)
    options = f"--task arxiv --model {tmp_path / 'model'} --data {data} --maxlen 300 500 --max-new-tokens 12"
    arguments = [*options.split(), "--threads", "1", "--dtype", "float64", "--plan", PLANS[kind]]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [line["maxlen"] for line in lines] == [300, 500] * 2
    assert len(seen) == 4
    # The common beginning of both lengths went through the model once.
    assert sum(line["prefilled_tokens"] for line in lines) < sum(line["prompt_tokens"] for line in lines)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {plan for _, plan in seen} == {record["plan_description"]}
    assert all(line["cache_bytes"] for line in lines)


@pytest.mark.parametrize("kind", list(PLANS))
def test_prompts_that_take_the_places_of_others_write_what_plain_decoding_does(kind: str) -> None:
    sizes = {"vocab_size": len(TOKENIZER), "max_position_embeddings": 2048}
    sizes |= {"vocab_size_per_layer_input": len(TOKENIZER)} if kind.startswith("gemma") else {}
    model = tiny_library_model(kind, initializer_range=0.4, **sizes).double()
    apply_plan(model, read_plan(PLANS[kind], model.config))
    shared = TOKENIZER(TEXT).input_ids
    prompts = [[*shared[: 40 + 5 * count], *TOKENIZER(str(count)).input_ids] for count in range(8)]
    settings = GenerationSettings(max_new_tokens=20)
    free, _ = streamed(model, TOKENIZER, prompts, settings, most=1)
    # Tokens that end every other answer early, whatever the model says.
    model.generation_config.eos_token_id = sorted({answer.token_ids[3] for answer in free[::2]})
    answers, entered = streamed(model, TOKENIZER, prompts, settings, most=4)
    for prompt, answer in zip(prompts, answers, strict=True):
        check_greedy(model, prompt, answer)
    assert len({len(answer.token_ids) for answer in answers}) > 1
    assert any(going for going, _ in entered)
