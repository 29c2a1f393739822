"""A row that guesses its next tokens writes what it writes without, whatever it guesses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from eval.config.generation import GenerationSettings
from eval.generation import greedy
from eval.generation.answer import Answer
from eval.generation.decode import decode
from eval.generation.lookup import Lookup
from eval.run import main
from masformer import apply_plan, fixed_frequencies, prefill
from masformer.attention.prefill import new_cache
from masformer.plans.shapes import layers_with_states
from masformer.plans.spans import FULL, SpanPlan
from tests.eval.generation.test_generate import (
    EXACT,
    MIXED,
    NUM_NEW,
    TOKENIZER,
    check_greedy,
    exact_model,
    random_model,
    random_thinking,
    together,
    tokens,
    vocabulary,
)
from tests.helpers.library_models import tiny_library_model
from tests.helpers.tiny_models import BY_HEAD, SUPPORTED, plan_by_head, save_tiny_checkpoint

PROMPT = tokens(0, 60)
PLANS: dict[str, SpanPlan | None] = {"full": SpanPlan((FULL,) * 3), "mixed": MIXED, "heads": None}
CASES = [(kind, name) for kind in SUPPORTED for name in PLANS if name != "heads" or kind in BY_HEAD]
CASES += [(kind, "exact") for kind in EXACT]


def write(
    model: PreTrainedModel, settings: GenerationSettings, draft_tokens: int, prompt: Sequence[int] = PROMPT
) -> Answer:
    cache = new_cache(model, len(prompt))
    with fixed_frequencies(model, len(prompt)):
        prefill(model, torch.tensor([prompt[:-1]]), cache)
        [answer] = decode(model, TOKENIZER, [prompt], [cache], settings, draft_tokens=draft_tokens)
    return answer


def guess_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lookup, "draft", lambda self, most: [0] * most)


def foresee(text: Sequence[int], monkeypatch: pytest.MonkeyPatch, stop: int = len(TOKENIZER)) -> None:
    """Let drafts be right for none, one, two ... of their tokens in turn, where the text goes on like this."""
    turns = iter(range(1000))

    class Oracle(Lookup):
        def draft(self, most: int) -> list[int]:
            done, turn = len(self) - len(PROMPT), next(turns)
            drafted = [*text[done : done + turn % (most + 1)], *tokens(turn, most, stop)]
            return drafted[:most]

    monkeypatch.setattr(greedy, "Lookup", Oracle)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[] if kind in (*BY_HEAD, "deepseek_v3") else pytest.mark.nightly)
        for kind, name in CASES
    ],
)
def test_drafts_change_no_token(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact_model(kind) if name == "exact" else random_model(kind, None)
    if name != "exact":
        apply_plan(model, PLANS[name] or plan_by_head(model.config))
    model.generation_config.eos_token_id = [1]
    stop = vocabulary(model)
    settings, prompt = GenerationSettings(max_new_tokens=NUM_NEW), tokens(0, len(PROMPT), stop)
    plain = write(model, settings, 0, prompt)
    assert plain.num_drafted == 0
    foresee(plain.token_ids, monkeypatch, stop)
    drafted = write(model, settings, 4, prompt)
    assert drafted.token_ids == plain.token_ids
    check_greedy(model, prompt, drafted)
    if layers_with_states(model.config):
        assert drafted.num_drafted == 0
    elif len(plain.token_ids) == NUM_NEW:
        assert 10 < drafted.num_accepted < drafted.num_drafted


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.4}, {"min_new_tokens": 35}, {"stop": True}, {"thinking": True}], ids=str
)
def test_every_option_holds_within_a_draft(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama", MIXED)
    settings = GenerationSettings(max_new_tokens=NUM_NEW, min_new_tokens=20)
    if "stop" in options:
        options = {"stop": (TOKENIZER.decode(write(model, settings, 0).token_ids)[9:11],)}
    if "thinking" in options:
        options = {"thinking": random_thinking(model, 14)}
    settings = replace(settings, **options)
    plain = write(model, settings, 0)
    foresee(plain.token_ids, monkeypatch)
    drafted = write(model, settings, 4)
    assert 0 < drafted.num_accepted < drafted.num_drafted
    free = {"seconds": 0.0, "prefill_seconds": 0.0, "num_drafted": 0, "num_accepted": 0}
    assert replace(drafted, **free) == replace(plain, **free)


def test_where_no_run_of_tokens_may_occur_twice_none_is_guessed() -> None:
    model = random_model("llama", MIXED)
    assert write(model, GenerationSettings(max_new_tokens=NUM_NEW, no_repeat_ngram_size=3), 4).num_drafted == 0


def test_a_row_whose_guesses_are_wrong_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama", MIXED)
    model.generation_config.eos_token_id = [1]
    plain = write(model, GenerationSettings(max_new_tokens=NUM_NEW), 0)
    assert len(plain.token_ids) == NUM_NEW
    guess_zeros(monkeypatch)
    drafted = write(model, GenerationSettings(max_new_tokens=NUM_NEW), 4)
    assert (drafted.token_ids, drafted.num_drafted, drafted.num_accepted) == (plain.token_ids, 12, 0)


def test_models_with_states_guess_nothing() -> None:
    model = tiny_library_model("lfm2", vocab_size=len(TOKENIZER), initializer_range=0.4).double()
    apply_plan(model)
    model.generation_config.eos_token_id = [1]
    answer = write(model, GenerationSettings(max_new_tokens=NUM_NEW), 4)
    assert len(answer.token_ids) > 1
    assert answer.num_drafted == 0


def test_the_last_row_of_a_batch_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    guess_zeros(monkeypatch)
    model = random_model("llama", MIXED)
    model.generation_config.eos_token_id = [1]
    short, long = ([*PROMPT, *tokens(seed, count)] for seed, count in ((1, 7), (2, 30)))
    free = together(model, [short], GenerationSettings(max_new_tokens=NUM_NEW))[0]
    assert len(set(free.token_ids)) > 1
    model.generation_config.eos_token_id = [free.token_ids[0]]
    answers = together(model, [short, long], GenerationSettings(max_new_tokens=NUM_NEW))
    assert len(answers[0].token_ids) == 1
    assert [answer.num_drafted > 0 for answer in answers] == [False, True]
    for prompt, answer in zip((short, long), answers, strict=True):
        check_greedy(model, prompt, answer)


@pytest.mark.usefixtures("no_plots", "fresh_accelerator")
def test_a_run_tells_how_many_were_guessed_and_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guess_zeros(monkeypatch)
    folder = save_tiny_checkpoint(tmp_path / "model")
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"id": "a", "context": "Some text, some text.", "target": "Yes"}) + "\n")
    flags = f"--task custom --data {data} --model {folder} --dtype float64 --maxlen 300 --max-new-tokens 30 --threads 1"
    lines = []
    for name, more in (("drafts", ""), ("plain", "--draft-tokens 0")):
        assert main([*flags.split(), "--output", str(tmp_path / name), *more.split()]) == 0
        lines.append(json.loads((tmp_path / name / "predictions.jsonl").read_text()))
    drafts, plain = lines
    assert 0 <= drafts["accepted_tokens"] <= drafts["drafted_tokens"]
    assert drafts["drafted_tokens"] > 0
    assert not {"accepted_tokens", "drafted_tokens"} & plain.keys()
    assert drafts["text"] == plain["text"]
    assert drafts["fingerprint"] == plain["fingerprint"]
