"""What tasks there are, what they ask, and a prompt as a model will see it.

python -m tasks list
python -m tasks show qasper
python -m tasks show qasper --example --maxlen 2048 --data validation.jsonl --index 3
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tasks import CUSTOM, TASKS, DataError, LoadRequest, Task, read_task_file
from tasks.command import as_typed, run_command

_WIDTH = 100
_ROW = "{:27}{:27}{:14}{:>14}{:>9}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DataError(f"{message} (--help explains the flags)")

    def format_help(self) -> str:
        return as_typed(super().format_help())


def main(arguments: Sequence[str]) -> int:
    """Print what is asked for, and return the exit status: 0, or 2 after one line on what is wrong."""

    def work() -> None:
        options = _build_parser().parse_args(arguments)
        lines = list_tasks(as_json=options.json) if options.command == "list" else _show(options)
        print("\n".join(lines))

    return run_command(work, DataError)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=as_typed("python -m tasks"), description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | show", parser_class=_Parser)
    listing = commands.add_parser("list", help="all tasks", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="all that is known of them, as JSON")
    show = commands.add_parser("show", help="one task with its templates, or one of its prompts", allow_abbrev=False)
    show.add_argument("task", metavar="NAME", help="a task of the list, or a YAML task file")
    show.add_argument("--example", action="store_true", help="a prompt in place of the task")
    prompt = show.add_argument_group("which prompt (with --example)")
    prompt.add_argument("--model", metavar="REF", help="whose tokenizer and chat template (default: smollm2-135m)")
    prompt.add_argument("--maxlen", metavar="N", type=int, help="tokens with room for the answer (default: 2048)")
    prompt.add_argument("--template", metavar="NAME", help="default: the task's")
    prompt.add_argument("--truncation", metavar="POLICY", help="head, middle or tail is kept (default: head)")
    prompt.add_argument("--data", metavar="PATH", type=Path, help="as for eval/run.py")
    prompt.add_argument("--split", metavar="NAME", help="default: the task's")
    prompt.add_argument("--revision", metavar="REF", help="of the data on the hub (default: the task's)")
    prompt.add_argument("--index", metavar="I", type=int, help="which example, from 0 on (default: 0)")
    return parser


def describe_task(task: Task) -> dict[str, Any]:
    """Return what is known of a task, JSON-ready; sizes that nobody has published are null."""
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


def list_tasks(*, as_json: bool) -> list[str]:
    """Return lines that tell of all tasks: as JSON, or as three lines a task and more where they are long."""
    described = [describe_task(task) for task in TASKS.values()]
    if as_json:
        return [json.dumps(described, indent=2, ensure_ascii=False)]
    lines = [_ROW.format("task", "default split (examples)", "metrics", "answer tokens", "version")]
    for about in described:
        split = f"{about['default_split']} ({_count(about['splits'][about['default_split']])})"
        cells = (about["name"], split, about["metrics"], about["max_new_tokens"], about["version"])
        lines.append(_ROW.format(*("-" if cell is None else cell for cell in cells)))
        lines += _wrap(about["description"]) + _wrap(f"{about['source']}; licence: {about['licence']}")
    return lines


def _count(number: int | None) -> str:
    return "size not stated" if number is None else f"{number:,}"


def _wrap(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _show(options: argparse.Namespace) -> list[str]:
    task = _find(options.task)
    given = [
        name
        for name in ("model", "maxlen", "template", "truncation", "data", "split", "revision", "index")
        if getattr(options, name) is not None
    ]
    if not options.example:
        if given:
            raise DataError(f"--{given[0]} is of a prompt; add --example")
        return show_task(task)
    if not task.has_references:
        raise DataError(f"task {task.name} has no prompts: nothing is asked about its texts")
    index = options.index or 0
    if index < 0:
        raise DataError(f"--index is {index}; give 0 or more")
    loaded = task.load(
        LoadRequest(
            split=options.split or task.default_split, data=options.data, revision=options.revision, limit=index + 1
        )
    )
    if index >= len(loaded.examples):
        raise DataError(f"--index is {index}, and task {task.name} has {len(loaded.examples)} examples there")

    from eval.prompting.show import show_prompt

    return show_prompt(
        task,
        loaded.examples[index],
        model=options.model or "smollm2-135m",
        maxlen=2048 if options.maxlen is None else options.maxlen,
        template=options.template,
        truncation=options.truncation or "head",
    )


def _find(name: str) -> Task:
    if name.endswith((".yaml", ".yml")):
        return read_task_file(Path(name)).task()
    if name not in TASKS:
        hint = f"; '{CUSTOM}' is made of flags: give a YAML task file" if name == CUSTOM else ""
        raise DataError(f"unknown task '{name}'; python -m tasks list names all{hint}")
    return TASKS[name]


def show_task(task: Task) -> list[str]:
    """Return lines that tell all of a task, the text of its templates included."""
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
