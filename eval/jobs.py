"""What commands that read run folders share: flags, and one line for what is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from eval.errors import UserError
from tasks import command
from tasks.command import as_typed


class CommandParser(argparse.ArgumentParser):
    """Tells a mistake in the flags in one line.

    Args:
        command: As it is typed.
        description: The docstring of its module.
    """

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(
            prog=as_typed(command),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help explains the flags)\n")

    def format_help(self) -> str:
        return as_typed(super().format_help())


def run_command(work: Callable[[], None]) -> int:
    """Do the work on run folders, and return the exit status: 0, or 2 after one line on what is wrong."""
    return command.run_command(work, UserError)


def margin_share(text: str) -> float:
    """Return a margin of non-inferiority: a fraction of at least 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and below 1; scores count from 0 to 1 here")
    return value
