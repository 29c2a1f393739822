"""The likelihood of references at the prompts of a run: as of whole sequences, resumed, and read like any metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.backend import open_backend
from eval.generation.local import LocalBackend
from eval.generation.prompt_tree import TreeCaches
from eval.generation.requests import Request
from eval.generation.run_job import RunJob
from eval.generation.run_job import open_run as open_job
from eval.ladder import main
from eval.losses import likelihood
from eval.losses.likelihood import check_backend
from eval.merge import main as merge
from eval.records.read_run import open_run
from eval.records.schema import MetricLine, Prediction
from eval.run import main as run
from eval.runtime.processes import Process
from eval.scoring.metric_files import read_metric_file
from masformer import SpanPlan, apply_plan
from tests.helpers.engine_answers import log_likelihood
from tests.helpers.engine_faults import BROKEN, from_number
from tests.helpers.engine_standin import EngineStandIn, engine_standin
from tests.helpers.forks import run_ranks
from tests.helpers.run_folders import read_scores
from tests.helpers.texts import read, text
from tests.helpers.tiny_models import LAYERS, save_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")

FILE = "metrics/likelihood@1.jsonl"
ANSWERS = ["River 1 rose.", "The river rose by a metre, and then fell.", "It rose."]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two documents with two questions each, some of several references."""
    rows = [
        {
            "id": f"{number}-{place}",
            "context": text(number, 90 + 60 * number),
            "query": query,
            "target": ANSWERS[place:],
        }
        for number in range(2)
        for place, query in enumerate(("What rose?", "By how much did it rise?"))
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data.jsonl"


@pytest.fixture
def least(data: Path, model: Path, tmp_path: Path) -> list[str]:
    arguments = f"--task custom --data {data} --query-field query --maxlen 300 500 --max-new-tokens 24 --threads 1"
    return [*arguments.split(), "--model", str(model), "--output", str(tmp_path / "run")]


class TwoProcesses(Process):
    count = 2


def refuse(*_: Any) -> None:
    raise AssertionError("prompts are read again")


def without_seconds(run: Path | bytes) -> list[dict[str, Any]]:
    """Return the predictions of a folder or file without what differs from session to session."""
    content = run if isinstance(run, bytes) else (run / "predictions.jsonl").read_bytes()
    left_out = ("seconds", "prefill_seconds", "decode_seconds", "peak_bytes", "crc32")
    lines = [json.loads(line) for line in content.splitlines()]
    return [{name: value for name, value in line.items() if name not in left_out} for line in lines]


def requests_of(folder: Path) -> list[Request]:
    """Return what a run asks."""
    _, record = open_run(folder)
    config = RunConfig.recorded(record.config, folder, record.identity.threads)
    backend = open_backend(config)
    sources = open_job(config, config.load_tasks(), backend).requests(backend).sources
    return [request for source in sources for request in source.requests()]


def measured(folder: Path) -> dict[tuple[str, str, int], MetricLine]:
    lines = read_metric_file(folder / FILE).lines.values()
    return {(line.template, line.id, line.maxlen): line for line in lines}


@torch.no_grad()
def check(folder: Path, model: Path, plan: str, room: int = 24) -> None:
    """Check every likelihood of a folder against one pass over prompt and reference, without a cache, in fp64."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    if plan != "full":
        apply_plan(plain, SpanPlan.parse(plan, LAYERS))
    lines, requests = measured(folder), requests_of(folder)
    assert len(lines) == len(requests)
    assert any(one.prompt.num_context_dropped for one in requests)
    for request in requests:
        _, template, example_id, maxlen = request.key
        line, values = lines[template, example_id, maxlen], []
        assert line.references is not None
        for reference, found in zip(request.example.references, line.references, strict=True):
            answer = [*tokenizer(reference, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            kept = answer[:room]  # as many as an answer has room for
            window = torch.tensor([[*request.prompt.token_ids, *kept]])
            assert window.shape[1] <= maxlen
            logits = plain(window, use_cache=False).logits[0, -len(kept) - 1 : -1]
            total = float(F.cross_entropy(logits, torch.tensor(kept), reduction="sum"))
            assert found.negative_log_likelihood == pytest.approx(total, rel=1e-9)
            assert (found.num_tokens, found.num_tokens_dropped) == (len(kept), len(answer) - len(kept))
            values.append(total / len(kept))
        assert line.values == {"nll": pytest.approx(sum(values) / len(values), rel=1e-9)}


@pytest.mark.parametrize(
    ("plan", "template", "is_chat"),
    [
        ("full", "context_first,query_first", True),
        ("full@1 span=48 sinks=4", "context_first,context_first-plain", True),
        ("full@0 span=48 sinks=4", "context_first", False),
    ],
)
def test_likelihoods_are_those_of_one_pass_over_prompt_and_reference(
    plan: str, template: str, is_chat: bool, least: list[str], tmp_path: Path
) -> None:
    model = save_tiny_checkpoint(tmp_path / "fp64", chat=is_chat)
    more = ["--model", str(model), "--plan", plan, "--template", template, "--dtype", "float64", "--no-generate"]
    assert run([*least, *more]) == 0
    assert main([str(tmp_path / "run")]) == 0
    check(tmp_path / "run", model, plan)
    lines = measured(tmp_path / "run").values()
    assert {one.num_tokens_dropped > 0 for line in lines for one in line.references or ()} == {True, False}


def test_likelihoods_where_longer_prompts_turn_keys_otherwise(least: list[str], tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 400}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    model = save_tiny_checkpoint(
        tmp_path / "fp64", kind="phi3", original_max_position_embeddings=400, rope_parameters=rope
    )
    assert run([*least, "--model", str(model), "--dtype", "float64", "--no-generate"]) == 0
    assert main([str(tmp_path / "run")]) == 0
    assert {len(one.prompt.token_ids) > 400 for one in requests_of(tmp_path / "run")} == {True, False}
    check(tmp_path / "run", model, "full")


def test_likelihoods_of_prompts_of_which_both_halves_are_kept(tmp_path: Path, model: Path) -> None:
    rows = [
        {"input": "", "context": text(number, 200), "answers": [ANSWERS[number]], "_id": str(number)}
        for number in range(2)
    ]
    file = tmp_path / "gov_report.jsonl"
    common = {"length": 200, "dataset": "gov_report", "language": "en", "all_classes": None}
    file.write_text("".join(json.dumps(row | common) + "\n" for row in rows))
    least = f"--task longbench_gov_report --data {file} --template longbench --maxlen 400 700 --max-new-tokens 60"
    more = ["--model", str(model), "--dtype", "float64", "--threads", "1", "--output", str(tmp_path / "run")]
    assert run([*least.split(), *more, "--no-generate"]) == 0
    assert main([str(tmp_path / "run")]) == 0
    check(tmp_path / "run", model, "full", room=60)


def test_a_killed_measurement_goes_on_to_the_same_file(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run([*least, "--no-generate"]) == 0
    folder = tmp_path / "run"
    assert main([str(folder)]) == 0
    whole = (folder / FILE).read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 1 + 8
    # Of the last line, a kill has left a part.
    (folder / FILE).write_bytes(b"".join(lines[:4]) + lines[4][:50])
    taken: list[int] = []
    take = TreeCaches.take

    def counted(caches: TreeCaches, leaf: int) -> Any:
        taken.append(leaf)
        return take(caches, leaf)

    monkeypatch.setattr(TreeCaches, "take", counted)
    assert main([str(folder)]) == 0
    assert (folder / FILE).read_bytes() == whole
    assert len(taken) == 5
    assert main([str(folder)]) == 0
    assert len(taken) == 5, "nothing is measured twice"


def test_the_same_command_answers_a_folder_whose_likelihoods_are_measured(least: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run([*least, "--no-generate"]) == 0
    assert not (folder / "predictions.jsonl").exists()
    assert read(folder, "run.json")["world_size"] is None
    assert main([str(folder)]) == 0
    assert run(least) == 0
    assert read(folder, "run.json")["world_size"] == 1
    scores = read_scores(folder)
    assert scores.further is not None
    assert scores.further["likelihood"].num_absent == 0
    means = {
        one.maxlen: one.further["likelihood.nll"].mean for one in scores.results if one.kind == "model" and one.further
    }
    by_length: dict[int, list[Any]] = {300: [], 500: []}
    for (_, _, maxlen), line in measured(folder).items():
        by_length[maxlen].append(line.values["nll"])
    assert means == {maxlen: pytest.approx(sum(values) / 4) for maxlen, values in by_length.items()}
    # The likelihood is of the model: no floor, no oracle has one.
    assert not any("likelihood.nll" in (one.further or {}) for one in scores.results if one.kind != "model")
    (row,) = [one for one in scores.further_comparisons or () if one.subset == "all"]
    assert row.difference == pytest.approx((sum(by_length[500]) - sum(by_length[300])) / 4)
    assert [session.get("num_to_generate") for session in read(folder, "run.json")["sessions"]] == [0, 8]


@pytest.mark.usefixtures("no_weights")
def test_what_has_no_likelihood_is_one_line_before_weights_load(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def refused(part: str) -> None:
        assert main([str(folder)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert part in line
        assert not (folder / "metrics").exists()

    refused("holds no run; give the folder of one")
    assert run([*least, "--no-generate"]) == 0
    (tmp_path / "data.jsonl").rename(tmp_path / "elsewhere.jsonl")
    refused("data.jsonl")
    (tmp_path / "elsewhere.jsonl").rename(tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    ("plan", "template", "more"),
    [
        ("full", "context_first,query_first", []),
        ("full@1 span=48 sinks=4", "context_first", ["--temperature", "1", "--num-samples", "3"]),
        ("full", "context_first", ["--num-beams", "2"]),
    ],
)
def test_likelihoods_are_measured_while_prompts_are_answered(
    plan: str, template: str, more: list[str], least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = save_tiny_checkpoint(tmp_path / "fp64"), tmp_path / "run"
    arguments = [*least, "--model", str(model), "--plan", plan, "--template", template, "--dtype", "float64", *more]
    assert run(arguments) == 0
    alone = (folder / "predictions.jsonl").read_bytes()
    assert run([*arguments, "--overwrite", "--likelihood"]) == 0
    assert without_seconds(folder) == without_seconds(alone), "answers stay"
    monkeypatch.setattr(likelihood._OneTree, "lines", refuse)
    assert main([str(folder)]) == 0
    check(folder, model, plan)
    assert "used" in {rung["rung"] for rung in read(folder, "ladder.json")["rungs"]}


class Killed(UserError):
    pass


def test_a_run_that_was_killed_keeps_what_it_measured(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = save_tiny_checkpoint(tmp_path / "fp64"), tmp_path / "run"
    arguments = [*least, "--model", str(model), "--dtype", "float64", "--batch-size", "1", "--likelihood"]
    append, written = RunJob.append, []

    def append_three(self: RunJob, prediction: Prediction, process: Process) -> None:
        append(self, prediction, process)
        written.append(prediction)
        if len(written) == 3:
            raise Killed("killed")

    monkeypatch.setattr(RunJob, "append", append_three)
    assert run(arguments) == 2
    (pending,) = (folder / "metrics" / "pending").iterdir()
    lines = pending.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2, "of the third nothing was measured any more"
    pending.write_bytes(lines[0] + lines[1].replace(b'"nll": ', b'"nll": 1'))
    # Another version of the metric had another file.
    pending.with_name("likelihood@0-00000-x.jsonl").write_bytes(lines[1])
    assert run(arguments) == 0
    assert not (folder / "metrics" / "pending").exists()
    assert len(measured(folder)) == 8 - 2, "the third, and the damaged line"
    assert main([str(folder)]) == 0
    check(folder, model, "full")


def test_likelihoods_that_are_measured_again_come_from_no_pending_file(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    assert run([*least, "--likelihood"]) == 0
    metrics = folder / "metrics"
    (metrics / "pending").mkdir()
    lines = (folder / FILE).read_text().splitlines(keepends=True)
    (metrics / "pending" / "likelihood@1-00000-x.jsonl").write_text("".join(lines[1:]))
    monkeypatch.setattr(likelihood._OneTree, "lines", refuse)
    assert main([str(folder)]) == 0
    with pytest.raises(AssertionError, match="prompts are read again"):
        main([str(folder), "--metrics-again"])
    (metrics / "pending").mkdir()
    assert run([*least, "--overwrite"]) == 0
    assert not metrics.exists()


def test_shards_and_processes_measure_while_they_answer(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_checkpoint(tmp_path / "fp64")
    least = [*least[:-1], "RUN", "--model", str(model), "--dtype", "float64", "--likelihood"]

    def to(name: str) -> list[str]:
        return [str(tmp_path / name) if word == "RUN" else word for word in least]

    for part in (1, 2):
        assert run([*to(f"part-{part}"), "--shard", f"{part}/2"]) == 0
    assert merge([str(tmp_path / "part-1"), str(tmp_path / "part-2"), "--output", str(tmp_path / "merged")]) == 0
    done = run_ranks("eval.run", to("processes"))
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "processes" / "metrics").iterdir()] == ["likelihood@1.jsonl"]
    monkeypatch.setattr(likelihood._OneTree, "lines", refuse)
    for name in ("merged", "processes"):
        assert main([str(tmp_path / name)]) == 0
        check(tmp_path / name, model, "full")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--no-generate"], "answers by --engine local, and this is --no-generate"),
        (["--engine", "mock"], "answers by --engine local, and this is --engine mock"),
        (["--max-thinking-tokens", "9", "--think-end-token", "</think>"], "no reference comes with a thought"),
    ],
)
def test_runs_that_cannot_measure_while_they_answer_say_so_first(
    more: list[str], said: str, least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = least.index("--model")
    given = [*least[:at], *least[at + 2 :]] if "mock" in more else least
    assert run([*given, "--likelihood", *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def served(least: list[str], model: Path, server: EngineStandIn, *more: str) -> int:
    """Return the status of a run that a server answers."""
    command = f"--engine endpoint --base-url {server.base_url} --model tiny-instruct --tokenizer {model}"
    return run([one for one in least if one not in ("--threads", "1")] + [*command.split(), *more])


@pytest.mark.parametrize("engine", ["vllm", "someone"])
def test_servers_tell_the_likelihood_of_the_same_tokens(
    engine: str, least: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with engine_standin(engine=engine) as server:
        assert served(least, model, server, "--concurrency", "1") == 0
        num_answers = len(server.asked)
        server.fail(BROKEN, from_number(num_answers + 6))
        assert main([str(folder)]) == 2
        assert "the reference of '" in capsys.readouterr().err
        num_kept = len(measured(folder))
        assert 0 < num_kept < 8
        server.faults.clear()
        num_asked = len(server.asked)
        assert main([str(folder)]) == 0
        requests = requests_of(folder)
        num_references = sum(len(one.example.references) for one in requests)
        assert 2 < len(server.asked) - num_asked < 2 + num_references, "what is there is not asked again"
        asked_last = server.asked[-1].body
    assert asked_last["max_tokens"] == 1
    tokenizer, lines = AutoTokenizer.from_pretrained(model), measured(folder)
    assert len(lines) == len(requests) == 8
    for request in requests:
        _, template, example_id, maxlen = request.key
        line, prompt = lines[template, example_id, maxlen], list(request.prompt.token_ids)
        for reference, found in zip(request.example.references, line.references or (), strict=True):
            answer = [*tokenizer(reference, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            whole = [*prompt, *answer[:24]]
            told = [log_likelihood(whole, place) for place in range(len(prompt), len(whole))]
            assert found.negative_log_likelihood == pytest.approx(-sum(told))
            assert (found.num_tokens, found.num_tokens_dropped) == (len(told), len(answer) - len(told))
    assert "used" in {rung["rung"] for rung in read(folder, "ladder.json")["rungs"]}


def test_a_reference_that_leaves_a_server_no_room_is_named(
    least: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with engine_standin(max_model_len=500) as server:
        assert served(least, model, server) == 0
        capsys.readouterr()
        assert main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "has 500 tokens with its prompt, and the server, which must answer one more, takes 500; serve" in line
    assert line.endswith("see the other rungs with --no-likelihood")


def test_servers_without_likelihoods_of_tokens_have_the_other_rungs(
    least: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def refused() -> str:
        capsys.readouterr()
        assert main([str(folder)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    with engine_standin() as server:
        assert served(least, model, server) == 0
        server.tells_prompt_losses = False
        line = refused()
        assert f"the server at {server.base_url} gives no log-likelihoods of prompts" in line
        assert line.endswith("see the other rungs with --no-likelihood")
        assert served(least, model, server, "--prompts-as", "text", "--overwrite") == 0
        assert "likelihoods are of tokens, and this run sends its prompts as text" in refused()
    capsys.readouterr()
    assert main([str(folder), "--no-likelihood"]) == 0
    assert "leave out --no-likelihood" not in capsys.readouterr().out


def test_engines_that_tell_no_likelihood_are_named(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [one for one in least if one not in ("--threads", "1")]
    at = arguments.index("--model")
    assert run([*arguments[:at], *arguments[at + 2 :], "--engine", "mock"]) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "was answered by --engine mock, and likelihoods are measured by local, endpoint, vllm, sglang" in line
    assert main([str(tmp_path / "run"), "--no-likelihood"]) == 0
    assert "leave out --no-likelihood" not in capsys.readouterr().out


def test_answered_runs_measure_the_prompts_of_their_answers_alone(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, num_documents = tmp_path / "run", 12
    rows = [
        {"id": str(i), "context": text(i, 90), "query": "What?", "target": ANSWERS[:1]} for i in range(num_documents)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run([*least, "--until", "rougeLsum: 500 differs from 300 | 0.001s"]) == 0
    answered = (folder / "predictions.jsonl").read_text().splitlines()
    (folder / "scores.json").rename(tmp_path / "scores.json")
    capsys.readouterr()
    assert main([str(folder)]) == 2
    assert f"run: python -m eval.score {folder}" in capsys.readouterr().err
    assert not (folder / FILE).exists(), "nothing is measured where the ladder would fail"
    (tmp_path / "scores.json").rename(folder / "scores.json")
    assert main([str(folder)]) == 0
    assert 0 < len(measured(folder)) == len(answered) < 2 * num_documents


def test_windows_have_likelihoods_and_no_ladder(least: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for more in (["--no-generate"], []):
        assert run([*least, "--window", "head,without_evidence", *more]) == 0
        assert main([str(folder)]) == 0
        assert {template for template, _, _ in measured(folder)} == {"context_first", "context_first@without_evidence"}
        assert {line["template"] for line in read(folder, "ladder.json")["lines"]} == {"context_first"}


def test_a_model_that_sees_one_token_uses_no_longer_window(least: list[str], tmp_path: Path) -> None:
    assert run([*least, "--plan", "local span=1 sinks=0", "--dtype", "float64", "--no-generate"]) == 0
    assert main([str(tmp_path / "run")]) == 0
    lines = measured(tmp_path / "run")
    assert len(lines) == 8
    for (template, name, maxlen), line in lines.items():
        assert line.values == {"nll": pytest.approx(lines[template, name, 300].values["nll"], abs=1e-9)}, maxlen


def test_a_shard_measures_its_own_prompts(least: list[str], tmp_path: Path) -> None:
    for part in (1, 2):
        arguments = [*least[:-1], str(tmp_path / f"part-{part}"), "--shard", f"{part}/2", "--no-generate"]
        assert run(arguments) == 0
        assert main([str(tmp_path / f"part-{part}")]) == 0
    one, other = (measured(tmp_path / f"part-{part}") for part in (1, 2))
    assert one
    assert other
    assert not one.keys() & other.keys()
    assert len(one) + len(other) == 8


def test_several_processes_are_refused(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*least, "--no-generate"]) == 0
    backend = LocalBackend.__new__(LocalBackend)
    backend.process = TwoProcesses(1)  # type: ignore[assignment]
    monkeypatch.setattr("eval.generation.backend.open_backend", lambda config: backend)
    assert main([str(tmp_path / "run")]) == 2
    assert "likelihoods are measured by one process, and this launch has 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("about", "part"),
    [
        ({"is_encoded": True}, "the model of this run is an encoder-decoder"),
        ({"lets_think": True}, "no reference comes with a thought"),
    ],
)
def test_models_whose_answers_begin_otherwise_have_no_likelihood(about: dict[str, Any], part: str) -> None:
    backend = LocalBackend.__new__(LocalBackend)
    vars(backend).update(about)
    with pytest.raises(UserError, match=part):
        check_backend(backend, lets_think="lets_think" in about)
