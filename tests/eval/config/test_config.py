"""Settings: flags and YAML keys pass the same checks, the command line wins, unknown keys fail."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from eval.config.finetune import EXTENSIONS, TrainConfig
from eval.config.job import DTYPES, SHORT_NAMES
from eval.config.options import Options
from eval.config.perplexity import PerplexityConfig
from eval.config.placement import PlacementConfig
from eval.config.run import RunConfig
from eval.errors import UserError
from eval.runtime.model import TORCH_DTYPES
from masformer import placement
from masformer.checkpoints import open as checkpoints
from masformer.checkpoints import positions

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
LEAST = ["--task", "plos", "--maxlen", "1024"]
SCRIPTS = [RunConfig, PerplexityConfig, PlacementConfig, TrainConfig]
each_script = pytest.mark.parametrize("config", SCRIPTS, ids=lambda config: config.script)


def from_yaml(tmp_path: Path, text: str, *arguments: str) -> RunConfig:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return RunConfig.from_command_line(["--config", str(file), *arguments])


def test_defaults() -> None:
    assert RunConfig.from_command_line(LEAST) == RunConfig(task=("plos",), maxlen=(1024,))


def test_every_flag_is_a_setting_and_every_setting_a_flag() -> None:
    flags = {action.dest for action in RunConfig.build_parser()._actions} - {"help", "config"}
    assert flags == {field.name for field in fields(RunConfig)}


def test_yaml_takes_the_same_names_and_the_command_line_wins(tmp_path: Path) -> None:
    text = (
        "task: [plos, aclsum]\nmaxlen: [2048, 1024]\nmax-new-tokens: 7\nallow_extrapolation: true\nplan: 'middle:8'\n"
    )
    config = from_yaml(tmp_path, text)
    assert config == RunConfig(
        task=("plos", "aclsum"),
        maxlen=(1024, 2048),
        max_new_tokens=7,
        allow_extrapolation=True,
        plan="middle:8",
    )
    config = from_yaml(tmp_path, text, "--maxlen", "512", "--no-allow-extrapolation", "--plan", "full")
    assert (config.maxlen, config.allow_extrapolation, config.plan) == ((512,), False, "full")


def test_on_and_off_are_what_yaml_calls_true_and_false(tmp_path: Path) -> None:
    for text, thinking in (("on", "on"), ("'off'", "off"), ("off", "off"), ("auto", "auto")):
        assert from_yaml(tmp_path, f"thinking: {text}\n", *LEAST).thinking == thinking
    assert RunConfig.arguments_of({"thinking": True}) == ["--thinking", "on"]
    with pytest.raises(UserError, match="invalid choice: 'maybe'"):
        from_yaml(tmp_path, "thinking: maybe\n", *LEAST)
    with pytest.raises(UserError, match="plan is True"):
        from_yaml(tmp_path, "plan: on\n", *LEAST)


def test_lists_of_templates_and_of_stop_texts(tmp_path: Path) -> None:
    config = from_yaml(
        tmp_path, "template: [instruct, abstract]\nstop: ['---', '--stop', \"\\n\"]\nshard: 2/3\n", *LEAST
    )
    assert config.template == ("instruct", "abstract")
    assert config.stop == ("---", "--stop", "\n")
    assert config.shard == (2, 3)
    assert RunConfig.from_command_line([*LEAST, "--stop", "a", "b", "--stop=--c"]).stop == ("a", "b", "--c")
    assert from_yaml(tmp_path, "stop: []\n", *LEAST).stop == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("temperature: 1", {"temperature": 1.0}),
        ("temperature: 1e-1", {"temperature": 0.1}),
        ("limit: '5'", {"limit": 5}),
        ("limit: [5]", {"limit": 5}),
        ("limit: null", {"limit": None}),
        ("data: 2024", {"data": Path("2024")}),
        ("template: instruct, abstract", {"template": ("instruct", "abstract")}),
        ("report-to: tensorboard", {"report_to": ("tensorboard",)}),
        ("texts: false", {"texts": False}),
        ("dtype: float32", {"dtype": "float32"}),
    ],
)
def test_a_value_of_yaml_has_the_type_of_its_setting(tmp_path: Path, text: str, expected: dict[str, object]) -> None:
    config = from_yaml(tmp_path, text, *LEAST)
    for name, value in expected.items():
        assert (getattr(config, name), type(getattr(config, name))) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "resume"), [("resume: true", True), ("resume: false", False), ("resume: runs/a", Path("runs/a"))]
)
def test_a_training_is_resumed_by_yaml(tmp_path: Path, text: str, resume: Path | bool) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(text)
    assert TrainConfig.from_command_line(["--config", str(file), "--task", "aclsum", "--maxlen", "9"]).resume == resume


def test_settings_of_a_file_are_the_same_as_words_of_a_command_line(tmp_path: Path) -> None:
    text = (
        "task: [plos, aclsum]\nmaxlen: [2048, 1024]\nstop: ['---', a=b, \"\\n\"]\ntexts: false\noverwrite: true\n"
        "temperature: 1e-1\ntemplate: [instruct, abstract]\nlimit: null\nreport_to: [tensorboard, wandb]\nshard: 2/3\n"
    )
    words = RunConfig.arguments_of(yaml.safe_load(text))
    assert RunConfig.from_command_line(words) == from_yaml(tmp_path, text)
    # A value that looks like a flag is one word with its own.
    assert words[5:10] == ["--stop=---", "--stop", "a=b", "--stop", "\n"]


def test_settings_need_no_torch() -> None:
    modules = ", ".join(config.__module__ for config in SCRIPTS)
    program = f"import sys, {modules}; assert not {{'torch', 'transformers', 'masformer'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


def test_names_are_those_that_masformer_knows() -> None:
    assert tuple(checkpoints.SHORT_NAMES) == SHORT_NAMES
    assert tuple(positions.EXTENSIONS) == EXTENSIONS
    assert set(TORCH_DTYPES) == set(DTYPES)
    assert PlacementConfig.gate == placement.GATE


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_shipped_config_loads(file: Path) -> None:
    assert RunConfig.from_command_line(["--config", str(file)]).task


def test_there_are_shipped_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modell: x", "unknown key 'modell'; known: accept_ascii_words, adapter, adapter_revision, "),
        ("config: x", "unknown key 'config'"),
        ("maxlen: many", "argument --maxlen: 'many' is not a whole number"),
        ("maxlen: [0]", "argument --maxlen: 0 must be at least 1"),
        ("limit: {a: 1}", "limit is {'a': 1}; a text, a number or a list was expected"),
        ("- plos", "holds a list"),
        ("task: [", "is not YAML"),
        ("truncation: left", "invalid choice: 'left'"),
        ("stop: [null]", "stop is [None]; a text or a list of texts was expected"),
        ("top_p: 95", "95 must be above 0 and at most 1"),
        ("length_penalty: .nan", "nan is not finite"),
        ("limit: 1.5", "argument --limit: '1.5' is not a whole number"),
        ("limit: true", "limit is True; a text, a number or a list was expected"),
        ("limit: [1, 2]", "limit is [1, 2]; one value was expected"),
        ("texts: 3", "texts is 3; true or false was expected"),
        ("maxlen: []", "argument --maxlen: expected at least one argument"),
        ("split: 2020-13-45", "is not YAML"),
    ],
)
def test_malformed_yaml_is_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_yaml(tmp_path, text, *LEAST)
    assert str(error.value).startswith(f"--config {tmp_path / 'run.yaml'}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--maxlen", "10"], "--task is missing"),
        (["--task", "plos"], "--maxlen is missing"),
        (["--task", "nope", "--maxlen", "10"], "unknown task 'nope'; python -m tasks list names all"),
        (["--task", "quasper", "--maxlen", "10"], "unknown task 'quasper', perhaps 'qasper'; python -m tasks list"),
        (["--task", ",", "--maxlen", "10"], "--task is empty"),
        (["--task", "plos,plos", "--maxlen", "10"], "--task names 'plos' twice"),
        (["--task", "plos,aclsum", "--maxlen", "10", "--data", "x"], "--data x is one source for 2 tasks"),
        ([*LEAST, "--split", "train"], "task 'plos' has no split 'train'; known: test"),
        ([*LEAST, "--stop", ""], "--stop has an empty text"),
        ([*LEAST, "--template", ","], "--template is empty"),
        ([*LEAST, "--limit", "0"], "argument --limit: 0 must be at least 1"),
        ([*LEAST, "--limit", "-3"], "argument --limit: -3 must be at least 1"),
        ([*LEAST, "--threads", "0"], "argument --threads: 0 must be at least 1"),
        ([*LEAST, "--max-new-tokens", "1.5"], "'1.5' is not a whole number"),
        ([*LEAST, "--dtype", "int8"], "invalid choice: 'int8'"),
        ([*LEAST, "--profile", "best"], "invalid choice: 'best'"),
        ([*LEAST, "--max", "3"], "unrecognized arguments: --max 3"),
        (["--config", "no-such.yaml"], "--config no-such.yaml cannot be read"),
    ],
)
def test_malformed_arguments_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        RunConfig.from_command_line(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@each_script
def test_help_explains_every_flag(
    config: type[Options], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        config.from_command_line(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in config.options())
    assert all(action.help for action in config.build_parser()._actions)
    assert max(map(len, text.splitlines())) <= 120


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        PlacementConfig.from_command_line(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "first N examples of each task (default: all)" in text
    assert "(default: span=1024 sinks=4)" in text
    assert "as the only local one too (default: on)" in text
    assert "shorter ones are left out (required)" in text
    assert "cache=N% or flops=N% (default: layers=4)" in text
