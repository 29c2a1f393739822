"""List the tasks, describe one, and print a prompt as a model will see it.

python -m tasks list
python -m tasks show qasper
python -m tasks show qasper --example --maxlen 2048 --data validation.jsonl --index 3
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tasks import TASKS, DataError, Task, find_task
from tasks.command import add_prompt_flags, as_typed, run_command
from tasks.readers.files import read_text_file

_WIDTH = 100
_ROW = "{:31}{:26}{:17}{:>14}{:>9}"
_TABLE_HEAD = "| task | what | default split (examples) | metrics | answer tokens | version | licence |\n"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DataError(f"{message} (--help explains the flags)")

    def format_help(self) -> str:
        return as_typed(super().format_help())


def main(arguments: Sequence[str]) -> int:
    """Print what is requested, and return the exit status: 0, or 2 after one line on what is wrong."""

    def work() -> None:
        options = _build_parser().parse_args(arguments)
        lines = _list(options) if options.command == "list" else _show(options)
        print("\n".join(lines))

    return run_command(work, DataError)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=as_typed("python -m tasks"), description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | show", parser_class=_Parser)
    listing = commands.add_parser("list", help="all tasks", allow_abbrev=False)
    forms = listing.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="all that is known of them, as JSON")
    forms.add_argument("--markdown", action="store_true", help="as a table in Markdown")
    forms.add_argument("--write", metavar="PAGE", type=Path, help="write that table into a page in place of its own")
    show = commands.add_parser("show", help="one task with its templates, or one of its prompts", allow_abbrev=False)
    show.add_argument("--example", action="store_true", help="print a prompt, which the flags below choose")
    add_prompt_flags(show)
    return parser


def _list(options: argparse.Namespace) -> list[str]:
    if options.json:
        return [json.dumps([describe_task(task) for task in TASKS.values()], indent=2, ensure_ascii=False)]
    if options.markdown:
        return list(markdown_rows())
    if options.write:
        before, head, rest = read_text_file(options.write, str(options.write)).partition(_TABLE_HEAD)
        if not head:
            raise DataError(f"{options.write} holds no table of tasks; it begins with {_TABLE_HEAD.strip()}")
        table, after = "\n".join(markdown_rows()), rest.partition("\n\n")[2]
        options.write.write_text(f"{before}{table}\n\n{after}\n", encoding="utf-8")
        return [f"{options.write}: {len(TASKS)} tasks"]
    return list_tasks()


def describe_task(task: Task) -> dict[str, Any]:
    """Return a task's fields, JSON-ready; the size of a split is null if it is not published."""
    return {
        "name": task.name,
        "version": task.version,
        "description": task.description,
        "source": task.source,
        "revision": task.revision,
        "licence": task.licence,
        "splits": dict(task.splits),
        "default_split": task.default_split,
        "metrics": task.profile if task.has_references else None,
        "max_new_tokens": task.max_new_tokens if task.has_references else None,
        "scores_first_line": task.scores_first_line,
        "default_template": task.default_template or None,
        "templates": {name: {"text": one.text, "chat": one.chat} for name, one in task.templates.items()},
        "needs_hub": task.needs_hub,
    }


def list_tasks() -> list[str]:
    """Return three lines for each task, and more where they are long."""
    lines = [_ROW.format("task", "default split (examples)", "metrics", "answer tokens", "version")]
    for task in TASKS.values():
        lines.append(_ROW.format(task.name, *_cells(task)))
        lines += _wrap(task.description) + _wrap(f"{task.source}; licence: {task.licence}")
    return lines


def markdown_rows() -> Iterator[str]:
    """Yield the lines of the table in docs/tasks.md."""
    yield _TABLE_HEAD.strip()
    yield "| --- | --- | --- | --- | ---: | ---: | --- |"
    for task in TASKS.values():
        yield f"| {' | '.join((f'`{task.name}`', task.description, *_cells(task), task.licence))} |"


def _cells(task: Task) -> list[str]:
    """Return default split, metrics, tokens of an answer and version."""
    split = f"{task.default_split} ({_count(task.splits[task.default_split])})"
    scored = [task.profile, str(task.max_new_tokens)] if task.has_references else ["-", "-"]
    return [split, *scored, str(task.version)]


def _count(number: int | None) -> str:
    return "size not stated" if number is None else f"{number:,}"


def _wrap(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _show(options: argparse.Namespace) -> list[str]:
    if options.example:
        # The one way from here up to `eval`, which knows models and prompts: its command is run, not imported.
        lines: list[str] = runpy.run_module("eval.prompt")["prompt_lines"](options)
        return lines
    task = find_task(options.task)
    for name, value in vars(options).items():
        if name not in ("command", "example", "task") and value is not None:
            raise DataError(f"--{name.replace('_', '-')} is of a prompt; add --example")
    return show_task(task)


def show_task(task: Task) -> list[str]:
    """Return lines with all that is known of a task, and its templates."""
    about = describe_task(task)
    sizes = ", ".join(f"{split} ({_count(size)})" for split, size in about.pop("splits").items())
    templates = about.pop("templates")
    lines = []
    for key, value in {**about, "splits": sizes}.items():
        text = "-" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        lines += textwrap.wrap(f"{key.replace('_', ' ') + ':':20}{text}", _WIDTH, subsequent_indent=" " * 20)
    for name, template in templates.items():
        lines += ["", f"template {name}" + ("" if template["chat"] else " (no chat template)")]
        for line in template["text"].split("\n"):
            lines += _wrap(line, "  | ") or ["  |"]
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
