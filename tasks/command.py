"""What commands share: how they are named to a user, the flags that choose a prompt, and how a command ends."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tasks.terminal import plain_output, plain_text

_SCRIPTS = r"eval/(run|perplexity|finetune|placement|merge)\.py"
_LAUNCHED = re.compile(rf"(accelerate launch(?: -[-\w]+(?: [\dN]+)?)*) {_SCRIPTS}")
# `eval.prompt` is `masformer tasks show NAME --example`, and no command of its own there.
_MODULES = r"python -m (?:eval\.((?!prompt\b)\w+)\b(?!\.\w)|(tasks)\b)"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_LINE = 4_000
_STARTED = re.compile(rf"(?<![\w/.-])(?:(?:python )?{_SCRIPTS}|{_MODULES})")


def as_typed(text: str) -> str:
    """Return a text for a user, with `masformer run` for `eval/run.py` and so on where `masformer` was typed."""
    if not sys.argv[0].startswith("masformer "):  # as its `main` leaves it
        return text
    text = _LAUNCHED.sub(r"\1 -m masformer \2", text)
    return _STARTED.sub(lambda found: f"masformer {found[found.lastindex or 0]}", text)


def as_launched(words: Sequence[str]) -> str:
    """Return the command line that starts a script with its arguments, as it is typed."""
    return as_typed(f"accelerate launch {shlex.join(words)}")


def named_path(text: str) -> Path:
    """Return a path. An empty text, as of a variable that is not set, would be the folder that a user is in."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no path; name a file or folder, or leave it out")
    return Path(text)


def run_command(work: Callable[[], None], *expected: type[Exception]) -> int:
    """Do the work, and return the exit status: 0, 2 after one line on what is wrong, 130 after an interrupt.

    Errors that a user can cause are `expected`; their messages are printed on one line.
    """
    return end_command(work, lambda error: str(error) if isinstance(error, expected) else None)


def end_command(
    work: Callable[[], None],
    message: Callable[[Exception], str | None],
    *,
    again: str | None = None,
    speaks: Callable[[BaseException], bool] = lambda error: True,
    who: str = "",
) -> int:
    """Do the work of any command, and return the exit status as `run_command` does.

    Args:
        work: The command.
        message: Returns one line for an error that a user can mend; None for our own bugs, which stay tracebacks.
        again: What goes on after an interrupt; None for a command that begins anew, and may lose its reader.
        speaks: Whether this process prints the line of an error, or leaves it to another one.
        who: Name of this process before the line.
    """
    if isinstance(sys.stderr, io.TextIOWrapper):
        # Names and texts may hold what a terminal cannot show.
        sys.stderr.reconfigure(errors="backslashreplace")
    handle_signals(signal.default_int_handler)
    try:
        with plain_output():
            work()
            if sys.stdout is not None:  # as it is after `>&-`
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it
        if again is None:
            return 0
        _say(f"error: the output was closed; {again}")
        return 2
    except KeyboardInterrupt as error:
        _ignore_signals()
        if speaks(error):
            _say(f"interrupted: {again or 'run the same command again'}")
        return 130
    except Exception as error:
        text = message(error) or _os_message(error)
        if text is None:
            raise
        _ignore_signals()
        if speaks(error):
            text = " ".join(text.split())
            _say(as_typed(f"error: {who}{text if len(text) <= _MAX_LINE else f'{text[:_MAX_LINE]}...'}"))
        return 2
    finally:
        _end_output(sys.stdout)
    return 0


def _os_message(error: Exception) -> str | None:
    """Return one line for an error of the operating system that a user can mend; None for others."""
    if not isinstance(error, OSError):
        return None
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {reason}; check the path and permissions"
    if error.errno in _FULL:  # files of a run folder have names
        return f"the output cannot be written: {reason}; make room, or send it elsewhere"
    if error.errno is not None:
        return f"the output or the network: {reason}; check disk and connection"
    return None


def handle_signals(handler: Any) -> None:
    """Let Ctrl-C, what a scheduler sends before it kills, and a terminal that closes do the same."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):  # as under nohup
            continue
        signal.signal(number, handler)


def _ignore_signals() -> None:
    # The launcher sends a second one to processes that a terminal has interrupted already.
    if "WORLD_SIZE" in os.environ:
        handle_signals(signal.SIG_IGN)


def _say(text: str) -> None:
    """Print a line on stderr, where one can still be written."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(plain_text(text), file=sys.stderr)
        _end_output(sys.stderr)


def _end_output(stream: TextIO | None) -> None:
    """Write what is left of an output, or nothing more if it is closed or full: at exit it would change the status."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


def add_tasks_from(parser: argparse.ArgumentParser) -> None:
    """Add the flag of a folder with task files."""
    parser.add_argument(
        "--tasks-from", metavar="DIR", type=Path, help="folder of YAML task files, known by their names"
    )


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Add a task and the flags that choose one of its prompts."""
    parser.add_argument("task", metavar="NAME", help="a task of the list, or a YAML task file")
    add_tasks_from(parser)
    prompt = parser.add_argument_group("which prompt")
    prompt.add_argument("--model", metavar="REF", help="its tokenizer and chat template (default: smollm2-135m)")
    prompt.add_argument("--maxlen", metavar="N", type=int, help="tokens with room for the answer (default: 2048)")
    prompt.add_argument("--template", metavar="NAME", help="default: the task's")
    prompt.add_argument(
        "--chat-template", metavar="NAME", help="one of the tokenizer's chat templates, as for eval/run.py"
    )
    prompt.add_argument("--template-kwargs", metavar="MAPPING", help="variables of the chat template, JSON or YAML")
    prompt.add_argument("--system", metavar="TEXT", help="system message (default: none)")
    prompt.add_argument("--template-date", metavar="YYYY-MM-DD", help="what its clock shows (default: now)")
    prompt.add_argument("--truncation", metavar="POLICY", help="keep the head, middle or tail (default: head)")
    prompt.add_argument("--data", metavar="PATH", type=Path, help="as for eval/run.py")
    prompt.add_argument("--split", metavar="NAME", help="default: the task's")
    prompt.add_argument("--shots", metavar="N", type=int, help="solved examples in the prompt (default: the task's)")
    prompt.add_argument("--shots-split", metavar="NAME", help="split that they are drawn from (default: the task's)")
    prompt.add_argument("--shots-seed", metavar="N", type=int, help="of that drawing (default: the task's)")
    prompt.add_argument("--revision", metavar="REF", help="revision of the data on the hub (default: the task's)")
    prompt.add_argument("--index", metavar="I", type=int, help="which example, from 0 on (default: 0)")
