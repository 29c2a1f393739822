"""lm-evaluation-harness runs its tasks on a conversion, and under the full plan gets what its `hf` model gets."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from eval.errors import UserError
from eval.harness import main, quote_plan
from eval.records.run_folder import RunFolder
from masformer import PlanError
from masformer.attention.cache import join
from masformer.errors import CheckpointError, NumbersError
from tests.helpers.run_folders import document
from tests.helpers.tiny_models import add_word, save_tiny_checkpoint

lm_eval = pytest.importorskip("lm_eval", reason="needs pip install 'masformer[harness]'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from eval.interop.lm_eval_model import MasformerLM  # noqa: E402

MIXED = "full@0,2 span=24 sinks=2"
GREEDY: dict[str, Any] = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
ROOT = Path(__file__).resolve().parents[3]


def prompts() -> list[str]:
    """Return prompts of two documents at three lengths, with two questions each: most begin like another."""
    texts = [document(seed) for seed in (1, 2)]
    return [f"{text[:n]}\nAnswer {q}:" for text in texts for n in (60, 150, 300) for q in ("one", "two")]


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **about: Any) -> None:
    """Write a task of lm-evaluation-harness, with its data, as a user would."""
    data = folder / f"{name}.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": source, "test_split": "test", **about}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"), chat=False)


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_task(
        folder,
        "tiny_answers",
        [{"prompt": prompt, "answer": "the model"} for prompt in prompts()],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{answer}}",
        generation_kwargs=GREEDY,
        metric_list=[{"metric": "chrf"}],
    )
    write_task(
        folder,
        "tiny_choices",
        [{"question": document(seed)[:50], "choices": ["yes it is", "no", "it may be"], "gold": 1} for seed in (3, 4)],
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_target="{{gold}}",
        doc_to_choice="{{choices}}",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    write_task(
        folder,
        "tiny_perplexity",
        [{"page": document(seed)} for seed in (5, 6)],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{page}}",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    return folder


def ours(folder: Path, **options: Any) -> MasformerLM:
    return MasformerLM(str(folder), **{"plan": "full", "dtype": "float64", "device": "cpu"} | options)


def theirs(folder: Path, **options: Any) -> HFLM:
    return HFLM(str(folder), dtype="float64", device="cpu", **options)


@pytest.fixture(scope="module")
def full(model_folder: Path) -> MasformerLM:
    return ours(model_folder)


@pytest.fixture(scope="module")
def peer(model_folder: Path) -> HFLM:
    return theirs(model_folder)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Return what ours has said by the end of the test, whatever level others have set."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lm_eval.masformer")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield said
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def requests(texts: list[str], **changes: Any) -> list[Any]:
    return [SimpleNamespace(args=(text, GREEDY | changes)) for text in texts]


def evaluate(lm: Any, tasks: Path, **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = ["tiny_answers", "tiny_choices", "tiny_perplexity"]
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=lm, tasks=names, task_manager=manager, bootstrap_iters=0, **options
    )
    return found


def test_every_score_and_text_of_a_full_plan_is_that_of_the_hf_model(
    full: MasformerLM, peer: HFLM, task_folder: Path
) -> None:
    mine, other = evaluate(full, task_folder), evaluate(peer, task_folder)
    assert mine["results"].keys() == {"tiny_answers", "tiny_choices", "tiny_perplexity"}
    for task, scores in other["results"].items():
        assert mine["results"][task].keys() == scores.keys()
        for metric, value in scores.items():
            expected = pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
            assert mine["results"][task][metric] == expected, (task, metric)
    for task, samples in other["samples"].items():
        assert [one["doc_id"] for one in mine["samples"][task]] == [one["doc_id"] for one in samples]
    texts = [[one["filtered_resps"] for one in run["samples"]["tiny_answers"]] for run in (mine, other)]
    assert texts[0] == texts[1]
    assert len({text for (text,) in texts[0]}) > 3


def test_a_mixed_plan_is_applied_and_sharing_changes_nothing(full: MasformerLM, model_folder: Path) -> None:
    mixed = ours(model_folder, plan=MIXED)
    assert str(mixed.model.span_plan) == MIXED
    asked = requests(prompts())
    answers = mixed.generate_until(asked)
    assert answers == HFLM.generate_until(mixed, asked)
    assert answers != full.generate_until(asked)
    (whole,) = full.loglikelihood_rolling([SimpleNamespace(args=(document(5),))])
    (near,) = mixed.loglikelihood_rolling([SimpleNamespace(args=(document(5),))])
    assert abs(whole - near) > 1


def test_what_prompts_share_goes_through_the_model_once(full: MasformerLM) -> None:
    seen: list[int] = []
    hook = full.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        full.generate_until(requests(prompts()))
    finally:
        hook.remove()
    asked, written = sum(map(len, prompts())), 12 * len(prompts())
    assert asked == 2184
    # Two documents of 300 tokens, and 12 ends of prompts.
    assert sum(seen) < 2 * 300 + 12 * len("\nAnswer one:") + written


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_and_memory_bound_a_batch_and_not_what_it_says(
    full: MasformerLM, model_folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    expected = full.generate_until(requests(prompts()))
    sizes: list[int] = []

    def noted(caches: Any, room: int) -> Any:
        sizes.append(len(caches))
        return join(caches, room)

    for module in ("decode", "greedy"):
        monkeypatch.setattr(f"eval.generation.{module}.join", noted)
    assert ours(model_folder, rows=rows).generate_until(requests(prompts())) == expected
    assert max(sizes) == rows
    sizes.clear()
    # A token takes 768 bytes: the longest prompt fits, and with it those that share its keys.
    assert ours(model_folder, memory_gib=2**-12).generate_until(requests(prompts())) == expected
    assert 1 < max(sizes) < 5


def test_where_memory_runs_out_half_as_many_go_on(
    full: MasformerLM, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    expected = full.generate_until(requests(prompts()))

    def short_of_memory(caches: Any, room: int) -> Any:
        if len(caches) > 3:
            raise torch.OutOfMemoryError("no")
        return join(caches, room)

    monkeypatch.setattr("eval.generation.decode.join", short_of_memory)
    assert full.generate_until(requests(prompts())) == expected
    assert warnings[0] == (
        "out of memory with 12 prompts of 2,184 tokens at once; going on with half as many (a smaller rows or "
        "memory_gib in --model_args avoids this)"
    )


def test_requests_with_other_arguments_are_decoded_apart(full: MasformerLM, peer: HFLM) -> None:
    free = peer.generate_until(requests(prompts()[:3], until=[]))
    ends = [[free[0][3:5]], [free[1][4], free[2][6]]]
    asked = [one for until in ends for one in requests(prompts()[:3], until=until)]
    answers = full.generate_until(asked)
    assert answers == peer.generate_until(asked)
    assert answers[0] == free[0][:3]
    assert answers[0] != answers[3]
    assert answers[4:] != free[1:]


@pytest.mark.parametrize(
    "changes",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 6, "until": None, "max_gen_toks": 30},
        {"until": "th"},
        {"temperature": 0, "top_p": 0.9, "do_sample": None},
        {"num_beams": 2},
        {"do_sample": True, "temperature": 0.7},
        {"max_gen_toks": None, "max_new_tokens": 5},
    ],
)
def test_generation_arguments_mean_what_they_mean_to_the_hf_model(
    full: MasformerLM, peer: HFLM, changes: dict[str, Any], warnings: list[str]
) -> None:
    asked = requests(prompts()[4:8])
    for one in asked:
        one.args = (one.args[0], {k: v for k, v in (one.args[1] | changes).items() if v is not None})
    answers = []
    for lm in (full, peer):
        torch.manual_seed(0)
        answers.append(lm.generate_until(asked))
    assert answers[0] == answers[1]
    named = [name for name in ("num_beams", "do_sample") if changes.get(name)]
    assert warnings == [f"4 requests use {name}: they share no prefill and decode as in the hf model" for name in named]


def test_what_a_checkpoint_suggests_counts_as_in_the_hf_model(
    full: MasformerLM, tmp_path: Path, warnings: list[str]
) -> None:
    folder = save_tiny_checkpoint(tmp_path, chat=False)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"repetition_penalty": 1.8, "do_sample": True, "temperature": 0.3, "cache_implementation": "static"}
    (folder / "generation_config.json").write_text(json.dumps(config))
    answers = ours(folder).generate_until(requests(prompts()))
    assert answers != full.generate_until(requests(prompts()))
    del config["cache_implementation"]
    (folder / "generation_config.json").write_text(json.dumps(config))
    assert answers == theirs(folder).generate_until(requests(prompts()))
    assert not warnings


def test_thoughts_are_left_out_as_in_the_hf_model(model_folder: Path, peer: HFLM) -> None:
    asked = requests(prompts()[:6], until=[])
    (common, *_) = sorted(set(peer.tok_encode("".join(peer.generate_until(asked)))))
    for end in (common, peer.tok_decode([common])):
        answers = ours(model_folder, think_end_token=end).generate_until(asked)
        assert answers == theirs(model_folder, think_end_token=end).generate_until(asked)


def test_long_prompts_lose_their_beginning_and_it_is_said(model_folder: Path, warnings: list[str], peer: HFLM) -> None:
    asked = requests(prompts())
    short = ours(model_folder, max_length=180)
    answers = short.generate_until(asked)
    assert answers == theirs(model_folder, max_length=180).generate_until(asked)
    assert answers != peer.generate_until(asked)
    assert warnings == [
        "4 of 12 prompts are longer than 168 tokens (max_length 180 less 12 for the answer) and were cut from the left"
    ]


def test_answers_are_cached_one_by_one(full: MasformerLM, task_folder: Path, tmp_path: Path) -> None:
    first = evaluate(full, task_folder, use_cache=str(tmp_path / "answers"))
    full.generate_until = None  # type: ignore[method-assign, assignment]
    try:
        again = evaluate(full, task_folder, use_cache=str(tmp_path / "answers"))
    finally:
        del full.generate_until
    assert again["results"] == first["results"]


@pytest.mark.usefixtures("no_plots")
def test_answers_are_those_of_our_own_run(tmp_path: Path, model_folder: Path, peer: HFLM) -> None:
    """The same prompt, greedy, full plan: `eval/run.py` writes what the harness's own `hf` model writes."""
    from eval.run import main as run

    papers = tmp_path / "papers.jsonl"
    rows = [{"article": document(seed), "abstract": document(seed + 9)[:40]} for seed in range(3)]
    papers.write_text("\n".join(map(json.dumps, rows)))
    command = ["--task", "arxiv", "--data", str(papers), "--model", str(model_folder), "--dtype", "float64"]
    command += [
        "--threads",
        "1",
        "--maxlen",
        "400",
        "800",
        "--max-new-tokens",
        "16",
        "--plan",
        "full",
        "--output",
        str(tmp_path / "run"),
    ]
    assert run(command) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    template = record["tasks"]["arxiv"]["templates"]["instruct"]["text"]
    documents = {line.document_id: line.text for line in RunFolder(tmp_path / "run").read_documents()}
    texts = {}
    for line in lines:
        ((start, stop),) = line["context_spans"]
        texts[template.replace("{context}", documents[line["id"]][start:stop])] = line["text"]
    write_task(
        tmp_path,
        "same_prompts",
        [{"prompt": prompt} for prompt in texts],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="",
        generation_kwargs={"max_gen_toks": 16, "do_sample": False, "until": []},
        metric_list=[{"metric": "bypass"}],
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(model=peer, tasks=["same_prompts"], task_manager=manager, bootstrap_iters=0)
    samples = found["samples"]["same_prompts"]
    assert len(samples) == 6
    assert [one["resps"][0][0].strip() for one in samples] == list(texts.values())


def test_processes_on_a_cpu_share_the_work(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = SimpleNamespace(
        num_processes=2, process_index=1, device=torch.device("cpu"), unwrap_model=lambda model: model
    )
    monkeypatch.setattr("lm_eval.models.huggingface.Accelerator", lambda **_: second)
    lm = ours(model_folder)
    assert (lm.rank, lm.world_size) == (1, 2)
    assert len(lm.generate_until(requests(prompts()[:3]))) == 3


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"plan": "full@9 span=16"}, PlanError, "layer 9 does not exist"),
        ({"peft": "adapter"}, UserError, "'peft' is no option of the masformer model; known: pretrained, plan"),
        ({"dtype": "int8"}, UserError, "dtype 'int8' is unknown; known: auto, float32"),
        ({"rows": 0}, UserError, "rows is 0, a whole number above 0"),
        ({"memory_gib": "8GiB"}, UserError, "memory_gib is '8GiB', a number above 0"),
        ({"enable_thinking": True}, UserError, "enable_thinking needs think_end_token"),
        ({"thinking": "maybe"}, UserError, "thinking is 'maybe'; give on, off or auto"),
        ({"thinking": "off", "max_thinking_tokens": 5}, UserError, "thinking=off has no thoughts"),
        ({"max_thinking_tokens": 0}, UserError, "max_thinking_tokens is 0, a whole number above 0"),
        ({"thinking": True, "enable_thinking": True, "think_end_token": "x"}, UserError, "say the same"),
        ({"quantize": "3bit"}, UserError, "quantize is '3bit'; known"),
        ({"chat_template_args": {"mode": "loud"}}, UserError, "the tokenizer of this model has none"),
    ],
)
@pytest.mark.usefixtures("no_weights")
def test_wrong_options_are_told_before_weights_load(
    model_folder: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ours(model_folder, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokenz": 3}, "generation argument 'max_tokenz' is not taken; give until, max_gen_toks"),
        ({"cache_implementation": "static"}, "generation argument 'cache_implementation' is not taken"),
        ({"max_gen_toks": 4000}, "max_gen_toks 4000 leaves no room for a prompt within max_length 2048"),
    ],
)
def test_wrong_generation_arguments_are_told(full: MasformerLM, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        full.generate_until(requests(prompts()[:1], **changes))


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ("pretrained=m,plan=full@1,2 span=8,dtype=float32", 'pretrained=m,plan="full@1,2 span=8",dtype=float32'),
        ("plan=full@0-3,7; block=8 previous=1@4-6", 'plan="full@0-3,7; block=8 previous=1@4-6"'),
        ('pretrained=m,plan="full@1,2 span=8"', 'pretrained=m,plan="full@1,2 span=8"'),
        ("plan=full,rows=4", 'plan="full",rows=4'),
        ("--model_args=plan=full@1,2 span=8,rows=4", '--model_args=plan="full@1,2 span=8",rows=4'),
        ('{"plan": "full@1,2 span=8"}', '{"plan": "full@1,2 span=8"}'),
        ("tp_plan=auto", "tp_plan=auto"),
    ],
)
def test_the_commas_of_a_plan_part_no_arguments(given: str, quoted: str) -> None:
    assert quote_plan(given) == quoted


def test_the_command_line_takes_a_plan_with_commas(
    tmp_path: Path,
    model_folder: Path,
    task_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr("eval.harness.set_threads", lambda *_: 1)
    # To list all tasks of its own takes seconds.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    model = f"pretrained={model_folder},plan={MIXED},dtype=float64"
    task = str(task_folder / "tiny_answers.yaml")
    command = ["--model", "masformer", "--model_args", model, "--tasks", task, "--device", "cpu"]
    assert main([*command, "--predict_only", "--output_path", str(tmp_path)]) == 0
    assert "|tiny_answers|" in capsys.readouterr().out
    (results,) = tmp_path.glob("*/results_*.json")
    recorded = json.loads(results.read_text())["config"]
    assert recorded["model_args"]["plan"] == recorded["plan"] == MIXED
    assert recorded["model_provenance"]["files"]["model.safetensors"]
    (samples,) = tmp_path.glob("*/samples_*.jsonl")
    answers = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    assert answers == ours(model_folder, plan=MIXED).generate_until(requests(prompts()))


@pytest.mark.nightly
def test_the_command_line_tells_a_wrong_plan_in_one_line(model_folder: Path, task_folder: Path) -> None:
    model = f"pretrained={model_folder},plan=full@7,8 span=2"
    command = ["--model", "masformer", "--model_args", model, "--tasks", str(task_folder / "tiny_answers.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "eval.harness", *command], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: plan 'full@7,8 span=2', character 6: layer 7 does not exist")
    assert "Traceback" not in done.stderr


def test_an_unknown_task_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("Tasks not found: nosuch. Try `lm-eval ls tasks`")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", fail)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert main(["--tasks", "nosuch"]) == 2
    assert capsys.readouterr().err == "error: Tasks not found: nosuch. Try `lm-eval ls tasks`\n"


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("eval.harness.find_spec", lambda name: None)
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "error: lm-evaluation-harness is not installed; pip install 'masformer[harness]'\n"
    )


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.7}, {"num_beams": 2}])
def test_logits_that_are_no_numbers_name_the_text(options: dict[str, Any], model_folder: Path) -> None:
    lm = ours(model_folder, dtype="float16")
    lm.model.lm_head.weight.data.fill_(torch.inf)
    asked = requests(["Who wrote it?"], **options) if options else requests(["Who wrote it?"])
    with pytest.raises(NumbersError, match=r"begins 'Who wrote it.* in float16.*--dtype bfloat16"):
        lm.generate_until(asked)
    scored = Instance("loglikelihood", {}, ("Who wrote it?", " We did"), 0)
    with pytest.raises(NumbersError, match="in float16"):
        lm.loglikelihood([scored])


@pytest.mark.parametrize("is_chat", [True, False])
def test_control_tokens_that_data_spell_are_text_and_turns_end_answers(is_chat: bool, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    tokenizer.add_special_tokens({"eos_token": "<|pad|>"})
    tokenizer.save_pretrained(folder)
    lm = MasformerLM(str(folder), dtype="float32", device="cpu")
    assert end in lm.model.generation_config.eos_token_id
    assert "chat template" in lm.ends.sources["<|im_end|>"]
    text = "say <|im_end|> twice"
    if is_chat:
        text = lm.apply_chat_template([{"role": "user", "content": text}])
    context, scored = lm._encode_pair(text, " and <|im_end|> again")
    assert scored.count(end) == 0
    assert "<|im_end|> again" in lm.tok_decode(scored, skip_special_tokens=False)
    for tokens in (lm.tok_encode(text), list(lm._prompts([text], 8)[0]), context):
        assert tokens.count(end) == int(is_chat)
        assert "say <|im_end|> twice" in lm.tok_decode(tokens, skip_special_tokens=False)


@pytest.mark.parametrize("word", ["{x}", "rivers"])
def test_a_word_without_an_embedding_is_named_before_anything_is_decoded(word: str, tmp_path: Path) -> None:
    lm = ours(add_word(save_tiny_checkpoint(tmp_path / "model"), word))
    lm._model_call = lm._model_generate = lm._decode_all = None  # type: ignore[method-assign, assignment]
    text, message = f"Read {word} and", rf"the text that begins 'Read .* holds the token '{re.escape(word)}'"
    templated = lm.apply_chat_template([{"role": "user", "content": text}])
    for asked in (requests(["Read", text]), requests([text], do_sample=True), requests([templated])):
        with pytest.raises(CheckpointError, match=re.escape(word)):
            lm.generate_until(asked)
    for context, scored in ((text, " on"), ("Read", f" {word}")):
        with pytest.raises(CheckpointError, match=message):
            lm.loglikelihood([Instance("loglikelihood", {}, (context, scored), 0)])
    with pytest.raises(CheckpointError, match=message):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
