"""List the tasks, describe one, print a prompt as a model will see it, and check a task file.

python -m tasks list
python -m tasks show qasper
python -m tasks show qasper --example --maxlen 2048 --data validation.jsonl --index 3
python -m tasks check tickets.yaml
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tasks import TASKS, DataError, LoadRequest, Task, find_task, installed_tasks, tasks_of
from tasks.command import add_prompt_flags, add_tasks_from, as_typed, named_path, run_command
from tasks.readers.files import read_text_file

_WIDTH = 100
_ROW = "{:33}{:25}{:17}{:>14}{:>9}"
# Rows of a split that `check` reads.
_CHECKED_ROWS = 100
_TABLE_HEAD = "| task | what | default split (examples) | metrics | answer tokens | version | licence |\n"


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register("type", Path, named_path)  # of every flag with `type=Path`

    def error(self, message: str) -> NoReturn:
        raise DataError(f"{message} (--help explains the flags)")

    def format_help(self) -> str:
        return as_typed(super().format_help())


def main(arguments: Sequence[str]) -> int:
    """Print what is requested, and return the exit status: 0, or 2 after one line on what is wrong."""

    def work() -> None:
        options = _build_parser().parse_args(arguments)
        print("\n".join({"list": _list, "show": _show, "check": _check}[options.command](options)))

    return run_command(work, DataError)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=as_typed("python -m tasks"), description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | show | check", parser_class=_Parser)
    listing = commands.add_parser("list", help="all tasks", allow_abbrev=False)
    add_tasks_from(listing)
    forms = listing.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="all that is known of them, as JSON")
    forms.add_argument("--markdown", action="store_true", help="as a table in Markdown")
    forms.add_argument("--write", metavar="PAGE", type=Path, help="write that table into a page in place of its own")
    show = commands.add_parser("show", help="one task with its templates, or one of its prompts", allow_abbrev=False)
    show.add_argument("--example", action="store_true", help="print a prompt, which the flags below choose")
    add_prompt_flags(show)
    check = commands.add_parser("check", help="read a task file and the first rows of its data", allow_abbrev=False)
    check.add_argument("file", metavar="FILE", help="a YAML task file")
    return parser


def _list(options: argparse.Namespace) -> list[str]:
    if options.json:
        return [json.dumps([describe_task(task) for task in _listed(options)], indent=2, ensure_ascii=False)]
    if options.markdown:
        return list(markdown_rows(_listed(options)))
    if options.write:  # the page is about the tasks of this package
        before, head, rest = read_text_file(options.write, str(options.write)).partition(_TABLE_HEAD)
        if not head:
            raise DataError(f"{options.write} holds no table of tasks; it begins with {_TABLE_HEAD.strip()}")
        table, after = "\n".join(markdown_rows(TASKS.values())), rest.partition("\n\n")[2]
        options.write.write_text(f"{before}{table}\n\n{after}\n", encoding="utf-8")
        return [f"{options.write}: {len(TASKS)} tasks"]
    return list_tasks(_listed(options))


def _listed(options: argparse.Namespace) -> list[Task]:
    """Return the tasks there are. Says on stderr which of an installed package cannot be used."""
    shared = {} if options.tasks_from is None else tasks_of(options.tasks_from)
    installed, problems = installed_tasks()
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    return [*TASKS.values(), *shared.values(), *installed.values()]


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
        "stop": ", ".join(map(repr, task.stop)) or None,
        "maxlen": ", ".join(map(str, task.maxlen)) or None,
        "shots": f"{task.shots} of {task.shots_split}, seed {task.shots_seed}" if task.shots else None,
        "system": next((one.system for one in task.templates.values() if one.system), None),
    }


def list_tasks(tasks: Sequence[Task]) -> list[str]:
    """Return three lines for each task, and more where they are long."""
    lines = [_ROW.format("task", "default split (examples)", "metrics", "answer tokens", "version")]
    for task in tasks:
        lines.append(_ROW.format(task.name, *_cells(task)))
        lines += _wrap(task.description) + _wrap(f"{task.source}; licence: {task.licence}")
    return lines


def markdown_rows(tasks: Iterable[Task]) -> Iterator[str]:
    """Yield the lines of a table of tasks, such as that in docs/tasks.md."""
    yield _TABLE_HEAD.strip()
    yield "| --- | --- | --- | --- | ---: | ---: | --- |"
    for task in tasks:
        yield f"| {' | '.join((f'`{task.name}`', task.description, *_cells(task), task.licence))} |"


def _cells(task: Task) -> list[str]:
    """Return default split, metrics, tokens of an answer and version."""
    split = f"{task.default_split} ({_count(task.splits[task.default_split])})"
    scored = [task.profile, str(task.max_new_tokens)] if task.has_references else ["-", "-"]
    return [split, *scored, str(task.version)]


def _count(number: int | None) -> str:
    return "not stated" if number is None else f"{number:,}"


def _wrap(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _show(options: argparse.Namespace) -> list[str]:
    if options.example:
        lines: list[str] = _run("prompt_lines", options)
        return lines
    task = find_task(options.task, options.tasks_from)
    for name, value in vars(options).items():
        if name not in ("command", "example", "task", "tasks_from") and value is not None:
            raise DataError(f"--{name.replace('_', '-')} applies only with --example")
    return show_task(task)


def _run(name: str, argument: Any) -> Any:
    """Call a function of the one way from here up to `eval`, which knows models, prompts and metrics.

    Its command is run, not imported.
    """
    return runpy.run_module("eval.prompt")[name](argument)


def _check(options: argparse.Namespace) -> list[str]:
    """Return what a task file says and its data hold. Raises `DataError` for the first mistake."""
    task = find_task(options.file)
    _run("check_metrics", task)
    request = LoadRequest(split=task.default_split, limit=_CHECKED_ROWS, shots=task.shots, shots_seed=task.shots_seed)
    loaded = task.load(request)
    texts = {
        "documents": [one.context for one in loaded.examples],
        "questions": [one.query for one in loaded.examples if one.query is not None],
        "references": [text for one in loaded.examples for text in one.references],
        "shots": [shot.context for shot in loaded.shots],
    }
    return [
        f"{options.file}: task {task.name}, the first {len(loaded.examples)} examples of split {task.default_split}",
        *(f"{what + ':':12}{_describe_words(some)}" for what, some in texts.items() if some),
        f"{'templates:':12}{', '.join(task.templates)}",
        f"{'metrics:':12}{task.profile}",
    ]


def _describe_words(texts: Sequence[str]) -> str:
    counts = sorted(len(text.split()) for text in texts)
    return f"{len(texts)}, {counts[0]:,} to {counts[-1]:,} words, {counts[len(counts) // 2]:,} in the median"


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
