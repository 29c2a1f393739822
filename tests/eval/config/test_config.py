"""Settings: one parser for the command line and the YAML file, the command line wins, unknown keys fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.config.run import RunConfig, build_parser, load_config
from eval.errors import UserError

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
LEAST = ["--task", "plos", "--maxlen", "1024"]


def from_yaml(tmp_path: Path, text: str, *arguments: str) -> RunConfig:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return load_config(["--config", str(file), *arguments])


def test_defaults() -> None:
    assert load_config(LEAST) == RunConfig(task=("plos",), maxlen=(1024,))


def test_every_flag_is_a_setting_and_every_setting_a_flag() -> None:
    flags = {action.dest for action in build_parser()._actions} - {"help", "config"}
    assert flags == set(RunConfig.__dataclass_fields__)


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


def test_lists_of_templates_and_of_stop_texts(tmp_path: Path) -> None:
    config = from_yaml(
        tmp_path, "template: [instruct, abstract]\nstop: ['---', '--stop', \"\\n\"]\nshard: 2/3\n", *LEAST
    )
    assert config.template == ("instruct", "abstract")
    assert config.stop == ("---", "--stop", "\n")
    assert config.shard == (2, 3)
    assert load_config([*LEAST, "--stop", "a", "b", "--stop=--c"]).stop == ("a", "b", "--c")
    assert from_yaml(tmp_path, "stop: []\n", *LEAST).stop == ()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_shipped_config_loads(file: Path) -> None:
    assert load_config(["--config", str(file)]).task


def test_there_are_shipped_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modell: x", "unknown key 'modell'; known: allow_extrapolation, "),
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
        load_config(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in RunConfig.__dataclass_fields__)
    assert all(action.help for action in build_parser()._actions)
