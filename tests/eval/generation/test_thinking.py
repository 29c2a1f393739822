"""Thoughts before answers: switched by the template, bounded, kept, counted and never scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel

from eval.config.generation import GenerationSettings, ThinkingSettings
from eval.generation.thinking import ThinkingRow
from eval.run import main
from tests.eval.generation.test_generate import (
    MIXED,
    TOKENIZER,
    prompts_of_a_sweep,
    random_model,
    random_thinking,
    together,
)
from tests.helpers.run_folders import model_results
from tests.helpers.tiny_models import CHAT_TEMPLATE, save_chain_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_plots", "fresh_accelerator")

# As Qwen3's: the model begins its thought by itself, and an empty one keeps it from thinking.
QWEN = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}",
)
# As DeepSeek-V3.1's: the prompt opens the thought, or ends it.
DEEPSEEK = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{{ '<think>' if thinking else '</think>' }}{% endif %}",
)
# As DeepSeek-R1's: the prompt opens the thought, whatever one wants.
ALWAYS = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def save(folder: Path, template: str, tokens: Sequence[str]) -> Path:
    """Write a model with the marks of thoughts that writes each of some tokens after the one before it."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    tokenizer.chat_template = template
    return save_chain_model(folder, tokenizer, list(tokens))


THOUGHT = ["Ċ", "<think>", *"lumpy", "</think>", *"Yes", "<|im_end|>"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), QWEN, THOUGHT)


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a model in one folder and returns the status."""
    monkeypatch.chdir(tmp_path)
    rows = [{"context": f"Text {index}." * index, "target": "Yes"} for index in (1, 2, 3)]
    Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (
        f"--task custom --data d.jsonl --maxlen 300 320 --max-new-tokens 12 --threads 1 --output run --model {model}"
    )
    return lambda *more: main([*flags.split(), *more])


def lines(folder: str = "run") -> list[Any]:
    return [json.loads(line) for line in Path(folder, "predictions.jsonl").read_text().splitlines()]


def told(folder: str = "run") -> list[tuple[Any, ...]]:
    """Return what each line of a run says of its thought and answer."""
    names = ("thought", "text", "num_thought_tokens", "num_generated_tokens", "thought_finish_reason", "finish_reason")
    return [tuple(line.get(name) for name in names) for line in lines(folder)]


def rouge(folder: str = "run") -> float:
    return model_results(Path(folder))[0].metrics["rouge1"].value


def test_a_thought_is_kept_and_counted_and_not_scored(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--thinking", "on", "--max-thinking-tokens", "20") == 0
    assert told() == [("lumpy", "Yes", 7, 11, "stop", "stop")] * 6
    assert rouge() == 1
    assert {one.words for one in model_results(Path("run"))} == {1}
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "Thoughts are not scored: 6 of 6 answers have one, 7 tokens in the median, 0 (0%) cut off after 20 tokens."
        in printed
    )
    assert "answers hold thinking" not in printed


def test_the_template_switches_thinking_off_or_is_left_alone(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--thinking", "off", "--output", "off") == 0
    assert told("off") == [(None, "Yes", None, 4, None, "stop")] * 6
    assert rouge("off") == 1
    assert "hold thinking" not in capsys.readouterr().out
    # As ever: all text is the answer, and a note says so.
    assert run() == 0
    assert told() == [(None, "<think>lumpy</think>Yes", None, 11, None, "stop")] * 6
    assert rouge() < 1
    assert "6 of 6 answers hold thinking, which is scored with them" in " ".join(capsys.readouterr().out.split())
    record = json.loads(Path("run/run.json").read_text())
    assert not {"thinking", "max_thinking_tokens"} & record["config"].keys()
    assert "thinking" not in record["identity"]


def test_a_thought_that_uses_up_its_room_is_ended_and_the_answer_has_its_own(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--thinking", "on", "--max-thinking-tokens", "3", "--max-new-tokens", "4") == 0
    assert told() == [("lu", "Yes", 4, 8, "length", "stop")] * 6
    assert "6 (100%) cut off after 3 tokens" in " ".join(capsys.readouterr().out.split())
    assert run("--max-thinking-tokens", "7", "--max-new-tokens", "2", "--output", "auto") == 0
    assert told("auto") == [("lumpy", "Ye", 7, 9, "stop", "length")] * 6
    # Template and instruction, thought, end mark and answer: one less does not hold them.
    record = json.loads(Path("run/run.json").read_text())
    assert record["identity"]["thinking"] == {"start": "<think>", "end": "</think>", "max_tokens": 3}
    fixed = lines()[0]["prompt_tokens"] - lines()[0]["context_tokens_kept"]
    flags = ("--thinking", "on", "--max-thinking-tokens", "50", "--max-new-tokens", "4", "--output", "small")
    assert run(*flags, "--maxlen", str(fixed + 54)) == 2
    error = capsys.readouterr().err
    assert f"{fixed} tokens of instruction and template and 51 for the thought and 4 for the answer" in error
    assert "lower --max-new-tokens or --max-thinking-tokens" in error
    assert run(*flags, "--maxlen", str(fixed + 55)) == 0
    assert [line["context_tokens_kept"] for line in lines("small")] == [0, 0, 0]


def test_a_stop_text_ends_answers_alone_and_an_end_token_thoughts_too(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--thinking", "on", "--stop", "m", "s", "--max-thinking-tokens", "20") == 0
    assert told() == [("lumpy", "Ye", 7, 10, "stop", "stop")] * 6
    ended = save(tmp_path / "ended", QWEN, ["Ċ", "<think>", *"lump", "<|im_end|>"])
    capsys.readouterr()
    assert run("--thinking", "on", "--max-thinking-tokens", "20", "--model", str(ended), "--output", "turn") == 0
    assert told("turn") == [("lump", "", 6, 6, "turn", "stop")] * 6
    assert rouge("turn") == 0
    assert "6 never ended: their answers are empty" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("template", "flags"),
    [
        (DEEPSEEK, ("--thinking", "on")),
        (ALWAYS, ("--thinking", "on")),
        (ALWAYS, ("--max-thinking-tokens", "9")),
    ],
)
def test_an_answer_begins_inside_the_thought_that_its_prompt_opens(
    template: str, flags: tuple[str, ...], run: Any, tmp_path: Path
) -> None:
    tokens = ["<think>", *"lumpy", "</think>", *"Yes", "<|im_end|>"]
    opened = save(tmp_path / "opened", template, tokens if template == DEEPSEEK else ["Ċ", *tokens[1:]])
    assert run(*flags, "--model", str(opened), "--maxlen", "1400") == 0
    assert told() == [("lumpy", "Yes", 6, 10, "stop", "stop")] * 3
    if template == DEEPSEEK:
        assert run("--thinking", "off", "--model", str(opened), "--output", "off") == 0
        assert told("off") == [(None, "Yes", None, 4, None, "stop")] * 6


def test_a_run_resumes_to_the_same_and_batches_change_nothing(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--thinking", "on", "--max-thinking-tokens", "4")
    assert run(*flags) == 0
    assert run(*flags, "--output", "alone", "--batch-size", "1") == 0
    assert run(*flags, "--output", "parts", "--limit", "1") == 0
    assert run(*flags, "--output", "parts") == 0
    assert told() == told("alone") == told("parts")
    assert [line["fingerprint"] for line in lines()] == [line["fingerprint"] for line in lines("parts")]
    capsys.readouterr()
    assert run("--thinking", "on", "--max-thinking-tokens", "5") == 2
    assert "thinking max_tokens is 4 there and 5 now" in capsys.readouterr().err
    assert run("--thinking", "off") == 2


@pytest.mark.usefixtures("no_weights")
def test_what_cannot_think_is_one_line(
    run: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = save(tmp_path / "plain", CHAT_TEMPLATE, THOUGHT)
    effort = CHAT_TEMPLATE + "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    graded = save(tmp_path / "graded", effort + "{{ reasoning_effort }}", THOUGHT)
    unmarked = tiny_tokenizer()
    unmarked.chat_template = CHAT_TEMPLATE + "{{ thinking }}"
    save_chain_model(tmp_path / "unmarked", unmarked, ["a", "b"])
    kwargs = ["--template-kwargs", "enable_thinking: false"]
    for flags, message in [
        (["--thinking", "on", "--model", str(plain)], "--thinking on: the model's chat template has no switch"),
        (["--thinking", "off", "--model", str(plain)], "--thinking off: the model's chat template has no switch"),
        (["--thinking", "off", "--model", str(graded)], "its variable reasoning_effort has no value for that"),
        (["--thinking", "on", "--model", str(tmp_path / "unmarked")], "name it with --think-end-token"),
        (["--thinking", "on", *kwargs], "sets 'enable_thinking', and so does --thinking on"),
        (["--thinking", "on", "--template", "instruct-plain"], "all prompts of this run do without it"),
        (["--thinking", "on", "--num-beams", "2"], "--thinking on: each beam would think by itself"),
        (["--thinking", "off", "--max-thinking-tokens", "9"], "--thinking off has none"),
        (["--thinking", "on", "--engine", "mock"], "is of models, and --engine mock has none"),
        (["--thinking", "off", "--engine", "mock"], "--thinking is of a chat template"),
        (["--thinking", "maybe"], "invalid choice: 'maybe'"),
        (["--max-thinking-tokens", "9", "--think-end-token", "<|im_end|>"], "since '<|im_end|>' ends answers"),
    ]:
        assert run(*flags) == 2, flags
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not Path("run").exists()


def test_samples_think_each_for_themselves(run: Any) -> None:
    flags = ("--thinking", "on", "--max-thinking-tokens", "3", "--max-new-tokens", "3")
    assert run(*flags, "--temperature", "9", "--num-samples", "3", "--limit", "1", "--maxlen", "300") == 0
    (line,) = lines()
    samples = line["samples"]
    assert line["num_thought_tokens"] == sum(one["num_thought_tokens"] for one in samples)
    assert line["num_generated_tokens"] == sum(one["num_generated_tokens"] for one in samples)
    assert all(one["num_generated_tokens"] <= 3 + 1 + 3 for one in samples)
    assert len({one["text"] for one in samples}) > 1


# ---------------------------------------------------------------------------------------------------------------------
# Batches of random models, in fp64


@torch.no_grad()
def expected(model: PreTrainedModel, prompt: Sequence[int], settings: GenerationSettings) -> tuple[int, ...]:
    """Return the tokens of one prompt by a pass a token, without any cache."""
    assert settings.thinking is not None
    end, made, num_thought = settings.thinking.forced[0], list[int](), 0
    while not num_thought or len(made) < num_thought + settings.max_new_tokens:
        if not num_thought and len(made) == settings.thinking.max_tokens:
            token = end
        else:
            logits = model(torch.tensor([[*prompt, *made]]), use_cache=False).logits[0, -1]
            if (len(made) - num_thought if num_thought else 0) < settings.min_new_tokens:
                logits[model.generation_config.eos_token_id] = -torch.inf
            token = int(logits.argmax())
        made.append(token)
        if token in model.generation_config.eos_token_id:
            break
        num_thought = num_thought or (len(made) if token == end else 0)
    return tuple(made)


@pytest.mark.parametrize(
    ("plan", "max_tokens", "min_new_tokens", "finishes"),
    [
        (None, 14, 0, {"stop", "length", "turn"}),
        (MIXED, 34, 0, {"stop", "length", "turn"}),
        # No end token before so many of the answer: none in the thought either.
        (MIXED, 14, 6, {"stop", "length"}),
    ],
)
def test_a_batch_of_thoughts_is_what_each_prompt_thinks_alone(
    plan: Any, max_tokens: int, min_new_tokens: int, finishes: set[str]
) -> None:
    model, prompts = random_model("llama", plan), prompts_of_a_sweep()
    thinking = random_thinking(model, max_tokens)
    settings = GenerationSettings(max_new_tokens=12, min_new_tokens=min_new_tokens, thinking=thinking)
    answers = together(model, prompts, settings)
    assert {one.thought_finish_reason for one in answers} == finishes
    made = [one.token_ids for one in answers]
    assert made == [expected(model, prompt, settings) for prompt in prompts]
    assert made == [together(model, [prompt], settings)[0].token_ids for prompt in prompts]


def row_of(text: str, prompt: str = "", stop: tuple[str, ...] = (), **changes: Any) -> ThinkingRow:
    """Return a row that has read a text of one token a byte, whose marks are no tokens."""
    encode = TOKENIZER.encode
    thinking = ThinkingSettings(start="<t>", end="</t>", forced=tuple(encode("</t>")), max_tokens=12)
    settings = GenerationSettings(max_new_tokens=9, stop=stop, thinking=replace(thinking, **changes))
    row = ThinkingRow(settings, TOKENIZER, [TOKENIZER.eos_token_id], encode(prompt))
    for token in encode(text):
        row.read([token if row.forced is None else row.forced])
    return row


@pytest.mark.parametrize(
    ("text", "prompt", "thought", "answer", "finish"),
    [
        ("<t>hm</t>Yes.", "", "hm", "Yes.", "stop"),
        ("\n<t>hm</t>\n\nYes.", "", "hm", "\n\nYes.", "stop"),
        ("hm</t>Yes.", "<t>\n", "hm", "Yes.", "stop"),
        # A prompt that ends its thought, as one that does not think, opens none.
        ("Yes.", "<t></t>", None, "Yes.", None),
        ("<b>Yes", "", None, "<b>Yes", None),
        # What has no mark at its beginning is a thought where one at its end comes within the room for thoughts.
        ("hm</t>Yes.", "", "hm", "Yes.", "stop"),
        # Of several end marks the first one counts.
        ("<t>hm</t>a</t>b", "", "hm", "a</t>b", "stop"),
        ("<t>hmmmmmmmm####mmm", "", "hmmmmmmmm", "mmm", "length"),
        ("<t>é", "", "é", "", "turn"),
    ],
)
def test_a_row_is_a_thought_and_an_answer(
    text: str, prompt: str, thought: str | None, answer: str, finish: str | None
) -> None:
    row = row_of(text, prompt)
    mark, tokens = row.answer
    assert (row.thought, TOKENIZER.decode(tokens), row.thought_finish, mark) == (thought, answer, finish, "")
    assert row.num_thought_tokens + len(tokens) == len(row.tokens)


def test_an_answer_has_its_room_whatever_was_thought() -> None:
    for text in ("<t>hm</t>123456789abc", "123456789abc", "<t>hmmmmmmmm####123456789abc"):
        row = row_of(text)
        assert (row.num_answer, row.reason, TOKENIZER.decode(row.answer[1])) == (9, "length", "123456789")
    assert row_of("<t>a.b</t>c.d", stop=(".",)).answer[1] == TOKENIZER.encode("c.")


def test_a_mark_that_is_no_token_may_end_within_one_that_goes_on() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["t> Y"])
    thinking = ThinkingSettings(start="<t>", end="</t>", forced=tuple(tokenizer.encode("</t>")), max_tokens=12)
    row = ThinkingRow(GenerationSettings(max_new_tokens=9, thinking=thinking), tokenizer, [2], [5, 5])
    row.read(tokenizer.encode("<t>hm</t> Yes."))
    mark, tokens = row.answer
    assert row.thought == "hm"
    assert tokenizer.decode(tokens).removeprefix(mark) == " Yes."
