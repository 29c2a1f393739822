"""A user's own data, several tasks at once, templates and bad rows, through the main job on a random tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.config.finetune import TrainConfig
from eval.config.perplexity import PerplexityConfig
from eval.config.placement import PlacementConfig
from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.backend import output_of
from eval.run import main
from tasks import DataError
from tests.helpers.run_folders import document, model_results, sentence
from tests.helpers.tiny_models import save_tiny_checkpoint, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_plots")

LEAST = ["--maxlen", "300", "--max-new-tokens", "8", "--threads", "1"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def tickets(count: int = 3) -> list[dict[str, Any]]:
    return [{"ticket": document(i), "gist": sentence(i), "question": f"What of {i}?"} for i in range(count)]


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def record_of(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


FIELDS = ["--context-field", "ticket", "--target-field", "gist", "--query-field", "question"]


def test_a_file_and_the_names_of_its_fields_are_a_task(model: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "tickets.jsonl", tickets())
    told = ["--instruction", "Answer from the ticket.", "--metrics", "scrolls"]
    arguments = ["--task", "custom", "--data", str(data), *FIELDS, *told, "--model", str(model), *LEAST]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    about = record_of(tmp_path / "run")["tasks"]["custom"]
    assert about["profile"] == "scrolls"
    assert about["templates"]["context_first"]["text"].count("Answer from the ticket.") == 2
    (result,) = model_results(tmp_path / "run")
    assert (result.profile, result.num_examples) == ("scrolls", 3)
    # The same again resumes; another instruction is another run.
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    arguments[arguments.index("Answer from the ticket.")] = "Say it."
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 2


def test_a_task_file_is_a_task_beside_published_ones(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    write_lines(own / "tickets.jsonl", tickets())
    file = own / "tickets.yaml"
    file.write_text("data: tickets.jsonl\ncontext_field: ticket\ntarget_field: gist\nmax_new_tokens: 9\n")
    folder = tmp_path / "sets"
    folder.mkdir()
    write_lines(folder / "arxiv.jsonl", [{"article": document(i), "abstract": sentence(i)} for i in range(2)])
    write_lines(folder / "tickets.jsonl", tickets(2))
    arguments = ["--task", f"arxiv,{file}", "--data", str(folder), "--model", str(model), *LEAST]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    assert {result.task: result.num_examples for result in model_results(tmp_path / "run")} == {
        "arxiv": 2,
        "tickets": 2,
    }
    config = RunConfig.from_command_line(["--task", str(file), "--maxlen", "300"])
    assert len(config.load("tickets").examples) == 3
    assert config.tasks["tickets"].max_new_tokens == 9


def test_templates_are_run_side_by_side_and_a_plain_one_has_no_chat_markup(model: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "tickets.jsonl", tickets())
    asked = ["instruct", "instruct-once", "instruct-plain", "instruct-once-plain"]
    arguments = ["--task", "custom", "--data", str(data), *FIELDS[:4], "--template", ",".join(asked)]
    assert main([*arguments, "--model", str(model), *LEAST, "--output", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert {line["template"] for line in lines} == set(asked)
    kept = record_of(tmp_path / "run")["tasks"]["custom"]["templates"]
    assert [kept[name]["chat"] for name in asked] == [True, True, False, False]
    markup = len(tiny_tokenizer().apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True))
    assert markup > 0
    by_template = {line["template"]: line for line in lines if line["id"] == "test-0"}
    room = {name: line["prompt_tokens"] - line["context_tokens_kept"] for name, line in by_template.items()}
    assert room["instruct"] > room["instruct-once"]
    assert room["instruct-plain"] > room["instruct-once-plain"]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {tuple(sorted({one["first"]["template"], one["second"]["template"]})) for one in scores["comparisons"]} >= {
        ("instruct", other) for other in asked[1:]
    }


def test_bad_rows_fail_by_name_and_are_counted_when_skipped(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tickets(4)
    rows[1]["gist"] = ""
    rows[2]["ticket"] = None
    data = write_lines(tmp_path / "tickets.jsonl", rows)
    run = tmp_path / "run"
    arguments = ["--task", "custom", "--data", str(data), *FIELDS[:4], "--model", str(model), *LEAST]
    assert main([*arguments, "--output", str(run)]) == 2
    assert "tickets.jsonl line 2: field 'gist' is empty" in capsys.readouterr().err
    assert not run.exists()
    assert main([*arguments, "--on-bad-row", "skip", "--output", str(run)]) == 0
    assert "2 bad rows skipped, the first: tickets.jsonl line 2: field 'gist' is empty" in capsys.readouterr().out
    kept = record_of(run)["tasks"]["custom"]["rows"]
    assert (kept["num_rows"], kept["num_bad"]) == (4, 2)
    assert ["line 2" in kept["bad"][0], "line 3: field 'ticket' is null" in kept["bad"][1]] == [True, True]
    (result,) = model_results(run)
    assert result.num_examples == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "plos", "--context-field", "x"], "--context-field is of --task custom"),
        (["--task", "custom", "--data", "x", "--instruction", "Read {context}"], "holds a placeholder"),
        (["--task", "custom", "--data", "x", "--metrics", "bleu"], "asks for unknown metrics 'bleu'; known: hf"),
        (["--task", "nothing.yaml"], "task file nothing.yaml cannot be read"),
    ],
)
def test_what_cannot_be_a_task_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        RunConfig.from_command_line([*arguments, "--maxlen", "300"])
    assert message in str(error.value)


def test_a_folder_lacks_a_task_or_holds_it_twice(tmp_path: Path) -> None:
    (tmp_path / "arxiv.jsonl").touch()
    config = RunConfig.from_command_line(["--task", "arxiv,pubmed", "--data", str(tmp_path), "--maxlen", "300"])
    with pytest.raises(DataError, match="holds nothing named pubmed"):
        config.load("pubmed")
    (tmp_path / "arxiv").mkdir()
    with pytest.raises(DataError, match=r"holds arxiv and arxiv\.jsonl"):
        config.load("arxiv")


def test_a_task_file_may_not_be_called_like_a_published_task(tmp_path: Path) -> None:
    file = tmp_path / "plos.yaml"
    file.write_text("data: x.jsonl\n")
    with pytest.raises(UserError, match=r"is called .plos. like a published task"):
        RunConfig.from_command_line(["--task", str(file), "--maxlen", "300"])


def test_a_template_is_trained_with(tmp_path: Path) -> None:
    config = TrainConfig.from_command_line(["--task", "aclsum", "--maxlen", "300", "--template", "abstract-plain"])
    assert config.template_of("aclsum") == config.tasks["aclsum"].templates["abstract-plain"]
    with pytest.raises(UserError, match="task 'aclsum' has no template 'x'"):
        TrainConfig.from_command_line(["--task", "aclsum", "--maxlen", "300", "--template", "x"])


def test_short_documents_are_left_out_of_runs_and_trainings(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [{"ticket": "Too short.", "gist": "No.", "question": "What?"}]
    data = write_lines(tmp_path / "tickets.jsonl", [*short, *tickets(2)])
    arguments = ["--task", "custom", "--data", str(data), *FIELDS, "--model", str(model), *LEAST]
    output = ["--output", str(tmp_path / "run")]
    assert main([*arguments, *output, "--min-words", "20", "--limit", "1"]) == 0
    about = record_of(tmp_path / "run")["tasks"]["custom"]
    assert (about["min_words"], about["rows"]["num_short"]) == (20, 1)
    assert "1 examples of custom were left out" in (tmp_path / "run" / "report.md").read_text()
    # More of them may be added; other ones may not.
    assert main([*arguments, *output, "--min-words", "20"]) == 0
    (result,) = model_results(tmp_path / "run")
    assert result.num_examples == 2
    capsys.readouterr()
    assert main([*arguments, *output]) == 2
    assert "min_words of custom is 20 there and null now" in capsys.readouterr().err
    config = TrainConfig.from_command_line(
        ["--task", "custom", "--data", str(data), *FIELDS, "--maxlen", "300", "--min-words", "9"]
    )
    assert len(config.load("custom").examples) == 2


def test_lengths_and_shots_are_those_of_the_tasks_unless_given(tmp_path: Path) -> None:
    for name, lengths in (("one", "[1024, 512]"), ("two", "2048"), ("none", "")):
        maxlen = f"maxlen: {lengths}\n" if lengths else ""
        (tmp_path / f"{name}.yaml").write_text(f"data: {name}.jsonl\nshots: 2\nshots_seed: 7\n{maxlen}")

    def config(tasks: str, *more: str) -> RunConfig:
        return RunConfig.from_command_line(["--tasks-from", str(tmp_path), "--task", tasks, *more])

    assert config("one").maxlen == config("one,none").maxlen == (512, 1024)
    assert config("one,two", "--maxlen", "64").maxlen == (64,)
    for tasks, reason in (("one,two", "the tasks name different lengths"), ("none", "--maxlen is missing")):
        with pytest.raises(UserError, match=reason):
            config(tasks)
    asked = config("one")
    assert asked.shots_of(asked.tasks["one"]) == {"shots": 2, "shots_split": "train", "shots_seed": 7}
    asked = config("one", "--shots", "1", "--shots-split", "test", "--shots-seed", "3")
    assert asked.shots_of(asked.tasks["one"]) == {"shots": 1, "shots_split": "test", "shots_seed": 3}
    own = config("one", "--split", "dev", "--shots-split", "pilot")
    assert (own.split, own.shots_of(own.tasks["one"])["shots_split"]) == ("dev", "pilot"), "as the data calls them"
    custom = ["--task", "custom", "--data", "x", "--maxlen", "300", "--shots", "1", "--shots-split", "pilot"]
    assert RunConfig.from_command_line(custom).tasks["custom"].has_split("pilot")
    for words, reason in (
        (
            ["--task", "plos", "--shots", "1"],
            "task 'plos' has no split 'train' for --shots; --shots-split names one of",
        ),
        (["--task", "qasper", "--shots-seed", "1"], "have no effect without --shots; give it too"),
        (["--task", "qasper", "--scan", "5"], "--scan 5 is what --sample draws from"),
    ):
        with pytest.raises(UserError, match=reason):
            RunConfig.from_command_line([*words, "--maxlen", "300"])


def test_texts_that_are_made_here_fill_what_a_command_reads() -> None:
    for config, words, longest in (
        (RunConfig, ["512", "16384"], 16384),
        (TrainConfig, ["16384", "--split", "test"], 16384),
        (PlacementConfig, ["16384"], 16384),
        (PerplexityConfig, ["512", "2048"], 2048),
        (PerplexityConfig, ["512", "--tokens", "16384"], 16384),
    ):
        made = config.from_command_line(["--task", "needle_single", "--limit", "1", "--maxlen", *words])
        assert made.longest == longest
        assert len(made.load("needle_single", "test").examples[0].context) > 4 * longest


def test_new_options_leave_the_names_of_folders_as_they_were() -> None:
    def name(*more: str) -> str:
        config = RunConfig.from_command_line(["--task", "plos", "--maxlen", "300", "--sample", "2", *more])
        return output_of(config).name

    assert name() == "plos-smollm2-135m-auto-f48fbd69", "that of the version before"
    assert len({name(), name("--scan", "9"), name("--shots", "0")}) == 3
