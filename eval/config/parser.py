"""Flags that several scripts share, and how a command line and a YAML file become settings.

A YAML file takes the names of the flags; the command line wins over it; unknown keys fail. Both go through one parser,
so that a value is checked the same way wherever it stands.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from eval.errors import UserError
from eval.prompting.truncation import POLICIES
from masformer.checkpoints.open import SHORT_NAMES
from tasks.command import as_typed

DTYPES = ("float32", "bfloat16", "float16", "float64")


class Parser(argparse.ArgumentParser):
    """Leaves absent flags out, and raises `UserError` so that a mistake can be told in one line."""

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=as_typed(prog),
            description=textwrap.fill(description, 80),
            epilog=f"example: {example}",
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--config", metavar="FILE", type=Path, help="YAML with the same names; the command line wins")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help explains the flags)")

    def format_help(self) -> str:
        return as_typed(super().format_help())


_LARGEST = 2**31 - 1


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    if value > _LARGEST:
        raise argparse.ArgumentTypeError(f"{value} must be at most {_LARGEST}")
    return value


def natural(text: str) -> int:
    """Return a whole number of at least 0."""
    return 0 if text == "0" else positive(text)


def fraction(text: str) -> float:
    """Return a number of at least 0 and below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and below 1")
    return value


def finite_number(text: str) -> float:
    """Return a finite number."""
    value = _number(text)
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def share(text: str) -> float:
    """Return a number above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return value


def positive_number(text: str) -> float:
    """Return a finite number above 0."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def add_tracker_flag(group: argparse._ArgumentGroup) -> None:
    """Add the flag that names trackers."""
    group.add_argument(
        "--report-to", metavar="NAME", nargs="+", help="trackers of accelerate: tensorboard, wandb, trackio, ..."
    )


def add_truncation_flag(group: argparse._ArgumentGroup) -> None:
    """Add the flag that says what is kept of a context."""
    group.add_argument(
        "--truncation",
        choices=list(POLICIES),
        help="what is kept of a context that is too long: its beginning (head, default), both ends (middle: the middle "
        "is dropped), its end (tail)",
    )


def add_extrapolation_flag(group: argparse._ArgumentGroup) -> None:
    """Add the flag that allows lengths beyond the trained positions."""
    group.add_argument(
        "--allow-extrapolation",
        action=argparse.BooleanOptionalAction,
        help="allow a maxlen beyond the positions that the model was trained on",
    )


def add_model_flags(
    parser: argparse.ArgumentParser, model: str, dtype: str, *, with_plan: bool = True
) -> argparse._ArgumentGroup:
    """Add the flags that name a model, its spans and its numbers, and return their group."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="REF", help=f"hub id, folder, .gguf file, or {', '.join(SHORT_NAMES)} (default: {model})"
    )
    if with_plan:
        group.add_argument(
            "--plan",
            metavar="PLAN",
            help="attention spans: full, local, bottom:N, middle:N, top:N, every:N or full@LAYERS, then span=N sinks=N "
            "or block=N previous=N sinks=N; or a .json file; default: auto, the plan that the checkpoint carries, else "
            "its architecture's own",
        )
    group.add_argument("--dtype", choices=DTYPES, help=dtype)
    group.add_argument(
        "--trust-remote-code",
        action=argparse.BooleanOptionalAction,
        help="run code that comes with the checkpoint (default: off)",
    )
    return group


def add_machine_flags(parser: argparse.ArgumentParser, seed: str) -> argparse._ArgumentGroup:
    """Add the flags on threads and chance, and return their group."""
    group = parser.add_argument_group("machine")
    group.add_argument("--threads", metavar="N", type=positive, help="torch threads of each process")
    group.add_argument("--seed", metavar="N", type=natural, help=seed)
    return group


def read_settings(parser: argparse.ArgumentParser, arguments: Sequence[str], lengths: str) -> dict[str, Any]:
    """Return what a command line and the YAML file that it names set: tasks as a tuple, several lengths in order.

    Args:
        parser: Of the script, with `--task` and `--maxlen`.
        arguments: Of the command line.
        lengths: Example of lengths, for the message where one is missing.

    Raises:
        UserError: A value or a key that cannot be, or no task or length.
    """
    values = vars(parser.parse_args(list(arguments)))
    file = values.pop("config", None)
    if file is not None:
        values = vars(_parse_yaml(parser, file)) | values
    for name in ("task", "maxlen"):
        if name not in values:
            raise UserError(f"--{name} is missing; for example: --task aclsum --maxlen {lengths} (--help explains)")
    values["task"] = tuple(name.strip() for name in values["task"].split(",") if name.strip())
    if not values["task"]:
        raise UserError("--task is empty; python -m tasks list names those there are")
    if isinstance(values["maxlen"], list):
        values["maxlen"] = tuple(sorted(set(values["maxlen"])))
    return values


def _parse_yaml(parser: argparse.ArgumentParser, file: Path) -> argparse.Namespace:
    """Return what a YAML file sets, checked by the parser of the command line."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {file} is not YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"--config {file} holds a {type(content).__name__}; write 'name: value' lines")
    try:
        return parser.parse_args(arguments_of(parser, content))
    except UserError as error:
        raise UserError(f"--config {file}: {error}") from None


def arguments_of(parser: argparse.ArgumentParser, content: Mapping[Any, Any]) -> list[str]:
    """Return settings of a YAML file as they would stand on the command line.

    Raises:
        UserError: The parser has no such flag, or a value is no text, number or list.
    """
    known = {action.dest for action in parser._actions} - {"help", "config"}
    arguments: list[str] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UserError(f"unknown key '{key}'; known: {', '.join(sorted(known))}")
        arguments += _as_arguments(name, value)
    return arguments


def _as_arguments(name: str, value: Any) -> list[str]:
    """Return a setting of a YAML file as it would stand on the command line; nothing for one that is null.

    Raises:
        UserError: The value is no text, number or list.
    """
    flag = "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if name == "stop":
        # Each with its flag, so that a text may begin like one.
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"stop is {value!r}; a text or a list of texts was expected")
        return [f"{flag}={text}" for text in texts]
    if isinstance(value, list):
        return [f"{flag}={','.join(map(str, value))}"] if name in ("task", "template") else [flag, *map(str, value)]
    if isinstance(value, (int, float, str)):
        return [f"{flag}={value}"]
    raise UserError(f"{name} is {value!r}; a text, a number or a list was expected")
