"""The `masformer` command: one name for all that the suite does, from any folder.

`eval` and `tasks` are found by name, never imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version

from masformer.suite import find_suite

# By group: each command with its module and what it does.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Load a model; for several processes: accelerate launch -m masformer COMMAND ...": {
        "run": ("eval.run", "answer from long documents at several lengths, score, report"),
        "perplexity": ("eval.perplexity", "measure perplexity at several lengths and by position"),
        "finetune": ("eval.finetune", "train a model for a task, or on long texts, under a span plan"),
        "placement": ("eval.placement", "find the layers or heads that need full attention"),
        "ladder": ("eval.ladder", "find where a run loses the tokens of longer windows (one process)"),
    },
    "Read run folders, without a model": {
        "merge": ("eval.merge", "join the parts of a run that independent jobs made"),
        "score": ("eval.score", "score a run again, or predictions from elsewhere"),
        "compare": ("eval.compare", "test two runs against each other"),
        "plan": ("eval.plan", "say how many documents, samples and minutes a run takes, from an earlier one"),
        "labels": ("eval.labels", "estimate what people would give all answers, from labels of some"),
        "leaderboard": ("eval.leaderboard", "rank many runs by quality, beside their cost"),
        "view": ("eval.view", "look at a folder of runs on a local page, at one in progress too"),
        "export": ("eval.export", "write scored runs in the formats of other programs"),
        "rate": ("eval.rate", "rate the answers of runs side by side, blinded, on a page"),
        "meta": ("eval.meta", "measure how well metrics agree with people"),
    },
    "Ask a model that judges": {
        "judge": ("eval.judge", "say which of two runs answers better, by a judge behind an address"),
    },
    "Run many parts": {
        "study": ("eval.study", "the runs, measurements and trainings of a study, and one report"),
    },
    "Tasks, checkpoints, neighbours": {
        "tasks": ("tasks.__main__", "list the tasks, or show a prompt as a model will see it"),
        "convert": ("masformer.checkpoint_commands", "convert a checkpoint to mixed attention spans"),
        "show": ("masformer.checkpoint_commands", "print a model's layers and what a plan costs"),
        "push": ("masformer.checkpoint_commands", "send a converted checkpoint to the hub"),
        "harness": ("eval.harness", "run tasks of lm-evaluation-harness on a conversion"),
    },
}
COMMANDS = {name: module for group in GROUPS.values() for name, (module, _) in group.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status; 2 after one line where there is no such command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    find_suite()
    if name in ("-h", "--help", "--version"):
        text = f"masformer {version('masformer')}" if name == "--version" else _help()
        status: int = import_module("tasks.command").run_command(lambda: print(text))
        return status
    if name not in COMMANDS:
        wrong = f"unknown command '{name}'" if name else "no command given"
        print(f"error: {wrong}; give one of {', '.join(COMMANDS)} (--help explains them)", file=sys.stderr)
        return 2
    module = COMMANDS[name]
    if module.startswith("masformer."):
        rest = [name, *rest]
    else:
        sys.argv = [f"masformer {name}", *rest]  # the name in help texts
    run: Callable[[Sequence[str]], int] = import_module(module).main
    return run(rest)


def _help() -> str:
    lines = ["usage: masformer COMMAND ...", "       masformer COMMAND --help", "       masformer --version"]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<12} {summary}" for name, (_, summary) in commands.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
