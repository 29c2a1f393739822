"""The settings of one run: defaults, checks, YAML file, command line.

A YAML file takes the names of the flags; the command line wins over it; unknown keys fail. Both go through one parser,
so that a value is checked the same way wherever it stands.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from eval.rouge_profiles import PROFILES
from eval.truncation import POLICIES
from masformer.checkpoints import SHORT_NAMES
from tasks import TASKS

DTYPES = ("float32", "bfloat16", "float16")


class ConfigError(ValueError):
    """A setting that cannot be: one line that says which, the value, and what to do."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What one run does. Every attribute is a flag of `eval/run.py` with the same name.

    Attributes:
        task: Names of tasks.
        maxlen: Lengths in tokens, each counting all the model sees: prompt, template, and room for the answer.
        data: Local file or folder that is read instead of the hub or the package.
        split: None takes the task's default.
        limit: First examples of each task; None takes all.
        truncation: Which part of the context is kept.
        max_new_tokens: Room for the answer; None takes the task's default.
        model: Short name, `.gguf` file, folder or hub id.
        plan: Text form of a span plan, or `auto`: the plan the checkpoint carries, else the untouched model.
        dtype: None takes bfloat16 on a GPU and float32 on a CPU.
        allow_extrapolation: Run beyond the positions that the model was trained on.
        trust_remote_code: Run code that comes with the checkpoint.
        profile: ROUGE profile.
        output: Run folder; None makes a name under `runs/` from the settings.
        threads: Torch threads of each process; None shares the cores among the local processes.
        seed: Of torch.
    """

    task: tuple[str, ...]
    maxlen: tuple[int, ...]
    data: Path | None = None
    split: str | None = None
    limit: int | None = None
    truncation: str = "head"
    max_new_tokens: int | None = None
    model: str = "smollm2-135m"
    plan: str = "auto"
    dtype: str | None = None
    allow_extrapolation: bool = False
    trust_remote_code: bool = False
    profile: str = "hf"
    output: Path | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.task:
            if name not in TASKS:
                raise ConfigError(f"unknown task '{name}'; known: {', '.join(TASKS)}")
        if len(set(self.task)) != len(self.task):
            raise ConfigError(f"--task names a task twice: {','.join(self.task)}")
        if self.data is not None and len(self.task) > 1:
            raise ConfigError(f"--data {self.data} is one source for {len(self.task)} tasks; run them one by one")
        for name in self.task:
            if self.split is not None and self.split not in TASKS[name].splits:
                known = ", ".join(TASKS[name].splits)
                raise ConfigError(f"task '{name}' has no split '{self.split}'; known: {known}")


class _Parser(argparse.ArgumentParser):
    """Errors are exceptions here, so that they can be told in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help explains the flags)")


_LARGEST = 2**31 - 1


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    if value > _LARGEST:
        raise argparse.ArgumentTypeError(f"{value} must be at most {_LARGEST}")
    return value


def _natural(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `eval/run.py`; absent flags leave no attribute, so that defaults live in `RunConfig`."""
    parser = _Parser(
        prog="eval/run.py",
        description="Generate from long documents at several truncation lengths, score with ROUGE, report quality "
        "beside cost. The same command on an existing folder resumes it; lengths, limit and tasks may be added.",
        epilog="example: accelerate launch eval/run.py --task plos --maxlen 1024 2048 4096 8192 --limit 4",
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what is read")
    what.add_argument("--task", metavar="NAME", help=f"one or more, separated by commas: {', '.join(TASKS)}")
    what.add_argument("--data", metavar="FILE", type=Path, help="local data in one of the set's official formats")
    what.add_argument("--split", metavar="NAME", help="default: the split that the task is scored on")
    what.add_argument("--limit", metavar="N", type=_positive, help="first N examples of each task; default: all")
    how = parser.add_argument_group("how long, and how it is cut")
    how.add_argument(
        "--maxlen",
        metavar="N",
        type=_positive,
        nargs="+",
        help="lengths in tokens; each counts template, instruction, query, context and the room kept for the answer",
    )
    how.add_argument("--max-new-tokens", metavar="N", type=_positive, help="room for the answer; default: the task's")
    how.add_argument(
        "--truncation",
        choices=list(POLICIES),
        help="what is kept of a context that is too long: its beginning (head, default), both ends (middle: the middle "
        "is dropped), its end (tail)",
    )
    how.add_argument(
        "--allow-extrapolation",
        action=argparse.BooleanOptionalAction,
        help="allow a maxlen beyond the positions that the model was trained on",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="REF",
        help=f"hub id, folder, .gguf file, or {', '.join(SHORT_NAMES)} (default: {RunConfig.model})",
    )
    model.add_argument(
        "--plan",
        metavar="PLAN",
        help="attention spans: full, local, bottom:N, middle:N, top:N, every:N or full@LAYERS, then span=N sinks=N, or "
        "block=N previous=N sinks=N; default: auto, the plan that the checkpoint carries, else untouched",
    )
    model.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    model.add_argument(
        "--trust-remote-code",
        action=argparse.BooleanOptionalAction,
        help="run code that comes with the checkpoint (default: off)",
    )
    out = parser.add_argument_group("scores and output")
    out.add_argument("--profile", choices=list(PROFILES), help=f"ROUGE profile (default: {RunConfig.profile})")
    out.add_argument("--output", metavar="DIR", type=Path, help="run folder (default: a name under runs/)")
    machine = parser.add_argument_group("machine and settings file")
    machine.add_argument("--threads", metavar="N", type=_positive, help="torch threads of each process")
    machine.add_argument("--seed", metavar="N", type=_natural, help=f"of torch (default: {RunConfig.seed})")
    machine.add_argument("--config", metavar="FILE", type=Path, help="YAML with the same names; the command line wins")
    return parser


def load_config(arguments: Sequence[str]) -> RunConfig:
    """Return the settings of a command line and the YAML file that it names.

    Raises:
        ConfigError: A value, a key or a combination that cannot be.
    """
    parser = build_parser()
    values = vars(parser.parse_args(list(arguments)))
    file = values.pop("config", None)
    if file is not None:
        values = vars(_parse_yaml(parser, file)) | values
    for name in ("task", "maxlen"):
        if name not in values:
            raise ConfigError(f"--{name} is missing; for example: --task plos --maxlen 1024 2048 (--help explains)")
    values["task"] = tuple(name.strip() for name in values["task"].split(",") if name.strip())
    if not values["task"]:
        raise ConfigError(f"--task is empty; known: {', '.join(TASKS)}")
    values["maxlen"] = tuple(sorted(set(values["maxlen"])))
    return RunConfig(**values)


def _parse_yaml(parser: argparse.ArgumentParser, file: Path) -> argparse.Namespace:
    """Return what a YAML file sets, checked by the parser of the command line."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file} is not YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file} holds a {type(content).__name__}; write 'name: value' lines")
    known = set(RunConfig.__dataclass_fields__)
    arguments: list[str] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ConfigError(f"--config {file}: unknown key '{key}'; known: {', '.join(sorted(known))}")
        arguments += _as_arguments(file, name, value)
    try:
        return parser.parse_args(arguments)
    except ConfigError as error:
        raise ConfigError(f"--config {file}: {error}") from None


def _as_arguments(file: Path, name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [f"{flag}={','.join(map(str, value))}"] if name == "task" else [flag, *map(str, value)]
    if isinstance(value, (int, str)):
        return [f"{flag}={value}"]
    raise ConfigError(f"--config {file}: {name} is {value!r}; a text, a number or a list was expected")
