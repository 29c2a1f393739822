"""What commands share: how they are named to a user, the flags that choose a prompt, and how a command ends."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

_SCRIPTS = r"eval/(run|perplexity|finetune|placement|merge)\.py"
_LAUNCHED = re.compile(rf"(accelerate launch(?: -[-\w]+(?: [\dN]+)?)*) {_SCRIPTS}")
_MODULES = r"python -m (?:eval\.(score|compare|leaderboard|export|study|harness)|(tasks)\b)"
_STARTED = re.compile(rf"(?<![\w/.-])(?:(?:python )?{_SCRIPTS}|{_MODULES})")


def as_typed(text: str) -> str:
    """Return a text for a user, with `masformer run` for `eval/run.py` and so on where `masformer` was typed."""
    if not sys.argv[0].startswith("masformer "):  # as its `main` leaves it
        return text
    text = _LAUNCHED.sub(r"\1 -m masformer \2", text)
    return _STARTED.sub(lambda found: f"masformer {found[found.lastindex or 0]}", text)


def run_command(work: Callable[[], None], *expected: type[Exception]) -> int:
    """Do the work, and return the exit status: 0, or 2 after one line on what is wrong.

    Errors that a user can cause are `expected`; their messages are printed on one line.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names and texts may hold what a terminal cannot show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        work()
        sys.stdout.flush()
    except expected as error:
        print(as_typed(f"error: {' '.join(str(error).split())}"), file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output has closed it; write nothing more to it, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(
            f"error: {error.filename or 'the output'}: {error.strerror}; check the path and permissions",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again", file=sys.stderr)
        return 130
    return 0


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Add a task and the flags that choose one of its prompts."""
    parser.add_argument("task", metavar="NAME", help="a task of the list, or a YAML task file")
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
    prompt.add_argument("--revision", metavar="REF", help="revision of the data on the hub (default: the task's)")
    prompt.add_argument("--index", metavar="I", type=int, help="which example, from 0 on (default: 0)")
