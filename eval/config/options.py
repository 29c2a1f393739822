"""Options as fields of a dataclass: flags, `--help`, the keys of a YAML file and all checks follow from the fields.

    @dataclass(frozen=True, kw_only=True)
    class RunConfig(Options):
        limit: int | None = Group.DATA.option(None, "first N examples of each task", positive, unset="all")

    config = RunConfig.from_command_line(["--config", "run.yaml", "--limit", "4"])

The command line wins over the file. Values of the file pass the same checks as flags; unknown keys fail.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

from eval.config.checks import Value, mapping, path, switch
from eval.errors import UserError
from tasks.base import DataError
from tasks.command import as_typed
from tasks.readers.yaml_file import read_yaml, shown

REQUIRED: Any = MISSING

_SEE_HELP = "(--help explains the flags)"
# By the annotation of what a check returns.
_METAVARS = {"int": "N", "float": "X", "Path": "DIR"}


class Group(Enum):
    """The groups of `--help`, in their order."""

    DATA = "what is read"
    OWN_DATA = "your own data (--task custom --data FILE; .jsonl, .csv, .parquet, .txt folder)"
    TRAINING_DATA = "training data"
    LENGTHS = "how long, and how it is cut"
    MEASURED = "what is measured"
    ANSWERS = "how answers are chosen (default: the likeliest token, greedily)"
    MODEL = "model"
    ENGINE = "engine that is a server"
    SPANS = "attention spans and positions"
    ADAPTERS = "low-rank adapters (LoRA)"
    STEPS = "steps"
    SEARCH = "search"
    HELD_OUT = "held-out documents"
    CLAIM = "a claim, recorded before the first answer"
    STOP = "when the run stops"
    OUTPUT = "output"
    MACHINE = "machine"

    def option(self, default: Any, help: str, check: Callable[[Any], Any] = str, **more: Any) -> Any:
        """Return the field of a dataclass that is an option of this group; `more` as in `Option`."""
        about = Option(group=self, default=default, help=help, check=check, **more)
        return field(default=default, metadata={"option": about})


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field says about its flag and its key.

    Attributes:
        check: Returns the setting for one value, or raises `argparse.ArgumentTypeError`.
        nargs: `+` takes one or more values, `?` one or none.
        collect: Makes the setting of a list of values; None where there is one value.
        unset: What the default means, where it does not say so itself.
        repeats: The flag may be given several times.
    """

    group: Group
    default: Any
    help: str
    check: Callable[[Any], Any]
    nargs: str | None = None
    collect: Callable[[Sequence[Any]], tuple[Any, ...]] | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    unset: str | None = None
    repeats: bool = False

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED

    def add_to(self, parser: argparse._ArgumentGroup, name: str) -> None:
        help = (self.help + self._default_text()).replace("%", "%%")
        if self.check is switch:
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=help)
            return
        more: dict[str, Any] = {"action": "extend"} if self.repeats else {"const": True} if self.nargs == "?" else {}
        more |= {"type": self.check_one, "nargs": self.nargs, "metavar": self.shown_metavar}
        parser.add_argument(_flag(name), help=help, **more)

    @property
    def shown_metavar(self) -> str:
        choices = f"{{{','.join(self.choices)}}}" if self.choices else None
        returned = inspect.get_annotations(self.check).get("return", "")
        return self.metavar or choices or _METAVARS.get(returned, "NAME")

    def _default_text(self) -> str:
        default = self.default if self.unset is None else self.unset
        if isinstance(default, bool):
            default = "on" if default else "off"
        if self.is_required:
            return " (required)"
        return "" if default in (None, ()) else f" (default: {default})"

    def check_setting(self, name: str, value: Any) -> Any:
        """Return the setting for a value of a YAML file.

        Raises:
            UserError: The value has a wrong type or fails the check.
        """
        types, expected = {str, int, float}, "a text, a number or a list"
        value = self._as_written(value)
        if self.check is switch:
            types, expected = {bool}, "true or false"
        elif self.check is mapping:
            types, expected = {str, dict}, "a mapping"
        elif self.nargs == "?":
            types.add(bool)
        elif self.nargs == "+" and self.check is str:
            types, expected = {str}, "a text or a list of texts"
        values = value if isinstance(value, list) else [value]
        # `isinstance` would take a bool for a number.
        if not all(type(one) in types for one in values):
            raise UserError(f"{name} is {shown(value)}; {expected} was expected")
        if self.collect is None and len(values) != 1:
            raise UserError(f"{name} is {shown(value)}; one value was expected")
        try:
            found = [one if isinstance(one, bool) else self.check_one(one) for one in values]
            if not found and self.nargs and self.default != ():
                raise argparse.ArgumentTypeError("expected at least one argument")
        except argparse.ArgumentTypeError as error:
            raise UserError(f"argument {_flag(name)}: {error} {_SEE_HELP}") from None
        return self.collect(found) if self.collect else found[0]

    def _as_written(self, value: Any) -> Any:
        """Return a value of a YAML file, in which the choices on and off are true and false."""
        return ("on" if value else "off") if isinstance(value, bool) and "on" in self.choices else value

    def check_one(self, value: Value) -> Any:
        found = self.check(value)
        if self.choices and found not in self.choices:
            known = ", ".join(map(repr, self.choices))
            raise argparse.ArgumentTypeError(f"invalid choice: {shown(found)} (choose from {known})")
        return found

    def words(self, name: str, value: Any) -> list[str]:
        """Return a value of a YAML file as words of a command line."""
        value = self._as_written(value)
        if isinstance(value, bool):
            return [_flag(name if value else f"no_{name}")]
        many = value if isinstance(value, list) else [value]
        values = [json.dumps(one) if isinstance(one, dict) else str(one) for one in many]
        if isinstance(value, list) and self.nargs and not self.repeats:
            return [_flag(name), *values]
        words: list[str] = []
        for one in values if self.repeats else [",".join(values)]:
            # A value that looks like a flag is one word with its own.
            words += [f"{_flag(name)}={one}"] if not one or one.startswith("-") else [_flag(name), one]
        return words


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of a script, all fields made by `Group.option`; the docstring of a subclass opens its `--help`."""

    script: ClassVar[str]
    example: ClassVar[str]
    least: ClassVar[str]  # the required flags with example values

    @classmethod
    def options(cls) -> dict[str, Option]:
        return {one.name: one.metadata["option"] for one in fields(cls)}

    @classmethod
    def build_parser(cls) -> argparse.ArgumentParser:
        """Return the parser of the flags; absent flags leave no attribute."""
        options, about = cls.options(), inspect.cleandoc(cls.__doc__ or "").split("\n\n")
        required = [f"{_flag(name)} {one.shown_metavar}" for name, one in options.items() if one.is_required]
        width = min(shutil.get_terminal_size().columns, 120) - 2
        parser = _Parser(
            prog=as_typed(cls.script),
            usage=" ".join(["%(prog)s", *required, "[more flags]"]),
            description="\n\n".join(textwrap.fill(text, 80) for text in about),
            epilog=f"example: accelerate launch {cls.script} {cls.example}",
            argument_default=argparse.SUPPRESS,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=width),
            allow_abbrev=False,
        )
        of_config = "YAML file with the same names; the command line wins"
        parser.add_argument("--config", metavar="FILE", type=path, help=of_config)
        for group in Group:
            if members := {name: one for name, one in options.items() if one.group is group}:
                section = parser.add_argument_group(group.value)
                for name, one in members.items():
                    one.add_to(section, name)
        return parser

    @classmethod
    def from_command_line(cls, arguments: Sequence[str]) -> Self:
        """Return the settings of a command line and the YAML file that it names.

        Raises:
            UserError: A value, a key or a combination that cannot be.
        """
        options = cls.options()
        given = vars(cls.build_parser().parse_args(list(arguments)))
        file = given.pop("config", None)
        for name, value in given.items():
            if collect := options[name].collect:
                given[name] = collect(value if isinstance(value, list) else [value])
        values = cls.completed((cls._read_file(file) if file else {}) | given)
        for name, one in options.items():
            if one.is_required and name not in values:
                raise UserError(f"{_flag(name)} is missing; for example: {cls.least} (--help explains)")
        return cls(**values)

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the settings that were given, with those that follow from them."""
        return values

    @classmethod
    def _read_file(cls, file: Path) -> dict[str, Any]:
        try:
            content = read_yaml(file, f"--config {file}")
        except DataError as error:
            raise UserError(str(error)) from error
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise UserError(f"--config {file} holds a {type(content).__name__}; write 'name: value' lines")
        try:
            return cls._check_settings(content)
        except UserError as error:
            raise UserError(f"--config {file}: {error}") from None

    @classmethod
    def _check_settings(cls, content: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the settings of a YAML file by name, without those that are null."""
        options, values = cls.options(), {}
        for key, value in content.items():
            name = _name(key)
            if name not in options:
                raise UserError(f"unknown key {shown(key)}; known: {', '.join(sorted(options))}")
            if value is not None:
                values[name] = options[name].check_setting(name, value)
        return values

    @classmethod
    def arguments_of(cls, content: Mapping[Any, Any]) -> list[str]:
        """Return the settings of a YAML file as words of a command line, for a process of its own.

        Raises:
            UserError: A key is unknown, or a value cannot be.
        """
        options, known = cls.options(), cls._check_settings(content)
        given = [(_name(key), value) for key, value in content.items()]
        return [word for name, value in given if name in known for word in options[name].words(name, value)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} {_SEE_HELP}")

    def format_help(self) -> str:
        return as_typed(super().format_help())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _name(key: object) -> str:
    return str(key).replace("-", "_")
