"""Encoder-decoders through eval/run.py: what transformers' `generate` gives each document alone, in fp64."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel

from eval.compare import main as compare
from eval.config.generation import GenerationSettings
from eval.finetune import main as finetune
from eval.generation.encoder_cost import EncoderDecoderSize
from eval.generation.encoder_decoder import EncodedDecoder, _EncodedRows, encode
from eval.generation.run_job import RunJob
from eval.generation.tree_decoder import Observer
from eval.perplexity import main as perplexity
from eval.placement import main as placement
from eval.run import main
from masformer.__main__ import main as masformer
from tests.helpers.forks import run_ranks
from tests.helpers.run_folders import without_checksums
from tests.helpers.tiny_models import (
    ENCODER_DECODERS,
    framing_tokenizer,
    save_encoder_decoder,
    save_tiny_checkpoint,
    tiny_encoder_decoder,
)

pytestmark = pytest.mark.usefixtures("no_plots")

TOKENIZER = framing_tokenizer()
LENGTHS = (100, 420)
NUM_NEW = 40  # more than a batch decodes between two looks at who has ended
ENDS = [2, *range(10, 30)]
TEXT = "long documents hold many words and every word costs a token of context to read"
WORDS = TEXT.split()
DOCUMENTS = [
    " ".join(WORDS[(seed * 7 + at * (seed + 3)) % len(WORDS)] for at in range(40 + 15 * seed)) for seed in range(5)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Checkpoints of all cases, which end answers at different lengths and suggest beams and penalties."""
    folders = {}
    for case in ENCODER_DECODERS:
        folders[case] = save_encoder_decoder(tmp_path_factory.mktemp(case), case)
        suggested = GenerationConfig(
            eos_token_id=ENDS,
            pad_token_id=0,
            bos_token_id=1,
            decoder_start_token_id=2,
            num_beams=4,
            length_penalty=2.0,
            early_stopping=True,
            no_repeat_ngram_size=3,
            min_length=30,
            max_length=90,
            forced_eos_token_id=2,
            forced_bos_token_id=5 if case in ("bart", "led") else None,
        )
        suggested.save_pretrained(folders[case])
    return folders


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "test.jsonl"
    rows = [{"article": text, "abstract": "Words cost tokens."} for text in DOCUMENTS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def command(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    arguments = f"--task arxiv --model {model} --data {data} --max-new-tokens {NUM_NEW} --threads 1 --dtype float64"
    return [*arguments.split(), "--maxlen", *map(str, LENGTHS), "--output", str(output), *more]


def lines(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    text = without_checksums((folder / "predictions.jsonl").read_text())
    return {(line["id"], line["maxlen"]): line for line in map(json.loads, text.splitlines())}


def record(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64)
    return model.eval()


@torch.no_grad()
def alone(model: PreTrainedModel, text: str, maxlen: int, **options: Any) -> list[int]:
    """Return what plain transformers writes about the beginning of a document, cut by the tokenizer."""
    ids = TOKENIZER(text, truncation=True, max_length=maxlen, return_tensors="pt").input_ids
    more = {}
    if model.config.model_type == "led":
        more["global_attention_mask"] = torch.zeros_like(ids)
        more["global_attention_mask"][:, 0] = 1
    if model.config.model_type == "bigbird_pegasus":
        model.get_encoder().set_attention_type("block_sparse")
    forced = model.generation_config.forced_bos_token_id
    model.generation_config = GenerationConfig()  # else what it suggests fills what is not said
    config = GenerationConfig(
        max_new_tokens=NUM_NEW,
        do_sample=False,
        eos_token_id=ENDS,
        pad_token_id=0,
        decoder_start_token_id=2,
        forced_bos_token_id=forced,
        **options,
    )
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, **more)
    model.generation_config.forced_bos_token_id = forced
    return list(made[0, 1:].tolist())


def check(folder: Path, model: PreTrainedModel, **options: Any) -> None:
    """Assert that each prediction is what transformers writes about its document alone."""
    found = lines(folder)
    assert len(found) == len(DOCUMENTS) * len(LENGTHS)
    for index, text in enumerate(DOCUMENTS):
        for maxlen in LENGTHS:
            line, tokens = found[f"test-{index}", maxlen], alone(model, text, maxlen, **options)
            is_ended = tokens[-1] in ENDS
            said = tokens[:-1] if is_ended else tokens
            assert line["text"] == TOKENIZER.decode(said, skip_special_tokens=True).strip()
            assert line["num_generated_tokens"] == len(tokens)
            assert line["finish_reason"] == ("stop" if is_ended else "length")


@pytest.mark.parametrize("case", list(ENCODER_DECODERS))
def test_a_run_writes_what_transformers_does_for_each_document_alone(
    case: str, models: Mapping[str, Path], data: Path, tmp_path: Path
) -> None:
    assert main(command(models[case], data, tmp_path)) == 0
    check(tmp_path, load(models[case]))
    found = lines(tmp_path)
    assert max(line["batch_size"] for line in found.values()) > 1
    assert len({line["text"] for line in found.values()}) > len(DOCUMENTS), "what is read decides what is written"
    for index, text in enumerate(DOCUMENTS):
        for maxlen in LENGTHS:
            line = found[f"test-{index}", maxlen]
            # Special tokens count, and the answer does not.
            kept = min(len(text), maxlen - 2)
            assert (line["prompt_tokens"], line["context_tokens_kept"]) == (kept + 2, kept)
            assert line["context_tokens_dropped"] == len(text) - kept
            assert line["prefilled_tokens"] in (0, kept + 2)
    assert record(tmp_path)["tasks"]["arxiv"]["templates"]["document"]["text"] == "{context}"


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "length_penalty": 2.0, "min_new_tokens": 9},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 35},
    ],
    ids=["beams", "penalties"],
)
@pytest.mark.parametrize("case", ["led", "t5"])
def test_options_of_a_run_are_those_of_transformers(
    case: str, options: dict[str, Any], models: Mapping[str, Path], data: Path, tmp_path: Path
) -> None:
    flags = [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert main(command(models[case], data, tmp_path, *flags)) == 0
    check(tmp_path, load(models[case]), **options)


def test_what_a_checkpoint_suggests_is_recorded_and_left_out(
    models: Mapping[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(models["led"], data, tmp_path, "--limit", "1")) == 0
    identity = record(tmp_path)["identity"]
    assert identity["plan"] is None
    assert identity["engine"] == {
        "name": "local",
        "kind": "encoder-decoder",
        "answers_begin": ["</s>", TOKENIZER.convert_ids_to_tokens(5)],
        "global_attention": "first token",
        "suggested_and_unused": {
            "max_length": 90,
            "min_length": 30,
            "num_beams": 4,
            "length_penalty": 2.0,
            "early_stopping": True,
            "no_repeat_ngram_size": 3,
            "forced_eos_token_id": 2,
        },
    }
    printed = capsys.readouterr().out
    assert "its checkpoint suggests max_length 90, min_length 30, num_beams 4" in printed
    assert "maxlen counts tokens of the encoder" in (tmp_path / "report.md").read_text()


def test_a_killed_run_goes_on_to_what_it_would_have_been(
    models: Mapping[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(models["pegasus_x"], data, whole, "--batch-size", "2")) == 0
    append, written = RunJob.append, []

    def die(job: RunJob, *arguments: Any) -> None:
        append(job, *arguments)
        written.append(arguments)
        if len(written) == 5:
            raise RuntimeError("killed")

    monkeypatch.setattr(RunJob, "append", die)
    with pytest.raises(RuntimeError, match="killed"):
        main(command(models["pegasus_x"], data, killed, "--batch-size", "2"))
    assert not (killed / "predictions.jsonl").exists()
    monkeypatch.setattr(RunJob, "append", append)
    assert main(command(models["pegasus_x"], data, killed, "--batch-size", "2")) == 0
    timed = ("seconds", "prefill_seconds", "decode_seconds", "peak_bytes")
    one, other = (
        {key: {name: value for name, value in line.items() if name not in timed} for key, line in lines(folder).items()}
        for folder in (whole, killed)
    )
    assert one == other
    assert [session["num_to_generate"] for session in record(killed)["sessions"]] == [10, 5]


def test_two_processes_write_what_one_does(models: Mapping[str, Path], data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(models["led"], data, one, "--truncation", "middle")) == 0
    done = run_ranks("eval.run", command(models["led"], data, two, "--truncation", "middle"))
    assert done.returncode == 0, done.stderr
    assert record(two)["world_size"] == 2
    assert {key: line["text"] for key, line in lines(two).items()} == {
        key: line["text"] for key, line in lines(one).items()
    }
    cut = lines(one)["test-4", 100]
    # 98 tokens beside the two special ones, from both ends.
    assert cut["context_spans"] == [[0, 49], [len(DOCUMENTS[4]) - 49, len(DOCUMENTS[4])]]


def test_a_batch_that_memory_does_not_hold_is_halved(
    models: Mapping[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []

    def rows(states: Sequence[Any], *arguments: Any) -> Any:
        encoded.append(len(states))
        if len(states) > 2:
            raise torch.OutOfMemoryError
        return _EncodedRows(states, *arguments)

    monkeypatch.setattr("eval.generation.encoder_decoder._EncodedRows", rows)
    assert main(command(models["longt5-tglobal"], data, tmp_path)) == 0
    assert max(encoded) > 2
    check(tmp_path, load(models["longt5-tglobal"]))
    assert max(line["batch_size"] for line in lines(tmp_path).values()) == 2


def test_samples_belong_to_the_prompt_and_the_seed(models: Mapping[str, Path], data: Path, tmp_path: Path) -> None:
    sampled = ["--temperature", "1", "--num-samples", "2", "--limit", "2"]
    for name in ("one", "two"):
        assert main(command(models["bart"], data, tmp_path / name, *sampled)) == 0
    one, two = (
        {key: [sample["text"] for sample in line["samples"]] for key, line in lines(tmp_path / name).items()}
        for name in ("one", "two")
    )
    assert one == two
    assert all(first != second for first, second in one.values())
    # The second run asks for one of the documents alone.
    assert main(command(models["bart"], data, tmp_path / "alone", *sampled[:-1], "1")) == 0
    for key, line in lines(tmp_path / "alone").items():
        assert [sample["text"] for sample in line["samples"]] == one[key]


def test_other_prompts_are_one_flag_away(models: Mapping[str, Path], data: Path, tmp_path: Path) -> None:
    assert main(command(models["t5"], data, tmp_path, "--template", "instruct-plain,document", "--maxlen", "300")) == 0
    text = without_checksums((tmp_path / "predictions.jsonl").read_text())
    found = {(line["template"], line["id"], line["maxlen"]): line for line in map(json.loads, text.splitlines())}
    for name, about in record(tmp_path)["tasks"]["arxiv"]["templates"].items():
        line = found[name, "test-4", 300]
        assert line["prompt_tokens"] == 300
        assert line["context_tokens_kept"] == 300 - 2 - len(about["text"].replace("{context}", ""))


def test_a_decoder_is_compared_with_it_under_the_prompt_of_each(
    models: Mapping[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = save_tiny_checkpoint(tmp_path / "decoder")
    assert main(command(models["led"], data, tmp_path / "one", "--maxlen", "300")) == 0
    assert main(command(decoder, data, tmp_path / "two", "--maxlen", "300")) == 0
    capsys.readouterr()
    assert compare([str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert "arxiv, document to instruct, 300" in capsys.readouterr().out
    # With two templates on a side, it is not known which one is meant.
    assert main(command(decoder, data, tmp_path / "two", "--maxlen", "300", "--template", "abstract")) == 0
    expect_line(compare, [str(tmp_path / "one"), str(tmp_path / "two")], capsys, "no task, template and length in")


def test_a_short_text_does_not_change_how_later_ones_are_read() -> None:
    model = tiny_encoder_decoder("bigbird_pegasus").double()
    text = TOKENIZER(DOCUMENTS[1]).input_ids
    before = encode(model, text)
    encode(model, text[:9])
    assert model.get_encoder().attention_type == "original_full"
    assert torch.equal(encode(model, text), before)


@pytest.mark.parametrize(("stop", "answer"), [((), "a\nb"), (("\n",), "a"), (("\nb", "c"), "a")])
def test_lines_of_pegasus_end_as_lines(stop: tuple[str, ...], answer: str) -> None:
    model, said = tiny_encoder_decoder("pegasus"), TOKENIZER("a<n>b", add_special_tokens=False).input_ids
    size = EncoderDecoderSize(model.config, 4)
    decoder = EncodedDecoder(model, TOKENIZER, Observer(), "", size, (2, None))
    model.generate = lambda **_: torch.tensor([[2, *said, 2]])  # type: ignore[method-assign]
    model.generation_config.eos_token_id = 2
    settings = GenerationSettings(max_new_tokens=9, stop=stop)
    [made] = decoder._decode([said], [encode(model, said)], settings, lambda _: None)
    assert made.text == answer


@pytest.mark.parametrize("case", ["led", "longt5-tglobal", "bigbird_pegasus"])
def test_costs_are_those_of_what_ran(case: str, models: Mapping[str, Path], data: Path, tmp_path: Path) -> None:
    assert main(command(models[case], data, tmp_path)) == 0
    model = load(models[case])
    size = EncoderDecoderSize(model.config, 8)
    for line in lines(tmp_path).values():
        num_prompt, num_new = line["prompt_tokens"], line["num_generated_tokens"]
        assert line["cache_bytes"] == cache_bytes(model, num_prompt, num_new)
        assert line["seconds"] == line["prefill_seconds"] + line["decode_seconds"]
        assert line["attention_flops"] == size.attention_flops(num_prompt, [num_new])
        assert (line["attention_flops"] is None) == (case == "bigbird_pegasus")
    prompts = [[5] * 100, [5] * 128]
    needed = sum(cache_bytes(model, 128, NUM_NEW) for _ in prompts)
    assert size.num_bytes(size.tree(prompts).ends, NUM_NEW, 1) == needed, "a batch is padded"
    assert size.num_weights == sum(weight.numel() for weight in model.parameters())


def cache_bytes(model: PreTrainedModel, num_prompt: int, num_new: int) -> int:
    """Return the bytes of a real cache after a prompt and an answer of so many tokens, the last of which it has too."""
    ids = torch.full((1, num_prompt), 5)
    cache = model(input_ids=ids, decoder_input_ids=torch.full((1, num_new), 5), use_cache=True).past_key_values
    parts = (cache.self_attention_cache, cache.cross_attention_cache)
    return sum(layer.keys.nbytes + layer.values.nbytes for part in parts for layer in part.layers)


def test_a_dry_run_says_what_an_encoder_reads(
    models: Mapping[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(models["led"], data, tmp_path / "run", "--dry-run")) == 0
    printed = capsys.readouterr().out
    total = sum(min(len(text) + 2, maxlen) for text in DOCUMENTS for maxlen in LENGTHS)
    distinct = len({TOKENIZER.decode(TOKENIZER(text).input_ids[:n]) for text in DOCUMENTS for n in LENGTHS})
    assert distinct == len(DOCUMENTS) * len(LENGTHS)
    assert f"{total:,} to prefill at most, of {total:,} asked for (1.00)" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_weights")
def test_wrong_input_is_one_line_before_weights_load(
    models: Mapping[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = save_encoder_decoder(tmp_path / "endless", "t5", decoder_start_token_id=None, bos_token_id=None)
    (endless / "generation_config.json").unlink()
    beyond = save_encoder_decoder(tmp_path / "beyond", "t5")
    GenerationConfig(decoder_start_token_id=9999).save_pretrained(beyond)
    other = save_encoder_decoder(tmp_path / "other", "bart")
    config = json.loads((other / "config.json").read_text())
    marian = {"model_type": "marian", "architectures": ["MarianMTModel"]}
    (other / "config.json").write_text(json.dumps(config | marian))
    run = tmp_path / "run"
    for folder, more, parts in [
        (models["led"], ["--plan", "full"], ["--plan full gives spans to a decoder", "encoder-decoder (led)"]),
        (models["led"], ["--maxlen", "4096"], ["maxlen 4096 is beyond the 2048 positions of the encoder of"]),
        (models["bart"], ["--maxlen", "4096", "--allow-extrapolation"], ["a fixed table of them"]),
        (models["pegasus_x"], ["--maxlen", "4096"], ["maxlen 4096 is beyond", "--allow-extrapolation"]),
        (models["led"], ["--max-new-tokens", "97"], ["--max-new-tokens 97 is beyond the 96 positions of the decoder"]),
        (models["led"], ["--maxlen", "1"], ["maxlen 1 is too small", "special tokens need 2"]),
        (endless, [], ["nothing says which token begins an answer", "decoder_start_token_id"]),
        (beyond, [], ["an answer of", "begins with token 9999, and it has embeddings for 260"]),
        (other, [], ["is a MarianMTModel, an encoder-decoder that has not been compared", "led, longt5"]),
    ]:
        expect_line(main, command(folder, data, run, *more), capsys, *parts)
    assert not run.exists()


@pytest.mark.usefixtures("no_weights")
def test_commands_for_decoders_say_which_one_takes_it(
    models: Mapping[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(models["led"]), str(tmp_path / "out")
    of_data = ["--task", "arxiv", "--data", str(data), "--model", model, "--output", out]
    for script, arguments in [
        (perplexity, [*of_data, "--maxlen", "100"]),
        (finetune, [*of_data, "--maxlen", "100"]),
        (placement, [*of_data, "--maxlen", "100"]),
        (masformer, ["convert", model, "--output", out, "--plan", "full"]),
        (masformer, ["show", model]),
    ]:
        expect_line(script, arguments, capsys, "an encoder-decoder, not a decoder; eval/run.py takes it")
    assert not (tmp_path / "out").exists()


def expect_line(script: Any, arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Assert that a command ends with status 2 and one line that holds the parts."""
    capsys.readouterr()
    assert script(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1, told
    for part in parts:
        assert part in told[0], told[0]
