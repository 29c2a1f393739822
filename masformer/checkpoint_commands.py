"""`masformer convert`, `show` and `push`: convert a checkpoint, look at what a plan costs, send the result to the hub.

    masformer convert smollm2-135m --plan "full@17,18,20,23 span=512 sinks=4" --output smollm2-mas
    masformer convert smollm2-135m --plan "full@17,18,20,23 span=512 sinks=0" --output smollm2-native --native
    masformer show smollm2-135m --plan "middle:8 span=1024 sinks=4"
    masformer push smollm2-mas OWNER/NAME

MODEL is a hub id, a folder, a .gguf file, or a short name (smollm2-135m, gemma3-270m).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from masformer.checkpoints.references import check_reference
from masformer.errors import OneLineError, user_message
from masformer.plans.written import check_written

DTYPES = ("float32", "bfloat16", "float16", "float64")
_SHOWN_LENGTHS = (1024, 2048, 4096, 8192)
_SUMMARIES = {
    "convert": "Put a plan on a checkpoint, measure it, save it, and send it to the hub where that is asked for.",
    "show": "Print a model's layers and what a plan costs at several lengths, without loading weights.",
    "push": "Send a converted checkpoint that is already saved to the hub.",
}


def main(arguments: Sequence[str]) -> int:
    """Run a command, and return its exit status: 0, 2 after one line on what is wrong, 130 after an interrupt."""

    def run() -> None:
        options = _parser().parse_args(arguments)
        _check(options)
        from masformer import checkpoint_work  # imports torch and transformers, which takes seconds

        checkpoint_work.run(options)

    # All commands end in one way; like those of `eval`, what knows it is found by name.
    status: int = import_module("tasks.command").end_command(run, user_message)
    return status


def _check(options: argparse.Namespace) -> None:
    """Raise an error of one line for what a name or a plan alone shows to be wrong."""
    if options.command == "push":
        return
    if options.command == "convert" and options.private and options.push_to_hub is None:
        raise OneLineError("--private is about --push-to-hub, which is not given")
    check_reference(options.model)
    if options.adapter is not None:
        check_reference(options.adapter, is_adapter=True)
    if options.plan is not None:
        check_written(options.plan)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help explains the flags)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="masformer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_convert(_command(commands, "convert"))
    shows = _command(commands, "show")
    _add_model(shows)
    shows.add_argument(
        "--plan", help="as of convert; default: the plan in the checkpoint, else its architecture's spans"
    )
    shows.add_argument("--lengths", type=_positive, nargs="+", default=list(_SHOWN_LENGTHS), metavar="TOKENS")
    pushes = _command(commands, "push")
    pushes.add_argument("folder", help="of a converted checkpoint")
    pushes.add_argument("repo_id", metavar="OWNER/NAME", help="made where the hub does not have it")
    pushes.add_argument("--private", action="store_true", help="when the repository is made, make it private")
    return parser


def _command(commands: argparse._SubParsersAction[_Parser], name: str) -> _Parser:
    return commands.add_parser(name, help=_SUMMARIES[name], description=_SUMMARIES[name], allow_abbrev=False)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder, .gguf file or short name; or a LoRA adapter")
    parser.add_argument("--model-revision", metavar="REV", help="branch, tag or commit of a model on the hub")
    parser.add_argument("--adapter", metavar="REF", help="LoRA adapter of the model, merged: a folder or hub id")
    parser.add_argument("--adapter-revision", metavar="REV", help="branch, tag or commit of an adapter on the hub")
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and cache; default: that of the checkpoint")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--plan", required=True, help='as "full@17,18,20,23 span=512 sinks=4", or a .json file')
    parser.add_argument("--output", required=True, metavar="DIR", help="folder that is made")
    parser.add_argument("--overwrite", action="store_true", help="replace the converted checkpoint in DIR")
    parser.add_argument(
        "--native",
        action="store_true",
        help="say the plan in transformers' own settings, so that nothing needs masformer; without sinks, one window",
    )
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument(
        "--measure",
        type=_positive,
        nargs="+",
        metavar="TOKENS",
        help="lengths at which prefill and decoding are timed; default: 1024 4096, where the model was trained on them",
    )
    measured.add_argument("--no-measure", action="store_true", help="time nothing; cost in closed form only")
    parser.add_argument("--device", help="to measure on; default: cuda where there is one, else cpu")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="send the checkpoint to the hub once it is saved")
    parser.add_argument("--private", action="store_true", help="when the repository is made, make it private")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive whole number")
    return int(text)
